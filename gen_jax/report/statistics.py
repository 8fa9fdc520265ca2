"""Means over seeds, their intervals, and tests of their differences."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

__all__ = ['Comparison', 'Estimate', 'LEVEL', 'compare', 'estimate', 'holm', 't_factor']

LEVEL = 0.05
"""Of the tests; the intervals hold 1 - LEVEL."""


class Estimate(NamedTuple):
    """A mean over seeds."""

    n: int
    """Finite values."""
    bad: int
    """Values that are not finite; they are in no mean."""
    mean: float | None
    stderr: float | None
    """Sample standard deviation / sqrt(n); None for n < 2."""
    low: float | None
    """95 % t-interval of the mean; None for n < 2."""
    high: float | None


class Comparison(NamedTuple):
    """One group against the reference, in one metric."""

    test: str
    """'paired t' | 'Welch t' | '' where none is possible."""
    why: str
    """Why there is none, or the pairing."""
    difference: float | None
    """Mean of the group minus mean of the reference."""
    low: float | None
    """95 % interval of the difference, for this comparison alone."""
    high: float | None
    p: float | None
    p_holm: float | None = None
    """Adjusted over the comparisons of the metric (Holm 1979)."""

    @property
    def significant(self) -> bool | None:
        """Whether the adjusted p is below LEVEL; None: not tested."""
        return None if self.p_holm is None else self.p_holm < LEVEL


def t_factor(n: int) -> float:
    """Half-width of the 95 % t-interval of a mean of n values, in standard errors."""
    from scipy import stats  # takes half a second
    return float(stats.t.ppf(1 - LEVEL / 2, n - 1))


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, standard error and t-interval of the finite values."""
    finite = [v for v in values if math.isfinite(v)]
    n, bad = len(finite), len(values) - len(finite)
    if n == 0:
        return Estimate(0, bad, None, None, None, None)
    top = max(map(abs, finite))
    scale = top if top > 1e100 else 1.0  # squares of what diverged would overflow
    mean = math.fsum(v / scale for v in finite) / n
    if n == 1:
        return Estimate(1, bad, finite[0], None, None, None)
    error = scale * math.sqrt(math.fsum((v / scale - mean) ** 2 for v in finite) / (n - 1) / n)
    mean *= scale
    half = t_factor(n) * error
    return Estimate(n, bad, mean, error, mean - half, mean + half)


def _test(values: Mapping, reference: Mapping) -> Comparison:
    """Paired t where both hold the same seeds, else Welch's t; `values` and `reference` map seeds to numbers."""
    import warnings

    from scipy import stats
    a, b = values, reference
    if not a or not b:
        return Comparison('', 'no value', None, None, None, None)
    bad = sum(not math.isfinite(v) for v in (*a.values(), *b.values()))
    if bad:
        return Comparison('', f'{bad} values are not finite', None, None, None, None)
    if max(map(abs, (*a.values(), *b.values()))) > 1e100:
        return Comparison('', 'values above 1e100', None, None, None, None)
    difference = math.fsum(a.values()) / len(a) - math.fsum(b.values()) / len(b)
    if min(len(a), len(b)) < 2:
        return Comparison('', 'one seed: no test is possible', difference, None, None, None)
    paired = a.keys() == b.keys()
    x, y = ([v[k] for k in sorted(v)] for v in (a, b))
    name = 'paired t' if paired else 'Welch t'
    if paired and x == y:
        return Comparison(name, 'equal for every seed', difference, 0.0, 0.0, 1.0)
    spread = [p - q for p, q in zip(x, y, strict=True)] if paired else [*(v - x[0] for v in x), *(v - y[0] for v in y)]
    if max(spread) - min(spread) <= 1e-12 * max(map(abs, (*x, *y))):
        return Comparison('', 'no spread over the seeds: no test is possible', difference, None, None, None)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', RuntimeWarning)  # nearly equal values; p says so too
        found = stats.ttest_rel(x, y) if paired else stats.ttest_ind(x, y, equal_var=False)
        low, high = found.confidence_interval(1 - LEVEL)
    how = f'{len(a)} pairs of equal seeds' if paired else f'{len(a)} and {len(b)} seeds'
    return Comparison(name, how, difference, float(low), float(high), float(found.pvalue))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: reject where the result is below the level, and the family's error stays below it.

    S. Holm, "A simple sequentially rejective multiple test procedure" (1979).
    """
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted


def compare(groups: Sequence[Mapping], reference: int) -> list[Comparison | None]:
    """Every group against the reference, p adjusted over all of them; None for the reference itself.

    Args:
        groups: for each group, seeds -> value. Groups with the same seeds are compared in pairs.
        reference: index of the group to compare with.
    """
    found = [None if i == reference else _test(g, groups[reference]) for i, g in enumerate(groups)]
    tested = [i for i, c in enumerate(found) if c is not None and c.p is not None]
    adjusted = holm([found[i].p for i in tested])
    for i, p in zip(tested, adjusted, strict=True):
        found[i] = found[i]._replace(p_holm=p)
    return found
