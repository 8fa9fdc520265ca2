"""Halving and doubling the resolution."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax

from gen_jax.types import Array

__all__ = ['Downsample2D', 'Upsample2D', 'average_pool', 'fir_downsample', 'fir_filter', 'fir_upsample',
           'upsample_nearest']

conv_init = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform')


def upsample_nearest(x: Array, size: tuple[int, int] | None = None) -> Array:
    """Every pixel twice along both axes, [B, H, W, C] -> [B, 2H, 2W, C]; or [B, *size, C] if a size is given.

    Output i of n shows input floor(i m / n) of m then, as `interpolate(mode='nearest')` of torch has it.
    """
    b, h, w, c = x.shape
    size = size or (2 * h, 2 * w)
    if all(n in (2 * m, 2 * m - 1) for m, n in zip((h, w), size, strict=True)):
        # Doubled, and cut where the side is odd, is what the rule says then, and cheaper than picking.
        doubled = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
        return doubled[:, :size[0], :size[1]]
    for axis, (m, n) in enumerate(zip((h, w), size, strict=True), 1):
        x = jnp.take(x, np.arange(n) * m // n, axis)
    return x


def average_pool(x: Array) -> Array:
    """Means of 2x2 tiles: [B, 2H, 2W, C] -> [B, H, W, C]."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def fir_taps(filter: Sequence[float]) -> list[float]:
    """The filter scaled to the sum 1.

    Raises:
        ValueError: of odd length or not symmetric; such a filter would shift the image.
    """
    taps = np.asarray(filter, np.float64)
    if taps.ndim != 1 or not taps.size or taps.size % 2 or (taps != taps[::-1]).any() or not taps.sum() > 0:
        raise ValueError(
            f'resample_filter={tuple(filter)}: give a symmetric filter of even length and positive sum, as (1, 1) for '
            'tiles of two or (1, 3, 3, 1)'
        )
    return (taps / taps.sum()).tolist()


def fir_filter(x: Array, filter: Sequence[float], *, padding: int, stride: int = 1) -> Array:
    """Both axes of x [B, H, W, C] padded with `padding` zeros per side, filtered, and every `stride`-th value kept.

    The filter, scaled to the sum 1, is separable and short, so that shifted sums beat a convolution per channel.

    Raises:
        ValueError: see `fir_taps`.
    """
    taps = fir_taps(filter)
    for axis in (1, 2):
        x = jnp.pad(x, [(padding, padding) if i == axis else (0, 0) for i in range(x.ndim)])
        reach = (x.shape[axis] - len(taps)) // stride * stride + 1
        x = sum(tap * lax.slice_in_dim(x, j, j + reach, stride, axis) for j, tap in enumerate(taps))
    return x


def fir_downsample(x: Array, filter: Sequence[float]) -> Array:
    """[B, 2H, 2W, C] -> [B, H, W, C] through a low-pass filter; (1, 1) is `average_pool`.

    Zhang, 2019 (https://arxiv.org/abs/1904.11486); padded as `upfirdn2d` of StyleGAN2 does: Karras et al., 2020
    (https://arxiv.org/abs/1912.04958), Appendix B.

    Raises:
        ValueError: see `fir_taps`.
    """
    return fir_filter(x, filter, padding=(len(filter) - 2) // 2, stride=2)


def fir_upsample(x: Array, filter: Sequence[float]) -> Array:
    """[B, H, W, C] -> [B, 2H, 2W, C]: zeros in between, then the filter with gain 2 per axis; (1, 1) is
    `upsample_nearest`. The transpose of 4 `fir_downsample`.

    Raises:
        ValueError: see `fir_taps`.
    """
    taps = fir_taps(filter)
    half = len(taps) // 2
    for axis in (1, 2):
        length, reach = x.shape[axis], (half + 1) // 2
        padded = jnp.pad(x, [(reach, reach) if i == axis else (0, 0) for i in range(x.ndim)])
        phases = []
        for phase in (0, 1):
            # Output 2i + phase sees input i + (phase + j - half) / 2 through tap j, where that is whole.
            seen = [(tap, (phase + j - half) // 2) for j, tap in enumerate(taps) if (phase + j - half) % 2 == 0]
            phases.append(sum(
                2 * tap * lax.slice_in_dim(padded, reach + shift, reach + shift + length, axis=axis)
                for tap, shift in seen
            ))
        shape = list(x.shape)
        shape[axis] *= 2
        x = jnp.stack(phases, axis + 1).reshape(shape)
    return x


class Downsample2D(nn.Module):
    """A 3x3 convolution of stride 2: [B, 2H, 2W, C] -> [B, H, W, C].

    Attributes:
        padding: 1 pads every side, and an odd side n becomes (n + 1) / 2; 0 pads the bottom and the right only, as the
            first DDPM code did (its framework's 'SAME' rule), and such weights need: (n - 1) / 2.
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
    def __call__(self, x: Array, size: tuple[int, int] | None = None) -> Array:
        """[B, H, W, C] -> [B, 2H, 2W, C], or [B, *size, C]; see `upsample_nearest`."""
        x = upsample_nearest(x, size)
        return nn.Conv(x.shape[-1], (3, 3), padding=1, kernel_init=conv_init, dtype=self.dtype, name='conv')(x)
