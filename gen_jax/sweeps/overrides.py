"""Overrides as Python values: {'optim.lr': 1e-3} onto a config, with the type checks of the command line."""

import contextlib
import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from gen_jax.config import EVALUATION, FREE_FORM, ConfigError, base_config, flatten, place_for
from gen_jax.names import choices

__all__ = ['override', 'plain', 'clash']


def plain(value: Any, key: str) -> Any:
    """The value as JSON can hold it, tuples for lists; numpy scalars become Python's.

    Raises:
        ConfigError: anything else, and numbers that are not finite; names the key.
    """
    if isinstance(value, Mapping | ConfigDict):
        if bad := [k for k in value if not isinstance(k, str)]:
            raise ConfigError(f'{key}: the key {bad[0]!r} of a mapping must be a string')
        return {k: plain(value[k], f'{key}.{k}') for k in value}
    if isinstance(value, list | tuple):
        return tuple(plain(v, key) for v in value)
    if hasattr(value, 'item') and getattr(value, 'ndim', None) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f'{key}={value!r}: overrides must be finite')
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ConfigError(f'{key}: {value!r} is a {type(value).__name__}, and an override is a number, a string, a bool, '
                      'None, or a list or mapping of those')


def override(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
    """A copy of `config` with values by dotted path, for instance {'optim.lr': 1e-3, 'evaluate.fid.settings.steps': 5}.

    A mapping replaces a mapping whole. Mappings called `settings` are open: they take new keys and any type, since the
    predict that reads them checks them.

    Raises:
        ConfigError: an unknown key (with the nearest names), or a value of the wrong type.
    """
    config = copy.deepcopy(config)
    known = flatten(config, leaves_only=False)
    with config.unlocked():
        # names first (they decide what else there is), a mapping before the keys within it, whatever their order
        for key in sorted(values, key=lambda k: (not k.endswith('.name'), k)):
            value = plain(values[key], key)
            if key not in known and not _may_be_new(known, key):
                if key.startswith('evaluate.'):
                    entries = [f'evaluate.{name}.{k}' for name in config.evaluate for k in EVALUATION]
                    raise ConfigError(f'unknown config key {key!r}: {choices(key, {*known, *entries})}')
                place_for(config, key)  # refuses what means nothing
            *parents, leaf = key.split('.')
            owner = config
            for part in parents:
                if not isinstance(owner.get(part), ConfigDict):
                    owner[part] = ConfigDict()  # within settings, or an evaluation without settings
                owner = owner[part]
            if leaf in owner and not _in_settings(key):
                _check(key, owner[leaf], value)
            free = isinstance(value, dict) or value is None or _in_settings(key)
            try:
                with owner.ignore_type() if free else contextlib.nullcontext():
                    owner[leaf] = ConfigDict(value) if isinstance(value, dict) else value
            except TypeError as e:  # optional values know their type
                expected = f'expected {type(owner[leaf]).__name__}' if owner.get(leaf) is not None else e
                raise ConfigError(f'{key}={value!r}: {expected}') from None
    return config


def clash(first: Sequence[str], second: Sequence[str]) -> tuple[str, str] | None:
    """A pair of dotted keys, one of each, of which one contains the other or is it; None if there is none."""
    for a in first:
        for b in second:
            if f'{a}.'.startswith(f'{b}.') or f'{b}.'.startswith(f'{a}.'):
                return a, b
    return None


def _in_settings(key: str) -> bool:
    return 'settings' in key.split('.')[1:-1]


def _may_be_new(known: Mapping[str, Any], key: str) -> bool:
    """Keys within `settings`, and what an entry of config.evaluate may say and this one leaves out."""
    parts = key.split('.')
    if _in_settings(key) and isinstance(known.get('.'.join(parts[:parts.index('settings', 1) + 1])), ConfigDict):
        return True
    return parts[0] == 'evaluate' and '.'.join(parts[:2]) in known and parts[2:] and parts[2] in EVALUATION \
        and (len(parts) == 3 or _in_settings(key))


def _check(key: str, old: Any, new: Any) -> None:
    if isinstance(new, dict):
        if not any(key == free or key.startswith(f'{free}.') for free in FREE_FORM):
            raise ConfigError(f'{key} is no free mapping: give its keys one by one, for instance '
                              f'{key}.{next(iter(old), "...") if isinstance(old, ConfigDict) else "..."}')
    elif new is None:
        default = flatten(base_config()).get(key)
        if default is not None:
            raise ConfigError(f'{key}=None: it is not optional; its default is {default!r}')
    wanted = ConfigDict if isinstance(new, dict) else bool if isinstance(new, bool) else None
    if old is not None and new is not None and (wanted and not isinstance(old, wanted)
                                                or isinstance(old, bool | ConfigDict) and wanted is None):
        expected = 'a mapping' if isinstance(old, ConfigDict) else type(old).__name__
        raise ConfigError(f'{key}={new!r}: expected {expected}')
