"""Overrides as values, ids that stay, and what is refused before anything starts. No JAX, no processes."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from gen_jax.config import ConfigError, differences, load_config, to_json
from gen_jax.sweeps.overrides import override
from gen_jax.sweeps.plan import make_plan, merge_arg, select, slug

HEAD = '''from gen_jax.config import load_config


def get_config(arg=''):
    return load_config(f'digits:{arg}').unlock()


'''


def config_file(tmp_path, body, name='mine.py'):
    (tmp_path / name).write_text(HEAD + body)
    return str(tmp_path / name)


def ids(tmp_path, body, arg='debug', overrides=(), name='mine.py'):
    spec = config_file(tmp_path, 'def sweep(add):\n' + body, name) + f':{arg}'
    return list(make_plan(spec, overrides).runs)


CONFIG = load_config('digits:debug')


@pytest.mark.parametrize('values, changed', [
    ({'optim.lr': 1}, {'optim.lr': (0.001, 1.0)}),
    ({'optim.clip_norm': 1}, {'optim.clip_norm': (None, 1.0)}),
    ({'seed': np.int64(3), 'optim.lr': np.float64(0.5)}, {'seed': (0, 3), 'optim.lr': (0.001, 0.5)}),
    ({'system.image_shape': [4, 4, 1]}, {'system.image_shape': ([8, 8, 1], [4, 4, 1])}),
    ({'evaluate.guided.settings.eta': 0.5}, {'evaluate.guided.settings.eta': ('<absent>', 0.5)}),
    ({'evaluate.guided.settings.guidance_scale': None}, {'evaluate.guided.settings.guidance_scale': (2.0, None)}),
    ({'evaluate.heldout.settings.new': 'x'}, {'evaluate.heldout.settings.new': ('<absent>', 'x')}),
    ({'evaluate.guided.seed': 3}, {'evaluate.guided.seed': ('<absent>', 3)}),
    # A mapping replaces whole, and comes before the keys within it.
    ({'evaluate.guided.settings.steps': 7, 'evaluate.guided.settings': {'solver': 'heun'}},
     {'evaluate.guided.settings.steps': (2, 7), 'evaluate.guided.settings.solver': ('<absent>', 'heun'),
      'evaluate.guided.settings.guidance_scale': (2.0, '<absent>')}),
    ({'system.weighting': {'name': 'diffusion.weighting.min_snr', 'gamma': 5.0}},
     {'system.weighting.name': ('diffusion.weighting.simple', 'diffusion.weighting.min_snr'),
      'system.weighting.gamma': ('<absent>', 5.0)}),
])
def test_overrides(values, changed):
    assert differences(CONFIG, override(CONFIG, values)) == changed


@pytest.mark.parametrize('values, message', [
    ({'optim.lrr': 1}, "unknown config key 'optim.lrr': did you mean optim.lr"),
    ({'evaluate.guide.seed': 1}, 'did you mean evaluate.guided.seed'),
    ({'evaluate.guided.sede': 1}, 'did you mean evaluate.guided.seed'),
    ({'evaluate.guidet.settings.steps': 1}, 'did you mean evaluate.guided.settings.steps'),
    ({'train.steps': 1.5}, 'train.steps=1.5: expected int'), ({'train.steps': True}, 'expected int'),
    ({'seed': '1'}, "seed='1': expected int"), ({'log.tensorboard': 0}, 'expected bool'),
    ({'optim.clip_norm': 'a'}, 'optim.clip_norm'), ({'optim.name': None}, "not optional; its default is 'adam'"),
    ({'optim': {'lr': 1}}, 'give its keys one by one'), ({'system.times': 'uniform'}, 'expected a mapping'),
    ({'evaluate.guided.settings': 3}, 'expected a mapping'), ({'optim.lr': float('nan')}, 'must be finite'),
    ({'seed': object()}, 'is a object'), ({'system.times': {3: 4}}, 'must be a string'),
])
def test_bad_overrides(values, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        override(CONFIG, values)


def test_ids_depend_on_content_only(tmp_path):
    a = ids(tmp_path, "    add({'seed': 1, 'optim.lr': 1e-4})\n    add({'optim.lr': 1})\n    add()\n")
    b = ids(tmp_path, "    add()\n    add({'optim.lr': 1.0})\n    add({'optim.lr': 1e-4, 'seed': 1})\n")
    assert sorted(a) == sorted(b) and a != b
    assert [i[:-9] for i in a] == ['lr=0.0001_seed=1', 'lr=1.0', 'run']
    (tmp_path / 'sub').mkdir()
    assert ids(tmp_path / 'sub', "    add()\n") == a[2:], 'not on where the file lies'
    assert ids(tmp_path, "    add()\n", name='other.py') != a[2:]
    assert ids(tmp_path, "    add()\n", arg='eps,debug') != a[2:]
    one = ids(tmp_path, "    add()\n", overrides=['--config.seed=1', '--config.optim.lr', '0.5'])
    assert one != a[2:] and one == ids(tmp_path, "    add()\n", overrides=['--config.optim.lr=0.5', '--config.seed=1'])
    # Python hashes strings differently in each process.
    code = f'from gen_jax.sweeps.plan import make_plan; print(*make_plan({str(tmp_path / "mine.py:debug")!r}).runs)'
    for seed in '12':
        out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True,
                             env={**os.environ, 'PYTHONHASHSEED': seed})
        assert out.stdout.split() == a[2:]


def test_ids_of_evaluations(tmp_path):
    body = ("    for seed in (0, 1):\n        run = add({'seed': seed})\n"
            "        add({'evaluate.guided.settings.steps': 5}, of=run)\n"
            "        add({'evaluate.guided.settings.steps': 5}, of=run, only='guided')\n")
    spec = config_file(tmp_path, 'def sweep(add):\n' + body)
    plan = make_plan(spec)
    runs = list(plan.runs.values())
    assert len(plan.runs) == 6, 'equal overrides of other runs, or of less, are other runs'
    assert [r.kind for r in runs] == ['train', 'evaluate', 'evaluate'] * 2
    assert runs[1].of == runs[0].id and runs[2].only == ('guided',)
    assert runs[4].config.seed == 1 and runs[4].config.evaluate.guided.settings.steps == 5
    assert plan.base(runs[4], tmp_path / 'w') == tmp_path / 'w' / 'runs' / runs[3].id
    assert runs[1].id.startswith('steps=5-')


def test_evaluations_of_any_run_folder(tmp_path):
    folder = tmp_path / 'trained'
    (folder / 'checkpoints').mkdir(parents=True)
    (folder / 'config.json').write_text(to_json(override(CONFIG, {'seed': 5})))
    body = f"    add({{'evaluate.guided.settings.steps': 7}}, of={str(folder) + '/'!r})\n"
    config_file(tmp_path, 'def sweep(add):\n' + body)
    plan = make_plan(str(tmp_path / 'mine.py'), ['--config.evaluate.guided.n=50', '--config.optim.lr=3.0'])
    (run,) = plan.runs.values()
    assert run.of == str(folder) and plan.base(run, tmp_path / 'w') == folder and run.kind == 'evaluate'
    changed = differences(CONFIG, run.config)
    assert changed == {'seed': (0, 5), 'evaluate.guided.n': (20, 50), 'evaluate.guided.settings.steps': (2, 7)}, (
        "of the whole sweep's overrides those that an evaluation reads")


def test_arguments(tmp_path):
    body = ("def sweep(add, arg):\n    for kind in ('eps', 'x0')[:1 if 'debug' in arg else 2]:\n"
            "        add({'seed': 1}, arg=kind)\n")
    plan = make_plan(config_file(tmp_path, body) + ':debug')
    (run,) = plan.runs.values()
    assert run.spec.endswith('mine.py:eps,debug') and run.config.train.steps == 4 and run.id.startswith('eps_seed=1-')
    assert run.config.system.parameterisation.name.endswith('eps')
    plan = make_plan(config_file(tmp_path, body), ['--config.train.steps=7'])
    assert [r.config.train.steps for r in plan.runs.values()] == [7, 7]
    assert merge_arg('vp,steps=5', 'steps=9') == 'vp,steps=9' and merge_arg('debug,steps=5', 'vp') == 'vp,debug,steps=5'
    assert merge_arg('', '') == '' and merge_arg('debug', '') == 'debug'


def test_slugs():
    assert slug(('vp',), {'a.b.settings.steps': 3, 'a.c.settings.steps': 3}) == 'vp_steps=3'
    assert slug((), {'a.steps': 3, 'b.steps': 4}) == 'a.steps=3_b.steps=4'
    assert slug((), {'system.weighting': {'name': 'diffusion.weighting.min_snr', 'gamma': 5.0}}
                ) == 'weighting=min_snr_gamma=5.0'
    assert slug((), {'x': 'folder:/a b/../c', 'y': (1, 2)}) == 'x=folder-a-b-..-c_y=1-2'
    assert slug((), {}) == '' and len(slug((), {f'key{i}': i for i in range(40)})) <= 60


@pytest.mark.parametrize('body, message', [
    ("    add({'optim.lr': 1.0})\n    add({'seed': 2})\n    add({'optim.lr': 1})\n",
     r'line 11: add number 3 repeats add number 1: both are lr=1.0-\w{8} with the overrides'),
    ("    add({'optim.lrr': 1})\n", r"line 9: unknown config key 'optim.lrr': did you mean optim.lr"),
    ("    add(arg='colour=3')\n", 'line 9: .*colour=3.*not understood'),
    ("    add({'seed': 1 / 0})\n", 'line 9: ZeroDivisionError'),
    ("    pass\n", 'added no run'),
    ("    run = add()\n    add({'optim.lr': 1.0}, of=run)\n", "line 10: 'optim.lr' changes nothing in an evaluation"),
    ("    run = add()\n    add({}, of=run, arg='eps')\n", 'an evaluation has the config of the run'),
    ("    run = add()\n    run = add({}, of=run)\n    add({'evaluate.guided.seed': 1}, of=run)\n",
     'is an evaluation itself'),
    ("    add({}, of='/nowhere/run')\n", "of='/nowhere/run': expected a run that add"),
    ("    run = add()\n    add({}, of=run, only='guide')\n", "only='guide': did you mean guided"),
    ("    run = add({'evaluate': {}})\n    add({}, of=run)\n", 'evaluates nothing'),
])
def test_bad_sweeps_say_the_line(tmp_path, body, message):
    with pytest.raises(ConfigError, match=message):
        ids(tmp_path, body)


@pytest.mark.parametrize('name', ['mine.py', './mine.py', '../{}/mine.py'])
def test_the_line_is_said_of_a_file_beside_us(tmp_path, monkeypatch, name):
    config_file(tmp_path, "def sweep(add):\n    add({'optim.lrr': 1})\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match='mine.py, line 9: unknown config key'):
        make_plan(name.format(tmp_path.name))


def test_sweeps_that_are_none(tmp_path):
    with pytest.raises(ConfigError, match=r'mine.py defines no sweep\(add\)'):
        make_plan(config_file(tmp_path, 'x = 1\n'))
    with pytest.raises(ConfigError, match='for the whole sweep set the same: drop one'):
        ids(tmp_path, "    add({'evaluate.guided.settings': {'steps': 3}})\n",
            overrides=['--config.evaluate.guided.settings.steps=4'])
    with pytest.raises(ConfigError, match='unknown config key.*config.optim.lr'):
        ids(tmp_path, "    add()\n", overrides=['--config.optim.lrr=4'])


def test_select(tmp_path):
    made = ids(tmp_path, "    for seed in range(3):\n        add({'seed': seed})\n")
    plan = make_plan(str(tmp_path / 'mine.py:debug'))
    assert select(plan) == made and select(plan, glob='seed=[12]-*') == made[1:]
    assert select(plan, ['2', made[0], made[2][-8:]]) == [made[0], made[2]]
    for arguments, message in (((['seed=3'],), 'give a number from 0 to 2, or an id; did you mean seed='),
                               ((['3'],), "no run '3'"), (((), 'lr*'), "no run fits 'lr.*choose from")):
        with pytest.raises(ConfigError, match=message):
            select(plan, *arguments)
