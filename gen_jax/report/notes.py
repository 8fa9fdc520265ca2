"""What a reader must know before trusting a table: recipes that differ in a column, missing values, equal runs."""

from collections.abc import Sequence

from gen_jax.report.compare import ABSENT, Axis, Group, show, sort_key
from gen_jax.report.metrics import Metric
from gen_jax.report.read import Note, Run

__all__ = ['about_results', 'explained', 'merge_notes', 'recipe_values', 'unexplained']


def merge_notes(notes: Sequence[Note], most: int = 6) -> list[Note]:
    """Notes of equal text as one that names the runs, in the order of their first."""
    by_text: dict[tuple[str, bool], list[str]] = {}
    for note in notes:
        names = by_text.setdefault((note.text, note.record), [])
        if note.run and note.run not in names:
            names.append(note.run)
    return [Note(', '.join(names[:most]) + (f' and {len(names) - most} more' if len(names) > most else ''), *key)
            for key, names in by_text.items()]


def recipe_values(runs: Sequence[Run], metric: str) -> dict[str, list]:
    """Recipe key -> what it takes in the runs that have the metric, in natural order."""
    recipes = [r.recipes[metric] for r in runs if metric in r.recipes]
    keys = list(dict.fromkeys(k for recipe in recipes for k in recipe))
    return {k: sorted({repr(v): v for v in (r.get(k, ABSENT) for r in recipes)}.values(), key=sort_key) for k in keys}


def explained(key: str, evaluation: str, axes: Sequence[Axis]) -> bool:
    """Whether an axis of the table says what this recipe key is: `settings.steps` under evaluate.NAME.settings.steps,
    or system.steps, the system's default of it.
    """
    leaf = key.rpartition('.')[2]
    said = {k for a in axes for k in (a.key, *a.tied)}
    if key in ('seed', 'nfe'):
        return True
    same = {'split': 'data.eval_split', 'step': 'train.steps'}.get(key)
    return same in said or f'evaluate.{evaluation}.{key}' in said or (key.startswith('settings.')
                                                                     and f'system.{leaf}' in said)


def unexplained(runs: Sequence[Run], axes: Sequence[Axis], metric: str) -> dict[str, list]:
    """Recipe key -> its values, where they differ between runs and no axis says so."""
    name = metric.partition('/')[0]
    return {k: v for k, v in recipe_values(runs, metric).items() if len(v) > 1 and not explained(k, name, axes)}


def about_results(runs: Sequence[Run], axes: Sequence[Axis], groups: Sequence[Group], metrics: Sequence[Metric],
                  seeds: Sequence[str]) -> list[Note]:
    """Notes on the comparison as a whole."""
    return [*_recipes(runs, axes, metrics), *_missing(groups, metrics), *_twice(groups, seeds, metrics),
            *_revisions(runs)]


def _recipes(runs, axes, metrics) -> list[Note]:
    found: dict[str, list[str]] = {}
    for metric in metrics:
        for key, values in unexplained(runs, axes, metric.name).items():
            what = ', '.join(show(v) for v in values[:4]) + (' ...' if len(values) > 4 else '')
            found.setdefault(f'{key} ({what})', []).append(metric.name)
    return [Note('', f'different recipes stand in one column, they differ in {what}: {_list(names)} cannot be compared '
                 'as they stand') for what, names in found.items()]


def _missing(groups, metrics) -> list[Note]:
    runs = [r for g in groups for r in g.runs if r.curves]
    trained = [r for r in runs if r.curves.keys() - r.recipes.keys()]  # evaluations of others have no losses to miss
    notes = []
    for among, logged in ((runs, False), (trained, True)):
        lacking: dict[tuple[int, ...], list[str]] = {}
        for metric in metrics:
            without = tuple(i for i, r in enumerate(among) if metric.name not in r.curves)
            if without and metric.recipe != logged:
                lacking.setdefault(without, []).append(metric.name)
        for without, names in lacking.items():
            few = len(without) * 2 <= len(among)
            text = f'no value of {_list(names)}' if few else f'no other run has a value of {_list(names)}'
            notes += [Note(r.name, text) for i, r in enumerate(among) if (i in without) == few]
    return notes


def _twice(groups, seeds, metrics) -> list[Note]:
    notes = []
    for group in groups:
        seen: dict[tuple, Run] = {}
        for run in group.runs:
            first = seen.setdefault(tuple(repr(run.config.get(k)) for k in seeds), run)
            if first is not run and any(m.name in run.curves and m.name in first.curves for m in metrics):
                notes.append(Note(run.name, 'equal to another run in every setting and seed: that one counts in the '
                                  'means, this one does not'))
    return notes


def _revisions(runs) -> list[Note]:
    found = {key: sorted({r.versions[key] for r in runs if r.versions.get(key)}) for key in ('git', 'jax', 'devices')}
    return [Note('', f'the runs differ in {key}: {", ".join(values[:6])}{" ..." if len(values) > 6 else ""}', True)
            for key, values in found.items() if len(values) > 1]


def _list(names: Sequence[str], most: int = 4) -> str:
    return ', '.join(names[:most]) + (f' and {len(names) - most} more metrics' if len(names) > most else '')
