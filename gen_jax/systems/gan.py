"""A generative adversarial network as a system: two networks, two objectives, two optimizers.

Within one step the discriminator is updated first and the generator then plays against the updated one (Goodfellow et
al. 2014, arXiv:1406.2661, algorithm 1, with k = 1; `every` of the generator gives larger k).
"""

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.losses.gan import discriminator_loss, generator_loss, r1_penalty
from gen_jax.rng import Noise
from gen_jax.types import Objective, Predict, System

__all__ = ['gan']


def gan(
    generator,
    discriminator,
    latent_dim: int | None = None,
    loss: str = 'non_saturating',
    label_smoothing: float = 0.0,
    r1: float = 0.0,
    every: int = 1,
    per_example: bool = False,
) -> System:
    """Generator against discriminator.

    Args:
        generator: Linen module, (z [B, latent_dim], train) -> image [B, H, W, C] in [-1, 1].
        discriminator: Linen module, (image, train) -> logits [B, ...].
        latent_dim: size of z; None takes `generator.latent_dim`.
        loss: 'non_saturating', 'hinge' or 'wasserstein' (`gen_jax.losses.gan`).
        label_smoothing: one-sided, for the discriminator; non_saturating only.
        r1: gamma of the R1 penalty, (gamma / 2) ||grad D(real)||^2; 0 leaves it out.
        every: the generator learns on every n-th step only.
        per_example: True only if neither network lets examples meet (no batch norm).

    Returns:
        A System with parameters, objectives and optimizers 'generator' and 'discriminator'. `extra['batch_stats']`
        holds the running statistics of both by the same names; each is updated by the objective that trains its
        network, once for every batch of images shown to it, and the other objective's passes leave it alone. Predict
        functions:

        * generate: 'image' in [-1, 1], in evaluation mode. Options: temperature (standard deviation of z).
        * discriminate: 'logits' of the batch's images, in evaluation mode.
    """
    latent_dim = generator.latent_dim if latent_dim is None else latent_dim
    if getattr(generator, 'latent_dim', latent_dim) != latent_dim:
        raise ValueError(f'latent_dim is {latent_dim}, but the generator was built for {generator.latent_dim}')
    if r1 < 0 or every < 1:
        raise ValueError(f'r1 ({r1}) must not be negative and every ({every}) must be at least 1')
    # Unknown losses and smoothing that does not fit fail here rather than at the first step.
    discriminator_loss(jnp.zeros(1), jnp.zeros(1), loss, label_smoothing)

    def init(key, batch):
        image = jnp.asarray(batch['image'], jnp.float32)
        g_key, d_key = jax.random.split(key)
        made = {}
        made['generator'] = generator.init(g_key, jnp.zeros((image.shape[0], latent_dim)))
        fake = jax.eval_shape(lambda v: generator.apply(v, jnp.zeros((image.shape[0], latent_dim))), made['generator'])
        if fake.shape != image.shape:
            raise ValueError(f'the generator makes images of shape {fake.shape[1:]}, the data has {image.shape[1:]}; '
                             'set its image_size and channels or resize the data')
        made['discriminator'] = discriminator.init(d_key, image)
        params = {name: variables['params'] for name, variables in made.items()}
        return params, {'batch_stats': {name: v.get('batch_stats', {}) for name, v in made.items()}}

    def train_apply(network, params, stats, x):
        """Training mode: (output, running statistics after this batch)."""
        out, new = network.apply({'params': params, 'batch_stats': stats}, x, train=True, mutable=['batch_stats'])
        return out, new.get('batch_stats', stats)

    def draw(noise, purpose, batch):
        return noise.normal(purpose, (batch['image'].shape[0], latent_dim))

    def discriminator_objective(params, state, batch, noise):
        stats, real = state.extra['batch_stats'], batch['image']
        # train mode, as the generator will be trained, but its new statistics are dropped: it counts this step once.
        fake, _ = train_apply(generator, state.params['generator'], stats['generator'],
                              draw(noise, 'z_discriminator', batch))
        fake = jax.lax.stop_gradient(fake)
        # Real and fake pass separately: with batch norm, statistics over a mixed batch would let one give the other
        # away (the published recipe).
        real_logits, new = train_apply(discriminator, params['discriminator'], stats['discriminator'], real)
        fake_logits, new = train_apply(discriminator, params['discriminator'], new, fake)
        value = discriminator_loss(real_logits, fake_logits, loss, label_smoothing).mean()
        metrics = {'real_logits': real_logits.mean(), 'fake_logits': fake_logits.mean()}
        if r1:
            own = params['discriminator'], stats['discriminator']
            penalty = r1_penalty(lambda x: train_apply(discriminator, *own, x)[0], real).mean()
            value, metrics['r1'] = value + 0.5 * r1 * penalty, penalty
        return value, (metrics, {'batch_stats': {**stats, 'discriminator': new}})

    def generator_objective(params, state, batch, noise):
        stats = state.extra['batch_stats']
        fake, new = train_apply(generator, params['generator'], stats['generator'], draw(noise, 'z_generator', batch))
        logits, _ = train_apply(discriminator, state.params['discriminator'], stats['discriminator'], fake)
        value = generator_loss(logits, loss).mean()
        return value, ({'fake_logits': logits.mean()}, {'batch_stats': {**stats, 'generator': new}})

    def evaluate(network, variables, name, x):
        return network.apply({'params': variables.params[name], 'batch_stats': variables.extra['batch_stats'][name]}, x)

    def generate(variables, keys, batch, options):
        del batch
        z = Noise(keys).normal('z', (keys.shape[0], latent_dim)) * options['temperature']
        return {'image': evaluate(generator, variables, 'generator', z)}

    def generate_options(temperature: float = 1.0):
        if temperature < 0:
            raise ValueError(f'temperature is {temperature}; it must not be negative')
        return {'temperature': np.float32(temperature)}

    def discriminate(variables, keys, batch, options):
        del keys, options
        return {'logits': evaluate(discriminator, variables, 'discriminator', batch['image'])}

    objectives = {
        'discriminator': Objective(discriminator_objective, ('discriminator',), 'discriminator',
                                   per_example=per_example),
        'generator': Objective(generator_objective, ('generator',), 'generator', every, per_example),
    }
    return System(init, objectives, {'generate': Predict(generate, generate_options),
                                     'discriminate': Predict(discriminate)})
