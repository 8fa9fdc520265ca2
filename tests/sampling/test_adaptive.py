"""The probability-flow ODE: adaptive to its tolerance on every process, fixed steps to their order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import diffusion
from gen_jax.diffusion import parameterisation
from gen_jax.diffusion.process import level_at
from gen_jax.sampling.adaptive import (
    AdaptiveError,
    probability_flow,
    require_converged,
    sample_adaptive,
    sample_fixed,
    smooth,
    time_range,
)
from gen_jax.sampling.ode import METHODS, integrate, integrate_fixed
from gen_jax.types import Denoised
from tests.oracles import gaussian

ONE = gaussian(dim=3)
PROCESSES = {'vp': diffusion.vp(), 've': diffusion.ve(), 'edm': diffusion.edm(), 'flow': diffusion.flow(3.0),
             'cosine': diffusion.cosine(), 'sub_vp': diffusion.sub_vp()}


def noise_like(n=6, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((n, 3)))


@pytest.mark.parametrize('name', PROCESSES)
def test_converges_to_its_tolerance(name):
    """Against the exact flow of a rotated Gaussian, noise to data and back; the error follows the tolerance."""
    process = PROCESSES[name]
    with jax.enable_x64(True):
        low, high = (level_at(process, jnp.asarray(t)) for t in time_range(process))
        x_T, errors, calls = noise_like() * high.sigma, [], []
        run = jax.jit(lambda x, tol, start, end: sample_adaptive(
            ONE.denoise, process, x, start, end, rtol=tol, atol=tol, max_nfe=5000))
        for tol in (1e-4, 1e-6, 1e-8):
            found = run(x_T, tol, high.t, low.t)
            require_converged(found)
            errors.append(np.abs(found.y - ONE.flow(x_T, high, low)).max())
            calls.append(int(found.nfe.max()))
            assert errors[-1] < 100 * tol, (tol, errors, calls)
            assert (found.t == low.t).all()
        assert errors[1] < 0.1 * errors[0] and errors[2] < 0.1 * errors[1], errors
        assert calls[0] < calls[1] < calls[2] < 12 * calls[0], calls  # fifth order: 100 ** (1 / 5) = 2.5 each
        back = run(found.y, 1e-8, low.t, high.t)
        np.testing.assert_allclose(back.y, x_T, atol=1e-4 * high.sigma)


def test_examples_keep_their_own_pace():
    """An example's result and its calls do not depend on its batch; tolerances are traced."""
    process, traces = PROCESSES['vp'], []

    @jax.jit
    def run(x, tol):
        traces.append(1)
        return sample_adaptive(ONE.denoise, process, x, rtol=tol, atol=tol)

    x = noise_like().astype(jnp.float32)
    full, part = run(x, 1e-4), run(x.at[:5].set(x[5]), 1e-4)
    np.testing.assert_allclose(full.y[5], part.y[5], atol=1e-6)
    assert full.nfe[5] == part.nfe[5] and full.y.dtype == jnp.float32
    assert len(set(full.nfe.tolist())) > 1 and (run(x, 1e-6).nfe > full.nfe).all() and len(traces) == 1


def test_calls_of_the_network():
    """The network is traced once and called as often as nfe says."""
    traced, called = [], []

    def denoise(x, level, cond):
        traced.append(1)
        jax.debug.callback(lambda: called.append(1))
        return ONE.denoise(x, level)

    found = jax.jit(lambda x: sample_adaptive(denoise, PROCESSES['flow'], x))(noise_like().astype(jnp.float32))
    jax.effects_barrier()
    assert len(traced) == 1 and len(called) == found.nfe.max() and found.nfe.max() % 6 == 1


@pytest.mark.parametrize('denoise, max_nfe', [
    (ONE.denoise, 20), (lambda x, level, cond: Denoised(x * jnp.nan, x), 1000)], ids=['calls', 'nan'])
def test_no_convergence_is_reported(denoise, max_nfe):
    x = noise_like().astype(jnp.float32)
    found = sample_adaptive(denoise, PROCESSES['vp'], x, max_nfe=max_nfe)
    assert not found.converged.any() and (found.nfe <= max_nfe).all()
    with pytest.raises(AdaptiveError, match=rf'6 of 6 examples within {found.nfe.max()} calls.*max_nfe'):
        require_converged(found)
    assert issubclass(AdaptiveError, ValueError)


def test_a_network_that_knows_no_slope_at_the_ends():
    """On rectified flow, eps says nothing of x0 at alpha = 0, nor x0 of eps at sigma = 0: the range avoids both."""
    process = PROCESSES['flow']
    low, high = (level_at(process, jnp.float32(t)) for t in time_range(process))
    assert low.sigma > 0 and high.alpha > 0
    x = noise_like().astype(jnp.float32)
    for name in ('eps', 'x0'):
        p = getattr(parameterisation, name)(label_scale=1)
        found = jax.jit(lambda x, p=p: sample_adaptive(p.denoiser(ONE.network(process, p), process), process, x,
                                                       rtol=1e-4, atol=1e-4))(x)
        require_converged(found)
        np.testing.assert_allclose(found.y, ONE.flow(x, high, low), atol=5e-3)
    assert time_range(PROCESSES['vp']) == (1e-5, 1.0)


def test_a_table_is_smooth_between_its_rows():
    for process in (diffusion.discrete_ddpm(zero_terminal_snr=True), diffusion.discrete_ve(n=20)):
        curve, rows = smooth(process), np.arange(process.steps - 1)
        for name in ('alpha', 'sigma'):
            table, fn = getattr(process, name), getattr(curve, name)
            np.testing.assert_allclose(fn(rows), table(rows), rtol=1e-12)
            np.testing.assert_allclose(fn(jnp.asarray(rows, jnp.float32)), table(rows), rtol=1e-5)
            between = fn(rows[:-1] + 0.5)
            np.testing.assert_array_equal(np.sign(np.diff(table(rows))), np.sign(between - table(rows[:-1])))
            slope = [jax.vmap(jax.grad(lambda t, fn=fn: fn(t)))(jnp.asarray(rows[1:-1] + e)) for e in (-1e-3, 1e-3)]
            np.testing.assert_allclose(*slope, rtol=0.02, atol=1e-6)
        assert curve.t_max == process.steps - 1 - (process.alpha(process.steps - 1) == 0)
    assert smooth(PROCESSES['vp']) is PROCESSES['vp']
    assert time_range(diffusion.discrete_ddpm(zero_terminal_snr=True)) == (0, 998)


def test_sampling_on_a_table():
    """Errors of 0.01 and ten times the calls where the kinks are left in."""
    process = diffusion.discrete_ddpm(steps=100, beta_start=1e-3, beta_end=0.2)
    with jax.enable_x64(True):
        low, high = (level_at(process, jnp.asarray(t)) for t in (0.0, 99.0))
        x_T = noise_like() * high.sigma
        found = jax.jit(lambda x: sample_adaptive(ONE.denoise, process, x, rtol=1e-6, atol=1e-6))(x_T)
        require_converged(found)
        np.testing.assert_allclose(found.y, ONE.flow(x_T, high, low), atol=5e-4)
        assert found.nfe.max() < 400


def test_the_velocity_is_the_drift_and_the_score():
    """f x - g^2 score / 2 with f and g of the process (Song et al. 2021, Eq. 13); guidance terms of cond arrive."""
    process, t = PROCESSES['vp'], jnp.array([0.01, 0.4, 0.9])
    x, level = noise_like(3).astype(jnp.float32), level_at(PROCESSES['vp'], t)
    beta = (0.1 + 19.9 * t)[:, None]
    want = -0.5 * beta * (x + ONE.score(x, level.alpha, level.sigma))
    ours = probability_flow(lambda x, level, cond: ONE.denoise(x + cond['shift'], level), process,
                            {'shift': jnp.zeros((3, 1))})(t, x)
    np.testing.assert_allclose(ours, want, rtol=1e-3, atol=1e-4)


def test_orders_of_the_fixed_methods():
    """On a grid of times, in float64, between two levels."""
    process = PROCESSES['vp']
    with jax.enable_x64(True):
        ends = [level_at(process, jnp.asarray(t)) for t in (0.8, 0.2)]
        x = noise_like() * ends[0].sigma
        for method, order in {'euler': 1, 'heun': 2, 'rk4': 4, 'dopri5': 5}.items():
            run = jax.jit(lambda x, times, m=method: sample_fixed(ONE.denoise, process, x, times, method=m))
            times = [np.minimum(np.linspace(0.8, 0.8 - 0.6 * 32 / n, 33).clip(0.2), 0.8) for n in (16, 32)]
            errors = [np.abs(run(x, t) - ONE.flow(x, *ends)).max() for t in times]
            assert abs(np.log2(errors[0] / errors[1]) - order) < 0.25, (method, errors)


def test_sample_without_noise():
    """remove_noise returns x0 at the end, with one call more."""
    process, x = PROCESSES['edm'], noise_like().astype(jnp.float32) * 80
    run = jax.jit(lambda x: [sample_adaptive(ONE.denoise, process, x, t_end=0.3, remove_noise=r) for r in (0, 1)])
    noisy, clean = run(x)
    np.testing.assert_allclose(clean.y, ONE.denoised(noisy.y, 1.0, 0.3).x0, atol=1e-5)
    assert (clean.nfe == noisy.nfe + 1).all()


def test_integrators_on_pytrees():
    """Leaves of different sizes, one of them not moving; an interval of no length; tables are consistent."""
    y = {'a': jnp.ones((2, 3)), 'b': jnp.zeros((2, 1))}
    found = jax.jit(lambda y: integrate(lambda t, y: {'a': -y['a'] * t[:, None], 'b': 0 * y['b']}, y, 0.0, 2.0))(y)
    np.testing.assert_allclose(found.y['a'], np.exp(-2.0), rtol=1e-4)
    assert (found.y['b'] == 0).all() and found.converged.all()
    still = integrate(lambda t, y: y, y, 1.0, 1.0)
    assert still.converged.all() and (still.nfe == 0).all() and (still.y['a'] == 1).all()
    for table in METHODS.values():
        np.testing.assert_allclose(table.a[-1].sum(), 1)
        assert table.error is None or abs(table.error.sum()) < 1e-15


@pytest.mark.parametrize('call, match', [
    (lambda: integrate(None, jnp.ones((2, 3)), 0, 1, rtol=-1.0), 'rtol=-1.0'),
    (lambda: integrate(None, jnp.ones((2, 3)), 0, 1, rtol=0.0, atol=0.0), 'both 0'),
    (lambda: integrate(None, jnp.ones((2, 3)), 0, 1, max_nfe=0), 'max_nfe.*0'),
    (lambda: integrate_fixed(None, jnp.ones((2, 3)), [0, 1], 'rk5'), "'rk5'.*rk4"),
    (lambda: integrate_fixed(None, jnp.ones((2, 3)), [0]), 'two')])
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
