"""Published weights out: a module and its parameters become a folder that diffusers or transformers loads."""

import os
import shutil
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.interop.classes import CLASSES, abstract_params, class_of
from gen_jax.interop.formats import Tensor, parse_size, write_json, write_weights
from gen_jax.interop.load import PIXELS
from gen_jax.interop.torch_layout import flatten, match_keys, torch_shape, torch_view
from gen_jax.types import PyTree

__all__ = ['VERSIONS', 'as_tensors', 'save_model']

VERSIONS = {'diffusers': ('_diffusers_version', '0.42.1'), 'transformers': ('transformers_version', '5.23.0')}
"""Of the libraries whose layout is written: field of config.json and value."""
FILE_STEMS = {'diffusers': 'diffusion_pytorch_model', 'transformers': 'model'}


def as_tensors(params: PyTree, dtype=None) -> dict[str, Tensor]:
    """Parameters by torch key, to be written; each is brought to the host and transposed when its turn has come.

    Args:
        dtype: of the floating-point ones on disk; None keeps theirs.
    """
    def tensor(path, leaf):
        kind = np.dtype(dtype if dtype is not None and jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype)
        return Tensor(torch_shape(path, leaf.shape), kind, lambda: torch_view(path, leaf).astype(kind))

    return {key: tensor(path, leaf) for key, (path, leaf) in flatten(params).items()}


def _pixels(clip: nn.Module) -> dict:
    """The steps from an image to what the network is shown, as transformers' CLIPImageProcessor reads them."""
    side = clip.image_size
    return {'image_processor_type': 'CLIPImageProcessor', 'do_resize': True, 'size': {'shortest_edge': side},
            'resample': 3, 'do_center_crop': True, 'crop_size': {'height': side, 'width': side}, 'do_rescale': True,
            'rescale_factor': 1 / 255, 'do_normalize': True, 'image_mean': list(clip.pixel_mean),
            'image_std': list(clip.pixel_std), 'do_convert_rgb': True}


def save_model(module: nn.Module, params: PyTree, folder, dtype=None, max_shard_size: int | str = '10GB',
               variant: str | None = None) -> Path:
    """Writes config.json and safetensors as the published class of the module has them.

    A new folder appears complete or not at all; in one that exists, each file is replaced as a whole.

    Args:
        params: arrays, as `load_model` returns and `module.init(...)['params']` has.
        dtype: on disk: 'float16', 'bfloat16'; None keeps that of the parameters.
        max_shard_size: '10GB', '500MB' or bytes; larger weights are split, with an index.
        variant: 'fp16' writes `*.fp16.safetensors`.

    Returns:
        The folder.

    Raises:
        ValueError: a module of no published class, or with settings that it does not have; parameters that are not
            the module's.
    """
    folder = Path(folder)
    row, max_shard_size = CLASSES[class_of(module)], parse_size(max_shard_size)
    config = row.config(module)
    match = match_keys({k: torch_shape(p, leaf.shape) for k, (p, leaf) in flatten(params).items()},
                       abstract_params(module))
    if not match.fits:
        raise ValueError('the parameters are not those of the module:\n  ' + '\n  '.join(match.problems()))
    if folder.exists() and not folder.is_dir():
        raise ValueError(f'{folder} is a file; give a folder')
    config = {**config, VERSIONS[row.library][0]: VERSIONS[row.library][1]}
    if row.library == 'transformers':
        config['dtype'] = str(np.dtype(dtype or jax.tree.leaves(params)[0].dtype))

    def write(where):
        write_weights(where, FILE_STEMS[row.library], as_tensors(params, dtype), max_shard_size, variant)
        if getattr(module, 'pixel_mean', None) is not None:
            write_json(where / PIXELS, _pixels(module))
        write_json(where / 'config.json', config)

    if folder.is_dir():
        write(folder)
        return folder
    temporary = folder.with_name(f'.{folder.name}.{os.getpid()}.tmp')
    temporary.mkdir(parents=True)
    try:
        write(temporary)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder
