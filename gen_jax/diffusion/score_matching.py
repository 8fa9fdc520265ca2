"""Sliced score matching: a score learned from samples and projections alone, without a kernel to differentiate."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gen_jax.diffusion import weighting as weightings
from gen_jax.diffusion.parameterisation import at_least_float32
from gen_jax.diffusion.process import expand, level_at, perturb
from gen_jax.types import Array, Cond, Parameterisation, Process

__all__ = ['sliced_score_matching', 'sliced_score_objective']

DISTRIBUTIONS = ('rademacher', 'gaussian')


def sliced_score_objective(score: Callable[[Array], Array], x: Array, noise, *, projections: int = 1,
                           distribution: str = 'rademacher', variance_reduced: bool = True) -> Array:
    """(|s|^2 + 2 v' (ds/dx) v) / D averaged over projections v, per example [B] (Song et al. 2019, UAI: SSM-VR).

    In expectation it is the squared error of s against the true score of x less a constant, E |grad log p|^2 / D, which
    is twice the paper's objective over the dimension D.

    Args:
        score: x [B, ...] -> s [B, ...], each example by itself (no batch norm): one forward-mode derivative per
            projection serves the whole batch.
        x: samples [B, ...].
        noise: a `gen_jax.rng.Noise`; the draws are named 'projection_0', 'projection_1' ...
        projections: number of v per example.
        distribution: 'rademacher' (signs, the least variance) or 'gaussian'; both have E v v' = I.
        variance_reduced: False puts (v' s)^2 for |s|^2, whose mean it is (SSM, the paper's plain form).

    Raises:
        ValueError: unknown distribution, or projections < 1.
    """
    if distribution not in DISTRIBUTIONS:
        raise ValueError(f'Unknown distribution {distribution!r}; choose one of {list(DISTRIBUTIONS)}.')
    if projections < 1:
        raise ValueError(f'projections must be at least 1, got {projections}.')
    pixels = tuple(range(1, x.ndim))
    total = 0.0
    for k in range(projections):
        v = noise.normal(f'projection_{k}', x)
        if distribution == 'rademacher':
            v = jnp.where(v < 0, -1.0, 1.0).astype(v.dtype)
        s, slope = jax.jvp(score, (x,), (v.astype(x.dtype),))
        norm = jnp.mean(jnp.square(s), pixels) if variance_reduced else \
            jnp.square(jnp.sum(v * s, pixels)) / (x.size // x.shape[0])
        total = total + norm + 2.0 * jnp.mean(v * slope, pixels)
    return total / projections


def sliced_score_matching(network: Callable[..., Array], process: Process, parameterisation: Parameterisation,
                          weighting: weightings.Weighting | None = None, *, projections: int = 1,
                          distribution: str = 'rademacher', variance_reduced: bool = True) -> Callable[..., Array]:
    """The sliced objective at every noise level, in place of `denoising_loss` (Song & Ermon 2019, Eq. 3).

    Up to a constant per level it is `denoising_loss` of the score: both regress the score of x_t.

    Args:
        network, process, parameterisation: as in `denoising_loss`; the score is -eps / sigma of what is predicted.
        weighting: level -> [B], on the error of the score; None is sigma^2, the paper's.
        projections, distribution, variance_reduced: see `sliced_score_objective`.

    Returns:
        loss(x0 [B, ...], t [B], noise, cond) -> per-example loss [B], of either sign. Needs sigma > 0.
    """
    weighting = weightings.sigma_power(2.0) if weighting is None else weighting
    denoise = parameterisation.denoiser(network, process)

    def loss(x0: Array, t: Array, noise, cond: Cond) -> Array:
        x0 = at_least_float32(x0)
        level = level_at(process, t)
        x = perturb(x0, noise.normal('eps', x0), level)

        def score(x):
            return -denoise(x, level, cond).eps / expand(level.sigma, x)

        return weighting(level) * sliced_score_objective(
            score, x, noise, projections=projections, distribution=distribution, variance_reduced=variance_reduced)

    return loss
