"""scheduler_config.json of a published pipeline, as our process, parameterisation, sampler and grid, and back.

What a config means is read by `gen_jax.sampling.from_diffusers`; this is the file around it.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gen_jax.interop.hub import read_json, resolve
from gen_jax.sampling.compat import Scheduler, from_diffusers

__all__ = ['load_scheduler', 'read_scheduler_config', 'save_scheduler']

FILE = 'scheduler_config.json'


def read_scheduler_config(path_or_id, subfolder: str = 'scheduler', **options) -> dict[str, Any]:
    """The config itself, to change its class or options before `from_diffusers` reads it.

    Args:
        path_or_id: the folder of a pipeline, or its hub id.
        subfolder: '' if the folder is the scheduler's own.
        options: revision, cache_dir, token, offline: see `gen_jax.interop.hub.resolve`.

    Raises:
        ValueError: no such folder or file.
    """
    return dict(read_json(resolve(path_or_id, subfolder, **options) / FILE))


def load_scheduler(path_or_id, subfolder: str = 'scheduler', compat: bool = False, **options) -> Scheduler:
    """The scheduler of a published pipeline, taken apart; `compat` as in `from_diffusers`, the rest as above.

    Raises:
        ValueError: no such folder or file; an unknown class, option or value, with the file's name.
    """
    config = read_scheduler_config(path_or_id, subfolder, **options)
    try:
        return from_diffusers(config, compat)
    except ValueError as e:
        raise ValueError(f'{FILE} of {path_or_id}: {e}') from None


def save_scheduler(config: Mapping[str, Any], folder) -> Path:
    """Writes a config, as `load_scheduler` and diffusers read it; a file appears complete or not at all.

    Raises:
        ValueError: a config that `from_diffusers` refuses.
    """
    from_diffusers(config)
    path = Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{FILE}.{os.getpid()}.tmp')
    try:
        temporary.write_text(json.dumps({'_diffusers_version': '0.42.1', **config}, indent=2, sort_keys=True) + '\n')
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
