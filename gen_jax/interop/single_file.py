"""Stable Diffusion 1.x in one file, as its authors published it, and guided-diffusion's ADM: both directions.

The single file holds the state of a training: the UNet under `model.diffusion_model.`, the autoencoder under
`first_stage_model.`, CLIP's text tower under `cond_stage_model.transformer.`. Each part's keys follow from those of its
published class by the rules below, which are read off the two families of published files.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.interop.classes import abstract_params, adapt
from gen_jax.interop.export import as_tensors
from gen_jax.interop.formats import Tensor, read_safetensors, write_safetensors
from gen_jax.interop.load import Part
from gen_jax.interop.torch_layout import flatten
from gen_jax.models.adm import ADMUNet, Trunk
from gen_jax.models.autoencoder_kl import AutoencoderKL, sd_vae
from gen_jax.models.clip_published import clip_text_sd15
from gen_jax.models.stable_diffusion import sd15_unet
from gen_jax.models.unet_condition import UNet2DCondition
from gen_jax.types import PyTree

__all__ = ['compvis_key', 'load_single_file', 'open_adm', 'open_single_file', 'save_adm', 'save_single_file']

PREFIXES = {'unet': 'model.diffusion_model.', 'vae': 'first_stage_model.',
            'text_encoder': 'cond_stage_model.transformer.'}
TRAINING = re.compile(
    r'(\w*alphas_cumprod\w*|betas|posterior_\w+|logvar|lvlb_weights|scale_factor|global_step)$|model_ema\.|'
    r'first_stage_model\.loss\.|cond_stage_model\.logit_scale$|.*\.position_ids$')
"""What else such a file holds: averaged weights, tables of the schedule, the autoencoder's loss."""
OTHERS = {'cond_stage_model.model.': 'Stable Diffusion 2.x', 'conditioner.embedders.': 'Stable Diffusion XL'}

RESNET = {'norm1': 'in_layers.0', 'conv1': 'in_layers.2', 'time_emb_proj': 'emb_layers.1', 'norm2': 'out_layers.0',
          'conv2': 'out_layers.3', 'conv_shortcut': 'skip_connection'}
UNET_ENDS = {'time_embedding.linear_1': 'time_embed.0', 'time_embedding.linear_2': 'time_embed.2',
             'conv_in': 'input_blocks.0.0', 'conv_norm_out': 'out.0', 'conv_out': 'out.2'}
VAE_ATTENTION = {'group_norm': 'norm', 'to_q': 'q', 'to_k': 'k', 'to_v': 'v', 'to_out.0': 'proj_out'}


def compvis_key(key: str, module: nn.Module) -> str:
    """The key of the single file (without its part's prefix) for a key of the published class.

    Raises:
        ValueError: a module whose layers the single file has no names for.
    """
    if isinstance(module, UNet2DCondition):
        return _unet_key(key, module)
    return _vae_key(key, len(module.block_out_channels)) if isinstance(module, AutoencoderKL) else key


def _unet_key(key: str, unet: UNet2DCondition) -> str:
    for ours, theirs in UNET_ENDS.items():
        if key.startswith(f'{ours}.'):
            return theirs + key.removeprefix(ours)
    place, rest = _split(key, unet)
    *_, kind, index, _ = place
    if kind == 'resnets':
        layer = next(k for k in RESNET if rest.startswith(f'{k}.'))
        rest = RESNET[layer] + rest.removeprefix(layer)
    elif kind != 'attentions':
        rest = rest.removeprefix('conv.')
    return '.'.join([_unet_block(place, unet), rest])


def _split(key: str, unet) -> tuple[tuple, str]:
    """('down' | 'mid' | 'up', block, 'resnets' | 'attentions' | 'downsamplers' | 'upsamplers', index, layers), rest."""
    found = re.fullmatch(r'(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)', key) or \
        re.fullmatch(r'(mid)_block()\.(\w+)\.(\d+)\.(.+)', key)
    layers = unet.layers_per_block
    if not found or not isinstance(layers, int):
        raise ValueError(f'the single file of Stable Diffusion 1.x has no name for {key!r}; save a folder instead')
    where, block, kind, index, rest = found.groups()
    return (where, int(block or 0), kind, int(index), layers), rest


def _unet_block(place: tuple, unet) -> str:
    """The layer's place in CompVis's flat lists: every residual block with what follows it is one entry."""
    where, block, kind, index, layers = place
    if where == 'mid':
        return f'middle_block.{2 * index if kind == "resnets" else 1}'
    if where == 'down':
        if kind == 'downsamplers':  # a block of its own; its convolution is called op
            return f'input_blocks.{(block + 1) * (layers + 1)}.0.op'
        return f'input_blocks.{1 + block * (layers + 1) + index}.{int(kind == "attentions")}'
    if kind == 'upsamplers':  # behind the last residual block of a resolution and its attention
        return f'output_blocks.{(block + 1) * (layers + 1) - 1}.{1 + ("CrossAttn" in unet.up_block_types[block])}.conv'
    return f'output_blocks.{block * (layers + 1) + index}.{int(kind == "attentions")}'


def _vae_key(key: str, levels: int) -> str:
    """The encoder's resolutions are counted from the image, and so are the decoder's in the single file only."""
    key = re.sub(r'mid_block\.attentions\.0\.(group_norm|to_q|to_k|to_v|to_out\.0)\.',
                 lambda m: f'mid.attn_1.{VAE_ATTENTION[m[1]]}.', key)
    key = re.sub(r'mid_block\.resnets\.(\d)\.', lambda m: f'mid.block_{int(m[1]) + 1}.', key)
    key = re.sub(r'down_blocks\.(\d+)\.resnets\.', r'down.\1.block.', key)
    key = re.sub(r'down_blocks\.(\d+)\.downsamplers\.0\.', r'down.\1.downsample.', key)
    key = re.sub(r'up_blocks\.(\d+)\.resnets\.', lambda m: f'up.{levels - 1 - int(m[1])}.block.', key)
    key = re.sub(r'up_blocks\.(\d+)\.upsamplers\.0\.', lambda m: f'up.{levels - 1 - int(m[1])}.upsample.', key)
    return key.replace('conv_norm_out', 'norm_out').replace('conv_shortcut', 'nin_shortcut')


def load_single_file(path, dtype=None, place: Callable[[np.ndarray], Any] = jax.device_put,
                     **modules: nn.Module) -> dict[str, tuple[nn.Module, PyTree]]:
    """The parts of a Stable Diffusion 1.x safetensors file: 'unet', 'vae', 'text_encoder' -> (module, params).

    A part that the file does not have is left out. Of a file with averaged weights besides, these are not read.

    Args:
        dtype, place: see `gen_jax.interop.load.load_model`.
        modules: unet=, vae=, text_encoder= of other settings than Stable Diffusion 1.x's; by default those, the UNet
            with as many input channels as the file's (9: inpainting).

    Raises:
        ValueError: pickles and damaged files; another kind of model; keys missing, unexpected or mis-shaped.
    """
    return {name: part.load(dtype, place) for name, part in open_single_file(path, **modules).items()}


def open_single_file(path, **modules: nn.Module) -> dict[str, Part]:
    """The modules of such a file and views of its weights; arguments and errors as `load_single_file`."""
    tensors = read_safetensors(path)
    for prefix, what in OTHERS.items():
        if any(k.startswith(prefix) for k in tensors):
            raise ValueError(f'{path} is {what} in one file; gen_jax reads only 1.x so, and {what} from its folder on '
                             'the hub')
    split = {part: {k.removeprefix(prefix): v for k, v in tensors.items()
                    if k.startswith(prefix) and not TRAINING.match(k)} for part, prefix in PREFIXES.items()}
    stray = [k for k in tensors if not k.startswith(tuple(PREFIXES.values())) and not TRAINING.match(k)]
    if stray or not any(split.values()):
        raise ValueError(f'{path} is no Stable Diffusion 1.x in one file: its keys should begin with '
                         f'{", ".join(PREFIXES.values())}, but there are {len(stray)} others: {", ".join(stray[:5])}')
    parts = {}
    for name, found in split.items():
        if found:
            module = modules.get(name) or _default(name, found)
            params = abstract_params(module)
            theirs = {compvis_key(k, module): k for k in flatten(params)}
            renamed = {theirs.get(k, k): v for k, v in found.items()}
            parts[name] = Part(module, params, adapt(renamed, params), f'{path}, {name}')
    return parts


def _default(part: str, found: Mapping[str, np.ndarray]) -> nn.Module:
    if part == 'unet':
        first = found.get('input_blocks.0.0.weight')
        return sd15_unet() if first is None or first.ndim < 2 else sd15_unet(in_channels=first.shape[1])
    return sd_vae() if part == 'vae' else clip_text_sd15()


def save_single_file(parts: Mapping[str, tuple[nn.Module, PyTree]], path, dtype=None) -> Path:
    """Writes 'unet', 'vae', 'text_encoder' -> (module, params), any of them, as Stable Diffusion 1.x in one file.

    Raises:
        ValueError: another part; layers that the single file has no names for; `path` does not end in .safetensors.
    """
    path, tensors = _safetensors(path), {}
    for part, (module, params) in parts.items():
        if part not in PREFIXES:
            raise ValueError(f'the single file has no part {part!r}; choose from {", ".join(PREFIXES)}')
        for key, tensor in as_tensors(params, dtype).items():
            theirs = compvis_key(key, module)
            if re.search(r'mid\.attn_1\.(q|k|v|proj_out)\.weight$', theirs):
                tensor = Tensor((*tensor.shape, 1, 1), tensor.dtype, tensor.read)  # 1x1 convolutions there
            tensors[PREFIXES[part] + theirs] = tensor
    write_safetensors(path, tensors)
    return path


def open_adm(path, module: Trunk) -> Part:
    """guided-diffusion's and improved-diffusion's weights, converted from .pt to safetensors, for a UNet or classifier.

    `open_adm(path, module).load(dtype)` is (module, params). The files say nothing of the settings: take the factory of
    that checkpoint (`gen_jax.models.adm_imagenet256` ...).

    Raises:
        ValueError: pickles and damaged files; keys missing, unexpected or mis-shaped.
    """
    return Part(module, adm_params(module), read_safetensors(path), str(path))


def save_adm(module: Trunk, params: PyTree, path, dtype=None) -> Path:
    """Writes the weights of an ADM network under its published keys, which are its own; `path` ends in .safetensors."""
    path = _safetensors(path)
    write_safetensors(path, as_tensors(params, dtype))
    return path


def adm_params(module: Trunk) -> PyTree:
    """The parameters of an ADM UNet or classifier as `jax.ShapeDtypeStruct`s."""
    side = module.image_size  # the classifier's pooling has learnt positions for this size only
    x, given = jnp.zeros((1, side, side, module.in_channels)), ()
    if isinstance(module, ADMUNet):
        given = (None if module.num_classes is None else jnp.zeros(1, jnp.int32), x if module.super_res else None)
    return jax.eval_shape(lambda: module.init(jax.random.key(0), x, jnp.zeros(1), *given))['params']


def _safetensors(path) -> Path:
    path = Path(path)
    if path.suffix != '.safetensors':
        raise ValueError(f'{path} must end in .safetensors')
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
