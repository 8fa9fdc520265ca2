"""Step-by-step parity with diffusers' single-step and stochastic schedulers on recorded model outputs and noise.

The reference works on x / alpha; ours runs on the variance preserving process with the same sigma / alpha, so the
levels in between are found through a process that the reference never saw.
"""


import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import diffusion, sampling
from gen_jax.sampling import chain, ddpm, dpm_solver_interleaved, euler, langevin, lcm, reverse_diffusion, sample
from gen_jax.types import Level, Sampler
from tests.oracles import PurposePlayback
from tests.sampling.reference import MAX_STEPS, PREDICTIONS, recorded, relative

VP = diffusion.vp()
X_OVER_ALPHA = ('euler_ancestral', 'dpm2', 'dpm2_ancestral', 'dpmpp_sde', 'churn')


@pytest.fixture(scope='module')
def golden():
    golden = recorded('singlestep', 'xs')
    sigmas = golden['levels'][golden['sigmas']]
    for s in golden['settings']:
        s['sigmas'], sigmas = np.split(sigmas, [s['steps'] + 1])
        s['xs'] = s['xs'].astype(np.float64)
    return golden


def rows_of(s, alpha=None):
    """The reference's own levels as a padded grid: variance preserving, or with `alpha` = 1."""
    rho = s['sigmas']
    alpha = 1 / np.sqrt(1 + rho ** 2) if alpha is None else np.full_like(rho, alpha)
    with np.errstate(divide='ignore'):
        t = VP.inverse(-np.log(rho)) if 'times' not in s else np.append(s['times'], 0.0)
    pad = [np.pad(a, (0, MAX_STEPS - s['steps']), mode='edge').astype(np.float32) for a in (t, alpha, alpha * rho)]
    index = np.arange(MAX_STEPS + 1, dtype=np.int32)
    return Level(*pad, index, np.full_like(index, s['steps']))


def runner(golden, samplers, purposes=('z', 'z2', 'churn', 'langevin'), calls=1, log_var=False):
    """(setting, which sampler, traced option) -> x after every step, in the reference's units; one program for all."""
    traces = []
    tables = dict(zip(purposes, [jnp.asarray(golden[n]) for n in ('noise', 'noise2')] + [None] * 2, strict=False))
    tables.update({p: jnp.asarray(golden['noise']) for p in purposes if tables.get(p) is None})
    outputs = jnp.asarray(golden['outputs'])

    @jax.jit
    def run(kind, which, option, x_T, rows):
        traces.append(1)

        def denoise(x, level, cond):
            later = (level.t != rows.t[level.index]).astype(jnp.int32) if calls == 2 else 0
            raw = outputs[calls * level.index + later]
            d = jax.lax.switch(kind, [lambda p=p: p.denoiser(lambda *_: raw, VP)(x, level, cond)
                                      for p in PREDICTIONS.values()])
            return d._replace(log_var=0.5 * (1 + jnp.asarray(golden['noise2'])[level.index])) if log_var else d

        made = samplers(option) if callable(samplers) else samplers

        def step(noise, denoise, point, level, state):
            return jax.lax.switch(which, [lambda s=s: s.step(noise, denoise, point, level, state) for s in made])

        sampler = made[0] if len(made) == 1 else Sampler(made[0].init, step)
        return sample(PurposePlayback(tables), denoise, sampler, x_T, rows, trace=lambda point: point.x)[1]

    def run_setting(s, which=0, option=0.0, alpha=None):
        rows = rows_of(s, alpha)
        scaled = s['solver'] in X_OVER_ALPHA
        start = {'sde_ve': 50.0}.get(s['solver'], rows.alpha[0] * 14.0 if scaled else 1.0)
        kind = list(PREDICTIONS).index(s.get('prediction', 'epsilon'))
        xs = run(kind, which, np.float32(option), golden['x_T'] * np.float32(start), rows)
        xs = np.asarray(xs, np.float64)[:s['steps']]
        assert len(traces) == 1, 'a change of setting recompiled the sampler'
        return xs / rows.alpha[1:s['steps'] + 1, None, None] if scaled else xs

    return run_setting


@pytest.mark.parametrize('solver, calls', [('euler_ancestral', 1), ('dpm2', 2), ('dpm2_ancestral', 2),
                                           ('dpmpp_sde', 2)])
def test_in_sigma_over_alpha(golden, solver, calls):
    make = getattr(sampling, solver)
    run = runner(golden, [make() if solver == 'euler_ancestral' else make(VP)], calls=calls)
    settings = [s for s in golden['settings'] if s['solver'] == solver]
    assert len(settings) == 48
    worst = max(relative(run(s), s['xs']).max() for s in settings)
    assert worst <= 1e-5, worst


def test_interleaved(golden):
    """DPMSolverSinglestepScheduler: all orders, both algorithms, both solver types, with and without lower orders."""
    settings = [s for s in golden['settings'] if s['solver'] == 'interleaved']
    keys = ('order', 'algorithm', 'kind', 'lower_order_final')
    kinds = sorted({tuple(s[k] for k in keys) for s in settings})
    worst = 0.0
    for order in (1, 2, 3):
        mine = [k for k in kinds if k[0] == order]
        run = runner(golden, [dpm_solver_interleaved(*k) for k in mine])
        for s in (s for s in settings if s['order'] == order):
            worst = max(worst, relative(run(s, mine.index(tuple(s[k] for k in keys))), s['xs']).max())
    assert len(settings) == 140 and worst <= 1e-5, worst


def test_lcm(golden):
    run = runner(golden, [lcm(boundary=True)])
    settings = [s for s in golden['settings'] if s['solver'] == 'lcm']
    assert len(settings) == 24
    worst = max(relative(run(s), s['xs']).max() for s in settings)
    assert worst <= 1e-5, worst


def test_learned_variance(golden):
    run = runner(golden, [ddpm('learned')], log_var=True)
    settings = [s for s in golden['settings'] if s['solver'] == 'learned']
    assert len(settings) == 24
    worst = max(relative(run(s), s['xs']).max() for s in settings)
    assert worst <= 1e-5, worst


def test_predictor_corrector_on_ve(golden):
    """ScoreSdeVeScheduler: corrector with the norms averaged over the batch, then reverse diffusion."""
    def alternating(sampler, k):
        """The k-th of the two calls of each row."""
        def step(noise, denoise, point, s, state):
            return sampler.step(noise, lambda x, level: denoise(x, level._replace(index=2 * level.index + k)), point,
                                s, state)
        return Sampler(sampler.init, step)

    def keep(sampler):  # the levels' own index again
        def step(noise, denoise, point, s, state):
            point, state = sampler.step(noise, denoise, point, s, state)
            return point._replace(level=s), state
        return Sampler(sampler.init, step)

    pc = keep(chain(alternating(langevin(0.16, per_example=False), 0), alternating(reverse_diffusion(), 1)))
    run = runner(golden, [pc], purposes=('langevin', 'z'))
    settings = [s for s in golden['settings'] if s['solver'] == 'sde_ve']
    worst = max(relative(run(s, alpha=1.0), s['xs']).max() for s in settings)
    assert len(settings) == 3 and worst <= 1e-5, worst


def churned(s, golden):
    """Euler after churn by hand in float64 (Karras et al. 2022, Algorithm 2, lines 4-8), for either prediction."""
    x, xs = 14.0 * golden['x_T'].astype(np.float64), []
    s_churn, s_tmin, s_tmax, s_noise = s['churn']
    for i, (sigma, after) in enumerate(zip(s['sigmas'][:-1], s['sigmas'][1:], strict=True)):
        gamma = min(s_churn / s['steps'], np.sqrt(2) - 1) if s_tmin <= sigma <= s_tmax else 0.0
        hat = sigma * (1 + gamma)
        x = x + np.sqrt(hat ** 2 - sigma ** 2) * s_noise * golden['noise'][i]
        raw = golden['outputs'][i]
        x0 = x - hat * raw if s['prediction'] == 'epsilon' else x / (hat ** 2 + 1) - hat / np.sqrt(hat ** 2 + 1) * raw
        x = x + (after - hat) * (x - x0) / hat
        xs.append(x)
    return np.stack(xs)


def test_churn(golden):
    """EulerDiscreteScheduler with churn, eps prediction.

    With v prediction the reference converts at sigma although x has been moved to sigma_hat (its eps branch uses
    sigma_hat), so x0 is wrong whenever gamma > 0; ours follows Algorithm 2. (It also calls the network before adding
    the noise, at the level before; with recorded outputs this does not show.)
    """
    run = runner(golden, lambda churn: [chain(sampling.churn(VP, *churn), euler())])
    worst, paper, wrong = 0.0, 0.0, []
    for s in (s for s in golden['settings'] if s['solver'] == 'churn'):
        ours = run(s, option=s['churn'])
        paper = max(paper, relative(ours, churned(s, golden)).max())
        error = relative(ours, s['xs']).max()
        if s['prediction'] == 'v_prediction' and s['churn'][0] > 0:
            wrong.append(error)
        else:
            worst = max(worst, error)
    assert worst <= 1e-5 and paper <= 1e-5, (worst, paper)
    assert len(wrong) == 12 and min(wrong) > 1e-3, wrong
