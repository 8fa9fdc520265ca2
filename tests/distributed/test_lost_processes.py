"""Longer ones (make test-slow): every way to lose one of two processes, and runs that go on on other processes."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from gen_jax.engine import integrity
from gen_jax.engine.checkpoint import read_leaves
from gen_jax.engine.train import train
from tests.distributed import job
from tests.distributed.test_two_processes import ROOT, finish, free_port, losses, results, start

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('scenario, lost', [('die-0', 0), ('die-1', 1), ('stop-0', 0), ('stop-1', 1)])
def test_a_dead_or_frozen_process_is_named(tmp_path, scenario, lost):
    processes = start(tmp_path, scenario)
    try:
        output, _ = processes[1 - lost].communicate(timeout=200)
    finally:
        processes[lost].kill()
        processes[lost].communicate()
    assert processes[1 - lost].returncode == 70, output[-3000:]
    report = (tmp_path / scenario / f'hang-{1 - lost}.txt').read_text()
    for text in (output, report):
        assert f'process {lost}: DEAD OR FROZEN' in text and 'most recent call first' in text
        assert f'process {1 - lost}: DEAD' not in text


def test_data_that_block_in_one_process(tmp_path):
    for code, output in finish(start(tmp_path, 'block')):
        assert code == 70, output[-3000:]
        assert 'process 1: step 10, reading data' in output and output.count('<- the others wait for it') == 1
    assert '__next__' in (tmp_path / 'block' / 'hang-1.txt').read_text()


def test_two_signals_to_two_processes(tmp_path):
    assert [code for code, _ in finish(start(tmp_path, 'both'))] == [0, 0]
    one, other = results(tmp_path / 'both')
    assert one == other and 5 < one['step'] <= 9 and one['exit_code'] in (130, 143)


@pytest.mark.parametrize('scenario, expected, message', [
    ('fail', 2, 'ValueError: shelf 7 is empty'), ('twice', 130, 'KeyboardInterrupt'), ('nan', 3, 'is not finite')])
def test_what_ends_one_process_ends_both(tmp_path, scenario, expected, message):
    for code, output in finish(start(tmp_path, scenario)):
        assert code == expected and message in output, output[-3000:]


@pytest.mark.parametrize('scenario', ['full-0', 'full-1'])
def test_a_save_that_fails_in_one_process_ends_both_at_once(tmp_path, scenario):
    """Orbax has the two wait for each other, at different barriers, for 20 minutes."""
    for code, output in finish(start(tmp_path, scenario), 200):
        assert code == 2 and 'could not be saved in' in output and 'File too large' in output, output[-3000:]
        assert 'on_error=continue' not in output, 'no advice for several processes'
    steps = [p for p in (tmp_path / scenario / 'checkpoints').iterdir() if p.name.isdigit()]
    assert [p.name for p in steps] == ['20'] and integrity.verify(steps[0])


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('alone')
    train(job.make_run(scored=False)[0], workdir)
    return workdir


def assert_same(workdir, alone):
    mine, theirs = losses(workdir), losses(alone)
    assert sorted(mine) == sorted(theirs) == list(range(1, job.STEPS + 1))
    np.testing.assert_allclose([mine[k] for k in sorted(mine)], [theirs[k] for k in sorted(mine)], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('scenario', ['straight', 'tensor', 'pmap'])
def test_two_devices_each_and_a_mesh_across_the_processes(tmp_path, alone, scenario):
    """tensor: the axis `model` lies across the processes, so both hold, and read, the whole batch."""
    for code, output in finish(start(tmp_path, scenario, devices=2)):
        assert code == 0, output[-3000:]
    assert_same(tmp_path / scenario, alone)
    rows = np.load(tmp_path / scenario / 'seen-1.npy').shape[1]
    assert rows == (job.BATCH if scenario == 'tensor' else job.BATCH // 2)


def test_many_processes_and_back(tmp_path, alone):
    """Two processes with the state in parts (30 steps), then four processes, then one; four devices, two, eight."""
    assert [code for code, _ in finish(start(tmp_path, 'fsdp'))] == [0, 0]
    shutil.move(tmp_path / 'fsdp', tmp_path / 'term')
    done = finish(start(tmp_path, 'term', count=4))  # process 1 asks to stop, but at a step that is over
    assert [code for code, _ in done] == [0] * 4, done[0][1][-3000:]
    assert 'resuming from step 30' in done[0][1] and 'it ran on 2 devices and now on 4' in done[0][1]
    assert_same(tmp_path / 'term', alone)


def test_both_killed_at_random_moments(tmp_path, alone):
    """Three times, once in the middle of a save."""
    seed = random.randrange(10**6)
    rng, workdir = random.Random(seed), tmp_path / 'straight'
    for attempt in range(3):
        processes, end = start(tmp_path, 'straight'), time.monotonic() + 200
        goal = 4 + 14 * attempt + rng.randrange(10)

        def there(attempt=attempt, goal=goal):
            if attempt == 1:
                return any('tmp' in p.name for p in (workdir / 'checkpoints').glob('*'))
            return (workdir / 'metrics.jsonl').exists() and max(losses(workdir), default=0) >= goal

        while not there() and all(p.poll() is None for p in processes) and time.monotonic() < end:
            time.sleep(0.001)
        for p in processes:
            p.send_signal(signal.SIGKILL)
        for _, output in finish(processes):
            assert 'Error' not in output, (seed, output[-3000:])
    for code, output in finish(start(tmp_path, 'straight')):
        assert code == 0, (seed, output[-3000:])
    assert_same(workdir, alone)
    assert finish(start(tmp_path / 'again', 'straight'))[0][0] == 0
    left, right = read_leaves(workdir), read_leaves(tmp_path / 'again' / 'straight')
    assert not [k for k in left if not np.array_equal(left[k], right[k])], (seed, 'bit-equal at equal device count')


def test_command_line_with_two_processes_is_one_process_with_two_devices(tmp_path):
    """`gen-jax train` on digits, stopped by SIGTERM to one, resumed by both; against one process."""
    environment = {k: v for k, v in os.environ.items() if k != 'NPROC'} | {'JAX_PLATFORMS': 'cpu'}

    def command(workdir, *more):
        return [sys.executable, '-m', 'gen_jax.cli.main', 'train', '--config', 'digits:debug', '--workdir',
                str(workdir), '--config.train.steps=40', '--config.log.every_steps=1', '--config.sample.every_steps=20',
                '--config.checkpoint.every_steps=15', '--config.log.tensorboard=False', *more]

    def two():
        address = f'127.0.0.1:{free_port()}'
        return [subprocess.Popen(command(
            tmp_path / 'two', '--distributed', '--coordinator', address, '--process-id', str(k), '--process-count',
            '2', '--config.train.hang_seconds=120', '--config.train.cpu_devices=1'), env=environment, cwd=ROOT,
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for k in range(2)]

    def steps(workdir):
        path = workdir / 'metrics.jsonl'
        return [int(s) for s in re.findall(r'^\{"step": (\d+)', path.read_text(), re.M)] if path.exists() else []

    processes = two()
    while max(steps(tmp_path / 'two'), default=0) < 5 and all(p.poll() is None for p in processes):
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGTERM)
    done = finish(processes)
    assert [code for code, _ in done] == [143, 143], done
    assert 'stopped by SIGTERM at step' in done[0][1] and 'stopped by' not in done[1][1]
    done = finish(two())
    assert [code for code, _ in done] == [0, 0], done
    subprocess.run(command(tmp_path / 'one', '--config.train.cpu_devices=2'), env=environment, check=True, cwd=ROOT,
                   capture_output=True, timeout=300)
    left, right = read_leaves(tmp_path / 'two'), read_leaves(tmp_path / 'one')
    different = {k: float(np.max(np.abs(left[k].astype(np.float64) - right[k]))) for k in right
                 if not np.array_equal(left[k], right[k])}
    print(f'{len(different)} of {len(right)} leaves differ, by at most {max(different.values(), default=0):.3g}')
    for k in right:
        np.testing.assert_allclose(left[k], right[k], rtol=1e-3, atol=1e-5, err_msg=k)
