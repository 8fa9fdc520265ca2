"""DDIM inversion: the noise from which a deterministic sampler makes a given picture."""

import jax
import jax.numpy as jnp

from gen_jax.diffusion.process import expand
from gen_jax.types import Point, Sampler

__all__ = ['ddim_inverse']


def ddim_inverse(iterations: int = 1, compat: bool = False) -> Sampler:
    """Inverts a step of `ddim()` (Song et al. 2021, Sec. 4.3), for a grid from `reverse`. Reads x0 and eps; order 1.

    The step down from x_s is x_t = alpha_t x0 + sigma_t eps with x0 and eps predicted at x_s, which is not known yet:
    x_s = alpha_s x0(x_s, s) + sigma_s eps(x_s, s). Of x0 and eps the one that the network knows better at these levels
    is read and the other follows from x_t, which makes the right-hand side a contraction; it is iterated from
    x_s = x_t (Pan et al. 2023, AIDI). Nothing is asked at the data's own level, at which no network was trained.

    Args:
        iterations: calls of the network per step. 1 is the usual inversion, whose round trip is off by O(1 / steps);
            more make the round trip exact at any number of steps.
        compat: diffusers' DDIMInverseScheduler: one call, told the time of level s, converted as if it were x_t's own
            level t.

    Raises:
        ValueError: iterations < 1, or more than 1 with compat.
    """
    if iterations < 1 or compat and iterations > 1:
        raise ValueError(f'iterations must be at least 1, and 1 with compat, got {iterations}.')

    def step(noise, denoise, point, s, state):
        del noise
        x, t = point.x, point.level
        if compat:
            d = denoise(x, t._replace(t=s.t))
            return Point(expand(s.alpha, x) * d.x0 + expand(s.sigma, x) * d.eps, s, d.aux), state
        noisy = s.alpha * t.alpha < s.sigma * t.sigma  # SNR of the two levels, on (geometric) average below 1
        over_alpha, over_sigma = (1.0 / jnp.where(a == 0, jnp.inf, a) for a in (t.alpha, t.sigma))
        to_x = jnp.where(noisy, s.sigma * over_sigma, s.alpha * over_alpha)
        to_x0 = jnp.where(noisy, s.alpha - s.sigma * t.alpha * over_sigma, 0.0)
        to_eps = jnp.where(noisy, 0.0, s.sigma - s.alpha * t.sigma * over_alpha)

        def improve(_, carry):
            d = denoise(carry[0], s)
            return expand(to_x, x) * x + expand(to_x0, x) * d.x0 + expand(to_eps, x) * d.eps, d.aux

        guess, aux = improve(0, (x, ()))
        if iterations > 1:
            guess, aux = jax.lax.fori_loop(1, iterations, improve, (guess, aux))
        return Point(guess, s, aux), state

    return Sampler(lambda point: (), step)
