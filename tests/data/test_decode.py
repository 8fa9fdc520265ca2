"""Legal but unusual pictures come out as they should look."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from gen_jax.data.decode import check_picture_options, decode_image
from gen_jax.data.ledger import CorruptItem
from gen_jax.data.transforms import centre_crop, resize
from tests.data.mutations import chunk, encode, picture

pytestmark = pytest.mark.filterwarnings('ignore')  # Pillow warns of damaged EXIF
RGB = picture(3)
GREY = np.asarray(Image.fromarray(RGB).convert('L'))


def close(data, expected, tolerance=0, **options):
    found = decode_image(data, 'x', **options)
    assert found.dtype == np.uint8 and found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= tolerance


def three(grey):
    return np.repeat(grey[..., None], 3, -1)


@pytest.mark.parametrize('options', [{}, {'compression': 'tiff_lzw'}, {'compression': 'tiff_deflate'}])
def test_tiff(options):
    close(encode(RGB, 'TIFF', **options), RGB)
    close(encode(GREY, 'TIFF', **options), three(GREY))
    close(encode(GREY.astype(np.uint16) * 257, 'TIFF', **options), three(GREY))
    close(encode(Image.fromarray(RGB).convert('CMYK'), 'TIFF', **options), RGB)
    close(encode(Image.fromarray(RGB).convert('YCbCr'), 'TIFF', **options), RGB, 4)
    close(encode(Image.fromarray(GREY > 99), 'TIFF', **options), three(np.where(GREY > 99, 255, 0)))
    pages = [Image.fromarray(RGB), Image.fromarray(RGB[:5, :5])]
    close(encode(pages[0], 'TIFF', save_all=True, append_images=pages[1:], **options), RGB)


def test_lab():
    profiles = ImageCms.createProfile('sRGB'), ImageCms.createProfile('LAB')
    soft = (RGB // 4 + 96).astype(np.uint8)  # 8-bit LAB is coarse far from grey
    lab = ImageCms.profileToProfile(Image.fromarray(soft), *profiles, outputMode='LAB')
    close(encode(lab, 'TIFF'), soft, 4)


@pytest.mark.parametrize('mode', ['I', 'F'])
def test_32_bits_are_refused(mode):
    with pytest.raises(CorruptItem, match='no agreed range; save them with 8 or 16'):
        decode_image(encode(Image.fromarray(GREY).convert(mode), 'TIFF'), 'x')


def test_16_bits_are_rounded_and_keep_their_transparency():
    wide = np.arange(0, 65536, 128, dtype=np.uint16).reshape(16, 32)
    data = encode(wide, 'PNG')
    expected = np.floor(wide / 257 + 0.5).astype(np.uint8)
    close(data, three(expected))
    at = data.find(b'IDAT') - 4
    clear = data[:at] + chunk(b'tRNS', struct.pack('>H', int(wide[3, 5]))) + data[at:]
    expected = three(expected)
    expected[3, 5] = (9, 8, 7)
    close(clear, expected, background=(9, 8, 7))


def test_transparent_bilevel_and_palette():
    bits = Image.fromarray(GREY > 99)
    expected = np.where((GREY > 99)[..., None], np.uint8(255), np.array([9, 8, 7], np.uint8))
    close(encode(bits, 'PNG', transparency=0), expected, background=(9, 8, 7))
    palette = Image.fromarray(RGB).quantize(16)
    plain = np.asarray(palette.convert('RGB'))
    close(encode(palette, 'PNG'), plain)
    index = np.asarray(palette)
    close(encode(palette, 'GIF', transparency=3), np.where((index == 3)[..., None], np.uint8(255), plain))
    half = bytes([255, 128] + [255] * 14)
    expected = np.where((index == 1)[..., None], plain * (128 / 255) + 255 * (127 / 255), plain)
    close(encode(palette, 'PNG', transparency=half), expected.round(), 1)
    la = Image.merge('LA', [Image.fromarray(GREY), Image.fromarray(np.full_like(GREY, 51))])
    for kind, options in (('PNG', {}), ('TIFF', {}), ('WEBP', {'lossless': True, 'exact': True})):
        close(encode(la, kind, **options), three(GREY) * 0.2 + 255 * 0.8, 1)


@pytest.mark.parametrize(('kind', 'options'), [('GIF', {}), ('PNG', {}), ('WEBP', {'lossless': True})])
def test_animations_show_their_first_frame(kind, options):
    few = (RGB // 64 * 64).astype(np.uint8) if kind == 'GIF' else RGB
    frames = [Image.fromarray(few), Image.fromarray(255 - few), Image.fromarray(few[::-1])]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options)
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 3
    close(data, few)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_orientation(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = {1: RGB, 2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1], 5: RGB.swapaxes(0, 1), 6: np.rot90(RGB, 1),
              7: RGB[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(RGB, -1)}[orientation]
    options = {'JPEG': {'quality': 98, 'subsampling': 0}, 'WEBP': {'lossless': True}}.get(kind, {})
    close(encode(np.ascontiguousarray(turned), kind, exif=exif, **options), RGB, 8 if kind == 'JPEG' else 0)


@pytest.mark.parametrize('exif', [
    b'', b'Exif\0\0', b'Exif\0\0garbage', b'Exif\0\0II*\0\xff\xff\xff\xff', b'Exif\0\0MM\0*\0\0\0\x08\xff\xff',
    b'Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x05\0\0\0\x06\0\0\0',
    b'Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0',  # orientation 99
    b'Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x00\0\0\0\x06\0\0\0\0\0\0\0'])
def test_broken_metadata_leaves_the_pixels(exif):
    quality = {'quality': 98, 'subsampling': 0}
    close(encode(RGB, 'JPEG', exif=exif, icc_profile=b'no profile', **quality), RGB, 8)
    info = PngImagePlugin.PngInfo()
    info.add(b'eXIf', exif[6:])
    info.add(b'iTXt', b'\0\0\0')
    close(encode(RGB, 'PNG', pnginfo=info, icc_profile=b'no profile'), RGB)
    close(encode(RGB, 'WEBP', lossless=True, exif=exif or b'x', icc_profile=b'no profile'), RGB)


def test_every_flipped_byte_of_png_pixels_is_caught():
    data = encode(picture(4, 6, 7), 'PNG')
    first, last = data.find(b'IDAT') - 4, data.find(b'IEND') - 4
    for at in range(first, last):
        flipped = bytearray(data)
        flipped[at] ^= 1 << at % 8
        with pytest.raises(CorruptItem, match='PNG|png'):
            decode_image(bytes(flipped), 'x')


def test_a_png_may_unpack_to_more_than_it_says():
    """One row is claimed, 100 MB are there: what is behind the row is not unpacked."""
    rows = zlib.compress(bytes(10**8), 9)
    data = (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', 9, 1, 8, 0, 0, 0, 0)) + chunk(b'IDAT', rows)
            + chunk(b'IEND', b''))
    close(data, np.zeros((1, 9, 3), np.uint8))


@pytest.mark.parametrize('shape', [(20, 24), (24, 20), (16, 16), (7, 9), (64, 17)])
def test_image_size_is_resize_and_centre_crop(shape):
    image = picture(5, *shape)
    expected = {'image': image}
    for transform in (resize(16), centre_crop(16)):
        expected = transform.apply(expected, None)
    close(encode(image, 'PNG'), expected['image'], image_size=16)


def test_strips_are_cropped_before_they_are_resized():
    strip = np.zeros((1, 60000, 3), np.uint8)
    strip[:, 29000:31000] = 200
    close(encode(strip, 'PNG'), np.full((64, 64, 3), 200), image_size=64)
    close(encode(strip.swapaxes(0, 1), 'PNG'), np.full((64, 64, 3), 200), image_size=64)
    with pytest.raises(CorruptItem, match=r'resize\(64\) would make 64 x 12800000 pixels'):
        resize(64).apply({'image': np.zeros((1, 200000, 3), np.uint8)}, None)


def test_draft_is_near_the_full_decode_and_leaves_small_pictures_alone():
    large = np.asarray(Image.fromarray(picture(6)).resize((480, 400), Image.Resampling.BICUBIC))
    data = encode(large, 'JPEG', quality=95)
    whole, draft = (decode_image(data, 'x', image_size=32, draft=d) for d in (False, True))
    difference = np.abs(whole.astype(int) - draft)
    assert 0 < difference.max() <= 8 and difference.mean() < 1
    small = encode(large[:100, :100], 'JPEG', quality=95)
    np.testing.assert_array_equal(decode_image(small, 'x', image_size=32, draft=True),
                                  decode_image(small, 'x', image_size=32))
    with pytest.raises(ValueError, match='draft=True .* needs an image_size'):
        check_picture_options('folder', 3, None, 100, (0, 0, 0), True)


@pytest.mark.parametrize('limit', [None, True, 0, 2**28, 1.5])
def test_the_pixel_limit_is_an_integer_that_pillow_accepts(limit):
    with pytest.raises(ValueError, match='max_pixels='):
        check_picture_options('folder', 3, None, limit, (0, 0, 0))
