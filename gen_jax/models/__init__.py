"""One published architecture per file; every factory is found here by name."""

from gen_jax.models.clip import CLIP, clip_shapes, clip_tiny, clip_vit_b32
from gen_jax.models.dcgan import (
    DCGANDiscriminator,
    DCGANGenerator,
    dcgan_discriminator_64,
    dcgan_discriminator_digits,
    dcgan_generator_64,
    dcgan_generator_digits,
)
from gen_jax.models.unet import UNet2D, ddpm_celebahq_256, ddpm_cifar10, unet_digits, unet_tiny
from gen_jax.models.vae import MLPVAE, vae_digits, vae_tiny

__all__ = [
    'CLIP',
    'DCGANDiscriminator',
    'DCGANGenerator',
    'MLPVAE',
    'UNet2D',
    'clip_shapes',
    'clip_tiny',
    'clip_vit_b32',
    'dcgan_discriminator_64',
    'dcgan_discriminator_digits',
    'dcgan_generator_64',
    'dcgan_generator_digits',
    'ddpm_celebahq_256',
    'ddpm_cifar10',
    'unet_digits',
    'unet_tiny',
    'vae_digits',
    'vae_tiny',
]
