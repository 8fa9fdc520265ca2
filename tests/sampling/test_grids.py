"""Grids: indices by hand, padding, last levels and bad input."""

import numpy as np
import pytest

from gen_jax import diffusion
from gen_jax.sampling import grid

TABLE, VP = diffusion.discrete_ddpm(), diffusion.vp()


@pytest.mark.parametrize('spacing, options, want', [  # Lin et al. 2024, Table 2, counted from 0
    ('leading', {}, [900, 800, 700, 600, 500, 400, 300, 200, 100, 0, -1]),
    ('leading', {'steps_offset': 1}, [901, 801, 701, 601, 501, 401, 301, 201, 101, 1, -1]),
    ('trailing', {}, [999, 899, 799, 699, 599, 499, 399, 299, 199, 99, -1]),
    ('linspace', {}, [999, 888, 777, 666, 555, 444, 333, 222, 111, 0, -1])])
def test_discrete_spacings(spacing, options, want):
    rows = grid(TABLE, 10, spacing, max_steps=12, **options)
    np.testing.assert_array_equal(rows.t, want + [-1, -1])
    np.testing.assert_array_equal(rows.index, np.arange(13))
    np.testing.assert_array_equal(rows.last, 10)
    np.testing.assert_array_equal(rows.alpha[:10], TABLE.alpha(np.array(want[:10])).astype(np.float32))
    np.testing.assert_array_equal((rows.alpha[10:], rows.sigma[10:]), [[1] * 3, [0] * 3])
    assert rows.alpha.dtype == rows.t.dtype == np.float32 and rows.index.dtype == rows.last.dtype == np.int32


@pytest.mark.parametrize('steps', [1, 3, 7, 999, 1000])
@pytest.mark.parametrize('spacing', ['leading', 'trailing', 'linspace'])
def test_any_number_of_steps(spacing, steps):
    rows = grid(TABLE, steps, spacing)
    assert rows.t.shape == (steps + 1,) and np.all(np.diff(rows.t) < 0)
    if (spacing, steps) == ('trailing', 7):  # T / steps is no integer
        np.testing.assert_array_equal(rows.t, [999, 856, 713, 570, 428, 285, 142, -1])
    assert rows.t[0] <= 999 and rows.t[-1] == -1 and np.all(rows.t == np.round(rows.t))


def test_set_alpha_to_one():
    rows = grid(TABLE, 5, 'leading', steps_offset=1, set_alpha_to_one=False)
    np.testing.assert_array_equal(rows.t, [801, 601, 401, 201, 1, 0])
    np.testing.assert_allclose((rows.alpha[-1], rows.sigma[-1]), (TABLE.alpha(0), TABLE.sigma(0)), rtol=1e-6)


def test_uniform_t():
    rows = grid(VP, 4)
    np.testing.assert_allclose(rows.t, [1, 0.75, 0.5, 0.25, 0])
    assert rows.alpha[-1] == 1 and rows.sigma[-1] == 0
    np.testing.assert_allclose(grid(VP, 2, 'uniform_t', t_start=0.6, t_end=0.2).t, [0.6, 0.4, 0.2], rtol=1e-6)
    np.testing.assert_array_equal(grid(TABLE, 10, 'uniform_t').t, grid(TABLE, 10, 'trailing').t)
    assert grid(VP, 2, dtype=np.float64).alpha.dtype == np.float64


def test_defaults():
    np.testing.assert_array_equal(grid(TABLE, 10).t, grid(TABLE, 10, 'leading').t)


@pytest.mark.parametrize('call, match', [
    (lambda: grid(TABLE, 0), 'steps.*0'),
    (lambda: grid(TABLE, 2.5), 'steps.*2.5'),
    (lambda: grid(VP, -1), 'steps.*-1'),
    (lambda: grid(TABLE, 1001), '1001.*1000'),
    (lambda: grid(TABLE, 51, max_steps=50), '51.*50.*max_steps'),
    (lambda: grid(VP, 51, max_steps=50), '51.*50.*max_steps'),
    (lambda: grid(TABLE, 10, 'karas'), "'karas'.*leading"),
    (lambda: grid(VP, 10, 'leading'), "'leading'.*discrete"),
    (lambda: grid(TABLE, 1000, 'leading', steps_offset=1), 'steps_offset.*1000'),
    (lambda: grid(VP, 10, t_start=0.1, t_end=0.5), 't_start'),
])
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
