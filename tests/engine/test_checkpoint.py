"""The one checkpoint path: round trips, refusals, fall-back, retention, starting from another run."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import trees
from gen_jax.engine.checkpoint import CheckpointError, Checkpoints, read_params
from gen_jax.engine.update import init_state, make_update
from tests.engine.toy import batch, regression

EMA = {'slow': {'decay': 0.9}}


@pytest.fixture(scope='module')
def states():
    """The states after 0, 1 and 2 steps."""
    system = regression()
    update = jax.jit(make_update(system, seed=0, ema=EMA))
    out = [init_state(system, 0, batch(), EMA)]
    for step in range(2):
        out.append(update(out[-1], batch(step=step))[0])
    return out


def test_round_trip_keeps_structure_dtypes_and_bits(tmp_path, states):
    store = Checkpoints(tmp_path)
    state = states[2]._replace(extra={'calls': states[2].extra['calls'].astype(jnp.bfloat16), 'empty': {}})
    store.save(2, state, {'note': 'x'}, wait=True)
    restored, meta = store.restore(jax.eval_shape(lambda: state))
    chex.assert_trees_all_equal(restored, state)
    chex.assert_trees_all_equal_dtypes(restored, state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert meta['note'] == 'x' and meta['step'] == 2
    store.close()


def test_a_save_holds_the_state_of_its_step_while_training_goes_on(tmp_path):
    """The save is asynchronous and the update donates its input: what is written must not move on with it."""
    system = regression()
    update = jax.jit(make_update(system, seed=0), donate_argnums=0)
    big = init_state(system, 0, batch(), {})
    state = big._replace(extra={**big.extra, 'ballast': jnp.zeros((4_000_000,))})
    bump = jax.jit(lambda s: s._replace(extra={**s.extra, 'ballast': s.extra['ballast'] + 1}), donate_argnums=0)
    store, expected = Checkpoints(tmp_path, keep_last=5), {}
    for step in range(1, 4):
        state, _ = update(bump(state), batch(step=step))
        expected[step] = float(state.params['w']['dense']['kernel'][0]), float(step)
        store.save(step, state, {})
        for _ in range(3):
            state = bump(bump(state))
        state = state._replace(extra={**state.extra, 'ballast': jnp.full((4_000_000,), float(step))})
    store.wait()
    for step, (w, level) in expected.items():
        restored, _ = store.restore(jax.eval_shape(lambda: state), step=step)
        assert float(restored.params['w']['dense']['kernel'][0]) == w
        assert np.all(np.asarray(restored.extra['ballast']) == level), step
    store.close()


def test_another_model_is_refused_by_name(tmp_path, states):
    store = Checkpoints(tmp_path)
    store.save(1, states[1], {}, wait=True)
    other = states[1]._replace(params={'w': states[1].params['w'], 'd': {'value': jnp.zeros(())}})
    with pytest.raises(CheckpointError, match='another model: 1 leaves missing, 1 unexpected.*\n'
                                              '.*missing params/d/value\n.*unexpected params/c/value'):
        store.restore(other)
    wide = states[1]._replace(params={**states[1].params, 'c': {'value': jnp.zeros((2,))}})
    with pytest.raises(CheckpointError, match=r'params/c/value: shape \(\) in the checkpoint, \(2,\) in the model'):
        store.restore(wide)
    half = states[1]._replace(params={**states[1].params, 'c': {'value': jnp.zeros((), jnp.bfloat16)}})
    with pytest.raises(CheckpointError, match='params/c/value: dtype float32 in the checkpoint, bfloat16'):
        store.restore(half)
    with pytest.raises(CheckpointError, match=r'no checkpoint of step 7: the steps are \[1\]'):
        store.restore(states[1], step=7)
    store.close()
    with pytest.raises(CheckpointError, match='there is no checkpoint under'):
        Checkpoints(tmp_path / 'nowhere', read_only=True)


def test_unreadable_newest_step_falls_back_loudly_and_can_be_saved_again(tmp_path, states, capsys):
    store = Checkpoints(tmp_path)
    store.save(1, states[1], {}, wait=True)
    store.save(2, states[2], {}, wait=True)
    for path in (tmp_path / 'checkpoints' / '2').rglob('*'):
        if path.is_file() and path.name != 'commit_success.txt':
            path.write_bytes(path.read_bytes()[:3])
    restored, meta = store.restore(jax.eval_shape(lambda: states[0]))
    assert meta['step'] == 1
    chex.assert_trees_all_equal(restored, states[1])
    assert 'step 2 cannot be read' in capsys.readouterr().out
    assert store.steps() == [1] and (tmp_path / 'checkpoints-unreadable' / '2.0').is_dir()
    store.save(2, states[2], {}, wait=True)
    assert store.restore(jax.eval_shape(lambda: states[0]))[1]['step'] == 2
    store.close()


def test_retention(tmp_path, states):
    store = Checkpoints(tmp_path, keep_last=1, keep_every=20, best_metric='fid', best_mode='min')
    for step, fid in ((10, 3.0), (20, 2.0), (30, 1.0), (40, 4.0), (50, 5.0), (55, 6.0)):
        store.save(step, states[1], {}, metrics={'fid': fid}, wait=True)
    assert store.steps() == [20, 30, 40, 55]  # every 20th, the best, the last
    store.close()
    for kwargs, message in (({'keep_last': 0}, 'at least 1'), ({'best_mode': 'least'}, 'min, max')):
        with pytest.raises(ValueError, match=message):
            Checkpoints(tmp_path, **kwargs)


def test_starting_from_another_run(tmp_path, states):
    store = Checkpoints(tmp_path)
    store.save(2, states[2], {}, wait=True)
    store.close()
    raw, slow = read_params(tmp_path), read_params(tmp_path / 'checkpoints' / '2', 'slow')
    assert raw['w/dense/kernel'] == states[2].params['w']['dense']['kernel']
    assert slow['w/dense/kernel'] == states[2].ema['slow']['params']['w']['dense']['kernel'] != raw['w/dense/kernel']
    with pytest.raises(CheckpointError, match=r"no EMA 'fast': choose from \['slow'\]"):
        read_params(tmp_path, 'fast')
    target = {'net': {'dense': {'kernel': jnp.zeros(1), 'bias': jnp.zeros(1)}}, 'head': {'kernel': jnp.full(3, 7.0)}}
    filled, kept = trees.transfer(target, raw, trees.parse_rules(('head/.*=', 'net/(.*)=w/\\1')))
    assert filled['net']['dense']['kernel'] == raw['w/dense/kernel'] and kept == ['head/kernel']
    with pytest.raises(ValueError, match="4 leaves|3 leaves cannot be initialised.*\n.*head/kernel: the source has no"):
        trees.transfer(target, raw, trees.parse_rules(('(.*)=\\1',)))


def test_colliding_keys_are_refused():
    with pytest.raises(ValueError, match="share the joined key 'a.b.c'"):
        trees.joined({'a.b': {'c': jnp.zeros(1)}, 'a': {'b.c': jnp.zeros(1)}})
