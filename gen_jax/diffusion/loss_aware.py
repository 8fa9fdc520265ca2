"""Training times drawn by the losses they gave so far (Nichol & Dhariwal 2021, Sec. 3.3)."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from gen_jax.types import Array, Process, PyTree

__all__ = ['LossAware', 'loss_aware']


class LossAware(NamedTuple):
    """Times with a memory, which a system keeps in TrainState.extra['times']. Callable as any `Times`."""

    draw: Callable[..., tuple[Array, Array]]
    """(noise, n, extra) -> times [n] and weights [n]; reads extra['times']."""
    init: Callable[[], PyTree]
    """() -> history: 'losses' float32 [T, H], the oldest first, and 'counts' int32 [T], the filled part of each row."""
    update: Callable[[PyTree, Array, Array], PyTree]
    """(history, t [n], losses [n]) -> history, given the losses of the whole batch without importance weights."""

    def __call__(self, noise, n: int, extra: PyTree) -> tuple[Array, Array]:
        return self.draw(noise, n, extra)


def record(history: PyTree, t: Array, losses: Array) -> PyTree:
    """Appends losses [n] to the rows t [n], in the order of the batch; full rows drop their oldest."""
    rows, counts, t = history['losses'], history['counts'], t.astype(jnp.int32)
    kept = rows.shape[1]
    order = jnp.argsort(t, stable=True)
    t, losses = t[order], losses[order]
    rank = jnp.arange(t.shape[0]) - jnp.searchsorted(t, t)  # among the examples of the same time
    total = counts.at[t].add(1)
    drop = jnp.maximum(total - kept, 0)
    columns = jnp.minimum(jnp.arange(kept) + drop[:, None], kept - 1)
    place = counts[t] + rank - drop[t]
    place = jnp.where(place < 0, kept, place)  # more than H at once: the first of them fall out of the row
    rows = jnp.take_along_axis(rows, columns, axis=1).at[t, place].set(losses.astype(rows.dtype), mode='drop')
    return {'losses': rows, 'counts': jnp.minimum(total, kept)}


def probabilities(history: PyTree, uniform_prob: float) -> Array:
    """p(t) ~ sqrt(mean of squared losses) [T], mixed with the uniform; uniform until every row is full."""
    losses, counts = history['losses'], history['counts']
    steps, kept = losses.shape
    size = jnp.sqrt(jnp.mean(jnp.square(losses), axis=1))
    p = size / jnp.maximum(jnp.sum(size), jnp.finfo(jnp.float32).tiny) * (1.0 - uniform_prob) + uniform_prob / steps
    return jnp.where(jnp.all(counts == kept), p, 1.0 / steps)


def loss_aware(process: Process, history: int = 10, uniform_prob: float = 0.001) -> LossAware:
    """Indices of a table by importance: p(t) ~ sqrt(E[loss_t^2]) over the last losses, weights 1 / (T p(t)).

    Uniform until every t has been seen `history` times. The weighted loss keeps the mean it has under
    `discrete_uniform`. As the examples of a batch meet in the history, gradients must see the whole batch at once:
    accumulation and pmap are refused.

    Args:
        history: losses kept per t.
        uniform_prob: share of uniform draws, so that no t is forgotten.

    Raises:
        ValueError: the process is continuous, history < 1, or uniform_prob outside (0, 1].
    """
    steps = process.steps
    if steps is None:
        raise ValueError('loss_aware times need a discrete table, this process is continuous.')
    if history < 1:
        raise ValueError(f'history must be at least 1, got {history}.')
    if not 0.0 < uniform_prob <= 1.0:
        raise ValueError(f'uniform_prob must lie within (0, 1], got {uniform_prob}.')

    def init():
        return {'losses': jnp.zeros((steps, history), jnp.float32), 'counts': jnp.zeros(steps, jnp.int32)}

    def draw(noise, n, extra):
        p = probabilities(extra['times'], uniform_prob)
        edges = jnp.cumsum(p)
        u = noise.uniform('times').reshape(n) * edges[-1]
        t = jnp.minimum(jnp.searchsorted(edges, u, side='right'), steps - 1).astype(jnp.int32)
        return t, 1.0 / (steps * p[t])

    return LossAware(draw, init, record)
