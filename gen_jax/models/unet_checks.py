"""What the UNets refuse: settings that contradict each other, and inputs that do not fit."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import jax.numpy as jnp

from gen_jax.nn.activations import activation
from gen_jax.types import Array

__all__ = ['check_batch', 'check_choices', 'check_image', 'check_labels', 'check_resolutions', 'check_sides']


def check_resolutions(unet: Any, *more: str) -> None:
    """Raises ValueError unless the lists of a UNet, those called `more` included, have one entry per resolution, and
    norm_num_groups divides every width."""
    names = ('block_out_channels', 'down_block_types', 'up_block_types', *more)
    lengths = {k: len(getattr(unet, k)) for k in names}
    if len(set(lengths.values())) > 1 or not unet.block_out_channels:
        listed = ', '.join(f'{k} has {n}' for k, n in lengths.items())
        raise ValueError(f'{listed}; give each one entry per resolution')
    common, groups = math.gcd(*unet.block_out_channels), unet.norm_num_groups
    if groups < 1 or common % groups:
        raise ValueError(
            f'norm_num_groups={groups} does not divide every number of channels in block_out_channels='
            f'{tuple(unet.block_out_channels)}; choose one of '
            f'{", ".join(str(d) for d in range(1, common + 1) if common % d == 0)}'
        )


def check_choices(unet: Any, choices: Mapping[str, Collection]) -> None:
    """Raises ValueError for a field with a name that is not among its choices, or an unknown act_fn."""
    for field, known in choices.items():
        value = getattr(unet, field)
        for name in value if field.endswith('_types') else (value,):
            if name not in known:
                raise ValueError(f'unknown {name!r} in {field}; choose from {", ".join(map(str, known))}')
    activation(unet.act_fn)


def check_image(unet: Any, x: Array, t: Array) -> None:
    """Raises ValueError for images [B, H, W, C] or times () or [B] that the UNet cannot take."""
    if x.ndim != 4 or x.shape[-1] != unet.in_channels:
        raise ValueError(f'x is {x.shape}; this UNet takes [B, H, W, {unet.in_channels}] (in_channels, last)')
    if jnp.shape(t) not in ((), (1,), x.shape[:1]):
        raise ValueError(f't is {jnp.shape(t)}; give one number, or one per image: ({x.shape[0]},)')


def check_sides(unet: Any, x: Array) -> None:
    """Raises ValueError for images [B, H, W, C] whose sides are not divisible by the UNet's down-sampling factor."""
    factor = unet.downsampling_factor
    for side, name in zip(x.shape[1:3], ('height', 'width'), strict=True):
        if side % factor or not side:
            below, above = side // factor * factor, -(-max(side, 1) // factor) * factor
            nearest = f'{below} or {above}' if below else f'{above}'
            raise ValueError(
                f'image {name} {side} is not divisible by the down-sampling factor {factor} '
                f'({len(unet.block_out_channels)} resolutions); the nearest valid size is {nearest}: '
                'resize or pad the images, or use fewer resolutions'
            )


def check_labels(unet: Any, batch: int, class_labels: Array | None) -> None:
    """Raises ValueError for class labels that are missing, not expected, or not shaped as class_embed_type needs."""
    if unet.class_conditional and class_labels is None:
        raise ValueError(
            f'class_labels is missing: this UNet is class-conditional (num_class_embeds={unet.num_class_embeds}, '
            f'class_embed_type={unet.class_embed_type!r}); give one label per image, or build it without classes'
        )
    if not unet.class_conditional and class_labels is not None:
        raise ValueError('class_labels is given, but this UNet has no classes; set num_class_embeds, or leave it out')
    if class_labels is None:
        return
    width = unet.embed_dim if unet.class_embed_type == 'identity' else None
    if unet.class_embed_type == 'projection':
        width = unet.projection_class_embeddings_input_dim
    expected = (batch,) if width is None else (batch, width)
    if jnp.shape(class_labels) != expected:
        raise ValueError(f'class_labels is {jnp.shape(class_labels)}; give {expected}')


def check_batch(name: str, value: Array | None, shape: tuple[int | None, ...], setting: str | None) -> None:
    """Raises ValueError unless a conditioning array has `shape` (None: any length), or is None where `setting` is.

    Args:
        setting: 'field=value' of the configuration that asks for it; None if nothing does.
    """
    if setting is None:
        if value is not None:
            raise ValueError(f'{name} is given, but this UNet takes none; leave it out')
        return
    wanted = ', '.join('any' if n is None else str(n) for n in shape)
    if value is None:
        raise ValueError(f'{name} is missing: this UNet has {setting}; give [{wanted}]')
    found = jnp.shape(value)
    if len(found) != len(shape) or any(n is not None and n != m for n, m in zip(shape, found, strict=True)):
        raise ValueError(f'{name} is {found}; this UNet has {setting}: give [{wanted}]')
