"""The commands as a user meets them: help at once, pictures and numbers, one clear line for bad input."""

import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from gen_jax.cli.main import main

TRAIN = ('--config.train.steps=2', '--config.log.every_steps=1', '--config.log.tensorboard=False',
         '--config.sample.n=10')
DIGITS = (*TRAIN, '--config.system.network.block_out_channels=(8,)',  # one resolution: half as much to compile
          "--config.system.network.down_block_types=('DownBlock2D',)",
          "--config.system.network.up_block_types=('UpBlock2D',)")


@pytest.fixture(scope='module')
def workdir(once):
    """A trained run, for reading only."""
    def make(path):
        assert main(['train', '--config', 'digits:debug', '--workdir', str(path), *DIGITS]) == 0
    return once('cli_run', make)


def test_help_is_useful_and_imports_nothing_heavy():
    began = time.monotonic()
    code = ('import sys; from gen_jax.cli.main import main; main(sys.argv[1:]); '
            'print(sorted(m for m in ("jax", "flax", "sklearn", "grain", "orbax") if m in sys.modules))')
    for arguments, expected in ((['--help'], 'evaluate'), (['train', '--help'], 'exit codes'),
                                (['train', '--config', 'digits', '--help'], '--config.train.steps=900'),
                                (['sample', '--help'], '--guidance'), (['evaluate', '--help'], '--workdir'),
                                (['list', '--help'], 'diffusion'), (['list'], 'Class-conditional diffusion')):
        out = subprocess.run([sys.executable, '-c', code, *arguments], capture_output=True, text=True, check=True)
        assert expected in out.stdout and out.stdout.strip().endswith('[]'), (arguments, out.stdout)
    assert time.monotonic() - began < 60


def test_list_names_what_configs_may_name(capsys):
    assert main(['list', 'diffusion']) == 0 and 'diffusion.cosine' in capsys.readouterr().out
    from gen_jax.names import NAMESPACES
    for kind in NAMESPACES:
        assert main(['list', kind]) == 0 and f'{kind}.' in capsys.readouterr().out
    assert main(['list', 'nothing']) == 2 and 'choose from configs' in capsys.readouterr().err


def test_sample_writes_png_and_npz(workdir, tmp_path, capsys):
    base = ['sample', '--workdir', str(workdir), '--steps', '3', '--guidance', '2', '--seed', '5']
    assert main([*base, '--labels', '3,1', '--n', '4', '--out', str(tmp_path / 'a')]) == 0
    a = np.load(tmp_path / 'a.npz')
    assert a['image'].shape == (4, 8, 8, 1) and a['image'].dtype == np.uint8 and list(a['label']) == [3, 1, 3, 1]
    assert (tmp_path / 'a.png').read_bytes()[:4] == b'\x89PNG' and '4 pictures of step 2' in capsys.readouterr().out
    # Image k depends on the seed and k, not on how many are drawn at once.
    assert main([*base, '--labels', '3,1', '--n', '2', '--batch-size', '1', '--out', str(tmp_path / 'b')]) == 0
    np.testing.assert_allclose(np.load(tmp_path / 'b.npz')['image'].astype(int), a['image'][:2].astype(int), atol=1)
    assert main([*base[:-1], '6', '--labels', '3,1', '--n', '2', '--out', str(tmp_path / 'c')]) == 0
    assert np.abs(np.load(tmp_path / 'c.npz')['image'].astype(int) - a['image'][:2]).max() > 10
    assert not list(tmp_path.glob('.*'))


def test_load_gives_the_same_from_python(workdir, tmp_path):
    import gen_jax
    main(['sample', '--workdir', str(workdir), '--steps', '3', '--labels', '7', '--out', str(tmp_path / 'a')])
    loaded = gen_jax.load(workdir)
    out = loaded.sample(labels=7, steps=3)
    np.testing.assert_array_equal(out['image'], np.load(tmp_path / 'a.npz')['image'])
    losses = loaded.predict('losses', {'image': out['image'], 'label': out['label']})
    assert losses['loss'].shape[0] == 1 and np.isfinite(losses['loss']).all()


def test_changing_settings_does_not_recompile(workdir, monkeypatch):
    """Through the public predict, with the system rebuilt: steps, scale, eta and seed are traced."""
    import gen_jax
    predictor = gen_jax.load(workdir).predictor
    generate, traces = predictor.system.predict['generate'], []

    def run(*args):  # runs when it is traced only
        traces.append(1)
        return generate.run(*args)

    counted = {**predictor.system.predict, 'generate': generate._replace(run=run)}
    monkeypatch.setattr(predictor, 'system', predictor.system._replace(predict=counted))
    monkeypatch.setattr(predictor, '_jitted', {})
    for settings in ({'steps': 2, 'guidance_scale': 1.5, 'eta': 0.0}, {'steps': 4, 'guidance_scale': 3.0, 'eta': 0.0},
                     {'steps': 3, 'guidance_scale': 7.0, 'eta': 1.0}):
        gen_jax.load(workdir).sample(4, seed=settings['steps'], **settings)
    assert gen_jax.load(workdir).predictor is predictor and len(traces) == 1
    gen_jax.load(workdir).sample(4, steps=2, eta=0.0, guidance_scale=None)
    assert len(traces) == 2, 'no guidance is another, undoubled program'


def test_evaluate_writes_json(workdir, tmp_path):
    out = tmp_path / 'scores.json'
    assert main(['evaluate', '--workdir', str(workdir), '--only', 'guided', '--out', str(out)]) == 0
    scores = json.loads(out.read_text())
    assert scores['step'] == 2 and 0 <= scores['guided']['accuracy'] <= 1 and scores['guided']['frechet'] > 5
    # What the numbers depend on: settings that were given, and those that the system stands for.
    recipe = scores['guided']['recipe']
    assert (recipe['predict'], recipe['split'], recipe['ema'], recipe['seed']) == ('generate', 'test', 'slow', 0)
    assert recipe['settings'] == {'solver': 'ddim', 'steps': 2, 'guidance_scale': 2.0} and recipe['nfe'] == 4
    from PIL import Image
    assert Image.open(tmp_path / scores['guided']['pictures']).size == (10 * 49 + 1, 2 * 49 + 1)


def test_workdir_tells_what_made_it(workdir):
    versions = json.loads((workdir / 'versions.json').read_text())
    assert versions['jax'] and 'git' in versions and json.loads((workdir / 'config.json').read_text())['data']
    with open(workdir / 'metrics.jsonl') as log:
        records = [json.loads(line) for line in log]
    assert any('denoise/loss' in r for r in records) and any('heldout/loss_t_0_0.1' in r for r in records)


BAD = {
    'unknown key': (['--config', 'digits:debug', '--config.train.stepz=3'], 'did you mean config.train.steps'),
    'wrong type': (['--config', 'digits:debug', '--config.train.steps=many'], 'train.steps=many'),
    'missing config': (['--config', 'nothing_like_it'], "no config 'nothing_like_it': choose from"),
    'missing file': (['--config', 'gone.py'], "no file 'gone.py'"),
    'batch and devices': (['--config', 'digits:debug', '--config.data.batch_size=13'], 'not divisible by 8 devices'),
    'pmap': (['--config', 'digits:debug', '--parallel', 'pmap', '--config.data.batch_size=12'],
             'parallel=pmap.*use 8 or'),
    'groups': (['--config', 'digits:debug', '--config.system.network.norm_num_groups=3'],
               'norm_num_groups=3 does not divide'),
    'virtual devices': (['--config', 'digits:debug', '--config.train.cpu_devices=-2'], 'train.cpu_devices=-2'),
    'prefetching': (['--config', 'digits:debug', '--config.data.buffer=-1'], 'data.buffer=-1'),
    'image size': (['--config', 'digits:debug', '--config.data.options.image_size=16'], 'unknown config key'),
    'steps too many': (['--config', 'digits:debug', '--config.sample.settings.steps=5000'], '1000'),
    'no such ema': (['--config', 'digits:debug', '--config.sample.ema=fast'], "ema 'fast': choose from"),
    'no pictures': (['--config', 'digits:debug', '--config.sample.n=0'], 'sample.n 0: at least 1'),
    'no predict': (['--config', 'digits:debug', '--config.evaluate.guided.predict=nope'], "no predict 'nope'"),
    'retention': (['--config', 'digits:debug', '--config.checkpoint.keep_last=0'], 'at least 1'),
    'watchdog': (['--config', 'digits:debug', '--config.train.hang_seconds=-2'], 'hang_seconds -2.0: must be positive'),
    'wall time': (['--config', 'digits:debug', '--config.train.max_seconds=-1'], 'train.max_seconds -1.0: must be pos'),
    'failed saves': (['--config', 'digits:debug', '--config.checkpoint.on_error=stop'], 'choose from raise, continue'),
    'skips': (['--config', 'digits:debug', '--config.train.max_skips=0'], 'max_skips 0: at least 1'),
    'accepted': (['--config', 'digits:debug', '--config.train.accept=all'], 'choose from config, data, code'),
    'remat': (['--config', 'digits:debug', '--config.train.remat=fulll'], "remat policy 'fulll': choose from full"),
    'sharding': (['--config', 'digits:debug', "--config.train.sharding=('params/.*=',)"], 'no rule matches'),
    'decay': (['--config', 'digits:debug', '--config.train.ema.slow.decay=1.5'], 'decay'),
    'captions': (['--config', 'shapes_clip:debug', '--config.data.transforms=()'], 'tokenize'),
    'no captions': (['--config', 'shapes_clip:debug', '--config.data.source=digits', '--config.data.options={}'],
                    'data.options|caption'),
    'not optional': (['--config', 'digits:debug', '--config.train.steps=None'], 'not optional'),
    'no workdir': ([], 'needs --config NAME and --workdir DIR'),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_input_is_one_message_and_leaves_nothing(case, tmp_path, capsys):
    import re
    arguments, message = BAD[case]
    assert main(['train', *arguments, *(['--workdir', str(tmp_path / 'w')] if arguments else [])]) == 2
    err = capsys.readouterr().err.strip()
    assert re.search(message, err, re.S) and 'Traceback' not in err, err
    assert not (tmp_path / 'w').exists()


def config_file(tmp_path, body):
    path = tmp_path / 'mine.py'
    path.write_text('from gen_jax.config import load_config\n\n\ndef get_config(arg=""):\n'
                    '    c = load_config("digits:debug")\n    c.unlock()\n'
                    + ''.join(f'    {line}\n' for line in body) + '    return c\n')
    return str(path)


@pytest.mark.parametrize('body, message', [
    (['c.system.network.norm_num_groups = 3'], 'norm_num_groups'),
    (['c.system.network.block_out_channels = (8, 8, 8, 8, 8)',
      'c.system.network.down_block_types = ("DownBlock2D",) * 5',
      'c.system.network.up_block_types = ("UpBlock2D",) * 5'], 'divisible'),
    (['c.data.options = {"image_size": 16}'], r'images of shape \(16, 16, 1\)'),
    (['c.system.network.colour = 3'], "takes no 'colour'"),
    (['c.data.source = "folder:/nonexistent/pictures"'], '/nonexistent/pictures'),
    (['c.train.ema = {"slow": {"decay": 0.9, "params": ("vae",)}}'], "averages 'vae'"),
    (['c.train.init_from = "/nonexistent/run"'], 'there is no checkpoint'),
])
def test_systems_that_cannot_be_built(body, message, tmp_path, capsys):
    import re
    assert main(['train', '--config', config_file(tmp_path, body), '--workdir', str(tmp_path / 'w')]) == 2
    err = capsys.readouterr().err.strip()
    assert re.search(message, err) and not (tmp_path / 'w').exists(), err


def test_runs_without_checkpoint_and_bad_settings(workdir, tmp_path, capsys):
    for command in ('sample', 'evaluate'):
        assert main([command, '--workdir', str(tmp_path)]) == 2
        assert 'train first, or check --workdir' in capsys.readouterr().err
    base = ['sample', '--workdir', str(workdir), '--out', str(tmp_path / 'x')]
    for extra, message in ((['--labels', '12'], 'classes 0 to 9'), (['--steps', '0'], 'steps'),
                           (['--steps', '5000'], '1000'), (['--solver', 'magic'], 'choose from'),
                           (['--eta', '2'], 'eta'), (['--n', '0'], 'at least 1'), (['--guidance', 'lots'], 'number'),
                           (['--ema', 'fast'], "no EMA 'fast'"), (['--step', '9'], 'the steps are')):
        assert main([*base, *extra]) == 2, extra
        assert message in capsys.readouterr().err, extra
    assert not list(tmp_path.iterdir())


def test_a_workdir_that_is_a_file(tmp_path, capsys):
    (tmp_path / 'f').write_text('mine')
    assert main(['train', '--config', 'digits:debug', '--workdir', str(tmp_path / 'f')]) == 2
    assert 'is a file: name a folder' in capsys.readouterr().err and (tmp_path / 'f').read_text() == 'mine'


def test_a_workdir_of_another_config(workdir, tmp_path, capsys):
    workdir = shutil.copytree(workdir, tmp_path / 'run')
    assert main(['train', '--config', 'digits:debug', '--workdir', str(workdir), *DIGITS,
                 '--config.optim.lr=1.0']) == 2
    assert 'optim.lr: 0.001 there, 1.0 now' in capsys.readouterr().err
    # The same run again has nothing left to do, and says so.
    assert main(['train', '--config', 'digits:debug', '--workdir', str(workdir), *DIGITS]) == 0
    assert 'finished at step 2' in capsys.readouterr().out


def test_module_runs_as_a_program():
    out = subprocess.run([sys.executable, '-m', 'gen_jax.cli.main', 'nope'], capture_output=True, text=True,
                         env={**os.environ})
    assert out.returncode == 2 and 'unknown command' in out.stderr


def test_pictures_that_start_from_data(tmp_path, capsys):
    """A predict over data: each example's row begins with it, or with its end of an interpolation."""
    work = tmp_path / 'vae'
    assert main(['train', '--config', 'digits_vae:debug', '--workdir', str(work), *TRAIN]) == 0
    base = ['sample', '--workdir', str(work), '--n', '3', '--out', str(tmp_path / 'x')]
    assert main([*base, '--predict', 'reconstruct']) == 0
    from gen_jax.data.digits import digits
    rows = np.load(tmp_path / 'x.npz')['image']
    assert rows.shape == (3, 2, 8, 8, 1) and (rows[1, 0] == digits('test')[1]['image']).all()
    assert main([*base, '--predict', 'interpolate', '--steps', '5']) == 0
    assert np.load(tmp_path / 'x.npz')['image'].shape == (3, 5, 8, 8, 1)
    assert main([*base, '--predict', 'elbo', '--n', '3', '--out', str(tmp_path / 'numbers')]) == 0
    assert 'of shape [3]' in capsys.readouterr().out and len(np.load(tmp_path / 'numbers.npz').files) >= 1
    assert main([*base, '--predict', 'dream']) == 2 and 'interpolate' in capsys.readouterr().err


def test_batches_from_python(workdir):
    """Any dtype of numbers, rows shared by all, and refusals that name what was given."""
    import jax.numpy as jnp

    import gen_jax
    run = gen_jax.load(workdir)
    image, label = np.zeros((3, 8, 8, 1), np.uint8), np.array([1, 2, 3])
    mask = (np.arange(8) < 4).astype(np.float32)[None, None, :, None] * np.ones((1, 8, 1, 1), np.float32)
    batch = {'image': image, 'label': label}

    def inpaint(**more):
        return run.predict('inpaint', {**batch, **more}, steps=2)['image']

    whole = inpaint(mask=np.repeat(mask, 3, 0))
    for same in (mask, jnp.asarray(mask, 'bfloat16'), mask.astype(bool)):
        np.testing.assert_allclose(inpaint(mask=same), whole, atol=1e-6)
    assert (inpaint() != whole).any(), 'the mask is read'
    for more, message in (({'image': image + 0.0}, None), ({'image': image[0]}, "beside|image.* shape"),
                          ({'image': 255.0 * np.ones((3, 8, 8, 1))}, r'to 255: give uint8, or floating point in \[-1'),
                          ({'image': np.full((3, 8, 8, 1), np.nan)}, 'give uint8, or floating point'),
                          ({'image': np.zeros((3, 16, 16, 1), np.uint8)}, r'images of shape \(16, 16, 1\) for a model'),
                          ({'label': np.array([1, 2, 57])}, "'label' is int64 from 1 to 57: .* classes 0 to 9"),
                          ({'label': np.array([-4, 2, 5])}, "'label' is int64 from -4"),
                          ({'label': label[:2]}, "'label' has shape .2,., beside 'image' of 3 rows"),
                          ({'mask': mask[0, :, :, 0]}, "'mask' has shape .8, 8., beside|beside 'mask' of 8 rows")):
        if message is None:
            inpaint(**more)
            continue
        with pytest.raises(ValueError, match=message):
            inpaint(**more)
    with pytest.raises(ValueError, match="no 'image': it has"):
        run.predict('edit', {'label': label}, steps=2)
    for labels in ([], [3.7]):
        with pytest.raises(ValueError, match='class numbers, at least one'):
            run.sample(labels=labels)
    with pytest.raises(ValueError, match="'losses' of this system has no setting 'steps': it has none"):
        run.predict('losses', batch, steps=2)


def test_a_lost_config_is_read_from_the_checkpoint(workdir, tmp_path):
    import gen_jax
    copy = tmp_path / 'run'
    shutil.copytree(workdir, copy)
    (copy / 'config.json').unlink()
    assert gen_jax.load(copy).config.to_json() == gen_jax.load(workdir).config.to_json()


def test_lists(capsys):
    for kind, expected in (('solvers', 'dpmpp_2m'), ('correctors', 'langevin'), ('spacings', 'karras')):
        assert main(['list', kind]) == 0 and expected in capsys.readouterr().out
