"""One process that does runs of a sweep: a training with its evaluation, or evaluations of one checkpoint in turn."""

import contextlib
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gen_jax import config as config_lib
from gen_jax.config import ConfigError
from gen_jax.engine.files import write_text
from gen_jax.sweeps import ledger
from gen_jax.sweeps.plan import Plan, Run

__all__ = ['FAILED', 'WAITS', 'BUSY', 'Work', 'check_one_process', 'execute']

FAILED = 1
"""Exit code: the run failed; its run.json says why."""
WAITS = 4
"""Exit code: the run that it evaluates is not done yet."""
BUSY = 5
"""Exit code: another process is at it."""


class Work(NamedTuple):
    """What is done to a run, given from outside."""

    train: Callable[[Any, Path], int]
    """(config, run folder) -> 0, or the exit code of a stop that was asked for (then it saved, and will go on)."""
    evaluate: Callable[[Run, Path, Path], None]
    """(run, folder of the checkpoint, folder for the results): writes evaluation.json."""


def check_one_process(plan: Plan, ids: Sequence[str]) -> None:
    """Refuses runs that one process cannot do.

    Raises:
        ConfigError: several, and not all evaluations of one checkpoint.
    """
    bases = {plan.runs[i].of for i in ids}
    if len(ids) > 1 and (len(bases) > 1 or None in bases):
        raise ConfigError('one process does one training, or evaluations of one checkpoint: name one run, or leave '
                          '--run out')


def execute(plan: Plan, ids: Sequence[str], workdir, work: Work, to_log: bool = False, leader: bool = True) -> int:
    """Does the runs in turn, and keeps the books of each.

    Args:
        ids: one training, or evaluations of one checkpoint (`check_one_process`).
        to_log: what they print is appended to log.txt in each run's folder.
        leader: False in all but the first of several processes that do one run together (a TPU pod): the first keeps
            the books.

    Returns:
        0, or the exit code of the worst: FAILED, WAITS, BUSY; or that of a stop at once.
    """
    codes = []
    for run in (plan.runs[i] for i in ids):
        with _output(ledger.folder(workdir, run.id) / 'log.txt' if to_log else None):
            codes.append((_attempt if leader else _follow)(plan, run, Path(workdir), work))
        if codes[-1] not in (0, FAILED, WAITS, BUSY):
            return codes[-1]
    return next((code for code in (FAILED, BUSY, WAITS) if code in codes), 0)


def _attempt(plan: Plan, run: Run, workdir: Path, work: Work) -> int:
    home = ledger.folder(workdir, run.id)
    with ledger.lock(workdir, run.id) as held:
        if not held:
            print(f'{run.id}: {ledger.holder(workdir, run.id)} is at it', file=sys.stderr)
            return BUSY
        before = ledger.read(workdir, run.id) or {}
        if ledger.recorded(workdir, run) == 'done':
            print(f'{run.id}: done already')
            return 0
        if run.of in plan.runs and ledger.recorded(workdir, plan.runs[run.of]) != 'done':
            print(f'{run.id}: waits for {run.of}, which is not done; run that first', file=sys.stderr)
            return WAITS
        ledger.tidy(workdir, run.id)
        ledger.write(workdir, run, status='running', error=None, attempts=before.get('attempts', 0) + 1)
        began = time.monotonic()

        def close(status, error=None):
            ledger.write(workdir, run, status=status, error=error,
                         seconds=round(before.get('seconds', 0.0) + time.monotonic() - began, 3))

        try:
            if run.of is not None:
                write_text(home / 'config.json', config_lib.to_json(run.config))
            code = _do(plan, run, workdir, work, home)
        except Exception as error:  # whatever it is: recorded, and the others go on
            traceback.print_exc()
            close('failed', f'{type(error).__name__}: {error}'[:2000])
            return FAILED
        except BaseException:  # Ctrl-C twice
            close('pending')
            raise
        close('pending' if code else 'done')
        return code


def _follow(plan: Plan, run: Run, workdir: Path, work: Work) -> int:
    if ledger.recorded(workdir, run) == 'done':
        return 0
    with tempfile.TemporaryDirectory() as scratch:  # all compute the results, and the first writes them
        return _do(plan, run, workdir, work, Path(scratch))


def _do(plan: Plan, run: Run, workdir: Path, work: Work, results: Path) -> int:
    code = work.train(run.config, ledger.folder(workdir, run.id)) if run.of is None else 0
    if code == 0:
        with _dies_at_once():
            work.evaluate(run, plan.base(run, workdir), results)
    return code


@contextlib.contextmanager
def _dies_at_once() -> Iterator[None]:
    """Signals end the process even within a long computation: an evaluation has nothing to save."""
    previous = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _output(path: Path | None) -> Iterator[None]:
    """Standard output and error of the process, JAX's included, appended to a file."""
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(n) for n in (1, 2)]
    with open(path, 'ab') as file:
        for n in (1, 2):
            os.dup2(file.fileno(), n)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for n, old in zip((1, 2), saved, strict=True):
            os.dup2(old, n)
            os.close(old)
