"""The residual block of the diffusion UNets."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from gen_jax.nn.activations import activation
from gen_jax.nn.nin import NIN
from gen_jax.nn.norms import GroupNorm
from gen_jax.nn.resampling import average_pool, conv_init, fir_downsample, fir_upsample, upsample_nearest
from gen_jax.types import Array

__all__ = ['ResnetBlock2D']


class ResnetBlock2D(nn.Module):
    """norm, act, [resample,] conv1, + time, norm, act, dropout, conv2, + shortcut.

    Ho et al., 2020 (https://arxiv.org/abs/2006.11239), Appendix B; `time_embedding_norm='scale_shift'` is the
    adaptive group norm GroupNorm(h) (1 + s) + b of Dhariwal & Nichol, 2021 (https://arxiv.org/abs/2105.05233), §3.1,
    and `resample` the resampling residual block of BigGAN that they adopt. conv2 starts at zero, so that a fresh block
    is its shortcut.

    Attributes:
        features: output channels; a 1x1 `conv_shortcut` appears if they differ from the input's.
        num_groups: of both norms, see `GroupNorm`.
        epsilon: of both norms.
        time_embedding_norm: 'default' adds the projected embedding, 'scale_shift' modulates the second norm.
        resample: 'down' (2x2 means), 'up' (nearest) or None.
        output_scale_factor: the sum is divided by it.
        act_fn: see `gen_jax.nn.activations`.
        dropout: rate; needs the rng 'dropout' unless deterministic.
        dtype: compute dtype; parameters are float32.
        names: sub-module -> its name in a published checkpoint, for families that do not call them as diffusers does.
        kernel_init: of all kernels but conv2's.
        zero_init: of conv2's kernel.
        resample_filter: of 'down' and 'up', see `fir_downsample`; None is the means and repeats above.
        resample_shortcut: whether a `conv_shortcut` follows the resampling even where the channels stay as many.
        shortcut: 'conv', or 'nin' for checkpoints that store it as a `NIN`.
    """

    features: int
    num_groups: int | Literal['auto'] = 32
    epsilon: float = 1e-6
    time_embedding_norm: Literal['default', 'scale_shift'] = 'default'
    resample: Literal['down', 'up'] | None = None
    output_scale_factor: float = 1.0
    act_fn: str = 'silu'
    dropout: float = 0.0
    dtype: jnp.dtype | None = None
    names: Mapping[str, str] | None = None
    kernel_init: Callable = conv_init
    zero_init: Callable = nn.initializers.zeros
    resample_filter: tuple[float, ...] | None = None
    resample_shortcut: bool = False
    shortcut: Literal['conv', 'nin'] = 'conv'

    @nn.compact
    def __call__(self, x: Array, temb: Array | None = None, *, deterministic: bool = True) -> Array:
        """x [B, H, W, C], temb [B, E] or None -> [B, H', W', features]."""
        act = activation(self.act_fn)
        resample = {'down': average_pool, 'up': upsample_nearest, None: lambda y: y}[self.resample]
        if self.resample and self.resample_filter:
            fir = {'down': fir_downsample, 'up': fir_upsample}[self.resample]
            resample = partial(fir, filter=self.resample_filter)

        def named(name):
            return (self.names or {}).get(name, name)

        def conv(features, size, init, name):
            return nn.Conv(features, (size, size), padding='SAME', kernel_init=init, dtype=self.dtype, name=named(name))

        h = act(GroupNorm(self.num_groups, self.epsilon, self.dtype, name=named('norm1'))(x))
        x, h = resample(x), resample(h)
        h = conv(self.features, 3, self.kernel_init, 'conv1')(h)

        norm2 = GroupNorm(self.num_groups, self.epsilon, self.dtype, name=named('norm2'))
        if temb is None:
            h = norm2(h)
        else:
            width = 2 * self.features if self.time_embedding_norm == 'scale_shift' else self.features
            project = nn.Dense(width, kernel_init=self.kernel_init, dtype=self.dtype, name=named('time_emb_proj'))
            time = project(act(temb))[:, None, None]
            if self.time_embedding_norm == 'scale_shift':
                scale, shift = jnp.split(time, 2, -1)
                h = norm2(h) * (1 + scale) + shift
            else:
                h = norm2(h + time)

        h = nn.Dropout(self.dropout)(act(h), deterministic=deterministic)
        h = conv(self.features, 3, self.zero_init, 'conv2')(h)
        if x.shape[-1] != self.features or (self.resample and self.resample_shortcut):
            if self.shortcut == 'nin':
                x = NIN(self.features, dtype=self.dtype, name=named('conv_shortcut'))(x)
            else:
                x = conv(self.features, 1, self.kernel_init, 'conv_shortcut')(x)
        return (x + h) / self.output_scale_factor
