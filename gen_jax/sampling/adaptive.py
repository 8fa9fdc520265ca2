"""The probability-flow ODE in the time of the process, solved to a tolerance or on a grid of times."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.diffusion.process import expand, level_at
from gen_jax.sampling.ode import AdaptiveError, Solution, integrate, integrate_fixed, require_converged
from gen_jax.types import Array, Cond, DenoiseFn, Process, PyTree

__all__ = ['AdaptiveError', 'Solution', 'probability_flow', 'require_converged', 'sample_adaptive', 'sample_fixed',
           'smooth', 'solve', 'time_range']


def smooth(process: Process) -> Process:
    """A discrete table as a continuous process that agrees with it at the integers; others as they are.

    log alpha and log sigma are interpolated by monotone cubics (Fritsch & Carlson 1980). A table's own interpolation
    has kinks at the integers, where the slope of one side, half a step off, would make errors of nats in log p.
    Rows with alpha = 0 or sigma = 0 are left out of the range.
    """
    if process.steps is None or process.steps < 2:
        return process
    from scipy.interpolate import PchipInterpolator  # here, since it takes 0.2 s and few programs need it

    rows = np.arange(process.steps)
    kept = rows[(process.alpha(rows) > 0) & (process.sigma(rows) > 0)]

    def curve(fn):
        table = PchipInterpolator(kept, np.log(fn(kept))).c.T  # [N - 1, 4], the highest power first

        def value(t):
            xp, t = (jnp, t) if isinstance(t, jax.Array) else (np, np.asarray(t, np.float64))
            i = xp.clip(xp.floor(t - kept[0]), 0, len(table) - 1).astype(np.int32)
            c, u = xp.asarray(table, t.dtype)[i], t - kept[0] - i
            return xp.exp(((c[..., 0] * u + c[..., 1]) * u + c[..., 2]) * u + c[..., 3])

        return value

    return process._replace(alpha=curve(process.alpha), sigma=curve(process.sigma), t_min=float(kept[0]),
                            t_max=float(kept[-1]))


def probability_flow(denoise: DenoiseFn, process: Process, cond: Cond | None = None) -> Callable[[Array, Array], Array]:
    """(t [B], x [B, ...]) -> dx/dt = alpha'(t) x0 + sigma'(t) eps (Song et al. 2021, Eq. 13, in terms of x0 and eps).

    This form has no score and no drift, so it is finite at alpha = 0; alpha' and sigma' come by differentiation.
    """
    cond, process = {} if cond is None else cond, smooth(process)

    def velocity(t: Array, x: Array) -> Array:
        d = denoise(x, level_at(process, t), cond)
        slopes = jax.jvp(lambda t: (process.alpha(t), process.sigma(t)), (t,), (jnp.ones_like(t),))[1]
        return expand(slopes[0], x) * d.x0 + expand(slopes[1], x) * d.eps

    return velocity


def time_range(process: Process, margin: float = 1e-5) -> tuple[float, float]:
    """(t_min, t_max), moved inwards by `margin` of the range where sigma(t_min) = 0 or alpha(t_max) = 0.

    There, x says nothing of eps or of x0, and only some parameterisations know the slope (those of flow and v do,
    those of eps and x0 do not: see `gen_jax.diffusion.parameterisation`).
    """
    process = smooth(process)
    low, high = process.t_min, process.t_max
    span = high - low
    return (low + margin * span if _is_zero(process.sigma(low)) else low,
            high - margin * span if _is_zero(process.alpha(high)) else high)


def _is_zero(value) -> bool:
    return not isinstance(value, jax.core.Tracer) and bool(value == 0)  # a learned schedule is traced, and positive


def solve(velocity: Callable, y: PyTree, t_start, t_end, rtol, atol, max_nfe) -> Solution:
    """`gen_jax.sampling.ode.integrate` of dy/dt = velocity(t, y) in the variable sqrt(t), with t >= 0.

    sigma(t) of VP starts like sqrt(t), whose infinite slope at t = 0 deceives the error estimate (measured: 100 times
    the tolerance); in sqrt(t) every process is smooth there, and most take a fifth fewer calls.

    Raises:
        ValueError: a Python number t_start or t_end below 0.
    """
    for name, t in (('t_start', t_start), ('t_end', t_end)):
        if isinstance(t, (int, float)) and t < 0:
            raise ValueError(f'{name} must be at least 0, got {t}; the data of a table is reached by remove_noise.')

    def slope(u, y):
        return jax.tree.map(lambda d: expand(2.0 * u, d) * d, velocity(u * u, y))

    found = integrate(slope, y, jnp.sqrt(t_start), jnp.sqrt(t_end), rtol, atol, max_nfe)
    return found._replace(t=jnp.where(found.converged, t_end, found.t ** 2))


def sample_adaptive(denoise: DenoiseFn, process: Process, x_T: Array, t_start: float | None = None,
                    t_end: float | None = None, cond: Cond | None = None, rtol: float = 1e-5, atol: float = 1e-5,
                    max_nfe: int = 1000, remove_noise: bool = False) -> Solution:
    """x_T at t_start carried along the probability flow to t_end, to a tolerance (Song et al. 2021, App. D.4).

    Deterministic. The other way (t_start < t_end) it encodes pictures into noise. A discrete table is read as `smooth`
    has it; its network is then told fractional indices.

    Args:
        denoise: (x, level, cond) -> Denoised, guidance included; levels are [B], since every example has its own time.
        x_T: [B, ...], at level t_start; see `gen_jax.sampling.prior`.
        t_start, t_end: None is the end of `time_range` with the most noise, or the least.
        rtol, atol, max_nfe: may be traced; see `gen_jax.sampling.ode.integrate`, which also tells the error norm.
        remove_noise: one more call, which returns x0 at t_end in place of x.

    Returns:
        Solution(y = x [B, ...], t, nfe, converged). Under jit return `nfe` and `converged` too, and call
        `require_converged` on the host.
    """
    low, high = time_range(process)
    t_start, t_end = high if t_start is None else t_start, low if t_end is None else t_end
    solution = solve(probability_flow(denoise, process, cond), x_T, t_start, t_end, rtol, atol, max_nfe)
    if not remove_noise:
        return solution
    d = denoise(solution.y, level_at(smooth(process), solution.t), {} if cond is None else cond)
    return solution._replace(y=d.x0, nfe=solution.nfe + 1)


def sample_fixed(denoise: DenoiseFn, process: Process, x_T: Array, times, cond: Cond | None = None,
                 method: str = 'rk4') -> Array:
    """x_T carried along the probability flow over the given times [N + 1] by a Runge-Kutta method.

    Differentiable. Order 4 for 'rk4' in four calls per step; see `gen_jax.sampling.ode.integrate_fixed`.
    """
    return integrate_fixed(probability_flow(denoise, process, cond), x_T, times, method)
