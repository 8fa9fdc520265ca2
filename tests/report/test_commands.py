"""gen-jax report and gen-jax diff as a user meets them, and the page about them."""

import json
import re
import shlex
from pathlib import Path

import pytest

from gen_jax.cli.main import main
from tests.report import fake

PAGE = Path(__file__).resolve().parents[2] / 'docs' / 'reports.md'


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """What the page's commands name, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name, lr in (('a', 0.001), ('b', 0.003)):
        fake.write(Path('runs') / name, fake.config(optim__lr=lr, data__batch_size=64),
                   fake.curve(fake.np.random.default_rng(0), 1.0),
                   fake.scores(fake.np.random.default_rng(1), lr * 1000, picture=None))
    fake.training_sweep(Path('runs/lr'), seeds=(0, 1), lrs=(0.001, 0.003))
    fake.sampling_sweep(Path('runs/steps'), seeds=(0, 1), steps=(5, 10), solvers=('ddim', 'heun'))
    return tmp_path


def test_report_writes_beside_the_first_folder(runs, capsys):
    assert main(['report', 'runs/a', 'runs/b']) == 0
    out = capsys.readouterr()
    assert '2 runs in 2 groups: runs/a/report/report.html' in out.out and out.err == ''
    assert sorted(p.name for p in Path('runs/a/report').iterdir()) == [
        'report.html', 'runs.csv', 'summary.csv', 'summary.md', 'timing.csv']
    assert '<title>a, b</title>' in Path('runs/a/report/report.html').read_text()
    before = Path('runs/a/report/summary.csv').read_bytes()
    assert main(['report', 'runs/a', 'runs/b']) == 0, 'its own folder is no run'
    assert Path('runs/a/report/summary.csv').read_bytes() == before


def test_report_options(runs, capsys):
    assert main(['report', 'runs/lr', '--out', 'page', '--axes', 'weighting,lr', '--metric', 'frechet,heldout/loss',
                 '--baseline', 'lr=0.003,weighting=simple', '--better', 'frechet=up', '--title', 'Rates']) == 0
    text = Path('page/summary.md').read_text()
    assert '| lr | weighting | n | guided/frechet ↑ | heldout/loss ↓ |' in text
    assert '| lr | weighting=min_snr | weighting=simple |' in text
    assert 'the baseline (lr=0.003, weighting=simple)' in text
    assert '<title>Rates</title>' in Path('page/report.html').read_text() and capsys.readouterr().err == ''


@pytest.mark.parametrize('argv, expected', [
    (['report'], 'needs a WORKDIR'),
    (['report', 'nowhere'], 'no run found in nowhere'),
    (['report', 'runs/a', '--config.optim.lr=1'], 'a report changes no config'),
    (['report', 'runs/a', '--better', 'frechet'], "frechet='': choose from up, down"),
    (['diff', 'runs/a'], 'needs two runs or configs'),
    (['diff', 'runs/a', 'runs'], 'there is no config.json here'),
    (['diff', 'digits', 'digitz'], 'did you mean'),
    (['diff', 'runs/a', 'nowhere.json'], 'there is no nowhere.json here'),
])
def test_bad_input_is_one_line_and_code_two(runs, capsys, argv, expected):
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert expected in err and err.count('\n') == 1
    assert not Path('nowhere').exists()


def test_what_is_wrong_with_runs_is_said_and_the_report_comes_out(runs, capsys):
    with open('runs/b/metrics.jsonl', 'a') as log:
        log.write('{"step": 7')
    assert main(['report', 'runs/a', 'runs/b', 'runs/c', '--metric', 'fid']) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith('note: ') for line in lines)
    assert 'note: b: metrics.jsonl: the last line is cut off, as after a crash; it was left out' in lines


def test_the_report_lands_in_the_first_folder_there_is(runs, capsys):
    Path('file').touch()
    assert main(['report', 'nowhere', 'file', 'runs/b', 'runs/a']) == 0
    assert Path('runs/b/report/report.html').exists() and not Path('nowhere').exists()


def test_diff_names_the_config_that_cannot_be_read(runs, capsys):
    for text in (b'{"a": ', b'[1]', b'\xff\xfe', b'5'):
        Path('runs/b/config.json').write_bytes(text)
        assert main(['diff', 'runs/a', 'runs/b']) == 2
        err = capsys.readouterr().err
        assert 'runs/b/config.json cannot be read as a config' in err and err.count('\n') == 1
    Path('digits').mkdir()
    assert main(['diff', 'digits', 'digits:eps']) == 1, 'a folder of data that is called as a config is'


def test_diff(runs, capsys):
    assert main(['diff', 'runs/a', 'runs/b']) == 1
    head, row = capsys.readouterr().out.splitlines()
    assert row.split() == ['optim.lr', '0.001', '0.003'] and head.split() == ['runs/a', 'runs/b']
    assert head.index('runs/b') == row.index('0.003')
    assert main(['diff', 'runs/a', 'runs/a/config.json']) == 0 and capsys.readouterr().out == 'no difference\n'
    assert main(['diff', 'digits', 'digits:eps']) == 1
    assert 'diffusion.parameterisation.eps' in capsys.readouterr().out
    # A config saved before a setting existed has that setting's default, as training from it would.
    saved = json.loads(Path('runs/a/config.json').read_text())
    del saved['train']['cpu_devices']
    Path('old.json').write_text(json.dumps(saved))
    assert main(['diff', 'runs/a', 'old.json']) == 0


def test_a_trained_run_is_reported(tmp_path, capsys):
    """End to end, on what gen-jax train and evaluate themselves write."""
    quick = ['--config.log.tensorboard=False', '--config.sample.predict=', '--config.log.every_steps=1']
    assert main(['train', '--config', 'digits_vae:debug', '--workdir', str(tmp_path / 'w'), *quick,
                 '--config.train.steps=2', '--config.evaluate.heldout.every_steps=1']) == 0
    assert main(['evaluate', '--workdir', str(tmp_path / 'w'), '--only', 'prior']) == 0
    capsys.readouterr()
    assert main(['report', str(tmp_path / 'w'), '--out', str(tmp_path / 'out')]) == 0
    assert capsys.readouterr().err == ''
    summary = (tmp_path / 'out' / 'summary.md').read_text()
    assert 'prior/frechet ↓' in summary and 'heldout/bits_per_dim ↓' in summary
    assert 'no test of a difference is possible' in summary
    page = (tmp_path / 'out' / 'report.html').read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S).group(1))
    labels = [c['label'] for c in data['recipes']['columns']]
    found = {r[0].partition('/')[0]: dict(zip(labels, r, strict=True)) for r in data['recipes']['rows']}
    assert found['prior']['predict'] == 'generate' and found['prior']['n'] == '20' and found['prior']['seed'] == '0'
    assert found['prior']['feature extractor'].startswith('decision values')
    assert found['heldout']['predict'] == 'elbo' and found['heldout']['training step'] == '2'
    (picture,) = data['pictures']
    assert (picture['name'], picture['rows'], picture['columns']) == ('prior', 2, 10), 'the grid is understood'
    assert data['curves']['heldout/bits_per_dim']['groups']['0'][0] == [1, 2]


def test_the_commands_of_the_page_run(runs, capsys):
    text = PAGE.read_text().replace('\\\n', ' ')
    commands = [shlex.split(line.split('  #')[0]) for line in text.splitlines() if line.startswith('    gen-jax ')]
    done = {}
    for words in commands:
        if words[1] in ('report', 'diff'):
            done[words[1]] = done.get(words[1], 0) + 1
            assert main(words[1:]) == (1 if words[1] == 'diff' else 0), words
            assert capsys.readouterr().err == '', words
    assert done['report'] >= 3 and done['diff'] >= 2


def test_the_python_of_the_page_runs(runs):
    (block,) = re.findall(r'```python\n(.*?)```', PAGE.read_text(), re.S)
    scope = {}
    exec(compile(block, 'docs/reports.md', 'exec'), scope)
    assert scope['table'].startswith('| solver |') and Path('study/report.html').exists()
