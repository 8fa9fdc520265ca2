"""Predictors and correctors of score-based models (Song & Ermon 2019; Song et al. 2021, Appendix G).

A corrector draws from the marginal at the level where the point stands, without leaving it; a predictor goes to the
next level. They chain: `chain(langevin(), reverse_diffusion())` is the order of the authors' code, corrector first;
`chain(reverse_diffusion(), langevin())` that of Algorithms 2 and 3. The third predictor of the paper, ancestral
sampling (Eq. 4 for VP, Eq. 47 for VE), is `gen_jax.sampling.ddpm` with the small variance on VE and the large one on
VP. In the last step, which the paper follows by a denoising step, predictors add no noise.
"""

import jax
import jax.numpy as jnp

from gen_jax.diffusion.posterior import one_minus_r2, transition
from gen_jax.diffusion.process import diffusion, drift, expand
from gen_jax.sampling.base import chain, repeat
from gen_jax.types import Array, Level, Point, Process, Sampler

__all__ = ['annealed_langevin', 'euler_maruyama', 'langevin', 'ncsn', 'no_predictor', 'reverse_diffusion']


def _positive(**values):
    for name, value in values.items():
        if isinstance(value, (int, float)) and not value > 0:
            raise ValueError(f'{name} must be positive, got {value}.')


def _divide(a, b):
    """a / b, and 0 where b is 0."""
    return jnp.where(b == 0, 0.0, a / jnp.where(b == 0, 1.0, b))


def _stateless(step) -> Sampler:
    return Sampler(lambda point: (), step)


def _not_last(s: Level, std: Array) -> Array:
    return jnp.where(s.index >= s.last, 0.0, std)


def reverse_diffusion(probability_flow: bool = False) -> Sampler:
    """Reverse diffusion predictor (Song et al. 2021, Eq. 46, Algorithms 2 and 3). Reads eps and x; one call per step.

    x_s = x - f + G^2 score + G z, where x_t = x_s + f(x_s) + G z is the forward step between the two levels, here the
    process's own kernel: f = (alpha_t / alpha_s - 1) x and G the standard deviation of q(x_t | x_s). That is the
    paper's discretisation on VE and on VP; on sub-VP the paper takes Euler's instead.

    Args:
        probability_flow: half the score and no noise: a step of the ODE. Order 1.
    """

    def step(noise, denoise, point, s, state):
        x, t = point.x, point.level
        d = denoise(x, t)
        scale, std = transition(s, t)
        share = t.sigma * one_minus_r2(t, s)[0]  # G^2 / sigma_t
        mean = expand(2.0 - scale, x) * x - expand((0.5 if probability_flow else 1.0) * share, x) * d.eps
        if not probability_flow:
            mean = mean + expand(_not_last(s, std), x) * noise.normal('z', x)
        return Point(mean, s, d.aux), state

    return _stateless(step)


def euler_maruyama(process: Process, probability_flow: bool = False) -> Sampler:
    """Euler-Maruyama on the reverse SDE in t (Song et al. 2021, Eq. 6). Reads eps and x; one call per step.

    x_s = x + (f x - g^2 score) dt + g sqrt(-dt) z with f and g of the process at t. From alpha = 0, where f is
    infinite, it is the first-order step of `ddim` with eta = 1 (eta = 0 with `probability_flow`).

    Args:
        process: gives f and g. The times of the grid must be its own.
        probability_flow: half the score and no noise: Euler's method on the ODE (Eq. 13). Order 1.
    """

    def step(noise, denoise, point, s, state):
        x, t = point.x, point.level
        d = denoise(x, t)
        dt = s.t - t.t
        gone = t.alpha == 0
        f, g2 = drift(process, t.t), diffusion(process, t.t) ** 2
        f, g2 = (jnp.where(gone | (t.sigma == 0), 0.0, a) for a in (f, g2))
        slope = expand(f, x) * x + expand((0.5 if probability_flow else 1.0) * _divide(g2, t.sigma), x) * d.eps
        mean, std = x + expand(dt, x) * slope, jnp.sqrt(g2 * jnp.abs(dt))
        fresh, kept = one_minus_r2(t, s)
        to_eps = s.sigma if probability_flow else s.sigma * jnp.sqrt(kept)
        first = expand(s.alpha, x) * d.x0 + expand(to_eps, x) * d.eps
        mean, std = jnp.where(expand(gone, x), first, mean), jnp.where(gone, s.sigma * jnp.sqrt(fresh), std)
        if not probability_flow:
            mean = mean + expand(_not_last(s, std), x) * noise.normal('z', x)
        return Point(mean, s, d.aux), state

    return _stateless(step)


def no_predictor(denoise_last: bool = False) -> Sampler:
    """Goes to the next level with x as it is: for corrector-only sampling, after the corrector. Calls nothing.

    Args:
        denoise_last: the last step is deterministic instead, `ddim` at eta = 0 with its one call, which ends at the
            denoised image if the last row is the data (Jolicoeur-Martineau et al. 2021).
    """

    def step(noise, denoise, point, s, state):
        del noise
        x = point.x

        def denoised():
            d = denoise(x, point.level)
            return expand(s.alpha, x) * d.x0 + expand(s.sigma, x) * d.eps

        if denoise_last:
            x = jax.lax.cond(s.index >= s.last, denoised, lambda: x)
        return Point(x, s, point.aux), state

    return _stateless(step)


def _norm(a: Array) -> Array:
    """Euclidean norm per example [B]."""
    return jnp.sqrt(jnp.sum(jnp.square(a), axis=tuple(range(1, a.ndim))))


def langevin(snr=0.16, per_example: bool = True) -> Sampler:
    """Langevin corrector (Song et al. 2021, Algorithms 4 and 5). Reads eps; one call; for `chain` and `repeat`.

    x' = x + e score + sqrt(2 e) z with e = 2 (snr |z| / |score|)^2, at the point's own level; nothing happens at
    sigma = 0. (On VP Algorithm 5 has the further factor 1 - beta_i, 0.98 to 1 at its 1,000 levels, which is a
    property of that table and left out.)

    Args:
        snr: r of the paper, the ratio of the norms of drift and noise.
        per_example: take the norms of each example alone. False averages them over the batch, as the authors' code
            does: then image k depends on its batch (and, under pmap, on its shard). A step size of one's own is not
            free: in D dimensions the stationary variance grows by about (1 + 2 / D)^2, nothing for pictures but 1.4
            at D = 12, and in two dimensions, where a single score may vanish, steps are without bound.

    Raises:
        ValueError: snr as a Python number that is not positive.
    """
    _positive(snr=snr)

    def step(noise, denoise, point, s, state):
        del s
        x, t = point.x, point.level
        d = denoise(x, t)
        z = noise.normal('langevin', x)
        norms = _norm(z), _norm(d.eps)
        z_norm, eps_norm = norms if per_example else (jnp.mean(n) for n in norms)
        reach = snr * t.sigma * _divide(z_norm, eps_norm)  # sqrt(e / 2); |score| = |eps| / sigma
        x = x - expand(2.0 * reach * _divide(reach, t.sigma), x) * d.eps + expand(2.0 * reach, x) * z
        return Point(x, t, d.aux), state

    return _stateless(step)


def annealed_langevin(eps=2e-5, sigma_min=0.01) -> Sampler:
    """One Langevin step of NCSN (Song & Ermon 2019, Algorithm 1). Reads eps; one call; for `chain` and `repeat`.

    x' = x + (a / 2) score + sqrt(a) z with a = eps sigma_t^2 / sigma_min^2, at the point's own level.

    Args:
        eps: the step size at sigma_min.
        sigma_min: sigma_L of the paper, the least noise of the grid.

    Raises:
        ValueError: a Python number that is not positive.
    """
    _positive(eps=eps, sigma_min=sigma_min)

    def step(noise, denoise, point, s, state):
        del s
        x, t = point.x, point.level
        d = denoise(x, t)
        share = eps / sigma_min ** 2  # a = share sigma_t^2, and score = -eps / sigma_t
        x = (x - expand(0.5 * share * t.sigma, x) * d.eps
             + expand(jnp.sqrt(share) * t.sigma, x) * noise.normal('langevin', x))
        return Point(x, t, d.aux), state

    return _stateless(step)


def ncsn(n_steps: int = 100, eps=2e-5, sigma_min=0.01, denoise_last: bool = False) -> Sampler:
    """Annealed Langevin dynamics (Song & Ermon 2019, Algorithm 1): n_steps of `annealed_langevin` at every level.

    Runs on each row of the grid but the last, which should be the data. n_steps calls per row. Arguments as in
    `annealed_langevin` and `no_predictor`.

    Raises:
        ValueError: n_steps < 1, and all that `annealed_langevin` refuses.
    """
    return chain(repeat(annealed_langevin(eps, sigma_min), n_steps), no_predictor(denoise_last))
