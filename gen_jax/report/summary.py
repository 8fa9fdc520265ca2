"""The report as data: runs, groups, and every metric's means and comparisons. Tables and the page are made of it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from gen_jax.names import ConfigError, choices
from gen_jax.report import metrics as metrics_lib
from gen_jax.report.compare import ABSENT, Axis, Group, differing, find_axis, group_runs, is_seed, show, units
from gen_jax.report.metrics import Metric
from gen_jax.report.notes import about_results, merge_notes
from gen_jax.report.read import Note, Run, read_runs
from gen_jax.report.statistics import Comparison, Estimate, compare, estimate

__all__ = ['Cell', 'Report', 'make_report', 'split_axes']


class Cell(NamedTuple):
    """One group in one metric."""

    estimate: Estimate
    comparison: Comparison | None
    """With the reference; None: it is the reference, or there is none."""
    best: bool
    reference: bool


class Report(NamedTuple):
    """Everything that tables, figures and the page say."""

    runs: tuple[Run, ...]
    axes: tuple[Axis, ...]
    """What differs, seeds apart; 'nfe' is taken from the recipes where they hold it."""
    groups: tuple[Group, ...]
    metrics: tuple[Metric, ...]
    cells: Mapping[tuple[str, str], tuple[Cell, ...]]
    """('final' | 'best', metric) -> a cell for each group; 'best' over training steps, only where there are several."""
    seeds: tuple[str, ...]
    """Seed keys that differ."""
    seed_words: str
    """Which seeds the means are over."""
    baseline: int | None
    """Group that all are compared with; None: the best one of each metric, of those with several seeds."""
    x: Axis | None
    lines: Axis | None
    """What figures and the cross table start from."""
    notes: tuple[Note, ...]


def make_report(workdirs: Iterable, axes: Sequence[str] = (), metrics: Sequence[str] = (), baseline: str = '',
                better: Mapping[str, str] | None = None) -> Report:
    """Reads runs and compares them.

    Args:
        workdirs: run folders, sweep folders and folders of either, in any mixture.
        axes: keys (or short names) for the x axis and for the lines of the figures and the cross table.
        metrics: the headlines; full names, or last parts that only one metric has.
        baseline: 'key=value,key=value' or a run's name: the group to compare with. Default: the best of each metric.
        better: metric -> 'up' | 'down', over what `gen_jax.report.metrics.BETTER` says.

    Raises:
        ConfigError: there is no run at all, or a direction that is neither up nor down.
    """
    for name, way in (better or {}).items():
        if way not in ('up', 'down'):
            raise ConfigError(f'better: {name}={way!r}: choose from up, down')
    workdirs = [str(w) for w in workdirs]
    runs, notes = read_runs(workdirs)
    if not runs:
        raise ConfigError(f'no run found in {", ".join(workdirs) or "nothing"}: name folders that gen-jax train, '
                          'evaluate or sweep wrote (with a config.json, or runs/ of a sweep)')
    names = sorted({m for r in runs for m in r.curves})
    first = [_find_metric(m, names, notes) for m in metrics]
    found = metrics_lib.rank_metrics(
        names, {m for r in runs for m in r.recipes}, {m for r in runs for m, c in r.curves.items() if len(c) > 1},
        [m for m in first if m], better)
    swept, groups = group_runs(runs)
    swept, groups = _with_nfe(swept, groups, found)
    seeds = tuple(k for k in differing(runs) if is_seed(k))
    chosen = [_find_axis(a, swept, notes) for a in axes[:2]]
    if len(axes) > 2:
        notes.append(Note('', f'--axes names {len(axes)} keys: the first two are used, x and lines'))
    x, lines = split_axes(swept, groups, *[a for a in chosen if a])
    base = _find_group(baseline, groups, swept, notes) if baseline else None
    cells = {}
    for metric in found:
        cells['final', metric.name] = _cells(groups, seeds, metric, base, lambda r, m=metric: r.final(m.name))
        if metric.curve and metric.better:
            cells['best', metric.name] = _cells(groups, seeds, metric, base, lambda r, m=metric: (
                r.best(m.name, m.better) or (r.final(m.name),))[0])
    notes += about_results(runs, swept, groups, found, seeds)
    order = {id(r): i for i, r in enumerate(r for g in groups for r in g.runs)}
    runs.sort(key=lambda r: (order.get(id(r), len(runs)), r.name))
    return Report(tuple(runs), tuple(swept), tuple(groups), tuple(found), cells, seeds, _seed_words(seeds, groups),
                  base, x, lines, tuple(merge_notes(notes)))


def _cells(groups, seeds, metric: Metric, base: int | None, value) -> tuple[Cell, ...]:
    values = [units(g, seeds, value) for g in groups]
    estimates = [estimate(list(v.values())) for v in values]
    good = [i for i, e in enumerate(estimates) if e.n and not e.bad]
    best = None
    if metric.better and good:
        sign = -1 if metric.better == 'up' else 1
        best = min(good, key=lambda i: (sign * estimates[i].mean, i))
    several = [i for i in good if estimates[i].n > 1]  # one seed can be the best, but nothing can be tested against it
    reference = base if base is not None else min(several, key=lambda i: (sign * estimates[i].mean, i)) \
        if best is not None and several else best
    compared = compare(values, reference) if reference is not None and len(groups) > 1 else [None] * len(groups)
    top = estimates[best].mean if best is not None else None
    return tuple(Cell(e, c if e.n else None, i in good and len(good) > 1 and e.mean == top, i == reference)
                 for i, (e, c) in enumerate(zip(estimates, compared, strict=True)))


def _with_nfe(axes, groups, metrics):
    """Adds the number of network calls as an axis, where recipes hold it and groups differ in it."""
    for metric in metrics:
        calls = []
        for group in groups:
            found = [r.recipes[metric.name].get('nfe') for r in group.runs if metric.name in r.recipes]
            known = found and all(type(c) in (int, float) and c == found[0] for c in found)
            calls.append(found[0] if known else ABSENT)
        values = sorted({c for c in calls if c != ABSENT})
        if len(values) > 1 and not any(a.name == 'nfe' for a in axes):
            groups = [g._replace(settings={**g.settings, 'nfe': c}) for g, c in zip(groups, calls, strict=True)]
            return [*axes, Axis('nfe', 'nfe', tuple(values), True)], groups
    return axes, groups


def split_axes(axes: Sequence[Axis], groups: Sequence[Group], x: Axis | None = None, lines: Axis | None = None
               ) -> tuple[Axis | None, Axis | None]:
    """(x, lines) for a figure: network calls where solvers or steps differ, else the longest numeric axis; and the
    longest of the others.

    Sampling steps are no lines where network calls are x: they say the same.
    """
    if x is None:
        numeric = [a for a in axes if a.numeric]
        calls = any(a.name in ('steps', 'solver') for a in axes)
        x = max(numeric, key=lambda a: (a.key == 'nfe' and calls, a.key != 'nfe', len(a.values)), default=None) \
            or next(iter(axes), None)
    others = [a for a in axes if a != x and not (x and 'nfe' in (x.key, a.key) and 'steps' in (x.name, a.name))]
    others = [a for a in others if a.key != 'nfe'] or others
    if lines is None and others:
        lines = max(others, key=lambda a: (len(a.values), not a.numeric))
    return x, lines


def _seed_words(seeds, groups) -> str:
    training = 'seed' in seeds
    sampling = any(k.startswith('evaluate.') for k in seeds)
    if training and sampling:
        pairs = {tuple(str(r.config.get(k)) for k in seeds) for g in groups for r in g.runs}
        crossed = len(pairs) > len({p[seeds.index('seed')] for p in pairs})
        return ('training seeds; several sampling seeds of one training are averaged first' if crossed
                else 'training seeds, each with a sampling seed of its own')
    if training:
        return 'training seeds (parameters, noise, data order)'
    return 'sampling seeds (of the same weights)' if sampling else 'one seed'


def _find_metric(name: str, names, notes) -> str | None:
    fits = [n for n in names if n == name] or [n for n in names if n.endswith(f'/{name}')]
    if len(fits) == 1:
        return fits[0]
    hint = f'it may be {", ".join(fits)}' if fits else choices(name, names) if names else 'no run has a metric'
    notes.append(Note('', f'--metric {name} is not used: {hint}'))
    return None


def _find_axis(name: str, axes, notes) -> Axis | None:
    axis = find_axis(axes, name)
    if axis is None:
        keys = [a.key for a in axes]
        notes.append(Note('', f'--axes {name} is not used: '
                          + (f'the runs differ in {", ".join(keys)}' if keys else 'the runs differ in no setting')))
    return axis


def _find_group(text: str, groups, axes, notes) -> int | None:
    named = [i for i, g in enumerate(groups) if text == g.label or any(r.name == text for r in g.runs)]
    wanted = [part.partition('=') for part in text.split(',')]
    if not named and all(eq for _, eq, _ in wanted):
        pairs = [(find_axis(axes, key.strip()), value.strip()) for key, _, value in wanted]
        if all(axis for axis, _ in pairs):
            named = [i for i, g in enumerate(groups) if all(_same(a, g.settings[a.key], v) for a, v in pairs)]
    if len(named) == 1:
        return named[0]
    notes.append(Note('', f'--baseline {text} is not used, as {len(named) or "no"} groups fit; each metric\'s best '
                      'group is compared with. Groups: ' + '; '.join(g.label for g in groups[:20])))
    return None


def _same(axis: Axis, value, text: str) -> bool:
    """Whether a setting is what a reader typed."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(text) == value
        except ValueError:
            return False
    return text in (show(value), axis.show(value))
