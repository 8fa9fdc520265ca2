"""Trains the toy while the disk is full from one step to another; run by test_failed_saves.py in a process of its own.

The disk is full in that the kernel refuses to let any file grow beyond a limit, so that real writes fail.

    python -m tests.engine.full_disk WORKDIR FROM TO [--config.KEY=VALUE ...] [-- WORKDIR FROM TO ...]

prints 'exit CODE' behind what each of the runs prints.
"""

import resource
import sys
import time

import numpy as np

from gen_jax.engine import train as loop
from gen_jax.engine.checkpoint import CheckpointError, Checkpoints
from gen_jax.engine.signals import Stop
from tests.engine.test_train import make
from tests.engine.toy import Batches, regression

LIMIT = 30_000  # bytes: config.json and the log fit, the state does not
STORES: list[Checkpoints] = []


class Filling(Batches):
    """Fills the disk before one batch, and frees it before another; waits for the save under way, not for the loop."""

    def __init__(self, first, last):
        super().__init__()
        self.first, self.last = first, last

    def __next__(self):
        while STORES and STORES[-1]._manager.is_saving_in_progress():
            time.sleep(0.01)
        print(f'batch {self.step + 1}', flush=True)
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        full = self.first <= self.step + 1 < self.last
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT if full else hard, hard))
        return super().__next__()


class Watched(Checkpoints):
    """Known to the data."""

    def save(self, *args, **kwargs):
        STORES.append(self)
        super().save(*args, **kwargs)


def heavy():
    """The toy with a state of 80 kB that does not compress."""
    system = regression()

    def init(key, batch):
        params, extra = system.init(key, batch)
        return params, {**extra, 'ballast': np.random.default_rng(0).normal(size=20_000).astype(np.float32)}

    return system._replace(init=init)


def one(workdir, first, last, *overrides):
    """The exit code of a run."""
    STORES.clear()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2)
    run = make(heavy(), '--config.train.steps=12', '--config.checkpoint.every_steps=4', *overrides)
    run = run._replace(open_data=lambda **kwargs: Filling(int(first), int(last)))
    loop.Checkpoints = Watched
    try:
        return loop.train(run, workdir, stop=Stop()).exit_code
    except CheckpointError as error:
        print(f'ERROR: {error}')
        return 2


def main(arguments):
    while arguments:
        end = arguments.index('--') if '--' in arguments else len(arguments)
        print(f'exit {one(*arguments[:end])}', flush=True)
        arguments = arguments[end + 1:]


if __name__ == '__main__':
    main(sys.argv[1:])
