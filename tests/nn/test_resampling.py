"""Low-pass resampling against scipy's upfirdn and by its adjoint."""

from functools import partial

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
def test_agrees_with_upfirdn_and_its_transpose(filter):
    x, y, n = RNG.randn(2, 6, 4, 3), RNG.randn(2, 3, 2, 3), len(filter)

    @jax.jit
    def run(x, y):
        down, up = partial(fir_downsample, filter=filter), partial(fir_upsample, filter=filter)
        return down(x), up(x), up(y), jax.linear_transpose(down, x)(y)[0], average_pool(x), upsample_nearest(x)

    down, up, up_y, transposed, means, repeats = run(np.float32(x), np.float32(y))
    np.testing.assert_allclose(down, exact(x, filter, 1, 2, ((n - 1) // 2, (n - 2) // 2)), atol=1e-6)
    np.testing.assert_allclose(up, exact(x, filter, 2, 1, ((n - 1) // 2 + 1, (n - 2) // 2)), atol=1e-6)
    np.testing.assert_allclose(up_y, 4 * transposed, atol=1e-6)
    if filter == (1, 1):
        np.testing.assert_allclose(down, means, atol=1e-6)
        np.testing.assert_array_equal(up, repeats)


def test_the_dtype_is_kept():
    x = jax.ShapeDtypeStruct((2, 6, 4, 3), jnp.bfloat16)
    assert jax.eval_shape(lambda x: fir_upsample(fir_downsample(x, FILTERS[1]), FILTERS[1]), x) == x


@pytest.mark.parametrize('filter', [(1, 2, 1), (1, 3, 3, 2), (), (1, -1), (-1, -1), ((1, 1), (1, 1))])
def test_filters_that_shift_or_vanish_are_refused(filter):
    with pytest.raises(ValueError, match='resample_filter=.*symmetric filter of even length'):
        fir_filter(jnp.zeros((1, 4, 4, 1)), filter, padding=1)
