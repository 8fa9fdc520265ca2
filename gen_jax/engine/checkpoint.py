"""The one checkpoint path: Orbax's CheckpointManager (v0, Composite items) behind a small class.

A step holds `state` (the TrainState, every EMA included; frozen weights are beside the steps, see
`gen_jax.engine.frozen`), `meta` (JSON: data position and fingerprint, config, versions, leaf dtypes and fingerprints,
digests of the frozen weights) and a manifest of its files. Saves are asynchronous and atomic: a step's folder
gets its name when all of it, the manifest too, is on the disk; a killed save leaves a temporary folder, never a step.
"""

import contextlib
import functools
import json
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from gen_jax import trees
from gen_jax.engine import integrity
from gen_jax.engine.agree import from_process_0, in_any_process
from gen_jax.engine.fingerprint import differing, fingerprints
from gen_jax.engine.frozen import read_frozen, save_frozen
from gen_jax.engine.integrity import CheckpointError, IntegrityError
from gen_jax.engine.manager import check_retention, open_manager, ranked
from gen_jax.engine.steps import TEMPORARY, read_meta
from gen_jax.types import PyTree, TrainState

__all__ = ['Checkpoints', 'CheckpointError', 'IntegrityError', 'check_retention', 'read_leaves', 'read_params',
           'read_batch_stats']


def _as_tree(state: TrainState) -> dict:
    """Orbax drops empty containers: leave them out, restore them from the target."""
    return trees.flat(state._replace(frozen={})._asdict())


class Checkpoints:
    """Saves and restores TrainStates under WORKDIR/checkpoints. In several processes all must make the same calls.

    Args:
        keep_last: newest steps to keep. keep_every: multiples of this are kept for good. best_metric: the step with the
            best value of this logged metric is kept too ('min' or 'max' by best_mode).
        verify: use no step whose files or leaves are not what was saved. on_error: what a failed save does, 'raise' or
            'continue'; in several processes it always raises, for they cannot agree to go on.
    """

    def __init__(self, workdir, *, keep_last: int = 2, keep_every: int | None = None, best_metric: str = '',
                 best_mode: str = 'min', verify: bool = True, on_error: str = 'raise', read_only: bool = False):
        check_retention(keep_last, keep_every, best_mode, on_error)
        self.path = Path(workdir).absolute() / 'checkpoints'
        if read_only and not self.path.is_dir():
            raise CheckpointError(f'there is no checkpoint under {Path(workdir)}: train first, or check --workdir')
        self._best, self._read_only, self._verifies = (best_metric, best_mode), read_only, verify
        self._on_error = on_error if jax.process_count() == 1 else 'raise'
        self._saving: int | None = None  # the step whose save is running
        self._unsaved = ''  # why the newest save failed, until another one succeeds
        self._verified: set[int] = set()  # by `meta`, for the restore that follows
        self._frozen: dict[str, str] | None = None  # digests, once written: no update changes what they stand for
        self._open = functools.partial(open_manager, self.path, keep_last, keep_every, best_metric, best_mode,
                                       read_only)
        self._clean()
        self._manager = self._open()
        strays = [] if self.steps() or not self.path.is_dir() else sorted(
            p.name for p in self.path.iterdir() if p.is_dir() and TEMPORARY not in p.name)
        if strays:
            raise CheckpointError(f'{self.path} holds no step, but {", ".join(strays[:5])}: steps are folders named by '
                                  'their number; give them their names back, or use another --workdir')

    def steps(self) -> list[int]:
        """All complete steps, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: TrainState, meta: Mapping[str, Any], metrics: Mapping[str, float] | None = None,
             wait: bool = False) -> None:
        """Starts an asynchronous save, when the one before has ended.

        Raises:
            CheckpointError: the save before failed, or this one at once (with on_error='raise').
        """
        self.wait()
        if step in self._manager.all_steps():
            return
        self._clean()
        tree, metrics = _as_tree(state), {k: float(v) for k, v in (metrics or {}).items()}
        meta = {**meta, 'step': step, 'dtypes': {k: str(v.dtype) for k, v in tree.items()}, 'metrics': metrics,
                'fingerprints': fingerprints(tree), 'manifest': integrity.MANIFEST, 'saved': time.time()}
        kwargs = {'metrics': ranked(metrics, *self._best)} if self._best[0] else {}
        try:
            if self._frozen is None:
                self._frozen = save_frozen(self.path.parent / 'frozen', state.frozen)
            meta['frozen'] = self._frozen
            self._manager.save(step, args=ocp.args.Composite(
                state=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave(json.loads(json.dumps(meta)))), **kwargs)
            self._saving = step
        except Exception as e:
            self._failed(step, e)
        if wait:
            self.wait()

    def check(self) -> None:
        """Reports (or raises) a save that has failed; does not wait, and costs a lock: the loop asks at every step."""
        if self._saving is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self, final: bool = False) -> None:
        """Blocks until the running save is committed.

        Args:
            final: no later save will make up for one that failed, so that on_error='continue' raises too.

        Raises:
            CheckpointError: it failed (with on_error='raise').
        """
        step, self._saving = self._saving, None
        try:
            if step is not None:
                self._manager.wait_until_finished()
                self._unsaved = ''
                self._clean()
        except Exception as e:  # Orbax, tensorstore and the file system raise many kinds
            self._failed(step, e)
        if final and self._unsaved:
            raise CheckpointError(f'{self._unsaved}, then run the same command again')

    def _failed(self, step: int, error: Exception):
        """Cleans up after a failed save; says so, or raises."""
        earlier = 'Earlier ones are untouched'
        self._unsaved = f'the checkpoint of step {step} could not be saved in {self.path}: {_cause(error)}'
        if jax.process_count() == 1:  # otherwise another process may still be writing; the next start cleans up
            with contextlib.suppress(Exception):
                self._manager.close()
            self._clean()
            self._manager = self._open()  # Orbax has forgotten the steps that the new one was to replace
            earlier = f'The newest good one is step {self.steps()[-1]}' if self.steps() else 'There is no earlier one'
        self._unsaved += f'. {earlier}. Free some space (gen-jax checkpoint prune) or mend the folder'
        if self._on_error == 'raise':
            hint = '; checkpoint.on_error=continue trains on without a checkpoint' * (jax.process_count() == 1)
            raise CheckpointError(f'{self._unsaved}, then run the same command again{hint}') from error
        _say(f'WARNING: {self._unsaved}; training goes on, and the next save tries again')

    def _clean(self):
        """Removes replaced steps, and what killed and failed saves left. No save may be running."""
        quiet, patience = 0, 5 if self._unsaved else 0  # writers of a failed save may still be adding files
        for _ in range(0 if self._read_only or jax.process_index() else 100):
            leftovers = list(self.path.glob(f'*{TEMPORARY}*'))
            for leftover in leftovers:
                shutil.rmtree(leftover, ignore_errors=True)
            quiet = 0 if leftovers else quiet + 1
            if quiet >= patience:
                break
            time.sleep(0.05)

    def close(self) -> None:
        """Waits and releases the threads; a failed save is raised unless another error is on its way."""
        ending = sys.exc_info()[1]
        try:
            self.wait()
        except CheckpointError as e:
            if ending is None:
                raise
            _say(f'WARNING: {e}')
        if self._unsaved and jax.process_count() > 1:
            return  # it would wait for processes that may be gone
        self._clean()
        self._manager.close()

    def meta(self, step: int | None = None) -> dict:
        """The JSON beside the newest good (or the given) step.

        Raises:
            CheckpointError: no step, or none that is good.
        """
        def read(candidate):
            self._verify(candidate)
            meta = self._meta(candidate)
            self._verified.add(candidate)
            return meta

        return self._first_good(read, step)[0]

    def _meta(self, step: int) -> dict:
        try:
            return read_meta(self.path / str(step))
        except (OSError, ValueError) as e:
            raise IntegrityError(f'{self.path / str(step)}/meta: {e}') from e

    def _first_good(self, read, step: int | None = None, fall_back: bool = True):
        """(`read` of the newest good step, or of the given one; what was wrong with newer ones, by step)."""
        candidates, errors = [self._step(step)] if step is not None else self.steps()[::-1], {}
        for i, candidate in enumerate(candidates):
            try:
                return read(candidate), errors
            except IntegrityError as e:
                errors[candidate] = e
                if not fall_back:
                    break
                if i + 1 < len(candidates):
                    _say(f'WARNING: checkpoint step {candidate} cannot be read ({e}); falling back to step '
                         f'{candidates[i + 1]}')
        raise self._none_left(errors)

    def _verify(self, step: int) -> bool:
        """Whether a step has a manifest (process 0 hashes); IntegrityError if the files do not agree with it."""
        verdict = ''
        if self._verifies and jax.process_index() == 0:
            try:
                verdict = 'good' if integrity.verify(self.path / str(step)) else 'old'
            except IntegrityError as e:
                verdict = str(e)
        verdict = from_process_0(verdict)
        if verdict == 'old':
            _say(f'WARNING: checkpoint step {step} in {self.path} was written by an older gen_jax and has no manifest: '
                 'it is used UNVERIFIED')
        elif verdict not in ('good', ''):
            raise IntegrityError(verdict)
        return verdict == 'good'

    def restore(self, target: TrainState, shardings: PyTree = None, step: int | None = None,
                fall_back: bool = True) -> tuple[TrainState, dict]:
        """The newest good step (or the given one) into the structure, shapes and dtypes of `target`.

        Good means: its files are those that its manifest lists, and its leaves have the fingerprints that they had on
        the device when they were saved. Steps that are not are moved aside if an older one is.

        Args:
            target: a TrainState of arrays or ShapeDtypeStructs.
            shardings: a matching tree, or None for the default device.
            fall_back: try older steps, loudly, when the newest is not good.

        Raises:
            CheckpointError: no step, none good (nothing is changed then), or a step of another model (the leaves are
                named).
        """
        wanted = trees.flat(target._asdict())
        places = trees.flat(shardings._asdict()) if shardings is not None else {}
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])  # Orbax would want the devices of the save
        abstract = {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=places.get(k) or here)
                    for k, v in wanted.items()}
        frozen = {name: {k: abstract.pop(f'frozen/{name}/{k}') for k in trees.flat(tree)}
                  for name, tree in target.frozen.items()}
        (leaves, meta), errors = self._first_good(lambda k: self._read(k, abstract), step, fall_back)
        for name, found in read_frozen(self.path.parent / 'frozen', meta.get('frozen', {}), frozen).items():
            leaves |= {f'frozen/{name}/{k}': v for k, v in found.items()}
        if errors:
            self._set_aside(errors)
        treedef = jax.tree.structure(target._asdict())
        return TrainState(**jax.tree.unflatten(treedef, [leaves[k] for k in wanted])), meta

    def _read(self, step: int, abstract: Mapping[str, jax.ShapeDtypeStruct] | None = None):
        """(leaves by path, meta) of one step; `abstract` None: as saved, on one device.

        Raises:
            IntegrityError: not good. CheckpointError: good, and yet it cannot be restored.
        """
        verified = step in self._verified or self._verify(step)
        self._verified.discard(step)
        error, meta = None, self._meta(step)
        try:
            abstract = self._saved(step, meta) if abstract is None else abstract
            self._check(step, abstract, meta)
            leaves = self._manager.restore(step, args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract)))['state']
        except CheckpointError:
            raise
        except Exception as e:  # Orbax and tensorstore raise many kinds for what they cannot read
            error = e
        if in_any_process(error is not None):
            why = f'{self.path / str(step)}: {_cause(error) if error else "another process could not read it"}'
            if verified:  # a full memory, say: an older step would not help
                raise CheckpointError(f'{why} (its files are what was saved)') from error
            raise IntegrityError(why) from error
        if self._verifies and 'fingerprints' in meta:
            if changed := differing(meta['fingerprints'], fingerprints({k: leaves[k] for k in abstract})):
                raise IntegrityError(f'{self.path / str(step)}: {len(changed)} leaves are not what was saved, the '
                                     f'first is {changed[0]} (its fingerprint is another one)')
        return leaves, meta

    def _saved(self, step, meta):
        here, shapes = jax.sharding.SingleDeviceSharding(jax.local_devices()[0]), self._shapes(step)
        return {k: jax.ShapeDtypeStruct(tuple(shapes[k]), jnp.dtype(d), sharding=here)
                for k, d in meta['dtypes'].items()}

    def _none_left(self, errors):
        if not errors:
            return CheckpointError(f'there is no checkpoint under {self.path.parent}: train first, or check --workdir')
        lines = ''.join(f'\n  step {k}: {e}' for k, e in errors.items())
        return CheckpointError(f'no checkpoint in {self.path} can be read; nothing was changed:{lines}\n'
                               'bring the files back from a copy, or use another --workdir '
                               '(checkpoint.verify=False reads what Orbax accepts, right or wrong)')

    def _set_aside(self, steps):
        """Moves steps that are not good out of the way (never deletes them), so that they can be saved again."""
        if self._read_only:
            return
        if jax.process_index() == 0:
            aside = self.path.parent / 'checkpoints-unreadable'
            aside.mkdir(exist_ok=True)
            for step in (s for s in steps if (self.path / str(s)).exists()):  # one may have been deleted meanwhile
                target = next(t for n in range(10_000) if not (t := aside / f'{step}.{n}').exists())
                (self.path / str(step)).rename(target)
                _say(f'WARNING: moved the unreadable step to {target}')
        in_any_process(False)  # all wait for the moves
        self._manager = self._open()

    def _step(self, step):
        steps = self.steps()
        if not steps:
            raise self._none_left({})
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


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)


def _cause(error: Exception) -> str:
    """What happened, without the pages that tensorstore adds."""
    text = ' '.join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f'{text[:200]} ... {text[-100:]}'


def read_leaves(path) -> dict[str, np.ndarray]:
    """Every leaf of the newest good step as flat host arrays: 'params/...', 'ema/NAME/params/...', 'opt/...', 'step'.

    Args:
        path: a workdir, or its checkpoints folder, or one step's folder (that one, or an error).

    Raises:
        CheckpointError: nothing there, or nothing good.
    """
    path, step = Path(path), None
    if path.name.isdigit() and not (path / 'checkpoints').is_dir():
        path, step = path.parent, int(path.name)
    workdir = path.parent if path.name == 'checkpoints' and not (path / 'checkpoints').is_dir() else path
    store = Checkpoints(workdir, read_only=True)
    try:
        (leaves, _), _ = store._first_good(store._read, step)
    finally:
        store.close()
    return {k: np.asarray(v) for k, v in leaves.items()}


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
