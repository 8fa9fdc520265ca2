import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gen_jax.losses.contrastive import MAX_LOG_SCALE, clip_log_scale, contrastive


def unit(seed, b=16, d=6):
    x = np.random.RandomState(seed).standard_normal((b, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


U, V = unit(0), unit(1)


def by_the_book(u, v, log_scale):
    """The loss in float64, one row and one column at a time."""
    logits = np.exp(min(log_scale, math.log(100))) * u.astype(np.float64) @ v.astype(np.float64).T
    rows = [-np.log(np.exp(r - r[i]).sum() ** -1) for i, r in enumerate(logits)]
    columns = [-np.log(np.exp(c - c[i]).sum() ** -1) for i, c in enumerate(logits.T)]
    return (np.array(rows) + np.array(columns)) / 2


@pytest.mark.parametrize('log_scale', [0.0, 2.6, 5.0])
def test_equals_the_definition(log_scale):
    losses, _ = contrastive(U, V, jnp.float32(log_scale))
    chex.assert_shape(losses, (16,))
    np.testing.assert_allclose(losses, by_the_book(U, V, log_scale), rtol=2e-5, atol=2e-5)


def test_closed_forms():
    same = jnp.ones((8, 4)) / 2
    np.testing.assert_allclose(contrastive(same, same, 3.0)[0], math.log(8), rtol=1e-6)  # nothing to tell apart
    eye = jnp.eye(8)
    expected = math.log(1 + 7 * math.exp(-math.e))  # orthogonal embeddings, scale e
    np.testing.assert_allclose(contrastive(eye, eye, 1.0)[0], expected, rtol=1e-5)


def test_sharded_batch_has_all_negatives():
    mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec('data'))

    def value(u, v):
        return contrastive(u, v, jnp.float32(2.0))[0].mean()

    whole, gradient = jax.value_and_grad(value)(U, V)
    step = jax.jit(jax.value_and_grad(value), in_shardings=(rows, rows), out_shardings=(None, rows))
    sharded, sharded_gradient = step(jax.device_put(U, rows), jax.device_put(V, rows))
    assert len(sharded_gradient.sharding.device_set) == 8
    np.testing.assert_allclose(sharded, whole, rtol=1e-6)
    np.testing.assert_allclose(sharded_gradient, gradient, atol=1e-6)
    local = jax.vmap(value)(U.reshape(8, 2, -1), V.reshape(8, 2, -1)).mean()
    assert local < whole - 0.5  # two candidates instead of sixteen: an easier game


def test_temperature_is_clipped_and_comes_back():
    losses = [contrastive(U, V, jnp.float32(s))[0] for s in (MAX_LOG_SCALE, 7.0, 50.0)]
    np.testing.assert_array_equal(losses[0], losses[1])
    np.testing.assert_array_equal(losses[0], losses[2])
    gradient = jax.grad(lambda s, sign: sign * clip_log_scale(s))
    assert gradient(4.0, 1.0) == 1 and gradient(4.0, -1.0) == -1
    assert gradient(7.0, -1.0) == 0  # descent would raise it further
    assert gradient(7.0, 1.0) == 1  # descent leads back
    assert contrastive(U, V, jnp.float32(4.0))[0].mean() != losses[0].mean()


def test_permuting_examples_permutes_losses():
    order = np.random.RandomState(3).permutation(16)
    losses, found = contrastive(U, V, 2.0)
    permuted, permuted_found = contrastive(U[order], V[order], 2.0)
    np.testing.assert_allclose(permuted, losses[order], rtol=1e-5)
    chex.assert_trees_all_equal(permuted_found, jax.tree.map(lambda x: x[order], found))
    np.testing.assert_allclose(contrastive(V, U, 2.0)[0], losses, rtol=1e-5)  # symmetric
    assert np.abs(contrastive(U[order], V, 2.0)[0].mean() - losses.mean()) > 1e-3  # pairs matter


def test_padding_rows_are_nobodys_negatives():
    valid = np.arange(16) < 11
    losses, _ = contrastive(U, V, 2.0, jnp.asarray(valid))
    np.testing.assert_allclose(losses[:11], contrastive(U[:11], V[:11], 2.0)[0], rtol=1e-5)
    np.testing.assert_array_equal(losses[11:], 0)
    gradient = jax.grad(lambda u: contrastive(u, V, 2.0, jnp.asarray(valid))[0].sum())(jnp.asarray(U))
    assert np.isfinite(gradient).all() and not gradient[11:].any()


def test_found_says_who_ranks_first():
    u = jnp.eye(4)
    _, found = contrastive(u, u[jnp.array([0, 1, 3, 2])], 1.0)
    np.testing.assert_array_equal(found['image_to_text'], [True, True, False, False])
    np.testing.assert_array_equal(found['text_to_image'], [True, True, False, False])


def test_hard_negatives_are_more_texts_for_the_images_alone():
    w, scale = unit(2), 2.0
    u, v, w64 = (x.astype(np.float64) for x in (U, V, w))
    texts, images = np.exp(np.exp(scale) * u @ np.concatenate([v, w64]).T), np.exp(np.exp(scale) * v @ u.T)
    own = np.exp(np.exp(scale) * (u * v).sum(1))
    losses, found = contrastive(U, V, scale, negatives=w)
    np.testing.assert_allclose(losses, -(np.log(own / texts.sum(1)) + np.log(own / images.sum(1))) / 2, rtol=2e-5)
    np.testing.assert_array_equal(found['hard_negative'], (u * v).sum(1) > (u * w64).sum(1))
    assert 0 < found['hard_negative'].sum() < 16
    plain, plain_found = contrastive(U, V, scale)
    assert (losses > plain).all() and 'hard_negative' not in plain_found
    chex.assert_trees_all_equal({k: found[k] for k in plain_found}, plain_found)


def test_negatives_that_count_for_nothing():
    w, some, valid = unit(2), np.arange(16) % 3 > 0, np.arange(16) < 11
    none, found = contrastive(U, V, 2.0, negatives=w, negative_valid=np.zeros(16, bool))
    np.testing.assert_allclose(none, contrastive(U, V, 2.0)[0], rtol=1e-6)
    assert found['hard_negative'].all()  # there is nothing to be below
    other = np.where(some[:, None], w, unit(5))
    losses = contrastive(U, V, 2.0, negatives=w, negative_valid=some)[0]
    np.testing.assert_array_equal(contrastive(U, V, 2.0, negatives=other, negative_valid=some)[0], losses)
    padded = contrastive(U, V, 2.0, valid, w, some)[0]
    np.testing.assert_allclose(padded[:11], contrastive(U[:11], V[:11], 2.0, None, w[:11], some[:11])[0], rtol=1e-5)
    np.testing.assert_array_equal(padded[11:], 0)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r'must both be \[B, D\]'):
        contrastive(U, V[:4], 1.0)
    with pytest.raises(ValueError, match=r'negatives must be \(16, 6\)'):
        contrastive(U, V, 1.0, negatives=V[:4])
