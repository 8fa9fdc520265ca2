"""Truncated and reversed grids: rows by hand, round trips, one compiled program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import diffusion
from gen_jax.sampling import ddim, grid, reverse, sample, truncate
from tests import oracles

TABLE = diffusion.discrete_ddpm()


def test_truncate():
    rows = grid(TABLE, 10, max_steps=12)
    later = truncate(rows, 0.4)
    np.testing.assert_array_equal(later.t, [300, 200, 100, 0, -1] + [-1] * 8)
    np.testing.assert_array_equal(later.alpha[:5], rows.alpha[6:11])
    np.testing.assert_array_equal(later.sigma[:5], rows.sigma[6:11])
    np.testing.assert_array_equal(later.index, np.arange(13))
    np.testing.assert_array_equal(later.last, 4)
    for a, b in zip(truncate(rows, 1.0), rows, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    assert truncate(grid(TABLE, 50), 0.58).last[0] == 29  # 0.58 * 50 < 29 in binary
    assert truncate(truncate(rows, 0.6), 0.5).last[0] == 3


def test_reverse():
    rows = grid(TABLE, 4, 'trailing', max_steps=5)
    back = reverse(rows)
    np.testing.assert_array_equal(back.t, [249, 249, 499, 749, 999, 999])
    np.testing.assert_array_equal(back.sigma[:5], rows.sigma[:5][::-1])
    np.testing.assert_array_equal(back.alpha[5], rows.alpha[0])
    assert back.sigma[0] == 0 and back.alpha[0] == 1 and back.last[0] == 4
    np.testing.assert_array_equal(rows.t, [999, 749, 499, 249, -1, -1])  # the argument is left alone
    np.testing.assert_array_equal(reverse(rows, from_data=False).t, [249, 499, 749, 999, 999, 999])
    np.testing.assert_array_equal(reverse(rows, from_data=False).last, 3)
    np.testing.assert_array_equal(reverse(grid(TABLE, 4, set_alpha_to_one=False)).t, [0, 0, 250, 500, 750])


def test_round_trip_in_one_program():
    """Data to noise and back lands where it started, at first order, and the edits recompile nothing."""
    gaussian, x0 = oracles.gaussian(), oracles.gaussian().sample(4).astype(np.float32)
    traces = []

    @jax.jit
    def walk(x, rows):
        traces.append(1)
        return sample(oracles.Playback(jnp.zeros((1, 1))), gaussian.denoise, ddim(), x, rows).x

    errors = []
    for steps in (100, 200):
        rows = grid(TABLE, steps, max_steps=200)
        errors.append(np.abs(walk(walk(x0, reverse(rows)), rows) - x0).max())
    start = truncate(rows, 0.5)
    assert np.isfinite(walk(start.alpha[0] * x0, start)).all() and len(traces) == 1
    assert errors[1] < 0.6 * errors[0] < 0.06, errors


@pytest.mark.parametrize('call, match', [
    (lambda rows: truncate(rows, 0.0), r'strength.*\(0, 1\].*0.0'),
    (lambda rows: truncate(rows, 1.1), r'strength.*\(0, 1\].*1.1'),
    (lambda rows: truncate(rows, float('nan')), 'strength.*nan'),
    (lambda rows: truncate(rows, 0.05), 'strength=0.05.*10 steps.*0.1'),
    (lambda rows: reverse(grid(TABLE, 1), from_data=False), 'at least 2'),
])
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call(grid(TABLE, 10))
