"""Drawing for the procedural `shapes` scenes: signed distances, anti-aliased coverage, occlusion.

Scenes live on a canvas of 32 x 32 units whatever the resolution, so that one scene can be drawn at several sizes. x
points right, y points down, and pixel (row i, column j) has its centre at (j + 0.5, i + 0.5) before scaling.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

__all__ = ['CANVAS', 'COLOURS', 'COLOUR_NAMES', 'EXTENT', 'RADII', 'SHAPES', 'SIZES', 'Thing', 'boxes', 'coverage',
           'edges', 'masks', 'render']

CANVAS = 32.0
SHAPES = ('circle', 'square', 'triangle', 'star')
COLOUR_NAMES = ('red', 'orange', 'yellow', 'green', 'cyan', 'blue', 'purple', 'pink')
COLOURS = np.array([[0.88, 0.08, 0.08], [1.00, 0.52, 0.00], [1.00, 0.93, 0.10], [0.08, 0.65, 0.15],
                    [0.10, 0.88, 0.90], [0.08, 0.22, 0.95], [0.50, 0.10, 0.70], [1.00, 0.45, 0.80]], np.float32)
"""RGB in [0, 1], [8, 3]; saturated, so that none lies near the grey of a background."""
SIZES = ('small', 'large')
RADII = np.array([[4.0, 4.8], [6.0, 7.2]])
"""Range of the radius by size, in canvas units: the gap between them keeps 'small' and 'large' apart."""
EXTENT = np.array([1.0, 0.88, 1.25, 1.3])
"""By shape, its largest reach along an axis over the radius. The factors give the shapes areas of the same order
(3.1, 3.1, 2.0 and 2.2 radius^2), so that size does not betray shape."""
_STAR_INNER = 0.45


class Thing(NamedTuple):
    """One object: indices into SHAPES, COLOUR_NAMES and SIZES, and its geometry in canvas units."""

    shape: int
    colour: int
    size: int
    x: float
    y: float
    radius: float


def _signed_distance(shape: int, dx, dy, radius):
    """Distance to the outline, negative inside; dx [1, W] and dy [H, 1] are relative to the centre. [H, W]."""
    reach = EXTENT[shape] * radius
    if shape == 0:
        return np.sqrt(dx * dx + dy * dy) - reach
    if shape == 1:
        return np.maximum(np.abs(dx), np.abs(dy)) - reach
    if shape == 2:  # equilateral, apex up: three half-planes at the incircle's radius, half the circumradius
        return np.maximum(dy, 0.8660254 * np.abs(dx) - 0.5 * dy) - 0.5 * reach
    # A five-pointed star, tip up: fold the angle into one tenth of the turn, where the outline is a single segment
    # from the outer vertex (reach, 0) to the inner one.
    sector = np.pi / 5
    angle = np.abs(np.mod(np.arctan2(dx, -dy) + sector, 2 * sector) - sector)
    rho = np.sqrt(dx * dx + dy * dy)
    inner = _STAR_INNER * reach
    edge_x, edge_y = inner * np.cos(sector) - reach, inner * np.sin(sector)
    length = np.hypot(edge_x, edge_y)
    return (edge_y * (rho * np.cos(angle) - reach) - edge_x * rho * np.sin(angle)) / length


def _window(thing: Thing, image_size: int):
    scale = image_size / CANVAS
    reach = (EXTENT[thing.shape] * thing.radius) * scale + 1
    lo_x, hi_x = max(int(thing.x * scale - reach), 0), min(int(thing.x * scale + reach) + 1, image_size)
    lo_y, hi_y = max(int(thing.y * scale - reach), 0), min(int(thing.y * scale + reach) + 1, image_size)
    return slice(lo_y, hi_y), slice(lo_x, hi_x)


@lru_cache(maxsize=8)
def _grid(image_size: int):
    centres = np.arange(image_size, dtype=np.float32) + np.float32(0.5)
    centres.flags.writeable = False
    return centres


def coverage(thing: Thing, image_size: int = 32):
    """How much of each pixel the object covers, ignoring what hides it.

    Returns:
        (rows, columns), alpha: a window (two slices) that holds the whole object, and float32 [h, w] in [0, 1].
    """
    rows, columns = _window(thing, image_size)
    scale = image_size / CANVAS
    grid = _grid(image_size)
    dx = grid[None, columns] - np.float32(thing.x * scale)
    dy = grid[rows, None] - np.float32(thing.y * scale)
    distance = _signed_distance(thing.shape, dx, dy, thing.radius * scale)
    return (rows, columns), np.clip(0.5 - distance, 0.0, 1.0).astype(np.float32)


def render(things: Sequence[Thing], depth_order: Sequence[int], background: float, image_size: int = 32):
    """Paint the objects from back to front over a plain grey.

    Args:
        things: the objects.
        depth_order: per object its rank from the viewer, 0 in front.
        background: grey level in [0, 1].

    Returns:
        float32 [image_size, image_size, 3] in [0, 1], without noise.
    """
    image = np.full((image_size, image_size, 3), background, np.float32)
    for i in sorted(range(len(things)), key=lambda i: -depth_order[i]):
        window, alpha = coverage(things[i], image_size)
        patch = image[window]
        patch += alpha[:, :, None] * (COLOURS[things[i].colour] - patch)
    return image


def masks(things: Sequence[Thing], depth_order: Sequence[int], image_size: int = 32):
    """Instance masks.

    Returns:
        visible, whole: bool [n, H, W] each. A pixel belongs to an object that covers at least half of it; `visible`
        gives it to the front-most of them only, `whole` to all.
    """
    whole = np.zeros((len(things), image_size, image_size), bool)
    for i, thing in enumerate(things):
        window, alpha = coverage(thing, image_size)
        whole[i][window] = alpha >= 0.5
    visible, hidden = whole.copy(), np.zeros((image_size, image_size), bool)
    for i in sorted(range(len(things)), key=lambda i: depth_order[i]):
        visible[i] &= ~hidden
        hidden |= whole[i]
    return visible, whole


def boxes(instance_masks):
    """Tight boxes of masks bool [n, H, W]: float32 [n, 4], (x0, y0, x1, y1) in pixels, ends exclusive; 0 if empty."""
    out = np.zeros((len(instance_masks), 4), np.float32)
    for i, mask in enumerate(instance_masks):
        columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
        if len(columns):
            out[i] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return out


def edges(instance_masks):
    """Outlines between instances and background from visible masks bool [n, H, W]: uint8 [H, W, 1], 0 or 255."""
    owner = (instance_masks * np.arange(1, len(instance_masks) + 1)[:, None, None]).sum(0)
    out = np.zeros(owner.shape, bool)
    out[:, :-1] |= owner[:, :-1] != owner[:, 1:]
    out[:-1] |= owner[:-1] != owner[1:]
    return (out * np.uint8(255))[:, :, None]
