"""The variational bound: parity with the published program, and the entropy of exact Gaussians."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_ndtr

from gen_jax import diffusion
from gen_jax.diffusion import guidance, parameterisation
from gen_jax.diffusion.posterior import interpolate_log_var, posterior
from gen_jax.diffusion.process import half_log_snr, level_at
from gen_jax.diffusion.vlb import VARIANCES, continuous_vlb, discretised_gaussian_log_prob, vlb
from gen_jax.sampling import grid
from gen_jax.types import Level
from tests.oracles import Playback, gaussian

GOLDEN = Path(__file__).parents[1] / 'golden' / 'vlb.npz'
T = 20
ONE = gaussian(dim=3)
ENTROPY = 0.5 * np.linalg.slogdet(2 * np.pi * np.e * ONE.cov[0])[1] / 3 / np.log(2)  # bits per dimension


@pytest.fixture(scope='module')
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


def outputs(golden, mean):
    """What the golden script's network returned: [T, B, H, W, 2 C] by t."""
    half = golden['noise'] if mean == 'eps' else golden['x0']
    c = golden['x0'].shape[-1]
    prediction = half + np.float32(0.3 if mean == 'eps' else 0.02) * golden['raw'][..., :c]
    return jnp.asarray(np.concatenate([prediction, golden['raw'][..., c:]], axis=-1), jnp.float32)


def test_parity_with_the_published_program(golden):
    """calc_bpd_loop of guided-diffusion, over its variances, targets, tables and clipping.

    As published its tanh in place of the normal distribution function moves the total by 2e-4 to 4e-4 bits.
    """
    settings, x0 = json.loads(str(golden['settings'])), jnp.asarray(golden['x0'])
    noise, raw = Playback(jnp.asarray(golden['noise'][::-1])), {m: outputs(golden, m) for m in ('eps', 'x0')}
    label = diffusion.discrete(golden['betas/linear'])

    @jax.jit
    def run(rows, limit, predicts_x0):
        def denoise(x, level, cond):
            both = [parameterisation.learned_range(getattr(parameterisation, m)()).denoiser(
                lambda *_, m=m: raw[m][T - 1 - level.index], label)(x, level, cond) for m in ('eps', 'x0')]
            return jax.tree.map(lambda a, b: jnp.where(predicts_x0, b, a), *both)

        return {v: vlb(noise, guidance.clip_x0(limit)(denoise), x0, rows, variance=v, prior_std=1.0)
                for v in VARIANCES}

    for i, s in enumerate(settings):
        rows = grid(diffusion.discrete(golden[f'betas/{s["schedule"]}']), T)
        ours = run(rows, 1.0 if s['clip'] else np.inf, s['mean'] == 'x0')[s['variance']]
        np.testing.assert_allclose(ours.terms, golden['terms'][i], rtol=5e-5, atol=2e-6, err_msg=str(s))
        np.testing.assert_allclose(ours.prior, golden['prior'][i], atol=1e-6)
        np.testing.assert_allclose(ours.total, golden['total'][i], rtol=2e-5, err_msg=str(s))
        gap = np.abs(ours.total - golden['total32'][i]).max()
        assert 1e-4 < gap < 5e-4, (s, gap)


def cubature():
    """(x0, eps) [12, 3] whose plain mean integrates every quadratic over x0 ~ data and eps ~ N(0, I) exactly."""
    points = np.concatenate([np.eye(6), -np.eye(6)]) * np.sqrt(6)
    root = ONE.vectors[0] * np.sqrt(ONE.values[0])
    return ONE.means[0] + points[:, :3] @ root.T, points[:, 3:]


def best_weights(rows):
    """[N, 3]: what a perfect network returns for the variance, so that it is that of q(x_s | x_t) pixel by pixel."""
    c, weights = ONE.cov[0], []
    for i in range(len(rows.t) - 1):
        a, s, a1, s1 = (float(v) for v in (rows.alpha[i], rows.sigma[i], rows.alpha[i + 1], rows.sigma[i + 1]))
        forward = s ** 2 - (a / a1) ** 2 * s1 ** 2
        small = forward * s1 ** 2 / s ** 2
        left = np.diag(c - a ** 2 * c @ np.linalg.solve(a ** 2 * c + s ** 2 * np.eye(3), c))  # Var x0 given x_t
        best = small + (a1 * forward / s ** 2) ** 2 * left
        if s1 == 0:
            above = rows.sigma[i - 1] ** 2 - (rows.alpha[i - 1] / a) ** 2 * s ** 2
            small = above * s ** 2 / rows.sigma[i - 1] ** 2
        weights.append(np.log(best / small) / np.log(forward / small))
    return np.stack(weights)


def test_the_bound_of_an_exact_denoiser_tends_to_the_entropy():
    """Expectations are exact (no draws). With the best variances the gap falls like 1 / T: 0.119, 0.033, 0.0084, 0.0021
    bits. The fixed ones approach constants above: the large one loses the width of the decoder, which is half of what
    it should be, 0.5 (1 - log 2) nats, and the small one also 0.5 sum_i (1/i - log(1 + 1/i)) = gamma / 2.
    """
    x0, eps = cubature()
    gaps = {v: [] for v in VARIANCES}
    lengths = (50, 200, 800, 3200)
    with jax.enable_x64(True):
        @jax.jit
        def run(rows, weights):
            def denoise(x, level, cond):
                return ONE.denoise(x, level)._replace(log_var=jnp.broadcast_to(weights[level.index], x.shape))

            noise = Playback(jnp.broadcast_to(eps, (lengths[-1], *eps.shape)))
            return {v: vlb(noise, denoise, x0, rows, variance=v, levels=None).total.mean() for v in VARIANCES}

        for n in lengths:
            process = diffusion.discrete(np.linspace(5, 15, n) / n)
            rows = grid(process, n, max_steps=lengths[-1], dtype=np.float64)
            real = jax.tree.map(lambda a, n=n: a[:n + 1], rows)
            weights = np.zeros((lengths[-1], 3))
            weights[:n] = best_weights(real)
            for v, total in run(rows, weights).items():
                gaps[v].append(float(total) - ENTROPY)
    gaps = {v: np.array(g) for v, g in gaps.items()}
    limits = {'learned': 0.0, 'fixed_large': 0.5 * (1 - np.log(2)) / np.log(2),
              'fixed_small': 0.5 * (1 - np.log(2) + np.euler_gamma) / np.log(2)}
    for v, limit in limits.items():
        away = np.abs(gaps[v] - limit)
        assert np.all(gaps[v] > 0), (v, gaps[v])  # a bound
        learned = v == 'learned'
        assert np.all((away[1:] < (0.3 if learned else 0.6) * away[:-1])[0 if learned else 1:]), (v, away)  # the trend
        assert away[-1] < (3e-3 if learned else 0.07), (v, away)


@pytest.mark.parametrize('process', [diffusion.cosine(13.0, -13.0), diffusion.vp(t_min=1e-4)], ids=['cosine', 'vp'])
def test_the_continuous_bound_is_the_entropy(process):
    """Times at even log SNR, weighted by dt: the integral over t by the midpoint rule, the rest by cubature."""
    x0, eps = cubature()
    with jax.enable_x64(True):
        lams = np.linspace(half_log_snr(process, process.t_min), half_log_snr(process, process.t_max), 401)
        middle = jnp.asarray(process.inverse(0.5 * (lams[1:] + lams[:-1])))
        slope = jax.vmap(jax.grad(lambda t: half_log_snr(process, t)))(middle)
        weight = np.diff(lams) / slope / (process.t_max - process.t_min)  # sums to 1

        class Both(Playback):
            def normal(self, purpose, x):
                return eps

        bound = jax.jit(jax.vmap(lambda t: continuous_vlb(
            Both(None), ONE.denoise, process, x0, jnp.full(12, t), levels=None).terms.mean(1)))(middle)
        prior = continuous_vlb(Both(None), ONE.denoise, process, x0, jnp.full(12, 0.5), levels=None).prior.mean()
    bound, weight = np.asarray(bound), np.asarray(weight)
    np.testing.assert_allclose(weight.sum(), 1, atol=1e-3)
    total = weight @ bound[:, 0] + bound[0, 1] + float(prior)
    assert abs(total - ENTROPY) < 2e-3, (total, ENTROPY)


def test_the_decoder():
    """Sums to 1, agrees with float64, and is finite with finite gradients far out in the tails."""
    grey = np.linspace(-1, 1, 17)
    for mean, log_var in ((0.3, -12.0), (-0.9, -6.0), (0.99, -1.0), (0.0, 4.0)):
        got = discretised_gaussian_log_prob(jnp.asarray(grey, jnp.float32), mean, log_var, 17)
        upper, lower = ((grey - mean + end) / np.exp(log_var / 2) for end in (1 / 16, -1 / 16))
        upper[-1], lower[0] = np.inf, -np.inf
        high, low = np.where(upper + lower > 0, -lower, upper), np.where(upper + lower > 0, -upper, lower)
        want = log_ndtr(high) + np.log(-np.expm1(log_ndtr(low) - log_ndtr(high)))
        np.testing.assert_allclose(got, want, rtol=5e-5, atol=2e-6)
        np.testing.assert_allclose(np.exp(got).sum(), 1, rtol=1e-5)
    total = lambda m, v: discretised_gaussian_log_prob(jnp.asarray(grey), m, v).sum()  # noqa: E731
    for log_var in (-40.0, -9.0, 10.0):
        value, grads = jax.value_and_grad(total, (0, 1))(jnp.float32(0.2), jnp.float32(log_var))
        assert np.isfinite(value) and np.isfinite(grads).all(), log_var


def test_posterior_is_finite_at_every_pair_of_levels():
    def level(alpha, sigma):
        return Level(*map(jnp.float32, (0.0, alpha, sigma)), jnp.int32(0), jnp.int32(0))

    data, middle, noise = level(1, 0), level(0.6, 0.8), level(0, 1)
    low = level(0.8, 0.6)
    for t, s in ((noise, data), (noise, middle), (middle, data), (data, data), (noise, noise), (middle, middle)):
        for above in (None, noise, t):
            assert np.isfinite(posterior(t, s, above)).all(), (t, s, above)
    p = posterior(middle, low)  # by Bayes' rule: 1 / var = 1 / sigma_s^2 + (a_t / a_s)^2 / forward
    forward = 0.64 - 0.75 ** 2 * 0.36
    var = 1 / (1 / 0.36 + 0.75 ** 2 / forward)
    want = (0.8 * var / 0.36, 0.75 * var / forward, np.log(var), np.log(forward))
    np.testing.assert_allclose(p, want, rtol=1e-5)
    np.testing.assert_allclose(interpolate_log_var(p, jnp.array([0.0, 1.0])), want[2:], rtol=1e-5)
    assert posterior(noise, data).c_x == 0 and posterior(middle, data).c_x0 == 1
    np.testing.assert_allclose(posterior(low, data, middle).log_var_small, want[2], rtol=1e-5)


def run_vlb(rows, **options):
    return vlb(Playback(jnp.zeros((T, 2, 3))), ONE.denoise, jnp.zeros((2, 3)), rows, **options)


def test_a_shorter_chain_and_its_padding():
    """Any rows of a table are a chain; what is behind `last` adds nothing."""
    process = diffusion.discrete_ddpm('squaredcos_cap_v2', steps=100)
    short, padded = run_vlb(grid(process, 8)), run_vlb(grid(process, 8, max_steps=T))
    np.testing.assert_allclose(short.total, padded.total, rtol=1e-6)
    assert (np.asarray(padded.terms)[8:] == 0).all() and (np.asarray(padded.terms)[:8] > 0).all()


@pytest.mark.parametrize('call, match', [
    (lambda: run_vlb(grid(diffusion.discrete_ddpm(), 4), variance='large'), "'large'.*fixed_small"),
    (lambda: run_vlb(grid(diffusion.discrete_ddpm(), 4), variance='learned'), 'learned_range'),
    (lambda: run_vlb(grid(diffusion.vp(), 4, 'uniform_t', t_end=0.1)), 'last row.*sigma = 0.*0.2'),
    (lambda: run_vlb(grid(diffusion.discrete_ddpm(), 4), levels=1), 'levels.*1'),
    (lambda: continuous_vlb(None, ONE.denoise, diffusion.discrete_ddpm(), jnp.zeros((2, 3)), jnp.zeros(2)), 'table'),
])
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_levels_of_a_table_reach_the_bound():
    """vlb walks the rows of a grid: the level that it hands to the denoiser is the table's."""
    process, seen = diffusion.discrete_ddpm(steps=4), []

    def denoise(x, level, cond):
        jax.debug.callback(lambda t: seen.append(float(t)), level.t, ordered=True)
        return ONE.denoise(x, level)

    vlb(Playback(jnp.zeros((4, 2, 3))), denoise, jnp.zeros((2, 3)), grid(process, 4)).total.block_until_ready()
    jax.effects_barrier()
    assert seen == [3, 2, 1, 0]
    assert np.isfinite(level_at(process, jnp.array([0, 3])).sigma).all()
