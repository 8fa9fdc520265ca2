"""Layers against their formulas in float64 numpy."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.nn import attention
from gen_jax.nn.attention import dot_product_attention
from gen_jax.nn.embeddings import timestep_embedding
from gen_jax.nn.norms import GroupNorm
from gen_jax.nn.resampling import average_pool, upsample_nearest

RNG = np.random.RandomState(0)


def exact_attention(q, k, v, mask):
    scores = np.einsum('bnhd,bmhd->bhnm', q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(scores) * mask
    return np.einsum('bhnm,bmhd->bnhd', weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize('implementation', [None, 'matmul', 'xla'])
@pytest.mark.parametrize('masking', ['none', 'mask', 'causal'])
def test_attention(implementation, masking):
    q, k, v = RNG.randn(3, 2, 5, 3, 4)
    mask = np.ones((2, 1, 5, 5), bool)
    if masking == 'mask':
        mask = RNG.rand(2, 1, 5, 5) < 0.5
        mask[..., 0] = True
    elif masking == 'causal':
        mask = np.tril(mask)
    y = dot_product_attention(
        *(jnp.asarray(a, jnp.float32) for a in (q, k, v)),
        mask=jnp.asarray(mask) if masking == 'mask' else None,
        is_causal=masking == 'causal',
        implementation=implementation,
    )
    chex.assert_trees_all_close(y, exact_attention(q, k, v, mask).astype(np.float32), atol=2e-6)


def test_attention_softmax_is_float32_in_bfloat16():
    # 1,000 equal keys: weights of 1/1000 summed in bfloat16 would stall at 0.5 or so.
    q, k, v = jnp.zeros((1, 1, 1, 4)), jnp.zeros((1, 1000, 1, 4)), jnp.ones((1, 1000, 1, 4))
    y = dot_product_attention(*(a.astype(jnp.bfloat16) for a in (q, k, v)), implementation='matmul')
    assert y.dtype == jnp.bfloat16
    chex.assert_trees_all_close(y.astype(jnp.float32), jnp.ones((1, 1, 1, 4)), atol=0.01)


@pytest.mark.parametrize('rows', [1, 2, 6])
def test_large_attention_goes_block_by_block(rows, monkeypatch):
    """Six queries of two images to five keys, `rows` (at most) at a time: the same numbers and gradients."""
    q, k, v = (jnp.asarray(RNG.randn(2, n, 3, 4), jnp.float32) for n in (6, 5, 5))
    calls = []

    def f(q, k, v):
        y = dot_product_attention(q, k, v, implementation='matmul')
        return (y * jnp.cos(jnp.arange(y.size).reshape(y.shape))).sum(), y

    def counted(*given, blockwise=attention.blockwise):
        calls.append(given[0].shape)
        return blockwise(*given)

    run = jax.value_and_grad(f, (0, 1, 2), has_aux=True)
    whole = jax.jit(run)(q, k, v)
    monkeypatch.setattr(attention, 'blockwise', counted)
    monkeypatch.setattr(attention, 'BLOCK', 4 * 2 * 5 * rows)  # bytes of the scores of `rows` queries
    some = jax.jit(lambda *given: run(*given))(q, k, v)
    assert calls == ([] if rows == 6 else [(2, 6, 3, 4)])  # all at once fit into eight blocks
    chex.assert_trees_all_close(some, whole, rtol=1e-5, atol=1e-5)


def test_blocks_need_no_divisor(monkeypatch):
    # CLIP at 336 pixels has 577 tokens, a prime: three at a time of seven are two steps and a rest, not seven steps.
    monkeypatch.setattr(attention, 'BLOCK', 4 * 2 * 5 * 3)
    given = [jnp.asarray(RNG.randn(2, n, 3, 4), jnp.float32) for n in (7, 5, 5)]
    lengths = re.findall(r'length=(\d+)', str(jax.make_jaxpr(attention.blockwise)(*given)))
    assert sorted(lengths) == ['2', '3']  # queries within heads

    def run(f):
        return jax.jit(jax.value_and_grad(lambda *a: (f(*a) ** 2).sum(), (0, 1, 2)))(*given)

    whole = run(lambda *a: dot_product_attention(*a, implementation='xla'))
    chex.assert_trees_all_close(run(attention.blockwise), whole, rtol=1e-5, atol=1e-5)


def test_attention_and_its_gradient_at_large_scores():
    # Scores of several hundred, and a row that may look nowhere: the mean of v, and no NaN.
    q, k, v = (jnp.asarray(a, jnp.float32) for a in (40 * RNG.randn(1, 5, 2, 4), 40 * RNG.randn(1, 5, 2, 4),
                                                     RNG.randn(1, 5, 2, 4)))
    mask = jnp.asarray(RNG.rand(1, 1, 5, 5) < 0.5).at[..., 0].set(True).at[0, 0, 2].set(False)

    def loss(implementation):
        def f(q, k, v):
            y = dot_product_attention(q, k, v, mask=mask, implementation=implementation)
            return (y * jnp.cos(jnp.arange(y.size).reshape(y.shape))).sum(), y
        return jax.jit(jax.value_and_grad(f, (0, 1, 2), has_aux=True))(q, k, v)

    (_, y), gradient = loss('matmul')
    chex.assert_trees_all_close(y[0, 2], v[0].mean(0), atol=1e-6)
    (_, expected), wanted = loss('xla')
    chex.assert_trees_all_close(y, expected, atol=1e-5)
    chex.assert_trees_all_close(gradient, wanted, atol=1e-4)


@pytest.mark.parametrize('dtype, tolerance', [(jnp.float32, 2e-5), (jnp.bfloat16, 0.02)])
def test_group_norm_far_from_zero(dtype, tolerance):
    # A mean of 64 against a spread of 1: moments in bfloat16, or E[x^2] - E[x]^2, would be far off.
    x = np.asarray(jnp.asarray(64 + RNG.randn(2, 6, 5, 8), dtype), np.float64)
    scale, bias = RNG.randn(2, 8)
    y = GroupNorm(4, 1e-5).apply(
        {'params': {'scale': jnp.asarray(scale, jnp.float32), 'bias': jnp.asarray(bias, jnp.float32)}},
        jnp.asarray(x, dtype),
    )
    groups = x.reshape(2, 30, 4, 2)
    expected = (groups - groups.mean((1, 3), keepdims=True)) / np.sqrt(groups.var((1, 3), keepdims=True) + 1e-5)
    expected = expected.reshape(x.shape) * scale + bias
    assert y.dtype == dtype
    assert np.abs(np.asarray(y, np.float64) - expected).max() < tolerance * np.abs(expected).max()


@pytest.mark.parametrize('dim', [8, 9])
@pytest.mark.parametrize('flip', [False, True])
def test_timestep_embedding(dim, flip):
    t = np.array([0.0, 1.5, 999.0])
    angle = t[:, None] * 10_000.0 ** (-np.arange(4) / 3)
    halves = [np.sin(angle), np.cos(angle)]
    expected = np.concatenate((halves[::-1] if flip else halves) + [np.zeros((3, dim % 2))], 1)
    y = timestep_embedding(jnp.asarray(t), dim, flip_sin_to_cos=flip, freq_shift=1)
    chex.assert_trees_all_close(y, expected.astype(np.float32), atol=1e-4)


def test_resampling():
    x = jnp.asarray(RNG.randn(2, 3, 4, 5), jnp.float32)
    up = upsample_nearest(x)
    chex.assert_trees_all_equal(up, jnp.repeat(jnp.repeat(x, 2, 1), 2, 2))
    chex.assert_trees_all_close(average_pool(up), x, atol=1e-6)
    tiles = average_pool(jnp.arange(8.0).reshape(1, 2, 4, 1))
    chex.assert_trees_all_close(tiles, jnp.array([2.5, 4.5]).reshape(1, 1, 2, 1))
    assert jax.grad(lambda x: upsample_nearest(x).sum())(x).mean() == 4


@pytest.mark.parametrize('size', [(6, 8), (5, 7), (5, 8), (7, 9), (3, 4), (2, 11)])
def test_upsampling_to_any_size_picks_pixels_as_torch_does(size):
    x = jnp.arange(12.0).reshape(1, 3, 4, 1)
    expected = [[4 * (i * 3 // size[0]) + j * 4 // size[1] for j in range(size[1])] for i in range(size[0])]
    np.testing.assert_array_equal(upsample_nearest(x, size)[0, ..., 0], expected)
