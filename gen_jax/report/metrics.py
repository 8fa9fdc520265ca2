"""What is known of a metric by its name: which direction is better, and how many digits of it mean something."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

__all__ = ['BETTER', 'Metric', 'direction', 'number_format', 'present', 'rank_metrics']

BETTER = {
    'up': ('accuracy', 'zero_shot_accuracy', 'recall', 'precision', 'coverage', 'density', 'psnr', 'ssim',
           'inception_score', 'clip_score', 'class_fraction_min', 'elbo', 'log_likelihood', 'map', 'ap', 'iou'),
    'down': ('loss', 'frechet', 'fid', 'kid', 'bits_per_dim', 'iw_bits_per_dim', 'bpd', 'nll', 'lpips', 'mse', 'mae',
             'rmse', 'perplexity', 'error', 'distance', 'ece'),
}
"""The last part of a metric's name -> the direction that is better."""
CONSTANTS = ('_heldout', '_real', '_reference')  # of the data, not of the model
MOST_HEADLINES = 6


class Metric(NamedTuple):
    """One column of numbers."""

    name: str
    """EVALUATION/metric or OBJECTIVE/metric."""
    better: str
    """'up', 'down', or '' where it is not known."""
    headline: bool
    """Whether it stands in the first table."""
    curve: bool
    """Whether some run has it at more than one step."""
    recipe: bool
    """Whether it comes from an evaluation, and so has a recipe."""


def direction(name: str, known: Mapping[str, str] | None = None) -> str:
    """'up' | 'down' | '': which way is better, by the last part of the name; loss_t_0_0.1 is a loss too.

    Args:
        known: overrides, full name or last part -> 'up' | 'down' | ''.
    """
    leaf, known = name.rpartition('/')[2], known or {}
    for key in (name, leaf):
        if key in known:
            return known[key]
    if leaf.endswith(CONSTANTS):
        return ''
    table = {n: way for way, names in BETTER.items() for n in names}
    fits = [n for n in table if leaf == n or leaf.startswith(f'{n}_') or leaf.endswith(f'_{n}')]
    return table[max(fits, key=lambda n: (n == leaf, len(n)))] if fits else ''


def rank_metrics(names: Iterable[str], evaluated: Iterable[str], curves: Iterable[str], first: Sequence[str] = (),
                 known: Mapping[str, str] | None = None) -> list[Metric]:
    """Metrics in the order of a reader's interest.

    Args:
        names: all of them.
        evaluated: those with a recipe. curves: those with several steps.
        first: the headlines, in this order; default: up to 6 scores of evaluations whose direction is known, exactly by
            their last part (bins of a loss are not), else losses.
        known: as for `direction`.
    """
    evaluated, curves = set(evaluated), set(curves)
    exact = {n for group in BETTER.values() for n in group}

    def interest(name):
        leaf, better = name.rpartition('/')[2], direction(name, known)
        return (name not in evaluated, not better, leaf not in exact, leaf == 'loss',
                leaf.endswith(('/lr', 'grad_norm')), name)

    ranked = sorted(set(names), key=interest)
    scores = [n for n in ranked if direction(n, known) and n.rpartition('/')[2] in exact]
    headlines = [n for n in first if n in ranked] or [n for n in scores if n in evaluated][:MOST_HEADLINES] \
        or scores[:MOST_HEADLINES] or ranked[:1]
    order = [*headlines, *(n for n in ranked if n not in headlines)]
    return [Metric(n, direction(n, known), n in headlines, n in curves, n in evaluated) for n in order]


def number_format(means: Iterable[float | None], errors: Iterable[float | None] = ()) -> str:
    """A format for one column, '.3f' or '.3e', so that decimal points stand below each other.

    Two digits of the median standard error; without any, four of the median value. Powers of ten where a column
    reaches 1e6 or its largest value is below 1e-3.
    """
    means = sorted(abs(m) for m in means if m is not None and math.isfinite(m))
    errors = sorted(e for e in errors if e is not None and math.isfinite(e) and e > 0)
    top = max(means, default=0.0)
    if top >= 1e6 or 0 < top < 1e-3:
        return '.3e'
    if errors:
        digits = 1 - math.floor(math.log10(errors[len(errors) // 2]))
    else:
        middle = means[len(means) // 2] if means else 0
        digits = 3 - math.floor(math.log10(middle or top)) if top else 0
        if all(m == int(m) for m in means):
            digits = 0
    return f'.{min(max(digits, 0), 6)}f'


def present(value: float | None, spec: str) -> str:
    """A number in a column's format; '–' for none, and nan and inf as such."""
    if value is None:
        return '–'
    return format(value, spec) if math.isfinite(value) else str(value)
