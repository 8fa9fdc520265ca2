"""The loop itself, over a toy system: policies for losses that are not finite, starting points, logs, retention."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.cli.main import main
from gen_jax.config import apply_overrides, base_config
from gen_jax.engine import resume, start
from gen_jax.engine.checkpoint import Checkpoints, read_leaves, read_params
from gen_jax.engine.evaluate import Evaluator
from gen_jax.engine.files import holding
from gen_jax.engine.signals import Stop
from gen_jax.engine.train import NonFiniteError, Run, WorkdirError, check_workdir, train
from gen_jax.engine.writers import read_jsonl
from gen_jax.types import Metric, System
from tests.engine.toy import Batches, batch, regression


def make(system=None, *overrides, corrupt=0, evaluators=(), check=lambda a, b: None):
    config = apply_overrides(base_config(), [
        '--config.train.steps=6', '--config.data.batch_size=8', '--config.log.every_steps=1',
        '--config.log.tensorboard=False', '--config.checkpoint.every_steps=2', '--config.checkpoint.keep_last=9',
        *overrides])
    return Run(config, system or regression(), lambda **kwargs: Batches(corrupt=corrupt), check, batch(),
               dict(evaluators))


def test_raise_stops_with_the_last_good_checkpoint(tmp_path):
    with pytest.raises(NonFiniteError, match=r"step 4: .*fit/loss.* is not finite.*step 2 in .*nonfinite=skip"):
        train(make(regression(poison_step=3)), tmp_path, stop=Stop())
    assert Checkpoints(tmp_path, read_only=True).steps() == [2] and NonFiniteError.exit_code == 3
    assert all(np.isfinite(v).all() for v in read_leaves(tmp_path).values())


def test_skip_goes_on_and_says_so(tmp_path, capfd):
    result = train(make(regression(poison_step=3), '--config.train.nonfinite=skip'), tmp_path, stop=Stop())
    assert result.step == 6 and result.exit_code == 0
    assert 'step 4: not finite, update skipped (1 in this run)' in capfd.readouterr().err
    leaves = read_leaves(tmp_path)
    assert all(np.isfinite(v).all() for v in leaves.values()) and leaves['opt/w/0/count'] == 5
    with pytest.raises(ValueError, match='nonfinite .*raise, skip'):
        train(make(None, '--config.train.nonfinite=ignore'), tmp_path / 'x', stop=Stop())


def test_starting_from_another_run_with_renamed_and_fresh_leaves(tmp_path):
    train(make(), tmp_path / 'a', stop=Stop())
    theirs = read_params(tmp_path / 'a', 'slow')
    base = regression()

    def init(key, example):
        params, extra = base.init(key, example)
        return {'w': {'layer': params['w']['dense']}, 'c': {'value': jnp.full((), 5.0)}}, extra

    def loss(params, state, example, noise):
        return jnp.sum(params['w']['layer']['kernel'] ** 2), ({}, {})

    renamed = System(init, {'fit': base.objectives['fit']._replace(loss=loss)}, {}, {'w': base.optimizers['w']})
    options = (f'--config.train.init_from={tmp_path / "a"}', '--config.train.init_ema=slow', '--config.train.steps=1',
               "--config.train.init_map=('w/layer/(.*)=w/dense/\\\\1', 'c/.*=')", '--config.train.ema.slow.decay=0.0')
    seen = []
    first = make(renamed, *options)
    stop = Stop()
    train(first, tmp_path / 'b', stop=stop)
    out = read_leaves(tmp_path / 'b')
    # One step of Adam with lr 0.1 away from where the other run's average stood; what was not mapped is fresh.
    np.testing.assert_allclose(out['params/w/layer/kernel'], theirs['w/dense/kernel'] - 0.1, atol=1e-5)
    assert out['params/c/value'] == 5.0 and not seen
    with pytest.raises(ValueError, match='the source has no'):
        train(make(renamed, options[0], '--config.train.steps=1'), tmp_path / 'c', stop=Stop())
    assert not (tmp_path / 'c').exists()


def scores(values):
    """An evaluator that returns the next of `values` each time."""
    rest = iter(values)
    metric = Metric(lambda: None, lambda s, out: None, lambda a, b: None, lambda s: {'score': next(rest)})
    return Evaluator('double', lambda ledger=None: [batch()], {'m': metric}, {}, 0, '', 'test', 2)


def test_best_checkpoint_is_kept_whatever_comes_after(tmp_path):
    run = make(None, '--config.checkpoint.keep_last=1', '--config.checkpoint.best_metric=toy/score',
               '--config.checkpoint.every_steps=1', '--config.train.steps=8',
               evaluators={'toy': scores([3.0, 1.0, float('nan'), float('inf')])})
    train(run, tmp_path, stop=Stop())
    assert Checkpoints(tmp_path, read_only=True).steps() == [4, 8]


def test_a_misspelt_best_metric_is_loud(tmp_path, capfd):
    train(make(None, '--config.checkpoint.best_metric=toy/scor', evaluators={'toy': scores([3.0, 1.0, 2.0])}), tmp_path,
          stop=Stop())
    assert "best_metric 'toy/scor' was not logged at step 2" in capfd.readouterr().err


def test_logs_hold_what_ran(tmp_path):
    train(make(regression(every=2), corrupt=3), tmp_path, stop=Stop())
    records = read_jsonl(tmp_path / 'metrics.jsonl')
    assert [r['step'] for r in records] == [1, 2, 3, 4, 5, 6] and all(r['data/corrupt'] == 3 for r in records)
    assert ['follow/loss' in r for r in records] == [True, False] * 3


def test_another_pipeline_is_refused_on_resume(tmp_path):
    train(make(None, '--config.train.steps=2'), tmp_path, stop=Stop())

    def check(saved, current):
        assert saved == current == {'seed': 0}
        raise ValueError('the pipeline is another one')

    with pytest.raises(WorkdirError, match='another one\n.*train.accept=data'):
        train(make(check=check), tmp_path, stop=Stop())
    assert train(make(), tmp_path, stop=Stop()).step == 6


def test_what_is_accepted_leaves_a_line_in_the_log(tmp_path, monkeypatch, capfd):
    found = {**resume.versions(), 'git': 'one'}
    monkeypatch.setattr(start, 'versions', lambda: found)
    train(make(None, '--config.train.steps=2'), tmp_path, stop=Stop())
    found = {**found, 'jax': '0.0.1', 'git': 'another'}

    def check(saved, current):
        raise ValueError('the pipeline changed:\n  seed: was 0, is 1')

    changed = ('--config.optim.lr=0.5', "--config.train.accept=('config','data')")
    with pytest.raises(WorkdirError, match="jax: .* there, '0.0.1' now"):
        train(make(None, *changed, check=check), tmp_path, stop=Stop())
    with pytest.raises(WorkdirError, match='optim.lr: 0.001 there, 0.5 now(.|\n)*train.accept=config'):
        train(make(None, *changed[:1], '--config.train.accept=code', check=check), tmp_path, stop=Stop())
    changed = (changed[0], "--config.train.accept=('config','data','code')")
    assert train(make(None, *changed, check=check), tmp_path, stop=Stop()).step == 6
    lines = [r for r in read_jsonl(tmp_path / 'metrics.jsonl') if 'accepted' in r]
    assert [r['step'] for r in lines] == [3] and lines[0]['accepted'][:2] == [
        'config: optim.lr: 0.001 there, 0.5 now', 'data: seed: was 0, is 1']
    assert lines[0]['accepted'][2].startswith('code: jax: ') and len(lines[0]['accepted']) == 3
    said = capfd.readouterr().out
    assert 'note: git: ' in said and said.count('accepted: ') == 3


def test_one_run_at_a_time_in_a_workdir(tmp_path, monkeypatch, capsys):
    """A second one would take what the first is saving for what a kill left, and both would write one log."""
    monkeypatch.setattr('gen_jax.engine.train.holding', lambda folder: holding(folder, seconds=0))
    train(make(None, '--config.train.steps=4'), tmp_path, stop=Stop())
    before = sorted(str(p) for p in tmp_path.rglob('*'))
    with holding(tmp_path):
        with pytest.raises(BlockingIOError, match=f'{tmp_path} is in use by another run'):
            train(make(), tmp_path, stop=Stop())
        assert main(['checkpoint', 'prune', str(tmp_path), '--keep-last', '1']) == 2
        assert 'is in use by another run' in capsys.readouterr().err
        assert sorted(str(p) for p in tmp_path.rglob('*')) == before
        read_leaves(tmp_path)  # readers may come at any time
    assert main(['checkpoint', 'prune', str(tmp_path), '--keep-last', '1']) == 0
    assert train(make(), tmp_path, stop=Stop()).step == 6


def test_unreadable_meta_falls_back(tmp_path):
    train(make(), tmp_path, stop=Stop())
    (tmp_path / 'checkpoints' / '6' / 'meta' / 'metadata').write_text('')
    assert train(make(), tmp_path, stop=Stop()).step == 6
    assert (tmp_path / 'checkpoints-unreadable' / '6.0').is_dir()


def test_workdir_without_or_with_a_broken_config(tmp_path):
    train(make(), tmp_path, stop=Stop())
    path = tmp_path / 'config.json'
    path.write_text('')
    with pytest.raises(ValueError, match='saved config cannot be read.*delete config.json'):
        check_workdir(tmp_path, make().config)
    for damaged in (b'\xff{}', b'[]', b'{"train": 3}'):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match='saved config .*delete config.json'):
            check_workdir(tmp_path, make().config)
    path.unlink()
    check_workdir(tmp_path, make().config)
    with pytest.raises(RuntimeError, match='seed: 0 there, 1 now'):
        check_workdir(tmp_path, make(None, '--config.seed=1').config)
    train(make(), tmp_path, stop=Stop())
    assert json.loads(path.read_text())['seed'] == 0
