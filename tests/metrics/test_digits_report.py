"""The judge of digits: published reference points, cheats that must show, sizes, merging and bad input."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from gen_jax.metrics import digits_report
from gen_jax.metrics.digits import PUBLISHED, calibrate, make_judge, to_levels


@pytest.fixture(scope='module')
def real():
    bunch = load_digits()
    images, labels = np.rint(bunch.images * 255 / 16).astype(np.uint8)[..., None], bunch.target
    order = np.random.default_rng(0).permutation(1797)
    train, test = order[:1500], order[1500:]
    return images[train], labels[train], images[test], labels[test]


@pytest.fixture(scope='module')
def metric(real):
    return digits_report(*real)


def score(metric, images, labels=None):
    outputs = {'image': images} if labels is None else {'image': images, 'label': labels}
    return metric.compute(metric.update(metric.init(), outputs))


def test_reference_points_are_the_published_ones(real):
    found = calibrate(*real)
    assert found.keys() == PUBLISHED.keys()
    for name, value in PUBLISHED.items():
        assert found[name] == pytest.approx(value, abs=0.006), name


def test_real_digits_score_well_and_every_cheat_shows(real, metric):
    train_images, train_labels, test_images, test_labels = real
    train = score(metric, train_images, train_labels)
    assert train['accuracy'] > 0.999 and train['frechet'] == pytest.approx(0.99, abs=0.006)
    assert train['nearest_train'] == 0 and train['nearest_train_heldout'] == pytest.approx(16.34, abs=0.01)
    heldout = score(metric, test_images, test_labels)
    assert heldout['frechet'] < 1e-9 and heldout['accuracy'] == heldout['accuracy_heldout'] > 0.97
    assert heldout['nearest_train'] == heldout['nearest_train_heldout']
    first = np.array([np.flatnonzero(train_labels == c)[0] for c in range(10)]).repeat(30)
    copies = score(metric, train_images[first], train_labels[first])
    assert copies['accuracy'] == 1 and copies['frechet'] > 8 and copies['nearest_train'] == 0
    assert copies['class_fraction_min'] == pytest.approx(0.1) == copies['class_fraction'][3]
    collapsed = score(metric, train_images[train_labels == 3])
    assert 'accuracy' not in collapsed and collapsed['class_fraction_min'] == 0 and collapsed['frechet'] > 20
    noise = score(metric, np.random.default_rng(0).integers(0, 256, (300, 8, 8, 1), dtype=np.uint8))
    assert noise['frechet'] > 5 and noise['nearest_train'] > 30
    recipe = train['digits_recipe']
    assert (recipe['n'], recipe['train_n'], recipe['heldout_n']) == (1500, 1500, 297)


def test_merge_and_batches_do_not_matter(real, metric):
    _, _, images, labels = real
    whole = score(metric, images, labels)
    parts = [metric.update(metric.init(), {'image': images[a:b], 'label': labels[a:b]})
             for a, b in ((0, 1), (1, 150), (150, 150), (150, 297))]
    state = metric.init()
    for part in parts[::-1]:
        state = metric.merge(part, state)
    result = metric.compute(state)
    assert result['class_fraction'] == whole['class_fraction']
    for name in ('accuracy', 'nearest_train', 'frechet'):
        assert result[name] == pytest.approx(whole[name], abs=1e-9), name


@pytest.mark.parametrize('size', [8, 16, 32])
@pytest.mark.parametrize('kind', [np.uint8, np.float32])
def test_levels_survive_size_and_dtype(real, size, kind):
    images = real[2][:50].repeat(size // 8, 1).repeat(size // 8, 2)
    if kind == np.float32:
        images = (images / 127.5 - 1).astype(np.float32)
        images = np.where(images == 1, 1.7, images)  # overshoot is clipped
    expected = load_digits().data[np.random.default_rng(0).permutation(1797)[1500:1550]]
    np.testing.assert_array_equal(to_levels(images), expected)


def test_areas_are_averaged():
    images = np.zeros((1, 16, 16, 1), np.uint8)
    images[0, 0, 0], images[0, 0, 1] = 255, 255  # half of the first block
    levels = to_levels(images)[0]
    assert levels[0] == 8 and (levels[1:] == 0).all()


def test_nearest_is_a_brute_force_distance(real):
    judge = make_judge(*real)
    levels = to_levels(real[2][:20])
    brute = np.sqrt(np.square(levels[:, None] - judge.train[None]).sum(-1)).min(1)
    np.testing.assert_allclose(judge.nearest(levels), brute, rtol=1e-12)
    assert make_judge(*real) is judge, 'trained once'


@pytest.mark.parametrize('images, message', [
    (np.zeros((3, 12, 12, 1), np.uint8), 'multiple of 8'), (np.zeros((3, 8, 8, 3), np.uint8), 'grey'),
    (np.zeros((3, 8, 8, 1), np.int32), 'int32'), (np.full((3, 8, 8, 1), np.nan, np.float32), '3 of 3 images'),
])
def test_bad_images(metric, images, message):
    with pytest.raises(ValueError, match=message):
        metric.update(metric.init(), {'image': images})


def test_other_bad_input(real, metric):
    images, labels, test_images, test_labels = real
    with pytest.raises(ValueError, match=r'expected all of 0..9'):
        make_judge(images[labels != 4], labels[labels != 4], test_images, test_labels)
    with pytest.raises(ValueError, match='test: 297 images but labels of shape'):
        make_judge(images, labels, test_images, test_labels[:5])
    with pytest.raises(ValueError, match='0 examples'):
        metric.compute(metric.init())
    with pytest.raises(ValueError, match='has shape'):
        metric.update(metric.init(), {'image': test_images[:3], 'label': test_labels[:2]})
    half = metric.update(metric.init(), {'image': test_images[:200], 'label': test_labels[:200]})
    with pytest.raises(ValueError, match='only 200 of 297'):
        metric.compute(metric.update(half, {'image': test_images[200:]}))
