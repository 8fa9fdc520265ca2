"""A config as everything that the loop needs."""

import json

from gen_jax.build.evaluators import make_evaluator
from gen_jax.build.frozen import check_frozen, makers, read_frozen
from gen_jax.build.parts import make_system, open_split, plain, tuples
from gen_jax.data import fingerprint as fingerprint_lib
from gen_jax.data import pipeline
from gen_jax.engine.optim import make_schedule
from gen_jax.engine.train import Run

__all__ = ['build']


def build(config) -> Run:
    """Everything that `gen_jax.engine.train.train` needs.

    Raises:
        ConfigError and ValueError: names, values and combinations that do not work, before anything is written.
    """
    system = make_system(config)
    check_frozen(config, system)
    source, transforms = open_split(config, config.data.train_split, train=True)
    common = {'batch_size': config.data.batch_size, 'seed': config.seed, 'transforms': transforms}

    def open_data(shard_index, shard_count, ledger):
        return pipeline.train_iterator(source, **common, shard_index=shard_index, shard_count=shard_count,
                                       ledger=ledger, num_threads=config.data.threads, buffer_size=config.data.buffer)

    with open_data(0, 1, None) as data:
        example = data.batch(0)
    evaluators = {name: make_evaluator(config, system, name, spec) for name, spec in config.evaluate.items()}
    sampler = None
    if config.sample.predict:
        spec = {**plain(config.sample), 'on': 'labels', 'metrics': (), 'split': config.data.train_split}
        sampler = make_evaluator(config, system, 'sample', spec)
    optim = tuples(plain(config.optim))
    schedules = {}
    for name in system.optimizers:
        s = {**optim, **optim['per'].get(name, {})}
        schedules[name] = make_schedule(s['schedule'], s['lr'], config.train.steps, s['warmup_steps'])
    info = json.loads(json.dumps({k: source.info.get(k) for k in ('num_classes', 'label_names', 'image_shape')}))
    return Run(config, system, open_data, fingerprint_lib.check_fingerprint, example, evaluators, sampler, schedules,
               info, lambda: read_frozen(config, system, makers(source.info, [t.spec for t in transforms])))
