"""The probability-flow ODE in the time of the process, solved to a tolerance or on a grid of times."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gen_jax.diffusion.process import expand, level_at
from gen_jax.sampling.ode import AdaptiveError, Solution, integrate, integrate_fixed, require_converged
from gen_jax.types import Array, Cond, DenoiseFn, Process

__all__ = ['AdaptiveError', 'Solution', 'probability_flow', 'require_converged', 'sample_adaptive', 'sample_fixed',
           'time_range']


def probability_flow(denoise: DenoiseFn, process: Process, cond: Cond | None = None) -> Callable[[Array, Array], Array]:
    """(t [B], x [B, ...]) -> dx/dt = alpha'(t) x0 + sigma'(t) eps (Song et al. 2021, Eq. 13, in terms of x0 and eps).

    This form has no score and no drift, so it is finite at alpha = 0; alpha' and sigma' come by differentiation.
    """
    cond = {} if cond is None else cond

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
    low, high = process.t_min, process.t_max
    span = high - low
    return (low + margin * span if _is_zero(process.sigma(low)) else low,
            high - margin * span if _is_zero(process.alpha(high)) else high)


def _is_zero(value) -> bool:
    return not isinstance(value, jax.core.Tracer) and bool(value == 0)  # a learned schedule is traced, and positive


def _ends(process: Process, t_start, t_end):
    low, high = time_range(process)
    return high if t_start is None else t_start, low if t_end is None else t_end


def sample_adaptive(denoise: DenoiseFn, process: Process, x_T: Array, t_start: float | None = None,
                    t_end: float | None = None, cond: Cond | None = None, rtol: float = 1e-5, atol: float = 1e-5,
                    max_nfe: int = 1000, remove_noise: bool = False) -> Solution:
    """x_T at t_start carried along the probability flow to t_end, to a tolerance (Song et al. 2021, App. D.4).

    Deterministic. The other way (t_start < t_end) it encodes pictures into noise. On a discrete table, whose schedule
    has kinks at the integers, `sample_fixed` over the integers is more accurate for its calls.

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
    t_start, t_end = _ends(process, t_start, t_end)
    solution = integrate(probability_flow(denoise, process, cond), x_T, t_start, t_end, rtol, atol, max_nfe)
    if not remove_noise:
        return solution
    d = denoise(solution.y, level_at(process, solution.t), {} if cond is None else cond)
    return solution._replace(y=d.x0, nfe=solution.nfe + 1)


def sample_fixed(denoise: DenoiseFn, process: Process, x_T: Array, times, cond: Cond | None = None,
                 method: str = 'rk4') -> Array:
    """x_T carried along the probability flow over the given times [N + 1] by a Runge-Kutta method.

    Differentiable. Order 4 for 'rk4' in four calls per step; see `gen_jax.sampling.ode.integrate_fixed`.
    """
    return integrate_fixed(probability_flow(denoise, process, cond), x_T, times, method)
