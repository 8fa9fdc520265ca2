"""ADM, its up-sampler and classifier, and iDDPM against outputs of the published code; invariances; every error."""

import functools
import json
import math
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import trees
from gen_jax.interop.torch_layout import from_torch, to_torch
from gen_jax.models import (
    ADMClassifier,
    ADMUNet,
    adm_classifier_digits,
    adm_classifier_tiny,
    adm_tiny,
    iddpm_digits,
)
from tests.golden.make_adm import CASES, TARGETS, inputs, is_classifier, weight

GOLDEN = np.load(Path(__file__).parents[1] / 'golden' / 'adm.npz')


@functools.cache
def reference(name):
    """A case's network, its weights by torch key, its parameters, and the compiled forward."""
    network = (ADMClassifier if is_classifier(name) else ADMUNet)(**CASES[name])
    state_dict = {key: weight(key, shape) for key, shape in json.loads(str(GOLDEN[f'{name}/shapes'])).items()}
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), **inputs(name)))['params']

    def answer(params, given):
        return network.apply({'params': params}, **given)

    def differentiated(params, given):
        def log_p(x):
            y = answer(params, {**given, 'x': x})
            return jax.nn.log_softmax(y)[jnp.arange(3), TARGETS].sum(), y

        grad, y = jax.grad(log_p, has_aux=True)(given['x'])
        return y, grad

    forward = jax.jit(differentiated if name == 'classifier' else lambda *a: (answer(*a),))
    return network, state_dict, from_torch(state_dict, shapes), forward


def error(outputs, name):
    """The largest error over the reference's largest value, of the worst image and output."""
    worst = []
    for ours, key in zip(outputs, ('y', 'grad'), strict=False):
        expected = GOLDEN[f'{name}/{key}']
        assert ours.shape == expected.shape and ours.dtype == jnp.float32
        worst += [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(np.asarray(ours), expected, strict=True)]
    return max(worst)


@pytest.mark.parametrize('name', CASES)
def test_agrees_with_the_published_code(name):
    _, state_dict, params, forward = reference(name)
    assert error(forward(params, inputs(name)), name) < 1e-5
    assert ('classifier/grad' in GOLDEN) and len(forward(params, inputs(name))) == 1 + (name == 'classifier')
    back = to_torch(params)
    assert list(sorted(back)) == sorted(state_dict)
    chex.assert_trees_all_equal(back, state_dict)


def other_order(w):
    """The rows of a fused projection, (q/k/v, head, D), as if they were (head, q/k/v, D); 2 heads."""
    return w.reshape(3, 2, -1, *w.shape[1:]).swapaxes(0, 1).reshape(w.shape)


@pytest.mark.parametrize(
    'name, key, permute',
    [
        ('adm', 'middle_block.1.qkv.weight', other_order),
        ('adm', 'middle_block.1.proj_out.weight', lambda w: w.swapaxes(0, 1)),
        ('adm', 'input_blocks.2.0.in_layers.2.weight', lambda w: w.swapaxes(2, 3)),
        ('adm', 'input_blocks.2.0.emb_layers.1.weight', lambda w: np.roll(w, len(w) // 2, 0)),
        ('adm', 'output_blocks.1.2.out_layers.0.bias', lambda w: w[::-1]),
        ('adm', 'output_blocks.3.0.skip_connection.weight', lambda w: w[:, ::-1]),
        ('adm', 'label_emb.weight', lambda w: w[::-1]),
        ('adm', 'time_embed.0.weight', lambda w: np.roll(w, w.shape[1] // 2, 1)),
        ('adm', 'out.2.weight', lambda w: w[::-1]),
        ('iddpm', 'input_blocks.2.0.op.weight', lambda w: w.swapaxes(2, 3)),
        ('iddpm', 'output_blocks.3.1.qkv.bias', other_order),
        ('superres', 'input_blocks.0.0.weight', lambda w: w[:, [0, 1, 3, 2]]),
        ('classifier', 'out.2.positional_embedding', lambda w: np.roll(w, 1, 1)),
        ('classifier', 'out.2.qkv_proj.weight', other_order),
        ('classifier', 'out.2.c_proj.weight', lambda w: w[::-1]),
        ('spatial_v2', 'out.0.weight', lambda w: w[:, ::-1]),
    ],
)
def test_a_permuted_weight_is_noticed(name, key, permute):
    _, state_dict, params, forward = reference(name)
    broken = from_torch({**state_dict, key: permute(state_dict[key])}, params)
    assert error(forward(broken, inputs(name)), name) > 1e-3


def test_images_do_not_see_each_other():
    for name in ('adm', 'classifier'):
        _, _, params, forward = reference(name)
        turned = {k: v[::-1] for k, v in inputs(name).items()}
        np.testing.assert_array_equal(forward(params, turned)[0][::-1], forward(params, inputs(name))[0])


def drawn(network, given):
    """Parameters without a zero layer."""
    fresh = jax.eval_shape(lambda: network.init(jax.random.key(0), *given))['params']
    zeros = jax.tree.map(lambda s: np.broadcast_to(np.float32(0), s.shape), fresh)
    return from_torch({k: weight(k, v.shape) for k, v in to_torch(zeros).items()}, fresh)


X, T, LABELS = jnp.ones((2, 8, 8, 1)), jnp.array([3.0, 900.0]), jnp.array([1, 10])


def test_bfloat16_is_used_and_close():
    _, _, params, _ = reference('adaptive')
    network = ADMClassifier(**CASES['adaptive'], dtype=jnp.bfloat16)
    y = jax.jit(lambda params, given: network.apply({'params': params}, **given))(params, inputs('adaptive'))
    # It keeps 8 bits: much closer would mean that it was not used.
    assert 1e-4 < error((y,), 'adaptive') < 0.05


def test_fresh_networks_answer_zero_every_parameter_learns_and_dropout_acts():
    unet = adm_tiny(dropout=0.5, channel_mult=(1,), attention_resolutions=(), num_head_channels=8)
    fresh = jax.jit(unet.init)(jax.random.key(0, impl='rbg'), X, T, LABELS)['params']

    @jax.jit
    def run(params, key):
        def spread(params):
            y = unet.apply({'params': params}, X, T, LABELS, deterministic=False, rngs={'dropout': key})
            return jnp.square(y - 1).mean(), y

        (_, y), grads = jax.value_and_grad(spread, has_aux=True)(params)
        return y, grads

    chex.assert_trees_all_equal(run(fresh, jax.random.key(0, impl='rbg'))[0], jnp.zeros((2, 8, 8, 2)))
    params = drawn(unet, (X, T, LABELS))
    (a, grads), (b, _) = (run(params, jax.random.key(i, impl='rbg')) for i in range(2))
    chex.assert_tree_all_finite((a, grads))
    assert np.abs(a - b).max() > 0.1 * np.abs(a).max()
    assert not [k for k, g in to_torch(grads).items() if not g.any()]
    assert {leaf.dtype for leaf in jax.tree.leaves((a, fresh))} == {np.dtype('float32')}


def test_digits_sizes():
    for network, given, low, high in ((iddpm_digits(), (X, T), 0.9e6, 1.1e6),
                                      (iddpm_digits(num_classes=11), (X, T, LABELS), 0.9e6, 1.1e6),
                                      (adm_classifier_digits(), (X, T), 0.3e6, 0.5e6),
                                      (adm_tiny(), (X, T, LABELS), 1e3, 3e4)):
        shapes = jax.eval_shape(lambda n=network, g=given: n.init(jax.random.key(0), *g))
        assert low < trees.count(shapes) < high


def test_resolutions_without_attention_and_one_time_for_all():
    unet = adm_tiny(num_classes=None, learn_sigma=False)
    for size in (8, 16):  # attention follows a place in the network, not the size of the image
        shapes = jax.eval_shape(lambda s=size: unet.init(jax.random.key(0), jnp.ones((2, s, s, 1)), jnp.float32(3)))
        keys = {'.'.join(k.split('/')) for k in trees.flat(shapes['params'])}
        assert {k.rsplit('.', 2)[0] for k in keys if '.qkv.' in k} == {
            'input_blocks.3.1', 'middle_block.1', 'output_blocks.0.1', 'output_blocks.1.1'}
    assert math.prod(unet.channel_mult) == 1 and unet.downsampling_factor == 2


@pytest.mark.parametrize(
    'make, settings, given, message',
    [
        (adm_tiny, dict(attention_resolutions=(4, 3)), None, 'attention_resolutions has 3.*side 8.*8, 4 '),
        (adm_tiny, dict(attention_implementation='flash'), None, 'flash.*matmul, xla, cudnn'),
        (adm_classifier_tiny, dict(pool='max'), None, "'max'.*attention, adaptive, spatial, spatial_v2"),
        (adm_classifier_tiny, dict(num_head_channels=None), None, 'needs num_head_channels'),
        (adm_tiny, {}, (jnp.ones((2, 9, 8, 1)), T, LABELS), '9x8 cannot be halved 1 times.*divisible by 2'),
        (adm_tiny, {}, (jnp.ones((2, 8, 8, 3)), T, LABELS), r'\(2, 8, 8, 3\).*\[B, H, W, 1\]'),
        (adm_tiny, {}, (X, jnp.zeros(3), LABELS), r'label is \(3,\).*\(2,\)'),
        (adm_tiny, {}, (X, T), 'class_labels is missing'),
        (adm_tiny, dict(num_classes=None), (X, T, LABELS), 'no classes; set num_classes'),
        (adm_tiny, {}, (X, T, LABELS[:1]), r'class_labels is \(1,\); give \(2,\)'),
        (adm_tiny, dict(super_res=True), (X, T, LABELS), 'low_res is missing, but super_res=True'),
        (adm_tiny, {}, (X, T, LABELS, X), 'low_res is given, but super_res=False'),
        (adm_tiny, dict(super_res=True), (X, T, LABELS, X[:1]), r'low_res is \(1, 8, 8, 1\); give \[2, h, w, 1\]'),
        (adm_tiny, dict(num_head_channels=None, num_heads=3), (X, T, LABELS),
         '3 heads do not divide the 8 channels at input_blocks.3.1'),
        (adm_tiny, dict(norm_num_groups=3), (X, T, LABELS), 'norm_num_groups=3 .* 8 channels at input_blocks.1'),
    ],
)
def test_bad_input(make, settings, given, message):
    with pytest.raises(ValueError, match=message):
        network = make(**settings)
        jax.eval_shape(lambda: network.init(jax.random.key(0), *given))


def test_attention_pooling_knows_its_size():
    network = adm_classifier_tiny()
    params = drawn(network, (X, T))
    with pytest.raises(ValueError, match='8x8 features with learned positions for 16'):
        jax.eval_shape(lambda: network.apply({'params': params}, jnp.ones((2, 16, 16, 1)), T))
