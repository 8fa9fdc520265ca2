"""The UNet of latent diffusion: told a time and a text, by cross-attention, under the published checkpoint names."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from gen_jax.models.unet_blocks import DownBlock, MidBlock, UpBlock, embed_classes, run_blocks
from gen_jax.models.unet_checks import check_batch, check_choices, check_image, check_labels, check_resolutions
from gen_jax.nn.activations import activation
from gen_jax.nn.attention import IMPLEMENTATIONS
from gen_jax.nn.embeddings import TimestepEmbedding, timestep_embedding
from gen_jax.nn.norms import GroupNorm
from gen_jax.nn.resampling import conv_init
from gen_jax.types import Array

__all__ = ['FIXED', 'UNet2DCondition']

DOWN_BLOCKS = ('DownBlock2D', 'CrossAttnDownBlock2D')
UP_BLOCKS = ('UpBlock2D', 'CrossAttnUpBlock2D')

FIXED = {
    'attention_type': 'default',
    'class_embeddings_concat': False,
    'conv_in_kernel': 3,
    'conv_out_kernel': 3,
    'cross_attention_norm': None,
    'dual_cross_attention': False,
    'encoder_hid_dim': None,
    'encoder_hid_dim_type': None,
    'num_attention_heads': None,
    'resnet_out_scale_factor': 1.0,
    'resnet_skip_time_act': False,
    'reverse_transformer_layers_per_block': None,
    'time_embedding_act_fn': None,
    'time_embedding_type': 'positional',
    'timestep_post_act': None,
}
"""Fields of published configurations that are no fields here, with the one value that `UNet2DCondition` computes.
(`addition_embed_type_num_heads` and `mid_block_only_cross_attention` say nothing about the blocks that it has.)"""


class UNet2DCondition(nn.Module):
    """A UNet over latents [B, H, W, C] whose transformers look at a sequence of vectors, such as an encoded text.

    Rombach et al., 2022 (https://arxiv.org/abs/2112.10752), section 3.3 and Appendix E.2.1; SDXL: Podell et al., 2023
    (https://arxiv.org/abs/2307.01952), section 2. The fields are those of the published configurations
    (`UNet2DConditionModel` of diffusers) and so are the parameter names: '.'.join(path) is the checkpoint's key up to
    kernel, scale and embedding being called weight. Where a field may be a tuple, it has one entry per resolution, the
    highest first. Output projections start at zero, as in the papers' code.

    Attributes:
        sample_size: the side that the weights were trained at; any size works.
        in_channels: C of the input: 4 of the latents; 8, 9 or 5 with a picture, a masked picture and its mask, or a
            depth map behind them.
        out_channels: C of the output.
        center_input_sample: maps an input in [0, 1] to [-1, 1] first.
        flip_sin_to_cos: see `timestep_embedding`.
        freq_shift: see `timestep_embedding`.
        down_block_types: 'DownBlock2D' or 'CrossAttnDownBlock2D' per resolution, the highest first.
        mid_block_type: 'UNetMidBlock2DCrossAttn' or None.
        up_block_types: 'UpBlock2D' or 'CrossAttnUpBlock2D' per resolution, the lowest first.
        only_cross_attention: the first attention of each transformer block looks at the text, too. Or a tuple; the
            middle never does.
        block_out_channels: channels per resolution, the highest first.
        layers_per_block: residual blocks per down block; an up block has one more. Or a tuple.
        downsample_padding: 1, or 0 for an asymmetric padding (sides are at least `downsampling_factor` then).
        mid_block_scale_factor: divides the outputs of the residual blocks in the middle.
        dropout: rate in the residual blocks; needs the rng 'dropout' unless deterministic.
        act_fn: see `gen_jax.nn.activations`.
        norm_num_groups: divides every number of channels.
        norm_eps: added to every variance, but in transformers (1e-6 in front, 1e-5 within).
        cross_attention_dim: length of the text's vectors. Or a tuple, of equal numbers.
        transformer_layers_per_block: transformer blocks behind each residual block. Or a tuple.
        attention_head_dim: the NUMBER of heads, whatever its name says: so the published files use it. Or a tuple.
        use_linear_projection: see `Transformer2D`.
        class_embed_type: None (a table, if num_class_embeds is given), 'timestep' (a number [B], embedded as t is),
            'projection' (a vector [B, projection_class_embeddings_input_dim]) or 'identity' ([B, embed_dim]).
        num_class_embeds: rows of the table of classes.
        addition_embed_type: 'text_time': added_cond, a pooled text and six numbers, is embedded and added to the time
            (SDXL, section 2.2 and 2.3); or None.
        addition_time_embed_dim: width of each of these numbers' embedding.
        projection_class_embeddings_input_dim: length of what is projected: a class vector, or the pooled text and the
            embedded numbers.
        upcast_attention: q, k and v are made float32; see `CrossAttention`.
        resnet_time_scale_shift: 'default' or 'scale_shift', see `ResnetBlock2D`.
        time_embedding_dim: width of the embedding; None is 4 block_out_channels[0].
        time_cond_proj_dim: length of timestep_cond, an embedded guidance scale (Meng et al., 2023,
            https://arxiv.org/abs/2210.03142, section 3.1; latent consistency models); None: there is none.
        dtype: compute dtype; parameters, norms, softmax and the output are float32.
        attention_implementation: see `gen_jax.nn.attention.dot_product_attention`.
        remat: what the backward pass recomputes of every block, see `gen_jax.nn.remat`; '' is nothing.

    Raises:
        ValueError: (on construction) tuples of different lengths, unknown names, groups or heads that do not divide
            the channels, fields that need each other.

    Example:
        >>> import jax
        >>> from gen_jax.models import unet_condition_tiny
        >>> unet, x, t = unet_condition_tiny(), jnp.zeros((2, 8, 8, 4)), jnp.array([0, 999])
        >>> text = jnp.zeros((2, 5, 16))
        >>> variables = unet.init(jax.random.key(0), x, t, text)
        >>> unet.apply(variables, x, t, text).shape
        (2, 8, 8, 4)
    """

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 4
    out_channels: int = 4
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: float = 0
    down_block_types: tuple[str, ...] = ('CrossAttnDownBlock2D',) * 3 + ('DownBlock2D',)
    mid_block_type: str | None = 'UNetMidBlock2DCrossAttn'
    up_block_types: tuple[str, ...] = ('UpBlock2D',) + ('CrossAttnUpBlock2D',) * 3
    only_cross_attention: bool | tuple[bool, ...] = False
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    downsample_padding: int = 1
    mid_block_scale_factor: float = 1.0
    dropout: float = 0.0
    act_fn: str = 'silu'
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int | tuple[int, ...] = 1280
    transformer_layers_per_block: int | tuple[int, ...] = 1
    attention_head_dim: int | tuple[int, ...] = 8
    use_linear_projection: bool = False
    class_embed_type: Literal['timestep', 'projection', 'identity'] | None = None
    num_class_embeds: int | None = None
    addition_embed_type: Literal['text_time'] | None = None
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None
    upcast_attention: bool | None = False
    resnet_time_scale_shift: Literal['default', 'scale_shift'] = 'default'
    time_embedding_dim: int | None = None
    time_cond_proj_dim: int | None = None
    dtype: jnp.dtype | None = None
    attention_implementation: str | None = None
    remat: str = ''

    def __post_init__(self):
        check_config(self)
        super().__post_init__()

    @property
    def downsampling_factor(self) -> int:
        """Latents per latent of the lowest resolution along a side; sides need not be multiples of it."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def embed_dim(self) -> int:
        """Width of the embeddings of time, class and added conditions."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]

    @property
    def class_conditional(self) -> bool:
        """Whether class_labels must be given."""
        return self.class_embed_type is not None or self.num_class_embeds is not None

    @nn.compact
    def __call__(
        self,
        x: Array,
        t: Array,
        encoder_hidden_states: Array,
        added_cond: Mapping[str, Array] | None = None,
        class_labels: Array | None = None,
        encoder_attention_mask: Array | None = None,
        timestep_cond: Array | None = None,
        *,
        deterministic: bool = True,
    ) -> Array:
        """The network's raw output; what it means is the business of a `Parameterisation`.

        Every image of the batch is computed by itself: guidance may interleave conditions along the batch axis.
        Where a side is odd, halving it rounds up (down with downsample_padding=0) and doubling it returns to it, as
        in the published code: Stable Diffusion draws every picture whose sides are multiples of 8.

        Args:
            x: [B, H, W, in_channels], any H and W.
            t: [B] or (), 0 to 1000, possibly fractional.
            encoder_hidden_states: [B, M, cross_attention_dim], any M.
            added_cond: with addition_embed_type 'text_time': 'text_embeds' [B, P], the pooled text, and 'time_ids'
                [B, K]: SDXL's are original height and width, crop top and left, target height and width; its
                refiner's end in an aesthetic score instead of the target. P + K addition_time_embed_dim is
                projection_class_embeddings_input_dim.
            class_labels: int [B] in 0..num_class_embeds-1 (an index outside gives NaN), or what class_embed_type
                says; None if and only if the network has no classes.
            encoder_attention_mask: bool [B, M], True where the text may be looked at; None: everywhere.
            timestep_cond: [B, time_cond_proj_dim], if there is that.
            deterministic: False drops out, with the rng 'dropout'.

        Returns:
            float32 [B, H, W, out_channels].

        Raises:
            ValueError: H or W below 1 (below the down-sampling factor with downsample_padding=0, where nothing would be
                left); conditions missing, not expected, or of another shape.
        """
        conditions = dict(added_cond=added_cond, class_labels=class_labels, timestep_cond=timestep_cond,
                          encoder_attention_mask=encoder_attention_mask)
        check_inputs(self, x, t, encoder_hidden_states, **conditions)
        compute = self.dtype or jnp.float32
        t = jnp.broadcast_to(jnp.asarray(t), x.shape[:1])
        x, text = x.astype(compute), encoder_hidden_states.astype(compute)
        if self.center_input_sample:
            x = 2 * x - 1
        temb = self._embed(t, class_labels, added_cond, timestep_cond)

        resnet = dict(
            num_groups=self.norm_num_groups,
            epsilon=self.norm_eps,
            time_embedding_norm=self.resnet_time_scale_shift,
            act_fn=self.act_fn,
            dropout=self.dropout,
            dtype=self.dtype,
        )
        widths, last = self.block_out_channels, len(self.block_out_channels) - 1
        layers = per_resolution(self, 'layers_per_block')

        def transformer(level: int, middle: bool = False) -> dict:
            return dict(
                num_heads=per_resolution(self, 'attention_head_dim')[level],
                num_layers=per_resolution(self, 'transformer_layers_per_block')[level],
                only_cross_attention=not middle and per_resolution(self, 'only_cross_attention')[level],
                use_linear_projection=self.use_linear_projection,
                norm_num_groups=self.norm_num_groups,
                upcast=bool(self.upcast_attention),
                dtype=self.dtype,
                implementation=self.attention_implementation,
            )

        down = [DownBlock(
            widths[level], layers[level], kind == 'CrossAttnDownBlock2D', None if level == last else 'conv',
            self.downsample_padding, resnet, None, self.remat, transformer(level), name=f'down_blocks.{level}',
        ) for level, kind in enumerate(self.down_block_types)]
        mid = None
        if self.mid_block_type is not None:
            mid = MidBlock(True, self.mid_block_scale_factor, resnet, None, self.remat, transformer(last, True),
                           name='mid_block')
        up = [UpBlock(
            widths[last - i], layers[last - i] + 1, kind == 'CrossAttnUpBlock2D', None if i == last else 'conv',
            resnet, None, self.remat, transformer(last - i), name=f'up_blocks.{i}',
        ) for i, kind in enumerate(self.up_block_types)]

        x = nn.Conv(widths[0], (3, 3), padding=1, kernel_init=conv_init, dtype=self.dtype, name='conv_in')(x)
        x = run_blocks(x, temb, down, mid, up, text, encoder_attention_mask, deterministic=deterministic)
        x = GroupNorm(self.norm_num_groups, self.norm_eps, self.dtype, name='conv_norm_out')(x)
        x, zeros = activation(self.act_fn)(x), nn.initializers.zeros
        x = nn.Conv(self.out_channels, (3, 3), padding=1, kernel_init=zeros, dtype=self.dtype, name='conv_out')(x)
        return x.astype(jnp.float32)

    def _embed(self, t: Array, class_labels, added_cond, timestep_cond) -> Array:
        """The sum of the embeddings of everything that is no sequence: [B, embed_dim]."""
        compute = self.dtype or jnp.float32
        waves = partial(timestep_embedding, flip_sin_to_cos=self.flip_sin_to_cos, freq_shift=self.freq_shift)

        def time_proj(t):
            return waves(t, self.block_out_channels[0]).astype(compute)

        guidance = None if timestep_cond is None else timestep_cond.astype(compute)
        embed_time = TimestepEmbedding(self.embed_dim, self.act_fn, self.dtype, name='time_embedding')
        temb = embed_time(time_proj(t), guidance)
        if class_labels is not None:
            temb = temb + embed_classes(self, class_labels, time_proj, self.act_fn)
        if added_cond is not None:
            numbers = added_cond['time_ids']
            embedded = waves(numbers.reshape(-1), self.addition_time_embed_dim).reshape(numbers.shape[0], -1)
            both = jnp.concatenate([added_cond['text_embeds'].astype(compute), embedded.astype(compute)], -1)
            temb = temb + TimestepEmbedding(self.embed_dim, dtype=self.dtype, name='add_embedding')(both)
        return temb


def per_resolution(unet: UNet2DCondition, field: str) -> tuple:
    """The field's entry for each resolution, the highest first."""
    value = getattr(unet, field)
    return tuple(value) if isinstance(value, Sequence) else (value,) * len(unet.block_out_channels)


PER_RESOLUTION = ('layers_per_block', 'cross_attention_dim', 'transformer_layers_per_block', 'attention_head_dim',
                  'only_cross_attention')


def check_config(unet: UNet2DCondition) -> None:
    """Raises ValueError for settings of a UNet2DCondition that contradict each other."""
    check_choices(unet, {
        'down_block_types': DOWN_BLOCKS,
        'up_block_types': UP_BLOCKS,
        'mid_block_type': ('UNetMidBlock2DCrossAttn', None),
        'resnet_time_scale_shift': ('default', 'scale_shift'),
        'class_embed_type': (None, 'timestep', 'projection', 'identity'),
        'addition_embed_type': (None, 'text_time'),
        'attention_implementation': IMPLEMENTATIONS,
    })
    check_resolutions(unet, *(k for k in PER_RESOLUTION if isinstance(getattr(unet, k), Sequence)))
    widths, last = unet.block_out_channels, len(unet.block_out_channels) - 1
    looking = {i for i, kind in enumerate(unet.down_block_types) if kind == 'CrossAttnDownBlock2D'}
    looking |= {last - i for i, kind in enumerate(unet.up_block_types) if kind == 'CrossAttnUpBlock2D'}
    looking |= set() if unet.mid_block_type is None else {last}
    for i in sorted(looking):
        heads = per_resolution(unet, 'attention_head_dim')[i]
        if not isinstance(heads, int) or heads < 1 or widths[i] % heads:
            raise ValueError(
                f'attention_head_dim={unet.attention_head_dim} (the number of heads, as published configurations use '
                f'the name): {heads} does not divide the {widths[i]} channels of resolution {i}; choose a divisor'
            )
    text = set(per_resolution(unet, 'cross_attention_dim'))
    if len(text) > 1:
        raise ValueError(f'cross_attention_dim={unet.cross_attention_dim}: all resolutions look at the same vectors; '
                         'give one number')
    needs = {"class_embed_type='projection'": ['projection_class_embeddings_input_dim'],
             "addition_embed_type='text_time'": ['projection_class_embeddings_input_dim', 'addition_time_embed_dim']}
    for setting, fields in needs.items():
        field, _, value = setting.partition('=')
        missing = [k for k in fields if getattr(unet, k) is None]
        if repr(getattr(unet, field)) == value and missing:
            raise ValueError(f'{setting} needs {" and ".join(missing)}')


def check_inputs(unet: UNet2DCondition, x: Array, t: Array, text: Array, *, added_cond, class_labels, timestep_cond,
                 encoder_attention_mask) -> None:
    """Raises ValueError for inputs that a UNet2DCondition cannot take."""
    check_image(unet, x, t)
    least = unet.downsampling_factor if unet.downsample_padding == 0 else 1
    if min(x.shape[1:3]) < least:
        raise ValueError(f'x is {x.shape}: this UNet (downsample_padding={unet.downsample_padding}, '
                         f'{len(unet.block_out_channels)} resolutions) takes a height and width of at least {least}; '
                         'use larger images')
    check_labels(unet, x.shape[0], class_labels)
    b, dim = x.shape[0], per_resolution(unet, 'cross_attention_dim')[0]
    check_batch('encoder_hidden_states', text, (b, None, dim), f'cross_attention_dim={dim}')
    if encoder_attention_mask is not None:
        check_batch('encoder_attention_mask', encoder_attention_mask, text.shape[:2], 'one flag for each text vector')
    dim = unet.time_cond_proj_dim
    check_batch('timestep_cond', timestep_cond, (b, dim), None if dim is None else f'time_cond_proj_dim={dim}')
    if unet.addition_embed_type is None:
        check_batch('added_cond', added_cond, (), None)
        return
    given = dict(added_cond or {})
    if set(given) != {'text_embeds', 'time_ids'}:
        raise ValueError(f"added_cond has {sorted(given) or 'nothing'}: this UNet has addition_embed_type='text_time'; "
                         "give {'text_embeds': [B, P], 'time_ids': [B, K]}")
    for name, value in given.items():
        check_batch(f'added_cond[{name!r}]', value, (b, None), "addition_embed_type='text_time'")
    pooled, numbers = (given[k].shape[1] for k in ('text_embeds', 'time_ids'))
    total = pooled + numbers * unet.addition_time_embed_dim
    if total != unet.projection_class_embeddings_input_dim:
        raise ValueError(
            f"added_cond: {pooled} values of 'text_embeds' and {numbers} 'time_ids' of {unet.addition_time_embed_dim} "
            f'each are {total}, but projection_class_embeddings_input_dim={unet.projection_class_embeddings_input_dim};'
            " SDXL takes 6 time_ids, its refiner 5"
        )
