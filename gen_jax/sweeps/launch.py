"""A sweep on this machine: processes, several at a time, that end with us and whose ends are recorded."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from gen_jax.engine.signals import EXIT_WALL_TIME, stop_signals
from gen_jax.sweeps import ledger
from gen_jax.sweeps.execute import BUSY, FAILED, WAITS
from gen_jax.sweeps.plan import Plan

__all__ = ['LEFT', 'launch']

LEFT = EXIT_WALL_TIME
"""Exit code: none failed, but some are not done (stopped, or another process is at them): run the command again."""


class _Job(NamedTuple):
    """What one process does: a training, or evaluations of one checkpoint."""

    ids: tuple[str, ...]
    needs: str | None
    """The run that has to be done first."""


class _Child(NamedTuple):
    job: _Job
    process: subprocess.Popen
    slot: int
    attempts: dict[str, int]
    """Of each run before it started; runs that are dealt with are taken out."""


def launch(plan: Plan, workdir, command: Callable[[Sequence[str]], list[str]], ids: Sequence[str] | None = None,
           jobs: int = 1, patience: float = 20.0, say: Callable[[str], None] = print) -> int:
    """Does what is not done yet, and says how each run ended.

    Args:
        command: ids -> the argv of a process that does them (`gen_jax.sweeps.execute`).
        ids: which runs; None: all.
        jobs: processes at a time. If CUDA_VISIBLE_DEVICES lists several devices, each gets an equal share of them.
        patience: seconds to wait, at the end, for runs that another process is at.

    Returns:
        0 all done; 1 some failed; LEFT some are left; 128 + the number of the signal that stopped it.
    """
    ids = list(plan.runs if ids is None else ids)
    sweep = _Sweep(plan, Path(workdir), command, ids, jobs, say)
    with stop_signals() as stop:
        idle = None
        try:
            while not stop.requested:
                sweep.look()
                moved, held = sweep.fill()
                if moved or sweep.children:
                    idle = None
                elif not held or time.monotonic() - (idle := idle or time.monotonic()) > patience:
                    break
                time.sleep(0.1)
        except KeyboardInterrupt:  # a second Ctrl-C, before the first was seen
            pass
        finally:
            sweep.end(signal.SIGINT if stop.reason == 'SIGINT' else signal.SIGTERM)
    failed, left = sweep.summary()
    return stop.exit_code if stop.requested else FAILED if failed else LEFT if left else 0


class _Sweep:
    """The state of `launch`: what waits, what runs, what has been said."""

    def __init__(self, plan: Plan, workdir: Path, command, ids: list[str], jobs: int, say):
        self.plan, self.workdir, self.command, self.ids, self.jobs, self.say = plan, workdir, command, ids, jobs, say
        todo = [i for i in ids if ledger.status(workdir, plan.runs[i]) != 'done']
        for i in todo:
            with ledger.lock(workdir, i, patience=0) as held:
                if held and ledger.read(workdir, i) is None:
                    ledger.write(workdir, plan.runs[i])
        self.not_done = set(todo) | {i for i in plan.runs if ledger.status(workdir, plan.runs[i]) != 'done'}
        self.reported = len(ids) - len(todo)
        self.queue = _queue(plan, todo)
        self.children: list[_Child] = []
        if self.reported:
            say(f'{self.reported} of {len(ids)} runs are done already')

    def fill(self) -> tuple[bool, bool]:
        """Starts what can be started; (whether anything came of it, whether anything waits for another process)."""
        moved = waits = False
        for job in list(self.queue):
            if len(self.children) >= self.jobs:
                break
            if job.needs in self.not_done:
                continue
            self.queue.remove(job)
            held = tuple(i for i in job.ids if ledger.holder(self.workdir, i))
            if held:
                waits = True
                self.queue.append(_Job(held, job.needs))
            free = [i for i in job.ids if i not in held]
            done = [i for i in free if ledger.recorded(self.workdir, self.plan.runs[i]) == 'done']
            for i in done:  # somebody else did it meanwhile
                self.report(i)
            if len(free) > len(done):
                self.start(_Job(tuple(i for i in free if i not in done), job.needs))
            moved = moved or bool(free)
        return moved, waits

    def start(self, job: _Job) -> None:
        """Starts a process; what it prints before it opens the logs itself lands in the first run's."""
        slot = min({*range(self.jobs)} - {c.slot for c in self.children})
        attempts = {i: (ledger.read(self.workdir, i) or {}).get('attempts', 0) for i in job.ids}
        environment = {**os.environ, 'PYTHONUNBUFFERED': '1', **_devices(slot, self.jobs)}
        with open(ledger.folder(self.workdir, job.ids[0]) / 'log.txt', 'ab') as log:
            process = subprocess.Popen(self.command(job.ids), stdin=subprocess.DEVNULL, stdout=log,
                                       stderr=subprocess.STDOUT, env=environment, process_group=0,
                                       preexec_fn=_end_with(os.getpid()))
        self.children.append(_Child(job, process, slot, attempts))

    def look(self, stopping: bool = False) -> None:
        """Reports runs that ended; records the end of those whose process died; queues what it left undone."""
        for child in list(self.children):
            code = child.process.poll()  # before the records are read: they are final if it has ended
            undone, begun = [], False
            for i, before in list(child.attempts.items()):
                record = ledger.read(self.workdir, i) or {}
                if record.get('attempts', 0) == before:
                    undone.append(i)
                elif record['status'] in ('done', 'failed'):
                    self.report(i, child)
                elif code is not None and ledger.holder(self.workdir, i):  # another sweep was faster
                    begun = True
                    undone.append(i)
                elif code is not None:
                    begun = True
                    self.close(i, child, code, stopping)
            if code is None:
                continue
            self.children.remove(child)
            if undone and not stopping:
                self.left_over(undone, begun or len(undone) < len(child.job.ids), child, code)

    def close(self, i: str, child: _Child, code: int, stopping: bool) -> None:
        """The end of a run whose process ended without recording it, or stopped after a save."""
        record = ledger.read(self.workdir, i)
        if record['status'] == 'running':
            with ledger.lock(self.workdir, i) as held:
                if held and stopping:
                    ledger.write(self.workdir, self.plan.runs[i], status='pending')
                elif held:
                    ledger.write(self.workdir, self.plan.runs[i], status='failed', error=_ending(code))
        self.report(i, child)

    def left_over(self, undone: list[str], progress: bool, child: _Child, code: int) -> None:
        """Runs that a process did not come to."""
        if not progress and code == WAITS:
            return
        if not progress and code != BUSY:  # it did not even begin
            first = undone.pop(0)
            with ledger.lock(self.workdir, first) as held:
                if held:
                    lines = (ledger.folder(self.workdir, first) / 'log.txt').read_text(errors='replace').splitlines()
                    ledger.write(self.workdir, self.plan.runs[first], status='failed',
                                 attempts=child.attempts[first] + 1,
                                 error=f'{_ending(code)}: {lines[-1] if lines else "it printed nothing"}'[:2000])
            self.report(first, child)
        if undone:
            self.queue.insert(0, _Job(tuple(undone), child.job.needs))

    def report(self, i: str, child: _Child | None = None) -> None:
        """One line for a run that ended."""
        record = ledger.read(self.workdir, i)
        self.reported += 1
        if record['status'] == 'done':
            self.not_done.discard(i)
        if child:
            del child.attempts[i]
        word = {'pending': 'stopped', 'running': 'left'}.get(record['status'], record['status'])
        error = f': {record["error"].splitlines()[0]}' if record['error'] else ''
        self.say(f'[{self.reported}/{len(self.ids)}] {word} {record["seconds"]:.0f} s {i}{error}')

    def end(self, number: int) -> None:
        """Passes a signal on to what runs and waits for it; a second Ctrl-C is passed on too."""
        for child in self.children:
            child.process.send_signal(number)
        while self.children:
            try:
                for child in self.children:
                    child.process.wait()
                self.look(stopping=True)
            except KeyboardInterrupt:
                for child in self.children:
                    child.process.send_signal(signal.SIGINT)

    def summary(self) -> tuple[int, int]:
        """Says how it all ended; (failed, left)."""
        ends = {i: ledger.status(self.workdir, self.plan.runs[i]) for i in self.ids}
        failed = [i for i, end in ends.items() if end == 'failed']
        left = [i for i, end in ends.items() if end not in ('failed', 'done')]
        for i in left:
            of, other = self.plan.runs[i].of, ledger.holder(self.workdir, i)
            if other:
                self.say(f'skipped {i}: {other} is at it')
            elif of in self.not_done:
                self.say(f'left {i}: it waits for {of}, which is {ledger.status(self.workdir, self.plan.runs[of])}')
        self.say(f'{len(ends)} runs: {len(ends) - len(failed) - len(left)} done, {len(failed)} failed, {len(left)} left'
                 + ('; run the same command again to go on' if left else
                    '; the same command tries the failed ones again' if failed else ''))
        return len(failed), len(left)


def _queue(plan: Plan, todo: Sequence[str]) -> list[_Job]:
    """Trainings one by one, each followed by the evaluations of its checkpoint, which share a process."""
    groups: dict[str, list[str]] = {}
    for i in todo:
        if plan.runs[i].of is not None:
            groups.setdefault(plan.runs[i].of, []).append(i)
    queue = [_Job(tuple(ids), of if of in plan.runs else None) for of, ids in groups.items() if of not in todo]
    for i in todo:
        if plan.runs[i].of is None:
            queue += [_Job((i,), None), *([_Job(tuple(groups[i]), i)] if i in groups else [])]
    return queue


def _devices(slot: int, jobs: int) -> dict[str, str]:
    """The share of CUDA_VISIBLE_DEVICES of one of several processes; nothing where there is less than one for each."""
    listed = [d for d in os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',') if d]
    share = len(listed) // jobs
    return {'CUDA_VISIBLE_DEVICES': ','.join(listed[slot * share:(slot + 1) * share])} if share and jobs > 1 else {}


def _end_with(parent: int) -> Callable[[], None]:
    """To be called in a new process: it gets SIGTERM when its parent dies, however that dies (on Linux)."""
    libc = ctypes.CDLL(None) if sys.platform == 'linux' else None

    def call():
        if libc:
            libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
            if os.getppid() != parent:
                os._exit(FAILED)

    return call


def _ending(code: int) -> str:
    return f'killed by {signal.Signals(-code).name} (exit code {code})' if code < 0 else f'exit code {code}'
