"""UNet2D against recorded outputs of the reference, exact sizes, invariances, and every error."""

import functools
import json
import math
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import models
from gen_jax.interop.torch_layout import from_torch, to_torch
from gen_jax.models import UNet2D, unet_tiny
from tests.golden.make_unet import CASES, COMMON, inputs, weight

GOLDEN = np.load(Path(__file__).parents[1] / 'golden' / 'unet.npz')


@functools.cache
def reference(name):
    """A case's network, its weights by torch key, its parameters, and the compiled forward."""
    unet = UNet2D(**COMMON, **CASES[name])
    state_dict = {key: weight(key, shape) for key, shape in json.loads(str(GOLDEN[f'{name}/shapes'])).items()}
    shapes = jax.eval_shape(lambda: unet.init(jax.random.key(0), **inputs(name)))['params']
    forward = jax.jit(lambda params, given: unet.apply({'params': params}, **given))
    return unet, state_dict, from_torch(state_dict, shapes), forward


def error(y, name):
    """The largest error over the reference's largest value, of the worst image."""
    y, expected = np.asarray(y), GOLDEN[f'{name}/y']
    assert y.shape == expected.shape
    return max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(y, expected, strict=True))


@pytest.mark.parametrize('name', CASES)
def test_agrees_with_the_reference(name):
    _, _, params, forward = reference(name)
    y = forward(params, inputs(name))
    assert y.dtype == jnp.float32
    assert error(y, name) < 1e-5


@pytest.mark.parametrize(
    'key, permute',
    {
        'down_blocks.0.resnets.0.conv1.weight': lambda w: w.swapaxes(2, 3),
        'mid_block.attentions.0.to_q.weight': lambda w: w.T,
        'mid_block.attentions.0.to_out.0.weight': lambda w: w.T,
        'up_blocks.1.resnets.1.conv_shortcut.weight': lambda w: w[:, ::-1],
        'up_blocks.1.attentions.0.group_norm.bias': lambda w: w[::-1],
        'class_embedding.weight': lambda w: w[::-1],
        'time_embedding.linear_2.bias': lambda w: w[::-1],
        'conv_norm_out.weight': lambda w: w[::-1],
    }.items(),
)
def test_a_permuted_weight_is_noticed(key, permute):
    _, state_dict, params, forward = reference('classes')
    broken = from_torch({**state_dict, key: permute(state_dict[key])}, params)
    assert error(forward(broken, inputs('classes')), 'classes') > 1e-3


def test_images_do_not_see_each_other():
    _, _, params, forward = reference('classes')
    turned = jax.tree.map(lambda v: v[::-1], inputs('classes'))
    chex.assert_trees_all_equal(forward(params, turned)[::-1], forward(params, inputs('classes')))


def test_bfloat16_compute_keeps_float32_parameters_and_output():
    _, _, params, _ = reference('classes')
    unet = UNet2D(**COMMON, **CASES['classes'], dtype=jnp.bfloat16)
    fresh = jax.eval_shape(lambda: unet.init(jax.random.key(0), **inputs('classes')))['params']
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype('float32')}
    y = jax.jit(lambda p, given: unet.apply({'params': p}, **given))(params, inputs('classes'))
    assert y.dtype == jnp.float32
    chex.assert_tree_all_finite(y)
    # bfloat16 keeps 8 bits: much closer would mean that it was not used.
    assert 1e-4 < error(y, 'classes') < 0.05


def count(unet, *given):
    shapes = jax.eval_shape(lambda: unet.init(jax.random.key(0), *given))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    'factory, size, channels, classes, low, high',
    [
        ('unet_digits', 8, 1, True, 900_000, 1_100_000),
        ('unet_tiny', 8, 1, True, 1_000, 20_000),
    ],
)
def test_sizes(factory, size, channels, classes, low, high):
    labels = (jnp.zeros(1, int),) if classes else ()
    unet = getattr(models, factory)()
    assert low <= count(unet, jnp.zeros((1, size, size, channels)), jnp.zeros(1), *labels) <= high


def test_one_time_serves_the_whole_batch():
    _, _, params, forward = reference('learned_identity')
    y = np.asarray(forward(params, {**inputs('learned_identity'), 't': 3}))
    assert np.abs(y - GOLDEN['learned_identity/y'])[1].max() < 1e-5
    assert np.abs(y - GOLDEN['learned_identity/y'])[0].max() > 0.01


def test_a_fresh_network_answers_zero_and_every_parameter_learns():
    blocks = dict(down_block_types=('DownBlock2D',), up_block_types=('AttnUpBlock2D',), block_out_channels=(8,))
    unet, key = unet_tiny(dropout=0.5, **blocks), jax.random.key(0, impl='rbg')
    given = jnp.ones((2, 8, 8, 1)), jnp.array([3.0, 900.0]), jnp.array([1, 10])
    fresh = jax.jit(unet.init)(key, *given)['params']

    @jax.jit
    def run(params, key):
        def error(params):
            y = unet.apply({'params': params}, *given, deterministic=False, rngs={'dropout': key})
            return jnp.square(y - 1).mean(), y

        (_, y), grads = jax.value_and_grad(error, has_aux=True)(params)
        return y, grads

    chex.assert_trees_all_equal(run(fresh, key)[0], jnp.zeros((2, 8, 8, 1)))
    drawn = from_torch({k: weight(k, v.shape) for k, v in to_torch(fresh).items()}, fresh)
    (a, grads), (b, _) = run(drawn, key), run(drawn, jax.random.key(1, impl='rbg'))
    assert not [k for k, g in to_torch(grads).items() if not g.any()]
    assert np.abs(a - b).max() > 0.1 * np.abs(a).max()


X, T, LABELS = jnp.zeros((2, 8, 8, 1)), jnp.zeros(2), jnp.zeros(2, int)


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(block_out_channels=(8, 8, 8)), 'block_out_channels has 3, down_block_types has 2'),
        (dict(down_block_types=('DownBlock2D',)), 'down_block_types has 1'),
        (dict(up_block_types=('UpBlock2D', 'SkipUpBlock2D')), 'SkipUpBlock2D.*UpBlock2D, AttnUpBlock2D, Resnet'),
        (dict(down_block_types=('DownBlok2D', 'DownBlock2D')), 'DownBlok2D.*DownBlock2D, AttnDownBlock2D, Resnet'),
        (dict(mid_block_type='UNetMidBlock2DCrossAttn'), 'mid_block_type; choose from UNetMidBlock2D, None'),
        (dict(time_embedding_type='cosine'), 'cosine.*positional, fourier, learned'),
        (dict(time_embedding_type='learned'), 'num_train_timesteps'),
        (dict(resnet_time_scale_shift='spatial'), 'spatial.*default, scale_shift'),
        (dict(downsample_type='pool'), 'pool.*conv, resnet'),
        (dict(class_embed_type='one_hot'), 'one_hot.*timestep, identity'),
        (dict(attention_implementation='flash'), 'flash.*matmul, xla, cudnn'),
        (dict(act_fn='tanh'), 'tanh.*silu, swish, mish, gelu, relu'),
        (dict(block_out_channels=(8, 12), norm_num_groups=8), r'norm_num_groups=8 .*\(8, 12\).*1, 2, 4'),
        (dict(norm_num_groups=0), 'norm_num_groups=0'),
    ],
)
def test_contradictory_settings_fail_on_construction(settings, message):
    with pytest.raises(ValueError, match=message):
        unet_tiny(**settings)


@pytest.mark.parametrize(
    'settings, given, message',
    [
        ({}, (jnp.zeros((2, 9, 8, 1)), T, LABELS), 'height 9 .*factor 2.* 8 or 10'),
        ({}, (jnp.zeros((2, 8, 1, 1)), T, LABELS), 'width 1 .*factor 2.* is 2:'),
        ({}, (jnp.zeros((2, 8, 8, 3)), T, LABELS), r'\(2, 8, 8, 3\).*\[B, H, W, 1\]'),
        ({}, (jnp.zeros((8, 8, 1)), T, LABELS), r'\(8, 8, 1\).*\[B, H, W, 1\]'),
        ({}, (X, jnp.zeros(3), LABELS), r't is \(3,\).*\(2,\)'),
        ({}, (X, T), 'class_labels is missing.*num_class_embeds=11'),
        ({}, (X, T, jnp.zeros((2, 1), int)), r'class_labels is \(2, 1\); give \(2,\)'),
        (dict(num_class_embeds=None), (X, T, LABELS), 'no classes; set num_class_embeds'),
        (dict(class_embed_type='identity'), (X, T, LABELS), r'class_labels is \(2,\); give \(2, 16\)'),
        (dict(attention_head_dim=3), (X, T, LABELS), 'attention_head_dim=3 .* 8 channels at down_blocks.1.*1, 2, 4, 8'),
        (dict(attn_norm_num_groups=3), (X, T, LABELS), 'norm_num_groups=3 .* 8 channels at mid_block.*1, 2, 4, 8'),
        (dict(attention_implementation='cudnn'), (X, T, LABELS), 'cudnn.*needs a GPU'),
        (dict(block_out_channels=(2, 2), norm_num_groups=2, freq_shift=1), (X, T, LABELS), 'dim=2.*freq_shift=1'),
    ],
)
def test_unfit_inputs_fail(settings, given, message):
    unet = unet_tiny(**settings)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: unet.init(jax.random.key(0), *given))
