"""What differs between runs, and which of them are the same but for their seeds."""

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gen_jax.report.read import Run

__all__ = ['ABSENT', 'Axis', 'Group', 'find_axis', 'group_runs', 'is_seed', 'merge_tied', 'show', 'sort_key', 'units',
           'differing']

ABSENT = '<absent>'
_SEED = re.compile(r'seed|sample\.seed|evaluate\.[^.]+\.seed')
_QUIET = re.compile(r'(log|checkpoint)\..*|train\.(max_seconds|cpu_devices|compile_cache)|data\.(threads|buffer)')
MOST_AXES = 6


class Axis(NamedTuple):
    """A setting that differs between groups."""

    key: str
    """Dotted key of the config; 'config' and 'config:KEY' for what a sweep says by the config's name and argument."""
    name: str
    """The shortest end of the key that no other axis has."""
    values: tuple
    """What it takes, in natural order."""
    numeric: bool
    """Whether all values are numbers (None and absence apart)."""
    tied: tuple[str, ...] = ()
    """Other keys that change exactly when this one does."""
    prefix: str = ''
    """What all values begin with ('diffusion.' of names); not shown."""

    def show(self, value) -> str:
        """A value as a reader sees it."""
        return show(value.removeprefix(self.prefix) if isinstance(value, str) else value)


class Group(NamedTuple):
    """Runs that are equal but for their seeds."""

    label: str
    """name=value of what is set; the name of the run where nothing was swept and every group is one run."""
    settings: Mapping[str, Any]
    """Axis key -> value."""
    runs: tuple[Run, ...]


def is_seed(key: str) -> bool:
    """Whether a dotted key only chooses the randomness: seed, sample.seed, evaluate.NAME.seed."""
    return _SEED.fullmatch(key) is not None


def is_quiet(key: str) -> bool:
    """Whether a dotted key is only about logging, checkpoints, threads or time: runs may differ in it and be equal."""
    return _QUIET.fullmatch(key) is not None


def _code(value) -> str:
    """Equal for equal settings: 1 and 1.0 are, 1 and true are not."""
    return json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value, sort_keys=True)


def sort_key(value) -> tuple:
    """An order for values of any type: absent, None, bools, numbers, text, the rest."""
    if value == ABSENT or value is None:
        return (0 if value == ABSENT else 1, 0, '')
    if isinstance(value, bool):
        return (2, int(value), '')
    if isinstance(value, (int, float)):
        return (3, value, '') if value == value else (4, 0, '')
    return (5, 0, value) if isinstance(value, str) else (6, 0, _code(value))


def show(value) -> str:
    """A setting as a reader sees it."""
    if value == ABSENT:
        return '–'
    if value is None:
        return 'none'
    if isinstance(value, float):
        return f'{value:.6g}'
    return value if isinstance(value, str) else json.dumps(value)


def _arguments(spec: str) -> dict[str, Any]:
    """'digits:debug,lr=0.1' -> {'config': 'digits:debug', 'config:lr': 0.1}."""
    name, colon, arg = spec.partition(':')
    parts = [part.partition('=') for part in arg.split(',') if part]
    bare = ','.join(key for key, eq, _ in parts if not eq)
    found = {f'config:{key}': value for key, eq, value in parts if eq}
    for key, value in found.items():
        with contextlib.suppress(ValueError):
            found[key] = float(value)
    return {'config': f'{name}:{bare}' if bare else name, **found} if spec else {}


def _value(run: Run, key: str):
    return _arguments(run.spec).get(key, ABSENT) if key.startswith('config') else run.config.get(key, ABSENT)


def differing(runs: Sequence[Run]) -> dict[str, tuple]:
    """Dotted key -> the value in each run, for the keys whose values are not all equal; runs without config apart."""
    runs = [r for r in runs if r.config]
    keys = sorted({k for r in runs for k in r.config})
    rows = {k: tuple(_value(r, k) for r in runs) for k in keys}
    return {k: v for k, v in rows.items() if len(set(map(_code, v))) > 1}


def _partition(runs: Sequence[Run], keys: Sequence[str]) -> tuple[int, ...]:
    """Runs -> number of their class by equal values of the keys, numbered by first occurrence."""
    seen: dict[tuple, int] = {}
    return tuple(seen.setdefault(tuple(_code(_value(r, k)) for k in keys), len(seen)) for r in runs)


def merge_tied(runs: Sequence[Run], keys: Sequence[str]) -> list[str]:
    """Of keys that change together one, the most telling: names of things first, then short keys."""
    classes: dict[tuple, str] = {}
    for key in sorted(keys, key=lambda k: (not k.endswith('.name'), k.count('.'), k)):
        classes.setdefault(_partition(runs, [key]), key)
    return list(classes.values())


def _columns(runs: Sequence[Run], keys: Sequence[str]) -> list[str]:
    """Keys of the axes: what a sweep set, if that tells its groups apart; else all that differs, few enough to read."""
    overridden = {o for r in runs for o in r.overrides}
    swept = [k for k in keys if any(k == o or k.startswith(f'{o}.') for o in overridden)]
    arguments = sorted({k for r in runs for k in _arguments(r.spec)})
    full = max(_partition(runs, keys), default=0)
    for chosen in (swept, [k for k in arguments if max(_partition(runs, [k])) > 0] + swept):
        if chosen and max(_partition(runs, chosen)) == full:
            return merge_tied(runs, chosen)
    merged = merge_tied(runs, keys)
    if len(merged) > MOST_AXES:  # as few as tell the groups apart, those that split most of them first
        chosen: list[str] = []
        for key in sorted(merged, key=lambda k: (-max(_partition(runs, [k])), not k.endswith('.name'))):
            if max(_partition(runs, chosen), default=0) < full:
                chosen += [key] if max(_partition(runs, [*chosen, key])) > max(_partition(runs, chosen)) else []
        return chosen
    return merged


def _short(key: str) -> list[str]:
    """Candidates for a short name: the last part (of a thing's name, the thing), then longer ends."""
    parts = key.split('.')
    parts = parts[:-1] if parts[-1] == 'name' and len(parts) > 1 else [key.removeprefix('config:')] \
        if key.startswith('config:') else parts
    return ['.'.join(parts[-n:]) for n in range(1, len(parts) + 1)] + [key]


def _prefix(values) -> str:
    """The namespace that all values share: 'diffusion.' of 'diffusion.vp' and 'diffusion.edm'."""
    if len(values) < 2 or not all(isinstance(v, str) and re.fullmatch(r'\w+(\.\w+)+', v) for v in values):
        return ''
    heads = {v.rpartition('.')[0] for v in values}
    return heads.pop() + '.' if len(heads) == 1 else ''


def group_runs(runs: Sequence[Run]) -> tuple[list[Axis], list[Group]]:
    """(axes, groups): the settings that differ, and the runs that are equal in all of them but seeds.

    Keys that are only about logging, checkpoints, threads and time make no groups. Runs whose config is not known
    stand in none. Groups come in the order of their settings, numbers as numbers; lone runs as they came.
    """
    runs = [r for r in runs if r.config]
    keys = [k for k in differing(runs) if not is_seed(k) and not is_quiet(k)]
    order = sorted(_columns(runs, keys), key=lambda k: (not k.startswith('config'), k))
    names, classes = {}, {k: _partition(runs, [k]) for k in {*keys, *order}}
    for key in order:
        names[key] = next(n for n in _short(key) if all(n not in _short(k) for k in order if k != key) or n == key)
    axes = []
    for key in order:
        values = sorted({_code(_value(r, key)): _value(r, key) for r in runs}.values(), key=sort_key)
        real = [v for v in values if v is not None and v != ABSENT]
        numeric = bool(real) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in real)
        axes.append(Axis(key, names[key], tuple(values), numeric,
                         tuple(k for k in keys if k != key and classes[k] == classes[key]), _prefix(real)))
    members: dict[int, list[Run]] = {}
    for run, number in zip(runs, _partition(runs, keys), strict=True):
        members.setdefault(number, []).append(run)
    groups = []
    for same in members.values():
        settings = {a.key: _value(same[0], a.key) for a in axes}
        label = ', '.join(f'{a.name}={a.show(settings[a.key])}' for a in axes if settings[a.key] != ABSENT)
        label = label or ('nothing set' if axes else 'all runs')
        groups.append(Group(label, settings, tuple(sorted(same, key=lambda r: (seed_key(r), r.name)))))
    if len(groups) == len(runs) > 1 and not any(r.overrides or r.spec for r in runs):
        return axes, [g._replace(label=g.runs[0].name) for g in groups]
    groups.sort(key=lambda g: [sort_key(g.settings[a.key]) for a in axes])
    return axes, groups


def seed_key(run: Run) -> tuple:
    """Its seeds, as something to sort by."""
    return tuple((k, sort_key(v)) for k, v in sorted(run.config.items()) if is_seed(k))


def find_axis(axes: Sequence[Axis], name: str) -> Axis | None:
    """The axis of that key, short name, tied key, or end of a key."""
    for test in (lambda a: name in (a.key, a.name), lambda a: name in a.tied,
                 lambda a: any(k.endswith(f'.{name}') for k in (a.key, *a.tied))):
        found = [a for a in axes if test(a)]
        if len(found) == 1:
            return found[0]
    return None


def units(group: Group, seeds: Sequence[str], value) -> dict[tuple, float]:
    """What a mean is taken over, by seed: one number for each independent repetition.

    Where training seeds differ, evaluations of one training with several sampling seeds are averaged first: they
    share its weights, and counting them singly would make the interval too short. Of runs that are equal in every
    seed the first counts.

    Args:
        seeds: the seed keys that differ anywhere in the report.
        value: run -> number or None (not counted).
    """
    first: dict[tuple, float] = {}
    for run in group.runs:
        if (found := value(run)) is not None:
            first.setdefault(tuple(_code(_value(run, k)) for k in seeds), found)
    where = seeds.index('seed') if 'seed' in seeds else None
    if where is None or len({k[where] for k in first}) < 2:
        return first
    pooled: dict[tuple, list[float]] = {}
    for key, found in first.items():
        pooled.setdefault((key[where],), []).append(found)
    return {k: sum(v) / len(v) for k, v in pooled.items()}
