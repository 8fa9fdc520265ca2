import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import trees
from gen_jax.models.vae import MLPVAE, vae_digits, vae_tiny

IMAGE = jnp.asarray(np.random.RandomState(0).uniform(-1, 1, (3, 8, 8, 1)), jnp.float32)


def test_digits_size():
    """64-256-256-2x32 and 32-256-256-64x2, with biases."""
    params = jax.eval_shape(vae_digits().init, jax.random.key(0), IMAGE)['params']
    encoder = (64 + 1) * 256 + (256 + 1) * 256 + (256 + 1) * 64
    decoder = (32 + 1) * 256 + (256 + 1) * 256 + (256 + 1) * 128
    assert trees.count(params) == encoder + decoder == 206_016


def test_shapes_and_examples_do_not_meet():
    network = vae_tiny()
    variables = network.init(jax.random.key(0), IMAGE)

    @jax.jit
    def run(x):
        mean, log_var = network.apply(variables, x, method='encode')
        return mean, log_var, *network.apply(variables, mean, method='decode')

    full = run(IMAGE)
    assert [x.shape for x in full] == [(3, 2), (3, 2), (3, 8, 8, 1), (3, 8, 8, 1)]
    for whole, part in zip(full, run(IMAGE[1:2]), strict=True):
        np.testing.assert_allclose(whole[1:2], part, atol=1e-6)


def test_dropout_only_in_training():
    network = vae_tiny(dropout=0.5)
    variables = network.init(jax.random.key(0), IMAGE)

    def mean(train, seed):
        return network.apply(variables, IMAGE, train, method='encode', rngs={'dropout': jax.random.key(seed)})[0]

    np.testing.assert_array_equal(mean(False, 0), mean(False, 1))
    assert not np.allclose(mean(True, 0), mean(True, 1))


def test_another_image_shape_is_refused():
    with pytest.raises(ValueError, match=r'\(4, 4, 3\), got \(8, 8, 1\)'):
        jax.eval_shape(MLPVAE((4, 4, 3)).init, jax.random.key(0), IMAGE)


def test_bfloat16_keeps_parameters_and_outputs_in_float32():
    network = vae_tiny(dtype='bfloat16')
    out, variables = jax.eval_shape(lambda: network.init_with_output(jax.random.key(0), IMAGE))
    assert {x.dtype for x in jax.tree.leaves((out, variables))} == {np.dtype('float32')}
