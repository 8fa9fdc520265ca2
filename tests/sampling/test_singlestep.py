"""Single-step solvers: orders on the exact flow, degenerate steps, identities, levels half-way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import diffusion
from gen_jax.sampling import (
    SAMPLERS,
    dpm2,
    dpm_solver_3,
    dpm_solver_interleaved,
    dpm_solver_singlestep,
    dpmpp_2s,
    euler,
    grid,
    heun,
    sample,
)
from gen_jax.sampling.singlestep import level_between
from gen_jax.types import Level, Process, Sampler
from tests.oracles import Playback, gaussian

ONE = gaussian(dim=3)
PROCESSES = {'vp': diffusion.vp(), 've': diffusion.ve(0.05, 10.0), 'edm': diffusion.edm(0.05, 10.0),
             'flow': diffusion.flow(), 'cosine': diffusion.cosine(), 'sub_vp': diffusion.sub_vp(),
             'zero_snr': diffusion.discrete_ddpm('scaled_linear', 0.00085, 0.012, zero_terminal_snr=True)}
SPANS = {'vp': (0.8, 0.1), 've': (1.0, 0.2), 'edm': (10.0, 0.5), 'flow': (0.95, 0.05), 'cosine': (0.9, 0.05),
         'sub_vp': (0.8, 0.1)}


def switched(kind) -> Process:
    """The kind-th process, kind traced: one program for all."""
    pick = lambda name: lambda t: jax.lax.switch(kind, [getattr(p, name) for p in PROCESSES.values()], t)  # noqa: E731
    return Process(pick('alpha'), pick('sigma'), pick('inverse'), 0.0, 1.0)


def one_of(which, samplers) -> Sampler:
    """The which-th sampler, `which` traced; samplers whose states have no arrays."""
    def step(noise, denoise, point, s, state):
        return jax.lax.switch(which, [
            lambda m=m: (m.step(noise, denoise, point, s, m.init(point))[0], ()) for m in samplers])

    return Sampler(lambda point: (), step)


def solvers(process):
    """(sampler, declared order)."""
    return [(dpm2(process), 2), (dpmpp_2s(process), 2), (dpmpp_2s(process, 0.7), 2), (dpm_solver_3(process), 3),
            (dpm_solver_singlestep(process, 1), 1), (dpm_solver_singlestep(process, 2, 'dpmsolver', 'heun'), 2),
            (dpm_solver_singlestep(process, 3), 3), (dpm_solver_singlestep(process, 3, 'dpmsolver', 'heun'), 3)]


def measure(run, process, span, expected, label, finest=96):
    """The order of run(x, rows) between two step counts in float64."""
    x, errors = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3))), []
    for steps in (finest // 2, finest):
        rows = grid(process, steps, 'uniform_t', max_steps=finest, t_start=span[0], t_end=span[1], dtype=np.float64)
        ends = [jax.tree.map(lambda a, i=i: a[i], rows) for i in (0, -1)]
        start = x * ends[0].sigma
        errors.append(np.abs(run(start, rows) - ONE.flow(start, *ends)).max())
    slope = np.log2(errors[0] / errors[1])
    assert abs(slope - expected) < 0.25, (label, slope, errors)
    assert errors[1] < 0.05, (label, errors)
    return slope


def test_order_of_convergence():
    """Distance to the exact probability-flow ODE, for every process."""
    with jax.enable_x64(True):
        run = jax.jit(lambda kind, which, x, rows: sample(
            Playback(None), ONE.denoise, one_of(which, [s for s, _ in solvers(switched(kind))]), x, rows).x)
        for which, (_, order) in enumerate(solvers(PROCESSES['vp'])):
            for kind, name in enumerate(SPANS):
                measure(lambda x, rows, k=kind, w=which: run(k, w, x, rows), PROCESSES[name], SPANS[name], order,
                        (name, which))
    declared = {name: SAMPLERS[name].order for name in ('dpm2', 'dpmpp_2s', 'dpm_solver_3', 'dpm_solver_singlestep')}
    assert declared == {'dpm2': 2, 'dpmpp_2s': 2, 'dpm_solver_3': 3, 'dpm_solver_singlestep': 2}


@pytest.mark.parametrize('args, order', [((2,), 2), ((3, 'dpmsolver++', 'heun'), 3)])
def test_order_with_rows_as_levels_between(args, order):
    """On grids whose rows are not evenly spaced in lambda."""
    with jax.enable_x64(True):
        run = jax.jit(lambda x, rows: sample(Playback(None), ONE.denoise, dpm_solver_interleaved(*args), x, rows).x)
        for name in SPANS:
            measure(run, PROCESSES[name], SPANS[name], order, name, finest=384)  # a step of the group is `order` rows
    assert SAMPLERS['dpm_solver_interleaved'].order == 2


def test_dpm2_is_the_midpoint_rule_of_k_diffusion():
    """In x / alpha and sigma / alpha, by hand: the slope at the geometric mean of the two noise levels."""
    process = PROCESSES['flow']
    rows = grid(process, 5, 'uniform_t', t_start=0.9)
    x = y = np.random.default_rng(0).standard_normal((4, 3))
    ours = sample(Playback(None), ONE.denoise, dpm2(process), jnp.asarray(x, jnp.float32), rows).x
    y = x / rows.alpha[0]
    for i in range(5):
        rho, after = rows.sigma[i] / rows.alpha[i], rows.sigma[i + 1] / rows.alpha[i + 1]

        def slope(y, rho):
            alpha = 1 / (1 + rho)  # of rectified flow
            return (y - np.asarray(ONE.denoised(jnp.asarray(y * alpha), alpha, alpha * rho).x0)) / rho

        middle = np.sqrt(rho * after)
        y = y + (after - rho) * (slope(y, rho) if after == 0 else slope(y + (middle - rho) * slope(y, rho), middle))
    np.testing.assert_allclose(ours, y, atol=2e-5)


@pytest.mark.parametrize('name', list(PROCESSES))
def test_levels_between_are_levels_of_the_process(name):
    process = PROCESSES[name]
    rows = jax.tree.map(jnp.asarray, grid(process, 6, 'trailing' if process.steps else 'uniform_t'))
    for i in range(1, 5):
        t, s = (jax.tree.map(lambda a, i=i: a[i], rows) for i in (i, i + 1))
        level = level_between(process, t, s, 0.5)
        assert s.t < level.t < t.t and level.index == i
        np.testing.assert_allclose([level.alpha, level.sigma],
                                   [process.alpha(np.float64(level.t)), process.sigma(np.float64(level.t))], rtol=2e-4)
        lam = [float(jnp.log(a.alpha / a.sigma)) for a in (t, level, s)]
        np.testing.assert_allclose(lam[1], (lam[0] + lam[2]) / 2, atol=2e-6)


def test_a_level_beyond_a_table_keeps_its_noise():
    """Grids may start noisier than the table (Karras); the network is then told the last index."""
    table = diffusion.discrete_ddpm()
    t, s = (Level(jnp.float32(999), jnp.float32(a), jnp.float32(1.0), 0, 1) for a in (1e-3, 2e-3))
    level = level_between(table, t, s, 0.5)
    assert level.t == 999
    np.testing.assert_allclose(level.alpha / level.sigma, np.sqrt(2) * 1e-3, rtol=1e-5)


DEGENERATE = [(a, b) for a in ('noise', 'data', 'middle') for b in ('noise', 'data', 'middle')]
LEVELS = {'noise': (0.0, 1.0), 'data': (1.0, 0.0), 'middle': (0.6, 0.8)}


def degenerate(run):
    """run(x, rows) between pure noise, the data and a level in between; staying on a level keeps x."""
    x_T = jnp.asarray([[0.3, -1.0, 2.0], [1.0, 0.0, 0.5]])
    for start, stop in (('noise', 'data'), ('noise', 'middle'), ('middle', 'data'), ('noise', 'noise'),
                        ('data', 'data'), ('middle', 'middle')):
        pair = np.array([LEVELS[start], LEVELS[stop]], np.float32)
        times = np.array([{'noise': 1.0, 'data': 0.0, 'middle': 0.5}[a] for a in (start, stop)], np.float32)
        rows = Level(times, pair[:, 0], pair[:, 1], np.arange(2, dtype=np.int32), np.array([1, 1], np.int32))
        x = run(x_T, rows)
        assert np.isfinite(x).all(), (start, stop)
        if start == stop and start != 'noise':
            np.testing.assert_allclose(x, x_T, atol=1e-5)


def test_degenerate_steps_are_finite():
    vp = PROCESSES['vp']
    every = [s for s, _ in solvers(vp)] + [dpm_solver_interleaved(*a) for a in ((2,), (3, 'dpmsolver', 'heun'))]
    run = jax.jit(lambda which, x, rows: sample(Playback(None), ONE.denoise, one_of(which, every), x, rows).x)
    for which in range(len(every)):
        degenerate(lambda x, rows, w=which: run(w, x, rows))


def test_interleaved_from_pure_noise():
    """From alpha = 0 the first row cannot start a group: the second does, and no row is of less than order 1."""
    rows = grid(PROCESSES['zero_snr'], 12, 'trailing')
    fine = grid(PROCESSES['zero_snr'], 500, 'trailing')
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3)), jnp.float32)
    run = jax.jit(lambda sampler, x, rows: sample(Playback(None), ONE.denoise, sampler, x, rows).x, static_argnums=0)
    truth = run(heun(), x, fine)
    error, first = (np.abs(run(s, x, rows) - truth).max() for s in (dpm_solver_interleaved(), euler()))
    assert error < 0.7 * first, (error, first)


@pytest.mark.parametrize('call, match', [
    (lambda: dpm_solver_singlestep(PROCESSES['vp'], 4), 'order.*4'),
    (lambda: dpm_solver_singlestep(PROCESSES['vp'], 2, 'ddim'), "'ddim'.*dpmsolver"),
    (lambda: dpm_solver_interleaved(2, solver_type='euler'), "'euler'.*midpoint"),
    (lambda: dpmpp_2s(PROCESSES['vp'], 0.0), 'r must'),
    (lambda: dpmpp_2s(PROCESSES['vp'], 1.5), 'r must.*1.5'),
])
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
