"""Whole pipelines that we save: diffusers has no more to say of them than of its own, and draws the same pictures."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from gen_jax.interop.single_file import save_single_file
from gen_jax.pipelines import load_pipeline, save_pipeline
from gen_jax.pipelines.pipeline import modules
from tests.golden.make_pipelines import noise
from tests.pipelines.folders import write
from tests.reference.run import peer
from tests.test_weights_page import HUB_ID, blocks

pytestmark = pytest.mark.reference

PROMPTS = ['a red square', 'a moon']
SAFETY = {'safety_checker': ['stable_diffusion', 'StableDiffusionSafetyChecker'],
          'feature_extractor': ['transformers', 'CLIPImageProcessor']}
"""What the published index of Stable Diffusion 1.5 has besides, and no requires_safety_checker."""


def draw(command, *folders, pipeline, tmp_path):
    """What diffusers says, after a comparison of its pictures with ours."""
    np.savez(tmp_path / 'given.npz', latents=np.moveaxis(noise(), -1, 1), prompts=np.array(PROMPTS))
    peer(command, *folders, tmp_path / 'given.npz', tmp_path / 'out.npz', silent=False)
    with np.load(tmp_path / 'out.npz') as out:
        theirs, said = out['pictures'], {k: json.loads(str(out[k])) for k in out if k != 'pictures'}
    ours = np.asarray(pipeline.text_to_image(  # the program of tests/pipelines/test_sameness.py
        pipeline.variables, PROMPTS, height=16, width=16, steps=5, guidance_scale=7.5, max_steps=20, latents=noise(),
        sample_posterior=False))
    assert ours.shape == theirs.shape and ours.std() > 20
    worst = np.abs(ours.astype(int) - theirs.astype(int)).max()
    print(f'{worst} of 255; {said}')
    assert worst <= 2
    return said


@pytest.mark.parametrize('case', ['sd1', 'sd2', 'sdxl', 'published'])
def test_diffusers_loads_our_pipelines(case, tmp_path):
    source = write('sd1' if case == 'published' else case, tmp_path / 'source')
    if case == 'published':
        index = json.loads((source / 'model_index.json').read_text())
        index.pop('requires_safety_checker')
        (source / 'model_index.json').write_text(json.dumps({**index, **SAFETY}))
    pipeline = load_pipeline(source)
    folder = save_pipeline(pipeline, tmp_path / 'ours')
    shutil.rmtree(source)
    said = draw('draw', folder, tmp_path / 'theirs', pipeline=pipeline, tmp_path=tmp_path)
    # What diffusers says of the folder that it saved itself is no fault of ours: nothing, or that a published pipeline
    # should have the safety checker that gen_jax does not load.
    assert said['said'] == said['theirs'] and not said['drawing']
    assert len(said['said']) == (case == 'published') and all('safety_checker=None' in line for line in said['said'])


def test_diffusers_loads_our_single_file(tmp_path):
    """With the folder for its configs and tokenizer, which are on the hub otherwise."""
    folder = write('sd1', tmp_path / 'folder')
    pipeline = load_pipeline(folder)
    parts = {name: (module, pipeline.variables[name]) for name, module in modules(pipeline.networks).items()}
    file = save_single_file(parts, tmp_path / 'sd.safetensors')
    for weights in folder.rglob('*.safetensors'):
        weights.unlink()
    assert draw('single', file, folder, pipeline=pipeline, tmp_path=tmp_path) == {'said': []}


def test_the_page_goes_on_in_diffusers(tmp_path, monkeypatch):
    """docs/weights.md: its fine-tuning, and the block that loads the result in diffusers, in silence."""
    monkeypatch.chdir(tmp_path)
    for name in ('photo.png', 'other.png'):
        Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3)).save(name)
    *ours, theirs = blocks('Fine-tune, and back to diffusers')
    scope = {'__name__': 'weights'}
    for block in ours:
        if HUB_ID in block:
            block = block.replace(HUB_ID, str(write('sd1', tmp_path / 'published')))
        exec(block, scope)
    (tmp_path / 'theirs.py').write_text(theirs)
    peer('execute', tmp_path / 'theirs.py', tmp_path, silent=False)  # a progress bar
