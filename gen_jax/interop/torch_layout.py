"""The one naming rule between our parameter trees and torch state dicts.

Sub-modules carry the published key with its dots, so a torch key is '.'.join(path), where the leaf names `kernel`,
`scale` and `embedding` are all called `weight`, and a kernel (..., in, out) is stored as (out, in, ...): convolutions
HWIO <-> OIHW, dense layers transposed. The rule is its own inverse given the shapes of the parameters; what it cannot
say (renamed or fused layers, transposed convolutions) belongs into a table of that one model.
"""

import difflib
import re
from collections.abc import Mapping

import jax
import numpy as np

from gen_jax.types import PyTree

__all__ = ['from_torch', 'to_torch', 'torch_key']


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
    return {
        key: np.array(_kernel_to_torch(np.asarray(leaf)) if path[-1] == 'kernel' else leaf, order='C')
        for key, (path, leaf) in flatten(params).items()
    }


def from_torch(state_dict: Mapping[str, np.ndarray], params: PyTree, ignore: str | None = None) -> PyTree:
    """State dict -> parameters of the structure, shapes and dtypes of `params`.

    Args:
        state_dict: numpy arrays by torch key; every key must be used or ignored.
        params: the tree to fill, of arrays or of `jax.ShapeDtypeStruct` (as from `jax.eval_shape`): its values are
            not read.
        ignore: a regular expression of keys that are no parameters here, such as buffers: EDM's 'resample_filter$'.

    Returns:
        A nested dict of numpy arrays, cast to the dtypes of `params`.

    Raises:
        ValueError: keys missing, unexpected or mis-shaped; all of them are listed, each with the nearest name.
    """
    flat = flatten(params)
    if ignore is not None:
        state_dict = {k: v for k, v in state_dict.items() if not re.search(ignore, k)}
    missing = [k for k in flat if k not in state_dict]
    unexpected = [k for k in state_dict if k not in flat]
    problems = [f'missing {k!r}{_nearest(k, unexpected, "the file has")}' for k in missing]
    problems += [f'unexpected {k!r}{_nearest(k, missing or flat, "the model has")}' for k in unexpected]
    filled, shapes = {}, 0
    for key, (path, leaf) in flat.items():
        if key not in state_dict:
            continue
        value = np.asarray(state_dict[key])
        expected = _torch_shape(path, leaf.shape)
        if value.shape != expected:
            shapes += 1
            problems.append(f'mis-shaped {key!r}: the file has {value.shape}, the model needs {expected}')
            continue
        filled[path] = (_kernel_from_torch(value) if path[-1] == 'kernel' else value).astype(leaf.dtype)
    if problems:
        raise ValueError(
            f'the state dict does not fit the model: {len(missing)} missing, {len(unexpected)} unexpected, {shapes} '
            f'mis-shaped of {len(flat)} keys; check that it belongs to this configuration\n  ' + '\n  '.join(problems)
        )
    tree = {}
    for path, value in filled.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = value
    return tree


def _kernel_to_torch(kernel: np.ndarray) -> np.ndarray:
    """(..., in, out) -> (out, in, ...)."""
    return np.moveaxis(kernel, (-1, -2), (0, 1))


def _kernel_from_torch(weight: np.ndarray) -> np.ndarray:
    """(out, in, ...) -> (..., in, out)."""
    return np.moveaxis(weight, (0, 1), (-1, -2))


def _torch_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[-1], shape[-2], *shape[:-2]) if path[-1] == 'kernel' else tuple(shape)


def _nearest(key: str, names, whose: str) -> str:
    close = difflib.get_close_matches(key, list(names), n=1, cutoff=0.6)
    return f' ({whose} {close[0]!r})' if close else ''
