"""The variational auto-encoder as a system: one network, one objective (Kingma & Welling 2013, arXiv:1312.6114).

    -ELBO(x) = E_q(z|x)[-log p(x|z)] + beta KL(q(z|x) || N(0, 1))

p(x|z) is a discretised logistic over the grey levels, so -ELBO is an upper bound on a code length: in bits per
dimension it compares with log2(levels), what a uniform code costs.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.losses.kl import standard_normal_kl
from gen_jax.losses.reconstruction import (
    discretised_logistic_nll,
    discretised_logistic_sample,
    image_to_level,
    level_to_image,
)
from gen_jax.rng import Noise
from gen_jax.types import Array, Objective, Predict, System

__all__ = ['vae']


def _log_normal(x: Array, mean: Any = 0.0, log_var: Any = 0.0) -> Array:
    return -0.5 * (jnp.square(x - mean) * jnp.exp(-log_var) + log_var + math.log(2 * math.pi)).sum(-1)


def vae(network, levels: int = 17, beta: float = 1.0, warmup_steps: int = 0) -> System:
    """A VAE whose pixels take `levels` values.

    Args:
        network: Linen module with `encode(image, train) -> (mean, log_var)` [B, Z] and
            `decode(z, train) -> (mean, log_scale)` [B, H, W, C] (`gen_jax.models.vae`).
        levels: grey levels of the data: 17 for scikit-learn's digits, 256 for photographs.
        beta: weight of the KL term (Higgins et al. 2017); 1 is the ELBO. The metrics are always those of beta = 1.
        warmup_steps: the KL weight rises linearly from 0 to beta in these steps (Bowman et al. 2016,
            arXiv:1511.06349), which keeps latent dimensions from being switched off early.

    Returns:
        A System with parameters 'vae', objective 'elbo', optimizer 'vae' and these predict functions (images in
        [-1, 1]):

        * generate: prior samples; 'image' is the decoded location, 'sample' a draw of the pixels. Options:
          temperature (standard deviation of z).
        * reconstruct: 'image' from the posterior mean, and 'reference', its input on the grid of levels.
        * encode: 'mean', 'log_var', 'z'.
        * elbo: 'bits_per_dim', 'nll', 'kl' (nats) and 'iw_bits_per_dim', the importance-weighted bound of Burda et
          al. 2016 (arXiv:1509.00519, eq. 8), tighter with more samples. Options: samples.
        * interpolate: 'image' [B, steps, H, W, C], from each example to the next of the batch. Options: steps.
    """
    if levels < 2:
        raise ValueError(f'levels is {levels}; a discretised likelihood needs at least 2 grey levels')
    if beta < 0 or warmup_steps < 0:
        raise ValueError(f'beta ({beta}) and warmup_steps ({warmup_steps}) must not be negative')

    def apply(params, method, x, noise=None):
        rngs = None if noise is None else {'dropout': noise.key(f'dropout_{method}')}
        return network.apply({'params': params}, x, train=noise is not None, method=method, rngs=rngs)

    def init(key, batch):
        return {'vae': network.init(key, jnp.asarray(batch['image'], jnp.float32))['params']}, {}

    def terms(params, image, noise, train=False):
        """One posterior sample: z, its posterior, and nats per example of both terms."""
        dropout = noise if train else None
        mean, log_var = apply(params, 'encode', image, dropout)
        z = mean + jnp.exp(0.5 * log_var) * noise.normal('z', mean)
        nll = discretised_logistic_nll(image_to_level(image, levels), *apply(params, 'decode', z, dropout), levels)
        return z, (mean, log_var), nll, standard_normal_kl(mean, log_var)

    def to_bits(nats, image):
        return nats / (math.prod(image.shape[1:]) * math.log(2))

    def loss(params, state, batch, noise):
        image = batch['image']
        _, _, nll, kl = terms(params['vae'], image, noise, train=True)
        warm = jnp.minimum(1.0, (state.step + 1) / warmup_steps) if warmup_steps else 1.0
        nll, kl = nll.mean(), kl.mean()
        metrics = {'bits_per_dim': to_bits(nll + kl, image), 'nll': nll, 'kl': kl}
        return to_bits(nll + beta * warm * kl, image), (metrics, {})

    def generate(variables, keys, batch, options):
        del batch
        params, noise = variables.params['vae'], Noise(keys)
        z = noise.normal('z', (keys.shape[0], network.latent_dim)) * options['temperature']
        mean, log_scale = apply(params, 'decode', z)
        level = discretised_logistic_sample(noise.uniform('pixel', mean.shape[1:]), mean, log_scale, levels)
        return {'image': jnp.clip(mean, -1, 1), 'sample': level_to_image(level, levels)}

    def generate_options(temperature: float = 1.0):
        if temperature < 0:
            raise ValueError(f'temperature is {temperature}; it must not be negative')
        return {'temperature': np.float32(temperature)}

    def reconstruct(variables, keys, batch, options):
        del keys, options
        params, image = variables.params['vae'], batch['image']
        location, _ = apply(params, 'decode', apply(params, 'encode', image)[0])
        return {'image': jnp.clip(location, -1, 1), 'reference': level_to_image(image_to_level(image, levels), levels)}

    def encode(variables, keys, batch, options):
        del options
        mean, log_var = apply(variables.params['vae'], 'encode', batch['image'])
        z = mean + jnp.exp(0.5 * log_var) * Noise(keys).normal('z', mean)
        return {'mean': mean, 'log_var': log_var, 'z': z}

    def elbo(variables, keys, batch, options):
        image = batch['image']

        def one(i):
            z, posterior, nll, kl = terms(variables.params['vae'], image, Noise(keys).at(i))
            return nll, kl, _log_normal(z) - nll - _log_normal(z, *posterior)

        nll, kl, log_weight = jax.lax.map(one, options['sample'])
        log_likelihood = jax.nn.logsumexp(log_weight, 0) - math.log(len(log_weight))
        nll, kl = nll.mean(0), kl.mean(0)
        return {'bits_per_dim': to_bits(nll + kl, image), 'nll': nll, 'kl': kl,
                'iw_bits_per_dim': to_bits(-log_likelihood, image)}

    def elbo_options(samples: int = 1):
        if samples < 1:
            raise ValueError(f'samples is {samples}; the bound needs at least 1')
        return {'sample': np.arange(samples, dtype=np.int32)}  # its length is static: another one recompiles

    def interpolate(variables, keys, batch, options):
        del keys
        params, weight = variables.params['vae'], options['weight']
        start = apply(params, 'encode', batch['image'])[0]
        end = jnp.roll(start, -1, 0)
        z = start[:, None] + weight[None, :, None] * (end - start)[:, None]
        location, _ = apply(params, 'decode', z.reshape(-1, z.shape[-1]))
        return {'image': jnp.clip(location, -1, 1).reshape(*z.shape[:2], *location.shape[1:])}

    def interpolate_options(steps: int = 8):
        if steps < 2:
            raise ValueError(f'steps is {steps}; an interpolation needs both of its ends')
        return {'weight': np.linspace(0, 1, steps, dtype=np.float32)}

    predict = {
        'generate': Predict(generate, generate_options),
        'reconstruct': Predict(reconstruct),
        'encode': Predict(encode),
        'elbo': Predict(elbo, elbo_options),
        'interpolate': Predict(interpolate, interpolate_options),
    }
    return System(init, {'elbo': Objective(loss, ('vae',), 'vae')}, predict)
