"""Reading the objects back out of a `shapes` picture, real or generated, to score it against a prompt.

By colour: a picture is explained, pixel by pixel, as a mixture of its grey background and one of eight colours. Each
connected patch of a colour is then matched with templates of every shape, radius and sub-pixel position, where pixels
that another object may hide count for nothing.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import permutations
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from threadpoolctl import ThreadpoolController

from gen_jax.data.shapes_captions import RELATION_MARGIN, RELATIONS, Described, Prompt, parse_caption
from gen_jax.data.shapes_render import CANVAS, COLOURS, RADII, SHAPES, Thing, coverage

__all__ = ['UNREADABLE', 'Seen', 'compare', 'matches', 'oracle', 'read_scene']

UNREADABLE = -1
"""Shape of a patch of colour that looks like none of the four."""
MIN_AGREEMENT = 0.8
"""Least agreement (soft intersection over union) with the best template for a patch to be readable."""
_MIN_MASS = 8.0  # of a patch, in whole pixels: a small star of which 60 % is visible has over 20
_COLOUR_ERROR = 0.25  # largest RGB distance to a mixture of background and colour
_SIDE, _CENTRE = 23, 11  # of a template: holds the largest object
_REACH = 3  # pixels around a patch's middle where centres are tried: a triangle's centroid lies 2.3 below it
_RADII = np.arange(RADII[0, 0] - 0.6, RADII[1, 1] + 0.61, 0.3)
_SHIFTS = np.arange(-0.5, 0.5, 0.25) + 0.125
_SIZE_LIMIT = (RADII[0, 1] + RADII[1, 0]) / 2


class Seen(NamedTuple):
    """An object as read: indices as in `Thing`, centre and radius in canvas units of 1/32 of the picture."""

    shape: int
    """Index into SHAPES, or UNREADABLE."""
    colour: int
    size: int
    x: float
    y: float
    radius: float
    agreement: float
    """Soft intersection over union with the template, 0..1."""


@lru_cache(maxsize=1)
def _threads():
    # The products below are far too small for a BLAS that wakes all cores: beside a busy JAX, waiting for the
    # threads took 25 times as long as the work.
    return ThreadpoolController()


@lru_cache(maxsize=1)
def _templates():
    """Templates and their squares: two float32 [shape, radius, shift y, shift x, _SIDE * _SIDE]."""
    n = len(_SHIFTS)
    out = np.zeros((len(SHAPES), len(_RADII), n, n, _SIDE, _SIDE), np.float32)
    middle = _CENTRE + 0.5
    for index in np.ndindex(out.shape[:4]):
        shape, radius, i, j = index
        thing = Thing(shape, 0, 0, middle + _SHIFTS[j], middle + _SHIFTS[i], _RADII[radius])
        window, alpha = coverage(thing, int(CANVAS))
        canvas = np.zeros((int(CANVAS), int(CANVAS)), np.float32)
        canvas[window] = alpha
        out[index] = canvas[:_SIDE, :_SIDE]
    out = out.reshape(*out.shape[:4], -1)
    return out, out * out


def _unit(image) -> np.ndarray:
    """float32 [32, 32, 3] in [0, 1]."""
    image = np.asarray(image)
    side = int(CANVAS)
    if image.ndim != 3 or image.shape[2] != 3 or image.shape[0] != image.shape[1] or image.shape[0] % side:
        raise ValueError(f'the oracle reads images [S, S, 3] with S a multiple of {side}, not {image.shape}')
    if image.dtype == np.uint8:
        unit = image.astype(np.float32) / 255
    elif np.issubdtype(image.dtype, np.floating):
        if not np.isfinite(image).all():
            raise ValueError('the image holds NaN or infinity')
        unit = np.clip(image.astype(np.float32) * 0.5 + 0.5, 0.0, 1.0)
    else:
        raise ValueError(f'the oracle reads uint8, or float in [-1, 1], not {image.dtype}')
    k = image.shape[0] // side
    return unit if k == 1 else unit.reshape(side, k, side, k, 3).mean((1, 3))


def _background(unit) -> np.ndarray:
    """RGB [3]: the median of the picture's rim, which no object reaches."""
    return np.median(np.concatenate([unit[0], unit[-1], unit[1:-1, 0], unit[1:-1, -1]]), axis=0)


def _unmix(unit, background, colours):
    """Explain pixels as background + alpha (colour - background).

    Returns:
        alpha float32 [K, 32, 32] in [0, 1] and the RGB distance of the explanation [K, 32, 32].
    """
    axis = colours - background
    pixels = unit.reshape(-1, 3) - background
    alpha = np.clip(axis @ pixels.T / (axis * axis).sum(1)[:, None], 0.0, 1.0)
    # |pixel - alpha axis|^2, expanded so that no [K, 1024, 3] array is made.
    square = (pixels * pixels).sum(1) - 2 * alpha * (axis @ pixels.T) + alpha**2 * (axis * axis).sum(1)[:, None]
    return alpha.reshape(-1, *unit.shape[:2]), np.sqrt(np.maximum(square, 0)).reshape(-1, *unit.shape[:2])


def _present(unit, background) -> np.ndarray:
    """Indices of the colours that fill at least one block of 2 x 2 pixels, rims of mixed colour being thinner."""
    known = np.concatenate([COLOURS, background[None]])
    pixels = unit.reshape(-1, 3)
    square = (pixels * pixels).sum(1)[:, None] - 2 * pixels @ known.T + (known * known).sum(1)
    nearest = square.argmin(1)
    label = np.where(square.min(1) < _COLOUR_ERROR**2, nearest, -1).reshape(unit.shape[:2])
    same = (label[1:, 1:] == label[:-1, 1:]) & (label[1:, 1:] == label[1:, :-1]) & (label[1:, 1:] == label[:-1, :-1])
    counts = np.bincount(label[1:, 1:][same] + 1, minlength=len(known) + 1)[1:]
    return np.flatnonzero(counts[:len(COLOURS)])


def _errors(seen, weight, templates, squares):
    """sum over pixels of weight (target - template)^2, less a constant: [places, templates]."""
    flat = templates.reshape(-1, templates.shape[-1])
    return weight @ squares.reshape(flat.shape).T - 2 * seen @ flat.T


def _fit(target, weight):
    """The template that explains a patch best: whole pixels and every second radius first, then finer, by shape.

    Args:
        target: float32 [32, 32], how much of each pixel the patch covers.
        weight: float32 [32, 32], 0 where another object may hide this one.

    Returns:
        (shape, x, y, radius, agreement), and the template on the picture, float32 [32, 32].
    """
    templates, squares = _templates()
    side = int(CANVAS)
    seen = target * weight
    rows, columns = np.nonzero(seen > 0.3)
    near_y = np.clip((rows.min() + rows.max()) // 2 + np.arange(-_REACH, _REACH + 1), 0, side - 1)
    near_x = np.clip((columns.min() + columns.max()) // 2 + np.arange(-_REACH, _REACH + 1), 0, side - 1)

    def windows(array, outside):
        padded = np.full((side + 2 * _CENTRE, side + 2 * _CENTRE), outside, np.float32)
        padded[_CENTRE:-_CENTRE, _CENTRE:-_CENTRE] = array
        view = np.lib.stride_tricks.sliding_window_view(padded, (_SIDE, _SIDE))
        return view[near_y[:, None], near_x].reshape(len(near_y) * len(near_x), -1)

    seen, weight = windows(seen, 0.0), windows(weight, 1.0)
    middle = len(_SHIFTS) // 2
    coarse = _errors(seen, weight, templates[:, ::2, middle, middle], squares[:, ::2, middle, middle])
    coarse = coarse.reshape(len(near_y), len(near_x), len(SHAPES), -1)
    places = np.arange(len(seen)).reshape(coarse.shape[:2])
    best = None
    for shape in range(len(SHAPES)):
        i, j, r = np.unravel_index(coarse[:, :, shape].argmin(), (*coarse.shape[:2], coarse.shape[3]))
        around = places[max(i - 1, 0):i + 2, max(j - 1, 0):j + 2].ravel()
        first = max(2 * r - 1, 0)
        some = (shape, slice(first, 2 * r + 2))
        error = _errors(seen[around], weight[around], templates[some], squares[some])
        place, k = np.unravel_index(error.argmin(), error.shape)
        if best is None or error[place, k] < best[0]:
            best = error[place, k], shape, around[place], first, k
    _, shape, place, first, k = best
    r, shift_y, shift_x = np.unravel_index(k, (len(_RADII), len(_SHIFTS), len(_SHIFTS)))
    r += first
    template = templates[shape, r, shift_y, shift_x]
    both = np.minimum(seen[place], weight[place] * template).sum()
    agreement = both / np.maximum(seen[place], weight[place] * template).sum()
    y, x = near_y[place // len(near_x)], near_x[place % len(near_x)]
    canvas = np.zeros((side + 2 * _CENTRE, side + 2 * _CENTRE), np.float32)
    canvas[y:y + _SIDE, x:x + _SIDE] = template.reshape(_SIDE, _SIDE)
    found = shape, x + 0.5 + _SHIFTS[shift_x], y + 0.5 + _SHIFTS[shift_y], _RADII[r], agreement
    return found, canvas[_CENTRE:-_CENTRE, _CENTRE:-_CENTRE]


def _read_colour(alpha, free):
    """The objects of one colour.

    Args:
        alpha: float32 [32, 32], how much of each pixel the colour covers (0 where another colour explains it better).
        free: bool [32, 32], False where another object may hide this colour.

    Yields:
        What `_fit` finds, largest patch first.
    """
    patches, count = ndimage.label(alpha > 0.3, np.ones((3, 3)))
    mass = np.bincount(patches.ravel(), alpha.ravel(), count + 1)
    left = [k for k in np.argsort(-mass) if k and mass[k] >= 1.0]
    while left and mass[left[0]] >= _MIN_MASS:
        if len(left) == 1 and count == 1:
            yield _fit(alpha, free.astype(np.float32))[0]
            return

        def match(mine):
            near = ndimage.binary_dilation(np.isin(patches, mine), np.ones((3, 3)))
            theirs = (patches > 0) & ~np.isin(patches, mine)
            return _fit(alpha * (near & ~theirs), (free & ~theirs).astype(np.float32))

        mine = left[:1]
        found, template = match(mine)
        # Something in front may cut an object in two: patches under its template are parts of it.
        parts = [k for k in left[1:] if (template * (patches == k)).sum() > 0.6 * (patches == k).sum()]
        if parts:
            mine = mine + parts
            found, _ = match(mine)
        yield found
        left = [k for k in left if k not in mine]


def read_scene(image) -> list[Seen]:
    """The objects in a picture.

    Args:
        image: uint8, or float in [-1, 1] as models make it (clipped); [S, S, 3] with S a multiple of 32 (larger ones
            are averaged down).

    Returns:
        Objects by colour, then by visible area. A patch of colour that looks like no shape counts as an object whose
        shape is UNREADABLE, so that a picture with debris matches no prompt.

    Raises:
        ValueError: another shape or type, or NaN.
    """
    unit = _unit(image)
    background = _background(unit)
    present = _present(unit, background)
    if not len(present):
        return []
    alpha, error = _unmix(unit, background, COLOURS[present])
    best = error.argmin(0)
    owned = np.take_along_axis(alpha, best[None], 0)[0]
    murky = error.min(0) > 0.15  # two objects share the pixel
    out = []
    with _threads().limit(limits=1, user_api='blas'):
        for k, colour in enumerate(present):
            mine = (best == k) & ~murky
            free = mine | ((owned < 0.15) & ~murky)
            # Against a background not far from the colour, noise alone looks like a little of it.
            for shape, x, y, radius, agreement in _read_colour(alpha[k] * (mine & (alpha[k] > 0.15)), free):
                shape = shape if agreement >= MIN_AGREEMENT else UNREADABLE
                out.append(Seen(shape, int(colour), int(radius > _SIZE_LIMIT), float(x), float(y), float(radius),
                                float(agreement)))
    return out


def _holds(a: Seen, relation: str, b: Seen) -> bool:
    gaps = dict(zip(RELATIONS, (b.x - a.x, a.x - b.x, b.y - a.y, a.y - b.y), strict=True))
    return gaps[relation] >= RELATION_MARGIN - 1.0  # as read, a pixel less than as meant


def _prompt(wanted) -> Prompt:
    if isinstance(wanted, str):
        return parse_caption(wanted)
    if isinstance(wanted, Prompt):
        return wanted
    return Prompt(tuple(Described(t.shape, t.colour, t.size) for t in wanted), ())


def _agree(seen: Seen, asked: Described, parts: Sequence[str]) -> bool:
    return all(getattr(asked, part) in (None, getattr(seen, part)) for part in parts)


def compare(scene_read: Sequence[Seen], wanted) -> dict[str, bool]:
    """Which parts of a prompt a picture got right.

    Args:
        scene_read: from `read_scene`.
        wanted: a caption, a `Prompt`, or objects with `shape`, `colour` and `size` (`Thing`, `Described`), each of
            which may be None for 'any'.

    Returns:
        'count': as many objects as named; and under the best assignment of objects to names, whether every name has
        its 'colour', its 'shape', its 'size' (True where none is asked for), and whether the 'relations' hold;
        'all': everything together under one assignment.
    """
    prompt = _prompt(wanted)
    n = len(prompt.objects)
    out = {'count': len(scene_read) == n, 'colour': False, 'shape': False, 'size': False, 'relations': False,
           'all': False}
    best = -1
    for chosen in permutations(scene_read, n):
        pairs = list(zip(chosen, prompt.objects, strict=True))
        right = {part: all(_agree(s, d, (part,)) for s, d in pairs) for part in ('colour', 'shape', 'size')}
        right['relations'] = all(_holds(chosen[i], name, chosen[j]) for i, name, j in prompt.relations)
        # Objects are told apart by colour first, the most reliable of what is read.
        score = sum(100 * _agree(s, d, ('colour',)) + 10 * _agree(s, d, ('shape',)) + _agree(s, d, ('size',))
                    for s, d in pairs) + 0.5 * right['relations']
        if score > best:
            best = score
            out |= right
    out['all'] = all(out[part] for part in ('count', 'colour', 'shape', 'size', 'relations'))
    return out


def matches(scene_read: Sequence[Seen], wanted) -> bool:
    """Whether a picture shows exactly what was asked for, and nothing else; `wanted` as in `compare`."""
    return compare(scene_read, wanted)['all']


def oracle(image, wanted) -> dict[str, bool]:
    """Which parts of a prompt a picture got right: `compare` of what `read_scene` sees."""
    return compare(read_scene(image), wanted)
