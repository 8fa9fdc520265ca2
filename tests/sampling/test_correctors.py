"""Predictors and correctors against plain numpy in float64, and by their stationary moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import diffusion
from gen_jax.diffusion.process import diffusion as g
from gen_jax.rng import Noise, example_keys
from gen_jax.sampling import (
    annealed_langevin,
    chain,
    ddpm,
    euler_maruyama,
    grid,
    langevin,
    ncsn,
    no_predictor,
    prior,
    repeat,
    reverse_diffusion,
    sample,
)
from gen_jax.types import Point
from tests.oracles import Playback, PurposePlayback, gaussian, gaussian_mixture
from tests.sampling.test_singlestep import PROCESSES, SPANS, degenerate, measure, one_of, switched
from tests.sampling.test_stochastic import MAX_STEPS, check, exact, levels, units, x64  # noqa: F401

ONE = gaussian(dim=3)
INNER = 2


class Nested:
    """Noise of a chain of a repeated sampler: table [N, INNER, B, D], read at (row, place in the chain, repetition)."""

    def __init__(self, table, path=()):
        self.table, self.path = table, path

    def at(self, i):
        return Nested(self.table, (*self.path, i))

    def normal(self, purpose, x):
        row, _, k = self.path
        return self.table[row, k]


def rate(name, t):
    """(f, g^2) of the forward SDE, by hand: Song et al. 2021, Eq. 30-32; EDM; flow; the angle of `cosine`."""
    beta = 0.1 + 19.9 * t
    alpha4 = np.exp(-2 * (0.1 * t + 19.9 * t * t / 2))  # exp(-2 int beta)
    start, stop = np.arctan(np.exp(-10.0)), np.pi / 2 - np.arctan(np.exp(-10.0))
    angle, speed = start + t * (stop - start), stop - start
    return {'vp': (-beta / 2, beta), 'sub_vp': (-beta / 2, beta * (1 - alpha4)),
            've': (0.0, 2 * np.log(200.0) * (0.05 * 200.0 ** t) ** 2), 'edm': (0.0, 2 * t),
            'flow': (-1 / max(1 - t, 1e-9), 2 * t / max(1 - t, 1e-9)),
            'cosine': (-speed * np.tan(angle), 2 * speed * np.tan(angle))}[name]


def by_hand(name, kind, rows, x, z, process):
    t, a, s = (np.asarray(v, np.float64) for v in (rows.t, rows.alpha, rows.sigma))
    last = int(rows.last[0])
    for i in range(last):
        x0, eps = exact(x, a[i], s[i])
        score = -eps / s[i]
        scale = a[i] / a[i + 1]
        g2 = s[i] ** 2 - scale ** 2 * s[i + 1] ** 2  # of q(x_t | x_s)
        half = 0.5 if name.endswith('flow') else 1.0
        noise = 0.0 if half == 0.5 or i == last - 1 else z[i]
        if name.startswith('reverse'):
            x = x - (scale - 1) * x + half * g2 * score + np.sqrt(g2) * noise
        elif name.startswith('euler') and a[i] == 0:
            to = np.sqrt(s[i + 1] ** 2 - g2 * s[i + 1] ** 2) if half == 1 else s[i + 1]
            x = a[i + 1] * x0 + to * eps + s[i + 1] * noise
        elif name.startswith('euler'):
            f, g2 = rate(kind, t[i])
            x = x - (f * x - half * g2 * score) * (t[i] - t[i + 1]) + np.sqrt(g2 * (t[i] - t[i + 1])) * noise
        elif name == 'song_vp':  # ancestral sampling, Eq. 4
            beta = 1 - scale ** 2
            x = (x + beta * score) / np.sqrt(1 - beta) + np.sqrt(beta) * noise
        else:  # song_ve: Eq. 47
            x = x + (s[i] ** 2 - s[i + 1] ** 2) * score
            x = x + np.sqrt(s[i + 1] ** 2 * (s[i] ** 2 - s[i + 1] ** 2) / s[i] ** 2) * z[i]
    return x


def test_predictors_follow_the_exact_recursion(x64):  # noqa: F811
    x_T, tables = units()
    names = ('reverse_diffusion', 'reverse_diffusion_flow', 'euler_maruyama', 'euler_maruyama_flow')

    @jax.jit
    def run(kind, which, rows):
        process = switched(kind)
        every = [reverse_diffusion(), reverse_diffusion(True), euler_maruyama(process), euler_maruyama(process, True)]
        noise = PurposePlayback({p: jnp.asarray(t) for p, t in tables.items()})
        return sample(noise, ONE.denoise, one_of(which, every), jnp.asarray(x_T), rows).x

    for kind, (label, process) in enumerate(PROCESSES.items()):
        for steps in (3, 8):
            for which, name in enumerate(names):
                if label == 'zero_snr' and name.startswith('euler'):
                    continue  # the derivative of a table is its interpolation's: see test_the_derivative_of_a_table
                rows = levels(process, steps)
                theirs = by_hand(name, label, rows, x_T, tables['z'], process)
                check(run(kind, which, rows), theirs, (label, name, steps))


def test_the_derivative_of_a_table(x64):  # noqa: F811
    """g^2 is beta_t at index t, and Euler-Maruyama step by step on 1,000 betas comes close to ancestral sampling."""
    table, betas = diffusion.discrete_ddpm(), np.linspace(1e-4, 0.02, 1000)
    t = jnp.arange(20.0, 1000.0)
    np.testing.assert_allclose(jax.vmap(lambda t: g(table, t) ** 2)(t), betas[20:], rtol=0.05)
    rows = grid(table, 1000, dtype=np.float64)
    noise = PurposePlayback({'z': jnp.asarray(np.random.default_rng(0).standard_normal((1000, 4, 3)))})
    x = jnp.asarray(np.random.default_rng(1).standard_normal((4, 3)))
    run = jax.jit(lambda: [sample(noise, ONE.denoise, s, x, rows).x for s in (euler_maruyama(table),
                                                                              ddpm('fixed_large'))])
    a, b = run()
    assert np.abs(a - b).max() < 0.02, np.abs(a - b).max()


def test_ancestral_sampling_is_ddpm(x64):  # noqa: F811
    """Song et al. 2021, Eq. 4 (VP) is the large variance and Eq. 47 (VE) the small one."""
    x_T, tables = units()
    noise = PurposePlayback({p: jnp.asarray(t) for p, t in tables.items()})
    for label, name, variance in (('vp', 'song_vp', 'fixed_large'), ('ve', 'song_ve', 'fixed_small')):
        rows = levels(PROCESSES[label])
        run = jax.jit(lambda rows, v=variance: sample(noise, ONE.denoise, ddpm(v), jnp.asarray(x_T), rows).x)
        check(run(rows), by_hand(name, label, rows, x_T, tables['z'], PROCESSES[label]), label)


def test_probability_flow_has_order_one():
    with jax.enable_x64(True):
        run = jax.jit(lambda kind, which, x, rows: sample(Playback(None), ONE.denoise, one_of(
            which, [reverse_diffusion(True), euler_maruyama(switched(kind), True)]), x, rows).x)
        for kind, name in enumerate(SPANS):
            for which in (0, 1):
                measure(lambda x, rows, k=kind, w=which: run(k, w, x, rows), PROCESSES[name], SPANS[name], 1,
                        (name, which), finest=768)


@pytest.mark.parametrize('denoise_last', [False, True])
def test_annealed_langevin_is_algorithm_1_of_ncsn(x64, denoise_last):  # noqa: F811
    """x + a/2 score + sqrt(a) z with a = eps sigma_i^2 / sigma_L^2, T times per level, in float64."""
    rng = np.random.default_rng(0)
    x = x_T = rng.standard_normal((4, 3))
    table = rng.standard_normal((MAX_STEPS, INNER, 4, 3))
    rows = levels(PROCESSES['ve'])
    run = jax.jit(lambda eps, least: sample(Nested(jnp.asarray(table)), ONE.denoise, ncsn(
        INNER, eps, least, denoise_last), jnp.asarray(x_T), rows).x)
    ours = run(0.01, 0.1)
    for i in range(MAX_STEPS):
        a = 0.01 * rows.sigma[i] ** 2 / 0.1 ** 2
        for k in range(INNER):
            x = x - a / 2 * exact(x, 1.0, rows.sigma[i])[1] / rows.sigma[i] + np.sqrt(a) * table[i, k]
    if denoise_last:
        x0, eps = exact(x, 1.0, rows.sigma[MAX_STEPS - 1])
        x = x0 + rows.sigma[MAX_STEPS] * eps
    np.testing.assert_allclose(ours, x, atol=1e-9)


def test_langevin_is_algorithm_4():
    """e = 2 (snr |z| / |score|)^2, with the norms of each example or their means over the batch."""
    rng = np.random.default_rng(0)
    x, z = rng.standard_normal((2, 4, 3)).astype(np.float32)
    rows = jax.tree.map(lambda a: jnp.asarray(a[2]), grid(PROCESSES['vp'], 5))
    for per_example in (True, False):
        step = langevin(0.2, per_example).step
        point = step(PurposePlayback({'z': z[None]}, 0), lambda x, level: ONE.denoise(x, level),
                     Point(jnp.asarray(x), rows), None, ())[0]
        score = -exact(x, float(rows.alpha), float(rows.sigma))[1] / float(rows.sigma)
        norms = [np.linalg.norm(v, axis=1, keepdims=True) for v in (z, score)]
        z_norm, s_norm = norms if per_example else (n.mean() for n in norms)
        e = 2 * (0.2 * z_norm / s_norm) ** 2
        np.testing.assert_allclose(point.x, x + e * score + np.sqrt(2 * e) * z, atol=1e-5)
        assert point.level is rows


def moments_within(x, mixture, errors=5.0, bias=0.0):
    """Mean and covariance within so many standard errors, and `bias` of the standard deviations."""
    mean, cov = mixture.moments()
    away, n = np.asarray(x, np.float64) - mean, len(x)
    std = np.sqrt(np.diag(cov))
    assert np.all(np.abs(away.mean(0)) < errors * std / np.sqrt(n) + bias * std)
    products = np.einsum('ni,nj->nij', away, away)
    error = errors * products.std(0) / np.sqrt(n) + bias * np.outer(std, std)
    assert np.all(np.abs(products.mean(0) - cov) < error), np.abs((products.mean(0) - cov) / error).max()


def test_langevin_and_ancestral_land_on_the_moments():
    """Predictor-corrector in 12 dimensions; Langevin's own bias shrinks with snr."""
    data, ve = gaussian(12), diffusion.ve(0.01, 10.0)
    n, rows = 1000, grid(ve, 30, 'uniform_t')
    pc = chain(repeat(langevin(0.08), 5), ddpm())
    run = jax.jit(lambda noise: sample(noise, data.denoise, pc, prior(noise, (n, 12), rows), rows).x)
    moments_within(run(Noise(example_keys(1, np.arange(n)))), data, bias=0.06)


def test_langevin_is_stationary_at_the_marginal():
    """From a single point, 400 steps at one level of VE, with the norms averaged over the batch.

    With the norms of each example the step size depends on where the point is (which weights the stationary density
    with |score|^2) and on its noise: each multiplies the variance by (D + 2) / D on an isotropic Gaussian.
    """
    data, n, dim = gaussian(12), 1000, 12
    level = jax.tree.map(lambda a: jnp.asarray(a[0]), grid(diffusion.ve(0.01, 1.0), 2, 'uniform_t'))
    run = jax.jit(lambda noise: [repeat(langevin(0.1, per_example), 400).step(
        noise, data.denoise, Point(jnp.zeros((n, dim)), level), level, ())[0].x for per_example in (False, True)])
    averaged, alone = run(Noise(example_keys(1, np.arange(n))))
    marginal = data._replace(values=data.values + 1.0)
    moments_within(averaged, marginal, bias=0.03)
    spread = np.var((np.asarray(alone) - marginal.means[0]) @ data.vectors[0], axis=0) / marginal.values[0]
    np.testing.assert_allclose(spread.mean(), (1 + 2 / dim) ** 2, atol=5 * np.sqrt(2 / (n * dim)))


def test_moments_of_a_mixture():
    """Two components on VE, 1,000 steps of reverse diffusion, five standard errors."""
    mixture, ve = gaussian_mixture(2, 2, seed=3), diffusion.ve(0.01, 20.0)
    n, rows = 2000, grid(ve, 1000, 'uniform_t')
    noise = Noise(example_keys(5, np.arange(n)))
    x = jax.jit(lambda noise: sample(noise, mixture.denoise, reverse_diffusion(), prior(noise, (n, 2), rows), rows).x)
    moments_within(x(noise), mixture)


def test_degenerate_steps_are_finite():
    vp = PROCESSES['vp']
    every = [reverse_diffusion(), reverse_diffusion(True), euler_maruyama(vp), euler_maruyama(vp, True),
             chain(langevin(), ddpm()), chain(annealed_langevin(1e-9), ddpm()), chain(no_predictor(True), langevin())]
    noise = PurposePlayback({'z': jnp.ones((1, 2, 3))})
    run = jax.jit(lambda which, x, rows: sample(noise, ONE.denoise, one_of(which, every), x, rows).x)
    for which in (0, 1):
        degenerate(lambda x, rows, w=which: run(w, x, rows))
    x = jnp.asarray([[0.3, -1.0, 2.0], [1.0, 0.0, 0.5]])
    for which in range(2, len(every)):
        for name in ('flow', 'vp'):  # from pure noise to the data in one step
            assert np.isfinite(run(which, x, grid(PROCESSES[name], 1))).all()
    still = langevin().step(noise.at(0), ONE.denoise, Point(
        x, jax.tree.map(lambda a: jnp.asarray(a[-1]), grid(vp, 1))), None, ())[0]
    np.testing.assert_array_equal(still.x, x)


@pytest.mark.parametrize('call, match', [
    (lambda: langevin(0.0), 'snr.*0'), (lambda: annealed_langevin(-1.0), 'eps.*-1'),
    (lambda: annealed_langevin(sigma_min=0.0), 'sigma_min'), (lambda: ncsn(0), 'n must')])
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
