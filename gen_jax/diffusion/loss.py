"""The denoising loss: one function of (network, process, parameterisation, weighting)."""

from collections.abc import Callable

import jax.numpy as jnp

from gen_jax.diffusion import weighting as weightings
from gen_jax.diffusion.parameterisation import at_least_float32, network_output, split_raw
from gen_jax.diffusion.process import level_at, perturb
from gen_jax.types import Array, Cond, Parameterisation, Process


def denoising_loss(network: Callable[..., Array], process: Process, parameterisation: Parameterisation,
                   weighting: weightings.Weighting | None = None, *, offset_noise: float = 0.0,
                   input_perturbation: float = 0.0) -> Callable[..., Array]:
    """w(t) mean_pixels |network(c_in x_t, label, cond) - target|^2 (Ho et al. 2020, Eq. 14 and its weighted kin).

    The error is taken in the network's own space: through x0 it would be NaN where alpha = 0. Denoising score matching
    (Song & Ermon 2019, Eq. 6) is this loss with `parameterisation.score` and `weighting.sigma_power`, up to the
    paper's factor of half the number of pixels.

    Args:
        network: (x [B, ...], label [B], cond) -> raw output shaped like x, of any float dtype.
        weighting: level -> [B]; None is `weighting.simple()`.
        offset_noise: eps, in x_t and in the target alike, gains this times a standard normal constant per channel, so
            that the mean of a picture is noised too (Guttenberg 2023; 0.1 is usual). 0 draws nothing.
        input_perturbation: gamma of Ning et al. 2023, Algorithm 1: x_t, but not the target, is made with eps plus
            gamma times another standard normal draw (0.1 in the paper). 0 draws nothing.

    Returns:
        loss(x0 [B, ..., C], t [B], noise, cond) -> per-example loss [B], float32. `noise` is a `gen_jax.rng.Noise`; its
        draws are named 'eps', 'offset_noise' and 'input_perturbation'.

    Raises:
        ValueError: negative strengths; at trace time, if the network's output is not shaped like its input.
    """
    for name, value in (('offset_noise', offset_noise), ('input_perturbation', input_perturbation)):
        if value < 0:
            raise ValueError(f'{name} must be at least 0, got {value}.')
    weighting = weightings.simple() if weighting is None else weighting

    def loss(x0: Array, t: Array, noise, cond: Cond) -> Array:
        x0 = at_least_float32(x0)
        level = level_at(process, t)
        eps = noise.normal('eps', x0)
        if offset_noise:
            per_channel = (x0.shape[0],) + (1,) * (x0.ndim - 2) + x0.shape[-1:]
            eps = eps + offset_noise * noise.normal('offset_noise', per_channel)
        drawn = eps
        if input_perturbation:
            drawn = eps + input_perturbation * noise.normal('input_perturbation', x0)
        x = perturb(x0, drawn, level)
        raw = network_output(network, parameterisation.label, parameterisation.c_in, process, x, level, cond)
        error = split_raw(raw, x, parameterisation.channels)[0] - parameterisation.target(x0, eps, level)
        return weighting(level) * jnp.mean(jnp.square(error), axis=tuple(range(1, x.ndim)))

    return loss
