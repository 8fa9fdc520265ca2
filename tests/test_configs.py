"""Every config, shrunk: it trains, stops, resumes to the same bits, and its predictions run."""

import io

import chex
import jax
import numpy as np
import pytest
from PIL import Image

from gen_jax.build import build, load, make_system, predictor_for
from gen_jax.config import ConfigError, apply_overrides, config_names, load_config, load_module, parse_arg
from gen_jax.data.cached import write_cache
from gen_jax.data.shapes import shapes
from gen_jax.data.text_cache import write_text_cache
from gen_jax.engine.checkpoint import read_leaves
from gen_jax.engine.evaluate import numeric
from gen_jax.engine.sharding import make_mesh
from gen_jax.engine.signals import Stop
from gen_jax.engine.train import train
from gen_jax.engine.update import init_state, make_update, variables_of
from gen_jax.engine.update import prepare as on_device
from gen_jax.engine.writers import read_jsonl, without_wall_clock
from gen_jax.rng import Noise, example_keys
from gen_jax.trees import flat
from tests.data.test_tfds import prepare

QUIET = ('--config.train.steps=2', '--config.log.every_steps=1', '--config.log.tensorboard=False',
         '--config.optim.warmup_steps=1', '--config.checkpoint.every_steps=10')


def small(name, *overrides):
    return apply_overrides(load_config(f'{name}:debug'), [*QUIET, *overrides])


ONE_RESOLUTION = ('--config.system.network.block_out_channels=(8,)',
                  "--config.system.network.down_block_types=('DownBlock2D',)",
                  "--config.system.network.up_block_types=('UpBlock2D',)")
"""Of the tiny UNet: half as much to compile and to save."""
FAMILIES = ('digits', 'digits_gan', 'digits_vae', 'shapes_clip')
"""One config of every kind of system; the others are other arguments of the same builders."""
FIRST_STAGES = ('shapes_vae',)
"""Autoencoders: nothing to generate."""
NETWORKS = ('adm', 'edm', 'ncsn', 'score_sde', 'vdm')
"""One config of every other kind of network."""
LATENT = ('shapes_ldm',)
"""What trains on what other runs have made; see tests/test_latent_diffusion.py, too."""


@pytest.mark.parametrize('name', [n if n in NETWORKS else pytest.param(n, marks=pytest.mark.slow)
                                  for n in sorted(set(config_names()) - {*FAMILIES, *FIRST_STAGES, *LATENT})])
def test_one_step_and_a_picture(name):
    config = small(name, '--config.optim.warmup_steps=0')  # with a warm-up the first step has a learning rate of 0
    system = make_system(config)
    run = build(config)
    batch = numeric(run.example_batch)
    state = init_state(system, 0, batch, dict(config.train.ema))
    new, metrics = jax.jit(make_update(system, seed=0, ema=dict(config.train.ema)))(state, batch)
    assert all(np.isfinite(v).all() for v in metrics.values()) and new.step == 1
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), new.params, state.params)
    assert any(jax.tree.leaves(moved))
    predictor = predictor_for(config, make_mesh({'data': 1}, jax.devices()[:1]))
    out = predictor.call('generate', variables_of(new), seed=0, first=0, options=predictor.options('generate', {}),
                         batch={'label': np.arange(2, dtype=np.int32)})
    assert out['image'].shape == (2, *config.system.image_shape) and np.isfinite(out['image']).all()
    assert len(np.unique(out['image'])) > 1


@pytest.mark.parametrize('name', [*FAMILIES, *(pytest.param(n, marks=pytest.mark.slow) for n in FIRST_STAGES)])
def test_two_steps_equal_one_and_one_more(name, tmp_path):
    config = small(name, *(ONE_RESOLUTION if name == 'digits' else ()))
    run = build(config)
    straight = train(run, tmp_path / 'straight', stop=Stop())
    assert straight.step == 2 and straight.exit_code == 0
    stopped = Stop()
    stopped.request('wall time')
    first = train(run, tmp_path / 'resumed', stop=stopped)
    assert first.step == 1 and first.exit_code == 75
    second = train(run, tmp_path / 'resumed', stop=Stop())
    assert second.step == 2
    chex.assert_trees_all_equal(read_leaves(tmp_path / 'straight'), read_leaves(tmp_path / 'resumed'))
    logs = [[without_wall_clock(r) for r in read_jsonl(tmp_path / k / 'metrics.jsonl')]
            for k in ('straight', 'resumed')]
    assert logs[0] == logs[1] and {r['step'] for r in logs[0]} == {1, 2}
    loaded = load(tmp_path / 'straight')
    assert loaded.step == 2
    if config.sample.predict:
        assert list((tmp_path / 'straight' / 'samples').glob('*.png'))
        images = loaded.sample(5)['image']
        assert images.dtype == np.uint8 and images.shape[0] == 5 and len(np.unique(images)) > 1


def picture(size):
    def png(i):
        out = io.BytesIO()
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (size, size, 3), np.uint8)).save(out, 'PNG')
        return out.getvalue()
    return png


@pytest.fixture(scope='session')
def caches(tmp_path_factory):
    """Latents and embeddings of the shapes that configs/shapes_ldm.py reads, of random networks."""
    folder, rng = tmp_path_factory.mktemp('caches'), np.random.default_rng(0)
    captions = np.empty(128, object)  # of lists
    captions[:] = [shapes(max_objects=2, fields=('captions',))[i]['captions'] for i in range(128)]
    noise = rng.normal(size=(2, 128, 8, 8, 4)).astype(np.float32)
    rows = {'mean': 3 * noise[0], 'log_var': noise[1] - 6, 'captions': captions}
    write_cache(folder / 'latents', 'train', [rows], length=128, made_by={}, info={})
    asked = [shapes(split, fields=('caption',), **kind)[i]['caption'] for i in range(8) for split, kind in (
        ('test', {'max_objects': 1}), ('heldout', {'max_objects': 1}), ('test', {'min_objects': 2, 'max_objects': 2}))]
    write_text_cache(folder / 'text', {c: None for c in (*sum(captions.tolist(), []), *asked)}, lambda texts: (
        rng.normal(size=(len(texts), 16, 64)), rng.normal(size=(len(texts), 64))), {'random': 0})
    return f'latents={folder / "latents"},text={folder / "text"}'


@pytest.mark.parametrize('name', sorted(config_names()))
def test_full_size_configs_build(name, tmp_path, monkeypatch, caches):
    """The config that users run, not its debug variant: it is complete, and its parameters can be counted. Its
    `tfds:` data stand in a folder as `tfds build` leaves it."""
    config = load_config(f'{name}:{caches}' if name in LATENT else name)
    if config.data.source.startswith('tfds:'):
        monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
        size = config.system.image_shape[0]
        prepare(tmp_path, f'{config.data.source.removeprefix("tfds:")}/1.0.0', png=picture(size))
        config.data.batch_size = 8
    run = build(config)
    state = jax.eval_shape(lambda: init_state(run.system, 0, numeric(run.example_batch), dict(run.config.train.ema)))
    assert sum(x.size for x in jax.tree.leaves(state.params)) > 10_000
    assert run.config.train.steps >= 500 and (load_config(name).evaluate or load_config(name).sample.predict)


@pytest.mark.parametrize('name,steps', [('ddpm', 1000), ('ddim', 1000), ('iddpm', 4000)])
def test_the_table_of_a_process_is_not_as_short_as_its_sampling(name, steps):
    """`steps` of the system once became those of the process beside it: DDIM was trained on 50 levels."""
    generate = make_system(load_config(name)).predict['generate']
    with pytest.raises(ValueError, match=f'the {steps} levels of the table'):
        generate.options(steps=steps + 1, spacing='leading', solver='ddim')


def arguments(name):
    """Every argument of a config, with its debug variant: each choice of each option, the other options as they are,
    and the pairs of the first option's choices with each choice of the others."""
    asked = {}

    def parse(arg, **defaults):
        asked.update(defaults)
        return parse_arg(arg, **defaults)

    module = load_module(name)[1]
    module.parse_arg = parse
    module.get_config('')
    options = {k: v if isinstance(v, tuple) else (v, not v) for k, v in asked.items()
               if k != 'debug' and isinstance(v, (tuple, bool))}
    first = next(iter(options), None)
    found = set() if options else {''}
    for key, values in options.items():
        for value in values[key != first:]:  # an option's first choice is what holds where it is left out
            for lead in options[first] if key != first else ('',):
                found.add(f'{key}={value}' if key == first else f'{first}={lead},{key}={value}')
    return sorted(found)


VARIANTS = [f'{name}:{arg},debug'.replace(':,', ':') for name in sorted(config_names()) for arg in arguments(name)]


@pytest.mark.parametrize('spec', VARIANTS)
def test_every_debug_variant_traces(spec, caches):
    """Its shapes agree from the data to the loss; one that cannot exist says which two arguments do not go together."""
    try:
        config = load_config(f'{spec},{caches}' if spec.split(':')[0] in LATENT else spec)
    except ConfigError as e:
        assert not any(k in str(e) for k in ('TypeError', 'KeyError', 'AttributeError')), e
        return
    run = build(config)
    batch = numeric(run.example_batch)

    def losses():
        state = init_state(run.system, 0, batch, {})
        noise = Noise(example_keys(0, np.arange(len(next(iter(batch.values()))))))
        return [o.loss(state.params, state, on_device(batch), noise)[0] for o in run.system.objectives.values()]

    assert all(loss.shape == () for loss in jax.eval_shape(losses))


@pytest.mark.parametrize('network', ['tests.systems.test_diffusion:Tiny',
                                     pytest.param('models.unet_tiny', marks=pytest.mark.slow)])
def test_pmap_and_accumulation_equal_jit(network):
    """The same batch and noise through jit over eight devices, pmap over eight, and two micro-batches."""
    from gen_jax.engine.parallel import make_runner
    params, losses = [], []
    for overrides in ((), ('--config.train.parallel=pmap',), ('--config.train.accumulate=2',)):
        config = small('digits', *overrides)
        with config.unlocked():
            config.system.network = {'name': network}
        run = build(config)
        runner = make_runner(run.system, run.config, {})
        state = runner.place(init_state(run.system, run.config.seed, numeric(run.example_batch), {}))
        state, metrics = runner.update(state, runner.put(numeric(run.example_batch)))
        params.append(jax.device_get(runner.fetch(state).params))
        losses.append(float(metrics['denoise/loss']))
    np.testing.assert_allclose(losses[1:], losses[0], rtol=2e-6)
    for other in params[1:]:  # Adam's first step has the size of the learning rate whatever the gradient
        chex.assert_trees_all_close(other, params[0], atol=2e-5)


def test_starting_from_a_run_takes_its_batch_statistics(tmp_path):
    stopped = Stop()
    stopped.request('wall time')
    train(build(small('digits_gan')), tmp_path / 'a', stop=stopped)
    from gen_jax.engine.start import initialise
    run = build(small('digits_gan', f'--config.train.init_from={tmp_path / "a"}'))
    state = initialise(run, {'slow': {'decay': 0.9}})
    theirs, fresh = read_leaves(tmp_path / 'a'), init_state(run.system, 0, numeric(run.example_batch), {})
    ours = flat(state.extra['batch_stats'])
    assert ours and any(not np.array_equal(v, flat(fresh.extra['batch_stats'])[k]) for k, v in ours.items())
    for k, v in ours.items():
        np.testing.assert_array_equal(v, theirs[f'extra/batch_stats/{k}'])
        np.testing.assert_array_equal(flat(state.ema['slow']['extra'])[f'batch_stats/{k}'], v)


def test_bfloat16_compute_keeps_float32_parameters():
    losses = []
    for precision in ('bfloat16', 'float32'):
        run = build(small('digits', *ONE_RESOLUTION, f'--config.train.precision={precision}'))
        batch = numeric(run.example_batch)
        state = init_state(run.system, 0, batch, {})
        # The last layer begins at zero, which would hide what precision does.
        state = state._replace(params=jax.tree.map(lambda x: x + 0.05, state.params))
        new = jax.eval_shape(make_update(run.system, seed=0), state, batch)[0]
        chex.assert_trees_all_equal_dtypes(new.params, state.params)
        noise = Noise(example_keys(0, np.arange(len(next(iter(batch.values()))))))
        loss = jax.jit(run.system.objectives['denoise'].loss)
        losses.append(float(loss(state.params, state, on_device(batch), noise)[0]))
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.03)


def test_another_config_is_refused_and_allowed_changes_are_not(tmp_path):
    from gen_jax.config import to_json
    from gen_jax.engine.train import WorkdirError, check_workdir
    (tmp_path / 'config.json').write_text(to_json(small('digits')))
    check_workdir(tmp_path, small('digits', '--config.train.steps=9', '--config.log.every_steps=3'))
    with pytest.raises(WorkdirError, match=r'another config.*\n  optim.lr: 0.001 there, 0.5 now\n.*another --workdir'):
        check_workdir(tmp_path, small('digits', '--config.optim.lr=0.5'))


def test_choices_in_messages():
    for override, message in (('--config.system.process.name=diffusion.cosin', 'did you mean cosine'),
                              ('--config.system.solver=dim', 'choose from ddpm, ddim'),
                              ('--config.data.source=digit', 'digits'),
                              ('--config.train.precision=float8', 'float32, bfloat16'),
                              ('--config.sample.predict=draw', "no predict 'draw': choose from .*'generate'")):
        with pytest.raises(ValueError, match=message):
            build(small('digits', override))
    with pytest.raises(ConfigError, match='did you mean digits'):
        load_config('digit')
    with pytest.raises(ConfigError, match='no file'):
        load_config('nowhere.py')
    with pytest.raises(ConfigError, match="argument 'sie=3'"):
        load_config('digits:sie=3')
