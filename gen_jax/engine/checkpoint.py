"""The one checkpoint path: Orbax's CheckpointManager (v0, Composite items) behind a small class.

A step holds `state` (the whole TrainState, every EMA included) and `meta` (JSON: data position and fingerprint,
config, versions, leaf dtypes). Saves are asynchronous and atomic: a killed one leaves a temporary folder, never a step.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from gen_jax import trees
from gen_jax.types import PyTree, TrainState

__all__ = ['Checkpoints', 'CheckpointError', 'read_leaves', 'read_params']


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, unreadable or of another model; the message says which and what to do."""


def _as_tree(state: TrainState) -> dict:
    """Orbax drops empty containers: leave them out, restore them from the target."""
    return {path: leaf for path, leaf in trees.flat(state._asdict()).items()}


def check_retention(keep_last: int, keep_every: int | None, best_mode: str) -> None:
    """Raises ValueError for settings that keep nothing or mean nothing."""
    if keep_last < 1:
        raise ValueError(f'checkpoint.keep_last {keep_last}: at least 1, or nothing could be resumed')
    if keep_every is not None and keep_every < 1:
        raise ValueError(f'checkpoint.keep_every {keep_every}: at least 1, or None')
    if best_mode not in ('min', 'max'):
        raise ValueError(f'checkpoint.best_mode {best_mode!r}: choose from min, max')


class Checkpoints:
    """Saves and restores TrainStates under WORKDIR/checkpoints.

    Args:
        keep_last: newest steps to keep. keep_every: multiples of this are kept for good. best_metric: the step with the
            best value of this logged metric is kept too ('min' or 'max' by best_mode).
    """

    def __init__(self, workdir, *, keep_last: int = 2, keep_every: int | None = None, best_metric: str = '',
                 best_mode: str = 'min', read_only: bool = False):
        check_retention(keep_last, keep_every, best_mode)
        self.path = Path(workdir).absolute() / 'checkpoints'
        self._best, self._read_only = (best_metric, best_mode), read_only
        policies = [ocp.checkpoint_managers.LatestN(keep_last)]
        if keep_every:
            policies.append(ocp.checkpoint_managers.EveryNSteps(keep_every))
        if best_metric:
            policies.append(ocp.checkpoint_managers.BestN(
                get_metric_fn=lambda m: m[best_metric], reverse=best_mode == 'min', n=1,
                keep_checkpoints_without_metrics=False))
        if read_only and not self.path.is_dir():
            raise CheckpointError(f'there is no checkpoint under {Path(workdir)}: train first, or check --workdir')
        self._manager = ocp.CheckpointManager(
            self.path, options=ocp.CheckpointManagerOptions(
                preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(policies), read_only=read_only,
                create=not read_only, enable_async_checkpointing=True,
                cleanup_tmp_directories=not read_only),
            item_handlers={'state': ocp.StandardCheckpointHandler(), 'meta': ocp.JsonCheckpointHandler()})

    def steps(self) -> list[int]:
        """All complete steps, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: TrainState, meta: Mapping[str, Any], metrics: Mapping[str, float] | None = None,
             wait: bool = False) -> None:
        """Starts an asynchronous save; raises now if the previous one failed."""
        tree = _as_tree(state)
        dtypes = {k: str(v.dtype) for k, v in tree.items()}
        meta = {**meta, 'step': step, 'dtypes': dtypes}
        name, mode = self._best
        kwargs = {}
        if name:  # absent or not finite: never the best
            value = float((metrics or {}).get(name, np.nan))
            worst = np.finfo(np.float64).max * (1 if mode == 'min' else -1)
            kwargs['metrics'] = {name: value if np.isfinite(value) else worst}
        if step not in self._manager.all_steps():
            self._manager.save(step, args=ocp.args.Composite(
                state=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave(json.loads(json.dumps(meta)))), **kwargs)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Blocks until the running save is committed; raises if it failed."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and releases the threads."""
        self._manager.wait_until_finished()
        self._manager.close()

    def meta(self, step: int | None = None) -> dict:
        """The JSON beside the newest readable (or the given) step."""
        wanted = [self._step(step)] if step is not None else self.steps()[::-1]
        for candidate in wanted:
            try:
                return self._meta(candidate)
            except Exception as e:  # unreadable: an older step's will do
                error = e
        raise CheckpointError(f'the checkpoints {wanted} under {self.path} cannot be read: {error}' if wanted else
                              f'there is no checkpoint under {self.path.parent}: train first, or check --workdir')

    def _meta(self, step: int) -> dict:
        return dict(self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))['meta'])

    def restore(self, target: TrainState, shardings: PyTree = None, step: int | None = None,
                fall_back: bool = True) -> tuple[TrainState, dict]:
        """The newest readable step (or the given one) into the structure, shapes and dtypes of `target`.

        Args:
            target: a TrainState of arrays or ShapeDtypeStructs.
            shardings: a matching tree, or None for the default device.
            fall_back: try older steps, loudly, when the newest cannot be read.

        Raises:
            CheckpointError: no step, none readable, or a step of another model (the leaves are named).
        """
        wanted = trees.flat(target._asdict())
        places = trees.flat(shardings._asdict()) if shardings is not None else {}
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])  # Orbax would want the devices of the save
        abstract = {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=places.get(k) or here)
                    for k, v in wanted.items()}
        candidates = [self._step(step)] if step is not None else self.steps()[::-1]
        if not candidates:
            raise CheckpointError(f'there is no checkpoint under {self.path.parent}: train first, or check --workdir')
        for i, candidate in enumerate(candidates):
            try:
                meta = self._meta(candidate)
                self._check(candidate, abstract, meta)
                restored = self._manager.restore(candidate, args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract)))['state']
                break
            except CheckpointError:
                raise
            except Exception as e:  # Orbax and tensorstore raise many kinds for unreadable files
                if not fall_back or i + 1 == len(candidates):
                    raise CheckpointError(f'checkpoint {self.path / str(candidate)} cannot be read: {e}') from e
                print(f'WARNING: checkpoint step {candidate} cannot be read ({type(e).__name__}: '
                      f'{str(e).splitlines()[0][:200] if str(e) else ""}); falling back to step {candidates[i + 1]}')
        if candidate != candidates[0]:
            self._set_aside(candidates[:i])
        treedef = jax.tree.structure(target._asdict())
        return TrainState(**jax.tree.unflatten(treedef, [restored[k] for k in wanted])), meta

    def _set_aside(self, steps):
        """Moves unreadable steps out of the way (never deletes them), so that they can be saved again."""
        if self._read_only:
            return
        aside = self.path.parent / 'checkpoints-unreadable'
        aside.mkdir(exist_ok=True)
        for step in steps:
            target = next(t for n in range(10_000) if not (t := aside / f'{step}.{n}').exists())
            (self.path / str(step)).rename(target)
            print(f'WARNING: moved the unreadable step to {target}')
        self._manager.reload()

    def _step(self, step):
        steps = self.steps()
        if not steps:
            raise CheckpointError(f'there is no checkpoint under {self.path.parent}: train first, or check --workdir')
        if step is not None and step not in steps:
            raise CheckpointError(f'there is no checkpoint of step {step}: the steps are {steps}')
        return steps[-1] if step is None else step

    def _check(self, step, abstract, meta):
        """Names what differs before Orbax would (it casts dtypes silently)."""
        saved_dtypes = meta.get('dtypes', {})
        missing, unexpected = sorted(set(abstract) - set(saved_dtypes)), sorted(set(saved_dtypes) - set(abstract))
        shapes = self._shapes(step)
        wrong = [f'{k}: shape {tuple(shapes[k])} in the checkpoint, {v.shape} in the model' for k, v in abstract.items()
                 if k in shapes and tuple(shapes[k]) != v.shape]
        wrong += [f'{k}: dtype {saved_dtypes[k]} in the checkpoint, {v.dtype} in the model' for k, v in abstract.items()
                  if k in saved_dtypes and saved_dtypes[k] != str(v.dtype)]
        if missing or unexpected or wrong:
            lines = [f'missing {k}' for k in missing] + [f'unexpected {k}' for k in unexpected] + wrong
            raise CheckpointError(
                f'checkpoint {self.path / str(step)} is of another model: {len(missing)} leaves missing, '
                f'{len(unexpected)} unexpected, {len(wrong)} of another shape or dtype:\n  ' + '\n  '.join(lines[:12])
                + ('\n  ...' if len(lines) > 12 else '') + '\nuse the config that made it, or another --workdir')

    def _shapes(self, step):
        metadata = self._manager.item_metadata(step)['state']
        tree = getattr(metadata, 'tree', metadata)
        return {k: v.shape for k, v in dict(tree).items()}


def read_leaves(path) -> dict[str, np.ndarray]:
    """Every leaf of the newest step as flat host arrays: 'params/...', 'ema/NAME/params/...', 'opt/...', 'step' ...

    Args:
        path: a workdir, or its checkpoints folder, or one step's folder.

    Raises:
        CheckpointError: nothing there.
    """
    path, step = Path(path), None
    if path.name.isdigit():
        path, step = path.parent, int(path.name)
    workdir = path.parent if path.name == 'checkpoints' else path
    store = Checkpoints(workdir, read_only=True)
    step = store._step(step)
    keys, shapes = store.meta(step)['dtypes'], store._shapes(step)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = {k: jax.ShapeDtypeStruct(tuple(shapes[k]), jnp.dtype(d), sharding=here) for k, d in keys.items()}
    restored = store._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract)))['state']
    store.close()
    return {k: np.asarray(v) for k, v in restored.items()}


def read_batch_stats(path, ema: str = '') -> dict[str, np.ndarray]:
    """Flat batch statistics of the newest step (of an EMA, or the raw ones); empty if the model has none."""
    prefix = f'ema/{ema}/extra/batch_stats/' if ema else 'extra/batch_stats/'
    return {k.removeprefix(prefix): v for k, v in read_leaves(path).items() if k.startswith(prefix)}


def read_params(path, ema: str = '') -> dict[str, np.ndarray]:
    """Flat parameters ('unet/conv_in/kernel' -> array) of the newest step, for init_from.

    Args:
        path: as for `read_leaves`.
        ema: an EMA's name; empty: the raw parameters.

    Raises:
        CheckpointError: nothing there, or no such EMA.
    """
    leaves, prefix = read_leaves(path), f'ema/{ema}/params/' if ema else 'params/'
    if not any(k.startswith(prefix) for k in leaves):
        names = sorted({k.split('/')[1] for k in leaves if k.startswith('ema/')})
        raise CheckpointError(f'{path} holds no EMA {ema!r}: choose from {names}, or leave train.init_ema empty')
    return {k.removeprefix(prefix): v for k, v in leaves.items() if k.startswith(prefix)}
