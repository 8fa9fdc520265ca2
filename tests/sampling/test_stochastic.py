"""Stochastic solvers against plain numpy in float64, written from the papers' formulas in x / alpha and sigma / alpha.

The samplers are affine in (x_T, z_1 .. z_N) where the data are Gaussian. Feeding them one unit at a time gives every
coefficient, and with them mean and covariance of the discrete sampler, without Monte Carlo error. In float64, so that
a wrong digit cannot hide in rounding.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import diffusion
from gen_jax.rng import Noise, example_keys
from gen_jax.sampling import (
    chain,
    churn,
    ddim,
    ddpm,
    dpm2,
    dpm2_ancestral,
    dpmpp_2s,
    dpmpp_2s_ancestral,
    dpmpp_sde,
    euler_ancestral,
    grid,
    heun,
    lcm,
    prior,
    sample,
)
from gen_jax.types import Point
from tests.oracles import PurposePlayback, gaussian, gaussian_mixture
from tests.sampling.test_singlestep import PROCESSES, degenerate, one_of, switched

ONE = gaussian(dim=3)
MAX_STEPS, PURPOSES = 8, ('z', 'z2')
SOURCES = 3 * (1 + MAX_STEPS * len(PURPOSES))


def levels(process, steps=MAX_STEPS):
    return grid(process, steps, 'trailing' if process.steps else 'uniform_t', max_steps=MAX_STEPS, dtype=np.float64)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def units():
    """(x_T [1 + S, 3], {purpose: [N, 1 + S, 3]}): zeros, then a one in every source in turn; float64."""
    table = np.concatenate([np.zeros((1, SOURCES)), np.eye(SOURCES)]).reshape(1 + SOURCES, -1, 3).swapaxes(0, 1)
    return table[0], {p: table[1 + k * MAX_STEPS:][:MAX_STEPS] for k, p in enumerate(PURPOSES)}


def exact(x, alpha, sigma):
    """(E[x0 | x], E[eps | x]) of the rotated Gaussian, in float64 numpy."""
    q, e, m = ONE.vectors[0], ONE.values[0], ONE.means[0]
    y = (x - alpha * m) @ q / (alpha ** 2 * e + sigma ** 2)
    return m + (alpha * e * y) @ q.T, (sigma * y) @ q.T


def ancestral_step(rho_t, rho_s, eta):
    """k-diffusion's get_ancestral_step: (sigma_down, sigma_up)."""
    up = min(rho_s, eta * np.sqrt(rho_s ** 2 * (rho_t ** 2 - rho_s ** 2) / rho_t ** 2))
    return np.sqrt(rho_s ** 2 - up ** 2), up


def first_order(x, a, s, b, u, eta, z):
    """The limit of all of them from pure noise: the mean goes to sigma_down; and to the data: x0."""
    x0, eps = exact(x, a, s)
    std = eta * u  # r = 0 from pure noise
    return b * x0 + np.sqrt(u ** 2 - std ** 2) * eps + std * z


def at(process, rho):
    """alpha of the process where sigma / alpha = rho."""
    return process.alpha(np.float64(process.inverse(-np.log(rho))))


def by_hand(name, process, rows, x, tables, eta):
    """x at the last row, for the sampler of that name."""
    a, s = (np.asarray(v, np.float64) for v in (rows.alpha, rows.sigma))
    for i in range(int(rows.last[0])):
        z, z2 = (tables[p][i] for p in PURPOSES)
        if a[i] == 0 or s[i + 1] == 0:
            x = first_order(x, a[i], s[i], a[i + 1], s[i + 1], eta, z)
            continue
        t, after = s[i] / a[i], s[i + 1] / a[i + 1]
        y, x0 = x / a[i], exact(x, a[i], s[i])[0]
        down, up = ancestral_step(t, after, eta)

        def answer(y, rho):
            alpha = at(process, rho)
            return exact(y * alpha, alpha, rho * alpha)[0]

        if name == 'euler_ancestral':
            y = y + (y - x0) / t * (down - t) + up * z
        elif down == 0:
            y = x0 + up * z
        elif name == 'dpm2_ancestral':
            middle = np.exp(0.5 * (np.log(t) + np.log(down)))
            guess = y + (y - x0) / t * (middle - t)
            y = y + (guess - answer(guess, middle)) / middle * (down - t) + up * z
        elif name == 'dpmpp_2s_ancestral':
            h = np.log(t) - np.log(down)
            middle = np.exp(-(-np.log(t) + 0.5 * h))
            guess = middle / t * y - np.expm1(-0.5 * h) * x0
            y = down / t * y - np.expm1(-h) * answer(guess, middle) + up * z
        else:  # dpmpp_sde
            r = 0.5
            middle = np.exp(-(-np.log(t) + r * (np.log(t) - np.log(after))))
            down1, up1 = ancestral_step(t, middle, eta)
            guess = down1 / t * y - np.expm1(np.log(down1 / t)) * x0 + up1 * z
            later = (1 - 1 / (2 * r)) * x0 + 1 / (2 * r) * answer(guess, middle)
            path = (np.sqrt(t - middle) * z + np.sqrt(middle - after) * z2) / np.sqrt(t - after)
            y = down / t * y - np.expm1(np.log(down / t)) * later + up * path
        x = y * a[i + 1]
    return x


def moments(x):
    """Mean [D] and covariance [D, D] from the answers to `units`."""
    columns = x[1:] - x[0]
    return x[0], columns.T @ columns


def check(ours, theirs, label):
    """Every coefficient, and so the moments."""
    for a, b in zip((np.asarray(ours, np.float64), *moments(np.asarray(ours, np.float64))),
                    (theirs, *moments(theirs)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-8 * max(1, np.abs(b).max()), err_msg=str(label))


def test_moments_follow_the_exact_recursion(x64):
    x_T, tables = units()
    names = ('euler_ancestral', 'dpm2_ancestral', 'dpmpp_2s_ancestral', 'dpmpp_sde')

    @jax.jit
    def run(kind, which, eta, rows):
        process = switched(kind)
        every = [euler_ancestral(eta)] + [m(process, eta) for m in (dpm2_ancestral, dpmpp_2s_ancestral, dpmpp_sde)]
        noise = PurposePlayback({p: jnp.asarray(t) for p, t in tables.items()})
        return sample(noise, ONE.denoise, one_of(which, every), jnp.asarray(x_T), rows).x

    for kind, (label, process) in enumerate(PROCESSES.items()):
        for steps, eta in ((3, 1.0), (8, 1.0), (8, 0.4)):
            rows = levels(process, steps)
            for which, name in enumerate(names):
                check(run(kind, which, np.float64(eta), rows),
                      by_hand(name, process, rows, x_T, tables, eta), (label, name, steps, eta))


def algorithm_2(rows, x, z, s_churn, s_tmin, s_tmax, s_noise):
    """Karras et al. 2022, Algorithm 2, in x / alpha (its general form has the process's scale outside)."""
    a, s = (np.asarray(v, np.float64) for v in (rows.alpha, rows.sigma))
    steps = int(rows.last[0])
    for i in range(steps):
        if a[i] == 0:
            x = first_order(x, a[i], s[i], a[i + 1], s[i + 1], 0.0, 0.0)
            continue
        t, after, y = s[i] / a[i], s[i + 1] / a[i + 1], x / a[i]
        gamma = min(s_churn / steps, np.sqrt(2) - 1) if s_tmin <= t <= s_tmax else 0.0
        hat = t + gamma * t
        y = y + np.sqrt(hat ** 2 - t ** 2) * s_noise * z[i]
        d = (y - exact(y, 1.0, hat)[0]) / hat
        guess = y + (after - hat) * d
        if after != 0:
            guess = y + (after - hat) * (0.5 * d + 0.5 * (guess - exact(guess, 1.0, after)[0]) / after)
        x = guess * a[i + 1]
    return x


def test_churn_and_heun_are_algorithm_2_of_edm(x64):
    """On EDM, and in its general form on every process; off outside [s_tmin, s_tmax] and for s_churn = 0."""
    x_T, tables = units()

    @jax.jit
    def run(kind, setting, rows):
        noise = PurposePlayback({p: jnp.asarray(t) for p, t in tables.items()})
        return sample(noise, ONE.denoise, chain(churn(switched(kind), *setting), heun()),
                      jnp.asarray(x_T), rows).x

    for kind, (label, process) in enumerate(PROCESSES.items()):
        rows = levels(process)
        for setting in ((2.0, 0.0, np.inf, 1.003), (40.0, 0.3, 3.0, 1.0), (0.0, 0.0, np.inf, 1.0)):
            theirs = algorithm_2(rows, x_T, tables['z'], *setting)
            check(run(kind, [np.float64(a) for a in setting], rows), theirs, (label, setting))


def test_churn_at_the_ends_of_a_table():
    """Beyond the last row of a table the noise grows and the network is told the last index; at the data x stays."""
    table = diffusion.discrete_ddpm()
    rows, noise, x = grid(table, 4, 'trailing'), PurposePlayback({'z': jnp.ones((1, 2, 3))}, 0), jnp.ones((2, 3))
    first, data = (jax.tree.map(lambda a, i=i: jnp.asarray(a[i]), rows) for i in (0, 4))
    up = churn(table, 0.4).step(noise, None, Point(x, first), None, ())[0]
    assert up.level.t == first.t == 999
    np.testing.assert_allclose(up.level.sigma / up.level.alpha, 1.1 * first.sigma / first.alpha, rtol=1e-5)
    np.testing.assert_allclose(up.x, 1 / 1.1 + np.sqrt(1 - 1 / 1.1 ** 2), rtol=1e-4)
    still = churn(table, 0.4).step(noise, None, Point(x, data), None, ())[0]
    np.testing.assert_array_equal(still.x, x)
    assert still.level.t == data.t and still.level.sigma == 0


def test_eta_zero_is_the_deterministic_solver():
    x_T, process = jnp.asarray(units()[0][:4], jnp.float32) + 1.0, PROCESSES['vp']
    rows, noise = grid(process, 5), PurposePlayback({'z': jnp.ones((5, 4, 3)), 'z2': jnp.ones((5, 4, 3))})
    run = jax.jit(lambda: [sample(noise, ONE.denoise, s, x_T, rows).x for s in (
        euler_ancestral(0.0), ddim(0.0), dpm2_ancestral(process, 0.0), dpm2(process),
        dpmpp_2s_ancestral(process, 0.0), dpmpp_2s(process), dpmpp_sde(process, 0.0), dpmpp_2s(process),
        dpmpp_sde(process, 0.0, r=0.3), dpmpp_2s(process, 0.3))])
    out = run()
    for ours, theirs in zip(out[::2], out[1::2], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_learned_variance(x64):
    """std^2 = exp(v log beta + (1 - v) log posterior) by hand (Nichol & Dhariwal 2021, Eq. 15); 0 in the last step."""
    v = np.array([0.0, 0.3, 1.0])
    x_T, tables = units()

    def denoise(x, level, cond):
        return ONE.denoise(x, level)._replace(log_var=jnp.broadcast_to(jnp.asarray(v), x.shape))

    run = jax.jit(lambda rows: sample(PurposePlayback({'z': jnp.asarray(tables['z'])}), denoise,
                                      ddpm('learned'), jnp.asarray(x_T), rows).x)
    for label, process in PROCESSES.items():
        rows = levels(process)
        a, s = (np.asarray(b, np.float64) for b in (rows.alpha, rows.sigma))
        x = x_T
        for i in range(MAX_STEPS):
            beta = s[i] ** 2 - (a[i] / a[i + 1]) ** 2 * s[i + 1] ** 2  # of q(x_t | x_s)
            posterior = beta * s[i + 1] ** 2 / s[i] ** 2
            std = 0.0 if i == MAX_STEPS - 1 else np.exp(0.5 * (v * np.log(beta) + (1 - v) * np.log(posterior)))
            x = (a[i + 1] * beta / s[i] ** 2 * exact(x, a[i], s[i])[0]
                 + a[i] / a[i + 1] * s[i + 1] ** 2 / s[i] ** 2 * x + std * tables['z'][i])
        check(run(rows), x, label)


def test_lcm(x64):
    """Song et al. 2023, Algorithm 1 (x0 + sqrt(sigma^2 - eps^2) z), and LCM's boundary condition."""
    x_T, tables = units()
    every = (lcm(), lcm(sigma_min=0.02), lcm(True, 10.0, 0.5))
    run = jax.jit(lambda which, rows: sample(PurposePlayback({'z': jnp.asarray(tables['z'])}), ONE.denoise,
                                             one_of(which, every), jnp.asarray(x_T), rows).x)
    for label, process in PROCESSES.items():
        rows = levels(process)
        for which, least in enumerate((0.0, 0.02, 0.0)):
            x = x_T
            for i in range(MAX_STEPS):
                t, a, s, b, u = (float(v) for v in (rows.t[i], rows.alpha[i], rows.sigma[i], rows.alpha[i + 1],
                                                    rows.sigma[i + 1]))
                f = exact(x, a, s)[0]
                if which == 2:
                    f = 0.25 / (100 * t ** 2 + 0.25) * x + 10 * t / np.sqrt(100 * t ** 2 + 0.25) * f
                x = b * f + np.sqrt(max(u ** 2 - (b * least) ** 2, 0.0)) * tables['z'][i]
            check(run(which, rows), x, (label, which))


def test_moments_of_a_mixture():
    """Two components, 1,000 steps, the library's own noise: five standard errors."""
    mixture = gaussian_mixture(2, 2, seed=3)
    n, rows = 2000, grid(PROCESSES['vp'], 1000)
    mean, cov = mixture.moments()
    noise = Noise(example_keys(7, np.arange(n)))
    x = jax.jit(lambda noise: sample(noise, mixture.denoise, dpmpp_sde(PROCESSES['vp']), prior(noise, (n, 2), rows),
                                     rows).x)(noise)
    away = np.asarray(x - mean)
    assert np.all(np.abs(away.mean(0)) < 5 * np.sqrt(np.diag(cov) / n))
    products = np.einsum('ni,nj->nij', away, away)
    assert np.all(np.abs(products.mean(0) - cov) < 5 * products.std(0) / np.sqrt(n))


def test_degenerate_steps_are_finite():
    vp = PROCESSES['vp']
    every = [euler_ancestral(), dpm2_ancestral(vp), dpmpp_2s_ancestral(vp, 0.5), dpmpp_sde(vp), ddpm('learned'),
             chain(churn(vp, 2.0), heun())]
    noise = PurposePlayback({'z': jnp.ones((1, 2, 3)), 'z2': jnp.ones((1, 2, 3))})
    denoise = lambda x, level, cond: ONE.denoise(x, level)._replace(log_var=0 * x + 0.5)  # noqa: E731
    run = jax.jit(lambda which, x, rows: sample(noise, denoise, one_of(which, every), x, rows).x)
    for which in range(len(every) - 1):
        degenerate(lambda x, rows, w=which: run(w, x, rows))
    rows = grid(vp, 1)
    assert np.isfinite(run(len(every) - 1, jnp.ones((2, 3)), rows)).all()


@pytest.mark.parametrize('call, match', [
    (lambda: euler_ancestral(1.5), 'eta.*1.5'),
    (lambda: dpm2_ancestral(PROCESSES['vp'], -0.1), 'eta.*-0.1'),
    (lambda: dpmpp_sde(PROCESSES['vp'], r=0.0), 'r must'),
    (lambda: dpmpp_sde(PROCESSES['vp'], s_noise=-1.0), 's_noise.*-1'),
    (lambda: churn(PROCESSES['vp'], -1.0), 's_churn'),
    (lambda: churn(PROCESSES['vp'], 1.0, 3.0, 2.0), 's_tmin=3.0 and s_tmax=2.0'),
    (lambda: lcm(sigma_min=-1.0), 'sigma_min'),
])
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_learned_variance_needs_log_var():
    rows, x = grid(PROCESSES['vp'], 2), jnp.ones((2, 3))
    with pytest.raises(ValueError, match="'learned'.*fixed_small"):
        sample(PurposePlayback({'z': jnp.ones((2, 2, 3))}), ONE.denoise, ddpm('learned'), x, rows)
