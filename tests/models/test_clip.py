from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import trees
from gen_jax.interop.torch_layout import from_torch, to_torch
from gen_jax.models.clip import CLIP, clip_shapes, clip_tiny, clip_vit_b32
from gen_jax.nn.transformer import activation
from tests.golden.make_clip import CASES, PROJECTION, TEXT, VISION, inputs, weight

GOLDEN = Path(__file__).parents[1] / 'golden' / 'clip.npz'


def reference_network(act, eos):
    return CLIP(image_size=VISION['image_size'], patch_size=VISION['patch_size'], vision_width=VISION['hidden_size'],
                vision_layers=VISION['num_hidden_layers'], vision_heads=VISION['num_attention_heads'],
                vision_hidden=VISION['intermediate_size'], vocab_size=TEXT['vocab_size'],
                max_length=TEXT['max_position_embeddings'], text_width=TEXT['hidden_size'],
                text_layers=TEXT['num_hidden_layers'], text_heads=TEXT['num_attention_heads'],
                text_hidden=TEXT['intermediate_size'], projection_dim=PROJECTION, act=act,
                eos_token_id=None if eos == 2 else eos)


@pytest.fixture(scope='module')
def cases():
    """name -> (network, parameters, golden outputs)."""
    image, tokens = inputs()
    golden, out = np.load(GOLDEN), {}
    for name, (act, eos) in CASES.items():
        network = reference_network(act, eos)
        shapes = jax.eval_shape(network.init, jax.random.key(0), image, tokens)['params']
        wanted = to_torch(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes))
        params = from_torch({key: weight(key, x.shape) for key, x in wanted.items()}, shapes)
        out[name] = network, params, {k.split('/')[1]: golden[k] for k in golden if k.startswith(f'{name}/')}
    return out


def outputs(network, params):
    image, tokens = inputs()

    def run(params):
        u, v, scale = network.apply({'params': params}, image, tokens)
        vision = network.apply({'params': params}, image, method=lambda m, x: m.vision_model(x)[0])
        text = network.apply({'params': params}, tokens, method=lambda m, x: m.text_model(x)[0])
        return {'image_embeds': u, 'text_embeds': v, 'logits_per_image': jnp.exp(scale) * u @ v.T,
                'vision_states': vision, 'text_states': text}

    return jax.jit(run)(params)


def error(ours, golden):
    return {k: np.abs(ours[k] - golden[k]).max() / np.abs(golden[k]).max() for k in ours}


@pytest.mark.parametrize('name', CASES)
def test_golden_parity(cases, name):
    network, params, golden = cases[name]
    assert sorted(to_torch(params)) == list(golden['keys'])
    errors = error(outputs(network, params), golden)
    assert max(errors.values()) < 1e-4, errors


@pytest.mark.parametrize('path', ['vision_model/encoder/layers.1/self_attn/v_proj/kernel',
                                  'text_model/encoder/layers.0/mlp/fc1/kernel'])
def test_a_permuted_weight_breaks_parity(cases, path):
    network, params, golden = cases['gelu_eos']
    permuted = trees.map_with_path(lambda p, x: x[::-1] if p == path else x, params)
    errors = error(outputs(network, permuted), golden)
    assert errors['image_embeds' if path.startswith('vision') else 'text_embeds'] > 1e-2


def test_pooling_position(cases):
    # The goldens differ in where they pool: ids above the end token stand in the captions.
    states = {name: golden['text_states'] for name, (_, _, golden) in cases.items()}
    _, tokens = inputs()
    assert (tokens.argmax(-1) != (tokens == 7).argmax(-1)).any()
    for name, (network, params, _) in cases.items():
        bound = network.bind({'params': params})
        where = tokens.argmax(-1) if network.eos_token_id is None else (tokens == 7).argmax(-1)
        pooled = bound.text_model(jnp.asarray(tokens))[1]
        np.testing.assert_allclose(pooled, states[name][np.arange(4), where], atol=1e-4)


def test_text_is_causal_and_images_are_not(cases):
    network, params, _ = cases['gelu_eos']
    model = network.bind({'params': params})
    image, tokens = inputs()
    changed = tokens.copy()
    changed[:, 5:] = 10
    before, after = model.text_model(jnp.asarray(tokens))[0], model.text_model(jnp.asarray(changed))[0]
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert np.abs(before[:, 5:] - after[:, 5:]).max() > 1e-2
    corner = image.copy()
    corner[:, -1, -1] += 1  # in the last patch: all tokens see it
    moved = np.abs(model.vision_model(jnp.asarray(corner))[0] - model.vision_model(jnp.asarray(image))[0])
    assert moved.max(-1).min() > 1e-5


def count(network, length):
    shape = (1, network.image_size, network.image_size, 3)
    args = jnp.zeros(shape), jnp.zeros((1, length), jnp.int32)
    return trees.count(jax.eval_shape(network.init, jax.random.key(0), *args))


def test_vit_b32_has_the_published_size():
    assert count(clip_vit_b32(), 77) == 151_277_313


def test_small_variants():
    assert count(clip_tiny(), 8) < 10_000
    assert count(clip_shapes(), 16) < 1_000_000


def random_params(network, *args):
    """Weights as in the goldens, without compiling an initialiser."""
    shapes = jax.eval_shape(network.init, jax.random.key(0), *args)
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype('float32')}
    return trees.map_with_path(lambda p, x: 0.5 * jnp.asarray(weight(p.replace('scale', 'weight'), x.shape)), shapes)


def test_convolutional_stem_and_bfloat16():
    network = clip_tiny(stem=(4, 8), dtype='bfloat16')
    image, tokens = jnp.linspace(-1, 1, 2 * 8 * 8 * 3).reshape(2, 8, 8, 3), jnp.arange(16).reshape(2, 8)
    params = random_params(network, image, tokens)
    u, v, _ = jax.jit(network.apply)(params, image, tokens)
    assert u.dtype == v.dtype == jnp.float32 and u.shape == v.shape == (2, 8)
    exact = jax.jit(clip_tiny(stem=(4, 8)).apply)(params, image, tokens)
    np.testing.assert_allclose(u, exact[0], atol=3e-2)
    np.testing.assert_allclose(v, exact[1], atol=3e-2)


def test_pixel_statistics_are_applied():
    image, tokens = jnp.linspace(-1, 1, 2 * 8 * 8 * 3).reshape(2, 8, 8, 3), jnp.ones((2, 8), jnp.int32)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    plain = clip_tiny()
    params = random_params(plain, image, tokens)
    standardised = ((image + 1) / 2 - jnp.array(mean)) / jnp.array(std)
    ours = clip_tiny(pixel_mean=mean, pixel_std=std).apply(params, image, method='encode_image')
    np.testing.assert_allclose(ours, plain.apply(params, standardised, method='encode_image'), atol=1e-5)


@pytest.mark.parametrize('kwargs, image, tokens, message', [
    ({}, (1, 9, 8, 3), (1, 8), r'\[B, 8, 8, 3\]'),
    ({}, (1, 8, 8, 3), (1, 9), 'exceed max_length = 8'),
    ({'patch_size': 3}, (1, 8, 8, 3), (1, 8), 'patch_size = 3 does not divide image_size = 8'),
    ({'vision_heads': 3}, (1, 8, 8, 3), (1, 8), 'num_heads = 3 does not divide the width 16'),
    ({'stem': (4, 4, 4)}, (1, 8, 8, 3), (1, 8), 'patch_size divisible by 8'),
    ({'act': 'glue'}, (1, 8, 8, 3), (1, 8), "unknown activation 'glue'"),
    ({'pixel_mean': (0, 0, 0)}, (1, 8, 8, 3), (1, 8), 'both or neither'),
])
def test_clear_errors(kwargs, image, tokens, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(clip_tiny(**kwargs).init, jax.random.key(0), jnp.zeros(image), jnp.zeros(tokens, jnp.int32))


def test_float_tokens_are_refused():
    with pytest.raises(ValueError, match='tokens must be int'):
        jax.eval_shape(clip_tiny().init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 8)))


def test_quick_gelu_is_not_gelu():
    x = jnp.linspace(-3, 3, 7)
    np.testing.assert_allclose(activation('quick_gelu')(x), x * nn.sigmoid(1.702 * x), rtol=1e-6)
    assert np.abs(activation('quick_gelu')(x) - activation('gelu')(x)).max() > 5e-3


def test_initializer_factors_scale_what_a_tower_starts_from():
    def params(**kwargs):
        network = clip_tiny(**kwargs)
        return network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 8), jnp.int32))['params']

    plain = trees.flat(params())
    for tower, factor in (('text', 50.0), ('vision', 10.0)):
        scaled = trees.flat(params(**{f'{tower}_initializer_factor': factor}))
        moved = {path for path in plain if not np.array_equal(plain[path], scaled[path])}
        assert moved == {p for p in plain if f'{tower}_model' in p and ('_embedding' in p and 'patch' not in p)}
        assert len(moved) == 2
        for path in moved:
            np.testing.assert_allclose(scaled[path], factor * plain[path], rtol=1e-6)
