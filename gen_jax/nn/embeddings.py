"""Embeddings of times and noise levels."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax

from gen_jax.nn.activations import activation
from gen_jax.types import Array

__all__ = ['GaussianFourierProjection', 'TimestepEmbedding', 'timestep_embedding']

dense_init = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform')


def timestep_embedding(
    t: Array, dim: int, *, flip_sin_to_cos: bool = False, freq_shift: float = 1.0, max_period: float = 10_000.0
) -> Array:
    """Sinusoidal embedding: t [B], usually 0..1000 and possibly fractional -> float32 [B, dim].

    [sin(t w_i), cos(t w_i)] with w_i = max_period^(-i / (dim/2 - freq_shift)), i < dim/2; cosines first if
    `flip_sin_to_cos`; an odd dim ends in a zero. Vaswani et al., 2017 (https://arxiv.org/abs/1706.03762), §3.5; DDPM
    has freq_shift 1 and sines first.

    Raises:
        ValueError: dim/2 does not exceed freq_shift, so the frequencies are undefined.
    """
    half = dim // 2
    if half <= freq_shift:
        raise ValueError(f'a timestep embedding of dim={dim} needs dim // 2 > freq_shift={freq_shift}; use a wider one')
    w = np.exp(-np.log(max_period) * np.arange(half) / (half - freq_shift))
    angle = t.astype(jnp.float32)[:, None] * jnp.asarray(w, jnp.float32)
    waves = [jnp.cos(angle), jnp.sin(angle)] if flip_sin_to_cos else [jnp.sin(angle), jnp.cos(angle)]
    return jnp.pad(jnp.concatenate(waves, -1), ((0, 0), (0, dim % 2)))


class TimestepEmbedding(nn.Module):
    """The two-layer perceptron behind every time embedding: [B, any] -> [B, dim].

    A condition [B, any], if there is one, is projected by `cond_proj` (no bias) and added to the input first.
    """

    dim: int
    act_fn: str = 'silu'
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array, condition: Array | None = None) -> Array:
        """x [B, any], condition [B, any] or None -> [B, dim]."""
        if condition is not None:
            project = nn.Dense(x.shape[-1], use_bias=False, kernel_init=dense_init, dtype=self.dtype, name='cond_proj')
            x = x + project(condition)
        h = nn.Dense(self.dim, kernel_init=dense_init, dtype=self.dtype, name='linear_1')(x)
        return nn.Dense(self.dim, kernel_init=dense_init, dtype=self.dtype, name='linear_2')(activation(self.act_fn)(h))


class GaussianFourierProjection(nn.Module):
    """Random Fourier features of a log noise level: t [B] > 0 -> float32 [B, 2 dim].

    [sin(2 pi w log t), cos(2 pi w log t)] with fixed w ~ N(0, scale^2); Song et al., 2021
    (https://arxiv.org/abs/2011.13456), Appendix C.1. The frequencies are a parameter, which gets no gradient; keep
    weight decay away from it.

    Attributes:
        dim: number of frequencies.
        scale: their standard deviation.
        log: False if t is a logarithm already.
        param_name: what the published checkpoint calls the frequencies.
    """

    dim: int
    scale: float = 16.0
    log: bool = True
    param_name: str = 'weight'

    @nn.compact
    def __call__(self, t: Array) -> Array:
        """t [B], positive if its logarithm is to be taken -> float32 [B, 2 dim]."""
        w = self.param(self.param_name, nn.initializers.normal(self.scale), (self.dim,), jnp.float32)
        t = t.astype(jnp.float32)
        angle = (jnp.log(t) if self.log else t)[:, None] * lax.stop_gradient(w) * (2 * np.pi)
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)
