"""What systems ask of a batch, with one wording for what is missing."""

from collections.abc import Mapping, Sequence

from gen_jax.types import Array, Batch, Cond

__all__ = ['arguments', 'condition_of', 'images_of']


def condition_of(batch: Batch, cond: Mapping[str, str]) -> Cond:
    """{network keyword: batch[key]} for cond = {network keyword: batch key}.

    Raises:
        ValueError: a key that the batch lacks.
    """
    missing = [key for key in cond.values() if key not in batch]
    if missing:
        raise ValueError(f'the batch has no {missing[0]!r}, which conditions the network: it has {sorted(batch)}; '
                         'use a source with labels, or a system without cond')
    return {name: batch[key] for name, key in cond.items()}


def arguments(cond: Cond) -> dict:
    """A network's keyword arguments, some of which are dicts: {'a': x, 'b/c': y} -> {'a': x, 'b': {'c': y}}."""
    tree: dict = {}
    for name, value in cond.items():
        *outer, last = name.split('/')
        node = tree
        for part in outer:
            node = node.setdefault(part, {})
        node[last] = value
    return tree


def images_of(batch: Batch, image_shape: Sequence[int]) -> Array:
    """batch['image'] [B, H, W, C].

    Raises:
        ValueError: there is none, or it is of another (H, W, C).
    """
    if 'image' not in batch:
        raise ValueError(f"the batch has no 'image': it has {sorted(batch)}")
    image = batch['image']
    if tuple(image.shape[1:]) != tuple(image_shape):
        raise ValueError(f'images of shape {tuple(image.shape[1:])} for a model of image_shape {tuple(image_shape)}; '
                         'set data.options or transforms, or system.image_shape')
    return image
