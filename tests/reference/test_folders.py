"""Folders that diffusers and transformers write and read: the same answers both ways, and not a word of warning."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.cli.main import main
from gen_jax.interop.classes import CLASSES, class_of
from gen_jax.interop.export import save_model
from gen_jax.interop.load import load_model
from gen_jax.interop.single_file import load_single_file, save_single_file
from gen_jax.interop.torch_layout import to_torch
from tests.golden.draws import draw
from tests.interop.tiny import MODULES, drawn
from tests.reference.run import peer

pytestmark = pytest.mark.reference


def given(name, module):
    """Inputs of a network in our layout."""
    text = np.array([[48, 3, 7, 49, 49], [48, 5, 6, 7, 49]])
    if name == 'unet':
        return dict(x=draw('x', (2, 8, 8, 1)), t=np.array([3, 900]), class_labels=np.array([1, 10]))
    if name.startswith('sd'):
        return dict(x=draw('x', (2, 8, 8, 4)), t=np.array([3, 900]), text=draw('text', (2, 5, 16)))
    if name == 'vae':
        return dict(x=draw('x', (2, 8, 8, 3)))
    both = dict(tokens=text, x=draw('x', (2, 8, 8, 3)))
    return both if name == 'clip' else {k: v for k, v in both.items() if (k == 'tokens') == name.startswith('text')}


def ours(name, module, params, arrays):
    """What the network answers, under the names that peer.py uses."""
    variables = {'params': params}
    if name == 'vae':
        mean, log_var = module.apply(variables, arrays['x'], method='encode')
        return {'mean': mean, 'log_var': log_var, 'y': module.apply(variables, mean, method='decode')}
    if name == 'clip':
        image, text, _ = module.apply(variables, arrays['x'], arrays['tokens'])
        return {'image': image, 'text': text}
    out = module.apply(variables, *arrays.values())
    if not name.startswith(('text', 'image')):
        return {'y': out}
    found = {'state': out.last_hidden_state}
    return {**found, 'pooled': out.pooler_output} if out.embeds is None else {**found, 'embeds': out.embeds}


def compare(name, module, params, folder, tmp_path):
    """Ours against the published class's answer to the folder."""
    arrays = given(name, module)
    np.savez(tmp_path / 'given.npz', **{k: np.moveaxis(v, -1, 1) if v.ndim == 4 else v for k, v in arrays.items()})
    peer('forward', folder, tmp_path / 'given.npz', tmp_path / 'out.npz')
    theirs = np.load(tmp_path / 'out.npz')
    found = ours(name, module, params, arrays)
    assert set(found) == set(theirs.files)
    for key in found:
        expected = np.moveaxis(theirs[key], 1, -1) if theirs[key].ndim == 4 else theirs[key]
        np.testing.assert_allclose(found[key], expected, atol=1e-4 * np.abs(expected).max(), err_msg=f'{name} {key}')


@pytest.mark.parametrize('name', [name for name in MODULES if name != 'clip_pixels'])
def test_what_we_save_they_load(name, tmp_path):
    module = MODULES[name]
    params = drawn(module)
    save_model(module, params, tmp_path / 'folder', max_shard_size='10KB' if name in ('vae', 'text') else '1GB')
    compare(name, module, params, tmp_path / 'folder', tmp_path)


@pytest.mark.parametrize('name', [name for name in MODULES if name != 'clip_pixels'])
def test_what_they_save_we_load(name, tmp_path):
    """Their own config.json, whole, and their own keys; sharded, and as a variant in half precision."""
    row = CLASSES[class_of(MODULES[name])]
    (tmp_path / 'config.json').write_text(json.dumps(row.config(MODULES[name])))
    sharded = {'max_shard_size': '10KB'} if name in ('vae', 'text', 'clip') else {}
    peer('save', tmp_path / 'config.json', tmp_path / 'folder', json.dumps(sharded))
    module, params = load_model(tmp_path / 'folder')
    assert len(list((tmp_path / 'folder').glob('*.safetensors'))) > 1 or not sharded
    compare(name, module, params, tmp_path / 'folder', tmp_path)


def test_a_variant_in_half_precision(tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps(CLASSES['UNet2DModel'].config(MODULES['unet'])))
    peer('save', tmp_path / 'config.json', tmp_path / 'folder', json.dumps({'variant': 'fp16', 'dtype': 'float16'}))
    module, params = load_model(tmp_path / 'folder', variant='fp16')
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype('float32')}
    module, half = load_model(tmp_path / 'folder', variant='fp16', dtype='float16')
    assert {x.dtype for x in jax.tree.leaves(half)} == {jnp.dtype('float16')}
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), params, half)))


def test_fields_and_defaults_are_those_of_the_published_classes(tmp_path):
    """What a config leaves unsaid means the same here and there."""
    peer('defaults', tmp_path / 'out.json', *(n for n, row in CLASSES.items() if row.library == 'diffusers'))
    for name, fields in json.loads((tmp_path / 'out.json').read_text()).items():
        row = CLASSES[name]
        defaults = json.loads(json.dumps(row.config(row.build({}))))
        assert set(defaults) - {'_class_name'} <= set(fields), name
        assert {k: v for k, v in defaults.items() if k != '_class_name'} == {k: fields[k] for k in defaults
                                                                             if k != '_class_name'}, name
        row.build(fields)  # whatever is no field here stands at the value that we compute


def test_single_files_are_read_by_diffusers_as_by_us(tmp_path):
    parts = {'unet': (MODULES['sd1'], drawn(MODULES['sd1'])), 'vae': (MODULES['vae'], drawn(MODULES['vae'])),
             'text_encoder': (MODULES['text'], drawn(MODULES['text']))}
    save_single_file(parts, tmp_path / 'sd.safetensors')
    configs = {k: CLASSES[class_of(m)].config(m) for k, (m, _) in parts.items()}
    (tmp_path / 'parts.json').write_text(json.dumps(configs))
    peer('from_single', tmp_path / 'sd.safetensors', tmp_path / 'parts.json', tmp_path / 'out.npz')
    theirs = np.load(tmp_path / 'out.npz')
    expected = {f'{part}/{k}': v for part in ('unet', 'vae') for k, v in to_torch(parts[part][1]).items()}
    assert set(theirs.files) == set(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(theirs[key].reshape(value.shape), value, err_msg=key)
    back = load_single_file(tmp_path / 'sd.safetensors', **{k: m for k, (m, _) in parts.items()})
    for part, (_, params) in parts.items():
        jax.tree.map(np.testing.assert_array_equal, back[part][1], params)


def test_a_trained_run_answers_the_same_in_diffusers(tmp_path):
    """The digits' UNet, trained by the shipped config for a few steps, exported by the command."""
    run = tmp_path / 'run'
    assert main(['train', '--config', 'digits', '--workdir', str(run), '--config.train.steps=3',
                 '--config.optim.warmup_steps=1',
                 '--config.sample.every_steps=0', '--config.evaluate.heldout.every_steps=0']) == 0
    assert main(['convert', str(run), str(tmp_path / 'folder'), '--to', 'torch']) == 0
    module, params = load_model(tmp_path / 'folder')
    assert np.abs(params['conv_out']['kernel']).max() > 1e-4
    compare('unet', module, params, tmp_path / 'folder', tmp_path)


def test_every_class_is_compared():
    assert {class_of(m) for m in MODULES.values()} == set(CLASSES)
