"""Learned variances: their parameterisation, and the hybrid and variational losses."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import diffusion
from gen_jax.config import make
from gen_jax.diffusion import parameterisation
from gen_jax.diffusion.hybrid import hybrid_loss, vlb_loss
from gen_jax.diffusion.loss import denoising_loss
from gen_jax.diffusion.process import level_at
from tests.diffusion.test_vlb import T, golden, outputs  # noqa: F401 (golden is a fixture)
from tests.oracles import Playback

TABLE = diffusion.discrete_ddpm(steps=T)
LEARNED = parameterisation.learned_range(parameterisation.eps())


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize('name', ['eps', 'x0', 'v', 'edm'])
def test_the_base_reads_the_first_half(name):
    base = getattr(parameterisation, name)()
    p = make({'name': 'diffusion.parameterisation.learned_range',
              'base': {'name': f'diffusion.parameterisation.{name}'}})
    x, raw, level = draw(2, 4, 4, 3), draw(2, 4, 4, 6, seed=1), level_at(TABLE, jnp.array([0, 7]))
    d = p.denoiser(lambda x, label, cond: raw.astype(jnp.bfloat16), TABLE)(x, level, {})
    half = raw.astype(jnp.bfloat16)
    want = base.denoiser(lambda *_: half[..., :3], TABLE)(x, level, {})
    np.testing.assert_array_equal(d.x0, want.x0)
    np.testing.assert_array_equal(d.eps, want.eps)
    np.testing.assert_allclose(d.log_var, (half[..., 3:].astype(np.float32) + 1) / 2)
    assert d.log_var.dtype == jnp.float32 and want.log_var is None
    np.testing.assert_array_equal(p.label(level, TABLE), base.label(level, TABLE))


def test_parity_with_the_published_losses(golden):  # noqa: F811
    """training_losses of guided-diffusion: hybrid for the learned variance; KL for every variance is T L_t."""
    x0 = jnp.asarray(np.broadcast_to(golden['x0'], golden['noise'].shape).reshape(-1, *golden['x0'].shape[1:]))
    t = jnp.repeat(jnp.arange(T), golden['x0'].shape[0])
    noise = Playback(jnp.asarray(golden['noise'].reshape(1, *x0.shape)))
    for i, s in enumerate(json.loads(str(golden['settings']))):
        if s['clip'] or s['schedule'] != 'cosine' or s['mean'] != 'eps':
            continue
        process = diffusion.discrete(golden[f'betas/{s["schedule"]}'])
        raw = outputs(golden, s['mean']).reshape(*x0.shape[:-1], -1)
        base = getattr(parameterisation, s['mean'])()
        learned = s['variance'] == 'learned'
        p = parameterisation.learned_range(base) if learned else base
        network = lambda x, label, cond, raw=raw, n=p.channels: raw[..., :2 * n]  # noqa: E731
        options = {} if learned else {'variance': s['variance']}
        bound = jax.jit(lambda p=p, process=process, network=network, options=options: vlb_loss(
            network, process, p, **options)(x0, t, noise, {}))()
        np.testing.assert_allclose(bound.reshape(T, -1)[::-1], T * golden['terms'][i], rtol=5e-5, atol=4e-5)
        if learned:
            hybrid = jax.jit(lambda p=p, process=process, network=network: hybrid_loss(
                network, process, p)(x0, t, noise, {}))()
            np.testing.assert_allclose(hybrid.reshape(T, -1), golden['hybrid'][i], rtol=1e-5)


def test_the_bound_teaches_the_variance_and_the_error_the_mean():
    x0, noise, t = jnp.tanh(draw(4, 8, 1)), Playback(draw(1, 4, 8, 1, seed=1)), jnp.array([0, 1, 9, T - 1])
    raw = draw(4, 8, 2, seed=2)

    def gradient(make_loss):
        return jax.jit(jax.grad(lambda raw: make_loss(lambda *_: raw)(x0, t, noise, {}).sum()))(raw)

    hybrid = gradient(lambda network: hybrid_loss(network, TABLE, LEARNED, vlb_weight=0.01))
    simple = gradient(lambda network: denoising_loss(network, TABLE, LEARNED))
    bound = gradient(lambda network: vlb_loss(network, TABLE, LEARNED))
    assert np.isfinite(bound).all() and (np.abs(bound) > 0).all()
    np.testing.assert_allclose(hybrid[..., :1], simple[..., :1], rtol=1e-6)
    np.testing.assert_allclose(hybrid[..., 1:], 0.01 * bound[..., 1:], rtol=1e-5)
    assert (simple[..., 1:] == 0).all()


def constant(channels):
    return lambda x, label, cond: jnp.zeros((*x.shape[:-1], channels))


@pytest.mark.parametrize('call, match', [
    (lambda: parameterisation.learned_range(LEARNED), 'already'),
    (lambda: hybrid_loss(constant(2), diffusion.vp(), LEARNED), 'continuous'),
    (lambda: vlb_loss(constant(2), diffusion.vp(), LEARNED), 'continuous'),
    (lambda: hybrid_loss(constant(1), TABLE, parameterisation.eps()), 'learned_range'),
    (lambda: hybrid_loss(constant(2), TABLE, LEARNED, vlb_weight=-1.0), 'vlb_weight.*-1'),
    (lambda: hybrid_loss(constant(1), TABLE, LEARNED)(draw(2, 3, 1), jnp.array([0, 1]), Playback(draw(1, 2, 3, 1)),
                                                      {}), r'\(2, 3, 1\).*2 channels'),
    (lambda: LEARNED.denoiser(constant(1), TABLE)(draw(2, 3, 1), level_at(TABLE, jnp.int32(3)), {}), '2 channels'),
    (lambda: denoising_loss(constant(2), TABLE, parameterisation.eps())(
        draw(2, 3, 1), jnp.array([0, 1]), Playback(draw(1, 2, 3, 1)), {}), 'must be equal'),
])
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
