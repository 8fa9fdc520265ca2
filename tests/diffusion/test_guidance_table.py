"""Every guidance and threshold, one row each: jit, vmap, bfloat16, shards, stacks, scales () and [B], traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gen_jax import diffusion
from gen_jax.diffusion import guidance, parameterisation
from gen_jax.diffusion.guidance_gradient import backward_guidance, classifier_guidance, loss_guidance
from gen_jax.types import Level

RNG = np.random.default_rng(0)
B = 8
X, TEXT, IMAGE = RNG.standard_normal((3, B, 2, 3)).astype(np.float32)
COND = {'label': np.arange(B), 'text': TEXT, 'image': IMAGE}
WEIGHT = RNG.standard_normal((3, 3)).astype(np.float32)
NO_TEXT, NO_IMAGE = {'label': 10, 'text': 0.0}, {'image': 0.0}


def level(alpha, sigma):
    return Level(*(jnp.float32(a) for a in (0.5, alpha, sigma)), jnp.int32(0), jnp.int32(1))


def denoiser(gain):
    def denoise(x, at, cond):
        def network(x, label, cond):
            return gain * jnp.tanh(x @ WEIGHT + cond['text'] - cond['image'] + 0.1 * cond['label'][:, None, None])

        d = parameterisation.v().denoiser(network, diffusion.vp())(x, at, cond)
        return d._replace(log_var=jnp.sin(cond['text']), aux={'seen': cond['label']})

    return denoise


def loss(x, at, cond):
    return jnp.sum((x - cond['image']) ** 2, axis=(1, 2))


def stack(w):
    def transform(denoise):
        denoise = guidance.classifier_free(guidance.interval(w, 0.1, 10.0), NO_TEXT, guidance_rescale=0.5)(denoise)
        denoise = guidance.autoguidance(w, denoiser(0.3))(denoise)
        denoise = guidance.dynamic_threshold(recompute_eps=True)(denoise)
        return classifier_guidance(0.1 * w, loss)(loss_guidance(0.1 * w, loss)(denoise))

    return transform


TABLE = {
    'classifier_free': lambda w: guidance.classifier_free(w, NO_TEXT),
    'interval': lambda w: guidance.classifier_free(guidance.interval(w, 0.1, 10.0), NO_TEXT),
    'interval_bounds': lambda w: guidance.classifier_free(guidance.interval(3.0, w / 3, 10.0), NO_TEXT),
    'rescaled': lambda w: guidance.classifier_free(w, NO_TEXT, guidance_rescale=0.7),
    'rescaled_by': lambda w: guidance.classifier_free(7.5, NO_TEXT, guidance_rescale=w / 10, rescale_space='eps'),
    'instruct_pix2pix': lambda w: guidance.instruct_pix2pix(w, 1.5, NO_TEXT, NO_IMAGE),
    'image_guidance': lambda w: guidance.instruct_pix2pix(7.5, w, NO_TEXT, NO_IMAGE),
    'autoguidance': lambda w: guidance.autoguidance(w, denoiser(0.3)),
    'clip_x0': lambda w: guidance.clip_x0(0.1 * w),
    'dynamic_threshold': lambda w: guidance.dynamic_threshold(0.9, 0.1 * w, recompute_eps=True),
    'classifier': lambda w: classifier_guidance(w, loss),
    'x0_before': lambda w: loss_guidance(w, loss),
    'x0_after': lambda w: loss_guidance(w, loss, gradient='after', shift_eps=False),
    'x_t_before': lambda w: loss_guidance(w, loss, of='x_t', gradient='before'),
    'x_t_after': lambda w: loss_guidance(w, loss, of='x_t', gradient='after'),
    'backward': lambda w: backward_guidance(0.01 * w, loss, steps=2),
    'stack': stack,
}
COLLECTIVES = ('all-reduce', 'all-gather', 'all-to-all', 'collective-permute', 'reduce-scatter')


@pytest.mark.parametrize('name', TABLE)
def test_all(name):
    traces = []

    def run(x, at, cond, w):
        traces.append(1)
        return TABLE[name](w)(denoiser(1.0))(x, at, cond)

    def both(d):
        return np.stack([np.asarray(d.x0), np.asarray(d.eps)])

    # a changed scale and level do not recompile, and change something; nothing is NaN at either end
    compiled, at = jax.jit(run), level(0.6, 0.8)
    two, five = (compiled(X, at, COND, np.float32(w)) for w in (2.0, 5.0))
    ends = [compiled(X, level(*end), COND, np.float32(2.0)) for end in ((1.0, 0.0), (0.0, 1.0))]
    assert len(traces) == 1
    assert np.isfinite(both(two)).all() and all(np.isfinite(both(d)).all() for d in ends)
    assert np.abs(both(two) - both(five)).max() > 1e-3
    # log_var and aux are the fully conditioned branch's
    np.testing.assert_allclose(two.log_var, np.sin(TEXT), rtol=1e-6)
    np.testing.assert_array_equal(two.aux['seen'], np.arange(B))

    # vmapped over scales, of bfloat16 inputs: computed in float32
    half = jnp.asarray(X, jnp.bfloat16)
    mapped = jax.jit(jax.vmap(run, (None, None, None, 0)))(half, at, COND, np.array([2.0, 5.0], np.float32))
    assert mapped.x0.dtype == mapped.eps.dtype == jnp.float32
    for i, w in enumerate((2.0, 5.0)):
        want = compiled(half.astype(jnp.float32), at, COND, np.float32(w))
        np.testing.assert_allclose(both(mapped)[:, i], both(want), rtol=2e-4, atol=2e-4)

    # sharded over eight devices, one scale per example: the same, and no device hears of another
    mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
    split, whole = NamedSharding(mesh, PartitionSpec('data')), NamedSharding(mesh, PartitionSpec())
    w = np.where(np.arange(B) % 2, 5.0, 2.0).astype(np.float32)
    shards = jax.jit(run, in_shardings=(split, whole, split, split), out_shardings=split)
    shards = shards.lower(X, at, COND, w).compile()
    assert not [c for c in COLLECTIVES if c in shards.as_text()]
    np.testing.assert_allclose(both(shards(*jax.device_put((X, at, COND, w), (split, whole, split, split)))),
                               np.where(w[None, :, None, None] == 5.0, both(five), both(two)), rtol=2e-4, atol=2e-4)
