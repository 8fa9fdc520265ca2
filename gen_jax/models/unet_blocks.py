"""The down, mid and up blocks of `UNet2D`. One module spans the published kinds; a table says how they differ."""

from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from gen_jax.nn.attention import Attention
from gen_jax.nn.remat import recomputed
from gen_jax.nn.resampling import Downsample2D, Upsample2D
from gen_jax.nn.resnet import ResnetBlock2D
from gen_jax.types import Array

__all__ = ['DOWN_BLOCKS', 'UP_BLOCKS', 'BlockKind', 'DownBlock', 'MidBlock', 'UpBlock']


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
    """

    features: int
    layers: int
    attention: bool
    resample: Literal['conv', 'resnet'] | None
    padding: int
    resnet: Any
    attn: Any
    remat: str = ''

    @nn.compact
    def __call__(
        self, x: Array, temb: Array | None = None, *, deterministic: bool = True
    ) -> tuple[Array, list[Array]]:
        """x [B, H, W, C] -> (x [B, H', W', features], the skip connections in the order made)."""
        skips = []
        for i in range(self.layers):
            block = recomputed(ResnetBlock2D(self.features, **self.resnet, name=f'resnets.{i}'), self.remat)
            x = block(x, temb, deterministic=deterministic)
            if self.attention:
                x = recomputed(Attention(**self.attn, name=f'attentions.{i}'), self.remat)(x)
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
        scale_factor: the three outputs are divided by it.
        resnet: keyword arguments of `ResnetBlock2D`.
        attn: keyword arguments of `Attention`.
        remat: see `gen_jax.nn.remat`.
    """

    attention: bool
    scale_factor: float
    resnet: Any
    attn: Any
    remat: str = ''

    @nn.compact
    def __call__(self, x: Array, temb: Array | None = None, *, deterministic: bool = True) -> Array:
        """[B, H, W, C] -> [B, H, W, C]."""
        resnet = dict(self.resnet, features=x.shape[-1], output_scale_factor=self.scale_factor)
        blocks = [recomputed(ResnetBlock2D(**resnet, name=f'resnets.{i}'), self.remat) for i in range(2)]
        x = blocks[0](x, temb, deterministic=deterministic)
        if self.attention:
            attention = Attention(**self.attn, rescale_output_factor=self.scale_factor, name='attentions.0')
            x = recomputed(attention, self.remat)(x)
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

    @nn.compact
    def __call__(
        self, x: Array, skips: list[Array] | None = None, temb: Array | None = None, *, deterministic: bool = True
    ) -> Array:
        """x [B, H, W, C] and `layers` skip connections [B, H, W, any] -> [B, H', W', features]."""
        for i in range(self.layers):
            block = recomputed(ResnetBlock2D(self.features, **self.resnet, name=f'resnets.{i}'), self.remat)
            x = x if skips is None else jnp.concatenate([x, skips[-1 - i]], -1)
            x = block(x, temb, deterministic=deterministic)
            if self.attention:
                x = recomputed(Attention(**self.attn, name=f'attentions.{i}'), self.remat)(x)
        if self.resample == 'resnet':
            block = ResnetBlock2D(self.features, **self.resnet, resample='up', name='upsamplers.0')
            x = recomputed(block, self.remat)(x, temb, deterministic=deterministic)
        elif self.resample == 'conv':
            x = Upsample2D(self.resnet['dtype'], name='upsamplers.0')(x)
        return x
