"""Training losses by name, for configs: each fixes its settings and waits for the parts that all losses share.

All return a function (network, process, parameterisation, weighting=None) -> loss(x0, t, noise, cond) [B], which
`gen_jax.systems.diffusion` takes as `loss`. Where they fix them, the functions say so in their attributes: `levels`,
the grey levels that the bound decodes, and `space`, that in which the weighting counts errors.
"""

from collections.abc import Callable

from gen_jax.diffusion.hybrid import hybrid_loss, vlb_loss
from gen_jax.diffusion.loss import denoising_loss
from gen_jax.diffusion.score_matching import sliced_score_matching

__all__ = ['denoising', 'hybrid', 'vlb', 'sliced_score']


def denoising(offset_noise: float = 0.0, input_perturbation: float = 0.0) -> Callable:
    """The squared error in the network's own space: see `gen_jax.diffusion.loss.denoising_loss`."""
    return lambda *parts: denoising_loss(*parts, offset_noise=offset_noise, input_perturbation=input_perturbation)


def hybrid(vlb_weight: float = 1e-3, levels: int | None = 256) -> Callable:
    """L_simple + vlb_weight L_vlb of a learned variance: see `gen_jax.diffusion.hybrid.hybrid_loss`."""
    def make(*parts):
        return hybrid_loss(*parts, vlb_weight=vlb_weight, levels=levels)

    make.levels = levels
    return make


def vlb(variance: str | None = None, levels: int | None = 256) -> Callable:
    """The variational bound alone, whatever the weighting: see `gen_jax.diffusion.hybrid.vlb_loss`."""
    def make(network, process, parameterisation, weighting=None):
        return vlb_loss(network, process, parameterisation, variance=variance, levels=levels)

    make.levels = levels
    return make


def sliced_score(projections: int = 1, distribution: str = 'rademacher', variance_reduced: bool = True) -> Callable:
    """Sliced score matching: see `gen_jax.diffusion.score_matching.sliced_score_matching`.

    The weighting counts errors of the score here, whatever the parameterisation; None is sigma^2.
    """
    def make(*parts):
        return sliced_score_matching(*parts, projections=projections, distribution=distribution,
                                     variance_reduced=variance_reduced)

    make.space = ('score',)
    return make
