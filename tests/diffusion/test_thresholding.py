"""Static and dynamic thresholding by hand (the table test and the golden test see them too)."""

import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.diffusion import thresholding
from gen_jax.types import Denoised, Level

LEVEL = Level(jnp.float32(0.5), jnp.float32(0.6), jnp.float32(0.8), 0, 1)
X0 = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32) * np.float32([0.2, 1.0, 3.0])[:, None, None]
X = np.random.default_rng(1).standard_normal(X0.shape).astype(np.float32)


def denoise(x, level, cond):
    return Denoised(jnp.asarray(X0, jnp.float32), (x - level.alpha * X0) / level.sigma, log_var=x, aux={'seen': x})


PLAIN = denoise(X, LEVEL, {})


def agrees(d):
    return np.allclose(LEVEL.alpha * d.x0 + LEVEL.sigma * d.eps, X, atol=1e-5)


@pytest.mark.parametrize('make', [thresholding.clip_x0, thresholding.dynamic_threshold])
def test_what_else_is_touched(make):
    """Only eps, and that only if asked for; nothing at all where everything lies within the limit."""
    kept, again = (make(limit=0.5, recompute_eps=r)(denoise)(X, LEVEL, {}) for r in (False, True))
    np.testing.assert_array_equal(kept.eps, PLAIN.eps)
    assert agrees(again) and not agrees(kept) and np.abs(kept.x0).max() <= 0.5 + 1e-6
    for d in (kept, again):
        np.testing.assert_array_equal(d.log_var, X)
        np.testing.assert_array_equal(d.aux['seen'], X)
    np.testing.assert_allclose(make(limit=100.0)(denoise)(X, LEVEL, {}).x0, PLAIN.x0, rtol=1e-6)


def test_static():
    np.testing.assert_array_equal(thresholding.clip_x0(0.5)(denoise)(X, LEVEL, {}).x0, np.clip(X0, -0.5, 0.5))
    limits = np.array([0.1, 0.5, np.inf])
    got = thresholding.clip_x0(limits)(denoise)(X, LEVEL, {}).x0
    np.testing.assert_allclose(got, np.clip(X0, -limits[:, None, None], limits[:, None, None]), rtol=1e-6)


def test_dynamic():
    """Per example: the first stays within the limit and is left alone, the others are clipped and scaled."""
    got = thresholding.dynamic_threshold(0.8)(denoise)(X, LEVEL, {}).x0
    assert np.abs(X0[0]).max() < 1
    for ours, x0 in zip(got, X0, strict=True):
        s = max(np.quantile(np.abs(x0), 0.8), 1.0)
        np.testing.assert_allclose(ours, np.clip(x0, -s, s) / s, rtol=1e-5)
    scaled = thresholding.dynamic_threshold(0.8, limit=2.0)(denoise)(X, LEVEL, {}).x0
    s = np.quantile(np.abs(X0[2]), 0.8)
    np.testing.assert_allclose(scaled[2], np.clip(X0[2], -s, s) * 2 / s, rtol=1e-5)
    static = thresholding.dynamic_threshold(0.8, max_value=1.0)(denoise)(X, LEVEL, {}).x0
    np.testing.assert_allclose(static, np.clip(X0, -1, 1), rtol=1e-6)


@pytest.mark.parametrize('call, match', [
    (lambda: thresholding.clip_x0(0.0), 'limit'), (lambda: thresholding.dynamic_threshold(99.5), r'99.5.*0.995'),
    (lambda: thresholding.dynamic_threshold(limit=-1.0), 'limit'),
    (lambda: thresholding.dynamic_threshold(max_value=0), 'max_value')])
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
