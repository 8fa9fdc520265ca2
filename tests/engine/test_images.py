"""Grids land pixel for pixel where they should; PNG files are whole or absent."""

import numpy as np
import pytest
from PIL import Image

from gen_jax.engine.images import grid, save_png, to_uint8


def test_grid_places_every_pixel():
    images = np.arange(5 * 2 * 3 * 3, dtype=np.uint8).reshape(5, 2, 3, 3)
    out = grid(images, columns=2, scale=2, pad=1, fill=7)
    assert out.shape == (3 * (4 + 1) + 1, 2 * (6 + 1) + 1, 3) and out.dtype == np.uint8
    covered = np.zeros(out.shape, bool)
    for k in range(5):
        top, left = 1 + (k // 2) * 5, 1 + (k % 2) * 7
        tile = out[top:top + 4, left:left + 6]
        np.testing.assert_array_equal(tile[::2, ::2], images[k])
        np.testing.assert_array_equal(tile[1::2, 1::2], images[k])
        covered[top:top + 4, left:left + 6] = True
    assert (out[~covered] == 7).all()


def test_grid_defaults_to_the_squarest_and_labels_rows():
    images = np.full((9, 8, 8, 1), 50, np.uint8)
    plain = grid(images)
    assert plain.shape == (28, 28, 1)
    labelled = grid(images, scale=3, rows=['a', 'bb', 'wide label'])
    bare = grid(images, scale=3)
    np.testing.assert_array_equal(labelled[:, -bare.shape[1]:], bare)
    margin = labelled[:, :-bare.shape[1], 0]
    assert all(margin[i * 25:(i + 1) * 25].max() > 128 for i in range(3)), 'every row shows its label'


@pytest.mark.parametrize('bad, message', [
    (dict(images=np.zeros((2, 4, 4, 1), np.float32)), 'to_uint8'),
    (dict(images=np.zeros((2, 4, 4), np.uint8)), 'expected uint8'),
    (dict(images=np.zeros((0, 4, 4, 1), np.uint8)), 'no images'),
    (dict(images=np.zeros((2, 4, 4, 1), np.uint8), columns=0), 'columns=0'),
    (dict(images=np.zeros((2, 4, 4, 1), np.uint8), columns=1, rows=['x']), '1 row labels for 2 rows'),
])
def test_grid_refuses(bad, message):
    with pytest.raises(ValueError, match=message):
        grid(**bad)


def test_to_uint8_rounds_and_inverts_normalisation():
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_uint8(every / 127.5 - 1), every)
    np.testing.assert_array_equal(to_uint8(np.float32([-3, -1, 0, 1, 3])), [0, 0, 128, 255, 255])
    assert to_uint8(every) is every
    with pytest.raises(ValueError, match='1 of 2 pixels are not finite'):
        to_uint8(np.float32([0, np.nan]))
    with pytest.raises(ValueError, match='int64'):
        to_uint8(np.int64([1]))


@pytest.mark.parametrize('shape', [(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4)])
def test_png_round_trip(tmp_path, shape):
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    path = save_png(tmp_path / 'deep' / 'a.png', image)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), image.squeeze(-1) if shape[-1] == 1 else image)
    assert [p.name for p in path.parent.iterdir()] == ['a.png']


def test_png_is_whole_or_absent(tmp_path, monkeypatch):
    path = save_png(tmp_path / 'a.png', np.zeros((4, 4, 1), np.uint8))
    before = path.read_bytes()

    def torn(self, file, **kwargs):
        with open(file, 'wb') as f:
            f.write(b'\x89PNG')
        raise OSError('disk full')

    monkeypatch.setattr(Image.Image, 'save', torn)
    with pytest.raises(OSError, match='disk full'):
        save_png(path, np.ones((4, 4, 1), np.uint8))
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ValueError, match='float32'):
        save_png(tmp_path / 'b.png', np.zeros((4, 4), np.float32))
