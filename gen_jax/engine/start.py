"""Where a run begins: its newest checkpoint, else train.init_from, else scratch; and the logs that go on from there."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from gen_jax import config as config_lib
from gen_jax import trees
from gen_jax.engine import writers
from gen_jax.engine.checkpoint import Checkpoints, read_batch_stats, read_params
from gen_jax.engine.evaluate import numeric
from gen_jax.engine.resume import check_code, check_data, config_changes, versions
from gen_jax.engine.run import Run
from gen_jax.engine.update import init_state

__all__ = ['Start', 'begin', 'describe', 'initialise', 'open_writers', 'restore']


class Start(NamedTuple):
    """What the loop goes on from."""

    state: Any
    """Placed on the devices."""
    step: int = 0
    rollbacks: int = 0
    skips: int = 0
    """Updates skipped in a row up to here."""
    accepted: tuple[str, ...] = ()
    """Differences from the run that is continued, which train.accept allows."""


def begin(run: Run, store: Checkpoints, runner, data, ema, fresh) -> Start:
    """Resume > init_from > scratch; `fresh`: the initial state if it was made already, or None.

    Raises:
        WorkdirError, CheckpointError: the checkpoint is of another pipeline, code or model.
    """
    if not store.steps():
        return Start(runner.place(fresh if fresh is not None else initialise(run, ema)))
    state, meta = restore(run, store, runner, ema)
    accept = run.config.train.accept
    accepted = [f'config: {k}: {old!r} there, {new!r} now'
                for k, (old, new) in config_changes(meta['config'], run.config).items()]
    accepted += check_data(run.check_data, meta['data_fingerprint'], data.fingerprint, accept)
    code, revisions = check_code(meta.get('versions', {}), versions(), accept)
    accepted += code
    data.set_state(meta['data'])
    devices = meta['devices']
    _say(f'resuming from step {meta["step"]} in {store.path}'
         + ('' if devices == jax.device_count() else f' (it ran on {devices} devices and now on '
            f'{jax.device_count()}: equal but for rounding, not bit by bit)'))
    for line in revisions:
        _say(f'note: {line}')
    for line in accepted:
        _say(f'accepted: {line}')
    return Start(state, int(meta['step']), meta.get('rollbacks', 0), meta.get('skips', 0), tuple(accepted))


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text)


def restore(run: Run, store: Checkpoints, runner, ema) -> tuple[Any, dict]:
    """(placed state, meta) of the newest checkpoint that can be read."""
    target = jax.eval_shape(lambda: init_state(run.system, run.config.seed, numeric(run.example_batch), ema))
    state, meta = store.restore(target, runner.state_shardings(target))
    return runner.place(state), meta


def initialise(run: Run, ema) -> Any:
    """The initial state, from train.init_from where that is set; not placed yet."""
    config = run.config
    state = init_state(run.system, config.seed, numeric(run.example_batch), ema, run.frozen())
    if not config.train.init_from:
        return state
    rules = trees.parse_rules(config.train.init_map)
    source = config.train.init_from
    params, kept = trees.transfer(state.params, read_params(source, config.train.init_ema), rules)
    extra = state.extra
    if 'batch_stats' in extra and (stats := read_batch_stats(source, config.train.init_ema)):
        extra = {**extra, 'batch_stats': trees.transfer(extra['batch_stats'], stats, rules)[0]}
    _say(f'initialised {len(jax.tree.leaves(params)) - len(kept)} leaves from {config.train.init_from}'
         + (f'; {len(kept)} keep their fresh values' if kept else ''))
    average = {k: {'params': {n: params[n] for n in v['params']}, 'extra': {n: extra[n] for n in v['extra']}}
               for k, v in state.ema.items()}
    return state._replace(params=params, ema=average, extra=extra)


def describe(run: Run, data) -> dict[str, Any]:
    """What a checkpoint holds beside the state: enough to resume, and to use it where its data are not."""
    shapes = {k: [list(v.shape), str(v.dtype)] for k, v in numeric(run.example_batch).items()}
    return {'data': data.get_state(), 'data_fingerprint': data.fingerprint, 'devices': jax.device_count(),
            'example': shapes, 'info': dict(run.info), 'config': json.loads(config_lib.to_json(run.config)),
            'versions': versions()}


def open_writers(workdir: Path, config: Mapping, resumed: int | None) -> writers.Writer:
    """The logs of this process, cut off behind the step `resumed`; they are written by a thread of their own."""
    if jax.process_index() != 0:
        return writers.null()
    if resumed is not None:
        writers.truncate(workdir / 'metrics.jsonl', resumed)
        writers.truncate(workdir / 'samples', resumed)
    parts = [writers.jsonl(workdir / 'metrics.jsonl'), writers.png(workdir / 'samples')]
    if config.log.tensorboard:
        parts.append(writers.tensorboard(workdir / 'tensorboard', purge_after=resumed))
    if config.log.wandb:
        parts.append(writers.wandb('gen_jax', name=workdir.name, config=json.loads(config_lib.to_json(config))))
    return writers.background(writers.multi(*parts))
