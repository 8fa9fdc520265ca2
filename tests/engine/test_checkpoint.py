"""The one checkpoint path: round trips, refusals, fall-back, retention, starting from another run."""

import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import trees
from gen_jax.engine import integrity
from gen_jax.engine.checkpoint import CheckpointError, Checkpoints, read_leaves, read_params
from gen_jax.engine.fingerprint import fingerprints
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


@pytest.fixture(scope='module')
def saved(tmp_path_factory, states):
    """A workdir with steps 1 and 2."""
    workdir = tmp_path_factory.mktemp('saved')
    store = Checkpoints(workdir, best_metric='fid')
    for step in (1, 2):
        store.save(step, states[step], {'note': step}, metrics={'fid': float(step)}, wait=True)
    store.close()
    return workdir


@pytest.fixture
def copied(saved, tmp_path):
    """A copy of it, to be damaged, and its steps' folder."""
    shutil.copytree(saved, tmp_path / 'run')
    return tmp_path / 'run', tmp_path / 'run' / 'checkpoints'


def flip(path, at=-1):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def tree(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


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


DAMAGE = ('state/ocdbt.process_0/d/*', 'state/_METADATA', 'meta/metadata', 'metrics/metrics', '_CHECKPOINT_METADATA',
          integrity.MANIFEST, integrity.COMMIT_MARK)


@pytest.mark.parametrize('name', DAMAGE)
def test_one_flipped_bit_and_the_step_before_is_used(copied, states, name, capsys):
    workdir, checkpoints = copied
    path = sorted((checkpoints / '2').glob(name))[0]
    flip(path)
    store = Checkpoints(workdir, read_only=True, best_metric='fid')
    assert store.meta()['note'] == 1 and f'{path}: ' in capsys.readouterr().out
    with pytest.raises(CheckpointError, match='no checkpoint in .* can be read; nothing was changed:\n  step 2: '):
        store.meta(2)
    assert store.restore(jax.eval_shape(lambda: states[0]))[1]['note'] == 1 and store.steps() == [1, 2]
    store.close()
    assert read_leaves(workdir)['step'] == 1 and f'{path}: ' in capsys.readouterr().out
    with pytest.raises(CheckpointError, match='nothing was changed'):
        read_leaves(checkpoints / '2')
    store = Checkpoints(workdir, best_metric='fid')
    restored, meta = store.restore(jax.eval_shape(lambda: states[0]))
    said = capsys.readouterr().out
    assert f'step 2 cannot be read ({path}: ' in said and 'falling back to step 1' in said
    chex.assert_trees_all_equal(restored, states[1])
    assert store.steps() == [1] and (workdir / 'checkpoints-unreadable' / '2.0').is_dir()
    store.save(2, states[2], {'note': 3}, metrics={'fid': 0.5}, wait=True)
    assert store.meta()['note'] == 3
    store.close()


def test_no_good_step_left_is_one_error_and_nothing_is_changed(copied, states):
    workdir, checkpoints = copied
    for step in '12':
        flip(sorted((checkpoints / step).glob('state/ocdbt.process_0/d/*'))[0])
    before = tree(workdir)
    store = Checkpoints(workdir)
    with pytest.raises(CheckpointError, match='(?s)nothing was changed:.*step 2: .*SHA-256.*step 1: .*SHA-256.*another '
                                              '--workdir') as found:
        store.restore(jax.eval_shape(lambda: states[0]))
    store.close()
    assert tree(workdir) == before and str(found.value).count('\n') == 3
    for read in (read_leaves, read_params, lambda path: Checkpoints(path, read_only=True).meta()):
        with pytest.raises(CheckpointError, match='nothing was changed'):
            read(workdir)
    for step in '12':
        (checkpoints / step).rename(checkpoints / f'old-{step}')
    with pytest.raises(CheckpointError, match='holds no step, but old-1, old-2: .*give them their names back'):
        Checkpoints(workdir)


def test_a_step_of_before_manifests_is_used_with_one_loud_line(copied, states, capsys):
    workdir, checkpoints = copied
    for step in '12':
        folder = checkpoints / step
        (folder / integrity.MANIFEST).unlink()
        (folder / integrity.COMMIT_MARK).write_text('Checkpoint commit was successful')
        meta = json.loads((folder / 'meta' / 'metadata').read_text())
        new = ('manifest', 'fingerprints', 'metrics', 'saved')
        (folder / 'meta' / 'metadata').write_text(json.dumps({k: v for k, v in meta.items() if k not in new}))
    store = Checkpoints(workdir)
    restored, _ = store.restore(jax.eval_shape(lambda: states[0]))
    chex.assert_trees_all_equal(restored, states[2])
    said = capsys.readouterr().out
    assert said.count('WARNING') == 1 and 'step 2' in said and 'older gen_jax' in said and 'UNVERIFIED' in said
    # Unreadable ones fall back, as far as that can be noticed.
    (checkpoints / '2' / 'state' / '_METADATA').write_text('')
    assert store.restore(jax.eval_shape(lambda: states[0]))[1]['note'] == 1 and store.steps() == [1]
    store.close()


def test_leaves_are_compared_with_those_that_were_on_the_device(copied, states, capsys):
    """What goes wrong between the disk and the device, or went wrong on the way to the disk."""
    workdir, checkpoints = copied
    path = checkpoints / '2' / 'meta' / 'metadata'
    meta = json.loads(path.read_text())
    assert meta['fingerprints'] == fingerprints({k: v for k, v in trees.flat(states[2]._asdict()).items()})
    meta['fingerprints']['params/c/value'] = '0' * 16
    path.write_text(json.dumps(meta))
    integrity.write_manifest(checkpoints / '2', '2')
    assert Checkpoints(workdir, read_only=True).meta()['note'] == 2
    assert read_leaves(workdir)['step'] == 1
    assert '1 leaves are not what was saved, the first is params/c/value' in capsys.readouterr().out
    unchecked = Checkpoints(workdir, verify=False)
    flip(checkpoints / '2' / '_CHECKPOINT_METADATA')
    assert unchecked.restore(jax.eval_shape(lambda: states[0]))[1]['note'] == 2 and not capsys.readouterr().out
    unchecked.close()


def test_a_good_step_that_cannot_be_restored_is_not_set_aside(copied, states, monkeypatch):
    """A full memory, say: falling back would lose good work."""
    store = Checkpoints(copied[0])

    def full(*args, **kwargs):
        raise RuntimeError('RESOURCE_EXHAUSTED: out of memory')

    monkeypatch.setattr(store._manager, 'restore', full)
    with pytest.raises(CheckpointError, match=r'/2: RESOURCE_EXHAUSTED: .*\(its files are what was saved\)'):
        store.restore(jax.eval_shape(lambda: states[0]))
    assert store.steps() == [1, 2]
    store.close()


def test_what_is_verified_is_what_is_read(copied, states):
    """A verification serves one restore; the next hashes again."""
    workdir, checkpoints = copied
    store = Checkpoints(workdir)
    target = jax.eval_shape(lambda: states[0])
    store.meta()
    assert store.restore(target)[1]['note'] == 2
    flip(checkpoints / '2' / 'state' / '_sharding')
    assert store.restore(target)[1]['note'] == 1
    store.close()


def test_the_best_step_is_still_known_after_a_restart(tmp_path, states):
    for step, fid in ((1, 1.0), (2, 3.0), (3, 2.0)):
        store = Checkpoints(tmp_path, keep_last=1, best_metric='fid')
        store.save(step, states[1], {}, metrics={'fid': fid, 'other': 1.0}, wait=True)
        store.close()
    assert store.steps() == [1, 3]
    assert Checkpoints(tmp_path, read_only=True).meta(1)['metrics'] == {'fid': 1.0, 'other': 1.0}
    store = Checkpoints(tmp_path, keep_last=1, best_metric='another')
    store.save(4, states[1], {}, metrics={'another': 1.0}, wait=True)
    assert store.steps() == [4], 'steps without the metric rank last'
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
