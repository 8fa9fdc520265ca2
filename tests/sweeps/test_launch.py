"""Real processes that fail, die and are killed; what they do is a stub (tests/sweeps/stub.py), so this is fast."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gen_jax.sweeps import ledger
from gen_jax.sweeps.execute import Work, execute
from gen_jax.sweeps.plan import make_plan
from tests.sweeps.stub import config_file

ROOT = Path(__file__).resolve().parents[2]
TRAIN_AND_EVALUATE = ("for seed in (0, 1):", "    run = add({'seed': seed, 'stub.pause': PAUSE})",
                      "for seed in (0, 1, 2):",
                      "    add({'evaluate.x.seed': seed, 'evaluate.x.settings.pause': PAUSE}, of=run)")


def start(config, workdir, jobs=1, patience=5.0, devices=''):
    return subprocess.Popen([sys.executable, '-m', 'tests.sweeps.stub', 'launch', config, str(workdir), str(jobs),
                             str(patience)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
                            start_new_session=True, env={**os.environ, 'CUDA_VISIBLE_DEVICES': devices})


def sweep(config, workdir, **kwargs):
    process = start(config, workdir, **kwargs)
    output = process.communicate(timeout=60)[0]
    return process.returncode, output


def records(config, workdir):
    return {i: ledger.read(workdir, i) for i in make_plan(config).runs}


def results(workdir):
    return {p.parent.name: p.read_bytes() for p in workdir.glob('runs/*/evaluation.json')}


def paced(tmp_path, pause):
    return config_file(tmp_path, *(line.replace('PAUSE', str(pause)) for line in TRAIN_AND_EVALUATE))


def wait_for(condition, seconds=30, pause=0.005):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'it did not get there'
        time.sleep(pause)


def family(pid):
    """The process and all below it."""
    below = {}
    for stat in Path('/proc').glob('[0-9]*/stat'):
        try:
            fields = stat.read_text().rpartition(')')[2].split()
        except OSError:
            continue
        below.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [pid]
    for p in found:
        found += below.get(p, [])
    return found


def alive(pid):
    """Whether a thread of it is left: files, and locks, stay open until the last one is gone."""
    try:
        tasks = list(Path(f'/proc/{pid}/task').iterdir())
        return len(tasks) > 1 or (tasks[0] / 'stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except (OSError, IndexError):
        return False


def kill_all(process):
    pids = family(process.pid)
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    process.communicate()
    wait_for(lambda: not any(map(alive, pids)))


def test_everything_is_done_once(tmp_path):
    config = paced(tmp_path, 0.0)
    code, output = sweep(config, tmp_path / 'w')
    assert code == 0, output
    ids = list(make_plan(config).runs)
    ends = re.findall(r'^\[(\d)/5\] done \d+ s (\S+)$', output, re.M)
    assert [int(n) for n, _ in ends] == [1, 2, 3, 4, 5] and {i for _, i in ends} == set(ids)
    assert output.rstrip().endswith('5 runs: 5 done, 0 failed, 0 left')
    made = records(config, tmp_path / 'w')
    assert all(r['status'] == 'done' and r['attempts'] == 1 and r['error'] is None for r in made.values())
    # Evaluations of one checkpoint share a process.
    logs = [(tmp_path / 'w' / 'runs' / i / 'log.txt').read_text() for i in ids[2:]]
    assert len({re.search(r'process (\d+)', log).group(1) for log in logs}) == 1
    assert all(log.count('evaluates') == 1 for log in logs)
    # Again: nothing to do. A value more: only that.
    before = results(tmp_path / 'w')
    code, output = sweep(config, tmp_path / 'w')
    assert code == 0 and output.startswith('5 of 5 runs are done already') and records(config, tmp_path / 'w') == made
    Path(config).write_text(Path(config).read_text().replace('seed in (0, 1, 2)', 'seed in (3, 0, 1, 2)'))
    code, output = sweep(config, tmp_path / 'w')
    assert code == 0 and output.count('] done') == 1 and 'seed=3' in output
    after = results(tmp_path / 'w')
    assert len(after) == 6 and before.items() <= after.items()


def test_failures_are_recorded_and_do_not_stop_the_others(tmp_path):
    config = config_file(tmp_path, "bad = add({'stub.do': 'fail'})", "add({'evaluate.x.seed': 1}, of=bad)",
                         "dead = add({'stub.do': 'die'})", "base = add({'seed': 5})",
                         "for do in ('', 'die', 'fail', 'exit7', 'last'):",
                         "    add({'evaluate.x.settings.do': do}, of=base)")
    code, output = sweep(config, tmp_path / 'w', patience=0.0)
    assert code == 1, output
    made = list(records(config, tmp_path / 'w').values())
    assert [r['status'] for r in made] == ['failed', 'pending', 'failed', 'done', 'done', 'failed', 'failed', 'failed',
                                           'done'], output
    errors = [r['error'] for r in made]
    assert errors[0] == 'ValueError: this one\nfails' and errors[6] == errors[0]
    assert errors[2] == errors[5] == 'killed by SIGKILL (exit code -9)' and errors[7] == 'exit code 7'
    assert 'failed 0 s do=fail' in output and ': ValueError: this one\n' in output
    assert f'left {made[1]["id"]}: it waits for {made[0]["id"]}, which is failed' in output
    assert '9 runs: 3 done, 5 failed, 1 left' in output
    assert 'Traceback' in (tmp_path / 'w' / 'runs' / made[0]['id'] / 'log.txt').read_text()
    (tmp_path / 'w' / 'runs' / 'mended').touch()
    code, output = sweep(config, tmp_path / 'w', patience=0.0)
    assert code == 1 and '9 runs: 8 done, 1 failed, 0 left' in output
    again = list(records(config, tmp_path / 'w').values())
    assert [r['attempts'] for r in again] == [2, 1, 2, 1, 1, 2, 2, 2, 1] and again[0]['error'] is None
    assert again[7]['status'] == 'failed'


def launched(config, workdir, child):
    """A sweep whose runs are processes of another program."""
    code = ('import sys; from gen_jax.sweeps.plan import make_plan; from gen_jax.sweeps.launch import launch; '
            'config, workdir, child = sys.argv[1:]; '
            'command = lambda ids: [sys.executable, "-c", child, config, workdir, *ids]; '
            'sys.exit(launch(make_plan(config), workdir, command))')
    return subprocess.run([sys.executable, '-c', code, config, str(workdir), child], capture_output=True, text=True,
                          cwd=ROOT, timeout=60)


def test_a_process_that_cannot_begin(tmp_path):
    """It is blamed on one run at a time, so that the sweep comes to an end."""
    config = config_file(tmp_path, "add({'seed': 1})", "add({'seed': 2})")
    done = launched(config, tmp_path / 'w', 'raise SystemExit("no such library")')
    assert done.returncode == 1, done.stderr
    assert [r['error'] for r in records(config, tmp_path / 'w').values()] == ['exit code 1: no such library'] * 2


def test_a_rival_that_was_faster(tmp_path):
    """Between our look at the lock and the start of our process somebody took the run: it is theirs, and waited for."""
    config = config_file(tmp_path, "add({'seed': 1})")
    (run,) = make_plan(config).runs
    done = launched(config, tmp_path / 'w', '''
import os, sys, time
from pathlib import Path
from gen_jax.sweeps import ledger
from gen_jax.sweeps.plan import make_plan
config, workdir, i = sys.argv[1:]
run, (read, write) = make_plan(config).runs[i], os.pipe()
if os.fork():
    os.read(read, 1)
    os._exit(5)
with ledger.lock(workdir, i):
    ledger.write(workdir, run, status='running', attempts=1)
    os.write(write, b'x')
    time.sleep(0.5)
    (ledger.folder(workdir, i) / 'evaluation.json').touch()
    ledger.write(workdir, run, status='done')
''')
    assert done.returncode == 0 and f'[1/1] done 0 s {run}' in done.stdout, done


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_runs(tmp_path, number):
    config = config_file(tmp_path, "add({'seed': 1, 'stub.pause': 0.02, 'train.steps': 50})")
    (run,) = make_plan(config).runs
    process = start(config, tmp_path / 'w')
    steps = tmp_path / 'w' / 'runs' / run / 'steps.txt'
    wait_for(lambda: steps.exists() and len(steps.read_text().split()) > 3)
    process.send_signal(number)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 128 + number, output
    record = ledger.read(tmp_path / 'w', run)
    assert record['status'] == 'pending' and '[1/1] stopped' in output and '1 left; run the same' in output
    stopped = int(steps.read_text().split()[-1])
    assert sweep(config, tmp_path / 'w')[0] == 0
    assert ledger.read(tmp_path / 'w', run)['seconds'] >= 50 * 0.02, 'of all attempts'
    assert steps.read_text().split() == [str(n) for n in range(1, 51)] and stopped < 50, 'it went on where it was'


def test_a_second_interrupt_does_not_wait_for_the_step(tmp_path):
    config = config_file(tmp_path, "add({'stub.pause': 30.0})")
    (run,) = make_plan(config).runs
    process = start(config, tmp_path / 'w')
    wait_for(lambda: (tmp_path / 'w' / 'runs' / run / 'steps.txt').exists())
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    output = process.communicate(timeout=20)[0]
    assert process.returncode == 130 and ledger.read(tmp_path / 'w', run)['status'] == 'pending', output
    assert 'Traceback' not in output


def test_an_evaluation_is_stopped_at_once(tmp_path):
    """Even within a computation that lasts for minutes."""
    config = config_file(tmp_path, "run = add({})", "add({'evaluate.x.settings.do': 'compute'}, of=run)")
    base, run = make_plan(config).runs
    process = start(config, tmp_path / 'w')
    wait_for(lambda: (ledger.read(tmp_path / 'w', run) or {}).get('status') == 'running')
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=20)[0]
    assert process.returncode == 130 and ledger.read(tmp_path / 'w', run)['status'] == 'pending', output


def test_runs_end_with_a_sweep_that_is_killed(tmp_path):
    config = config_file(tmp_path, "add({'seed': 1, 'stub.pause': 0.02, 'train.steps': 1000})")
    (run,) = make_plan(config).runs
    process = start(config, tmp_path / 'w')
    wait_for(lambda: (tmp_path / 'w' / 'runs' / run / 'steps.txt').exists())
    (_, child) = family(process.pid)
    assert os.getpgid(child) == child, 'Ctrl-C in a terminal reaches the sweep alone, which passes it on'
    process.kill()
    process.communicate()
    wait_for(lambda: not alive(child), 10)
    assert ledger.read(tmp_path / 'w', run)['status'] == 'pending', 'it was asked to stop, and saved'


def test_killed_at_random_moments(tmp_path):
    """kill -9 of the whole tree, again and again: the same results as one that was left alone."""
    config = paced(tmp_path, 0.02)
    assert sweep(config, tmp_path / 'alone')[0] == 0
    wanted = results(tmp_path / 'alone')
    rng = random.Random()
    seed = rng.randrange(10**6)
    rng.seed(seed)
    for _ in range(3):
        process = start(config, tmp_path / 'w', jobs=2)
        time.sleep(0.2 + rng.random() * 0.6)
        kill_all(process)
    code, output = sweep(config, tmp_path / 'w')
    assert code == 0, (seed, output)
    assert results(tmp_path / 'w') == wanted, seed
    for steps in (tmp_path / 'w').glob('runs/*/steps.txt'):
        assert steps.read_text().split()[-1] == '10', (seed, steps.read_text())
    assert not list((tmp_path / 'w').rglob('.*.tmp')), seed


def test_several_at_a_time(tmp_path):
    config = config_file(tmp_path, "for seed in (0, 1):", "    run = add({'seed': seed, 'stub.needs': '2'})",
                         "    add({'evaluate.x.seed': 2}, of=run)")
    code, output = sweep(config, tmp_path / 'w', jobs=3, devices='0,1,2,3,4,5,7')
    assert code == 0 and '4 runs: 4 done' in output, output
    logs = [log.read_text() for log in tmp_path.rglob('log.txt')]
    assert not any('waits for' in log for log in logs), 'an evaluation is started when its training is done'
    assert sorted(re.findall(r'devices (\S+)', '\n'.join(logs))) == ['0,1', '2,3'], 'equal shares'


def test_two_sweeps_on_one_workdir(tmp_path):
    config = paced(tmp_path, 0.03)
    both = [start(config, tmp_path / 'w', patience=50.0) for _ in range(2)]
    outputs = [p.communicate(timeout=60)[0] for p in both]
    assert [p.returncode for p in both] == [0, 0], outputs
    assert [r['attempts'] for r in records(config, tmp_path / 'w').values()] == [1] * 5, outputs


def test_a_run_that_somebody_else_is_at(tmp_path):
    config = config_file(tmp_path, "add({'seed': 1})", "add({'seed': 2})")
    first, second = make_plan(config).runs
    with ledger.lock(tmp_path / 'w', first):
        code, output = sweep(config, tmp_path / 'w', patience=0.3)
        assert ledger.status(tmp_path / 'w', make_plan(config).runs[first]) == 'running'
    assert code == 75 and f'skipped {first}: process {os.getpid()} on ' in output, output
    assert '1 done, 0 failed, 1 left' in output and results(tmp_path / 'w').keys() == {second}


def test_one_run_by_itself(tmp_path):
    """gen-jax sweep --run ID, as on a cluster: an evaluation waits for its training, nobody works on another's run."""
    config = config_file(tmp_path, "run = add({'seed': 1})", "add({'evaluate.x.seed': 2}, of=run)")
    base, evaluation = make_plan(config).runs

    def run(i):
        return subprocess.run([sys.executable, '-m', 'tests.sweeps.stub', 'run', config, str(tmp_path / 'w'), i],
                              cwd=ROOT, timeout=60).returncode

    def log(i):
        return (tmp_path / 'w' / 'runs' / i / 'log.txt').read_text()

    assert run(evaluation) == 4 and f'waits for {base}, which is not done' in log(evaluation)
    with ledger.lock(tmp_path / 'w', base):
        assert run(base) == 5 and f'process {os.getpid()} on ' in log(base)
    assert not list(tmp_path.rglob('run.json')) and not list(tmp_path.rglob('steps.txt'))
    torn = tmp_path / 'w' / 'runs' / base / '.run.json.1.tmp'
    torn.touch()
    assert [run(base), run(base), run(evaluation)] == [0, 0, 0] and 'done already' in log(base)
    assert not torn.exists(), 'what a killed process had half written'
    assert results(tmp_path / 'w').keys() == {base, evaluation}
    assert {r['attempts'] for r in records(config, tmp_path / 'w').values()} == {1}


def test_the_followers_on_a_pod_keep_no_books(tmp_path):
    plan = make_plan(config_file(tmp_path, "add({'seed': 1})"))
    (run,), seen = plan.runs, []

    def evaluate(run, base, results):
        seen.append((base, results))
        (results / 'evaluation.json').write_text('{}')

    work = Work(lambda config, home: 0, evaluate)
    assert execute(plan, [run], tmp_path / 'w', work, leader=False) == 0 and not (tmp_path / 'w').exists()
    assert execute(plan, [run], tmp_path / 'w', work) == 0
    home = tmp_path / 'w' / 'runs' / run
    assert [base for base, _ in seen] == [home] * 2 and seen[0][1] != home == seen[1][1]
    assert execute(plan, [run], tmp_path / 'w', work, leader=False) == 0 and len(seen) == 2, 'done already'


def test_time_that_is_used_up(tmp_path):
    config = config_file(tmp_path, "add({'train.max_seconds': 0.1, 'stub.pause': 0.018})", "add({'seed': 1})")
    code, output = sweep(config, tmp_path / 'w')
    assert code == 75 and '[1/2] stopped' in output and '[2/2] done' in output, output
    for _ in range(5):  # once on a machine that has nothing else to do
        code, output = sweep(config, tmp_path / 'w')
        if code == 0:
            break
    assert code == 0 and {json.loads(text)['step'] for text in results(tmp_path / 'w').values()} == {10}, output
