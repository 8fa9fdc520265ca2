import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen_jax.engine.update import init_state
from gen_jax.losses.kl import standard_normal_kl
from gen_jax.losses.reconstruction import local_contrast
from gen_jax.models import PatchDiscriminator
from gen_jax.rng import Noise, example_keys
from gen_jax.systems import autoencoder_kl
from gen_jax.types import Variables


class Decoder(nn.Module):
    """Two layers, the last called as an AutoencoderKL's."""

    @nn.compact
    def __call__(self, z):
        x = jnp.tanh(nn.Conv(12, (3, 3), name='conv_in')(z))
        b, h, w, _ = x.shape
        x = x.reshape(b, h, w, 2, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, 3)
        return nn.Conv(3, (3, 3), name='conv_out')(x)


class Small(nn.Module):
    """The least autoencoder: what `autoencoder_kl` asks of a network."""

    def setup(self):
        self.encoder, self.decoder = nn.Conv(4, (2, 2), (2, 2)), Decoder()

    def encode(self, image, train=False):
        return jnp.split(self.encoder(image), 2, -1)

    def decode(self, z, train=False):
        return self.decoder(z)

    def __call__(self, image):
        return self.decode(self.encode(image)[0])


A, D = Small(), PatchDiscriminator(width=2, layers=1)
BATCH = {'image': np.random.RandomState(0).uniform(-1, 1, (4, 8, 8, 3)).astype(np.float32)}
NOISE = Noise(example_keys(0, np.arange(4)))
SETTINGS = dict(kl_weight=0.01, contrast_weight=2.0, adversarial_weight=0.7)


def make(**kwargs):
    system = autoencoder_kl(A, **{**SETTINGS, **kwargs})
    return system._replace(optimizers={k: optax.sgd(0.1) for k in system.objectives})


@pytest.fixture(scope='module')
def state():
    return init_state(make(discriminator=D), 0, BATCH, {})


def assert_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), a, b)


def test_both_losses_by_hand(state):
    """The discriminator's term is scaled by the gradients at the decoder's last kernel, as a constant; the
    discriminator sees original and rebuilt images apart."""
    system, image, stats = make(discriminator=D), BATCH['image'], state.extra['batch_stats']['discriminator']
    assert list(system.objectives) == ['autoencoder', 'discriminator']

    def rebuild(a):
        mean, log_var = A.apply({'params': a}, image, method='encode')
        z = mean + jnp.exp(log_var / 2) * NOISE.normal('z', mean)
        return A.apply({'params': a}, z, method='decode'), standard_normal_kl(mean, log_var).mean()

    def logits(d, stats, x):
        y, new = D.apply({'params': d, 'batch_stats': stats}, x, train=True, mutable=['batch_stats'])
        return y, new['batch_stats']

    def terms(a, d):
        rebuilt, kl = rebuild(a)
        error = (1 + 2 * local_contrast(image)) * jnp.abs(image - rebuilt)
        return jnp.stack([error.sum((1, 2, 3)).mean(), -logits(d, stats, rebuilt)[0].mean(), kl])

    def judge(d, a):
        real, after = logits(d, stats, image)
        fake, after = logits(d, after, rebuild(a)[0])
        return jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean(), after

    @jax.jit
    def run(params):
        a, d = params['autoencoder'], params['discriminator']
        ours = [jax.value_and_grad(o.loss, has_aux=True)({k: params[k]}, state._replace(params=params), BATCH, NOISE)
                for k, o in system.objectives.items()]
        grads = jax.jacrev(terms)(a, d)
        norms = jnp.sqrt(jnp.square(grads['decoder']['conv_out']['kernel']).sum((1, 2, 3, 4)))
        weights = jnp.stack([1.0, 0.7 * norms[0] / (norms[1] + 1e-4), 0.01]) / image[0].size
        grad = jax.tree.map(lambda g: jnp.tensordot(weights, g, 1), grads)
        return ours, (weights @ terms(a, d), grad), jax.value_and_grad(judge, has_aux=True)(d, a)

    ours, by_hand, ((judged, after), d_grad) = run(state.params)
    (value, (metrics, extra)), grad = ours[0]
    assert_close((value, grad), (by_hand[0], {'autoencoder': by_hand[1]}))
    assert metrics['adversarial_scale'] > 0.01 and not extra
    (value, (_, extra)), grad = ours[1]
    assert_close((value, grad), (judged, {'discriminator': d_grad}))
    assert_close(extra['batch_stats']['discriminator'], after)
    assert np.abs(d_grad['main.0']['kernel']).max() > 1e-6


def test_the_discriminator_waits_for_its_start(state):
    """Until then the autoencoder is that of a system without one, and the discriminator stands still."""
    waiting, alone = make(discriminator=D, adversarial_start=1), make()

    @jax.jit
    def losses(params):
        now = state._replace(params=params)
        return [s.objectives[k].loss(params, now, BATCH, NOISE)[0]
                for s, k in ((waiting, 'autoencoder'), (alone, 'autoencoder'), (waiting, 'discriminator'))]

    a, b, d = losses(state.params)
    np.testing.assert_allclose(a, b, rtol=1e-6)
    assert d == 0
    assert 'discriminator' not in alone.objectives and alone.objectives['autoencoder'].per_example
    assert not any(o.per_example for o in waiting.objectives.values())  # batch norm and one scale for all examples


def test_predicts(state):
    system, variables = make(), Variables({'autoencoder': state.params['autoencoder']})
    keys = NOISE.keys

    def run(name, batch, keys=keys):
        return jax.jit(lambda keys, batch: system.predict[name].run(variables, keys, batch, {}))(keys, batch)

    encoded, rebuilt = run('encode', BATCH), run('reconstruct', BATCH)
    np.testing.assert_array_equal(rebuilt['reference'], BATCH['image'])
    np.testing.assert_allclose(run('decode', {'z': encoded['mean']})['image'], rebuilt['image'], atol=1e-5)
    assert rebuilt['image'].shape == BATCH['image'].shape and np.abs(rebuilt['image']).max() <= 1
    spread = (encoded['z'] - encoded['mean']) * np.exp(-encoded['log_var'] / 2)
    np.testing.assert_allclose(spread, NOISE.normal('z', encoded['mean']), atol=1e-4)
    with pytest.raises(ValueError, match="decode reads 'z'"):
        system.predict['decode'].run(variables, keys, BATCH, {})


@pytest.mark.parametrize('settings, message', [
    (dict(reconstruction='l3'), "'l3'; choose l1 or l2"),
    (dict(adversarial_loss='square'), "'square'; choose one of"),
    (dict(kl_weight=-1), 'kl_weight is -1'),
    (dict(adversarial_start=-1), 'adversarial_start is -1'),
])
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        autoencoder_kl(A, **settings)
