"""AutoencoderKL against recorded outputs of the reference, block by block; tiles and slices; every error."""

import functools
import json
import re
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.interop.torch_layout import from_torch
from gen_jax.models import AutoencoderKL, autoencoder_kl_tiny, tiling
from gen_jax.pipelines.pictures import pictures
from tests.golden.draws import weight
from tests.golden.make_autoencoder_kl import (
    CASES,
    COMMON,
    PHOTOGRAPHED,
    PICKED,
    TILED,
    inputs,
    photographs,
    tiled_inputs,
)

GOLDEN = np.load(Path(__file__).parents[1] / 'golden' / 'autoencoder_kl.npz')


@functools.cache
def reference(name):
    """A case's network, its weights by torch key, its parameters, and the compiled encoder and decoder."""
    vae = AutoencoderKL(**COMMON, **CASES[name])
    state_dict = {key: weight(key, shape) for key, shape in json.loads(str(GOLDEN[f'{name}/shapes'])).items()}
    shapes = jax.eval_shape(lambda: vae.init(jax.random.key(0), inputs(name)[0]))['params']

    @jax.jit
    def run(params, image, z):
        def blocks(x, method):
            y, sown = vae.apply({'params': params}, x, method=method, mutable='intermediates',
                                capture_intermediates=lambda module, method: 'block' in (module.name or ''))
            return y, sown['intermediates']

        return blocks(image, 'encode'), blocks(z, 'decode')

    return vae, state_dict, from_torch(state_dict, shapes), run


@functools.cache
def answers(name):
    """What ours says to a case: results by their name in the golden file."""
    _, _, params, run = reference(name)
    ((mean, log_var), encoder), (y, decoder) = run(params, *inputs(name))
    out = {'mean': mean, 'log_var': log_var, 'y': y}
    for part, tree in (('encoder', encoder), ('decoder', decoder)):
        for block, sown in tree[part].items():
            (result,) = sown['__call__']
            out[f'{part}.{block}'] = (result[0] if isinstance(result, tuple) else result)[:1]
    return out


def error(y, expected):
    """The largest error over the reference's largest value."""
    y = np.asarray(y)
    assert y.shape == expected.shape
    return np.abs(y - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize('name', CASES)
def test_agrees_with_the_reference_block_by_block(name):
    ours = answers(name)
    expected = {key.removeprefix(f'{name}/'): key for key in GOLDEN.files if key.startswith(f'{name}/')}
    del expected['shapes']
    assert ours.keys() == expected.keys()
    assert {k: v.dtype for k, v in ours.items() if '.' not in k} == dict.fromkeys(('mean', 'log_var', 'y'), jnp.float32)
    assert not {k: e for k, file in expected.items() if not (e := error(ours[k], GOLDEN[file])) < 1e-5}


@pytest.mark.parametrize(
    'key, permute, result',
    [
        ('encoder.down_blocks.0.downsamplers.0.conv.weight', lambda w: w[..., ::-1], 'mean'),
        ('encoder.down_blocks.1.resnets.0.conv_shortcut.weight', lambda w: w[:, ::-1], 'mean'),
        ('encoder.mid_block.attentions.0.to_k.weight', lambda w: w.T, 'mean'),
        ('quant_conv.weight', lambda w: w.swapaxes(0, 1), 'log_var'),
        ('post_quant_conv.weight', lambda w: w.swapaxes(0, 1), 'y'),
        ('decoder.mid_block.attentions.0.to_out.0.weight', lambda w: w.T, 'y'),
        ('decoder.up_blocks.1.upsamplers.0.conv.weight', lambda w: w.swapaxes(2, 3), 'y'),
        ('decoder.conv_norm_out.weight', lambda w: w[::-1], 'y'),
    ],
)
def test_a_permuted_weight_is_noticed(key, permute, result):
    _, state_dict, params, run = reference('f4')
    broken = from_torch({**state_dict, key: permute(state_dict[key])}, params)
    ((mean, log_var), _), (y, _) = run(broken, *inputs('f4'))
    assert error({'mean': mean, 'log_var': log_var, 'y': y}[result], GOLDEN[f'f4/{result}']) > 1e-3


def test_tiles_agree_with_the_reference():
    vae, _, params, _ = reference(TILED)

    @jax.jit
    def run(params, image, z):
        variables = {'params': params}
        return *tiling.tiled_encode(vae, variables, image), tiling.tiled_decode(vae, variables, z)

    for result, y in zip(('mean', 'log_var', 'y'), run(params, *tiled_inputs()), strict=True):
        assert error(y, GOLDEN[f'tiled/{result}']) < 1e-5


def test_photographs_go_to_latents_and_back_as_in_the_reference():
    """From uint8 on; turned pictures and exchanged colours would show."""
    vae, _, params, _ = reference(PHOTOGRAPHED)
    pixels = photographs()
    np.testing.assert_array_equal(pixels.sum((1, 2), dtype=np.int64), GOLDEN['photographs/sum'],
                                  'Pillow reads the photographs otherwise than when the golden file was made')

    @jax.jit
    def run(image):
        mean, _ = vae.apply({'params': params}, image, method='encode')
        return mean, vae.apply({'params': params}, mean, method='decode')

    def errors(pixels):
        found = run(pictures(pixels, 2, vae.downsampling_factor))
        return [error(y[PICKED[k]], GOLDEN[f'photographs/{k}']) for k, y in zip(('mean', 'y'), found, strict=True)]

    assert max(errors(pixels)) < 1e-5
    for wrong in (pixels[..., ::-1], pixels.swapaxes(1, 2), pixels[:, ::-1], pixels[:, :, ::-1]):
        assert min(errors(wrong)) > 0.05


def test_blending_a_function_of_pixels_changes_nothing():
    x = np.random.RandomState(0).randn(2, 12, 8, 3).astype(np.float32)
    run = jax.jit(lambda x: tiling.tiled(jnp.square, x, tile=8, overlap=0.5))
    np.testing.assert_allclose(run(x), np.square(x), rtol=1e-6)
    assert tiling.tile_starts(19, 8, 4) == [(0, 8), (4, 8), (8, 8), (12, 7), (16, 3)]
    seen = []
    tiling.tiled(lambda part: seen.append(part.shape) or part, x[:, :8, :8], tile=8)
    assert seen == [(2, 8, 8, 3)]


def test_slices_are_the_batch():
    vae, _, params, run = reference('bare')
    encode = tiling.sliced(lambda image: vae.apply({'params': params}, image, method='encode'))
    mean, log_var = jax.jit(encode)(inputs('bare')[0])
    assert error(mean, GOLDEN['bare/mean']) < 1e-5
    assert error(log_var, GOLDEN['bare/log_var']) < 1e-5


def test_the_log_variance_is_clipped():
    _, _, params, run = reference('f4')
    bias = jnp.asarray([0.0] * 4 + [-100.0, 100.0, 0.0, 0.0])
    pushed = {**params, 'quant_conv': {**params['quant_conv'], 'bias': bias}}
    log_var = run(pushed, *inputs('f4'))[0][0][1]
    assert (log_var[..., 0] == -30).all()
    assert (log_var[..., 1] == 20).all()


def test_bfloat16_compute_keeps_float32_parameters_and_outputs():
    _, _, params, _ = reference('bare')
    vae = AutoencoderKL(**COMMON, **CASES['bare'], dtype=jnp.bfloat16)
    image, z = inputs('bare')
    fresh = jax.eval_shape(lambda: vae.init(jax.random.key(0), image))['params']
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype('float32')}
    y = jax.jit(lambda z: vae.apply({'params': params}, z, method='decode'))(z)
    assert y.dtype == jnp.float32
    # bfloat16 keeps 8 bits: much closer would mean that it was not used.
    assert 1e-4 < error(y, GOLDEN['bare/y']) < 0.05


def shapes_of(vae, image, method='__call__'):
    variables = jax.eval_shape(lambda: vae.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3))))
    return jax.eval_shape(lambda v, x: vae.apply(v, x, method=method), variables, image)


@pytest.mark.parametrize(
    'broken, message',
    [
        (lambda: autoencoder_kl_tiny(block_out_channels=(8,)), 'block_out_channels has 1, down_block_types has 2'),
        (lambda: autoencoder_kl_tiny(down_block_types=('DownBlock2D',) * 2), "'DownBlock2D' in down_block_types; ch"),
        (lambda: autoencoder_kl_tiny(up_block_types=('UpBlock2D',) * 2), "'UpBlock2D' in up_block_types"),
        (lambda: autoencoder_kl_tiny(norm_num_groups=3), 'norm_num_groups=3.*choose one of 1, 2, 4'),
        (lambda: autoencoder_kl_tiny(attention_implementation='flash'), "unknown attention_implementation 'flash'"),
        (lambda: autoencoder_kl_tiny(remat='some'), "unknown remat policy 'some'"),
        (lambda: shapes_of(autoencoder_kl_tiny(), jnp.zeros((1, 9, 8, 3))), 'height 9 .*factor 2.*8 or 10.*resize'),
        (lambda: shapes_of(autoencoder_kl_tiny(), jnp.zeros((1, 8, 1, 3))), 'width 1 .*valid size is 2'),
        (lambda: shapes_of(autoencoder_kl_tiny(), jnp.zeros((1, 8, 8, 1))), r'takes \[B, H, W, 3\]'),
        (lambda: shapes_of(autoencoder_kl_tiny(), jnp.zeros((1, 4, 4, 3)), 'decode'), r'decodes \[B, h, w, 4\]'),
        (lambda: tiling.tiled(jnp.square, jnp.zeros((1, 20, 8, 1)), tile=9), r'tile=9 with overlap=0.25 shares 2.25'),
        (lambda: tiling.tiled(jnp.square, jnp.zeros((1, 20, 8, 1)), tile=8, overlap=1), r'overlap in \[0, 1\)'),
        (lambda: tiling.tiled(jnp.square, jnp.zeros((1, 20, 8, 1)), tile=12, scale=Fraction(1, 8)), 'multiples of 8'),
        (lambda: tiling.tiled_encode(autoencoder_kl_tiny(), {}, jnp.zeros((1, 40, 41, 3))), 'width 41'),
    ],
)
def test_bad_input_is_named(broken, message):
    with pytest.raises(ValueError, match=message) as raised:
        broken()
    assert re.search(r'choose|resize|give|valid|decodes|takes', str(raised.value))


@pytest.mark.slow
def test_a_fresh_network_learns_in_every_parameter():
    blocks = dict(block_out_channels=(4,), down_block_types=('AttnDownEncoderBlock2D',),
                  up_block_types=('AttnUpDecoderBlock2D',), mid_block_add_attention=False)
    vae, key = autoencoder_kl_tiny(dropout=0.2, **blocks), jax.random.key(0, impl='rbg')
    image = jax.random.normal(key, (2, 8, 8, 3))
    params = jax.eval_shape(lambda: vae.init(key, image))['params']
    # Output projections start at zero, and hide what is behind them.
    leaves, tree = jax.tree.flatten(params)
    drawn = [0.2 * np.random.RandomState(i).randn(*leaf.shape) for i, leaf in enumerate(leaves)]
    params = jax.tree.unflatten(tree, drawn)

    @jax.jit
    def run(params, key):
        def loss(params):
            y = vae.apply({'params': params}, image, True, rngs={'dropout': key})
            return jnp.square(y - image).mean(), y
        (_, y), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return y, grads

    (a, grads), (b, _) = run(params, key), run(params, jax.random.key(1, impl='rbg'))
    silent = {jax.tree_util.keystr(k) for k, g in jax.tree_util.tree_flatten_with_path(grads)[0] if not g.any()}
    assert not silent
    assert np.abs(a - b).max() > 1e-3
