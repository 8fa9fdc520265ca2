"""The variational bound of a chain of Gaussian steps (Ho et al. 2020, Eq. 5), in bits per dimension.

-log p(x0) <= L_T + sum_t L_t + L_0: the prior's KL, one KL between Gaussians per step, and the decoder's negative
log-likelihood in the step to the data. The chain may be any grid of levels: all of a table, some of its rows, or
levels of a continuous process. `continuous_vlb` is the limit of infinitely many steps.

Bits of grey levels (`levels`) are probabilities of the discretised Gaussian and need no offset. With levels=None the
decoder is a density, and the bound is one of -log p(x0) in the units of x0.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.diffusion.posterior import interpolate_log_var, posterior, posterior_mean
from gen_jax.diffusion.process import expand, level_at, log_snr, perturb
from gen_jax.types import Array, Cond, Denoised, DenoiseFn, Level, Process

__all__ = ['VARIANCES', 'VLB', 'continuous_vlb', 'discretised_gaussian_log_prob', 'grey_level_nll', 'prior_kl', 'vlb',
           'vlb_term']

VARIANCES = ('fixed_small', 'fixed_large', 'learned')


class VLB(NamedTuple):
    """Bits per dimension of each example."""

    total: Array
    """[B]: prior + sum of terms."""
    prior: Array
    """[B]: KL(q(x_T | x0) || p(x_T))."""
    terms: Array
    """[N, B]: of the step from each row of the grid to the next, the decoder's last; 0 for padded rows."""


def _bits_per_dim(nats: Array) -> Array:
    return jnp.mean(nats.reshape(nats.shape[0], -1), axis=1) / np.log(2.0)


def discretised_gaussian_log_prob(x: Array, mean: Array, log_var: Array, levels: int = 256) -> Array:
    """log P of the grey level x under a Gaussian whose mass is collected into bins, elementwise nats (at most 0).

    Level k owns the bin of width 2 / (levels - 1) around 2 k / (levels - 1) - 1; the first and the last reach to
    infinity (Ho et al. 2020, Eq. 13). The distribution function is the exact one: the tanh approximation of the
    published code moves the decoder's term by about 1e-3 nats.

    Args:
        x: grey levels in [-1, 1]; mean, log_var: broadcast against x.

    Raises:
        ValueError: levels < 2.
    """
    if levels < 2:
        raise ValueError(f'levels must be at least 2, got {levels}.')
    half = 1.0 / (levels - 1)
    upper, lower = ((x - mean + end) * jnp.exp(-0.5 * log_var) for end in (half, -half))
    below, above = jax.scipy.stats.norm.logcdf(upper), jax.scipy.stats.norm.logcdf(-lower)
    # Phi(u) - Phi(l), as the difference of the two smaller tails: the other two would round to 1.
    right = upper + lower > 0
    high, low = jnp.where(right, above, below), jax.scipy.stats.norm.logcdf(jnp.where(right, -upper, lower))
    share = -jnp.expm1(jnp.minimum(low - high, 0.0))
    inner = high + jnp.log(jnp.maximum(share, jnp.finfo(share.dtype).tiny))
    return jnp.where(x < -1.0 + half, below, jnp.where(x > 1.0 - half, above, inner))


def _gaussian_log_prob(x: Array, mean: Array, log_var: Array) -> Array:
    return -0.5 * (jnp.square(x - mean) * jnp.exp(-log_var) + log_var + np.log(2 * np.pi))


def _decoder_nll(x0: Array, mean: Array, log_var: Array, levels: int | None) -> Array:
    if levels is None:
        return _bits_per_dim(-_gaussian_log_prob(x0, mean, log_var))
    return _bits_per_dim(-discretised_gaussian_log_prob(x0, mean, log_var, levels))


def prior_kl(x0: Array, level: Level, prior_std=None) -> Array:
    """KL(q(x_T | x0) || N(0, prior_std^2 I)), bits per dimension [B]; prior_std None is sigma_T."""
    std = level.sigma if prior_std is None else prior_std
    delta = 2.0 * expand(jnp.log(level.sigma) - jnp.log(std), x0)
    kl = 0.5 * (jnp.square(expand(level.alpha / std, x0) * x0) + (jnp.expm1(delta) - delta))
    return _bits_per_dim(kl)


def grey_level_nll(x0: Array, mean: Array, log_var: Array, grey: Array) -> Array:
    """-log p(x0) where p is in proportion to N(mean; x0, exp(log_var)) over the values `grey` [L]; bits/dim [B].

    The decoder of VDM (Eq. 8): exact where a pixel is equally likely to have any of them.
    """
    logits = -0.5 * jnp.square(mean[..., None] - grey) * jnp.exp(-log_var)
    own = -0.5 * jnp.square(mean - x0) * jnp.exp(-log_var)
    return _bits_per_dim(jax.nn.logsumexp(logits, axis=-1) - own)


def vlb_term(d: Denoised, x0: Array, x: Array, t: Level, s: Level, above: Level, variance: str = 'fixed_small',
             levels: int | None = 256) -> Array:
    """L of one step: KL(q(x_s | x_t, x0) || p(x_s | x_t)), or -log p(x0 | x_t) where s is the data; bits/dim [B].

    Args:
        d: the prediction at x = x_t [B, ...].
        t, s, above: the step's levels, and the one above t (see `gen_jax.diffusion.posterior.posterior`).
        variance: of p: 'fixed_small', the posterior's; 'fixed_large', the forward step's, but the posterior's of the
            step before in the step to the data (Ho et al. 2020 and Nichol & Dhariwal 2021, in code); or 'learned',
            interpolated by `d.log_var`.
        levels: grey levels of x0, or None for a density.

    Raises:
        ValueError: unknown variance; 'learned' without `d.log_var`.
    """
    if variance not in VARIANCES:
        raise ValueError(f'Unknown variance {variance!r}; choose one of {", ".join(VARIANCES)}.')
    if variance == 'learned' and d.log_var is None:
        raise ValueError("variance='learned' needs a denoiser with log_var; wrap its parameterisation in "
                         'diffusion.parameterisation.learned_range.')
    p = posterior(t, s, above)
    if variance == 'learned':
        log_var = interpolate_log_var(p, d.log_var)
    elif variance == 'fixed_small':
        log_var = expand(p.log_var_small, x)
    else:
        log_var = expand(jnp.where(s.sigma == 0, p.log_var_small, p.log_var_large), x)
    log_var = jnp.broadcast_to(log_var, x.shape)
    delta = expand(p.log_var_small, x) - log_var
    away = expand(p.c_x0, x) * (x0 - d.x0)  # of the means: their parts in x are the same
    kl = 0.5 * (jnp.square(away) * jnp.exp(-log_var) + (jnp.expm1(delta) - delta))
    decoder = _decoder_nll(x0, posterior_mean(p, d.x0, x), log_var, levels)
    return jnp.where(s.sigma == 0, decoder, _bits_per_dim(kl))


def vlb(noise, denoise: DenoiseFn, x0: Array, grid: Level, cond: Cond | None = None, variance: str = 'fixed_small',
        levels: int | None = 256, prior_std: float | None = None) -> VLB:
    """The whole bound along a grid, with one draw of x_t per step.

    On a table of T betas, `sampling.grid(process, T)` is the published bound of T steps; fewer rows give the bound of
    the chain that skips the others (Nichol & Dhariwal 2021, Sec. 4).

    Args:
        noise: per-example source; row i draws `noise.at(i).normal('eps', x0)`.
        denoise: with `guidance.clip_x0`, as published bounds have it, or without.
        x0: [B, ...] in [-1, 1], grey levels unless levels=None.
        grid: rows [N + 1] from the most noise to the data (sigma = 0); rows behind `last` are skipped.
        variance, levels: see `vlb_term`.
        prior_std: standard deviation of p(x_T); None is sigma_T, as `sampling.prior` draws. Published code has 1.

    Raises:
        ValueError: a grid that does not end at the data, and what `vlb_term` refuses.
    """
    cond = {} if cond is None else cond
    x0 = jnp.asarray(x0)
    x0 = x0.astype(jnp.promote_types(x0.dtype, jnp.float32))
    if not any(isinstance(a, jax.core.Tracer) for a in grid) and np.any(np.asarray(grid.sigma)[-1] != 0):
        raise ValueError(f'The last row of the grid must be the data (sigma = 0), it has sigma = {grid.sigma[-1]}; '
                         "a continuous process needs an end such as final_sigmas_type='zero'.")
    rows = jax.tree.map(jnp.asarray, grid)
    t, s = (jax.tree.map(lambda a, i=i: a[i], rows) for i in (slice(None, -1), slice(1, None)))
    above = jax.tree.map(lambda a: jnp.concatenate([a[:1], a[:-2]]), rows)

    def step(_, levels_):
        t, s, above = levels_

        def term():
            x = perturb(x0, noise.at(t.index).normal('eps', x0), t)
            return vlb_term(denoise(x, t, cond), x0, x, t, s, above, variance, levels).astype(x0.dtype)

        return None, jax.lax.cond(s.index <= s.last, term, lambda: jnp.zeros(x0.shape[0], x0.dtype))

    _, terms = jax.lax.scan(step, None, (t, s, above))
    prior = prior_kl(x0, jax.tree.map(lambda a: a[0], rows), prior_std)
    return VLB(prior + terms.sum(0), prior, terms)


def continuous_vlb(noise, denoise: DenoiseFn, process: Process, x0: Array, t: Array, cond: Cond | None = None,
                   levels: int | None = 256) -> VLB:
    """The bound of infinitely many steps at one time per example, unbiased if t is uniform (VDM, Eq. 11 and 17).

    L_inf = 1/2 E_{t, eps} [-(d log SNR / dt) |eps - eps_hat|^2] over the range of the process, which is
    -1/2 E [SNR'(t) |x0 - x0_hat|^2] without its overflow near the data. The prior's KL is at t_max, the decoder is
    p(x0 | x_{t_min}) in proportion to q(x_{t_min} | x0), over the grey levels, or N(x_{t_min} / alpha, (sigma /
    alpha)^2) with levels=None.

    Args:
        process: continuous, with sigma(t_min) > 0 and alpha(t_max) > 0, that is a finite log SNR at both ends.
        t: [B], in t_min .. t_max.

    Returns:
        VLB with terms [2, B]: the diffusion loss and the decoder's.

    Raises:
        ValueError: a discrete table.
    """
    if process.steps is not None:
        raise ValueError(f'continuous_vlb needs a continuous process, this one is a table of {process.steps}; use vlb.')
    cond = {} if cond is None else cond
    x0 = jnp.asarray(x0)
    x0 = x0.astype(jnp.promote_types(x0.dtype, jnp.float32))
    level = level_at(process, t)
    eps = noise.normal('eps', x0)
    d = denoise(perturb(x0, eps, level), level, cond)
    speed = -jax.jvp(lambda t: log_snr(process, t), (t,), (jnp.ones_like(t),))[1]
    loss = 0.5 * (process.t_max - process.t_min) * speed * _bits_per_dim(jnp.square(eps - d.eps))
    first, final = (level_at(process, jnp.asarray(end, x0.dtype)) for end in (process.t_min, process.t_max))
    mean = x0 + first.sigma / first.alpha * noise.normal('eps_min', x0)
    log_var = 2.0 * (jnp.log(first.sigma) - jnp.log(first.alpha))
    if levels is None:
        decoder = _bits_per_dim(-_gaussian_log_prob(x0, mean, log_var))
    else:
        decoder = grey_level_nll(x0, mean, log_var, jnp.linspace(-1.0, 1.0, levels, dtype=x0.dtype))
    prior = prior_kl(x0, final)
    return VLB(prior + loss + decoder, prior, jnp.stack([loss, decoder]))
