"""UNet2DCondition against recorded activations of the reference, invariances, guidance's batches, and every error."""

import functools
import json
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.interop.torch_layout import from_torch, to_torch, torch_key
from gen_jax.models import UNet2DCondition, unet_condition_tiny
from gen_jax.models.unet_blocks import DownBlock, MidBlock, UpBlock
from tests.golden.draws import weight
from tests.golden.make_unet_condition import CASES, inputs, settings

GOLDEN = np.load(Path(__file__).parents[1] / 'golden' / 'unet_condition.npz')


def is_block(module, _):
    return isinstance(module, DownBlock | MidBlock | UpBlock)


@functools.cache
def reference(name):
    """A case's network, its weights by torch key, its parameters, and the compiled (output, {block: output})."""
    unet = UNet2DCondition(**settings(name))
    state_dict = {key: weight(key, shape) for key, shape in json.loads(str(GOLDEN[f'{name}/shapes'])).items()}
    shapes = jax.eval_shape(lambda: unet.init(jax.random.key(0), **inputs(name)))['params']

    @jax.jit
    def forward(params, given):
        y, seen = unet.apply({'params': params}, **given, capture_intermediates=is_block)
        blocks = {key: value['__call__'][0] for key, value in seen['intermediates'].items()}
        return y, {key: value[0] if isinstance(value, tuple) else value for key, value in blocks.items()}

    return unet, state_dict, from_torch(state_dict, shapes), forward


def error(y, expected):
    """The largest error over the reference's largest value, of the worst image."""
    y = np.asarray(y)
    assert y.shape == expected.shape
    return max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(y, expected, strict=True))


@pytest.mark.parametrize('name', [pytest.param(k, marks=pytest.mark.slow) if k == 'refiner' else k for k in CASES])
def test_agrees_with_the_reference_block_by_block(name):
    _, _, params, forward = reference(name)
    y, blocks = forward(params, inputs(name))
    assert y.dtype == jnp.float32
    expected = {key for key in GOLDEN if key.startswith(f'{name}/') and 'blocks' in key or key == f'{name}/mid_block'}
    assert {f'{name}/{key}' for key in blocks} == expected and len(expected) >= 3
    errors = {key: error(value, GOLDEN[f'{name}/{key}']) for key, value in {**blocks, 'y': y}.items()}
    assert max(errors.values()) < 1e-5, errors


def swap_halves(w):
    return np.concatenate(np.split(w, 2)[::-1])


@pytest.mark.parametrize(
    'name, key, permute',
    [
        ('sdxl', 'down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight', np.transpose),
        ('sdxl', 'down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k.weight', lambda w: w[::-1]),
        ('sdxl', 'up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_v.weight', swap_halves),
        ('sdxl', 'mid_block.attentions.0.transformer_blocks.1.attn2.to_out.0.bias', swap_halves),
        ('sdxl', 'mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight', swap_halves),
        ('sdxl', 'mid_block.attentions.0.transformer_blocks.0.ff.net.2.weight', lambda w: w[:, ::-1]),
        ('sdxl', 'mid_block.attentions.0.transformer_blocks.0.norm3.weight', lambda w: w[::-1]),
        ('sdxl', 'mid_block.attentions.0.norm.bias', lambda w: w[::-1]),
        ('sdxl', 'mid_block.attentions.0.proj_in.weight', np.transpose),
        ('sdxl', 'add_embedding.linear_1.weight', lambda w: np.roll(w, 10, 1)),
        ('sd1', 'up_blocks.1.attentions.1.proj_out.weight', lambda w: w.swapaxes(0, 1)),
        ('rest', 'time_embedding.cond_proj.weight', lambda w: w[:, ::-1]),
    ],
)
def test_a_permuted_weight_is_noticed(name, key, permute):
    _, state_dict, params, forward = reference(name)
    broken = from_torch({**state_dict, key: permute(state_dict[key])}, params)
    assert error(forward(broken, inputs(name))[0], GOLDEN[f'{name}/y']) > 1e-3


@pytest.mark.parametrize('name', ['sdxl', 'rest'])
def test_images_do_not_see_each_other(name):
    _, _, params, forward = reference(name)
    turned = jax.tree.map(lambda v: v[::-1], inputs(name))
    chex.assert_trees_all_equal(forward(params, turned)[0][::-1], forward(params, inputs(name))[0])


def test_masked_text_is_not_looked_at():
    _, _, params, forward = reference('sd1')
    given = inputs('sd1')
    other = np.where(given['encoder_attention_mask'][..., None], given['encoder_hidden_states'], 7.0)
    y = forward(params, given)[0]
    chex.assert_trees_all_equal(forward(params, {**given, 'encoder_hidden_states': other.astype(np.float32)})[0], y)
    unmasked = {**given, 'encoder_attention_mask': np.ones_like(given['encoder_attention_mask'])}
    assert error(forward(params, unmasked)[0], GOLDEN['sd1/y']) > 1e-3


def test_bfloat16_compute_keeps_float32_parameters_and_output():
    _, _, params, _ = reference('upscaler')
    unet = UNet2DCondition(**settings('upscaler'), dtype=jnp.bfloat16)
    fresh = jax.eval_shape(lambda: unet.init(jax.random.key(0), **inputs('upscaler')))['params']
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype('float32')}
    y = jax.jit(lambda p, given: unet.apply({'params': p}, **given))(params, inputs('upscaler'))
    assert y.dtype == jnp.float32
    # bfloat16 keeps 8 bits: much closer would mean that it was not used.
    assert 1e-4 < error(y, GOLDEN['upscaler/y']) < 0.05


GIVEN = dict(x=jnp.ones((2, 8, 4, 4)), t=jnp.array([3.0, 900.0]), encoder_hidden_states=jnp.ones((2, 3, 16)))


def test_every_parameter_learns_from_zero_outputs_on_with_remat():
    unet = unet_condition_tiny(
        dropout=0.5, remat='full', block_out_channels=(8,), down_block_types=('CrossAttnDownBlock2D',),
        mid_block_type=None, up_block_types=('UpBlock2D',))
    key = jax.random.key(0, impl='rbg')
    zeros = jax.jit(lambda: {k: v for k, v in to_torch_keys(unet.init(key, **GIVEN)['params']).items()
                             if k.endswith(('conv2.weight', 'proj_out.weight', 'conv_out.weight'))})()
    assert len(zeros) == 3 + 1 + 1 and not any(v.any() for v in zeros.values())

    @jax.jit
    def run(params, key):
        def error(params):
            y = unet.apply({'params': params}, **GIVEN, deterministic=False, rngs={'dropout': key})
            return jnp.square(y - 1).mean(), y

        (_, y), grads = jax.value_and_grad(error, has_aux=True)(params)
        return y, grads

    shapes = jax.eval_shape(lambda: unet.init(key, **GIVEN)['params'])
    empty = jax.tree.map(lambda v: np.zeros(v.shape, v.dtype), shapes)
    drawn = from_torch({k: weight(k, v.shape) for k, v in to_torch(empty).items()}, shapes)
    (a, grads), (b, _) = run(drawn, key), run(drawn, jax.random.key(1, impl='rbg'))
    assert not [k for k, g in to_torch(grads).items() if not g.any()]
    assert np.abs(a - b).max() > 0.1 * np.abs(a).max()


def to_torch_keys(params):
    """Leaves by torch key, whatever they are."""
    return {torch_key(tuple(str(p.key) for p in path)): leaf
            for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}


@pytest.mark.slow
@pytest.mark.parametrize('policy', ['full', 'dots', 'dots_no_batch'])
def test_remat_keeps_the_gradient(policy):
    _, _, params, _ = reference('sdxl')

    def gradient(remat):
        unet = UNet2DCondition(**settings('sdxl'), remat=remat)
        return jax.jit(jax.grad(lambda p: jnp.square(unet.apply({'params': p}, **inputs('sdxl'))).mean()))(params)

    chex.assert_trees_all_close(gradient(policy), gradient(''), rtol=1e-4, atol=1e-5)


def test_remat_goes_layer_by_layer():
    def rematerialised(remat):
        unet = UNet2DCondition(**settings('sdxl'), remat=remat)
        jaxpr = jax.make_jaxpr(lambda p: unet.apply({'params': p}, **inputs('sdxl')))(reference('sdxl')[2])
        return sum('remat' in str(e.primitive) or 'checkpoint' in str(e.primitive) for e in jaxpr.eqns)

    # The residual blocks down, in the middle and up, and two layers in each of the transformers.
    assert rematerialised('full') == (1 + 1) + 2 + (2 + 2) + 2 * (1 + 1 + 2)
    assert rematerialised('') == 0


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(block_out_channels=(8, 8, 8)), 'block_out_channels has 3, down_block_types has 2'),
        (dict(attention_head_dim=(2,)), 'up_block_types has 2, attention_head_dim has 1'),
        (dict(transformer_layers_per_block=(1, 2, 3)), 'transformer_layers_per_block has 3'),
        (dict(only_cross_attention=(True,)), 'only_cross_attention has 1'),
        (dict(down_block_types=('AttnDownBlock2D', 'DownBlock2D')), 'AttnDownBlock2D.*CrossAttnDownBlock2D'),
        (dict(up_block_types=('SimpleCrossAttnUpBlock2D', 'UpBlock2D')), 'Simple.*CrossAttnUpBlock2D'),
        (dict(mid_block_type='UNetMidBlock2D'), 'UNetMidBlock2DCrossAttn, None'),
        (dict(class_embed_type='simple_projection'), 'simple_projection.*timestep, projection, identity'),
        (dict(addition_embed_type='image'), 'image.*None, text_time'),
        (dict(resnet_time_scale_shift='spatial'), 'spatial.*default, scale_shift'),
        (dict(attention_implementation='flash'), 'flash.*matmul, xla, cudnn'),
        (dict(act_fn='tanh'), 'tanh.*silu'),
        (dict(norm_num_groups=3), r'norm_num_groups=3 .*\(8, 16\).*1, 2, 4, 8'),
        (dict(attention_head_dim=3), 'attention_head_dim=3 .the number of heads.* 3 does not divide the 8 channels'),
        (dict(attention_head_dim=(2, 5)), r'attention_head_dim=\(2, 5\) .* 5 .* 16 channels of resolution 1'),
        (dict(attention_head_dim=None), 'attention_head_dim=None'),
        (dict(cross_attention_dim=(16, 8)), r'cross_attention_dim=\(16, 8\).*one number'),
        (dict(class_embed_type='projection'), 'needs projection_class_embeddings_input_dim$'),
        (dict(addition_embed_type='text_time'), 'needs projection_class.* and addition_time_embed_dim'),
    ],
)
def test_contradictory_settings_fail_on_construction(settings, message):
    with pytest.raises(ValueError, match=message):
        unet_condition_tiny(**settings)


XL = dict(addition_embed_type='text_time', addition_time_embed_dim=4, projection_class_embeddings_input_dim=10 + 24)
POOLED = jnp.zeros((2, 10))


@pytest.mark.parametrize(
    'settings, given, message',
    [
        ({}, dict(x=jnp.zeros((2, 8, 0, 4))), r'\(2, 8, 0, 4\).*padding=1.*at least 1; use larger'),
        (dict(downsample_padding=0), dict(x=jnp.zeros((2, 1, 8, 4))), r'\(2, 1, 8, 4\).*padding=0, 2 res.*at least 2'),
        ({}, dict(x=jnp.zeros((2, 8, 8, 9))), r'\(2, 8, 8, 9\).*\[B, H, W, 4\]'),
        ({}, dict(t=jnp.zeros(3)), r't is \(3,\).*\(2,\)'),
        ({}, dict(encoder_hidden_states=None), 'encoder_hidden_states is missing.*cross_attention_dim=16.*any, 16'),
        ({}, dict(encoder_hidden_states=jnp.zeros((2, 3, 8))), r'is \(2, 3, 8\).*give \[2, any, 16\]'),
        ({}, dict(encoder_hidden_states=jnp.zeros((1, 3, 16))), r'is \(1, 3, 16\).*give \[2, any, 16\]'),
        ({}, dict(encoder_attention_mask=jnp.ones((2, 4), bool)), r'encoder_attention_mask is \(2, 4\).*\[2, 3\]'),
        ({}, dict(timestep_cond=jnp.ones((2, 4))), 'timestep_cond is given, but this UNet takes none'),
        (dict(time_cond_proj_dim=6), {}, r'timestep_cond is missing.*time_cond_proj_dim=6; give \[2, 6\]'),
        ({}, dict(class_labels=jnp.zeros(2, int)), 'no classes; set num_class_embeds'),
        (dict(num_class_embeds=3), {}, 'class_labels is missing.*num_class_embeds=3'),
        (dict(class_embed_type='projection', projection_class_embeddings_input_dim=5),
         dict(class_labels=jnp.zeros((2, 6))), r'class_labels is \(2, 6\); give \(2, 5\)'),
        ({}, dict(added_cond={'text_embeds': POOLED}), 'added_cond is given, but'),
        (XL, {}, "added_cond has nothing.*'text_embeds'.*'time_ids'"),
        (XL, dict(added_cond={'text_embeds': POOLED, 'time_ids': jnp.zeros((1, 6))}), r"'time_ids'.*\(1, 6\).*2, any"),
        (XL, dict(added_cond={'text_embeds': POOLED, 'time_ids': jnp.zeros((2, 5))}),
         '10 values .* 5 .time_ids. of 4 each are 30, but .*=34; SDXL takes 6'),
    ],
)
def test_unfit_inputs_fail(settings, given, message):
    unet = unet_condition_tiny(**settings)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: unet.init(jax.random.key(0), **{**GIVEN, **given}))
