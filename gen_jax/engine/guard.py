"""Updates that are not finite: what to do about one, and a report of where it came from.

The update itself never applies a loss or gradient that is not finite. The policy train.nonfinite decides what then:
'raise' stops, 'skip' goes on without that update, 'rollback' returns to the newest checkpoint and goes on with other
noise and with the data behind the batch that failed. (PaLM, Chowdhery et al. 2022, section 5.1, got over spikes of its
loss by restarting from an earlier checkpoint and passing over the batches around them.)
"""

import collections
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import trees
from gen_jax.engine.files import save_npz, write_text
from gen_jax.engine.update import gradients, prepare, run_objective, step_noise
from gen_jax.rng import purpose_id
from gen_jax.types import System, TrainState

__all__ = ['Diagnosis', 'NonFiniteError', 'Rollback', 'check_policy', 'decide', 'dump', 'make_diagnosis']

POLICIES = ('raise', 'skip', 'rollback')
MAX_DUMPS = 20
"""Reports in one workdir; later events are counted and not described."""
MAX_BATCH_BYTES = 64 * 2**20
"""A larger batch is not copied into its report, except for the examples that are at fault."""


class NonFiniteError(FloatingPointError):
    """A loss or gradient that is not finite; says the step, the last good checkpoint and the report."""

    exit_code = 3


class Rollback(Exception):  # noqa: N818  (no error: it takes the loop back)
    """Asks the loop to return to the newest checkpoint.

    Args:
        step: of the update that failed. position: the data's state behind its batch. reason: for the log.
    """

    def __init__(self, step: int, position: Mapping[str, Any], reason: str):
        super().__init__(reason)
        self.step, self.position, self.reason = step, position, reason


def check_policy(train) -> None:
    """Raises ValueError for settings under config.train that are no policy."""
    if train.nonfinite not in POLICIES:
        raise ValueError(f'train.nonfinite {train.nonfinite!r}: choose from {", ".join(POLICIES)}')
    for key, least in (('max_skips', 1), ('max_rollbacks', 0)):
        if train[key] < least:
            raise ValueError(f'train.{key} {train[key]}: at least {least}')


def decide(train, skips: int, rollbacks: int) -> tuple[str, str]:
    """('raise' | 'skip' | 'rollback', why it is 'raise').

    Args:
        skips: updates skipped in a row, this one included.
        rollbacks: of the run so far.
    """
    if train.nonfinite == 'skip' and skips > train.max_skips:
        return 'raise', f'; more than train.max_skips={train.max_skips} in a row'
    if train.nonfinite == 'rollback' and rollbacks >= train.max_rollbacks:
        return 'raise', f'; train.max_rollbacks={train.max_rollbacks} are used up'
    return train.nonfinite, ''


class Diagnosis(NamedTuple):
    """Where an update that was not finite came from."""

    bad: list[str]
    """What is not finite, in the order in which it was computed: 'batch/...', 'params/...', 'loss/OBJECTIVE',
    'gradients/OBJECTIVE/...', 'grad_norm/OBJECTIVE'. Empty: the failure did not show again."""
    rows: list[int]
    """Rows of the batch whose own loss or gradient is not finite (of objectives that treat examples one by one)."""


def _finite(prefix: str, tree) -> list[tuple[str, Any]]:
    return [(f'{prefix}/{path}', jnp.all(jnp.isfinite(leaf))) for path, leaf in trees.flat(tree).items()
            if jnp.issubdtype(leaf.dtype, jnp.inexact)]


def make_diagnosis(system: System, accumulate: int = 1) -> Callable[..., Diagnosis]:
    """(state, batch, root, first, total) -> Diagnosis: an update once more, without donation and without its result.

    It is compiled when it is first called. `first` and `total` are those of `step_noise`.
    """
    def walk(state: TrainState, batch, root, first, total, active):
        """Yields (name, objective, state, batch, noise) of each objective, as the update meets them."""
        batch = prepare(batch)
        noise = step_noise(root, state.step, jax.tree.leaves(batch)[0].shape[0], first, total)
        for i, name in enumerate(active):
            own = noise.at(purpose_id(name))
            yield name, system.objectives[name], state, batch, own
            if i + 1 < len(active):
                state = run_objective(system, system.objectives[name], state, batch, own, accumulate)[0]

    def whole(state, batch, root, first, total, active):
        found = _finite('batch', batch)
        for part in ('params', 'extra', 'frozen', 'opt', 'ema'):
            found += _finite(part, getattr(state, part))
        for name, objective, at, data, noise in walk(state, batch, root, first, total, active):
            loss, _, _, grads = gradients(objective, at, data, noise, accumulate)
            norm = jnp.sqrt(sum(jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(grads)))
            found += [(f'loss/{name}', jnp.isfinite(loss)), *_finite(f'gradients/{name}', grads),
                      (f'grad_norm/{name}', jnp.isfinite(norm))]
        return collections.OrderedDict(found)

    def each(state, batch, root, first, total, active):
        *_, (_, objective, at, data, noise) = walk(state, batch, root, first, total, active)

        def one(i):
            row, own = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, i, 1), (data, noise))
            loss, _, _, grads = gradients(objective, at, row, own)
            return jnp.isfinite(loss) & jnp.all(jnp.array([jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(grads)]))

        return jax.lax.map(one, jnp.arange(jax.tree.leaves(data)[0].shape[0]))

    whole, each = (jax.jit(f, static_argnames=('total', 'active')) for f in (whole, each))

    def diagnose(state: TrainState, batch: Mapping, root, first: int = 0, total: int | None = None) -> Diagnosis:
        active = tuple(n for n, o in system.objectives.items() if int(state.step) % o.every == 0)
        flags = jax.device_get(whole(state, batch, root, first, total, active=active))
        bad = [k for k, ok in flags.items() if not ok]
        wrong = [n for n in active if any(k.partition('/')[2].split('/')[0] == n and k.startswith(
            ('loss/', 'gradients/', 'grad_norm/')) for k in bad)]
        if not wrong or not system.objectives[wrong[0]].per_example:
            return Diagnosis(bad, [])
        upto = active[:active.index(wrong[0]) + 1]
        rows = np.asarray(jax.device_get(each(state, batch, root, first, total, active=upto)))
        return Diagnosis(bad, [int(i) for i in np.flatnonzero(~rows)])

    return diagnose


def dump(workdir, step: int, rollbacks: int, record: Mapping[str, Any], batch: Mapping, rows: list[int]) -> Path | None:
    """Writes WORKDIR/nonfinite/step-XXXXXXXX.json and, with the batch, .npz; after a rollback '-rollback-N' is added.

    An event that comes again after a restart replaces its report. Returns the path, or None where there are
    `MAX_DUMPS` already.

    Args:
        record: plain values; numbers that are not finite are written as strings.
        batch: entries [B, ...] as they were put on the devices.
        rows: the examples to keep of a batch that is larger than `MAX_BATCH_BYTES`.
    """
    folder = Path(workdir) / 'nonfinite'
    path = folder / f'step-{step:08d}{f"-rollback-{rollbacks}" if rollbacks else ""}.json'
    if not path.exists() and len(list(folder.glob('step-*.json'))) >= MAX_DUMPS:
        return None
    arrays, note = {}, 'all examples'
    if not all(getattr(x, 'is_fully_addressable', True) for x in batch.values()):
        note = 'none: spread over several processes'
    elif sum(x.nbytes for x in batch.values()) <= MAX_BATCH_BYTES:
        arrays = {k: np.asarray(v) for k, v in batch.items()}
    else:
        note = f'rows {rows[:16]}' if rows else 'none: too large'
        arrays = {k: np.asarray(v[np.array(rows[:16])]) for k, v in batch.items()} if rows else {}
    if arrays:
        save_npz(path.with_suffix('.npz'), arrays)
    write_text(path, json.dumps(_plain({**record, 'batch': note}), indent=1, allow_nan=False))
    return path


def _plain(value):
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
