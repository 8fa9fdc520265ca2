"""The blocks of RefineNet as score networks use them, with or without noise-conditional normalisation.

Lin et al. 2017 (arXiv:1611.06612), Sec. 3.2, in the forms of NCSN (Song & Ermon 2019, arXiv:1907.05600, Appendix A) and
NCSNv2 (Song & Ermon 2020, arXiv:2006.09011, Appendix B). Throughout, `num_classes` is the number of noise levels that
the normalisations tell apart by `label` int32 [B]; None makes them unconditional, and then the refinement blocks have
none at all. Module names are the published ones; one activation, ELU, serves everywhere.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.nn.resampling import average_pool
from gen_jax.types import Array

__all__ = ['CRPBlock', 'InstanceNormPlus', 'MSFBlock', 'RCUBlock', 'RefineBlock', 'ResidualBlock', 'resize_bilinear']

torch_init = nn.initializers.variance_scaling(1.0 / 3.0, 'fan_in', 'uniform')
"""U(-1, 1) / sqrt(fan_in), the default of the framework that the published networks were trained in."""


def _near_one(key, shape, dtype=jnp.float32):
    return 1.0 + 0.02 * jax.random.normal(key, shape, dtype)


def _embedding_init(key, shape, dtype=jnp.float32):
    """[gamma, alpha, beta] per level: N(1, 0.02^2) twice, then zeros."""
    ones = _near_one(key, (shape[0], shape[1] // 3 * 2), dtype)
    return jnp.concatenate([ones, jnp.zeros((shape[0], shape[1] // 3), dtype)], axis=1)


def _conv(features: int, size: int, name: str, dtype, dilation: int = 1, use_bias: bool = True) -> nn.Conv:
    return nn.Conv(features, (size, size), padding=dilation * (size // 2), kernel_dilation=dilation, use_bias=use_bias,
                   kernel_init=torch_init, dtype=dtype, name=name)


def resize_bilinear(x: Array, shape: tuple[int, int]) -> Array:
    """Linear interpolation with the corners of both grids aligned: [B, H, W, C] -> [B, *shape, C]."""
    for axis, size in zip((1, 2), shape, strict=True):
        old = x.shape[axis]
        if old == size:
            continue
        at = np.linspace(0.0, old - 1.0, size)
        weights = np.maximum(0.0, 1.0 - np.abs(at[:, None] - np.arange(old)))
        x = jnp.moveaxis(jnp.tensordot(x, jnp.asarray(weights, x.dtype), ((axis,), (1,))), -1, axis)
    return x


class InstanceNormPlus(nn.Module):
    """gamma (IN(x) + alpha m) + beta per channel, where m are the channel means, standardised over the channels.

    Instance normalisation alone forgets the means, and with them the colours: Song & Ermon 2019, Appendix A.1,
    'InstanceNorm++'. Moments and affine map in float32; the variance over channels is the unbiased one.

    Attributes:
        num_classes: gamma, alpha and beta are rows of a table [num_classes, 3 C], 'embed'; None: parameters [C].
        dtype: of the output; None keeps the input's.
    """

    num_classes: int | None = None
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array, label: Array) -> Array:
        """x [B, H, W, C], label int32 [B] -> the same shape."""
        c = x.shape[-1]
        if self.num_classes is None:
            gamma, alpha = (self.param(name, _near_one, (c,), jnp.float32) for name in ('gamma', 'alpha'))
            beta = self.param('beta', nn.initializers.zeros, (c,), jnp.float32)
        else:
            table = nn.Embed(self.num_classes, 3 * c, embedding_init=_embedding_init, name='embed')
            gamma, alpha, beta = jnp.split(table(label)[:, None, None], 3, axis=-1)
        y = x.astype(jnp.float32)
        means = y.mean((1, 2), keepdims=True)
        y = y - means
        y = y * jax.lax.rsqrt(jnp.square(y).mean((1, 2), keepdims=True) + 1e-5)
        means = means - means.mean(-1, keepdims=True)
        means = means * jax.lax.rsqrt(jnp.square(means).sum(-1, keepdims=True) / (c - 1) + 1e-5)
        return (gamma * (y + alpha * means) + beta).astype(self.dtype or x.dtype)


class ResidualBlock(nn.Module):
    """norm, ELU, conv1, norm, ELU, conv2, + shortcut.

    Attributes:
        features: output channels.
        down: widens to `features` in conv2 rather than in conv1, and halves the resolution by 2x2 means behind conv2
            and the shortcut, unless dilated: then the resolution stays.
        dilation: of every convolution; None is undilated.
    """

    features: int
    down: bool = False
    dilation: int | None = None
    num_classes: int | None = None
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array, label: Array) -> Array:
        """x [B, H, W, C], label int32 [B] -> [B, H', W', features]."""
        d = self.dilation or 1
        pooled = self.down and self.dilation is None
        inner = x.shape[-1] if self.down else self.features

        def norm(name):
            return InstanceNormPlus(self.num_classes, self.dtype, name=name)

        def out(x, size, name):
            if pooled:
                return average_pool(_conv(self.features, size, f'{name}.conv', self.dtype)(x))
            return _conv(self.features, size, name, self.dtype, d)(x)

        h = nn.elu(norm('normalize1')(x, label))
        h = _conv(inner, 3, 'conv1', self.dtype, d)(h)
        h = nn.elu(norm('normalize2')(h, label))
        h = out(h, 3, 'conv2')
        if x.shape[-1] != self.features or self.down:
            x = out(x, 1 if self.dilation is None else 3, 'shortcut')
        return x + h


class RCUBlock(nn.Module):
    """Residual convolution units: `blocks` times x + [norm,] ELU, conv, [norm,] ELU, conv."""

    blocks: int
    num_classes: int | None = None
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array, label: Array) -> Array:
        """x [B, H, W, C] -> the same shape."""
        for i in range(1, self.blocks + 1):
            h = x
            for j in (1, 2):
                if self.num_classes is not None:
                    h = InstanceNormPlus(self.num_classes, self.dtype, name=f'{i}_{j}_norm')(h, label)
                h = _conv(x.shape[-1], 3, f'{i}_{j}_conv', self.dtype, use_bias=False)(nn.elu(h))
            x = x + h
        return x


class MSFBlock(nn.Module):
    """Multi-resolution fusion: the sum of the inputs, [normalised,] convolved and enlarged to the first one's size."""

    features: int
    num_classes: int | None = None
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, xs: Sequence[Array], label: Array) -> Array:
        """xs: [B, H_i, W_i, C_i] -> [B, H_0, W_0, features]."""
        total = 0.0
        for i, h in enumerate(xs):
            if self.num_classes is not None:
                h = InstanceNormPlus(self.num_classes, self.dtype, name=f'norms.{i}')(h, label)
            h = _conv(self.features, 3, f'convs.{i}', self.dtype)(h)
            total = total + resize_bilinear(h, xs[0].shape[1:3])
        return total


class CRPBlock(nn.Module):
    """Chained residual pooling: ELU, then twice + conv(5x5 pool(path)), the path being the last such term.

    With norms the pool takes means (NCSN), without it takes maxima (NCSNv2).
    """

    num_classes: int | None = None
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array, label: Array) -> Array:
        """x [B, H, W, C] -> the same shape."""
        x = path = nn.elu(x)
        for i in range(2):
            if self.num_classes is None:
                path = nn.max_pool(path, (5, 5), (1, 1), 'SAME')
            else:
                path = InstanceNormPlus(self.num_classes, self.dtype, name=f'norms.{i}')(path, label)
                path = nn.avg_pool(path, (5, 5), (1, 1), 'SAME')  # zeros of the border count
            path = _conv(x.shape[-1], 3, f'convs.{i}', self.dtype, use_bias=False)(path)
            x = x + path
        return x


class RefineBlock(nn.Module):
    """RCU on each input, their fusion, chained pooling, RCU (Lin et al. 2017, Fig. 2).

    Attributes:
        features: output channels; those of the input if there is one only, since nothing is fused then.
        end: three residual units at the exit instead of one.
    """

    features: int
    end: bool = False
    num_classes: int | None = None
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, xs: Sequence[Array], label: Array) -> Array:
        """xs: [B, H_i, W_i, C_i] -> [B, H_0, W_0, features]."""
        cond = {'num_classes': self.num_classes, 'dtype': self.dtype}
        hs = [RCUBlock(2, **cond, name=f'adapt_convs.{i}')(x, label) for i, x in enumerate(xs)]
        h = hs[0] if len(hs) == 1 else MSFBlock(self.features, **cond, name='msf')(hs, label)
        h = CRPBlock(**cond, name='crp')(h, label)
        return RCUBlock(3 if self.end else 1, **cond, name='output_convs')(h, label)
