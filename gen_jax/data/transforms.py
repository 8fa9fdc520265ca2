"""Per-example transforms, each with a spec for the pipeline's fingerprint, and the two maps between uint8 and [-1, 1].

A transform is a function (example, rng) -> example. The generator is seeded by (seed, global position), so an
augmentation depends on nothing but where the example stands in the run. Transforms never write into the arrays that
they are given (sources may cache them). Image transforms act on `keys`, with the same random draw for all of them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from gen_jax.data.hard_negatives import check_groups, exchange_words
from gen_jax.data.ledger import CorruptItem
from gen_jax.data.text_cache import open_text_cache

__all__ = ['centre_crop', 'keep', 'pad', 'random_crop', 'random_flip', 'resize', 'text_embeddings', 'to_grey', 'to_rgb',
           'tokenize']

Example = dict[str, Any]
TEXT = ('encoder_hidden_states', 'pooled')
RESIZED_PIXELS = 2**26
"""What `resize` makes at most: 1 x 60,000 pixels, their shorter side made 64, would be a gigabyte."""
SPATIAL = ('boxes', 'centres', 'depth', 'edges', 'mask', 'masks', 'radii', 'relations', 'segmentation')
"""Keys that a geometric transform would silently make wrong if it did not act on them too."""


class PerExample(NamedTuple):
    """A named transform."""

    apply: Callable[[Example, np.random.Generator], Example]
    """May raise CorruptItem for an item it can do nothing with, if that depends on the item alone."""
    spec: Mapping[str, Any]
    """JSON-able, complete: two transforms with equal specs do the same."""


def normalise(x):
    """uint8 pixels to float32 in [-1, 1]: x / 127.5 - 1. NumPy or JAX, any shape; the engine calls it on the device."""
    if x.dtype != np.uint8:
        raise ValueError(f'normalise: expected uint8 pixels, got {x.dtype}; images are normalised once, on the device')
    return x.astype('float32') / 127.5 - 1.0


def to_uint8(x):
    """Floats in [-1, 1] to the nearest uint8 pixel, clipped; inverse of `normalise`. NumPy or JAX, any shape."""
    if isinstance(x, np.ndarray) and not np.isfinite(x).all():
        raise ValueError('to_uint8: the image holds NaN or infinity')
    return ((x.astype('float32') + 1.0) * 127.5).round().clip(0, 255).astype('uint8')


def _positive(name: str, **sizes) -> None:
    for key, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(f'{name}: {key}={value!r} must be a positive integer')


def _on_images(name: str, keys: Sequence[str], function, moves: bool = True):
    """Lifts function(image HWC or HW, rng) to examples; `moves` says that pixels change their places."""
    keys = tuple(keys)

    def apply(example: Example, rng) -> Example:
        if missing := [key for key in keys if key not in example]:
            raise ValueError(f'{name}: the example has no {missing[0]!r}; it has {sorted(example)}')
        stale = [key for key in SPATIAL if moves and key in example and key not in keys]
        if stale:
            raise ValueError(f'{name} would move the pixels but not {stale}; drop those before it with '
                             f"keep([...]), or add the ones shaped like images to its keys")
        images = function([np.asarray(example[key]) for key in keys], rng)
        return {**example, **dict(zip(keys, images, strict=True))}

    return apply


def _resample(image: np.ndarray, size: tuple[int, int], resample: int) -> np.ndarray:
    """Antialiased (Pillow widens the filter when it shrinks); size is (height, width)."""
    if image.shape[:2] == size:
        return image
    if image.dtype != np.uint8:
        raise ValueError(f'resize: expected uint8, got {image.dtype}')
    planes = image[..., None] if image.ndim == 2 else image
    if planes.shape[-1] in (1, 3):
        out = np.asarray(Image.fromarray(planes[..., 0] if planes.shape[-1] == 1 else planes)
                         .resize(size[::-1], resample))
    else:  # other channel counts have no Pillow mode
        out = np.stack([np.asarray(Image.fromarray(planes[..., c]).resize(size[::-1], resample))
                        for c in range(planes.shape[-1])], axis=-1)
    return out.reshape(*size, *image.shape[2:])


def resize(size: int, mode: str = 'shortest', keys: Sequence[str] = ('image',)) -> PerExample:
    """Antialiased bicubic resize: 'shortest' makes the shorter side `size`, 'squash' makes both `size`.

    A picture so long that the result would pass 2**26 pixels counts as corrupt and is replaced.
    """
    _positive('resize', size=size)
    if mode not in ('shortest', 'squash'):
        raise ValueError(f"resize: mode={mode!r} is not one of 'shortest', 'squash'")

    def one(image):
        h, w = image.shape[:2]
        if mode == 'squash':
            target = (size, size)
        else:
            target = tuple(max(size, round(side * size / min(h, w))) for side in (h, w))
            if target[0] * target[1] > RESIZED_PIXELS:
                raise CorruptItem('', f'resize({size}) would make {target[0]} x {target[1]} pixels of {h} x {w}; '
                                      f"crop the picture, or use data.options image_size or mode='squash'")
        return _resample(image, target, Image.Resampling.BICUBIC)

    return PerExample(_on_images('resize', keys, lambda images, rng: [one(x) for x in images]),
                      {'name': 'resize', 'size': int(size), 'mode': mode, 'keys': list(keys)})


def _crop(images, size: int, top: int, left: int):
    return [np.ascontiguousarray(x[top:top + size, left:left + size]) for x in images]


def _room(name: str, images, size: int) -> tuple[int, int]:
    h, w = images[0].shape[:2]
    if h < size or w < size:
        raise ValueError(f'{name}: an image of {h}x{w} is smaller than size={size}; put resize({size}) or pad before')
    if any(x.shape[:2] != (h, w) for x in images):
        raise ValueError(f'{name}: the keys differ in size: {[x.shape[:2] for x in images]}')
    return h - size, w - size


def centre_crop(size: int, keys: Sequence[str] = ('image',)) -> PerExample:
    """The central size x size pixels."""
    _positive('centre_crop', size=size)

    def function(images, rng):
        del rng
        free_h, free_w = _room('centre_crop', images, size)
        return _crop(images, size, free_h // 2, free_w // 2)

    return PerExample(_on_images('centre_crop', keys, function),
                      {'name': 'centre_crop', 'size': int(size), 'keys': list(keys)})


def random_crop(size: int, keys: Sequence[str] = ('image',)) -> PerExample:
    """A uniformly chosen size x size window."""
    _positive('random_crop', size=size)

    def function(images, rng):
        free_h, free_w = _room('random_crop', images, size)
        return _crop(images, size, int(rng.integers(free_h + 1)), int(rng.integers(free_w + 1)))

    return PerExample(_on_images('random_crop', keys, function),
                      {'name': 'random_crop', 'size': int(size), 'keys': list(keys)})


def _mirrored(image: np.ndarray) -> np.ndarray:
    """Left and right exchanged; channel by channel, which NumPy copies four times as fast as reversed triples."""
    out = np.empty_like(image)
    if image.ndim == 2:
        out[:] = image[:, ::-1]
    for c in range(image.shape[2] if image.ndim == 3 else 0):
        out[..., c] = image[:, ::-1, c]
    return out


def random_flip(p: float = 0.5, keys: Sequence[str] = ('image',)) -> PerExample:
    """Mirrors left and right with probability p."""
    if not 0 <= p <= 1:
        raise ValueError(f'random_flip: p={p!r} is not a probability in [0, 1]')

    def function(images, rng):
        return [_mirrored(x) for x in images] if rng.random() < p else images

    return PerExample(_on_images('random_flip', keys, function),
                      {'name': 'random_flip', 'p': float(p), 'keys': list(keys)})


def pad(size: int, value: int = 0, keys: Sequence[str] = ('image',)) -> PerExample:
    """Centres the image on a size x size canvas of `value`; an image larger than that is refused."""
    _positive('pad', size=size)
    if not 0 <= value <= 255:
        raise ValueError(f'pad: value={value!r} is not in 0..255')

    def one(image):
        h, w = image.shape[:2]
        if h > size or w > size:
            raise ValueError(f'pad: an image of {h}x{w} is larger than size={size}; put resize or a crop before')
        top, left = (size - h) // 2, (size - w) // 2
        widths = ((top, size - h - top), (left, size - w - left)) + ((0, 0),) * (image.ndim - 2)
        return np.pad(image, widths, constant_values=value)

    return PerExample(_on_images('pad', keys, lambda images, rng: [one(x) for x in images]),
                      {'name': 'pad', 'size': int(size), 'value': int(value), 'keys': list(keys)})


def to_grey(key: str = 'image') -> PerExample:
    """RGB to one channel, ITU-R BT.601 luma (0.299, 0.587, 0.114); grey stays as it is."""

    def one(image):
        if image.shape[-1] == 1:
            return image
        if image.shape[-1] != 3:
            raise ValueError(f'to_grey: expected 1 or 3 channels, got an image of shape {image.shape}')
        return (image @ np.array([0.299, 0.587, 0.114])).round().astype(np.uint8)[..., None]

    return PerExample(_on_images('to_grey', [key], lambda images, rng: [one(x) for x in images], moves=False),
                      {'name': 'to_grey', 'key': key})


def to_rgb(key: str = 'image') -> PerExample:
    """One channel to three equal ones; RGB stays as it is."""

    def one(image):
        if image.shape[-1] not in (1, 3):
            raise ValueError(f'to_rgb: expected 1 or 3 channels, got an image of shape {image.shape}')
        return image if image.shape[-1] == 3 else np.repeat(image, 3, axis=-1)

    return PerExample(_on_images('to_rgb', [key], lambda images, rng: [one(x) for x in images], moves=False),
                      {'name': 'to_rgb', 'key': key})


def keep(keys: Sequence[str]) -> PerExample:
    """Drops every entry but these."""
    keys = (keys,) if isinstance(keys, str) else tuple(keys)

    def apply(example: Example, rng) -> Example:
        del rng
        if missing := [key for key in keys if key not in example]:
            raise ValueError(f'keep: the example has no {missing}; it has {sorted(example)}')
        return {key: example[key] for key in keys}

    return PerExample(apply, {'name': 'keep', 'keys': list(keys)})


def _drawn_text(name: str, example: Example, key: str, rng) -> str:
    """The text of an entry, or one of several."""
    text = example.get(key)
    if isinstance(text, (list, tuple)) and text:
        text = text[int(rng.integers(len(text)))]
    if not isinstance(text, str):
        raise ValueError(f'{name}: this system needs text, but the example has no {key!r} (it has '
                         f'{sorted(example)}); use a source with captions: shapes, or folder:PATH with a '
                         f'metadata.jsonl that has file_name and caption')
    return text


def tokenize(tokenizer, key: str = 'caption', exchange: Sequence[Sequence[str]] | None = None) -> PerExample:
    """Text to `tokens` int32 [L]; a list or tuple of captions has one drawn for each position.

    Args:
        tokenizer: an object with `encode`, or a callable: text -> ints [L], or -> dict of arrays that are merged into
            the example ('tokens', 'mask'). Its `fingerprint` (JSON-able) goes into the pipeline's, or its qualified
            name where it has none.
        key: the entry that holds the text; it is replaced.
        exchange: groups of words, such as (('left of', 'right of'), ('red', 'green')), of which one is exchanged to
            make a caption that is nearly right, see `gen_jax.data.hard_negatives`. It is added as `negative_tokens`
            (`negative_` and whatever else the tokenizer returns) with bool `negative_valid`, False where the text has
            no such word.

    Raises:
        ValueError: where an example has no captions; groups with fewer than two words, or the same word twice.
    """
    encode = getattr(tokenizer, 'encode', tokenizer)
    identity = getattr(tokenizer, 'fingerprint', None)
    if identity is None:
        identity = getattr(tokenizer, '__qualname__', None) or type(tokenizer).__qualname__
    groups = None if exchange is None else check_groups(exchange)

    def encoded(text: str) -> dict:
        result = encode(text)
        return dict(result) if isinstance(result, Mapping) else {'tokens': np.asarray(result, np.int32)}

    def apply(example: Example, rng) -> Example:
        text = _drawn_text('tokenize', example, key, rng)
        result = encoded(text)
        if groups is not None:
            wrong = exchange_words(text, groups, rng)
            result |= {f'negative_{k}': v for k, v in encoded('' if wrong is None else wrong).items()}
            result['negative_valid'] = np.bool_(wrong is not None)
        return {**{k: v for k, v in example.items() if k != key}, **result}

    spec = {'name': 'tokenize', 'tokenizer': identity, 'key': key}
    return PerExample(apply, spec if groups is None else {**spec, 'exchange': [list(group) for group in groups]})


def text_embeddings(folder: str, key: str = 'caption', negative: str | None = None, keep: bool = False) -> PerExample:
    """Text to `encoder_hidden_states` float32 [L, C] and `pooled` float32 [C], read from a cache on disk.

    A list or tuple of captions has one drawn for each position, the same one that `tokenize` would draw.

    Args:
        folder: made by `gen-jax embed-text`, see `gen_jax.data.text_cache`; or the one around it.
        key: the entry that holds the text; it is replaced.
        negative: the text that stands for no condition, mostly the empty one, or for what a picture should not be; its
            `negative_encoder_hidden_states` and `negative_pooled` are added. None: neither.
        keep: the text that was read stays in the entry.

    Raises:
        ValueError: no cache there; where an example has no captions, or one that the cache lacks.
    """
    cache = open_text_cache(folder)
    more = {} if negative is None else {f'negative_{k}': v for k, v in zip(TEXT, cache[negative], strict=True)}

    def apply(example: Example, rng) -> Example:
        text = _drawn_text('text_embeddings', example, key, rng)
        others = {k: v for k, v in example.items() if k != key}
        return {**others, **dict(zip(TEXT, cache[text], strict=True)), **more, **({key: text} if keep else {})}

    return PerExample(apply, {'name': 'text_embeddings', 'cache': dict(cache.meta), 'key': key, 'negative': negative,
                              'keep': keep})
