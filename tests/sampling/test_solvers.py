"""Solvers against exact Gaussians: orders of convergence, moments, and identities between them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import diffusion
from gen_jax.rng import Noise, example_keys
from gen_jax.sampling import ddim, ddpm, euler, grid, heun, prior, sample
from gen_jax.types import Level
from tests.oracles import Playback, gaussian

ONE = gaussian(dim=3)
PROCESSES = {'vp': diffusion.vp(), 've': diffusion.ve(0.05, 10.0), 'edm': diffusion.edm(0.05, 10.0),
             'flow': diffusion.flow(), 'cosine': diffusion.cosine(), 'sub_vp': diffusion.sub_vp(),
             'zero_snr': diffusion.discrete_ddpm('scaled_linear', 0.00085, 0.012, zero_terminal_snr=True)}
STEPS = 8


@pytest.mark.parametrize('solver, order', [(euler, 1), (heun, 2), (lambda: heun(straight=True), 2)])
def test_order_of_convergence(solver, order):
    """Distance to the exact probability-flow ODE, between two step counts in float64."""
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3)))
        run = jax.jit(lambda x, rows: sample(Playback(None), ONE.denoise, solver(), x, rows).x)
        for name, span in {'vp': (0.8, 0.1), 've': (1.0, 0.2), 'edm': (10.0, 0.5), 'flow': (0.95, 0.05),
                           'cosine': (0.9, 0.05), 'sub_vp': (0.8, 0.1)}.items():
            errors = []
            for steps in (64, 128):
                rows = grid(PROCESSES[name], steps, 'uniform_t', max_steps=128, t_start=span[0], t_end=span[1],
                            dtype=np.float64)
                ends = [jax.tree.map(lambda a, i=i: a[i], rows) for i in (0, -1)]
                start = x * ends[0].sigma
                errors.append(np.abs(run(start, rows) - ONE.flow(start, *ends)).max())
            slope = np.log2(errors[0] / errors[1])
            assert abs(slope - order) < 0.25, (name, slope)
            assert errors[1] < 0.05, (name, errors)


def recursion(rows, solver, eta=None):
    """Mean [D] and covariance [D, D] of the DISCRETE sampler started from N(0, I), in float64 and textbook form.

    With y = x - alpha m in the eigenbasis of C every step is y -> c y + std z.
    """
    e, m = ONE.values[0], ONE.vectors[0].T @ ONE.means[0]
    a, s = rows.alpha.astype(np.float64), rows.sigma.astype(np.float64)
    mean, var = -a[0] * m, np.ones(3)
    for i in range(int(rows.last[0])):
        at, st, an, sn = a[i], s[i], a[i + 1], s[i + 1]
        x0, eps = at * e / (at ** 2 * e + st ** 2), st / (at ** 2 * e + st ** 2)
        forward = st ** 2 - (at / an) ** 2 * sn ** 2  # variance of x_t given x_s
        posterior = forward * sn ** 2 / st ** 2
        if solver == 'ddim':
            std2 = eta ** 2 * posterior
            c = an * x0 + np.sqrt(sn ** 2 - std2) * eps
        else:
            c = an * forward / st ** 2 * x0 + (at / an) * sn ** 2 / st ** 2
            std2 = {'fixed_small': posterior, 'fixed_large': forward * (i + 1 < rows.last[0])}[solver]
        mean, var = c * mean, c ** 2 * var + std2
    q = ONE.vectors[0]
    return q @ (mean + a[-1] * m), (q * var) @ q.T


@pytest.mark.parametrize('solver', ['fixed_small', 'fixed_large', 'ddim'])
def test_moments_follow_the_exact_recursion(solver):
    """The sampler is affine in (x_T, z_1 .. z_N): feeding it one unit at a time gives its covariance exactly.

    Includes starts at alpha = 0 (flow, zero_snr) and ends at sigma = 0.
    """
    sources = 3 * (1 + STEPS)
    units = np.concatenate([np.zeros((1, sources)), np.eye(sources)]).reshape(-1, 1 + STEPS, 3).astype(np.float32)
    x_T, table = units[:, 0], jnp.asarray(units[:, 1:].swapaxes(0, 1))

    @jax.jit
    def run(rows, eta):
        make = {'ddim': lambda: ddim(eta)}.get(solver, lambda: ddpm(solver))
        return sample(Playback(table), ONE.denoise, make(), x_T, rows).x

    for name, process in PROCESSES.items():
        for eta in (0.0, 0.6, 1.0) if solver == 'ddim' else (0.0,):
            rows = grid(process, STEPS, 'trailing' if process.steps else 'uniform_t')
            x = np.asarray(run(rows, np.float32(eta)), np.float64)
            mean, cov = recursion(rows, solver, eta)
            columns = x[1:] - x[0]
            np.testing.assert_allclose(x[0], mean, atol=3e-5, err_msg=name)
            np.testing.assert_allclose(columns.T @ columns, cov, atol=3e-5 * max(1, cov.max()), err_msg=name)


def test_moments_of_real_draws():
    """With the library's own Noise: draws are independent over steps, examples and dimensions."""
    n, rows = 20_000, grid(PROCESSES['vp'], STEPS)
    noise = Noise(example_keys(3, np.arange(n)))
    x = jax.jit(lambda noise: sample(noise, ONE.denoise, ddpm(), prior(noise, (n, 3), rows), rows).x)(noise)
    mean, cov = recursion(rows, 'fixed_small')
    np.testing.assert_allclose(x.mean(0), mean, atol=5 * np.sqrt(cov.max() / n))
    error = np.sqrt((cov ** 2 + np.outer(np.diag(cov), np.diag(cov))) / n)  # of a sample covariance of Gaussians
    assert np.all(np.abs(np.cov(x.T) - cov) < 5 * error)


def walk(process, steps=5):
    rows = grid(process, steps, 'uniform_t')
    return jnp.asarray(np.random.default_rng(0).standard_normal((4, 3)), jnp.float32) * rows.sigma[0], rows


def test_ddim_is_euler_on_rectified_flow():
    """x + (t_s - t_t) velocity, the velocity being eps - x0."""
    x, rows = walk(PROCESSES['flow'])
    ours = sample(Playback(None), ONE.denoise, ddim(), x, rows).x
    denoised = jax.jit(ONE.denoised)
    for t, s in zip(rows.t[:-1], rows.t[1:], strict=True):
        d = denoised(x, 1 - t, t)
        x = x + (s - t) * (d.eps - d.x0)
    np.testing.assert_allclose(ours, x, atol=1e-5)


def test_heun_is_algorithm_1_of_edm():
    """Karras et al. 2022, Algorithm 1, in sigma."""
    process = PROCESSES['edm']
    x, rows = walk(process)
    ours = sample(Playback(None), ONE.denoise, heun(), x, rows).x
    denoised = jax.jit(ONE.denoised)
    for t, s in zip(rows.sigma[:-1], rows.sigma[1:], strict=True):
        slope = (x - denoised(x, 1.0, t).x0) / t
        guess = x + (s - t) * slope
        if s > 0:
            guess = x + (s - t) * 0.5 * (slope + (guess - denoised(guess, 1.0, s).x0) / s)
        x = guess
    np.testing.assert_allclose(ours, x, atol=1e-5)


def test_full_eta_is_ancestral():
    rows = grid(PROCESSES['zero_snr'], STEPS, 'trailing')
    rng = np.random.default_rng(0)
    x_T, table = rng.standard_normal((4, 3)).astype(np.float32), jnp.asarray(rng.standard_normal((STEPS, 4, 3)))
    a, b = (sample(Playback(table), ONE.denoise, s, x_T, rows).x for s in (ddim(1.0), ddpm('fixed_small')))
    np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize('make', [ddpm, lambda: ddpm('fixed_large'), ddim, lambda: ddim(0.5), heun])
def test_degenerate_steps_are_finite(make):
    """From pure noise, to the data, and staying at pure noise, at the data or at a level in between."""
    levels = {'noise': (0.0, 1.0), 'data': (1.0, 0.0), 'middle': (0.6, 0.8)}
    run = jax.jit(lambda x, rows: sample(Playback(jnp.ones((1, 2, 3))), ONE.denoise, make(), x, rows).x)
    for start, stop in (('noise', 'data'), ('noise', 'noise'), ('data', 'data'), ('middle', 'middle')):
        pair = np.array([levels[start], levels[stop]], np.float32)
        rows = Level(np.arange(2.0, dtype=np.float32), pair[:, 0], pair[:, 1], np.arange(2), np.array([1, 1]))
        x_T = jnp.asarray([[0.3, -1.0, 2.0], [1.0, 0.0, 0.5]])
        x = run(x_T, rows)
        assert np.isfinite(x).all()
        if start == stop and start != 'noise':
            np.testing.assert_allclose(x, x_T, atol=1e-5)


@pytest.mark.parametrize('call, match', [
    (lambda: ddim(1.5), 'eta.*1.5'), (lambda: ddim(-0.1), 'eta'), (lambda: ddpm('learnt'), "'learnt'.*fixed_small")])
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
