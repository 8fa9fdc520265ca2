"""Signals sent to real processes: flag, exit codes, the second interrupt, restored handlers."""

import signal
import subprocess
import sys
import threading

import pytest

from gen_jax.engine import signals
from gen_jax.engine.signals import EXIT_SIGINT, EXIT_SIGTERM, EXIT_WALL_TIME, Stop, stop_signals

LOOP = """
import sys, time
from gen_jax.engine.signals import stop_signals
with stop_signals() as stop:
    print('ready', flush=True)
    deadline = time.monotonic() + 20
    while not stop.requested and time.monotonic() < deadline:
        time.sleep(0.01)
    print('stopping', flush=True)
    if 'linger' in sys.argv:
        while time.monotonic() < deadline:
            time.sleep(0.01)
    print('saved', flush=True)
sys.exit(stop.exit_code)
"""


def start(*arguments):
    process = subprocess.Popen([sys.executable, '-c', LOOP, *arguments], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == 'ready\n'
    return process


@pytest.mark.parametrize('number, code', [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_one_signal_finishes_the_step_and_exits_with_its_code(number, code):
    process = start()
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert out == 'stopping\nsaved\n' and process.returncode == code
    assert err.count('will stop after this step and save') == 1 and 'Traceback' not in err


def test_second_interrupt_stops_at_once_but_second_sigterm_does_not():
    process = start('linger')
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == 'stopping\n'
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)  # the first interrupt: still only a request
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert 'saved' not in out and 'KeyboardInterrupt' in err and process.returncode != 0


def test_handlers_are_restored_also_after_an_error():
    def mine(*_):
        pass

    before = signal.getsignal(signal.SIGINT)
    old = signal.signal(signal.SIGTERM, mine)
    try:
        with pytest.raises(RuntimeError), stop_signals():
            assert signal.getsignal(signal.SIGTERM) is not mine
            raise RuntimeError
        assert signal.getsignal(signal.SIGTERM) is mine and signal.getsignal(signal.SIGINT) is before
        with stop_signals(signals=(signal.SIGINT,)):
            assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, old)


def test_first_reason_stays():
    stop = Stop()
    assert (stop.requested, stop.exit_code) == (False, 0)
    stop.request('SIGINT')
    stop.request('SIGTERM')
    assert (stop.requested, stop.reason, stop.exit_code) == (True, 'SIGINT', EXIT_SIGINT)
    with pytest.raises(ValueError, match='SIGHUP'):
        stop.request('SIGHUP')
    assert (EXIT_SIGTERM, EXIT_SIGINT, EXIT_WALL_TIME) == (143, 130, 75)


def test_processes_agree_on_the_largest_flag():
    one, other = Stop(shared=True), Stop(shared=True)
    one.request('wall time')
    assert (one.flag, other.flag, one.requested) == (1, 0, False), 'nothing happens before all know'
    other.request('SIGTERM')
    for stop in (one, other):
        stop.agree(max(one.flag, other.flag))
    assert [(s.requested, s.reason, s.exit_code) for s in (one, other)] == [(True, 'SIGTERM', EXIT_SIGTERM)] * 2
    third = Stop(shared=True)
    third.agree(0)
    assert not third.requested


def test_wall_time(monkeypatch, capfd):
    now = [100.0]
    monkeypatch.setattr(signals.time, 'monotonic', lambda: now[0])
    with stop_signals(wall_time=60) as stop:
        now[0] = 159.9
        assert not stop.requested
        now[0] = 160.0
        assert stop.requested and stop.requested and stop.exit_code == EXIT_WALL_TIME
    assert capfd.readouterr().err.count('wall time of 60 s') == 1
    with pytest.raises(ValueError, match='wall_time=0'):
        Stop(0)


def test_no_op_outside_the_main_thread():
    seen = []

    def work():
        before = signal.getsignal(signal.SIGTERM)
        with stop_signals() as stop:
            seen.append((signal.getsignal(signal.SIGTERM) is before, stop.requested))
            stop.request('SIGTERM')
            seen.append(stop.exit_code)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(True, False), 143]
