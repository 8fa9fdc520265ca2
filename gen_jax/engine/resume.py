"""What a resumed run must have in common with the one that it continues: config, data pipeline and code.

Each has a fingerprint in the checkpoint. A difference is refused by name, unless train.accept names its kind; what was
accepted is a line in the log.
"""

import functools
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from gen_jax import config as config_lib
from gen_jax.engine.checkpoint import Checkpoints

__all__ = ['CODE', 'WorkdirError', 'check_code', 'check_data', 'check_workdir', 'config_changes', 'versions']

KINDS = ('config', 'data', 'code')
CODE = ('python', 'gen_jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')
"""The versions that a resumed run shares with its checkpoint (of Python the minor one)."""
SETTINGS = ('jax_default_prng_impl', 'jax_threefry_partitionable', 'jax_random_seed_offset', 'jax_enable_x64',
            'jax_default_matmul_precision')
"""What the environment may tell JAX (JAX_ENABLE_X64 ...) that makes other noise or rounds otherwise; shared, too."""


class WorkdirError(RuntimeError):
    """A workdir of another config, data pipeline or code."""


def check_accept(accept: Sequence[str]) -> None:
    """Raises ValueError for what train.accept cannot name."""
    unknown = [kind for kind in accept if kind not in KINDS]
    if unknown:
        raise ValueError(f'train.accept {unknown[0]!r}: choose from {", ".join(KINDS)}, for instance '
                         "--config.train.accept=code or --config.train.accept=\"('data','code')\"")


def _lines(changed: Mapping[str, tuple[Any, Any]]) -> list[str]:
    return [f'{k}: {old!r} there, {new!r} now' for k, (old, new) in changed.items()]


def config_changes(saved: Mapping, config) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (saved, now) of the settings that differ and may not change on resume."""
    saved = config_lib.complete(config_lib.from_json(config_lib.to_json(saved)))
    return {k: v for k, v in config_lib.differences(saved, config).items()
            if not config_lib.mutable_on_resume(k) and not _moved(k, *v)}


def _moved(key: str, old: Any, new: Any) -> bool:
    """Whether only the place of the data differs: what lies there has a fingerprint, which knows no paths."""
    return key == 'data.options.data_dir' or key == 'data.source' and all(
        str(source).startswith('folder:') for source in (old, new))


def check_workdir(workdir, config) -> None:
    """Refuses a workdir that holds a run of another config, unless train.accept names 'config'.

    Raises:
        WorkdirError: naming the keys that differ and may not.
        ValueError: train.accept names something else than 'config', 'data' and 'code'.
    """
    check_accept(config.train.accept)
    path = Path(workdir) / 'config.json'
    if Path(workdir).exists() and not Path(workdir).is_dir():
        raise WorkdirError(f'--workdir {workdir} is a file: name a folder, or a path that does not exist yet')
    if path.exists():
        saved = config_lib.from_json(path.read_bytes())
    elif (Path(workdir) / 'checkpoints').is_dir():
        store = Checkpoints(workdir, read_only=True)
        saved = store.meta()['config'] if store.steps() else config
        store.close()
    else:
        return
    changed = config_changes(saved, config)
    if changed and 'config' not in config.train.accept:
        lines = [f'  {line}' for line in _lines(changed)[:10]]
        raise WorkdirError(f'{workdir} holds a run of another config ({len(changed)} keys differ that may not change '
                           'on resume):\n' + '\n'.join(lines) + '\nuse another --workdir, or the old values, or '
                           'accept the difference with --config.train.accept=config')


def check_data(check: Callable[[Mapping, Mapping], None], saved: Mapping, now: Mapping,
               accept: Sequence[str]) -> list[str]:
    """Compares the fingerprints of two data pipelines; returns what differs and was accepted.

    Args:
        check: (saved, now) -> None; raises ValueError.

    Raises:
        WorkdirError: they differ, and `accept` does not name 'data'.
    """
    try:
        check(saved, now)
        return []
    except ValueError as e:
        if 'data' not in accept:
            raise WorkdirError(f'{e}\nOr accept the difference with --config.train.accept=data') from e
        return [f'data: {line.strip()}' for line in str(e).splitlines() if line.startswith('  ')] or [f'data: {e}']


def check_code(saved: Mapping[str, str], now: Mapping[str, str], accept: Sequence[str]) -> tuple[list[str], list[str]]:
    """Compares two `versions`. Returns (what differs and was accepted, what differs and only deserves a line).

    Raises:
        WorkdirError: versions in `CODE`, or `SETTINGS`, differ, and `accept` does not name 'code'.
    """
    def of(versions, key):
        return '.'.join(versions[key].split('.')[:2]) if key == 'python' else versions[key]

    changed = {k: (of(saved, k), of(now, k)) for k in CODE + SETTINGS
               if k in saved and k in now and of(saved, k) != of(now, k)}
    if changed and 'code' not in accept:
        raise WorkdirError('the code changed since the checkpoint was written:\n'
                           + '\n'.join(f'  {line}' for line in _lines(changed))
                           + '\nThe run would not be the one that it began as. Install the old versions (jax_...: set '
                           'JAX_... in the environment as it was), start a new workdir with train.init_from, or accept '
                           'the difference with --config.train.accept=code')
    revisions = [f'{k}: {saved[k]} there, {now[k]} now' for k in ('git', 'backend', 'devices')
                 if k in saved and k in now and saved[k] != now[k] and 'unknown' not in (saved[k], now[k])]
    return [f'code: {line}' for line in _lines(changed)], revisions


@functools.lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Versions, platform and git revision, for the record."""
    from importlib import metadata
    out = {'python': platform.python_version(), 'platform': platform.platform(), 'backend': jax.default_backend(),
           'devices': ', '.join(sorted({d.device_kind for d in jax.devices()})) + f' x{jax.device_count()}',
           **{name: str(getattr(jax.config, name, None)) for name in SETTINGS}}
    for name in CODE[1:]:
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            out[name] = 'not installed'
    try:
        out['git'] = subprocess.run(['git', 'describe', '--always', '--dirty'], capture_output=True, text=True,
                                    cwd=Path(__file__).parent, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        out['git'] = 'unknown'
    return out
