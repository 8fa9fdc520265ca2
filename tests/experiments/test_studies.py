"""The studies, shrunk: from the sweep to the report, the table and the figure, by the command that users run."""

import json
import shutil

import pytest
from PIL import Image

from experiments.fewer_steps import fewer_steps
from experiments.study import STUDIES, differences, main
from gen_jax.report import make_report
from gen_jax.sweeps.plan import make_plan
from tests.report import fake

ROWS = {'fewer_steps': [2, 2], 'guidance_scale': [2, 1], 'training_choices': [2, 1, 1]}  # of each table


@pytest.mark.parametrize('name', [n if n == 'guidance_scale' else pytest.param(n, marks=pytest.mark.slow)
                                  for n in STUDIES])
def test_debug_variant(name, tmp_path, monkeypatch):
    monkeypatch.delenv('NPROC', raising=False)  # is for the suite's eight devices, not for the processes of a sweep
    assert main([name, '--workdir', str(tmp_path), '--debug']) == 0
    table = (tmp_path / 'table.md').read_text()
    bodies = [part.partition('\n\n')[0] for part in table.split('---|\n')[1:]]
    assert [body.count('| ') and len(body.splitlines()) for body in bodies] == ROWS[name], table
    assert ' ± ' in table and 'nan' not in table
    assert Image.open(tmp_path / 'figure.png').width > 400
    assert (tmp_path / 'report' / 'report.html').stat().st_size > 1e6
    # Every run is there, and the seeds make groups of two.
    report = make_report([tmp_path])
    plan = make_plan(f'experiments/{name}/{name}.py:debug')
    assert {r.name for r in report.runs} == set(plan.runs) and {r.status for r in report.runs} == {'done'}
    assert {len(g.runs) for g in report.groups} <= {1, 2, 3}  # three: a training beside two evaluations of it


def test_differences_that_cannot_be_tested_are_said(tmp_path):
    fake.sampling_sweep(tmp_path, seeds=(0, 1), steps=(5,), solvers=('ddim', 'heun', 'ddpm'))
    for path in tmp_path.glob('runs/*'):
        if 'solver=heun' in path.name:  # not finite in one, missing in another
            scores = json.loads((path / 'evaluation.json').read_text())
            scores['guided']['frechet'] = 'nan'
            (path / 'evaluation.json').write_text(json.dumps(scores))
        if path.name.startswith('seed=1,solver=ddpm'):
            shutil.rmtree(path)
    rows = differences(make_report([tmp_path]), 'guided/frechet', lambda r: r.config['evaluate.guided.settings.solver'],
                       'evaluate.guided.seed', [('ddim', 'heun'), ('ddim', 'ddpm'), ('ddpm', 'ddim')])
    assert [r['p'] for r in rows] == ['–', '–'] and rows[0]['test'] == '2 values are not finite'
    assert rows[1]['95 % interval'] == '–' and 'no test is possible' in rows[1]['test']


def test_a_study_in_which_nothing_was_scored_says_so(tmp_path, monkeypatch, capsys):
    fake.write(tmp_path / 'runs' / 'r', fake.config(), run={'status': 'failed', 'error': 'ValueError: no'})
    calls = []
    monkeypatch.setattr('gen_jax.cli.main.main', lambda argv: calls.append(argv[0]) or (argv[0] == 'sweep'))
    assert main(['fewer_steps', '--workdir', str(tmp_path)]) == 1 and calls == ['sweep', 'report']
    assert 'nothing was scored' in capsys.readouterr().err and not (tmp_path / 'table.md').exists()


def test_budgets_are_kept():
    """No evaluation spends more calls than its column says, and Heun at most one fewer."""
    plan = make_plan('experiments/fewer_steps/fewer_steps.py')
    scored = [r for r in plan.runs.values() if r.of]
    assert len(scored) == 8 * 5 * 3 + 3 * 3 * 2 + 2
    for run in scored:
        label, budget = fewer_steps.label_and_budget(run)
        steps = run.overrides['evaluate.generate.settings']['steps']
        calls = 2 * steps - 1 if label == 'Heun' else steps
        assert budget - 1 <= calls <= budget and (label == 'Heun' or calls == budget)
