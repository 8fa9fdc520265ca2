"""The block of `SongUNet`, and what the published code bases call its parts."""

import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn

from gen_jax.nn.attention import Attention
from gen_jax.nn.initializers import torch_default
from gen_jax.nn.nin import NIN
from gen_jax.nn.resnet import ResnetBlock2D
from gen_jax.types import Array

__all__ = ['LAYOUTS', 'Layout', 'UNetBlock']

xavier = partial(nn.initializers.variance_scaling, mode='fan_avg', distribution='uniform')


class Layout(NamedTuple):
    """What follows from a code base, not from the architecture: names, epsilon, initial values."""

    resnet: Mapping[str, str]
    """Names inside a residual block, see `ResnetBlock2D`."""
    attention: Mapping[str, Any]
    """Arguments of `Attention`."""
    attention_inside: bool
    """Whether an attention's parameters lie beside those of the residual block before it, or in a module of its own."""
    numbered: bool
    """Whether modules are called all_modules.0, all_modules.1 ... in the order of their use."""
    frequencies: str
    """Name of the Fourier frequencies in their module."""
    suffixes: Mapping[str, str]
    """What a convolution that is a module of its own adds to that module's name: by 'conv' or 'fir_conv'."""
    epsilon: float
    """Of every norm."""
    kernel_init: Callable
    zero_init: Callable
    """Of kernels at the end of a residual path."""

    def namer(self) -> Callable[[str], str]:
        """A function from EDM's name of a module to the name in this layout; to be called in the order of use."""
        count = itertools.count()
        return (lambda name: f'all_modules.{next(count)}') if self.numbered else (lambda name: name)


def conv_1x1(features: int, **kwargs) -> nn.Conv:
    """A dense layer over pixels, stored as a convolution."""
    return nn.Conv(features, (1, 1), **kwargs)


EDM = Layout(
    resnet=dict(
        norm1='norm0', conv1='conv0', time_emb_proj='affine', norm2='norm1', conv2='conv1', conv_shortcut='skip'
    ),
    attention=dict(
        names={'group_norm': 'norm2', 'to_qkv': 'qkv', 'to_out.0': 'proj'},
        projection=conv_1x1,
        fused=True,
        kernel_init=xavier(0.2),
        zero_init=xavier(1e-10),
    ),
    attention_inside=True,
    numbered=False,
    frequencies='freqs',
    suffixes={'conv': '', 'fir_conv': ''},
    epsilon=1e-6,
    kernel_init=xavier(1.0),
    zero_init=xavier(1e-10),  # a factor of 1e-5 on the values
)

LAYOUTS = {
    'score_sde': Layout(
        resnet=dict(
            norm1='GroupNorm_0', conv1='Conv_0', time_emb_proj='Dense_0', norm2='GroupNorm_1', conv2='Conv_1',
            conv_shortcut='Conv_2',
        ),
        attention=dict(
            names={'group_norm': 'GroupNorm_0', 'to_q': 'NIN_0', 'to_k': 'NIN_1', 'to_v': 'NIN_2', 'to_out.0': 'NIN_3'},
            projection=NIN,
            kernel_init=xavier(0.1),
        ),
        attention_inside=False,
        numbered=True,
        frequencies='W',
        suffixes={'conv': '.Conv_0', 'fir_conv': '.Conv2d_0'},
        epsilon=1e-6,
        kernel_init=xavier(1.0),
        zero_init=nn.initializers.zeros,
    ),
    'edm': EDM,
    'dhariwal': EDM._replace(
        attention={**EDM.attention, 'kernel_init': torch_default, 'zero_init': nn.initializers.zeros},
        epsilon=1e-5,
        kernel_init=torch_default,
        zero_init=nn.initializers.zeros,
    ),
}


class UNetBlock(nn.Module):
    """A residual block and, if asked for, an attention whose parameters lie beside its own.

    Karras et al., 2022 (https://arxiv.org/abs/2206.00364), Appendix F.3.

    Attributes:
        resnet: keyword arguments of `ResnetBlock2D`.
        attention: keyword arguments of `Attention`, or None.
    """

    resnet: Any
    attention: Any = None

    @nn.compact
    def __call__(self, x: Array, temb: Array | None, *, deterministic: bool) -> Array:
        """x [B, H, W, C], temb [B, E] or None -> [B, H', W', features]."""
        block = ResnetBlock2D(**self.resnet)
        nn.share_scope(self, block)
        x = block(x, temb, deterministic=deterministic)
        if self.attention is not None:
            attention = Attention(**self.attention)
            nn.share_scope(self, attention)
            x = attention(x)
        return x
