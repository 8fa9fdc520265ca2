"""The down, mid and up blocks of the UNets. One module spans the published kinds; a table says how they differ."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from gen_jax.nn.attention import Attention
from gen_jax.nn.embeddings import TimestepEmbedding
from gen_jax.nn.remat import recomputed
from gen_jax.nn.resampling import Downsample2D, Upsample2D
from gen_jax.nn.resnet import ResnetBlock2D
from gen_jax.nn.transformer_2d import Transformer2D
from gen_jax.types import Array

__all__ = ['DOWN_BLOCKS', 'UP_BLOCKS', 'BlockKind', 'DownBlock', 'MidBlock', 'UpBlock', 'embed_classes', 'run_blocks']


class BlockKind(NamedTuple):
    """What a published block name stands for."""

    attention: bool
    """Whether an attention follows every residual block."""
    resample: Literal['conv', 'resnet'] | None
    """How the resolution changes; None leaves it to the network's downsample_type or upsample_type."""


DOWN_BLOCKS = {
    'DownBlock2D': BlockKind(attention=False, resample='conv'),
    'AttnDownBlock2D': BlockKind(attention=True, resample=None),
    'ResnetDownsampleBlock2D': BlockKind(attention=False, resample='resnet'),
}
UP_BLOCKS = {
    'UpBlock2D': BlockKind(attention=False, resample='conv'),
    'AttnUpBlock2D': BlockKind(attention=True, resample=None),
    'ResnetUpsampleBlock2D': BlockKind(attention=False, resample='resnet'),
}


class DownBlock(nn.Module):
    """`layers` residual blocks, each with an attention if asked for, then a halving of the resolution.

    Attributes:
        features: output channels.
        layers: number of residual blocks.
        attention: whether an attention follows each of them.
        resample: 'conv', 'resnet' or None (the last block keeps the resolution).
        padding: of the 'conv' down-sampling, see `Downsample2D`.
        resnet: keyword arguments of `ResnetBlock2D`.
        attn: keyword arguments of `Attention`.
        remat: see `gen_jax.nn.remat`.
        transformer: keyword arguments of `Transformer2D`, which then takes the place of `Attention`.
    """

    features: int
    layers: int
    attention: bool
    resample: Literal['conv', 'resnet'] | None
    padding: int
    resnet: Any
    attn: Any
    remat: str = ''
    transformer: Any = None

    @nn.compact
    def __call__(
        self, x: Array, temb: Array | None = None, *context: Array | None, deterministic: bool = True
    ) -> tuple[Array, list[Array]]:
        """x [B, H, W, C] -> (x [B, H', W', features], the skip connections in the order made).

        `context` is what a `Transformer2D` takes besides x; there is none otherwise.
        """
        skips = []
        for i in range(self.layers):
            block = recomputed(ResnetBlock2D(self.features, **self.resnet, name=f'resnets.{i}'), self.remat)
            x = block(x, temb, deterministic=deterministic)
            if self.attention:
                x = attention_of(self, i)(x, *context)
            skips.append(x)
        if self.resample == 'resnet':
            block = ResnetBlock2D(self.features, **self.resnet, resample='down', name='downsamplers.0')
            x = recomputed(block, self.remat)(x, temb, deterministic=deterministic)
        elif self.resample == 'conv':
            x = Downsample2D(self.padding, self.resnet['dtype'], name='downsamplers.0')(x)
        return x, skips if self.resample is None else [*skips, x]


class MidBlock(nn.Module):
    """Residual block, attention if asked for, residual block, at the lowest resolution.

    Attributes:
        attention: whether there is one.
        scale_factor: the outputs are divided by it, but for that of a `Transformer2D`.
        resnet: keyword arguments of `ResnetBlock2D`.
        attn: keyword arguments of `Attention`.
        remat: see `gen_jax.nn.remat`.
        transformer: keyword arguments of `Transformer2D`, which then takes the place of `Attention`.
    """

    attention: bool
    scale_factor: float
    resnet: Any
    attn: Any
    remat: str = ''
    transformer: Any = None

    @nn.compact
    def __call__(
        self, x: Array, temb: Array | None = None, *context: Array | None, deterministic: bool = True
    ) -> Array:
        """[B, H, W, C] -> [B, H, W, C]."""
        resnet = dict(self.resnet, features=x.shape[-1], output_scale_factor=self.scale_factor)
        blocks = [recomputed(ResnetBlock2D(**resnet, name=f'resnets.{i}'), self.remat) for i in range(2)]
        x = blocks[0](x, temb, deterministic=deterministic)
        if self.attention:
            x = attention_of(self, 0, rescale_output_factor=self.scale_factor)(x, *context)
        return blocks[1](x, temb, deterministic=deterministic)


class UpBlock(nn.Module):
    """`layers` residual blocks, each fed one skip connection (the latest first), then a doubling of the resolution.

    A decoder without skip connections gives None for them.

    Attributes: as those of `DownBlock`, with `layers` one more than there.
    """

    features: int
    layers: int
    attention: bool
    resample: Literal['conv', 'resnet'] | None
    resnet: Any
    attn: Any
    remat: str = ''
    transformer: Any = None

    @nn.compact
    def __call__(
        self,
        x: Array,
        skips: list[Array] | None = None,
        temb: Array | None = None,
        *context: Array | None,
        size: tuple[int, int] | None = None,
        deterministic: bool = True,
    ) -> Array:
        """x [B, H, W, C] and `layers` skip connections [B, H, W, any] -> [B, H', W', features].

        'conv' brings x to `size`, the (H', W') of the next block's skip connections; None doubles it.
        """
        for i in range(self.layers):
            block = recomputed(ResnetBlock2D(self.features, **self.resnet, name=f'resnets.{i}'), self.remat)
            x = x if skips is None else jnp.concatenate([x, skips[-1 - i]], -1)
            x = block(x, temb, deterministic=deterministic)
            if self.attention:
                x = attention_of(self, i)(x, *context)
        if self.resample == 'resnet':
            block = ResnetBlock2D(self.features, **self.resnet, resample='up', name='upsamplers.0')
            x = recomputed(block, self.remat)(x, temb, deterministic=deterministic)
        elif self.resample == 'conv':
            x = Upsample2D(self.resnet['dtype'], name='upsamplers.0')(x, size)
        return x


def attention_of(block: nn.Module, i: int, **options) -> Callable[..., Array]:
    """A block's i-th attention; `options` are for an `Attention` only. A `Transformer2D` recomputes layer by layer."""
    name = f'attentions.{i}'
    if block.transformer is not None:
        return Transformer2D(**block.transformer, remat=block.remat, name=name)
    return recomputed(Attention(**block.attn, **options, name=name), block.remat)


def run_blocks(
    x: Array,
    temb: Array,
    down: Sequence[DownBlock],
    mid: MidBlock | None,
    up: Sequence[UpBlock],
    *context: Array | None,
    deterministic: bool,
) -> Array:
    """Down, through the middle, and up again with the skip connections; x [B, H, W, C] is the first of them.

    A side that was odd on the way down is odd again on the way up.
    """
    skips = [x]
    for block in down:
        x, new = block(x, temb, *context, deterministic=deterministic)
        skips += new
    if mid is not None:
        x = mid(x, temb, *context, deterministic=deterministic)
    for block in up:
        skips, fed = skips[:-block.layers], skips[-block.layers:]
        size = skips[-1].shape[1:3] if skips else None
        x = block(x, fed, temb, *context, size=size, deterministic=deterministic)
    return x


def embed_classes(
    unet: Any, class_labels: Array, time_proj: Callable[[Array], Array], act_fn: str = 'silu'
) -> Array:
    """What a UNet, whose `__call__` this is a part of, adds to the embedding of the time: [B, embed_dim].

    Its class_embed_type is None (labels are rows of a table of num_class_embeds), 'timestep' (numbers, embedded as
    times are by `time_proj`), 'projection' (vectors that go through a perceptron) or 'identity' (the embedding).
    `act_fn` is the activation of the perceptron of 'timestep'.
    """
    width, kind = unet.embed_dim, unet.class_embed_type
    if kind == 'identity':
        return class_labels.astype(unet.dtype or jnp.float32)
    if kind in ('timestep', 'projection'):
        x = time_proj(class_labels) if kind == 'timestep' else class_labels.astype(unet.dtype or jnp.float32)
        act_fn = act_fn if kind == 'timestep' else 'silu'
        return TimestepEmbedding(width, act_fn, unet.dtype, name='class_embedding')(x)
    normal = nn.initializers.normal(1.0)
    table = nn.Embed(unet.num_class_embeds, width, unet.dtype, embedding_init=normal, name='class_embedding')
    return table(class_labels)
