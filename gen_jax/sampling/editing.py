"""Where sampling starts: from a picture (SDEdit, img2img), or between two latent noises."""

import jax.numpy as jnp

from gen_jax.diffusion.process import expand, perturb
from gen_jax.types import Array, Level

__all__ = ['start_from', 'lerp', 'slerp']


def start_from(noise, x0: Array, grid: Level) -> Array:
    """alpha x0 + sigma z at the first row of a grid: SDEdit and img2img (Meng et al. 2022, Eq. 4).

    Args:
        noise: a per-example source; z is the draw of `prior`, so that strength 1 on a grid that starts at alpha = 0
            is sampling without the picture, seed for seed.
        x0: the picture or its latent [B, ...], in the model's range.
        grid: `truncate(grid, strength)`: the smaller the strength, the closer the result stays to x0.
    """
    first = Level(*(leaf[0] for leaf in grid))
    return perturb(x0, noise.normal('x_T', x0), first)


def _weight(weight, a: Array, b: Array) -> Array:
    if jnp.shape(a) != jnp.shape(b):
        raise ValueError(f'both ends must have one shape, got {jnp.shape(a)} and {jnp.shape(b)}.')
    if isinstance(weight, (int, float)) and not 0 <= weight <= 1:
        raise ValueError(f'weight must lie within [0, 1], got {weight}.')
    return expand(weight, a)


def lerp(a: Array, b: Array, weight) -> Array:
    """(1 - weight) a + weight b. Arguments and errors as in `slerp`."""
    w = _weight(weight, a, b)
    return (1.0 - w) * a + w * b


def slerp(a: Array, b: Array, weight) -> Array:
    """Spherical interpolation of noises (Shoemake 1985; Song et al. 2021, Eq. 67), which keeps their length typical.

    sin((1 - weight) theta) / sin(theta) a + sin(weight theta) / sin(theta) b, theta being the angle between the two,
    all axes of an example flattened. The ends are exact. Vectors that are parallel, opposite or 0 define no arc: they
    are interpolated linearly.

    Args:
        a, b: [B, ...].
        weight: 0 (a) .. 1 (b), () or [B], may be traced.

    Raises:
        ValueError: different shapes, or a Python number outside [0, 1].
    """
    w = _weight(weight, a, b)
    axes = tuple(range(1, a.ndim))
    dot = lambda u, v: jnp.sum(u * v, axis=axes, keepdims=True)  # noqa: E731
    lengths = jnp.sqrt(dot(a, a) * dot(b, b))
    cosine = dot(a, b) / jnp.where(lengths == 0, 1.0, lengths)
    straight = (lengths == 0) | (jnp.abs(cosine) > 0.9995)
    theta = jnp.arccos(jnp.where(straight, 0.0, cosine))
    share = lambda w: jnp.where(straight, w, jnp.sin(w * theta) / jnp.sin(theta))  # noqa: E731
    return share(1.0 - w) * a + share(w) * b
