"""Exact resume: processes that are really killed end with the bits of one that was left alone."""

import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gen_jax.cli.main import main
from gen_jax.engine.verify_resume import compare, verify
from gen_jax.engine.writers import read_jsonl

STEPS, EVERY = 200, 20
CONFIG = str(Path(__file__).with_name('interrupted.py'))
TRAIN = (sys.executable, '-m', 'gen_jax.cli.main', 'train')
SEED = 20260701
"""Of the random moments: fixed, so that a failure can be sought again (the machine's speed moves them a little)."""


def command(workdir, *overrides):
    return [*TRAIN, '--config', CONFIG, '--workdir', str(workdir), f'--config.train.steps={STEPS}',
            '--config.log.every_steps=1', f'--config.checkpoint.every_steps={EVERY}', *overrides]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Of the processes that are started here: NPROC is for the suite's own eight devices."""
    monkeypatch.delenv('NPROC', raising=False)
    monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
    monkeypatch.setenv('PYTHONUNBUFFERED', '1')


@pytest.fixture
def straight(once, environment):
    """An uninterrupted run, by `verify-resume`, which killed another one in its middle and found it equal."""

    def make(folder):
        said = []
        assert verify(CONFIG, (), TRAIN, steps=STEPS, workdir=folder, say=said.append) == 0, said
        (folder / 'said').write_text('\n'.join(said))

    return once('verify-resume', make) / 'straight'


def last_step(workdir):
    path = workdir / 'metrics.jsonl'
    found = re.findall(rb'^\{"step": (\d+)', path.read_bytes(), re.M) if path.exists() else []
    return int(found[-1]) if found else 0


def committed(workdir):
    return sorted(int(p.name) for p in (workdir / 'checkpoints').glob('*') if p.name.isdigit())


def saving(workdir):
    return any('tmp' in p.name for p in (workdir / 'checkpoints').glob('*'))


def evaluating(workdir):
    """The step's losses are in the log, and its scores, which come next, are not."""
    path = workdir / 'metrics.jsonl'
    lines = path.read_bytes().splitlines() if path.exists() else []
    return bool(lines) and re.match(rb'\{"step": (30|60|90|120|150|180),.*denoise/loss', lines[-1]) is not None


def start(workdir):
    return subprocess.Popen(command(workdir), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True)


def wait_for(process, condition, seconds=240):
    """Whether the condition came true while the process was alive."""
    end = time.monotonic() + seconds
    while process.poll() is None and not condition():
        assert time.monotonic() < end, 'the run did not get there'
        time.sleep(0.0005)
    return process.poll() is None


def finish(workdir, *overrides):
    out = subprocess.run(command(workdir, *overrides), capture_output=True, text=True, timeout=300)
    assert out.returncode == 0, out.stdout + out.stderr
    return out.stdout + out.stderr


def assert_equal_runs(a, b):
    found, what = compare(a, b)
    assert not found and f'{STEPS}}}' in what, [str(d) for d in found[:5]]


def kill(workdir, moment, rng):
    """Starts the run and kills it (-9) at a moment; (output, newest checkpoint then, whether a save was running)."""
    process, began = start(workdir), last_step(workdir)
    if moment == 'start':  # imports, data, compilation, the first steps
        until = time.monotonic() + rng.uniform(0.5, 4.0)
        wait_for(process, lambda: time.monotonic() > until or last_step(workdir) > began + 10)
    elif moment == 'save':
        wait_for(process, lambda: last_step(workdir) > began and saving(workdir))
    elif moment == 'evaluation':
        wait_for(process, lambda: last_step(workdir) > began and evaluating(workdir))
    else:
        goal = rng.randrange(began + 1, max(began + 2, STEPS // 2))
        wait_for(process, lambda: last_step(workdir) >= goal)
        time.sleep(rng.random() * 0.02)
    process.send_signal(signal.SIGKILL)
    output = process.communicate()[0]
    assert process.returncode in (-signal.SIGKILL, 0), output
    return output, (committed(workdir) or [0])[-1], saving(workdir)


def restarted_at(output):
    found = re.search(r'resuming from step (\d+)', output)
    return int(found.group(1)) if found else 0


def test_verify_resume_says_equal(straight):
    said = (straight.parent / 'said').read_text()
    assert re.search(r'killed \(-9\) at step \d+, after the checkpoint of step 100\n', said)
    assert re.search(r'equal, bit by bit: 12 leaves \(16,388 values\), 207 log rows, .* in all', said)
    assert 'resuming from step 100' in (straight.parent / 'killed.txt').read_text()


def test_killed_interrupted_and_terminated(tmp_path, straight):
    """One run through everything: killed at its start and in a save (`straight` was, behind one), SIGINT and SIGTERM,
    once and twice."""
    rng = random.Random(SEED)
    print('seed of the moments:', SEED)
    outputs, kept = [], []
    for moment in ('start', 'save'):
        output, newest, unfinished = kill(tmp_path, moment, rng)
        outputs.append(output)
        kept.append((newest, last_step(tmp_path), unfinished))
        print(moment, kept[-1])
    codes = []
    for number, twice in ((signal.SIGTERM, False), (signal.SIGINT, False), (signal.SIGTERM, True),
                          (signal.SIGINT, True)):
        process, began = start(tmp_path), last_step(tmp_path)
        # What the run had logged behind its checkpoint is cut off first: the file is shorter for a moment.
        assert wait_for(process, lambda began=began: committed(tmp_path) and last_step(tmp_path) > began + 1), \
            process.stdout.read()
        process.send_signal(number)
        lines = []
        if twice:
            for line in process.stdout:
                lines.append(line)
                if 'will stop after this step' in line:
                    process.send_signal(number)
                    break
        outputs.append(''.join(lines) + process.communicate(timeout=60)[0])
        codes.append(process.returncode)
        if not (twice and number == signal.SIGINT):
            assert committed(tmp_path)[-1] == last_step(tmp_path), 'saved at the step it stopped at'
        kept.append((committed(tmp_path)[-1], last_step(tmp_path), saving(tmp_path)))
    print(codes, kept)
    # A second SIGTERM changes nothing; a second Ctrl-C stops at once, unless the save was done before it came.
    assert codes[:3] == [143, 130, 143] and codes[3] in (-signal.SIGINT, 130), (codes, outputs[-1])
    outputs.append(finish(tmp_path))
    for (newest, reached, unfinished), output in zip(kept, outputs[1:], strict=True):
        # From the newest committed step: one interval at most, and what ran beside the save that was killed, if any.
        assert restarted_at(output) == newest and reached - newest <= EVERY * (2 if unfinished else 1), (kept, output)
    assert_equal_runs(straight, tmp_path)


def test_wall_time_has_its_own_code(tmp_path, capsys):
    assert main(command(tmp_path, '--config.train.max_seconds=0.001')[len(TRAIN) - 1:]) == 75
    assert committed(tmp_path) == [1] and 'stopped by wall time at step 1' in capsys.readouterr().out


@pytest.mark.slow
def test_twenty_kills(tmp_path, straight):
    rng = random.Random(SEED + 1)
    overrides = tmp_path / 'runs'
    moments = ['start', 'save', 'evaluation', 'step'] * 5
    rng.shuffle(moments)
    done, workdir, finished = [], overrides / '0', 0
    for moment in moments:
        output, newest, unfinished = kill(workdir, moment, rng)
        done.append((moment, newest, last_step(workdir), unfinished, 'finished at' in output))
        print(done[-1])
        if 'finished at' in output or last_step(workdir) >= STEPS - 20:  # too far to be killed again: the next run
            finish(workdir)
            assert_equal_runs(straight, workdir)
            finished += 1
            workdir = overrides / str(finished)
    finish(workdir)
    assert_equal_runs(straight, workdir)
    assert sum(not d[-1] for d in done) >= 18, done


@pytest.mark.slow
def test_verify_resume_of_a_shipped_config_and_on_other_devices(tmp_path):
    assert verify('digits:debug', ('--config.train.cpu_devices=2',), TRAIN, steps=60, workdir=tmp_path / 'a') == 0
    said = []
    assert verify(CONFIG, (), TRAIN, steps=60, workdir=tmp_path / 'b', devices_after=4, say=said.append) == 0
    assert 'not equal bit by bit, as on 2 and then 4 devices' in '\n'.join(said), said
    # A pipeline that gave other data behind the kill would be no rounding: it is in the same table, far too large.
    largest = float(re.search(r'leaf .* \(([\d.e-]+) of the largest value\)', '\n'.join(said)).group(1))
    assert largest < 1e-3, said


def test_differences_are_named(tmp_path, straight):
    """What `compare` says of a run that was resumed wrongly."""
    from gen_jax.engine.checkpoint import Checkpoints, read_leaves
    from gen_jax.types import TrainState
    leaves = read_leaves(straight)
    store = Checkpoints(straight, read_only=True)
    meta = store.meta()
    store.close()

    def save(name, change, position=STEPS, log=lambda text: text):
        changed = {**leaves}
        for key, value in change.items():
            changed[key] = value(changed[key].copy())
        state = TrainState(changed.pop('step'), changed, {}, {}, {}, {})
        workdir = tmp_path / name
        other = Checkpoints(workdir)
        other.save(STEPS, state, {**meta, 'data': {'next_index': position}})
        other.close()
        (workdir / 'metrics.jsonl').write_text(log((straight / 'metrics.jsonl').read_text()))
        return workdir

    def bump(x):
        x.flat[3] += 0.25
        return x

    same = save('same', {})
    assert compare(same, same)[0] == [] and len(read_jsonl(straight / 'metrics.jsonl')) == 207
    found, _ = compare(same, save('one', {'params/mlp/a': bump}))
    assert [d.what for d in found] == ['leaf params/params/mlp/a'] and found[0].largest == pytest.approx(0.25, rel=1e-5)
    found, _ = compare(same, save('many', {'params/mlp/b': lambda x: x.astype('float16')}, position=119,
                                  log=lambda text: text.replace('"denoise/t": 0.', '"denoise/t": 0.1', 1)))
    assert [d.what.split(':')[0] for d in found] == ['data', 'leaf params/params/mlp/b', 'log denoise/t at step 1']
    found, _ = compare(same, save('short', {}, log=lambda text: text.rsplit('\n', 2)[0]))
    assert len(found) == 1 and 'the shorter one ends early' in str(found[0])
    shutil.rmtree(tmp_path)


def test_verify_resume_refusals(tmp_path):
    (tmp_path / 'killed').mkdir()
    for settings, message in (({'steps': 3}, '--steps 3: at least 4'), ({'devices_after': 0}, 'at least 1'),
                              ({'workdir': tmp_path}, 'killed exists: name another')):
        with pytest.raises(ValueError, match=message):
            verify(CONFIG, (), TRAIN, **{'workdir': tmp_path / 'x', **settings})
    with pytest.raises(RuntimeError, match='ended with code 1:'):
        verify(CONFIG, (), ('false',), workdir=tmp_path / 'y')
    with pytest.raises(RuntimeError, match='ended before it could be killed'):
        verify(CONFIG, (), ('true',), workdir=tmp_path / 'z')
