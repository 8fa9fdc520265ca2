"""The denoising loss: one function of (network, process, parameterisation, weighting)."""

from collections.abc import Callable

import jax.numpy as jnp

from gen_jax.diffusion import weighting as weightings
from gen_jax.diffusion.parameterisation import at_least_float32
from gen_jax.diffusion.process import expand, level_at, perturb
from gen_jax.types import Array, Cond, Parameterisation, Process


def denoising_loss(network: Callable[..., Array], process: Process, parameterisation: Parameterisation,
                   weighting: weightings.Weighting | None = None) -> Callable[..., Array]:
    """w(t) mean_pixels |network(c_in x_t, label, cond) - target|^2 (Ho et al. 2020, Eq. 14 and its weighted kin).

    The error is taken in the network's own space: through x0 it would be NaN where alpha = 0.

    Args:
        network: (x [B, ...], label [B], cond) -> raw output shaped like x, of any float dtype.
        weighting: level -> [B]; None is `weighting.simple()`.

    Returns:
        loss(x0 [B, ...], t [B], noise, cond) -> per-example loss [B], float32. `noise` is a `gen_jax.rng.Noise` (the
        draw is `noise.normal('eps', x0)`).

    Raises:
        ValueError: at trace time, if the network's output is not shaped like its input.
    """
    weighting = weightings.simple() if weighting is None else weighting

    def loss(x0: Array, t: Array, noise, cond: Cond) -> Array:
        x0 = at_least_float32(x0)
        level = level_at(process, t)
        eps = noise.normal('eps', x0)
        x = perturb(x0, eps, level)
        label = jnp.broadcast_to(parameterisation.label(level, process), x.shape[:1])
        raw = network(expand(parameterisation.c_in(level), x) * x, label, cond)
        if raw.shape != x.shape:
            raise ValueError(f'The network returned {raw.shape} for an input of {x.shape}; they must be equal.')
        error = at_least_float32(raw) - parameterisation.target(x0, eps, level)
        return weighting(level) * jnp.mean(jnp.square(error), axis=tuple(range(1, x.ndim)))

    return loss
