"""From `sweep(add)` at the bottom of a config to a list of runs with stable names; nothing is started or written.

    def sweep(add):
        for seed in (0, 1, 2):
            run = add({'seed': seed})                                          # trains
            for steps in (5, 10):
                add({'evaluate.guided.settings.steps': steps}, of=run)         # evaluates what it trained
"""

import fnmatch
import hashlib
import inspect
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from gen_jax import config as config_lib
from gen_jax.config import ConfigError, blaming, choices, load_module
from gen_jax.sweeps.overrides import clash, override, plain

__all__ = ['Run', 'Plan', 'make_plan', 'identity', 'merge_arg', 'select', 'slug']

_EVALUATION_READS = ('evaluate.', 'system.', 'data.', 'train.precision')


PASSING = ('train.accept',)
"""Settings of a whole sweep that say nothing of its runs: they may come and go between calls."""


class Run(NamedTuple):
    """One run of a sweep: a training with its evaluation, or (`of`) an evaluation of a checkpoint that is there."""

    id: str
    """A slug of the overrides and eight hexadecimal digits of what makes the run; a folder name."""
    spec: str
    """NAME[:ARG] of its config."""
    overrides: dict[str, Any]
    """By dotted path, beyond what is given to the whole sweep."""
    of: str | None
    """The id of a run of this sweep, or the path of a run folder; None: it trains."""
    only: tuple[str, ...] | None
    """Names of config.evaluate to score; None: all."""
    config: ConfigDict
    """With every override."""

    @property
    def kind(self) -> str:
        """'train' | 'evaluate'."""
        return 'train' if self.of is None else 'evaluate'


class Plan(NamedTuple):
    """A sweep, ready to be run."""

    spec: str
    """NAME[:ARG] as given."""
    overrides: tuple[str, ...]
    """'--config.a=b' given to the whole sweep."""
    runs: dict[str, Run]
    """By id, in the order in which they were added."""

    def base(self, run: Run, workdir: Path) -> Path:
        """The folder of the checkpoint that a run evaluates: its own if it trains."""
        if run.of is None or run.of in self.runs:
            return workdir / 'runs' / (run.of or run.id)
        return Path(run.of)


def make_plan(spec: str, overrides: Sequence[str] = ()) -> Plan:
    """Runs the `sweep` function of a config and checks every run.

    Args:
        spec: NAME[:ARG]. ARG also shapes the runs (each run's own `arg` wins), and is the second argument of a
            `sweep(add, arg)`.
        overrides: '--config.a=b' strings for all runs.

    Raises:
        ConfigError: no such function, an unknown key (with the nearest names), a bad value, two equal runs; says the
            line of the config file.
    """
    name, _, arg = spec.partition(':')
    path, module = load_module(name)
    if not callable(getattr(module, 'sweep', None)):
        raise ConfigError(f'config {path} defines no sweep(add): a function that calls add({{"optim.lr": 1e-3}}) once '
                          'for each run')
    overrides = tuple(config_lib.join_values(overrides))
    runs: dict[str, Run] = {}
    add = _adder(name, arg, overrides, runs)
    with blaming(Path(module.__file__)):  # absolute, as in tracebacks, however it was named
        module.sweep(*(add, arg)[:len(inspect.signature(module.sweep).parameters)])
    if not runs:
        raise ConfigError(f'config {path}: its sweep(add) added no run')
    return Plan(spec, overrides, runs)


def select(plan: Plan, names: Sequence[str] = (), glob: str | None = None) -> list[str]:
    """Ids of the plan, in its order.

    Args:
        names: ids, their last eight digits, or numbers in the order of the plan; empty: all.
        glob: ids that fit, for instance 'lr=0.001*'.

    Raises:
        ConfigError: a name that is none, or a pattern that fits nothing; says what there is.
    """
    ids = list(plan.runs)
    short = {**{i: i for i in ids}, **{i[-8:]: i for i in ids}, **{str(n): i for n, i in enumerate(ids)}}
    for name in names:
        if name not in short:
            raise ConfigError(f'there is no run {name!r} in the sweep {plan.spec}: give a number from 0 to '
                              f'{len(ids) - 1}, or an id; {choices(name, ids)}')
    chosen = {short[name] for name in names} if names else set(ids)
    chosen &= set(fnmatch.filter(ids, glob)) if glob else chosen
    if not chosen:
        raise ConfigError(f'no run fits {glob!r}: {choices(glob, ids)}')
    return [i for i in ids if i in chosen]


def _adder(name: str, sweep_arg: str, sweep_overrides: tuple[str, ...], runs: dict[str, Run]) -> Callable[..., Run]:
    """The `add` that a sweep function calls; fills `runs`."""
    loaded: dict[str, ConfigDict] = {}
    whole = dict(part.removeprefix('--config.').partition('=')[::2] for part in sweep_overrides)

    def trained(spec):
        if spec not in loaded:
            loaded[spec] = config_lib.apply_overrides(config_lib.load_config(spec), sweep_overrides)
        return loaded[spec]

    def evaluated(folder):
        if folder not in loaded:
            saved = Path(folder) / 'config.json'
            if not saved.is_file() or not (Path(folder) / 'checkpoints').is_dir():
                raise ConfigError(f'of={folder!r}: expected a run that add() returned, or the path of a folder made by '
                                  'gen-jax train (with config.json and checkpoints)')
            parts = [p for p in sweep_overrides if p.removeprefix('--config.').startswith(_EVALUATION_READS)]
            config = config_lib.complete(config_lib.from_json(saved.read_bytes()))
            loaded[folder] = config_lib.apply_overrides(config, parts)
        return loaded[folder]

    def add(overrides: Mapping[str, Any] | None = None, *, arg: str = '', of: Run | str | None = None,
            only: str | Sequence[str] | None = None) -> Run:
        overrides = dict(overrides or {})
        if twice := clash(list(overrides), list(whole)):
            raise ConfigError(f'add({{{twice[0]!r}: ...}}) and --config.{twice[1]} for the whole sweep set the same: '
                              'drop one of them')
        if of is None:
            merged = merge_arg(sweep_arg, arg)
            spec = f'{name}:{merged}' if merged else name
            config = trained(spec)
        else:
            of, spec, config = _base(of, arg, name, sweep_arg, runs, evaluated)
            if idle := [k for k in overrides if not f'{k}.'.startswith(_EVALUATION_READS)]:
                raise ConfigError(f'{idle[0]!r} changes nothing in an evaluation of a trained run: it reads '
                                  'evaluate.*, system.*, data.* and train.precision')
        config = override(config, overrides)
        config.lock()
        only = None if only is None else (only,) if isinstance(only, str) else tuple(only)
        for entry in only or ():
            if entry not in config.evaluate:
                raise ConfigError(f'only={entry!r}: {choices(entry, list(config.evaluate))}')
        if of is not None and not (config.evaluate if only is None else only):
            raise ConfigError(f'add(..., of=...): the config of {of} evaluates nothing (config.evaluate is empty)')
        values = {k: plain(_at(config, k), k) for k in sorted(overrides)}
        own = [p for p in spec.partition(':')[2].split(',') if p and p not in sweep_arg.split(',')]
        words = slug(() if of else own, values) or ('evaluation' if of else 'run')
        run = Run(f'{words}-{identity(spec, values, whole, of, only)}', spec, values, of, only, config)
        if run.id in runs:
            number = list(runs).index(run.id) + 1
            raise ConfigError(f'add number {len(runs) + 1} repeats add number {number}: both are {run.id} with the '
                              f'overrides {values}; drop one')
        runs[run.id] = run
        return run

    return add


def _base(of, arg, name, sweep_arg, runs, evaluated):
    """(of, spec, config) of what an evaluation evaluates."""
    if arg:
        raise ConfigError(f'add(..., arg={arg!r}, of=...): an evaluation has the config of the run that it evaluates')
    key = of.id if isinstance(of, Run) else os.fspath(of)
    if key not in runs:
        folder = os.path.normpath(key)
        return folder, f'{name}:{sweep_arg}' if sweep_arg else name, evaluated(folder)
    if runs[key].of is not None:
        raise ConfigError(f'of={key}: this run is an evaluation itself; give the run that it evaluates')
    return key, runs[key].spec, runs[key].config


def merge_arg(given: str, own: str) -> str:
    """The config argument of one run: `own` parts win over those `given` to the whole sweep.

    Example:
        >>> merge_arg('debug,steps=5', 'vp'), merge_arg('vp,steps=5', 'steps=9')
        ('vp,debug,steps=5', 'vp,steps=9')
    """
    mine = [p for p in own.split(',') if p]
    keys = {p.partition('=')[0] for p in mine}
    rest = [p for p in given.split(',') if p and p.partition('=')[0] not in keys]
    bare_first = mine and '=' not in mine[0]  # a variant may only stand first
    return ','.join(mine + rest if bare_first else rest + mine)


def _at(config, key):
    for part in key.split('.'):
        config = config[part]
    return config


# ---------------------------------------------------------------- names


def identity(spec: str, overrides: Mapping[str, Any], whole: Mapping[str, str], of: str | None,
             only: Sequence[str] | None) -> str:
    """Eight hexadecimal digits of what makes a run: the same in whatever order its keys, and the runs, were written.

    Args:
        spec: NAME[:ARG]; of a path only the file's name counts.
        overrides: of this run.
        whole: of the whole sweep, as text.
    """
    name, _, arg = spec.partition(':')
    content = {'config': Path(name).stem, 'arg': sorted(p for p in arg.split(',') if p), 'overrides': overrides,
               'sweep': {k: v for k, v in whole.items() if k not in PASSING}, 'of': of}
    if only is not None:
        content['only'] = sorted(only)
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()[:8]


def slug(arg: Sequence[str], overrides: Mapping[str, Any]) -> str:
    """Up to 60 characters that a file name may have: 'lr=0.001_seed=0'."""
    pairs = [(key.split('.'), value) for key, value in sorted(overrides.items())]
    while any(isinstance(v, Mapping) for _, v in pairs):
        pairs = [p for path, v in pairs for p in (
            [([*path, k], x) for k, x in v.items()] if isinstance(v, Mapping) else [(path, v)])]
    pairs = [([p for p in path if p not in ('name', 'settings')] or path, v) for path, v in pairs]
    texts = [*arg]
    for path, value in pairs:
        same = {json.dumps(v) for p, v in pairs if p[-1] == path[-1]}
        label = path[-1] if len(same) == 1 else '.'.join(path[-2:])  # which of several
        if isinstance(value, str) and re.fullmatch(r'[A-Za-z_][\w.]*', value):
            value = value.rpartition('.')[2]  # diffusion.cosine: cosine
        value = '-'.join(map(str, value)) if isinstance(value, tuple) else value
        if (text := f'{label}={value}') not in texts:
            texts.append(text)
    words = (re.sub(r'[^A-Za-z0-9_.=+-]+', '-', t).strip('-.') for t in texts)
    return '_'.join(w for w in words if w)[:60].strip('-._=')
