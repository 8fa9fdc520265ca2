import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gen_jax.engine.update import init_state, make_update, variables_of
from gen_jax.losses.gan import discriminator_loss, generator_loss
from gen_jax.models.dcgan import DCGANDiscriminator, DCGANGenerator
from gen_jax.rng import Noise, example_keys, purpose_id
from gen_jax.systems.gan import gan
from gen_jax.types import Variables

G, D = DCGANGenerator(16, 4, 1, 3, 'subpixel'), DCGANDiscriminator(16, 4, 1)  # the least size with a norm in both
BATCH = {'image': np.random.RandomState(0).uniform(-1, 1, (8, 16, 16, 1)).astype(np.float32)}
LR = {'generator': 0.5, 'discriminator': 0.25}


def make(**kwargs):
    system = gan(G, D, **kwargs)
    return system._replace(optimizers={k: optax.sgd(v) for k, v in LR.items()})


@pytest.fixture(scope='module')
def stepped():
    """(system, state, state after one update, metrics)."""
    system = make(label_smoothing=0.1)
    ema = {'slow': {'decay': 0.5}}
    state = init_state(system, 0, BATCH, ema)
    new, metrics = jax.jit(make_update(system, seed=0, ema=ema))(state, BATCH)
    return system, state, new, metrics


def assert_close(a, b, **kwargs):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **{'rtol': 1e-4, 'atol': 1e-5, **kwargs}), a, b)


def test_one_step_by_hand(stepped):
    """The discriminator moves first; the generator's gradient is through the moved one; each statistic counts once."""
    _, state, new, metrics = stepped
    keys = example_keys(jax.random.fold_in(jax.random.key(0), 0), np.arange(8))

    def z(objective):
        return Noise(keys).at(purpose_id(objective)).normal(f'z_{objective}', (8, 3))

    def forward(network, params, stats, x):
        out, new = network.apply({'params': params, 'batch_stats': stats}, x, train=True, mutable=['batch_stats'])
        return out, new['batch_stats']

    @jax.jit
    def by_hand(params, stats):
        fake, _ = forward(G, params['generator'], stats['generator'], z('discriminator'))

        def d_loss(d):
            real_logits, after = forward(D, d, stats['discriminator'], BATCH['image'])
            fake_logits, after = forward(D, d, after, fake)
            return discriminator_loss(real_logits, fake_logits, label_smoothing=0.1).mean(), after

        (d_value, d_stats), grad = jax.value_and_grad(d_loss, has_aux=True)(params['discriminator'])
        d = jax.tree.map(lambda p, g: p - 0.25 * g, params['discriminator'], grad)

        def g_loss(g):
            image, after = forward(G, g, stats['generator'], z('generator'))
            return generator_loss(forward(D, d, d_stats, image)[0]).mean(), after

        (g_value, g_stats), grad = jax.value_and_grad(g_loss, has_aux=True)(params['generator'])
        g = jax.tree.map(lambda p, g: p - 0.5 * g, params['generator'], grad)
        return {'discriminator': d, 'generator': g}, {'discriminator': d_stats, 'generator': g_stats}, d_value, g_value

    params, stats, d_value, g_value = by_hand(state.params, state.extra['batch_stats'])
    assert_close(new.params, params)
    assert_close(new.extra['batch_stats'], stats)
    np.testing.assert_allclose(metrics['discriminator/loss'], d_value, rtol=1e-5)
    np.testing.assert_allclose(metrics['generator/loss'], g_value, rtol=1e-5)


def test_objectives_touch_only_their_own(stepped):
    """Neither loss depends on the other's parameters being differentiable, nor touches the other's statistics."""
    system, state, _, _ = stepped
    noise, stats = Noise(example_keys(0, np.arange(8))), state.extra['batch_stats']
    for name, other in (('generator', 'discriminator'), ('discriminator', 'generator')):
        objective = system.objectives[name]
        assert objective.params == (name,) and objective.optimizer == name and not objective.per_example
        _, (_, extra) = objective.loss({name: state.params[name]}, state, BATCH, noise)
        assert extra['batch_stats'][other] is stats[other]
        moved = [np.abs(a - b).max() for a, b in zip(jax.tree.leaves(extra['batch_stats'][name]),
                                                     jax.tree.leaves(stats[name]), strict=True)]
        assert moved and min(moved) > 0


def test_ema_covers_the_statistics(stepped):
    _, state, new, _ = stepped
    average = variables_of(new, 'slow')
    assert_close(average.extra['batch_stats'],
                 jax.tree.map(lambda a, b: 0.5 * (a + b), state.extra['batch_stats'], new.extra['batch_stats']))


def test_batch_norm_over_the_global_batch(stepped):
    """Sharded over 8 devices, one example each, the update is that of one device."""
    system, state, new, _ = stepped
    mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
    ema = {'slow': {'decay': 0.5}}
    placed = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    batch = jax.device_put(BATCH, NamedSharding(mesh, PartitionSpec('data')))
    sharded, _ = jax.jit(make_update(system, seed=0, ema=ema))(placed, batch)
    assert_close(sharded.params, new.params)
    assert_close(sharded.extra, new.extra)


def test_cut_batches_are_refused(stepped):
    for cut in ({'accumulate': 2}, {'axis_name': 'batch'}):
        with pytest.raises(ValueError, match='mixes the examples'):
            make_update(stepped[0], seed=0, **cut)


def test_predicts(stepped):
    """Evaluation mode: an example depends on its own key only, and the statistics are read from `extra`."""
    system, _, new, _ = stepped
    p, variables = system.predict['generate'], Variables(new.params, new.extra)
    run = jax.jit(p.run)
    image = run(variables, example_keys(1, np.arange(6)), {}, p.options())['image']
    assert image.shape == (6, 16, 16, 1) and np.abs(image).max() <= 1
    np.testing.assert_allclose(run(variables, example_keys(1, np.arange(2)), {}, p.options())['image'], image[:2],
                               atol=1e-6)
    cold = run(variables, example_keys(1, np.arange(6)), {}, p.options(temperature=0.0))['image']
    np.testing.assert_array_equal(cold, np.broadcast_to(cold[:1], cold.shape))
    other = {'batch_stats': jax.tree.map(lambda x: x + 1, new.extra['batch_stats'])}
    assert not np.allclose(run(Variables(new.params, other), example_keys(1, np.arange(6)), {}, p.options())['image'],
                           image)
    logits = system.predict['discriminate'].run(variables, None, BATCH, {})['logits']
    assert logits.shape == (8,)


def test_r1_and_every():
    """R1 adds gamma / 2 times the penalty; the idle generator stays as it was, its statistics too."""
    plain, with_r1 = make(loss='hinge'), make(loss='hinge', r1=3.0, every=2)
    state = init_state(plain, 0, BATCH, {})
    noise = Noise(example_keys(0, np.arange(8)))
    losses = [s.objectives['discriminator'].loss({'discriminator': state.params['discriminator']}, state, BATCH, noise)
              for s in (plain, with_r1)]
    penalty = losses[1][1][0]['r1']
    assert penalty > 0
    np.testing.assert_allclose(losses[1][0], losses[0][0] + 1.5 * penalty, rtol=1e-5)
    new, _ = jax.jit(make_update(with_r1, seed=0))(state._replace(step=jnp.int32(1)), BATCH)
    for tree in ('params', 'extra'):
        before, after = ((getattr(s, tree) if tree == 'params' else s.extra['batch_stats']) for s in (state, new))
        jax.tree.map(np.testing.assert_array_equal, before['generator'], after['generator'])
    assert_moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params['discriminator'],
                                new.params['discriminator'])
    assert max(jax.tree.leaves(assert_moved)) > 0


def test_bad_input():
    for kwargs, message in (({'loss': 'lsgan'}, "'lsgan'"), ({'loss': 'hinge', 'label_smoothing': 0.1}, 'hinge'),
                            ({'latent_dim': 4}, 'latent_dim is 4'), ({'r1': -1.0}, r'r1 \(-1'),
                            ({'every': 0}, r'every \(0')):
        with pytest.raises(ValueError, match=message):
            make(**kwargs)
    with pytest.raises(ValueError, match=r'images of shape \(16, 16, 1\), the data has \(8, 8, 1\)'):
        make().init(jax.random.key(0), {'image': np.zeros((2, 8, 8, 1), np.float32)})
