"""One published architecture per file; every factory is found here by name."""

from gen_jax.models.clip import CLIP, clip_shapes, clip_tiny, clip_vit_b32
from gen_jax.models.unet import UNet2D, ddpm_celebahq_256, ddpm_cifar10, unet_digits, unet_tiny

__all__ = [
    'CLIP',
    'UNet2D',
    'clip_shapes',
    'clip_tiny',
    'clip_vit_b32',
    'ddpm_celebahq_256',
    'ddpm_cifar10',
    'unet_digits',
    'unet_tiny',
]
