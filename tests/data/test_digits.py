import numpy as np
import pytest
from sklearn.datasets import load_digits

from gen_jax.data.digits import digits, digits_levels


def stacked(split, image_size=8):
    source = digits(split, image_size)
    examples = [source[i] for i in range(len(source))]
    return np.stack([e['image'] for e in examples]), np.array([e['label'] for e in examples])


def test_splits_partition_the_data():
    (train, train_labels), (test, test_labels) = stacked('train'), stacked('test')
    assert train.shape == (1500, 8, 8, 1) and test.shape == (297, 8, 8, 1) and train.dtype == np.uint8
    real = load_digits()
    ours = sorted((row.tobytes(), label) for row, label in
                  zip(digits_levels(np.concatenate([train, test])).astype(np.uint8),
                      np.concatenate([train_labels, test_labels]), strict=True))
    assert ours == sorted((row.astype(np.uint8).tobytes(), label) for row, label in
                          zip(real.images, real.target, strict=True))
    order = np.random.default_rng(0).permutation(1797)  # the split that the published Fréchet scale rests on
    np.testing.assert_array_equal(test_labels, real.target[order[1500:]])
    assert not {row.tobytes() for row in train} & {row.tobytes() for row in test}


def test_levels_spread_over_the_range():
    images, _ = stacked('train')
    assert images.min() == 0 and images.max() == 255
    assert set(np.unique(images)) == {round(level * 255 / 16) for level in range(17)}


@pytest.mark.parametrize('image_size', [16, 32])
def test_block_means_of_larger_digits_are_the_originals(image_size):
    small, labels = stacked('test')
    large, same_labels = stacked('test', image_size)
    assert large.shape == (297, image_size, image_size, 1) and large.dtype == np.uint8
    k = image_size // 8
    means = large.reshape(297, 8, k, 8, k).mean((2, 4))
    assert np.abs(means - small[..., 0]).max() <= 0.6
    np.testing.assert_array_equal(labels, same_labels)
    np.testing.assert_array_equal(digits_levels(large), digits_levels(small))
    # Interpolated, not repeated: neighbours within a block differ.
    assert (large[:, ::k] != large[:, 1::k]).mean() > 0.2


def test_levels_from_the_floats_of_a_model():
    images, _ = stacked('test', 16)
    floats = images.astype(np.float32) / 127.5 - 1
    np.testing.assert_array_equal(digits_levels(floats), digits_levels(images))
    np.testing.assert_array_equal(digits_levels(floats[3]), digits_levels(images[3]))
    assert digits_levels(np.full((16, 16, 1), 1.7)).max() == 16


def test_source_contract():
    source = digits('test', 16)
    assert source.info == {'image_shape': (16, 16, 1), 'num_classes': 10, 'channels': 1,
                           'label_names': list('0123456789')}
    assert source.fingerprint == digits('test', 16).fingerprint != digits('train', 16).fingerprint
    assert source.fingerprint != digits('test', 8).fingerprint
    assert source[0]['label'].dtype == np.int32
    source[0]['image'][:] = 7  # a caller's scribbling must not reach the source
    assert (source[0]['image'] != 7).any()
    with pytest.raises(IndexError, match='297'):
        source[297]


def test_bad_input():
    with pytest.raises(ValueError, match="'val'.*'train' or 'test'"):
        digits('val')
    with pytest.raises(ValueError, match='28.*8, 16, 32'):
        digits('train', 28)
    with pytest.raises(ValueError, match=r'\(12, 12, 1\)'):
        digits_levels(np.zeros((12, 12, 1), np.uint8))
    with pytest.raises(ValueError, match='int64'):
        digits_levels(np.zeros((8, 8, 1), np.int64))
    with pytest.raises(ValueError, match='NaN'):
        digits_levels(np.full((8, 8, 1), np.nan))
