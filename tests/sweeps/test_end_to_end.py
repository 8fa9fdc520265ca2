"""`gen-jax sweep` on a real, tiny system: trained, evaluated, killed, and the same to the last bit."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gen_jax.report import make_report, write_report
from gen_jax.sweeps import ledger
from gen_jax.sweeps.plan import make_plan
from tests.sweeps.test_launch import family, kill_all, wait_for

ROOT = Path(__file__).resolve().parents[2]
TINY = '''
from gen_jax.config import load_config


def get_config(arg=''):
    c = load_config('digits_vae:debug').unlock()
    del c.evaluate['prior']
    c.evaluate.heldout.every_steps = 0
    c.train.steps = 60
    c.checkpoint.every_steps = 20
    c.log = {'every_steps': 20, 'tensorboard': False, 'wandb': False}
    c.sample.predict = ''
    return c


def sweep(add):
    run = add({'seed': 1})
    for seed in (1, 2):
        add({'evaluate.heldout.seed': seed}, of=run)
'''
METHODS = '''
from gen_jax.config import load_config


def get_config(arg=''):
    c = load_config('digits:debug').unlock()
    del c.evaluate['guided']
    c.train.steps = 60
    c.checkpoint.every_steps = 10
    c.log = {'every_steps': 5, 'tensorboard': False, 'wandb': False}
    return c


def sweep(add):
    for seed in (0, 1):
        run = add({'seed': seed})
        for solver in ('ddim', 'heun'):
            for sampling_seed in (0, 1):
                add({'evaluate.unguided.settings.solver': solver, 'evaluate.unguided.seed': sampling_seed}, of=run,
                    only='unguided')
'''


@pytest.fixture(scope='module')
def environment():
    # NPROC is for the suite's eight devices, not for processes of their own.
    return {**{k: v for k, v in os.environ.items() if k != 'NPROC'}, 'JAX_PLATFORMS': 'cpu'}


def start(config, workdir, environment, *extra):
    return subprocess.Popen([sys.executable, '-m', 'gen_jax.cli.main', 'sweep', '--config', config, '--workdir',
                             str(workdir), *extra], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            env=environment, cwd=ROOT)


def finish(*args):
    process = start(*args)
    output = process.communicate(timeout=900)[0]
    assert process.returncode == 0, output
    return output


def results(workdir):
    return {p.parent.name: p.read_bytes() for p in workdir.glob('runs/*/evaluation.json')}


def tables(workdir):
    """The report's tables of results, learning curves' best and final values included."""
    write_report(make_report([workdir]), workdir / 'page')
    return {name: (workdir / 'page' / name).read_bytes() for name in ('runs.csv', 'summary.csv', 'summary.md')}


def saved_steps(workdir):
    return [int(p.parent.name) for p in workdir.glob('runs/*/checkpoints/*/commit_success.txt')
            if p.parent.name.isdigit()]


def test_a_sweep_killed_and_restarted_has_the_same_numbers(tmp_path, environment):
    (tmp_path / 'tiny.py').write_text(TINY)
    config = str(tmp_path / 'tiny.py')
    train, one, two = make_plan(config).runs
    output = finish(config, tmp_path / 'alone', environment)
    assert '[3/3] done' in output and '3 runs: 3 done, 0 failed, 0 left' in output
    wanted = results(tmp_path / 'alone')
    made = {i: json.loads(text) for i, text in wanted.items()}
    assert made.keys() == {train, one, two} and {m['step'] for m in made.values()} == {60}
    assert made[train]['heldout']['recipe']['seed'] == 0 and made[two]['heldout']['recipe']['seed'] == 2
    assert len({m['heldout']['iw_bits_per_dim'] for m in made.values()}) == 3, 'other noise'
    home = tmp_path / 'alone' / 'runs' / two
    assert json.loads((home / 'config.json').read_text())['evaluate']['heldout']['seed'] == 2
    assert json.loads((home / 'versions.json').read_text())['jax'] and not (home / 'checkpoints').exists()
    assert 'iw_bits_per_dim' in (home / 'log.txt').read_text()

    process = start(config, tmp_path / 'killed', environment)
    goal = 20 * random.randint(1, 2)
    wait_for(lambda: max(saved_steps(tmp_path / 'killed'), default=0) >= goal, 120, pause=0.03)
    assert len(family(process.pid)) == 2
    kill_all(process)
    assert ledger.status(tmp_path / 'killed', make_plan(config).runs[train]) == 'interrupted'
    output = finish(config, tmp_path / 'killed', environment)
    assert '3 runs: 3 done' in output
    assert 'resuming from step' in (tmp_path / 'killed' / 'runs' / train / 'log.txt').read_text()
    assert results(tmp_path / 'killed') == wanted, goal
    assert tables(tmp_path / 'killed') == tables(tmp_path / 'alone'), goal


@pytest.mark.slow
def test_two_processes_do_one_run(tmp_path, environment):
    """As on two hosts of a pod: jax.distributed finds the others by the variables of a launcher, here those of MPI."""
    (tmp_path / 'tiny.py').write_text(TINY)
    config, port = str(tmp_path / 'tiny.py'), random.randint(20000, 60000)
    for run in make_plan(config).runs:
        both = [start(config, tmp_path / 'w', {
            **environment, 'OMPI_MCA_orte_hnp_uri': f'{port}.0;tcp://127.0.0.1:1', 'OMPI_COMM_WORLD_SIZE': '2',
            'OMPI_COMM_WORLD_RANK': rank, 'OMPI_COMM_WORLD_LOCAL_RANK': rank}, '--run', run, '--distributed')
            for rank in '01']
        outputs = [p.communicate(timeout=300)[0] for p in both]
        assert [p.returncode for p in both] == [0, 0], outputs
    finish(config, tmp_path / 'alone', environment)
    made, alone = results(tmp_path / 'w'), results(tmp_path / 'alone')
    assert made.keys() == alone.keys()
    for run, text in made.items():  # equal but for rounding: there were twice the devices
        a, b = (json.loads(t)['heldout']['iw_bits_per_dim'] for t in (text, alone[run]))
        assert abs(a - b) < 1e-3 * abs(b), (run, a, b)
        assert ledger.read(tmp_path / 'w', run)['attempts'] == 1


@pytest.mark.slow
def test_random_kills_of_diffusion_sweeps(tmp_path, environment):
    (tmp_path / 'methods.py').write_text(METHODS)
    config = str(tmp_path / 'methods.py')
    finish(config, tmp_path / 'alone', environment)
    began = time.monotonic()
    finish(config, tmp_path / 'again', environment)  # what is compiled is compiled: how long it takes
    duration = time.monotonic() - began
    wanted = results(tmp_path / 'alone')
    assert len(wanted) == 10 and results(tmp_path / 'again') == wanted
    rng = random.Random()
    seed = rng.randrange(10**6)
    rng.seed(seed)
    for kill in range(6):
        process = start(config, tmp_path / 'killed', environment, '--jobs', str(1 + kill % 2))
        time.sleep(rng.uniform(0.1, 0.8) * duration)
        kill_all(process)
    finish(config, tmp_path / 'killed', environment)
    assert results(tmp_path / 'killed') == wanted, seed
    assert tables(tmp_path / 'killed') == tables(tmp_path / 'again'), seed
    rows = [json.loads(p.read_text()) for p in (tmp_path / 'killed').glob('runs/*/run.json')]
    assert all(r['status'] == 'done' for r in rows) and max(r['attempts'] for r in rows) > 1, seed
