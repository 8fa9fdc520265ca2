"""THE loop: any system, one update, exact resume.

The order is fixed: update, log, evaluate, sample, save. Everything logged for a step is written before that step's
checkpoint, so a restart truncates the logs to the restored step and goes on as if nothing had happened.
"""

import contextlib
import functools
import importlib.util
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from gen_jax import config as config_lib
from gen_jax import trees
from gen_jax.engine import writers
from gen_jax.engine.checkpoint import Checkpoints, check_retention, read_batch_stats, read_params
from gen_jax.engine.evaluate import Evaluator, Predictor, evaluate, numeric
from gen_jax.engine.files import write_text
from gen_jax.engine.images import grid, save_png, to_uint8
from gen_jax.engine.parallel import make_runner
from gen_jax.engine.progress import progress
from gen_jax.engine.signals import Stop, stop_signals
from gen_jax.engine.update import active_metrics, init_state, variables_of
from gen_jax.types import System

__all__ = ['Run', 'Result', 'NonFiniteError', 'WorkdirError', 'train', 'check_workdir']


class NonFiniteError(FloatingPointError):
    """A loss or gradient that is not finite; says the step and the last good checkpoint."""

    exit_code = 3


class WorkdirError(RuntimeError):
    """A workdir that belongs to another config."""


class Run(NamedTuple):
    """What the loop needs, made by `gen_jax.build`."""

    config: Any
    system: System
    open_data: Callable[..., Any]
    """(shard_index, shard_count, ledger) -> iterator with get_state, set_state, fingerprint, corrupt_count, close."""
    check_data: Callable[[Mapping, Mapping], None]
    """(saved fingerprint, current fingerprint): raises if the pipeline is another one."""
    example_batch: Mapping[str, np.ndarray]
    evaluators: Mapping[str, Evaluator]
    sampler: Evaluator | None = None
    """Draws the sample grid (its metrics are empty)."""
    schedules: Mapping[str, Callable[[int], Any]] = {}
    """Learning rate by step for each optimizer, for the log."""
    info: Mapping[str, Any] = {}
    """Of the source, for the checkpoint: num_classes, label_names ..."""


class Result(NamedTuple):
    """How a call of `train` ended."""

    step: int
    exit_code: int
    """0, or that of gen_jax.engine.signals for a stop that was asked for."""
    metrics: dict[str, float]
    """The last logged and evaluated values."""
    workdir: Path


def check_workdir(workdir, config) -> None:
    """Refuses a workdir that holds a run of another config.

    Raises:
        WorkdirError: naming the keys that differ and may not.
    """
    path = Path(workdir) / 'config.json'
    if Path(workdir).exists() and not Path(workdir).is_dir():
        raise WorkdirError(f'--workdir {workdir} is a file: name a folder, or a path that does not exist yet')
    if path.exists():
        saved = config_lib.from_json(path.read_text())
    elif (Path(workdir) / 'checkpoints').is_dir():
        store = Checkpoints(workdir, read_only=True)
        saved = store.meta()['config'] if store.steps() else config
        store.close()
    else:
        return
    saved = config_lib.complete(config_lib.from_json(config_lib.to_json(saved)))
    changed = {k: v for k, v in config_lib.differences(saved, config).items() if not config_lib.mutable_on_resume(k)}
    if changed:
        lines = [f'  {k}: {old!r} there, {new!r} now' for k, (old, new) in list(changed.items())[:10]]
        raise WorkdirError(f'{workdir} holds a run of another config ({len(changed)} keys differ that may not change '
                           'on resume):\n' + '\n'.join(lines) + '\nuse another --workdir, or the old values')


@functools.lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Versions, platform and git revision, for the record."""
    from importlib import metadata
    out = {'python': platform.python_version(), 'platform': platform.platform(), 'backend': jax.default_backend(),
           'devices': ', '.join(sorted({d.device_kind for d in jax.devices()})) + f' x{jax.device_count()}'}
    for name in ('gen_jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy'):
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


def describe_batch(batch: Mapping) -> dict[str, list]:
    """Shapes and dtypes of a batch, so that a checkpoint can be used where its data are not."""
    return {k: [list(v.shape), str(v.dtype)] for k, v in numeric(batch).items()}


def _open_writers(workdir: Path, config, resumed: int | None):
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
    return writers.multi(*parts)


def _initialise(run: Run, ema) -> Any:
    config = run.config
    state = init_state(run.system, config.seed, numeric(run.example_batch), ema)
    if not config.train.init_from:
        return state
    rules = trees.parse_rules(config.train.init_map)
    source = config.train.init_from
    params, kept = trees.transfer(state.params, read_params(source, config.train.init_ema), rules)
    extra = state.extra
    if 'batch_stats' in extra and (stats := read_batch_stats(source, config.train.init_ema)):
        extra = {**extra, 'batch_stats': trees.transfer(extra['batch_stats'], stats, rules)[0]}
    print(f'initialised {len(jax.tree.leaves(params)) - len(kept)} leaves from {config.train.init_from}'
          + (f'; {len(kept)} keep their fresh values' if kept else ''))
    average = {k: {'params': {n: params[n] for n in v['params']}, 'extra': {n: extra[n] for n in v['extra']}}
               for k, v in state.ema.items()}
    return state._replace(params=params, ema=average, extra=extra)


def _due(step: int, every: int | None) -> bool:
    return bool(every) and step % every == 0


def train(run: Run, workdir, stop: Stop | None = None) -> Result:
    """Trains to config.train.steps, resuming from the newest checkpoint in `workdir` if there is one.

    Start order: resume > train.init_from > scratch. On a stop request (SIGTERM, SIGINT, wall time) it finishes the
    step, saves and returns with the request's exit code.

    Raises:
        WorkdirError, CheckpointError, ValueError: a workdir, checkpoint, batch or data pipeline that does not fit.
        NonFiniteError: with train.nonfinite='raise'.
    """
    config, workdir = run.config, Path(workdir).absolute()
    if config.train.nonfinite not in ('raise', 'skip'):
        raise ValueError(f'train.nonfinite {config.train.nonfinite!r}: choose from raise, skip')
    for key, value in (('train.steps', config.train.steps), ('log.every_steps', config.log.every_steps),
                       ('checkpoint.every_steps', config.checkpoint.every_steps)):
        if value < 1:
            raise ValueError(f'{key} {value}: at least 1')
    check_workdir(workdir, config)
    with stop_signals(wall_time=config.train.max_seconds) if stop is None else contextlib.nullcontext(stop) as stop, \
            contextlib.ExitStack() as stack:
        ema = {k: dict(v) for k, v in config.train.ema.items()}
        runner = make_runner(run.system, config, ema)
        check_retention(config.checkpoint.keep_last, config.checkpoint.keep_every, config.checkpoint.best_mode)
        if config.log.wandb and importlib.util.find_spec('wandb') is None:
            raise ValueError("log.wandb=True needs the extra: pip install 'gen_jax[wandb]'")
        data = run.open_data(shard_index=jax.process_index(), shard_count=jax.process_count(),
                             ledger=workdir / 'corrupt.jsonl')
        stack.callback(data.close)
        # What can be refused is refused before anything is written.
        fresh = None if (workdir / 'checkpoints').is_dir() else _initialise(run, ema)
        if fresh is not None:
            runner.state_shardings(fresh)
        workdir.mkdir(parents=True, exist_ok=True)
        store = Checkpoints(workdir, keep_last=config.checkpoint.keep_last, keep_every=config.checkpoint.keep_every,
                            best_metric=config.checkpoint.best_metric, best_mode=config.checkpoint.best_mode)
        stack.callback(store.close)
        state, start = _start(run, store, runner, data, ema, fresh)
        if jax.process_index() == 0:
            write_text(workdir / 'config.json', config_lib.to_json(config))
            write_text(workdir / 'versions.json', json.dumps(versions(), indent=1))
        log = _open_writers(workdir, config, start)
        stack.callback(log.close)
        return _loop(run, workdir, store, runner, Predictor(run.system, runner.mesh), data, log, state, start, stop)


def _start(run: Run, store: Checkpoints, runner, data, ema, fresh):
    """(placed state, first step): resume > init_from > scratch."""
    if store.steps():
        target = jax.eval_shape(lambda: init_state(run.system, run.config.seed, numeric(run.example_batch), ema))
        state, meta = store.restore(target, runner.state_shardings(target))
        run.check_data(meta['data_fingerprint'], data.fingerprint)
        data.set_state(meta['data'])
        devices = meta['devices']
        print(f'resuming from step {meta["step"]} in {store.path}'
              + ('' if devices == jax.device_count() else f' (it ran on {devices} devices and now on '
                 f'{jax.device_count()}: equal but for rounding, not bit by bit)'))
        return runner.place(state), int(meta['step'])
    return runner.place(fresh if fresh is not None else _initialise(run, ema)), 0


def _loop(run, workdir, store, runner, predictor, data, log, state, start, stop) -> Result:
    config, steps = run.config, run.config.train.steps
    line = progress(steps) if jax.process_index() == 0 else None
    note = line.note if line else lambda text: None
    parameters = ', '.join(f'{k} {trees.count(v):,}' for k, v in state.params.items()) if start == 0 else ''
    note(f'{runner.description}; ' + (f'parameters: {parameters}' if parameters else f'from step {start}'))
    latest: dict[str, float] = {}
    at_step: dict[str, float] = {}  # logged at this very step: what 'best by metric' may rank
    last_save, skipped, pending = start, 0, None  # pending: the last step's metrics, still on the device
    began, marked = time.perf_counter(), (time.perf_counter(), start)

    def settle():
        """Checks (and logs) the metrics of the step before, which the device has finished by now."""
        nonlocal pending, skipped, marked
        if pending is None:
            return
        at, values, pending = pending[0], jax.device_get(pending[1]), None
        values = active_metrics(run.system, at - 1, {k: float(v) for k, v in values.items()})
        if not values.pop('finite'):
            skipped += 1
            bad = {k: v for k, v in values.items() if not np.isfinite(v)}
            if config.train.nonfinite == 'raise':
                store.wait()
                good = store.steps()[-1] if store.steps() else None
                raise NonFiniteError(
                    f'step {at}: {bad or "a gradient"} is not finite; parameters were left as before that step. '
                    f'Last good checkpoint: {f"step {good} in {store.path}" if good is not None else "none"}. '
                    'Lower optim.lr, set optim.clip_norm, or use train.nonfinite=skip')
            note(f'step {at}: not finite, update skipped ({skipped} in this run): {bad}')
        if _due(at, config.log.every_steps) or at == steps:
            now = time.perf_counter()
            rate = (at - marked[1]) / max(now - marked[0], 1e-9)
            marked = now, at
            if data.corrupt_count:
                values['data/corrupt'] = data.corrupt_count
            rates = {f'{k}/lr': float(schedule(at - 1)) for k, schedule in run.schedules.items()}
            log.write(at, {**values, **rates, 'steps_per_second': rate,
                           'images_per_second': rate * config.data.batch_size})
            latest.update(values)
            at_step.update(values)
        if line:
            line.update(at, {k: v for k, v in values.items() if k.endswith('loss')})

    def save(at, wait=False):
        nonlocal last_save
        log.flush()
        best = config.checkpoint.best_metric
        if best and at_step and best not in at_step:
            note(f'WARNING: checkpoint.best_metric {best!r} was not logged at step {at}, so this checkpoint cannot be '
                 f'the best; logged were {sorted(at_step)}')
        store.save(at, runner.fetch(state), {
            'data': data.get_state(), 'data_fingerprint': data.fingerprint, 'devices': jax.device_count(),
            'example': describe_batch(run.example_batch), 'info': dict(run.info),
            'config': json.loads(config_lib.to_json(config)), 'versions': versions()}, metrics=at_step, wait=wait)
        last_save = at

    step = start
    for step in range(start + 1, steps + 1):
        batch = runner.put(numeric(next(data)))
        state, metrics = runner.update(state, batch)
        settle()
        at_step.clear()
        pending = step, metrics
        end = step == steps
        if step == start + 1:
            jax.block_until_ready(metrics)
            note(f'first step (compilation included) took {time.perf_counter() - began:.1f} s')
            marked = time.perf_counter(), step
        for name, evaluator in run.evaluators.items():
            if _due(step, evaluator.every_steps) or (end and evaluator.every_steps != 0):
                settle()
                results = evaluate(evaluator, predictor, variables_of(runner.fetch(state), evaluator.ema),
                                   ledger=workdir / 'corrupt-evaluation.jsonl')
                results = {f'{name}/{k}': v for k, v in results.items()}
                if results:
                    log.write(step, results)
                at_step.update({k: v for k, v in results.items() if isinstance(v, (int, float))})
                latest.update(at_step)
                note(f'step {step}: ' + '  '.join(f'{k} {v:.4g}' for k, v in results.items() if isinstance(v, float)))
        if run.sampler and (_due(step, run.sampler.every_steps) or (end and run.sampler.every_steps != 0)):
            settle()
            picture = sample_grid(run, predictor, variables_of(runner.fetch(state), run.sampler.ema))
            log.images(step, {'samples': picture})
        if _due(step, config.checkpoint.every_steps) or end:
            settle()
            save(step)
        if stop.requested:
            break
    settle()
    if step > last_save:
        save(step)
    store.wait()
    if line:
        line.close()
    if jax.process_index() == 0:
        if run.sampler and start >= steps:
            save_png(workdir / 'samples' / f'samples-{start:08d}.png',
                     sample_grid(run, predictor, variables_of(runner.fetch(state), run.sampler.ema)))
        ended = 'finished' if step >= steps else f'stopped by {stop.reason}'
        print(f'{ended} at step {step} of {steps}: log {workdir / "metrics.jsonl"}, pictures {workdir / "samples"}, '
              f'checkpoints {store.path}', file=sys.stdout, flush=True)
    return Result(step, stop.exit_code if step < steps else 0, latest, workdir)


def sample_grid(run: Run, predictor: Predictor, variables) -> np.ndarray:
    """The sample grid of config.sample as one uint8 picture."""
    sampler = run.sampler
    options = predictor.options(sampler.predict, sampler.settings)
    images = [out['image'][batch['valid']] for out, batch in predictor.stream(
        sampler.predict, variables, seed=sampler.seed, batches=sampler.batches(None), options=options)]
    return grid(to_uint8(np.concatenate(images)), columns=run.config.sample.columns, scale=None)
