"""Settings as plain data: flattened by dotted key, as JSON, compared."""

import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from gen_jax.names import ConfigError

__all__ = ['flatten', 'plain', 'to_json', 'from_json', 'differences']


def flatten(config: Mapping, prefix: str = '', leaves_only: bool = True) -> dict[str, Any]:
    """Dotted key -> value. Empty dicts are leaves."""
    out = {}
    for key in config:
        # placeholders and references are read through item access
        value = config[key]
        path = f'{prefix}{key}'
        if isinstance(value, Mapping | ConfigDict) and len(value):
            if not leaves_only:
                out[path] = value
            out.update(flatten(value, path + '.', leaves_only))
        else:
            out[path] = value
    return out


def plain(value):
    """Mappings as dicts, tuples as lists; all else as it is."""
    if isinstance(value, Mapping | ConfigDict):
        return {k: plain(value[k]) for k in value}
    if isinstance(value, (tuple, list)):
        return [plain(v) for v in value]
    return value


def to_json(config: Mapping) -> str:
    """Canonical JSON: sorted keys, tuples as lists."""
    return json.dumps(plain(config), indent=1, sort_keys=True)


def from_json(text: str | bytes) -> ConfigDict:
    """A config read back from `to_json`: lists as tuples, null as an optional value.

    Raises:
        ConfigError: it is damaged.
    """

    def restore(value):
        if isinstance(value, dict):
            return {k: restore(v) for k, v in value.items()}
        return tuple(restore(v) for v in value) if isinstance(value, list) else value

    try:
        if not isinstance(saved := json.loads(text), dict):
            raise ValueError('it holds no settings')
        return ConfigDict(restore(saved))
    except ValueError as e:
        raise ConfigError(f'a saved config cannot be read ({e}); if its checkpoints are intact, delete config.json: '
                          'the newest checkpoint holds a copy') from None


def differences(old: Mapping, new: Mapping) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (old, new) where two configs differ; '<absent>' where only one has the key."""
    a, b = ({k: plain(v) for k, v in flatten(c).items()} for c in (old, new))
    return {k: (a.get(k, '<absent>'), b.get(k, '<absent>'))
            for k in sorted({*a, *b}) if a.get(k, '<absent>') != b.get(k, '<absent>')}
