"""Which settings differ, which runs are one group, and what a mean is taken over."""

import pytest

from gen_jax.report.compare import (
    ABSENT,
    differing,
    find_axis,
    group_runs,
    is_seed,
    merge_tied,
    show,
    sort_key,
    units,
)
from gen_jax.report.read import Run


def make(name='r', spec='', overrides=None, **config):
    config = {'seed': 0, 'optim.lr': 0.1, 'data.batch_size': 8, **{k.replace('__', '.'): v for k, v in config.items()}}
    return Run(name, None, config, overrides or {}, spec, 'done', '', 1, {}, {}, {}, {}, {})


def test_seeds_are_known_as_such():
    assert all(map(is_seed, ('seed', 'sample.seed', 'evaluate.guided.seed')))
    assert not any(map(is_seed, ('data.options.seed', 'optim.seed', 'seeds', 'evaluate.guided.settings.seed')))


def test_only_what_differs():
    runs = [make(a=1, b=[1, 2], c={}), make(a=1, b=[2, 1], c={}), make(a=1, b=[1, 2], extra=None)]
    assert differing(runs) == {'b': ([1, 2], [2, 1], [1, 2]), 'c': ({}, {}, ABSENT), 'extra': (ABSENT, ABSENT, None)}
    assert differing([]) == {} == differing([make()])


def test_true_is_not_one():
    assert 'a' in differing([make(a=1), make(a=True)])
    assert 'a' not in differing([make(a=1), make(a=1.0)])


def test_groups_are_equal_but_for_seeds():
    runs = [make(f'{lr}-{s}', optim__lr=lr, seed=s, evaluate__x__seed=s) for lr in (0.1, 0.01) for s in (2, 0, 1)]
    axes, groups = group_runs(runs)
    assert [(a.key, a.name, a.values, a.numeric) for a in axes] == [('optim.lr', 'lr', (0.01, 0.1), True)]
    assert [g.label for g in groups] == ['lr=0.01', 'lr=0.1']
    assert [[r.name for r in g.runs] for g in groups] == [['0.01-0', '0.01-1', '0.01-2'], ['0.1-0', '0.1-1', '0.1-2']]


def test_logs_threads_and_retention_make_no_groups():
    runs = [make('a', log__every_steps=1), make('b', log__every_steps=2, data__threads=4, checkpoint__keep_last=9)]
    axes, groups = group_runs(runs)
    assert axes == [] and len(groups) == 1 and groups[0].label == 'all runs'


def test_runs_without_config_stand_in_no_group():
    assert group_runs([make('a')._replace(config={}), make('b')])[1][0].runs[0].name == 'b'
    assert group_runs([make('a')._replace(config={})]) == ([], [])


def test_keys_that_change_together_are_one_axis():
    def variant(name, sigma, seed):
        return make(f'{name}{seed}', system__parameterisation__name=f'diffusion.parameterisation.{name}', seed=seed,
                    system__parameterisation__sigma=sigma, system__process__name='edm' if name == 'edm' else 'vp')
    runs = [variant(*v, s) for v in (('eps', ABSENT), ('v', 1.0), ('edm', 0.5)) for s in (0, 1)]
    axes, groups = group_runs(runs)
    keys = [a.key for a in axes]
    assert keys == ['system.parameterisation.name', 'system.process.name'] and len(groups) == 3
    assert axes[0].tied == ('system.parameterisation.sigma',) and axes[0].name == 'parameterisation'
    assert groups[1].label == 'parameterisation=eps, process=vp', 'the namespace that all share is not shown'
    assert axes[0].show('diffusion.parameterisation.v') == 'v'


def test_a_sweep_names_its_own_axes():
    """What was swept is shown, not what follows from it."""
    runs = [make(f'{lr}', overrides={'optim.lr': lr}, optim__lr=lr, a__b=lr > 0.1, train__steps=int(lr * 10))
            for lr in (0.1, 0.2, 0.3)]
    axes, _ = group_runs(runs)
    assert [a.key for a in axes] == ['optim.lr'] and axes[0].tied == ('train.steps',)
    runs = [make(s, spec=f'digits:{s}', overrides={'seed': 0}, a=s, b=s[0], seed=0) for s in ('eps', 'v', 'edm')]
    assert [a.key for a in group_runs(runs)[0]] == ['config'], 'variants of a config by its argument'
    runs = [make(f'{t}{n}', spec=f'a/b.py:debug,target={t},n={n}', x=t, y=n * 2, z=f'{t}{n}'[1:]) for n in (10, 5)
            for t in ('eps', 'v')]
    axes, groups = group_runs(runs)
    assert [(a.key, a.name, a.numeric) for a in axes] == [('config:n', 'n', True), ('config:target', 'target', False)]
    assert [g.label for g in groups] == ['n=5, target=eps', 'n=5, target=v', 'n=10, target=eps', 'n=10, target=v']
    assert axes[0].tied == ('y',)
    runs = [make(s, overrides={'e.settings': {'solver': s}}, e__settings__solver=s, other=s[0]) for s in ('a1', 'b1')]
    assert [a.key for a in group_runs(runs)[0]] == ['e.settings.solver'], 'a whole branch was set at once'


def test_what_is_not_set_is_not_in_the_label():
    runs = [make(a=1, b=2), make(a=1, b=ABSENT, seed=1), make(a=ABSENT, b=2), make(a=ABSENT, b=ABSENT)]
    runs = [r._replace(overrides={'a': 1}, config={k: v for k, v in r.config.items() if v != ABSENT}) for r in runs]
    assert [g.label for g in group_runs(runs)[1]] == ['nothing set', 'b=2', 'a=1', 'a=1, b=2']


def test_overrides_that_do_not_tell_groups_apart_are_not_enough():
    runs = [make('a', overrides={'optim.lr': 0.1}), make('b', overrides={'optim.lr': 0.2}, optim__lr=0.2),
            make('lone', data__batch_size=16)]
    axes, groups = group_runs(runs)
    assert [a.key for a in axes] == ['data.batch_size', 'optim.lr'] and len(groups) == 3


def test_many_differences_become_few_columns_that_still_tell_groups_apart():
    runs = [make(f'r{i}', **{f'k{j}': (i >> j) & 1 if j < 3 else int(i > j) for j in range(9)}) for i in range(8)]
    axes, groups = group_runs(runs)
    assert len(groups) == 8 and len(axes) <= 6
    assert len({tuple(g.settings.values()) for g in groups}) == 8


def test_names_are_short_and_unique():
    runs = [make('a', evaluate__x__settings__steps=1, train__steps=1, evaluate__y__settings__steps=5),
            make('b', evaluate__x__settings__steps=2, train__steps=1, evaluate__y__settings__steps=5),
            make('c', evaluate__x__settings__steps=2, train__steps=2, evaluate__y__settings__steps=6),
            make('d', evaluate__x__settings__steps=1, train__steps=2, evaluate__y__settings__steps=5)]
    axes, _ = group_runs(runs)
    assert {a.key: a.name for a in axes} == {
        'evaluate.x.settings.steps': 'x.settings.steps', 'evaluate.y.settings.steps': 'y.settings.steps',
        'train.steps': 'train.steps'}
    assert find_axis(axes, 'train.steps').key == 'train.steps' and find_axis(axes, 'steps') is None
    assert find_axis(axes, 'y.settings.steps').key == 'evaluate.y.settings.steps' and find_axis(axes, 'lr') is None


def test_lone_runs_go_by_their_names_in_the_order_given():
    _, groups = group_runs([make('z', a=1), make('b', a=3), make('q', a=2)])
    assert [g.label for g in groups] == ['z', 'b', 'q']


def test_natural_order():
    values = ['b', 10, ABSENT, 2.5, None, True, [1], 'a', 9]
    assert sorted(values, key=sort_key) == [ABSENT, None, True, 2.5, 9, 10, 'a', 'b', [1]]
    assert [show(v) for v in (ABSENT, None, True, 1e-4, 0.30000000000000004, [1, 'a'], 'x', 10)] == [
        '–', 'none', 'true', '0.0001', '0.3', '[1, "a"]', 'x', '10']


def test_tied_keys_keep_the_name_of_a_thing():
    runs = [make(a=1, z__name='p', b=5), make(a=2, z__name='q', b=5)]
    assert merge_tied(runs, ['a', 'z.name']) == ['z.name']


@pytest.mark.parametrize('seeds, expected', [
    (['seed', 'evaluate.x.seed'], {('0',): 15.0, ('1',): 35.0}),  # sampling seeds averaged within each training
    (['evaluate.x.seed'], {('0',): 10.0, ('1',): 20.0}),  # of runs with equal seeds the first counts
])
def test_units(seeds, expected):
    values = {'a': 10.0, 'b': 20.0, 'c': 30.0, 'd': 40.0, 'e': None}
    runs = tuple(make(n, seed=s, evaluate__x__seed=e) for n, s, e in
                 (('a', 0, 0), ('b', 0, 1), ('c', 1, 0), ('d', 1, 1), ('e', 2, 0)))
    group = group_runs(runs)[1][0]
    assert units(group, seeds, lambda r: values[r.name]) == expected


def test_sampling_seeds_of_one_training_are_its_repetitions():
    group = group_runs([make(str(e), seed=0, evaluate__x__seed=e) for e in range(3)])[1][0]
    assert len(units(group, ['seed', 'evaluate.x.seed'], lambda r: 1.0)) == 3
