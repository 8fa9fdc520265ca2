"""The UNet of score_sde (DDPM, DDPM++, NCSN++) and of EDM (SongUNet, DhariwalUNet): one list of blocks says all."""

import math
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.models.song_blocks import LAYOUTS, UNetBlock
from gen_jax.nn.attention import IMPLEMENTATIONS, Attention
from gen_jax.nn.embeddings import GaussianFourierProjection, timestep_embedding
from gen_jax.nn.norms import GroupNorm
from gen_jax.nn.remat import recomputed
from gen_jax.nn.resampling import fir_downsample, fir_filter, fir_taps, fir_upsample, upsample_nearest
from gen_jax.types import Array

__all__ = ['SongUNet']


class SongUNet(nn.Module):
    """A UNet over images [B, H, W, C] that is told a noise level and, if asked for, a class and an augmentation.

    Song et al., 2021 (https://arxiv.org/abs/2011.13456), Appendix H; Karras et al., 2022
    (https://arxiv.org/abs/2206.00364), Appendix F.3, whose names the fields bear. `layout` says whose checkpoint keys
    the parameters bear: '.'.join(path) is the key. Buffers of the checkpoints (`resample_filter`, `sigmas`) are
    constants here; Fourier frequencies, a buffer in EDM, are a parameter without a gradient.

    What is left out of score_sde's configurations: progressive 'residual' outputs and 'cat' combination, which no
    published model uses.

    Attributes:
        img_resolution: the side that `attn_resolutions` and the names refer to; any size divisible by
            `downsampling_factor` works.
        in_channels: C of the input.
        out_channels: C of the output.
        label_dim: number of classes; 0 is none.
        augment_dim: length of the vector that describes an augmentation; 0 is none.
        model_channels: the unit of the widths.
        channel_mult: widths per resolution in this unit, the highest resolution first.
        channel_mult_emb: width of the embedding in this unit.
        num_blocks: residual blocks per resolution on the way down; there is one more on the way up.
        attn_resolutions: sides at which an attention follows the residual blocks.
        decoder_attention: 'last', after the last block of a resolution on the way up, or 'every'.
        channels_per_head: of an attention; None is one head.
        dropout: rate in the residual blocks; needs the rng 'dropout' unless deterministic.
        embedding_type: 'positional' (DDPM++, ADM) or 'fourier' (NCSN++).
        channel_mult_noise: width of the features of the noise level in the unit: 1, or 2 for 'fourier'.
        fourier_scale: standard deviation of the frequencies.
        encoder_type: 'standard'; 'skip' adds the down-sampled input, 'residual' a convolved one (NCSN++).
        decoder_type: 'standard'; 'skip' sums images from every resolution.
        resample_filter: (1, 1) for means and repeats, or (1, 3, 3, 1).
        resblock_type: 'biggan', or 'ddpm': the resolution changes by convolutions, not in residual blocks.
        resample_proj: whether the shortcut of a resampling residual block is convolved.
        skip_rescale: divides every sum with a residual by sqrt(2).
        adaptive_scale: the embedding scales and shifts, see `ResnetBlock2D`.
        num_groups: see `GroupNorm`.
        layout: whose names, initial values and embedding: 'score_sde', 'edm' or 'dhariwal'.
        center_input_sample: maps an input in [0, 1] to [-1, 1] first (score_sde's `centered=False`).
        scale_by_sigma: divides the output by the noise level: the output is a score. The level is the label of a
            'fourier' embedding, and sigma_max (sigma_min / sigma_max)^(label / (num_scales - 1)) of a positional one.
        sigma_min, sigma_max, num_scales: of the table that scale_by_sigma reads for integer labels.
        dtype: compute dtype; parameters, norms, softmax and the output are float32.
        attention_implementation: see `gen_jax.nn.attention.dot_product_attention`.
        remat: what the backward pass recomputes of every block, see `gen_jax.nn.remat`; '' is nothing.

    Raises:
        ValueError: (on construction) unknown names, resolutions that do not halve, settings that no layout has.
    """

    img_resolution: int = 32
    in_channels: int = 3
    out_channels: int = 3
    label_dim: int = 0
    augment_dim: int = 0
    model_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 2, 2)
    channel_mult_emb: int = 4
    num_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    decoder_attention: Literal['last', 'every'] = 'last'
    channels_per_head: int | None = None
    dropout: float = 0.1
    embedding_type: Literal['positional', 'fourier'] = 'positional'
    channel_mult_noise: int = 1
    fourier_scale: float = 16.0
    encoder_type: Literal['standard', 'skip', 'residual'] = 'standard'
    decoder_type: Literal['standard', 'skip'] = 'standard'
    resample_filter: tuple[float, ...] = (1, 1)
    resblock_type: Literal['biggan', 'ddpm'] = 'biggan'
    resample_proj: bool = True
    skip_rescale: bool = True
    adaptive_scale: bool = False
    num_groups: int | Literal['auto'] = 'auto'
    layout: Literal['score_sde', 'edm', 'dhariwal'] = 'edm'
    center_input_sample: bool = False
    scale_by_sigma: bool = False
    sigma_min: float = 0.01
    sigma_max: float = 50.0
    num_scales: int = 1000
    dtype: jnp.dtype | None = None
    attention_implementation: str | None = None
    remat: str = ''

    def __post_init__(self):
        check_config(self)
        super().__post_init__()

    @property
    def downsampling_factor(self) -> int:
        """The sides of the image must be multiples of this."""
        return 2 ** (len(self.channel_mult) - 1)

    @nn.compact
    def __call__(
        self,
        x: Array,
        label: Array,
        class_labels: Array | None = None,
        augment_labels: Array | None = None,
        *,
        deterministic: bool = True,
    ) -> Array:
        """The network's raw output; what it means is the business of a `Parameterisation`.

        Args:
            x: [B, H, W, in_channels].
            label: [B] or (); EDM's c_noise for its layouts. For 'score_sde': t * 999 or the index of a table if
                'positional', sigma (not its logarithm) if 'fourier'.
            class_labels: int [B], where label_dim stands for no class, or weights of classes [B, label_dim]; None if
                and only if the network has no classes.
            augment_labels: [B, augment_dim]; None is a vector of zeros: not augmented.
            deterministic: False drops out, with the rng 'dropout'.

        Returns:
            float32 [B, H, W, out_channels].

        Raises:
            ValueError: sides not divisible by the down-sampling factor; wrong channels or rank; conditions missing,
                not expected or mis-shaped.
        """
        check_inputs(self, x, label, class_labels, augment_labels)
        layout, widths = LAYOUTS[self.layout], [self.model_channels * m for m in self.channel_mult]
        name, rescale = layout.namer(), math.sqrt(2) if self.skip_rescale else 1.0
        label = jnp.broadcast_to(jnp.asarray(label, jnp.float32), x.shape[:1])
        temb, convolved = self._embed(label, class_labels, augment_labels, name), self.resblock_type == 'ddpm'
        conv = partial(nn.Conv, padding='SAME', kernel_init=layout.kernel_init, dtype=self.dtype)

        def side(level):
            return f'{self.img_resolution >> level}x{self.img_resolution >> level}'

        def attended(level):
            return self.img_resolution >> level in self.attn_resolutions

        def block(x, features, part, attention=False, resample=None):
            resnet = dict(
                features=features,
                num_groups=self.num_groups,
                epsilon=layout.epsilon,
                time_embedding_norm='scale_shift' if self.adaptive_scale else 'default',
                resample=resample,
                output_scale_factor=rescale,
                dropout=self.dropout,
                dtype=self.dtype,
                names={**layout.resnet, 'conv_shortcut': 'NIN_0'} if convolved else layout.resnet,
                kernel_init=layout.kernel_init,
                zero_init=layout.zero_init,
                resample_filter=self.resample_filter,
                resample_shortcut=self.resample_proj,
                shortcut='nin' if convolved else 'conv',
            )
            attn = dict(
                head_dim=self.channels_per_head or features,
                norm_num_groups=self.num_groups,
                epsilon=layout.epsilon,
                rescale_output_factor=rescale,
                dtype=self.dtype,
                implementation=self.attention_implementation,
                **layout.attention,
            )
            inside = attn if attention and layout.attention_inside else None
            both = recomputed(UNetBlock(resnet, inside, name=name(part)), self.remat)
            x = both(x, temb, deterministic=deterministic)
            if attention and not layout.attention_inside:
                x = recomputed(Attention(**attn, name=name(f'{part}_attention')), self.remat)(x)
            return x

        def down(x, part):
            if not convolved:
                return block(x, x.shape[-1], part, resample='down')
            strided = dict(strides=2, padding=((0, 1), (0, 1)), name=name(part) + layout.suffixes['conv'])
            return conv(x.shape[-1], (3, 3), **strided)(x)

        def up(x, part):
            if not convolved:
                return block(x, x.shape[-1], part, resample='up')
            return conv(x.shape[-1], (3, 3), name=name(part) + layout.suffixes['conv'])(upsample_nearest(x))

        x = x.astype(self.dtype or jnp.float32)
        aux = x = 2 * x - 1 if self.center_input_sample else x
        stem = widths[0] if self.layout == 'dhariwal' else self.model_channels
        x = conv(stem, (3, 3), name=name(f'enc.{side(0)}_conv'))(x)
        skips = [x]
        for level, width in enumerate(widths):
            if level:
                x = down(x, f'enc.{side(level)}_down')
                if self.encoder_type == 'skip':
                    aux = fir_downsample(aux, self.resample_filter)
                    key = name(f'enc.{side(level)}_aux_skip') + layout.suffixes['conv']
                    x = x + conv(x.shape[-1], (1, 1), name=key)(aux)
                elif self.encoder_type == 'residual':
                    key = name(f'enc.{side(level)}_aux_residual') + layout.suffixes['fir_conv']
                    # Filtered with the convolution's padding on top, so that nothing is padded in between.
                    aux = fir_filter(aux, self.resample_filter, padding=len(self.resample_filter) // 2)
                    aux = x = (x + conv(x.shape[-1], (3, 3), strides=2, padding='VALID', name=key)(aux)) / rescale
                skips.append(x)
            for i in range(self.num_blocks):
                x = block(x, width, f'enc.{side(level)}_block{i}', attended(level))
                skips.append(x)

        lowest, aux = len(widths) - 1, None
        x = block(x, x.shape[-1], f'dec.{side(lowest)}_in0', attention=True)
        x = block(x, x.shape[-1], f'dec.{side(lowest)}_in1')
        for level, width in reversed(list(enumerate(widths))):
            if level < lowest:
                x = up(x, f'dec.{side(level)}_up')
            for i in range(self.num_blocks + 1):
                here = attended(level) and (self.decoder_attention == 'every' or i == self.num_blocks)
                x = block(jnp.concatenate([x, skips.pop()], -1), width, f'dec.{side(level)}_block{i}', here)
            if self.decoder_type == 'skip' or level == 0:
                out = 'out' if self.layout == 'dhariwal' else f'dec.{side(level)}_aux'
                y = GroupNorm(self.num_groups, layout.epsilon, self.dtype, name=name(f'{out}_norm'))(x)
                key = name(f'{out}_conv')
                y = conv(self.out_channels, (3, 3), kernel_init=layout.zero_init, name=key)(jax.nn.silu(y))
                aux = y if aux is None else y + fir_upsample(aux, self.resample_filter)

        y = aux.astype(jnp.float32)
        return y / self._sigma(label)[:, None, None, None] if self.scale_by_sigma else y

    def _embed(self, label, class_labels, augment_labels, name):
        """Noise level, class and augmentation as one vector [B, model_channels * channel_mult_emb]."""
        layout, width = LAYOUTS[self.layout], self.model_channels * self.channel_mult_noise
        dense = partial(nn.Dense, kernel_init=layout.kernel_init, dtype=self.dtype)
        if self.embedding_type == 'fourier':
            log = self.layout == 'score_sde'
            features = GaussianFourierProjection(
                width // 2, self.fourier_scale, log, layout.frequencies, name=name('map_noise'))
            emb = features(self._sigma(label) if log else label)
        else:
            cosine_first = self.layout == 'dhariwal'
            emb = timestep_embedding(
                label, width, flip_sin_to_cos=cosine_first, freq_shift=0 if cosine_first else 1)
        emb = emb.astype(self.dtype or jnp.float32)

        classes = 0.0
        if self.label_dim:
            weights = jnp.asarray(class_labels)
            if weights.ndim == 1:
                weights = jax.nn.one_hot(weights, self.label_dim)
            if self.layout == 'dhariwal':
                normal = nn.initializers.normal(1.0)
                to_label = dense(temb_width(self), use_bias=False, kernel_init=normal, name='map_label')
            else:
                to_label, weights = dense(width, name='map_label'), weights * math.sqrt(self.label_dim)
            classes = to_label(weights)
        if self.layout != 'dhariwal':
            emb = emb + classes
        if self.augment_dim:
            init = layout.zero_init if self.layout == 'dhariwal' else layout.kernel_init
            to_augment = dense(width, use_bias=False, kernel_init=init, name='map_augment')
            given = jnp.zeros((1, self.augment_dim)) if augment_labels is None else augment_labels
            emb = emb + to_augment(given)
        emb = jax.nn.silu(dense(temb_width(self), name=name('map_layer0'))(emb))
        emb = dense(temb_width(self), name=name('map_layer1'))(emb)
        return emb + classes if self.layout == 'dhariwal' else emb

    def _sigma(self, label):
        """The noise level [B] that a label of score_sde stands for; never 0, so that nothing is NaN there."""
        if self.embedding_type == 'fourier':
            return jnp.maximum(label, 1e-8)
        table = np.geomspace(self.sigma_max, self.sigma_min, self.num_scales)
        return jnp.asarray(table, jnp.float32)[label.astype(jnp.int32)]


def temb_width(unet: SongUNet) -> int:
    """Length of the embedding."""
    return unet.model_channels * unet.channel_mult_emb


def check_config(unet: SongUNet) -> None:
    """Raises ValueError for settings of a SongUNet that contradict each other."""
    for field, choices in {
        'layout': tuple(LAYOUTS),
        'embedding_type': ('positional', 'fourier'),
        'encoder_type': ('standard', 'skip', 'residual'),
        'decoder_type': ('standard', 'skip'),
        'resblock_type': ('biggan', 'ddpm'),
        'decoder_attention': ('last', 'every'),
        'attention_implementation': IMPLEMENTATIONS,
    }.items():
        if getattr(unet, field) not in choices:
            raise ValueError(f'unknown {field} {getattr(unet, field)!r}; choose from {", ".join(map(str, choices))}')
    fir_taps(unet.resample_filter)
    if not unet.channel_mult:
        raise ValueError('channel_mult is empty; give one multiplier per resolution')
    if unet.img_resolution % unet.downsampling_factor:
        raise ValueError(
            f'img_resolution={unet.img_resolution} cannot be halved {len(unet.channel_mult) - 1} times '
            f'(channel_mult={tuple(unet.channel_mult)}); use a multiple of {unet.downsampling_factor}'
        )
    plain = tuple(unet.resample_filter) == (1, 1)
    if unet.resblock_type == 'ddpm' and not (unet.layout == 'score_sde' and plain and unet.encoder_type == 'standard'):
        raise ValueError(
            "resblock_type='ddpm' goes with layout='score_sde', resample_filter=(1, 1) and encoder_type='standard'; "
            f"not with {unet.layout!r}, {tuple(unet.resample_filter)} and {unet.encoder_type!r}: use 'biggan'"
        )
    if unet.layout == 'score_sde' and unet.encoder_type == 'residual' and plain:
        raise ValueError(
            "encoder_type='residual' of layout='score_sde' needs a low-pass resample_filter such as (1, 3, 3, 1), not "
            '(1, 1)'
        )
    if unet.scale_by_sigma and unet.layout != 'score_sde':
        raise ValueError(f"scale_by_sigma is of layout='score_sde'; {unet.layout!r} is told log sigma: use edm()")


def check_inputs(unet: SongUNet, x: Array, label: Array, class_labels: Array | None, augment: Array | None) -> None:
    """Raises ValueError for inputs that a SongUNet cannot take."""
    if x.ndim != 4 or x.shape[-1] != unet.in_channels:
        raise ValueError(f'x is {x.shape}; this UNet takes [B, H, W, {unet.in_channels}] (in_channels, last)')
    b, factor = x.shape[0], unet.downsampling_factor
    if x.shape[1] % factor or x.shape[2] % factor or not x.size:
        raise ValueError(
            f'images of {x.shape[1]}x{x.shape[2]} are not divisible by the down-sampling factor {factor} '
            f'({len(unet.channel_mult)} resolutions); resize or pad them, or use fewer resolutions'
        )
    if jnp.shape(label) not in ((), (1,), (b,)):
        raise ValueError(f'label is {jnp.shape(label)}; give one number, or one per image: ({b},)')
    if (class_labels is None) != (unet.label_dim == 0):
        raise ValueError(
            f'class_labels is missing: this UNet has label_dim={unet.label_dim}; {unet.label_dim} stands for no class'
            if class_labels is None else 'class_labels is given, but this UNet has no classes; set label_dim'
        )
    if class_labels is not None and jnp.shape(class_labels) not in ((b,), (b, unet.label_dim)):
        raise ValueError(f'class_labels is {jnp.shape(class_labels)}; give ({b},) or ({b}, {unet.label_dim})')
    if augment is not None and (not unet.augment_dim or jnp.shape(augment) != (b, unet.augment_dim)):
        raise ValueError(f'augment_labels is {jnp.shape(augment)}, with augment_dim={unet.augment_dim}')
