"""The pure update against closed forms, and against itself under jit, pmap and micro-batches."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import jax_utils

from gen_jax.engine.optim import make_optimizer
from gen_jax.engine.update import active_metrics, ema_decay, init_state, make_update, prepare, seed_words, variables_of
from gen_jax.types import Objective, System
from tests.engine.toy import batch, regression


def run(system, steps=4, ema={}, **kwargs):  # noqa: B006
    state = init_state(system, 0, batch(), ema)
    update = jax.jit(make_update(system, seed=0, ema=ema, **kwargs))
    metrics = {}
    for step in range(steps):
        state, metrics = update(state, batch(step=step))
    return state, metrics


def test_accumulation_and_pmap_equal_one_batch():
    """Per-example noise: micro-batches and devices see the noise that the whole batch would."""
    state, metrics = run(regression())
    accumulated, metrics_a = run(regression(), accumulate=4)
    chex.assert_trees_all_close(state.params, accumulated.params, atol=1e-6)
    np.testing.assert_allclose(metrics['fit/loss'], metrics_a['fit/loss'], rtol=1e-5)

    system, n = regression(), 4
    update = jax.pmap(make_update(system, seed=0, axis_name='batch'), axis_name='batch', devices=jax.devices()[:n])
    mapped = jax_utils.replicate(init_state(system, 0, batch(), {}), jax.devices()[:n])
    for step in range(4):
        mapped, metrics_p = update(mapped, {'x': batch(step=step)['x'].reshape(n, -1)})
    mapped = jax_utils.unreplicate(mapped)
    chex.assert_trees_all_close(state.params, mapped.params, atol=1e-6)
    np.testing.assert_allclose(metrics['fit/loss'], metrics_p['fit/loss'][0], rtol=1e-5)


def test_noise_reaches_the_loss():
    """The agreement above means something: without noise the parameters are others."""
    assert not np.allclose(run(regression())[0].params['w']['dense']['kernel'],
                           run(regression(noise_scale=0.0))[0].params['w']['dense']['kernel'], atol=1e-4)


def test_runs_of_other_seeds_share_a_program():
    """A sweep over seeds compiles once: the seed is an argument of the update, with the same noise as a constant."""
    system = regression()
    state = init_state(system, 0, batch(), {})
    programs = [jax.jit(make_update(system, seed=s)).lower(state, batch(), seed_words(s)) for s in (0, 1)]
    assert programs[0].as_text() == programs[1].as_text()
    update = programs[0].compile()
    for seed in (0, 1):
        constant, _ = jax.jit(make_update(system, seed=seed))(state, batch())
        chex.assert_trees_all_equal(update(state, batch(), seed_words(seed))[0].params, constant.params)


def test_objectives_run_in_order_and_idle_ones_stay_silent():
    system = regression(every=2)
    state = init_state(system, 0, batch(), {})
    update = jax.jit(make_update(system, seed=0))
    one, m1 = update(state, batch())
    # sgd(0.5) on (c - w)^2 lands on w exactly: the second objective saw the first one's update.
    assert one.params['c']['value'] == one.params['w']['dense']['kernel'][0] != 0
    two, m2 = update(one, batch(step=1))
    assert two.params['c']['value'] == one.params['c']['value'] and two.opt['w'][0].count == 2
    assert 'follow/loss' in active_metrics(system, 0, m1)
    assert {'fit/loss', 'fit/grad_norm', 'fit/error', 'finite'} == set(active_metrics(system, 1, m2))
    assert two.extra['calls'] == 2


def test_ema_in_closed_form():
    spec = {'slow': {'decay': 0.9}, 'warm': {'decay': 0.9, 'warmup': True}, 'w': {'decay': 0.5, 'params': ('w',)}}
    system, ema = regression(noise_scale=0.0), spec
    state = init_state(system, 0, batch(), ema)
    update = jax.jit(make_update(system, seed=0, ema=ema))
    expected = {k: 0.0 for k in spec}
    for step in range(3):
        state, _ = update(state, batch(step=step))
        w = float(state.params['w']['dense']['kernel'][0])
        for k, d in (('slow', 0.9), ('warm', min(0.9, (1 + step) / (10 + step))), ('w', 0.5)):
            expected[k] = d * expected[k] + (1 - d) * w
    for k, value in expected.items():
        np.testing.assert_allclose(state.ema[k]['params']['w']['dense']['kernel'][0], value, rtol=1e-5)
    assert 'c' not in state.ema['w']['params']
    assert variables_of(state, 'w').params['c'] is state.params['c']
    with pytest.raises(ValueError, match=r"no EMA 'fast'.*slow"):
        variables_of(state, 'fast')
    with pytest.raises(ValueError, match=r"averages 'x'.*\['c', 'w'\]"):
        init_state(system, 0, batch(), {'a': {'params': ('x',)}})
    assert float(ema_decay({'decay': 0.999, 'warmup': True}, 10**6)) == pytest.approx(0.999)


def test_nonfinite_step_changes_nothing_but_the_step():
    system = regression(poison_step=2)
    state = init_state(system, 0, batch(), {'slow': {'decay': 0.9}})
    update = jax.jit(make_update(system, seed=0, ema={'slow': {'decay': 0.9}}))
    finite = []
    for step in range(4):
        before = state
        state, metrics = update(state, batch(step=step))
        finite.append(bool(metrics['finite']))
        if step == 2:
            chex.assert_trees_all_equal(before._replace(step=state.step), state)
    assert finite == [True, True, False, True] and state.step == 4
    chex.assert_tree_all_finite(state)


def test_parts_of_a_tree():
    """'w/REGEX' updates the leaves that match and leaves the others, weight decay included."""
    base = regression()
    objective = base.objectives['fit']._replace(params=('w/dense/bias',))
    system = base._replace(objectives={'fit': objective},
                           optimizers={'w': optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1))})
    state = init_state(system, 0, batch(), {})
    state = state._replace(params={**state.params, 'w': {'dense': {'kernel': jnp.ones(1), 'bias': jnp.ones(1)}}})
    new, _ = jax.jit(make_update(system, seed=0))(state, batch())
    assert new.params['w']['dense']['kernel'] == 1.0 and new.params['w']['dense']['bias'] != 1.0


def test_shared_optimizer_state():
    def quadratic(params, state, batch, noise):
        del state, batch, noise
        return jnp.sum(params['w']['x'] ** 2), ({}, {})

    system = System(lambda k, b: ({'w': {'x': jnp.ones(2)}}, {}),
                    {'main': Objective(quadratic, ('w',), 'o'), 'lazy': Objective(quadratic, ('w',), 'o', every=4)},
                    {}, {'o': optax.adam(0.1)})
    state = init_state(system, 0, batch(), {})
    update = jax.jit(make_update(system, seed=0))
    for step in range(4):
        state, _ = update(state, batch(step=step))
    assert state.opt['o'][0].count == 5


def test_refusals():
    with pytest.raises(ValueError, match='accumulate=2.*train.accumulate=1'):
        make_update(regression(per_example=False), seed=0, accumulate=2)
    with pytest.raises(ValueError, match="'fit' mixes.*pmap"):
        make_update(regression(per_example=False), seed=0, axis_name='batch')
    system = regression()
    with pytest.raises(ValueError, match="uses optimizer 'w', but the system has"):
        init_state(system._replace(optimizers={}), 0, batch(), {})
    wrong = system._replace(objectives={'fit': system.objectives['fit']._replace(params=('nobody',))})
    with pytest.raises(ValueError, match="updates 'nobody', but the system has"):
        init_state(wrong, 0, batch(), {})
    shared = system._replace(objectives={k: o._replace(optimizer='w') for k, o in system.objectives.items()})
    with pytest.raises(ValueError, match="share the optimizer 'w'"):
        init_state(shared, 0, batch(), {})


def test_images_are_normalised_on_the_device():
    out = prepare({'image': jnp.array([[0, 255]], jnp.uint8), 'mask': jnp.array([7], jnp.uint8)})
    np.testing.assert_array_equal(out['image'], [[-1.0, 1.0]])
    assert out['mask'].dtype == jnp.uint8


def test_optimizers_and_multipliers():
    params = {'unet': {'a': {'kernel': jnp.ones(3)}, 'b': {'kernel': jnp.ones(3)}}}
    grads = jax.tree.map(jnp.ones_like, params)
    for name in ('adam', 'adamw', 'sgd', 'lion', 'adafactor'):
        tx = make_optimizer(name, 0.1, steps=10, schedule='cosine', warmup_steps=2, clip_norm=1.0,
                            lr_multipliers=('unet/a/.*=0', '.*=0.5'))
        state = tx.init(params)
        for _ in range(3):
            updates, state = tx.update(grads, state, params)
        assert np.all(updates['unet']['a']['kernel'] == 0), name
        assert np.all(updates['unet']['b']['kernel'] < 0), name
    full, _ = (tx := make_optimizer('sgd', 0.1, steps=10, b1=0.0)).update(grads, tx.init(params), params)
    half, _ = (tx := make_optimizer('sgd', 0.1, steps=10, b1=0.0, lr_multipliers=('.*b/.*=0.5', '.*=1'))).update(
        grads, tx.init(params), params)
    np.testing.assert_allclose(half['unet']['b']['kernel'] * 2, full['unet']['b']['kernel'])
    np.testing.assert_allclose(half['unet']['a']['kernel'], full['unet']['a']['kernel'])
    # A frozen leaf does not enter the clipped norm.
    tx = make_optimizer('sgd', 1.0, steps=10, b1=0.0, clip_norm=1.0, lr_multipliers=('unet/a/.*=0', '.*=1'))
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(np.linalg.norm(updates['unet']['b']['kernel']), 1.0, rtol=1e-6)
    for kwargs, message in (({'name': 'adamm'}, 'choose from adam'), ({'schedule': 'x'}, 'choose from constant'),
                            ({'warmup_steps': 10}, 'not less than train.steps'), ({'lr': -1.0}, 'negative'),
                            ({'weight_decay': 0.1}, 'adamw')):
        with pytest.raises(ValueError, match=message):
            make_optimizer(**{'name': 'adam', 'lr': 0.1, 'steps': 10, **kwargs})
    with pytest.raises(ValueError, match='no rule matches'):
        make_optimizer('adam', 0.1, steps=10, lr_multipliers=('unet/a/.*=0',)).init(params)
    with pytest.raises(ValueError, match='match no leaf'):
        make_optimizer('adam', 0.1, steps=10, lr_multipliers=('encoder/.*=0', '.*=1')).init(params)
