"""Means, bins, PSNR and accuracy against numpy, and the one table: every metric merges and splits alike."""

import json
import warnings

import jax
import numpy as np
import pytest

from gen_jax import metrics
from gen_jax.metrics import binned, frechet, mean, psnr, scenes, zero_shot_accuracy

RNG = np.random.default_rng(0)
N = 101
OUTPUTS = {
    'loss': (1e6 + RNG.normal(size=(N, 3))).astype(np.float32), 't': RNG.uniform(size=(N, 3)),
    'image': RNG.integers(0, 256, (N, 4, 4, 1), dtype=np.uint8),
    'reconstruction': RNG.uniform(-1, 1, (N, 4, 4, 1)).astype(np.float32),
    'logits': RNG.normal(size=(N, 7)).astype(np.float32), 'label': RNG.integers(0, 7, N),
    **{k: RNG.integers(-1, 2, (N, 2)) for k in ('shapes', 'colours', 'sizes')},
}
REFERENCE = RNG.normal(size=(400, 16))
TABLE = {
    'mean': lambda: mean('loss'),
    'binned': lambda: binned('loss', 't', bins=4),
    'psnr': lambda: psnr(),
    'zero_shot_accuracy': lambda: zero_shot_accuracy(top=(1, 5)),
    'scenes': lambda: scenes(lambda image, objects: {
        part: bool(image[0, 0, 0] % 3 != i % 2) and len(objects) > i % 2
        for i, part in enumerate(('all', 'count', 'colour', 'shape', 'size'))}),
    'frechet': lambda: frechet(lambda x: x.reshape(len(x), -1) / 255.0, REFERENCE),
}


def rows(start, stop):
    return {k: v[start:stop] for k, v in OUTPUTS.items()}


def floats(result):
    return {k: v for k, v in result.items() if isinstance(v, float)}


def run(metric, *cuts):
    state = metric.init()
    for a, b in zip((0, *cuts), (*cuts, N), strict=True):
        state = metric.update(state, rows(a, b))
    return state


def test_table_is_complete():
    assert set(TABLE) | {'digits_report'} == set(metrics.__all__)  # digits_report: test_digits_report.py


@pytest.mark.parametrize('name', TABLE)
@pytest.mark.filterwarnings('ignore:.*biased upwards')
def test_every_metric_is_invariant_to_batches_and_merges(name):
    metric = TABLE[name]()
    whole = metric.compute(run(metric))
    assert floats(whole), 'gives numbers'
    recipe = [v for k, v in whole.items() if k.endswith('recipe')]
    assert len(recipe) == 1 and recipe[0]['n'] in (N, 3 * N)
    json.dumps(whole, allow_nan=False)
    a, b, c = (metric.update(metric.init(), rows(*cut)) for cut in ((0, 7), (7, 50), (50, N)))
    merged = [metric.merge(metric.merge(a, b), c), metric.merge(a, metric.merge(b, c)),
              metric.merge(c, metric.merge(b, a)), run(metric, 1, 1, 2, 90),
              metric.merge(metric.merge(metric.init(), run(metric)), metric.init())]
    for state in merged:
        result = metric.compute(state)
        assert floats(result).keys() == floats(whole).keys()
        for key, value in floats(whole).items():
            np.testing.assert_allclose(result[key], value, rtol=1e-9, err_msg=key)
    assert all(np.asarray(leaf).dtype == np.float64 for leaf in jax.tree.leaves(run(metric)))


@pytest.mark.parametrize('name', TABLE)
def test_no_examples_and_missing_outputs_are_errors(name):
    metric = TABLE[name]()
    with pytest.raises(ValueError, match='no examples|no images|0 examples'):
        metric.compute(metric.init())
    with pytest.raises(ValueError, match=r"but the outputs hold \['other'\]"):
        metric.update(metric.init(), {'other': np.zeros(3)})


def test_mean_and_its_error():
    values = OUTPUTS['loss'].astype(np.float64).mean(1)
    result = mean('loss', name='held_out').compute(run(mean('loss', name='held_out')))
    np.testing.assert_allclose(result['held_out'], values.mean(), rtol=1e-13)
    # A sum of squares would have lost all digits here: the mean is 1e6 times the deviation.
    np.testing.assert_allclose(result['held_out_stderr'], values.std(ddof=1) / np.sqrt(N), rtol=1e-6)
    one = mean('x').compute(mean('x').update(mean('x').init(), {'x': np.ones(1)}))
    assert one['x'] == 1 and np.isnan(one['x_stderr'])
    bad = mean('x').compute(mean('x').update(mean('x').init(), {'x': np.array([1, np.nan])}))
    assert np.isnan(bad['x'])
    with pytest.raises(ValueError, match='scalar'):
        mean('x').update(mean('x').init(), {'x': np.float32(1)})


def test_binned():
    metric = binned('loss', 't', edges=[0, 0.1, 0.5, 1.0])
    result = metric.compute(run(metric, 30))
    loss, t = OUTPUTS['loss'].astype(np.float64).ravel(), OUTPUTS['t'].ravel()
    np.testing.assert_allclose(result['loss_t_0.1_0.5'], loss[(t >= 0.1) & (t < 0.5)].mean(), rtol=1e-12)
    assert result['loss_t_recipe']['counts'][0] == (t < 0.1).sum() and result['loss_t_recipe']['n'] == 3 * N
    edge = {'l': np.arange(4.0), 'b': np.array([0.0, 0.5, 0.5, 1.0])}
    two = binned('l', 'b', bins=2)
    assert floats(two.compute(two.update(two.init(), edge))) == {'l_b_0_0.5': 0.0, 'l_b_0.5_1': 2.0}
    empty = binned('l', 'b', edges=[-np.inf, -1, np.inf])
    assert list(floats(empty.compute(empty.update(empty.init(), edge)))) == ['l_b_-1_inf'], 'empty bins are absent'
    for bad in (1.01, -0.01, np.nan):
        with pytest.raises(ValueError, match='lies outside the edges'):
            two.update(two.init(), {'l': np.zeros(1), 'b': np.array([bad])})
    with pytest.raises(ValueError, match='must be equal'):
        two.update(two.init(), {'l': np.zeros(2), 'b': np.zeros((2, 1))})


@pytest.mark.parametrize('arguments', [{}, {'edges': [0, 1], 'bins': 2}, {'edges': [0]}, {'edges': [0, 0]},
                                       {'bins': 0}])
def test_binned_refuses(arguments):
    with pytest.raises(ValueError, match='binned'):
        binned('a', 'b', **arguments)


def test_psnr_closed_form():
    metric = psnr('a', 'b')
    black, off = np.zeros((2, 3, 3, 1), np.uint8), np.full((2, 3, 3, 1), 5, np.uint8)
    off[1] = 50
    value = metric.compute(metric.update(metric.init(), {'a': black, 'b': off}))['psnr']
    np.testing.assert_allclose(value, np.mean([20 * np.log10(255 / 5), 20 * np.log10(255 / 50)]), rtol=1e-12)
    as_float = {'a': np.full(black.shape, -1.5), 'b': off}  # clipped to black, compared with uint8
    np.testing.assert_allclose(metric.compute(metric.update(metric.init(), as_float))['psnr'], value, rtol=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        state = metric.update(metric.update(metric.init(), {'a': off, 'b': off}), {'a': black, 'b': off})
        assert metric.compute(state)['psnr'] == np.inf
    with pytest.raises(ValueError, match='int32'):
        metric.update(metric.init(), {'a': black, 'b': black.astype(np.int32)})
    with pytest.raises(ValueError, match='must be equal'):
        metric.update(metric.init(), {'a': black, 'b': black[:1]})


def test_accuracy_counts_ranks_and_punishes_ties():
    metric = zero_shot_accuracy(top=(1, 2))
    logits = np.array([[3.0, 2, 1], [3, 2, 1], [3, 2, 1], [1, 1, 1]])
    result = metric.compute(metric.update(metric.init(), {'logits': logits, 'label': np.array([0, 1, 2, 0])}))
    assert (result['zero_shot_accuracy'], result['zero_shot_accuracy_top2']) == (0.25, 0.5)
    np.testing.assert_allclose(result['zero_shot_accuracy_stderr'], np.sqrt(0.25 * 0.75 / 4))
    for bad, message in ((np.full((1, 3), np.nan), 'NaN'), (np.zeros((1, 2, 3)), r'expected \[B, K\]')):
        with pytest.raises(ValueError, match=message):
            metric.update(metric.init(), {'logits': bad, 'label': np.zeros(1, int)})
    with pytest.raises(ValueError, match='labels span 3..3'):
        metric.update(metric.init(), {'logits': logits[:1], 'label': np.array([3])})
    with pytest.raises(ValueError, match='top'):
        zero_shot_accuracy(top=(0,))
