"""Processes: identities that hold for all of them, closed forms, ends, and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import diffusion
from gen_jax.diffusion.posterior import posterior, transition
from gen_jax.diffusion.process import diffusion as diffusion_coefficient
from gen_jax.diffusion.process import drift as drift_coefficient
from gen_jax.diffusion.process import half_log_snr, level_at, log_snr, perturb, prior_log_density, prior_std
from tests.oracles import gaussian

PROCESSES = {
    'vp': diffusion.vp(), 'sub_vp': diffusion.sub_vp(), 've': diffusion.ve(), 'cosine': diffusion.cosine(),
    'edm': diffusion.edm(), 'flow': diffusion.flow(), 'flow_shift': diffusion.flow(shift=3.0),
    'linear': diffusion.discrete_ddpm(), 'scaled_linear': diffusion.discrete_ddpm('scaled_linear', 0.00085, 0.012),
    'squaredcos': diffusion.discrete_ddpm('squaredcos_cap_v2', steps=100),
    'zero_snr': diffusion.discrete_ddpm('scaled_linear', 0.00085, 0.012, zero_terminal_snr=True),
    'sigmoid': diffusion.discrete_ddpm('sigmoid'), 'linear_log_snr': diffusion.linear_log_snr(),
    'ncsn': diffusion.discrete_ve(1.0, 0.01, 10),
}


def times(process, n=41):
    t = np.linspace(process.t_min, process.t_max, n)
    return t if process.steps is None else np.unique(np.round(t))


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
        rtol = 1e-6 if name == 'ncsn' else 0  # the one table that is a formula
        np.testing.assert_allclose(process.alpha(integers), process.alpha(t).astype(np.float32), rtol)
        np.testing.assert_allclose(process.sigma(integers), process.sigma(t).astype(np.float32), rtol)


@pytest.mark.parametrize('name', ['vp', 'cosine', 'linear', 'scaled_linear', 'squaredcos', 'zero_snr', 'sigmoid',
                                  'linear_log_snr'])
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


def test_drift_and_diffusion_are_those_of_the_papers():
    """Song et al. 2021, Eq. 30-32; Karras et al. 2022, Table 1; Liu et al. 2023; VDM, Eq. 19 in closed form."""
    t = np.linspace(0.01, 0.99, 7)
    beta = 0.1 + t * 19.9
    gamma = -13.3 + 18.3 * t  # -log SNR of linear_log_snr
    closed = {
        'vp': (-0.5 * beta, np.sqrt(beta)),
        'sub_vp': (-0.5 * beta, np.sqrt(beta * (1 - np.exp(-2 * (0.1 * t + 9.95 * t ** 2))))),
        've': (0 * t, 0.01 * 5000 ** t * np.sqrt(2 * np.log(5000))),
        'edm': (0 * t, np.sqrt(2 * t)),
        'flow': (-1 / (1 - t), np.sqrt(2 * t / (1 - t))),
        'linear_log_snr': (-0.5 * 18.3 / (1 + np.exp(-gamma)), np.sqrt(18.3 / (1 + np.exp(-gamma)))),
    }
    with jax.enable_x64(True):
        for name, (f, g) in closed.items():
            np.testing.assert_allclose(drift_coefficient(PROCESSES[name], t), f, rtol=1e-9, atol=1e-12, err_msg=name)
            np.testing.assert_allclose(diffusion_coefficient(PROCESSES[name], t), g, rtol=1e-9, err_msg=name)


@pytest.mark.parametrize('name', PROCESSES)
def test_finite_at_the_ends(name):
    """alpha and sigma from the data to t_max, in float32; log-SNR, drift and diffusion too wherever they exist."""
    process = PROCESSES[name]
    ends = jnp.array([-1.0 if process.steps else 0.0, process.t_min, process.t_max], jnp.float32)
    alpha, sigma, *rest = jax.jit(lambda t: [f(t) for f in (process.alpha, process.sigma)] + [
        f(process, t) for f in (half_log_snr, drift_coefficient, diffusion_coefficient)])(ends)
    assert np.isfinite(alpha).all() and np.isfinite(sigma).all()
    assert alpha[0] > 0.99 and sigma[0] <= 0.011
    exists = np.array([False, True, True]) & (np.asarray(alpha) > 0) & (np.asarray(sigma) > 0)
    assert exists.sum() == 2 - (name == 'zero_snr') - 2 * name.startswith('flow')  # where alpha = 0 the drift is -inf
    assert all(np.isfinite(np.asarray(value)[exists]).all() for value in rest)


@pytest.mark.parametrize('name', PROCESSES)
def test_transition_kernel(name):
    """q(x_t | x_s) q(x_s | x0) = q(x_t | x0); Bayes' rule gives the posterior; at the ends nothing is NaN."""
    process = PROCESSES[name]
    t = times(process, 6)[1:-1]
    with jax.enable_x64(True):
        s, t = level_at(process, t[:-1]), level_at(process, t[1:])
        scale, std = transition(s, t)
        np.testing.assert_allclose(scale * s.alpha, t.alpha, rtol=1e-12)
        np.testing.assert_allclose(scale ** 2 * s.sigma ** 2 + std ** 2, t.sigma ** 2, rtol=1e-12)
        back = posterior(t, s)
        precision = 1 / s.sigma ** 2 + scale ** 2 / std ** 2
        np.testing.assert_allclose(np.exp(back.log_var_small), 1 / precision, rtol=1e-9)
        np.testing.assert_allclose(back.c_x0, s.alpha / s.sigma ** 2 / precision, rtol=1e-9)
        np.testing.assert_allclose(back.c_x, scale / std ** 2 / precision, rtol=1e-9)
    data, last = (level_at(process, jnp.float32(x)) for x in (-1.0 if process.steps else 0.0, process.t_max))
    np.testing.assert_array_equal(transition(data, data), (1.0, 0.0))
    np.testing.assert_array_equal(transition(last, last), (1.0, 0.0))
    np.testing.assert_allclose(transition(data, last), (last.alpha / data.alpha, last.sigma), rtol=1e-5)


def test_prior():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 2, 2, 1)), jnp.float32)
    expected = {'ve': 50.0, 'edm': 80.0, 'flow': 1.0, 'vp': 1.0, 'sub_vp': 1.0, 'ncsn': 1.0, 'zero_snr': 1.0}
    for name, std in expected.items():
        np.testing.assert_allclose(prior_std(PROCESSES[name]), std, rtol=1e-4)
    for name in ('edm', 'flow'):
        std = prior_std(PROCESSES[name])
        want = np.sum(-0.5 * (np.asarray(x, np.float64) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi), (1, 2, 3))
        np.testing.assert_allclose(prior_log_density(PROCESSES[name], x), want, rtol=1e-6)
    # What the data leave of themselves at t_max: a Gaussian's marginal there is the prior but for alpha.
    one = gaussian(dim=4)
    exact = jax.jit(one.log_density)(x, *(jnp.float32(f(1.0)) for f in PROCESSES['vp'][:2]))
    np.testing.assert_allclose(prior_log_density(PROCESSES['vp'], x), exact, atol=0.05)


def test_ncsn_table():
    """sigma_i = sigma_max (sigma_min / sigma_max)^(i / (n - 1)) with i counted from the greatest noise."""
    process = diffusion.discrete_ve(50.0, 0.01, 232)
    want = np.exp(np.linspace(np.log(50.0), np.log(0.01), 232))
    np.testing.assert_allclose(process.sigma(231.0 - np.arange(232)), want, rtol=1e-12)
    assert process.steps == 232 and process.sigma(-1) == 0 == process.sigma(jnp.int32(-1))
    assert process.inverse(np.inf) == -1
    assert process.alpha(jnp.arange(3)).dtype == process.sigma(jnp.arange(3)).dtype == jnp.float32


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
    (lambda: diffusion.linear_log_snr(-1.0, 1.0), 'log_snr_min'),
    (lambda: diffusion.discrete_ve(0.01, 1.0), 'sigma_min'),
    (lambda: diffusion.discrete_ve(n=1), 'n must'),
])
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
