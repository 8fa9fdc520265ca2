"""The networks that a run's config names, and checkpoints of published weights."""

import json
from pathlib import Path

import jax.numpy as jnp

from gen_jax import config as config_lib
from gen_jax.engine.checkpoint import Checkpoints, read_params
from gen_jax.engine.files import write_text
from gen_jax.interop import classes, single_file
from gen_jax.models.adm import Trunk
from gen_jax.names import make
from gen_jax.types import TrainState


def modules_of(folder: Path, name: str) -> tuple[dict, str]:
    """({part: (module, abstract parameters)} of the networks that can be exported, the EMA to take).

    Parts are called as `name`, the file of their config.json, says, or else by their place in the run's config.system.
    """
    if (folder / name).is_file():
        found = {k: classes.module_from(v, folder / name) for k, v in json.loads((folder / name).read_text()).items()}
        return {k: (module, classes.abstract_params(module)) for k, module in found.items()}, ''
    path = folder / 'config.json'
    if not path.is_file():
        raise ValueError(f'{folder} holds checkpoints but no config.json, which says what the networks are')
    config = config_lib.complete(config_lib.from_json(path.read_text()))
    system, found = json.loads(config_lib.to_json(config))['system'], {}

    def visit(place, value):
        if isinstance(value, list):
            return tuple(visit(place, v) for v in value)
        if not isinstance(value, dict):
            return value
        spec = {k: visit(f'{place}.{k}', v) for k, v in value.items()}
        if str(spec.get('name', '')).startswith('models.'):
            module = make(spec)
            if isinstance(module, Trunk):
                found[place] = module, single_file.adm_params(module)
            elif type(module) in [row.module for row in classes.CLASSES.values()]:
                found[place] = module, classes.abstract_params(module)
        return spec

    visit('system', system)
    ema = config.sample.ema
    return found, next(iter(config.train.ema), '') if ema is None else ema


def read_trees(folder: Path, step: int | None, ema: str) -> dict:
    """The parameter trees of a checkpoint by name, as host arrays."""
    trees = {}
    for path, leaf in read_params(folder if step is None else folder / 'checkpoints' / str(step), ema).items():
        *places, last = path.split('/')
        node = trees
        for key in places:
            node = node.setdefault(key, {})
        node[last] = leaf
    return trees


def save_checkpoint(parts, out: Path, name: str) -> Path:
    """Writes (module, params) by part as step 0 of a checkpoint, and the parts' config.json as `name` beside it.

    Raises:
        ValueError: there is a checkpoint already.
    """
    if (out / 'checkpoints').exists():
        raise ValueError(f'{out} holds checkpoints already; give another folder')
    params = {k: params for k, (_, params) in parts.items()}
    state = TrainState(jnp.zeros((), jnp.int32), params, opt={}, ema={}, extra={}, frozen={})
    store = Checkpoints(out)
    store.save(0, state, {}, wait=True)
    store.close()
    configs = {k: classes.CLASSES[classes.class_of(m)].config(m) for k, (m, _) in parts.items()
               if not isinstance(m, Trunk)}
    write_text(out / name, json.dumps(configs, indent=2, sort_keys=True) + '\n')
    return out
