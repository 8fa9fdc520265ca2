"""What a sweep folder says about its runs, and whose folders are refused."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gen_jax.config import ConfigError, to_json
from gen_jax.engine.resume import WorkdirError
from gen_jax.sweeps import ledger
from gen_jax.sweeps.execute import FAILED, Work, execute
from gen_jax.sweeps.plan import make_plan
from tests.sweeps.stub import config_file


@pytest.fixture
def plan(tmp_path):
    return make_plan(config_file(tmp_path, "run = add({'seed': 1})", "add({'evaluate.x.seed': 2}, of=run)"))


def finish(workdir, run, config=None):
    """As a process that did the run leaves it."""
    home = ledger.folder(workdir, run.id)
    ledger.write(workdir, run, status='done', attempts=1, seconds=2.5)
    (home / 'config.json').write_text(to_json(config or run.config))
    (home / 'evaluation.json').write_text('{}')
    return home


def test_a_folder_belongs_to_one_sweep(plan, tmp_path):
    work = tmp_path / 'w'
    ledger.claim(work, plan, write=False)
    assert not work.exists()
    ledger.claim(work, plan)
    assert json.loads((work / 'sweep.json').read_text()) == {'config': plan.spec, 'overrides': []}
    ledger.claim(work, plan)
    ledger.claim(work, plan._replace(spec='elsewhere/stubbed.py'))
    other = plan._replace(overrides=('--config.seed=3',))
    with pytest.raises(ConfigError, match='holds another sweep: --config.seed=3 now, not there. Use another --workdir'):
        ledger.claim(work, other)
    ledger.claim(tmp_path / 'v', other)
    with pytest.raises(ConfigError, match='--config.seed=3 there, not now'):
        ledger.claim(tmp_path / 'v', plan)
    for spec in ('digits', 'stubbed.py:debug'):
        with pytest.raises(ConfigError, match=f'stubbed.py there, {spec} now'):
            ledger.claim(work, plan._replace(spec=spec))
    (work / 'sweep.json').write_text('{"config": ')
    with pytest.raises(ConfigError, match=r'sweep.json cannot be read \(JSONDecodeError'):
        ledger.claim(work, plan)
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'config.json').touch()
    with pytest.raises(ConfigError, match='holds a run, not a sweep'):
        ledger.claim(tmp_path / 'run', plan)
    (tmp_path / 'file').touch()
    with pytest.raises(ConfigError, match='is a file'):
        ledger.claim(tmp_path / 'file', plan)


def test_statuses(plan, tmp_path):
    run, evaluation = plan.runs.values()
    assert ledger.status(tmp_path, run) == 'pending' and not (tmp_path / 'runs').exists()
    ledger.write(tmp_path, run)
    assert ledger.status(tmp_path, run) == 'pending'
    assert ledger.read(tmp_path, run.id) == {'id': run.id, 'config': plan.spec, 'overrides': {'seed': 1}, 'of': None,
                                             'status': 'pending', 'error': None, 'seconds': 0.0, 'attempts': 0}
    ledger.write(tmp_path, run, status='running', attempts=1)
    assert ledger.status(tmp_path, run) == 'interrupted'
    with ledger.lock(tmp_path, run.id) as held:
        assert held and ledger.status(tmp_path, run) == 'running'
    ledger.write(tmp_path, run, status='failed', error='why')
    assert ledger.status(tmp_path, run) == 'failed' and ledger.read(tmp_path, run.id)['attempts'] == 1
    home = finish(tmp_path, run)
    assert ledger.status(tmp_path, run) == 'done'
    (home / 'evaluation.json').unlink()
    assert ledger.status(tmp_path, run) == 'interrupted', 'results that were deleted are made again'
    (home / 'run.json').write_text('{"status": "do')
    assert ledger.status(tmp_path, run) == 'pending', 'what cannot be read counts as nothing'
    ledger.write(tmp_path, evaluation)
    assert ledger.read(tmp_path, evaluation.id)['of'] == run.id
    (tmp_path / 'runs' / 'older').mkdir()
    assert ledger.strangers(tmp_path, plan) == ['older']


def test_what_the_config_asks_for_today(plan, tmp_path):
    """More steps or another evaluation: the run goes on. Another model: refused before anything starts."""
    run, evaluation = plan.runs.values()
    for key, value, expected in (('train.steps', 9, 'changed'), ('log.every_steps', 9, 'done'),
                                 ('evaluate.x.predict', 'q', 'changed'), ('sample.n', 3, 'changed')):
        config = json.loads(to_json(run.config))
        *parents, leaf = key.split('.')
        owner = config
        for part in parents:
            owner = owner[part]
        owner[leaf] = value
        finish(tmp_path, run, config)
        assert ledger.status(tmp_path, run) == expected, key
        ledger.check_runs(tmp_path, plan.runs.values())
    config = json.loads(to_json(evaluation.config))
    config['optim']['lr'] = 7.0
    finish(tmp_path, evaluation, config)
    with pytest.raises(ConfigError, match=f'{evaluation.id} was made with another config .1 keys differ.: optim.lr 7.0 '
                                          'there, 0.001 now'):
        ledger.check_runs(tmp_path, plan.runs.values())
    ledger.check_runs(tmp_path, [run])
    # Accepted, it is the same sweep with the same runs.
    accepting = make_plan(plan.spec, (*plan.overrides, '--config.train.accept=config'))
    assert list(accepting.runs) == list(plan.runs)
    ledger.check_runs(tmp_path, accepting.runs.values())
    ledger.claim(tmp_path / 'new', plan)
    ledger.claim(tmp_path / 'new', accepting)


def test_a_resume_that_is_refused_is_the_runs_error(plan, tmp_path):
    def train(config, home):
        raise WorkdirError("the code changed: jax: '1' there, '2' now")

    run = next(iter(plan.runs.values()))
    assert execute(plan, [run.id], tmp_path, Work(train, None)) == FAILED
    record = ledger.read(tmp_path, run.id)
    assert record['status'] == 'failed' and record['error'].startswith("WorkdirError: the code changed: jax: '1' there")


@pytest.mark.parametrize('content', [b'{"a": ', b'[1]', b'\xff\xfe'])
def test_a_damaged_config_is_named(tmp_path, plan, content):
    run = next(iter(plan.runs.values()))
    (finish(tmp_path, run) / 'config.json').write_bytes(content)
    with pytest.raises(ConfigError, match=f'{run.id}/config.json cannot be read .*; or delete .*{run.id} to'):
        ledger.check_runs(tmp_path, [run])


def test_locks_end_with_their_process(tmp_path):
    code = ('import sys, time; from gen_jax.sweeps import ledger\n'
            'with ledger.lock(sys.argv[1], "run") as held:\n    print(held, flush=True)\n    time.sleep(60)')
    other = subprocess.Popen([sys.executable, '-c', code, str(tmp_path)], stdout=subprocess.PIPE, text=True,
                             cwd=Path(__file__).resolve().parents[2])
    assert ledger.holder(tmp_path, 'run') is None
    assert other.stdout.readline() == 'True\n'
    assert ledger.holder(tmp_path, 'run').startswith(f'process {other.pid} on ')
    with ledger.lock(tmp_path, 'run', patience=0.1) as held:
        assert not held
    other.kill()
    other.communicate()
    with ledger.lock(tmp_path, 'run', patience=0) as held:
        assert held
    # Who looks at a lock for an instant does not keep others from taking it.
    began = time.monotonic()
    assert ledger.holder(tmp_path, 'run') is None and time.monotonic() - began < 0.5
