"""Two real processes over loopback: the same batches, losses and stops as one; and what a lost process leads to."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from gen_jax.data import pipeline
from gen_jax.engine.checkpoint import read_leaves
from gen_jax.engine.train import train
from gen_jax.engine.writers import read_jsonl
from tests.distributed import job

ROOT = Path(__file__).parents[2]


def free_port():
    with socket.create_server(('127.0.0.1', 0)) as server:
        return server.getsockname()[1]


def start(folder, *scenarios, devices=1, count=2):
    """The processes, running."""
    environment = {k: v for k, v in os.environ.items() if k != 'NPROC'}
    address = f'127.0.0.1:{free_port()}'
    return [subprocess.Popen(
        [sys.executable, '-m', 'tests.distributed.job', address, str(k), str(count), str(devices), str(folder),
         *scenarios], env={**environment, 'JAX_PLATFORMS': 'cpu', 'PYTHONUNBUFFERED': '1'}, cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for k in range(count)]


def finish(processes, seconds=300):
    """[(exit code, output)]; none is left behind."""
    try:
        return [(p.communicate(timeout=seconds)[0], p.returncode)[::-1] for p in processes]
    finally:
        for p in processes:
            if p.poll() is None:
                p.kill()
                p.communicate()


def losses(workdir):
    return {r['step']: r['fit/loss'] for r in read_jsonl(workdir / 'metrics.jsonl') if 'fit/loss' in r}


def results(workdir):
    return [json.loads((workdir / f'result-{k}.json').read_text()) for k in (0, 1)]


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    """One process, the suite's eight devices, uninterrupted."""
    workdir = tmp_path_factory.mktemp('alone')
    result = train(job.make_run()[0], workdir)
    return workdir, result.metrics


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
    """(folder, exit codes and outputs) of two processes that did one thing after another; the last kills process 1."""
    folder = tmp_path_factory.mktemp('pair')
    first = train(job.make_run(scored=False, **{'train.steps': 20})[0], folder / 'resume')  # to be continued by the two
    assert first.step == 20
    done = finish(start(folder, 'straight', 'pmap', 'fsdp', 'from', 'resume', 'term', 'wall', 'die-1'))
    for _, output in done:
        print(output[-4000:])
    return folder, done


def test_same_batches_bit_for_bit(pair):
    folder, _ = pair
    with pipeline.train_iterator(job.Source(), batch_size=job.BATCH, seed=0, num_threads=0) as data:
        expected = np.array([data.batch(k)['x'] for k in range(job.STEPS)])
    for name in ('straight', 'pmap'):
        halves = [np.load(folder / name / f'seen-{k}.npy') for k in (0, 1)]
        assert np.concatenate(halves, axis=1).tobytes() == expected.tobytes()
        assert halves[0].shape[1] == job.BATCH // 2


@pytest.mark.parametrize('name', ['straight', 'pmap', 'fsdp', 'resume'])
def test_same_losses_as_one_process(pair, alone, name):
    folder, _ = pair
    mine, theirs = losses(folder / name), losses(alone[0])
    last = 30 if name == 'fsdp' else job.STEPS
    assert sorted(mine) == list(range(1, last + 1))
    np.testing.assert_allclose([mine[k] for k in mine], [theirs[k] for k in mine], rtol=1e-5, atol=1e-7)
    assert theirs[1] > 2 * theirs[job.STEPS], 'it learns, so equality means something'


def test_evaluation_and_pictures_are_those_of_one_process(pair, alone):
    folder, _ = pair
    one, other = results(folder / 'straight')
    assert one == other, 'what train returns is the same in every process'
    for result in (one, other):
        assert result['metrics']['heldout/error'] == pytest.approx(alone[1]['heldout/error'], rel=1e-5)
    from PIL import Image
    for step in (25, 50):
        mine, theirs = (np.asarray(Image.open(w / 'samples' / f'samples-{step:08d}.png')).astype(int)
                        for w in (folder / 'straight', alone[0]))
        assert mine.std() > 10 and np.abs(mine - theirs).max() <= 1


def test_only_process_0_writes(pair):
    folder, done = pair
    workdir = folder / 'straight'
    names = {p.name for p in workdir.iterdir()}
    assert names == {'checkpoints', 'config.json', 'versions.json', 'metrics.jsonl', 'samples',
                     *(f'{n}-{k}.{e}' for n, e in (('seen', 'npy'), ('result', 'json')) for k in (0, 1))}
    assert [r['step'] for r in read_jsonl(workdir / 'metrics.jsonl') if 'fit/loss' in r] == list(range(1, 51))
    assert done[0][1].count('finished at step 50 of 50') == 3 and 'finished at' not in done[1][1]
    assert 'resuming from step 20' in done[0][1] and 'resuming' not in done[1][1]


def test_two_processes_begin_from_another_run(pair):
    """One step of Adam away from the average of the run that train.init_from names."""
    folder, _ = pair
    mine, theirs = read_leaves(folder / 'from'), read_leaves(folder / 'fsdp')
    for name in ('first', 'last'):
        apart = np.abs(mine[f'params/net/{name}'] - theirs[f'ema/slow/params/net/{name}'])
        assert 0.005 < apart.max() < 0.0101


def test_stops_are_agreed_on(pair):
    folder, _ = pair
    for name, code, asked in (('term', 143, 7), ('wall', 75, 0)):
        one, other = results(folder / name)
        assert one['step'] == other['step'] and one['exit_code'] == other['exit_code'] == code, name
        assert asked < one['step'] <= asked + 3, name
        saved = max(int(p.name) for p in (folder / name / 'checkpoints').iterdir())
        assert saved == one['step'] == max(losses(folder / name)), 'saved where it stopped'


def test_a_process_that_dies_is_named_and_ends_the_job(pair):
    folder, ((code, output), (killed, _)) = pair
    assert killed == -signal.SIGKILL and code == 70, output[-3000:]
    assert 'process 1: DEAD OR FROZEN' in output and 'job.py' in output
    report = (folder / 'die-1' / 'hang-0.txt').read_text()
    assert 'process 1: DEAD OR FROZEN' in report and 'most recent call first' in report and 'train.py' in report


@pytest.mark.parametrize('name', ['straight', 'fsdp', 'term'])
def test_one_process_goes_on_where_two_stopped(pair, alone, name, tmp_path):
    """Eight devices and one process, from what two processes wrote (replicated, or each its part of the state)."""
    import shutil
    folder, _ = pair
    shutil.copytree(folder / name, tmp_path / name)
    if name == 'straight':  # the last of a run: its state is that of the straight run
        mine, theirs = read_leaves(folder / name), read_leaves(alone[0])
        for k in theirs:
            np.testing.assert_allclose(mine[k], theirs[k], rtol=1e-4, atol=1e-6, err_msg=k)
        return
    assert jax.process_count() == 1 and jax.device_count() == 8
    train(job.make_run(scored=False)[0], tmp_path / name)
    mine, theirs = losses(tmp_path / name), losses(alone[0])
    assert sorted(mine) == list(range(1, job.STEPS + 1))
    np.testing.assert_allclose([mine[k] for k in sorted(mine)], [theirs[k] for k in sorted(mine)], rtol=1e-5, atol=1e-7)
