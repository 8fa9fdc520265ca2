"""Whether pictures of `shapes` show what they should, by an oracle that reads them."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from gen_jax.metrics.mean import fetch
from gen_jax.types import Metric

__all__ = ['scenes']

_PARTS = ('all', 'count', 'colour', 'shape', 'size')


class Named(NamedTuple):
    """An object that should be there, by its indices."""

    shape: int
    colour: int
    size: int


def scenes(oracle: Callable, prediction: str = 'image', name: str = 'scene', caption: str = '') -> Metric:
    """Share of pictures that the oracle reads exactly right: as many objects as there should be, each of the right
    shape, colour and size.

    Gives `name` (everything right), `name_stderr` (binomial), `name_count`, `name_colour`, `name_shape`, `name_size`
    (that part of every object right) and `name_recipe`. What should be there are the outputs 'shapes', 'colours' and
    'sizes', int [B, P], -1 behind the last object, as the source `shapes` gives them on request (`fields`); or what a
    caption says, with `name_relations` (all that it names hold).

    Args:
        oracle: (picture, objects) -> which parts are right; `gen_jax.build` gives the source's.
        prediction: the output [B, S, S, 3] to read: uint8, or floating point in [-1, 1].
        caption: the output that holds the captions, if those are the truth.
    """
    parts = (*_PARTS, 'relations') if caption else _PARTS

    def wanted_of(outputs):
        if caption:
            return [str(text) for text in fetch(outputs, caption, name)]
        truth = [fetch(outputs, k, name) for k in ('shapes', 'colours', 'sizes')]
        return [tuple(Named(*(int(v) for v in row)) for row in zip(*rows, strict=True) if row[0] >= 0)
                for rows in zip(*truth, strict=True)]

    def update(state, outputs):
        images = fetch(outputs, prediction, name)
        hits = np.zeros(len(parts))
        for image, wanted in zip(images, wanted_of(outputs), strict=True):
            found: Mapping[str, bool] = oracle(image, wanted)
            hits += [found[part] for part in parts]
        return state + np.array([len(images), *hits])

    def compute(state):
        n = state[0]
        if n == 0:
            raise ValueError(f'metric {name} has seen no images: is the evaluated split empty?')
        shares = dict(zip(parts, (state[1:] / n).tolist(), strict=True))
        exact = shares.pop('all')
        return {name: exact, f'{name}_stderr': float(np.sqrt(exact * (1 - exact) / n)),
                **{f'{name}_{part}': share for part, share in shares.items()},
                f'{name}_recipe': {'n': int(n), 'of': prediction, 'exact': ', '.join(parts[1:])}}

    return Metric(lambda: np.zeros(1 + len(parts)), update, np.add, compute)
