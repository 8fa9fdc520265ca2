"""What guards a resume: the iterator's state is only a step, so the pipeline that gives it meaning is fingerprinted."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

__all__ = ['FingerprintError', 'check_fingerprint', 'digest']

REMEDY = {
    'seed': 'set the old seed again',
    'batch_size': 'set the old global batch size again (gradient accumulation changes the memory, not the batch)',
    'source': 'restore the data and its options as they were',
    'transforms': 'restore the transforms as they were',
    'order': 'install the version of grain that the run began with',
    'version': 'use the version of gen_jax that the run began with',
}


SHOWN = 5
"""So many files are named in a message."""


class FingerprintError(ValueError):
    """A checkpoint's pipeline is not the pipeline of this run."""


def digest(value: Any) -> str:
    """SHA-256 of a JSON-able value, keys sorted."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(',', ':')).encode()).hexdigest()


def _file_differences(old: Mapping[str, str], new: Mapping[str, str], path: str) -> list[str]:
    """The first files that differ, from the runs of files in `gen_jax.data.listing.file_digests`."""
    lines = []
    for name in sorted(set(old) | set(new)):
        before, now = old.get(name, '0 - -').split(' '), new.get(name, '0 - -').split(' ')
        if before == now:
            continue
        if before[0] == '0' or now[0] == '0':
            what = 'is new' if before[0] == '0' else 'is gone'
        elif before[1] != now[1]:
            what = 'has other content'
        else:
            what = 'has other metadata'
        count = max(int(before[0]), int(now[0]))
        lines.append(f'{path}: {name} {what}' if count == 1 else
                     f'{path}: of the {before[0]} files from {name} on, now {now[0]}, at least one {what}')
    return lines[:SHOWN] + ([f'{path}: and {len(lines) - SHOWN} more'] if lines[SHOWN:] else [])


def _differences(old: Any, new: Any, path: str) -> list[str]:
    if path == 'source.files' and isinstance(old, Mapping) and isinstance(new, Mapping):
        return _file_differences(old, new, 'source')
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [line for key in sorted(set(old) | set(new))
                for line in _differences(old.get(key, '(absent)'), new.get(key, '(absent)'), f'{path}.{key}')]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [line for i in range(len(old)) for line in _differences(old[i], new[i], f'{path}[{i}]')]
    return [] if old == new else [f'{path}: was {json.dumps(old)[:200]}, is {json.dumps(new)[:200]}']


def check_fingerprint(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Compares the fingerprint in a checkpoint with that of the pipeline about to be used.

    Raises:
        FingerprintError: naming each part that changed (seed, source, transforms, batch_size, order) with its old and
            new value and the remedy.
    """
    if saved.get('sha256') == current.get('sha256') and saved.get('sha256') is not None:
        return
    saved, current = json.loads(json.dumps(saved)), json.loads(json.dumps(current))
    parts = [part for part in sorted(set(saved) | set(current)) if part != 'sha256']
    # A change of seed or source changes the order as well; only an unexplained one is news.
    changed = [part for part in parts if saved.get(part) != current.get(part)]
    if 'order' in changed and {'seed', 'source'} & set(changed):
        changed.remove('order')
    if not changed:
        raise FingerprintError('the saved fingerprint of the data pipeline does not match its own digest: the '
                               'checkpoint is damaged; resume from an older one')
    lines = []
    for part in changed:
        # The digest over all files says nothing beside the files that differ.
        saved[part], current[part] = (
            {k: v for k, v in value.items() if k != 'listing'} if isinstance(value, Mapping) and 'files' in value
            else value for value in (saved.get(part, '(absent)'), current.get(part, '(absent)')))
        lines += _differences(saved[part], current[part], part)
    remedies = '; '.join(REMEDY.get(part, f'restore {part}') for part in changed)
    raise FingerprintError(f'the data pipeline changed since the checkpoint was written ({", ".join(changed)}):\n'
                           + '\n'.join('  ' + line for line in lines) + f'\nTo resume: {remedies}. '
                           f'To go on with the new data, start a new workdir with init_from.')
