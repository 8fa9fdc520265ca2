"""A run that hangs ends, and says where: the step and the phase of every process, and the stacks of all threads.

The loop calls `beat` as it goes on. A thread watches that it does; in a job of several processes a second one keeps
what each process last said on a board that all can read (the key-value store of jax.distributed), so that a process
that died, froze or fell behind is named by the others, and a process that fails takes the others with it instead of
leaving them in a collective that never ends.

Ages are counted in turns of the watching thread, not by the clock on the wall: a run that was suspended and goes on
has not been hanging.
"""

import contextlib
import faulthandler
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

__all__ = ['EXIT_HANG', 'PATIENCE', 'PHASES', 'Board', 'Place', 'Watchdog', 'behind', 'check_hang', 'exit_code_of',
           'table']

EXIT_HANG = 70
"""EX_SOFTWARE of sysexits.h: a process hung, froze or died; the newest checkpoint is where to go on."""

PATIENCE = 600.0
"""Seconds (or ten times hang_seconds, if that is more) for what compiles or takes longer than a step."""

PHASES = ('starting', 'reading data', 'updating', 'waiting for the devices', 'evaluating', 'sampling', 'saving',
          'finished')
"""In the order in which a step goes through them, so that two processes at one step can be compared."""


class Board(NamedTuple):
    """Where processes leave messages for each other."""

    publish: Callable[[int, str], None]
    """(process, text): replaces what that process said before."""
    read: Callable[[], Mapping[int, str]]
    """All that was said, by process."""


class Place(NamedTuple):
    """Where a process is."""

    step: int
    phase: str
    age: float
    """Seconds since it got there."""
    silent: float = 0.0
    """Seconds since it was last heard of."""


def behind(places: Mapping[int, Place]) -> list[int]:
    """The processes that the others wait for: least step, then earliest phase; empty if all are at one place."""
    rank = {k: (p.step, PHASES.index(p.phase)) for k, p in places.items()}
    last = [k for k, r in rank.items() if r == min(rank.values())]
    return sorted(last) if len(last) < len(rank) else []


def table(places: Mapping[int, Place], silence: float) -> str:
    """A line for each process; who is silent for longer than `silence` seconds, or behind, is marked."""
    lines, late = [], behind(places)
    for k, p in sorted(places.items()):
        where = f'step {p.step}, {p.phase}'
        if p.silent > silence:
            lines.append(f'  process {k}: DEAD OR FROZEN, no sign of life for {p.silent:.0f} s; it was at {where}')
        else:
            lines.append(f'  process {k}: {where}, for {p.age:.0f} s' + (' <- the others wait for it' if k in late
                                                                          else ''))
    return '\n'.join(lines)


def exit_code_of(error: BaseException) -> int:
    """The exit code that the command line gives this error."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    if isinstance(error, KeyboardInterrupt):
        return 130
    ours = (ValueError, OSError, RuntimeError, ArithmeticError, ImportError)
    known = isinstance(error, ours) and not type(error).__module__.startswith(('jax', 'tensorstore'))
    return getattr(error, 'exit_code', 2 if known else 1)


def check_hang(hang_seconds: float | None) -> None:
    """Raises ValueError for seconds that are not positive; None is no watchdog."""
    if hang_seconds is not None and not hang_seconds > 0:
        raise ValueError(f'train.hang_seconds {hang_seconds}: must be positive (None for no watchdog)')


class Watchdog:
    """Watches this process, and through the board the others.

    Args:
        process, count: which of how many processes this is.
        board: None for a process on its own.
        exit: ends the process at once, whatever its other threads do.
        interval: seconds between two looks; None: a second, less for a short hang_seconds, more for many processes.
    """

    def __init__(self, process: int = 0, count: int = 1, board: Board | None = None,
                 exit: Callable[[int], None] = os._exit, interval: float | None = None):
        self.process, self.count, self._board, self._exit = process, count, board, exit
        self._given, self._interval = interval, interval or max(1.0, count / 100)
        self._hang: float | None = None
        self._folder: Path | None = None
        self._time = 0.0  # seconds of turns
        self._step, self._phase, self._patient, self._since = 0, 'starting', True, 0.0
        self._heard: dict[int, tuple[int, float]] = {}  # process -> (its count of messages, when)
        self._said: dict[int, dict] = {}
        self._sent, self._exchanged, self._end = 0, 0.0, None
        self._wake, self._over, self._ending = threading.Event(), threading.Event(), threading.Lock()
        self._threads: list[threading.Thread] = []
        self._finishing = False

    # -------------------------------------------------------------- the loop's side

    def beat(self, step: int, phase: str, patient: bool = False) -> None:
        """The loop has come to this phase of this step. Patient: it may compile, or take longer than a step does."""
        self._step, self._phase, self._patient, self._since = step, phase, patient, self._time

    @contextlib.contextmanager
    def watch(self, hang_seconds: float | None, folder=None) -> Iterator['Watchdog']:
        """For the block: no progress for `hang_seconds` ends the process with EXIT_HANG; None: it may take for ever.

        Args:
            folder: `hang-PROCESS.txt` with the report is written there, if it exists by then.

        Raises:
            ValueError: hang_seconds that are not positive.
        """
        check_hang(hang_seconds)
        self._hang, self._folder = hang_seconds, None if folder is None else Path(folder)
        if hang_seconds is not None and self._given is None:
            self._interval = max(min(1.0, hang_seconds / 5), self.count / 100)
        running = bool(self._threads)
        if hang_seconds is not None and not running:
            self.start()
        try:
            yield self
        finally:
            self._hang = None
            if hang_seconds is not None:
                faulthandler.cancel_dump_traceback_later()
                if not running:
                    self.stop()

    def start(self) -> 'Watchdog':
        """Starts the threads."""
        self._over.clear()
        jobs = [self._watch] + ([self._exchange] if self._board else [])
        self._threads = [threading.Thread(target=job, name=f'watchdog{job.__name__}', daemon=True) for job in jobs]
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> None:
        """Ends the threads; what they do on the board is over when this returns."""
        self._over.set()
        self._wake.set()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(timeout=5)
        self._threads = []

    @contextlib.contextmanager
    def failing(self) -> Iterator[None]:
        """An exception in the block ends the other processes too, with its exit code.

        If it is JAX's, and another process is to blame, it does not come out: this process ends as for a hang.
        """
        try:
            yield
        except BaseException as error:
            while self._finishing and not self._over.is_set():  # the end has begun: this may well be its consequence
                time.sleep(0.1)
            if self._board and self._threads and self._end is None:
                if type(error).__module__.startswith('jax'):
                    self.blame(10.0)
                self.announce(exit_code_of(error), f'{type(error).__name__}: {str(error)[:1000]}')
            raise

    def announce(self, code: int, reason: str) -> None:
        """This process fails: the others end with the same code. Returns when they know, or after a few seconds.

        What is left to do here, the closing of files, must not wait for them; it has 30 seconds.
        """
        self._end = self._end or (code, reason)
        self._wake.set()
        self._wait_for_others()

        def end():
            self._write([2], f'\ngen-jax: process {self.process} of {self.count}: {reason}\n')
            self._exit(code)

        timer = threading.Timer(30, end)
        timer.daemon = True
        timer.start()

    def blame(self, seconds: float) -> None:
        """An operation over several processes failed here: waits for a sign of which one is to blame.

        Does not return if another process announced a failure, or is silent; returns if none is to blame.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._over.is_set():
            if self._end_of_others() or self.silent(self.missed):
                self.finish(EXIT_HANG, 'an operation over all processes failed', self.missed)
            time.sleep(self._interval / 4)

    # -------------------------------------------------------------- what is known

    @property
    def missed(self) -> float:
        """Seconds of silence after which a process is taken for dead where there is another sign of it."""
        return 3.5 * self._interval

    def places(self) -> dict[int, Place]:
        """Where every process is, as far as is known here."""
        found = {self.process: Place(self._step, self._phase, self._time - self._since)}
        for k in range(self.count):
            if k != self.process:
                said = self._said.get(k, {})
                # Process 0 holds the board: if it does not answer, nothing is known of the others since.
                until = self._time if k == 0 else self._exchanged
                silent = max(until - self._heard.get(k, (0, 0.0))[1], 0.0)
                found[k] = Place(said.get('step', 0), said.get('phase', 'starting'), said.get('age', 0.0) + silent,
                                 silent)
        return found

    def silent(self, limit: float) -> list[int]:
        """The processes that were not heard of for longer than `limit` seconds, and have not finished."""
        return [k for k, p in self.places().items() if p.silent > limit and p.phase != 'finished']

    def _end_of_others(self) -> tuple[int, int, str] | None:
        return next(((k, *said['end']) for k, said in sorted(self._said.items())
                     if k != self.process and said.get('end')), None)

    # -------------------------------------------------------------- the threads

    def _exchange(self) -> None:
        """Says where this process is, and hears of the others. A call may block for long if the coordinator is gone."""
        while True:
            self._wake.clear()
            self._sent += 1
            with contextlib.suppress(Exception):  # the watching thread sees that nothing is heard
                self._board.publish(self.process, json.dumps({
                    'n': self._sent, 'step': self._step, 'phase': self._phase, 'patient': self._patient,
                    'age': self._time - self._since, 'end': self._end}))
                for k, text in self._board.read().items():
                    said = json.loads(text)
                    if said['n'] != self._heard.get(k, (0, 0.0))[0]:
                        self._heard[k], self._said[k] = (said['n'], self._time), said
                self._exchanged = self._time
            if self._over.is_set():
                return
            self._wake.wait(self._interval)

    def _watch(self) -> None:
        last, told = time.monotonic(), None
        while not self._over.wait(self._interval):
            now = time.monotonic()
            self._time += min(now - last, 2 * self._interval)
            last = now
            if (other := self._end_of_others()) and self._end is None:
                told = told if told is not None else self._time
                if self._time - told >= min(1.0, 2 * self._interval):  # the same may just be happening here
                    k, code, reason = other
                    self.finish(code, f'process {k} ended: {reason}', stacks=code == EXIT_HANG)
            hang = self._hang
            if hang is None:
                continue
            # Should all of Python hang (C code that keeps the interpreter's lock), this thread of C still shows where.
            faulthandler.dump_traceback_later(2 * hang + 10 * self._interval, file=2)
            patient = self._patient or any(said.get('patient') for said in self._said.values())
            limit = max(PATIENCE, 10 * hang) if patient else hang
            if self._time - self._since > limit:
                self.finish(EXIT_HANG, f'no progress for {limit:g} s (train.hang_seconds={hang:g})')
            elif silent := self.silent(hang):
                self.finish(EXIT_HANG, f'no sign of life of process {", ".join(map(str, silent))} for '
                                       f'train.hang_seconds={hang:g} s')

    # -------------------------------------------------------------- the end

    def _wait_for_others(self, seconds: float = 6.0) -> None:
        """Until all that live have ended too (or know that they must), so that the stacks of all are printed."""
        end = time.monotonic() + max(seconds, 3 * self._interval)
        while self._board and self._threads and time.monotonic() < end:
            silent = self.silent(self.missed)
            if all(self._said.get(k, {}).get('end') or k in silent or p.phase == 'finished'
                   for k, p in self.places().items() if k != self.process):
                break
            time.sleep(self._interval / 4)
        if self._board and self.process == 0:
            time.sleep(1.5 * self._interval)  # process 0 holds the board: the others must still read it

    def finish(self, code: int, reason: str, silence: float | None = None, stacks: bool = True) -> None:
        """Reports to stderr and to hang-PROCESS.txt and ends the process. Threads that come second wait here."""
        self._finishing = True
        with self._ending:
            if other := self._end_of_others():
                code = other[1]
            self._end = self._end or (code, reason)
            head = f'\ngen-jax: process {self.process} of {self.count}, step {self._step}, {self._phase}: {reason}\n'
            with contextlib.ExitStack() as stack:
                files = [2]
                if stacks and self._folder is not None and self._folder.is_dir():
                    files.append(stack.enter_context(open(self._folder / f'hang-{self.process}.txt', 'wb')).fileno())
                self._write(files, head)
                if stacks:
                    self._write(files, 'Where its threads are:\n')
                    for file in files:
                        faulthandler.dump_traceback(file, all_threads=True)
                self._wake.set()
                self._wait_for_others()
                limit = silence if silence is not None else self._hang or self.missed
                self._write(files, f'{table(self.places(), limit)}\n' if self.count > 1 else '')
                self._write(files, f'gen-jax: ends with exit code {code}; the same command goes on from the newest '
                                   'checkpoint\n')
            self._exit(code)
            self._over.set()  # only a test comes here

    @staticmethod
    def _write(files, text: str) -> None:
        for file in files:
            with contextlib.suppress(OSError):
                os.write(file, text.encode())
