"""The KL autoencoder of latent diffusion as a system: its first stage, trained from scratch.

Rombach et al. 2022 (https://arxiv.org/abs/2112.10752), section 3.1 and Appendix G: reconstruction + a very small KL
term + an adversarial term against a patch discriminator, whose weight follows the gradients (Esser et al. 2021,
"Taming Transformers", https://arxiv.org/abs/2012.09841, equation 7).
"""

import math

import jax
import jax.numpy as jnp
import optax

from gen_jax.losses.gan import discriminator_loss, generator_loss
from gen_jax.losses.kl import standard_normal_kl
from gen_jax.losses.reconstruction import local_contrast, reconstruction_error
from gen_jax.rng import Noise
from gen_jax.types import Array, Objective, Predict, System

__all__ = ['autoencoder_kl']


def autoencoder_kl(
    network,
    reconstruction: str = 'l1',
    kl_weight: float = 1e-6,
    contrast_weight: float = 0.0,
    discriminator=None,
    adversarial_weight: float = 0.5,
    adversarial_start: int = 0,
    adversarial_loss: str = 'hinge',
) -> System:
    """A KL autoencoder, with a discriminator if one is given.

    Args:
        network: Linen module with `encode(image) -> (mean, log_var)` and `decode(z) -> image`
            (`gen_jax.models.AutoencoderKL`); a `train` argument of both turns on dropout. With a discriminator, its
            parameters hold the last layer as 'decoder/conv_out'.
        reconstruction: 'l1' (published) or 'l2', whose best answer has the best PSNR.
        kl_weight: of the KL term in nats, against the reconstruction error summed over an image. It decides how much
            noise a latent bears: published weights are 1e-6 to 1e-4, for large pictures; small ones need more.
        contrast_weight: w; a pixel counts 1 + w c times, c in [0, 1] being the contrast of its 3x3 neighbourhood in
            the original. The rims of small objects are few pixels of many; 0 counts all alike.
        discriminator: Linen module, (image, train) -> logits [B, ...]; None leaves the adversarial term out.
        adversarial_weight: of that term, after its gradient at the last layer has been scaled to that of the
            reconstruction.
        adversarial_start: the step from which the discriminator learns and counts.
        adversarial_loss: see `gen_jax.losses.gan`.

    Returns:
        A System with parameters, objective and optimizer 'autoencoder', and with a discriminator others of that name,
        which moves behind the autoencoder. Examples meet where there is one (batch norm, the scale of gradients).
        Predict functions (images in [-1, 1]):

        * encode: 'mean', 'log_var', 'z' (a draw), each [B, h, w, C].
        * decode: 'image' from the batch's 'z'.
        * reconstruct: 'image' from the posterior mean, and 'reference', its input.

    Raises:
        ValueError: unknown losses; weights or a start below 0.
    """
    for name, value in {'kl_weight': kl_weight, 'contrast_weight': contrast_weight,
                        'adversarial_weight': adversarial_weight, 'adversarial_start': adversarial_start}.items():
        if value < 0:
            raise ValueError(f'{name} is {value}; it must not be negative')
    # Unknown losses fail here rather than at the first step.
    reconstruction_error(jnp.zeros((1, 1)), jnp.zeros((1, 1)), reconstruction)
    discriminator_loss(jnp.zeros(1), jnp.zeros(1), adversarial_loss)

    def apply(params, method, x, noise=None):
        rngs = None if noise is None else {'dropout': noise.key(f'dropout_{method}')}
        return network.apply({'params': params}, x, noise is not None, method=method, rngs=rngs)

    def init(key, batch):
        image = jnp.asarray(batch['image'], jnp.float32)
        a_key, d_key = jax.random.split(key)
        params, extra = {'autoencoder': network.init(a_key, image)['params']}, {}
        if discriminator is not None:
            made = discriminator.init(d_key, image)
            params['discriminator'] = made['params']
            extra['batch_stats'] = {'discriminator': made.get('batch_stats', {})}
        return params, extra

    def judge(params, stats, image):
        """Training mode: (logits, running statistics after this batch)."""
        variables = {'params': params, 'batch_stats': stats}
        logits, new = discriminator.apply(variables, image, train=True, mutable=['batch_stats'])
        return logits, new.get('batch_stats', stats)

    def rebuild(params, image, noise):
        mean, log_var = apply(params, 'encode', image, noise)
        z = mean + jnp.exp(0.5 * log_var) * noise.normal('z', mean)
        return apply(params, 'decode', z, noise), mean, log_var, z

    def error(image, rebuilt):
        weight = 1 + contrast_weight * local_contrast(image) if contrast_weight else None
        return reconstruction_error(image, rebuilt, reconstruction, weight).mean()

    def autoencoder_objective(params, state, batch, noise):
        image = batch['image']
        rebuilt, mean, log_var, z = rebuild(params['autoencoder'], image, noise)
        nats, values = standard_normal_kl(mean, log_var).mean(), math.prod(image.shape[1:])
        rec = error(image, rebuilt)
        value = rec + kl_weight * nats
        metrics = {'reconstruction': rec / values, 'kl': nats, 'latent_std': mean.std()}
        if discriminator is not None:
            stats = state.extra['batch_stats']['discriminator']

            def fooled(rebuilt):
                return generator_loss(judge(state.params['discriminator'], stats, rebuilt)[0], adversarial_loss).mean()

            term, scale = fooled(rebuilt), _scale(params['autoencoder'], z, lambda y: error(image, y), fooled, apply)
            active = (state.step >= adversarial_start).astype(jnp.float32)
            value = value + active * adversarial_weight * scale * term
            metrics |= {'adversarial': term, 'adversarial_scale': scale}
        return value / values, (metrics, {})

    def discriminator_objective(params, state, batch, noise):
        stats, image = state.extra['batch_stats']['discriminator'], batch['image']
        rebuilt = jax.lax.stop_gradient(rebuild(state.params['autoencoder'], image, noise)[0])
        # Real and rebuilt pass separately, as in `systems.gan`.
        real, new = judge(params['discriminator'], stats, image)
        fake, new = judge(params['discriminator'], new, rebuilt)
        active = (state.step >= adversarial_start).astype(jnp.float32)
        value = active * discriminator_loss(real, fake, adversarial_loss).mean()
        return value, ({'real_logits': real.mean(), 'fake_logits': fake.mean()},
                       {'batch_stats': {**state.extra['batch_stats'], 'discriminator': new}})

    def encode(variables, keys, batch, options):
        del options
        mean, log_var = apply(variables.params['autoencoder'], 'encode', batch['image'])
        return {'mean': mean, 'log_var': log_var,
                'z': mean + jnp.exp(0.5 * log_var) * Noise(keys).normal('z', mean)}

    def decode(variables, keys, batch, options):
        del keys, options
        if 'z' not in batch:
            raise ValueError(f"decode reads 'z' [B, h, w, C] from the batch, which holds {sorted(batch)}")
        return {'image': jnp.clip(apply(variables.params['autoencoder'], 'decode', batch['z']), -1, 1)}

    def reconstruct(variables, keys, batch, options):
        del keys, options
        params, image = variables.params['autoencoder'], batch['image']
        rebuilt = apply(params, 'decode', apply(params, 'encode', image)[0])
        return {'image': jnp.clip(rebuilt, -1, 1), 'reference': image}

    objectives = {'autoencoder': Objective(autoencoder_objective, ('autoencoder',), 'autoencoder',
                                           per_example=discriminator is None)}
    if discriminator is not None:
        objectives['discriminator'] = Objective(discriminator_objective, ('discriminator',), 'discriminator',
                                                per_example=False)
    return System(init, objectives, {'encode': Predict(encode), 'decode': Predict(decode, reads=('z',)),
                                     'reconstruct': Predict(reconstruct)})


def _scale(params, z: Array, error, fooled, apply) -> Array:
    """||grad error|| / ||grad fooled|| at the weights of the decoder's last layer, at most 1e4; a constant."""
    params, z = jax.lax.stop_gradient((params, z))
    last = params['decoder']['conv_out']

    def at(loss):
        def of(layer):
            decoder = {**params['decoder'], 'conv_out': layer}
            return loss(apply({**params, 'decoder': decoder}, 'decode', z))
        return of

    # Only the last layer varies, so the backward pass ends there.
    norms = [optax.global_norm(jax.grad(at(loss))(last)['kernel']) for loss in (error, fooled)]
    return jnp.clip(norms[0] / (norms[1] + 1e-4), 0.0, 1e4)
