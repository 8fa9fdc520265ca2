"""Scaled dot-product attention, and the attention block of the diffusion UNets."""

from collections.abc import Callable, Mapping
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from gen_jax.nn.initializers import torch_default
from gen_jax.nn.norms import GroupNorm
from gen_jax.types import Array

__all__ = ['IMPLEMENTATIONS', 'Attention', 'AttentionPool2d', 'dot_product_attention', 'split_heads']

IMPLEMENTATIONS = (None, 'matmul', 'xla', 'cudnn')

dense_init = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform')


def dot_product_attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array | None = None,
    is_causal: bool = False,
    implementation: str | None = None,
) -> Array:
    """softmax(q k^T / sqrt(D)) v, softmax in float32; Vaswani et al., 2017, Eq. 1.

    Args:
        q: [B, N, H, D].
        k: [B, M, H, D].
        v: [B, M, H, D].
        mask: bool, broadcastable to [B, H, N, M]; True where a query may look.
        is_causal: query n may look at keys up to n.
        implementation: 'matmul' lays q, k, v out as [B, H, N, D] for batched matrix products (about twice as fast on
            a CPU as the usual contraction in place), and takes large ones block by block, which keeps the scores in
            the cache and out of the memory; 'xla' and 'cudnn' are `jax.nn.dot_product_attention`, 'cudnn'
            being flash attention on GPUs for 16-bit inputs. None takes 'matmul' on CPUs and 'xla' elsewhere.

    Returns:
        [B, N, H, D] in the dtype of q.

    Raises:
        ValueError: unknown implementation; 'cudnn' for 32-bit inputs or without a GPU.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f'unknown attention_implementation {implementation!r}; choose from {", ".join(map(str, IMPLEMENTATIONS))}'
        )
    if implementation is None:
        implementation = 'matmul' if jax.default_backend() == 'cpu' else 'xla'
    if implementation == 'cudnn' and (jax.default_backend() != 'gpu' or q.dtype not in (jnp.bfloat16, jnp.float16)):
        raise ValueError(
            f"attention_implementation='cudnn' needs a GPU and bfloat16 or float16, not {jax.default_backend()} and "
            f'{q.dtype}; use None, or a 16-bit compute dtype'
        )
    if implementation != 'matmul':
        return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=is_causal, implementation=implementation)

    (b, n, h, _), m = q.shape, k.shape[1]
    if mask is None and not is_causal and n * m >= BLOCK // 8 and 4 * b * h * n * m > 8 * BLOCK:
        return blockwise(q, k, v)
    q, k, v = (y.swapaxes(1, 2) for y in (q, k, v))

    def masked(scores):
        if is_causal:
            scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -jnp.inf)
        # Finite, so that a row without any key to look at stays free of NaN.
        return scores if mask is None else jnp.where(mask, scores, jnp.finfo(scores.dtype).min)

    return attend(q, k, v, masked).swapaxes(1, 2)


BLOCK = 1 << 21
"""Bytes of the scores that one step of `blockwise` computes: about what a core's cache holds."""


def attend(q: Array, k: Array, v: Array, masked: Callable[[Array], Array] = lambda scores: scores) -> Array:
    """softmax(masked(q k^T / sqrt(D))) v by matrix products over the last two axes: [..., N, D], [..., M, D]."""
    scores = masked(jnp.matmul(q * q.shape[-1] ** -0.5, k.swapaxes(-1, -2), preferred_element_type=jnp.float32))
    # Divided after the product with v, which has D columns instead of M: one pass less over the scores.
    weights = jnp.exp(scores - lax.stop_gradient(scores.max(-1, keepdims=True)))
    y = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (y / weights.sum(-1, keepdims=True)).astype(v.dtype)


def blockwise(q: Array, k: Array, v: Array) -> Array:
    """Attention head by head and some queries at a time; the backward pass computes the scores again, likewise.

    Rabe & Staats, 2021 (https://arxiv.org/abs/2112.05682), section 2, all keys at once. Shapes as above.
    """
    b, n, _, d = q.shape
    rows = min(max(BLOCK // (4 * b * k.shape[1]), 1), n)
    full = n // rows * rows  # a number of queries without divisors has a shorter last block, not blocks of one

    again = jax.checkpoint(attend, prevent_cse=False)  # within a loop nothing is merged anyway

    def head(qkv):
        q, k, v = qkv
        some = q[:, :full].reshape(b, full // rows, rows, d).swapaxes(0, 1)
        y = lax.map(lambda q: again(q, k, v), some).swapaxes(0, 1).reshape(b, full, d)
        return y if full == n else jnp.concatenate([y, again(q[:, full:], k, v)], 1)

    return jnp.moveaxis(lax.map(head, tuple(jnp.moveaxis(y, 2, 0) for y in (q, k, v))), 0, 2)


ORDERS = ('qkv_head_channel', 'head_qkv_channel', 'head_channel_qkv')


def split_heads(qkv: Array, num_heads: int, order: str = 'qkv_head_channel') -> tuple[Array, Array, Array]:
    """The output of one fused projection as q, k and v: [B, N, 3 C] -> three of [B, N, H, C / H].

    Args:
        num_heads: H; divides C.
        order: of the channels, the slowest first: 'qkv_head_channel' (ADM's "new order"), 'head_qkv_channel' (iDDPM and
            most ADM weights) or 'head_channel_qkv' (EDM).

    Raises:
        ValueError: H does not divide C; unknown order.
    """
    if order not in ORDERS:
        raise ValueError(f'unknown order {order!r} of fused channels; choose from {", ".join(ORDERS)}')
    *lead, c = qkv.shape
    if num_heads < 1 or c % (3 * num_heads):
        raise ValueError(f'{num_heads} heads do not divide the {c // 3} channels; choose a divisor of them')
    sizes = {'qkv': 3, 'head': num_heads, 'channel': c // (3 * num_heads)}
    axes = order.split('_')
    parts = jnp.split(qkv.reshape(*lead, *(sizes[axis] for axis in axes)), 3, len(lead) + axes.index('qkv'))
    return tuple(part.reshape(*lead, num_heads, -1) for part in parts)


class Attention(nn.Module):
    """Self-attention over the pixels of an image, with its group norm and its residual connection.

    Ho et al., 2020, Appendix B. The output projection starts at zero, so that a fresh block is the identity.

    Attributes:
        head_dim: channels of a head; divides C.
        norm_num_groups: groups of the norm in front; None leaves the norm out, 'auto' is `GroupNorm`'s own rule.
        epsilon: of the norm.
        rescale_output_factor: the sum with the residual is divided by it.
        dtype: compute dtype; parameters are float32.
        implementation: see `dot_product_attention`.
        names: sub-module -> its name in a published checkpoint, for families that do not call them as diffusers does.
        projection: the layer that makes q, k, v and the output: projection(features, kernel_init=, dtype=, name=).
        fused: q, k and v come from one projection, `to_qkv`.
        order: of its channels, see `split_heads`.
        kernel_init: of the kernels of q, k and v.
        zero_init: of the output's kernel.

    Raises:
        ValueError: head_dim does not divide C.
    """

    head_dim: int
    norm_num_groups: int | Literal['auto'] | None = 32
    epsilon: float = 1e-5
    rescale_output_factor: float = 1.0
    dtype: jnp.dtype | None = None
    implementation: str | None = None
    names: Mapping[str, str] | None = None
    projection: Callable[..., nn.Module] = nn.Dense
    fused: bool = False
    order: str = 'head_channel_qkv'
    kernel_init: Callable = dense_init
    zero_init: Callable = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, C] -> [B, H, W, C]."""
        b, h, w, c = x.shape
        if self.head_dim < 1 or c % self.head_dim:
            raise ValueError(
                f'attention_head_dim={self.head_dim} does not divide the {c} channels at {".".join(self.path)}; '
                f'choose one of {", ".join(str(d) for d in range(1, c + 1) if c % d == 0)}, or None for one head'
            )

        def named(name):
            return (self.names or {}).get(name, name)

        def project(features, init, name):
            return self.projection(features, kernel_init=init, dtype=self.dtype, name=named(name))

        y = x
        if self.norm_num_groups is not None:
            y = GroupNorm(self.norm_num_groups, self.epsilon, self.dtype, name=named('group_norm'))(y)
        heads = (b, h * w, c // self.head_dim, self.head_dim)
        if self.fused:
            qkv = project(3 * c, self.kernel_init, 'to_qkv')(y).reshape(b, h * w, 3 * c)
            q, k, v = split_heads(qkv, c // self.head_dim, self.order)
        else:
            q, k, v = (project(c, self.kernel_init, name)(y).reshape(heads) for name in ('to_q', 'to_k', 'to_v'))
        y = dot_product_attention(q, k, v, implementation=self.implementation).reshape(x.shape)
        return (x + project(c, self.zero_init, 'to_out.0')(y)) / self.rescale_output_factor


class AttentionPool2d(nn.Module):
    """One vector of an image: what its mean looks up among its pixels, [B, H, W, C] -> [B, features].

    Radford et al., 2021 (https://arxiv.org/abs/2103.00020), section 2.4, with the fused projections of ADM's
    classifier: `positional_embedding` [C, H W + 1] (the mean first), `qkv_proj`, `c_proj`.

    Attributes:
        features: length of the output.
        num_heads: divides C.
        dtype: compute dtype; parameters are float32.

    Raises:
        ValueError: on another image size than the weights', whose positions are learned.
    """

    features: int
    num_heads: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, C] -> [B, features]."""
        b, h, w, c = x.shape
        x = x.reshape(b, h * w, c)
        x = jnp.concatenate([x.mean(1, keepdims=True), x], 1)
        if self.has_variable('params', 'positional_embedding'):
            n = self.get_variable('params', 'positional_embedding').shape[1] - 1
            if n != h * w:
                raise ValueError(f'attention pooling of {h}x{w} features with learned positions for {n} of them; give '
                                 'images of the size that the weights were trained at')
        position = self.param('positional_embedding', nn.initializers.normal(c ** -0.5), (c, h * w + 1), jnp.float32)
        x = x + position.T.astype(x.dtype)
        y = nn.Conv(3 * c, (1,), kernel_init=torch_default, dtype=self.dtype, name='qkv_proj')(x)
        q, k, v = split_heads(y, self.num_heads)
        y = dot_product_attention(q[:, :1], k, v).reshape(b, 1, c)
        return nn.Conv(self.features, (1,), kernel_init=torch_default, dtype=self.dtype, name='c_proj')(y)[:, 0]
