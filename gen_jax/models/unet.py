"""The DDPM UNet and its class-conditional variants, under the published checkpoint names."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.models.unet_blocks import (
    DOWN_BLOCKS,
    UP_BLOCKS,
    DownBlock,
    MidBlock,
    UpBlock,
    embed_classes,
    run_blocks,
)
from gen_jax.models.unet_checks import check_choices, check_image, check_labels, check_resolutions, check_sides
from gen_jax.nn.attention import IMPLEMENTATIONS
from gen_jax.nn.embeddings import GaussianFourierProjection, TimestepEmbedding, timestep_embedding
from gen_jax.nn.norms import GroupNorm
from gen_jax.nn.resampling import conv_init
from gen_jax.types import Array

__all__ = ['UNet2D', 'ddpm_celebahq_256', 'ddpm_cifar10', 'unet_digits', 'unet_tiny']


class UNet2D(nn.Module):
    """A UNet over images [B, H, W, C] that is told a time and, if asked for, a class.

    Ho et al., 2020 (https://arxiv.org/abs/2006.11239), Appendix B. The fields are those of the published
    configurations (`UNet2DModel` of diffusers) and so are the parameter names: '.'.join(path) is the checkpoint's key
    up to kernel, scale and embedding being called weight. Output projections start at zero, as in the paper's code.
    Classifier-free guidance needs nothing here: the null class is one more label, num_class_embeds - 1 by custom.

    Attributes:
        sample_size: the side that the weights were trained at; any size divisible by `downsampling_factor` works.
        in_channels: C of the input.
        out_channels: C of the output.
        center_input_sample: maps an input in [0, 1] to [-1, 1] first.
        time_embedding_type: 'positional' (t of the order 0..1000), 'fourier' (t > 0 is a noise level; the output is
            divided by it, as score networks are) or 'learned' (integer t below num_train_timesteps).
        time_embedding_dim: width of the embedding; None is 4 block_out_channels[0].
        freq_shift: see `timestep_embedding`.
        flip_sin_to_cos: see `timestep_embedding`.
        down_block_types: one of `DOWN_BLOCKS` per resolution, the highest first.
        mid_block_type: 'UNetMidBlock2D' or None.
        up_block_types: one of `UP_BLOCKS` per resolution, the lowest first.
        block_out_channels: channels per resolution, the highest first.
        layers_per_block: residual blocks per down block; an up block has one more.
        mid_block_scale_factor: divides the outputs in the mid block.
        downsample_padding: 1, or 0 for the asymmetric padding of the first DDPM weights.
        downsample_type: 'conv' or 'resnet', for the kinds that leave it open (AttnDownBlock2D).
        upsample_type: the same for AttnUpBlock2D.
        dropout: rate in the residual blocks; needs the rng 'dropout' unless deterministic.
        act_fn: see `gen_jax.nn.activations`.
        attention_head_dim: channels of a head; None is one head.
        norm_num_groups: divides every number of channels.
        attn_norm_num_groups: of the mid block's attention; None is norm_num_groups, or no norm under 'scale_shift'.
        norm_eps: added to every variance.
        resnet_time_scale_shift: 'default' or 'scale_shift', see `ResnetBlock2D`.
        add_attention: whether the mid block has one.
        class_embed_type: None (a table, if num_class_embeds is given), 'timestep' (a number [B], embedded as t is) or
            'identity' (a vector [B, time_embedding_dim]).
        num_class_embeds: rows of the table of classes, the null class included.
        num_train_timesteps: rows of the table of 'learned' times.
        dtype: compute dtype; parameters, norms, softmax and the output are float32.
        attention_implementation: see `gen_jax.nn.attention.dot_product_attention`.
        remat: what the backward pass recomputes of every block, see `gen_jax.nn.remat`; '' is nothing.

    Raises:
        ValueError: (on construction) lists of different lengths, unknown names, groups that do not divide the channels.

    Example:
        >>> unet = unet_tiny()
        >>> x, t, label = jnp.zeros((2, 8, 8, 1)), jnp.array([0., 999.]), jnp.array([3, 10])
        >>> variables = unet.init(jax.random.key(0), x, t, label)
        >>> unet.apply(variables, x, t, label).shape
        (2, 8, 8, 1)
    """

    sample_size: int | None = None
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    time_embedding_type: Literal['positional', 'fourier', 'learned'] = 'positional'
    time_embedding_dim: int | None = None
    freq_shift: float = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = ('DownBlock2D', 'AttnDownBlock2D', 'AttnDownBlock2D', 'AttnDownBlock2D')
    mid_block_type: str | None = 'UNetMidBlock2D'
    up_block_types: tuple[str, ...] = ('AttnUpBlock2D', 'AttnUpBlock2D', 'AttnUpBlock2D', 'UpBlock2D')
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    mid_block_scale_factor: float = 1.0
    downsample_padding: int = 1
    downsample_type: Literal['conv', 'resnet'] = 'conv'
    upsample_type: Literal['conv', 'resnet'] = 'conv'
    dropout: float = 0.0
    act_fn: str = 'silu'
    attention_head_dim: int | None = 8
    norm_num_groups: int = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: Literal['default', 'scale_shift'] = 'default'
    add_attention: bool = True
    class_embed_type: Literal['timestep', 'identity'] | None = None
    num_class_embeds: int | None = None
    num_train_timesteps: int | None = None
    dtype: jnp.dtype | None = None
    attention_implementation: str | None = None
    remat: str = ''

    def __post_init__(self):
        check_config(self)
        super().__post_init__()

    @property
    def downsampling_factor(self) -> int:
        """The sides of the image must be multiples of this."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def embed_dim(self) -> int:
        """Width of the embeddings of time and class."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]

    @property
    def class_conditional(self) -> bool:
        """Whether class_labels must be given."""
        return self.class_embed_type is not None or self.num_class_embeds is not None

    @nn.compact
    def __call__(self, x: Array, t: Array, class_labels: Array | None = None, *, deterministic: bool = True) -> Array:
        """The network's raw output; what it means is the business of a `Parameterisation`.

        Args:
            x: [B, H, W, in_channels].
            t: [B] or (), float or int, in the units of time_embedding_type.
            class_labels: int [B] in 0..num_class_embeds-1 (an index outside gives NaN), or what class_embed_type
                says; None if and only if the network has no classes.
            deterministic: False drops out, with the rng 'dropout'.

        Returns:
            float32 [B, H, W, out_channels].

        Raises:
            ValueError: H or W not divisible by the down-sampling factor; wrong channels or rank; class_labels missing
                or not expected.
        """
        check_image(self, x, t)
        check_sides(self, x)
        check_labels(self, x.shape[0], class_labels)
        t = jnp.broadcast_to(jnp.asarray(t), x.shape[:1])
        x = x.astype(self.dtype or jnp.float32)
        if self.center_input_sample:
            x = 2 * x - 1

        time_proj = self._time_proj()
        temb = TimestepEmbedding(self.embed_dim, dtype=self.dtype, name='time_embedding')(time_proj(t))
        if class_labels is not None:
            temb = temb + embed_classes(self, class_labels, time_proj)

        resnet = dict(
            num_groups=self.norm_num_groups,
            epsilon=self.norm_eps,
            time_embedding_norm=self.resnet_time_scale_shift,
            act_fn=self.act_fn,
            dropout=self.dropout,
            dtype=self.dtype,
        )

        def attn(channels: int, groups: int | None) -> dict:
            return dict(
                head_dim=self.attention_head_dim or channels,
                norm_num_groups=groups,
                epsilon=self.norm_eps,
                dtype=self.dtype,
                implementation=self.attention_implementation,
            )

        widths, last = self.block_out_channels, len(self.block_out_channels) - 1
        x = nn.Conv(widths[0], (3, 3), padding=1, kernel_init=conv_init, dtype=self.dtype, name='conv_in')(x)
        down, mid, up = [], None, []
        for i, width in enumerate(widths):
            kind = DOWN_BLOCKS[self.down_block_types[i]]
            down.append(DownBlock(
                width,
                self.layers_per_block,
                kind.attention,
                None if i == last else kind.resample or self.downsample_type,
                self.downsample_padding,
                resnet,
                attn(width, self.norm_num_groups),
                self.remat,
                name=f'down_blocks.{i}',
            ))
        if self.mid_block_type is not None:
            groups = self.norm_num_groups if self.resnet_time_scale_shift == 'default' else None
            mid_attn = attn(widths[-1], self.attn_norm_num_groups or groups)
            scale = self.mid_block_scale_factor
            mid = MidBlock(self.add_attention, scale, resnet, mid_attn, self.remat, name='mid_block')
        for i, width in enumerate(reversed(widths)):
            kind = UP_BLOCKS[self.up_block_types[i]]
            up.append(UpBlock(
                width,
                self.layers_per_block + 1,
                kind.attention,
                None if i == last else kind.resample or self.upsample_type,
                resnet,
                attn(width, self.norm_num_groups),
                self.remat,
                name=f'up_blocks.{i}',
            ))
        x = run_blocks(x, temb, down, mid, up, deterministic=deterministic)

        x = jax.nn.silu(GroupNorm(self.norm_num_groups, self.norm_eps, self.dtype, name='conv_norm_out')(x))
        zeros = nn.initializers.zeros
        x = nn.Conv(self.out_channels, (3, 3), padding=1, kernel_init=zeros, dtype=self.dtype, name='conv_out')(x)
        x = x.astype(jnp.float32)
        return x / t[:, None, None, None] if self.time_embedding_type == 'fourier' else x

    def _time_proj(self):
        """A function from numbers [B] to features [B, any]."""
        width = self.block_out_channels[0]
        if self.time_embedding_type == 'fourier':
            return GaussianFourierProjection(width, name='time_proj')
        if self.time_embedding_type == 'learned':
            normal = nn.initializers.normal(1.0)
            return nn.Embed(self.num_train_timesteps, width, self.dtype, embedding_init=normal, name='time_proj')
        return lambda t: timestep_embedding(
            t, width, flip_sin_to_cos=self.flip_sin_to_cos, freq_shift=self.freq_shift
        ).astype(self.dtype or jnp.float32)


def check_config(unet: UNet2D) -> None:
    """Raises ValueError for settings of a UNet2D that contradict each other."""
    check_choices(unet, {
        'down_block_types': DOWN_BLOCKS,
        'up_block_types': UP_BLOCKS,
        'mid_block_type': ('UNetMidBlock2D', None),
        'time_embedding_type': ('positional', 'fourier', 'learned'),
        'downsample_type': ('conv', 'resnet'),
        'upsample_type': ('conv', 'resnet'),
        'resnet_time_scale_shift': ('default', 'scale_shift'),
        'class_embed_type': (None, 'timestep', 'identity'),
        'attention_implementation': IMPLEMENTATIONS,
    })
    check_resolutions(unet)
    if unet.time_embedding_type == 'learned' and unet.num_train_timesteps is None:
        raise ValueError("time_embedding_type='learned' needs num_train_timesteps, the number of rows of its table")


def ddpm_cifar10(**overrides) -> UNet2D:
    """CIFAR-10 at 32x32: 35,746,307 parameters; Ho et al., 2020, Appendix B ('35.7 million')."""
    return UNet2D(**{
        **dict(
            sample_size=32,
            down_block_types=('DownBlock2D', 'AttnDownBlock2D', 'DownBlock2D', 'DownBlock2D'),
            up_block_types=('UpBlock2D', 'UpBlock2D', 'AttnUpBlock2D', 'UpBlock2D'),
            block_out_channels=(128, 256, 256, 256),
        ),
        **DDPM,
        **overrides,
    })


def ddpm_celebahq_256(**overrides) -> UNet2D:
    """CelebA-HQ at 256x256: 113,673,219 parameters; Ho et al., 2020, Appendix B ('114 million')."""
    return UNet2D(**{
        **dict(
            sample_size=256,
            down_block_types=('DownBlock2D',) * 4 + ('AttnDownBlock2D', 'DownBlock2D'),
            up_block_types=('UpBlock2D', 'AttnUpBlock2D') + ('UpBlock2D',) * 4,
            block_out_channels=(128, 128, 256, 256, 512, 512),
        ),
        **DDPM,
        **overrides,
    })


DDPM = dict(attention_head_dim=None, norm_eps=1e-6, flip_sin_to_cos=False, freq_shift=1, downsample_padding=0)
"""What the first DDPM weights have in common."""


def unet_digits(**overrides) -> UNet2D:
    """8x8 grey digits with 10 classes and a null class (label 10): about 1.0 M parameters, for CPUs."""
    return UNet2D(**{
        **dict(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            down_block_types=('DownBlock2D', 'AttnDownBlock2D'),
            up_block_types=('AttnUpBlock2D', 'UpBlock2D'),
            block_out_channels=(64, 64),
            layers_per_block=1,
            time_embedding_dim=128,
            attention_head_dim=None,
            norm_num_groups=8,
            num_class_embeds=11,
        ),
        **overrides,
    })


def unet_tiny(**overrides) -> UNet2D:
    """8x8 grey images with 11 classes, a few thousand parameters: for tests."""
    return unet_digits(**{**dict(block_out_channels=(8, 8), time_embedding_dim=16, norm_num_groups=4), **overrides})
