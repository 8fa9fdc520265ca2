"""Training times: (noise, n, extra) -> times [n] and their importance weights [n].

Each constructor takes the process whose range it draws from. Draws go through the per-example Noise, so example k
gets the same time on any number of devices; n must be the number of examples that the Noise holds.
"""

import jax.numpy as jnp

from gen_jax.types import Process, Times

__all__ = ['uniform', 'discrete_uniform']


def _range(process, t_min, t_max):
    low, high = process.t_min if t_min is None else t_min, process.t_max if t_max is None else t_max
    if not low < high:
        raise ValueError(f't_min must be less than t_max, got t_min={low} and t_max={high}.')
    return low, high


def uniform(process: Process, t_min: float | None = None, t_max: float | None = None) -> Times:
    """Uniform on [t_min, t_max), by default the range of a continuous process; float32.

    Raises:
        ValueError: the process is a discrete table, or the range is empty.
    """
    if process.steps is not None:
        raise ValueError(f'uniform times need a continuous process, this one is a table of {process.steps} steps; '
                         'use discrete_uniform.')
    low, high = _range(process, t_min, t_max)

    def times(noise, n, extra):
        del extra
        return low + (high - low) * noise.uniform('times', ()).reshape(n), jnp.ones(n)

    return times


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

    return times
