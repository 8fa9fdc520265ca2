"""DCGAN: a generator and a discriminator of strided convolutions with batch norm.

Radford et al. 2015 (arXiv:1511.06434), section 3. Module names are those of the PyTorch example that made the 64x64
variant common (`main.0` ... `main.13`), and kernels are stored so that one rule, transpose(3, 2, 0, 1), gives its
weights for both kinds of convolution. Width doubles each time the side halves, down to a 4x4 map, so any power of two
from 8 is an image size.
"""

import flax.linen as nn
import jax.numpy as jnp

from gen_jax.types import Array

__all__ = ['DCGANDiscriminator', 'DCGANGenerator', 'dcgan_discriminator_64', 'dcgan_discriminator_digits',
           'dcgan_generator_64', 'dcgan_generator_digits']

_INIT = nn.initializers.normal(0.02)


def _scale_init(key, shape, dtype=jnp.float32):
    return 1 + _INIT(key, shape, dtype)


def _doublings(image_size: int) -> int:
    """How often 4 doubles to reach the image size."""
    if image_size < 8 or image_size & (image_size - 1):
        raise ValueError(f'image_size is {image_size}; DCGAN needs a power of two from 8 (8, 16, 32, 64 ...)')
    return image_size.bit_length() - 3


def _depth_to_space(x: Array) -> Array:
    """[B, H, W, 4 C] -> [B, 2 H, 2 W, C]: channel (2 i + j) C + c becomes pixel (i, j) of a 2x2 block."""
    b, h, w, c = x.shape
    return x.reshape(b, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, c // 4)


class DCGANGenerator(nn.Module):
    """z [B, latent_dim] -> image [B, image_size, image_size, channels] in [-1, 1] (tanh), float32.

    Args:
        image_size: a power of two from 8.
        width: channels in front of the last layer (`ngf`); the 4x4 map has width * image_size / 8.
        upsample: 'transpose', 4x4 transposed convolutions as published, or 'subpixel', 3x3 convolutions to four times
            the channels followed by depth to space (Shi et al. 2016, arXiv:1609.05158), which XLA runs faster on CPU
            and which leave no checkerboard.
        momentum: of the running batch statistics (0.9 here is 0.1 in PyTorch).
    """

    image_size: int = 64
    width: int = 64
    channels: int = 3
    latent_dim: int = 100
    upsample: str = 'transpose'
    momentum: float = 0.9
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, z: Array, train: bool = False) -> Array:
        if self.upsample not in ('transpose', 'subpixel'):
            raise ValueError(f'upsample is {self.upsample!r}; choose transpose or subpixel')
        if z.ndim != 2 or z.shape[1] != self.latent_dim:
            raise ValueError(f'the generator wants z of shape [B, {self.latent_dim}], got {z.shape}')
        doublings = _doublings(self.image_size)
        features = self.width * 2 ** (doublings - 1)
        # A 4x4 transposed convolution of one pixel without padding: 1x1 -> 4x4.
        x = self._transpose(features, 1, 'VALID', 'main.0')(z[:, None, None, :].astype(self.dtype))
        x = self._activate(x, train, 'main.1')
        for i in range(1, doublings):
            features //= 2
            x = self._activate(self._double(x, features, f'main.{3 * i}'), train, f'main.{3 * i + 1}')
        x = self._double(x, self.channels, f'main.{3 * doublings}')
        return jnp.tanh(x.astype(jnp.float32))

    def _transpose(self, features: int, stride: int, padding: str, name: str) -> nn.Module:
        # transpose_kernel: the kernel is that of the convolution whose gradient this is, as PyTorch stores it.
        return nn.ConvTranspose(features, (4, 4), (stride, stride), padding, use_bias=False, transpose_kernel=True,
                                kernel_init=_INIT, dtype=self.dtype, name=name)

    def _double(self, x: Array, features: int, name: str) -> Array:
        if self.upsample == 'transpose':
            return self._transpose(features, 2, 'SAME', name)(x)
        x = nn.Conv(4 * features, (3, 3), use_bias=False, kernel_init=_INIT, dtype=self.dtype, name=name)(x)
        return _depth_to_space(x)

    def _activate(self, x: Array, train: bool, name: str) -> Array:
        return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=self.momentum, epsilon=1e-5,
                                    scale_init=_scale_init, dtype=self.dtype, name=name)(x))


class DCGANDiscriminator(nn.Module):
    """Image [B, image_size, image_size, channels] in [-1, 1] -> logits [B], float32; positive means real.

    4x4 convolutions of stride 2 with LeakyReLU 0.2 down to 4x4, batch norm on all but the first and the last layer.

    Args:
        image_size: a power of two from 8.
        width: channels behind the first layer (`ndf`); they double with every halving.
        momentum: of the running batch statistics.
    """

    image_size: int = 64
    width: int = 64
    channels: int = 3
    momentum: float = 0.9
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: Array, train: bool = False) -> Array:
        shape = (self.image_size, self.image_size, self.channels)
        if image.shape[1:] != shape:
            raise ValueError(f'the discriminator was built for images of shape {shape}, got {image.shape[1:]}; set '
                             'image_size and channels or resize the data')
        doublings = _doublings(self.image_size)
        x = nn.leaky_relu(self._halve(image.astype(self.dtype), self.width, 'main.0'), 0.2)
        for i in range(1, doublings):
            x = self._halve(x, self.width * 2 ** i, f'main.{3 * i - 1}')
            x = nn.BatchNorm(use_running_average=not train, momentum=self.momentum, epsilon=1e-5,
                             scale_init=_scale_init, dtype=self.dtype, name=f'main.{3 * i}')(x)
            x = nn.leaky_relu(x, 0.2)
        x = nn.Conv(1, (4, 4), padding='VALID', use_bias=False, kernel_init=_INIT, dtype=self.dtype,
                    name=f'main.{3 * doublings - 1}')(x)
        return x.reshape(image.shape[0]).astype(jnp.float32)

    def _halve(self, x: Array, features: int, name: str) -> Array:
        return nn.Conv(features, (4, 4), (2, 2), ((1, 1), (1, 1)), use_bias=False, kernel_init=_INIT,
                       dtype=self.dtype, name=name)(x)


def dcgan_generator_64(**kwargs) -> DCGANGenerator:
    """64x64 colour, z of 100: 3,576,704 parameters, as in the PyTorch example."""
    return DCGANGenerator(**kwargs)


def dcgan_discriminator_64(**kwargs) -> DCGANDiscriminator:
    """64x64 colour: 2,765,568 parameters, as in the PyTorch example."""
    return DCGANDiscriminator(**kwargs)


def dcgan_generator_digits(**kwargs) -> DCGANGenerator:
    """16x16 grey digits; sub-pixel convolutions for speed on CPU."""
    return DCGANGenerator(**{'image_size': 16, 'width': 64, 'channels': 1, 'latent_dim': 32, 'upsample': 'subpixel',
                             **kwargs})


def dcgan_discriminator_digits(**kwargs) -> DCGANDiscriminator:
    """16x16 grey digits."""
    return DCGANDiscriminator(**{'image_size': 16, 'width': 64, 'channels': 1, **kwargs})
