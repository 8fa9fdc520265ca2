"""Functions of one number that only ever increase: learned noise schedules."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.types import Array

__all__ = ['MonotoneDense', 'MonotoneLinear', 'MonotoneMLP']


class MonotoneLinear(nn.Module):
    """b + |w| t, from `low` at t = 0 to `high` at t = 1 when fresh: any shape -> the same shape, float32."""

    low: float
    high: float

    @nn.compact
    def __call__(self, t: Array) -> Array:
        """t of any shape -> the same shape."""
        w = self.param('w', nn.initializers.constant(self.high - self.low), (1,), jnp.float32)
        b = self.param('b', nn.initializers.constant(self.low), (1,), jnp.float32)
        return b[0] + jnp.abs(w[0]) * jnp.asarray(t, jnp.float32)


class MonotoneDense(nn.Module):
    """x |W| + b: [..., C] -> [..., features], every output growing in every input."""

    features: int
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.normal(0.01)
    bias_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., C] -> [..., features], float32."""
        kernel = self.param('kernel', self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        y = jnp.matmul(x, jnp.abs(kernel), precision='highest')  # a schedule is exponentiated: no shortened digits
        return y + self.param('bias', self.bias_init, (self.features,), jnp.float32) if self.use_bias else y


class MonotoneMLP(nn.Module):
    """l1(t) + l3(tanh(l2(2 t - 1) / 2)) / features with monotone layers: any shape -> the same shape, float32.

    Kingma et al., 2021 (https://arxiv.org/abs/2107.00630), Appendix H: a line from `low` to `high` when fresh, plus
    a perceptron.
    """

    low: float
    high: float
    features: int = 1024

    @nn.compact
    def __call__(self, t: Array) -> Array:
        """t of any shape -> the same shape."""
        t = jnp.asarray(t, jnp.float32)[..., None]
        constant = nn.initializers.constant
        line = MonotoneDense(1, kernel_init=constant(self.high - self.low), bias_init=constant(self.low), name='l1')(t)
        h = MonotoneDense(self.features, name='l2')(2.0 * t - 1.0)
        h = MonotoneDense(1, use_bias=False, name='l3')(2.0 * jax.nn.sigmoid(h) - 1.0)
        return (line + h / self.features)[..., 0]
