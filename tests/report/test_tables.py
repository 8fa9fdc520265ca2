"""The tables: what stands in them, and that equal results give equal bytes."""

import csv
import io
import json
import math
import random

import numpy as np
import pytest

from gen_jax.names import ConfigError
from gen_jax.report import cross_table, csv_text, make_report, markdown, runs_table, summary_table, write_report
from gen_jax.report.metrics import direction, number_format, rank_metrics
from gen_jax.report.tables import summary_markdown
from tests.report import fake

RESULTS = ('runs.csv', 'summary.csv', 'summary.md')


@pytest.fixture(scope='module')
def training(tmp_path_factory):
    return fake.training_sweep(tmp_path_factory.mktemp('training'))


@pytest.fixture(scope='module')
def sampling(tmp_path_factory):
    return fake.sampling_sweep(tmp_path_factory.mktemp('sampling'))


def read(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_the_means_of_a_sweep_are_those_of_its_files(training):
    report = make_report([training])
    rows = [r for r in summary_table(report) if r['metric'] == 'guided/frechet']
    assert len(rows) == 6 and [a.name for a in report.axes] == ['lr', 'weighting'] and report.seeds == ('seed',)
    by_hand = [json.loads((training / 'runs' / f'lr=0.001,seed={s},weighting=simple' / 'evaluation.json').read_text())
               ['guided']['frechet'] for s in range(3)]
    row = next(r for r in rows if r['optim.lr'] == 0.001 and r['system.weighting.name'].endswith('simple'))
    assert row['mean'] == pytest.approx(np.mean(by_hand), rel=1e-14) and row['n'] == 3
    assert row['stderr'] == pytest.approx(np.std(by_hand, ddof=1) / math.sqrt(3), rel=1e-12)
    assert row['test'] == 'paired t' and row['p'] <= row['p_holm'] <= 5 * row['p'] * (1 + 1e-12)
    best = [r for r in rows if r['best']]
    assert len(best) == 1 and best[0]['mean'] == min(r['mean'] for r in rows) and best[0]['reference']
    assert best[0]['test'] is None
    accuracy = [r for r in summary_table(report) if r['metric'] == 'guided/accuracy']
    assert next(r for r in accuracy if r['best'])['mean'] == max(r['mean'] for r in accuracy)
    held = [r for r in summary_table(report) if r['metric'] == 'heldout/loss' and r['value'] == 'best']
    final = [r for r in summary_table(report) if r['metric'] == 'heldout/loss' and r['value'] == 'final']
    assert all(b['mean'] <= f['mean'] for b, f in zip(held, final, strict=True))


def test_a_baseline_is_what_all_are_compared_with(training):
    for text in ('lr=0.0003,weighting=simple', 'optim.lr=3e-4,system.weighting.name=diffusion.weighting.simple',
                 'lr=0.0003,seed=1,weighting=simple'):
        report = make_report([training], baseline=text)
        assert report.groups[report.baseline].label == 'lr=0.0003, weighting=simple', text
        assert {(r['optim.lr'], r['value']) for r in summary_table(report) if r['reference']} >= {(0.0003, 'final')}
        assert 'differs from the baseline (lr=0.0003, weighting=simple)' in summary_markdown(report)


@pytest.mark.parametrize('options, expected', [
    ({'baseline': 'lr=7'}, '--baseline lr=7 is not used, as no groups fit'),
    ({'baseline': 'weighting=simple'}, 'as 3 groups fit'),
    ({'axes': ['batch']}, '--axes batch is not used: the runs differ in optim.lr, system.weighting.name'),
    ({'metrics': ['guided/frechett']}, 'did you mean guided/frechet'),
    ({'metrics': ['loss']}, 'it may be denoise/loss, heldout/loss'),
])
def test_an_option_that_does_not_fit_is_a_note(training, options, expected):
    report = make_report([training], **options)
    assert sum(expected in n.text for n in report.notes) == 1, report.notes


def test_no_run_and_a_direction_that_is_none_are_errors(training, tmp_path):
    with pytest.raises(ConfigError, match='no run found in .*name folders'):
        make_report([tmp_path])
    with pytest.raises(ConfigError, match="'sideways': choose from up, down"):
        make_report([training], better={'fid': 'sideways'})


def test_directions():
    ways = {'guided/accuracy': 'up', 'x/frechet': 'down', 'heldout/loss_t_0_0.1': 'down', 'denoise/loss': 'down',
            'bits/bits_per_dim': 'down', 'a/zero_shot_accuracy_top5': 'up', 'a/frechet_classifier': 'down',
            'a/recall': 'up', 'a/accuracy_heldout': '', 'unet/lr': '', 'a/nearest_train': '', 'a/mapping': '',
            'a/class_fraction_min': 'up'}
    assert {k: direction(k) for k in ways} == ways
    assert direction('a/recall', {'recall': 'down'}) == 'down' and direction('a/new', {'a/new': 'up'}) == 'up'


def test_headlines():
    names = ['denoise/loss', 'unet/lr', 'g/frechet', 'g/accuracy', 'h/loss_t_0_1', 'g/accuracy_heldout']
    evaluated = [n for n in names if n[:2] in ('g/', 'h/')]
    ranked = rank_metrics(names, evaluated, ['denoise/loss'])
    assert [m.name for m in ranked if m.headline] == ['g/accuracy', 'g/frechet']
    assert [m.name for m in rank_metrics(names, evaluated, [], first=['unet/lr']) if m.headline] == ['unet/lr']
    assert [m.name for m in rank_metrics(['unet/lr', 'denoise/loss'], [], []) if m.headline] == ['denoise/loss']


def test_decimal_points_stand_below_each_other():
    assert number_format([1.1517, 12.9], [0.002, 0.51, 0.031]) == '.3f', 'two digits of the median standard error'
    assert number_format([97.21, 99.4]) == '.2f' and number_format([3, 40]) == '.0f'
    assert number_format([1.31, 1.42, 1.38, 145.3]) == '.3f', 'one that is far off takes no digits from the others'
    assert number_format([1e-5, 3e-5]) == '.3e' and number_format([5e6]) == '.3e'
    assert number_format([]) == '.0f' and number_format([math.nan, None, 0.5], [math.inf]) == '.4f'


def test_the_cross_table_of_solvers_and_steps(sampling):
    report = make_report([sampling])
    assert (report.x.name, report.lines.name) == ('nfe', 'solver') and report.seed_words.startswith('sampling seeds')
    table = cross_table(report, 'guided/frechet', columns=next(a for a in report.axes if a.name == 'steps'))
    assert [r['solver'] for r in table] == ['ddim', 'ddpm', 'dpmpp_2m', 'heun']
    assert list(table[0]) == ['solver', 'steps=5', 'steps=10', 'steps=20', 'steps=50']
    assert table[2]['steps=50'].startswith('**1.2') and table[1]['steps=5'].endswith(r'\*')
    by_calls = cross_table(report, 'guided/frechet')
    assert by_calls[3]['nfe=100'] == table[3]['steps=50'] and by_calls[3]['nfe=5'] == '–'
    text = markdown(table)
    assert text.splitlines()[0] == '| solver | steps=5 | steps=10 | steps=20 | steps=50 |' and text.count('\n') == 6


def test_a_third_axis_makes_rows_of_its_own(training, tmp_path):
    for scale in (1.0, 2.0):
        for lr in (0.1, 0.2):
            for b in (8, 16):
                c = fake.config(optim__lr=lr, data__batch_size=b, evaluate__guided__settings__guidance_scale=scale)
                fake.write(tmp_path / f'{scale}{lr}{b}', c, scores={'step': 1, 'guided': {'frechet': lr * b + scale}})
    report = make_report([tmp_path], axes=['lr', 'guidance_scale'])
    table = cross_table(report, 'guided/frechet')
    assert [(r['guidance_scale'], r['batch_size'], r['lr=0.2'].strip('*')) for r in table] == [
        ('1', '8', '2.600'), ('1', '16', '4.200'), ('2', '8', '3.600'), ('2', '16', '5.200')]


def test_other_runs_join_no_row(sampling, tmp_path):
    """A lone run without eta stands at a budget of its own: it is no point of the solver that has no eta either."""
    for settings, calls in (({'solver': 'ddpm'}, (5, 10)), ({'solver': 'ddim', 'eta': 0.0}, (5, 10)), ({}, (7,))):
        for nfe in calls:
            c = fake.config()
            c.evaluate.guided.settings = {**settings, 'steps': nfe}
            fake.write(tmp_path / f'{len(settings)}{nfe}', c, scores=fake.scores(
                np.random.default_rng(nfe), 1.0, settings={**settings, 'steps': nfe}, nfe=nfe, picture=None))
    table = cross_table(make_report([tmp_path], axes=['nfe', 'eta']), 'guided/frechet')
    assert [(r['eta'], r.get('solver')) for r in table] == [('–', '–'), ('–', 'ddpm'), ('0', 'ddim')]
    assert [list(r.values()).count('–') for r in table] == [4, 2, 1] and 'steps' not in table[0]


def test_a_killed_and_restarted_sweep_has_equal_bytes(training, tmp_path):
    """Times, speeds, attempts, folders and the order of the files differ; the results do not."""
    other = tmp_path / 'elsewhere' / 'again'
    runs = sorted((training / 'runs').iterdir())
    random.Random(0).shuffle(runs)
    for run in runs:
        new = other / 'runs' / run.name
        new.mkdir(parents=True)
        for path in run.rglob('*'):
            if path.is_dir():
                (new / path.relative_to(run)).mkdir(exist_ok=True, parents=True)
                continue
            text = path.read_bytes()
            if path.name == 'metrics.jsonl':
                lines = [json.loads(line) for line in text.splitlines()]
                text = ''.join(json.dumps({**r, 'time': r['time'] + 1e4, **({'images_per_second': 7.0} if 'unet/lr' in r
                                                                           else {})}) + '\n' for r in lines).encode()
            if path.name == 'run.json':
                text = json.dumps({**json.loads(text), 'seconds': 1.5, 'attempts': 4}).encode()
            (new / path.relative_to(run)).parent.mkdir(exist_ok=True, parents=True)
            (new / path.relative_to(run)).write_bytes(text)
    (other / 'sweep.json').write_text('{}')
    for name, folder in (('a', training), ('b', other)):
        write_report(make_report([folder]), tmp_path / name)
    for name in RESULTS:
        a, b = ((tmp_path / x / name).read_bytes() for x in 'ab')
        assert a == b and len(a) > 500, name
    assert (tmp_path / 'a' / 'timing.csv').read_bytes() != (tmp_path / 'b' / 'timing.csv').read_bytes()
    write_report(make_report([training]), tmp_path / 'c')
    assert (tmp_path / 'c' / 'report.html').read_bytes() == (tmp_path / 'a' / 'report.html').read_bytes()


def test_csv_reads_back_to_the_same_bits(training):
    report = make_report([training])
    rows = runs_table(report)
    back = read(csv_text(rows))
    assert len(back) == 18 and [float(r['guided/frechet']) for r in back] == [r['guided/frechet'] for r in rows]
    assert read(csv_text([{'a': 'x,"y"\n', 'b': None, 'c': True, 'd': math.nan, 'e': [1]}])) == [
        {'a': 'x,"y"\n', 'b': '', 'c': 'true', 'd': 'nan', 'e': '[1]'}]
    assert csv_text([]) == '' == markdown([])


def test_nothing_in_a_name_becomes_markup():
    text = markdown([{'a|b': '<script>alert(1)</script>|*x*_y_`z`\nnew', 'snake_case': 'keeps_its_bars'}])
    assert len(text.splitlines()) == 3 and '<' not in text and 'a\\|b' in text and '| keeps_its_bars |' in text
    assert '\\*x\\*' in text and '\\|' in text and '\\`z\\`' in text


def test_what_is_not_finite_is_neither_best_nor_tested(tmp_path):
    for lr in (0.1, 0.2):
        for seed in range(3):
            value = math.nan if (lr, seed) == (0.1, 2) else lr * 10 + seed / 10
            fake.write(tmp_path / f'{lr}-{seed}', fake.config(optim__lr=lr, seed=seed),
                       scores={'step': 1, 'guided': {'frechet': value}})
    report = make_report([tmp_path])
    bad, good = report.cells['final', 'guided/frechet']
    assert bad.estimate[:3] == (2, 1, pytest.approx(1.05)) and not bad.best and bad.comparison.p is None
    assert 'not finite' in bad.comparison.why and good.reference
    assert '(1 not finite)' in summary_markdown(report) and any('not finite' in n.text for n in report.notes)
    assert [r['guided/frechet'] for r in read(csv_text(runs_table(report)))].count('nan') == 1


def test_one_seed_says_that_no_test_is_possible(tmp_path):
    for lr in (0.1, 0.2):
        fake.write(tmp_path / str(lr), fake.config(optim__lr=lr), scores={'step': 1, 'guided': {'frechet': lr}})
    report = make_report([tmp_path])
    assert {r['test'] for r in summary_table(report)} == {None, 'one seed: no test is possible'}
    assert 'no test of a difference is possible' in summary_markdown(report)


def test_the_reference_has_several_seeds_where_any_group_has(tmp_path):
    """A thousand steps were run with one seed: they may be the best, but nothing can be tested against them."""
    for steps, seeds, base in ((10, 3, 2.0), (50, 3, 1.5), (1000, 1, 1.0)):
        for seed in range(seeds):
            c = fake.config(evaluate__guided__settings__steps=steps, evaluate__guided__seed=seed)
            value = base * (1 + seed**2 / 50)
            fake.write(tmp_path / f'{steps}-{seed}', c, scores={'step': 1, 'guided': {'frechet': value}})
    ten, fifty, thousand = make_report([tmp_path]).cells['final', 'guided/frechet']
    assert thousand.best and not thousand.reference and fifty.reference and not fifty.best
    assert ten.comparison.test and 'one seed' in thousand.comparison.why


def test_recipes_that_differ_in_one_column_are_a_warning(tmp_path):
    for i, (n, steps) in enumerate(((500, 10), (1000, 20))):
        c = fake.config(evaluate__guided__settings__steps=steps)
        found = fake.scores(np.random.default_rng(i), 1.2, settings={'steps': steps}, picture=None)
        found['guided']['digits_recipe'] = {**fake.CARD, 'n': n}
        fake.write(tmp_path / str(i), c, scores=found)
    texts = [n.text for n in make_report([tmp_path]).notes]
    assert sum('they differ in n (500, 1000): guided/accuracy, guided/frechet' in t for t in texts) == 1
    assert not any('settings.steps' in t for t in texts), 'what a column shows is no warning'
    assert '500, 1000' in summary_markdown(make_report([tmp_path]))


def test_metrics_missing_in_some_runs_are_one_note(tmp_path):
    for i in range(4):
        scores = {'step': 1, 'guided': {'frechet': 1.0 + i, **({'accuracy': 0.9} if i else {})},
                  **({'bits': {'nll': 1.0}} if i == 3 else {})}
        fake.write(tmp_path / f'r{i}', fake.config(optim__lr=float(i)), scores=scores)
    notes = {n.run: n.text for n in make_report([tmp_path]).notes}
    assert notes == {'r0': 'no value of guided/accuracy', 'r3': 'no other run has a value of bits/nll'}


def test_runs_that_are_equal_in_everything_count_once(tmp_path):
    for name in ('a', 'b'):
        fake.write(tmp_path / name, fake.config(), scores={'step': 1, 'guided': {'frechet': 1.0}})
    report = make_report([tmp_path])
    assert report.cells['final', 'guided/frechet'][0].estimate.n == 1
    assert [n.run for n in report.notes if 'equal to another run' in n.text] == ['b']


def test_the_report_says_which_seeds(tmp_path):
    for seed in range(2):
        for sampling in range(2):
            fake.write(tmp_path / f'{seed}{sampling}', fake.config(seed=seed, evaluate__guided__seed=sampling),
                       scores={'step': 1, 'guided': {'frechet': 1.0 + seed + sampling / 8}})
    report = make_report([tmp_path])
    assert report.seed_words.startswith('training seeds; several sampling seeds')
    estimate = report.cells['final', 'guided/frechet'][0].estimate
    assert estimate.n == 2 and estimate.mean == pytest.approx(1.5625)
