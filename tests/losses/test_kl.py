import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.losses.kl import gaussian_kl, standard_normal_kl

RNG = np.random.RandomState(0)
MEAN, LOG_VAR = RNG.normal(size=(3, 2, 2)), RNG.normal(size=(3, 2, 2))


def log_normal(x, mean, log_var):
    return -0.5 * ((x - mean) ** 2 / np.exp(log_var) + log_var + np.log(2 * np.pi))


def test_monte_carlo():
    """E_q[log q - log p] by drawing from q, in numpy, within five standard errors."""
    z = MEAN + np.exp(0.5 * LOG_VAR) * RNG.normal(size=(20000, *MEAN.shape))
    draws = (log_normal(z, MEAN, LOG_VAR) - log_normal(z, 0.0, 0.0)).sum((2, 3))
    error = np.abs(draws.mean(0) - standard_normal_kl(jnp.asarray(MEAN), jnp.asarray(LOG_VAR)))
    assert (error < 5 * draws.std(0) / np.sqrt(len(draws))).all()


def test_closed_form():
    expected = 0.5 * (MEAN ** 2 + np.exp(LOG_VAR) - LOG_VAR - 1).sum((1, 2))
    got = standard_normal_kl(jnp.asarray(MEAN), jnp.asarray(LOG_VAR))
    assert got.shape == (3,) and got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    np.testing.assert_allclose(standard_normal_kl(jnp.full((1, 2), 3.0), jnp.zeros((1, 2))), [9.0])


def test_zero_at_the_prior_and_exact_near_it():
    zero = jnp.zeros((1, 4))
    assert standard_normal_kl(zero, zero)[0] == 0
    np.testing.assert_allclose(standard_normal_kl(zero, zero + 1e-3), [4 * 0.25e-6], rtol=1e-2)
    gradient = jax.grad(lambda m, v: standard_normal_kl(m, v).sum(), (0, 1))(zero, zero)
    assert all((g == 0).all() for g in gradient)


def test_between_gaussians():
    other, other_var = jnp.asarray(RNG.normal(size=(3, 2, 2))), jnp.asarray(RNG.normal(size=(3, 2, 2)))
    q = jnp.asarray(MEAN), jnp.asarray(LOG_VAR)
    ratio = np.exp(LOG_VAR - other_var)
    expected = 0.5 * (ratio - 1 - np.log(ratio) + (MEAN - other) ** 2 / np.exp(other_var)).sum((1, 2))
    np.testing.assert_allclose(gaussian_kl(*q, other, other_var), expected, rtol=1e-5)
    np.testing.assert_allclose(gaussian_kl(*q, *map(jnp.zeros_like, q)), standard_normal_kl(*q), rtol=1e-6)
    np.testing.assert_allclose(gaussian_kl(*q, *q), np.zeros(3), atol=1e-6)
