"""Multistep solvers: LMS, DPM-Solver, DPM-Solver++, their SDE variants and DEIS, by one idea.

Each keeps what the denoiser said at the last few points (x0 or eps), draws a polynomial through it and integrates that
polynomial exactly over the step. They differ in the variable u of the polynomial (sigma / alpha, or
lambda = log(alpha / sigma)) and in the weight under the integral. With Newton's form of the polynomial a lower order
is the same sum cut short, so that one program warms up, runs and ends.

At a level without signal (lambda = -inf) or without noise (+inf) a step is of first order, and such a level never
enters a polynomial: every process runs from alpha = 0 and to sigma = 0. Levels are scalars, as `sample` gives them.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.sampling.solvers import euler
from gen_jax.types import Array, Level, Point, Sampler

__all__ = ['lms', 'deis', 'dpm_solver_multistep', 'dpmpp_2m', 'dpmpp_3m', 'dpmpp_2m_sde', 'prime']

FAR = 50.0  # a step that long in lambda is treated as infinite: its exponential would leave float32
SHORT = 15  # `lower_order_final` concerns runs of fewer steps (as in the authors' code)


class History(NamedTuple):
    """What the last K steps read, the newest first; alpha = 0 marks a place that has not been filled."""

    values: Array
    """[K, B, ...]: x0 or eps."""
    alpha: Array
    """[K]."""
    sigma: Array
    """[K]."""


def empty(point: Point, length: int) -> History:
    """No history yet, with room for `length` steps."""
    dtype = jnp.result_type(point.level.alpha)
    return History(jnp.zeros((length, *point.x.shape), point.x.dtype), jnp.zeros(length, dtype),
                   jnp.ones(length, dtype))


def push(history: History, value: Array, level: Level) -> History:
    """The newest value in, the oldest out."""
    newest = History(value, level.alpha, level.sigma)
    return History(*(jnp.concatenate([jnp.asarray(new, old.dtype)[None], old])[:len(old)]
                     for new, old in zip(newest, history, strict=True)))


def ratio(a, b, otherwise=0.0) -> Array:
    """a / b, and `otherwise` where b is 0."""
    return jnp.where(b == 0, otherwise, a / jnp.where(b == 0, 1.0, b))


def log_snr_gain(t, s) -> Array:
    """lambda_s - lambda_t, and inf where either has no signal or no noise (or lies further than any step should)."""
    known = (t.alpha > 0) & (t.sigma > 0) & (s.alpha > 0) & (s.sigma > 0)
    gain = jnp.log(jnp.where(known, ratio(s.alpha, t.alpha, 1.0) * ratio(t.sigma, s.sigma, 1.0), 1.0))
    return jnp.where(known & (jnp.abs(gain) < FAR), gain, jnp.inf)


def exponential_moments(z: Array, count: int) -> Array:
    """z int_0^1 e^(z (1 - u)) u^j du for j = 0 .. count - 1: expm1(z), then j m_(j-1) / z - 1 (phi functions, [count]).

    That recursion cancels at small z, where the last one is summed as a series and the others follow downwards.
    """
    small = jnp.abs(z) < 1.0
    near, far = jnp.where(small, z, 0.0), jnp.where(small, 1.0, z)
    last = count - 1
    series = np.array([math.factorial(last) / math.factorial(k + last) for k in range(1, 19)])
    down = [jnp.sum(near ** np.arange(1, 19) * series.astype(near.dtype))]
    for j in range(last, 0, -1):
        down.append((down[-1] + 1.0) * near / j)
    up = [jnp.expm1(far)]
    for j in range(1, count):
        up.append(j * up[-1] / far - 1.0)
    return jnp.where(small, jnp.stack(down[::-1]), jnp.stack(up))


def usable(u: Array) -> tuple[Array, Array]:
    """(nodes [K], how many of them count) of u [K] < 0, the newest first: up to the first that is out of order."""
    before = jnp.concatenate([jnp.zeros(1, u.dtype), u[:-1]])
    good = jnp.cumprod(jnp.isfinite(u) & (u < before - 1e-6)) > 0
    return jnp.where(good, u, -1.0 - jnp.arange(len(u))), jnp.sum(good, dtype=jnp.int32)


def corrections(nodes: Array, moments: Array, order: Array, second: Array | None = None) -> Array:
    """Weights [K] of the values at `nodes` in the integral of p(u) - p(nodes[0]).

    Args:
        nodes: [K], distinct, nodes[0] = 0; p runs through the first `order` of them.
        moments: [K], the integrals of u^j.
        order: () int, may be traced.
        second: what stands for moments[1] when `order` is exactly 2: the simplified forms of the papers.
    """
    count = len(nodes)
    gaps = nodes[:, None] - nodes[None, :] + jnp.eye(count, dtype=nodes.dtype)
    products = jnp.cumprod(gaps, axis=1)  # [k, q]: prod of u_k - u_j over j <= q, j != k; that is right for k <= q
    basis, weights = jnp.zeros(count, nodes.dtype).at[0].set(1.0), 0.0  # Newton's prod_(j < q) (u - u_j), by powers
    for q in range(1, count):
        basis = jnp.roll(basis, 1) - nodes[q - 1] * basis
        integral = jnp.sum(basis * moments)  # a matrix product may round to fewer digits on accelerators
        if q == 1 and second is not None:
            integral = jnp.where(order == 2, second, integral)
        used = (np.arange(count) <= q) & (q < order)  # the nodes behind may coincide
        weights = weights + jnp.where(used, integral / jnp.where(used, products[:, q], 1.0), 0.0)
    return weights


def limit_order(order: int, known: Array, s: Level, lower_order_final: bool, euler_at_final: bool = False) -> Array:
    """() int: the order of the step to row s, of at most `order`, with `known` values behind the newest."""
    limit = jnp.minimum(order, known + 1)
    if lower_order_final:
        limit = jnp.where(s.last < SHORT, jnp.minimum(limit, jnp.maximum(s.last - s.index, 0) + 1), limit)
    return jnp.where(s.index >= s.last, 1, limit) if euler_at_final else limit


def weigh(weights: Array, *values: Array) -> Array:
    """sum_k weights[k] values[k] over stacks [k, B, ...]."""
    every = [value for stack in values for value in stack]
    return sum(weights[k].astype(value.dtype) * value for k, value in enumerate(every))


def _choose(name: str, value, choices):
    if value not in choices:
        raise ValueError(f'Unknown {name} {value!r}; choose one of {list(choices)}.')


def lms(order: int = 4) -> Sampler:
    """Linear multistep in sigma / alpha, with the exact integrals of Lagrange's polynomials (Karras et al. 2022's
    d(x / alpha) = eps d(sigma / alpha); k-diffusion's `sample_lms`). Reads x0 and eps; one call per step.

    Order `order` with that much history; it starts with one step of each lower order, which leaves order 2.

    Raises:
        ValueError: order outside 1 .. 4.
    """
    _choose('order of lms', order, (1, 2, 3, 4))

    def step(noise, denoise, point, s, history):
        del noise
        x, t = point.x, point.level
        d = denoise(x, t)
        signal = (t.alpha > 0) & (s.alpha > 0)
        span = jnp.where(signal, s.sigma - ratio(s.alpha * t.sigma, t.alpha), 0.0)  # alpha_s (rho_s - rho_t)
        past = ratio(history.sigma, history.alpha, jnp.inf) - ratio(t.sigma, t.alpha)
        past, known = usable(jnp.where(signal, s.alpha * past, jnp.inf) / jnp.where(span == 0, jnp.nan, span))
        nodes = jnp.concatenate([jnp.zeros(1, past.dtype), past])
        weights = corrections(nodes, 1.0 / jnp.arange(1.0, order + 1.0), jnp.minimum(order, known + 1))
        x = s.alpha * d.x0 + s.sigma * d.eps + weigh(span * weights, d.eps[None], history.values)
        return Point(x, s, d.aux), push(history, d.eps, t)

    return Sampler(lambda point: empty(point, order - 1), step) if order > 1 else euler()


def dpm_solver_multistep(order: int = 2, algorithm_type: str = 'dpmsolver++', solver_type: str = 'midpoint',
                         lower_order_final: bool = True, euler_at_final: bool = False, eta=1.0,
                         compat: bool = False) -> Sampler:
    """DPM-Solver (Lu et al. 2022a) and DPM-Solver++ (Lu et al. 2022b), multistep, ODE and SDE; one call per step.

    With h = lambda_s - lambda_t, u running over the step from 0 to 1 and p through the last `order` values:
      'dpmsolver++'      x_s = sigma_s / sigma_t x + alpha_s int h e^(-h (1 - u)) p_x0 du
      'dpmsolver'        x_s = alpha_s / alpha_t x - sigma_s int h e^(h (1 - u)) p_eps du
      'sde-dpmsolver++'  x_s = sigma_s / sigma_t e^(-eta h) x + alpha_s int c e^(-c (1 - u)) p_x0 du
                               + sigma_s sqrt(1 - e^(-2 eta h)) z,  c = (1 + eta) h
      'sde-dpmsolver'    x_s = alpha_s / alpha_t x - (1 + eta) sigma_s int h e^(h (1 - u)) p_eps du
                               + sigma_s sqrt(eta (e^(2 h) - 1)) z
    The '++' kinds read x0 and x, the others x0 and eps. Order 1 of 'dpmsolver' and 'dpmsolver++' is DDIM. A step from
    alpha = 0 or to sigma = 0 is of first order; there 'sde-dpmsolver', whose noise has no limit, is DDIM.

    Args:
        order: 1, 2 or 3 (`solver_order`); reached with that much history, 2 with the default start.
        solver_type: at second order, 'heun' integrates p exactly and 'midpoint' takes h / 2 for the weight of its
            slope (Lu et al. 2022b, Algorithm 2: 2M).
        lower_order_final: in runs of fewer than 15 steps the last is of order 1 and the one before of order 2.
        euler_at_final: the last step is of order 1 in any run.
        eta: of the SDE kinds: 1 the reverse SDE, 0 the ODE; may be traced.
        compat: order 3 as in diffusers, whose weight of the second difference is half of the paper's integral
            (Lu et al. 2022b, Sec. 4: the term in x0'', which is twice that difference), hence of order 2; and for
            'sde-dpmsolver++' also has its constant with the wrong sign, hence of order 1.

    Raises:
        ValueError: unknown names, order outside 1 .. 3, or a Python number eta outside [0, 1].
    """
    _choose('order of dpm_solver_multistep', order, (1, 2, 3))
    _choose('algorithm_type', algorithm_type, ('dpmsolver', 'dpmsolver++', 'sde-dpmsolver', 'sde-dpmsolver++'))
    _choose('solver_type', solver_type, ('midpoint', 'heun'))
    if isinstance(eta, (int, float)) and not 0 <= eta <= 1:
        raise ValueError(f'eta must lie within [0, 1], got {eta}.')
    data, stochastic = algorithm_type.endswith('++'), algorithm_type.startswith('sde-')
    eta = eta if stochastic else 0.0
    stochastic = stochastic and not (isinstance(eta, (int, float)) and eta == 0)

    def step(noise, denoise, point, s, history):
        x, t = point.x, point.level
        d = denoise(x, t)
        value = d.x0 if data else d.eps
        h = log_snr_gain(t, s)
        inner = jnp.isfinite(h) & (h != 0)
        if data:
            r = ratio(t.alpha * s.sigma, s.alpha * t.sigma, 1.0)  # e^-h, and 0 at the ends
            keep = ratio(s.sigma, t.sigma)
            if stochastic:
                first = keep * r ** eta * x + s.alpha * (1.0 - r ** (1.0 + eta)) * d.x0
            else:
                first = keep * x + (s.alpha - t.alpha * keep) * d.x0
            first = jnp.where(t.sigma == 0, s.alpha * d.x0 + s.sigma * d.eps, first)
            std = s.sigma * jnp.sqrt(jnp.maximum(1.0 - r ** (2.0 * eta), 0.0)) if stochastic else 0.0
            scale, z = -s.alpha, -(1.0 + eta) * jnp.where(inner, h, 1.0)
        else:
            first = s.alpha * d.x0 + s.sigma * d.eps
            scale, z = -(1.0 + eta) * s.sigma, jnp.where(inner, h, 1.0)
            if stochastic:
                away = jnp.where(inner, ratio(s.alpha * t.sigma, t.alpha) - s.sigma, 0.0)  # sigma_s (e^h - 1)
                first = first - eta * away * d.eps
                std = jnp.sqrt(jnp.maximum(eta * away * (away + 2.0 * s.sigma), 0.0))
        if order > 1:
            past = -log_snr_gain(History(0, history.alpha, history.sigma), t)
            past, known = usable(jnp.where(inner, past / jnp.where(inner, h, 1.0), jnp.inf))
            now = limit_order(order, known, s, lower_order_final, euler_at_final)
            moments = exponential_moments(z, order)
            if compat and order == 3:
                half = moments[2] / 2.0  # (expm1(z) - z) / z^2 - 1 / 2
                moments = moments.at[2].set(half + 1.0 if data and stochastic else half)
            weights = corrections(jnp.concatenate([jnp.zeros(1, past.dtype), past]), moments, now,
                                  0.5 * moments[0] if solver_type == 'midpoint' else None)
            first = first + weigh(scale * weights, value[None], history.values)
        if stochastic:
            first = first + std * noise.normal('z', x)
        return Point(first, s, d.aux), push(history, value, t) if order > 1 else history

    return Sampler(lambda point: empty(point, order - 1), step)


def deis(order: int = 3, lower_order_final: bool = True) -> Sampler:
    """DEIS (Zhang & Chen 2023), log-rho multistep: eps as a polynomial in log(sigma / alpha) = -lambda.

    That is the integral of `dpm_solver_multistep('dpmsolver', solver_type='heun')`, derived another way. Reads x0 and
    eps; one call per step; order `order` (1, 2 or 3) with that much history.
    """
    _choose('order of deis', order, (1, 2, 3))
    return dpm_solver_multistep(order, 'dpmsolver', 'heun', lower_order_final)


def dpmpp_2m(lower_order_final: bool = True) -> Sampler:
    """DPM-Solver++(2M) (Lu et al. 2022b, Algorithm 2): `dpm_solver_multistep` as it stands. Reads x0 and x; order 2."""
    return dpm_solver_multistep(lower_order_final=lower_order_final)


def dpmpp_3m(lower_order_final: bool = True) -> Sampler:
    """DPM-Solver++, multistep of order 3 (Lu et al. 2022b, Sec. 4). Reads x0 and x."""
    return dpm_solver_multistep(3, 'dpmsolver++', 'heun', lower_order_final)


def dpmpp_2m_sde(eta=1.0, solver_type: str = 'midpoint', lower_order_final: bool = True) -> Sampler:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022b). Reads x0 and x; stochastic; `eta` 0 is `dpmpp_2m`."""
    return dpm_solver_multistep(2, 'sde-dpmsolver++', solver_type, lower_order_final, eta=eta)


def prime(sampler: Sampler, denoise, points, noise=None) -> Sampler:
    """The same sampler, whose history is that of having come through `points`, wherever its own steps would have led.

    Multistep methods have their full order only with an accurate history; this gives them one, from points computed by
    other means (a finer solver, the exact flow).

    Args:
        denoise: (x, level) -> Denoised, the condition bound.
        points: earlier Points, oldest first; the start of `sample` follows the last one.
        noise: for stochastic samplers.
    """

    def init(point):
        path = jax.tree.map(lambda *leaves: jnp.stack(leaves), *points, point)
        heres, theres = (jax.tree.map(lambda a, part=part: a[part], path) for part in (slice(-1), slice(1, None)))

        def pass_through(state, pair):
            here, there = pair
            return sampler.step(noise, denoise, here, there.level, state)[1], None

        return jax.lax.scan(pass_through, sampler.init(points[0]), (heres, theres))[0]

    return sampler._replace(init=init)
