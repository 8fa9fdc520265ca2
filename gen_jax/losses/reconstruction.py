"""Reconstruction errors and likelihoods: arrays [B, ...] -> a sum, or nats, per example [B].

Images live in [-1, 1]; an image of L levels has its level k at 2 k / (L - 1) - 1.
"""

import jax
import jax.numpy as jnp

from gen_jax.types import Array

__all__ = ['bernoulli_nll', 'discretised_logistic_log_prob', 'discretised_logistic_nll', 'discretised_logistic_sample',
           'gaussian_nll', 'image_to_level', 'level_to_image', 'local_contrast', 'reconstruction_error']


def _per_example(x: Array) -> Array:
    return x.reshape(x.shape[0], -1).sum(-1)


def _check_levels(levels: int) -> None:
    if levels < 2:
        raise ValueError(f'levels is {levels}; a discretised likelihood needs at least 2 grey levels')


def image_to_level(image: Array, levels: int) -> Array:
    """[-1, 1] -> the nearest of the levels 0 .. levels - 1, int32 of the same shape."""
    _check_levels(levels)
    return jnp.clip(jnp.round((image + 1) * 0.5 * (levels - 1)), 0, levels - 1).astype(jnp.int32)


def level_to_image(level: Array, levels: int) -> Array:
    """The levels 0 .. levels - 1 -> float32 in [-1, 1]; inverse of `image_to_level`."""
    _check_levels(levels)
    return level.astype(jnp.float32) * (2.0 / (levels - 1)) - 1


def bin_centres(level: Array, levels: int) -> Array:
    """Level k at 2 (k + 1/2) / levels - 1, float32: the middle of its bin where the bins fill [-1, 1] evenly."""
    _check_levels(levels)
    return (2.0 * level.astype(jnp.float32) + 1.0) / levels - 1.0


def nearest_level(x: Array, levels: int) -> Array:
    """The level whose bin holds x, int32; inverse of `bin_centres`. Values beyond [-1, 1] belong to the end bins."""
    _check_levels(levels)
    return jnp.clip(jnp.floor((x + 1.0) * (0.5 * levels)), 0, levels - 1).astype(jnp.int32)


def discretised_logistic_log_prob(level: Array, mean: Array, log_scale: Array, levels: int) -> Array:
    """log P(level) of a logistic distribution whose mass is collected into bins, elementwise.

    Level k owns the bin of width 2 / (levels - 1) around 2 k / (levels - 1) - 1; the first bin reaches to -inf and
    the last to +inf, so the probabilities sum to 1 exactly (Kingma et al. 2016, arXiv:1606.04934, eq. 13; Salimans
    et al. 2017, arXiv:1701.05517, section 2.1).

    Args:
        level: integers 0 .. levels - 1, any shape.
        mean: location in the units of the image, broadcastable to level.
        log_scale: log of the logistic's scale, broadcastable to level.
        levels: how many grey levels there are.

    Returns:
        Nats (at most 0), float32, shaped like level.
    """
    _check_levels(levels)
    half = 1.0 / (levels - 1)
    centred = level_to_image(level, levels) - mean.astype(jnp.float32)
    inverse_scale = jnp.exp(-log_scale.astype(jnp.float32))
    upper, lower = (centred + half) * inverse_scale, (centred - half) * inverse_scale
    below, above = jax.nn.log_sigmoid(upper), jax.nn.log_sigmoid(-lower)
    # sigmoid(u) - sigmoid(l) = sigmoid(u) sigmoid(-l) (1 - exp(l - u)): exact, and finite far out in the tails where
    # the difference of the two sigmoids is 0. u - l is the bin's width over the scale, the same for every level.
    width = jnp.clip(2 * half * inverse_scale, 1e-12)
    inner = below + above + jnp.log(-jnp.expm1(-width))
    return jnp.where(level == 0, below, jnp.where(level == levels - 1, above, inner))


def discretised_logistic_nll(level: Array, mean: Array, log_scale: Array, levels: int) -> Array:
    """-log P(level) under `discretised_logistic_log_prob`, summed over all axes but the first: nats [B]."""
    return -_per_example(discretised_logistic_log_prob(level, mean, log_scale, levels))


def discretised_logistic_sample(uniform: Array, mean: Array, log_scale: Array, levels: int) -> Array:
    """Draw a level by inverting the logistic distribution function at `uniform` in [0, 1): int32, shaped like it."""
    _check_levels(levels)
    uniform = jnp.clip(uniform, 1e-7, 1 - 1e-7)
    drawn = mean + jnp.exp(log_scale) * (jnp.log(uniform) - jnp.log1p(-uniform))
    return image_to_level(drawn, levels)


def gaussian_nll(x: Array, mean: Array, log_var: Array) -> Array:
    """-log N(x; mean, exp(log_var)) with its constant, summed over all axes but the first: nats [B].

    A density, not a probability: it may be negative, and bits/dim of it compare only at the same scaling of x.
    """
    x, mean, log_var = (v.astype(jnp.float32) for v in (x, mean, jnp.asarray(log_var)))
    nll = 0.5 * (jnp.square(x - mean) * jnp.exp(-log_var) + log_var + jnp.log(2 * jnp.pi))
    return _per_example(jnp.broadcast_to(nll, x.shape))


def bernoulli_nll(x: Array, logits: Array) -> Array:
    """Cross-entropy of x in [0, 1] (not [-1, 1]) under Bernoulli(sigmoid(logits)), summed: nats [B]."""
    x, logits = x.astype(jnp.float32), logits.astype(jnp.float32)
    return _per_example(jax.nn.softplus(logits) - x * logits)


def reconstruction_error(x: Array, y: Array, kind: str = 'l1', weight: Array | None = None) -> Array:
    """sum weight |x - y| ('l1') or sum weight (x - y)^2 ('l2') over all axes but the first: [B], float32.

    Args:
        weight: broadcastable to x; None is 1.

    Raises:
        ValueError: unknown kind.
    """
    if kind not in ('l1', 'l2'):
        raise ValueError(f'unknown reconstruction error {kind!r}; choose l1 or l2')
    delta = x.astype(jnp.float32) - y.astype(jnp.float32)
    error = jnp.abs(delta) if kind == 'l1' else jnp.square(delta)
    return _per_example(error if weight is None else jnp.broadcast_to(weight * error, x.shape))


def local_contrast(image: Array) -> Array:
    """Largest less smallest value of the 3x3 neighbourhood, of the channel where it is largest, halved.

    Args:
        image: [B, H, W, C] in [-1, 1].

    Returns:
        [B, H, W, 1] in [0, 1].
    """
    window = ((1, 3, 3, 1), (1, 1, 1, 1), 'SAME')
    highest = jax.lax.reduce_window(image, -jnp.inf, jax.lax.max, *window)
    lowest = jax.lax.reduce_window(image, jnp.inf, jax.lax.min, *window)
    return 0.5 * (highest - lowest).max(-1, keepdims=True)
