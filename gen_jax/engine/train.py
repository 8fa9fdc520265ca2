"""THE loop: any system, one update, exact resume.

The order is fixed: update, log, evaluate, sample, save. Everything logged for a step is written before that step's
checkpoint, so a restart truncates the logs to the restored step and goes on as if nothing had happened.

Two updates are under way at a time: while the device computes one, the host logs the one before it and dispatches the
next. Log files are written by a thread of their own.
"""

import contextlib
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from gen_jax import config as config_lib
from gen_jax import trees
from gen_jax.engine import guard
from gen_jax.engine.checkpoint import Checkpoints, check_retention
from gen_jax.engine.distributed import check_shared_folder
from gen_jax.engine.evaluate import Predictor, evaluate, numeric
from gen_jax.engine.files import holding, write_text
from gen_jax.engine.guard import NonFiniteError
from gen_jax.engine.images import grid, save_png, to_uint8
from gen_jax.engine.parallel import make_runner
from gen_jax.engine.progress import progress
from gen_jax.engine.resume import WorkdirError, check_workdir, versions
from gen_jax.engine.run import Result, Run
from gen_jax.engine.signals import Stop, stop_signals
from gen_jax.engine.start import Start, begin, describe, initialise, open_writers, restore
from gen_jax.engine.steptime import StepTimes
from gen_jax.engine.update import active_metrics, seed_words, variables_of
from gen_jax.engine.watchdog import Watchdog, check_hang

__all__ = ['Run', 'Result', 'NonFiniteError', 'WorkdirError', 'train', 'check_workdir', 'versions']


def train(run: Run, workdir, stop: Stop | None = None, dog: Watchdog | None = None) -> Result:
    """Trains to config.train.steps, resuming from the newest checkpoint in `workdir` if there is one.

    Start order: resume > train.init_from > scratch. On a stop request (SIGTERM, SIGINT, wall time) it finishes the
    step, saves and returns with the request's exit code; several processes do so at the same step.

    Args:
        dog: of the processes that joined (`gen_jax.engine.distributed.join`); None: this process is on its own.

    Raises:
        WorkdirError, CheckpointError, ValueError: a workdir, checkpoint, batch or data pipeline that does not fit.
        BlockingIOError: another run is training in the workdir.
        NonFiniteError: by train.nonfinite, and where its limits are used up.
    """
    config, workdir = run.config, Path(workdir).absolute()
    guard.check_policy(config.train)
    check_hang(config.train.hang_seconds)
    if (seconds := config.train.max_seconds) is not None and not seconds > 0:
        raise ValueError(f'train.max_seconds {seconds}: must be positive (None for no limit)')
    for key, value in (('train.steps', config.train.steps), ('log.every_steps', config.log.every_steps),
                       ('checkpoint.every_steps', config.checkpoint.every_steps)):
        if value < 1:
            raise ValueError(f'{key} {value}: at least 1')
    check_workdir(workdir, config)
    dog, (process, processes) = dog or Watchdog(), (jax.process_index(), jax.process_count())
    signals = stop_signals(wall_time=config.train.max_seconds, shared=processes > 1)
    with signals if stop is None else contextlib.nullcontext(stop) as stop, contextlib.ExitStack() as stack:
        ema = {k: dict(v) for k, v in config.train.ema.items()}
        runner = make_runner(run.system, config, ema)
        check_retention(config.checkpoint.keep_last, config.checkpoint.keep_every, config.checkpoint.best_mode,
                        config.checkpoint.on_error)
        if config.log.wandb and importlib.util.find_spec('wandb') is None:
            raise ValueError("log.wandb=True needs the extra: pip install 'gen_jax[wandb]'")
        shard, shards = runner.shard
        first = process == shard * (processes // shards)  # of those that read this part, if the mesh lets several
        data = run.open_data(shard_index=shard, shard_count=shards, ledger=workdir / 'corrupt.jsonl' if first else None)
        stack.callback(data.close)
        # What can be refused is refused before anything is written.
        fresh = None if (workdir / 'checkpoints').is_dir() else initialise(run, ema)
        if fresh is not None:
            runner.state_shardings(fresh)
        check_shared_folder(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        if process == 0:
            stack.enter_context(holding(workdir))
        stack.enter_context(dog.watch(config.train.hang_seconds, workdir))
        store = Checkpoints(workdir, keep_last=config.checkpoint.keep_last, keep_every=config.checkpoint.keep_every,
                            best_metric=config.checkpoint.best_metric, best_mode=config.checkpoint.best_mode,
                            verify=config.checkpoint.verify, on_error=config.checkpoint.on_error)
        stack.callback(store.close)
        start = begin(run, store, runner, data, ema, fresh)
        if process == 0:
            write_text(workdir / 'config.json', config_lib.to_json(config))
            write_text(workdir / 'versions.json', json.dumps(versions(), indent=1))
        loop = _Loop(run, workdir, store, runner, data, start, stop, dog)
        del fresh, start  # the loop alone holds the state
        stack.callback(loop.close)
        with dog.failing():
            return loop.run()


def _due(step: int, every: int | None) -> bool:
    return bool(every) and step % every == 0


class _Flying(NamedTuple):
    """An update that the device may still be computing."""

    step: int
    metrics: Any
    batch: Any
    position: Any
    """Of the data, behind this batch."""


class _Loop:
    """The loop between its start and its end."""

    def __init__(self, setup: Run, workdir: Path, store: Checkpoints, runner, data, start: Start, stop: Stop, dog):
        self.setup, self.config, self.workdir, self.stop, self.dog = setup, setup.config, workdir, stop, dog
        self.store, self.runner, self.data = store, runner, data
        self.predictor = Predictor(setup.system, runner.mesh)
        self.diagnose = guard.make_diagnosis(setup.system, self.config.train.accumulate)
        self.state, self.step, self.rollbacks, self.skips = start.state, start.step, start.rollbacks, start.skips
        self.root = seed_words(self.config.seed, self.rollbacks)
        self.start, self.last_save, self.skipped = self.step, self.step, 0
        self.flying: list[_Flying] = []
        self.latest: dict[str, float] = {}
        self.at_step: dict[str, float] = {}  # logged at this very step: what 'best by metric' may rank
        self.times = StepTimes()
        self.log = open_writers(workdir, self.config, self.step)
        if start.accepted:
            self.log.write(self.step + 1, {'accepted': list(start.accepted)})
        self.line = progress(self.config.train.steps) if jax.process_index() == 0 else None

    def note(self, text: str) -> None:
        if self.line:
            self.line.note(text)

    def close(self) -> None:
        self.log.close()

    def run(self) -> Result:
        """Steps, and what is said before and after them."""
        config, start = self.config, self.start
        parameters = ', '.join(f'{k} {trees.count(v):,}' for k, v in self.state.params.items()) if start == 0 else ''
        self.note(f'{self.runner.description}; '
                  + (f'parameters: {parameters}' if parameters else f'from step {start}'))
        while True:
            try:
                self.advance()
                self.settle()
                break
            except guard.Rollback as event:
                self.roll_back(event)
        if self.step > self.last_save:
            self.save()
        self.dog.beat(self.step, 'saving', patient=True)
        self.store.wait(final=True)
        if summary := self.times.summary():
            self.note(summary)
        if self.line:
            self.line.close()
        picture = self.draw() if self.setup.sampler and start >= config.train.steps else None
        if jax.process_index() == 0:
            if picture is not None:
                save_png(self.workdir / 'samples' / f'samples-{start:08d}.png', picture)
            ended = 'finished' if self.step >= config.train.steps else f'stopped by {self.stop.reason}'
            print(f'{ended} at step {self.step} of {config.train.steps}: log {self.workdir / "metrics.jsonl"}, '
                  f'pictures {self.workdir / "samples"}, checkpoints {self.store.path}', file=sys.stdout, flush=True)
        code = self.stop.exit_code if self.step < config.train.steps else 0
        return Result(self.step, code, self.latest, self.workdir)

    def advance(self) -> None:
        """Steps until the last one, or until a stop is asked for."""
        config, steps, began = self.config, self.config.train.steps, time.perf_counter()
        first = self.step + 1
        for step in range(first, steps + 1):
            self.dog.beat(step, 'reading data', patient=step == first)
            with self.times.spent('data'):
                batch = next(self.data)
            self.dog.beat(step, 'updating', patient=step == first)
            batch, position = self.runner.put(numeric(batch)), self.data.get_state()
            self.state, metrics = self.runner.update(self.state, batch, self.root, self.stop.flag)
            self.flying.append(_Flying(step, metrics, batch, position))
            self.settle(but=1)
            self.store.check()
            self.step, end = step, step == steps
            self.at_step.clear()
            if step == first:
                jax.block_until_ready(metrics)
                if step == self.start + 1:
                    self.note(f'first step (compilation included) took {time.perf_counter() - began:.1f} s')
                self.times.restart(step)
            for name, evaluator in self.setup.evaluators.items():
                if _due(step, evaluator.every_steps) or (end and evaluator.every_steps != 0):
                    self.evaluate(name, evaluator)
            sampler = self.setup.sampler
            if sampler and (_due(step, sampler.every_steps) or (end and sampler.every_steps != 0)):
                self.settle()
                with self.times.spent('pause'):
                    self.log.images(step, {'samples': self.draw()})
            if _due(step, config.checkpoint.every_steps) or end:
                self.save()
            if self.stop.requested:
                break

    def settle(self, but: int = 0) -> None:
        """Checks (and logs) the updates under way, oldest first, but the newest `but`; waits for the device."""
        while len(self.flying) > but:
            done = self.flying.pop(0)
            self.dog.beat(done.step, 'waiting for the devices')
            with self.times.spent('device'):
                values = jax.device_get(done.metrics)
            self.stop.agree(int(values.pop('stop', 0)))
            values = active_metrics(self.setup.system, done.step - 1, {k: float(v) for k, v in values.items()})
            if values.pop('finite'):
                self.skips = 0
            else:
                self.judge(done, values)
            self.report(done.step, values)

    def report(self, at: int, values: dict[str, float]) -> None:
        """Logs the metrics of one update, and moves the progress line."""
        config = self.config
        if _due(at, config.log.every_steps) or at == config.train.steps:
            times = self.times.row(at)
            if times:
                times['images_per_second'] = times['steps_per_second'] * config.data.batch_size
            if self.data.corrupt_count:
                values['data/corrupt'] = self.data.corrupt_count
            rates = {f'{k}/lr': float(schedule(at - 1)) for k, schedule in self.setup.schedules.items()}
            self.log.write(at, {**values, **rates, **times})
            self.latest.update(values)
            self.at_step.update(values)
        if self.line:
            self.line.update(at, {k: v for k, v in values.items() if k.endswith('loss')})

    def judge(self, done: _Flying, values: dict[str, float]) -> None:
        """Reports an update that was not finite, and raises, goes on or asks for a rollback."""
        self.skips, self.skipped = self.skips + 1, self.skipped + 1
        action, limit = guard.decide(self.config.train, self.skips, self.rollbacks)
        where = self.examine(done, values, action)
        bad = {k: v for k, v in values.items() if not np.isfinite(v)}
        if action == 'raise':
            self.store.wait()
            good = f'step {self.store.steps()[-1]} in {self.store.path}' if self.store.steps() else 'none'
            raise NonFiniteError(
                f'step {done.step}: {bad or "a gradient"} is not finite{limit}; parameters were left as before that '
                f'step.{where} Last good checkpoint: {good}. Lower optim.lr, set optim.clip_norm, or use '
                'train.nonfinite=skip or rollback')
        if action == 'rollback':
            raise guard.Rollback(done.step, done.position, f'step {done.step}: {bad or "a gradient"} is not finite.'
                                 f'{where}')
        self.note(f'step {done.step}: not finite, update skipped ({self.skipped} in this run): {bad}{where}')

    def examine(self, done: _Flying, values: dict[str, float], action: str) -> str:
        """Writes the report of an update that was not finite; returns a sentence for the message."""
        if self.skipped > guard.MAX_DUMPS:  # all processes count alike: they diagnose together
            return ''
        batch, first, total = done.batch, 0, None
        if self.config.train.parallel == 'pmap':  # what this process holds, without the axis of its devices
            batch = {k: np.reshape(v, (-1, *np.shape(v)[2:])) for k, v in batch.items()}
            size, (shard, shards) = len(next(iter(batch.values()))), self.runner.shard
            first, total = size * shard, size * shards
        # The next update may have been applied already: then these are the parameters behind it.
        exact = not any(bool(jax.device_get(later.metrics['finite'])) for later in self.flying)
        state = self.runner.fetch(self.state)._replace(step=np.int32(done.step - 1))
        found = self.diagnose(state, batch, self.root, first, total)
        index, indices = done.position.get('next_index'), getattr(self.data, 'indices', None)
        ids = list(indices(index - 1)) if indices and index else None
        record = {
            'step': done.step, 'action': action, 'first_bad_leaf': found.bad[0] if found.bad else None,
            'bad_leaves': found.bad[:50], 'bad_rows': [first + i for i in found.rows],
            'bad_ids': [ids[first + i] for i in found.rows] if ids else None, 'ids': ids, 'data': done.position,
            'metrics': values, 'same_parameters': exact, 'seed': self.config.seed, 'rollbacks': self.rollbacks,
            'consecutive': self.skips}
        if jax.process_index() != 0:
            return ''
        path = guard.dump(self.workdir, done.step, self.rollbacks, record, batch, found.rows)
        report = f'; report: {path.relative_to(self.workdir)}' if path else ''
        return f' First bad leaf: {found.bad[0] if found.bad else "none, it did not show again"}{report}.'

    def roll_back(self, event: guard.Rollback) -> None:
        """Back to the newest checkpoint (or the start), on with other noise and the data behind the failed batch."""
        self.flying.clear()
        self.state = None  # its memory is needed
        self.store.wait()
        ema = {k: dict(v) for k, v in self.config.train.ema.items()}
        if self.store.steps():
            self.state, meta = restore(self.setup, self.store, self.runner, ema)
            self.step = int(meta['step'])
        else:
            self.state, self.step = self.runner.place(initialise(self.setup, ema)), 0
        self.last_save, self.skips, self.rollbacks = self.step, 0, self.rollbacks + 1
        self.root = seed_words(self.config.seed, self.rollbacks)
        self.data.set_state(event.position)
        self.log.close()
        self.log = open_writers(self.workdir, self.config, self.step)
        # A line of the step after: a restart from this very checkpoint meets the failure again, and writes it again.
        self.log.write(self.step + 1, {'rollback': self.rollbacks, 'rollback_reason': event.args[0]})
        self.times.restart(self.step)
        self.note(f'{event.args[0]} Back to step {self.step}, with other noise and the data behind that batch '
                  f'(rollback {self.rollbacks} of at most {self.config.train.max_rollbacks})')

    def evaluate(self, name: str, evaluator) -> None:
        """Scores the present variables and logs the result."""
        self.settle()
        with self.times.spent('pause'):
            self.dog.beat(self.step, 'evaluating', patient=True)
            variables = variables_of(self.runner.fetch(self.state), evaluator.ema)
            ledger = self.workdir / 'corrupt-evaluation.jsonl' if jax.process_index() == 0 else None
            results = evaluate(evaluator, self.predictor, variables, ledger=ledger)
        results = {f'{name}/{k}': v for k, v in results.items()}
        if results:
            self.log.write(self.step, results)
        self.at_step.update({k: v for k, v in results.items() if isinstance(v, (int, float))})
        self.latest.update(self.at_step)
        self.note(f'step {self.step}: '
                  + '  '.join(f'{k} {v:.4g}' for k, v in results.items() if isinstance(v, float)))

    def draw(self) -> np.ndarray:
        """The sample grid of config.sample as one uint8 picture."""
        self.dog.beat(self.step, 'sampling', patient=True)
        sampler = self.setup.sampler
        variables = variables_of(self.runner.fetch(self.state), sampler.ema)
        options = self.predictor.options(sampler.predict, sampler.settings)
        images = [out['image'][batch['valid']] for out, batch in self.predictor.stream(
            sampler.predict, variables, seed=sampler.seed, batches=sampler.batches(None), options=options)]
        return grid(to_uint8(np.concatenate(images)), columns=self.config.sample.columns, scale=None)

    def save(self) -> None:
        """Starts the save of this step, behind everything that is logged for it."""
        self.settle()
        self.dog.beat(self.step, 'saving', patient=True)
        with self.times.spent('pause'):
            self.log.flush()
            best = self.config.checkpoint.best_metric
            if best and self.at_step and best not in self.at_step:
                self.note(f'WARNING: checkpoint.best_metric {best!r} was not logged at step {self.step}, so this '
                          f'checkpoint cannot be the best; logged were {sorted(self.at_step)}')
            meta = {**describe(self.setup, self.data), 'rollbacks': self.rollbacks, 'skips': self.skips}
            self.store.save(self.step, self.runner.fetch(self.state), meta, metrics=self.at_step)
        self.last_save = self.step
