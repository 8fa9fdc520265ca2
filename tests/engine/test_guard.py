"""Updates that are not finite: policies and their limits, rollbacks that stay exactly resumable, reports."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.config import apply_overrides, base_config
from gen_jax.engine import guard
from gen_jax.engine.checkpoint import Checkpoints, read_leaves
from gen_jax.engine.evaluate import Evaluator
from gen_jax.engine.run import Run
from gen_jax.engine.signals import Stop
from gen_jax.engine.train import NonFiniteError, train
from gen_jax.engine.update import init_state, make_update, seed_words
from gen_jax.engine.writers import read_jsonl, without_wall_clock
from gen_jax.types import Metric
from tests.engine.toy import Batches, batch, regression

SIZE = 1000
"""Examples in the data set, eight to a batch: batch k holds 8 k ... 8 k + 7."""


class Numbers(Batches):
    """A pipeline whose examples carry their number."""

    def __init__(self):
        super().__init__(self.numbered)

    def indices(self, step):
        return [i % SIZE for i in range(8 * step, 8 * step + 8)]

    def numbered(self, step):
        index = np.array(self.indices(step))
        return {'x': np.sin(index).astype(np.float32), 'id': index.astype(np.int32)}


def poisoned(ids=(), steps=(), where='loss'):
    """The toy system, whose loss (or only gradient) is not a number for these examples or before these updates."""
    base = regression()
    fit = base.objectives['fit']

    def loss(params, state, batch, noise):
        value, aux = fit.loss(params, state, batch, noise)
        bad = jnp.any(jnp.isin(batch['id'], jnp.array([-1, *ids]))) | jnp.any(state.step == jnp.array([-1, *steps]))
        if where == 'loss':
            return value * jnp.where(bad, jnp.nan, 1.0), aux
        # sqrt has a value at 0, and no finite derivative
        zero = 0.0 * params['w']['dense']['bias'][0]
        return value + jnp.sqrt(zero + jnp.where(bad, 0.0, 1.0)) - jnp.where(bad, 0.0, 1.0), aux

    return base._replace(objectives={**base.objectives, 'fit': fit._replace(loss=loss)})


def make(system, *overrides, evaluators=()):
    config = apply_overrides(base_config(), [
        '--config.train.steps=12', '--config.data.batch_size=8', '--config.log.every_steps=1',
        '--config.log.tensorboard=False', '--config.checkpoint.every_steps=4', '--config.checkpoint.keep_last=9',
        *overrides])
    return Run(config, system, lambda **kwargs: Numbers(), lambda a, b: None, next(Numbers()), dict(evaluators))


ROLLBACK = '--config.train.nonfinite=rollback'


class Killed(BaseException):
    """As sudden as a test can be inside its own process: nothing is saved on the way out."""


class KillAt(Stop):
    """Ends the run when its loop asks for the n-th time whether to stop."""

    def __init__(self, n):
        super().__init__()
        self.left = n

    @property
    def requested(self):
        self.left -= 1
        if not self.left:
            raise Killed
        return False


def rows(workdir):
    return [without_wall_clock(r) for r in read_jsonl(workdir / 'metrics.jsonl')]


def equal(a, b):
    left, right = read_leaves(a), read_leaves(b)
    assert left.keys() == right.keys()
    assert not [k for k in left if left[k].tobytes() != right[k].tobytes()]
    assert rows(a) == rows(b)


@pytest.fixture(scope='module')
def rolled(tmp_path_factory):
    """Example 43 is poisonous, so update 6 fails; the run returns to step 4 and goes on behind that batch."""
    workdir = tmp_path_factory.mktemp('rolled')
    train(make(poisoned(ids=(43,)), ROLLBACK), workdir, stop=Stop())
    return workdir


def test_rollback_passes_over_the_batch_with_other_noise(rolled):
    store = Checkpoints(rolled, read_only=True)
    meta = store.meta()
    # Twelve updates took 14 batches: the two of updates 5 and 6 were left behind.
    assert (meta['step'], meta['rollbacks'], meta['data']) == (12, 1, {'next_index': 14})
    assert store.meta(4)['rollbacks'] == 0 and store.meta(8)['data'] == {'next_index': 10}
    log = rows(rolled)
    assert [r['step'] for r in log if 'fit/loss' in r] == list(range(1, 13)), 'the updates left behind are not logged'
    told = [r for r in log if 'rollback' in r]
    assert len(told) == 1 and told[0]['step'] == 5 and told[0]['rollback'] == 1
    assert told[0]['rollback_reason'].startswith("step 6: {'fit/grad_norm': nan, 'fit/loss': nan")
    assert 'First bad leaf: loss/fit; report: nonfinite/step-00000006.json' in told[0]['rollback_reason']

    # The same by hand: from the state of step 4, batches 6 and 7 with the noise of another root key.
    system = poisoned()
    state, update = init_state(system, 0, next(Numbers()), {}), jax.jit(make_update(system, seed=0))
    data, losses = Numbers(), []
    for step in range(6):
        if step == 4:
            data.step = 6
        state, metrics = update(state, next(data), seed_words(0, rollbacks=int(step >= 4)))
        losses.append(float(metrics['fit/loss']))
    np.testing.assert_allclose([r['fit/loss'] for r in log if 'fit/loss' in r][:6], losses, rtol=1e-5)


@pytest.mark.parametrize('kill', [7, 11])
def test_a_rollback_is_exactly_resumable(tmp_path, rolled, kill):
    """Killed between the rollback and the next checkpoint, and behind that: the same bits and the same log."""
    run = make(poisoned(ids=(43,)), ROLLBACK)
    with pytest.raises(Killed):
        train(run, tmp_path, stop=KillAt(kill))
    assert train(run, tmp_path, stop=Stop()).step == 12
    equal(rolled, tmp_path)


def test_rollbacks_are_limited_and_may_lead_to_the_start(tmp_path, capfd):
    limited = (ROLLBACK, '--config.train.max_rollbacks=2')
    with pytest.raises(NonFiniteError, match=r'step 3: .*train.max_rollbacks=2 are used up.*checkpoint: none'):
        train(make(poisoned(steps=(2,)), *limited), tmp_path / 'a', stop=Stop())
    said = capfd.readouterr().err
    assert said.count('Back to step 0') == 2 and 'rollback 2 of at most 2' in said
    names = ['step-00000003', 'step-00000003-rollback-1', 'step-00000003-rollback-2']
    assert sorted(p.stem for p in (tmp_path / 'a' / 'nonfinite').glob('*.json')) == names
    # A batch that fails once is behind the run then: one rollback, to the start.
    train(make(poisoned(ids=(20,)), *limited, '--config.train.steps=4'), tmp_path / 'b', stop=Stop())
    assert Checkpoints(tmp_path / 'b', read_only=True).meta()['data'] == {'next_index': 7}
    assert [r['step'] for r in rows(tmp_path / 'b') if 'rollback' in r] == [1]


def test_skips_are_limited_in_a_row_over_restarts_too(tmp_path):
    skip = ('--config.train.nonfinite=skip', '--config.train.max_skips=3', '--config.train.steps=10')
    train(make(poisoned(steps=(1, 2, 3, 5, 6, 7)), *skip), tmp_path / 'a', stop=Stop())
    system = poisoned(steps=(2, 3, 4, 5))
    with pytest.raises(NonFiniteError, match='step 6: .*more than train.max_skips=3 in a row'):
        train(make(system, *skip), tmp_path / 'b', stop=Stop())
    assert Checkpoints(tmp_path / 'b', read_only=True).meta()['skips'] == 2
    with pytest.raises(NonFiniteError, match='step 6: .*in a row'):
        train(make(system, *skip), tmp_path / 'b', stop=Stop())


def test_a_failure_found_before_an_evaluation_rolls_back_too(tmp_path):
    """The evaluation at step 6 waits for the update that failed; it must not score the wrong branch."""
    seen = []
    metric = Metric(lambda: seen.append(0), lambda s, out: None, lambda a, b: None, lambda s: {'score': 1.0})
    evaluator = Evaluator('double', lambda ledger=None: [batch()], {'m': metric}, {}, 0, '', 'test', 6)
    train(make(poisoned(ids=(43,)), ROLLBACK, evaluators={'toy': evaluator}), tmp_path, stop=Stop())
    assert len(seen) == 2 and [r['step'] for r in rows(tmp_path) if 'toy/score' in r] == [6, 12]


def test_a_report_names_the_examples_and_the_leaf(tmp_path):
    with pytest.raises(NonFiniteError, match=r'First bad leaf: loss/fit; report: nonfinite/step-00000006.json'):
        train(make(poisoned(ids=(43, 46))), tmp_path / 'loss', stop=Stop())
    path = tmp_path / 'loss' / 'nonfinite' / 'step-00000006.json'
    report = json.loads(path.read_text())
    assert report['step'] == 6 and report['ids'] == list(range(40, 48)) and report['action'] == 'raise'
    assert report['bad_rows'] == [3, 6] and report['bad_ids'] == [43, 46] and report['seed'] == 0
    assert report['first_bad_leaf'] == 'loss/fit' and report['metrics']['fit/loss'] == 'nan'
    assert report['bad_leaves'][1:3] == ['gradients/fit/w/dense/bias', 'gradients/fit/w/dense/kernel']
    np.testing.assert_array_equal(np.load(path.with_suffix('.npz'))['id'], range(40, 48))

    with pytest.raises(NonFiniteError, match='First bad leaf: gradients/fit/w/dense/bias'):
        train(make(poisoned(ids=(43,), where='gradient'), '--config.train.parallel=pmap'), tmp_path / 'gradient',
              stop=Stop())
    report = json.loads((tmp_path / 'gradient' / 'nonfinite' / 'step-00000006.json').read_text())
    assert report['bad_leaves'] == ['gradients/fit/w/dense/bias', 'grad_norm/fit'] and report['bad_ids'] == [43]


def test_diagnosis_meets_what_the_update_met():
    """Bad inputs come first; the second objective sees the first one's update; micro-batches see their noise."""
    system = regression(every=2)
    state, root = init_state(system, 0, batch(), {}), seed_words(0)
    diagnose = guard.make_diagnosis(system, accumulate=2)
    assert diagnose(state, batch(), root) == guard.Diagnosis([], [])
    assert diagnose(state, {'x': batch()['x'] * np.inf}, root).bad[0] == 'batch/x'
    lost = state._replace(params={**state.params, 'c': {'value': jnp.float32(jnp.nan)}})
    assert diagnose(lost, batch(), root).bad == ['params/c/value', 'loss/follow', 'gradients/follow/c/value',
                                                 'grad_norm/follow']
    assert diagnose(lost._replace(step=1), batch(), root).bad == ['params/c/value'], 'an idle objective'


def test_reports_are_bounded(tmp_path):
    for step in range(guard.MAX_DUMPS):
        assert guard.dump(tmp_path, step, 0, {'value': float('inf')}, batch(), []) is not None
    assert guard.dump(tmp_path, 99, 0, {}, batch(), []) is None
    assert guard.dump(tmp_path, 3, 0, {'again': True}, batch(), []) is not None, 'the same event again'
    assert len(list((tmp_path / 'nonfinite').glob('*.json'))) == guard.MAX_DUMPS
    assert json.loads((tmp_path / 'nonfinite' / 'step-00000000.json').read_text())['value'] == 'inf'
    large = {'x': np.zeros((4, guard.MAX_BATCH_BYTES // 4), np.uint8), 'id': np.arange(4)}
    path = guard.dump(tmp_path / 'large', 1, 0, {}, large, [2])
    assert json.loads(path.read_text())['batch'] == 'rows [2]'
    assert np.load(path.with_suffix('.npz'))['id'].tolist() == [2]


def test_policies_are_checked():
    for override, message in (('nonfinite=ignore', "'ignore': choose from raise, skip, rollback"),
                              ('max_skips=0', 'max_skips 0: at least 1'),
                              ('max_rollbacks=-1', 'max_rollbacks -1: at least 0')):
        with pytest.raises(ValueError, match=message):
            train(make(poisoned(), f'--config.train.{override}'), 'nowhere', stop=Stop())
