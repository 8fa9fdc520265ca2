import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen_jax.engine.update import init_state, make_update
from gen_jax.models.vae import vae_tiny
from gen_jax.rng import Noise, example_keys
from gen_jax.systems.vae import vae
from gen_jax.types import Variables

LEVELS, SHAPE = 5, (2, 2, 1)
RNG = np.random.RandomState(0)
LEVEL = RNG.randint(0, LEVELS, (6, *SHAPE))
LEVEL[0] = np.reshape([0, 4, 3, 1], SHAPE)  # its negative differs in every pixel
IMAGE = np.float32(LEVEL / 2 - 1)
BITS = 4 * math.log(2)  # nats per image in one bit per dimension


@pytest.fixture(scope='module')
def toy():
    """(system, params): one latent dimension, far from the prior, so that p(x) is an integral over a line."""
    network = vae_tiny(image_shape=SHAPE, latent_dim=1, hidden=(4,))
    system = vae(network, levels=LEVELS)
    params, extra = system.init(jax.random.key(3), {'image': IMAGE})
    assert extra == {} and set(params) == {'vae'}
    # The decoder is moved away from its start, the posterior stays wide: importance weights then have a light tail.
    decoder = jax.tree.map(lambda x: x + 0.3 * RNG.normal(size=x.shape).astype(np.float32), params['vae']['decoder'])
    return system, network, {'vae': {**params['vae'], 'decoder': decoder}}


def log_likelihood(network, params):
    """log p(x) by the trapezoidal rule over z, with the distribution function of the logistic in float64: [6]."""
    z = np.linspace(-8, 8, 2001)
    decoded = network.apply({'params': params}, jnp.float32(z)[:, None], method='decode')
    mean, log_scale = (np.float64(v) for v in decoded)
    edges = np.array([-np.inf, -0.75, -0.25, 0.25, 0.75, np.inf])
    with np.errstate(over='ignore'):
        cdf = 1 / (1 + np.exp(-(edges - mean[..., None]) / np.exp(log_scale[..., None])))
    log_p = np.log(np.diff(cdf, axis=-1) + 1e-300)  # [z, H, W, C, level]
    log_p = np.take_along_axis(log_p[None], LEVEL[:, None, ..., None], -1).sum((2, 3, 4, 5))
    return np.log(np.trapezoid(np.exp(log_p - 0.5 * z ** 2) / np.sqrt(2 * np.pi), z, axis=1))


def run(system, name, params, image=IMAGE, seed=0, **options):
    p = system.predict[name]
    keys = example_keys(seed, np.arange(len(image)))
    return jax.jit(p.run)(Variables(params), keys, {'image': jnp.asarray(image)}, p.options(**options))


def test_bounds_against_the_exact_likelihood(toy):
    """ELBO <= IW bound <= log p(x), and the IW bound reaches log p(x): KL, likelihood and z all have to be right."""
    system, network, params = toy
    exact = -log_likelihood(network, params['vae']) / BITS
    few, many = run(system, 'elbo', params, samples=16), run(system, 'elbo', params, samples=20000)
    np.testing.assert_allclose(many['iw_bits_per_dim'], exact, atol=0.02)
    assert (many['bits_per_dim'] > exact + 0.01).all()  # the posterior of random parameters is not exact
    assert (many['bits_per_dim'] > many['iw_bits_per_dim']).all()
    assert few['iw_bits_per_dim'].mean() > many['iw_bits_per_dim'].mean()
    np.testing.assert_allclose(many['bits_per_dim'], (many['nll'] + many['kl']) / BITS, rtol=1e-6)


def test_loss_is_the_bound(toy):
    """The training loss is the ELBO in bits per dimension at beta 1; beta and warm-up scale only the KL term."""
    _, network, params = toy
    noise = Noise(example_keys(0, np.arange(6)))
    for beta, warmup, step, weight in ((1.0, 0, 0, 1.0), (0.25, 0, 0, 0.25), (2.0, 10, 4, 1.0), (1.0, 10, 99, 1.0)):
        system = vae(network, LEVELS, beta, warmup)
        state = init_state(system._replace(optimizers={'vae': optax.sgd(0.1)}), 0, {'image': IMAGE}, {})
        loss, (metrics, extra) = system.objectives['elbo'].loss(
            params, state._replace(step=jnp.int32(step)), {'image': jnp.asarray(IMAGE)}, noise)
        assert extra == {}
        np.testing.assert_allclose(loss, (metrics['nll'] + weight * metrics['kl']) / BITS, rtol=1e-5)
        np.testing.assert_allclose(metrics['bits_per_dim'], (metrics['nll'] + metrics['kl']) / BITS, rtol=1e-5)


def test_uniform_code():
    """A decoder with an endless scale and no information in z costs log2(levels) inside, exactly 0 KL."""
    network = vae_tiny(image_shape=SHAPE)
    system = vae(network, levels=2)
    params, _ = system.init(jax.random.key(0), {'image': IMAGE})
    params = jax.tree.map(jnp.zeros_like, params)  # location 0, and two levels split by it
    out = run(system, 'elbo', params)
    np.testing.assert_allclose(out['bits_per_dim'], 1.0, rtol=1e-6)
    np.testing.assert_allclose(out['iw_bits_per_dim'], 1.0, rtol=1e-6)
    assert (out['kl'] == 0).all()


def test_examples_do_not_depend_on_the_batch(toy):
    system, _, params = toy
    for name in ('generate', 'reconstruct', 'encode', 'elbo'):
        whole, part = run(system, name, params), run(system, name, params, IMAGE[:2])
        for k in whole:
            np.testing.assert_allclose(whole[k][:2], part[k], atol=1e-5, err_msg=f'{name} {k}')


def test_predicts(toy):
    system, network, params = toy
    generated = run(system, 'generate', params)
    assert generated['image'].shape == IMAGE.shape and np.abs(generated['image']).max() <= 1
    assert set(np.unique(np.float64(generated['sample']))) <= {-1, -0.5, 0, 0.5, 1}
    cold = run(system, 'generate', params, temperature=0.0)['image']
    np.testing.assert_array_equal(cold, np.broadcast_to(cold[:1], cold.shape))
    np.testing.assert_array_equal(run(system, 'reconstruct', params)['reference'], IMAGE)
    encoded = run(system, 'encode', params)
    draws = np.stack([run(system, 'encode', params, seed=s)['z'] for s in range(3)])
    assert np.ptp(draws, 0).min() > 0 and encoded['z'].shape == encoded['mean'].shape == (6, 1)
    between = run(system, 'interpolate', params, steps=5)['image']
    assert between.shape == (6, 5, *SHAPE)
    np.testing.assert_allclose(between[:, 0], run(system, 'reconstruct', params)['image'], atol=1e-5)
    np.testing.assert_allclose(between[:-1, -1], between[1:, 0], atol=1e-5)


def test_learns_a_two_point_distribution():
    """Two equally frequent images cost one bit each, 0.25 bits/dim of four pixels; without z it would be 1 at least."""
    data = np.stack([IMAGE[0], -IMAGE[0]]).repeat(16, 0)
    system = vae(vae_tiny(image_shape=SHAPE, hidden=(32,)), LEVELS)._replace(
        optimizers={'vae': optax.adam(optax.cosine_decay_schedule(2e-2, 300))})
    state = init_state(system, 0, {'image': data}, {})
    update = jax.jit(make_update(system, seed=0))
    for _ in range(300):
        state, metrics = update(state, {'image': jnp.asarray(data)})
    bits = float(np.mean(run(system, 'elbo', state.params, data, samples=50)['bits_per_dim']))
    assert 0.25 < bits < 0.6, bits


def test_bad_input():
    network = vae_tiny()
    for call, message in ((lambda: vae(network, levels=1), 'levels is 1'),
                          (lambda: vae(network, beta=-1.0), r'beta \(-1'),
                          (lambda: vae(network).predict['elbo'].options(samples=0), 'samples is 0'),
                          (lambda: vae(network).predict['interpolate'].options(steps=1), 'steps is 1'),
                          (lambda: vae(network).predict['generate'].options(temperature=-0.1), 'temperature is -0.1')):
        with pytest.raises(ValueError, match=message):
            call()
