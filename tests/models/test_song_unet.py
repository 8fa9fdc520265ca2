"""DDPM++, NCSN++, SongUNet and DhariwalUNet against recorded outputs of both code bases, and every error."""

import functools
import json
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.interop.torch_layout import from_torch, to_torch
from gen_jax.models import SongUNet, edm_adm_digits, ncsnpp_digits, songunet_digits
from tests.golden import make_edm, make_score_sde
from tests.golden.draws import weight

GOLDEN = {kind: np.load(Path(__file__).parents[1] / 'golden' / f'{kind}.npz') for kind in ('edm', 'score_sde')}
SMALL = dict(img_resolution=8, model_channels=8, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,))
FIR, FOURIER = (1, 3, 3, 1), dict(embedding_type='fourier', channel_mult_noise=2)
DHARIWAL = dict(layout='dhariwal', adaptive_scale=True, skip_rescale=False, resample_proj=False,
                decoder_attention='every', channels_per_head=64)
VE = dict(layout='score_sde', num_scales=10, resample_filter=FIR, scale_by_sigma=True, center_input_sample=True)
CASES = {  # as tests/golden/make_edm.py and make_score_sde.py have them, in our words
    'edm ddpmpp': dict(SMALL, label_dim=3, augment_dim=5),
    'edm ncsnpp': dict(
        SMALL, channel_mult=(1, 2, 3), **FOURIER, encoder_type='residual', resample_filter=FIR),
    'edm skips': dict(
        SMALL, encoder_type='skip', decoder_type='skip', resample_filter=FIR, out_channels=2, augment_dim=5),
    'edm residual_means': dict(SMALL, encoder_type='residual', label_dim=3, in_channels=1, out_channels=1),
    'edm adm': dict(SMALL, model_channels=64, channel_mult=(2, 1), label_dim=3, augment_dim=5, **DHARIWAL),
    'score_sde ddpmpp': dict(SMALL, layout='score_sde'),
    'score_sde ncsnpp_ve': dict(
        SMALL, **VE, **FOURIER, num_blocks=2, encoder_type='residual'),
    'score_sde ncsnpp_pyramids': dict(
        SMALL, **VE, **FOURIER, channel_mult=(1, 2, 2), encoder_type='skip', decoder_type='skip'),
    'score_sde ncsnpp_table': dict(SMALL, **VE, encoder_type='residual'),
    'score_sde ddpm': dict(
        SMALL, layout='score_sde', model_channels=32, resblock_type='ddpm', skip_rescale=False, num_groups=32,
        scale_by_sigma=True, num_scales=10, in_channels=1, out_channels=1),
}


def inputs(name):
    kind, case = name.split()
    return {'edm': make_edm, 'score_sde': make_score_sde}[kind].inputs(case)


def golden(name, what):
    kind, case = name.split()
    return GOLDEN[kind][f'{case}/{what}']


FAST = {'xla_backend_optimization_level': 0}
"""Compiles in less than half the time; the networks are tiny."""


def compiled(unet):
    """(params, inputs) -> output."""
    return jax.jit(lambda params, given: unet.apply({'params': params}, **given), compiler_options=FAST)


@functools.cache
def reference(name):
    """A case's network, its weights by torch key, its parameters, and the compiled forward."""
    unet = SongUNet(**CASES[name])
    state_dict = {key: weight(key, shape) for key, shape in json.loads(str(golden(name, 'shapes'))).items()}
    shapes = jax.eval_shape(lambda: unet.init(jax.random.key(0), **inputs(name)))['params']
    return unet, state_dict, from_torch(state_dict, shapes), compiled(unet)


def error(y, name):
    """The largest error over the reference's largest value, of the worst image."""
    y, expected = np.asarray(y), golden(name, 'y')
    assert y.shape == expected.shape
    return max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(y, expected, strict=True))


@pytest.mark.parametrize('name', CASES)
def test_agrees_with_the_reference(name):
    _, state_dict, params, forward = reference(name)
    y = forward(params, inputs(name))
    assert y.dtype == jnp.float32
    assert error(y, name) < 1e-5
    chex.assert_trees_all_equal(to_torch(params), state_dict)


@pytest.mark.parametrize(
    'key, permute',
    {
        'map_layer0.weight': lambda w: w[::-1],
        'map_label.weight': lambda w: w[:, ::-1],
        'map_augment.weight': lambda w: w[:, ::-1],
        'enc.8x8_conv.weight': lambda w: w.swapaxes(2, 3),
        'enc.4x4_down.skip.weight': lambda w: w[:, ::-1],
        'enc.4x4_block0.affine.bias': lambda w: w[::-1],
        'enc.4x4_block0.qkv.weight': lambda w: w.reshape(3, -1, *w.shape[1:]).swapaxes(0, 1).reshape(w.shape),
        'dec.4x4_in0.proj.weight': lambda w: w.swapaxes(0, 1),
        'dec.8x8_up.norm1.weight': lambda w: w[::-1],
        'dec.8x8_aux_norm.bias': lambda w: w[::-1],
    }.items(),
)
def test_a_permuted_weight_of_edm_is_noticed(key, permute):
    _, state_dict, params, forward = reference('edm ddpmpp')
    broken = from_torch({**state_dict, key: permute(state_dict[key])}, params)
    assert error(forward(broken, inputs('edm ddpmpp')), 'edm ddpmpp') > 1e-3


@pytest.mark.parametrize(
    'layer', ['W', 'weight', 'Conv2d_0.weight', 'NIN_0.W', 'NIN_3.W', 'Dense_0.bias', 'Conv_2.weight'])
def test_a_permuted_weight_of_score_sde_is_noticed(layer):
    name = 'score_sde ncsnpp_ve'
    _, state_dict, params, forward = reference(name)
    key = [k for k in state_dict if k.split('.', 2)[2] == layer][0]
    broken = from_torch({**state_dict, key: state_dict[key][::-1]}, params)
    assert error(forward(broken, inputs(name)), name) > 1e-3


def test_no_class_and_no_augmentation_are_zeros():
    _, _, params, forward = reference('edm ddpmpp')
    given = inputs('edm ddpmpp')
    zeros = {**given, 'class_labels': np.zeros((3, 3), np.float32), 'augment_labels': np.zeros((3, 5), np.float32)}
    unet = SongUNet(**CASES['edm ddpmpp'])
    without = {**given, 'class_labels': np.full(3, 3), 'augment_labels': None}
    y = compiled(unet)(params, without)
    np.testing.assert_allclose(y, forward(params, zeros), atol=1e-5)
    one_hot = {**zeros, 'class_labels': np.eye(3, dtype=np.float32)[::-1]}
    np.testing.assert_allclose(
        compiled(unet)(params, {**without, 'class_labels': np.array([2, 1, 0])}), forward(params, one_hot), atol=1e-5)


def test_images_do_not_see_each_other():
    _, _, params, forward = reference('score_sde ncsnpp_pyramids')
    turned = jax.tree.map(lambda v: v[::-1], inputs('score_sde ncsnpp_pyramids'))
    y = forward(params, inputs('score_sde ncsnpp_pyramids'))
    np.testing.assert_allclose(forward(params, turned)[::-1], y, atol=1e-5 * np.abs(y).max())


def test_bfloat16_compute_keeps_float32_parameters_and_output():
    name = 'edm ddpmpp'
    _, _, params, _ = reference(name)
    unet = SongUNet(**CASES[name], dtype=jnp.bfloat16)
    fresh = jax.eval_shape(lambda: unet.init(jax.random.key(0), **inputs(name)))['params']
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype('float32')}
    y = compiled(unet)(params, inputs(name))
    assert y.dtype == jnp.float32
    # bfloat16 keeps 8 bits: much closer would mean that it was not used.
    assert 1e-4 < error(y, name) < 0.05


@pytest.mark.parametrize('factory', [ncsnpp_digits, edm_adm_digits])
def test_a_fresh_network_answers_zero(factory):
    unet = factory(model_channels=16, channel_mult=(1,))
    given = jnp.ones((2, 8, 8, 1)), jnp.ones(2), jnp.zeros(2, int)
    y, _ = jax.jit(unet.init_with_output, compiler_options=FAST)(jax.random.key(0, impl='rbg'), *given)
    chex.assert_trees_all_equal(y, jnp.zeros((2, 8, 8, 1)))


def test_every_parameter_learns_and_dropout_drops():
    unet = ncsnpp_digits(model_channels=16, attn_resolutions=(), dropout=0.5, augment_dim=2)
    key = jax.random.key(0, impl='rbg')
    given = dict(x=jnp.ones((2, 8, 8, 1)).at[:, :3].set(-1.0), label=jnp.array([0.3, 2.0]))
    given.update(class_labels=jnp.array([3, 9]), augment_labels=jnp.ones((2, 2)))
    shapes = jax.eval_shape(lambda: unet.init(key, **given))['params']
    blank = to_torch(jax.tree.map(lambda v: np.empty(v.shape, v.dtype), shapes))
    params = from_torch({k: weight(k, v.shape) for k, v in blank.items()}, shapes)

    @functools.partial(jax.jit, compiler_options=FAST)
    def run(params, key):
        def spread(params):
            y = unet.apply({'params': params}, **given, deterministic=False, rngs={'dropout': key})
            return jnp.square(y - 1).mean(), y

        (_, y), grads = jax.value_and_grad(spread, has_aux=True)(params)
        return y, grads

    (a, grads), (b, _) = run(params, key), run(params, jax.random.key(1, impl='rbg'))
    assert [k for k, g in to_torch(grads).items() if not g.any()] == ['all_modules.0.W']
    assert np.abs(a - b).max() > 0.1 * np.abs(a).max()


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(layout='adm'), "layout 'adm'.*score_sde, edm, dhariwal"),
        (dict(embedding_type='learned'), 'learned.*positional, fourier'),
        (dict(encoder_type='input_skip'), 'input_skip.*standard, skip, residual'),
        (dict(decoder_type='residual'), 'residual.*standard, skip'),
        (dict(resblock_type='stylegan'), 'stylegan.*biggan, ddpm'),
        (dict(decoder_attention='first'), 'first.*last, every'),
        (dict(resample_filter=(1, 2, 1)), r'\(1, 2, 1\).*even length'),
        (dict(channel_mult=()), 'channel_mult is empty'),
        (dict(img_resolution=12, channel_mult=(1,) * 4), 'img_resolution=12 .* 3 times.*multiple of 8'),
        (dict(resblock_type='ddpm'), "'ddpm' goes with layout='score_sde'.*'edm'.*use 'biggan'"),
        (dict(layout='score_sde', encoder_type='residual'), 'low-pass resample_filter'),
        (dict(scale_by_sigma=True), "scale_by_sigma.*'edm' is told log sigma"),
        (dict(attention_implementation='flash'), 'flash.*matmul, xla, cudnn'),
    ],
)
def test_contradictory_settings_fail_on_construction(settings, message):
    with pytest.raises(ValueError, match=message):
        songunet_digits(**settings)


X, LABEL, CLASSES = jnp.zeros((2, 8, 8, 1)), jnp.zeros(2), jnp.zeros(2, int)


@pytest.mark.parametrize(
    'given, message',
    [
        ((jnp.zeros((2, 9, 8, 1)), LABEL, CLASSES), '9x8 are not divisible by the down-sampling factor 2'),
        ((jnp.zeros((2, 8, 8, 3)), LABEL, CLASSES), r'\(2, 8, 8, 3\).*\[B, H, W, 1\]'),
        ((X, jnp.zeros(3), CLASSES), r'label is \(3,\).*\(2,\)'),
        ((X, LABEL), 'class_labels is missing.*label_dim=10; 10 stands for no class'),
        ((X, LABEL, jnp.zeros((2, 9))), r'class_labels is \(2, 9\); give \(2,\) or \(2, 10\)'),
        ((X, LABEL, CLASSES, jnp.zeros((2, 9))), r'augment_labels is \(2, 9\), with augment_dim=0'),
    ],
)
def test_unfit_inputs_fail(given, message):
    unet = songunet_digits()
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: unet.init(jax.random.key(0), *given))


def test_classes_for_an_unconditional_network_fail():
    unet = songunet_digits(label_dim=0)
    with pytest.raises(ValueError, match='no classes; set label_dim'):
        jax.eval_shape(lambda: unet.init(jax.random.key(0), X, LABEL, CLASSES))
