"""log p(x) of a diffusion model by the probability-flow ODE, and bits/dim of quantised images.

Along dx/dt = v(x, t) the density obeys d log p_t(x(t)) / dt = -div v, so with x(t_max) = x_T
log p(x) = log prior(x_T) + integral of div v from t_min to t_max (Chen et al. 2018, Eq. 8; Song et al. 2021, Eq. 39).

Integration starts at t_min, where x_t = alpha x0 + sigma eps, with x_t = alpha x and log p(x) = log p_t(alpha x) +
D log alpha. So what is returned is the density of the data blurred by noise of sigma / alpha at t_min (Song et al.
start at 1e-5 alike), or, where that is 0, at the end of `gen_jax.sampling.adaptive.time_range`. It should be small
against the width of the bins below: then bits/dim are those of the data.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.diffusion.process import prior_log_density
from gen_jax.sampling.adaptive import probability_flow, smooth, solve, time_range
from gen_jax.sampling.ode import METHODS, integrate_fixed
from gen_jax.types import Array, Cond, DenoiseFn, Process

__all__ = ['Likelihood', 'bin_width', 'bits_per_dim', 'dequantise', 'log_likelihood']

DIVERGENCES = ('exact', 'rademacher', 'gaussian')


class Likelihood(NamedTuple):
    """What `log_likelihood` found; `gen_jax.sampling.adaptive.require_converged` takes it."""

    log_p: Array
    """Nats [B], a density in the units of x."""
    stderr: Array
    """Standard error of log_p [B] by the spread of the probes; 0 for the exact divergence, NaN for a single probe."""
    x_T: Array
    """The noise that x is the picture of [B, ...]."""
    nfe: Array
    """int32 [B]: calls of the network (each with its products with the probes)."""
    converged: Array
    """bool [B]."""


def _probes(kind: str, noise, x: Array, n: int) -> Array:
    """Directions [P, B, ...] with E[v v^T] = I; for 'exact' the basis, whose v v^T sum to it."""
    if kind == 'exact':
        basis = jnp.eye(int(np.prod(x.shape[1:])), dtype=x.dtype).reshape(-1, 1, *x.shape[1:])
        return jnp.broadcast_to(basis, (basis.shape[0], *x.shape))
    if kind == 'gaussian':
        draw = lambda k: noise.at(k).normal('probe', x)  # noqa: E731
    else:
        draw = lambda k: 2.0 * noise.at(k).bernoulli('probe', 0.5, x.shape[1:]) - 1.0  # noqa: E731
    return jax.lax.map(draw, jnp.arange(n)).astype(x.dtype)


def log_likelihood(denoise: DenoiseFn, process: Process, x: Array, cond: Cond | None = None, *, noise=None,
                   divergence: str = 'rademacher', probes: int = 1, t_min: float | None = None,
                   t_max: float | None = None, prior: Callable[[Array], Array] | None = None, rtol: float = 1e-5,
                   atol: float = 1e-5, max_nfe: int = 2000, times=None, method: str = 'rk4') -> Likelihood:
    """log p(x) of the probability-flow model: what `sample_adaptive` draws from when x_T comes from the prior.

    Args:
        denoise: (x, level, cond) -> Denoised.
        x: [B, ...], continuous data (see `dequantise`).
        noise: per-example source of the probes; the exact divergence needs none.
        divergence: 'exact' sums D = prod(x.shape[1:]) products with the Jacobian per call, all at once: for small D.
            'rademacher' (Hutchinson 1989) or 'gaussian' (Skilling 1989) average v^T J v over random probes v, which
            stay the same along the trajectory (FFJORD; Song et al. 2021, Eq. 40). Rademacher's has less variance.
        probes: random probes per example.
        t_min, t_max: None is `time_range(process)`.
        prior: log density of x_T, [B, ...] -> [B]; None is N(0, sigma(t_max)^2 I), what `gen_jax.sampling.prior` draws.
        rtol, atol, max_nfe: of the adaptive solver, whose tolerance holds for x and, in nats, for log p.
        times: [N + 1] from t_min to t_max for the fixed-step `method` in place of the adaptive solver. On a discrete
            table integers ask the network for no index that it was not trained at, with 'euler' and 'heun'.

    Raises:
        ValueError: unknown divergence, probes < 1, random probes without noise, or what the solver refuses.
    """
    if divergence not in DIVERGENCES:
        raise ValueError(f'Unknown divergence {divergence!r}; choose one of {", ".join(DIVERGENCES)}.')
    exact = divergence == 'exact'
    if not exact and noise is None:
        raise ValueError(f"divergence={divergence!r} draws random probes: give noise, or use divergence='exact'.")
    if probes < 1:
        raise ValueError(f'probes must be at least 1, got {probes}.')
    process = smooth(process)
    low, high = time_range(process)
    low, high = low if t_min is None else t_min, high if t_max is None else t_max
    x = jnp.asarray(x)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    directions = _probes(divergence, noise, x, probes)
    velocity = probability_flow(denoise, process, cond)

    def slope(t, state):
        v, product = jax.linearize(lambda x: velocity(t, x), state[0])

        def along(u):
            return jnp.sum((u * product(u)).reshape(x.shape[0], -1), axis=1)

        each = jax.vmap(along, out_axes=1)(directions)
        return v, jnp.sum(each, axis=1, keepdims=True) if exact else each

    alpha = process.alpha(jnp.asarray(low if times is None else times[0], x.dtype))
    start = alpha * x, jnp.zeros((x.shape[0], 1 if exact else probes), x.dtype)
    if times is None:
        (x_T, gain), _, nfe, converged = solve(slope, start, low, high, rtol, atol, max_nfe)
    else:
        times = jnp.asarray(times, x.dtype)
        x_T, gain = integrate_fixed(slope, start, times, method)
        calls = (times.shape[0] - 1) * (len(METHODS[method].c) - 1)
        nfe, converged = jnp.full(x.shape[0], calls, jnp.int32), jnp.ones(x.shape[0], bool)
        high = times[-1]
    spread = jnp.zeros_like(gain[:, 0]) if exact else jnp.std(gain, axis=1, ddof=1) / np.sqrt(probes)
    at_end = prior_log_density(process, x_T, jnp.asarray(high, x.dtype)) if prior is None else prior(x_T)
    log_p = at_end + jnp.mean(gain, axis=1) + x[0].size * jnp.log(alpha)
    return Likelihood(log_p, spread, x_T, nfe, converged)


def bin_width(levels: int, inside: bool = False) -> float:
    """Width of the bin of one grey level, in the units of images in [-1, 1].

    2 / (levels - 1) where level k is the value 2 k / (levels - 1) - 1 (`gen_jax.data.transforms.normalise`: 255 is 1)
    and owns the bin around it; with `inside`, 2 / levels, the bins of (k + u) / levels scaled to [-1, 1], as published
    bits/dim have it (Song et al. 2021, App. D.2).

    Raises:
        ValueError: levels < 2.
    """
    if levels < 2:
        raise ValueError(f'levels must be at least 2, got {levels}.')
    return 2.0 / levels if inside else 2.0 / (levels - 1)


def dequantise(noise, image: Array, levels: int, inside: bool = False) -> Array:
    """Grey values 2 k / (levels - 1) - 1, moved uniformly within the bins of `bin_width` (Theis et al. 2016, Sec. 3.1).

    Args:
        noise: per-example source.
        image: [B, ...] in [-1, 1], rounded to the nearest level.
        levels: grey levels of the data: 256 for photographs, 17 for the 8 x 8 digits, whose pixels count 0 .. 16.
        inside: False centres the bins on the values, and those of black and white reach beyond [-1, 1] by a half;
            True fills [-1, 1] evenly, for models that were trained on data dequantised so.
    """
    width = bin_width(levels, inside)
    k = jnp.clip(jnp.round((image + 1.0) * 0.5 * (levels - 1)), 0, levels - 1)
    u = noise.uniform('dequantise', image.shape[1:])
    return -1.0 + width * (k + u - (0.0 if inside else 0.5))


def bits_per_dim(log_p: Array, dims: int, levels: int | None = 256, inside: bool = False) -> Array:
    """Bits per dimension of quantised images from log densities of dequantised ones, an upper bound on the true ones.

    With bins of width w, log P(k) >= E_u log p(x_k + u) + D log w (Jensen), so
    bits/dim = -log p / (D log 2) - log2 w. The offset -log2 w is log2((levels - 1) / 2), 6.994 at 256 levels and 3 at
    17, and with `inside` log2(levels / 2), 7 at 256.

    Args:
        log_p: nats [B], of x in the units of [-1, 1].
        dims: D, the numbers per image.
        levels, inside: as given to `dequantise`; levels=None adds no offset (a density of continuous data).
    """
    offset = 0.0 if levels is None else -np.log2(bin_width(levels, inside))
    return -log_p / (dims * np.log(2.0)) + offset
