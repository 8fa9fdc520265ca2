"""Denoising, sliced and explicit score matching are one loss up to a constant, and its optimum is the exact score.

Expectations over a Gaussian x0, the noise and the projections are taken by Gauss-Hermite quadrature, which is exact for
the polynomials that appear here: nothing below has a sampling error.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.diffusion import parameterisation, weighting
from gen_jax.diffusion.loss import denoising_loss
from gen_jax.diffusion.score_matching import sliced_score_matching, sliced_score_objective
from gen_jax.types import Process
from tests.diffusion.test_loss import Named
from tests.oracles import gaussian

ONE, D = gaussian(dim=2), 2
LEVELS = [(0.8, 0.6), (1.0, 0.05), (1.0, 20.0), (0.3, 0.7)]  # VP, the two ends of VE, flow
SIGNS = list(itertools.product((-1.0, 1.0), repeat=D)), [0.25] * 4
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(3)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def product(dim):
    """Quadrature for N(0, I): nodes [3^dim, dim] and weights, exact up to degree 5 in each variable."""
    points = np.array(list(itertools.product(NODES, repeat=dim)))
    return points, np.prod(list(itertools.product(WEIGHTS, repeat=dim)), axis=1)


def quadrature(projections):
    """x0, eps and v [n, 2] with weights [n]."""
    z, w = product(2 * D)
    v, wv = product(D) if projections == 'gaussian' else map(np.array, SIGNS)
    i, j = (a.ravel() for a in np.meshgrid(np.arange(len(z)), np.arange(len(v))))
    x0 = ONE.means[0] + (z[i, :D] * np.sqrt(ONE.values[0])) @ ONE.vectors[0].T
    return x0, z[i, D:], v[j], w[i] * wv[j]


def at(alpha, sigma):
    """A process that stands still at one level, which may be traced."""
    def still(value):
        return lambda t: jnp.full(jnp.shape(t), value)

    return Process(still(alpha), still(sigma), None, 0.0, 1.0)


def expected(make, network, alpha, sigma, projections='rademacher'):
    x0, eps, v, w = (jnp.asarray(a) for a in quadrature(projections))
    loss = make(network, at(alpha, sigma))(x0, jnp.zeros(len(x0)), Named(eps=eps, projection_0=v, projection_1=v), {})
    return jnp.sum(w * loss)


@pytest.mark.parametrize('name', ['eps', 'x0', 'v', 'score', 'flow', 'edm', 'sliced_score', 'sliced_eps'])
def test_the_optimum_is_the_exact_score(name):
    """The gradient is zero at the exact denoiser and at no linear neighbour of it, at every level."""
    sliced, name = name.startswith('sliced_'), name.removeprefix('sliced_')
    p = getattr(parameterisation, name)()

    def loss(theta, alpha, sigma):
        process = at(alpha, sigma)

        def network(x, label, cond):
            return ONE.network(process, p)(x, 0 * label, cond) + x @ theta[0] + theta[1]

        make = sliced_score_matching if sliced else lambda *args: denoising_loss(*args, weighting.snr(name))
        return expected(lambda network, process: make(network, process, p), network, alpha, sigma)

    with jax.enable_x64(True):
        slope = jax.jit(jax.grad(loss))
        for level in LEVELS:
            zero = (jnp.zeros((D, D)), jnp.zeros(D))
            scale = max(float(jnp.abs(g).max()) for g in slope((zero[0] + 0.1, zero[1] - 0.1), *level))
            assert scale > 1e-6
            for g in slope(zero, *level):
                assert np.abs(g).max() < 1e-9 * max(scale, 1.0)


@pytest.mark.parametrize('variance_reduced', [True, False])
@pytest.mark.parametrize('projections', ['rademacher', 'gaussian'])
def test_sliced_is_denoising_is_explicit(projections, variance_reduced):
    """For a score with curvature, sigma^2 E|s - grad log p|^2 / D = sliced + c = denoising - c', c and c' known."""
    rng = np.random.default_rng(1)
    theta = [rng.standard_normal(shape) for shape in ((D, D), (D,), (D, D))]
    p, w2 = parameterisation.score(), weighting.sigma_power(2.0)

    def network(x, label, cond):
        return x @ theta[0] + theta[1] + jnp.square(x) @ theta[2]

    def both(alpha, sigma):
        sliced = expected(lambda *a: sliced_score_matching(*a, p, projections=2, distribution=projections,
                                                           variance_reduced=variance_reduced), network, alpha, sigma,
                          projections)
        x0, eps, _, w = (jnp.asarray(a) for a in quadrature('rademacher'))
        x = alpha * x0 + sigma * eps
        explicit = jnp.sum(w[:, None] * jnp.square(network(x, None, None) - ONE.score(x, alpha, sigma)))
        return sliced, expected(lambda *a: denoising_loss(*a, p, w2), network, alpha, sigma), sigma ** 2 * explicit / D

    with jax.enable_x64(True):
        run = jax.jit(both)
        for alpha, sigma in LEVELS:
            sliced, denoising, explicit = run(alpha, sigma)
            information = np.sum(1 / (alpha ** 2 * ONE.values[0] + sigma ** 2))  # E|grad log p|^2 = tr S^-1
            np.testing.assert_allclose(denoising - 1.0, sliced, rtol=1e-9)  # sigma^2 E|eps / sigma|^2 / D = 1
            np.testing.assert_allclose(explicit, sliced + sigma ** 2 * information / D, rtol=1e-9)


def test_on_clean_samples():
    """Without noise: the sliced objective of a Gaussian's own score is -tr C^-1 / D."""
    n = 20_000
    x = jnp.asarray(ONE.sample(n), jnp.float32)
    v = jnp.asarray(np.random.default_rng(3).standard_normal((n, D)), jnp.float32)
    value = jax.jit(lambda x, v: sliced_score_objective(ONE.score, x, Named(projection_0=v)))(x, v)
    assert value.shape == (n,)
    np.testing.assert_allclose(value.mean(), -np.sum(1 / ONE.values[0]) / D, atol=5 * float(value.std()) / np.sqrt(n))


@pytest.mark.parametrize('kwargs, match', [({'distribution': 'sphere'}, "'sphere'.*rademacher"),
                                           ({'projections': 0}, 'projections')])
def test_bad_input(kwargs, match):
    with pytest.raises(ValueError, match=match):
        sliced_score_objective(lambda x: x, jnp.ones((2, 2)), None, **kwargs)
