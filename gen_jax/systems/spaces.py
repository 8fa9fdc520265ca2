"""Where a diffusion model lives: how a batch becomes x0, and x0 a picture. Pixels, or the latents of an autoencoder."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gen_jax.losses.reconstruction import bin_centres, image_to_level, level_to_image, nearest_level
from gen_jax.sampling.likelihood import dequantise as bins
from gen_jax.systems.inputs import images_of
from gen_jax.types import Array, Batch, PyTree, Variables

__all__ = ['Space', 'latents', 'pixels', 'to_range']


class Space(NamedTuple):
    """How x0 relates to a batch; `variables` holds `extra` and `frozen`."""

    shape: tuple[int, ...]
    """(h, w, c) of x0."""
    read: Callable[..., Array]
    """(variables, batch, noise=None) -> x0 [B, h, w, c]; noise draws what is random about it in training."""
    show: Callable[[Variables, Array], Array]
    """(variables, x) -> images [B, H, W, C] in [-1, 1]."""
    centred: bool
    """Whether x0 lies in [-1, 1], so that it may be thresholded."""
    keep: Callable[[Array], Array] = lambda mask: mask
    """A mask [B, H, W, 1] of the known pixels -> [B, h, w, 1], where x0 is known."""
    extra: Callable[[Batch], dict[str, PyTree]] = lambda batch: {}
    """First batch -> what is measured on it and belongs to the state."""
    frozen: Mapping[str, PyTree] = {}
    """Weights that it reads, as `System.frozen` has them."""


def to_range(image: Array, low: float, high: float) -> Array:
    """[-1, 1] to [low, high]."""
    return image if (low, high) == (-1.0, 1.0) else low + 0.5 * (high - low) * (image + 1.0)


def pixels(image_shape: Sequence[int], levels: int = 256, dequantise: bool = False,
           image_range: tuple[float, float] = (-1.0, 1.0)) -> Space:
    """x0 is the picture, scaled to `image_range`.

    Args:
        levels: grey levels of the data.
        dequantise: x0 fills its bins evenly in training, and is the middle of its bin otherwise.
    """
    low, high = image_range
    whole = (low, high) == (-1.0, 1.0)

    def read(variables, batch, noise=None):
        del variables
        image = images_of(batch, image_shape)
        if dequantise and noise is not None:
            image = bins(noise, image, levels, inside=True)
        elif dequantise:
            image = bin_centres(image_to_level(image, levels), levels)
        return to_range(image, low, high)

    def show(variables, x):
        """Clipped to [-1, 1]; a model of dequantised data draws grey levels."""
        del variables
        image = jnp.clip(x if whole else 2.0 * (x - low) / (high - low) - 1.0, -1.0, 1.0)
        return level_to_image(nearest_level(image, levels), levels) if dequantise else image

    return Space(tuple(image_shape), read, show, whole)


def latents(first_stage, image_shape: Sequence[int], scaling_factor: float | None = None) -> Space:
    """x0 is a latent of a frozen autoencoder, scaled to unit variance (Rombach et al. 2022, section 3 and App. G).

    A batch holds 'mean' [B, h, w, c], what `gen-jax cache` wrote, and in training perhaps 'log_var', of which posterior
    a latent is drawn; or else 'image', which is encoded.

    Args:
        first_stage: Linen module with `encode(image) -> (mean, log_var)` and `decode(z) -> image`; its weights are
            frozen['first_stage'].
        image_shape: (H, W, C) of the pictures.
        scaling_factor: what latents are multiplied by; None: 1 / their standard deviation over the first batch, kept
            as extra['scaling_factor'].

    Raises:
        ValueError: a factor that is not positive, or a first stage that cannot take such pictures.
    """
    if scaling_factor is not None and not 0 < scaling_factor < math.inf:
        raise ValueError(f'scaling_factor {scaling_factor}: a positive number, or None to measure it')
    picture = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    weights = jax.eval_shape(first_stage.init, jax.random.key(0), picture)['params']
    mean, _ = jax.eval_shape(lambda p, x: first_stage.apply({'params': p}, x, method='encode'), weights, picture)
    shape = tuple(mean.shape[1:])

    def call(variables, method, x):
        return first_stage.apply({'params': variables.frozen['first_stage']}, x, method=method)

    def posterior(variables, batch):
        if 'mean' not in batch:
            return call(variables, 'encode', images_of(batch, image_shape))
        if tuple(batch['mean'].shape[1:]) != shape:
            raise ValueError(f"cached latents of shape {tuple(batch['mean'].shape[1:])}, but system.first_stage makes "
                             f'{shape} of pictures {tuple(image_shape)}: cache them with that network')
        return batch['mean'], batch.get('log_var')

    def factor(variables):
        return variables.extra['scaling_factor'] if scaling_factor is None else jnp.float32(scaling_factor)

    def read(variables, batch, noise=None):
        mean, log_var = posterior(variables, batch)
        if noise is not None and log_var is not None:
            mean = mean + jnp.exp(0.5 * log_var) * noise.normal('posterior', mean)
        return mean * factor(variables)

    def show(variables, x):
        return jnp.clip(call(variables, 'decode', x / factor(variables)), -1.0, 1.0)

    def keep(mask):
        """A latent is known where all its pixels are."""
        h, w = shape[:2]
        blocks = mask.reshape(mask.shape[0], h, mask.shape[1] // h, w, mask.shape[2] // w, 1)
        return (blocks.min((2, 4)) >= 1).astype(mask.dtype)

    def extra(batch):
        if scaling_factor is not None:
            return {}
        if 'mean' not in batch:
            raise ValueError(f"the batch has no 'mean' to measure the scale of latents on: it has {sorted(batch)}; "
                             "train on cached latents (gen-jax cache), or set system.scaling_factor")
        return {'scaling_factor': 1.0 / jnp.std(jnp.asarray(batch['mean'], jnp.float32))}

    return Space(shape, read, show, False, keep, extra, {'first_stage': weights})
