"""Whatever lies in a run folder, the report comes out, and one note says what is wrong."""

import json
import os

import pytest

from gen_jax.config import to_json
from gen_jax.report import make_report, write_report
from gen_jax.report.read import find_runs, is_run, read_runs
from tests.report import fake


def rows(n=3, **extra):
    return [{'step': 10 * (i + 1), 'denoise/loss': 1.0 / (i + 1), 'images_per_second': 100.0 + i, 'time': 5.0 + i,
             **extra} for i in range(n)]


def one(tmp_path, **kwargs):
    """(run, texts of the notes) of a single folder."""
    fake.write(tmp_path / 'r', **{'c': fake.config(train__steps=30), 'rows': rows(), **kwargs})
    (run,), notes = read_runs([tmp_path / 'r'])
    return run, [n.text for n in notes]


def test_a_whole_run(tmp_path):
    found = fake.scores(fake.np.random.default_rng(0), 1.2, step=30, seed=7)
    run, notes = one(tmp_path, scores=found, pictures={'evaluation-guided.png': fake.digits(0, 1)})
    assert notes == [] and run.name == 'r' and run.status == 'done' and run.step == 30
    assert run.final('denoise/loss') == pytest.approx(1 / 3) and run.final('nothing') is None
    assert run.curves['guided/frechet'] == ((30, found['guided']['frechet']),)
    assert 'guided/class_fraction' not in run.curves and 'time' not in run.curves, 'lists and clocks are no metrics'
    recipe = run.recipes['guided/frechet']
    assert {k: recipe[k] for k in ('n', 'settings.solver', 'seed', 'split')} == {
        'n': 1000, 'settings.solver': 'ddim', 'seed': 7, 'split': 'test'}
    assert recipe['features'].startswith('decision values'), 'digits_recipe is of all metrics of the report'
    assert run.timing == {'logged_seconds': 2.0, 'images_per_second': 101.0}
    assert run.pictures['guided'].path.name == 'evaluation-guided.png' and run.pictures['guided'].seed == 7


def test_best_over_the_steps(tmp_path):
    values = [0.5, 'nan', 0.2, 0.2, 0.9]
    run, _ = one(tmp_path, rows=[{'step': i, 'x/accuracy': v} for i, v in enumerate(values)])
    assert run.best('x/accuracy', 'down') == (0.2, 2) and run.best('x/accuracy', 'up') == (0.9, 4)
    assert run.best('y', 'up') is None


def test_an_evaluation_in_training_has_its_recipe(tmp_path):
    run, _ = one(tmp_path, rows=[{'step': 30, 'heldout/loss': 0.3, 'heldout/loss_stderr': 0.1,
                                  'heldout/loss_recipe': {'n': 297, 'of': 'loss'}, 'time': 1.0}])
    assert list(run.curves) == ['heldout/loss']
    assert run.recipes['heldout/loss'] == {'split': 'test', 'ema': 'slow', 'seed': 0, 'predict': 'losses', 'n': 297,
                                           'of': 'loss', 'step': 30}


def test_evaluation_json_wins_at_its_step_and_counts_as_a_point(tmp_path):
    log = [{'step': 10, 'guided/frechet': 3.0}, {'step': 30, 'guided/frechet': 2.0}]
    run, notes = one(tmp_path, rows=log, scores={'step': 30, 'guided': {'frechet': 1.5}})
    assert run.curves['guided/frechet'] == ((10, 3.0), (30, 1.5)) and notes == []
    (tmp_path / 'r' / 'evaluation.json').write_text(json.dumps({'step': 10, 'guided': {'frechet': 1.5}}))
    (run,), notes = read_runs([tmp_path / 'r'])
    assert run.final('guided/frechet') == 2.0 and run.recipes['guided/frechet']['step'] == 30
    assert 'earlier step' in notes[0].text


def damage(path, name, text):
    (path / name).write_bytes(text.encode() if isinstance(text, str) else text)


GOOD = ''.join(json.dumps(r) + '\n' for r in rows())
BROKEN = {
    'torn last line': ('metrics.jsonl', GOOD[:-30], 'the last line is cut off'),
    'garbage': ('metrics.jsonl', 'hello\n\x00\x01\n[1]\n' + GOOD, 'lines that are no records of a log (3)'),
    'no text': ('metrics.jsonl', b'\xff\xfe\xff\n' + GOOD.encode(), 'no records of a log (1)'),
    'empty log': ('metrics.jsonl', '', 'nothing was measured'),
    'config cut off': ('config.json', '{"seed": 0, ', 'config.json cannot be read'),
    'config a list': ('config.json', '[1, 2]', 'config.json cannot be read'),
    'config empty': ('config.json', '', 'config.json cannot be read'),
    'evaluation cut off': ('evaluation.json', '{"step": 30, "gui', 'evaluation.json cannot be read'),
    'evaluation a number': ('evaluation.json', '3', 'evaluation.json cannot be read (it is no JSON object)'),
    'NaN in JSON': ('evaluation.json', '{"step": 30, "g": {"fid": NaN, "kid": "inf"}}', 'g/fid is not finite at 1 of 1'
                    ),
    'Infinity in the log': ('metrics.jsonl', '{"step": 5, "denoise/loss": Infinity}\n' + GOOD,
                            'at 1 of 4 steps, first at step 5'),
    'versions': ('versions.json', 'x', 'versions.json cannot be read'),
    'run.json': ('run.json', '{', 'run.json cannot be read'),
}


@pytest.mark.parametrize('name', BROKEN)
def test_a_broken_file_is_one_note(tmp_path, name):
    file, text, expected = BROKEN[name]
    fake.write(tmp_path / 'r', fake.config(train__steps=30), rows())
    damage(tmp_path / 'r', file, text)
    (run,), notes = read_runs([tmp_path / 'r'])
    assert sum(expected in n.text for n in notes) == 1, notes
    assert len(notes) <= 2 and all(n.run == 'r' for n in notes)
    if file != 'metrics.jsonl':
        assert run.final('denoise/loss') == pytest.approx(1 / 3), 'the rest is used'
    elif name != 'empty log':
        assert run.final('denoise/loss') == pytest.approx(1 / 2 if name == 'torn last line' else 1 / 3)


def test_odd_folders_say_what_they_are(tmp_path):
    cases = {'none': ({'c': None}, 'no config.json'), 'bare': ({'rows': ()}, 'nothing was measured'),
             'nocheckpoint': ({'checkpoint': False}, 'no checkpoint'),
             'failed': ({'rows': (), 'run': {'status': 'failed', 'error': 'Traceback\nValueError: <b>no</b>'},
                         'checkpoint': False}, 'failed: ValueError: <b>no</b>'),
             'wordy': ({'rows': (), 'run': {'status': 'failed', 'error': 'TypeError: bad shapes\n  see above'}},
                       'failed: TypeError: bad shapes'),
             'pending': ({'c': None, 'rows': (), 'run': {'status': 'pending', 'overrides': {'optim.lr': 1}},
                          'checkpoint': False}, 'has not been run yet'),
             'running': ({'run': {'status': 'running'}}, 'is running, or was killed')}
    for name, (kwargs, expected) in cases.items():
        _, notes = one(tmp_path / name, **kwargs)
        assert any(expected in n for n in notes), (name, notes)
    run, notes = one(tmp_path / 'scored', rows=(), checkpoint=False, scores={'step': 1, 'g': {'fid': 1.0}})
    assert run.status == 'evaluated' and notes == [], 'an evaluation of another run needs no checkpoint'
    run, notes = one(tmp_path / 'short', c=fake.config(train__steps=99))
    assert run.status == 'unfinished' and notes == []


def test_a_config_of_another_age_or_program_is_compared_as_it_is(tmp_path):
    for i, text in enumerate(('{"optim": {"lr": 1}}', '{"optim": 5, "train": []}')):
        fake.write(tmp_path / str(i), None, rows())
        damage(tmp_path / str(i), 'config.json', text)
    runs, notes = read_runs([tmp_path])
    assert [n for n in notes if 'config' in n.text] == []
    assert runs[0].config['optim.lr'] == 1 and runs[0].config['train.steps'] == 1000, 'with the defaults of today'
    assert runs[1].config['optim'] == 5


def test_runs_sweeps_and_folders_of_them_in_any_mixture(tmp_path):
    fake.training_sweep(tmp_path / 'all' / 'sweep', seeds=(0,), lrs=(0.001,))
    fake.write(tmp_path / 'all' / 'a', fake.config(), rows())
    fake.write(tmp_path / 'b', fake.config(), rows())
    (tmp_path / 'all' / 'empty').mkdir()
    (tmp_path / 'all' / 'a' / 'report').mkdir()
    paths, notes = find_runs([tmp_path / 'all', tmp_path / 'b', tmp_path / 'all' / 'a'])
    assert [p.name for p in paths] == ['a', 'lr=0.001,seed=0,weighting=min_snr', 'lr=0.001,seed=0,weighting=simple',
                                       'b']
    assert notes == [] and not is_run(tmp_path / 'all')
    paths, notes = find_runs([tmp_path / p for p in ('all/empty', 'nowhere', 'b', 'b/config.json')])
    assert [p.name for p in paths] == ['b']
    assert [n.text for n in notes] == ['holds no run: nothing read', 'does not exist: nothing read',
                                       'is no folder: nothing read']


def test_two_runs_of_one_name_are_shown_with_their_folders(tmp_path):
    for folder in ('x', 'y', 'y/z'):
        fake.write(tmp_path / folder / 'base', fake.config(), rows())
    fake.write(tmp_path / 'y' / 'other', fake.config(), rows())
    runs, notes = read_runs([tmp_path / p for p in ('x/base', 'y/base', 'y/other', 'y/z')])
    assert [r.name for r in runs] == ['x/base', 'y/base', 'other', 'z/base']
    assert notes[-1].text.startswith('3 runs are called base')


def test_the_report_comes_out_of_a_heap_of_rubbish(tmp_path):
    for i, (file, text, _) in enumerate(BROKEN.values()):
        damage(fake.write(tmp_path / 'w' / f'r{i}', fake.config(seed=i), rows()), file, text)
    fake.write(tmp_path / 'w' / 'pictures', fake.config(seed=99), rows(), scores={
        'step': 1, 'a': {'pictures': 'a.png'}, 'b': {'pictures': '../r0/config.json'}, 'c': {'pictures': 'c.png'},
        'd': 5})
    damage(tmp_path / 'w' / 'pictures', 'a.png', b'\x89PNG\r\n\x1a\nnot really')
    report = make_report([tmp_path / 'w'])
    notes = [n.text for n in write_report(report, tmp_path / 'out')]
    assert any('picture of a cannot be read' in n for n in notes)
    assert any('picture of c does not exist' in n for n in notes)
    assert not any('picture of b' in n for n in notes), 'a name that leads elsewhere is not followed'
    for _, _, expected in BROKEN.values():
        assert any(expected in n for n in notes), expected
    assert {p.name for p in (tmp_path / 'out').iterdir()} == {'report.html', 'runs.csv', 'summary.csv', 'summary.md',
                                                              'timing.csv'}


def test_what_an_evaluation_leaves_out_equals_what_holds_then(tmp_path):
    """A training scored with seed 0 by default and an evaluation of it with seed 0 written down are one repetition."""
    for name, seed in (('left-out', None), ('zero', 0), ('one', 1)):
        c = fake.config()
        with c.unlocked():
            del c.evaluate.guided.seed
            if seed is not None:
                c.evaluate.guided.seed = seed
        fake.write(tmp_path / name, c, scores={'step': 600, 'guided': {'frechet': 2.0 + (seed or 0)}})
    report = make_report([tmp_path])
    (cell,) = report.cells['final', 'guided/frechet']
    assert (cell.estimate.n, cell.estimate.mean) == (2, 2.5), 'seed 0 counts once'


def test_values_of_any_size_and_kind(tmp_path):
    """What diverged, an integer that no float holds, a list where a number stands, a name that is no text."""
    found = [fake.scores(fake.np.random.default_rng(i), 1.2, seed=i) for i in range(4)]
    found[0]['guided']['frechet'], found[1]['guided']['frechet'] = 1e308, -10**400
    found[2]['guided']['recipe']['nfe'], found[3]['guided']['recipe']['nfe'] = [1, 2], 10
    for i, scores in enumerate(found):
        fake.write(tmp_path / 'w' / f'r{i}', fake.config(seed=i, optim__lr=0.1 * (i // 2)), rows(time=10**400), scores)
    odd = tmp_path / 'w' / os.fsdecode(b'r\xff')
    saved = json.loads(to_json(fake.config(seed=9, system__solver='\ud800')))
    fake.write(odd, None, rows())
    (odd / 'config.json').write_text(json.dumps({**saved, 'optim': {'lr': 10**400}}))
    report = make_report([tmp_path / 'w'])
    cells = report.cells['final', 'guided/frechet']
    low = next(c for g, c in zip(report.groups, cells, strict=True) if g.runs[0].config['optim.lr'] == 0)
    assert (low.estimate.n, low.estimate.bad, low.estimate.mean) == (1, 1, 1e308)
    write_report(report, tmp_path / 'out')
    assert '\ud800' not in (tmp_path / 'out' / 'runs.csv').read_text() and (tmp_path / 'out' / 'report.html').exists()


def test_what_a_recipe_lacks_is_not_the_word_none(tmp_path):
    for i, settings in enumerate(({'threshold': 'none'}, {})):
        fake.write(tmp_path / f'r{i}', fake.config(optim__lr=0.1 * (i + 1)), scores=fake.scores(
            fake.np.random.default_rng(i), 1.2, settings=settings))
    assert any('settings.threshold (–, none)' in n.text for n in make_report([tmp_path]).notes)
