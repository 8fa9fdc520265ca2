"""A variational auto-encoder of small images (Kingma & Welling 2013, arXiv:1312.6114, appendix C.2).

Any Linen module with the same two methods fits `gen_jax.systems.vae`:
`encode(image, train) -> (mean, log_var)` and `decode(z, train) -> (mean, log_scale)`.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from gen_jax.types import Array

__all__ = ['MLPVAE', 'vae_digits', 'vae_tiny']


class _MLP(nn.Module):
    features: Sequence[int]
    out: int
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        for i, width in enumerate(self.features):
            x = nn.silu(nn.Dense(width, dtype=self.dtype, name=f'layers.{i}')(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.out, dtype=self.dtype, name='out')(x).astype(jnp.float32)


class MLPVAE(nn.Module):
    """Fully connected encoder and decoder with a diagonal Gaussian posterior."""

    image_shape: tuple[int, int, int] = (8, 8, 1)
    latent_dim: int = 32
    hidden: Sequence[int] = (256, 256)
    dropout: float = 0.1
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.encoder = _MLP(tuple(self.hidden), 2 * self.latent_dim, self.dropout, self.dtype)
        self.decoder = _MLP(tuple(self.hidden)[::-1], 2 * math.prod(self.image_shape), self.dropout, self.dtype)

    def encode(self, image: Array, train: bool = False) -> tuple[Array, Array]:
        """Image [B, H, W, C] in [-1, 1] -> mean and log variance of the posterior, [B, latent_dim] each."""
        if image.shape[1:] != tuple(self.image_shape):
            raise ValueError(f'the VAE was built for images of shape {tuple(self.image_shape)}, got {image.shape[1:]};'
                             ' set image_shape or resize the data')
        mean, log_var = jnp.split(self.encoder(image.reshape(image.shape[0], -1), train), 2, -1)
        return mean, log_var

    def decode(self, z: Array, train: bool = False) -> tuple[Array, Array]:
        """Latent [B, latent_dim] -> location (image units) and log scale of every pixel, [B, H, W, C] each."""
        out = self.decoder(z, train).reshape(z.shape[0], *self.image_shape, 2)
        # A new network starts near the middle grey with a scale that covers the range; the floor keeps one
        # memorised training pixel from a likelihood of almost 1 and a test pixel from one of almost 0.
        return out[..., 0], jnp.clip(out[..., 1] - 1.0, -7.0, 3.0)

    def __call__(self, image: Array) -> tuple[Array, Array]:
        """The reconstruction from the posterior mean; touches every parameter, so `init` makes them all."""
        return self.decode(self.encode(image)[0])


def vae_digits(**kwargs) -> MLPVAE:
    """8x8 digits, 17 grey levels."""
    return MLPVAE(**kwargs)


def vae_tiny(**kwargs) -> MLPVAE:
    """A few hundred parameters, for tests."""
    return MLPVAE(**{'image_shape': (8, 8, 1), 'latent_dim': 2, 'hidden': (16,), 'dropout': 0.0, **kwargs})
