"""The steps between two levels, in ONE place: q(x_t | x_s), and mean and variances of the reverse q(x_s | x_t, x0).

With r = (alpha_t sigma_s) / (alpha_s sigma_t), the square root of SNR_t / SNR_s, the posterior has variance
sigma_s^2 (1 - r^2) and the forward step q(x_t | x_s) has sigma_t^2 (1 - r^2), which is beta_t on a table of betas.
The sampler and the variational bound read the same numbers.
"""

from typing import NamedTuple

import jax.numpy as jnp

from gen_jax.diffusion.process import expand
from gen_jax.types import Array, Level

__all__ = ['MIN_VARIANCE', 'Posterior', 'interpolate_log_var', 'one_minus_r2', 'posterior', 'posterior_mean',
           'transition']

MIN_VARIANCE = 1e-20
"""Variances are not less than this where their logarithm is taken."""


class Posterior(NamedTuple):
    """q(x_s | x_t, x0) = N(c_x0 x0 + c_x x_t, exp(log_var_small)), all () or [B]; finite at every pair of levels."""

    c_x0: Array
    """alpha_s (1 - r^2)."""
    c_x: Array
    """(alpha_t / alpha_s) (sigma_s / sigma_t)^2; 1 if t is the data already."""
    log_var_small: Array
    """log of the posterior's variance sigma_s^2 (1 - r^2): 'fixed_small'."""
    log_var_large: Array
    """log of the forward step's variance sigma_t^2 (1 - r^2): 'fixed_large'."""


def one_minus_r2(t: Level, s: Level) -> tuple[Array, Array]:
    """(1 - r^2, r^2), which a step that stays on its level (r = 1) makes exactly (0, 1); (0, 1) too at sigma_t = 0."""
    signal, noise = t.alpha * s.sigma, s.alpha * t.sigma
    r = signal / jnp.where(noise == 0, 1.0, noise)
    r = jnp.where(noise == 0, 1.0, jnp.minimum(r, 1.0))  # already at the data: nothing is left to draw
    return (1.0 - r) * (1.0 + r), r * r


def transition(s: Level, t: Level) -> tuple[Array, Array]:
    """(scale, std) of the forward kernel q(x_t | x_s) = N(scale x_s, std^2 I), from less to more noise.

    scale = alpha_t / alpha_s and std^2 = sigma_t^2 - scale^2 sigma_s^2 = sigma_t^2 (1 - r^2) (VDM, Eq. 21-22), which
    is exact at the data, at pure noise and where both levels are one. From alpha_s = 0, where the ratio says nothing,
    x_s is kept.
    """
    gone = s.alpha == 0
    return jnp.where(gone, 1.0, t.alpha / jnp.where(gone, 1.0, s.alpha)), t.sigma * jnp.sqrt(one_minus_r2(t, s)[0])


def posterior(t: Level, s: Level, above: Level | None = None) -> Posterior:
    """The posterior of x_s given x_t and x0 (Ho et al. 2020, Eq. 6-7), for any two levels with s nearer the data.

    The posterior's variance of a step to the data (sigma_s = 0) is 0, whose logarithm is that of `MIN_VARIANCE`. With
    `above`, the level from which a sampler comes to t, it is instead the variance of q(x_t | x_above, x0), which
    leaves the decoder of the variational bound some width (Ho et al. 2020; Nichol & Dhariwal 2021, both in code only);
    if there is no level above (above = t), it is the forward step's. At alpha_t = 0, r = 0 and nothing divides by 0.

    Args:
        t, s, above: levels () or [B].
    """
    fresh, _ = one_minus_r2(t, s)
    below = t.sigma ** 2 * s.alpha
    c_x = jnp.where(below == 0, 1.0, s.sigma ** 2 * t.alpha / jnp.where(below == 0, 1.0, below))
    log = lambda variance: jnp.log(jnp.maximum(variance, MIN_VARIANCE))  # noqa: E731
    small, large = log(s.sigma ** 2 * fresh), log(t.sigma ** 2 * fresh)
    if above is not None:
        stand_in = jnp.where(above.sigma * t.alpha > t.sigma * above.alpha, posterior(above, t).log_var_small, large)
        small = jnp.where(s.sigma == 0, stand_in, small)
    return Posterior(s.alpha * fresh, c_x, small, large)


def posterior_mean(p: Posterior, x0: Array, x: Array) -> Array:
    """c_x0 x0 + c_x x for x0, x [B, ...]."""
    return expand(p.c_x0, x) * x0 + expand(p.c_x, x) * x


def interpolate_log_var(p: Posterior, weight: Array) -> Array:
    """Learned log-variance: weight log_var_large + (1 - weight) log_var_small (Nichol & Dhariwal 2021, Eq. 15).

    Args:
        weight: `Denoised.log_var` [B, ...], 0 is the small and 1 the large variance; beyond them it extrapolates.
    """
    small, large = expand(p.log_var_small, weight), expand(p.log_var_large, weight)
    return weight * large + (1.0 - weight) * small
