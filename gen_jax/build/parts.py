"""The data and the system that a config names."""

import inspect
import json
from collections.abc import Mapping
from typing import Any

from gen_jax import config as config_lib
from gen_jax.config import ConfigError, make
from gen_jax.data.sources import open_source
from gen_jax.engine.optim import make_optimizer
from gen_jax.nn.remat import check_remat
from gen_jax.types import System

__all__ = ['make_system', 'open_split', 'plain', 'tuples']


def _specs(values) -> tuple:
    return tuple(make(dict(v) if isinstance(v, Mapping) else v, 'data.transforms') for v in values)


def plain(config) -> Any:
    return json.loads(config_lib.to_json(config))


def open_split(config, split: str, train: bool = False):
    """(source, transforms) of a split."""
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in plain(config.data.options).items()}
    try:
        source = open_source(config.data.source, split=split, **options)
    except TypeError as e:
        raise ConfigError(f'data.options {options} do not fit data.source {config.data.source!r}: {e}') from None
    return source, _specs(config.data.transforms if train else config.data.eval_transforms or config.data.transforms)


def make_system(config) -> System:
    """The system that config.system names, with the optimizers of config.optim."""
    spec = tuples(plain(config.system))
    if config.train.precision not in ('float32', 'bfloat16'):
        raise ConfigError(f'train.precision {config.train.precision!r}: choose from float32, bfloat16')
    if config.train.precision != 'float32':
        spec = _with_dtype(spec, config.train.precision)
    if config.train.remat:
        spec = _with_remat(spec, config.train.remat)
    system = make(spec, 'systems')
    optim = tuples(plain(config.optim))
    per = optim.pop('per')
    names = sorted({o.optimizer for o in system.objectives.values()})
    unknown = set(per) - set(names)
    if unknown:
        raise ConfigError(f'optim.per has settings for {sorted(unknown)[0]!r}: the system has the optimizers {names}')
    optimizers = {}
    for name in names:
        settings = {**optim, **per.get(name, {})}
        try:
            optimizers[name] = make_optimizer(**settings, steps=config.train.steps)
        except TypeError as e:
            raise ConfigError(f'optim.per.{name}: {e}') from None
    return system._replace(optimizers=optimizers)


def tuples(value):
    if isinstance(value, Mapping):
        return {k: tuples(v) for k, v in value.items()}
    return tuple(tuples(v) for v in value) if isinstance(value, list) else value


def _with_dtype(spec, precision):
    """Every network of a system spec computes in this precision."""
    def takes_dtype(value):
        name = str(value.get('name', '')) if isinstance(value, Mapping) else ''
        if name.startswith('models.'):
            return True
        return ':' in name and 'dtype' in inspect.signature(config_lib.lookup(name)).parameters

    return {k: {**v, 'dtype': precision} if takes_dtype(v) else v for k, v in spec.items()}


def _with_remat(spec, policy):
    """Every network of a system spec that is made of blocks recomputes them in the backward pass."""
    check_remat(policy)
    networks = {k: v['name'] for k, v in spec.items() if isinstance(v, Mapping) and 'name' in v}
    able = [k for k, name in networks.items() if 'remat' in config_lib.keywords(name)]
    if not able:
        raise ConfigError(f'train.remat={policy!r}: no network of {spec.get("name")} has blocks that could be '
                          f"recomputed (a keyword 'remat'); it is made of {', '.join(networks.values()) or 'nothing'}")
    return {k: {**v, 'remat': policy} if k in able else v for k, v in spec.items()}
