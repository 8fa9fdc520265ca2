"""Low-pass resampling against scipy's upfirdn and by its adjoint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import upfirdn

from gen_jax.nn.resampling import average_pool, fir_downsample, fir_filter, fir_upsample, upsample_nearest

RNG = np.random.RandomState(0)
FILTERS = [(1, 1), (1, 3, 3, 1), (1, 2, 5, 5, 2, 1)]


def exact(x, filter, up, down, pads):
    """Both axes of x padded after zeros went in between, filtered with gain `up`, thinned out; in float64."""
    taps = np.asarray(filter, float) / np.sum(filter) * up
    for axis in (1, 2):
        length = x.shape[axis] * up + sum(pads) - len(taps) + 1
        # upfirdn pads without end and leaves off the zeros after the last value: the output begins at pads[0] less.
        y = np.apply_along_axis(lambda v: upfirdn(taps, np.r_[v, 0], up=up), axis, x)
        start = len(taps) - 1 - pads[0]
        x = np.take(y, range(start, start + length, down), axis)
    return x


@pytest.mark.parametrize('filter', FILTERS)
def test_agrees_with_upfirdn(filter):
    x, n = RNG.randn(2, 6, 4, 3), len(filter)
    down = exact(x, filter, 1, 2, ((n - 1) // 2, (n - 2) // 2))
    up = exact(x, filter, 2, 1, ((n - 1) // 2 + 1, (n - 2) // 2))
    np.testing.assert_allclose(fir_downsample(jnp.float32(x), filter), down, atol=1e-6)
    np.testing.assert_allclose(fir_upsample(jnp.float32(x), filter), up, atol=1e-6)
    assert fir_upsample(jnp.zeros((2, 6, 4, 3), jnp.bfloat16), filter).dtype == jnp.bfloat16


def test_two_equal_taps_are_means_and_repeats():
    x = jnp.float32(RNG.randn(2, 4, 6, 3))
    np.testing.assert_allclose(fir_downsample(x, (1, 1)), average_pool(x), atol=1e-6)
    np.testing.assert_array_equal(fir_upsample(x, (1, 1)), upsample_nearest(x))


@pytest.mark.parametrize('filter', FILTERS)
def test_upsampling_is_four_times_the_transpose_of_downsampling(filter):
    x, y = jnp.float32(RNG.randn(2, 4, 6, 3)), jnp.float32(RNG.randn(2, 8, 12, 3))
    transposed = jax.linear_transpose(lambda y: fir_downsample(y, filter), y)(x)[0]
    np.testing.assert_allclose(fir_upsample(x, filter), 4 * transposed, atol=1e-6)


@pytest.mark.parametrize('filter', [(1, 2, 1), (1, 3, 3, 2), (), (1, -1), (-1, -1), ((1, 1), (1, 1))])
def test_filters_that_shift_or_vanish_are_refused(filter):
    with pytest.raises(ValueError, match='resample_filter=.*symmetric filter of even length'):
        fir_filter(jnp.zeros((1, 4, 4, 1)), filter, padding=1)
