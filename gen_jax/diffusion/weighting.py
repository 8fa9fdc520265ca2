"""Weights of the training loss by noise level: level -> [B], multiplying the squared error of the raw target.

A weight that a paper states for the x0 error becomes another one in the network's own space: an eps error is SNR
times the x0 error, a v error (SNR + 1) times it, SNR = alpha^2 / sigma^2.
"""

from collections.abc import Callable

import jax.numpy as jnp

from gen_jax.types import Array, Level

__all__ = ['simple', 'snr', 'truncated_snr', 'min_snr', 'p2']

Weighting = Callable[[Level], Array]
_PER_X0 = {'x0': lambda snr: 1.0, 'eps': lambda snr: 1.0 / snr, 'v': lambda snr: 1.0 / (snr + 1.0)}


def _snr(level: Level) -> Array:
    """alpha^2 / sigma^2 within [1e-12, 1e12], so that the ends stay finite."""
    ratio = jnp.square(level.alpha) / jnp.maximum(jnp.square(level.sigma), 1e-30)
    return jnp.clip(ratio, 1e-12, 1e12)


def _in_target_space(x0_weight, target: str) -> Weighting:
    if target not in _PER_X0:
        raise ValueError(f'Unknown target {target!r}; choose one of {sorted(_PER_X0)}.')

    def weight(level):
        ratio = _snr(level)
        return x0_weight(ratio) * _PER_X0[target](ratio)

    return weight


def simple() -> Weighting:
    """1 for every level: the network's own target, unweighted (Ho et al. 2020, Eq. 14)."""
    return lambda level: jnp.ones_like(level.alpha)


def snr(target: str = 'x0') -> Weighting:
    """SNR on the x0 error, which is 1 on eps (Salimans & Ho 2022, Sec. 4). `target`: what the network predicts."""
    return _in_target_space(lambda ratio: ratio, target)


def truncated_snr(target: str = 'x0') -> Weighting:
    """max(SNR, 1) on the x0 error (Salimans & Ho 2022, Sec. 4)."""
    return _in_target_space(lambda ratio: jnp.maximum(ratio, 1.0), target)


def min_snr(gamma: float = 5.0, target: str = 'v') -> Weighting:
    """min(SNR, gamma) on the x0 error (Hang et al. 2023, Eq. 8). `target`: 'x0', 'eps' or 'v'.

    Raises:
        ValueError: unknown target, or gamma <= 0.
    """
    if not gamma > 0:
        raise ValueError(f'gamma must be positive, got {gamma}.')
    return _in_target_space(lambda ratio: jnp.minimum(ratio, gamma), target)


def p2(gamma: float = 1.0, k: float = 1.0, target: str = 'eps') -> Weighting:
    """SNR / (k + SNR)^gamma on the x0 error (Choi et al. 2022, Eq. 8)."""
    return _in_target_space(lambda ratio: ratio / (k + ratio) ** gamma, target)
