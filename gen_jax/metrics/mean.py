"""Means of per-example outputs: over all examples, and in bins of another output."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gen_jax.types import Metric

__all__ = ['Running', 'binned', 'fetch', 'mean', 'running_add', 'running_merge']


class Running(NamedTuple):
    """Count, mean and sum of squared deviations, each [...] float64; merged by Chan, Golub and LeVeque (1979)."""

    n: np.ndarray
    mean: np.ndarray
    m2: np.ndarray


def running_merge(a: Running, b: Running) -> Running:
    """The statistics of both samples together, elementwise; either may be empty."""
    n = a.n + b.n
    share = np.divide(b.n, n, out=np.zeros_like(n), where=n > 0)
    delta = np.where(b.n > 0, b.mean - a.mean, 0.0)
    return Running(n, a.mean + delta * share, a.m2 + b.m2 + np.square(delta) * a.n * share)


def running_add(state: Running, values: np.ndarray) -> Running:
    """Adds values [N] to the statistics ()."""
    values = np.asarray(values, np.float64)
    if values.size == 0:
        return state
    center = values.mean()
    return running_merge(state, Running(np.float64(values.size), center, np.square(values - center).sum()))


def fetch(outputs: Mapping[str, Any], key: str, metric: str) -> np.ndarray:
    """outputs[key] as numpy; a missing key is a ValueError that lists what there is."""
    if key not in outputs:
        raise ValueError(f'metric {metric} reads {key!r}, but the outputs hold {sorted(outputs)}')
    return np.asarray(outputs[key])


def _some(n, name: str) -> None:
    if not np.any(n > 0):
        raise ValueError(f'metric {name} has seen no examples: is the evaluated split empty?')


def mean(key: str, name: str | None = None) -> Metric:
    """Mean of the per-example output `key` [B] (or [B, ...], averaged per example first) and its standard error.

    Gives `name`, `name_stderr` (sample standard deviation / sqrt(n); nan for a single example) and `name_recipe`.
    A NaN among the values makes the mean NaN. `name` defaults to `key`.
    """
    name = name or key

    def update(state, outputs):
        values = fetch(outputs, key, name).astype(np.float64)
        if values.ndim == 0:
            raise ValueError(f'metric {name}: output {key!r} is a scalar, but a value for each example is needed')
        return running_add(state, values.mean(tuple(range(1, values.ndim))))

    def compute(state):
        _some(state.n, name)
        n = float(state.n)
        error = float(np.sqrt(state.m2 / (n - 1) / n)) if n > 1 else float('nan')
        return {name: float(state.mean), f'{name}_stderr': error, f'{name}_recipe': {'n': int(n), 'of': key}}

    return Metric(lambda: Running(*np.zeros(3)), update, running_merge, compute)


def binned(key: str, by: str, edges: Sequence[float] | None = None, bins: int | None = None,
           name: str | None = None) -> Metric:
    """Mean of output `key` in bins of output `by`, shaped alike: the loss by training time, say.

    Gives `name_BY_LO_HI` for every bin that holds a value (0.25 <= by < 0.5 is `loss_t_0.25_0.5`; the last bin holds
    its upper edge too) and `name_BY_recipe` with edges and counts.

    Args:
        key: per-example output [B] or [B, ...].
        by: output of the same shape.
        edges: increasing, at least 2; -inf and inf may be used.
        bins: instead of `edges`: that many equal bins of [0, 1].

    Raises:
        ValueError: bad edges; later: shapes that differ, or a value of `by` outside the edges.
    """
    if (edges is None) == (bins is None):
        raise ValueError('binned: give either edges or bins')
    if bins is not None and bins < 1:
        raise ValueError(f'binned: bins={bins}, must be at least 1')
    limits = np.linspace(0.0, 1.0, bins + 1) if edges is None else np.asarray(edges, np.float64)
    if limits.ndim != 1 or len(limits) < 2 or not (np.diff(limits) > 0).all():
        raise ValueError(f'binned: edges={edges} must be at least two increasing numbers')
    size, name = len(limits) - 1, f'{name or key}_{by}'

    def update(state, outputs):
        values, places = (fetch(outputs, k, name).astype(np.float64) for k in (key, by))
        if values.shape != places.shape:
            raise ValueError(f'metric {name}: {key!r} has shape {values.shape} and {by!r} {places.shape}; they must '
                             'be equal')
        values, places = values.ravel(), places.ravel()
        outside = ~((places >= limits[0]) & (places <= limits[-1]))
        if outside.any():
            raise ValueError(f'metric {name}: {by} = {places[outside][0]} lies outside the edges '
                             f'[{limits[0]:g}, {limits[-1]:g}]; widen them (-inf and inf are allowed)')
        where = np.minimum(np.searchsorted(limits, places, side='right') - 1, size - 1)
        # Two passes (mean, then deviations) as in `running_add`, for all bins at once.
        n = np.bincount(where, minlength=size).astype(np.float64)
        center = np.divide(np.bincount(where, values, size), n, out=np.zeros(size), where=n > 0)
        m2 = np.bincount(where, np.square(values - center[where]), size)
        return running_merge(state, Running(n, center, m2))

    def compute(state):
        _some(state.n, name)
        result = {f'{name}_{lo:.4g}_{hi:.4g}': float(m) for lo, hi, m, n in
                  zip(limits[:-1], limits[1:], state.mean, state.n, strict=True) if n > 0}
        counts = [int(n) for n in state.n]
        return {**result, f'{name}_recipe': {'n': sum(counts), 'counts': counts, 'edges': limits.tolist()}}

    return Metric(lambda: Running(*np.zeros((3, size))), update, running_merge, compute)
