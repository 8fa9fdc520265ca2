"""Transforms: exact pixels, fixed randomness, refusals."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.data import transforms as T


def rng(*entropy):
    return np.random.default_rng(entropy)


def ramp(h, w, c=3):
    return np.arange(h * w * c, dtype=np.uint8).reshape(h, w, c)


@pytest.mark.parametrize('convert', [np.asarray, jnp.asarray], ids=['numpy', 'jax'])
def test_normalise_spans_the_range_and_inverts(convert):
    pixels = convert(np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1))
    x = T.normalise(pixels)
    assert x.dtype == np.float32 and isinstance(x, type(pixels))
    assert float(x.min()) == -1.0 and float(x.max()) == 1.0
    np.testing.assert_array_equal(T.to_uint8(x), pixels)
    np.testing.assert_array_equal(jax.jit(lambda p: T.to_uint8(T.normalise(p)))(jnp.asarray(pixels)), pixels)
    assert T.to_uint8(convert(np.float32([-7.0, 7.0, 0.0]))).tolist() == [0, 255, 128]


def test_normalise_refuses_what_is_normalised_already():
    with pytest.raises(ValueError, match='expected uint8 pixels, got float32'):
        T.normalise(np.zeros((2, 2), np.float32))
    with pytest.raises(ValueError, match='NaN'):
        T.to_uint8(np.float32([0.0, np.nan]))


def test_resize_shapes_and_antialiasing():
    image = np.zeros((8, 64, 3), np.uint8)
    image[:, ::2] = 255
    small = T.resize(4).apply({'image': image}, rng())['image']
    assert small.shape == (4, 32, 3)
    assert abs(small.astype(int)[:, 4:-4] - 128).max() <= 2, 'stripes must average, not alias'
    assert T.resize(5, mode='squash').apply({'image': image}, rng())['image'].shape == (5, 5, 3)
    assert T.resize(7).apply({'image': image[..., :1]}, rng())['image'].shape == (7, 56, 1)
    flat = np.full((9, 6, 3), (10, 20, 30), np.uint8)
    np.testing.assert_array_equal(T.resize(4).apply({'image': flat}, rng())['image'][0, 0], (10, 20, 30))


def test_crops_and_pad_are_exact():
    image = ramp(6, 8)
    np.testing.assert_array_equal(T.centre_crop(4).apply({'image': image}, rng())['image'], image[1:5, 2:6])
    padded = T.pad(10, value=7).apply({'image': image}, rng())['image']
    np.testing.assert_array_equal(padded[2:8, 1:9], image)
    assert (padded[:2] == 7).all() and (padded[:, 9:] == 7).all()
    corners = set()
    for i in range(200):
        window = T.random_crop(4).apply({'image': image}, rng(0, i))['image']
        top, left = divmod(int(window[0, 0, 0]) // 3, 8)
        np.testing.assert_array_equal(window, image[top:top + 4, left:left + 4])
        corners.add((top, left))
    assert corners == {(t, s) for t in range(3) for s in range(5)}


def test_flip_is_fair_fixed_and_shared_by_the_keys():
    image, mask = ramp(2, 3), ramp(2, 3, 1)
    flip = T.random_flip(keys=('image', 'mask'))
    flipped = 0
    for i in range(400):
        out = flip.apply({'image': image, 'mask': mask}, rng(5, i))
        again = flip.apply({'image': image, 'mask': mask}, rng(5, i))
        np.testing.assert_array_equal(out['image'], again['image'])
        turned = not np.array_equal(out['image'], image)
        np.testing.assert_array_equal(out['mask'], mask[:, ::-1] if turned else mask)
        flipped += turned
    assert 160 < flipped < 240
    np.testing.assert_array_equal(image, ramp(2, 3)), 'the given array must not be written'


def test_colours():
    image = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    grey = T.to_grey().apply({'image': image}, rng())['image']
    assert grey[..., 0].tolist() == [[76, 150, 29]]
    assert T.to_rgb().apply({'image': grey}, rng())['image'].tolist() == [[[v] * 3 for v in (76, 150, 29)]]
    assert T.to_grey().apply({'image': grey}, rng())['image'] is grey


class Letters:
    """A tokenizer."""

    fingerprint = {'tokenizer': 'letters'}

    def encode(self, text):
        return [ord(c) for c in text.ljust(4)[:4]]


def test_tokenize():
    transform = T.tokenize(Letters())
    out = transform.apply({'caption': 'ab', 'label': 1}, rng())
    assert out['tokens'].tolist() == [97, 98, 32, 32] and out['tokens'].dtype == np.int32 and 'caption' not in out
    many = T.tokenize(Letters(), key='captions')
    drawn = {chr(many.apply({'captions': ['a', 'b', 'c']}, rng(1, i))['tokens'][0]) for i in range(50)}
    assert drawn == {'a', 'b', 'c'}
    assert transform.spec['tokenizer'] == {'tokenizer': 'letters'}
    both = T.tokenize(lambda text: {'tokens': np.int32([1]), 'mask': np.bool_([True])})
    assert set(both.apply({'caption': 'ab'}, rng())) == {'tokens', 'mask'}
    for example in ({'label': 1}, {'caption': None}, {'caption': []}):
        with pytest.raises(ValueError, match='needs text.*metadata.jsonl'):
            transform.apply(example, rng())


def test_tokenize_with_hard_negatives():
    transform = T.tokenize(Letters(), key='text', exchange=(('a', 'b'), ['c', 'd']))
    out = transform.apply({'text': ['a'], 'label': 1}, rng())
    assert set(out) == {'tokens', 'negative_tokens', 'negative_valid', 'label'}
    assert out['tokens'][0] == ord('a') and out['negative_tokens'][0] == ord('b') and out['negative_valid'] == np.True_
    out = transform.apply({'text': 'e'}, rng())
    assert out['negative_tokens'].tolist() == [32] * 4 and not out['negative_valid']
    both = T.tokenize(lambda text: {'tokens': np.int32([len(text)]), 'mask': np.bool_([True])}, exchange=(('a', 'bc'),))
    out = both.apply({'caption': 'a'}, rng())
    assert set(out) == {'tokens', 'mask', 'negative_tokens', 'negative_mask', 'negative_valid'}
    assert out['negative_tokens'] == [2]
    assert transform.spec['exchange'] == [['a', 'b'], ['c', 'd']] and 'exchange' not in T.tokenize(Letters()).spec
    for wrong in ((), (('a',),), ('ab', ('a', 'b')), (('a', 'b'), ('b', 'c')), (('a', ''),), (('a', 3),)):
        with pytest.raises(ValueError, match='words'):
            T.tokenize(Letters(), exchange=wrong)


def test_geometry_refuses_to_leave_boxes_behind():
    example = {'image': ramp(4, 4), 'boxes': np.zeros((1, 4), np.float32)}
    for transform in (T.resize(2), T.random_flip(), T.centre_crop(2), T.pad(8)):
        with pytest.raises(ValueError, match="boxes.*keep"):
            transform.apply(example, rng())
    T.to_grey().apply(example, rng())


@pytest.mark.parametrize(('make', 'message'), [
    (lambda: T.resize(0), 'size=0 must be a positive integer'),
    (lambda: T.resize(4, mode='fill'), "mode='fill'.*shortest"),
    (lambda: T.random_flip(1.5), 'p=1.5'),
    (lambda: T.pad(4, value=300), 'value=300'),
    (lambda: T.centre_crop(9).apply({'image': ramp(6, 8)}, rng()), '6x8 is smaller than size=9.*resize'),
    (lambda: T.random_crop(7).apply({'image': ramp(6, 8)}, rng()), '6x8 is smaller'),
    (lambda: T.pad(4).apply({'image': ramp(6, 8)}, rng()), '6x8 is larger than size=4'),
    (lambda: T.to_grey().apply({'image': ramp(2, 2, 4)}, rng()), '1 or 3 channels'),
    (lambda: T.resize(4).apply({'label': 3}, rng()), "no 'image'"),
    (lambda: T.keep(['image', 'tokens']).apply({'image': 1}, rng()), 'tokens'),
])
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_specs_are_json_and_tell_settings_apart():
    made = [T.resize(8), T.resize(9), T.resize(8, mode='squash'), T.centre_crop(8), T.random_crop(8), T.random_flip(),
            T.random_flip(0.25), T.pad(8), T.pad(8, value=1), T.to_grey(), T.to_rgb(), T.keep(['image']),
            T.tokenize(Letters()), T.tokenize(Letters(), key='text'), T.random_flip(keys=('image', 'mask'))]
    assert len({json.dumps(t.spec, sort_keys=True) for t in made}) == len(made)
