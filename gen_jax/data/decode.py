"""Picture files of every common kind to uint8 [H, W, C]: what folders and TFDS data sets share."""

import io

import numpy as np
from PIL import Image, ImageOps

from gen_jax.data.ledger import CorruptItem
from gen_jax.data.transforms import centre_crop, resize

__all__ = ['MAX_PIXELS', 'decode_image', 'fit_image']

FORMATS = ('PNG', 'JPEG', 'WEBP', 'BMP', 'GIF')
MAX_PIXELS = 2**26
"""A picture of more pixels is refused before it is decoded: a few kilobytes may unpack to gigabytes."""


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit and bilevel grey to 'L': 65535 becomes 255, rounded (Pillow's own conversion clips at 255)."""
    if image.mode.startswith('I'):
        wide = np.asarray(image).astype(np.int64)
        return Image.fromarray(((wide.clip(0, 65535) + 128) // 257).astype(np.uint8))
    return image.convert('L') if image.mode == '1' and 'transparency' not in image.info else image


def decode_image(data: bytes, path, *, channels: int = 3, background: tuple[int, int, int] = (255, 255, 255),
                 max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes PNG, JPEG, WebP, BMP or GIF (first frame) to uint8 [H, W, channels].

    Turned upright by its EXIF orientation; palettes, CMYK, 16-bit grey and bilevel converted; transparency (alpha
    channel or transparent colour) laid over `background`; grey by ITU-R BT.601 luma.

    Args:
        data: the file's bytes.
        path: what the error calls it.
        channels: 3 or 1.
        background: RGB under transparent pixels.
        max_pixels: limit on H * W.

    Raises:
        CorruptItem: not such a picture, damaged, truncated, or over the limit.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise CorruptItem(path, f'{width} x {height} is over the limit of {max_pixels} pixels; shrink the '
                                        f'picture or raise max_pixels')
            image.load()
            image = _eight_bits(ImageOps.exif_transpose(image))
            if image.has_transparency_data:
                image = image.convert('RGBA')
                canvas = Image.new('RGBA', image.size, (*background, 255))
                image = Image.alpha_composite(canvas, image)
            pixels = np.asarray(image.convert('RGB' if channels == 3 else 'L'))
    except (CorruptItem, MemoryError):
        raise
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        reason = str(error).replace('\n', ' ')
        if isinstance(error, Image.UnidentifiedImageError):
            reason = 'empty file' if not data else f'not a {", ".join(FORMATS)} picture'
        raise CorruptItem(path, f'{reason} ({type(error).__name__})') from error
    return pixels if channels == 3 else pixels[..., None]


def fit_image(image: np.ndarray, size: int) -> np.ndarray:
    """Antialiased resize of the shorter side to `size`, then the central square."""
    example = {'image': image}
    for transform in (resize(size), centre_crop(size)):
        example = transform.apply(example, None)
    return example['image']


def check_picture_options(name: str, channels, image_size, max_pixels, background) -> None:
    """ValueError naming the option that is wrong."""
    if channels not in (1, 3):
        raise ValueError(f'{name}: channels={channels!r} is not 1 (grey) or 3 (RGB)')
    for key, value in (('image_size', image_size), ('max_pixels', max_pixels)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f'{name}: {key}={value!r} must be a positive integer')
    if len(background) != 3 or not all(isinstance(v, int) and 0 <= v <= 255 for v in background):
        raise ValueError(f'{name}: background={background!r} must be three integers in 0..255')
