"""Folders become runs: what `gen-jax train`, `evaluate` and `sweep` left behind, read without trusting any of it.

Nothing here raises for what a run folder holds: a broken file is left out and becomes a `Note`.
"""

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gen_jax.config import EVALUATION, ConfigError, complete, flatten, from_json, to_json
from gen_jax.engine.writers import read_jsonl, without_wall_clock

__all__ = ['Note', 'Picture', 'Run', 'find_runs', 'is_run', 'read_runs']

NOT_A_RECIPE = ('counts', 'exact')  # results that metrics keep beside their recipe


class Note(NamedTuple):
    """Something a reader must know."""

    run: str
    """Name of the run; empty: the whole report."""
    text: str
    record: bool = False
    """About paths, machines or errors, not about results: stays out of the tables that are equal for equal results."""


class Picture(NamedTuple):
    """A grid of images, image k in row k // columns."""

    path: Path
    columns: int
    seed: Any
    """Sampling seed: pictures of equal seed show the same noise."""


class Run(NamedTuple):
    """One run folder."""

    name: str
    path: Path
    config: Mapping[str, Any]
    """Dotted key -> plain value, with today's defaults for what did not exist then; empty if there is no config."""
    overrides: Mapping[str, Any]
    """What the sweep set, by dotted key; empty for a run that was never part of one."""
    spec: str
    """NAME[:ARG] of the config in the sweep, or empty."""
    status: str
    """done | running | pending | failed, as the sweep wrote; otherwise done | unfinished | evaluated | empty."""
    error: str
    step: int | None
    """The last step that is known."""
    curves: Mapping[str, tuple[tuple[int, float], ...]]
    """Metric -> (step, value), steps rising; evaluation.json is the point at its step."""
    recipes: Mapping[str, Mapping[str, Any]]
    """Metric -> recipe of its last value, flattened ('settings.steps')."""
    pictures: Mapping[str, Picture]
    """By evaluation; 'samples' are those drawn while training."""
    versions: Mapping[str, str]
    timing: Mapping[str, float]
    """seconds (of the sweep's clock), logged_seconds, images_per_second, steps_per_second: what is known of them."""

    def final(self, metric: str) -> float | None:
        """The value at the last step, None if there is none."""
        points = self.curves.get(metric)
        return points[-1][1] if points else None

    def best(self, metric: str, better: str) -> tuple[float, int] | None:
        """(value, step) of the best finite value over the steps, the earliest of equals; better: 'up' | 'down'."""
        points = [(v, s) for s, v in self.curves.get(metric, ()) if math.isfinite(v)]
        sign = -1 if better == 'up' else 1
        return min(points, key=lambda p: (sign * p[0], p[1]), default=None)


# ---------------------------------------------------------------- finding


def is_run(path: Path) -> bool:
    """Whether a folder holds anything that a run writes."""
    return any((path / name).is_file() for name in ('config.json', 'run.json', 'metrics.jsonl', 'evaluation.json'))


def find_runs(workdirs: Iterable) -> tuple[list[Path], list[Note]]:
    """Run folders in the named run folders, sweep folders and folders of either, each once, sorted in each folder."""
    found, notes = {}, []
    for workdir in map(Path, workdirs):
        if not workdir.is_dir():
            notes.append(Note(str(workdir), 'is no folder: nothing read' if workdir.exists() else
                              'does not exist: nothing read', record=True))
            continue
        inside = _inside(workdir) or [p for child in _folders(workdir) for p in _inside(child)]
        if not inside:
            notes.append(Note(str(workdir), 'holds no run: nothing read', record=True))
        found.update((p.resolve(), p) for p in inside if p.resolve() not in found)
    return list(found), notes


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith('.'))


def _inside(path: Path) -> list[Path]:
    """A run folder itself, or the runs of a sweep folder."""
    runs = path / 'runs'
    if runs.is_dir() and ((path / 'sweep.json').exists() or not is_run(path)):
        return [p for p in _folders(runs) if is_run(p)]
    return [path] if is_run(path) else []


def _names(paths: Sequence[Path]) -> tuple[dict[Path, str], list[Note]]:
    """The last part of each path, with as many before it as tell it from the others (`runs` of a sweep apart)."""
    parts = {p: [q for i, q in enumerate(p.parts) if not (q == 'runs' and i == len(p.parts) - 2)] for p in paths}
    names, notes = {}, []
    for p in paths:
        same = [q for q in paths if parts[q][-1] == parts[p][-1]]
        length = next((k for k in range(1, len(p.parts) + 1)
                       if sum(parts[q][-k:] == parts[p][-k:] for q in same) == 1), len(p.parts))
        names[p] = '/'.join(parts[p][-length:])
        if len(same) > 1 and p == same[0]:
            notes.append(Note('', f'{len(same)} runs are called {p.name}: they are shown with their folders', True))
    return names, notes


def read_runs(workdirs: Iterable) -> tuple[list[Run], list[Note]]:
    """Every run in the folders, and what is wrong with them.

    Args:
        workdirs: run folders, sweep folders (their `runs/`) and folders of either, in any mixture.
    """
    paths, notes = find_runs(workdirs)
    names, twice = _names(paths)
    runs = []
    for path in paths:
        run, found = read_run(path, names[path])
        runs.append(run)
        notes += found
    return runs, notes + twice


# ---------------------------------------------------------------- one folder


def read_run(path: Path, name: str) -> tuple[Run, list[Note]]:
    """One run folder, whatever is left of it, and what is wrong with it."""
    notes: list[Note] = []

    def say(text, record=False):
        notes.append(Note(name, text, record))

    sweep = _json(path / 'run.json', say)
    overrides = sweep.get('overrides') if isinstance(sweep.get('overrides'), dict) else {}
    config = _config(path, say)
    rows = _log(path / 'metrics.jsonl', say)
    scores = _json(path / 'evaluation.json', say)
    curves, recipes, last = _curves(rows, scores, config, say)
    status = str(sweep.get('status') or _status(rows, scores, config, last))
    error = str(sweep.get('error') or '')
    if status == 'failed':
        lines = error.strip().splitlines() or ['']  # the sweep writes 'ValueError: why' and what follows
        why = lines[-1 if lines[0].startswith('Traceback') else 0]
        say(f'failed: {why}' if why else 'failed', True)
    elif status in ('pending', 'running') and sweep:
        say('has not been run yet' if status == 'pending' else 'is running, or was killed')
    if not curves and status not in ('pending', 'running', 'failed'):
        say('nothing was measured: neither metrics.jsonl nor evaluation.json has a value')
    trained = rows or not (sweep.get('of') or scores)
    if trained and status != 'pending' and not _has_checkpoint(path):
        say('no checkpoint: it can be neither resumed nor evaluated', True)
    versions = {k: str(v) for k, v in _json(path / 'versions.json', say).items()}
    pictures = _pictures(path, scores, config)
    return Run(name, path, config, overrides, str(sweep.get('config') or ''), status, error, last, curves, recipes,
               pictures, versions, _timing(rows, sweep)), notes


def _json(path: Path, say) -> dict:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text())
        if not isinstance(found, dict):
            raise ValueError('it is no JSON object')
        return found
    except (OSError, ValueError, RecursionError) as e:
        say(f'{path.name} cannot be read ({e}): left out')
        return {}


def _config(path: Path, say) -> dict[str, Any]:
    path = path / 'config.json'
    if not path.is_file():
        if not (path.parent / 'run.json').is_file():
            say('no config.json: its settings are not known, and it stands in no group')
        return {}
    try:
        saved = from_json(path.read_text())
    except (ConfigError, OSError, ValueError, TypeError, AttributeError, RecursionError):
        say('config.json cannot be read: its settings are not known, and it stands in no group')
        return {}
    try:
        saved = complete(saved)
    except (ConfigError, ValueError, TypeError, AttributeError, KeyError, OverflowError):
        pass  # of another program or another age: compared as it is
    plain = json.loads(to_json(saved))
    if isinstance(entries := plain.get('evaluate'), dict):
        for entry in entries.values():
            if isinstance(entry, dict):  # a seed left out is the seed that holds then
                entry.setdefault('seed', EVALUATION['seed'])
    return flatten(plain)


def _log(path: Path, say) -> list[dict]:
    if not path.is_file():
        return []
    try:
        rows, lines = read_jsonl(path), path.read_bytes().splitlines()
    except (OSError, RecursionError) as e:
        say(f'metrics.jsonl cannot be read ({e}): left out')
        return []
    broken = len(lines) - len(rows)
    if broken:
        try:
            torn = not isinstance(json.loads(lines[-1]), dict)
        except ValueError:
            torn = True
        if torn:
            say('metrics.jsonl: the last line is cut off, as after a crash; it was left out')
        if broken > torn:
            say(f'metrics.jsonl: lines that are no records of a log ({broken - torn}) were left out')
    return rows


def _number(value) -> float | None:
    """A metric's value; JSONL writes what is not finite as a string."""
    if isinstance(value, str) and value in ('nan', 'inf', '-inf', 'NaN', 'Infinity', '-Infinity'):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        return math.inf if value > 0 else -math.inf


def _values(row: Mapping) -> dict[str, float]:
    """The metrics of a row: numbers that are neither clocks nor standard errors of another value."""
    return {k: v for k, raw in without_wall_clock(row).items() if k != 'step' and not k.endswith('_stderr')
            and (v := _number(raw)) is not None}


def _curves(rows, scores, config, say):
    """(curves, recipes, last step) of the log and evaluation.json together."""
    points: dict[str, dict[int, float]] = {}
    recipes: dict[str, dict[str, Any]] = {}
    for row in rows:
        for metric, value in _values(row).items():
            points.setdefault(metric, {})[row['step']] = value
            name, slash, _ = metric.partition('/')
            if slash and (f'evaluate.{name}.predict' in config):
                own = {k.removeprefix(f'{name}/'): v for k, v in row.items() if k.startswith(f'{name}/')}
                recipes[metric] = {**_recipe(metric.removeprefix(f'{name}/'), own, name, config), 'step': row['step']}
    last = max((r['step'] for r in rows), default=None)
    step = scores.get('step')
    scored = isinstance(step, int) and not isinstance(step, bool)
    if scored and last is not None and step < last:
        say('evaluation.json is of an earlier step than the end of the log')
    step = step if scored else last or 0
    for name, found in scores.items():
        for metric, value in _values(found).items() if isinstance(found, dict) else ():
            full = f'{name}/{metric}'
            points.setdefault(full, {})[step] = value
            if step == max(points[full]):
                recipes[full] = {'step': step, **_recipe(metric, found, name, config)}
    curves = {k: tuple(sorted(v.items())) for k, v in sorted(points.items())}
    for metric, curve in curves.items():
        bad = [s for s, v in curve if not math.isfinite(v)]
        if bad:
            say(f'{metric} is not finite at {len(bad)} of {len(curve)} steps, first at step {bad[0]}')
    return curves, recipes, max([s for s in (last, step if scored else None) if s is not None], default=None)


def _recipe(metric: str, found: Mapping, name: str, config: Mapping) -> dict[str, Any]:
    """What a metric was computed by: the config's entry, over it the evaluation's recipe, over it the metric's own.

    `X_recipe` belongs to X and X_...; one that belongs to no metric so (digits_recipe) holds for all of them.
    """
    entry = f'evaluate.{name}.'
    ema = next((k.split('.')[2] for k in config if k.startswith('train.ema.') and k.count('.') > 1), None)
    base = {'split': config.get('data.eval_split'), 'ema': ema, 'seed': 0,
            **{k.removeprefix(entry): v for k, v in config.items() if k.startswith(entry)
               and k.removeprefix(entry).split('.')[0] in ('predict', 'split', 'n', 'ema', 'seed', 'settings')
               and v is not None}}
    cards = {k.removesuffix('_recipe'): v for k, v in found.items() if k.endswith('_recipe') and isinstance(v, dict)}
    metrics = _values(found)

    def belongs(m, card):
        return m == card or m.startswith(card + '_')

    loose = [v for k, v in cards.items() if not any(belongs(m, k) for m in metrics)]
    own = [v for k, v in sorted(cards.items()) if belongs(metric, k)]
    general = found['recipe'] if isinstance(found.get('recipe'), dict) else {}
    merged = {k: v for part in (base, flatten(general), *map(flatten, own or loose)) for k, v in part.items()}
    return {k: v for k, v in merged.items() if v is not None and v != {} and k not in NOT_A_RECIPE}


def _status(rows, scores, config, last) -> str:
    if rows:
        steps = config.get('train.steps')
        return 'unfinished' if isinstance(steps, int) and last is not None and last < steps else 'done'
    return 'evaluated' if scores else 'empty'


def _has_checkpoint(path: Path) -> bool:
    folder = path / 'checkpoints'
    return folder.is_dir() and any(p.is_dir() and p.name.isdigit() for p in folder.iterdir())


def _pictures(path: Path, scores, config) -> dict[str, Picture]:
    found = {}
    for name, entry in scores.items():
        picture = entry.get('pictures') if isinstance(entry, dict) else None
        if isinstance(picture, str) and Path(picture).name == picture:  # beside evaluation.json, never elsewhere
            recipe = entry.get('recipe') if isinstance(entry.get('recipe'), dict) else {}
            seed = recipe.get('seed', config.get(f'evaluate.{name}.seed', 0))
            found[name] = Picture(path / picture, 10, seed)
    drawn = sorted((path / 'samples').glob('*.png')) if (path / 'samples').is_dir() else []
    if drawn:
        columns = config.get('sample.columns')
        newest = max(drawn, key=lambda p: (p.stem.rpartition('-')[2], p.name))
        found['samples'] = Picture(newest, columns if isinstance(columns, int) else 10, config.get('sample.seed', 0))
    return found


def _timing(rows, sweep) -> dict[str, float]:
    timing = {}
    if (seconds := _number(sweep.get('seconds'))) is not None:
        timing['seconds'] = seconds
    times = [t for r in rows if (t := _number(r.get('time'))) is not None]
    if len(times) > 1:
        timing['logged_seconds'] = max(times) - min(times)
    for key in ('images_per_second', 'steps_per_second'):
        rates = [v for r in rows if (v := _number(r.get(key))) is not None and math.isfinite(v)]
        if rates:
            timing[key] = statistics.median(rates)
    return timing
