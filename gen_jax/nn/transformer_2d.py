"""The transformer of latent diffusion: pixels look at each other, then at a sequence of vectors, such as a text's.

Rombach et al., 2022 (https://arxiv.org/abs/2112.10752), section 3.3 and Appendix E.2.1, under the names of the
published checkpoints.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.nn.attention import dot_product_attention
from gen_jax.nn.initializers import torch_default
from gen_jax.nn.norms import GroupNorm
from gen_jax.nn.remat import recomputed
from gen_jax.nn.transformer import LayerNorm
from gen_jax.types import Array

__all__ = ['BasicTransformerBlock', 'CrossAttention', 'FeedForward', 'Transformer2D']


class CrossAttention(nn.Module):
    """Multi-head attention of x to a context, or to itself: keys `to_q`, `to_k`, `to_v` (no biases), `to_out.0`.

    Attributes:
        num_heads: divides C.
        upcast: q, k, v are made float32 first, whatever `dtype` (the scores and the softmax always are).
        dtype: compute dtype; parameters are float32.
        implementation: see `dot_product_attention`.
    """

    num_heads: int
    upcast: bool = False
    dtype: jnp.dtype | None = None
    implementation: str | None = None

    @nn.compact
    def __call__(self, x: Array, context: Array | None = None, mask: Array | None = None) -> Array:
        """x [B, N, C], context [B, M, any] or None, mask bool [B, M] (True is looked at) or None -> [B, N, C]."""
        c = x.shape[-1]
        context = x if context is None else context

        def heads(name, y):
            y = nn.Dense(c, use_bias=False, kernel_init=torch_default, dtype=self.dtype, name=name)(y)
            y = y.reshape(*y.shape[:2], self.num_heads, -1)
            return y.astype(jnp.float32) if self.upcast else y

        q, k, v = heads('to_q', x), heads('to_k', context), heads('to_v', context)
        mask = None if mask is None else mask[:, None, None, :]
        y = dot_product_attention(q, k, v, mask=mask, implementation=self.implementation).reshape(x.shape)
        return nn.Dense(c, kernel_init=torch_default, dtype=self.dtype, name='to_out.0')(y)


class FeedForward(nn.Module):
    """GEGLU: W_2 (u * GELU(g)) with (u, g) = W_1 x, 4 C hidden units; keys `net.0.proj`, `net.2`.

    Shazeer, 2020 (https://arxiv.org/abs/2002.05202), Eq. 6, with biases.
    """

    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., C] -> [..., C]."""
        c = x.shape[-1]
        hidden = nn.Dense(8 * c, kernel_init=torch_default, dtype=self.dtype, name='net.0.proj')(x)
        u, gate = jnp.split(hidden, 2, -1)
        hidden = u * jax.nn.gelu(gate, approximate=False)
        return nn.Dense(c, kernel_init=torch_default, dtype=self.dtype, name='net.2')(hidden)


class BasicTransformerBlock(nn.Module):
    """x + attn1(norm1(x)), then + attn2(norm2(x), context), then + ff(norm3(x)).

    Attributes:
        num_heads, upcast, dtype, implementation: see `CrossAttention`.
        only_cross_attention: attn1 looks at the context, too, instead of at x.
    """

    num_heads: int
    only_cross_attention: bool = False
    upcast: bool = False
    dtype: jnp.dtype | None = None
    implementation: str | None = None

    @nn.compact
    def __call__(self, x: Array, context: Array, mask: Array | None = None) -> Array:
        """x [B, N, C], context [B, M, any], mask bool [B, M] or None -> [B, N, C]."""
        def norm(name):
            return LayerNorm(1e-5, self.dtype or jnp.float32, name=name)(x)

        def attention(name):
            return CrossAttention(self.num_heads, self.upcast, self.dtype, self.implementation, name=name)

        seen = (context, mask) if self.only_cross_attention else ()
        x = x + attention('attn1')(norm('norm1'), *seen)
        x = x + attention('attn2')(norm('norm2'), context, mask)
        return x + FeedForward(self.dtype, name='ff')(norm('norm3'))


class Transformer2D(nn.Module):
    """A stack of `BasicTransformerBlock`s over the pixels of an image, with norm, projections and residual connection.

    The projection out starts at zero, so that a fresh stack is the identity.

    Attributes:
        num_heads: divides C.
        num_layers: blocks.
        use_linear_projection: the projections are dense layers, not 1x1 convolutions (the same map).
        norm_num_groups: of the group norm in front, whose epsilon is 1e-6.
        only_cross_attention, upcast, dtype, implementation: see `BasicTransformerBlock`.
        remat: what the backward pass recomputes of each block, see `gen_jax.nn.remat`.

    Raises:
        ValueError: num_heads does not divide C.
    """

    num_heads: int
    num_layers: int = 1
    use_linear_projection: bool = False
    norm_num_groups: int = 32
    only_cross_attention: bool = False
    upcast: bool = False
    dtype: jnp.dtype | None = None
    implementation: str | None = None
    remat: str = ''

    @nn.compact
    def __call__(self, x: Array, context: Array, mask: Array | None = None) -> Array:
        """x [B, H, W, C], context [B, M, any], mask bool [B, M] (True is looked at) or None -> [B, H, W, C]."""
        b, h, w, c = x.shape
        if self.num_heads < 1 or c % self.num_heads:
            raise ValueError(
                f'attention_head_dim={self.num_heads} (the number of heads, as published configurations use the name) '
                f'does not divide the {c} channels at {".".join(self.path)}; choose one of '
                f'{", ".join(str(d) for d in range(1, c + 1) if c % d == 0)}'
            )

        def project(name: str, y: Array, init: Any) -> Array:
            if self.use_linear_projection:
                return nn.Dense(c, kernel_init=init, dtype=self.dtype, name=name)(y)
            y = nn.Conv(c, (1, 1), kernel_init=init, dtype=self.dtype, name=name)(y.reshape(b, h, w, c))
            return y.reshape(b, h * w, c)

        y = GroupNorm(self.norm_num_groups, 1e-6, self.dtype, name='norm')(x).reshape(b, h * w, c)
        y = project('proj_in', y, torch_default)
        for i in range(self.num_layers):
            block = BasicTransformerBlock(
                self.num_heads,
                self.only_cross_attention,
                self.upcast,
                self.dtype,
                self.implementation,
                name=f'transformer_blocks.{i}',
            )
            y = recomputed(block, self.remat)(y, context, mask)
        return x + project('proj_out', y, nn.initializers.zeros).reshape(x.shape)
