"""Saves that fail: the step before stays good, the run says so at once, and stops or goes on as it was told to."""

import errno
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import threading
import time

import jax.numpy as jnp
import pytest

from gen_jax.engine import integrity, manager
from gen_jax.engine.checkpoint import CheckpointError, Checkpoints, read_leaves
from gen_jax.engine.signals import Stop
from gen_jax.engine.train import train
from gen_jax.types import TrainState
from tests.engine.full_disk import heavy
from tests.engine.test_train import make


def state(step):
    return TrainState(jnp.int32(step), {'net': {'w': jnp.full(4, float(step))}}, {}, {}, {}, {})


@pytest.fixture
def full_disk(once):
    """The workdirs of three runs in one process, and exit.json: {name: [exit code, what was printed]}."""
    def make(folder):
        environment = {**{k: v for k, v in os.environ.items() if k != 'NPROC'}, 'JAX_PLATFORMS': 'cpu'}
        runs = {'stop': ('5', '99', '--config.checkpoint.keep_last=1'),
                'wait': ('4', '11', '--config.checkpoint.on_error=continue'),
                'end': ('9', '99', '--config.checkpoint.on_error=continue')}
        words = [word for name, words in runs.items() for word in ('--', str(folder / name), *words)]
        done = subprocess.run([sys.executable, '-m', 'tests.engine.full_disk', *words[1:]], capture_output=True,
                              text=True, timeout=300, env=environment)
        assert done.returncode == 0 and 'Traceback' not in done.stdout + done.stderr, done.stderr
        said, codes = re.split(r'^exit \d+\n', done.stdout, flags=re.M), re.findall(r'^exit (\d+)\n', done.stdout, re.M)
        (folder / 'exit.json').write_text(json.dumps(dict(zip(runs, zip(map(int, codes), said[:-1], strict=True),
                                                              strict=True))))
    return once('full-disk', make)


def ended(full_disk, name):
    return json.loads((full_disk / 'exit.json').read_text())[name]


def left(workdir):
    """Everything in the checkpoints folder, each step verified."""
    names = sorted(p.name for p in (workdir / 'checkpoints').iterdir())
    assert all(integrity.verify(workdir / 'checkpoints' / name) for name in names)
    return names


def test_a_full_disk_stops_the_run_with_one_message_and_the_step_before_stays_good(full_disk, tmp_path, capfd):
    workdir, (code, said) = full_disk / 'stop', ended(full_disk, 'stop')
    assert code == 2, said
    lines = said.splitlines()
    # The save of step 8 fails while batch 9 is waited for; the loop reports it then, not at the next save.
    assert lines[-2] == 'batch 9' and lines[-1].startswith('ERROR: ')
    for part in (f'the checkpoint of step 8 could not be saved in {workdir}/checkpoints: ', 'File too large',
                 'The newest good one is step 4', 'Free some space', 'run the same command again', 'on_error=continue'):
        assert part in lines[-1], (part, lines[-1])
    assert left(workdir) == ['4'], 'the step before is there and nothing else'
    assert read_leaves(workdir)['step'] == 4
    shutil.copytree(workdir, tmp_path / 'again')
    run = make(heavy(), '--config.train.steps=12', '--config.checkpoint.every_steps=4',
               '--config.checkpoint.keep_last=1')
    assert train(run, tmp_path / 'again', stop=Stop()).exit_code == 0 and left(tmp_path / 'again') == ['12']
    assert 'resuming from step 4' in ''.join(capfd.readouterr())


def test_a_full_disk_can_be_sat_out(full_disk):
    code, said = ended(full_disk, 'wait')
    assert code == 0, said
    warnings = [(i, line) for i, line in enumerate(said.splitlines()) if 'WARNING' in line]
    assert len(warnings) == 2
    for (at, line), step in zip(warnings, (4, 8), strict=True):
        assert f'step {step} could not be saved' in line and 'the next save tries again' in line
        assert 'There is no earlier one' in line
        assert said.splitlines()[at - 1] == f'batch {step + 1}', 'said at once'
    assert 'finished at step 12' in said and left(full_disk / 'wait') == ['12']
    # With no later save to make up for it, the last one counts.
    code, said = ended(full_disk, 'end')
    assert code == 2 and 'finished' not in said
    assert 'ERROR: the checkpoint of step 12 could not be saved' in said and left(full_disk / 'end') == ['4', '8']


def no_space(*args):
    raise OSError(errno.ENOSPC, 'No space left on device')


@pytest.mark.parametrize('on_error', ['raise', 'continue'])
def test_a_manifest_that_cannot_be_written_leaves_no_step(tmp_path, monkeypatch, capsys, on_error):
    store = Checkpoints(tmp_path, keep_last=1, on_error=on_error)
    store.save(1, state(1), {}, wait=True)
    with monkeypatch.context() as patch:
        patch.setattr(integrity, 'write_manifest', no_space)
        store.save(2, state(2), {})
        if on_error == 'raise':
            with pytest.raises(CheckpointError, match='step 2 could not be saved .* No space left on device.* step 1'):
                store.wait()
        else:
            store.wait()
            assert 'WARNING: the checkpoint of step 2' in capsys.readouterr().out
        assert left(tmp_path) == ['1'] and store.steps() == [1]
    store.save(3, state(3), {}, wait=True)
    assert left(tmp_path) == ['3'] and store.steps() == [3]
    store.wait(final=True)
    store.close()


def test_a_step_gets_its_name_last_and_the_one_before_is_deleted_after(tmp_path, monkeypatch):
    """Whenever the process is killed, what has a step's name is whole, and one of them is there."""
    store, seen = Checkpoints(tmp_path, keep_last=1), []
    store.save(1, state(1), {}, wait=True)
    rename, delete = pathlib.Path.rename, manager.integrity.flush_folder

    def watched(path, target):
        if pathlib.Path(target).name.isdigit():
            files = {p.relative_to(path).as_posix() for p in path.rglob('*') if p.is_file()}
            listed = integrity._parse((path / integrity.MANIFEST).read_bytes())
            assert {*listed['files'], integrity.MANIFEST} == files and listed['step'] == '2'
            assert integrity.verify(tmp_path / 'checkpoints' / '1')
            seen.append('renamed')
        return rename(path, target)

    def flushed(path):
        if pathlib.Path(path).name == 'checkpoints':
            assert integrity.verify(tmp_path / 'checkpoints' / '1') and integrity.verify(tmp_path / 'checkpoints' / '2')
            seen.append('flushed')
        delete(path)

    monkeypatch.setattr(pathlib.Path, 'rename', watched)
    monkeypatch.setattr(integrity, 'flush_folder', flushed)
    store.save(2, state(2), {}, wait=True)
    assert seen == ['renamed', 'flushed'] and left(tmp_path) == ['2']
    store.close()


def test_what_killed_saves_and_deletions_left_is_removed_at_the_next_start(tmp_path):
    store = Checkpoints(tmp_path)
    store.save(1, state(1), {}, wait=True)
    store.close()
    for name in ('2.orbax-checkpoint-tmp/state', 'replaced.orbax-checkpoint-tmp/0'):
        (tmp_path / 'checkpoints' / name).mkdir(parents=True)
    Checkpoints(tmp_path, read_only=True).close()
    assert len(list((tmp_path / 'checkpoints').iterdir())) == 3, 'a reader changes nothing'
    Checkpoints(tmp_path).close()
    assert left(tmp_path) == ['1']


def test_on_its_way_out_of_a_failed_save_a_thread_waits_for_no_other_process(tmp_path):
    """Of two processes: `test_a_save_that_fails_in_one_process_ends_both_at_once`."""
    store, raised = Checkpoints(tmp_path), []

    def save():
        try:
            store._manager._meet(key='before', timeout_ms=1)
            try:
                no_space()
            finally:
                store._manager._meet(key='after', timeout_ms=1)
        except OSError as error:
            raised.append(error)

    thread = threading.Thread(target=save)
    thread.start()
    thread.join()
    assert raised[0].errno == errno.ENOSPC and store._manager._failed.is_set()
    store.close()


def test_a_step_that_somebody_deleted_meanwhile(tmp_path, capsys):
    """Orbax still lists it: what a rollback would go back to."""
    store = Checkpoints(tmp_path)
    for step in (1, 2):
        store.save(step, state(step), {}, wait=True)
    shutil.rmtree(tmp_path / 'checkpoints' / '2')
    assert store.restore(state(0))[1]['step'] == 1 and store.steps() == [1]
    assert 'falling back to step 1' in capsys.readouterr().out
    store.close()


def test_another_error_is_not_hidden_by_a_failed_save(tmp_path, monkeypatch, capsys):
    store = Checkpoints(tmp_path)
    monkeypatch.setattr(integrity, 'write_manifest', no_space)
    with pytest.raises(ZeroDivisionError):
        try:
            store.save(1, state(1), {})
            1 / 0  # noqa: B018
        finally:
            store.close()
    assert 'WARNING: the checkpoint of step 1 could not be saved' in capsys.readouterr().out
    with pytest.raises(ValueError, match="checkpoint.on_error 'ignore': choose from raise, continue"):
        Checkpoints(tmp_path, on_error='ignore')


SAVE_FOR_EVER = '''
import sys, jax.numpy as jnp
from gen_jax.engine.checkpoint import Checkpoints
from tests.engine.test_failed_saves import state
store = Checkpoints(sys.argv[1], keep_last=1)
step = (store.steps() or [0])[-1]
while True:
    step += 1
    store.save(step, state(step), {}, wait=True)
    print(step, flush=True)
'''


@pytest.mark.slow
def test_kills_at_random_moments_leave_whole_steps_only(tmp_path):
    """Most of the time goes into commits and deletions, so that is where most kills fall."""
    seed = random.randrange(10 ** 6)
    rng, environment = random.Random(seed), {**os.environ, 'JAX_PLATFORMS': 'cpu'}
    for _ in range(12):
        process = subprocess.Popen([sys.executable, '-c', SAVE_FOR_EVER, str(tmp_path)], stdout=subprocess.PIPE,
                                   text=True, env=environment)
        said = [int(process.stdout.readline()) for _ in range(3)]
        time.sleep(rng.random() * 0.3)
        process.kill()
        said += [int(line) for line in process.communicate()[0].split()]
        steps = [p for p in (tmp_path / 'checkpoints').iterdir() if p.name.isdigit()]
        assert steps and all(integrity.verify(p) for p in steps), seed
        assert max(int(p.name) for p in steps) >= said[-1], seed
