"""docs/weights.md: its fine-tuning runs from top to bottom, on a small pipeline in place of the published one."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from gen_jax.interop.export import as_tensors
from gen_jax.interop.formats import write_weights
from gen_jax.interop.load import load_model
from gen_jax.pipelines import load_pipeline, load_scheduler
from tests.pipelines.folders import write

HUB_ID = 'stable-diffusion-v1-5/stable-diffusion-v1-5'
PAGE = (Path(__file__).resolve().parent.parent / 'docs' / 'weights.md').read_text()


def blocks(title: str) -> list[str]:
    """The Python blocks of a section."""
    (section,) = re.findall(rf'^## {re.escape(title)}$(.*?)(?=^## |\Z)', PAGE, re.M | re.S)
    return re.findall(r'```python\n(.*?)```', section, re.S)


COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: COMPILED.append(name) if name == '/jax/core/compile/backend_compile_duration' else None)


def test_fine_tuning_runs(once, tmp_path, monkeypatch):
    folder = once('pipeline-sd1', lambda folder: write('sd1', folder))
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(('photo.png', 'other.png')):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)).save(name)
    load, train, export, diffusers = blocks('Fine-tune, and back to diffusers')
    assert 'diffusers import' in diffusers  # tests/reference runs it
    load, train = load.replace(HUB_ID, str(folder)), train.replace('adamw(1e-5)', 'adamw(1e-2)')
    assert str(folder) in load and '1e-2' in train
    scope = {'__name__': 'weights'}
    for name, block in (('load', load), ('train', train)):
        exec(compile(block, f'weights.md, {name}', 'exec'), scope)
    COMPILED.clear()
    exec(compile(export, 'weights.md, export', 'exec'), scope)
    assert not COMPILED
    before, after, params = scope['before'], np.asarray(scope['after']), scope['params']
    assert after.shape == before.shape == (2, 16, 16, 3) and after.dtype == np.uint8
    assert (before != after).mean() > 0.1 and np.isfinite(scope['value'])
    copy = load_pipeline('exported/lighthouse')
    jax.tree.map(np.testing.assert_array_equal, copy.variables, scope['tuned'])
    _, half = load_model('exported/lighthouse-unet', dtype='float16')
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.asarray(b).astype('float16')), half, params)
    # What the block spells out is what the folder says.
    t, published = np.arange(1000), load_scheduler(folder)
    for name in ('alpha', 'sigma'):
        np.testing.assert_array_equal(getattr(scope['process'], name)(t), getattr(published.process, name)(t))
    assert published.parameterisation.space == scope['parameterisation'].eps().space


def test_a_state_dict_without_a_config(tmp_path, monkeypatch):
    """EDM's, with its prefix and a buffer, narrower."""
    monkeypatch.chdir(tmp_path)
    (block,) = [b for b in blocks('Pickles') if 'from_torch' in b]
    block = block.replace('label_dim=10)', 'label_dim=10, model_channels=16, channel_mult=(1, 1), num_blocks=1)')
    head, read = block.split('tensors = ')
    scope = {}
    exec(head, scope)
    drawn = jax.tree.map(lambda s: np.random.default_rng(s.size).normal(size=s.shape).astype(s.dtype), scope['shapes'])
    tensors = {f'model.{k}': v for k, v in as_tensors(drawn).items()}
    buffer = tensors['model.map_layer0.bias']._replace()
    write_weights(tmp_path, 'model', {**tensors, 'model.enc.16x16_down.conv0.resample_filter': buffer}, 10**9, None)
    exec('tensors = ' + read, scope)
    jax.tree.map(np.testing.assert_array_equal, scope['params'], drawn)


@pytest.mark.parametrize('name', ['Load', 'Pictures', 'One file', 'Export'])
def test_blocks_are_python(name):
    """What needs published weights is compiled only, and every name that it imports exists."""
    for block in blocks(name):
        compile(block, f'weights.md, {name}', 'exec')
        exec('\n'.join(re.findall(r'^from gen_jax.*$', block, re.M)), {})
