"""Pseudo numerical methods: Adams-Bashforth and Runge-Kutta in eps, carried from level to level by DDIM.

The coefficients are those of equal steps, whatever the levels are, so the order is 2 on grids that are smooth in t and
less on others; `multistep.lms` has the coefficients of the very grid. From a level without signal (alpha = 0), where a
change of eps would be divided by alpha, a step is DDIM's.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.sampling.multistep import ratio, weigh
from gen_jax.types import Array, Level, Point, Process, Sampler

__all__ = ['pndm', 'plms', 'ipndm']

_ADAMS_BASHFORTH = np.array([[1, 0, 0, 0], [3 / 2, -1 / 2, 0, 0], [23 / 12, -16 / 12, 5 / 12, 0],
                             [55 / 24, -59 / 24, 37 / 24, -9 / 24]])
_WARM_ROWS = {'none': 0, 'heun': 1, 'runge_kutta': 3}


class PseudoState(NamedTuple):
    """The last values of a pseudo numerical method."""

    past: Array
    """[3, B, ...]: eps at the last points, the newest first."""
    known: Array
    """How many of them have been filled; () int32."""


def _halfway(process: Process, t: Level, s: Level) -> Level:
    """The level in the middle in t, of t's index."""
    time = 0.5 * (t.t + s.t)
    return t._replace(t=time, **{name: jnp.asarray(fn(time), t.alpha.dtype)
                                 for name, fn in (('alpha', process.alpha), ('sigma', process.sigma))})


def _pseudo(warm_up: str, process: Process | None = None, compat: bool = False) -> Sampler:
    """warm_up: 'none' | 'heun' (one step) | 'runge_kutta' (three)."""

    def init(point):
        return PseudoState(jnp.zeros((3, *point.x.shape), point.x.dtype), jnp.int32(0))

    def read(d, level):
        return level.alpha * d.eps - level.sigma * d.x0 if compat else d.eps

    def step(noise, denoise, point, s, state):
        del noise
        x, t = point.x, point.level
        d = denoise(x, t)
        value = read(d, t)

        def carry(mixed, to):
            """DDIM from x, its eps replaced by `mixed` (Liu et al. 2022, Eq. 9)."""
            gain = jnp.where(t.alpha > 0, to.sigma - ratio(to.alpha * t.sigma, t.alpha), 0.0)
            return to.alpha * d.x0 + to.sigma * d.eps + gain * (t.alpha if compat else 1.0) * (mixed - value)

        def adams_bashforth():
            weights = jnp.asarray(_ADAMS_BASHFORTH, x.dtype)[state.known]
            return carry(weigh(weights, value[None], state.past), s)

        def heun():
            return carry(0.5 * (value + read(denoise(carry(value, s), s), s)), s)

        def runge_kutta():
            middle = _halfway(process, t, s)

            def stage(k, state):
                latest, total = state
                level = jax.tree.map(lambda a, b: jnp.where(k < 2, a, b), middle, s)
                latest = read(denoise(carry(latest, level), level), level)
                return latest, total + jnp.where(k < 2, 2.0, 1.0).astype(x.dtype) * latest

            return carry(jax.lax.fori_loop(0, 3, stage, (value, value))[1] / 6.0, s)

        if warm_up == 'none':
            end = adams_bashforth()
        else:
            warm = (state.known < _WARM_ROWS[warm_up]) & (t.alpha > 0) & (s.sigma > 0)
            end = jax.lax.cond(warm, heun if warm_up == 'heun' else runge_kutta, adams_bashforth)
        past = jnp.concatenate([value[None], state.past[:2]])
        return Point(end, s, d.aux), PseudoState(past, jnp.minimum(state.known + 1, 3))

    return Sampler(init, step)


def pndm(process: Process | None = None, skip_prk_steps: bool = True, compat: bool = False) -> Sampler:
    """PNDM (Liu et al. 2022, Algorithm 2): Adams-Bashforth of order 4 in eps, carried by DDIM. Reads x0 and eps.

    One call per step after the warm-up; order 2 on grids that are smooth in t.

    Args:
        process: gives the level halfway in t that the Runge-Kutta steps visit; not needed without them.
        skip_prk_steps: True warms up with one step of Heun's method (two calls) and Adams-Bashforth of orders 2 and 3
            (PLMS, as latent diffusion has it); False with three steps of the classical Runge-Kutta method (Eq. 13;
            four calls each).
        compat: average v in place of eps and convert the average at the present level, as diffusers' PNDMScheduler
            does with prediction_type='v_prediction'; the paper averages eps. For variance preserving processes.

    Raises:
        ValueError: Runge-Kutta steps without a process.
    """
    if not skip_prk_steps and process is None:
        raise ValueError('skip_prk_steps=False visits levels between those of the grid: pass process, or '
                         'skip_prk_steps=True.')
    return _pseudo('heun' if skip_prk_steps else 'runge_kutta', process, compat)


def plms() -> Sampler:
    """PLMS: `pndm` without the Runge-Kutta steps. Reads x0 and eps; one call per step, two in the first; order 2."""
    return _pseudo('heun')


def ipndm() -> Sampler:
    """iPNDM (Zhang & Chen 2023): as `plms`, but the first step is DDIM's. Reads x0 and eps; one call."""
    return _pseudo('none')
