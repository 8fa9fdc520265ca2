"""scheduler_config.json of diffusers read as ours: levels, labels, options and defaults against diffusers 0.42.1."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import sampling
from gen_jax.diffusion import parameterisation
from gen_jax.sampling import from_diffusers, make_clip, make_sampler, retarget, sample
from gen_jax.sampling.compat_options import OPTIONS
from gen_jax.types import Denoised
from tests.oracles import Playback

GOLDEN = Path(__file__).parents[1] / 'golden'


@pytest.fixture(scope='module')
def golden():
    with np.load(GOLDEN / 'grids.npz') as file:
        golden = dict(file)
    settings = json.loads(str(golden['settings']))
    ends = np.cumsum([s['rows'] for s in settings])[:-1]
    for name in ('times', 'alpha', 'sigma'):
        for s, rows in zip(settings, np.split(golden[name], ends), strict=True):
            s[name] = rows
    return settings, json.loads(str(golden['defaults']))


def read(s, **options):
    return from_diffusers({'_class_name': s['class'], **{k: v for k, v in s['config'].items() if k != 'mu'}}, **options)


def test_levels(golden):
    """Every class x spacing x steps x sigma option: what it visits, and what the network is told there."""
    seen, worst, labels = set(), 0.0, 0.0
    for s in golden[0]:
        ours = read(s)
        rows = ours.grid(s['steps'], max_steps=60, mu=s['config'].get('mu'))
        n, label = s['rows'], np.asarray(ours.parameterisation.label(rows, ours.process), np.float64)
        assert rows.last[0] == n - 1 and rows.t.shape == (61,), s
        if s['class'] == 'DDIMInverseScheduler':
            label = label[1:]  # the network is told where it goes
        own = 10.0 if s['class'] == 'IPNDMScheduler' else 1.0  # that one takes roots of 1 - sigma^2 in float32
        for got, want in ((rows.alpha[:n], s['alpha']), (rows.sigma[:n], s['sigma'])):
            worst = max(worst, np.max(np.abs(got - want) / (1e-6 * np.abs(want) + 2e-7)) / own)
        want = s['times'][:-1]
        labels = max(labels, np.max(np.abs(label[:n - 1] - want) / np.maximum(np.abs(want), 1.0)))
        np.testing.assert_allclose(ours.init_noise_sigma(rows), s['init_noise_sigma'], rtol=2e-6)
        seen.add(s['class'])
    assert seen == set(OPTIONS) and len(golden[0]) == 516
    assert worst <= 1 and labels <= 2e-6, (worst, labels)


def test_options_and_defaults(golden):
    """Every option that the class has, with its default."""
    for kind, options in golden[1].items():
        ours = {key: None if value == float('-inf') else value for key, value in OPTIONS[kind].items()}
        theirs = {key: None if value == float('-inf') else value for key, value in options.items()}
        assert ours == theirs, kind


@pytest.mark.parametrize('kind', OPTIONS)
def test_every_sampler_can_be_made(kind):
    scheduler = from_diffusers({'_class_name': kind, '_diffusers_version': '0.42.1', 'clip_sample_range': 2.0})
    assert hasattr(make_sampler(scheduler), 'step') and scheduler.sampler['name'] in sampling.SAMPLERS
    assert scheduler.targets(5) is None
    clips = kind in ('DDPMScheduler', 'DDIMScheduler', 'DDIMInverseScheduler')
    assert (scheduler.clip is not None) == clips


def test_arguments_of_samplers():
    def spec(kind, **config):
        return from_diffusers({'_class_name': kind, **config}).sampler

    assert spec('PNDMScheduler', skip_prk_steps=True) == {'name': 'pndm', 'skip_prk_steps': True, 'compat': False}
    assert spec('DPMSolverMultistepScheduler', solver_order=3, algorithm_type='sde-dpmsolver++', solver_type='heun',
                euler_at_final=True) == {
        'name': 'dpm_solver_multistep', 'order': 3, 'algorithm_type': 'sde-dpmsolver++', 'solver_type': 'heun',
        'lower_order_final': True, 'euler_at_final': True, 'compat': False}
    assert spec('UniPCMultistepScheduler', disable_corrector=[0, 1])['disable_corrector'] == (0, 1)
    assert spec('FlowMatchEulerDiscreteScheduler', stochastic_sampling=True) == {'name': 'lcm'}
    assert spec('DDPMScheduler', variance_type='learned_range')['variance'] == 'learned'
    assert make_sampler(from_diffusers({'_class_name': 'DDIMScheduler'}), eta=1.0)


def test_clips():
    clip = from_diffusers({'_class_name': 'DDIMScheduler', 'thresholding': True, 'sample_max_value': 3.0}).clip
    assert clip == {'name': 'dynamic_threshold', 'percentile': 0.995, 'max_value': 3.0, 'recompute_eps': False}
    heun = from_diffusers({'_class_name': 'HeunDiscreteScheduler', 'clip_sample': True})
    assert heun.clip == {'name': 'clip_x0', 'limit': 1.0, 'recompute_eps': True}
    rows = jax.tree.map(lambda a: a[0], heun.grid(3))
    out = make_clip(heun)(lambda x, level, cond: Denoised(2.0 * x, x))(jnp.ones((1, 2)), rows, {})
    np.testing.assert_allclose(out.x0, 1.0)
    np.testing.assert_allclose(rows.alpha * out.x0 + rows.sigma * out.eps, 1.0, rtol=1e-6)


LATENT = {'beta_schedule': 'scaled_linear', 'beta_start': 0.00085, 'beta_end': 0.012}


@pytest.mark.parametrize('solver', ['ddim', 'ddpm'])
def test_compat_follows_diffusers_where_it_deviates(solver):
    """DDIM on linspace goes to t - T // steps (diffusers#12633); DDPM's large variance reaches the last sample.

    tests/sampling/test_golden.py shows that the defaults follow the papers there.
    """
    with np.load(GOLDEN / 'schedulers.npz') as file:
        golden = dict(file)
    settings = json.loads(str(golden['settings']))
    rows = np.split(golden['xs'], np.cumsum([s['steps'] for s in settings])[:-1])
    predictions = {'epsilon': parameterisation.eps(1.0), 'sample': parameterisation.x0(1.0),
                   'v_prediction': parameterisation.v(1.0)}
    traces = []

    @jax.jit
    def run(kind, limit, eta, grid, targets):
        traces.append(1)

        def denoise(x, level, cond):
            raw = jnp.asarray(golden['outputs'])[level.index]
            d = jax.lax.switch(kind, [lambda x, p=p: p.denoiser(lambda *_: raw, None)(x, level, cond)
                                      for p in predictions.values()], x)
            return d._replace(x0=jnp.clip(d.x0, -limit, limit))

        sampler = sampling.ddim(eta) if solver == 'ddim' else sampling.ddpm('fixed_large')
        return sample(Playback(jnp.asarray(golden['noise'])), denoise, retarget(sampler, targets), golden['x_T'],
                      grid, trace=lambda point: point.x)[1]

    worst, seen = 0.0, 0
    for s, theirs in zip(settings, rows, strict=True):
        uneven = s['solver'] == 'ddim' and s['spacing'] == 'linspace'
        large = s['variance'] == 'fixed_large' and s['spacing'] == 'trailing'
        if s['solver'] != solver or not (uneven or large):
            continue
        betas = LATENT if s['schedule'] == 'scaled_linear' else {'beta_schedule': s['schedule']}
        ours = from_diffusers({
            '_class_name': f'{solver.upper()}Scheduler', **betas, 'timestep_spacing': s['spacing'],
            'prediction_type': s['prediction'], **({'variance_type': s['variance']} if solver == 'ddpm' else {})},
            compat=True)
        xs = run(list(predictions).index(s['prediction']), np.float32(1.0 if s['clip'] else np.inf),
                 np.float32(s['eta'] or 0.0), *(make(s['steps'], max_steps=50) for make in (ours.grid, ours.targets)))
        xs = np.asarray(xs)[:s['steps']]
        worst, seen = max(worst, np.max(np.abs(xs - theirs).max((1, 2)) / np.abs(theirs).max((1, 2)))), seen + 1
    assert len(traces) == 1 and seen == {'ddim': 81, 'ddpm': 27}[solver], seen
    assert worst <= 1e-5, worst


def test_compat_on_uneven_strides():
    """1000 // 7 = 142 and 1000 / 7 rounds to 142 or 143: source and target of a step, by hand."""
    config = {'timestep_spacing': 'trailing', **LATENT}
    ddim = from_diffusers({'_class_name': 'DDIMScheduler', **config}, compat=True)
    times = [999, 856, 713, 570, 428, 285, 142]
    np.testing.assert_array_equal(ddim.grid(7).t, [*times, -1])
    np.testing.assert_array_equal(ddim.targets(7).t[1:], [857, 714, 571, 428, 286, 143, 0])
    inverse = from_diffusers({'_class_name': 'DDIMInverseScheduler', **config}, compat=True)
    np.testing.assert_array_equal(inverse.grid(7).t, [0, 143, 286, 428, 571, 714, 857, 999])
    np.testing.assert_array_equal(inverse.targets(7).t[1:], times[::-1])
    np.testing.assert_allclose(inverse.targets(7).sigma[1:], ddim.grid(7).sigma[:7][::-1], rtol=1e-6)
    assert inverse.sampler == {'name': 'ddim_inverse', 'compat': True}
    assert from_diffusers({'_class_name': 'DDIMScheduler', **config}).targets(7) is None
    sampler = sampling.ddim()
    assert retarget(sampler, None) is sampler


def euler(**config):
    return from_diffusers({'_class_name': 'EulerDiscreteScheduler', **config})


@pytest.mark.parametrize('call, match', [
    (lambda: from_diffusers({'_class_name': 'EulerScheduler'}), "'EulerScheduler'.*did you mean.*Euler.*choose"),
    (lambda: from_diffusers({}), '_class_name=None.*DDIMScheduler'),
    (lambda: euler(use_karras_sigma=True), "use_karras_sigma=True.*did you mean 'use_karras_sigmas'"),
    (lambda: euler(use_karras_sigmas=True, use_beta_sigmas=True), 'only one of'),
    (lambda: euler(interpolation_type='log_linear'), "interpolation_type='log_linear'.*'linear'"),
    (lambda: euler(timestep_spacing='even'), "'even'.*'linspace'"),
    (lambda: euler(prediction_type='noise'), "prediction_type 'noise'.*epsilon"),
    (lambda: euler(beta_schedule='cosine'), "'cosine'.*scaled_linear"),
    (lambda: euler().grid(0), 'steps.*0'),
    (lambda: euler().grid(1001), '1001.*1000'),
    (lambda: euler().grid(10, mu=1.0), 'mu=1.0.*use_dynamic_shifting'),
    (lambda: euler().grid(51, max_steps=50), '51.*50'),
    (lambda: from_diffusers({'_class_name': 'DDIMScheduler', 'steps_offset': 1}).grid(1000), 'steps_offset=1.*fewer'),
    (lambda: from_diffusers({'_class_name': 'LCMScheduler'}).grid(51), '51.*50'),
    (lambda: from_diffusers({'_class_name': 'FlowMatchEulerDiscreteScheduler', 'use_dynamic_shifting': True}).grid(9),
     'mu'),
    (lambda: from_diffusers({'_class_name': 'FlowMatchEulerDiscreteScheduler', 'invert_sigmas': True}),
     'invert_sigmas=True'),
    (lambda: from_diffusers({'_class_name': 'DPMSolverMultistepScheduler', 'algorithm_type': 'dpmsolver'}),
     "final_sigmas_type='sigma_min'"),
    (lambda: from_diffusers({'_class_name': 'EDMEulerScheduler', 'prediction_type': 'v_prediction'}), 'v_prediction'),
])
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def network(scale):
    """As in tests/golden/make_compat.py: a smooth function of what it is given and told."""

    def network(x, label, cond):
        u = scale * label.reshape(-1, *[1] * (x.ndim - 1))
        return 0.8 * jnp.sin(1.3 * x + u) + 0.2 * jnp.cos(3.0 * u) * x

    return network


def test_samples_of_published_configs():
    """Process, parameterisation, thresholding, grid and solver of a config together make diffusers' sample."""
    with np.load(GOLDEN / 'compat.npz') as file:
        golden = dict(file)
    noise, steps, errors = Playback(jnp.asarray(golden['noise'])), int(golden['steps']), {}
    for case, want in zip(json.loads(str(golden['cases'])), golden['xs'], strict=True):
        config = dict(case['config'])
        mu = config.pop('mu', None)
        ours = from_diffusers({'_class_name': case['class'], **config}, compat=True)
        rows = ours.grid(steps, mu=mu)
        sampler = retarget(make_sampler(ours), ours.targets(steps))
        denoise = make_clip(ours)(ours.parameterisation.denoiser(network(case['scale']), ours.process))
        start = golden['z'] * (1.0 if 'Inverse' in case['class'] else np.float32(ours.init_noise_sigma(rows)))
        got = jax.jit(lambda x, s=sampler, d=denoise, rows=rows: sample(noise, d, s, x, rows).x)(start)
        errors[case['title']] = float(np.abs(got - want).max() / np.abs(want).max())
    assert len(errors) == 28
    assert max(errors.values()) <= 1e-5, errors
