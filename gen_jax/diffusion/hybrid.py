"""Losses with the variational bound, for learned variances: L_hybrid and L_vlb (Nichol & Dhariwal 2021)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gen_jax.diffusion import weighting as weightings
from gen_jax.diffusion.parameterisation import at_least_float32, network_output, split_raw
from gen_jax.diffusion.process import level_at, perturb
from gen_jax.diffusion.vlb import vlb_term
from gen_jax.types import Array, Cond, Parameterisation, Process

__all__ = ['hybrid_loss', 'vlb_loss']


def _check(process: Process) -> None:
    if process.steps is None:
        raise ValueError('The variational bound is over the steps of a table, this process is continuous; use '
                         'diffusion.discrete or diffusion.discrete_ddpm.')


def _bound(network_output: Array, x0: Array, x: Array, t: Array, cond: Cond, process: Process,
           parameterisation: Parameterisation, variance: str | None, levels: int | None) -> Array:
    """T L_t [B] of a raw output at x_t."""
    d = parameterisation.denoiser(lambda *_: network_output, process)(x, level_at(process, t), cond)
    variance = variance or ('fixed_small' if d.log_var is None else 'learned')
    # Without a derivative with respect to t, rounding an index to its row is harmless.
    at, below, above = (level_at(process, u) for u in (t, t - 1, jnp.minimum(t + 1, process.steps - 1)))
    return process.steps * vlb_term(d, x0, x, at, below, above, variance, levels)


def _call(network, process, parameterisation, x0, t, noise, cond):
    """level, eps, x_t and the network's raw output, all of it."""
    level = level_at(process, t)
    eps = noise.normal('eps', x0)
    x = perturb(x0, eps, level)
    raw = network_output(network, parameterisation.label, parameterisation.c_in, process, x, level, cond)
    return level, eps, x, at_least_float32(raw)


def hybrid_loss(network: Callable[..., Array], process: Process, parameterisation: Parameterisation,
                weighting: weightings.Weighting | None = None, *, vlb_weight: float = 1e-3,
                levels: int | None = 256) -> Callable[..., Array]:
    """L_simple + vlb_weight L_vlb (Nichol & Dhariwal 2021, Eq. 16), for `parameterisation.learned_range`.

    L_vlb is T L_t in bits per dimension, as in the published code (vlb_weight 1e-3 is its T / 1000), and its gradient
    reaches the variance only: the mean is learned by L_simple.

    Args:
        network: (x [B, ..., C], label [B], cond) -> raw output [B, ..., 2 C].
        process: a discrete table.
        weighting: of L_simple, as in `gen_jax.diffusion.loss.denoising_loss`.
        levels: grey levels of the data (17 for the digits of 8 x 8), or None for a density.

    Returns:
        loss(x0 [B, ..., C], t [B] integers, noise, cond) -> [B], float32; draws `noise.normal('eps', x0)`.

    Raises:
        ValueError: a continuous process, a parameterisation without a variance, vlb_weight < 0; at trace time, a
            wrong shape of the network's output.
    """
    _check(process)
    if parameterisation.channels != 2:
        raise ValueError('hybrid_loss learns a variance: wrap the parameterisation in '
                         "{'name': 'diffusion.parameterisation.learned_range', 'base': ...}, or use denoising_loss.")
    if vlb_weight < 0:
        raise ValueError(f'vlb_weight must be at least 0, got {vlb_weight}.')
    weighting = weightings.simple() if weighting is None else weighting

    def loss(x0: Array, t: Array, noise, cond: Cond) -> Array:
        x0 = at_least_float32(x0)
        level, eps, x, raw = _call(network, process, parameterisation, x0, t, noise, cond)
        mean, variance = split_raw(raw, x, parameterisation.channels)
        frozen = jnp.concatenate([jax.lax.stop_gradient(mean), variance], axis=-1)
        bound = _bound(frozen, x0, x, t, cond, process, parameterisation, 'learned', levels)
        error = jnp.square(mean - parameterisation.target(x0, eps, level))
        return weighting(level) * jnp.mean(error, axis=tuple(range(1, x.ndim))) + vlb_weight * bound

    return loss


def vlb_loss(network: Callable[..., Array], process: Process, parameterisation: Parameterisation, *,
             variance: str | None = None, levels: int | None = 256) -> Callable[..., Array]:
    """L_vlb alone: T L_t, whose mean over uniform t is the bound without its prior term, bits/dim.

    Args:
        variance: 'fixed_small', 'fixed_large' or 'learned'; None is 'learned' where the parameterisation has one, else
            'fixed_small'.
        network, process, levels, and what is returned and raised: as in `hybrid_loss`; no wrapper is needed.
    """
    _check(process)

    def loss(x0: Array, t: Array, noise, cond: Cond) -> Array:
        x0 = at_least_float32(x0)
        _, _, x, raw = _call(network, process, parameterisation, x0, t, noise, cond)
        return _bound(raw, x0, x, t, cond, process, parameterisation, variance, levels)

    return loss
