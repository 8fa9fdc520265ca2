"""A few good pictures and some 580 ways to break them, all from fixed seeds; and a child process that reads them.

    python tests/data/mutations.py FOLDER     prints the number of each item before it is read, then one JSON object
"""

import io
import json
import resource
import struct
import sys
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image


class Mutant(NamedTuple):
    """A file of the broken folder and the file of the same name in the clean one."""

    name: str
    clean: bytes
    broken: bytes
    kind: str
    """'good' (unchanged), 'refused' (must be corrupt), 'whole' (corrupt, or the clean picture), 'any'."""


def picture(seed, height=20, width=24):
    """Smooth colours and a little noise: no two alike, and every byte matters."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x * rng.uniform(0.1, 0.9) + y * rng.uniform(0.1, 0.9)) for _ in range(3)]
    noisy = 127 + 100 * np.stack(waves, -1) + rng.normal(0, 9, (height, width, 3))
    return noisy.clip(0, 255).astype(np.uint8)


def encode(image, kind, **options):
    """The bytes of an image (array or PIL) in a Pillow format."""
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, kind, **options)
    return out.getvalue()


def chunk(name, data):
    """A PNG chunk with its checksum."""
    return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))


ENCODINGS = {
    'png': ('.png', 'PNG', {}), 'jpg': ('.jpg', 'JPEG', {'quality': 90}),
    'progressive': ('.JPG', 'JPEG', {'quality': 90, 'progressive': True}), 'gif': ('.gif', 'GIF', {}),
    'bmp': ('.bmp', 'BMP', {}), 'webp': ('.webp', 'WEBP', {'quality': 90}),
    'lossless': ('.webp', 'WEBP', {'lossless': True}), 'tif': ('.tif', 'TIFF', {}),
    'lzw': ('.tiff', 'TIFF', {'compression': 'tiff_lzw'}),
}


def flipped(data, rng, count, stop=None):
    """`count` bytes changed, among the first `stop`."""
    out = bytearray(data)
    for at in rng.integers(0, min(stop or len(out), len(out)), count):
        out[at] ^= int(rng.integers(1, 256))
    return bytes(out)


def damages(data, encoding, rng):
    """(kind, bytes) of 57 damages to one file."""
    n = len(data)
    yield 'refused', b''
    yield 'refused', bytes(n)
    yield 'refused', rng.bytes(n)
    yield from (('refused', data[:at]) for at in rng.integers(0, 12, 3))
    # A cut may spare the pixels, and takes them where the decoder says nothing (a GIF's last rows); PNG has checksums.
    sure = encoding in ('png', 'bmp', 'lossless')
    yield from (('whole' if sure else 'any', data[:at]) for at in rng.integers(12, n, 9))
    yield from (('whole' if encoding == 'png' else 'any', data[:at] + bytes(n - at)) for at in rng.integers(12, n, 4))
    yield from (('whole' if encoding == 'png' else 'any', flipped(data, rng, 1)) for _ in range(14))
    yield from (('whole' if encoding == 'png' else 'any', flipped(data, rng, 16)) for _ in range(8))
    yield from (('any', flipped(data, rng, 2, stop=64)) for _ in range(10))
    for _ in range(3):
        a, b = sorted(rng.integers(0, n, 2))
        yield 'any', data[:a] + rng.bytes(7) + data[a:]
        yield 'any', data[:a] + data[b:]
        yield 'any', data[:b] + data[a:]
    yield 'any', data * 2


def claims():
    """(extension, bytes): headers of every format that claim 20,000 x 20,000 pixels, and pictures that have them."""
    small = picture(0)
    side = 20000
    for extension, kind, where, code in (('.png', 'PNG', 16, '>II'), ('.gif', 'GIF', 6, '<HH'),
                                         ('.bmp', 'BMP', 18, '<ii')):
        data = bytearray(encode(small, kind))
        data[where:where + struct.calcsize(code)] = struct.pack(code, side, side)
        if kind == 'PNG':
            data[29:33] = struct.pack('>I', zlib.crc32(bytes(data[12:29])))
        yield extension, bytes(data)
    jpeg = bytearray(encode(small, 'JPEG'))
    at = jpeg.find(b'\xff\xc0') + 5
    jpeg[at:at + 4] = struct.pack('>HH', side, side)
    yield '.jpg', bytes(jpeg)
    tiff = bytearray(encode(small, 'TIFF'))
    for tag in (256, 257):  # width, height: type SHORT or LONG, one value, in place
        at = next(i for i in range(0, len(tiff) - 12, 2)
                  if struct.unpack_from('<H', tiff, i)[0] == tag and struct.unpack_from('<I', tiff, i + 4)[0] == 1)
        struct.pack_into('<HII', tiff, at + 2, 4, 1, side)
    yield '.tif', bytes(tiff)
    inner = encode(small, 'WEBP', lossless=True)[12:]
    extent = struct.pack('<I', side - 1)[:3]
    body = b'WEBP' + b'VP8X' + struct.pack('<I', 10) + bytes(4) + extent + extent + inner
    yield '.webp', b'RIFF' + struct.pack('<I', len(body)) + body
    # Real ones: blank, so that 144 million pixels are a few kilobytes.
    blank = Image.new('1', (12000, 12000))
    yield '.png', encode(blank, 'PNG')
    yield '.tif', encode(blank, 'TIFF', compression='group4')
    grey = zlib.compress(bytes(9001) * 9000, 1)
    yield '.png', (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', 9000, 9000, 8, 0, 0, 0, 0))
                   + chunk(b'IDAT', grey) + chunk(b'IEND', b''))


STRANGERS = {
    'page.jpg': b'<!DOCTYPE html>\n<html><body>404 Not Found</body></html>', 'denied.png': b'{"error": "denied"}',
    'words.png': 'naïve'.encode(), 'vector.png': b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    'paper.jpg': b'%PDF-1.7\n', 'post.jpg': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n',
    'archive.png': b'PK\x03\x04' + bytes(40), 'icon.bmp': b'\0\0\1\0\1\0' + bytes(40),
    'pointer.jpg': b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n',
}


def corpus():
    """All files of the two folders; every fourth of them is good."""
    found = []

    def add(extension, broken, kind, clean=None):
        if len(found) % 4 == 3:
            ending, form, options = list(ENCODINGS.values())[len(found) // 4 % len(ENCODINGS)]
            good = encode(picture(len(found)), form, **options)
            found.append(Mutant(f'{len(found):04d}{ending}', good, good, 'good'))
        clean = encode(picture(len(found)), 'PNG') if clean is None else clean
        found.append(Mutant(f'{len(found):04d}{extension}', clean, broken, kind))

    for i, (name, (extension, form, options)) in enumerate(ENCODINGS.items()):
        data = encode(picture(1000 + i), form, **options)
        for kind, broken in damages(data, name, np.random.default_rng((7, i))):
            add(extension, broken, kind if broken != data else 'good', clean=data)
    for extension, data in claims():
        add(extension, data, 'refused')
    for name, data in STRANGERS.items():
        add('-' + name, data, 'refused')
    for height, width in ((1, 900), (900, 1), (1, 1), (1, 10**6), (10**6, 1)):
        add('.png', encode(np.full((height, width, 3), 77, np.uint8), 'PNG'), 'any')
    return found


def read_all(folder):
    """Reads every item of a folder on its own; what came of it, and the memory that it took."""
    from gen_jax.data.folder import open_folder
    from gen_jax.data.ledger import CorruptItem
    source, problems = open_folder(folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = {}
    for i, name in enumerate(source.names):
        print(i, flush=True)
        try:
            image = source[i]['image']
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size
            outcomes[name] = ['read', zlib.crc32(image.tobytes())]
        except CorruptItem as error:
            outcomes[name] = ['corrupt', error.reason]
        except BaseException as error:
            outcomes[name] = ['crash', f'{type(error).__name__}: {error}']
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({'outcomes': outcomes, 'problems': problems, 'mib': (after - before) / 1024}), flush=True)


if __name__ == '__main__':
    read_all(sys.argv[1])
