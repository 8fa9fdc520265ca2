"""The networks of variational diffusion models against the published code; the schedule's shape; every error."""

import functools
from pathlib import Path

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import trees
from gen_jax.models import VDM, vdm_digits, vdm_tiny
from gen_jax.models.vdm import fourier_features
from tests.golden.make_vdm import CASES, COMMON, TIMES, inputs, weight

GOLDEN = np.load(Path(__file__).parents[1] / 'golden' / 'vdm.npz')
X, T = jnp.ones((2, 8, 8, 1)), jnp.array([0.1, 0.9])


def drawn(network, *given):
    """Parameters without a zero layer, and without compiling `init`."""
    shapes = trees.flat(jax.eval_shape(lambda: network.init(jax.random.key(0), *given))['params'])
    return flax.traverse_util.unflatten_dict({k: weight(k, v.shape) for k, v in shapes.items()}, sep='/')


@functools.cache
def reference(name):
    """A case's network, its parameters, and gamma with the predicted noise, compiled."""
    network = VDM(**COMMON, **CASES[name])
    given = inputs()

    @jax.jit
    def run(params):
        gamma = network.apply({'params': params}, TIMES, method='noise_level')
        eps_hat = network.apply({'params': params}, given['eps'], gamma[2:6], given['conditioning'],
                                method='predict_noise')
        return gamma, eps_hat

    return network, drawn(network, jnp.zeros((1, 6, 4, 3)), jnp.zeros(1)), run


def error(outputs, name):
    """The largest error over the reference's largest value, of the worst output."""
    expected = GOLDEN[f'{name}/gamma'], GOLDEN[f'{name}/eps_hat']
    chex.assert_trees_all_equal_shapes_and_dtypes(tuple(map(np.asarray, outputs)), expected)
    return max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(outputs, expected, strict=True))


@pytest.mark.parametrize('name', ['scalar', 'nnet'])
def test_agrees_with_the_published_code(name):
    _, params, run = reference(name)
    assert sorted(trees.flat(params)) == list(GOLDEN[f'{name}/paths'])
    assert error(run(params), name) < 1e-5


@pytest.mark.parametrize(
    'name, path, permute',
    [
        ('scalar', 'score_model/conv_in/kernel', lambda w: w[:, :, ::-1]),
        ('scalar', 'score_model/down.block_0/conv1/kernel', lambda w: w.swapaxes(0, 1)),
        ('scalar', 'score_model/up.block_0/GroupNorm_0/bias', lambda w: w[::-1]),
        ('scalar', 'score_model/up.block_1/nin_shortcut/kernel', lambda w: w[::-1]),
        ('scalar', 'score_model/mid.attn_1/k/kernel', lambda w: w[::-1]),
        ('scalar', 'score_model/dense0/kernel', lambda w: np.roll(w, 1, 0)),
        ('scalar', 'score_model/mid.block_1/cond_proj/kernel', lambda w: w[::-1]),
        ('nnet', 'score_model/down.attn_0/proj_out/kernel', lambda w: w.T),
        ('nnet', 'gamma/l2/bias', lambda w: w[::-1]),
    ],
)
def test_a_permuted_weight_is_noticed(name, path, permute):
    _, params, run = reference(name)
    broken = flax.traverse_util.flatten_dict(params, sep='/')
    broken[path] = permute(broken[path])
    assert error(run(flax.traverse_util.unflatten_dict(broken, sep='/')), name) > 1e-3


@pytest.mark.parametrize('kind', ['learnable_scalar', 'learnable_nnet', 'fixed'])
def test_schedules_only_increase(kind):
    """Whatever the signs of the weights; a fresh one starts and ends where it was told (the perceptron: nearly)."""
    network, t = vdm_tiny(gamma_type=kind), jnp.linspace(0, 1, 101)

    def gamma(m, t):
        return m.noise_level(t)

    fresh = network.init(jax.random.key(0), t, method=gamma)
    for scale in (1.0, -3.0):
        params = jax.tree.map(lambda x, s=scale: s * x, fresh)
        levels = network.apply(params, t, method=gamma)
        assert levels.shape == t.shape and (jnp.diff(levels) > 0).all()
    ends = network.apply(fresh, t, method=gamma)[jnp.array([0, -1])]
    np.testing.assert_allclose(ends, [-8.0, 5.0], atol=0.05 if kind == 'learnable_nnet' else 1e-5)


def test_fourier_features():
    x = np.random.RandomState(0).standard_normal((2, 3, 2)).astype(np.float32)
    y = fourier_features(x, (2, 3))
    assert y.shape == (2, 3, 8)
    np.testing.assert_allclose(y[..., 1], np.sin(2 * np.pi * 8 * x[..., 0]), atol=1e-4)
    np.testing.assert_allclose(y[..., 6], np.cos(2 * np.pi * 4 * x[..., 1]), atol=1e-4)


def test_every_parameter_learns_and_dropout_acts():
    """In bfloat16, which stays inside the network; the schedule's gradient comes through the times."""
    network = vdm_tiny(sm_n_layer=0, sm_pdrop=0.5, dtype=jnp.bfloat16, gamma_type='learnable_nnet')
    params = drawn(network, X, T)

    @jax.jit
    def run(params, key):
        def spread(params):
            y = network.apply({'params': params}, X, T, deterministic=False, rngs={'dropout': key})
            return jnp.square(y - 1).mean(), y

        (_, y), grads = jax.value_and_grad(spread, has_aux=True)(params)
        return y, grads

    (a, grads), (b, _) = (run(params, jax.random.key(i, impl='rbg')) for i in range(2))
    chex.assert_tree_all_finite((a, grads))
    assert a.dtype == jnp.float32 and np.abs(a - b).max() > 0.1 * np.abs(a).max()
    assert not [k for k, g in trees.flat(grads).items() if not g.any() and k != 'gamma/l1/bias']


def test_digits_size():
    for network, low, high in ((vdm_digits(), 0.4e6, 0.7e6), (vdm_tiny(), 1e3, 3e4)):
        shapes = jax.eval_shape(lambda n=network: n.init(jax.random.key(0), X, T))
        assert low < trees.count(shapes) < high


@pytest.mark.parametrize(
    'settings, given, message',
    [
        (dict(gamma_type='cosine'), None, "'cosine'.*learnable_scalar, learnable_nnet, fixed"),
        (dict(gamma_min=5.0), None, 'gamma_min must be below gamma_max, got 5.0 and 5.0'),
        (dict(norm_num_groups=3), (X, T), 'norm_num_groups=3 .* 8 channels at score_model'),
        ({}, (X[0], T), r'z is \(8, 8, 1\).*\[B, H, W, C\]'),
        ({}, (X, jnp.zeros(3)), r'gamma is \(3,\).*\(2,\)'),
        ({}, (X, T, jnp.zeros((2, 1))), r'conditioning is \(2, 1\).*\(2,\)'),
    ],
)
def test_bad_input(settings, given, message):
    with pytest.raises(ValueError, match=message):
        network = vdm_tiny(**settings)
        jax.eval_shape(lambda: network.init(jax.random.key(0), *given))
