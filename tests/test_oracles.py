"""The oracle itself, against numerical truth: quadrature, autodiff, Tweedie and Monte Carlo."""

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.types import Level
from tests.oracles import gaussian, gaussian_mixture


def test_density_integrates_to_one_and_score_is_its_gradient():
    mixture = gaussian_mixture()
    side = np.linspace(-9, 9, 181)
    points = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    with jax.enable_x64(True):
        x = jnp.asarray(points)
        log_density, score = jax.jit(mixture.log_density), jax.jit(mixture.score)
        gradient = jax.jit(jax.grad(lambda x, alpha, sigma: mixture.log_density(x, alpha, sigma).sum()))
        for alpha, sigma in ((1.0, 0.0), (0.7, 0.6), (0.0, 1.0)):
            total = jnp.exp(log_density(x, alpha, sigma)).sum() * 0.1 ** 2
            np.testing.assert_allclose(total, 1.0, rtol=1e-6)
            np.testing.assert_allclose(score(x[::997], alpha, sigma), gradient(x[::997], alpha, sigma), rtol=1e-9,
                                       atol=1e-9)


def test_denoiser_is_the_posterior_mean():
    mixture = gaussian_mixture(dim=3)
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(1).standard_normal((6, 3)))
        for alpha, sigma in ((0.8, 0.6), (0.1, 2.0), (1.0, 0.05)):
            d = mixture.denoised(x, alpha, sigma)
            np.testing.assert_allclose(alpha * d.x0 + sigma * d.eps, x, atol=1e-9)
            np.testing.assert_allclose(d.eps, -sigma * mixture.score(x, alpha, sigma), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(mixture.denoised(x, 1.0, 0.0).x0, x, atol=1e-12)
        np.testing.assert_allclose(mixture.denoised(x, 0.0, 1.0).x0, np.broadcast_to(mixture.moments()[0], (6, 3)))


def test_samples_have_the_moments():
    mixture = gaussian_mixture(dim=3)
    x = mixture.sample(40_000)
    mean, cov = mixture.moments()
    np.testing.assert_allclose(x.mean(0), mean, atol=5 * np.sqrt(cov.max() / len(x)))
    np.testing.assert_allclose(np.cov(x.T), cov, atol=5 * 2 * cov.max() / np.sqrt(len(x)))


def test_flow_carries_the_marginal():
    one = gaussian()
    start, stop = (Level(0.0, np.float32(a), np.float32(s), 0, 0) for a, s in ((0.0, 1.0), (1.0, 0.0)))
    z = np.eye(3, dtype=np.float32)
    x = np.asarray(one.flow(jnp.asarray(np.concatenate([z, 0 * z[:1]])), start, stop))
    columns = x[:3] - x[3]
    np.testing.assert_allclose(columns.T @ columns, one.cov[0], atol=1e-6)
    np.testing.assert_allclose(x[3], one.means[0], atol=1e-6)
