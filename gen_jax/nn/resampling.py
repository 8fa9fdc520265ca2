"""Halving and doubling the resolution."""

import flax.linen as nn
import jax.numpy as jnp

from gen_jax.types import Array

__all__ = ['Downsample2D', 'Upsample2D', 'average_pool', 'upsample_nearest']

conv_init = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform')


def upsample_nearest(x: Array) -> Array:
    """Every pixel twice along both axes: [B, H, W, C] -> [B, 2H, 2W, C]."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def average_pool(x: Array) -> Array:
    """Means of 2x2 tiles: [B, 2H, 2W, C] -> [B, H, W, C]."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


class Downsample2D(nn.Module):
    """A 3x3 convolution of stride 2: [B, 2H, 2W, C] -> [B, H, W, C].

    Attributes:
        padding: 1 pads every side; 0 pads the bottom and the right only, as the first DDPM code did (its framework's
            'SAME' rule), and such weights need.
        dtype: compute dtype.
    """

    padding: int = 1
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, 2H, 2W, C] -> [B, H, W, C]."""
        pad = (0, 1) if self.padding == 0 else (self.padding, self.padding)
        return nn.Conv(x.shape[-1], (3, 3), (2, 2), (pad, pad), kernel_init=conv_init, dtype=self.dtype, name='conv')(x)


class Upsample2D(nn.Module):
    """Nearest-neighbour doubling and a 3x3 convolution: [B, H, W, C] -> [B, 2H, 2W, C]."""

    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, C] -> [B, 2H, 2W, C]."""
        x = upsample_nearest(x)
        return nn.Conv(x.shape[-1], (3, 3), padding=1, kernel_init=conv_init, dtype=self.dtype, name='conv')(x)
