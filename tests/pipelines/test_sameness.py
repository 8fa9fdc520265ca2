"""The same pictures as diffusers: small random pipelines, loaded from folders, with the same noise at the start."""

import json
import re
import warnings

import numpy as np
import pytest

from gen_jax.pipelines import load_pipeline
from tests.golden import make_pipelines as made
from tests.pipelines.folders import GOLDEN, write

TOLERANCE = 2
"""Of 255, at every pixel."""
SHORT = {('sd1', 'text_to_image', 'DDIMScheduler'), ('sd1', 'image_to_image', 'PNDMScheduler'),
         ('sd2', 'text_to_image', 'EulerDiscreteScheduler'), ('sdxl', 'inpaint', 'DPMSolverMultistepScheduler'),
         ('inpainting', 'inpaint', 'DDIMScheduler')}
ALL = [(case, use, scheduler) for case in made.CASES for use in made.USES if case != 'inpainting' or use == 'inpaint'
       for scheduler in made.SCHEDULERS]


@pytest.fixture(scope='module')
def pipelines(once):
    """case -> its pipeline, loaded once."""
    loaded = {}

    def get(case):
        if case not in loaded:
            loaded[case] = load_pipeline(once(f'pipeline-{case}', lambda folder: write(case, folder)))
        return loaded[case]

    return get


def run(pipeline, use, scheduler, steps, scale, size=(made.SIZE, made.SIZE), **more):
    function = getattr(pipeline, use)
    given = dict(negative_prompt=made.NEGATIVE, scheduler=scheduler, steps=steps, guidance_scale=scale, max_steps=20,
                 latents=made.noise(size), sample_posterior=False) | more
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)  # the second prompt is cut, there too
        if use == 'text_to_image':
            return function(pipeline.variables, made.PROMPTS, height=size[0], width=size[1], **given)
        if use == 'image_to_image':
            return function(pipeline.variables, made.PROMPTS, made.picture(size), strength=made.STRENGTH[steps],
                            **given)
        return function(pipeline.variables, made.PROMPTS, made.picture(size), made.mask(size),
                        strength=1.0 if steps != 5 else 0.8, **given)


def apart(ours, theirs):
    """The largest difference in grey levels."""
    ours = np.asarray(ours)
    assert ours.dtype == np.uint8 and ours.shape == theirs.shape
    return int(np.abs(ours.astype(int) - theirs.astype(int)).max())


def compare(pipelines, case, use, scheduler):
    """The largest difference over steps and guidance scales, in grey levels."""
    pipeline, worst = pipelines(case), {}
    for steps in made.STEPS:
        for scale in made.GUIDANCE:
            worst[steps, scale] = apart(run(pipeline, use, scheduler, steps, scale),
                                        GOLDEN[f'{case}/{use}/{scheduler}/{steps}/{scale}'])
    return worst


@pytest.mark.parametrize('case, use, scheduler', [v for v in ALL if v in SHORT])
def test_pictures_agree_with_diffusers(pipelines, case, use, scheduler):
    assert max(compare(pipelines, case, use, scheduler).values()) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize('case, use, scheduler', [v for v in ALL if v not in SHORT])
def test_all_pictures_agree_with_diffusers(pipelines, case, use, scheduler):
    worst = compare(pipelines, case, use, scheduler)
    assert max(worst.values()) <= TOLERANCE, worst


@pytest.mark.parametrize('case, use', [v if v == ('sd1', 'inpaint') else pytest.param(*v, marks=pytest.mark.slow)
                                       for v in made.ODD])
def test_sides_that_the_unet_does_not_divide(pipelines, case, use):
    """Multiples of the autoencoder's factor are enough: 8 for Stable Diffusion, not 64."""
    size = made.ODD[case, use]
    assert max(size[i] // made.FACTOR % pipelines(case).networks.unet.downsampling_factor for i in (0, 1))
    ours = run(pipelines(case), use, 'DDIMScheduler', 5, 7.5, size)
    assert ours.shape == (made.BATCH, *size, 3)
    assert apart(ours, GOLDEN[f'{case}/{use}/odd']) <= TOLERANCE


@pytest.mark.parametrize('case, setting', [
    (case, name) if (case, name) in (('sd1', 'clip_skip'), ('sdxl', 'guidance_rescale'), ('sdxl', 'no_negative'))
    else pytest.param(case, name, marks=pytest.mark.slow) for case in ('sd1', 'sd2', 'sdxl') for name in made.SETTINGS])
def test_settings_of_text_to_image(pipelines, case, setting):
    ours = run(pipelines(case), 'text_to_image', 'DDIMScheduler', 5, 7.5, **made.SETTINGS[setting])
    assert apart(ours, GOLDEN[f'{case}/text_to_image/{setting}']) <= TOLERANCE
    without = GOLDEN[f'{case}/text_to_image/DDIMScheduler/5/7.5'].astype(float)
    assert np.abs(GOLDEN[f'{case}/text_to_image/{setting}'] - without).max() > TOLERANCE  # it does something


def test_golden_pictures_vary():
    """A pipeline that ignored its prompt, or drew grey, would not pass."""
    for key in GOLDEN.files:
        if not key.endswith('/files'):
            pictures = GOLDEN[key].astype(float)
            assert pictures.std() > 20, key
            if not key.split('/')[1] == 'inpaint':
                assert np.abs(pictures[0] - pictures[1]).mean() > 10, key
    assert not re.search('torch', json.dumps(sorted(GOLDEN.files)))
