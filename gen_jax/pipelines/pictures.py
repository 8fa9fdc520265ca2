"""Pictures and masks as users have them, to arrays as pipelines want them; and back to uint8."""

from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from gen_jax.types import Array

__all__ = ['check_size', 'masks', 'pictures', 'read_picture', 'to_uint8']

NOTHING = (0, 0, 0)
"""What a transparent part of a mask counts as: it is kept."""


def check_size(height: int, width: int, factor: int) -> None:
    """Raises ValueError for sides that are no multiples of the autoencoder's factor; names the nearest that are."""
    for name, side in (('height', height), ('width', width)):
        if isinstance(side, bool) or not isinstance(side, (int, np.integer)) or side < factor:
            raise ValueError(f'{name}={side!r}: give an integer of at least {factor}, a multiple of {factor}')
        if side % factor:
            low = side // factor * factor
            raise ValueError(f'{name}={side} is not divisible by {factor}; the nearest sizes are {low} and '
                             f'{low + factor}: resize, crop or pad')


def read_picture(picture, background: tuple[int, int, int] = (255, 255, 255)) -> np.ndarray:
    """An array as it is; a PIL image or the path of a picture as uint8 [H, W, 3], see `gen_jax.data.decode`.

    Args:
        background: RGB that files and PIL images have where they are transparent.

    Raises:
        ValueError: no such file, no picture, or a damaged one.
    """
    if isinstance(picture, np.ndarray) or hasattr(picture, '__array__') and not hasattr(picture, 'convert'):
        return np.asarray(picture)
    from gen_jax.data.decode import decode_image, flat  # Pillow is asked only if there is something for it
    if hasattr(picture, 'convert'):
        return np.asarray(flat(picture, background=background))
    try:
        data = Path(picture).read_bytes()
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f'{picture!r} is no picture that can be read ({error})') from None
    return decode_image(data, picture, background=background)


def _floats(array: np.ndarray, name: str) -> np.ndarray:
    """[..., channels] in [0, 1]."""
    if array.dtype == np.uint8:
        return array.astype(np.float32) / 255.0
    if array.dtype == bool:
        return array.astype(np.float32)
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f'{name} has dtype {array.dtype}; give uint8 in 0 .. 255 or floats in 0 .. 1')
    if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
        raise ValueError(f'{name} has values in {array.min():.3g} .. {array.max():.3g}; floats must lie within 0 .. 1')
    return array.astype(np.float32)


def _batch(value, background=(255, 255, 255)) -> list[np.ndarray]:
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [read_picture(v, background) for v in value]
    array = read_picture(value, background)
    return list(array) if array.ndim == 4 else [array]


def _repeat(stacked: np.ndarray, n: int, name: str) -> np.ndarray:
    if n % len(stacked):
        raise ValueError(f'{len(stacked)} of {name} for {n} images; give one, or as many as there are prompts')
    return np.repeat(stacked, n // len(stacked), 0)


def pictures(image, n: int, factor: int, name: str = 'image') -> np.ndarray:
    """Pictures for n samples: float32 [n, H, W, 3] in [-1, 1].

    Args:
        image: PIL image, path, array [H, W, 3] or [B, H, W, 3] (uint8, or float in 0 .. 1), or a list of those; grey
            and transparent ones become RGB. B divides n, and each is used n / B times in a row.
        factor: of the autoencoder, which divides the sides.

    Raises:
        ValueError: not a picture, of other sizes than its neighbours, sides not divisible, values out of range.
    """
    arrays = []
    for array in _batch(image):
        array = array[..., None] if array.ndim == 2 else array
        if array.ndim != 3 or array.shape[-1] not in (1, 3, 4):
            raise ValueError(f'{name} has shape {array.shape}; give [H, W], [H, W, 3] or [B, H, W, 3]')
        check_size(*array.shape[:2], factor)
        array = _floats(array, name)
        if array.shape[-1] == 4:
            array = array[..., :3] * array[..., 3:] + 1.0 - array[..., 3:]
        arrays.append(np.broadcast_to(array, (*array.shape[:2], 3)))
    if len({a.shape for a in arrays}) > 1:
        raise ValueError(f'{name}s of different sizes {sorted({a.shape[:2] for a in arrays})}; resize them to one')
    return 2.0 * _repeat(np.stack(arrays), n, f'{name}s') - 1.0


def masks(mask, n: int, size: tuple[int, int], threshold: float = 0.5) -> np.ndarray:
    """Masks for n samples: float32 [n, H, W, 1], 1 where is to be painted, 0 where the picture is kept.

    Args:
        mask: as `pictures` takes them: white (1, 255, True) is painted; only the first channel of a coloured one.
        size: (H, W) of the pictures.
        threshold: values of at least this count as 1.

    Raises:
        ValueError: of another size than the picture, or not a picture.
    """
    arrays = []
    for array in _batch(mask, NOTHING):
        array = array[..., 0] if array.ndim == 3 else array
        if array.shape != tuple(size):
            raise ValueError(f'mask has size {array.shape[:2]}, the picture {tuple(size)}; they must be the same')
        arrays.append((_floats(array, 'mask') >= threshold).astype(np.float32)[..., None])
    return _repeat(np.stack(arrays), n, 'masks')


def to_uint8(image: Array) -> Array:
    """[-1, 1] -> 0 .. 255, rounded."""
    return jnp.round(255.0 * jnp.clip(0.5 * image.astype(jnp.float32) + 0.5, 0.0, 1.0)).astype(jnp.uint8)
