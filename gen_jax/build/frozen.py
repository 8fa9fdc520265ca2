"""Networks that a system uses and does not train: where config.frozen says that their weights come from."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import config as config_lib
from gen_jax import trees
from gen_jax.build.parts import plain
from gen_jax.config import ConfigError
from gen_jax.engine.checkpoint import read_params
from gen_jax.engine.fingerprint import fingerprints
from gen_jax.interop.load import load_model
from gen_jax.types import PyTree, System

__all__ = ['check_frozen', 'makers', 'read_frozen']

_RUN, _PUBLISHED = ('run', 'params', 'ema'), ('weights', 'subfolder', 'variant')


def check_frozen(config, system: System) -> None:
    """Refuses a config.frozen that does not name exactly what the system needs; reads nothing.

    Raises:
        ConfigError: what is missing, unknown or of no known kind.
    """
    given = plain(config.frozen)
    for name in system.frozen:
        if name not in given:
            raise ConfigError(f'the system needs the weights of {name!r}, which it does not train: set '
                              f"config.frozen.{name} to {{'run': WORKDIR}} or {{'weights': FOLDER_OR_HUB_ID}}")
    for name, spec in given.items():
        if name not in system.frozen:
            raise ConfigError(f'config.frozen.{name}: the system has no frozen network of that name; it has '
                              f'{sorted(system.frozen) or "none"}')
        kinds = [keys for keys in (_RUN, _PUBLISHED) if isinstance(spec, Mapping) and spec.get(keys[0])]
        if len(kinds) != 1 or (unknown := set(spec) - set(kinds[0])):
            got = f'unknown {sorted(unknown)[0]!r}' if len(kinds) == 1 else f'got {spec}'
            raise ConfigError(f"config.frozen.{name} is either {{'run': WORKDIR, 'params': NAME, 'ema': NAME}} or "
                              f"{{'weights': FOLDER_OR_HUB_ID, 'subfolder': ..., 'variant': ...}}: {got}")


def read_frozen(config, system: System, made_by: Sequence[Mapping[str, str]] = ()) -> dict[str, PyTree]:
    """The weights, on the host, of each network that the system names in `frozen`.

    From a run come those of its EMA (its first one, unless 'ema' says otherwise; '' is the raw ones), of the parameters
    'params' or of the only ones that it has.

    Args:
        made_by: fingerprints of the weights that made the training data, by path. Those of other weights than these
            are refused.

    Raises:
        ConfigError, ValueError: weights that cannot be read or do not fit the network.
    """
    check_frozen(config, system)
    out = {}
    for name, target in system.frozen.items():
        spec = plain(config.frozen)[name]
        leaves, source = _of_run(name, spec) if 'run' in spec else _published(spec)
        wanted = trees.flat(target)
        wrong = [f'{k} is missing' for k in wanted if k not in leaves]
        wrong += [f'{k} is unexpected' for k in leaves if k not in wanted]
        wrong += [f'{k} is {leaves[k].shape}, expected {v.shape}' for k, v in wanted.items()
                  if k in leaves and tuple(leaves[k].shape) != tuple(v.shape)]
        if wrong:
            raise ConfigError(f'config.frozen.{name}: {source} does not fit system.{name}, {len(wrong)} of its '
                              f'{len(wanted)} leaves differ: {"; ".join(wrong[:4])}. Give both the same settings')
        leaves = {k: jnp.asarray(leaves[k], v.dtype) for k, v in wanted.items()}
        _check_cache(name, source, leaves, made_by)
        out[name] = jax.tree.unflatten(jax.tree.structure(target), [leaves[k] for k in wanted])
    return out


def _of_run(name: str, spec) -> tuple[dict[str, np.ndarray], str]:
    run, ema, params = spec['run'], spec.get('ema'), spec.get('params')
    if ema is None:
        path = Path(run) / 'config.json'
        if not path.is_file():
            raise ConfigError(f'config.frozen.{name}.run {run!r} holds no run (no config.json): train it first')
        saved = config_lib.complete(config_lib.from_json(path.read_text()))
        ema = next(iter(saved.train.ema), '')
    leaves = read_params(run, ema)
    names = sorted({k.split('/')[0] for k in leaves})
    if params is None and len(names) == 1:
        params, = names
    if params not in names:
        raise ConfigError(f'config.frozen.{name}.params {params!r}: {run} holds the parameters {", ".join(names)}')
    prefix = f'{params}/'
    return {k.removeprefix(prefix): v for k, v in leaves.items() if k.startswith(prefix)}, str(run)


def _published(spec) -> tuple[dict[str, Any], str]:
    place = spec.get('subfolder') or ''
    _, params = load_model(spec['weights'], place, variant=spec.get('variant'))
    return trees.flat(params), f'{spec["weights"]}{f"/{place}" if place else ""}'


def makers(info: Mapping[str, Any], specs: Iterable[Mapping[str, Any]]) -> list[Mapping[str, str]]:
    """What `read_frozen` compares with: of cached latents (a source's info), of cached text (specs of transforms)."""
    found = [(info.get('made_by') or {}).get('weights')]
    found += [((spec.get('cache') or {}).get('encoder') or {}).get('weights') for spec in specs]
    return [f for f in found if f]


def _check_cache(name: str, source: str, leaves: Mapping[str, Any], made_by: Sequence[Mapping[str, str]]) -> None:
    ours = None
    for weights in made_by:
        # 'params/autoencoder/...' of a run's variables, or 'clip/...' of its parameters
        cached = {k.removeprefix('params/').split('/', 1)[-1]: v for k, v in weights.items()}
        if not set(cached) >= set(leaves):
            continue  # of another network
        ours = ours or fingerprints(dict(leaves))
        changed = [k for k, v in ours.items() if cached[k] != v]
        if changed:
            raise ConfigError(f'the data were cached by other weights than those of {source}, which config.frozen.'
                              f'{name} names: {len(changed)} of {len(ours)} leaves differ, the first is {changed[0]}. '
                              'Cache them again (gen-jax cache, gen-jax embed-text), or name the run and EMA that made '
                              'them')
