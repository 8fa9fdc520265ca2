"""Training times: (noise, n, extra) -> times [n] and their importance weights [n].

Each constructor takes the process whose range it draws from. Draws go through the per-example Noise, so example k
gets the same time on any number of devices; n must be the number of examples that the Noise holds. Times that follow
the losses seen are in `gen_jax.diffusion.loss_aware`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.diffusion.loss_aware import loss_aware
from gen_jax.diffusion.process import half_log_snr
from gen_jax.types import Process, Times

__all__ = ['uniform', 'low_discrepancy', 'discrete_uniform', 'log_normal', 'logit_normal', 'mode', 'cosmap',
           'uniform_log_snr', 'loss_aware']


def _range(process, t_min, t_max):
    low, high = process.t_min if t_min is None else t_min, process.t_max if t_max is None else t_max
    if not low < high:
        raise ValueError(f't_min must be less than t_max, got t_min={low} and t_max={high}.')
    return low, high


def _continuous(name: str, process: Process, t_min, t_max):
    if process.steps is not None:
        raise ValueError(f'{name} times need a continuous process, this one is a table of {process.steps} steps; '
                         'use discrete_uniform.')
    return _range(process, t_min, t_max)


def _of(process: Process, times: Times) -> Times:
    times.process = process  # so that a system on another process can refuse them
    return times


def _spread(low: float, high: float, shape, source: str = 'uniform') -> Times:
    """low + (high - low) shape(u), unweighted, where u is uniform in [0, 1) and drawn from the method `source`."""

    def times(noise, n, extra):
        del extra
        return low + (high - low) * shape(getattr(noise, source)('times').reshape(n)), jnp.ones(n)

    return times


def uniform(process: Process, t_min: float | None = None, t_max: float | None = None) -> Times:
    """Uniform on [t_min, t_max), by default the range of a continuous process; float32.

    Raises:
        ValueError: the process is a discrete table, or the range is empty.
    """
    return _of(process, _spread(*_continuous('uniform', process, t_min, t_max), lambda u: u))


def low_discrepancy(process: Process, t_min: float | None = None, t_max: float | None = None) -> Times:
    """Uniform and, within the global batch, evenly spaced: (u + k / n) mod 1 (VDM, Appendix I.1; Kingma et al. 2021).

    Each time is uniform, so the loss keeps its mean and loses most of its variance over t. The global batch is meant:
    shards and micro-batches change nothing (see `gen_jax.rng.Noise.stratified`). Errors as in `uniform`.
    """
    return _of(process, _spread(*_continuous('low_discrepancy', process, t_min, t_max), lambda u: u, 'stratified'))


def discrete_uniform(process: Process) -> Times:
    """Uniform on the indices 0 .. T-1 of a discrete table (Ho et al. 2020, Algorithm 1); int32.

    Raises:
        ValueError: the process is continuous.
    """
    if process.steps is None:
        raise ValueError('discrete_uniform times need a discrete table, this process is continuous; use uniform.')

    def times(noise, n, extra):
        del extra
        return noise.randint('times', 0, process.steps).reshape(n), jnp.ones(n)

    return _of(process, times)


def log_normal(process: Process, mean: float = -1.2, std: float = 1.2) -> Times:
    """log(sigma / alpha) ~ N(mean, std^2) (Karras et al. 2022, Table 1), on any process by its inverse.

    Times are clipped to the range of the process: with EDM's own sigmas that concerns 2e-5 of the draws.

    Raises:
        ValueError: std <= 0.
    """
    if not std > 0:
        raise ValueError(f'std must be positive, got {std}.')

    def times(noise, n, extra):
        del extra
        z = noise.normal('times', (n,))
        return jnp.clip(process.inverse(-(mean + std * z)), process.t_min, process.t_max), jnp.ones(n)

    return _of(process, times)


def logit_normal(process: Process, mean: float = 0.0, std: float = 1.0) -> Times:
    """sigmoid(N(mean, std^2)) over the range of the process (Esser et al. 2024, Eq. 19): fewer times at the ends.

    Raises:
        ValueError: std <= 0, or the process is a discrete table.
    """
    if not std > 0:
        raise ValueError(f'std must be positive, got {std}.')
    low, high = _continuous('logit_normal', process, None, None)

    def times(noise, n, extra):
        del extra
        return low + (high - low) * jax.nn.sigmoid(mean + std * noise.normal('times', (n,))), jnp.ones(n)

    return _of(process, times)


def mode(process: Process, scale: float = 1.29) -> Times:
    """1 - u - scale (cos^2(pi u / 2) - 1 + u) with u uniform, over the process's range (Esser et al. 2024, Eq. 20).

    Args:
        scale: -1 .. 2 / (pi - 2) = 1.75, where the map is monotone: above 0 the middle is drawn more often.

    Raises:
        ValueError: scale out of range, or the process is a discrete table.
    """
    if not -1.0 <= scale <= 2.0 / (np.pi - 2.0):
        raise ValueError(f'scale must lie within [-1, {2.0 / (np.pi - 2.0):.4f}], got {scale}.')
    return _of(process, _spread(*_continuous('mode', process, None, None), lambda u:
                                jnp.clip(1.0 - u - scale * (jnp.cos(0.5 * jnp.pi * u) ** 2 - 1.0 + u), 0.0, 1.0)))


def cosmap(process: Process) -> Times:
    """1 - 1 / (tan(pi u / 2) + 1) with u uniform: flow at the log-SNR density of the cosine schedule (Esser et al.
    2024, Eq. 21).

    Raises:
        ValueError: the process is a discrete table.
    """

    def shape(u):
        s, c = jnp.sin(0.5 * jnp.pi * u), jnp.cos(0.5 * jnp.pi * u)
        return s / (s + c)

    return _of(process, _spread(*_continuous('cosmap', process, None, None), shape))


def uniform_log_snr(process: Process, t_min: float | None = None, t_max: float | None = None,
                    unbiased: bool = True) -> Times:
    """Log-SNR uniform between those at t_min and t_max, evenly spaced within the global batch, on any process.

    It is the density p(t) ~ g^2 / sigma^2 of the importance sampling for `weighting.likelihood` (Song et al. 2021,
    Maximum likelihood training, Sec. 5), and the factor -d log SNR / dt of Kingma & Gao 2023 (with unbiased=False).

    Args:
        unbiased: weigh by uniform density / p(t), so that the mean of a loss is that under uniform times.

    Raises:
        ValueError: the process is a discrete table, the range is empty, or its log-SNR is infinite at an end.
    """
    low, high = _continuous('uniform_log_snr', process, t_min, t_max)
    first, last = (float(half_log_snr(process, t)) for t in (low, high))
    if not np.isfinite(first) or not np.isfinite(last):
        raise ValueError(f'the log-SNR is infinite within [{low}, {high}]; set t_min and t_max inside of it.')

    def times(noise, n, extra):
        del extra
        u = noise.stratified('times').reshape(n)
        t = jnp.clip(process.inverse(first + (last - first) * u), low, high)
        if not unbiased:
            return t, jnp.ones(n)
        slope = jax.jvp(lambda t: half_log_snr(process, t), (t,), (jnp.ones_like(t),))[1]
        return t, (last - first) / ((high - low) * slope)

    return _of(process, times)
