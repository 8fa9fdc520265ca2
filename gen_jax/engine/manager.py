"""Orbax's CheckpointManager as gen_jax uses it: which steps are kept, and when a step's folder gets its name."""

import asyncio
import functools
import logging
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from gen_jax.engine import integrity
from gen_jax.engine.steps import TEMPORARY

__all__ = ['check_retention', 'open_manager', 'ranked']


def check_retention(keep_last: int, keep_every: int | None, best_mode: str, on_error: str = 'raise') -> None:
    """Raises ValueError for settings that keep nothing or mean nothing."""
    if keep_last < 1:
        raise ValueError(f'checkpoint.keep_last {keep_last}: at least 1, or nothing could be resumed')
    if keep_every is not None and keep_every < 1:
        raise ValueError(f'checkpoint.keep_every {keep_every}: at least 1, or None')
    if best_mode not in ('min', 'max'):
        raise ValueError(f'checkpoint.best_mode {best_mode!r}: choose from min, max')
    if on_error not in ('raise', 'continue'):
        raise ValueError(f'checkpoint.on_error {on_error!r}: choose from raise, continue')


def ranked(metrics: Mapping[str, float], name: str, mode: str) -> dict[str, float]:
    """What Orbax ranks a step by: absent or not finite is never the best."""
    value = metrics.get(name, np.nan)
    return {name: float(value) if np.isfinite(value) else _worst(mode)}


class _Manager(ocp.CheckpointManager):
    """Knows when a save has failed in this process, also where others still wait for it."""

    def __init__(self, path: Path, options: ocp.CheckpointManagerOptions, **kwargs):
        self._failed = threading.Event()
        if jax.process_count() > 1:
            options.async_options.barrier_sync_fn = self._meet
        super().__init__(path, options=options, **kwargs)

    def _meet(self, *, key: str, timeout_ms: int) -> None:
        """Orbax's barrier, but not for a thread on its way out of a failed save.

        Orbax would have it meet the others (in a `finally`), who are at another barrier: both for 20 minutes. The error
        comes out instead, the loop hears of it, and ends the others.
        """
        error = sys.exc_info()[1]
        if error is not None and threading.current_thread() is not threading.main_thread():
            self._failed.set()
            raise error
        ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)

    def is_saving_in_progress(self) -> bool:
        return not self._failed.is_set() and super().is_saving_in_progress()


def open_manager(path: Path, keep_last: int, keep_every: int | None, best_metric: str, best_mode: str,
                 read_only: bool) -> ocp.CheckpointManager:
    """The manager of a checkpoints folder."""
    _quieten()

    def rank(metrics):
        return metrics.get(best_metric, _worst(best_mode))

    policies = [ocp.checkpoint_managers.LatestN(keep_last)]
    if keep_every:
        policies.append(ocp.checkpoint_managers.EveryNSteps(keep_every))
    if best_metric:
        policies.append(ocp.checkpoint_managers.BestN(get_metric_fn=rank, reverse=best_mode == 'min', n=1,
                                                      keep_checkpoints_without_metrics=False))

    def manager(**kwargs):
        return _Manager(
            path, options=ocp.CheckpointManagerOptions(
                preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(policies),
                best_fn=rank if best_metric else None,  # so that metrics are written, for the next start to rank
                read_only=read_only, create=not read_only, enable_async_checkpointing=True,
                temporary_path_class=_StepFolder,
                todelete_subdir=f'replaced{TEMPORARY}',  # renamed at once, so that a kill leaves no half-deleted step
                # Folders made in the background would leave the other writers waiting for one that cannot be made.
                async_options=ocp.AsyncOptions(create_directories_asynchronously=False), **kwargs),
            item_handlers={'state': ocp.StandardCheckpointHandler(), 'meta': ocp.JsonCheckpointHandler()})

    try:
        return manager()
    except Exception:  # a step whose metrics cannot be read: it will not verify, and is named then
        return manager(lightweight_initialize=True)


class _StepFolder(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """A step's temporary folder. Orbax calls `finalize` in process 0 when every process has written its part."""

    async def finalize(self):
        """As Orbax does, with the manifest between the last file and the name by which the step will be known."""
        final, folder, store = Path(self.get_final()), Path(self.get()), self._checkpoint_metadata_store
        if not final.name.isdigit():  # an item within the step
            await super().finalize()
            return
        if store is not None:
            await asyncio.to_thread(store.wait_until_finished)
            await asyncio.to_thread(store.update, file_path=self.get() / '_CHECKPOINT_METADATA',
                                    commit_timestamp_nsecs=time.time_ns())
            await asyncio.to_thread(store.wait_until_finished)
        (folder / integrity.COMMIT_MARK).write_text(f'step {final.name}: all files are listed in {integrity.MANIFEST}')
        await asyncio.to_thread(integrity.write_manifest, folder, final.name)
        folder.rename(final)
        integrity.flush_folder(final.parent)


@functools.cache
def _quieten() -> None:
    """Leaves the report of a failed save to us: Orbax logs pages for it, and tensorstore's threads print theirs."""
    logging.getLogger('absl').addFilter(lambda record: 'orbax' not in record.pathname or record.levelno < logging.ERROR)
    logging.getLogger('asyncio').addFilter(lambda record: TEMPORARY not in record.getMessage())
    before = sys.unraisablehook

    def hook(what):
        if str(what.exc_value) != 'Event loop is closed':
            before(what)

    sys.unraisablehook = hook


def _worst(mode: str) -> float:
    return float(np.finfo(np.float64).max) * (1 if mode == 'min' else -1)
