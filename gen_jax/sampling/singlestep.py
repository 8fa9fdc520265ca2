"""Single-step solvers of high order: intermediate levels within every step, no memory between steps.

In x / alpha and sigma / alpha the process drops out of the probability-flow ODE (Lu et al. 2022a, Prop. 3.1), but the
network is called at intermediate levels, and what t, alpha and sigma are half-way in lambda = log(alpha / sigma) only
the process knows. So the makers here take `process` and read the level at a lambda from its `inverse`; on a discrete
table t is then fractional, as in k-diffusion. `dpm_solver_interleaved` needs no process: its intermediate levels are
rows of the grid.

A step from pure noise (alpha = 0), to the data (sigma = 0), or over less than 1e-4 in lambda has no level half-way; it
is Euler's (`ddim` at eta = 0) with one call. The other steps may go in either direction.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gen_jax.diffusion.process import expand
from gen_jax.types import Array, Denoised, Level, Point, Process, Sampler

__all__ = ['dpm2', 'dpm_solver_3', 'dpm_solver_interleaved', 'dpm_solver_singlestep', 'dpmpp_2s', 'level_between',
           'single_step']

ALGORITHMS = ('dpmsolver', 'dpmsolver++')
SOLVER_TYPES = ('midpoint', 'heun')
Advance = Callable[[Callable, Point, Level], tuple[Array, Denoised]]
"""(denoise, point, s) -> (x at s, the denoiser's answer at the point)."""


def _check(order: int, algorithm_type: str, solver_type: str):
    if order not in (1, 2, 3):
        raise ValueError(f'order must be 1, 2 or 3, got {order!r}.')
    if algorithm_type not in ALGORITHMS:
        raise ValueError(f'Unknown algorithm_type {algorithm_type!r}; choose one of {ALGORITHMS}.')
    if solver_type not in SOLVER_TYPES:
        raise ValueError(f'Unknown solver_type {solver_type!r}; choose one of {SOLVER_TYPES}.')


def _gap(t: Level, s: Level) -> Array:
    """lambda_s - lambda_t, to the digits of the levels themselves."""
    return jnp.log(s.alpha / t.alpha) - jnp.log(s.sigma / t.sigma)


def level_between(process: Process, t: Level, s: Level, fraction) -> Level:
    """The level of `process` that lies `fraction` of the way from t to s in lambda; it keeps the index of t.

    The larger of alpha and sigma is the process's, the smaller follows from lambda: exact where the process is steep,
    and where a row lies beyond the end of a table of betas, whose last t the network is then told.
    """
    lam = jnp.log(t.alpha) - jnp.log(t.sigma) + fraction * _gap(t, s)
    time = jnp.asarray(process.inverse(lam), lam.dtype)
    alpha, sigma = (jnp.asarray(a, lam.dtype) for a in (process.alpha(time), process.sigma(time)))
    ratio = jnp.exp(-jnp.abs(lam))
    return Level(time, jnp.where(lam < 0, sigma * ratio, alpha), jnp.where(lam < 0, sigma, alpha * ratio), t.index,
                 t.last)


def _phi(h: Array, order: int) -> Array:
    """order 2: 1 - (1 - e^-h) / h; order 3: 1/2 - (e^-h - 1 + h) / h^2. By their series within |h| < 1.

    The closed forms lose digits there, of which third differences of outputs show every one.
    """
    small = jnp.abs(h) < 1.0
    series, safe = jnp.zeros_like(h), jnp.where(small, 1.0, h)
    for k in range(16, 0, -1):  # sum over k of -(-h)^k / (k + order - 1)!
        series = -jnp.where(small, h, 0.0) * (series - 1.0 / math.factorial(k + order - 1))
    closed = 1.0 + jnp.expm1(-safe) / safe if order == 2 else 0.5 - (jnp.expm1(-safe) + safe) / safe ** 2
    return jnp.where(small, series, closed)


def _weights(h: Array, r: list, solver_type: str) -> list[Array]:
    """Weights of the 1 to 3 outputs in a step of length h in lambda; the later ones are at the fractions r of it.

    The integral of e^(lambda - lam_s) D(lambda) d lambda with D expanded in lambda by divided differences: 'heun'
    takes all of them (Lu et al. 2022a, Eq. 4.4); 'midpoint' is the paper's own shorter sum, of the same order at their
    intermediate levels (DPM-Solver-2 and -3, Algorithms 1 and 2; DPM-Solver++(2S), Lu et al. 2022b, Algorithm 1).
    """
    phi1 = -jnp.expm1(-h)
    if not r:
        return [phi1]
    if len(r) == 1:
        w = (0.5 * phi1 if solver_type == 'midpoint' else _phi(h, 2)) / r[0]
        return [phi1 - w, w]
    if solver_type == 'midpoint':
        w = _phi(h, 2) / r[1]
        return [phi1 - w, jnp.zeros_like(w), w]
    # D' = (r1 d0 - r0 d1) / (r1 - r0) and D'' = 2 (d1 - d0) / (r1 - r0), with the slopes d = (D_i - D_0) / r_i
    slope, bend = _phi(h, 2), 2.0 * _phi(h, 3)
    w1 = (r[1] * slope - bend) / (r[1] - r[0]) / r[0]
    w2 = (bend - r[0] * slope) / (r[1] - r[0]) / r[1]
    return [phi1 - w1 - w2, w1, w2]


def _exponential(x: Array, t: Level, s: Level, h: Array, r: list, outputs: list[Array], algorithm_type: str,
                 solver_type: str) -> Array:
    """x at t carried to s, h away in lambda, with the outputs at t and at the fractions r; alpha > 0 and sigma > 0.

    dpmsolver++ predicts x0 and integrates x / sigma over lambda; dpmsolver predicts eps and integrates x / alpha over
    -lambda: the same formulas with alpha and sigma exchanged.
    """
    if algorithm_type == 'dpmsolver++':
        grow, decay, weights = s.alpha, s.sigma / t.sigma, _weights(h, r, solver_type)
    else:
        grow, decay, weights = s.sigma, s.alpha / t.alpha, _weights(-h, r, solver_type)
    return expand(decay, x) * x + sum(expand(grow * w, x) * d for w, d in zip(weights, outputs, strict=True))


def _output(d: Denoised, algorithm_type: str) -> Array:
    return d.x0 if algorithm_type == 'dpmsolver++' else d.eps


def has_between(t: Level, s: Level) -> Array:
    """Whether a step has levels strictly inside it: not from pure noise, to the data, or of (nearly) no length."""
    h = jnp.abs(_gap(t, s))
    return (h > 1e-4) & jnp.isfinite(h)


def single_step(process: Process, fractions: tuple, algorithm_type: str, solver_type: str = 'midpoint') -> Advance:
    """The step of a single-step solver as a function, for samplers that add noise around it.

    Args:
        fractions: of the way to s in lambda, where the denoiser is called besides the start. A level is reached with
            the outputs before it ('heun' weights), s with all of them.

    Returns:
        (denoise, point, s) -> (x at s, the denoiser's answer at the point). Of s only alpha and sigma are read.
    """

    def advance(denoise, point: Point, s: Level) -> tuple[Array, Denoised]:
        x, t = point.x, point.level
        first = denoise(x, t)

        def refined():
            h, outputs = _gap(t, s), [_output(first, algorithm_type)]
            for k, r in enumerate(fractions):
                level, before = level_between(process, t, s, r), [a / r for a in fractions[:k]]
                u = _exponential(x, t, level, r * h, before, outputs, algorithm_type, 'heun')
                outputs.append(_output(denoise(u, level), algorithm_type))
            return _exponential(x, t, s, h, fractions, outputs, algorithm_type, solver_type)

        def euler():
            return expand(s.alpha, x) * first.x0 + expand(s.sigma, x) * first.eps

        return jax.lax.cond(has_between(t, s), refined, euler), first

    return advance


def _sampler(advance: Advance) -> Sampler:
    def step(noise, denoise, point, s, state):
        del noise
        x, d = advance(denoise, point, s)
        return Point(x, s, d.aux), state

    return Sampler(lambda point: (), step)


def dpm_solver_singlestep(process: Process, order: int = 2, algorithm_type: str = 'dpmsolver++',
                          solver_type: str = 'midpoint') -> Sampler:
    """Single-step DPM-Solver (Lu et al. 2022a, Algorithms 1 and 2) and DPM-Solver++ (Lu et al. 2022b, Algorithm 1).

    `order` calls per step, at 0, 1/2 (order 2) or 0, 1/3, 2/3 (order 3) of the way in lambda. Reads x0 ('dpmsolver++')
    or eps ('dpmsolver'), and x.

    Args:
        process: the one that the denoiser was trained on and the grid was made from; gives the intermediate levels.
        order: 1, 2 or 3.
        algorithm_type: 'dpmsolver++' predicts x0, 'dpmsolver' eps.
        solver_type: 'midpoint', the papers' last update, or 'heun', with all divided differences.

    Raises:
        ValueError: an order, algorithm_type or solver_type that there is not.
    """
    _check(order, algorithm_type, solver_type)
    return _sampler(single_step(process, {1: (), 2: (1 / 2,), 3: (1 / 3, 2 / 3)}[order], algorithm_type, solver_type))


def dpm2(process: Process) -> Sampler:
    """DPM-2 (Karras et al. 2022, Algorithm 2 without churn, as k-diffusion has it), order 2: the midpoint rule.

    Its midpoint is the geometric mean of the noise levels, which makes it DPM-Solver-2 (Lu et al. 2022a, Algorithm
    1). Reads eps and x; two calls per step. `process` as in `dpm_solver_singlestep`.
    """
    return dpm_solver_singlestep(process, 2, 'dpmsolver')


def dpmpp_2s(process: Process, r=0.5) -> Sampler:
    """DPM-Solver++(2S) (Lu et al. 2022b, Algorithm 1), order 2. Reads x0 and x; two calls per step.

    Args:
        process: as in `dpm_solver_singlestep`.
        r: where the second call is, as a fraction of the step in lambda, above 0 and at most 1.

    Raises:
        ValueError: r as a Python number outside (0, 1].
    """
    if isinstance(r, (int, float)) and not 0 < r <= 1:
        raise ValueError(f'r must lie within (0, 1], got {r}.')
    return _sampler(single_step(process, (r,), 'dpmsolver++'))


def dpm_solver_3(process: Process) -> Sampler:
    """DPM-Solver-3 (Lu et al. 2022a, Algorithm 2), order 3. Reads eps and x; three calls per step."""
    return dpm_solver_singlestep(process, 3, 'dpmsolver')


class _Group(NamedTuple):
    """Rows since the present group began: the point where it did, and the outputs so far."""

    count: Array
    x: Array
    levels: tuple[Level, Level]
    outputs: tuple[Array, Array]


def dpm_solver_interleaved(order: int = 2, algorithm_type: str = 'dpmsolver++', solver_type: str = 'midpoint',
                           lower_order_final: bool = False) -> Sampler:
    """Single-step DPM-Solver whose intermediate levels are rows of the grid, as in diffusers; one call per step.

    Rows come in groups of `order`: each step starts anew from the group's first point, with orders 1, 2 (, 3) as the
    outputs become known. So every order-th row is of that order, and a grid of N rows costs N calls. Reads x0
    ('dpmsolver++') or eps ('dpmsolver'), and x. The last step is of order 1 if it ends at the data. With 'midpoint'
    order 3 needs rows evenly spaced in lambda; 'heun' does not. Not for chains that move x between rows, which the
    next step of the group would forget.

    Args:
        order, algorithm_type, solver_type: as in `dpm_solver_singlestep`.
        lower_order_final: the last step of a grid of full groups is of order 1 too.

    Raises:
        ValueError: an order, algorithm_type or solver_type that there is not.
    """
    _check(order, algorithm_type, solver_type)

    def init(point):
        return _Group(jnp.int32(0), point.x, (point.level, point.level), (jnp.zeros_like(point.x),) * 2)

    def step(noise, denoise, point, s, group):
        del noise
        x, t = point.x, point.level
        d = denoise(x, t)
        out = _output(d, algorithm_type)
        lowered = (s.index >= s.last) & ((s.sigma == 0) | (lower_order_final & (s.last % order == 0)))
        new = (t.index % order == 0) | (group.count == order) | lowered | ~has_between(group.levels[0], t)
        count = jnp.where(new, 1, group.count + 1)
        pick = lambda here, now, old: jax.tree.map(lambda a, b: jnp.where(here, a, b), now, old)  # noqa: E731
        group = _Group(count, jnp.where(new, x, group.x),
                       (pick(new, t, group.levels[0]), pick(count == 2, t, group.levels[1])),
                       (jnp.where(new, out, group.outputs[0]), jnp.where(count == 2, out, group.outputs[1])))

        def first():
            return expand(s.alpha, x) * d.x0 + expand(s.sigma, x) * d.eps

        def later(*levels):
            start, h = group.levels[0], _gap(group.levels[0], s)
            return _exponential(group.x, start, s, h, [_gap(start, level) / h for level in levels],
                                [*group.outputs[:len(levels)], out], algorithm_type, solver_type)

        def second():
            return later(t)

        def third():
            return later(group.levels[1], t)

        still = ~has_between(t, s)  # nothing is gained by a higher order, and rows may coincide
        x = jax.lax.switch(jnp.where(still, 0, count - 1), (first, second, third)[:order])
        return Point(x, s, d.aux), group

    return Sampler(init, step)
