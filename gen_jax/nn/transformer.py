"""Pre-norm transformer blocks under the names of the published CLIP checkpoints.

x <- x + Attention(LayerNorm(x));  x <- x + MLP(LayerNorm(x)), as in GPT-2, ViT (Dosovitskiy et al. 2021, Eq. 2-3)
and CLIP (Radford et al. 2021, section 2.4).
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.nn import activations
from gen_jax.nn.attention import dot_product_attention
from gen_jax.nn.remat import recomputed
from gen_jax.types import Array

__all__ = ['MLP', 'Encoder', 'EncoderLayer', 'LayerNorm', 'SelfAttention', 'activation']


def quick_gelu(x: Array) -> Array:
    """x sigmoid(1.702 x): the approximation of GELU (Hendrycks & Gimpel 2016, section 2) that CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {
    **activations.ACTIVATIONS,
    'quick_gelu': quick_gelu,
    'gelu_pytorch_tanh': partial(jax.nn.gelu, approximate=True),
}


def activation(name: str):
    """The activation that published transformer configs call `name`; ValueError with the choices if there is none."""
    if name not in ACTIVATIONS:
        raise ValueError(f'unknown activation {name!r}; choose from {", ".join(sorted(ACTIVATIONS))}')
    return ACTIVATIONS[name]


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis, computed in float32 and returned in `dtype`."""

    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param('scale', nn.initializers.ones, (x.shape[-1],))
        bias = self.param('bias', nn.initializers.zeros, (x.shape[-1],))
        x = x.astype(jnp.float32)
        mean = x.mean(-1, keepdims=True)
        var = jnp.square(x - mean).mean(-1, keepdims=True)
        return ((x - mean) * jax.lax.rsqrt(var + self.epsilon) * scale + bias).astype(self.dtype)


class SelfAttention(nn.Module):
    """Multi-head self-attention [B, N, C] -> [B, N, C], keys `q_proj`, `k_proj`, `v_proj`, `out_proj`.

    `mask` is bool, broadcastable to [B, heads, N, N], True where a query may look; `causal` holds besides.

    Raises:
        ValueError: if `num_heads` does not divide C.
    """

    num_heads: int
    causal: bool = False
    out_std: float | None = None
    dtype: Any = jnp.float32
    implementation: str | None = None

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        b, n, c = x.shape
        if c % self.num_heads:
            raise ValueError(f'num_heads = {self.num_heads} does not divide the width {c}; choose a divisor')
        normal = nn.initializers.normal
        q, k, v = (
            nn.Dense(c, kernel_init=normal(c**-0.5), dtype=self.dtype, name=name)(x).reshape(b, n, self.num_heads, -1)
            for name in ('q_proj', 'k_proj', 'v_proj')
        )
        y = dot_product_attention(q, k, v, mask=mask, is_causal=self.causal, implementation=self.implementation)
        y = y.reshape(b, n, c)
        out_std = c**-0.5 if self.out_std is None else self.out_std
        return nn.Dense(c, kernel_init=normal(out_std), dtype=self.dtype, name='out_proj')(y)


class MLP(nn.Module):
    """fc2(act(fc1(x))) with a hidden layer of `hidden` units."""

    hidden: int
    act: str = 'quick_gelu'
    out_std: float | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = x.shape[-1]
        normal = nn.initializers.normal
        y = nn.Dense(self.hidden, kernel_init=normal((2 * c) ** -0.5), dtype=self.dtype, name='fc1')(x)
        out_std = c**-0.5 if self.out_std is None else self.out_std
        return nn.Dense(c, kernel_init=normal(out_std), dtype=self.dtype, name='fc2')(activation(self.act)(y))


class EncoderLayer(nn.Module):
    """One pre-norm block: keys `layer_norm1`, `self_attn`, `layer_norm2`, `mlp`."""

    num_heads: int
    hidden: int
    act: str = 'quick_gelu'
    causal: bool = False
    out_std: float | None = None
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    attention_implementation: str | None = None

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        y = LayerNorm(self.epsilon, self.dtype, name='layer_norm1')(x)
        x = x + SelfAttention(self.num_heads, self.causal, self.out_std, self.dtype, self.attention_implementation,
                              name='self_attn')(y, mask)
        y = LayerNorm(self.epsilon, self.dtype, name='layer_norm2')(x)
        return x + MLP(self.hidden, self.act, self.out_std, self.dtype, name='mlp')(y)


class Encoder(nn.Module):
    """`num_layers` blocks, keys `layers.0`, `layers.1`, ...

    What each block adds to the residual stream starts with standard deviation (2 C num_layers)^-1/2, so that the
    stream keeps its scale at any depth (Radford et al. 2019, section 2.3; CLIP's own initialisation).
    """

    num_layers: int
    num_heads: int
    hidden: int
    act: str = 'quick_gelu'
    causal: bool = False
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    remat: str = ''
    attention_implementation: str | None = None

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None, hidden_states: bool = False):
        """[B, N, C] -> [B, N, C].

        Args:
            mask: see `SelfAttention`.
            hidden_states: returns num_layers + 1 arrays instead: the input and what stands behind each block.
        """
        out_std = (2 * x.shape[-1] * self.num_layers) ** -0.5
        states = [x]
        for i in range(self.num_layers):
            layer = EncoderLayer(self.num_heads, self.hidden, self.act, self.causal, out_std, self.epsilon, self.dtype,
                                 self.attention_implementation, name=f'layers.{i}')
            states.append(recomputed(layer, self.remat)(states[-1], mask))
        return tuple(states) if hidden_states else states[-1]
