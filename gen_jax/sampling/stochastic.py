"""Stochastic solvers in sigma / alpha (k-diffusion, EDM), and the multistep sampler of consistency models.

An ancestral step is a deterministic one to the level (alpha_s, sigma_down), followed by noise that brings sigma_s back:
sigma_s^2 = sigma_down^2 + std^2 with std = eta sigma_s sqrt(1 - r^2), see `gen_jax.diffusion.posterior`. Makers that
call the denoiser between levels take `process`, as explained in `gen_jax.sampling.singlestep`.
"""

import jax
import jax.numpy as jnp

from gen_jax.diffusion.posterior import one_minus_r2, transition
from gen_jax.diffusion.process import expand
from gen_jax.sampling.singlestep import Advance, has_between, level_between, single_step
from gen_jax.sampling.solvers import ddim
from gen_jax.types import Array, Level, Point, Process, Sampler

__all__ = ['churn', 'dpm2_ancestral', 'dpmpp_2s_ancestral', 'dpmpp_sde', 'euler_ancestral', 'lcm']


def _unit(**values):
    for name, value in values.items():
        if isinstance(value, (int, float)) and not 0 <= value <= 1:
            raise ValueError(f'{name} must lie within [0, 1], got {value}.')


def _not_negative(**values):
    for name, value in values.items():
        if isinstance(value, (int, float)) and not value >= 0:
            raise ValueError(f'{name} must not be negative, got {value}.')


def _down(t: Level, s: Level, eta) -> tuple[Level, Array]:
    """(the level below s to which the deterministic part goes, std of the noise added there); s itself at eta = 0."""
    fresh, kept = one_minus_r2(t, s)
    kept = (1.0 - eta ** 2) + eta ** 2 * kept
    return s._replace(sigma=s.sigma * jnp.sqrt(kept)), s.sigma * eta * jnp.sqrt(fresh)


def euler_ancestral(eta=1.0) -> Sampler:
    """Euler ancestral (k-diffusion `sample_euler_ancestral`). Reads x0 and eps; one call per step.

    Euler's step to sigma_down and noise: the same numbers as `ddim(eta)`, on every process.

    Args:
        eta: 0 (deterministic) to 1.

    Raises:
        ValueError: eta as a Python number outside [0, 1].
    """
    return ddim(eta)


def _ancestral(advance: Advance, eta) -> Sampler:
    _unit(eta=eta)

    def step(noise, denoise, point, s, state):
        down, std = _down(point.level, s, eta)
        x, d = advance(denoise, point, down)
        return Point(x + expand(std, x) * noise.normal('z', x), s, d.aux), state

    return Sampler(lambda point: (), step)


def dpm2_ancestral(process: Process, eta=1.0) -> Sampler:
    """DPM-2 with ancestral noise (k-diffusion `sample_dpm_2_ancestral`). Reads eps and x; two calls per step.

    The second call is half-way in lambda to sigma_down, which depends on eta.

    Args:
        process: as in `gen_jax.sampling.singlestep.dpm_solver_singlestep`.
        eta: 0 is `dpm2`, 1 fully ancestral.

    Raises:
        ValueError: eta as a Python number outside [0, 1].
    """
    return _ancestral(single_step(process, (0.5,), 'dpmsolver'), eta)


def dpmpp_2s_ancestral(process: Process, eta=1.0) -> Sampler:
    """DPM-Solver++(2S) with ancestral noise (k-diffusion `sample_dpmpp_2s_ancestral`). Reads x0 and x; two calls.

    Arguments and errors as in `dpm2_ancestral`; eta = 0 is `dpmpp_2s`.
    """
    return _ancestral(single_step(process, (0.5,), 'dpmsolver++'), eta)


def dpmpp_sde(process: Process, eta=1.0, s_noise=1.0, r=0.5) -> Sampler:
    """DPM-Solver++ (SDE), single-step (k-diffusion `sample_dpmpp_sde`). Reads x0 and x; two calls per step.

    An ancestral step to the level at r, an answer there, and an ancestral step over the whole distance with the two
    answers combined as in DPM-Solver++(2S). The noises of the two are increments of one Brownian path in
    sigma / alpha, so they are correlated: the later one is made of the earlier ('z') and a fresh draw ('z2').

    Args:
        process: as in `gen_jax.sampling.singlestep.dpm_solver_singlestep`.
        eta: 0 is `dpmpp_2s`, 1 the SDE.
        s_noise: factor of the noise.
        r: where the second call is, as a fraction of the step in lambda, above 0 and at most 1.

    Raises:
        ValueError: eta as a Python number outside [0, 1], r outside (0, 1], a negative s_noise.
    """
    _unit(eta=eta, r=r)
    _not_negative(s_noise=s_noise)
    if isinstance(r, (int, float)) and r == 0:
        raise ValueError('r must be above 0, got 0.')

    def step(noise, denoise, point, s, state):
        x, t = point.x, point.level
        d = denoise(x, t)
        z1, z2 = noise.normal('z', x), noise.normal('z2', x)

        def noised(x0, s, z):
            """The ancestral step to s that takes x0 for the data throughout (first order, exponential)."""
            down, std = _down(t, s, eta)
            decay = down.sigma / t.sigma
            return (expand(decay, x) * x + expand(down.alpha - decay * t.alpha, x) * x0
                    + expand(s_noise * std, x) * z)

        def refined():
            level = level_between(process, t, s, r)
            later = denoise(noised(d.x0, level, z1), level).x0
            x0 = d.x0 + (later - d.x0) / (2 * r)
            start, between, stop = (a.sigma / a.alpha for a in (t, level, s))
            share = jnp.clip((start - between) / (start - stop), 0.0, 1.0)  # of the path's variance
            return noised(x0, s, expand(jnp.sqrt(share), x) * z1 + expand(jnp.sqrt(1.0 - share), x) * z2)

        def euler():
            down, std = _down(t, s, eta)
            return (expand(s.alpha, x) * d.x0 + expand(down.sigma, x) * d.eps + expand(s_noise * std, x) * z1)

        return Point(jax.lax.cond(has_between(t, s), refined, euler), s, d.aux), state

    return Sampler(lambda point: (), step)


def churn(process: Process, s_churn=0.0, s_tmin=0.0, s_tmax=float('inf'), s_noise=1.0) -> Sampler:
    """Langevin-like churn: moves to a noisier level and adds the noise for it. Calls nothing; for `chain`.

    `chain(churn(..), heun())` is EDM's stochastic sampler (Karras et al. 2022, Algorithm 2); with `euler` it is
    k-diffusion's. With N steps, sigma / alpha grows by the factor 1 + min(s_churn / N, sqrt(2) - 1) where it lies
    within [s_tmin, s_tmax], and x follows the process's own forward kernel, as in the paper's general form.

    Args:
        process: gives t, alpha and sigma of the noisier level. Continuous processes go on beyond t_max; beyond the
            end of a table of betas there is more noise, of which the network is told the last t.
        s_churn: 0 is no churn.
        s_tmin, s_tmax: levels of sigma / alpha between which there is churn.
        s_noise: factor of the standard deviation of the noise.

    Raises:
        ValueError: a negative Python number, or s_tmin above s_tmax.
    """
    _not_negative(s_churn=s_churn, s_tmin=s_tmin, s_tmax=s_tmax, s_noise=s_noise)
    if all(isinstance(a, (int, float)) for a in (s_tmin, s_tmax)) and s_tmin > s_tmax:
        raise ValueError(f's_tmin must not be above s_tmax, got s_tmin={s_tmin} and s_tmax={s_tmax}.')

    def step(noise, denoise, point, s, state):
        del denoise, s
        x, t = point.x, point.level
        gamma = jnp.minimum(s_churn / jnp.maximum(t.last, 1), 2.0 ** 0.5 - 1.0)
        on = ((gamma > 0) & (t.alpha > 0) & (t.sigma > 0)
              & (t.sigma >= s_tmin * t.alpha) & (t.sigma <= jnp.where(jnp.isinf(s_tmax), jnp.inf, s_tmax * t.alpha)))
        # t.sigma (1 + gamma) stands for a level whose lambda is less by log(1 + gamma)
        up = level_between(process, t, t._replace(sigma=t.sigma * (1.0 + gamma)), 1.0)
        on = on & (up.sigma * t.alpha > t.sigma * up.alpha)
        up = jax.tree.map(lambda a, b: jnp.where(on, a, b), up, t)
        scale, std = transition(t, up)
        x = expand(scale, x) * x + expand(jnp.where(on, s_noise * std, 0.0), x) * noise.normal('churn', x)
        return Point(x, up, point.aux), state

    return Sampler(lambda point: (), step)


def lcm(boundary: bool = False, timestep_scaling=10.0, sigma_data=0.5, sigma_min=0.0) -> Sampler:
    """Multistep sampling of a consistency model (Song et al. 2023, Algorithm 1; Luo et al. 2023, Algorithm 3).

    x_s = alpha_s f + sqrt(sigma_s^2 - (alpha_s sigma_min)^2) z with f the model's answer: x0, or with `boundary`
    c_skip x + c_out x0. One call per step. Reads x0 (and x); stochastic. The last row, where sigma_s = 0, is f.

    Args:
        boundary: apply LCM's boundary condition here, c_skip = sigma_data^2 / (u^2 + sigma_data^2) and
            c_out = u / sqrt(u^2 + sigma_data^2) with u = timestep_scaling t. False: the denoiser is the consistency
            function already.
        timestep_scaling: for t in the units of the process (an index of the table of betas in LCM).
        sigma_data: of the data.
        sigma_min: sigma / alpha at which the model was trained to be the identity (epsilon in Song et al. 2023).

    Raises:
        ValueError: a negative Python number.
    """
    _not_negative(timestep_scaling=timestep_scaling, sigma_data=sigma_data, sigma_min=sigma_min)

    def step(noise, denoise, point, s, state):
        x, t = point.x, point.level
        d = denoise(x, t)
        f = d.x0
        if boundary:
            u, norm = timestep_scaling * t.t, jnp.hypot(timestep_scaling * t.t, sigma_data)
            f = expand((sigma_data / norm) ** 2, x) * x + expand(u / norm, x) * f
        std = jnp.sqrt(jnp.maximum(s.sigma ** 2 - (s.alpha * sigma_min) ** 2, 0.0))
        return Point(expand(s.alpha, x) * f + expand(std, x) * noise.normal('z', x), s, d.aux), state

    return Sampler(lambda point: (), step)
