"""The one naming rule between our parameter trees and torch state dicts.

Sub-modules carry the published key with its dots, so a torch key is '.'.join(path), where the leaf names `kernel`,
`scale` and `embedding` are all called `weight`, and a kernel (..., in, out) is stored as (out, in, ...): convolutions
HWIO <-> OIHW, dense layers transposed. The rule is its own inverse given the shapes of the parameters; what it cannot
say (renamed or fused layers, transposed convolutions) belongs into a table of that one model.
"""

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from gen_jax.types import PyTree

__all__ = ['Match', 'from_torch', 'match_keys', 'to_torch', 'torch_key', 'torch_shape', 'torch_view']


class Match(NamedTuple):
    """Which keys of a file and of a model are each other's."""

    mapped: tuple[str, ...]
    missing: tuple[str, ...]
    """Of the model, not in the file."""
    unexpected: tuple[str, ...]
    """Of the file, not in the model."""
    misshaped: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    """Key -> (shape in the file, shape that the model needs)."""

    @property
    def fits(self) -> bool:
        """Whether the file is the model's."""
        return not (self.missing or self.unexpected or self.misshaped)

    def problems(self) -> list[str]:
        """A line for each key that does not fit, with the nearest name on the other side."""
        model = self.missing or (*self.mapped, *self.misshaped)
        lines = [f'missing {k!r}{near}' for k, near in _nearest(self.missing, self.unexpected, 'the file has')]
        lines += [f'unexpected {k!r}{near}' for k, near in _nearest(self.unexpected, model, 'the model has')]
        return lines + [f'mis-shaped {k!r}: the file has {file}, the model needs {model}'
                        for k, (file, model) in self.misshaped.items()]


def torch_key(path: tuple[str, ...]) -> str:
    """The state dict's key of the parameter at `path`."""
    leaf = 'weight' if path[-1] in ('kernel', 'scale', 'embedding') else path[-1]
    return '.'.join((*path[:-1], leaf))


def flatten(params: PyTree) -> dict[str, tuple[tuple[str, ...], PyTree]]:
    """Torch key -> (path, leaf). Raises ValueError if two parameters share a key."""
    flat = {}
    for entries, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        path = tuple(str(entry.key) for entry in entries)
        key = torch_key(path)
        if key in flat:
            raise ValueError(
                f'parameters {"/".join(flat[key][0])} and {"/".join(path)} share the torch key {key!r}; rename a module'
            )
        flat[key] = path, leaf
    return flat


def to_torch(params: PyTree) -> dict[str, np.ndarray]:
    """Parameters -> state dict of contiguous numpy arrays in torch's layout; dtypes are kept.

    Args:
        params: nested dict of arrays, as `module.init(...)['params']`.

    Raises:
        ValueError: two parameters share a key.
    """
    return {key: np.array(torch_view(path, leaf), order='C') for key, (path, leaf) in flatten(params).items()}


def torch_view(path: tuple[str, ...], leaf) -> np.ndarray:
    """A parameter as a numpy array in torch's layout; a strided view where that can be."""
    return _kernel_to_torch(np.asarray(leaf)) if path[-1] == 'kernel' else np.asarray(leaf)


def match_keys(shapes: Mapping[str, tuple[int, ...]], params: PyTree, ignore: str | None = None) -> Match:
    """Compares a file with a model; nothing is read but shapes.

    Args:
        shapes: torch key -> shape in the file.
        params: arrays or `jax.ShapeDtypeStruct`s.
        ignore: see `from_torch`.
    """
    flat = {key: torch_shape(path, leaf.shape) for key, (path, leaf) in flatten(params).items()}
    shapes = {k: tuple(v) for k, v in shapes.items() if ignore is None or not re.search(ignore, k)}
    both = [k for k in flat if k in shapes]
    return Match(tuple(k for k in both if shapes[k] == flat[k]), tuple(k for k in flat if k not in shapes),
                 tuple(k for k in shapes if k not in flat),
                 {k: (shapes[k], flat[k]) for k in both if shapes[k] != flat[k]})


def from_torch(state_dict: Mapping[str, np.ndarray], params: PyTree, ignore: str | None = None,
               place: Callable[[np.ndarray, np.dtype], Any] | None = None) -> PyTree:
    """State dict -> parameters of the structure, shapes and dtypes of `params`.

    Args:
        state_dict: numpy arrays by torch key; every key must be used or ignored.
        params: the tree to fill, of arrays or of `jax.ShapeDtypeStruct` (as from `jax.eval_shape`): its values are
            not read.
        ignore: a regular expression of keys that are no parameters here, such as buffers: EDM's 'resample_filter$'.
        place: (a strided view in our layout, the dtype of the parameter) -> the leaf; the default casts.

    Returns:
        A nested dict of numpy arrays, cast to the dtypes of `params`, or of what `place` returned.

    Raises:
        ValueError: keys missing, unexpected or mis-shaped; all of them are listed, each with the nearest name.
    """
    flat = flatten(params)
    match = match_keys({k: np.shape(v) for k, v in state_dict.items()}, params, ignore)
    if not match.fits:
        raise ValueError(
            f'the state dict does not fit the model: {len(match.missing)} missing, {len(match.unexpected)} unexpected, '
            f'{len(match.misshaped)} mis-shaped of {len(flat)} keys; check that it belongs to this configuration\n  '
            + '\n  '.join(match.problems())
        )
    place, tree = place or np.ndarray.astype, {}
    for key, (path, leaf) in flat.items():
        value = np.asarray(state_dict[key])
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = place(_kernel_from_torch(value) if path[-1] == 'kernel' else value, leaf.dtype)
    return tree


def _kernel_to_torch(kernel: np.ndarray) -> np.ndarray:
    """(..., in, out) -> (out, in, ...)."""
    return np.moveaxis(kernel, (-1, -2), (0, 1))


def _kernel_from_torch(weight: np.ndarray) -> np.ndarray:
    """(out, in, ...) -> (..., in, out)."""
    return np.moveaxis(weight, (0, 1), (-1, -2))


def torch_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in a state dict of the parameter at `path`."""
    return (shape[-1], shape[-2], *shape[:-2]) if path[-1] == 'kernel' else tuple(shape)


def _nearest(keys, names, whose: str):
    """(key, ' (WHOSE the nearest of names)') for each key; of two models that differ in all, only of the first keys."""
    names = list(names)
    for i, key in enumerate(keys):
        affordable = len(keys) * len(names) <= 20_000 or i < 10
        close = difflib.get_close_matches(key, names, n=1, cutoff=0.6) if affordable else ()
        yield key, f' ({whose} {close[0]!r})' if close else ''
