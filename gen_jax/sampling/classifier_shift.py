"""ADM's classifier guidance of the reverse step's mean, which is no transform of x0: it needs both levels' Sigma."""

import math
from collections.abc import Callable

import jax.numpy as jnp

from gen_jax.diffusion.posterior import interpolate_log_var, posterior, posterior_mean
from gen_jax.diffusion.process import expand
from gen_jax.types import Array, Level, Point, Sampler

__all__ = ['classifier_shift']


def classifier_shift(grad_log_prob: Callable[[Array, Level], Array], scale=1.0,
                     variance: str = 'fixed_small') -> Sampler:
    """Ancestral sampling from N(mu + scale Sigma grad log p(y | x_t), Sigma) (Dhariwal & Nichol 2021, Algorithm 1).

    Reads x0, x and, where the network has learned it, log_var; one call per step and one of the gradient; stochastic,
    but for the last step, which returns the shifted mean. In a step to the data, where the posterior has no width, the
    shift uses the variance of the step before it, as ADM does.

    Args:
        grad_log_prob: (x [B, ...], level) -> the gradient of log p(y | x_t), shaped like x; it has the labels bound.
            jax.grad of a summed log-probability gives it.
        scale: guidance scale, () or [B], may be traced; at 0 this is `ddpm`.
        variance: Sigma of a network without log_var: 'fixed_small', the posterior's, or 'fixed_large', the forward
            step's.

    Raises:
        ValueError: unknown variance, a negative or infinite scale; at trace time, a gradient not shaped like x.
    """
    if variance not in ('fixed_small', 'fixed_large'):
        raise ValueError(f"Unknown variance {variance!r}; choose 'fixed_small' or 'fixed_large'.")
    if isinstance(scale, (int, float)) and not 0 <= scale < math.inf:
        raise ValueError(f'guidance scale must be at least 0 and finite, got {scale}.')

    def step(noise, denoise, point, s, above):
        x, t = point.x, point.level
        d, gradient = denoise(x, t), grad_log_prob(x, t)
        if gradient.shape != x.shape:
            raise ValueError(f'grad_log_prob returned {gradient.shape} for an x of {x.shape}; they must be equal.')
        p = posterior(t, s, above)
        if d.log_var is not None:
            log_var = interpolate_log_var(p, d.log_var)
        else:
            log_var = expand(p.log_var_small if variance == 'fixed_small' else p.log_var_large, x)
        mean = posterior_mean(p, d.x0, x) + expand(scale, x) * jnp.exp(log_var) * gradient
        std = jnp.where(s.index >= s.last, 0.0, jnp.exp(0.5 * log_var))
        return Point(mean + std * noise.normal('z', x), s, d.aux), t

    return Sampler(lambda point: point.level, step)
