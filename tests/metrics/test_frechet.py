"""Fréchet distances against closed forms and scipy's general matrix root; moments against numpy."""

import warnings

import numpy as np
import pytest
import scipy.linalg

from gen_jax.metrics.frechet import (
    Moments,
    add,
    covariance,
    empty,
    frechet,
    frechet_distance,
    merge,
    moments,
    sqrtm_psd,
)


def rotation(rng, d):
    return np.linalg.qr(rng.normal(size=(d, d)))[0]


def test_commuting_gaussians_have_a_closed_form():
    rng = np.random.default_rng(1)
    q, a, b = rotation(rng, 6), rng.uniform(0, 5, 6), rng.uniform(0, 5, 6)
    a[0] = b[1] = 0.0  # singular covariances
    mean1, mean2 = rng.normal(size=(2, 6))
    expected = np.square(mean1 - mean2).sum() + np.square(np.sqrt(a) - np.sqrt(b)).sum()
    value = frechet_distance(mean1, q * a @ q.T, mean2, q * b @ q.T)
    np.testing.assert_allclose(value, expected, rtol=1e-7)
    np.testing.assert_allclose(frechet_distance(mean2, q * b @ q.T, mean1, q * a @ q.T), value, rtol=1e-12)
    assert frechet_distance([0.0], [[4.0]], [3.0], [[1.0]]) == pytest.approx(9 + 1)


@pytest.mark.parametrize('d', [2, 10, 60])
def test_agrees_with_scipys_matrix_root(d):
    rng = np.random.default_rng(d)
    x, y = rng.normal(size=(3 * d, d)) @ rng.normal(size=(d, d)), 0.3 + rng.normal(size=(3 * d, d)) * 2
    c1, c2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(c1 @ c2)
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(c1 + c2 - 2 * np.real(root))
    np.testing.assert_allclose(frechet_distance(x.mean(0), c1, y.mean(0), c2), expected, rtol=1e-8)
    np.testing.assert_allclose(sqrtm_psd(c1), np.real(scipy.linalg.sqrtm(c1)), atol=1e-8 * np.abs(c1).max())


def test_singular_covariances_stay_real_and_exact():
    """Fewer examples than dimensions: where scipy's root of the product turns complex or fails."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(5, 40))
    same = frechet_distance(x.mean(0), np.cov(x, rowvar=False), x.mean(0), np.cov(x, rowvar=False))
    assert 0 <= same < 1e-6
    c = np.cov(x, rowvar=False)
    np.testing.assert_allclose(frechet_distance(np.zeros(40), c, np.zeros(40), 4 * c), np.trace(c), rtol=1e-6)
    assert frechet_distance(np.zeros(3), np.zeros((3, 3)), np.ones(3), np.zeros((3, 3))) == 3


def test_sqrtm_refuses_what_is_no_covariance():
    for matrix, message in ((np.diag([1.0, -0.1]), 'negative eigenvalue -0.1'),
                            (np.array([[1.0, 1], [0, 1]]), 'symmetric'), (np.array([[np.nan]]), 'finite')):
        with pytest.raises(ValueError, match=message):
            sqrtm_psd(matrix)
    assert sqrtm_psd(np.diag([1.0, -1e-13]))[1, 1] == 0


def test_streaming_moments_equal_numpy_far_from_the_origin():
    rng = np.random.default_rng(3)
    x = (1e5 + rng.normal(size=(500, 4)) @ rng.normal(size=(4, 4))).astype(np.float32)
    state, other = empty(4), empty(4)
    for chunk in np.split(x[:300], [1, 7, 7, 130]):
        state = add(state, chunk)
    for chunk in np.split(x[300:], [50]):
        other = add(other, chunk)
    exact = np.cov(x.astype(np.float64), rowvar=False)
    for both in (merge(state, other), merge(other, state), merge(merge(empty(4), state), other)):
        assert isinstance(both, Moments) and both.n == 500 and both.m2.dtype == np.float64
        np.testing.assert_allclose(both.mean, x.astype(np.float64).mean(0), rtol=1e-13)
        np.testing.assert_allclose(covariance(both), exact, rtol=0, atol=1e-9 * np.abs(exact).max())
    with pytest.raises(ValueError, match='2 of 3 examples are not finite'):
        moments(np.array([[0.0, np.nan], [np.inf, 0], [0, 0]]))


def test_metric_finds_the_distance_of_two_gaussians_and_warns_when_small():
    rng = np.random.default_rng(4)
    reference = rng.normal(size=(20000, 3))
    metric = frechet(lambda x: x, reference, key='features', recipe={'features': 'identity'})
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        result = metric.compute(metric.update(metric.init(), {'features': 2 + 3 * rng.normal(size=(20000, 3))}))
    np.testing.assert_allclose(result['frechet'], 3 * 4 + 3 * (3 - 1) ** 2, rtol=0.03)
    assert result['frechet_recipe'] == {'n': 20000, 'reference_n': 20000, 'dimension': 3, 'features': 'identity'}
    with pytest.warns(UserWarning, match='29 examples for features of dimension 3: the distance is biased upwards'):
        metric.compute(metric.update(metric.init(), {'features': rng.normal(size=(29, 3))}))
    with pytest.raises(ValueError, match='1 examples'):
        metric.compute(metric.update(metric.init(), {'features': np.zeros((1, 3))}))
    with pytest.raises(ValueError, match='the reference has 3'):
        metric.update(metric.init(), {'features': np.zeros((5, 4))})
