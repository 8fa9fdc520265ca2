"""Pictures of a run: a grid of samples as one image, written as PNG."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gen_jax.engine.files import replacing

__all__ = ['grid', 'save_png', 'to_uint8']


def to_uint8(images) -> np.ndarray:
    """Images in [-1, 1] (values outside are clipped) -> uint8, rounded to nearest; uint8 passes unchanged.

    Raises:
        ValueError: if a value is not finite, or the dtype is neither floating nor uint8.
    """
    images = np.asarray(images)
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind not in 'fV':  # V: bfloat16 and friends
        raise ValueError(f'images are {images.dtype}: expected uint8 in [0, 255] or floating point in [-1, 1]')
    values = images.astype(np.float32)
    bad = int(np.count_nonzero(~np.isfinite(values)))
    if bad:
        raise ValueError(f'{bad} of {values.size} pixels are not finite: look at the loss and the sampler before the '
                         'picture')
    return np.rint((np.clip(values, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)


def grid(images, columns: int | None = None, scale: int | None = 1, pad: int = 1, fill: int = 0,
         rows: Sequence[str] | None = None) -> np.ndarray:
    """Tiles images row by row, image k at row k // columns.

    Args:
        images: uint8 [N, H, W, C], C 1 (grey) or 3 (RGB); `to_uint8` converts floats.
        columns: images per row; default: the squarest grid.
        scale: every pixel becomes scale x scale of them; None: as many as bring small images to about 48 pixels.
        pad: width of the lines between and around the images, in final pixels.
        fill: grey level of the lines, of the missing images of the last row and behind the labels.
        rows: labels, one per row, drawn at the left.

    Returns:
        uint8 [rows * (H scale + pad) + pad, columns * (W scale + pad) + pad (+ label width), C].
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(f'images are {images.dtype} {list(images.shape)}: expected uint8 [N, H, W, 1 or 3]; '
                         'to_uint8 converts [-1, 1]')
    n, height, width, channels = images.shape
    if n == 0:
        raise ValueError('no images: a grid needs at least one')
    columns = int(np.ceil(np.sqrt(n))) if columns is None else columns
    scale = max(1, 48 // max(height, width)) if scale is None else scale
    for name, value, least in (('columns', columns, 1), ('scale', scale, 1), ('pad', pad, 0)):
        if value < least:
            raise ValueError(f'{name}={value}: must be at least {least}')
    n_rows = -(-n // columns)
    if rows is not None and len(rows) != n_rows:
        raise ValueError(f'{len(rows)} row labels for {n_rows} rows ({n} images in {columns} columns)')

    tiles = images.repeat(scale, axis=1).repeat(scale, axis=2)
    tiles = np.pad(tiles, ((0, n_rows * columns - n), (0, pad), (0, pad), (0, 0)), constant_values=fill)
    tiles = tiles.reshape(n_rows, columns, height * scale + pad, width * scale + pad, channels)
    picture = tiles.swapaxes(1, 2).reshape(n_rows * (height * scale + pad), columns * (width * scale + pad), channels)
    picture = np.pad(picture, ((pad, 0), (pad, 0), (0, 0)), constant_values=fill)
    if rows is not None:
        picture = np.concatenate([_labels(rows, picture.shape, height * scale + pad, fill), picture], axis=1)
    return picture


def _labels(rows: Sequence[str], shape: tuple[int, ...], pitch: int, fill: int) -> np.ndarray:
    """The column of row labels, uint8 [shape[0], widest label + margin, shape[2]]."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default()
    boxes = [font.getbbox(label) for label in rows]
    width = int(max(box[2] for box in boxes)) + 6
    canvas = Image.new('L', (width, shape[0]), fill)
    draw = ImageDraw.Draw(canvas)
    for i, (label, box) in enumerate(zip(rows, boxes, strict=True)):
        top = i * pitch + (pitch - (box[1] + box[3])) / 2
        draw.text((3, max(top, 0)), label, fill=255 if fill < 128 else 0, font=font)
    return np.repeat(np.asarray(canvas)[..., None], shape[2], axis=2)


def save_png(path, image) -> Path:
    """Writes uint8 [H, W], [H, W, 1] (grey), [H, W, 3] (RGB) or [H, W, 4] (RGBA) as PNG; returns the path.

    The file appears complete or not at all (a temporary file beside it is renamed); missing folders are made.
    """
    from PIL import Image

    path, image = Path(path), np.asarray(image)
    squeezed = image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image
    grey, colour = squeezed.ndim == 2, squeezed.ndim == 3 and squeezed.shape[-1] in (3, 4)
    if image.dtype != np.uint8 or not (grey or colour) or 0 in image.shape:
        raise ValueError(f'cannot write {path}: image is {image.dtype} {list(image.shape)}, expected uint8 [H, W] or '
                         '[H, W, 1, 3 or 4]')
    with replacing(path) as temporary:
        Image.fromarray(np.ascontiguousarray(squeezed)).save(temporary, format='PNG')
    return path
