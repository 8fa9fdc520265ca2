"""Classifier-free guidance: the combination, its branches and its shards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gen_jax import diffusion
from gen_jax.diffusion import guidance, parameterisation
from gen_jax.diffusion.process import level_at
from gen_jax.types import Denoised, Level

VP = diffusion.vp()
LEVEL = Level(jnp.float32(0.5), *(jnp.float32(f(0.5)) for f in (VP.alpha, VP.sigma)), jnp.int32(0), jnp.int32(1))
COND = {'label': jnp.array([3, 1, 4]),
        'text': jnp.asarray(np.random.default_rng(0).standard_normal((3, 5)), jnp.float32)}
X = jnp.asarray(np.random.default_rng(1).standard_normal((3, 5)), jnp.float32)
NULL_TEXT = np.linspace(-1, 1, 5).astype(np.float32)


def denoise(x, level, cond):
    """Depends on everything, per example."""
    raw = jnp.tanh(x * level.sigma + cond['text']) + jnp.sin(cond['label'])[:, None]
    d = parameterisation.from_eps(x, raw, level)
    return d._replace(log_var=raw, aux={'seen': cond['label']})


def test_combination_by_hand():
    calls = []

    def counted(*args):
        calls.append(args[0].shape)
        return denoise(*args)

    uncond = {'label': 10, 'text': NULL_TEXT}
    null = {'label': jnp.full(3, 10), 'text': jnp.tile(NULL_TEXT, (3, 1))}
    on, off = denoise(X, LEVEL, COND), denoise(X, LEVEL, null)
    for scale in (0.0, 1.0, 3.5, jnp.array([0.0, 1.0, 7.0])):
        d = guidance.classifier_free(scale, uncond)(counted)(X, LEVEL, COND)
        w = jnp.reshape(scale, (-1, 1))
        np.testing.assert_allclose(d.eps, off.eps + w * (on.eps - off.eps), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(d.x0, off.x0 + w * (on.x0 - off.x0), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(LEVEL.alpha * d.x0 + LEVEL.sigma * d.eps, X, atol=1e-5)  # x0 and eps still agree
        np.testing.assert_allclose(d.log_var, on.log_var, rtol=1e-6)
        np.testing.assert_array_equal(d.aux['seen'], COND['label'])
    assert calls == [(6, 5)] * 4


def test_none_is_the_denoiser_itself():
    assert guidance.classifier_free(None, {'label': 10})(denoise) is denoise


def test_unnamed_keys_are_shared_and_functions_give_nulls():
    want = guidance.classifier_free(2.0, {'label': 10, 'text': COND['text']})(denoise)(X, LEVEL, COND)
    for uncond in ({'label': 10}, lambda cond: {'label': jnp.full_like(cond['label'], 10)}):
        got = guidance.classifier_free(2.0, uncond)(denoise)(X, LEVEL, COND)
        np.testing.assert_allclose(got.eps, want.eps)


def test_conditions_within_conditions():
    def nested(x, level, cond):
        return denoise(x, level, {'text': cond['text'], **cond['added']})

    cond = {'text': COND['text'], 'added': {'label': COND['label'], 'size': COND['label']}}
    uncond = {'text': NULL_TEXT, 'added': {'label': 10}}
    want = guidance.classifier_free(2.0, {'text': NULL_TEXT, 'label': 10})(denoise)(X, LEVEL, COND)
    np.testing.assert_array_equal(guidance.classifier_free(2.0, uncond)(nested)(X, LEVEL, cond).eps, want.eps)
    with pytest.raises(ValueError, match=r"\['label', 'size'\], got \['lable'\]"):
        guidance.classifier_free(2.0, {'added': {'lable': 10}})(nested)(X, LEVEL, cond)


def test_levels_per_example():
    level = level_at(VP, jnp.array([0.2, 0.5, 0.8]))
    one = guidance.classifier_free(2.0, {'label': 10})

    def per_example(x, level, cond):
        raw = x * level.alpha[:, None] + cond['label'][:, None]
        return parameterisation.from_eps(x, raw, level)

    got = one(per_example)(X, level, COND)
    for i in range(3):
        row = jax.tree.map(lambda a, i=i: a[i:i + 1], (X, level._replace(index=level.t, last=level.t), COND))
        np.testing.assert_allclose(got.x0[i:i + 1], one(per_example)(*row).x0, rtol=1e-5)


def test_interleaving_needs_no_collectives():
    """Doubling a batch that is sharded over 4 devices must stay on each device; concatenating would not."""
    mesh = jax.make_mesh((4,), ('data',), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    split, whole = NamedSharding(mesh, PartitionSpec('data')), NamedSharding(mesh, PartitionSpec())
    x, label, weight = jnp.ones((8, 4, 4, 2)), jnp.arange(8), jnp.ones((2, 2))

    def network(x, label, cond):
        return x @ cond['weight'][0] + cond['label'][:, None, None, None] + label[:, None, None, None]

    def compiled(transform):
        def run(x, label, weight, scale):
            net = lambda x, t, cond: network(x, t, {**cond, 'weight': weight[None]})  # noqa: E731
            return transform(scale)(parameterisation.eps().denoiser(net, VP))(x, LEVEL, {'label': label}).x0

        return jax.jit(run, in_shardings=(split, split, whole, whole), out_shardings=split)

    def concatenated(scale):
        def transform(denoise):
            def guided(x, level, cond):
                d = denoise(jnp.concatenate([x, x]), level, {'label': jnp.concatenate([cond['label'], 0 * label + 10])})
                half = [jax.tree.map(lambda a, i=i: a[8 * i:8 * i + 8], d) for i in (0, 1)]
                return Denoised(half[1].x0 + scale * (half[0].x0 - half[1].x0), half[0].eps)
            return guided
        return transform

    ours = compiled(lambda scale: guidance.classifier_free(scale, {'label': 10}))
    theirs = compiled(concatenated)
    collectives = ('all-reduce', 'all-gather', 'all-to-all', 'collective-permute', 'reduce-scatter')
    text, other = (f.lower(x, label, weight, 2.0).compile().as_text() for f in (ours, theirs))
    assert not [c for c in collectives if c in text]
    assert [c for c in collectives if c in other]  # so the search above would have found one
    np.testing.assert_allclose(ours(x, label, weight, 2.0), theirs(x, label, weight, 2.0), rtol=1e-5)


@pytest.mark.parametrize('call, match', [
    (lambda: guidance.classifier_free(2.0, {'caption': 0})(denoise)(X, LEVEL, COND), 'caption'),
    (lambda: guidance.classifier_free(2.0, {})(denoise)(X, LEVEL, COND), 'scale=None'),
])
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
