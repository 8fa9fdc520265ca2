"""The watchdog, with a board in memory and ends that do not end the tests."""

import contextlib
import subprocess
import sys
import threading
import time

import pytest

from gen_jax.engine import watchdog
from gen_jax.engine.watchdog import EXIT_HANG, Board, Place, Watchdog, behind, exit_code_of, table


def test_who_the_others_wait_for():
    data, wait = 'reading data', 'waiting for the devices'
    assert behind({0: Place(7, wait, 1), 1: Place(7, data, 1)}) == [1]
    assert behind({0: Place(7, data, 1), 1: Place(6, wait, 1), 2: Place(6, wait, 1)}) == [1, 2]
    assert behind({0: Place(7, wait, 1), 1: Place(7, wait, 9)}) == []
    text = table({0: Place(7, wait, 12), 1: Place(7, data, 12), 2: Place(6, wait, 13, silent=11)}, silence=10)
    lines = text.splitlines()
    assert 'process 0: step 7, waiting for the devices, for 12 s' in lines[0] and '<-' not in lines[0]
    assert 'process 2: DEAD OR FROZEN, no sign of life for 11 s; it was at step 6' in lines[2]


class Ends(list):
    """The exit codes with which a process would have ended."""

    __call__ = list.append


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


@contextlib.contextmanager
def family(count, *limit):
    """Watchdogs of `count` processes, and their ends; watching, if the arguments of `watch` are given."""
    said, ends = {}, [Ends() for _ in range(count)]
    board = Board(said.__setitem__, lambda: dict(said))
    dogs = [Watchdog(k, count, board, ends[k], interval=0.02) for k in range(count)]
    for dog in dogs:
        dog.start()
    with contextlib.ExitStack() as watching:
        for dog in dogs if limit else ():
            watching.enter_context(dog.watch(*limit))
            time.sleep(0.05)
        yield dogs, ends
        for dog in dogs:
            dog.stop()


def test_no_progress_ends_the_process_with_a_report(tmp_path, capfd):
    ends = Ends()
    dog = Watchdog(exit=ends, interval=0.02)
    with dog.watch(2.0, tmp_path):
        for _ in range(130):  # goes on for longer than the limit
            dog.beat(4, 'reading data')
            time.sleep(0.02)
        assert not ends
        dog.beat(5, 'reading data')
        wait_for(lambda: ends)
    assert ends == [EXIT_HANG] == [70]
    report = (tmp_path / 'hang-0.txt').read_text()
    assert 'step 5, reading data: no progress for 2 s' in report and 'test_watchdog.py' in report
    assert 'step 5, reading data' in capfd.readouterr().err


def test_patience_for_what_compiles(tmp_path, monkeypatch):
    monkeypatch.setattr(watchdog, 'PATIENCE', 0.6)
    ends = Ends()
    dog = Watchdog(exit=ends, interval=0.02)
    with dog.watch(0.05, tmp_path):
        began = time.monotonic()
        dog.beat(1, 'updating', patient=True)
        wait_for(lambda: ends)
    assert time.monotonic() - began > 0.4


def test_none_watches_nothing_and_zero_is_refused():
    before = threading.active_count()
    with Watchdog().watch(None) as dog:
        assert threading.active_count() == before
        dog.beat(1, 'saving')
    with pytest.raises(ValueError, match='train.hang_seconds 0: must be positive'), Watchdog().watch(0):
        pass


def test_the_process_that_is_behind_is_named_by_all(tmp_path):
    with family(3, 0.4, tmp_path) as (dogs, ends):
        for _ in range(20):
            for k, dog in enumerate(dogs):
                dog.beat(9, 'reading data' if k == 1 else 'waiting for the devices')
            time.sleep(0.02)
        wait_for(lambda: all(ends))
    assert ends == [[EXIT_HANG]] * 3
    for k in range(3):
        text = (tmp_path / f'hang-{k}.txt').read_text()
        assert 'process 1: step 9, reading data' in text and text.count('<- the others wait for it') == 1


def test_a_silent_process_is_named_even_while_the_others_are_patient(tmp_path):
    with family(3, 0.5, tmp_path) as (dogs, ends):
        dogs[2]._over.set()  # dies: nothing is heard of it any more
        for dog in dogs[:2]:
            dog.beat(3, 'evaluating', patient=True)
        wait_for(lambda: ends[0] and ends[1])
    assert 'process 2: DEAD OR FROZEN' in (tmp_path / 'hang-0.txt').read_text()
    assert 'no sign of life of process 2' in (tmp_path / 'hang-0.txt').read_text()


def test_a_process_that_fails_takes_the_others_along(capfd):
    with family(3) as (dogs, ends):
        with pytest.raises(ValueError, match='shelf'), dogs[1].failing():
            raise ValueError('shelf 7 is empty')
        wait_for(lambda: ends[0] and ends[2])
    assert ends == [[2], [], [2]], 'the same exit code, and the one that failed ends by itself'
    assert capfd.readouterr().err.count('process 1 ended: ValueError: shelf 7 is empty') == 2


def test_finished_processes_are_not_missed():
    with family(2) as (dogs, ends):
        dogs[1].beat(9, 'finished')
        time.sleep(0.1)
        dogs[1].stop()
        with dogs[0].watch(2.0):  # long enough for a busy machine not to look like a hang
            for _ in range(130):
                dogs[0].beat(9, 'saving')
                time.sleep(0.02)
    assert ends == [[], []]


def test_exit_codes():
    class Ours(RuntimeError):
        exit_code = 3

    assert [exit_code_of(e) for e in (Ours(), ValueError(), KeyError(), KeyboardInterrupt(), SystemExit(4))] == [
        3, 2, 1, 130, 4]


BLOCKED = """
import os, time
os.environ['NPROC'] = '4'
import jax
from tests.distributed import job
from gen_jax.engine.train import train
import sys
run, _ = job.make_run({6: lambda: time.sleep(1000)}, **{'train.hang_seconds': 1.5, 'checkpoint.every_steps': 4})
train(run, sys.argv[1])
"""


def test_one_process_whose_data_block(tmp_path):
    done = subprocess.run([sys.executable, '-c', BLOCKED, str(tmp_path)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 70, done.stderr[-2000:]
    for text in (done.stderr, (tmp_path / 'hang-0.txt').read_text()):
        assert 'step 7, reading data: no progress for 1.5 s (train.hang_seconds=1.5)' in text
        assert 'job.py' in text and '__next__' in text, 'the stack shows what it waits for'
    assert 'exit code 70; the same command goes on' in done.stderr
    assert [p.name for p in (tmp_path / 'checkpoints').iterdir()] == ['4']
