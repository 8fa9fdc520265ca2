"""The table, and commands for clusters: what is printed is run here, with stubs for gen-jax, SLURM and gcloud."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from gen_jax.cli.main import main
from gen_jax.config import ConfigError
from gen_jax.sweeps import commands, ledger
from gen_jax.sweeps.execute import check_one_process
from gen_jax.sweeps.plan import make_plan, select
from tests.sweeps.stub import config_file
from tests.sweeps.test_ledger import finish

ROOT = Path(__file__).resolve().parents[2]
BODY = ("for seed in (0, 1):", "    run = add({'seed': seed})", "for n in (1, 2, 3):",
        "    add({'evaluate.x.settings': {'n': n, 'text': \"it's $HOME\"}}, of=run)")


@pytest.fixture
def plan(tmp_path):
    (tmp_path / 'a folder').mkdir()
    return make_plan(config_file(tmp_path / 'a folder', *BODY), ['--config.data.source=folder:/a b'])


@pytest.fixture
def programs(tmp_path):
    """Programs that print their arguments, one a line; gcloud and its ssh run the command as the remote shell would."""
    folder = tmp_path / 'bin'
    folder.mkdir()
    for name, text in (('gen-jax', 'printf "%s\\n" "$@"; pwd; exit 4'), ('gcloud', '[ $# = 8 ] || echo in pieces; '
                            'printf "%s\\n" "${@:1:7}"; bash -c "${8#--command=}"')):
        (folder / name).write_text(f'#!/bin/bash\n{text}\n')
        (folder / name).chmod(0o755)
    return {**os.environ, 'PATH': f'{folder}:{os.environ["PATH"]}'}


def arguments(plan, run_id):
    return ['sweep', '--config', plan.spec, '--workdir', 'my work', '--config.data.source=folder:/a b',
            f'--run={run_id}']


def test_what_one_process_may_do(plan):
    first, second, *evaluations = plan.runs
    for good in ([first], evaluations, evaluations[:1]):
        check_one_process(plan, good)
    for bad in ([first, second], [second, *evaluations]):
        with pytest.raises(ConfigError, match='one training, or evaluations of one checkpoint'):
            check_one_process(plan, bad)


def bash(text, env, *args, **more):
    return subprocess.run(['bash', '-c', text, 'sweep.sh', *args], capture_output=True, text=True, env={**env, **more})


def test_lines(plan, programs):
    lines = commands.lines(plan, 'my work', list(plan.runs.values())).splitlines()
    for line, run_id in zip(lines, plan.runs, strict=True):
        assert bash(line, programs).stdout.splitlines()[:-1] == arguments(plan, run_id)


def test_slurm(plan, programs):
    ids = list(plan.runs)
    script = commands.slurm(plan, 'my work', list(plan.runs.values()))
    assert script.startswith('#!/bin/bash\n#SBATCH --job-name=sweep-stubbed\n#SBATCH --array=0-1\n')
    assert 'sbatch --dependency=afterany:$job --array=0-2 sweep.sh evaluate' in script
    for stage, part in (((), ids[:2]), (('train',), ids[:2]), (('evaluate',), ids[2:])):
        for number, run_id in enumerate(part):
            done = bash(script, programs, *stage, SLURM_ARRAY_TASK_ID=str(number))
            assert done.stdout.splitlines()[:-1] == arguments(plan, run_id), done.stderr
            assert done.returncode == 4, 'the exit code is that of gen-jax'
    wrong = bash(script, programs, 'test', SLURM_ARRAY_TASK_ID='0')
    assert wrong.returncode == 2 and 'choose from train, evaluate' in wrong.stderr
    # Only evaluations are left: one array.
    script = commands.slurm(plan, 'my work', list(plan.runs.values())[2:])
    assert '#SBATCH --array=0-2\n' in script and 'dependency' not in script
    assert bash(script, programs, SLURM_ARRAY_TASK_ID='1').stdout.splitlines()[:-1] == arguments(plan, ids[3])


def test_tpu(plan, programs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / 'a folder')
    script = commands.tpu(plan, 'my work', list(plan.runs.values()))
    done = bash(script, programs, TPU_NAME='pod', TPU_ZONE='there').stdout
    expected = [[*('compute tpus tpu-vm ssh pod --zone=there --worker=all'.split()), *arguments(plan, i),
                 '--distributed', str(tmp_path / 'a folder')] for i in plan.runs]
    assert done.splitlines() == [word for words in expected for word in words]
    assert bash(script, programs).returncode != 0, 'without a name of the pod'


def test_table(plan, tmp_path):
    run = next(iter(plan.runs.values()))
    finish(tmp_path / 'w', run)
    table = commands.table(plan, list(plan.runs), tmp_path / 'w').splitlines()
    assert table[0].split() == ['#', 'id', 'kind', 'status', 'overrides']
    assert re.fullmatch(r'0 +seed=0-\w{8} +train +done +seed=0', table[1])
    assert re.fullmatch(r'2 +n=1_\S+ +evaluate +pending +of seed=1-\w{8}  evaluate.x.settings=.*', table[3])
    assert table[-1] == '5 runs: 1 done, 4 pending'


def test_the_command_line_writes_nothing_unasked(tmp_path, capsys):
    config, work = config_file(tmp_path, "for seed in (0, 1):", "    add({'seed': seed})"), tmp_path / 'w'
    base = ['sweep', '--config', config]
    assert main([*base, '--dry-run']) == 0 and '2 runs: 2 pending' in capsys.readouterr().out
    for extra in (['--dry-run'], ['--print', 'lines'], ['--print', 'slurm'], ['--print', 'tpu']):
        assert main([*base, '--workdir', str(work), *extra, '--only', 'seed=1*']) == 0
        out = capsys.readouterr().out
        assert 'seed=1' in out and 'seed=0' not in out and not work.exists()
    plan = make_plan(config)
    ledger.claim(work, plan)
    for run in plan.runs.values():
        finish(work, run)
    assert main([*base, '--workdir', str(work), '--print', 'lines']) == 0
    printed = capsys.readouterr()
    assert printed.out == '' and '0 of 2 runs are not done' in printed.err
    (work / 'runs' / 'older').mkdir()
    assert main([*base, '--workdir', str(work), '--dry-run']) == 0
    printed = capsys.readouterr()
    assert '2 runs: 2 done' in printed.out and 'left as they are: older' in printed.err


def test_the_documentation_shows_what_is_printed(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / 'docs' / 'sweeps.md').read_text()
    config, table = re.findall(r'```(?:python)?\n(.*?)```', page, re.S)
    (tmp_path / 'rates.py').write_text(config)
    shown = [line.split('#')[0].split('>')[0] for line in page.splitlines() if line.startswith('    gen-jax sweep')]
    assert len(shown) == 8
    for line in shown:
        words = shlex.split(line)[1:]
        if words[-2] == '--run':
            assert select(make_plan('rates.py'), words[-1:])
        else:
            assert main([*words, *(['--dry-run'] if '--print' not in words else [])]) == 0, line
    capsys.readouterr()
    assert main(['sweep', '--config', 'rates.py', '--dry-run']) == 0
    assert capsys.readouterr().out == table


@pytest.mark.parametrize('extra, message', [
    ([], 'needs --config NAME and --workdir DIR'), (['--workdir', 'w', '--jobs', '0'], '--jobs 0'),
    (['--dry-run', '--print', 'lines', '--workdir', 'w'], 'exclude each other'),
    (['--workdir', 'w', '--run', 'seed=7'], "there is no run 'seed=7' in the sweep"),
    (['--workdir', 'w', '--only', 'lr=*'], "no run fits 'lr=*'"),
    (['--workdir', 'w', '--run', '0', '--run', '1'], 'one process does one training'),
    (['--workdir', 'w', '--config.seed=3'], 'set the same: drop one'),
    (['--workdir', 'w', '--config.sed=3'], 'did you mean config.seed'),
])
def test_bad_input_is_one_message(extra, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = config_file(tmp_path, "for seed in (0, 1):", "    add({'seed': seed})")
    assert main(['sweep', '--config', config, *extra]) == 2
    err = capsys.readouterr().err.strip()
    assert message in err and 'Traceback' not in err and len(err.splitlines()) == 1, err
    assert not (tmp_path / 'w').exists()
