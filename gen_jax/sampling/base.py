"""THE sampling loop: one `lax.scan` over the rows of a grid, for any denoiser and any sampler."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gen_jax.types import Array, Cond, Denoised, DenoiseFn, Level, Point, PyTree, Sampler


def prior(noise, shape: tuple[int, ...], grid: Level) -> Array:
    """x_T = sigma_T z, the start at the first row of a grid: [B, ...], float32."""
    return grid.sigma[0] * noise.normal('x_T', shape)


def sample(noise, denoise: DenoiseFn, sampler: Sampler, x_T: Array, grid: Level, cond: Cond | None = None,
           carry: PyTree | None = None, trace: Callable[[Point], PyTree] | None = None):
    """Walks x_T along the grid, from its first row to its last real one.

    Padded rows cost nothing (`lax.cond`), so one compiled program serves any number of steps up to the padding.
    Works under jit, vmap and pmap, and on a batch sharded over devices, where it adds no collective.

    Args:
        noise: a per-example source (`gen_jax.rng.Noise`); the step from row i uses `noise.at(i)`.
        denoise: (x, level, cond) -> Denoised, guidance included.
        sampler: (init, step); see `gen_jax.sampling.solvers`.
        x_T: the start [B, ...]; computed on in float32 at least.
        grid: a Level whose leaves are rows [N + 1], see `gen_jax.sampling.grids`.
        cond: what the network is told; every leaf leads with B.
        carry: mapping that the denoiser reads merged into cond and returns as `Denoised.aux`, for the next step
            (self-conditioning, caches); None drops aux.
        trace: point -> pytree, recorded after every step; rows behind the last real one repeat it.

    Returns:
        The final Point; with `trace`, (Point, what it recorded, stacked [N, ...]).

    Raises:
        ValueError: at trace time, for a grid of fewer than two rows.
    """
    cond = {} if cond is None else cond
    grid = jax.tree.map(jnp.asarray, grid)
    if grid.alpha.ndim != 1 or grid.alpha.shape[0] < 2:
        raise ValueError(f'A grid has rows [N + 1] with N >= 1, got alpha of shape {grid.alpha.shape}.')
    x_T = jnp.asarray(x_T)
    x_T = x_T.astype(jnp.promote_types(x_T.dtype, grid.alpha.dtype))
    start = Point(x_T, jax.tree.map(lambda a: a[0], grid), () if carry is None else carry)

    def bind(aux):
        told = cond if carry is None else {**cond, **aux}

        def bound(x: Array, level: Level) -> Denoised:
            d = denoise(x, level, told)
            return d._replace(aux=()) if carry is None else d

        return bound

    def body(state, row):
        def advance(state):
            point, inner = state
            return sampler.step(noise.at(row.index - 1), bind(point.aux), point, row, inner)

        state = jax.lax.cond(row.index <= row.last, advance, lambda state: state, state)
        return state, None if trace is None else trace(state[0])

    (point, _), recorded = jax.lax.scan(body, (start, sampler.init(start)), jax.tree.map(lambda a: a[1:], grid))
    return point if trace is None else (point, recorded)


def chain(*samplers: Sampler) -> Sampler:
    """Samplers one after the other within each row: predictor and corrector, churn and solver, solver and replacement.

    Each continues from the point where the one before it stands, and has its own noise.
    """
    if not samplers:
        raise ValueError('chain needs at least one sampler.')

    def step(noise, denoise, point, target, states):
        done = []
        for k, (sampler, state) in enumerate(zip(samplers, states, strict=True)):
            point, state = sampler.step(noise.at(k), denoise, point, target, state)
            done.append(state)
        return point, tuple(done)

    return Sampler(lambda point: tuple(s.init(point) for s in samplers), step)


def repeat(sampler: Sampler, n: int) -> Sampler:
    """The same sampler n times within each row, each time with its own noise: several corrector steps."""
    if n < 1:
        raise ValueError(f'n must be at least 1, got {n}.')

    def step(noise, denoise, point, target, state):
        return jax.lax.fori_loop(
            0, n, lambda k, carry: sampler.step(noise.at(k), denoise, carry[0], target, carry[1]), (point, state))

    return Sampler(sampler.init, step)
