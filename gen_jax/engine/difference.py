"""Two checkpoints beside each other: settings, leaves by fingerprint, and how far the values lie apart."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from gen_jax import config as config_lib
from gen_jax.engine import steps
from gen_jax.engine.checkpoint import read_leaves
from gen_jax.engine.fingerprint import differing, fingerprints
from gen_jax.engine.integrity import CheckpointError, IntegrityError, verify
from gen_jax.types import TrainState

__all__ = ['LeafDifference', 'Difference', 'compare', 'lines']


class LeafDifference(NamedTuple):
    """One leaf that is not the same."""

    path: str
    what: str
    """'only in A', 'only in B', or both shapes and dtypes where they differ, or '' where the values do."""
    largest: float
    """Largest absolute difference of the values; NaN where they cannot be compared or are not finite in one only."""
    count: int
    """Elements whose bits differ."""


class Difference(NamedTuple):
    """What `compare` found."""

    a: Path
    b: Path
    config: dict
    """Dotted key -> (value in A, value in B)."""
    leaves: list[LeafDifference]
    """In the order of a TrainState's fields (step, params, opt, ema ...), then by name."""
    total: int
    """Leaves that were compared."""


def compare(a, b) -> Difference:
    """The newest good steps of two runs, or two step folders.

    Arrays are read only if fingerprints differ, or if an older gen_jax saved none.

    Raises:
        CheckpointError: nothing there, or nothing good.
    """
    a, b = map(_good, (a, b))
    metas = [steps.read_meta(p) for p in (a, b)]
    config = config_lib.differences(*(meta.get('config', {}) for meta in metas))
    prints = [meta.get('fingerprints') for meta in metas]
    if None not in prints and not differing(*prints):
        return Difference(a, b, config, [], len(prints[0]))
    leaves = [read_leaves(p) for p in (a, b)]
    prints = [fingerprints(tree) for tree in leaves]
    order = sorted(dict.fromkeys((*metas[0]['dtypes'], *metas[1]['dtypes'])),
                   key=lambda k: (TrainState._fields.index(k.split('/')[0]), k))
    changed = set(differing(*prints))
    found = [_leaf(k, leaves[0].get(k), leaves[1].get(k)) for k in order if k in changed]
    return Difference(a, b, config, found, len(order))


def _good(path) -> Path:
    """The step folder itself, or the newest good one of a run."""
    errors = []
    for folder in reversed(steps.find_steps(path)):
        try:
            verify(folder)
            return folder
        except IntegrityError as e:
            errors.append(str(e))
            print(f'WARNING: {e}')
    raise CheckpointError(f'{path}: no checkpoint can be read:\n  ' + '\n  '.join(errors))


def _leaf(path: str, x, y) -> LeafDifference:
    if x is None or y is None:
        return LeafDifference(path, 'only in B' if x is None else 'only in A', np.nan, 0)
    if x.shape != y.shape or x.dtype != y.dtype:
        return LeafDifference(path, f'{x.dtype}{list(x.shape)} and {y.dtype}{list(y.shape)}', np.nan, 0)
    bits = [np.ascontiguousarray(v).reshape(-1).view(np.uint8).reshape(v.size, -1) for v in (x, y)]
    count = int((bits[0] != bits[1]).any(axis=-1).sum())
    wide = np.complex128 if np.iscomplexobj(x) else np.float64
    x, y = (v.reshape(-1).astype(wide) for v in (x, y))
    with np.errstate(invalid='ignore'):
        apart = np.where((x == y) | (np.isnan(x) & np.isnan(y)), 0.0, np.abs(x - y))
    return LeafDifference(path, '', float(apart.max(initial=0.0)), count)


def lines(found: Difference) -> list[str]:
    """The report of `gen-jax checkpoint diff`."""
    out = [f'A {found.a}', f'B {found.b}']
    out += [f'config {k}: {old!r} and {new!r}' for k, (old, new) in list(found.config.items())[:10]]
    if len(found.config) > 10:
        out.append(f'config: {len(found.config) - 10} more settings differ')
    if not found.leaves:
        return [*out, f'all {found.total} leaves are equal']
    out.append(f'{len(found.leaves)} of {found.total} leaves differ; the first is {found.leaves[0].path}')
    values = [leaf for leaf in found.leaves if not leaf.what]
    for leaf in found.leaves[:20]:
        values_of = f'largest difference {leaf.largest:.6g} in {leaf.count:,} elements'
        out.append(f'  {leaf.path}: {leaf.what or values_of}')
    if len(found.leaves) > 20:
        out.append(f'  ... {len(found.leaves) - 20} more')
    if values:
        worst = max(values, key=lambda leaf: np.inf if np.isnan(leaf.largest) else leaf.largest)
        out.append(f'largest absolute difference: {worst.largest:.6g} in {worst.path}')
    return out
