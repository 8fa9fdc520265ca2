"""Modules and their weights through folders and back; older spellings; every model that cannot be read."""

import functools
import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import models
from gen_jax.interop.classes import CLASSES, class_of, module_from
from gen_jax.interop.export import save_model
from gen_jax.interop.formats import Tensor, read_weights, write_safetensors
from gen_jax.interop.load import aligned, load_model, open_model
from gen_jax.interop.table import lines
from gen_jax.interop.torch_layout import to_torch
from tests.interop.tiny import MODULES, drawn

params_of = functools.cache(lambda name: drawn(MODULES[name]))


def rewrite(folder, change):
    """Changes the state dict of a folder: `change` gets and returns a dict of arrays."""
    path = next(folder.glob('*.safetensors'))
    tensors = change({k: np.array(v) for k, v in read_weights(path).items()})
    write_safetensors(path, {k: Tensor(v.shape, v.dtype, lambda v=v: v) for k, v in tensors.items()})


def configure(folder, **changes):
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize('name', MODULES)
def test_a_folder_gives_back_module_and_weights(name, tmp_path):
    module, params = MODULES[name], params_of(name)
    folder = save_model(module, params, tmp_path / 'a', max_shard_size='20KB')
    assert folder == tmp_path / 'a' and [p.name for p in tmp_path.iterdir()] == ['a']
    found, loaded = load_model(folder)
    assert found == module
    assert {type(x) for x in jax.tree.leaves(loaded)} == {type(jnp.zeros(1))}
    chex.assert_trees_all_equal(loaded, params)
    config = json.loads((folder / 'config.json').read_text())
    plain = module.clone(pixel_mean=None, pixel_std=None) if name == 'clip_pixels' else module
    assert CLASSES[class_of(module)].build(config) == plain
    assert ('_diffusers_version' in config) == (CLASSES[class_of(module)].library == 'diffusers')


def test_every_published_class_is_here():
    assert {class_of(m) for m in MODULES.values()} == set(CLASSES)


def test_loaded_weights_do_not_need_the_file(tmp_path):
    """They are copies: the file may be changed or deleted while they are in use."""
    folder = save_model(MODULES['unet'], params_of('unet'), tmp_path / 'a')
    host = jax.tree.leaves(load_model(folder, place=lambda x: x)[1])
    assert all(x.flags.writeable and x.flags.c_contiguous for x in host)  # views of the file are neither
    _, loaded = load_model(folder)
    path = folder / 'diffusion_pytorch_model.safetensors'
    with open(path, 'r+b') as file:
        file.write(bytes(path.stat().st_size))
    shutil.rmtree(folder)
    chex.assert_trees_all_equal(loaded, params_of('unet'))


@pytest.mark.parametrize('shape', [(70, 300), (300, 70), (3, 3, 65, 257), (600, 1000), (5,), (), (1, 1)])
@pytest.mark.parametrize('dtype', [np.float32, np.float16])
def test_copies_are_whole_and_aligned(shape, dtype):
    """Sizes around those of the tiles that are transposed at a time."""
    expected = np.arange(np.prod(shape, dtype=int)).reshape(shape) % 2048  # exact in float16
    view = np.moveaxis(expected, -1, 0).copy() if shape else expected
    copied = aligned(np.moveaxis(view.astype(np.float32), 0, -1) if shape else view, dtype)
    assert copied.flags.c_contiguous and copied.dtype == dtype and copied.ctypes.data % 64 == 0
    np.testing.assert_array_equal(copied, expected.astype(dtype))


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_half_precision_on_disk_and_in_memory(tmp_path, dtype):
    module, params = MODULES['unet'], params_of('unet')
    folder = save_model(module, params, tmp_path / 'a', dtype=dtype, variant='fp16')
    assert [p.name for p in folder.glob('*.safetensors')] == ['diffusion_pytorch_model.fp16.safetensors']
    expected = jax.tree.map(lambda x: np.asarray(x, jnp.dtype(dtype)), params)
    found, loaded = load_model(folder, variant='fp16', dtype=dtype)
    assert found == module.clone(dtype=jnp.dtype(dtype))
    assert {x.dtype for x in jax.tree.leaves(loaded)} == {jnp.dtype(dtype)}
    chex.assert_trees_all_equal(loaded, expected)
    found, loaded = load_model(folder, variant='fp16')
    assert found == module
    chex.assert_trees_all_equal(loaded, jax.tree.map(lambda x: x.astype(np.float32), expected))


def test_leaves_go_where_they_are_sent(tmp_path):
    folder = save_model(MODULES['unet'], params_of('unet'), tmp_path / 'a')
    device = jax.devices()[-1]
    _, loaded = load_model(folder, place=lambda x: jax.device_put(x, device))
    assert all(x.devices() == {device} for x in jax.tree.leaves(loaded))


def test_saving_into_a_folder_replaces_its_weights(tmp_path):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a' / 'README.md').write_text('mine')
    save_model(MODULES['vae'], params_of('vae'), tmp_path / 'a', max_shard_size='20KB')
    save_model(MODULES['unet'], params_of('unet'), tmp_path / 'a')
    assert {p.name for p in (tmp_path / 'a').iterdir()} == {'README.md', 'config.json',
                                                            'diffusion_pytorch_model.safetensors'}
    assert load_model(tmp_path / 'a')[0] == MODULES['unet']


OLD = {'to_q': 'query', 'to_k': 'key', 'to_v': 'value', 'to_out.0': 'proj_attn'}


@pytest.mark.parametrize('name', ['vae', 'unet'])
@pytest.mark.parametrize('convolutions', [False, True])
def test_old_names_of_attention(tmp_path, name, convolutions):
    def older(tensors):
        out = {}
        for key, value in tensors.items():
            for new, old in OLD.items():
                if f'.{new}.' in key:
                    key = key.replace(f'.{new}.', f'.{old}.')
                    value = value[:, :, None, None] if convolutions and value.ndim == 2 else value
            out[key] = value
        assert len(set(out) & set(tensors)) < len(tensors)
        return out

    folder = save_model(MODULES[name], params_of(name), tmp_path / 'a')
    rewrite(folder, older)
    chex.assert_trees_all_equal(load_model(folder)[1], params_of(name))


def test_a_linear_projection_stored_as_a_convolution_and_the_reverse(tmp_path):
    for name in ('sd1', 'sd2'):
        folder = save_model(MODULES[name], params_of(name), tmp_path / name)
        rewrite(folder, lambda t: {k: (v[:, :, 0, 0] if v.ndim == 4 else v[:, :, None, None])
                                   if k.endswith(('proj_in.weight', 'proj_out.weight')) else v for k, v in t.items()})
        chex.assert_trees_all_equal(load_model(folder)[1], params_of(name))


@pytest.mark.parametrize('name, prefix', [('text', 'text_model.'), ('image', 'vision_model.')])
def test_towers_with_and_without_prefix_and_position_ids(tmp_path, name, prefix):
    folder = save_model(MODULES[name], params_of(name), tmp_path / 'a')
    assert all(k.startswith(prefix) for k in read_weights(folder / 'model.safetensors'))
    rewrite(folder, lambda t: {**{k.removeprefix(prefix): v for k, v in t.items()},
                               'embeddings.position_ids': np.arange(9)[None]})
    chex.assert_trees_all_equal(load_model(folder)[1], params_of(name))


def test_old_configs_of_clip_are_full_of_what_says_nothing():
    config = CLASSES['CLIPModel'].config(MODULES['clip'])
    old = {'add_cross_attention': False, 'top_k': 50, 'torch_dtype': None, 'dropout': 0.0, 'id2label': {'0': 'A'},
           'initializer_factor': 1.0, 'return_dict': True, '_name_or_path': ''}
    config['text_config'].update(old)
    config['vision_config'].update(old)
    config.update(text_config_dict=None, vision_config_dict=None, transformers_version='4.16.0.dev0', torch_dtype='x')
    assert module_from(config) == MODULES['clip']
    config['text_config']['dropout'] = 0.1
    config['vision_config']['hidden_dims'] = 7
    with pytest.raises(ValueError, match='dropout=0.1'):
        module_from(config)
    config['text_config']['dropout'] = 0.0
    with pytest.raises(ValueError, match=r"hidden_dims=7 \(did you mean 'hidden_size'"):
        module_from(config)


def test_unknown_fields_are_listed_and_harmless_ones_pass():
    config = CLASSES['UNet2DConditionModel'].config(MODULES['sd1'])
    assert module_from({**config, 'dual_cross_attention': False, '_name_or_path': 'x', 'encoder_hid_dim': None,
                        'mid_block_only_cross_attention': None}) == MODULES['sd1']
    with pytest.raises(ValueError) as error:
        module_from({**config, 'dual_cross_attention': True, 'norm_groups': 4})
    assert "dual_cross_attention=True" in str(error.value)
    assert "norm_groups=4 (did you mean 'norm_num_groups'?)" in str(error.value)
    with pytest.raises(ValueError, match="dtype='float16'"):
        module_from({**config, 'dtype': 'float16'})


@pytest.mark.parametrize('changes, message', [
    ({'_class_name': 'UNet3DModel'}, "config.json is of the class 'UNet3DModel'.*did you mean 'UNet2DModel'.*CLIPMod"),
    ({'_class_name': 'Transformer2DModel'}, "'Transformer2DModel', which gen_jax does not have"),
    ({'_class_name': None}, 'names no class'),
    ({'_class_name': 'AutoencoderKL'}, 'asks for what gen_jax does not have: .*class_embeds'),
    ({'block_out_channels': [8, 12]}, 'mis-shaped'),
])
def test_wrong_classes_and_configs(tmp_path, changes, message):
    folder = save_model(MODULES['unet'], params_of('unet'), tmp_path / 'a')
    configure(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load_model(folder)


def broken(tensors):
    """Misses one key, has another one besides, and one of another shape."""
    tensors['conv_in.bais'] = tensors.pop('conv_in.bias')
    tensors['conv_out.weight'] = np.zeros((2, 3, 3, 3), np.float32)
    return tensors


def test_all_problems_at_once_with_the_file_and_the_nearest_names(tmp_path):
    folder = save_model(MODULES['unet'], params_of('unet'), tmp_path / 'a')
    rewrite(folder, broken)
    with pytest.raises(ValueError) as error:
        load_model(folder)
    for part in ('diffusion_pytorch_model.safetensors: ', '1 missing, 1 unexpected, 1 mis-shaped of',
                 "missing 'conv_in.bias' (the file has 'conv_in.bais')",
                 "unexpected 'conv_in.bais' (the model has 'conv_in.bias')",
                 "mis-shaped 'conv_out.weight': the file has (2, 3, 3, 3), the model needs (1, 8, 3, 3)"):
        assert part in str(error.value), error.value
    table = lines('unet', open_model(folder))
    assert table[0].startswith('unet: UNet2D from') and '1 missing, 1 unexpected, 1 mis-shaped' in table[1]
    assert "  missing 'conv_in.bias' (the file has 'conv_in.bais')" in table
    assert [line.split() for line in table if 'class_embedding.weight' in line] == [
        ['mapped', 'class_embedding.weight', '[11,', '16]']]
    keys = to_torch(params_of('unet'))
    assert len(table) == 2 + 3 + len(keys) - 2


def test_two_different_models_are_compared_in_no_time(tmp_path):
    """Nearest names cost a lot: of everything missing only the first keys get them."""
    folder = save_model(MODULES['sd1'], params_of('sd1'), tmp_path / 'a')
    rewrite(folder, lambda t: {f'{k}.{i}': v for k, v in t.items() for i in range(4)})
    with pytest.raises(ValueError, match=f'{len(to_torch(params_of("sd1")))} missing'):
        load_model(folder)


def test_no_folder_part_or_config(tmp_path):
    with pytest.raises(ValueError, match='config.json'):
        load_model(tmp_path)
    (tmp_path / 'model_index.json').write_text('{}')
    with pytest.raises(ValueError, match='is a pipeline; name a part of it: subfolder="unet"'):
        load_model(tmp_path)


def test_what_cannot_be_exported(tmp_path):
    with pytest.raises(ValueError, match='MLPVAE is no published class; gen_jax exports AutoencoderKL, CLIP'):
        save_model(models.vae_tiny(), {}, tmp_path / 'a')
    params = dict(params_of('unet'), more={'bias': np.zeros(3)})
    with pytest.raises(ValueError, match="not those of the module:\n  unexpected 'more.bias'"):
        save_model(MODULES['unet'], params, tmp_path / 'a')
    with pytest.raises(ValueError, match='stem'):
        save_model(models.clip_shapes(eos_token_id=3), params_of('clip'), tmp_path / 'a')
    (tmp_path / 'file').write_text('')
    with pytest.raises(ValueError, match='is a file'):
        save_model(MODULES['unet'], params_of('unet'), tmp_path / 'file')
    with pytest.raises(ValueError, match='max_shard_size'):
        save_model(MODULES['unet'], params_of('unet'), tmp_path / 'a', max_shard_size='big')
    assert [p.name for p in tmp_path.iterdir()] == ['file']


SD_BLOCKS = {'block_out_channels': [320, 640, 1280, 1280], 'layers_per_block': 2, 'norm_num_groups': 32,
             'down_block_types': ['CrossAttnDownBlock2D'] * 3 + ['DownBlock2D'], 'norm_eps': 1e-05, 'freq_shift': 0,
             'up_block_types': ['UpBlock2D'] + ['CrossAttnUpBlock2D'] * 3, 'flip_sin_to_cos': True, 'in_channels': 4,
             'out_channels': 4, 'downsample_padding': 1, 'mid_block_scale_factor': 1, 'act_fn': 'silu',
             'center_input_sample': False, '_diffusers_version': '0.6.0', '_class_name': 'UNet2DConditionModel'}
CONFIGS = {  # as config.json of the published folders says
    'sd15_unet': {**SD_BLOCKS, 'sample_size': 64, 'cross_attention_dim': 768, 'attention_head_dim': 8},
    'sd21_unet': {**SD_BLOCKS, 'sample_size': 96, 'cross_attention_dim': 1024, 'attention_head_dim': [5, 10, 20, 20],
                  'use_linear_projection': True, 'upcast_attention': True, 'dual_cross_attention': False,
                  'only_cross_attention': False, 'num_class_embeds': None},
    'sdxl_unet': {**SD_BLOCKS, 'sample_size': 128, 'cross_attention_dim': 2048, 'attention_head_dim': [5, 10, 20],
                  'block_out_channels': [320, 640, 1280], 'transformer_layers_per_block': [1, 2, 10],
                  'down_block_types': ['DownBlock2D', 'CrossAttnDownBlock2D', 'CrossAttnDownBlock2D'],
                  'up_block_types': ['CrossAttnUpBlock2D', 'CrossAttnUpBlock2D', 'UpBlock2D'],
                  'use_linear_projection': True, 'addition_embed_type': 'text_time', 'addition_time_embed_dim': 256,
                  'projection_class_embeddings_input_dim': 2816, 'addition_embed_type_num_heads': 64,
                  'class_embeddings_concat': False, 'conv_in_kernel': 3, 'conv_out_kernel': 3,
                  'resnet_out_scale_factor': 1.0, 'time_embedding_type': 'positional', 'num_attention_heads': None,
                  'mid_block_type': 'UNetMidBlock2DCrossAttn', 'upcast_attention': None, 'timestep_post_act': None},
    'sd_vae': {'_class_name': 'AutoencoderKL', '_diffusers_version': '0.6.0', 'act_fn': 'silu', 'in_channels': 3,
               'block_out_channels': [128, 256, 512, 512], 'down_block_types': ['DownEncoderBlock2D'] * 4,
               'latent_channels': 4, 'layers_per_block': 2, 'norm_num_groups': 32, 'out_channels': 3,
               'sample_size': 512, 'up_block_types': ['UpDecoderBlock2D'] * 4},
}


@pytest.mark.parametrize('name', CONFIGS)
def test_published_configs_are_those_of_the_factories(name):
    found, expected = module_from(CONFIGS[name]), getattr(models, name)()
    assert found == expected.clone(upcast_attention=found.upcast_attention) if 'unet' in name else found == expected
    assert bool(getattr(found, 'upcast_attention', None)) == bool(getattr(expected, 'upcast_attention', None))


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_):
        raise OSError('no space left on device')

    monkeypatch.setattr('gen_jax.interop.export.write_json', full)
    with pytest.raises(OSError, match='no space left'):
        save_model(MODULES['unet'], params_of('unet'), tmp_path / 'a')
    assert not list(tmp_path.iterdir())
