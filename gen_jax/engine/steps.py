"""The step folders of a run, read without Orbax: what is there, and which may go."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gen_jax.engine import integrity
from gen_jax.engine.files import holding
from gen_jax.engine.integrity import CheckpointError, IntegrityError

__all__ = ['TEMPORARY', 'Step', 'read_meta', 'find_steps', 'describe', 'choose', 'prune']

TEMPORARY = '.orbax-checkpoint-tmp'
"""In the names of folders that are being written or deleted; the next start of the run removes what is left of them."""


class Step(NamedTuple):
    """What `gen-jax checkpoint ls` shows of a step."""

    step: int
    bytes: int
    saved: float | None
    """Seconds since 1970; None where it is not known."""
    metrics: dict[str, float]
    state: str
    """'manifest' (names and sizes agree; nothing is hashed), 'no manifest' (an older gen_jax), or what is wrong."""


def read_meta(folder) -> dict:
    """The JSON that was saved with the state: data position, config, dtypes, fingerprints ...

    Args:
        folder: a step's folder.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    meta = json.loads((Path(folder) / 'meta' / 'metadata').read_text())
    if not isinstance(meta, dict) or not isinstance(meta.get('metrics', {}), dict):
        raise ValueError('it is not what gen_jax saves beside a state')
    return meta


def find_steps(path) -> list[Path]:
    """The step folders of a workdir or a checkpoints folder, oldest first; or the one step folder that `path` is.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(path)
    path = path if path.name not in ('', '..') else path.resolve()  # '.' has a name, too
    if _is_step(path) and not (path / 'checkpoints').is_dir():
        return [path]
    folder = path if path.name == 'checkpoints' and not (path / 'checkpoints').is_dir() else path / 'checkpoints'
    steps = [p for p in folder.iterdir() if _is_step(p)] if folder.is_dir() else []
    if not steps:
        what = ('there is no such folder' if not path.exists() else 'it is a file' if path.is_file() else
                f'{folder} holds no step' if folder.is_dir() else 'it has no folder "checkpoints"')
        raise CheckpointError(f'{path} holds no checkpoint: {what}; name a run folder, its checkpoints folder, or a '
                              'step in that')
    return sorted(steps, key=lambda p: int(p.name))


def _is_step(path: Path) -> bool:
    return path.name.isdecimal() and path.name.isascii() and path.is_dir()


def describe(folder) -> Step:
    """A step at a glance; no data are read."""
    folder = Path(folder)
    try:
        state = 'manifest' if integrity.verify(folder, hashes=False) else 'no manifest'
    except IntegrityError as e:
        state = f'BAD: {e}'
    try:
        meta = read_meta(folder)
    except (OSError, ValueError):
        meta = {}
    metrics = {k: v for k, v in meta.get('metrics', {}).items() if isinstance(v, (int, float))}
    saved = meta.get('saved')
    saved = saved if isinstance(saved, (int, float)) and 0 <= saved < 2**37 else None  # what a calendar can show
    return Step(int(folder.name), _bytes(folder), saved, metrics, state)


def choose(steps: Sequence[int], keep_last: int, keep_every: int | None = None) -> list[int]:
    """The steps that retention would delete: all but the `keep_last` newest and the multiples of `keep_every`.

    Raises:
        ValueError: settings that keep nothing.
    """
    if keep_last < 1:
        raise ValueError(f'--keep-last {keep_last}: at least 1, or nothing could be resumed')
    if keep_every is not None and keep_every < 1:
        raise ValueError(f'--keep-every {keep_every}: at least 1')
    newest = sorted(steps)[-keep_last:]
    return [s for s in sorted(steps) if s not in newest and not (keep_every and s % keep_every == 0)]


def prune(path, keep_last: int, keep_every: int | None = None, dry_run: bool = False) -> tuple[list, Path | None]:
    """Deletes old steps of a run that is not training; the newest step that verifies stays, whatever the numbers say.

    A folder is renamed to a temporary one first, so that no kill leaves half a step.

    Args:
        keep_last, keep_every: as `choose`.

    Returns:
        ((folder, bytes) of each step that was, or would be, deleted; the newest verified step, None if there is none).

    Raises:
        CheckpointError: no checkpoint there, or not a run's folder, or no step that verifies (then nothing is deleted).
        BlockingIOError: the run is training.
    """
    folders = find_steps(path)
    if Path(path).resolve() == folders[0].resolve():
        raise CheckpointError(f'{path} is one step: name the run folder whose old steps are to go')
    going = choose([int(p.name) for p in folders], keep_last, keep_every)
    newest, reasons = None, []
    for folder in reversed(folders):
        try:
            if integrity.verify(folder):
                newest = folder
                break
            reasons.append(f'{folder}: no manifest, it was written by an older gen_jax')
        except IntegrityError as e:
            reasons.append(str(e))
    if newest is None and going:
        raise CheckpointError('no step verifies, so nothing was deleted:\n  ' + '\n  '.join(reasons))
    removed = [(p, _bytes(p)) for p in folders if int(p.name) in going and p != newest]
    if not dry_run:
        with holding(folders[0].parents[1], seconds=0):
            for folder, _ in removed:
                if folder.is_symlink():  # a step that was moved to another disk stays there
                    folder.unlink()
                    continue
                leaving = folder.with_name(folder.name + TEMPORARY)
                shutil.rmtree(leaving, ignore_errors=True)
                folder.rename(leaving)
                shutil.rmtree(leaving)
    return removed, newest


def _bytes(folder: Path) -> int:
    return sum(p.lstat().st_size for p in folder.rglob('*') if not p.is_dir())
