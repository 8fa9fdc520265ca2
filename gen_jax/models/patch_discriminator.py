"""The patch discriminator of pix2pix, which VQGAN and latent diffusion took over for their autoencoders.

Isola et al., 2017 (https://arxiv.org/abs/1611.07004), section 3.2.2 and Appendix 6.1.2. Module names are those of the
published code (`main.0`, `main.2` ...), where activations count as modules.
"""

import flax.linen as nn
import jax.numpy as jnp

from gen_jax.types import Array

__all__ = ['PatchDiscriminator', 'patch_discriminator_70', 'patch_discriminator_shapes']

_INIT = nn.initializers.normal(0.02)


def _scale_init(key, shape, dtype=jnp.float32):
    return 1 + _INIT(key, shape, dtype)


class PatchDiscriminator(nn.Module):
    """Image [B, H, W, C] in [-1, 1] -> logits [B, h, w], one per overlapping patch, float32; positive means real.

    4x4 convolutions with LeakyReLU 0.2, `layers` of them halving the resolution, batch norm on all but the first and
    the last.

    Attributes:
        width: channels behind the first layer (`ndf`); they double with every layer, up to 8 times.
        layers: a patch has a side of 16 (1 layer), 34 (2), 70 (3) or 142 pixels (4).
        momentum: of the running batch statistics (0.9 here is 0.1 in PyTorch).
        dtype: compute dtype; parameters are float32.

    Raises:
        ValueError: an image too small for its layers.
    """

    width: int = 64
    layers: int = 3
    momentum: float = 0.9
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, image: Array, train: bool = False) -> Array:
        """[B, H, W, C] -> [B, h, w]."""
        smallest = 4 * 2 ** self.layers - (2 ** self.layers if self.layers > 0 else 0)
        if image.ndim != 4 or min(image.shape[1:3]) < smallest:
            raise ValueError(f'the discriminator has {self.layers} halving layers and needs images [B, H, W, C] of at '
                             f'least {smallest} pixels a side, not {image.shape}; give larger images or fewer layers')

        def conv(x, features, stride, bias, name):
            return nn.Conv(features, (4, 4), (stride, stride), ((1, 1), (1, 1)), use_bias=bias, kernel_init=_INIT,
                           dtype=self.dtype, name=name)(x)

        x = nn.leaky_relu(conv(image, self.width, 2, True, 'main.0'), 0.2)
        for i in range(1, self.layers + 1):
            stride = 2 if i < self.layers else 1
            x = conv(x, self.width * min(2 ** i, 8), stride, False, f'main.{3 * i - 1}')
            x = nn.BatchNorm(use_running_average=not train, momentum=self.momentum, epsilon=1e-5,
                             scale_init=_scale_init, dtype=self.dtype, name=f'main.{3 * i}')(x)
            x = nn.leaky_relu(x, 0.2)
        return conv(x, 1, 1, True, f'main.{3 * self.layers + 2}')[..., 0].astype(jnp.float32)


def patch_discriminator_70(**kwargs) -> PatchDiscriminator:
    """70x70 patches: 2,765,633 parameters for colour images, as VQGAN and latent diffusion train with."""
    return PatchDiscriminator(**kwargs)


def patch_discriminator_shapes(**kwargs) -> PatchDiscriminator:
    """34x34 patches, narrow, for 32x32 scenes on CPUs."""
    return PatchDiscriminator(**{'width': 24, 'layers': 2, **kwargs})
