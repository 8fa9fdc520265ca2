"""What a sweep folder W remembers: W/sweep.json, and for each run W/runs/ID/run.json and a lock.

Everything is written atomically, and a run's files only by the process that holds its lock, so whatever is killed at
whatever moment leaves a folder that the next start understands.
"""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gen_jax import config as config_lib
from gen_jax.config import ConfigError
from gen_jax.engine.files import write_text
from gen_jax.sweeps.plan import PASSING, Plan, Run

__all__ = ['claim', 'check_runs', 'folder', 'lock', 'holder', 'read', 'write', 'recorded',
           'status', 'strangers', 'tidy']


def folder(workdir, run_id: str) -> Path:
    """The folder of a run."""
    return Path(workdir) / 'runs' / run_id


# ---------------------------------------------------------------- the sweep


def claim(workdir, plan: Plan, write: bool = True) -> None:
    """Checks that W is this sweep's (or new), and makes it so.

    Raises:
        ConfigError: W is a file, a run, or the folder of another sweep; says what differs.
    """
    workdir = Path(workdir)
    path = workdir / 'sweep.json'
    lasting = [o for o in plan.overrides if o.partition('=')[0].removeprefix('--config.') not in PASSING]
    ours = {'config': plan.spec, 'overrides': lasting}
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f'--workdir {workdir} is a file: name a folder, or a path that does not exist yet')
    if not path.exists():
        if any((workdir / name).exists() for name in ('config.json', 'checkpoints', 'run.json')):
            raise ConfigError(f'{workdir} holds a run, not a sweep: use another --workdir')
        if write:
            write_text(path, json.dumps(ours, indent=1))
        return
    try:
        theirs = json.loads(path.read_text())
        differ = [f'config {theirs["config"]} there, {ours["config"]} now'] * (
            _name(theirs['config']) != _name(ours['config']))
        there, now = set(theirs['overrides']), set(ours['overrides'])
    except (ValueError, KeyError, TypeError) as e:
        raise ConfigError(f'{path} cannot be read ({type(e).__name__}: {e}): delete it if {workdir} is a folder of '
                          'this sweep') from None
    differ += [f'{part} there, not now' for part in sorted(there - now)]
    differ += [f'{part} now, not there' for part in sorted(now - there)]
    if differ:
        raise ConfigError(f'{workdir} holds another sweep: {"; ".join(differ)}. '
                          'Use another --workdir, or the old values')


def _name(spec: str) -> tuple:
    name, _, arg = spec.partition(':')
    return Path(name).stem, sorted(part for part in arg.split(',') if part)


def strangers(workdir, plan: Plan) -> list[str]:
    """Runs in W that are not of the plan."""
    runs = Path(workdir) / 'runs'
    return sorted(p.name for p in runs.iterdir() if p.is_dir() and p.name not in plan.runs) if runs.is_dir() else []


def check_runs(workdir, runs: Iterable[Run]) -> None:
    """Refuses folders whose run was made by another version of the config than today's (train.accept aside).

    Raises:
        ConfigError: names the run and the keys that differ and may not on resume.
    """
    for run in runs:
        changed = {k: v for k, v in _changes(workdir, run).items() if not config_lib.mutable_on_resume(k)}
        if changed and 'config' not in run.config.train.accept:
            key, (old, new) = next(iter(changed.items()))
            raise ConfigError(
                f'{folder(workdir, run.id)} was made with another config ({len(changed)} keys differ): {key} {old!r} '
                f'there, {new!r} now. Use another --workdir, the old values, or delete this folder to make it again')


def _changes(workdir, run: Run) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (saved, now) where the saved config of a run differs from the plan's."""
    path = folder(workdir, run.id) / 'config.json'
    text = path.read_text(errors='replace') if path.exists() else None
    if text is None or text == config_lib.to_json(run.config):
        return {}
    try:
        saved = config_lib.complete(config_lib.from_json(text))
    except (ConfigError, ValueError, TypeError, AttributeError) as e:
        raise ConfigError(f'{path} cannot be read ({type(e).__name__}: {e}); or delete the folder {path.parent} to '
                          'make the run again') from None
    return config_lib.differences(saved, run.config)


# ---------------------------------------------------------------- one run


def read(workdir, run_id: str) -> dict[str, Any] | None:
    """run.json, or None if there is none that can be read."""
    try:
        return dict(json.loads((folder(workdir, run_id) / 'run.json').read_text()))
    except (OSError, ValueError, TypeError):
        return None


def write(workdir, run: Run, **changes) -> dict[str, Any]:
    """Updates run.json (under the run's lock) and returns it.

    Args:
        changes: status 'pending' | 'running' | 'done' | 'failed', error, seconds (over all attempts), attempts.
    """
    record = {'id': run.id, 'config': run.spec, 'overrides': run.overrides, 'of': run.of, 'status': 'pending',
              'error': None, 'seconds': 0.0, 'attempts': 0}
    old = read(workdir, run.id) or {}
    record.update({k: old[k] for k in ('status', 'error', 'seconds', 'attempts') if k in old}, **changes)
    write_text(folder(workdir, run.id) / 'run.json', json.dumps(record, indent=1))
    return record


def recorded(workdir, run: Run) -> str:
    """'pending' | 'interrupted' | 'failed' | 'changed' | 'done', of a run that nobody is at.

    interrupted: it says running. changed: done, but the config now asks for another evaluation, sample grid or number
    of steps.
    """
    said = (read(workdir, run.id) or {}).get('status', 'pending')
    if said == 'running' or said == 'done' and not (folder(workdir, run.id) / 'evaluation.json').exists():
        return 'interrupted'
    if said == 'done':
        affect = ('evaluate.', 'sample.', 'train.steps')
        return 'changed' if any(k.startswith(affect) for k in _changes(workdir, run)) else 'done'
    return said


def status(workdir, run: Run) -> str:
    """As `recorded`, or 'running': a process holds its lock."""
    return 'running' if holder(workdir, run.id) else recorded(workdir, run)


# ---------------------------------------------------------------- locks


@contextlib.contextmanager
def lock(workdir, run_id: str, patience: float = 1.0) -> Iterator[bool]:
    """Whether this process alone holds the run, for the duration of the block. The kernel frees it when we die.

    Args:
        patience: seconds to try for; others may look at the lock for an instant.
    """
    path = folder(workdir, run_id) / '.lock'
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        end = time.monotonic() + patience
        while not (held := _try(file, fcntl.LOCK_EX)) and time.monotonic() < end:
            time.sleep(0.05)
        if held:
            os.ftruncate(file, 0)
            os.write(file, f'process {os.getpid()} on {socket.gethostname()}'.encode())
        yield held
    finally:
        os.close(file)


def holder(workdir, run_id: str) -> str | None:
    """Who holds the run ('process 12 on host'), or None."""
    try:
        file = os.open(folder(workdir, run_id) / '.lock', os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        return None if _try(file, fcntl.LOCK_SH) else os.read(file, 200).decode(errors='replace') or 'another process'
    finally:
        os.close(file)


def _try(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


def tidy(workdir, run_id: str) -> None:
    """Removes the temporary files of processes that were killed (under the run's lock)."""
    for path in folder(workdir, run_id).glob('.*.tmp'):
        path.unlink(missing_ok=True)
