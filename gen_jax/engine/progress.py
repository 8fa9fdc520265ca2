"""The progress line: where the run is, how fast, how long still, and the loss."""

import contextlib
import math
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

__all__ = ['Progress', 'emit', 'format_rate', 'format_seconds', 'progress']


class Progress(NamedTuple):
    """Call `update(step, metrics)` as often as you like, `note(text)` for a line that stays, `close()` at the end."""

    update: Callable[..., None]
    note: Callable[[str], None]
    close: Callable[[], None]


def format_seconds(seconds: float | None) -> str:
    """12 -> '12s', 83 -> '1:23', 3723 -> '1:02:03', 90061 -> '1d 1:01:01'; None or not finite -> '?'."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return '?'
    minutes, s = divmod(int(seconds + 0.5), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f'{days}d {h}:{m:02}:{s:02}'
    if hours:
        return f'{h}:{m:02}:{s:02}'
    return f'{m}:{s:02}' if minutes else f'{s}s'


def format_rate(rate: float | None, unit: str = 'step') -> str:
    """Steps per second, or seconds per step when slow: '5.2 step/s', '3.4 s/step'; '?' if unknown."""
    if rate is None or not math.isfinite(rate) or rate <= 0:
        return f'? {unit}/s'
    return f'{rate:.3g} {unit}/s' if rate >= 1 else f'{1 / rate:.3g} s/{unit}'


def emit(stream, text: str) -> bool:
    """Writes and flushes; False, instead of an exception, if nobody can read it any more (closed, broken pipe, None).

    A training run must not die because the terminal, or the `head` at the end of the pipe, went away.
    """
    if stream is None:
        return False
    try:
        stream.write(text)
        stream.flush()
        return True
    except UnicodeEncodeError:
        return emit(stream, text.encode('ascii', 'replace').decode())
    except BrokenPipeError:
        # What is left in the buffer would fail again when the interpreter exits and spoil the exit code.
        if stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                sink = os.open(os.devnull, os.O_WRONLY)
                os.dup2(sink, stream.fileno())
                os.close(sink)
        return False
    except (OSError, ValueError):
        return False


def progress(total: int, stream=None, every: float = 10.0, name: str = 'train', unit: str = 'step',
             window: float = 30.0, clock: Callable[[], float] = time.monotonic) -> Progress:
    """A progress line on `stream` (default stderr).

    On a terminal one line is rewritten, at most five times a second; elsewhere (a file, a pipe, TERM=dumb) a plain
    line is printed for the first update, then every `every` seconds, then for the last one. The rate is that of the
    last `window` seconds and counts from the first update on, so compilation before it does not spoil the ETA.

    Args:
        total: the step at which it is done.
        stream: a text stream; it may be closed, broken or None at any time.
        every: seconds between plain lines.
        clock: seconds; for tests.
    """
    stream = sys.stderr if stream is None else stream
    try:
        live = bool(stream.isatty()) and os.environ.get('TERM') != 'dumb'
    except (AttributeError, ValueError, OSError):
        live = False
    began = clock()
    marks: deque[tuple[float, int]] = deque()
    printed, shown, alive = -math.inf, None, stream is not None
    latest: tuple[int, Mapping[str, float]] | None = None

    def line() -> str:
        (t0, s0), (t1, s1) = marks[0], marks[-1]
        step, metrics = latest
        rate = (s1 - s0) / (t1 - t0) if t1 > t0 else None
        eta = 0.0 if step >= total else (total - step) / rate if rate else None
        share = 100 * step // total if total > 0 else 100
        parts = [name, f'{step}/{total}', f'{share}%', format_rate(rate, unit), f'elapsed {format_seconds(t1 - began)}',
                 f'eta {format_seconds(eta)}', *(f'{k} {_number(v)}' for k, v in metrics.items())]
        text = '  '.join(parts)
        return text[:max(shutil.get_terminal_size().columns - 1, 20)] if live else text

    def put(text: str) -> None:
        nonlocal alive
        alive = alive and emit(stream, text)

    def show() -> None:
        nonlocal shown
        # Formatting reads the metrics, which waits for the device if they are still being computed: only when due.
        put(f'\r{line()}\x1b[K' if live else f'{line()}\n')
        shown = latest

    def update(step: int, metrics: Mapping[str, float] | None = None) -> None:
        nonlocal printed, latest
        if not alive:
            return
        now = clock()
        if marks and step < marks[-1][1]:  # a rollback: what was measured before says nothing about what comes
            marks.clear()
        marks.append((now, int(step)))
        while len(marks) > 2 and marks[1][0] < now - window:
            marks.popleft()
        latest = (int(step), dict(metrics or {}))
        if now - printed >= (0.2 if live else every) or step >= total:
            printed = now
            show()

    def note(text: str) -> None:
        put(f'\r\x1b[K{text}\n' if live and shown else f'{text}\n')
        if live and shown:
            show()

    def close() -> None:
        nonlocal alive
        if latest is not None and latest != shown:
            show()
        if live and shown:
            put('\n')
        alive = False

    return Progress(update, note, close)


def _number(value) -> str:
    try:
        return f'{float(value):.4g}'
    except (TypeError, ValueError):
        return str(value)
