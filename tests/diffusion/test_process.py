"""Processes: identities that hold for all of them, closed forms, ends, and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import diffusion
from gen_jax.diffusion.process import diffusion as diffusion_coefficient
from gen_jax.diffusion.process import drift as drift_coefficient
from gen_jax.diffusion.process import half_log_snr, level_at, log_snr, perturb

PROCESSES = {
    'vp': diffusion.vp(), 'sub_vp': diffusion.sub_vp(), 've': diffusion.ve(), 'cosine': diffusion.cosine(),
    'edm': diffusion.edm(), 'flow': diffusion.flow(), 'flow_shift': diffusion.flow(shift=3.0),
    'linear': diffusion.discrete_ddpm(), 'scaled_linear': diffusion.discrete_ddpm('scaled_linear', 0.00085, 0.012),
    'squaredcos': diffusion.discrete_ddpm('squaredcos_cap_v2', steps=100),
    'zero_snr': diffusion.discrete_ddpm('scaled_linear', 0.00085, 0.012, zero_terminal_snr=True),
}


def times(process, n=41):
    t = np.linspace(process.t_min, process.t_max, n)
    return t if process.steps is None else np.round(t)


@pytest.mark.parametrize('name', PROCESSES)
def test_inverse_and_monotone(name):
    process = PROCESSES[name]
    t = times(process)[1:-1]  # the ends of flow are infinite
    lam = half_log_snr(process, t)
    assert np.all(np.diff(lam) < 0) and lam.dtype == np.float64
    np.testing.assert_allclose(process.inverse(lam), t, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(log_snr(process, t), 2 * lam)
    lam32 = jnp.asarray(lam, jnp.float32)
    np.testing.assert_allclose(process.inverse(lam32), t, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize('name', PROCESSES)
def test_jax_agrees_with_numpy(name):
    process = PROCESSES[name]
    t = times(process)
    t32 = jnp.asarray(t, jnp.float32)
    t = np.asarray(t32, np.float64)
    for f in (process.alpha, process.sigma):
        ours = f(t32)
        assert ours.dtype == jnp.float32 and f(t).dtype == np.float64
        np.testing.assert_allclose(ours, f(t), rtol=3e-6, atol=1e-7)
    if process.steps is not None:
        integers = jnp.asarray(t, jnp.int32)
        assert process.alpha(integers).dtype == jnp.float32
        np.testing.assert_array_equal(process.alpha(integers), process.alpha(t).astype(np.float32))
        np.testing.assert_array_equal(process.sigma(integers), process.sigma(t).astype(np.float32))


@pytest.mark.parametrize('name', ['vp', 'cosine', 'linear', 'scaled_linear', 'squaredcos', 'zero_snr'])
def test_variance_preserving(name):
    process = PROCESSES[name]
    t = times(process, 201)
    np.testing.assert_allclose(process.alpha(t) ** 2 + process.sigma(t) ** 2, 1, atol=1e-12)
    if process.steps is not None:
        half = t[1:-1] + 0.37  # between the entries of the table too
        np.testing.assert_allclose(process.alpha(half) ** 2 + process.sigma(half) ** 2, 1, atol=1e-12)


@pytest.mark.parametrize('name', PROCESSES)
def test_drift_and_diffusion_move_the_marginal(name):
    """d alpha/dt = f alpha and d sigma^2/dt = 2 f sigma^2 + g^2, against central differences."""
    process = PROCESSES[name]
    t = times(process, 9)[1:-1] + (0.4 if process.steps else 0.0)
    h = 1e-5 * process.t_max
    with jax.enable_x64(True):
        f, g = (np.asarray(fn(process, t)) for fn in (drift_coefficient, diffusion_coefficient))
    d_alpha = (process.alpha(t + h) - process.alpha(t - h)) / (2 * h)
    d_var = (process.sigma(t + h) ** 2 - process.sigma(t - h) ** 2) / (2 * h)
    np.testing.assert_allclose(f * process.alpha(t), d_alpha, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(2 * f * process.sigma(t) ** 2 + g ** 2, d_var, rtol=1e-5, atol=1e-9)


def test_vp_is_the_sde_of_the_paper():
    t = np.linspace(0.01, 1, 7)
    with jax.enable_x64(True):
        beta = 0.1 + t * 19.9
        np.testing.assert_allclose(drift_coefficient(PROCESSES['vp'], t), -0.5 * beta, rtol=1e-9)
        np.testing.assert_allclose(diffusion_coefficient(PROCESSES['vp'], t), np.sqrt(beta), rtol=1e-9)
        beta_sub = beta * (1 - np.exp(-2 * (0.1 * t + 9.95 * t ** 2)))
        np.testing.assert_allclose(diffusion_coefficient(PROCESSES['sub_vp'], t), np.sqrt(beta_sub), rtol=1e-9)


def test_cosine_ends_are_exact_in_float32():
    process = diffusion.cosine(log_snr_max=20.0, log_snr_min=-20.0)
    np.testing.assert_allclose(log_snr(process, jnp.array([0.0, 1.0])), [20.0, -20.0], rtol=1e-6)
    np.testing.assert_allclose(log_snr(process, np.array([0.0, 0.5, 1.0])), [20.0, 0.0, -20.0], atol=1e-12)


def test_discrete_table():
    betas = np.array([0.1, 0.2, 0.5])
    process = diffusion.discrete(betas)
    np.testing.assert_allclose(process.alpha(np.arange(3)) ** 2, [0.9, 0.72, 0.36])
    np.testing.assert_array_equal(process.alpha(-1), 1.0)
    np.testing.assert_array_equal(process.sigma(jnp.int32(-1)), 0.0)
    assert process.inverse(np.inf) == -1 and process.steps == 3
    lam = half_log_snr(process, np.array([0.0, 0.25, 1.0]))
    np.testing.assert_allclose(lam[1], 0.75 * lam[0] + 0.25 * lam[2])  # log-SNR is what is interpolated
    one = diffusion.discrete([0.3])
    np.testing.assert_allclose(one.alpha(0) ** 2, 0.7)


def test_level_at_and_perturb():
    process = PROCESSES['cosine']
    level = level_at(process, jnp.array([0.1, 0.9]))
    assert level.index == 0 and level.last == 0
    x0, eps = jnp.ones((2, 2, 2, 1)), 2 * jnp.ones((2, 2, 2, 1))
    x = perturb(x0, eps, level)
    np.testing.assert_allclose(x[:, 0, 0, 0], level.alpha + 2 * level.sigma, rtol=1e-6)


@pytest.mark.parametrize('call, match', [
    (lambda: diffusion.discrete_ddpm('cubic'), "'cubic'.*linear"),
    (lambda: diffusion.discrete_ddpm(steps=0), 'steps'),
    (lambda: diffusion.discrete([0.1, 1.5]), 'betas'),
    (lambda: diffusion.discrete([1.0, 0.1]), 'betas'),
    (lambda: diffusion.vp(beta_min=-1.0), 'beta_min'),
    (lambda: diffusion.ve(1.0, 0.5), 'sigma_min'),
    (lambda: diffusion.edm(0.0), 'sigma_min'),
    (lambda: diffusion.flow(shift=0.0), 'shift'),
    (lambda: diffusion.cosine(-1.0, 1.0), 'log_snr_min'),
])
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
