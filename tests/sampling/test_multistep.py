"""Multistep solvers against exact Gaussians: orders of convergence, moments, degenerate levels and identities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import diffusion
from gen_jax.sampling import (
    ddim,
    deis,
    dpm_solver_multistep,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_3m,
    grid,
    ipndm,
    lms,
    plms,
    pndm,
    prime,
    sample,
    unipc,
)
from gen_jax.sampling.multistep import exponential_moments
from gen_jax.types import Level, Point, Sampler
from tests.oracles import Playback, gaussian

ONE = gaussian(dim=3)
PROCESSES = {'vp': diffusion.vp(), 've': diffusion.ve(0.05, 10.0), 'edm': diffusion.edm(0.05, 12.0),
             'flow': diffusion.flow(), 'cosine': diffusion.cosine(), 'sub_vp': diffusion.sub_vp(),
             'zero_snr': diffusion.discrete_ddpm('scaled_linear', 0.00085, 0.012, zero_terminal_snr=True)}
SPANS = {'vp': (0.8, 0.1), 've': (0.9, 0.2), 'edm': (10.0, 0.5), 'flow': (0.85, 0.05), 'cosine': (0.85, 0.05),
         'sub_vp': (0.8, 0.1)}
STEPS, EARLIER, ROWS = (128, 256), 4, 25
dpm = dpm_solver_multistep
# (maker, order with an exact history, order with the default start): first-order starts leave 2, UniPC-p has p + 1
# (Zhao et al. 2023, Sec. 3), PNDM's equal-step coefficients reach 2 (Liu et al. 2022)
ORDERS = {
    'lms2': (lambda: lms(2), 2, 2), 'lms3': (lambda: lms(3), 3, 2),
    'lms4': (lms, 4, 2), 'ipndm': (ipndm, 2, 2), 'plms': (plms, 2, 2),
    'deis2': (lambda: deis(2), 2, 2), 'deis3': (deis, 3, 2),
    'dpm2 midpoint': (lambda: dpm(2, 'dpmsolver'), 2, 2), '2m': (dpmpp_2m, 2, 2), '3m': (dpmpp_3m, 3, 2),
    '3m compat': (lambda: dpm(3, compat=True), 1.85, 1.85),  # the reference's: see the upper bound below
    'unipc2': (lambda: unipc(2, lower_order_final=False), 3, 2),
    'unipc3': (lambda: unipc(3, lower_order_final=False), 3, 2),
    'unipc3 eps': (lambda: unipc(3, 'bh1', False, lower_order_final=False), 3, 2),
}


def long_grid(name, steps):
    """A grid with EARLIER rows before its start, one time step apart, which only the history sees."""
    start, stop = SPANS[name]
    t = np.linspace(start, stop, steps + 1)
    t = np.concatenate([start + (start - stop) / steps * np.arange(EARLIER, 0, -1), t])
    t = np.pad(t, (0, STEPS[-1] - steps), mode='edge')
    index = np.arange(-EARLIER, STEPS[-1] + 1)
    return Level(t, PROCESSES[name].alpha(t), PROCESSES[name].sigma(t), index, np.full_like(index, steps))


def forced(solver, x, first, primed):
    """The solver kept on the exact flow up to row 0, with all that it then remembers, or (not primed) with nothing."""
    def step(noise, denoise, point, s, state):
        new, after = solver.step(noise, denoise, point, s, state)
        early = s.index <= 0
        state = jax.tree.map(lambda a, b: jnp.where(early & ~primed, a, b), solver.init(point), after)
        return new._replace(x=jnp.where(early, ONE.flow(x, first, s), new.x)), state

    return Sampler(solver.init, step)


def slopes(solver, names=tuple(SPANS)):
    """(order with an exact history, order with the default start, error of the former) of every process."""
    def error(x, rows, primed):
        first, last = (jax.tree.map(lambda a, i=i: a[i], rows) for i in (0, -1))
        end = sample(Playback(None), ONE.denoise, forced(solver, x, first, primed), x, rows).x
        return jnp.abs(end - ONE.flow(x, first, last)).max()

    rows = jax.tree.map(lambda *a: jnp.stack(a), *(long_grid(n, steps) for n in names for steps in STEPS))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3)))
    starts = jnp.stack([x * a for a in rows.sigma[:, 0]])
    run = jax.jit(jax.vmap(jax.vmap(error, (None, None, 0)), (0, 0, None)))
    errors = np.asarray(run(starts, rows, jnp.array([True, False]))).reshape(len(names), 2, 2)
    order = np.log2(errors[:, 0] / errors[:, 1])
    return {n: (*order[i], errors[i, 1, 0]) for i, n in enumerate(names)}


@pytest.mark.parametrize('name', ORDERS)
def test_order_of_convergence(name):
    """Distance to the exact probability-flow ODE between two finite levels, on every process, in float64."""
    make, primed, plain = ORDERS[name]
    with jax.enable_x64(True):
        measured = slopes(make())
    for process, (with_history, without, error) in measured.items():
        assert with_history > primed - 0.25, (process, measured)
        assert without > plain - 0.25, (process, measured)
        assert error < 0.02, (process, measured)
        if name in ('lms2', 'deis2', '2m', 'dpm2 midpoint', '3m compat'):
            assert with_history < round(primed) + 0.25, (process, measured)


def test_order_with_runge_kutta():
    with jax.enable_x64(True):
        (with_history, without, error), = slopes(pndm(PROCESSES['flow'], skip_prk_steps=False), ('flow',)).values()
    assert with_history > 1.75 and without > 1.75 and error < 1e-3


@functools.cache
def program(name):
    """(x_T, draws, grid, eta) -> x of a solver, compiled once for every process, step count and dtype."""
    return jax.jit(lambda x, draws, rows, eta: sample(Playback(draws), ONE.denoise, SOLVERS[name](eta), x, rows).x)


SOLVERS = {
    'lms': lambda eta: lms(), 'plms': lambda eta: plms(), 'ipndm': lambda eta: ipndm(), 'deis': lambda eta: deis(),
    '3m': lambda eta: dpmpp_3m(), 'unipc': lambda eta: unipc(3), 'unipc eps': lambda eta: unipc(3, 'bh1', False),
    'sde 2m': lambda eta: dpmpp_2m_sde(eta),
    'sde 3m': lambda eta: dpm(3, 'sde-dpmsolver++', 'heun', eta=eta),
    'sde eps': lambda eta: dpm(2, 'sde-dpmsolver', eta=eta),
}


@pytest.mark.parametrize('name', SOLVERS)
def test_degenerate_levels(name):
    """All the way from pure noise to the data, and steps that stay at noise, at the data or in between."""
    draws = jnp.ones((ROWS, 2, 3))
    levels = {'noise': (0.0, 1.0), 'data': (1.0, 0.0), 'middle': (0.6, 0.8)}
    x_T = jnp.asarray([[0.3, -1.0, 2.0], [1.0, 0.0, 0.5]])

    def run(alpha, sigma):
        last = len(alpha) - 1
        rows = [np.pad(np.asarray(a, np.float32), (0, ROWS - last), mode='edge')
                for a in (range(last + 1), alpha, sigma)]
        x = program(name)(x_T, draws, Level(*rows, np.arange(ROWS + 1), np.full(ROWS + 1, last)), jnp.float32(1.0))
        assert np.isfinite(x).all(), (alpha, sigma)
        return x

    for start, stop in (('noise', 'data'), ('noise', 'noise'), ('data', 'data'), ('middle', 'middle')):
        x = run(*zip(levels[start], levels[stop], strict=True))
        if start == stop and start != 'noise':
            np.testing.assert_allclose(x, x_T, atol=1e-5)
    run(*zip(*(levels[k] for k in ('noise', 'noise', 'middle', 'middle', 'middle', 'data', 'data')), strict=True))
    for process in ('flow', 'zero_snr', 've', 'cosine'):
        rows = grid(PROCESSES[process], 9, 'trailing' if process == 'zero_snr' else 'uniform_t', max_steps=ROWS)
        x = program(name)(x_T * rows.sigma[0], draws, rows, jnp.float32(1.0))
        assert np.isfinite(x).all(), (process, x)
        # At alpha = 4.5e-5 an error of eps counts 2e4 times, for methods that correct it and do not read x0.
        assert np.abs(x).max() < 20 or process == 'cosine' and name in ('plms', 'sde eps'), (process, x)


@pytest.mark.parametrize('name', ['lms', 'plms', 'ipndm', 'deis', '3m', 'unipc', 'unipc eps'])
def test_flow_from_noise_to_data(name):
    """Rectified flow in 20 steps from alpha = 0 to sigma = 0 ends where the exact flow does; Euler, further away."""
    rows = grid(PROCESSES['flow'], 20, max_steps=ROWS)
    x_T = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3)), jnp.float32)
    ends = [jax.tree.map(lambda a, i=i: a[i], rows) for i in (0, -1)]
    exact = ONE.flow(x_T, *ends)
    euler = jnp.abs(sample(Playback(None), ONE.denoise, ddim(), x_T, rows).x - exact).max()
    error = jnp.abs(program(name)(x_T, jnp.zeros((ROWS, 2, 3)), rows, jnp.float32(0.0)) - exact).max()
    assert error < 0.35 * euler, (error, euler)


def coefficients(rows, i, past, kind, order, solver_type, eta):
    """(weight of x, weights of the last values, std) of step i, in float64, from the papers' own formulas.

    SDE-DPM-Solver++(2M) and SDE-DPM-Solver(2M) of Lu et al. 2022b, which take the first difference over r_0 = h_0 / h;
    eta as in k-diffusion's `sample_dpmpp_2m_sde`.
    """
    (at, an), (st, sn) = rows.alpha[i:i + 2].astype(np.float64), rows.sigma[i:i + 2].astype(np.float64)
    if sn == 0 or at == 0:
        if kind == 'sde-dpmsolver':
            return 0.0, None, 0.0
        return 0.0, [an], sn if at == 0 else 0.0
    lam = np.log(np.maximum([rows.alpha, 1e-300 + rows.sigma], 1e-300))
    lam = lam[0] - lam[1]
    h = lam[i + 1] - lam[i]
    if kind == 'sde-dpmsolver++':
        c = (1 + eta) * h
        keep, flat, std = sn / st * np.exp(-eta * h), an * (1 - np.exp(-c)), sn * np.sqrt(1 - np.exp(-2 * eta * h))
        slope = flat / 2 if solver_type == 'midpoint' else an * (1 - (1 - np.exp(-c)) / c)
    else:
        keep, flat, std = an / at, -(1 + eta) * sn * (np.exp(h) - 1), sn * np.sqrt(eta * (np.exp(2 * h) - 1))
        slope = flat / 2 if solver_type == 'midpoint' else -(1 + eta) * sn * ((np.exp(h) - 1) / h - 1)
    if order < 2 or past < 1:
        return keep, [flat], std
    r = (lam[i] - lam[i - 1]) / h
    return keep, [flat + slope / r, -slope / r], std


def recursion(rows, kind, order, solver_type, eta):
    """Mean [D] and covariance [D, D] of the discrete sampler started from N(0, I), for which see test_solvers.py.

    A two-step method is a recursion in (y_i, y_{i-1}), y = x - alpha m, in the eigenbasis of C.
    """
    e, m = ONE.values[0], ONE.vectors[0].T @ ONE.means[0]
    a, s = rows.alpha.astype(np.float64), rows.sigma.astype(np.float64)
    data, last = kind.endswith('++'), int(rows.last[0])
    # value at row i: x0 = m + gain y, or eps = gain y
    gain = [(a[i] * e if data else s[i]) / np.where(a[i] ** 2 * e + s[i] ** 2 == 0, 1, a[i] ** 2 * e + s[i] ** 2)
            for i in range(last + 1)]
    units = np.zeros((2 + last, 3))  # responses of y to: 1, y_T, z_1 .. z_N
    units[0], units[1] = -a[0] * m, 1.0
    previous, known = np.zeros_like(units), 0
    for i in range(last):
        final = last - i
        keep, weights, std = coefficients(rows, i, known, kind, min(order, final) if last < 15 else order, solver_type,
                                          eta)
        value = gain[i] * units
        if weights is None:  # DDIM: alpha_s x0 + sigma_s eps
            x0 = a[i] * e / (a[i] ** 2 * e + s[i] ** 2) * units
            eps = s[i] / (a[i] ** 2 * e + s[i] ** 2) * units
            after = a[i + 1] * x0 + s[i + 1] * eps
        else:
            after = keep * units + weights[0] * value + (weights[1] * previous if len(weights) > 1 else 0)
            constant = keep * a[i] * m + (sum(weights) * m if data else 0) - a[i + 1] * m
            after[0] += constant
        after[2 + i] += std
        previous, units, known = value, after, known + (a[i] > 0)
    q = ONE.vectors[0]
    return q @ (units[0] + a[last] * m), q @ np.diag((units[1:] ** 2).sum(0)) @ q.T


@pytest.mark.parametrize('kind, solver_type', [('sde-dpmsolver++', 'midpoint'), ('sde-dpmsolver++', 'heun'),
                                               ('sde-dpmsolver', 'midpoint'), ('sde-dpmsolver', 'heun')])
def test_moments_follow_the_exact_recursion(kind, solver_type):
    """On an anisotropic Gaussian the samplers are affine in (x_T, z_1 .. z_N); one unit at a time gives them exactly.

    Includes starts at alpha = 0 (flow, zero_snr) and ends at sigma = 0. sde-dpmsolver magnifies where alpha is small.
    """
    steps = 8
    sources = 3 * (1 + steps)
    units = np.concatenate([np.zeros((1, sources)), np.eye(sources)]).reshape(-1, 1 + steps, 3)
    x_T, table = units[:, 0], units[:, 1:].swapaxes(0, 1)
    with jax.enable_x64(True):
        run = jax.jit(lambda rows, eta: sample(Playback(jnp.asarray(table)), ONE.denoise, dpm(
            2, kind, solver_type, eta=eta), x_T, rows).x)
        for name, process in PROCESSES.items():
            for eta in (0.0, 0.5, 1.0):
                rows = grid(process, steps, 'trailing' if process.steps else 'uniform_t', dtype=np.float64)
                x = np.asarray(run(rows, eta))
                mean, cov = recursion(rows, kind, 2, solver_type, eta)
                columns = x[1:] - x[0]
                np.testing.assert_allclose(x[0], mean, atol=1e-8 * max(1, np.abs(mean).max()), err_msg=name)
                np.testing.assert_allclose(columns.T @ columns, cov, atol=1e-8 * max(1, cov.max()), err_msg=name)


def test_history_from_given_points():
    """`prime` gives the state of a sampler that came through the points: as if the grid had begun with them."""
    rows = jax.tree.map(jnp.asarray, grid(PROCESSES['flow'], 7))
    x_T = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3)), jnp.float32)

    @jax.jit
    def run(x_T):
        end, xs = sample(Playback(None), ONE.denoise, unipc(3), x_T, rows, trace=lambda point: point.x)
        points = [Point(x, jax.tree.map(lambda a, i=i: a[i], rows)) for i, x in enumerate((x_T, *xs[:4]))]
        later = jax.tree.map(lambda a: a[4:], rows)
        primed = prime(unipc(3), ONE.denoise, points[:4])
        return end.x, *(sample(Playback(None), ONE.denoise, s, points[4].x, later).x for s in (primed, unipc(3)))

    whole, primed, bare = run(x_T)
    np.testing.assert_allclose(primed, whole, atol=1e-6)
    assert np.abs(bare - whole).max() > 1e-3


def test_identities():
    """First order is DDIM, stochastic or not; without noise the SDE solvers are the ODE's; DEIS is DPM-Solver's heun.

    And PLMS calls the denoiser twice in the first step, with Runge-Kutta four times in three.
    """
    rng = np.random.default_rng(0)
    rows, calls = grid(PROCESSES['flow'], 6, t_start=0.9), []
    x_T, draws = rng.standard_normal((4, 3)).astype(np.float32), jnp.asarray(rng.standard_normal((6, 4, 3)))

    def run(solver):
        return sample(Playback(draws.astype(jnp.float32)), ONE.denoise, solver, x_T, rows).x

    @jax.jit
    def all_of_them():
        return [(run(a), run(b)) for a, b in (
            (dpm(1), ddim()), (dpm(1, 'dpmsolver'), ddim()), (dpm(1, 'sde-dpmsolver++'), ddim(1.0)),
            (dpmpp_2m_sde(jnp.float32(0.0)), dpmpp_2m()), (deis(2), dpm(2, 'sde-dpmsolver', 'heun', eta=0.0)))]

    for a, b in all_of_them():
        np.testing.assert_allclose(a, b, atol=1e-5)

    def counted(x, level, cond):
        jax.debug.callback(lambda t: calls.append(round(float(t), 4)), level.t)
        return ONE.denoise(x, level)

    for solver, want in ((plms(), [1, 2, 1, 1, 1, 1]), (pndm(PROCESSES['flow'], False), [1, 2, 2, 2, 1, 1]),
                         (ipndm(), [1] * 6), (unipc(), [1] * 6)):
        calls.clear()
        jax.block_until_ready(jax.jit(lambda x, s=solver: sample(Playback(None), counted, s, x, rows).x)(x_T))
        jax.effects_barrier()
        assert [calls.count(round(float(t), 4)) for t in rows.t[:6]] == want
        assert len(calls) == sum(want) + (6 if want == [1, 2, 2, 2, 1, 1] else 0)  # two half-way, in three steps


def test_short_steps_in_float32():
    """The exponential integrals, which cancel in closed form, against quadrature in float64."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    u, weights = 0.5 * (nodes + 1), 0.5 * weights
    for z in (-20.0, -3.0, -1.0, -0.99, -1e-2, -1e-5, 1e-5, 0.3, 0.999, 1.0, 4.0):
        want = [np.sum(weights * z * np.exp(z * (1 - u)) * u ** j) for j in range(3)]
        np.testing.assert_allclose(exponential_moments(jnp.float32(z), 3), want, rtol=2e-6)


@pytest.mark.parametrize('call, match', [
    (lambda: lms(5), 'lms 5.*1, 2, 3, 4'), (lambda: deis(0), 'deis 0'), (lambda: dpm(4), 'order.*4'),
    (lambda: dpm(2, 'dpmsolver+'), r"'dpmsolver\+'.*sde-dpmsolver"), (lambda: dpm(2, solver_type='bh1'), "'bh1'.*heun"),
    (lambda: dpmpp_2m_sde(1.5), 'eta.*1.5'), (lambda: unipc(4), 'unipc.*4'), (lambda: unipc(2, 'bh3'), "'bh3'.*bh1"),
    (lambda: pndm(skip_prk_steps=False), 'process')])
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
