"""Step-by-step parity with diffusers' multistep schedulers on recorded model outputs, noise and levels."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.sampling import deis, dpm_solver_multistep, ipndm, lms, pndm, sample, unipc
from gen_jax.types import Level, Process
from tests.oracles import Playback
from tests.sampling.reference import MAX_STEPS, PREDICTIONS, process_of, recorded, relative


@pytest.fixture(scope='module')
def golden():
    golden = recorded('multistep', 'xs')
    lengths = {s['grid']: s['steps'] + 1 for s in golden['settings']}
    grids = np.split(golden['grids'], np.cumsum([lengths[i] for i in range(len(lengths))])[:-1], axis=1)
    for s in golden['settings']:
        rows = np.pad(grids[s['grid']], ((0, 0), (0, MAX_STEPS - s['steps'])), mode='edge')
        index = np.arange(MAX_STEPS + 1)
        s['rows'] = Level(*rows, index, np.full_like(index, s['steps']))
    return golden


def table_of(schedule):
    """alpha and sigma of every index, [2, T]."""
    process, t = process_of(schedule), np.arange(1000)
    return np.stack([process.alpha(t), process.sigma(t)])


def network(x, t):
    return 0.5 * jnp.tanh(x) + 0.3 * jnp.cos(t / 200)


def runner(golden, make, live=False):
    """(setting) -> x after every step: one program for all prediction types, schedules, spacings and steps."""
    traces = []

    @jax.jit
    def run(kind, rows, table):
        traces.append(1)
        x_T, outputs, draws = (jnp.asarray(golden[name], rows.alpha.dtype) for name in ('x_T', 'outputs', 'noise'))
        process = Process(*(lambda t, a=a: a[jnp.int32(t)] for a in table), None, 0, 999)

        def denoise(x, level, cond):
            raw = network(x, level.t) if live else outputs[level.index]
            return jax.lax.switch(kind, [lambda x, p=p: p.denoiser(lambda *_: raw, process)(x, level, cond)
                                         for p in PREDICTIONS.values()], x)

        return sample(Playback(draws), denoise, make(process), x_T, rows, trace=lambda point: point.x)[1]

    def run_setting(s):  # in float32, but for a jax.enable_x64
        rows = jax.tree.map(jnp.asarray, s['rows'])
        xs = run(list(PREDICTIONS).index(s['prediction']), rows, table_of(s['schedule']) if live else np.zeros((2, 1)))
        assert len(traces) == 1, 'a change of setting recompiled the sampler'
        return np.asarray(xs)[:s['steps']]

    return run_setting


def compare(golden, solver, make, live=False, ill=()):
    """(worst error, number of settings, those whose reference is not finite), of one program per set of options."""
    chosen = [s for s in golden['settings'] if s['solver'] == solver and s['schedule'] != 'own']
    worst, broken, key = 0.0, [], lambda s: json.dumps(s['options'], sort_keys=True)
    for _, group in itertools.groupby(sorted(chosen, key=key), key):
        group = list(group)
        run = runner(golden, lambda process, s=group[0]: make(process, s['options']), live)
        for s in group:
            ours = run(s)
            errors = relative(ours, s['xs'])
            if np.isnan(errors[-1]):
                broken.append((s, ours))
                errors = errors[:-1]
            if ill and errors.max() > 1e-5:
                ill.remove(tuple(s[name] for name in ('solver', 'prediction', 'schedule', 'spacing', 'steps')))
                with jax.enable_x64(True):
                    double = runner(golden, lambda process, s=s: make(process, s['options']), live)
                    errors = relative(double(s), s['xs'])
                assert errors.max() < 1e-6
            worst = max(worst, errors.max())
    return worst, len(chosen), broken


def test_dpm_solver(golden):
    """Order 3 agrees with `compat` only: see test_third_order_of_the_reference.

    Two settings amplify the rounding of float32 levels to 1.9e-5, and agree to 1e-6 in float64: 'sde-dpmsolver' from
    alpha = 5e-5, whose x is then of size 2500, and the reference's wrong order 3 of 'sde-dpmsolver++', which divides
    by the step.
    """
    def make(process, options):
        return dpm_solver_multistep(options['solver_order'], compat=True,
                                    **{k: v for k, v in options.items() if k != 'solver_order'})

    ill = [('dpm', 'sample', 'squaredcos_cap_v2', 'trailing', 25), ('dpm', 'sample', 'scaled_linear', 'linspace', 50)]
    worst, seen, broken = compare(golden, 'dpm', make, ill=ill)
    assert not ill
    assert seen == 153 and not broken
    assert worst <= 1e-5, worst


def test_deis(golden):
    worst, seen, broken = compare(golden, 'deis', lambda process, options: deis(options['solver_order']))
    assert seen == 27 and not broken
    assert worst <= 1e-5, worst


def test_lms(golden):
    worst, seen, broken = compare(golden, 'lms', lambda process, options: lms(options['order']))
    assert seen == 24 and not broken
    assert worst <= 1e-5, worst


def test_unipc(golden):
    """The reference's bh1 ends in NaN at sigma = 0 (B(h) = h is infinite there, times 0); ours in its x0."""
    def make(process, options):
        return unipc(options['solver_order'], **{k: tuple(v) if isinstance(v, list) else v
                                                 for k, v in options.items() if k != 'solver_order'})

    worst, seen, broken = compare(golden, 'unipc', make)
    assert seen == 76
    assert worst <= 1e-5, worst
    assert len(broken) == 9 and all(s['options']['solver_type'] == 'bh1' and s['final'] == 'zero' for s, _ in broken)
    ends = [(ours[-1], golden['outputs'][s['steps'] - 1]) for s, ours in broken if s['prediction'] == 'sample']
    assert ends
    for ours, predicted in ends:
        np.testing.assert_allclose(ours, predicted, atol=1e-6)


@pytest.mark.parametrize('skip', [True, False])
@pytest.mark.parametrize('prediction', ['epsilon', 'v_prediction'])
def test_pndm(golden, prediction, skip):
    """With v-prediction the reference averages v, as `compat` does, where the paper averages eps."""
    some = dict(golden, settings=[dict(s, options={}) for s in golden['settings'] if s['solver'] == 'pndm' and (
        s['spacing'] != 'linspace' and s['options']['skip_prk_steps'] == skip and s['prediction'] == prediction)])
    worst, seen, _ = compare(some, 'pndm', lambda process, _: pndm(
        process, skip, compat=prediction == 'v_prediction'), live=True)
    assert seen == 7
    assert worst <= 1e-5, worst
    if prediction == 'v_prediction':
        far, _, _ = compare(some, 'pndm', lambda process, _: pndm(process, skip), live=True)
        assert far > 1e-3


def adams_bashforth(rows, read, x, first='heun'):
    """x after every step of PLMS in float64: Liu et al. 2022, Eq. 9 and 12. read(x, i) -> eps at row i."""
    def carry(x, e, i):
        return rows.alpha[i + 1] / rows.alpha[i] * (x - rows.sigma[i] * e) + rows.sigma[i + 1] * e

    past, xs = [], []
    for i in range(int(rows.last[0])):
        past.append(read(x, i))
        mixed = {1: past[-1], 2: (3 * past[-1] - past[-2 % len(past)]) / 2,
                 3: (23 * past[-1] - 16 * past[-2 % len(past)] + 5 * past[-3 % len(past)]) / 12}.get(
            len(past), (55 * past[-1] - 59 * past[-2 % len(past)] + 37 * past[-3 % len(past)]
                        - 9 * past[-4 % len(past)]) / 24)
        if i == 0 and first == 'heun':
            mixed = (mixed + read(carry(x, mixed, 0), 1)) / 2
        x = carry(x, mixed, i)
        xs.append(x)
    return np.stack(xs)


def test_pndm_linspace_follows_the_paper_and_not_the_reference(golden):
    """The reference goes to the alpha at t - T // steps, which is off its own linspace grid (as DDIM: diffusers#12633).

    Ours goes to the next level visited, by the paper's formulas.
    """
    settings = [s for s in golden['settings'] if s['solver'] == 'pndm' and s['spacing'] == 'linspace' and (
        s['options']['skip_prk_steps'])]
    assert len(settings) == 2
    run = runner(golden, lambda process: pndm(), live=True)
    for s in settings:
        rows = s['rows']

        def read(x, i, rows=rows, s=s):
            raw = 0.5 * np.tanh(x) + 0.3 * np.cos(rows.t[i] / 200)
            return raw if s['prediction'] == 'epsilon' else rows.sigma[i] * x + rows.alpha[i] * raw

        ours = run(s)
        assert relative(ours, adams_bashforth(rows, read, golden['x_T'].astype(np.float64))).max() <= 1e-5
        assert relative(ours, s['xs'])[:-1].max() > 1e-3


def test_ipndm(golden):
    worst, seen, broken = compare(golden, 'ipndm', lambda process, options: ipndm())
    assert seen == 6 and not broken
    assert worst <= 1e-5, worst


def test_ipndm_from_pure_noise_follows_the_paper_and_not_the_reference(golden):
    """On its own grid, which begins at alpha = 0, the reference divides (x - eps = 0) by 1e-8 for its first x0.

    It is the network's -v there, and the paper's first step is DDIM's. Recorded is what follows from the second row.
    """
    s, = (s for s in golden['settings'] if s['schedule'] == 'own')
    rows = s['rows']
    assert rows.alpha[0] == 0 and rows.sigma[0] == 1
    ours = runner(golden, lambda process: ipndm())(s)
    first = rows.alpha[1] * -golden['outputs'][0] + rows.sigma[1] * golden['x_T']
    np.testing.assert_allclose(ours[0], first, atol=1e-6)

    def read(x, i):
        return rows.sigma[i] * x + rows.alpha[i] * golden['outputs'][i]

    later = jax.tree.map(lambda a: a[1:], rows)._replace(last=rows.last - 1)
    by_hand = adams_bashforth(later, lambda x, i: read(x, i + 1), s['xs'][0].astype(np.float64), None)
    assert relative(by_hand, s['xs'][1:]).max() < 1e-6
    eps = [read(golden['x_T'], 0), read(first, 1)]
    second = rows.alpha[2] / rows.alpha[1] * (first - rows.sigma[1] * (1.5 * eps[1] - 0.5 * eps[0]))
    np.testing.assert_allclose(ours[1], second + rows.sigma[2] * (1.5 * eps[1] - 0.5 * eps[0]), atol=1e-5)


@pytest.mark.parametrize('algorithm', ['dpmsolver', 'dpmsolver++', 'sde-dpmsolver++'])
def test_third_order_of_the_reference(golden, algorithm):
    """Lu et al. 2022b, Sec. 4, by quadrature of the very polynomial in lambda, in float64: ours agrees.

    The reference weighs the second difference by half the integral, and in 'sde-dpmsolver++' by half the integral
    less alpha: see the orders in test_multistep.py.
    """
    data, c = algorithm.endswith('++'), 2.0 if algorithm.startswith('sde-') else 1.0
    s = next(s for s in golden['settings'] if s['solver'] == 'dpm' and s['steps'] == 10 and (
        s['options']['algorithm_type'], s['options']['solver_order']) == (algorithm, 3))
    ours = runner(golden, lambda process: dpm_solver_multistep(3, algorithm, lower_order_final=False))(s)
    a, sig = s['rows'].alpha, s['rows'].sigma
    lam, draws = np.log(a[:10] / sig[:10]), golden['noise'].astype(np.float64)
    nodes, quadrature = np.polynomial.legendre.leggauss(40)
    u, quadrature = 0.5 * (nodes + 1), 0.5 * quadrature
    process, values = Process(None, None, None, 0, 1), []
    for i in range(9):
        x = golden['x_T'] if i == 0 else ours[i - 1]
        level = Level(0.0, a[i], sig[i], i, 10)
        with jax.enable_x64(True):
            d = PREDICTIONS[s['prediction']].denoiser(lambda *_, i=i: jnp.asarray(golden['outputs'][i]), process)(
                jnp.asarray(x, jnp.float64), level, {})
        values.append(np.asarray(d.x0 if data else d.eps, np.float64))
        if i < 2:
            continue
        h = lam[i + 1] - lam[i]
        p = sum(np.prod([(u - (lam[k] - lam[i]) / h) / ((lam[j] - lam[k]) / h) for k in range(i - 2, i + 1) if k != j],
                        axis=0)[:, None, None] * values[j] for j in range(i - 2, i + 1))
        if data:
            integral = np.einsum('q,qbd->bd', quadrature * c * h * np.exp(-c * h * (1 - u)), p)
            want = sig[i + 1] / sig[i] * np.exp(-(c - 1) * h) * x + a[i + 1] * integral
        else:
            integral = np.einsum('q,qbd->bd', quadrature * h * np.exp(h * (1 - u)), p)
            want = a[i + 1] / a[i] * x - sig[i + 1] * integral
        want = want + (c - 1) * sig[i + 1] * np.sqrt(1 - np.exp(-2 * h)) * draws[i]
        np.testing.assert_allclose(ours[i], want, atol=1e-5 * max(1, np.abs(want).max()))
    assert relative(ours, s['xs'])[2:-1].max() > 1e-3
