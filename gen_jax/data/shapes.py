"""`shapes`: procedural scenes of one to three objects with exact captions, boxes, masks, depth, edges and attributes.

Nothing is stored: example i of a split is a function of (seed, split, i), the same in every process and at every
image size (scenes live on a 32-unit canvas, see `shapes_render`).
"""

import operator
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gen_jax.data import shapes_captions, shapes_render
from gen_jax.data.shapes_render import CANVAS, COLOUR_NAMES, EXTENT, RADII, SHAPES, Thing

__all__ = ['FIELDS', 'HELD_OUT', 'Scene', 'Shapes', 'shapes']

VERSION = 1
"""Part of the fingerprint: raise it with any change that alters an example."""
SPLITS = {'train': 50_000, 'val': 2_000, 'test': 2_000, 'heldout': 2_000}
HELD_OUT = ((0, 6), (1, 2), (2, 4), (3, 0))
"""(shape, colour) that only the first object of a 'heldout' scene shows: purple circle, yellow square, cyan triangle,
red star. Every shape and every colour is seen in other combinations."""
FIELDS = ('image', 'label', 'caption', 'captions', 'num_objects', 'class_ids', 'shapes', 'colours', 'sizes', 'centres',
          'radii', 'relations', 'background', 'depth_order', 'boxes', 'masks', 'depth', 'edges')
MIN_VISIBLE = 0.6
_ACCEPT_VISIBLE = 0.65  # judged at 32 x 32; the slack covers the rounding of masks to pixels at other sizes
_NEAREST = 0.75  # least distance of two centres over the sum of their radii: overlap, but never concentric
_SEEN = [(s, c) for s in range(len(SHAPES)) for c in range(len(COLOUR_NAMES)) if (s, c) not in HELD_OUT]


class Scene(NamedTuple):
    """What is in a picture."""

    things: tuple[Thing, ...]
    depth_order: tuple[int, ...]
    """Per object its rank from the viewer, 0 in front."""
    background: float
    """Grey level: dark in [0.05, 0.3] or light in [0.7, 0.95]."""


def _kinds(rng, n: int, held_out: bool):
    """Shapes and colours of n objects, colours all different (so that a caption names each object uniquely)."""
    first = [HELD_OUT[rng.integers(len(HELD_OUT))]] if held_out else []
    while True:
        kinds = first + [_SEEN[k] for k in rng.integers(len(_SEEN), size=n - len(first))]
        if len({colour for _, colour in kinds}) == n:
            return kinds


def _visible_enough(things, depth_order) -> bool:
    visible, whole = shapes_render.masks(things, depth_order, int(CANVAS))
    return bool((visible.sum((1, 2)) >= _ACCEPT_VISIBLE * whole.sum((1, 2))).all())


def _sample_scene(rng, min_objects: int, max_objects: int, held_out: bool) -> Scene:
    n = int(rng.integers(min_objects, max_objects + 1))
    kinds = _kinds(rng, n, held_out)
    depth_order = tuple(rng.permutation(n).tolist()) if n > 1 else (0,)
    grey = float(rng.uniform(0.05, 0.3))
    background = grey if rng.random() < 0.5 else 1.0 - grey
    shape = np.array([s for s, _ in kinds])
    first, second = np.triu_indices(n, 1)
    while True:  # three large objects rarely fit: sizes are drawn again with the places
        size = rng.integers(2, size=n)
        radius = RADII[size, 0] + (RADII[size, 1] - RADII[size, 0]) * rng.random(n)
        reach = EXTENT[shape] * radius + 1.0  # one unit of background all around the picture
        places = reach[:, None] + (CANVAS - 2 * reach)[:, None] * rng.random((16, n, 2))
        apart = np.linalg.norm(places[:, first] - places[:, second], axis=-1)
        close = radius[first] + radius[second]
        for k in np.flatnonzero((apart >= _NEAREST * close).all(1)):
            things = tuple(Thing(int(s), int(c), int(z), float(x), float(y), float(r))
                           for (s, c), z, (x, y), r in zip(kinds, size, places[k], radius, strict=True))
            clear = (apart[k] >= np.sqrt(2.0) * close).all()  # no shape reaches further than this
            if clear or _visible_enough(things, depth_order):
                return Scene(things, depth_order, background)


class Shapes:
    """The source made by `shapes`; see there."""

    def __init__(self, split, image_size, size, seed, min_objects, max_objects, noise, fields):
        self._split, self._image_size, self._size, self._seed = split, image_size, size, seed
        self._min_objects, self._max_objects, self._noise, self._fields = min_objects, max_objects, noise, fields

    def __len__(self) -> int:
        return self._size

    @property
    def fingerprint(self) -> dict:
        return {'source': 'shapes', 'version': VERSION, 'split': self._split, 'image_size': self._image_size,
                'size': self._size, 'seed': self._seed, 'min_objects': self._min_objects,
                'max_objects': self._max_objects, 'noise': self._noise, 'fields': list(self._fields)}

    @property
    def info(self) -> dict:
        names = [f'{colour} {shape}' for shape in SHAPES for colour in COLOUR_NAMES]
        return {'image_shape': (self._image_size, self._image_size, 3), 'num_classes': len(names),
                'label_names': names, 'channels': 3, 'class_captions': shapes_captions.class_captions()}

    def _draw(self, index):
        index = operator.index(index)
        if not 0 <= index < self._size:
            raise IndexError(f'index {index} outside of shapes split {self._split!r} with {self._size} examples')
        split = list(SPLITS).index(self._split)
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self._seed, split, index])))
        return _sample_scene(rng, self._min_objects, self._max_objects, self._split == 'heldout'), rng

    def scene(self, index: int) -> Scene:
        """What example `index` shows, without drawing it."""
        return self._draw(index)[0]

    def __getitem__(self, index: int) -> dict:
        scene, rng = self._draw(index)
        out = {}
        if 'image' in self._fields:
            image = shapes_render.render(scene.things, scene.depth_order, scene.background, self._image_size)
            if self._noise:
                image += np.float32(self._noise) * rng.standard_normal(image.shape, np.float32)
            out['image'] = np.rint(np.clip(image, 0.0, 1.0) * np.float32(255)).astype(np.uint8)
        out.update(_describe(scene, self._fields))
        if not {'boxes', 'masks', 'depth', 'edges'}.isdisjoint(self._fields):
            out.update(_draw_truth(scene, self._image_size, self._max_objects))
        out.update(_attributes(scene, self._image_size, self._max_objects))
        return {name: out[name] for name in self._fields}


def _describe(scene: Scene, fields) -> dict:
    out = {}
    if 'caption' in fields or 'captions' in fields:
        out['captions'] = shapes_captions.captions(scene.things)
        out['caption'] = out['captions'][0]
    if 'relations' in fields:
        out['relations'] = shapes_captions.relations(scene.things)
    return out


def _draw_truth(scene: Scene, image_size: int, pad: int) -> dict:
    n = len(scene.things)
    masks = np.zeros((pad, image_size, image_size), bool)
    masks[:n] = shapes_render.masks(scene.things, scene.depth_order, image_size)[0]
    nearness = np.array([pad - rank for rank in scene.depth_order] + [0] * (pad - n))
    depth = (masks * nearness[:, None, None]).sum(0) * (255 // pad)
    return {'masks': masks, 'boxes': shapes_render.boxes(masks), 'edges': shapes_render.edges(masks),
            'depth': depth.astype(np.uint8)[:, :, None]}


def _attributes(scene: Scene, image_size: int, pad: int) -> dict:
    things, n = scene.things, len(scene.things)
    scale = image_size / CANVAS

    def padded(values):
        return np.array([*values, *[-1] * (pad - n)], np.int32)

    centres = np.zeros((pad, 2), np.float32)
    centres[:n] = [(t.x * scale, t.y * scale) for t in things]
    classes = [t.shape * len(COLOUR_NAMES) + t.colour for t in things]
    return {'label': np.int32(classes[0]), 'num_objects': np.int32(n), 'class_ids': padded(classes),
            'shapes': padded(t.shape for t in things), 'colours': padded(t.colour for t in things),
            'sizes': padded(t.size for t in things), 'depth_order': padded(scene.depth_order), 'centres': centres,
            'radii': np.array([*(t.radius * scale for t in things), *[0.0] * (pad - n)], np.float32),
            'background': np.float32(scene.background)}


def shapes(split: str = 'train', image_size: int = 32, size: int | None = None, seed: int = 0, min_objects: int = 1,
           max_objects: int = 3, noise: float = 0.02,
           fields: str | Sequence[str] = ('image', 'label', 'caption', 'captions')) -> Shapes:
    """Scenes of circles, squares, triangles and stars in eight colours and two sizes on a plain grey.

    Objects differ in colour, lie wholly inside of the picture and are at least 60 % visible. 'train', 'val' and
    'test' draw from 28 of the 32 shape-colour combinations; the first object of a 'heldout' scene has one of the
    other four (HELD_OUT).

    Args:
        split: 'train' | 'val' | 'test' | 'heldout'.
        image_size: pixels, at least 32; the same scenes at every size, the noise drawn per pixel.
        size: number of examples (by default 50,000 and three times 2,000); example i does not depend on it.
        seed: another seed, other scenes.
        min_objects, max_objects: number of objects per scene, uniform, within 1..3.
        noise: standard deviation of Gaussian pixel noise, of a range of 1.
        fields: what an example holds; 'all' or names of FIELDS. With P = max_objects rows, -1 or 0 behind the last:
            image uint8 [S, S, 3]; label int32 (), shape * 8 + colour of the first object; caption str; captions list
            of NUM_PHRASINGS str; num_objects int32 (); class_ids (shape * 8 + colour), shapes, colours, sizes,
            depth_order (0 in front) int32 [P]; centres float32 [P, 2] (x, y) and radii float32 [P] in pixels; boxes
            float32 [P, 4] (x0, y0, x1, y1) around what is visible; masks bool [P, S, S] of what is visible; depth
            uint8 [S, S, 1], brighter is nearer, background 0; edges uint8 [S, S, 1], 0 or 255; background float32 ();
            relations list of (i, 'left of', j).

    Raises:
        ValueError: an unknown split or field, a size below 32, a range of objects outside of 1..3, a negative seed or
            noise.
    """
    if split not in SPLITS:
        raise ValueError(f'shapes has no split {split!r}; choose from {list(SPLITS)}')
    if image_size < CANVAS:
        raise ValueError(f'image_size {image_size} is too small to tell the shapes apart; use at least {CANVAS:.0f}')
    if not 1 <= min_objects <= max_objects <= 3:
        raise ValueError(f'min_objects {min_objects} and max_objects {max_objects} must satisfy 1 <= min <= max <= 3')
    if seed < 0 or noise < 0:
        raise ValueError(f'seed {seed} and noise {noise} must not be negative')
    size = SPLITS[split] if size is None else size
    if size < 1:
        raise ValueError(f'size {size} must be at least 1 example')
    fields = FIELDS if fields == 'all' else (fields,) if isinstance(fields, str) else tuple(fields)
    unknown = [name for name in fields if name not in FIELDS]
    if unknown or not fields:
        raise ValueError(f"fields {unknown or fields} are not known; choose from {list(FIELDS)} or 'all'")
    return Shapes(split, int(image_size), int(size), int(seed), int(min_objects), int(max_objects), float(noise),
                  fields)
