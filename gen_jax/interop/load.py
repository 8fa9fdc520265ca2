"""Published weights in: a folder or a hub id becomes a module and its parameters, leaf by leaf."""

import mmap
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.interop.classes import BUFFERS, abstract_params, adapt, module_from
from gen_jax.interop.formats import find_weights, read_weights
from gen_jax.interop.hub import read_json, resolve
from gen_jax.interop.torch_layout import Match, from_torch, match_keys
from gen_jax.models.clip import CLIP
from gen_jax.types import PyTree

__all__ = ['Part', 'load_model', 'open_model']

ALIGNMENT = 64
"""Bytes to which XLA aligns: an array that starts so is taken over on the CPU, not copied again."""
LARGE = 2 ** 20
TILE = 64, 256
"""Rows and columns that are transposed at a time."""
PIXELS = 'preprocessor_config.json'
"""Of a whole CLIP: what its images are standardised with."""


class Part(NamedTuple):
    """A network and the file that its weights are to come from; nothing is read but the file's header."""

    module: nn.Module
    params: PyTree
    """Of the module, as `jax.ShapeDtypeStruct`s in float32."""
    tensors: Mapping[str, np.ndarray]
    """Views of the file, under the model's torch keys as far as those are known."""
    source: str

    def match(self) -> Match:
        """Which keys are each other's."""
        return match_keys({k: v.shape for k, v in self.tensors.items()}, self.params, BUFFERS)

    def load(self, dtype=None, place: Callable[[np.ndarray], Any] = jax.device_put) -> tuple[nn.Module, PyTree]:
        """(module, params) in a dtype; None is float32. See `load_model` for `place` and the errors.

        Beside the parameters themselves one tensor at a time is held on the host. (Threads do not help: they wait for
        each other where the kernel hands out fresh memory.)
        """
        shapes, module = self.params, self.module
        if dtype is not None:
            shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), shapes)
            module = module.clone(dtype=jnp.dtype(dtype))
        try:
            return module, from_torch(self.tensors, shapes, BUFFERS, lambda view, kind: place(aligned(view, kind)))
        except ValueError as e:
            raise ValueError(f'{self.source}: {e}') from None


def load_model(path_or_id, subfolder: str = '', dtype=None, variant: str | None = None, *,
               place: Callable[[np.ndarray], Any] = jax.device_put, **options) -> tuple[nn.Module, PyTree]:
    """A published model as a Linen module and its parameters.

    Args:
        path_or_id: a folder in the layout of the hub, or a hub id 'owner/name'.
        subfolder: of a pipeline: 'unet', 'vae', 'text_encoder' ...
        dtype: of the parameters and of the computation; None is float32, whatever the file has.
        variant: of the weights: 'fp16' reads `*.fp16.safetensors`.
        place: takes each parameter to where it shall live; the default is the first device.
        options: revision, cache_dir, token, offline: see `gen_jax.interop.hub.resolve`.

    Returns:
        (module, params) for `module.apply({'params': params}, ...)`. `module.clone(remat=...)` changes what no config
        says.

    Raises:
        ValueError: no such model; a class or a setting that gen_jax does not have; keys missing, unexpected or
            mis-shaped, all listed; damaged files; pickles.
    """
    return open_model(path_or_id, subfolder, variant, **options).load(dtype, place)


def open_model(path_or_id, subfolder: str = '', variant: str | None = None, **options) -> Part:
    """The module of a published model and views of its weights; arguments and errors as `load_model`."""
    folder = resolve(path_or_id, subfolder, variant=variant, **options)
    if (folder / 'model_index.json').is_file() and not (folder / 'config.json').is_file():
        raise ValueError(f'{folder} is a pipeline; name a part of it: subfolder="unet", "vae", "text_encoder" ...')
    module = module_from(read_json(folder / 'config.json'), folder / 'config.json')
    if isinstance(module, CLIP) and (folder / PIXELS).is_file():
        pixels = read_json(folder / PIXELS)
        if pixels.get('image_mean') and pixels.get('image_std'):
            module = module.clone(pixel_mean=tuple(pixels['image_mean']), pixel_std=tuple(pixels['image_std']))
    path = find_weights(folder, variant)
    params = abstract_params(module)
    return Part(module, params, adapt(read_weights(path), params), str(path))


def aligned(view: np.ndarray, dtype) -> np.ndarray:
    """A contiguous copy of a (strided) view of a file, in a dtype, where XLA can use it as it is."""
    dtype = np.dtype(dtype)
    size = view.size * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8) if size < LARGE else np.frombuffer(_fresh(size), np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    out = memory[start:start + size].view(dtype).reshape(view.shape)
    if view.ndim < 2 or view.flags.c_contiguous:
        np.copyto(out, view, casting='unsafe')
        return out
    for i in range(0, view.shape[-2], TILE[0]):  # transposed in tiles that stay in the cache: twice as fast
        for j in range(0, view.shape[-1], TILE[1]):
            part = (..., slice(i, i + TILE[0]), slice(j, j + TILE[1]))
            np.copyto(out[part], view[part], casting='unsafe')
    return out


def _fresh(size: int) -> mmap.mmap:
    """Anonymous memory whose pages are all there. numpy asks for huge pages, for which the kernel can stall."""
    return mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, 'MAP_POPULATE', 0))
