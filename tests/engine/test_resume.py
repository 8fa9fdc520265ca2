"""Exact resume: processes that are really killed end with the bits of one that was left alone."""

import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gen_jax.engine.checkpoint import read_leaves
from gen_jax.engine.writers import read_jsonl, without_wall_clock

STEPS, EVERY = 160, 20


def command(workdir, *overrides):
    return [sys.executable, '-m', 'gen_jax.cli.main', 'train', '--config', 'digits:debug', '--workdir', str(workdir),
            f'--config.train.steps={STEPS}', '--config.log.every_steps=1', f'--config.checkpoint.every_steps={EVERY}',
            '--config.log.tensorboard=False', '--config.sample.predict=', '--config.train.cpu_devices=2',
            '--config.evaluate.heldout.every_steps=100', *overrides]


@pytest.fixture(scope='module')
def environment(tmp_path_factory):
    """A compilation cache of this module's own, so that only the first process compiles."""
    import os
    # NPROC is for the suite's eight devices, not for processes of their own.
    inherited = {k: v for k, v in os.environ.items() if k != 'NPROC'}
    return {**inherited, 'GEN_JAX_CACHE': str(tmp_path_factory.mktemp('cache')), 'JAX_PLATFORMS': 'cpu',
            'PYTHONUNBUFFERED': '1'}


@pytest.fixture(scope='module')
def straight(tmp_path_factory, environment):
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp('straight')
    subprocess.run(command(workdir), check=True, env=environment, capture_output=True, timeout=300)
    assert any(Path(environment['GEN_JAX_CACHE']).iterdir()), 'programs are cached by default'
    return workdir


def logged(workdir):
    path = workdir / 'metrics.jsonl'
    return [without_wall_clock(r) for r in read_jsonl(path)] if path.exists() else []


def last_step(workdir):
    path = workdir / 'metrics.jsonl'
    if not path.exists():
        return 0
    found = re.findall(rb'^\{"step": (\d+)', path.read_bytes(), re.M)
    return int(found[-1]) if found else 0


def committed(workdir):
    return sorted(int(p.parent.name) for p in (workdir / 'checkpoints').glob('*/commit_success.txt')
                  if p.parent.name.isdigit())


def saving(workdir):
    return any('tmp' in p.name for p in (workdir / 'checkpoints').glob('*'))


def start(workdir, environment):
    return subprocess.Popen(command(workdir), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True)


def wait_for(process, condition, seconds=240):
    end = time.monotonic() + seconds
    while process.poll() is None and not condition():
        assert time.monotonic() < end, 'the run did not get there'
        time.sleep(0.0005)
    assert process.poll() is None, process.stdout.read()


def assert_equal_runs(a, b):
    left, right = read_leaves(a), read_leaves(b)
    assert left.keys() == right.keys() and left['step'] == STEPS
    different = [k for k in left if left[k].dtype != right[k].dtype or not np.array_equal(left[k], right[k])]
    assert not different, different[:5]
    assert logged(a) == logged(b)


def test_killed_at_random_moments(tmp_path, straight, environment):
    rng = random.Random()  # other moments in every run of the suite
    seed = rng.randrange(10**6)
    rng.seed(seed)
    resumed = []
    goals = sorted(rng.sample(range(EVERY + 2, STEPS - 30), 2))
    for kill in (*goals, 'save'):
        process = start(tmp_path, environment)
        if kill == 'save':
            began = last_step(tmp_path)
            wait_for(process, lambda began=began: last_step(tmp_path) > began and saving(tmp_path))
        else:
            wait_for(process, lambda kill=kill: last_step(tmp_path) >= kill and (committed(tmp_path) or [0])[-1] > 0)
            time.sleep(rng.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        output = process.communicate()[0]
        assert process.returncode == -signal.SIGKILL, (seed, output)
        resumed.append((output, committed(tmp_path), last_step(tmp_path), saving(tmp_path)))
    output = subprocess.run(command(tmp_path), env=environment, capture_output=True, text=True, timeout=300)
    assert output.returncode == 0, (seed, output.stderr)
    outputs = [o for o, *_ in resumed[1:]] + [output.stdout]
    for (_, done, reached, unfinished), later in zip(resumed, outputs, strict=True):
        restart = int(re.search(r'resuming from step (\d+)', later).group(1))
        # From the newest committed step: one interval at most, and what ran beside the save that was killed, if any.
        assert restart == done[-1] > 0, (seed, restart, done)
        assert reached - restart <= EVERY * (2 if unfinished else 1), (seed, restart, reached)
    assert_equal_runs(straight, tmp_path)


@pytest.mark.parametrize('number, code', [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_save_and_exit_with_their_code(tmp_path, straight, environment, number, code):
    process = start(tmp_path, environment)
    wait_for(process, lambda: last_step(tmp_path) >= 25)
    process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == code, output
    stopped = last_step(tmp_path)
    assert committed(tmp_path)[-1] == stopped and stopped % EVERY, 'saved at the step it stopped at'
    again = subprocess.run(command(tmp_path), env=environment, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0 and f'resuming from step {stopped}' in again.stdout
    assert_equal_runs(straight, tmp_path)


def test_wall_time_has_its_own_code(tmp_path, environment):
    run = subprocess.run(command(tmp_path, '--config.train.max_seconds=0.001'), env=environment, capture_output=True,
                         text=True, timeout=300)
    assert run.returncode == 75, run.stderr
    assert committed(tmp_path) == [1] and 'stopped by wall time at step 1' in run.stdout
