"""folder:PATH: every common kind of picture to the same pixels, the imagefolder conventions, one error each."""

import json
import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from gen_jax.data.decode import decode_image
from gen_jax.data.ledger import CorruptItem
from gen_jax.data.pipeline import train_iterator
from gen_jax.data.sources import open_source


def scene(h=12, w=20):
    """A smooth RGB picture without symmetry."""
    y, x = np.mgrid[0:h, 0:w]
    return np.stack([x * 255 / (w - 1), y * 255 / (h - 1), (x + y) * 255 / (w + h - 2)], -1).astype(np.uint8)


def save(path, image=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = scene() if image is None else image
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def read(path, **options):
    return decode_image(path.read_bytes(), path, **options)


def close(a, b, tolerance):
    assert a.shape == b.shape and a.dtype == np.uint8
    assert np.abs(a.astype(int) - b).max() <= tolerance


@pytest.mark.parametrize(('suffix', 'options', 'tolerance'), [
    ('.png', {}, 0), ('.bmp', {}, 0), ('.webp', {'lossless': True}, 0), ('.jpg', {'quality': 95, 'subsampling': 0}, 8),
    ('.JPEG', {'quality': 95, 'subsampling': 0, 'progressive': True}, 8), ('.webp', {'quality': 95}, 16),
])
def test_formats(tmp_path, suffix, options, tolerance):
    path = save(tmp_path / f'x{suffix}', **options)
    close(read(path), scene(), tolerance)
    grey = np.asarray(Image.fromarray(scene()).convert('L'))[..., None]
    close(read(path, channels=1), grey, tolerance)


def test_grey_bilevel_and_16_bit(tmp_path):
    grey = scene()[..., 0]
    rgb = np.repeat(grey[..., None], 3, -1)
    close(read(save(tmp_path / 'l.png', grey)), rgb, 0)
    close(read(save(tmp_path / 'l.jpg', grey, quality=95)), rgb, 6)
    wide = grey.astype(np.uint16) * 257
    close(read(save(tmp_path / '16.png', wide)), rgb, 0)
    close(read(save(tmp_path / '16.png', wide), channels=1), rgb[..., :1], 0)
    close(read(save(tmp_path / '1.png', Image.fromarray(grey > 99))), np.where(rgb > 99, 255, 0), 0)


def rgb16_png(pixels):
    """A 16-bit RGB PNG, which Pillow reads and does not write."""
    h, w, _ = pixels.shape
    def chunk(name, data):
        return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in pixels)
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 16, 2, 0, 0, 0))
            + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b''))


def test_16_bit_rgb():
    close(decode_image(rgb16_png(scene().astype(np.uint16) * 257), 'x'), scene(), 0)


def test_palette_cmyk_and_gif(tmp_path):
    few = (scene() // 64 * 64).astype(np.uint8)
    quantized = Image.fromarray(few).quantize(256)
    close(read(save(tmp_path / 'p.png', quantized)), np.asarray(quantized.convert('RGB')), 0)
    close(read(save(tmp_path / 'p.png', quantized)), few, 8)
    frames = [Image.fromarray(np.full((5, 4, 3), v, np.uint8)) for v in (255, 0)]
    close(read(save(tmp_path / 'two.gif', frames[0], save_all=True, append_images=frames[1:])),
          np.full((5, 4, 3), 255), 0)
    cmyk = Image.fromarray(scene()).convert('CMYK')
    close(read(save(tmp_path / 'cmyk.jpg', cmyk, quality=95, subsampling=0)), scene(), 12)


def test_transparency_lies_over_the_background(tmp_path):
    alpha = np.zeros((12, 20), np.uint8)
    alpha[:, 5:10], alpha[:, 10:] = 128, 255
    weight = alpha[..., None] / 255
    for name, options in (('a.png', {}), ('a.webp', {'lossless': True, 'exact': True})):
        path = save(tmp_path / name, np.dstack([scene(), alpha]), **options)
        close(read(path), scene() * weight + 255 * (1 - weight), 1)
        close(read(path, background=(0, 10, 200)), scene() * weight + np.array([0, 10, 200]) * (1 - weight), 1)
    la = save(tmp_path / 'la.png', Image.fromarray(np.dstack([scene()[..., 0], alpha])))
    close(read(la, channels=1), scene()[..., :1] * weight + 255 * (1 - weight), 1)
    palette = Image.new('P', (4, 4), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((0, 0), 0)
    out = read(save(tmp_path / 'p.png', palette, transparency=1))
    assert out[0, 0].tolist() == [255, 0, 0] and out[1, 1].tolist() == [255, 255, 255]
    keyed = np.full((3, 3, 3), (9, 8, 7), np.uint8)
    keyed[0, 0] = (1, 2, 3)
    out = read(save(tmp_path / 'key.png', keyed, transparency=(1, 2, 3)))
    assert out[0, 0].tolist() == [255] * 3 and out[1, 1].tolist() == [9, 8, 7]


TURNED = {1: lambda x: x, 2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1],
          5: lambda x: x.swapaxes(0, 1), 6: lambda x: np.rot90(x, 1), 7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
          8: lambda x: np.rot90(x, -1)}


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation_is_undone(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(TURNED[orientation](scene()))
    close(read(save(tmp_path / 'x.png', stored, exif=exif)), scene(), 0)
    close(read(save(tmp_path / 'x.jpg', stored, exif=exif, quality=95, subsampling=0)), scene(), 8)


def test_damage_is_named(tmp_path):
    whole = save(tmp_path / 'x.png').read_bytes()
    jpeg = save(tmp_path / 'x.jpg', np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for data, reason in ((b'', 'empty file'), (b'hello', 'not a PNG'), (whole[:60], ''), (jpeg[:900], 'truncated'),
                         (bytes(flipped), ''), (b'%!PS-Adobe-3.0 EPSF-3.0\n', 'not a PNG')):
        with pytest.raises(CorruptItem, match=f'some/file.*{reason}'):
            decode_image(data, 'some/file')


def test_decompression_bombs_are_not_unpacked(tmp_path):
    path = save(tmp_path / 'bomb.png', Image.new('1', (9000, 9000)))
    assert path.stat().st_size < 30_000
    with pytest.raises(CorruptItem, match='9000 x 9000 is over the limit of 67108864 pixels.*max_pixels'):
        read(path)
    with pytest.raises(CorruptItem, match='12'):
        read(save(tmp_path / 'x.png'), max_pixels=239)
    read(tmp_path / 'x.png', max_pixels=240)
    huge = bytearray(rgb16_png(np.zeros((1, 1, 3), np.uint16)))
    huge[16:24] = struct.pack('>II', 60000, 60000)
    huge[29:33] = struct.pack('>I', zlib.crc32(bytes(huge[12:29])))
    with pytest.raises(CorruptItem):
        decode_image(bytes(huge), 'huge.png')


def classes(root, split='', names=('cat', 'dog'), n=3):
    for c, name in enumerate(names):
        for i in range(n):
            save(root / split / name / f'{i}.png', np.full((6, 8, 3), 40 * c + i, np.uint8))
    return root


def test_class_folders(tmp_path):
    classes(tmp_path, names=('dog', 'cat', 'owl/barn'))
    (tmp_path / '.hidden').mkdir()
    save(tmp_path / '.hidden' / 'x.png')
    (tmp_path / 'cat' / '.DS_Store').write_text('x')
    (tmp_path / 'cat' / 'notes.txt').write_text('x')
    source = open_source(f'folder:{tmp_path}')
    assert len(source) == 9
    assert source.info == {'image_shape': None, 'num_classes': 3, 'label_names': ['cat', 'dog', 'owl'], 'channels': 3}
    assert [int(source[i]['label']) for i in range(9)] == [0] * 3 + [1] * 3 + [2] * 3
    assert source[0]['label'].dtype == np.int32 and source[4]['image'][0, 0, 0] == 1
    with pytest.raises(IndexError):
        source[9]
    small = open_source(f'folder:{tmp_path}', image_size=4, channels=1)
    assert small.info['image_shape'] == small[0]['image'].shape == (4, 4, 1)


def test_split_folders_share_their_labels(tmp_path):
    classes(tmp_path, 'train', ('ant', 'bee', 'cow'))
    classes(tmp_path, 'val', ('cow',))
    source = open_source(f'folder:{tmp_path}', 'validation')
    assert source.info['label_names'] == ['ant', 'bee', 'cow'] and source[0]['label'] == 2
    assert len(open_source(f'folder:{tmp_path}')) == 9
    with pytest.raises(ValueError, match=r"no split 'test', only \['train', 'validation'\]"):
        open_source(f'folder:{tmp_path}', 'test')
    classes(tmp_path, '', ('dog',))
    with pytest.raises(ValueError, match=r"\['train', 'val'\] are named like splits and \['dog'\] like classes"):
        open_source(f'folder:{tmp_path}')


def describe(root, rows):
    root.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    (root / 'metadata.jsonl').write_text('\n'.join(lines) + '\n', encoding='utf-8')


def test_metadata(tmp_path):
    for name in ('b.png', 'sub/a.png'):
        save(tmp_path / name)
    describe(tmp_path, [{'file_name': 'sub/a.png', 'text': 'naïve \u2028 art', 'score': 1, 'n': 3, 'label': 'z'}, '',
                        {'file_name': 'b.png', 'text': 'b', 'score': 0.5, 'n': 4, 'label': 'y'}])
    source = open_source(f'folder:{tmp_path}')
    first, second = source[0], source[1]
    assert first['caption'] == 'b' and second['caption'] == 'naïve \u2028 art'
    assert (first['label'], second['label'], source.info['label_names']) == (0, 1, ['y', 'z'])
    assert second['score'] == 1 and second['score'].dtype == np.float32 and first['n'].dtype == np.int32
    with train_iterator(source, batch_size=2, seed=0) as batches:
        assert sorted(next(batches)['caption']) == ['b', 'naïve \u2028 art']


def test_metadata_in_each_split(tmp_path):
    for split, label in (('train', 'x'), ('test', 'w')):
        save(tmp_path / split / 'a.png')
        describe(tmp_path / split, [{'file_name': 'a.png', 'caption': split, 'label': label}])
    source = open_source(f'folder:{tmp_path}', 'test')
    assert source[0]['caption'] == 'test' and source[0]['label'] == 0
    assert open_source(f'folder:{tmp_path}')[0]['label'] == 1


@pytest.mark.parametrize(('rows', 'message'), [
    ([{'file_name': 'a.png'}, '{"file_name": '], 'metadata.jsonl, line 2: not JSON'),
    ([{'caption': 'x'}], 'line 1: no "file_name"'),
    (['[1, 2]'], 'line 1: no "file_name"'),
    ([{'file_name': '../secret.png'}], "line 1: file_name '../secret.png' leaves the folder"),
    ([{'file_name': '/etc/secret.png'}], 'leaves the folder'),
    ([{'file_name': 'sub/../../secret.png'}], 'leaves the folder'),
    ([{'file_name': 'a.png'}, {'file_name': 'gone.png'}], 'line 2: there is no file .*gone.png'),
    ([{'file_name': 'a.png'}, {'file_name': 'a.png'}], 'line 2: .* has a line already'),
    ([{'file_name': 'a.png', 'caption': 'x'}, {'file_name': 'b.png'}], 'line 2: its columns .* differ'),
    ([{'file_name': 'a.png'}], '1 images have no line in metadata.jsonl, the first: b.png'),
    ([{'file_name': 'a.png', 'label': 1}, {'file_name': 'b.png', 'label': 'x'}], 'line 2: column .label. holds text'),
    ([{'file_name': 'a.png', 'label': -1}, {'file_name': 'b.png', 'label': 1}], 'all names or all integers'),
    ([{'file_name': 'a.png', 'id': 1}, {'file_name': 'b.png', 'id': 2**40}], "column 'id': 1099511627776"),
])
def test_bad_metadata_is_named(tmp_path, rows, message):
    root = tmp_path / 'data'
    save(tmp_path / 'secret.png')
    save(root / 'a.png')
    save(root / 'b.png')
    describe(root, rows)
    with pytest.raises(ValueError, match=message):
        open_source(f'folder:{root}')


def test_folders_without_pictures(tmp_path):
    with pytest.raises(ValueError, match='there is no such folder'):
        open_source(f'folder:{tmp_path}/nowhere')
    with pytest.raises(ValueError, match=r'no images in .*\(looked for .png, .*it is empty'):
        open_source(f'folder:{tmp_path}')
    (tmp_path / 'a.svg').write_text('x')
    with pytest.raises(ValueError, match="the files there end in {'.svg': 1}"):
        open_source(f'folder:{tmp_path}')
    (tmp_path / 'a.png').write_text('x')
    (tmp_path / 'b.png').write_text('x')
    with pytest.raises(ValueError, match='none of the 2 images can be decoded; the first: .*a.png: not a PNG'):
        open_source(f'folder:{tmp_path}')
    save(tmp_path / 'c.png')
    assert len(open_source(f'folder:{tmp_path}')) == 3
    save(tmp_path / 'd' / 'e.png')
    with pytest.raises(ValueError, match='3 images lie beside the class folders, the first: a.png'):
        open_source(f'folder:{tmp_path}')


def test_csv_metadata_is_not_passed_over(tmp_path):
    save(tmp_path / 'a.png')
    (tmp_path / 'metadata.csv').write_text('file_name,text\na.png,x\n')
    with pytest.raises(ValueError, match='metadata.csv.*only metadata.jsonl'):
        open_source(f'folder:{tmp_path}')


@pytest.mark.parametrize('options', [{'channels': 4}, {'image_size': 0}, {'max_pixels': -1}, {'background': (1, 2)}])
def test_bad_options(tmp_path, options):
    with pytest.raises(ValueError, match=f'{next(iter(options))}='):
        open_source(f'folder:{classes(tmp_path)}', **options)


def test_corrupt_files_are_replaced_and_named(tmp_path):
    root = classes(tmp_path / 'data', n=4)
    settings = {'batch_size': 8, 'seed': 2}
    with train_iterator(open_source(f'folder:{root}'), **settings) as batches:
        clean = [next(batches) for _ in range(3)]
    victim = root / 'cat' / '2.png'
    victim.write_bytes(victim.read_bytes()[:50])
    with train_iterator(open_source(f'folder:{root}'), **settings, ledger=tmp_path / 'corrupt.jsonl') as batches:
        found = [next(batches) for _ in range(3)]
        assert batches.corrupt_count == 1
    for old, new in zip(clean, found, strict=True):
        hit = old['image'][:, 0, 0, 0] == 2
        assert hit.sum() == 1
        np.testing.assert_array_equal(old['image'][~hit], new['image'][~hit])
    entry, = map(json.loads, (tmp_path / 'corrupt.jsonl').read_text().splitlines())
    assert entry['path'] == str(victim) and entry['reason'] and entry['index'] == 2 and entry['step'] == 0


def test_a_lost_file_stops_the_run(tmp_path):
    source = open_source(f'folder:{classes(tmp_path)}')
    (tmp_path / 'cat' / '1.png').unlink()
    with pytest.raises(FileNotFoundError, match='1.png'):
        source[1]


def test_fingerprint(tmp_path):
    def now(**options):
        return open_source(f'folder:{tmp_path}/data', **options).fingerprint

    classes(tmp_path / 'data')
    old = json.loads(json.dumps(now()))
    shutil.copytree(tmp_path / 'data', tmp_path / 'copy')  # new times, another place
    assert open_source(f'folder:{tmp_path}/copy').fingerprint == old
    assert now(image_size=8) != old and now(channels=1) != old and now(background=(0, 0, 0)) != old
    (tmp_path / 'data' / 'cat' / '1.png').rename(tmp_path / 'data' / 'cat' / '9.png')
    assert now() != old
    (tmp_path / 'data' / 'cat' / '9.png').rename(tmp_path / 'data' / 'cat' / '1.png')
    assert now() == old
    with (tmp_path / 'data' / 'cat' / '1.png').open('ab') as file:
        file.write(b'x')
    assert now() != old
