"""Weights of the training loss by noise level: level -> [B], multiplying the squared error of the raw target.

Every weight is stated for the x0 error, and one table, `_PER_X0`, takes it to the space of the network's own target,
so that a weighting means the same loss whatever the network predicts, on any process.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gen_jax.diffusion.process import diffusion
from gen_jax.types import Array, Level, Process

__all__ = ['simple', 'snr', 'truncated_snr', 'min_snr', 'p2', 'edm', 'sigmoid', 'sigma_power', 'likelihood']

Weighting = Callable[[Level], Array]

# Squared x0 error per squared error of the target, given x, with snr = alpha^2 / sigma^2: what an x0 weight is
# multiplied by. eps errs by alpha / sigma times the error of x0, v by (alpha^2 + sigma^2) / sigma, the score by
# alpha / sigma^2, the flow by (alpha + sigma) / sigma and EDM's F by sqrt(sigma^2 + alpha^2 sigma_data^2) over
# sigma sigma_data. Written so that nothing overflows at sigma = 0 or alpha = 0.
_PER_X0 = {
    'x0': lambda level, snr, sigma_data: jnp.ones_like(snr),
    'eps': lambda level, snr, sigma_data: 1.0 / snr,
    'v': lambda level, snr, sigma_data: 1.0 / ((snr + 1.0) * (level.alpha ** 2 + level.sigma ** 2)),
    'score': lambda level, snr, sigma_data: level.sigma ** 2 / snr,
    'flow': lambda level, snr, sigma_data: (1.0 + jnp.sqrt(snr)) ** -2,
    'edm': lambda level, snr, sigma_data: sigma_data ** 2 / (1.0 + snr * sigma_data ** 2),
}


def _snr(level: Level) -> Array:
    """alpha^2 / sigma^2 within [1e-12, 1e12], so that the ends stay finite."""
    ratio = jnp.square(level.alpha) / jnp.maximum(jnp.square(level.sigma), 1e-30)
    return jnp.clip(ratio, 1e-12, 1e12)


def _in_target_space(x0_weight: Callable[[Level, Array], Array], target: str, sigma_data: float = 0.5) -> Weighting:
    """x0_weight(level, snr) carried over to the space of `target`; sigma_data matters to 'edm' alone."""
    if target not in _PER_X0:
        raise ValueError(f'Unknown target {target!r}; choose one of {sorted(_PER_X0)}.')

    def weight(level):
        ratio = _snr(level)
        return x0_weight(level, ratio) * _PER_X0[target](level, ratio, sigma_data)

    weight.space = ('edm', sigma_data) if target == 'edm' else (target,)  # as Parameterisation.space
    return weight


def simple() -> Weighting:
    """1 for every level: the network's own target, unweighted (Ho et al. 2020, Eq. 14)."""
    return lambda level: jnp.ones_like(level.alpha)


def snr(target: str = 'x0', sigma_data: float = 0.5) -> Weighting:
    """SNR on the x0 error, which is 1 on eps and sigma^2 on the score (Salimans & Ho 2022, Sec. 4).

    Args:
        target: what the network predicts: 'x0', 'eps', 'v', 'score', 'flow' or 'edm'.
        sigma_data: of the parameterisation, if that is `edm`.

    Raises:
        ValueError: unknown target.
    """
    return _in_target_space(lambda level, ratio: ratio, target, sigma_data)


def truncated_snr(target: str = 'x0', sigma_data: float = 0.5) -> Weighting:
    """max(SNR, 1) on the x0 error (Salimans & Ho 2022, Sec. 4). Arguments and errors as in `snr`."""
    return _in_target_space(lambda level, ratio: jnp.maximum(ratio, 1.0), target, sigma_data)


def min_snr(gamma: float = 5.0, target: str = 'v', sigma_data: float = 0.5) -> Weighting:
    """min(SNR, gamma) on the x0 error (Hang et al. 2023, Eq. 8). Arguments as in `snr`.

    Raises:
        ValueError: unknown target, or gamma <= 0.
    """
    if not gamma > 0:
        raise ValueError(f'gamma must be positive, got {gamma}.')
    return _in_target_space(lambda level, ratio: jnp.minimum(ratio, gamma), target, sigma_data)


def p2(gamma: float = 1.0, k: float = 1.0, target: str = 'eps', sigma_data: float = 0.5) -> Weighting:
    """SNR / (k + SNR)^gamma on the x0 error (Choi et al. 2022, Eq. 8). Arguments and errors as in `snr`."""
    if not k >= 0:
        raise ValueError(f'k must be at least 0, got {k}.')
    return _in_target_space(lambda level, ratio: ratio / (k + ratio) ** gamma, target, sigma_data)


def edm(sigma_data: float = 0.5, target: str = 'edm') -> Weighting:
    """(sigma^2 + sigma_data^2) / (sigma sigma_data)^2 on the x0 error of x / alpha (Karras et al. 2022, Table 1).

    With SNR for 1 / sigma^2 it is SNR + 1 / sigma_data^2 on any process, and 1 on EDM's own target. `target` and
    errors as in `snr`.
    """
    if not sigma_data > 0:
        raise ValueError(f'sigma_data must be positive, got {sigma_data}.')
    return _in_target_space(lambda level, ratio: ratio + sigma_data ** -2, target, sigma_data)


def sigmoid(bias: float = 2.0, target: str = 'eps', sigma_data: float = 0.5) -> Weighting:
    """sigmoid(bias - log SNR) on the eps error (Kingma & Gao 2023, Sec. 5, whose k is `bias`).

    Their weight multiplies -d log SNR / dt too: draw the times with `times.uniform_log_snr`, which is that factor.
    Arguments and errors as in `snr`.
    """
    return _in_target_space(lambda level, ratio: ratio * jax.nn.sigmoid(bias - jnp.log(ratio)), target, sigma_data)


def sigma_power(power: float = 2.0, target: str = 'score', sigma_data: float = 0.5) -> Weighting:
    """sigma^power on the error of the score: denoising score matching (Song & Ermon 2019, Eq. 6 and Sec. 4.2).

    The paper's power of 2 is `snr`. Its code calls the power `anneal_power`. Arguments and errors as in `snr`.
    """
    return _in_target_space(lambda level, ratio: ratio * jnp.maximum(level.sigma, 1e-12) ** (power - 2.0), target,
                            sigma_data)


def likelihood(process: Process, target: str = 'score', sigma_data: float = 0.5) -> Weighting:
    """g(t)^2 on the error of the score, which bounds the likelihood (Song et al. 2021, Maximum likelihood training,
    Theorem 1); g is the diffusion coefficient of the process, read at level.t.

    On uniform times its variance is large near the data; `times.uniform_log_snr` is the remedy (Sec. 5 there).
    Arguments and errors as in `snr`.
    """

    def x0_weight(level, ratio):
        return jnp.square(diffusion(process, level.t)) * ratio / jnp.maximum(jnp.square(level.sigma), 1e-30)

    return _in_target_space(x0_weight, target, sigma_data)
