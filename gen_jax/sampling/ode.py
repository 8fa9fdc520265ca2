"""Runge-Kutta integrators of dy/dt = f(t, y): embedded with step control, and on a given grid of times.

Written here instead of taken from a library because sampling needs what those lack: an own step size per example (so
that image k does not depend on its batch), the number of calls and convergence as results, tolerances as traced
values, and f traced once, whatever the number of stages (a network is most of the compile time).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.diffusion.process import expand
from gen_jax.types import Array, PyTree

__all__ = ['METHODS', 'AdaptiveError', 'Solution', 'integrate', 'integrate_fixed', 'require_converged']


class AdaptiveError(ValueError):
    """An adaptive integration that ran out of calls or of step size."""


class Solution(NamedTuple):
    """What an adaptive integration found."""

    y: PyTree
    """The state at t1, or where an example that did not converge stopped; leaves [B, ...]."""
    t: Array
    """Time reached [B]."""
    nfe: Array
    """int32 [B]: calls of f until the example was done. The batch costs the largest of them."""
    converged: Array
    """bool [B]: reached t1 with every step within the tolerance."""


class Tableau(NamedTuple):
    """Butcher's coefficients; the last row of `a` gives the new state (first same as last, so S - 1 calls a step)."""

    a: np.ndarray
    c: np.ndarray
    error: np.ndarray | None = None
    """Weights of the slopes in the error estimate."""


def _tableau(rows, error=None) -> Tableau:
    """Rows of a, from the second stage on; the last holds the weights b."""
    a = np.zeros((len(rows) + 1, len(rows) + 1))
    for i, row in enumerate(rows):
        a[i + 1, :len(row)] = row
    return Tableau(a, a.sum(1), None if error is None else np.asarray(error, np.float64))


METHODS = {
    'euler': _tableau([[1]]),
    'heun': _tableau([[1], [1 / 2, 1 / 2]]),
    'rk4': _tableau([[1 / 2], [0, 1 / 2], [0, 0, 1], [1 / 6, 1 / 3, 1 / 3, 1 / 6]]),
    'dopri5': _tableau(  # Dormand & Prince 1980, Table 2
        [[1 / 5], [3 / 40, 9 / 40], [44 / 45, -56 / 15, 32 / 9],
         [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729],
         [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656],
         [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84]],
        error=[71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40]),
}


def _advance(y: PyTree, slopes: PyTree, weights: Array, h: Array) -> PyTree:
    """y + h sum_j weights_j slopes_j; slopes [S, B, ...], h () or [B]."""
    def leaf(a, k):
        return a + expand(h, a) * jnp.tensordot(weights.astype(a.dtype), k, 1)

    return jax.tree.map(leaf, y, slopes)


def _slopes(y: PyTree, stages: int) -> PyTree:
    return jax.tree.map(lambda a: jnp.zeros((stages, *a.shape), a.dtype), y)


def _norm(scaled: PyTree) -> Array:
    """Per example: the root mean square over each leaf, the largest of the leaves; [B]."""
    return jnp.max(jnp.stack([jnp.sqrt(jnp.mean(jnp.square(a.reshape(a.shape[0], -1)), axis=1))
                              for a in jax.tree.leaves(scaled)]), axis=0)


def _prepare(y: PyTree) -> tuple[PyTree, int, jnp.dtype]:
    y = jax.tree.map(lambda a: jnp.asarray(a, jnp.promote_types(jnp.result_type(a), jnp.float32)), y)
    first = jax.tree.leaves(y)[0]
    return y, first.shape[0], first.dtype


def integrate(f: Callable[[Array, PyTree], PyTree], y: PyTree, t0, t1, rtol: float = 1e-5, atol: float = 1e-5,
              max_nfe: int = 1000) -> Solution:
    """Dormand-Prince 5(4) with step control (Hairer, Norsett & Wanner 1993, II.4), local extrapolation, FSAL.

    Each example has a step size of its own: it is accepted where the root mean square of
    error / (atol + rtol max(|y|, |y_new|)), taken over each leaf of the example and the largest of the leaves, is at
    most 1. Examples that are done wait for the others. Not reverse-mode differentiable (`lax.while_loop`).

    Args:
        f: (t [B], y) -> slopes like y. Examples may not meet in it.
        y: leaves [B, ...]; computed on in float32 at least, where an rtol under 1e-6 cannot be held.
        t0, t1: start and end, either may be larger; may be traced.
        rtol, atol, max_nfe: tolerances and the most calls of f; may be traced.

    Raises:
        ValueError: Python numbers rtol < 0, atol < 0, both 0, or max_nfe < 1.
    """
    if isinstance(rtol, (int, float)) and isinstance(atol, (int, float)) and (min(rtol, atol) < 0 or rtol + atol == 0):
        raise ValueError(f'rtol and atol must not be negative nor both 0, got rtol={rtol} and atol={atol}.')
    if isinstance(max_nfe, int) and max_nfe < 1:
        raise ValueError(f'max_nfe must be at least 1, got {max_nfe}.')
    y, batch, dtype = _prepare(y)
    table = METHODS['dopri5']
    stages = len(table.c)
    a, c, error = (jnp.asarray(v, dtype) for v in table)
    t0, t1 = (jnp.asarray(t, dtype) for t in (t0, t1))
    eps = jnp.finfo(dtype).eps

    def scaled(e, y, new):
        return _norm(jax.tree.map(lambda e, p, q: e / (atol + rtol * jnp.maximum(jnp.abs(p), jnp.abs(q))), e, y, new))

    def clip(t, h):
        """The step from t, of length |h|, not beyond t1."""
        return jnp.where(jnp.abs(h) >= jnp.abs(t1 - t), t1 - t, jnp.sign(t1 - t) * jnp.abs(h))

    def first_step(t, y, k):
        """Hairer et al., II.4, without the trial step: the solution moves by about a hundredth of its size."""
        size, speed = scaled(y, y, y), scaled(k, y, y)
        h = jnp.where((size < 1e-5) | (speed < 1e-5), 1e-6, 0.01 * size / jnp.where(speed > 0, speed, 1.0))
        return clip(t, jnp.where(jnp.isfinite(h), h, 1e-6))

    def finish(t, h, y, new, slopes, done, converged):
        e = scaled(_advance(jax.tree.map(jnp.zeros_like, y), slopes, error, h), y, new)
        e = jnp.where(jnp.isfinite(e), e, jnp.inf)
        accept = (e <= 1.0) & ~done
        factor = jnp.clip(0.9 * jnp.maximum(e, 1e-10) ** -0.2, 0.2, 10.0)
        reached = accept & (h == t1 - t)
        t = jnp.where(accept, jnp.where(reached, t1, t + h), t)
        y = jax.tree.map(lambda p, q: jnp.where(expand(accept, p), q, p), y, new)
        last = jax.tree.map(lambda k: jnp.where(expand(accept, k[0]), k[-1], k[0]), slopes)
        slopes = jax.tree.map(lambda k, one: jnp.zeros_like(k).at[0].set(one), slopes, last)
        stuck = ~accept & (jnp.abs(h) <= 4 * eps * jnp.abs(t))
        return t, clip(t, h * factor), y, slopes, done | reached | stuck, converged | reached

    def body(state):
        calls, stage, t, h, y, slopes, done, converged, nfe = state
        here = _advance(y, slopes, a[stage], h)
        k = f(t + c[stage] * h, here)
        slopes = jax.tree.map(lambda all_, one: all_.at[stage].set(one.astype(all_.dtype)), slopes, k)
        nfe = nfe + ~done
        h = jax.lax.cond(calls == 0, lambda: first_step(t, y, k), lambda: h)
        t, h, y, slopes, done, converged = jax.lax.cond(
            stage == stages - 1, finish, lambda t, h, y, new, *rest: (t, h, y, *rest),
            t, h, y, here, slopes, done, converged)
        return calls + 1, jnp.where(stage == stages - 1, 1, stage + 1), t, h, y, slopes, done, converged, nfe

    arrived = jnp.broadcast_to(t0 == t1, (batch,))
    zero = jnp.int32(0)
    state = (zero, zero, jnp.full(batch, t0), jnp.zeros(batch, dtype), y, _slopes(y, stages), arrived, arrived,
             jnp.zeros(batch, jnp.int32))
    state = jax.lax.while_loop(lambda state: ~jnp.all(state[6]) & (state[0] < max_nfe), body, state)
    _, _, t, _, y, _, _, converged, nfe = state
    return Solution(y, t, nfe, converged)


def require_converged(solution) -> None:
    """Refuses a Solution (or anything with `nfe` and `converged`) that is not converged; on the host, after jit.

    Raises:
        AdaptiveError: naming how many examples failed and the calls spent.
    """
    converged, nfe = np.asarray(solution.converged), np.asarray(solution.nfe)
    if not converged.all():
        raise AdaptiveError(f'The adaptive ODE solver did not converge for {(~converged).sum()} of {converged.size} '
                            f'examples within {nfe.max()} calls of the network; raise max_nfe or the tolerances.')


def integrate_fixed(f: Callable[[Array, PyTree], PyTree], y: PyTree, times, method: str = 'rk4') -> PyTree:
    """Runge-Kutta over the given times, which may be traced; differentiable in both modes.

    Args:
        f: (t [B], y) -> slopes like y.
        y: leaves [B, ...].
        times: [N + 1], in either direction.
        method: 'euler' (order 1, N calls), 'heun' (2, 2 N), 'rk4' (4, 4 N) or 'dopri5' (5, 6 N).

    Raises:
        ValueError: unknown method, or fewer than two times.
    """
    if method not in METHODS:
        raise ValueError(f'Unknown method {method!r}; choose one of {sorted(METHODS)}.')
    y, batch, dtype = _prepare(y)
    times = jnp.asarray(times, dtype)
    if times.ndim != 1 or times.shape[0] < 2:
        raise ValueError(f'times must be a vector of at least two, got shape {times.shape}.')
    table = METHODS[method]
    stages = len(table.c) - 1
    a, c = jnp.asarray(table.a, dtype), jnp.asarray(table.c, dtype)

    def step(y, ends):
        t, h = ends[0], ends[1] - ends[0]

        def stage(slopes, i):
            k = f(jnp.full(batch, t + c[i] * h), _advance(y, slopes, a[i, :stages], h))
            return jax.tree.map(lambda all_, one: all_.at[i].set(one.astype(all_.dtype)), slopes, k), None

        slopes, _ = jax.lax.scan(stage, _slopes(y, stages), jnp.arange(stages))
        return _advance(y, slopes, a[stages, :stages], h), None

    return jax.lax.scan(step, y, jnp.stack([times[:-1], times[1:]], axis=1))[0]
