"""Picture files of every common kind to uint8 [H, W, C]: what folders and TFDS data sets share."""

import io
import warnings
import zlib

import numpy as np
from PIL import Image, ImageCms

from gen_jax.data.ledger import CorruptItem

__all__ = ['EXTENSIONS', 'MAX_PIXELS', 'check_picture_options', 'decode_image', 'open_picture']

FORMATS = ('PNG', 'JPEG', 'WEBP', 'BMP', 'GIF', 'TIFF')
EXTENSIONS = ('.png', '.jpg', '.jpeg', '.webp', '.bmp', '.gif', '.tif', '.tiff')
MAX_PIXELS = 2**26
"""A picture of more pixels is refused before it is decoded: a few kilobytes may unpack to gigabytes."""
PILLOW_LIMIT = 2 * (Image.MAX_IMAGE_PIXELS or 2**27)
"""Pillow itself refuses more pixels than this, whatever max_pixels says."""
UPRIGHT = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
           5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
           8: Image.Transpose.ROTATE_90}
PIXEL_CHUNKS = (b'IHDR', b'PLTE', b'IDAT', b'tRNS')
STRIP = 4
"""A picture longer than this many times its shorter side is cropped before it is resized: 1 x 60,000 pixels, their
shorter side made 64, would be a gigabyte."""

# Pillow warns from half its limit on; our own limit is the one that counts.
warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)


def _check_png(data: bytes) -> None:
    """ValueError where a chunk that decides the pixels fails its checksum: Pillow does not look at those of IDAT."""
    view, at = memoryview(data), 8
    while at + 12 <= len(data):
        kind, end = data[at + 4:at + 8], at + 8 + int.from_bytes(data[at:at + 4], 'big')
        if kind == b'IEND':
            return
        if kind in PIXEL_CHUNKS:
            if end + 4 > len(data):
                raise ValueError(f'truncated in the PNG chunk {kind.decode()}')
            if zlib.crc32(view[at + 4:end]) != int.from_bytes(data[end:end + 4], 'big'):
                raise ValueError(f'wrong checksum of the PNG chunk {kind.decode()}')
        at = end + 4
    raise ValueError('truncated: the PNG has no end chunk')


def _upright(image: Image.Image) -> Image.Image:
    """Turned by the EXIF (or XMP) orientation; metadata that cannot be read turns nothing."""
    try:
        method = UPRIGHT.get(image.getexif().get(0x0112))
    except Exception:  # damaged EXIF raises nearly anything, and the pixels are whole
        method = None
    return image if method is None else image.transpose(method)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Wide and bilevel grey to 'L' or 'LA', LAB to RGB: what Pillow's own conversion clips or refuses.

    65535 becomes 255, rounded.
    """
    if image.mode.startswith('I;16'):
        wide = np.asarray(image).astype(np.int64)
        grey = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
        clear = image.info.get('transparency')
        if isinstance(clear, int):
            grey.putalpha(Image.fromarray(np.where(wide == clear, 0, 255).astype(np.uint8)))
        return grey
    if image.mode in ('I', 'F'):
        raise ValueError(f'pixels of 32 bits (mode {image.mode}) have no agreed range; save them with 8 or 16')
    if image.mode == 'LAB':
        profiles = ImageCms.createProfile('LAB'), ImageCms.createProfile('sRGB')
        return ImageCms.profileToProfile(image, *profiles, outputMode='RGB')
    return image.convert('L') if image.mode == '1' and 'transparency' not in image.info else image


def _over(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Transparency (an alpha channel or a transparent colour) laid over `background`."""
    image = image if image.mode == 'RGBA' else image.convert('RGBA')
    return Image.alpha_composite(Image.new('RGBA', image.size, (*background, 255)), image)


def _fit(image: Image.Image, size: int) -> Image.Image:
    """Antialiased bicubic resize of the shorter side to `size`, then the central square."""
    width, height = image.size
    short = min(width, height)
    if max(width, height) > STRIP * short:
        width, height = min(width, STRIP * short), min(height, STRIP * short)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    width, height = (max(size, round(side * size / short)) for side in (width, height))
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image if width == height else image.crop((left, top, left + size, top + size))


def flat(image: Image.Image, channels: int = 3, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """A picture of any mode as 'RGB' or 'L', upright, transparency laid over `background`; see `decode_image`."""
    picture = _eight_bits(_upright(image))
    if picture.has_transparency_data:
        picture = _over(picture, background)
    mode = 'RGB' if channels == 3 else 'L'
    return picture if picture.mode == mode else picture.convert(mode)


def open_picture(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture with its header read and its pixels not yet decoded.

    Raises:
        ValueError: over the limit of H * W pixels, or a PNG that fails its checksums; and whatever Pillow raises.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise ValueError(f'it claims more than {PILLOW_LIMIT} pixels, the limit of Pillow; shrink the '
                         f'picture') from None
    width, height = image.size
    if width * height > max_pixels:
        image.close()
        raise ValueError(f'{width} x {height} is over the limit of {max_pixels} pixels; shrink the picture or raise '
                         f'max_pixels')
    if image.format == 'PNG':
        _check_png(data)
    return image


def decode_image(data: bytes, path, *, channels: int = 3, background: tuple[int, int, int] = (255, 255, 255),
                 max_pixels: int = MAX_PIXELS, image_size: int | None = None, draft: bool = False) -> np.ndarray:
    """Decodes PNG, JPEG, WebP, BMP, GIF or TIFF (first frame) to uint8 [H, W, channels].

    By content, whatever the file is called. Turned upright by its EXIF orientation; palettes, CMYK, YCbCr, LAB,
    16-bit grey and bilevel converted (colour profiles are not applied; of 16-bit colours the high byte counts);
    transparency laid over `background`; grey by ITU-R BT.601 luma. Takes about 20 bytes of memory a pixel at most.

    Args:
        data: the file's bytes.
        path: what the error calls it.
        channels: 3 or 1.
        background: RGB under transparent pixels.
        max_pixels: limit on H * W.
        image_size: antialiased bicubic resize of the shorter side to this, then the central square; None: as it is.
        draft: a JPEG at least four times as large as image_size is decoded at 1/2, 1/4 or 1/8 (never below twice
            image_size) and resized from there: faster, and different by about a level.

    Raises:
        CorruptItem: not such a picture, damaged, truncated, or over the limit. What no checksum covers goes unseen:
            flipped bits in PNG are caught, in JPEG, WebP, BMP and GIF only where they break the decoder.
    """
    try:
        with open_picture(data, max_pixels) as image:
            if draft and image_size is not None:
                image.draft(None, (2 * image_size, 2 * image_size))
            image.load()
            picture = flat(image, channels, background)
            pixels = np.asarray(picture if image_size is None else _fit(picture, image_size))
    except MemoryError:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        raise CorruptItem(path, _reason(error, data)) from error
    return pixels if channels == 3 else pixels[..., None]


def _reason(error: Exception, data: bytes) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        if not data.strip(b'\0'):
            return 'empty file' if not data else f'{len(data)} zero bytes'
        return f'not a {", ".join(FORMATS)} picture (it begins with {data[:20]!r})'
    text = ' '.join(str(error).split())[:300]
    return text if type(error) is ValueError else f'{text} ({type(error).__name__})'


def check_picture_options(name: str, channels, image_size, max_pixels, background, draft=False) -> None:
    """ValueError naming the option that is wrong."""
    if channels not in (1, 3):
        raise ValueError(f'{name}: channels={channels!r} is not 1 (grey) or 3 (RGB)')
    for key, value in (('image_size', image_size), ('max_pixels', max_pixels)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f'{name}: {key}={value!r} must be a positive integer')
    if max_pixels is None or max_pixels > PILLOW_LIMIT:
        raise ValueError(f'{name}: max_pixels={max_pixels!r} must be an integer up to {PILLOW_LIMIT}, the limit of '
                         f'Pillow')
    if len(background) != 3 or not all(isinstance(v, int) and 0 <= v <= 255 for v in background):
        raise ValueError(f'{name}: background={background!r} must be three integers in 0..255')
    if not isinstance(draft, bool) or draft and image_size is None:
        raise ValueError(f'{name}: draft={draft!r} is True or False, and True needs an image_size')
