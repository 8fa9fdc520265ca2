"""Latent diffusion from end to end, tiny: autoencoder, latents on disk, embeddings on disk, UNet, pictures."""

import json
import shutil

import chex
import jax
import numpy as np
import pytest

from gen_jax import trees
from gen_jax.build import build, load, make_system
from gen_jax.build.frozen import read_frozen
from gen_jax.cli.cache import cache
from gen_jax.cli.embed_text_run import embed_text
from gen_jax.config import ConfigError, apply_overrides, load_config, to_json
from gen_jax.data.cached import read_manifest
from gen_jax.data.shapes import shapes
from gen_jax.data.text_cache import open_text_cache
from gen_jax.engine.checkpoint import CheckpointError, Checkpoints, IntegrityError, read_leaves
from gen_jax.engine.evaluate import numeric
from gen_jax.engine.signals import Stop
from gen_jax.engine.start import initialise
from gen_jax.engine.steps import read_meta
from gen_jax.engine.train import train
from gen_jax.interop.classes import abstract_params
from gen_jax.interop.export import save_model
from gen_jax.models import autoencoder_kl_tiny
from tests.golden.draws import draw

QUIET = ('--config.log.every_steps=1', '--config.log.tensorboard=False', '--config.checkpoint.every_steps=10',
         '--config.optim.warmup_steps=0')
WEIGHTS = ['first_stage', 'text_encoder']
PROMPT = 'a large pink star'
DATA = {'size': 32, 'max_objects': 1, 'fields': ('image', 'captions')}


def as_run(config, workdir):
    """What one step of training would have left there, without the step."""
    run = build(config)
    example = {k: [list(v.shape), str(v.dtype)] for k, v in numeric(run.example_batch).items()}
    state = initialise(run, dict(config.train.ema))
    state = state._replace(ema=jax.tree.map(lambda x: 1.01 * x, state.ema))  # an average is not the raw parameters
    store = Checkpoints(workdir)
    store.save(1, state, {'config': json.loads(to_json(config)), 'example': example, 'info': {}}, wait=True)
    store.close()
    (workdir / 'config.json').write_text(to_json(config))
    return workdir


def first_stage(workdir, seed=0):
    """A run of an f2 autoencoder."""
    config = apply_overrides(load_config('shapes_vae:debug'), [f'--config.seed={seed}'])
    with config.unlocked():
        config.system.network = {'name': 'models.autoencoder_kl_tiny'}
        config.evaluate = {}
        config.data.options.update(DATA)
    return as_run(config, workdir)


def latent(folder, *overrides):
    """The config of a UNet on the latents in that folder."""
    where = ','.join(f'{k}={folder / k}' for k in ('vae', 'clip', 'latents', 'text'))
    config = apply_overrides(load_config(f'shapes_ldm:{where},debug'), [*QUIET, '--config.train.steps=2', *overrides])
    with config.unlocked():
        config.sample.every_steps = 0
        config.system.first_stage = {'name': 'models.autoencoder_kl_tiny'}
        config.system.network.update(block_out_channels=(8,), down_block_types=('CrossAttnDownBlock2D',),
                                     up_block_types=('CrossAttnUpBlock2D',))
        config.evaluate = {'two': {**config.evaluate.one_2.to_dict(), 'n': 2, 'batch_size': 2}}
    return config


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """The runs: a folder with vae, latents, text, and ldm, stopped after the first of its two steps."""
    folder = tmp_path_factory.mktemp('latent')
    first_stage(folder / 'vae')
    cache(load(folder / 'vae'), 'train', folder / 'latents', n=32, batch_size=16)
    as_run(load_config('shapes_clip:objects=2'), folder / 'clip')
    source, asked = shapes(**DATA), shapes('test', max_objects=1, fields=('caption',))
    texts = [*(c for i in range(32) for c in source[i]['captions']), *(asked[i]['caption'] for i in range(2)), PROMPT]
    embed_text(load(folder / 'clip'), texts, folder / 'text', dtype='float32')
    run, stopped = build(latent(folder)), Stop()
    stopped.request('wall time')
    assert train(run, folder / 'ldm', stop=stopped).step == 1
    return folder


def test_a_run_has_its_own_copy_of_what_is_frozen(made):
    """Written once, beside the steps, and used when the run that it came from is gone."""
    assert sorted(p.name.split('-')[0] for p in (made / 'ldm' / 'frozen').iterdir()) == WEIGHTS
    meta = read_meta(made / 'ldm' / 'checkpoints' / '1')
    assert sorted(meta['frozen']) == WEIGHTS and not any(k.startswith('frozen') for k in meta['dtypes'])
    vae = load(made / 'vae')
    (made / 'vae').rename(made / 'elsewhere')
    frozen = load(made / 'ldm').variables.frozen['first_stage']
    (made / 'elsewhere').rename(made / 'vae')
    chex.assert_trees_all_equal(frozen, vae.variables.params['autoencoder'])


@pytest.mark.slow
def test_it_resumes_to_the_same_bits(made, tmp_path):
    run = build(latent(made))
    train(run, tmp_path / 'straight', stop=Stop())
    shutil.copytree(made / 'ldm', tmp_path / 'resumed')
    (made / 'vae').rename(made / 'elsewhere')
    assert train(run, tmp_path / 'resumed', stop=Stop()).step == 2
    (made / 'elsewhere').rename(made / 'vae')
    chex.assert_trees_all_equal(*(read_leaves(tmp_path / k) for k in ('straight', 'resumed')))
    assert len(list((tmp_path / 'resumed' / 'frozen').iterdir())) == len(WEIGHTS)


@pytest.fixture(scope='module')
def loaded(made):
    return load(made / 'ldm')


def test_the_scale_is_that_of_the_first_batch(made, loaded):
    run = build(latent(made))
    state = loaded.state
    np.testing.assert_allclose(state.extra['scaling_factor'], 1 / run.example_batch['mean'].std(), rtol=1e-5)


@pytest.fixture(scope='module')
def text():
    """Two conditions and what they are guided away from."""
    rng = np.random.default_rng(1)
    return {k: rng.normal(size=(2, 16, 64)).astype(np.float32)
            for k in ('encoder_hidden_states', 'negative_encoder_hidden_states')}


@pytest.fixture(scope='module')
def drawn(loaded):
    """The run with drawn weights in its UNet: after one step its zero-initialised layers still hide the text."""
    unet = trees.map_with_path(lambda path, x: 0.3 * draw(path, x.shape), loaded.variables.params['unet'])
    return loaded._replace(variables=loaded.variables._replace(params={**loaded.variables.params, 'unet': unet}))


def test_pictures_of_captions(made, drawn, text):
    """What is negative guides away, a prompt is its embedding, and pictures are decoded."""
    loaded = drawn
    out = loaded.predict('generate', text, guidance_scale=3.0)['image']
    assert out.shape == (2, 32, 32, 3) and np.isfinite(out).all() and abs(out).max() <= 1 and out.std() > 0
    same = {**text, 'negative_encoder_hidden_states': text['encoder_hidden_states']}
    alone = loaded.predict('generate', same, guidance_scale=3.0)['image']
    np.testing.assert_allclose(loaded.predict('generate', same, guidance_scale=1.0)['image'], alone, atol=1e-4)
    assert abs(alone - out).max() > 1e-3
    for settings, message in (({'negative_prompt': 'a star'}, 'needs a prompt, too'),
                              ({'prompt': PROMPT, 'negative_prompt': 'a star'}, 'needs a guidance_scale'),
                              ({'prompt': ('a', 'b')}, 'a prompt is one text')):
        with pytest.raises(ValueError, match=message):
            loaded.sample(1, **{'guidance_scale': None, 'prompt': None, **settings})
    with pytest.raises(ValueError, match="no 'negative_encoder_hidden_states', which stands for no condition"):
        loaded.predict('generate', {'encoder_hidden_states': text['encoder_hidden_states']}, guidance_scale=3.0)
    cache = open_text_cache(made / 'text')
    given = {'encoder_hidden_states': cache[PROMPT][0], 'negative_encoder_hidden_states': cache[''][0]}
    given = {k: np.stack([v, v]) for k, v in given.items()}
    expected = loaded.predict('generate', given, guidance_scale=3.0)['image']
    found = loaded.predict('generate', {'index': np.arange(2)}, prompt=PROMPT, guidance_scale=3.0)['image']
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(loaded.sample(2, prompt=PROMPT, guidance_scale=3.0)['image'],
                               np.round((expected + 1) * 127.5), atol=1)


@pytest.mark.slow
def test_pictures_and_latents_are_edited_alike(made, drawn, text):
    """Editing reads a picture or its latent; what is kept of a latent is kept of the picture, as the autoencoder has
    it; a density of latents is none of pictures."""
    loaded, source = drawn, shapes(**DATA)
    images = np.stack([source[i]['image'] for i in range(2)])
    mean = np.load(made / 'latents' / 'train' / 'mean.npy')[:2]
    edited = [loaded.predict('edit', {**text, **x}, strength=0.5)['image'] for x in ({'image': images},
                                                                                   {'mean': mean})]
    np.testing.assert_allclose(*edited, atol=1e-3)
    whole = loaded.predict('inpaint', {**text, 'image': images, 'mask': np.ones((2, 32, 32, 1), np.float32)})['image']
    rebuilt = load(made / 'vae').predict('reconstruct', {'image': images})['image']
    np.testing.assert_allclose(whole, rebuilt, atol=1e-3)
    assert not {'likelihood', 'vlb'} & set(loaded.predictor.system.predict)


@pytest.mark.slow
def test_the_evaluation_reads_captions(made):
    found = load(made / 'ldm').evaluate('two')
    assert found['scene_recipe'] == {'n': 2, 'of': 'image', 'exact': 'count, colour, shape, size, relations'}
    assert 0 <= found['scene'] <= found['scene_count'] <= 1 and 0 <= found['scene_relations'] <= 1


def test_other_weights_than_those_of_the_latents_are_refused(made, tmp_path):
    other = first_stage(tmp_path / 'other', seed=1)
    config = latent(made)
    kept = {'text_encoder': {'run': str(made / 'clip')}}
    for spec, message in (({'run': str(other)}, 'cached by other weights than those of .*other.*Cache them again'),
                          ({'run': str(made / 'vae'), 'ema': ''}, 'cached by other weights'),
                          ({'run': str(made / 'vae'), 'params': 'unet'}, "params 'unet': .* holds .* autoencoder"),
                          ({'run': str(tmp_path / 'none')}, 'holds no run'),
                          ({'run': str(made / 'ldm')}, 'does not fit system.first_stage')):
        with config.unlocked():
            config.frozen = {'first_stage': spec, **kept}
        with pytest.raises(ConfigError, match=message):
            train(build(config), tmp_path / 'refused', stop=Stop())
        assert not (tmp_path / 'refused').exists()
    with config.unlocked():
        config.frozen = {'first_stage': {'run': str(made / 'vae')},
                         'text_encoder': {'run': str(made / 'clip'), 'ema': ''}}
    with pytest.raises(ConfigError, match='cached by other weights than those of .*clip, which config.frozen.text_enc'):
        train(build(config), tmp_path / 'refused', stop=Stop())
    for frozen, message in (({}, "needs the weights of 'first_stage'.*{'run': WORKDIR}"),
                            ({'first_stage': {'run': 'x', 'step': 3}}, "unknown 'step'"),
                            ({'first_stage': {}}, 'is either'),
                            ({'first_stage': {'run': 'x'}, 'other': {}}, 'no frozen network of that name')):
        with config.unlocked():
            config.frozen = {**kept, **frozen}
        with pytest.raises(ConfigError, match=message):
            build(config)


def test_damaged_or_missing_frozen_weights_are_named(made, tmp_path):
    shutil.copytree(made / 'ldm', tmp_path / 'ldm')
    place = next((tmp_path / 'ldm' / 'frozen').glob('first_stage-*'))
    place.rename(tmp_path / 'away')
    with pytest.raises(IntegrityError, match='frozen weights of this checkpoint, is missing'):
        load(tmp_path / 'ldm')
    (tmp_path / 'away').rename(place)
    damaged = 0
    for file in place.rglob('*'):
        if file.is_file() and file.stat().st_size > 1000 and 'd' in file.parent.name:
            data = bytearray(file.read_bytes())
            data[len(data) // 2] ^= 1
            file.write_bytes(data)
            damaged += 1
    assert damaged
    with pytest.raises(CheckpointError):
        load(tmp_path / 'ldm')


def test_a_published_first_stage(made, tmp_path):
    """A folder of diffusers' layout in place of a run; one of another network is refused."""
    system = make_system(latent(made))
    only = system._replace(frozen={'first_stage': system.frozen['first_stage']})
    state, config = load(made / 'vae'), latent(made)
    for name, network, params in (('good', autoencoder_kl_tiny(), state.variables.params['autoencoder']),
                                  ('other', autoencoder_kl_tiny(block_out_channels=(4,), down_block_types=(
                                      'DownEncoderBlock2D',), up_block_types=('UpDecoderBlock2D',)), None)):
        if params is None:
            params = jax.tree.map(lambda x: jax.numpy.zeros(x.shape), abstract_params(network))
        save_model(network, params, tmp_path / name / 'vae')
        with config.unlocked():
            config.frozen = {'first_stage': {'weights': str(tmp_path / name), 'subfolder': 'vae'}}
        if name == 'good':
            chex.assert_trees_all_close(read_frozen(config, only)['first_stage'], params, rtol=1e-6)
        else:
            with pytest.raises(ConfigError, match='config.frozen.first_stage: .*other/vae does not fit'):
                read_frozen(config, only)


def test_settings_of_pixels_are_refused(made, loaded):
    for override, message in (('--config.system.clip=1.0', 'latents have no bounds'),
                              ('--config.system.scaling_factor=-1.0', 'scaling_factor -1.0')):
        config = load_config('shapes_ldm')
        with config.unlocked():
            config.system.scaling_factor = None
            key, value = override.split('=')
            config.system[key.rsplit('.', 1)[1]] = float(value)
        with pytest.raises(ValueError, match=message):
            make_system(config)
    assert read_manifest(made / 'latents' / 'train')['length'] == 32
    assert jax.tree.leaves(loaded.state.frozen)
