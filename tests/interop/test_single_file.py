"""Stable Diffusion 1.x and ADM in one file: keys of the published files, both directions, and what is no such file."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import models
from gen_jax.interop.classes import abstract_params
from gen_jax.interop.formats import Tensor, read_safetensors, write_safetensors
from gen_jax.interop.single_file import (
    adm_params,
    compvis_key,
    load_single_file,
    open_adm,
    save_adm,
    save_single_file,
)
from gen_jax.interop.torch_layout import flatten, from_torch, to_torch
from tests.golden.draws import weight
from tests.interop.tiny import MODULES, drawn

PARTS = {'unet': 'sd1', 'vae': 'vae', 'text_encoder': 'text'}

# Pairs of keys of the published files: stable-diffusion-v1-5's folder and its v1-5-pruned-emaonly.
UNET = {
    'conv_in.weight': 'input_blocks.0.0.weight',
    'time_embedding.linear_2.bias': 'time_embed.2.bias',
    'down_blocks.0.resnets.0.conv1.weight': 'input_blocks.1.0.in_layers.2.weight',
    'down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k.weight':
        'input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight',
    'down_blocks.0.downsamplers.0.conv.weight': 'input_blocks.3.0.op.weight',
    'down_blocks.1.resnets.0.conv_shortcut.weight': 'input_blocks.4.0.skip_connection.weight',
    'down_blocks.2.downsamplers.0.conv.bias': 'input_blocks.9.0.op.bias',
    'down_blocks.3.resnets.1.time_emb_proj.weight': 'input_blocks.11.0.emb_layers.1.weight',
    'mid_block.resnets.0.norm1.weight': 'middle_block.0.in_layers.0.weight',
    'mid_block.attentions.0.proj_in.weight': 'middle_block.1.proj_in.weight',
    'mid_block.resnets.1.conv2.bias': 'middle_block.2.out_layers.3.bias',
    'up_blocks.0.resnets.2.norm2.weight': 'output_blocks.2.0.out_layers.0.weight',
    'up_blocks.0.upsamplers.0.conv.weight': 'output_blocks.2.1.conv.weight',
    'up_blocks.1.attentions.0.norm.weight': 'output_blocks.3.1.norm.weight',
    'up_blocks.1.upsamplers.0.conv.weight': 'output_blocks.5.2.conv.weight',
    'up_blocks.3.attentions.2.transformer_blocks.0.ff.net.0.proj.weight':
        'output_blocks.11.1.transformer_blocks.0.ff.net.0.proj.weight',
    'conv_norm_out.weight': 'out.0.weight',
    'conv_out.bias': 'out.2.bias',
}
VAE = {
    'encoder.conv_in.weight': 'encoder.conv_in.weight',
    'encoder.down_blocks.0.resnets.1.norm2.weight': 'encoder.down.0.block.1.norm2.weight',
    'encoder.down_blocks.1.resnets.0.conv_shortcut.weight': 'encoder.down.1.block.0.nin_shortcut.weight',
    'encoder.down_blocks.2.downsamplers.0.conv.bias': 'encoder.down.2.downsample.conv.bias',
    'encoder.mid_block.resnets.1.conv1.weight': 'encoder.mid.block_2.conv1.weight',
    'encoder.mid_block.attentions.0.to_q.weight': 'encoder.mid.attn_1.q.weight',
    'encoder.conv_norm_out.bias': 'encoder.norm_out.bias',
    'decoder.mid_block.attentions.0.to_out.0.bias': 'decoder.mid.attn_1.proj_out.bias',
    'decoder.mid_block.attentions.0.group_norm.weight': 'decoder.mid.attn_1.norm.weight',
    'decoder.up_blocks.0.resnets.2.conv2.weight': 'decoder.up.3.block.2.conv2.weight',
    'decoder.up_blocks.2.upsamplers.0.conv.weight': 'decoder.up.1.upsample.conv.weight',
    'decoder.up_blocks.3.resnets.0.conv_shortcut.bias': 'decoder.up.0.block.0.nin_shortcut.bias',
    'quant_conv.weight': 'quant_conv.weight',
}


@pytest.mark.parametrize('make, pairs, count', [(models.sd15_unet, UNET, 686), (models.sd_vae, VAE, 248)])
def test_keys_of_the_published_files(make, pairs, count):
    module = make()
    keys = list(flatten(abstract_params(module)))
    theirs = {k: compvis_key(k, module) for k in keys}
    assert len(keys) == len(set(theirs.values())) == count
    assert {k: theirs[k] for k in pairs} == pairs
    assert not [k for k in theirs.values() if '_blocks.' in k and k.startswith(('down', 'up'))]


@pytest.fixture(scope='module')
def parts():
    return {part: (MODULES[name], drawn(MODULES[name])) for part, name in PARTS.items()}


@pytest.fixture
def file(parts, tmp_path):
    return save_single_file(parts, tmp_path / 'sd.safetensors')


def add(path, extra=None, without=''):
    tensors = {k: np.array(v) for k, v in read_safetensors(path).items() if not without or not k.startswith(without)}
    tensors.update(extra or {})
    write_safetensors(path, {k: Tensor(v.shape, v.dtype, lambda v=v: v) for k, v in tensors.items()})


def test_there_and_back(parts, file):
    tensors = read_safetensors(file)
    assert tensors['first_stage_model.encoder.mid.attn_1.q.weight'].ndim == 4
    assert 'cond_stage_model.transformer.text_model.final_layer_norm.weight' in tensors
    np.testing.assert_array_equal(tensors['model.diffusion_model.middle_block.0.in_layers.2.weight'],
                                  to_torch(parts['unet'][1])['mid_block.resnets.0.conv1.weight'])
    add(file, {'model_ema.diffusion_modelout0bias': np.zeros(3), 'betas': np.zeros(4), 'scale_factor': np.zeros(()),
               'sqrt_recipm1_alphas_cumprod': np.zeros(4), 'posterior_mean_coef1': np.zeros(4),
               'cond_stage_model.transformer.text_model.embeddings.position_ids': np.zeros((1, 9), np.int64)})
    found = load_single_file(file, **{k: m for k, (m, _) in parts.items()})
    assert set(found) == set(parts)
    for part, (module, params) in parts.items():
        assert found[part][0] == module
        chex.assert_trees_all_equal(found[part][1], params)


def test_files_of_some_parts_and_in_half_precision(parts, file):
    add(file, without='first_stage_model.')
    modules = {k: m for k, (m, _) in parts.items()}
    found = load_single_file(file, dtype='bfloat16', **modules)
    assert set(found) == {'unet', 'text_encoder'} and found['unet'][0].dtype == jnp.bfloat16
    assert found['unet'][1]['conv_in']['kernel'].dtype == jnp.bfloat16


def test_by_default_it_is_stable_diffusion_itself(file):
    with pytest.raises(ValueError, match=r'sd.safetensors, unet: the state dict does not fit .* of 686 keys'):
        load_single_file(file)


@pytest.mark.parametrize('extra, message', [
    ({'cond_stage_model.model.ln_final.weight': np.zeros(1)}, 'Stable Diffusion 2.x in one file; .* from its folder'),
    ({'conditioner.embedders.0.x': np.zeros(1)}, 'Stable Diffusion XL in one file'),
    ({'control_model.x': np.zeros(1)}, 'no Stable Diffusion 1.x in one file: .* 1 others: control_model.x'),
    ({'first_stage_model.quant.weight': np.zeros(1)}, "vae: .*\n  unexpected 'quant.weight' "),
])
def test_other_files(parts, file, extra, message):
    add(file, extra)
    with pytest.raises(ValueError, match=message):
        load_single_file(file, **{k: m for k, (m, _) in parts.items()})


def test_a_folders_weights_are_no_single_file(tmp_path):
    write_safetensors(tmp_path / 'a.safetensors', {'conv_in.bias': Tensor((1,), np.dtype('f4'), lambda: np.zeros(1))})
    with pytest.raises(ValueError, match='should begin with model.diffusion_model., first_stage_model.'):
        load_single_file(tmp_path / 'a.safetensors')
    with pytest.raises(ValueError, match='is a pickle'):
        load_single_file(tmp_path / 'sd-v1-4.ckpt')


def test_what_has_no_place_in_the_file(parts, tmp_path):
    with pytest.raises(ValueError, match="no part 'text'; choose from unet, vae, text_encoder"):
        save_single_file({'text': parts['text_encoder']}, tmp_path / 'a.safetensors')
    with pytest.raises(ValueError, match='must end in .safetensors'):
        save_single_file(parts, tmp_path / 'a.ckpt')
    with pytest.raises(ValueError, match="no name for 'add_embedding.linear_1.weight'"):
        compvis_key('add_embedding.linear_1.weight', MODULES['sd1'])


@pytest.mark.parametrize('module', [models.adm_tiny(num_classes=None, super_res=True),
                                    models.adm_classifier_tiny()])
def test_adm(module, tmp_path):
    shapes = adm_params(module)
    params = from_torch({k: weight(k, v.shape) for k, v in to_torch_shapes(shapes).items()}, shapes)
    path = save_adm(module, params, tmp_path / 'adm.safetensors')
    keys = set(read_safetensors(path))
    assert {'input_blocks.0.0.weight', 'time_embed.0.weight', 'middle_block.1.qkv.weight'} <= keys
    found, loaded = open_adm(path, module).load()
    assert found == module
    chex.assert_trees_all_equal(loaded, params)
    with pytest.raises(ValueError, match='mis-shaped'):
        open_adm(path, module.clone(model_channels=16)).load()


def to_torch_shapes(shapes):
    return to_torch(jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes))
