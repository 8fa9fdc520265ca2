"""Autoencoders on images too large for one piece: overlapping tiles whose seams are blended, and one image at a time.

Both are functions of functions over arrays, so that any encoder and decoder can be wrapped, inside or outside jit. What
is computed per tile is one `lax.map` per tile shape: the memory is that of one tile, whatever the image's size, and a
shape is compiled once. Tiles change the result: norms and attention see a tile instead of the image.

Stable Diffusion's autoencoder at 512x512 in float32, one image, beside its weights (134 MiB to encode, 189 to decode),
as XLA plans it on a CPU: 384 MiB to encode and 640 MiB to decode whole, 112 and 165 MiB in tiles of 256 pixels.
"""

from collections.abc import Callable
from fractions import Fraction

import jax.numpy as jnp
from jax import lax

from gen_jax.models.autoencoder_kl import AutoencoderKL, check_image, split_moments
from gen_jax.types import Array, PyTree

__all__ = ['sliced', 'tile_starts', 'tiled', 'tiled_decode', 'tiled_encode']


def sliced(apply: Callable[[Array], PyTree]) -> Callable[[Array], PyTree]:
    """`apply` one example after the other, so that its memory does not grow with the batch.

    Args:
        apply: [B, ...] -> arrays [B, ...], every example on its own.
    """
    return lambda x: lax.map(lambda one: _first(apply(one[None])), x)


def _first(tree: PyTree) -> PyTree:
    if isinstance(tree, tuple):
        return tuple(y[0] for y in tree)
    return tree[0]


def tile_starts(length: int, tile: int, step: int) -> list[tuple[int, int]]:
    """(start, size) of the tiles along an axis, a tile every `step`; those that reach over the end are cut."""
    return [(start, min(tile, length - start)) for start in range(0, length, step)]


def tiled(
    apply: Callable[[Array], Array], x: Array, *, tile: int, overlap: float = 0.25, scale: Fraction | int = 1
) -> Array:
    """`apply` to overlapping tiles of x, the results blended linearly where they overlap.

    The rule of the published pipelines: a tile starts every tile (1 - overlap); a result fades into its upper
    neighbour and then into its left one; both axes are cut as soon as one of them is longer than a tile.

    Args:
        apply: [B, h, w, C] -> [B, scale h, scale w, C'], of any size up to `tile`.
        x: [B, H, W, C].
        tile: the side of a tile, in x.
        overlap: the part of a tile that it shares with the next one, in [0, 1).
        scale: 8 for an f8 decoder, Fraction(1, 8) for its encoder.

    Returns:
        [B, scale H, scale W, C']; `apply(x)` itself if x is no larger than a tile.

    Raises:
        ValueError: tile or overlap out of range, or their product, the overlap of two tiles, not whole in x and in
            the result.
    """
    scale = Fraction(scale)
    if tile < 1 or not 0 <= overlap < 1:
        raise ValueError(f'tile={tile}, overlap={overlap}: give a positive side and an overlap in [0, 1)')
    if max(x.shape[1:3]) <= tile:
        return apply(x)
    shared = Fraction(overlap).limit_denominator(1 << 16) * tile
    if any(length.denominator > 1 for length in (tile * scale, shared, shared * scale)):
        grid = max(scale.denominator, 1)
        raise ValueError(
            f'tile={tile} with overlap={overlap} shares {float(shared):g} of its side with the next one; the tile and '
            f'the shared part must be whole multiples of {grid}: choose another tile or overlap'
        )
    step, blend = tile - int(shared), int(shared * scale)
    rows, columns = (tile_starts(side, tile, step) for side in x.shape[1:3])
    results = {}
    for shape in dict.fromkeys((h, w) for _, h in rows for _, w in columns):
        corners = [(top, left) for top, h in rows for left, w in columns if (h, w) == shape]

        def one(corner, shape=shape):
            sizes = (x.shape[0], *shape, x.shape[-1])
            return apply(lax.dynamic_slice(x, (0, corner[0], corner[1], 0), sizes))

        for corner, result in zip(corners, lax.map(one, jnp.asarray(corners)), strict=True):
            results[corner] = result

    keep, lines = int(step * scale), []
    for i, (top, _) in enumerate(rows):
        for j, (left, _) in enumerate(columns):
            result = results[top, left]
            if i:
                result = _fade(results[rows[i - 1][0], left], result, blend, axis=1)
            if j:
                result = _fade(results[top, columns[j - 1][0]], result, blend, axis=2)
            results[top, left] = result
        lines.append(jnp.concatenate([results[top, left][:, :keep, :keep] for left, _ in columns], 2))
    return jnp.concatenate(lines, 1)


def _fade(before: Array, after: Array, length: int, axis: int) -> Array:
    """`after`, its first `length` rows or columns fading in from the last ones of `before`."""
    length = min(length, before.shape[axis], after.shape[axis])
    if not length:
        return after
    weight = (jnp.arange(length) / length).reshape((-1, 1, 1) if axis == 1 else (-1, 1)).astype(after.dtype)
    old = lax.slice_in_dim(before, before.shape[axis] - length, None, axis=axis)
    new = lax.slice_in_dim(after, 0, length, axis=axis)
    rest = lax.slice_in_dim(after, length, None, axis=axis)
    return jnp.concatenate([old * (1 - weight) + new * weight, rest], axis)


def tiled_encode(
    vae: AutoencoderKL, variables: PyTree, image: Array, *, tile: int | None = None, overlap: float = 0.25
) -> tuple[Array, Array]:
    """`AutoencoderKL.encode` in tiles of `tile` pixels (None: its sample_size).

    Args:
        image: [B, H, W, in_channels] in [-1, 1].

    Returns:
        mean and log variance, [B, H / f, W / f, latent_channels] each.

    Raises:
        ValueError: see `tiled`; a side of the image not divisible by f.
    """
    check_image(vae, image)
    factor = Fraction(1, vae.downsampling_factor)
    moments = tiled(lambda part: vae.apply(variables, part, method='moments'), image, tile=tile or vae.sample_size,
                    overlap=overlap, scale=factor)
    return split_moments(moments)


def tiled_decode(
    vae: AutoencoderKL, variables: PyTree, z: Array, *, tile: int | None = None, overlap: float = 0.25
) -> Array:
    """`AutoencoderKL.decode` in tiles of `tile` latents (None: its sample_size / f).

    Args:
        z: [B, h, w, latent_channels].

    Returns:
        [B, f h, f w, out_channels].

    Raises:
        ValueError: see `tiled`.
    """
    factor = vae.downsampling_factor
    return tiled(lambda part: vae.apply(variables, part, method='decode'), z, tile=tile or vae.sample_size // factor,
                 overlap=overlap, scale=factor)
