"""gen-jax convert: a trained run out, published weights in, and everything that cannot be converted."""

import json
import re

import chex
import jax
import numpy as np
import pytest

from gen_jax import models, trees
from gen_jax.cli.main import main
from gen_jax.engine.checkpoint import read_leaves, read_params
from gen_jax.interop.export import save_model
from gen_jax.interop.load import load_model
from gen_jax.interop.single_file import adm_params, save_adm, save_single_file
from gen_jax.interop.torch_layout import from_torch, to_torch
from tests.interop.tiny import MODULES, drawn
from tests.test_cli import DIGITS

WEIGHTS = 'diffusion_pytorch_model.safetensors'


@pytest.fixture(scope='module')
def run(once):
    """The trained run of tests/test_cli.py, for reading only."""
    def make(path):
        assert main(['train', '--config', 'digits:debug', '--workdir', str(path), *DIGITS]) == 0
    return once('cli_run', make)


@pytest.fixture(scope='module')
def parts():
    return {k: (MODULES[v], drawn(MODULES[v])) for k, v in (('unet', 'sd1'), ('vae', 'vae'), ('text_encoder', 'text'))}


@pytest.fixture
def pipeline(parts, tmp_path):
    folder = tmp_path / 'pipeline'
    for name, part in parts.items():
        save_model(*part, folder / name)
    index = {'_class_name': 'StableDiffusionPipeline', 'unet': ['diffusers', 'UNet2DConditionModel'],
             'vae': ['diffusers', 'AutoencoderKL'], 'text_encoder': ['transformers', 'CLIPTextModel'],
             'tokenizer': ['transformers', 'CLIPTokenizer'], 'safety_checker': [None, None]}
    (folder / 'model_index.json').write_text(json.dumps(index))
    return folder


def convert(*arguments):
    return main(['convert', *map(str, arguments)])


def same(params, leaves, where):
    found = trees.flat({'unet': params})
    assert {f'{where}/{k}' for k in found} == {k for k in leaves if k.startswith(f'{where}/')}
    for path, leaf in found.items():
        np.testing.assert_array_equal(leaf, leaves[f'{where}/{path}'], err_msg=path)


def test_a_run_becomes_a_published_folder(run, tmp_path, capsys):
    leaves = read_leaves(run)
    assert convert(run, tmp_path / 'a', '--to', 'torch') == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / 'a')
    module, params = load_model(tmp_path / 'a')
    assert module == models.unet_tiny(block_out_channels=(8,), down_block_types=('DownBlock2D',),
                                      up_block_types=('UpBlock2D',))  # tests.test_cli.DIGITS
    same(params, leaves, 'ema/slow/params')
    raw = ('--ema', '', '--step', '2', '--part', 'unet', '--dtype', 'float16', '--variant', 'fp16')
    assert convert(run, tmp_path / 'raw', '--to', 'torch', *raw) == 0
    half = load_model(tmp_path / 'raw', variant='fp16', dtype='float16')[1]
    same(half, {k: v.astype(np.float16) for k, v in leaves.items() if v.dtype == np.float32}, 'params')
    assert np.abs(half['conv_out']['bias'] - params['conv_out']['bias']).max() > 0


def test_a_dry_run_prints_the_table_and_writes_nothing(tmp_path, capsys):
    folder = save_model(models.unet_tiny(), drawn(models.unet_tiny()), tmp_path / 'b')
    assert convert(folder, tmp_path / 'a', '--to', 'jax', '--dry-run', '--part', 'unet') == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f'unet: UNet2D from {folder / WEIGHTS}' and '0 missing, 0 unexpected, 0 mis-shaped' in out[1]
    assert any(line.split()[:2] == ['mapped', 'conv_in.weight'] for line in out)
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps({**config, 'num_class_embeds': None, 'out_channels': 2}))
    assert convert(folder, '--to', 'jax', '--dry-run') == 1
    out = capsys.readouterr().out
    assert "unexpected 'class_embedding.weight'" in out and "mis-shaped 'conv_out.bias': the file has (1,)" in out
    assert sorted(p.name for p in tmp_path.iterdir()) == ['b']


def test_published_weights_become_a_checkpoint_to_start_from(tmp_path):
    module = models.unet_tiny()
    params = drawn(module)
    save_model(module, params, tmp_path / 'a')
    assert convert(tmp_path / 'a', tmp_path / 'ck', '--to', 'jax', '--part', 'unet') == 0
    flat = read_params(tmp_path / 'ck')  # what train.init_from reads
    assert np.array_equal(flat['unet/conv_in/kernel'], params['conv_in']['kernel'])
    assert convert(tmp_path / 'ck', tmp_path / 'back', '--to', 'torch') == 0
    assert (tmp_path / 'back' / WEIGHTS).read_bytes() == (tmp_path / 'a' / WEIGHTS).read_bytes()
    assert convert(tmp_path / 'a', tmp_path / 'ck', '--to', 'jax') == 2


def test_pipelines_and_single_files(pipeline, parts, tmp_path):
    assert convert(pipeline, tmp_path / 'ck', '--to', 'jax') == 0
    assert convert(tmp_path / 'ck', tmp_path / 'out', '--to', 'torch', '--max-shard-size', '20KB') == 0
    for name, (module, params) in parts.items():
        found, loaded = load_model(tmp_path / 'out', name)
        assert found == module
        chex.assert_trees_all_equal(loaded, params)
    assert len(list((tmp_path / 'out' / 'unet').glob('*.safetensors'))) > 2
    assert convert(pipeline, tmp_path / 'sd.safetensors', '--to', 'single') == 0
    save_single_file(parts, tmp_path / 'expected.safetensors')
    assert (tmp_path / 'sd.safetensors').read_bytes() == (tmp_path / 'expected.safetensors').read_bytes()
    assert convert(pipeline, tmp_path / 'vae', '--to', 'torch', '--part', 'vae') == 0
    assert load_model(tmp_path / 'vae')[0] == parts['vae'][0]


def test_adm_files_need_the_name_of_their_network(tmp_path, capsys):
    module = models.adm_tiny()
    shapes = adm_params(module)
    zeros = to_torch(jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes))
    params = from_torch({k: np.full(v.shape, i, np.float32) for i, (k, v) in enumerate(zeros.items())}, shapes)
    path = save_adm(module, params, tmp_path / 'adm.safetensors')
    assert convert(path, tmp_path / 'ck', '--to', 'jax', '--model', 'adm_tiny') == 0
    assert convert(tmp_path / 'ck', tmp_path / 'back.safetensors', '--to', 'single', '--model', 'adm_tiny') == 0
    assert (tmp_path / 'back.safetensors').read_bytes() == path.read_bytes()
    assert convert(path, tmp_path / 'x', '--to', 'jax', '--model', 'adm_tinny') == 2
    assert 'did you mean adm_tiny' in capsys.readouterr().err
    assert convert(path, tmp_path / 'x', '--to', 'torch', '--model', 'adm_tiny') == 2
    assert 'ADMUNet is no published class' in capsys.readouterr().err


@pytest.mark.parametrize('arguments, message', [
    ([], 'needs SOURCE OUT --to'),
    (['SOURCE', 'OUT'], 'needs SOURCE OUT --to'),
    (['SOURCE', '--to', 'torch'], 'needs SOURCE OUT --to'),
    (['no/such/folder', 'OUT', '--to', 'jax'], 'neither a folder here nor a hub id'),
    (['SOURCE', 'OUT', '--to', 'jax', '--part', 'text'], "no part 'text'; it has unet, vae, text_encoder"),
    (['SOURCE', 'OUT', '--to', 'single'], 'must end in .safetensors'),
    (['SOURCE', 'OUT', '--to', 'torch', '--variant', 'bf16'], 'holds no safetensors of the name .*bf16'),
    (['SOURCE', 'OUT', '--to', 'torch', '--max-shard-size', 'x'], 'max_shard_size'),
    (['PICKLE', 'OUT', '--to', 'jax'], 'is a pickle.*docs/weights.md'),
])
def test_bad_input_is_one_message_and_writes_nothing(pipeline, tmp_path, capsys, arguments, message):
    pickle = tmp_path / 'v1.ckpt'
    pickle.write_bytes(b'\x80\x02')
    names = {'SOURCE': pipeline, 'OUT': tmp_path / 'out', 'PICKLE': pickle}
    assert convert(*(names.get(a, a) for a in arguments)) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert re.search(message, err), err
    assert not (tmp_path / 'out').exists()


def test_runs_that_cannot_be_exported(run, tmp_path, capsys):
    folder = tmp_path / 'run'
    (folder / 'checkpoints').mkdir(parents=True)
    assert convert(folder, tmp_path / 'out', '--to', 'torch') == 2
    assert 'no config.json, which says what the networks are' in capsys.readouterr().err
    config = json.loads((run / 'config.json').read_text())
    config['system']['network'] = {'name': 'models.ncsn_digits'}
    (folder / 'config.json').write_text(json.dumps(config))
    (folder / 'checkpoints').rmdir()
    (folder / 'checkpoints').symlink_to(run / 'checkpoints')
    assert convert(folder, tmp_path / 'out', '--to', 'torch') == 2
    assert 'no network of the run has a published layout' in capsys.readouterr().err
