"""The KL autoencoder of latent diffusion, under the published checkpoint names."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.models.unet_blocks import DownBlock, MidBlock, UpBlock
from gen_jax.nn.activations import activation
from gen_jax.nn.attention import IMPLEMENTATIONS
from gen_jax.nn.norms import GroupNorm
from gen_jax.nn.remat import check_remat
from gen_jax.nn.resampling import conv_init
from gen_jax.types import Array

__all__ = [
    'DOWN_ENCODER_BLOCKS',
    'UP_DECODER_BLOCKS',
    'AutoencoderKL',
    'autoencoder_kl_shapes',
    'autoencoder_kl_tiny',
    'ldm_kl_f4',
    'ldm_kl_f8',
    'sd_vae',
    'sd_x4_upscaler_vae',
    'sdxl_vae',
]

DOWN_ENCODER_BLOCKS = {'DownEncoderBlock2D': False, 'AttnDownEncoderBlock2D': True}
UP_DECODER_BLOCKS = {'UpDecoderBlock2D': False, 'AttnUpDecoderBlock2D': True}
"""Published block name -> whether an attention follows every residual block."""
EPSILON = 1e-6
"""Of every norm; no published configuration changes it."""


class Encoder(nn.Module):
    """Image [B, H, W, C] -> [B, H / f, W / f, out_channels]: halvings, then a mid block with attention.

    Attributes: `resnet` and `attn` are keyword arguments of `ResnetBlock2D` and `Attention` (a head spans all channels,
    so without head_dim); the others are fields of `AutoencoderKL`.
    """

    out_channels: int
    block_types: tuple[str, ...]
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    mid_block_add_attention: bool
    resnet: dict
    attn: dict
    remat: str = ''

    @nn.compact
    def __call__(self, x: Array, deterministic: bool = True) -> Array:
        """[B, H, W, any] -> [B, h, w, out_channels] in the compute dtype."""
        widths, dtype = self.block_out_channels, self.resnet['dtype']
        x = nn.Conv(widths[0], (3, 3), padding=1, kernel_init=conv_init, dtype=dtype, name='conv_in')(x)
        for i, (kind, width) in enumerate(zip(self.block_types, widths, strict=True)):
            x, _ = DownBlock(
                width,
                self.layers_per_block,
                DOWN_ENCODER_BLOCKS[kind],
                None if i == len(widths) - 1 else 'conv',
                0,  # bottom and right only
                self.resnet,
                dict(self.attn, head_dim=width),
                self.remat,
                name=f'down_blocks.{i}',
            )(x, None, deterministic=deterministic)
        attn = dict(self.attn, head_dim=widths[-1])
        mid = MidBlock(self.mid_block_add_attention, 1.0, self.resnet, attn, self.remat, name='mid_block')
        x = mid(x, None, deterministic=deterministic)
        x = jax.nn.silu(GroupNorm(self.resnet['num_groups'], EPSILON, dtype, name='conv_norm_out')(x))
        return nn.Conv(self.out_channels, (3, 3), padding=1, kernel_init=conv_init, dtype=dtype, name='conv_out')(x)


class Decoder(nn.Module):
    """Latent [B, h, w, C] -> image [B, f h, f w, out_channels]: a mid block with attention, then doublings.

    Attributes: as those of `Encoder`; the block types start at the lowest resolution, the channels at the highest.
    """

    out_channels: int
    block_types: tuple[str, ...]
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    mid_block_add_attention: bool
    resnet: dict
    attn: dict
    remat: str = ''

    @nn.compact
    def __call__(self, z: Array, deterministic: bool = True) -> Array:
        """[B, h, w, any] -> [B, H, W, out_channels] in the compute dtype."""
        widths, dtype = self.block_out_channels[::-1], self.resnet['dtype']
        x = nn.Conv(widths[0], (3, 3), padding=1, kernel_init=conv_init, dtype=dtype, name='conv_in')(z)
        attn = dict(self.attn, head_dim=widths[0])
        mid = MidBlock(self.mid_block_add_attention, 1.0, self.resnet, attn, self.remat, name='mid_block')
        x = mid(x, None, deterministic=deterministic)
        for i, (kind, width) in enumerate(zip(self.block_types, widths, strict=True)):
            x = UpBlock(
                width,
                self.layers_per_block + 1,
                UP_DECODER_BLOCKS[kind],
                None if i == len(widths) - 1 else 'conv',
                self.resnet,
                dict(self.attn, head_dim=width),
                self.remat,
                name=f'up_blocks.{i}',
            )(x, None, None, deterministic=deterministic)
        x = jax.nn.silu(GroupNorm(self.resnet['num_groups'], EPSILON, dtype, name='conv_norm_out')(x))
        return nn.Conv(self.out_channels, (3, 3), padding=1, kernel_init=conv_init, dtype=dtype, name='conv_out')(x)


class AutoencoderKL(nn.Module):
    """Images to a smaller grid of Gaussian latents and back.

    Rombach et al., 2022 (https://arxiv.org/abs/2112.10752), section 3.1 and Appendix G. The fields are those of the
    published configurations (`AutoencoderKL` of diffusers) and so are the parameter names. `encode` and `decode` work
    in the latents' own scale: whoever trains or samples in the latent space applies z = (sample - shift_factor)
    scaling_factor (or latents_mean and latents_std) and its inverse. Large images: see `gen_jax.models.tiling`.

    Attributes:
        in_channels: of the image.
        out_channels: of the reconstruction.
        down_block_types: one of `DOWN_ENCODER_BLOCKS` per resolution, the highest first.
        up_block_types: one of `UP_DECODER_BLOCKS` per resolution, the lowest first.
        block_out_channels: channels per resolution, the highest first; n of them make the factor f = 2^(n - 1).
        layers_per_block: residual blocks per encoder block; a decoder block has one more.
        act_fn: see `gen_jax.nn.activations`.
        latent_channels: channels of a latent.
        norm_num_groups: divides every number of channels.
        sample_size: the side that the weights were trained at, and of the tiles of a large image; any size divisible
            by f works.
        scaling_factor: about 1 / the latents' standard deviation.
        shift_factor: subtracted before scaling; None is 0.
        latents_mean: per channel, for the pipelines that scale so; None else.
        latents_std: per channel.
        force_upcast: whether the published weights overflow in float16, so that pipelines compute in float32.
        use_quant_conv: whether a 1x1 convolution follows the encoder.
        use_post_quant_conv: whether a 1x1 convolution precedes the decoder.
        mid_block_add_attention: whether the mid blocks have one.
        dropout: rate in the residual blocks, with train=True and the rng 'dropout'.
        dtype: compute dtype; parameters, norms, softmax and the outputs are float32.
        attention_implementation: see `gen_jax.nn.attention.dot_product_attention`.
        remat: what the backward pass recomputes of every block, see `gen_jax.nn.remat`; '' is nothing.

    Raises:
        ValueError: (on construction) lists of different lengths, unknown names, groups that do not divide the channels.

    Example:
        >>> vae = autoencoder_kl_tiny()
        >>> image = jnp.zeros((2, 16, 8, 3))
        >>> variables = vae.init(jax.random.key(0), image)
        >>> mean, log_var = vae.apply(variables, image, method='encode')
        >>> mean.shape, vae.apply(variables, mean, method='decode').shape
        ((2, 8, 4, 4), (2, 16, 8, 3))
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ('DownEncoderBlock2D',)
    up_block_types: tuple[str, ...] = ('UpDecoderBlock2D',)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    act_fn: str = 'silu'
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int = 32
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    dropout: float = 0.0
    dtype: jnp.dtype | None = None
    attention_implementation: str | None = None
    remat: str = ''

    def __post_init__(self):
        check_config(self)
        super().__post_init__()

    @property
    def downsampling_factor(self) -> int:
        """f: pixels per latent along a side."""
        return 2 ** (len(self.block_out_channels) - 1)

    def setup(self):
        common = dict(
            block_out_channels=tuple(self.block_out_channels),
            layers_per_block=self.layers_per_block,
            mid_block_add_attention=self.mid_block_add_attention,
            resnet=dict(num_groups=self.norm_num_groups, epsilon=EPSILON, act_fn=self.act_fn, dropout=self.dropout,
                        dtype=self.dtype),
            attn=dict(norm_num_groups=self.norm_num_groups, epsilon=EPSILON, dtype=self.dtype,
                      implementation=self.attention_implementation),
            remat=self.remat,
        )
        self.encoder = Encoder(2 * self.latent_channels, tuple(self.down_block_types), **common)
        self.decoder = Decoder(self.out_channels, tuple(self.up_block_types), **common)
        if self.use_quant_conv:
            self.quant_conv = nn.Conv(2 * self.latent_channels, (1, 1), kernel_init=conv_init, dtype=self.dtype)
        if self.use_post_quant_conv:
            self.post_quant_conv = nn.Conv(self.latent_channels, (1, 1), kernel_init=conv_init, dtype=self.dtype)

    def moments(self, image: Array, train: bool = False) -> Array:
        """Mean and log variance side by side, the latter not yet clipped: what tiles are blended as.

        Args:
            image: [B, H, W, in_channels] in [-1, 1].
            train: whether to drop out, with the rng 'dropout'.

        Returns:
            float32 [B, H / f, W / f, 2 latent_channels].

        Raises:
            ValueError: a side not divisible by f; wrong rank or channels.
        """
        check_image(self, image)
        y = self.encoder(image.astype(self.dtype or jnp.float32), not train)
        return (self.quant_conv(y) if self.use_quant_conv else y).astype(jnp.float32)

    def encode(self, image: Array, train: bool = False) -> tuple[Array, Array]:
        """The posterior's mean and log variance, float32 [B, H / f, W / f, latent_channels] each; see `moments`.

        The log variance is clipped to [-30, 20], as the published code does.
        """
        return split_moments(self.moments(image, train))

    def decode(self, z: Array, train: bool = False) -> Array:
        """Latent [B, h, w, latent_channels] -> float32 image [B, f h, f w, out_channels], about in [-1, 1].

        Raises:
            ValueError: wrong rank or channels.
        """
        if z.ndim != 4 or z.shape[-1] != self.latent_channels:
            raise ValueError(f'the latent is {z.shape}; this autoencoder decodes [B, h, w, {self.latent_channels}] '
                             '(latent_channels, last)')
        z = z.astype(self.dtype or jnp.float32)
        z = self.post_quant_conv(z) if self.use_post_quant_conv else z
        return self.decoder(z, not train).astype(jnp.float32)

    def __call__(self, image: Array, train: bool = False) -> Array:
        """The reconstruction from the posterior mean; touches every parameter, so `init` makes them all."""
        return self.decode(self.encode(image, train)[0], train)


def split_moments(moments: Array) -> tuple[Array, Array]:
    """[..., 2 C] -> mean and log variance [..., C], the latter clipped to [-30, 20]."""
    mean, log_var = jnp.split(moments, 2, -1)
    return mean, jnp.clip(log_var, -30.0, 20.0)


def check_config(vae: AutoencoderKL) -> None:
    """Raises ValueError for settings of an AutoencoderKL that contradict each other."""
    lengths = {k: len(getattr(vae, k)) for k in ('block_out_channels', 'down_block_types', 'up_block_types')}
    if len(set(lengths.values())) > 1 or not vae.block_out_channels:
        listed = ', '.join(f'{k} has {n}' for k, n in lengths.items())
        raise ValueError(f'{listed}; give each one entry per resolution')
    choices = {'down_block_types': DOWN_ENCODER_BLOCKS, 'up_block_types': UP_DECODER_BLOCKS}
    for field, kinds in choices.items():
        for name in getattr(vae, field):
            if name not in kinds:
                raise ValueError(f'unknown {name!r} in {field}; choose from {", ".join(kinds)}')
    if vae.attention_implementation not in IMPLEMENTATIONS:
        raise ValueError(f'unknown attention_implementation {vae.attention_implementation!r}; choose from '
                         f'{", ".join(map(str, IMPLEMENTATIONS))}')
    activation(vae.act_fn)
    check_remat(vae.remat)
    common, groups = math.gcd(*vae.block_out_channels), vae.norm_num_groups
    if groups < 1 or common % groups:
        raise ValueError(
            f'norm_num_groups={groups} does not divide every number of channels in block_out_channels='
            f'{tuple(vae.block_out_channels)}; choose one of '
            f'{", ".join(str(d) for d in range(1, common + 1) if common % d == 0)}'
        )


def check_image(vae: AutoencoderKL, image: Array) -> None:
    """Raises ValueError for images that an AutoencoderKL cannot encode."""
    if image.ndim != 4 or image.shape[-1] != vae.in_channels:
        raise ValueError(f'the image is {image.shape}; this autoencoder takes [B, H, W, {vae.in_channels}] '
                         '(in_channels, last)')
    factor = vae.downsampling_factor
    for side, name in zip(image.shape[1:3], ('height', 'width'), strict=True):
        if side % factor or not side:
            below, above = side // factor * factor, -(-max(side, 1) // factor) * factor
            nearest = f'{below} or {above}' if below else f'{above}'
            raise ValueError(f'image {name} {side} is not divisible by the autoencoder\'s factor {factor}; the nearest '
                             f'valid size is {nearest}: resize, crop or pad the image')


def autoencoder(widths: tuple[int, ...], **kwargs) -> AutoencoderKL:
    """An AutoencoderKL of plain blocks; kwargs override any field."""
    plain = dict(
        down_block_types=('DownEncoderBlock2D',) * len(widths),
        up_block_types=('UpDecoderBlock2D',) * len(widths),
        block_out_channels=widths,
        layers_per_block=2,
    )
    return AutoencoderKL(**{**plain, **kwargs})


def sd_vae(**kwargs) -> AutoencoderKL:
    """Stable Diffusion 1.x and 2.x: f8, 4 channels, 83,653,863 parameters."""
    return autoencoder((128, 256, 512, 512), **{'sample_size': 512, **kwargs})


def sdxl_vae(**kwargs) -> AutoencoderKL:
    """Stable Diffusion XL: the same network, trained anew; its published weights overflow in float16."""
    return sd_vae(**{'sample_size': 1024, 'scaling_factor': 0.13025, **kwargs})


def sd_x4_upscaler_vae(**kwargs) -> AutoencoderKL:
    """Of Stable Diffusion's 4x upscaler: f4, 4 channels, 55,325,927 parameters."""
    return autoencoder((128, 256, 512), **{'sample_size': 256, 'scaling_factor': 0.08333, **kwargs})


def ldm_kl_f4(**kwargs) -> AutoencoderKL:
    """kl-f4 of latent diffusion: 3 channels, 55,312,063 parameters; one scale per trained model, hence 1 here."""
    return autoencoder((128, 256, 512), **{'latent_channels': 3, 'sample_size': 256, 'scaling_factor': 1.0, **kwargs})


def ldm_kl_f8(**kwargs) -> AutoencoderKL:
    """kl-f8 of latent diffusion, 83,653,863 parameters: Stable Diffusion's started from it."""
    return sd_vae(**{'sample_size': 256, 'scaling_factor': 1.0, **kwargs})


def autoencoder_kl_shapes(**kwargs) -> AutoencoderKL:
    """f4 for 32x32 scenes, 8x8x4 latents; about a million parameters, for CPUs."""
    small = dict(layers_per_block=1, norm_num_groups=8, sample_size=32, scaling_factor=1.0)
    return autoencoder((32, 64, 64), **{**small, **kwargs})


def autoencoder_kl_tiny(**kwargs) -> AutoencoderKL:
    """f2 with a few thousand parameters, for tests."""
    return autoencoder((4, 8), **{'layers_per_block': 1, 'norm_num_groups': 2, 'sample_size': 8, **kwargs})
