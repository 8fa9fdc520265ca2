"""Against numbers worked out by hand, scipy, and the meaning of a test: how often it errs."""

import math

import numpy as np
import pytest
from scipy import stats

from gen_jax.report.statistics import compare, estimate, holm, t_factor


def test_a_mean_of_three_by_hand():
    e = estimate([1.0, 2.0, 6.0])  # deviations -2, -1, 3: variance 14 / 2 = 7, standard error sqrt(7 / 3)
    assert (e.n, e.bad, e.mean) == (3, 0, 3.0)
    assert e.stderr == pytest.approx(math.sqrt(7 / 3), rel=1e-15)
    # t of 2 degrees of freedom at 97.5 %: 4.302653 (any table)
    assert (e.low, e.high) == pytest.approx((3 - 4.302653 * 1.527525, 3 + 4.302653 * 1.527525), abs=1e-5)
    assert t_factor(3) == pytest.approx(4.302653, abs=1e-6)


def test_one_value_has_no_spread_and_none_has_no_mean():
    assert estimate([0.25]) == (1, 0, 0.25, None, None, None)
    assert estimate([]) == (0, 0, None, None, None, None)


def test_what_is_not_finite_is_counted_not_averaged():
    assert estimate([1.0, math.nan, 3.0, math.inf])[:3] == (2, 2, 2.0)
    assert estimate([math.nan])[:3] == (0, 1, None)


def test_paired_where_seeds_are_the_same():
    a, b = {0: 1.0, 1: 2.0, 2: 4.0}, {2: 4.5, 1: 2.4, 0: 1.6}  # the order of a dict does not matter
    (_, c) = compare([a, b], 0)
    differences = np.array([0.6, 0.4, 0.5])
    t = differences.mean() / (differences.std(ddof=1) / math.sqrt(3))  # by hand: 0.5 / (0.1 / sqrt 3) = 8.66
    assert c.test == 'paired t' and c.difference == pytest.approx(0.5)
    assert t == pytest.approx(8.660254) and c.p == pytest.approx(2 * stats.t.sf(t, 2), rel=1e-9)
    assert (c.low, c.high) == pytest.approx((0.5 - 4.302653 * 0.057735, 0.5 + 4.302653 * 0.057735), abs=1e-5)
    assert c.p_holm == c.p and c.significant


def test_welch_where_they_are_not():
    a, b = {0: 1.0, 1: 2.0, 2: 4.0}, {3: 4.5, 4: 2.4, 5: 1.6, 6: 2.0}
    (_, c) = compare([a, b], 0)
    x, y = np.array(list(b.values())), np.array(list(a.values()))
    va, vb = x.var(ddof=1) / 4, y.var(ddof=1) / 3
    freedom = (va + vb) ** 2 / (va**2 / 3 + vb**2 / 2)  # Welch-Satterthwaite
    t = (x.mean() - y.mean()) / math.sqrt(va + vb)
    assert c.test == 'Welch t' and c.p == pytest.approx(2 * stats.t.sf(abs(t), freedom), rel=1e-9)
    assert c.difference == pytest.approx(x.mean() - y.mean()) and not c.significant and '4 and 3 seeds' in c.why


@pytest.mark.parametrize('values, why', [
    ([{0: 1.0}, {0: 2.0}], 'one seed'),
    ([{0: 1.0, 1: 2.0}, {5: 2.0}], 'one seed'),
    ([{0: 1.0, 1: 2.0}, {}], 'no value'),
    ([{0: 1.0, 1: 2.0}, {0: 1.0, 1: math.nan}], '1 values are not finite'),
    ([{0: 1.0, 1: 2.0}, {0: 1.1, 1: 2.1}], 'no spread'),  # a difference that is the same to the last digits
    ([{0: 1.0, 1: 1.0}, {2: 3.0, 3: 3.0}], 'no spread'),
])
def test_where_no_test_is_possible_it_says_so(values, why):
    (_, c) = compare(values, 0)
    assert c.test == '' and why in c.why and c.p is None and c.p_holm is None and c.significant is None


def test_equal_runs_are_not_different():
    (_, c) = compare([{0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}], 0)
    assert c.p == 1.0 and not c.significant and 'equal' in c.why


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.03, 0.2: times 4, 3, 2, 1, never falling
    assert holm([0.03, 0.01, 0.2, 0.02]) == pytest.approx([0.06, 0.04, 0.2, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0]) and holm([]) == []


def test_comparisons_that_are_not_possible_do_not_count_in_the_family():
    rng = np.random.default_rng(0)
    groups = [dict(enumerate(rng.normal(m, 0.1, 4))) for m in (0, 1, 2)] + [{0: 5.0}]
    found = compare(groups, 0)
    assert found[0] is None and found[3].p is None
    assert [c.p_holm for c in found[1:3]] == holm([c.p for c in found[1:3]])


def test_it_errs_as_often_as_it_says():
    """Five groups of three seeds that are truly equal: some difference is claimed in at most 5 % of the reports (and
    in far more without the adjustment). Compared with a fixed group, as against a baseline."""
    rng = np.random.default_rng(1)
    claimed = raw = 0
    for _ in range(200):
        groups = [dict(zip(range(10 * g, 10 * g + 3), rng.normal(size=3), strict=True)) for g in range(5)]
        found = [c for c in compare(groups, 0) if c]
        claimed += any(c.significant for c in found)
        raw += any(c.p < 0.05 for c in found)
    assert claimed / 200 <= 0.06 and raw > 1.5 * claimed


def test_values_whose_squares_overflow():
    e = estimate([1e308, 1.2e308, 0.8e308])
    assert e.mean == pytest.approx(1e308) and e.stderr == pytest.approx(0.2e308 / math.sqrt(3))
    (_, c) = compare([{0: 1.0, 1: 2.0}, {0: 1e308, 1: -1e308}], 0)
    assert c.p is None and c.why == 'values above 1e100'
