"""The progress line: numbers, terminals, files, and streams that go away."""

import io
import math
import os
import subprocess
import sys

import pytest

from gen_jax.engine.progress import emit, format_rate, format_seconds, progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize('seconds, text', [(0, '0s'), (12.4, '12s'), (59.6, '1:00'), (83, '1:23'), (3723, '1:02:03'),
                                           (90061, '1d 1:01:01'), (None, '?'), (math.inf, '?'), (math.nan, '?')])
def test_seconds(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize('rate, text', [(5.234, '5.23 step/s'), (1234.0, '1.23e+03 step/s'), (0.25, '4 s/step'),
                                        (None, '? step/s'), (0, '? step/s'), (math.nan, '? step/s')])
def test_rate(rate, text):
    assert format_rate(rate) == text


def run(stream, steps, seconds, **kwargs):
    clock = Clock()
    bar = progress(steps, stream, clock=clock, **kwargs)
    clock.now = 60.0  # compilation, which must not count
    for step in range(1, steps + 1):
        bar.update(step, {'loss': 1 / step})
        clock.now += seconds
    bar.close()
    return stream.getvalue()


def test_plain_lines_come_every_so_often_with_rate_and_eta():
    lines = run(io.StringIO(), 100, 0.5, every=10).splitlines()
    assert [line.split()[1] for line in lines] == ['1/100', '21/100', '41/100', '61/100', '81/100', '100/100']
    assert lines[2] == 'train  41/100  41%  2 step/s  elapsed 1:20  eta 30s  loss 0.02439'
    assert 'eta 0s' in lines[-1]
    assert '\r' not in ''.join(lines) and '\x1b' not in ''.join(lines)


def test_terminal_rewrites_one_line_and_keeps_notes(monkeypatch):
    monkeypatch.setenv('COLUMNS', '50')
    monkeypatch.setenv('TERM', 'xterm')
    text = run(Terminal(), 100, 0.05)
    assert text.count('\n') == 1 and text.endswith('\n')
    frames = text.split('\r')[1:]
    assert 20 < len(frames) < 40, 'at most five a second, not one per step'
    assert all(len(f.replace('\x1b[K', '').rstrip('\n')) <= 49 for f in frames)
    stream = Terminal()
    bar = progress(10, stream)
    bar.update(1)
    bar.note('saved step 1')
    bar.close()
    assert '\r\x1b[Ksaved step 1\n' in stream.getvalue()
    monkeypatch.setenv('TERM', 'dumb')
    assert '\r' not in run(Terminal(), 5, 1.0)


def test_rate_follows_the_window_and_survives_a_rollback():
    stream, clock = io.StringIO(), Clock()
    bar = progress(1000, stream, every=0, window=10, clock=clock)
    for step in range(1, 20):
        bar.update(step)
        clock.now += 10.0  # slow at first
    for step in range(20, 60):
        bar.update(step)
        clock.now += 1.0
    assert '  1 step/s' in stream.getvalue().splitlines()[-1]
    bar.update(30)
    assert '30/1000  3%  ? step/s' in stream.getvalue().splitlines()[-1]
    clock.now += 0.5
    bar.update(31)
    assert '31/1000  3%  2 step/s' in stream.getvalue().splitlines()[-1]


def test_metrics_are_read_only_when_shown():
    reads = []

    class Lazy:
        def __float__(self):
            reads.append(1)
            return 1.0

    clock = Clock()
    bar = progress(10 ** 6, io.StringIO(), every=10, clock=clock)
    for step in range(1, 100):
        bar.update(step, {'loss': Lazy()})
        clock.now += 0.1
    assert len(reads) == 1


def test_streams_that_go_away():
    closed = io.StringIO()
    closed.close()
    for stream in (closed, None):
        bar = progress(3, stream) if stream is not None else progress(3, closed)
        bar.update(1)
        bar.note('x')
        bar.close()
        assert emit(stream, 'x') is False
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding='ascii')
    assert emit(ascii_only, 'caf\u00e9') and ascii_only.buffer.getvalue() == b'caf?'


def test_a_broken_pipe_neither_raises_nor_spoils_the_exit_code():
    code = ("import sys\nfrom gen_jax.engine.progress import progress\nbar = progress(99, sys.stdout, every=0)\n"
            "sys.stdin.readline()\n[bar.update(i) for i in range(1, 50)]\nbar.note('x')\nbar.close()\nsys.exit(75)")
    # Unbuffered, nothing would be left for the interpreter to flush on exit, and the test would prove nothing.
    process = subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, env={**os.environ, 'PYTHONUNBUFFERED': ''})
    process.stdout.close()  # the reader has gone before the first line
    process.stdin.write(b'go\n')
    process.stdin.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=30) == 75 and error == b''
