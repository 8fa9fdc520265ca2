"""What a pipeline promises beside its pictures: seeds, no recompilation, folders in and out, clear refusals."""

import json
import shutil
import warnings

import jax
import numpy as np
import pytest
from PIL import Image

from gen_jax.cli.main import main
from gen_jax.pipelines import load_pipeline, pictures, save_pipeline, schedule
from gen_jax.pipelines.text import prompts_of
from tests.golden import make_pipelines as made
from tests.pipelines.folders import write

DDIM = dict(scheduler='DDIMScheduler', max_steps=20, sample_posterior=False)


@pytest.fixture(scope='module')
def folder(once):
    return once('pipeline-sd1', lambda folder: write('sd1', folder))


@pytest.fixture(scope='module')
def pipeline(folder):
    return load_pipeline(folder)


@pytest.fixture(scope='module')
def draw(pipeline):
    def draw(prompt='a red square', variables=None, **settings):
        return np.asarray(pipeline.text_to_image(
            pipeline.variables if variables is None else variables, prompt,
            **{**DDIM, 'steps': 5, 'height': 16, 'width': 16, **settings}))
    return draw


def test_an_image_depends_on_its_prompt_and_seed_only(draw):
    four = draw(['a red square', 'a moon'], images_per_prompt=2, seed=[7, 8, 7, 9])
    assert four.shape == (4, 16, 16, 3) and four.dtype == np.uint8
    again = draw(['a moon', 'a moon', 'a red square', 'a red square'], seed=[7, 9, 8, 7])
    np.testing.assert_array_equal(four[[2, 3, 1, 0]], again)
    assert (four[0] != four[1]).any() and (four[0] != four[2]).any()
    np.testing.assert_array_equal(draw(['a red square'] * 4, seed=6)[1:3], four[:2])


def test_settings_do_not_recompile(draw, pipeline):
    draw(['a', 'b'], guidance_scale=3.0, steps=4)
    before = _compiled()
    one = draw(['c', 'd'], guidance_scale=1.0, steps=20, seed=[4, 2], negative_prompt='blurry')
    two = draw(['c', 'd'], guidance_scale=9.0, steps=20, seed=[4, 2], negative_prompt='blurry')
    assert _compiled() == before and (one != two).any()


def _compiled() -> int:
    """Programs that this process has compiled so far."""
    return len(COMPILED)


COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: COMPILED.append(name) if name == '/jax/core/compile/backend_compile_duration' else None)


def test_saved_pipelines_load_and_draw_the_same(draw, pipeline, tmp_path):
    saved = save_pipeline(pipeline, tmp_path / 'copy')
    copy = load_pipeline(saved)
    assert json.loads((saved / 'model_index.json').read_text())['_class_name'] == 'StableDiffusionPipeline'
    assert copy.scheduler['_class_name'] == 'PNDMScheduler'
    np.testing.assert_array_equal(draw(), draw(variables=copy.variables))
    with pytest.raises(ValueError, match='holds a pipeline already'):
        save_pipeline(pipeline, saved)


def test_a_long_prompt_says_what_was_cut(draw):
    words = 'abcdefghijklmnopqrstuvwxyz'
    with pytest.warns(UserWarning, match="exceeds max_length 24; cut off: 'w x y z'"):
        long = draw(' '.join(words))
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        np.testing.assert_array_equal(long, draw(' '.join(words[:22])))


def call(pipeline, use='text_to_image', **changed):
    given = {**DDIM, 'prompt': 'x', 'steps': 5, **changed}
    if use != 'text_to_image':
        given = {'image': made.picture(), **given}
    if use == 'inpaint':
        given = {'mask': made.mask(), **given}
    return getattr(pipeline, use)(pipeline.variables, given.pop('prompt'), **given)


@pytest.mark.parametrize('use, changed, message', [
    ('text_to_image', dict(height=17), 'height=17 is not divisible by 2; the nearest sizes are 16 and 18'),
    ('text_to_image', dict(width=0), 'width=0'),
    ('text_to_image', dict(steps=0), 'steps must be an integer of at least 1, got 0'),
    ('text_to_image', dict(steps=21), 'steps=21 exceed max_steps=20'),
    ('text_to_image', dict(guidance_scale=-1.0), 'guidance_scale=-1.0'),
    ('text_to_image', dict(scheduler='DDIMSheduler'), "did you mean 'DDIMScheduler'"),
    ('text_to_image', dict(scheduler=None, solver='dpmp'), "unknown solver 'dpmp'"),
    ('text_to_image', dict(solver='ddim'), 'not both'),
    ('text_to_image', dict(spacing='karras'), "spacing='karras' needs a solver"),
    ('text_to_image', dict(flavour=1), 'flavour=1 is no setting'),
    ('text_to_image', dict(prompt=[]), 'prompt must be a text or a list of texts'),
    ('text_to_image', dict(prompt=['a', 'b'], negative_prompt=['c', 'd', 'e']), '3 negative prompts for 2 images'),
    ('text_to_image', dict(seed=[1, 2]), 'a list of 1, one per image'),
    ('text_to_image', dict(latents=np.zeros((1, 4, 4, 4))), r'give \(1, 8, 8, 4\)'),
    ('text_to_image', dict(output='pil'), "output='pil'"),
    ('image_to_image', dict(strength=0.0), r'strength must lie within \(0, 1\]'),
    ('image_to_image', dict(strength=0.1), 'leaves none of the 5 steps; take a strength of at least 0.2'),
    ('image_to_image', dict(image=np.zeros((15, 16, 3), np.uint8)), 'height=15 is not divisible'),
    ('image_to_image', dict(image=np.full((16, 16, 3), 200.0)), r'floats must lie within 0 \.\. 1'),
    ('image_to_image', dict(image='nowhere.png'), 'nowhere.png'),
    ('inpaint', dict(mask=np.zeros((8, 8), np.uint8)), r'mask has size \(8, 8\), the picture \(16, 16\)'),
])
def test_refusals(pipeline, use, changed, message):
    with pytest.raises(ValueError, match=message):
        call(pipeline, use, **changed)


@pytest.mark.parametrize('damage, message', [
    (lambda f: (f / 'model_index.json').unlink(), 'holds no model_index.json'),
    (lambda f: (f / 'model_index.json').write_text('{"_class_name": "FluxPipeline"}'), "no pipeline 'FluxPipeline'"),
    (lambda f: (f / 'vae' / 'config.json').unlink(), 'config.json'),
    (lambda f: (f / 'scheduler' / 'scheduler_config.json').write_text('{"_class_name": "Nothing"}'),
     "_class_name='Nothing'"),
    (lambda f: shutil.rmtree(f / 'tokenizer'), 'tokenizer'),
])
def test_damaged_folders(folder, tmp_path, damage, message, capsys):
    broken = shutil.copytree(folder, tmp_path / 'broken')
    damage(broken)
    assert main(['generate', '--pipeline', str(broken), '--prompt', 'x', '--out', str(tmp_path / 'out')]) == 2
    said = capsys.readouterr().err
    assert message in said and 'Traceback' not in said
    assert not list(tmp_path.glob('out*'))


def test_pictures_of_every_kind():
    grey, rgb = np.full((4, 4), 255, np.uint8), np.zeros((4, 4, 3), np.float32)
    clear = np.zeros((4, 4, 4), np.uint8)
    assert (pictures.pictures(grey, 2, 2) == 1).all() and (pictures.pictures(rgb, 2, 2) == -1).all()
    assert (pictures.pictures(clear, 1, 2) == 1).all()  # nothing but the white behind it
    assert pictures.pictures([rgb, rgb], 4, 2).shape == (4, 4, 4, 3)
    np.testing.assert_array_equal(pictures.masks(np.array([[0, 100], [128, 255]], np.uint8), 1, (2, 2))[0, ..., 0],
                                  [[0, 0], [1, 1]])
    with pytest.raises(ValueError, match='different sizes'):
        pictures.pictures([rgb, np.zeros((6, 4, 3))], 2, 2)
    assert prompts_of(['a', 'b'], 2) == ['a', 'a', 'b', 'b']


@pytest.mark.parametrize('mode', ['P', 'L', 'LA', 'CMYK', 'RGBA', 'I;16', '1'])
def test_pictures_and_masks_of_every_mode(mode, tmp_path):
    levels = np.repeat(np.uint8([[0, 255], [255, 0]]), 3).reshape(2, 2, 3)
    picture = Image.fromarray(levels)
    picture = (Image.fromarray(levels[..., 0].astype(np.uint16) * 257) if mode == 'I;16' else
               picture.convert('L').convert(mode) if mode in ('LA', '1') else picture.convert(mode))
    assert picture.mode == mode
    picture.save(path := tmp_path / ('a.tiff' if mode == 'CMYK' else 'a.png'))
    for given in (picture, path, str(path)):
        np.testing.assert_array_equal(pictures.pictures(given, 1, 1)[0], levels / 127.5 - 1.0)
        np.testing.assert_array_equal(pictures.masks(given, 1, (2, 2))[0, ..., 0], levels[..., 0] / 255)


def test_what_is_transparent_is_white_in_a_picture_and_kept_by_a_mask(tmp_path):
    clear = np.zeros((2, 2, 4), np.uint8)
    clear[0] = 255
    Image.fromarray(clear).save(tmp_path / 'a.png')
    assert (pictures.pictures(tmp_path / 'a.png', 1, 1) == 1).all()
    assert pictures.masks(tmp_path / 'a.png', 1, (2, 2))[0, ..., 0].tolist() == [[1, 1], [0, 0]]
    whole = (tmp_path / 'a.png').read_bytes()
    (tmp_path / 'b.png').write_bytes(whole[:-20])
    with pytest.raises(ValueError, match='b.png'):
        pictures.pictures(tmp_path / 'b.png', 1, 1)


@pytest.mark.parametrize('strength, first', [(1.0, 0), (0.8, 1), (0.6, 2), (0.2, 4)])
def test_image_to_image_starts_where_diffusers_does(strength, first):
    """The levels of 5 steps of DDIM; the noise of the start is that of the step."""
    config = {**made.BETAS, '_class_name': 'DDIMScheduler'}
    solver = schedule.solver_of(config)
    _, whole = schedule.levels(solver, 5, None, 8)
    _, rows = schedule.levels(solver, 5, strength, 8)
    np.testing.assert_array_equal(rows.grid.t[:6 - first], whole.grid.t[first:6])
    assert rows.grid.last[0] == 5 - first and len(rows.grid.t) == 9


def test_generate_writes_a_picture_per_prompt_and_seed(folder, tmp_path, capsys):
    argv = ['generate', '--pipeline', str(folder), '--prompt', 'a red square', '--prompt', 'a moon', '--n', '1',
            '--height', '16', '--width', '16', '--solver', 'dpmpp_2m', '--spacing', 'karras', '--steps', '2']
    assert main([*argv, '--out', str(tmp_path / 'new' / 'a')]) == 0
    assert sorted(p.name for p in (tmp_path / 'new').iterdir()) == ['a-0.png', 'a-1.png']
    assert 'a-0.png' in capsys.readouterr().out
    for bad in (['--mask', 'm.png'], ['--strength', '0.5'], ['--set', 'nonsense'], ['--guidance', 'much']):
        assert main([*argv, *bad]) == 2
        assert 'Traceback' not in capsys.readouterr().err
    assert main(['generate', '--pipeline', 'nowhere', '--prompt', 'x', '--image', str(tmp_path / 'm.png')]) == 2
    assert 'm.png' in capsys.readouterr().err  # before a look at gigabytes of weights
