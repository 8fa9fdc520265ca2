"""log p(x) against exact densities, off the mode; bits/dim by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import diffusion
from gen_jax.diffusion.process import expand, level_at, prior_log_density
from gen_jax.rng import Noise, example_keys
from gen_jax.sampling.adaptive import require_converged, time_range
from gen_jax.sampling.likelihood import _probes, bin_width, bits_per_dim, dequantise, log_likelihood
from tests.oracles import GaussianMixture, Playback, gaussian, gaussian_mixture

# Wide enough that N(0, sigma_T^2) is the law of x_T to 1e-3 nats, and fine enough that x_{t_min} is the data.
PROCESSES = {'vp': diffusion.vp(0.1, 60.0, t_min=1e-8), 've': diffusion.ve(1e-4, 2e4),
             'edm': diffusion.edm(1e-4, 2e4), 'flow': diffusion.flow(), 'cosine': diffusion.cosine(),
             'sub_vp': diffusion.sub_vp(0.1, 60.0)}


def off_the_mode(data, n=8, seed=0):
    """Points one to three standard deviations away from samples, [n, 1, D] like small pictures."""
    x = data.sample(n, seed) + np.random.default_rng(seed).standard_normal((n, data.means.shape[1]))
    return jnp.asarray(x.reshape(n, 1, -1))


@pytest.mark.parametrize('name', PROCESSES)
def test_log_density_is_exact(name):
    """A rotated Gaussian (three times the same, so that one program serves both) and a mixture of three."""
    one = gaussian(dim=3)
    three = GaussianMixture(np.full(3, 1 / 3), *(np.repeat(a, 3, axis=0) for a in one[1:]))
    with jax.enable_x64(True):
        run = jax.jit(lambda data, x: log_likelihood(data.denoise, PROCESSES[name], x, divergence='exact', rtol=1e-7,
                                                     atol=1e-7, max_nfe=5000))
        for data in (three, gaussian_mixture(3, dim=3)):
            x = off_the_mode(data)
            found = run(data, x)
            require_converged(found)
            truth = data.log_density(x)
            assert truth.min() < data.log_density(jnp.asarray(data.means)).max() - 3  # not at the modes only
            np.testing.assert_allclose(found.log_p, truth, atol=1e-3)
            np.testing.assert_allclose(bits_per_dim(found.log_p, 3, None), -truth / 3 / np.log(2), atol=1e-3)
            assert (found.stderr == 0).all()


def test_published_ranges_in_float32():
    """At the ranges of the papers the model is the flow from N(0, sigma_T^2): exact too, given where x_T fell.

    So log p differs from that of the data by log prior(x_T) - log p_T(x_T), and by the blur at t_min.
    """
    data = gaussian_mixture(3, dim=2)
    x = off_the_mode(data).astype(jnp.float32)
    for process in (diffusion.vp(), diffusion.ve()):
        found = jax.jit(lambda x, p=process: log_likelihood(data.denoise, p, x, divergence='exact'))(x)
        require_converged(found)
        low, high = (level_at(process, jnp.float32(t)) for t in time_range(process))
        truth = data.log_density(low.alpha * x, low.alpha, low.sigma) + x[0].size * jnp.log(low.alpha)
        truth = truth - data.log_density(found.x_T, high.alpha, high.sigma) + prior_log_density(process, found.x_T)
        np.testing.assert_allclose(found.log_p, truth, atol=3e-3)


class Probes(Playback):
    """Recorded noise, and signs drawn from it."""

    def at(self, i):
        return Probes(self.table, i)

    def bernoulli(self, purpose, p, shape=()):
        return self.table[self.i] > 0


@pytest.mark.parametrize('divergence', ['rademacher', 'gaussian'])
def test_hutchinson_is_unbiased(divergence):
    """Within three standard errors of the truth, on average over examples much nearer; its own error estimate holds.

    One of 16 would pass 3 standard errors by chance in 4 % of seeds; the draws are recorded.
    """
    data, n, probes = gaussian_mixture(3, dim=4), 16, 100
    x = off_the_mode(data, n).astype(jnp.float32)
    table = jnp.asarray(np.random.default_rng(1).standard_normal((probes, *x.shape)), jnp.float32)
    run = jax.jit(lambda x, table: log_likelihood(data.denoise, PROCESSES['flow'], x, noise=Probes(table),
                                                  divergence=divergence, probes=probes, rtol=1e-4, atol=1e-4))
    found = run(x, table)
    require_converged(found)
    if divergence == 'rademacher':
        np.testing.assert_array_equal(np.unique(_probes(divergence, Probes(table), x, 3)), [-1, 1])
    z = (found.log_p - data.log_density(x)) / found.stderr
    assert np.abs(z).max() < 3, z
    assert abs(z.mean()) < 3 / np.sqrt(n) and 0.6 < z.std() < 1.4, (z.mean(), z.std())
    assert np.median(found.stderr) < 0.6


def test_seeded_through_noise():
    """The library's own source: the same keys give the same answer, and an example keeps its probes in any batch."""
    data = gaussian_mixture(3, dim=2)
    x, keys = off_the_mode(data, 4).astype(jnp.float32), example_keys(5, np.arange(4))
    run = jax.jit(lambda x, keys: log_likelihood(data.denoise, PROCESSES['cosine'], x, noise=Noise(keys), probes=2,
                                                 rtol=1e-3, atol=1e-3))
    a, b = run(x, keys), run(x[::-1], keys[::-1])
    np.testing.assert_allclose(a.log_p, b.log_p[::-1], atol=1e-4)
    assert np.isfinite(a.stderr).all() and (np.abs(a.log_p - data.log_density(x)) > 1e-3).any()


@pytest.mark.parametrize('solver', ['adaptive', 'fixed'])
def test_a_table_and_its_conditions(solver):
    """A discrete table is smooth between its rows, which its own interpolation is not (errors of nats); the condition
    reaches the network."""
    data, process = gaussian(dim=2), diffusion.discrete_ddpm('linear', 1e-3, 0.2, steps=100)
    options = {'rtol': 1e-7, 'atol': 1e-7} if solver == 'adaptive' else {'times': np.arange(100.0)}
    with jax.enable_x64(True):
        x = off_the_mode(data)
        low, high = (level_at(process, jnp.asarray(float(t))) for t in (0, 99))

        def denoise(x, level, cond):  # of the data moved by 'by'
            d = data.denoise(x - expand(level.alpha, x) * cond['by'], level)
            return d._replace(x0=d.x0 + cond['by'])

        found = jax.jit(lambda x: log_likelihood(
            denoise, process, x, {'by': jnp.full((len(x), 1, 1), 0.3)}, divergence='exact', **options,
            prior=lambda x_T: data.log_density(x_T - high.alpha * 0.3, high.alpha, high.sigma)))(x)
        require_converged(found)
        truth = data.log_density(low.alpha * (x - 0.3), low.alpha, low.sigma) + 2 * jnp.log(low.alpha)
    np.testing.assert_allclose(found.log_p, truth, atol=2e-3 if solver == 'adaptive' else 0.02)
    assert (found.nfe == 99 * 4).all() or solver == 'adaptive' and found.nfe.max() < 1000


def test_bits_per_dim_by_hand():
    """A uniform density over [-1, 1] is log2(levels) bits with bins inside; offsets as the papers write them."""
    dims, log_p = 12, jnp.full(3, -12 * np.log(2.0))  # density 1 / 2 per dimension
    np.testing.assert_allclose(bits_per_dim(log_p, dims, 256, inside=True), 8.0, rtol=1e-6)
    np.testing.assert_allclose(bits_per_dim(log_p, dims, 17, inside=True), np.log2(17), rtol=1e-6)
    zero = jnp.zeros(1)
    np.testing.assert_allclose(bits_per_dim(zero, dims, 256, inside=True), 7.0, rtol=1e-6)  # Song et al.: + 7
    np.testing.assert_allclose(bits_per_dim(zero, dims, 256), np.log2(127.5), rtol=1e-6)
    np.testing.assert_allclose(bits_per_dim(zero, dims, 17), 3.0, rtol=1e-6)
    np.testing.assert_allclose(bits_per_dim(zero, dims, None), 0.0)


@pytest.mark.parametrize('inside', [False, True])
def test_dequantised_levels_tile_the_line(inside):
    """Every level fills its own bin, and a density that is constant on bins has its own entropy as bits/dim."""
    levels = 5
    grey = 2 * np.arange(levels) / (levels - 1) - 1

    class Even:
        def uniform(self, purpose, shape):
            return jnp.linspace(0, 0.999, 50)[:, None] + jnp.zeros((50, *shape))

    x = dequantise(Even(), jnp.broadcast_to(jnp.asarray(grey), (50, levels)), levels, inside)
    width = bin_width(levels, inside)
    start = -1.0 if inside else -1.0 - width / 2
    np.testing.assert_array_equal(np.floor((np.asarray(x) - start + 1e-6) / width), np.tile(np.arange(levels), (50, 1)))
    if not inside:
        np.testing.assert_allclose(np.asarray(x).mean(0), grey, atol=1e-3)
    p = np.array([0.1, 0.2, 0.3, 0.25, 0.15])
    log_p = jnp.asarray(np.log(p / width))
    np.testing.assert_allclose(p @ bits_per_dim(log_p, 1, levels, inside), -p @ np.log2(p), rtol=1e-6)


@pytest.mark.parametrize('call, match', [
    (lambda x: log_likelihood(None, PROCESSES['vp'], x, divergence='trace'), "'trace'.*exact"),
    (lambda x: log_likelihood(None, PROCESSES['vp'], x), 'noise'),
    (lambda x: log_likelihood(None, PROCESSES['vp'], x, divergence='exact', probes=0), 'probes.*0'),
    (lambda x: bin_width(1), 'levels.*1')])
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call(jnp.zeros((2, 3)))
