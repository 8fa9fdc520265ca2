"""Solvers: a point at level t to a point at level s, in terms of alpha and sigma only.

None of them knows the process or divides by sigma_s or alpha_t, so all run on any process, end exactly at the data
(sigma_s = 0) and start from pure noise (alpha_t = 0). With r = (alpha_t sigma_s) / (alpha_s sigma_t), the square root
of SNR_t / SNR_s, the posterior q(x_s | x_t, x0) has variance sigma_s^2 (1 - r^2) and q(x_t | x_s) has
sigma_t^2 (1 - r^2).
"""

import jax
import jax.numpy as jnp

from gen_jax.diffusion.posterior import interpolate_log_var, one_minus_r2, posterior, posterior_mean
from gen_jax.diffusion.process import expand
from gen_jax.types import Point, Sampler

__all__ = ['ddpm', 'ddim', 'euler', 'heun']


def _none(point: Point):
    del point
    return ()


def ddpm(variance: str = 'fixed_small') -> Sampler:
    """Ancestral sampling (Ho et al. 2020, Eq. 7 and Algorithm 2). Reads x0 and x; one call per step; stochastic.

    x_s = alpha_s (1 - r^2) x0 + (alpha_t / alpha_s) (sigma_s / sigma_t)^2 x + std z.

    Args:
        variance: std^2 is 'fixed_small', the posterior's sigma_s^2 (1 - r^2); 'fixed_large', the forward
            sigma_t^2 (1 - r^2) (beta_t on a table of betas); or 'learned', interpolated between the logarithms of
            the two by the denoiser's log_var (Nichol & Dhariwal 2021, Eq. 15). The latter two add nothing in the last
            step.

    Raises:
        ValueError: unknown variance; at trace time, 'learned' with a denoiser that has no log_var.
    """
    if variance not in ('fixed_small', 'fixed_large', 'learned'):
        raise ValueError(f"Unknown variance {variance!r}; choose 'fixed_small', 'fixed_large' or 'learned'.")

    def step(noise, denoise, point, s, state):
        x, t = point.x, point.level
        d = denoise(x, t)
        p = posterior(t, s)
        if variance == 'fixed_small':
            std = expand(s.sigma * jnp.sqrt(one_minus_r2(t, s)[0]), x)
        elif variance == 'fixed_large':
            std = expand(jnp.where(s.index >= s.last, 0.0, t.sigma * jnp.sqrt(one_minus_r2(t, s)[0])), x)
        else:
            if d.log_var is None:
                raise ValueError("variance='learned' needs a denoiser with log_var, this one has none; sample with "
                                 "'fixed_small' or 'fixed_large'.")
            std = jnp.where(s.index >= s.last, 0.0, jnp.exp(0.5 * interpolate_log_var(p, d.log_var)))
        return Point(posterior_mean(p, d.x0, x) + std * noise.normal('z', x), s, d.aux), state

    return Sampler(_none, step)


def ddim(eta=0.0) -> Sampler:
    """DDIM (Song et al. 2021, Eq. 12 and 16). Reads x0 and eps; one call per step; order 1 at eta = 0.

    x_s = alpha_s x0 + sqrt(sigma_s^2 - std^2) eps + std z with std = eta sigma_s sqrt(1 - r^2). At eta = 0 this is
    Euler's method for the probability-flow ODE in sigma / alpha, on EDM and on rectified flow too; at eta = 1 it is
    ancestral sampling with the small variance.

    Args:
        eta: 0 (deterministic) to 1, a number or a traced scalar; the Python number 0 draws no noise at all.

    Raises:
        ValueError: a Python number outside [0, 1].
    """
    if isinstance(eta, (int, float)) and not 0 <= eta <= 1:
        raise ValueError(f'eta must lie within [0, 1], got {eta}.')
    deterministic = isinstance(eta, (int, float)) and eta == 0

    def step(noise, denoise, point, s, state):
        x, t = point.x, point.level
        d = denoise(x, t)
        if deterministic:
            return Point(expand(s.alpha, x) * d.x0 + expand(s.sigma, x) * d.eps, s, d.aux), state
        fresh, kept = one_minus_r2(t, s)
        drawn, kept = eta ** 2 * fresh, (1.0 - eta ** 2) + eta ** 2 * kept  # shares of sigma_s^2, without cancellation
        x = (expand(s.alpha, x) * d.x0 + expand(s.sigma * jnp.sqrt(kept), x) * d.eps
             + expand(s.sigma * jnp.sqrt(drawn), x) * noise.normal('z', x))
        return Point(x, s, d.aux), state

    return Sampler(_none, step)


def euler() -> Sampler:
    """Euler's method for the probability-flow ODE d(x / alpha) = eps d(sigma / alpha): DDIM at eta = 0, order 1.

    Reads x0 and eps; one call per step.
    """
    return ddim(0.0)


def heun(straight: bool = False) -> Sampler:
    """Heun's method on the same ODE (Karras et al. 2022, Algorithm 1), order 2. Reads x0 and eps.

    Two calls per step, one in a step that ends at sigma = 0 (or, unless straight, begins at alpha = 0), where it is
    Euler.

    Args:
        straight: False integrates d(x / alpha) = eps d(sigma / alpha) as EDM does; True dx = x0 dalpha + eps dsigma
            along the straight line between the two levels, which on rectified flow is Heun's method for its velocity.
    """

    def step(noise, denoise, point, s, state):
        del noise
        x, t = point.x, point.level
        d = denoise(x, t)
        guess = expand(s.alpha, x) * d.x0 + expand(s.sigma, x) * d.eps

        def correct(guess):
            later = denoise(guess, s)
            if straight:
                return guess + 0.5 * (expand(s.alpha - t.alpha, x) * (later.x0 - d.x0)
                                      + expand(s.sigma - t.sigma, x) * (later.eps - d.eps))
            slope = 0.5 * (s.sigma - s.alpha * t.sigma / jnp.where(t.alpha == 0, 1.0, t.alpha))
            return guess + expand(slope, x) * (later.eps - d.eps)

        twice = (s.sigma > 0) if straight else (s.sigma > 0) & (t.alpha > 0)
        return Point(jax.lax.cond(twice, correct, lambda guess: guess, guess), s, d.aux), state

    return Sampler(_none, step)
