"""The public predicts of a diffusion system: every solver, corrector, guidance and use of a trained model."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen_jax import diffusion, systems
from gen_jax.build import predictor_for
from gen_jax.config import base_config
from gen_jax.diffusion import losses, parameterisation, times, weighting
from gen_jax.diffusion.loss_aware import loss_aware
from gen_jax.engine.evaluate import Predictor
from gen_jax.engine.sharding import make_mesh
from gen_jax.engine.update import init_state, make_update
from gen_jax.rng import Noise, example_keys
from gen_jax.sampling import CORRECTORS, SOLVERS
from gen_jax.types import Variables

CALLS = []
LABELS = np.arange(4, dtype=np.int32)
IMAGES = np.random.default_rng(0).uniform(-1, 1, (4, 4, 4, 1)).astype(np.float32)
BATCH = {'image': IMAGES, 'label': LABELS}


class Tiny(nn.Module):
    """A conditional perceptron that counts how often it is traced."""

    channels: int = 1

    @nn.compact
    def __call__(self, x, label, class_labels=None, deterministic=True):
        CALLS.append(x.shape)
        h = nn.Dense(8)(jnp.concatenate([x.reshape(x.shape[0], -1), jnp.sin(label / 300.0)[:, None]], -1))
        if class_labels is not None:
            h = h + nn.Embed(11, 8)(class_labels)
        return nn.Dense(x[0].size * self.channels)(jnp.tanh(h)).reshape(*x.shape[:-1], -1)


def system(process=None, param=None, **kwargs):
    kwargs = {'cond': {'class_labels': 'label'}, 'null': {'class_labels': 10}, 'max_steps': 8, 'levels': 17,
              'image_shape': (4, 4, 1), 'steps': 4, **kwargs}
    network = Tiny(2 if param and param.channels == 2 else 1)
    return systems.diffusion(network, process or diffusion.vp(), param or parameterisation.v(), **kwargs)


def one_device():
    return make_mesh({'data': 1}, jax.devices()[:1])


@functools.cache
def trained(discrete=False):
    s = system(diffusion.discrete_ddpm() if discrete else None)
    params, extra = s.init(jax.random.key(0), {k: jnp.asarray(v) for k, v in BATCH.items()})
    return Predictor(s, one_device()), Variables(params, extra)


def call(name, discrete=False, seed=0, batch=BATCH, **settings):
    predictor, variables = trained(discrete)
    return predictor.call(name, variables, seed=seed, first=0, batch=batch, options=predictor.options(name, settings))


def config():
    c = base_config()
    c.system = {'name': 'systems.diffusion', 'network': {'name': 'tests.systems.test_diffusion:Tiny'},
                'process': {'name': 'diffusion.vp'}, 'parameterisation': {'name': 'diffusion.parameterisation.v'},
                'cond': {'class_labels': 'label'}, 'null': {'class_labels': 10}, 'image_shape': (4, 4, 1),
                'max_steps': 8, 'steps': 4}
    return c


@pytest.mark.parametrize('name', [*SOLVERS, *CORRECTORS])
def test_no_recompilation_through_the_public_predict(name):
    """A rebuilt system, another scale, spacing, number of steps, seed, and every traced setting: one compilation."""
    part = {'solver': name} if name in SOLVERS else {'corrector': name, 'solver': 'ddim'}
    part = {'solver': name, 'corrector': 'langevin'} if name == 'no_predictor' else part
    _, variables = trained()
    outputs = []
    for settings in ({'guidance_scale': 2.0}, {'guidance_scale': 3.5, 'steps': 7},
                     {'guidance_scale': 1.0, 'steps': 8, 'spacing': 'karras', 'rho': 5.0}):
        predictor = predictor_for(config(), one_device())  # rebuilt from its config
        before = len(CALLS)
        for seed in (0, 1):
            out = predictor.call('generate', variables, seed=seed, first=0, batch={'label': LABELS},
                                 options=predictor.options('generate', {**part, **settings}))
            assert np.isfinite(out['image']).all()
            outputs.append(out['image'])
        assert (len(CALLS) == before) == (len(outputs) > 2), f'{name} recompiled for {settings}'
    predictor_for(config(), one_device())._jitted.clear()  # programs of other solvers are not kept in memory


def test_values_are_read_and_not_frozen():
    """Traced settings change the picture."""
    base = dict(steps=4, solver='ddim', guidance_scale=4.0)
    pictures = [call('generate', **{**base, **change})['image'] for change in (
        {}, {'eta': 0.7}, {'guidance_scale': 8.0}, {'steps': 5}, {'guidance_rescale': 0.8},
        {'threshold': 'none'}, {'guidance_sigma_lo': 5.0}, {'guidance_scale': None}, {'spacing': 'karras'},
        {'corrector': 'langevin'}, {'corrector': 'langevin', 'corrector_steps': 2})]
    for i in range(len(pictures)):
        for j in range(i):
            assert np.abs(pictures[i] - pictures[j]).max() > 1e-4, f'settings {i} and {j} agree'


@pytest.mark.parametrize('settings, match', [
    ({'steps': 0}, 'steps.*0'), ({'steps': 9}, '9.*8'), ({'solver': 'magic'}, 'choose from ddpm'),
    ({'corrector': 'magic'}, 'choose from .*langevin'), ({'spacing': 'magic'}, 'karras'), ({'eta': 1.5}, 'eta.*1.5'),
    ({'eta': 'x'}, 'eta'), ({'solver': 'heun', 'eta': 0.5}, 'eta.*heun'), ({'spacing': 'leading'}, 'continuous'),
    ({'guidance_rescale': 0.5}, 'guidance_scale'), ({'threshold': 'soft'}, 'dynamic'), ({'rho': 7.0}, 'rho'),
    ({'corrector_steps': 0}, 'corrector_steps'), ({'corrector_steps': 2}, 'no corrector'), ({'strength': 0.5}, 'edit'),
    ({'corrector': 'langevin', 'corrector_steps': 1.5}, '1.5'), ({'percentile': 0.9}, 'dynamic'),
    ({'solver': 'heun', 'straight': 'false'}, 'True or False'), ({'solver': 'deis', 'order': 2.0}, 'integer'),
    ({'t_end': -0.5}, 't_end=-0.5'), ({'t_start': 3.0}, 't_start=3.0'), ({'spacing': 'karras', 'rho': '7'}, 'karras'),
    ({'spacing': 'karras', 'sigma_max': 1e6}, 'more noise'), ({'guidance_scale': 2.0, 'guidance_sigma_lo': 3.0,
                                                   'guidance_sigma_hi': 1.0}, 'sigma_lo')])
def test_bad_settings(settings, match):
    with pytest.raises(ValueError, match=match):
        trained()[0].options('generate', settings)


@pytest.mark.parametrize('settings, match', [
    ({'steps': 1, 'spacing': 'leading'}, "one step starts at t = 0.*'trailing'"),
    ({'steps': 1, 'spacing': 'linspace'}, "one step starts at t = 0.*'trailing'"),
    ({'spacing': 'karras', 'rho': 'abc'}, "rho of spacing 'karras' must be a number, got 'abc'"),
    ({'spacing': 'karras', 'sigma_min': 'abc'}, "sigma_min of spacing 'karras' must be a number"),
    ({'spacing': 'custom', 'sigmas': 'abc'}, "sigmas of spacing 'custom' must be numbers, got 'abc'"),
    ({'guidance_scale': 2.0, 'guidance_sigma_lo': 'abc'}, "guidance_sigma_lo must be a number, got 'abc'"),
    ({'threshold': 'dynamic', 'percentile': 'abc'}, "percentile must be a number, got 'abc'"),
])
def test_bad_settings_of_a_table(settings, match):
    with pytest.raises(ValueError, match=match):
        trained(discrete=True)[0].options('generate', settings)


@pytest.mark.parametrize('name, settings, match', [
    ('edit', {'strength': 0.0}, 'strength'), ('edit', {'strength': 1.2}, 'strength'), ('inpaint', {'keep': 'x'}, 'top'),
    ('edit', {'strength': 'a'}, 'strength'), ('inpaint', {'jump_n_sample': 2.5}, 'jump_n_sample.*2.5'),
    ('inpaint', {'jump_length': 0}, 'jump_length'), ('inpaint', {'keep': np.ones((4, 4, 3))}, 'keep.*4, 4, 3'),
    ('reconstruct', {'solver': 'ddpm'}, 'draws noise'), ('reconstruct', {'eta': 0.5}, 'draws noise'),
    ('interpolate', {'pictures': 2.5}, 'pictures'), ('likelihood', {'probes': 1.5}, 'probes'),
    ('likelihood', {'max_nfe': 2.5}, 'max_nfe'), ('vlb', {'steps': 0}, 'steps'),
    ('inpaint', {'keep': np.ones((3, 3))}, '3.*4'), ('inpaint', {'keep': 2 * np.ones((4, 4))}, 'mask'),
    ('reconstruct', {'iterations': 0}, 'iterations'), ('interpolate', {'pictures': 1}, 'pictures'),
    ('likelihood', {'divergence': 'x'}, 'exact'), ('likelihood', {'tol': 0.0}, 'tol'),
    ('generate_ode', {'steps': 3}, 'steps'), ('vlb', {'variance': 'learned'}, 'learned_range')])
def test_bad_settings_of_other_predicts(name, settings, match):
    with pytest.raises(ValueError, match=match):
        trained(discrete=name == 'vlb')[0].options(name, settings)


@pytest.mark.parametrize('kwargs, match', [
    ({'weighting': weighting.min_snr(target='eps')}, r"target='v'"),
    ({'weighting': weighting.likelihood(diffusion.vp())}, r"target='v'"),
    ({'param': parameterisation.edm(0.5), 'weighting': weighting.edm(0.7)}, 'sigma_data=0.5'),
    ({'times': times.uniform(diffusion.flow())}, 'process'), ({'clip': -1.0}, 'clip'), ({'levels': 1}, 'levels'),
    ({'process': diffusion.discrete_ddpm(), 'times': times.uniform(diffusion.vp())}, 'steps 1000'),
    ({'process': diffusion.discrete_ddpm(), 'loss': losses.vlb()}, '256.*17'),
    ({'process': diffusion.discrete_ddpm(), 'loss': losses.vlb(levels=17), 'dequantise': True}, 'dequantise'),
    ({'image_range': (0.0, 1.0)}, 'clip'), ({'loss_times': 0}, 'loss_times'),
    ({'image_range': (0.0, 1.0), 'clip': None, 'settings': {'threshold': 'static'}}, 'image_range')])
def test_parts_that_do_not_fit(kwargs, match):
    with pytest.raises(ValueError, match=match):
        system(**kwargs)


def test_a_dequantised_model_gives_grey_levels_back():
    s = system(dequantise=True)
    grey = np.linspace(-1, 1, 17)[np.arange(16 * 4) % 17].reshape(4, 4, 4, 1).astype(np.float32)
    params, extra = s.init(jax.random.key(0), {k: jnp.asarray(v) for k, v in BATCH.items()})
    predictor, variables = Predictor(s, one_device()), Variables(params, extra)
    batch = {'image': grey, 'label': LABELS, 'mask': np.ones((4, 4, 4, 1), np.float32)}

    def inpaint(batch):
        return predictor.call('inpaint', variables, seed=0, first=0, batch=batch,
                              options=predictor.options('inpaint', {'steps': 2}))

    np.testing.assert_allclose(inpaint(batch)['image'], grey, atol=1e-6)
    free = inpaint({**batch, 'mask': 0 * batch['mask']})['image']
    np.testing.assert_allclose(8 * (free + 1), np.round(8 * (free + 1)), atol=1e-5)
    with pytest.raises(ValueError, match='mask.*255'):
        inpaint({**batch, 'mask': 255 * batch['mask']})


def test_a_condition_may_be_an_entry_of_an_argument():
    """As SDXL's pooled text: the network gets a dict, everything else has flat names."""
    seen = []

    class Nested(nn.Module):
        @nn.compact
        def __call__(self, x, t, added, *, deterministic=True):
            seen.append(sorted(added))
            return nn.Dense(1)(x) * (1 + added['pooled'].sum(-1) + added['size'])[:, None, None, None]

    batch = {'image': IMAGES, 'a': np.ones((4, 3), np.float32), 'b': np.arange(4, dtype=np.float32)}
    s = systems.diffusion(Nested(), diffusion.vp(), parameterisation.v(), image_shape=(4, 4, 1),
                          cond={'added/pooled': 'a', 'added/size': 'b'}, null={'added/pooled': 0.0}, cond_dropout=0.5)
    s = s._replace(optimizers={'unet': optax.sgd(1.0)})
    state = jax.eval_shape(lambda: init_state(s, 0, batch, {}))
    jax.eval_shape(make_update(s, seed=0, ema={}), state, batch)
    assert seen and all(names == ['pooled', 'size'] for names in seen)
    assert s.predict['generate'].reads == ('a', 'b')


def test_a_dropped_condition_is_what_the_batch_says():
    """`null` names an entry of the batch: in training, a dropped text is the embedding of '', row by row."""

    class Told(nn.Module):
        @nn.compact
        def __call__(self, x, t, text, *, deterministic=True):
            return nn.Dense(1)(x) * (1 + text.sum(-1))[:, None, None, None]

    def loss(dropout, **batch):
        s = systems.diffusion(Told(), diffusion.vp(), parameterisation.v(), image_shape=(4, 4, 1),
                              cond={'text': 'text'}, null={'text': 'none'}, cond_dropout=dropout)
        s = s._replace(optimizers={'unet': optax.sgd(1.0)})
        batch = {'image': IMAGES, **batch}
        state = init_state(s, 0, batch, {})
        noise = Noise(example_keys(0, np.arange(4)))
        return float(s.objectives['denoise'].loss(state.params, state, batch, noise)[0])

    text, none = np.float32([[1, 2], [3, 4], [5, 6], [7, 8]]), np.float32([[2, 0], [0, 3], [1, 1], [4, 0]])
    always, never = 1 - 1e-6, 1e-6
    np.testing.assert_allclose(loss(always, text=text, none=none), loss(never, text=none, none=text), rtol=1e-6)
    assert abs(loss(always, text=text, none=none) - loss(never, text=text, none=none)) > 0.1


def test_guidance_needs_an_unconditional_branch():
    for kwargs in ({'cond_dropout': 0.0}, {'null': {}}):
        with pytest.raises(ValueError, match='no unconditional branch'):
            system(**kwargs).predict['generate'].options(guidance_scale=2.0)
    with pytest.raises(ValueError, match='eta.*heun'):
        system(solver='heun', settings={'eta': 0.5})
    # A default of one solver is no error of another, chosen while sampling.
    system(solver='ddim', settings={'eta': 0.5}).predict['generate'].options(solver='heun')


def test_every_default_of_the_system_is_a_default_of_sampling():
    """Whatever system.settings names is as if it were asked for, until something else is."""
    named = {'steps': 3, 'spacing': 'karras', 'corrector': 'langevin', 'corrector_steps': 2, 'guidance_scale': 2.0,
             'guidance_rescale': 0.5, 'guidance_sigma_lo': 0.1, 'guidance_sigma_hi': 5.0, 'threshold': 'dynamic',
             'percentile': 0.9, 'eta': 0.3, 'rho': 5.0, 'snr': 0.1}
    asked = system().predict['generate'].options(**named)
    steps, spacing = named.pop('steps'), named.pop('spacing')
    s = system(steps=steps, spacing=spacing, settings=named)
    chex.assert_trees_all_equal(s.predict['generate'].options(), asked)
    assert s.predict['generate'].options(threshold='static')['threshold'].keys() == {'static'}
    assert s.predict['generate'].options(corrector='none')['repeat'].keys() == {'2'}
    assert s.predict['generate'].options(eta=0.9)['sampler'] != asked['sampler']


def test_what_can_be_reconstructed():
    s = system(solver='ddpm').predict
    s['encode'].options()  # the way back has a solver of its own
    for settings in ({}, {'solver': 'ddim', 'corrector': 'langevin'}, {'solver': 'ddim', 'eta': 0.1},
                     {'solver': 'dpm_solver_multistep', 'algorithm_type': 'sde-dpmsolver++'}):
        with pytest.raises(ValueError, match='draws noise'):
            s['reconstruct'].options(**settings)
    s['reconstruct'].options(solver='dpm_solver_multistep')


def test_editing_keeps_what_it_should():
    edited = [call('edit', strength=s, steps=8, solver='ddim')['image'] for s in (0.13, 1.0)]
    away = [np.abs(e - IMAGES).mean() for e in edited]
    assert away[0] < 0.5 * away[1]
    for extra in ({}, {'jump_length': 2, 'jump_n_sample': 2}):
        out = call('inpaint', keep='left', steps=8, **extra)['image']
        np.testing.assert_array_equal(out[:, :, :2], IMAGES[:, :, :2])
        assert np.abs(out[:, :, 2:] - IMAGES[:, :, 2:]).max() > 0.1
    masked = call('inpaint', batch={**BATCH, 'mask': np.ones((4, 4, 4, 1), np.float32)}, steps=4)['image']
    np.testing.assert_array_equal(masked, IMAGES)


def test_inversion_brings_the_picture_back():
    away = [np.abs(call('reconstruct', steps=8, iterations=n, threshold='none')['image'] - IMAGES).max()
            for n in (1, 8)]
    assert away[1] < 0.02 and away[1] < 0.3 * away[0], away
    assert np.abs(call('encode', steps=8)['x_T']).max() < 20


def test_interpolation_has_its_ends():
    out = call('interpolate', pictures=3, steps=4)['image']
    assert out.shape == (4, 3, 4, 4, 1) and np.abs(out[:, 0] - out[:, 2]).max() > 0.05


def test_adaptive_ode_says_when_it_fails():
    exact, rough = (call('generate_ode', tol=tol) for tol in (1e-6, 1e-2))
    np.testing.assert_allclose(exact['image'], rough['image'], atol=0.2)
    assert rough['nfe'].max() < exact['nfe'].min()
    for name in ('generate_ode', 'likelihood'):
        with pytest.raises(ValueError, match='not converge.* 2[0-9] calls'):
            call(name, tol=1e-6, max_nfe=20)


def test_likelihoods():
    """Hutchinson's estimate is about the exact divergence's; the bound on a table has its 1000 terms."""
    exact = call('likelihood', divergence='exact')['bits_per_dim']
    guess = np.mean([call('likelihood', seed=s, probes=1)['bits_per_dim'] for s in range(8)], 0)
    assert np.isfinite(exact).all() and np.abs(guess - exact).max() < 0.3 * np.abs(exact).max()
    out = call('vlb', discrete=True)
    assert out['terms'].shape == (4, 1000)
    np.testing.assert_allclose(out['bits_per_dim'], out['prior'] + out['terms'].sum(1), rtol=1e-4)


def test_training_with_a_learned_variance_and_loss_aware_times():
    """The history fills in TrainState.extra, and the objective refuses to be split."""
    process = diffusion.discrete_ddpm(steps=4)
    s = system(process, parameterisation.learned_range(parameterisation.eps()), loss=losses.hybrid(levels=17),
               times=loss_aware(process, history=2))
    assert not s.objectives['denoise'].per_example
    s = s._replace(optimizers={'unet': optax.sgd(1e-3)})
    state = init_state(s, 0, BATCH, {})
    update = jax.jit(make_update(s, seed=0))
    for _ in range(8):
        state, metrics = update(state, BATCH)
    assert np.isfinite(metrics['denoise/loss']) and (state.extra['times']['counts'] == 2).all()
    assert (np.asarray(state.extra['times']['losses']) != 0).all()


@pytest.mark.parametrize('loss', [losses.denoising(0.1, 0.1), losses.sliced_score(), losses.vlb(levels=17)])
def test_every_loss_trains(loss):
    process = diffusion.discrete_ddpm(steps=10)
    s = system(process, parameterisation.eps(), loss=loss, dequantise=not hasattr(loss, 'levels'))
    params, _ = s.init(jax.random.key(0), {k: jnp.asarray(v) for k, v in BATCH.items()})
    value, grads = jax.jit(jax.value_and_grad(lambda p: s.objectives['denoise'].loss(
        p, type('S', (), {'extra': {}, 'frozen': {}}), BATCH, Noise(example_keys(0, range(4))))[0]))(params)
    assert np.isfinite(value) and all(np.isfinite(g).all() and np.any(g != 0) for g in jax.tree.leaves(grads)[:2])
