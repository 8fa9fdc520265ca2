"""A small run for several processes: a perceptron, positions of a source, and what happens to a process at a step.

    python -m tests.distributed.job HOST:PORT PROCESS COUNT DEVICES FOLDER SCENARIO ...

trains once for each scenario, in FOLDER/SCENARIO, and leaves result-PROCESS.json there.
"""

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np

STEPS, BATCH, WIDTH = 50, 8, 256


class Source:
    """97 examples {'x' float32 [4], 'y' float32}."""

    fingerprint, info = {'name': 'numbers'}, {}

    def __len__(self):
        return 97

    def __getitem__(self, index):
        x = np.random.default_rng(index).normal(size=4).astype(np.float32)
        return {'x': x, 'y': np.float32(np.sin(x).sum())}


def system(poison=None):
    """y from x with noisy inputs; 'score' and 'draw' read the parameters."""
    import jax
    import jax.numpy as jnp
    import optax

    from gen_jax.types import Objective, Predict, System

    def init(key, batch):
        del batch
        a, b = jax.random.split(key)
        return {'net': {'first': jax.random.normal(a, (4, WIDTH)) / 2, 'last': jax.random.normal(b, (WIDTH,)) / 16}}, {}

    def apply(params, x):
        return jnp.tanh(x @ params['net']['first']) @ params['net']['last']

    def fit(params, state, batch, noise):
        x = batch['x'] + 0.1 * noise.normal('input', batch['x'])
        loss = jnp.mean(jnp.square(apply(params, x) - batch['y']))
        if poison is not None:
            loss = jnp.where(state.step == poison, jnp.nan, loss)
        return loss, ({}, {})

    def score(variables, keys, batch, options):
        del keys, options
        return {'error': jnp.abs(apply(variables.params, batch['x']) - batch['y'])}

    def draw(variables, keys, batch, options):
        del batch, options
        x = jax.vmap(lambda key: jax.random.normal(key, (8, 8, 4)))(keys)
        return {'image': jnp.tanh(apply(variables.params, x))[..., None]}

    return System(init=init, objectives={'fit': Objective(fit, ('net',), 'net')}, optimizers={'net': optax.adam(1e-2)},
                  predict={'score': Predict(score, lambda: {}), 'draw': Predict(draw, lambda: {})})


class Watched:
    """A pipeline that keeps what it gave, and does something to its process at a step."""

    def __init__(self, pipeline, events):
        self._pipeline, self._events, self.seen = pipeline, events, []

    def __getattr__(self, name):
        return getattr(self._pipeline, name)

    def __next__(self):
        if event := self._events.get(self._pipeline.step):
            event()
        batch = next(self._pipeline)
        self.seen.append(batch['x'])
        return batch


def make_run(events=(), poison=None, scored=True, **settings):
    """(Run, list that holds the opened pipeline later); settings as 'train.steps': 3."""
    from gen_jax.config import apply_overrides, base_config
    from gen_jax.data import pipeline
    from gen_jax.data.fingerprint import check_fingerprint
    from gen_jax.engine.evaluate import Evaluator
    from gen_jax.engine.run import Run
    from gen_jax.types import Metric

    config = base_config()
    config.lock()
    settings = {'train.steps': STEPS, 'data.batch_size': BATCH, 'log.every_steps': 1, 'log.tensorboard': False,
                'checkpoint.every_steps': 20, 'sample.columns': 4, 'train.hang_seconds': 120.0, **settings}
    config = apply_overrides(config, [f'--config.{k}={v}' for k, v in settings.items()])
    opened = []

    def open_data(shard_index, shard_count, ledger):
        opened.append(Watched(pipeline.train_iterator(
            Source(), batch_size=BATCH, seed=0, shard_index=shard_index, shard_count=shard_count, ledger=ledger),
            dict(events)))
        return opened[-1]

    with pipeline.train_iterator(Source(), batch_size=BATCH, seed=0, num_threads=0) as data:
        example = data.batch(0)
    mean = Metric(lambda: [], lambda s, rows: [*s, *rows['error']], lambda a, b: [*a, *b],
                  lambda s: {'error': float(np.mean(np.asarray(s, np.float64)))})
    score = Evaluator('score', lambda ledger=None: pipeline.eval_batches(Source(), batch_size=30), {'mean': mean}, {},
                      0, 'slow', 'test', 25)
    picture = Evaluator('draw', lambda ledger=None: [{'index': np.arange(4), 'valid': np.arange(4) < 4}], {}, {}, 0,
                        'slow', 'train', 25)
    return Run(config, system(poison), open_data, check_fingerprint, example,
               {'heldout': score} if scored else {}, picture if scored else None), opened


def kill(number):
    """An event: this process gets a signal."""
    return lambda: os.kill(os.getpid(), number)


def fill(folder):
    """From the checkpoint of step 20 on the kernel refuses this process files above 2 kB, as a full disk would."""
    while not (folder / 'checkpoints' / '20').exists():
        time.sleep(0.01)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def fail():
    """An event: this process cannot go on."""
    raise ValueError('shelf 7 is empty')


def events_of(scenario, process, folder=None):
    """{step: what happens there to this process}."""
    table = {
        'term': [{}, {7: kill(signal.SIGTERM)}],
        'both': [{5: kill(signal.SIGTERM)}, {6: kill(signal.SIGINT)}],
        'die-1': [{}, {9: kill(signal.SIGKILL)}], 'die-0': [{9: kill(signal.SIGKILL)}, {}],
        'stop-1': [{}, {9: kill(signal.SIGSTOP)}], 'stop-0': [{9: kill(signal.SIGSTOP)}, {}],
        'block': [{}, {9: lambda: time.sleep(1000)}], 'fail': [{}, {9: fail}],
        'full-0': [{30: lambda: fill(folder)}, {}], 'full-1': [{}, {30: lambda: fill(folder)}],
        'twice': [{}, {9: lambda: [kill(signal.SIGINT)(), kill(signal.SIGINT)()]}],
    }
    return [*table.get(scenario, []), *[{}] * 8][process]


def settings_of(scenario, process, folder=None):
    """Settings that differ from those of the straight run."""
    if scenario == 'wall':  # one machine's clock may run ahead
        return {'train.max_seconds': 0.001 if process else 1e6}
    parts = {'train.mesh.fsdp': -1, 'train.mesh.data': 1, 'train.sharding': "('fsdp',)"}
    return {'pmap': {'train.parallel': 'pmap'}, 'fsdp': {**parts, 'train.steps': 30},
            'full-0': {**parts, 'log.every_steps': 20}, 'full-1': parts,
            'from': {**parts, 'train.init_from': f'{folder}/fsdp', 'train.init_ema': 'slow', 'train.steps': 1},
            'tensor': {'train.mesh.model': -1, 'train.mesh.data': 1},
            }.get(scenario, {'train.hang_seconds': 6.0} if scenario.startswith(('die', 'stop', 'block')) else {})


def main(argv):
    """Joins the others, and trains."""
    coordinator, process, count, devices, folder, *scenarios = argv
    process, count = int(process), int(count)
    import jax

    from gen_jax.engine import distributed, sharding
    from gen_jax.engine.train import train

    with distributed.join(distributed.find_address(coordinator, process, count), 120) as job:
        sharding.expose_cpu_devices(int(devices), BATCH)
        if os.environ.get('GEN_JAX_CACHE'):
            jax.config.update('jax_compilation_cache_dir', os.environ['GEN_JAX_CACHE'])
            jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
        for scenario in scenarios:
            workdir = Path(folder) / scenario
            run, opened = make_run(events_of(scenario, process, workdir), 9 if scenario == 'nan' else None,
                                   scenario in ('straight', 'pmap', 'tensor'), **settings_of(scenario, process, folder))
            result = train(run, workdir, dog=job.dog)
            np.save(workdir / f'seen-{process}.npy', np.array(opened[0].seen))
            (workdir / f'result-{process}.json').write_text(json.dumps(
                {'step': result.step, 'exit_code': result.exit_code, 'metrics': result.metrics}))
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
