"""A linear map over the last axis, stored as score_sde stores it."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from gen_jax.types import Array

__all__ = ['NIN']


class NIN(nn.Module):
    """y = x W + b over the last axis: 'network in network' (Lin et al., 2014, https://arxiv.org/abs/1312.4400, §3.1).

    A dense layer under other names: checkpoints of DDPM and score_sde hold `W` as (in, out), not transposed, and `b`.

    Attributes:
        features: size of the last axis of the output.
        kernel_init: of W.
        dtype: compute dtype; parameters are float32.
    """

    features: int
    kernel_init: Callable = nn.initializers.variance_scaling(0.1, 'fan_avg', 'uniform')
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., C] -> [..., features]."""
        w = self.param('W', self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        b = self.param('b', nn.initializers.zeros, (self.features,), jnp.float32)
        x, w, b = nn.dtypes.promote_dtype(x, w, b, dtype=self.dtype)
        return x @ w + b
