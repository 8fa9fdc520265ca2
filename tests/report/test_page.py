"""The page without a browser: it holds everything, refers to nothing outside, and data stay data."""

import base64
import json
import re
from html.parser import HTMLParser
from importlib import resources

import numpy as np
import pytest

from gen_jax.report import make_report, write_report
from gen_jax.report.page import CELL, page, payload
from gen_jax.report.pictures import load_pictures
from tests.report import fake

EVIL = '<script>alert(1)<!-- & "\'</script>'


def test_a_run_of_unknown_settings_keeps_its_digits(tmp_path):
    fake.write(tmp_path / 'r', None, [{'step': 1, 'a/loss': 0.1234}])
    (metric,) = payload(make_report([tmp_path]))['metrics']
    assert metric['digits'] == 4 and not metric['powers']


class Parsed(HTMLParser):
    """Tags, attributes and the text of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.text, self.open = [], {}, [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ('meta', 'link', 'input', 'br', 'img'):
            self.open.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag, f'</{tag}> closes another tag'

    def handle_data(self, data):
        tag, attrs = self.open[-1] if self.open else ('', {})
        if tag in ('script', 'style'):
            key = attrs.get('id', tag)
            self.scripts[key] = self.scripts.get(key, '') + data
        else:
            self.text.append(data)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = fake.training_sweep(tmp_path_factory.mktemp('sweep'), lrs=(0.001, 0.003))
    run = {'id': EVIL, 'config': 'digits', 'overrides': {'optim.lr': 5.0}, 'status': 'failed',
           'error': f'ValueError: {EVIL}', 'of': None, 'seconds': 1.0, 'attempts': 1}
    rows = [{'step': s, f'x/{EVIL}': 1.0 / s, 'time': float(s)} for s in (1, 2)]
    fake.write(path / 'runs' / EVIL.replace('/', ''), fake.config(optim__lr=5.0, system__solver=EVIL), rows, run=run,
               versions={**fake.VERSIONS, 'devices': EVIL})
    return path


@pytest.fixture(scope='module')
def report(folder):
    return make_report([folder])


@pytest.fixture(scope='module')
def written(report, tmp_path_factory):
    out = tmp_path_factory.mktemp('out')
    write_report(report, out, f'Title {EVIL}')
    return (out / 'report.html').read_text()


@pytest.fixture(scope='module')
def parsed(written):
    return Parsed(written)


def test_the_page_is_whole_html(parsed):
    assert parsed.open == []
    ids = [a['id'] for _, a in parsed.tags if 'id' in a]
    assert len(ids) == len(set(ids)) and {'results', 'axis', 'curves', 'samples', 'tests', 'runs', 'differences',
                                          'recipes', 'timing', 'notes', 'filter'} <= set(ids)
    for tag, attributes in parsed.tags:  # links within the page, labels and descriptions lead somewhere
        for name in ('for', 'aria-labelledby', 'aria-describedby'):
            assert attributes.get(name, ids[0]) in ids, (tag, attributes)
        if tag == 'a':
            assert attributes['href'].removeprefix('#') in ids


def test_nothing_outside_is_referred_to(parsed):
    for tag, attributes in parsed.tags:
        for name in ('src', 'href', 'action', 'data', 'srcset', 'poster'):
            assert re.match(r'#|data:', attributes.get(name, '#')), (tag, attributes)
        assert not any(name.startswith('on') for name in attributes), 'no code in attributes'
    ours = {k: v for k, v in parsed.scripts.items() if k != 'plotly'}
    assert set(ours) == {'data', 'script', 'style'}
    for key, text in ours.items():
        assert not re.search(r'https?:|//[\w.]+\.\w+/|@import|url\(|fetch\(|XMLHttpRequest|Beacon|WebSocket', text), key
    assert "plotlyServerURL: ''" in ours['script'] and 'modeBarButtons:' in ours['script'], 'no button that uploads'
    assert 'sendDataToCloud' not in ours['script'] and parsed.scripts['plotly'].count('Plotly') > 10


def test_names_and_errors_are_text(written, parsed):
    assert written.count('<script') == 4 and written.count('</script') == 4 and 'alert(1)</' not in written
    assert EVIL in ''.join(parsed.text), 'the notes show it as it is'
    data = json.loads(parsed.scripts['data'])
    (run,) = [r for r in data['runs'] if r['status'] == 'failed']
    assert run['name'] == EVIL.replace('/', '') and EVIL in run['error'] and f'x/{EVIL}' in run['final']


def test_the_payload_is_strict_json_and_says_what_the_report_says(report, parsed):
    def refuse(constant):
        raise AssertionError(constant)

    data = json.loads(parsed.scripts['data'], parse_constant=refuse)
    assert [g['label'] for g in data['groups']] == [g.label for g in report.groups]
    place = {k: i for i, k in enumerate(CELL)}
    for metric in report.metrics:
        for mine, cell in zip(data['cells']['final'][metric.name], report.cells['final', metric.name], strict=True):
            assert mine[place['n']] == cell.estimate.n and mine[place['mean']] == cell.estimate.mean
            assert mine[place['holm']] == (cell.comparison.p_holm if cell.comparison else None)
    curve = data['curves']['heldout/loss']
    steps, mean, error, n = curve['groups']['0']
    singles = [curve['runs'][str(r)][1] for r in data['groups'][0]['runs']]
    np.testing.assert_allclose(mean, np.mean(singles, 0), rtol=1e-12)
    np.testing.assert_allclose(error, np.std(singles, 0, ddof=1) / np.sqrt(3), rtol=1e-9)
    assert steps == [100, 200, 300, 400, 500, 600] and n == [3] * 6
    assert data['t']['3'] == pytest.approx(4.302653, abs=1e-6)


def test_values_that_are_not_finite_pass_through(tmp_path):
    rows = [{'step': 1, 'a/loss': 1.0}, {'step': 2, 'a/loss': 'nan'}, {'step': 3, 'a/loss': 'inf'}]
    scores = {'step': 3, 'g': {'psnr': float('inf'), 'fid': float('nan')}}
    fake.write(tmp_path / 'r', fake.config(), rows, scores=scores)
    report = make_report([tmp_path])
    data = json.loads(json.dumps(payload(report), allow_nan=False))
    assert data['runs'][0]['final'] == {'a/loss': 'inf', 'g/psnr': 'inf', 'g/fid': 'nan'}
    assert data['curves']['a/loss']['runs']['0'] == [[1, 2, 3], [1.0, None, None]]
    Parsed(page(report))


def test_long_curves_are_thinned_to_their_ends(tmp_path):
    fake.write(tmp_path / 'r', fake.config(), [{'step': s, 'a/loss': 1.0 / s} for s in range(1, 2002)])
    steps, values = payload(make_report([tmp_path]))['curves']['a/loss']['runs']['0']
    assert len(steps) <= 402 and (steps[0], steps[-1]) == (1, 2001) and values[-1] == 1 / 2001


def test_pictures_are_those_of_the_runs(folder, report):
    strips, notes = load_pictures(report.runs)
    assert notes == [] and {s.name for s in strips} == {'guided', 'samples'} and len(strips) == 24
    for strip in strips:
        run = report.runs[strip.run]
        raw = base64.b64decode(strip.data.removeprefix('data:image/png;base64,'))
        assert raw == run.pictures[strip.name].path.read_bytes()
        assert (strip.width, strip.height, strip.rows, strip.columns) == (491, 99, 2, 10), 'columns of 48 + 1 pixels'


def test_pictures_above_the_budget_are_cut_to_whole_rows(report):
    import io

    from PIL import Image
    runs = report.runs[:1]
    whole, _ = load_pictures(runs)
    cut, notes = load_pictures(runs, budget=2 * (len(whole[0].data) * 3 // 4 - 200))
    assert notes == [] and cut[0].rows == 1 and cut[0].height == 50
    a, b = (np.asarray(Image.open(io.BytesIO(base64.b64decode(s.data.split(',')[1])))) for s in (whole[0], cut[0]))
    np.testing.assert_array_equal(a[:50], b)
    none, notes = load_pictures(runs, budget=100)
    assert none == [] and len(notes) == 2 and 'too large' in notes[0].text


def test_recipes_and_differences_and_times_stand_on_the_page(report):
    data = payload(report)
    labels = [c['label'] for c in data['recipes']['columns']]
    (row,) = [r for r in data['recipes']['rows'] if r[0].startswith('guided/')]
    found = dict(zip(labels, row, strict=True))
    assert found['metric'] == 'guided/accuracy, frechet, accuracy_heldout'
    assert [found[k] for k in ('split', 'n', 'EMA', 'solver', 'steps', 'guidance', 'seed')] == [
        'test', '1000', 'slow', 'ddim', '30', '2', '0']
    assert found['feature extractor'].startswith('decision values of an SVM') and found['training step'] == '600'
    keys = {r[0]: r[1] for r in data['differences']['rows']}
    assert keys == {'optim.lr': 'shown', 'system.solver': '', 'system.weighting.name': 'shown', 'seed': 'seed'}
    times = [c['label'] for c in data['timing']['columns']]
    assert {'wall time (s)', 'images/s', 'devices', 'git'} <= set(times) and len(data['timing']['rows']) == 13


def test_a_column_of_two_recipes_is_marked(tmp_path):
    for i, n in enumerate((500, 1000)):
        found = fake.scores(np.random.default_rng(i), 1.2, picture=None)
        found['guided']['digits_recipe']['n'] = n
        found['guided']['digits_recipe'] = {**fake.CARD, 'n': n}
        fake.write(tmp_path / str(i), fake.config(optim__lr=float(i)), scores=found)
    data = payload(make_report([tmp_path]))
    assert {m['name']: m['warn'] for m in data['metrics']}['guided/frechet'] == ['n']
    assert any('⚠ 500 · 1000' in str(r) for r in data['recipes']['rows'])


def test_the_parts_of_the_page_are_shipped():
    """hatch packs every file below gen_jax; here: they are where the page looks for them."""
    found = {p.name for p in resources.files('gen_jax.report').iterdir()}
    assert {'page.html', 'page.css', 'page.js', 'table.js', 'charts.js'} <= found
