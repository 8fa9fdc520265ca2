"""Stopping well: SIGTERM, SIGINT and the wall-time limit ask the loop to finish its step, save and exit.

Exit codes, so that a scheduler can tell what happened: 143 after SIGTERM and 130 after SIGINT (128 + the signal's
number, what a shell reports for a process killed by it) and 75 after the wall-time limit (EX_TEMPFAIL of sysexits.h:
run the same command again to go on).
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

__all__ = ['EXIT_SIGINT', 'EXIT_SIGTERM', 'EXIT_WALL_TIME', 'Stop', 'stop_signals']

EXIT_SIGTERM = 143
EXIT_SIGINT = 130
EXIT_WALL_TIME = 75
_CODES = {'wall time': EXIT_WALL_TIME, 'SIGTERM': EXIT_SIGTERM, 'SIGINT': EXIT_SIGINT}
_REASONS = tuple(_CODES)


class Stop:
    """Whether the loop has been asked to stop; the first reason stays. The loop reads `requested` once per step.

    Several processes must stop at the same step, whoever was asked: each gives `flag` to its update, which returns the
    largest of all, and `agree` takes that. `requested` then looks at nothing else.
    """

    def __init__(self, wall_time: float | None = None, shared: bool = False):
        if wall_time is not None and not wall_time > 0:
            raise ValueError(f'wall_time={wall_time}: seconds, must be positive (None for no limit)')
        self.reason: str | None = None
        self.shared = shared
        self._agreed = False
        self._wall_time = wall_time
        self._start = time.monotonic()

    @property
    def flag(self) -> int:
        """What this process wants: 0 to go on, else the reason's number (a signal counts more than the wall time)."""
        spent = time.monotonic() - self._start
        if self.reason is None and self._wall_time is not None and spent >= self._wall_time:
            self.request('wall time')
            _say(f'wall time of {self._wall_time:g} s is used up: will stop after this step and save')
        return 0 if self.reason is None else _REASONS.index(self.reason) + 1

    def agree(self, flag: int) -> None:
        """The largest flag of all processes, which all of them hear at the same step."""
        if flag:
            self.reason, self._agreed = _REASONS[flag - 1], True

    @property
    def requested(self) -> bool:
        """True from the first request on, or once the wall time is used up (then says so once)."""
        return self._agreed if self.shared else bool(self.flag)

    @property
    def exit_code(self) -> int:
        """The documented exit code of the reason; 0 if nobody asked."""
        return 0 if self.reason is None else _CODES[self.reason]

    def request(self, reason: str) -> None:
        """Asks for a stop: 'SIGTERM' | 'SIGINT' | 'wall time'."""
        if reason not in _CODES:
            raise ValueError(f'stop reason {reason!r}: expected one of {sorted(_CODES)}')
        if self.reason is None:
            self.reason = reason


@contextlib.contextmanager
def stop_signals(wall_time: float | None = None, signals: tuple[int, ...] = (signal.SIGTERM, signal.SIGINT),
                 shared: bool = False) -> Iterator[Stop]:
    """Catches `signals` for the duration of the block and yields the `Stop` that they set.

    The first signal of a kind only sets the flag (a line on stderr says so); a second SIGINT raises KeyboardInterrupt
    at once, a second SIGTERM changes nothing. Handlers are put back on exit. Python allows handlers in the main
    thread only: elsewhere no signal is caught and the Stop still serves `request` and the wall time.

    `jax.distributed` listens for SIGTERM with a handler of its own, which Python cannot see;
    `gen_jax.engine.distributed.join` turns it off.

    Args:
        wall_time: seconds from now after which `requested` turns true by itself.
        signals: what to catch.
        shared: one of several processes, which agree when to stop (see `Stop`).
    """
    stop = Stop(wall_time, shared)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    interrupts = 0

    def handle(number, frame):
        nonlocal interrupts
        del frame
        name = signal.Signals(number).name
        interrupts += number == signal.SIGINT
        if interrupts > 1 and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.request(name)
        hint = ' (press Ctrl-C again to stop at once, without saving)' if number == signal.SIGINT else ''
        _say(f'{name}: will stop after this step and save{hint}')

    previous = {}
    try:
        for number in signals:
            previous[number] = signal.signal(number, handle)
        yield stop
    finally:
        for number, handler in previous.items():
            # None: the handler was not installed by Python, which cannot put it back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _say(text: str) -> None:
    # Straight to the file descriptor: a handler may run inside a print, whose buffer must not be re-entered. The
    # leading newline leaves a progress line intact.
    with contextlib.suppress(OSError):
        os.write(2, f'\n{text}\n'.encode())
