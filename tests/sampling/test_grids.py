"""Grids: indices by hand, padding, last levels and bad input."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import diffusion
from gen_jax.sampling import grid, grids

TABLE, VP = diffusion.discrete_ddpm(), diffusion.vp()
ZERO_SNR = diffusion.discrete_ddpm(zero_terminal_snr=True)
PROCESSES = {'table': TABLE, 'zero_snr': ZERO_SNR, 'vp': VP, 'sub_vp': diffusion.sub_vp(), 've': diffusion.ve(),
             'cosine': diffusion.cosine(), 'edm': diffusion.edm(), 'flow': diffusion.flow(),
             'shifted': diffusion.flow(3.0)}


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


def ratios_of(rows):
    return rows.sigma.astype(np.float64) / rows.alpha


@pytest.mark.parametrize('spacing', ['karras', 'exponential', 'log_snr', 'beta', 'uniform_t'])
@pytest.mark.parametrize('name', PROCESSES)
def test_every_spacing_on_every_process(name, spacing):
    """Noise falls strictly, (t, alpha, sigma) is one level of the process, and the end is the data."""
    process = PROCESSES[name]
    rows = grid(process, 12, spacing, max_steps=15, dtype=np.float64)
    alpha, sigma = rows.alpha[:13], rows.sigma[:13]
    assert np.all(np.isfinite([rows.t, rows.alpha, rows.sigma])) and np.all(np.diff(rows.t[:12]) < 0)
    assert np.all(sigma[1:] * alpha[:-1] < sigma[:-1] * alpha[1:])
    np.testing.assert_allclose(process.alpha(rows.t[:12]), alpha[:12], rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(process.sigma(rows.t[:12]), sigma[:12], rtol=1e-9)
    if spacing != 'uniform_t' or name not in ('ve', 'cosine'):  # where t = 0 is not quite the data
        assert (alpha[12], sigma[12]) == (1, 0) and rows.t[12] == (0 if process.steps is None else -1)
    np.testing.assert_array_equal([rows.t[13:], rows.alpha[13:], rows.sigma[13:]],
                                  np.tile([[a[12]] for a in (rows.t, rows.alpha, rows.sigma)], 3))
    np.testing.assert_array_equal(rows.last, 12)


@pytest.mark.parametrize('name', ['table', 'vp', 've', 'edm', 'flow'])
def test_spacings_in_noise(name):
    """The papers' formulas, in float64; the ends are exact."""
    process, (low, high) = PROCESSES[name], (0.02, 40.0)
    options = {'sigma_min': low, 'sigma_max': high, 'dtype': np.float64}
    i = np.arange(10)
    for rho in (7.0, 1.0, 3.5):
        want = (high ** (1 / rho) + i / 9 * (low ** (1 / rho) - high ** (1 / rho))) ** rho
        np.testing.assert_allclose(ratios_of(grid(process, 10, 'karras', rho=rho, **options)), [*want, 0], rtol=1e-9)
    log_snr = -2 * np.log(ratios_of(grid(process, 9, 'log_snr', final_sigmas_type='sigma_min', **options)))
    np.testing.assert_allclose(log_snr, np.linspace(-2 * np.log(high), -2 * np.log(low), 10), rtol=1e-9)
    exact = ratios_of(grid(process, 10, 'exponential', **options))
    np.testing.assert_allclose(exact[:10], high * (low / high) ** (i / 9), rtol=1e-9)
    ratios = ratios_of(grid(process, 3, 'beta', space='sigma', a=1.0, b=1.0, **options))  # Beta(1, 1) is uniform
    np.testing.assert_allclose(ratios, [high, (high + low) / 2, low, 0], rtol=1e-9)


def test_noise_range_of_the_process():
    for process in (TABLE, VP, PROCESSES['ve'], PROCESSES['edm']):
        want = [process.sigma(t) / process.alpha(t) for t in (process.t_max, process.t_min)]
        np.testing.assert_allclose(ratios_of(grid(process, 5, 'karras', dtype=np.float64))[[0, 4]], want, rtol=1e-9)
    # EDM's range where a process has none: flow at both ends, zero terminal SNR at its start
    np.testing.assert_allclose(ratios_of(grid(PROCESSES['flow'], 5, 'karras'))[[0, 4]], [80, 0.002], rtol=1e-5)
    np.testing.assert_allclose(ratios_of(grid(ZERO_SNR, 5, 'karras'))[0], 80, rtol=1e-5)
    # Karras et al. 2022, Table 1 on EDM, where t is sigma itself
    t = grid(PROCESSES['edm'], 18, 'karras').t
    np.testing.assert_allclose(t[[0, 1, 17, 18]], [80, 57.585985, 0.002, 0], rtol=1e-6)


def test_beta_in_time():
    """Quantiles of Beta(1/2, 1/2), the arcsine law, are sin^2: dense at both ends."""
    t = grid(TABLE, 9, 'beta', a=0.5, b=0.5, dtype=np.float64).t
    np.testing.assert_allclose(t, [*999 * np.sin(np.pi / 2 * np.linspace(1, 0, 9)) ** 2, -1], rtol=1e-9, atol=1e-9)
    t = grid(PROCESSES['flow'], 8, 'beta', a=0.5, b=0.5, dtype=np.float64).t  # t_min is the data: visited once
    np.testing.assert_allclose(t, np.sin(np.pi / 2 * np.linspace(1, 0, 9)) ** 2, rtol=1e-9, atol=1e-9)


def test_custom():
    same = grid(TABLE, 3, 'custom', times=[900, 450.5, 7], max_steps=4)
    np.testing.assert_allclose(same.t, [900, 450.5, 7, -1, -1])
    assert same.alpha[3] == 1 and same.sigma[3] == 0
    np.testing.assert_allclose(same.sigma[:3], TABLE.sigma(same.t[:3]), rtol=1e-6)
    ended = grid(TABLE, 2, 'custom', times=[900, 450.5, 7])
    assert ended.sigma[2] > 0 and ended.last[0] == 2
    sigmas = ratios_of(same)[:3]
    for values in (sigmas, [*sigmas, 0]):
        for got, want in zip(grid(TABLE, 3, 'custom', sigmas=values, max_steps=4), same, strict=True):
            np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(grid(PROCESSES['edm'], 2, 'custom', sigmas=[10, 1]).t, [10, 1, 0])
    np.testing.assert_allclose(grid(VP, 2, 'custom', times=[0.9, 0.1, 0.0]).t, [0.9, 0.1, 0.0], rtol=1e-6)


def test_one_program_for_all_spacings():
    traces = []

    @jax.jit
    def total(rows):
        traces.append(1)
        return jnp.sum(rows.sigma)

    for process in PROCESSES.values():
        for spacing, make in grids.SPACINGS.items():
            if process.steps is None and 'set_alpha_to_one' in inspect.signature(make).parameters:
                continue
            options = {'times': process.t_max * np.linspace(1, 0.5, 5)} if spacing == 'custom' else {}
            assert np.isfinite(total(grid(process, 5, spacing, max_steps=20, **options)))
    assert len(traces) == 1


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
    (lambda: grid(VP, 0, 'karras'), 'steps.*0'),
    (lambda: grid(VP, 51, 'karras', max_steps=50), '51.*50.*max_steps'),
    (lambda: grid(VP, 10, 'karras', rho=0), 'rho.*0'),
    (lambda: grid(VP, 10, 'karras', sigma_min=2.0, sigma_max=1.0), 'sigma_min=2.0.*sigma_max=1.0'),
    (lambda: grid(VP, 10, 'exponential', sigma_min=0.0), 'sigma_min=0.0'),
    (lambda: grid(TABLE, 10, 'karras', sigma_max=1e4), '10000.*keep'),
    (lambda: grid(VP, 10, 'karras', final_sigmas_type='one'), "'one'.*zero.*sigma_min"),
    (lambda: grid(VP, 10, 'karras', steps_offset=1), "'karras'.*'steps_offset'.*rho"),
    (lambda: grid(VP, 10, 'beta', a=-1.0), 'a=-1.0'),
    (lambda: grid(VP, 10, 'beta', space='x'), "'x'.*sigma"),
    (lambda: grid(VP, 10, 'beta', sigma_max=3.0), "space='sigma'"),
    (lambda: grid(VP, 2, 'custom'), 'either times or sigmas'),
    (lambda: grid(VP, 2, 'custom', times=[1.0, 0.5, 0.3, 0.1]), 'steps=2'),
    (lambda: grid(VP, 2, 'custom', times=[0.5, 1.0]), 'descending'),
    (lambda: grid(VP, 2, 'custom', times=[2.0, 1.0]), 'within.*1.0'),
    (lambda: grid(VP, 2, 'custom', times=[1.0, 0.0]), 'one level too many'),
])
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.parametrize('n', [10, 232, 500, 907])
def test_karras_reaches_both_ends_of_ncsns_sigmas(n):
    """Rounding in the inverse must not step over the ends, where a table of sigmas has the data."""
    process = diffusion.discrete_ve(sigma_max=50.0, sigma_min=0.01, n=n)
    rows = grid(process, 6, 'karras')
    np.testing.assert_allclose(rows.sigma[[0, -2, -1]], [50.0, 0.01, 0.0], rtol=1e-5)
