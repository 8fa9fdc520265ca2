"""iDDPM's UNet and its successor ADM, with super-resolution, under the published checkpoint names.

Nichol & Dhariwal, 2021 (https://arxiv.org/abs/2102.09672); Dhariwal & Nichol, 2021 (https://arxiv.org/abs/2105.05233).
The network is a list of blocks, each a list of layers, and block i's layer j is the checkpoint's `input_blocks.i.j`:
the lists of `Trunk` say iDDPM, ADM, its up-samplers and the encoder half that is its classifier (`adm_classifier`).
"""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen_jax.nn.attention import IMPLEMENTATIONS, Attention
from gen_jax.nn.embeddings import timestep_embedding
from gen_jax.nn.initializers import torch_default
from gen_jax.nn.norms import GroupNorm
from gen_jax.nn.remat import recomputed
from gen_jax.nn.resampling import average_pool, upsample_nearest
from gen_jax.nn.resnet import ResnetBlock2D
from gen_jax.types import Array

__all__ = [
    'ADMUNet',
    'adm_imagenet64',
    'adm_imagenet128',
    'adm_imagenet256',
    'adm_imagenet512',
    'adm_lsun256',
    'adm_tiny',
    'adm_upsampler_64_256',
    'adm_upsampler_128_512',
    'iddpm_cifar10',
    'iddpm_digits',
    'iddpm_imagenet64',
    'iddpm_lsun256',
    'iddpm_upsampler_64_256',
]

RES_NAMES = {
    'norm1': 'in_layers.0',
    'conv1': 'in_layers.2',
    'time_emb_proj': 'emb_layers.1',
    'norm2': 'out_layers.0',
    'conv2': 'out_layers.3',
    'conv_shortcut': 'skip_connection',
}


ATTN_NAMES = {'group_norm': 'norm', 'to_qkv': 'qkv', 'to_out.0': 'proj_out'}
Conv1x1 = partial(nn.Conv, kernel_size=(1,))  # over a sequence of pixels, as the weights are


class Layer(NamedTuple):
    """One layer of a block."""

    kind: str
    """'conv', 'res', 'attn', 'down' or 'up'."""
    width: int
    """Output channels."""
    heads: int = 0
    """Of 'attn'."""


class Trunk(nn.Module):
    """What the UNet and the classifier share: the lists of blocks, and how they run. Fields: see `ADMUNet`."""

    image_size: int = 64
    in_channels: int = 3
    model_channels: int = 128
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16, 8)
    channel_mult: tuple[float, ...] = (1, 2, 3, 4)
    num_heads: int = 4
    num_heads_upsample: int | None = None
    num_head_channels: int | None = None
    use_scale_shift_norm: bool = True
    resblock_updown: bool = False
    use_new_attention_order: bool = False
    conv_resample: bool = True
    dropout: float = 0.0
    norm_num_groups: int = 32
    dtype: jnp.dtype | None = None
    attention_implementation: str | None = None
    remat: str = ''

    def __post_init__(self):
        sides = [self.image_size // 2**level for level in range(len(self.channel_mult))]
        for side in self.attention_resolutions:
            if side not in sides:
                raise ValueError(f'attention_resolutions has {side}, but an image of side {self.image_size} has the '
                                 f'resolutions {", ".join(map(str, sides))} (one per entry of channel_mult)')
        if self.attention_implementation not in IMPLEMENTATIONS:
            raise ValueError(f'unknown attention_implementation {self.attention_implementation!r}; choose from '
                             f'{", ".join(map(str, IMPLEMENTATIONS))}')
        super().__post_init__()

    @property
    def downsampling_factor(self) -> int:
        """The sides of the image must be multiples of this."""
        return 2 ** (len(self.channel_mult) - 1)

    def levels(self) -> list[tuple[int, bool]]:
        """(channels, whether attention follows the residual blocks) per resolution, the highest first."""
        return [(int(mult * self.model_channels), self.image_size // 2**level in self.attention_resolutions)
                for level, mult in enumerate(self.channel_mult)]

    def attention(self, width: int, num_heads: int) -> Layer:
        return Layer('attn', width, width // self.num_head_channels if self.num_head_channels else num_heads)

    def input_blocks(self) -> list[list[Layer]]:
        """From the image to the lowest resolution; the output of each block is a skip connection."""
        levels = self.levels()
        blocks = [[Layer('conv', levels[0][0])]]
        for i, (width, attends) in enumerate(levels):
            block = [Layer('res', width)] + [self.attention(width, self.num_heads)] * attends
            blocks += [block] * self.num_res_blocks
            if i < len(levels) - 1:
                blocks.append([Layer('down', width)])
        return blocks

    def middle_block(self) -> list[Layer]:
        """At the lowest resolution."""
        width, _ = self.levels()[-1]
        return [Layer('res', width), self.attention(width, self.num_heads), Layer('res', width)]

    def output_blocks(self) -> list[list[Layer]]:
        """Back to the image; each block also takes the last skip connection that is left."""
        heads = self.num_heads if self.num_heads_upsample is None else self.num_heads_upsample
        blocks = []
        for i, (width, attends) in reversed(list(enumerate(self.levels()))):
            block = [Layer('res', width)] + [self.attention(width, heads)] * attends
            blocks += [block] * self.num_res_blocks + [block + [Layer('up', width)] * (i > 0)]
        return blocks

    def run(self, block: list[Layer], name: str, x: Array, emb: Array, deterministic: bool) -> Array:
        """x [B, H, W, C] through the layers of a block, called `name`.0, `name`.1 ..., told emb [B, E]."""
        for i, layer in enumerate(block):
            x = self._layer(layer, f'{name}.{i}', x, emb, deterministic)
        return x

    def _layer(self, layer: Layer, name: str, x: Array, emb: Array, deterministic: bool) -> Array:
        kind, width, heads = layer
        if kind == 'attn':
            if heads < 1 or width % heads:
                raise ValueError(f'{heads} heads do not divide the {width} channels at {name}; change num_heads or '
                                 'num_head_channels')
            attention = Attention(
                width // heads,
                self.norm_num_groups,
                dtype=self.dtype,
                implementation=self.attention_implementation,
                names=ATTN_NAMES,
                projection=Conv1x1,
                fused=True,
                order='qkv_head_channel' if self.use_new_attention_order else 'head_qkv_channel',
                kernel_init=torch_default,
                name=name,
            )
            return recomputed(attention, self.remat)(x)
        if kind == 'res' or (kind in ('down', 'up') and self.resblock_updown):
            block = ResnetBlock2D(
                width,
                self.norm_num_groups,
                epsilon=1e-5,
                time_embedding_norm='scale_shift' if self.use_scale_shift_norm else 'default',
                resample=None if kind == 'res' else kind,
                dropout=self.dropout,
                dtype=self.dtype,
                names=RES_NAMES,
                kernel_init=torch_default,
                name=name,
            )
            return recomputed(block, self.remat)(x, emb, deterministic=deterministic)
        if kind == 'up':
            x = upsample_nearest(x)
        if kind != 'conv' and not self.conv_resample:
            return average_pool(x) if kind == 'down' else x
        strides = (2, 2) if kind == 'down' else (1, 1)
        name += {'conv': '', 'down': '.op', 'up': '.conv'}[kind]
        return nn.Conv(width, (3, 3), strides, padding=1, kernel_init=torch_default, dtype=self.dtype, name=name)(x)

    def embed(self, label: Array) -> Array:
        """The times [B] as vectors [B, 4 model_channels], float32."""
        width = 4 * self.model_channels
        h = timestep_embedding(label, self.model_channels, flip_sin_to_cos=True, freq_shift=0)
        h = jax.nn.silu(nn.Dense(width, kernel_init=torch_default, name='time_embed.0')(h))
        return nn.Dense(width, kernel_init=torch_default, name='time_embed.2')(h)

    def check(self, x: Array, label: Array) -> Array:
        """label as [B]; raises ValueError for images and times that the network cannot take."""
        if x.ndim != 4 or x.shape[-1] != self.in_channels:
            raise ValueError(f'x is {x.shape}; this network takes [B, H, W, {self.in_channels}] (in_channels, last)')
        if jnp.shape(label) not in ((), (1,), x.shape[:1]):
            raise ValueError(f'label is {jnp.shape(label)}; give one time, or one per image: ({x.shape[0]},)')
        factor = self.downsampling_factor
        if x.shape[1] % factor or x.shape[2] % factor or not x.shape[1] * x.shape[2]:
            raise ValueError(f'an image of {x.shape[1]}x{x.shape[2]} cannot be halved {len(self.channel_mult) - 1} '
                             f'times: give sides divisible by {factor}, or a shorter channel_mult')
        return jnp.broadcast_to(jnp.asarray(label), x.shape[:1])


class ADMUNet(Trunk):
    """A UNet over images that is told a time and, if asked for, a class and a picture of lower resolution.

    The fields are the published command-line flags, None where those say -1; '.'.join(path) of a parameter is the
    checkpoint's key up to kernel, scale and embedding being called weight. Classifier-free guidance needs nothing here:
    the null class is one more class.

    Attributes:
        image_size: the side that the weights were trained at, to which attention_resolutions refer; any size divisible
            by `downsampling_factor` works.
        in_channels: C of the image.
        model_channels: the unit of channel_mult; a quarter of the width of the embeddings (num_channels in the flags).
        num_res_blocks: residual blocks per resolution on the way down; one more on the way up.
        attention_resolutions: sides of the features that attention follows.
        channel_mult: channels per resolution, the highest first, in units of model_channels.
        num_heads: of attention, where num_head_channels is None.
        num_heads_upsample: the same on the way up; None is num_heads.
        num_head_channels: channels of a head.
        use_scale_shift_norm: adaptive group norm (ADM, §3.1); False adds the embedding.
        resblock_updown: residual blocks halve and double the resolution (ADM); False is a convolution (iDDPM).
        use_new_attention_order: the channels of q, k and v are ordered 'qkv_head_channel', not 'head_qkv_channel' as in
            iDDPM and most of ADM; see `gen_jax.nn.attention.split_heads`.
        conv_resample: False halves and doubles without any parameters, where resblock_updown is False.
        dropout: rate in the residual blocks; needs the rng 'dropout' unless deterministic.
        norm_num_groups: divides every number of channels; 32 in all published weights.
        dtype: compute dtype of the blocks; parameters, norms, softmax, embeddings and the last layer are float32.
        attention_implementation: see `gen_jax.nn.attention.dot_product_attention`.
        remat: what the backward pass recomputes of every block, see `gen_jax.nn.remat`; '' is nothing.
        num_classes: rows of the table of classes; None has no classes.
        learn_sigma: the output has 2 C channels, the second half being the variance's weight v (iDDPM, Eq. 15).
        super_res: the network is also given `low_res`.

    Raises:
        ValueError: (on construction) an attention resolution that does not occur, unknown names.

    Example:
        >>> unet = adm_tiny()
        >>> x, t = jnp.zeros((2, 8, 8, 1)), jnp.array([0., 999.])
        >>> variables = unet.init(jax.random.key(0), x, t, jnp.array([3, 10]))
        >>> unet.apply(variables, x, t, jnp.array([3, 10])).shape
        (2, 8, 8, 2)
    """

    num_classes: int | None = None
    learn_sigma: bool = False
    super_res: bool = False

    @nn.compact
    def __call__(self, x: Array, label: Array, class_labels: Array | None = None, low_res: Array | None = None, *,
                 deterministic: bool = True) -> Array:
        """The network's raw output; what it means is the business of a `Parameterisation`.

        Args:
            x: [B, H, W, C].
            label: [B] or (), times of the order 0..1000, possibly fractional. iDDPM's weights of T = 4000 steps were
                told t / 4 (`label_scale=0.25`), but the class-conditional ones t itself.
            class_labels: int [B] in 0..num_classes-1 (an index outside gives NaN); None if there are no classes.
            low_res: [B, h, w, C], stretched to H x W (bilinear); None unless super_res.
            deterministic: False drops out, with the rng 'dropout'.

        Returns:
            float32 [B, H, W, C], or [B, H, W, 2 C] with learn_sigma.

        Raises:
            ValueError: H or W not divisible by the down-sampling factor; wrong channels or rank; a condition missing or
                not expected.
        """
        label = self.check(x, label)
        self._check_conditions(x, class_labels, low_res)
        emb = self.embed(label)
        if class_labels is not None:
            table = nn.Embed(self.num_classes, emb.shape[-1], embedding_init=nn.initializers.normal(1.0),
                             name='label_emb')
            emb = emb + table(class_labels)
        h = x
        if low_res is not None:
            h = jnp.concatenate([h, jax.image.resize(low_res, x.shape, 'bilinear', antialias=False)], -1)
        h, skips = h.astype(self.dtype or jnp.float32), []
        for i, block in enumerate(self.input_blocks()):
            h = self.run(block, f'input_blocks.{i}', h, emb, deterministic)
            skips.append(h)
        h = self.run(self.middle_block(), 'middle_block', h, emb, deterministic)
        for i, block in enumerate(self.output_blocks()):
            h = self.run(block, f'output_blocks.{i}', jnp.concatenate([h, skips.pop()], -1), emb, deterministic)
        h = jax.nn.silu(GroupNorm(self.norm_num_groups, dtype=jnp.float32, name='out.0')(h))
        channels = self.in_channels * (2 if self.learn_sigma else 1)
        return nn.Conv(channels, (3, 3), padding=1, kernel_init=nn.initializers.zeros, name='out.2')(h)

    def _check_conditions(self, x, class_labels, low_res):
        if (class_labels is None) != (self.num_classes is None):
            raise ValueError('class_labels is missing: this UNet is class-conditional; give one label per image, or '
                             'build it with num_classes=None' if class_labels is None else
                             'class_labels is given, but this UNet has no classes; set num_classes, or leave it out')
        if class_labels is not None and jnp.shape(class_labels) != x.shape[:1]:
            raise ValueError(f'class_labels is {jnp.shape(class_labels)}; give {x.shape[:1]}')
        if (low_res is not None) != self.super_res:
            raise ValueError(f'low_res is {"missing" if low_res is None else "given"}, but super_res={self.super_res}; '
                             'an up-sampler, and only an up-sampler, is given the picture of lower resolution')
        if low_res is not None and (low_res.ndim != 4 or (low_res.shape[0], low_res.shape[-1]) !=
                                    (x.shape[0], self.in_channels)):
            raise ValueError(f'low_res is {low_res.shape}; give [{x.shape[0]}, h, w, {self.in_channels}]')


CHANNEL_MULT = {32: (1, 2, 2, 2), 64: (1, 2, 3, 4), 128: (1, 1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4),
                512: (0.5, 1, 1, 2, 2, 4, 4)}
"""By image size, in both papers."""


def _adm(image_size: int, overrides, **flags) -> ADMUNet:
    common = dict(image_size=image_size, channel_mult=CHANNEL_MULT[image_size], model_channels=256, num_res_blocks=2,
                  attention_resolutions=(32, 16, 8), num_head_channels=64, resblock_updown=True, learn_sigma=True,
                  num_classes=1000)
    return ADMUNet(**{**common, **flags, **overrides})


def adm_imagenet64(**overrides) -> ADMUNet:
    """ImageNet 64, class-conditional: 295,904,454 parameters; ADM, Table 11."""
    return _adm(64, overrides, model_channels=192, num_res_blocks=3, use_new_attention_order=True, dropout=0.1)


def adm_imagenet128(**overrides) -> ADMUNet:
    """ImageNet 128, class-conditional, four heads at every width: 421,529,606 parameters; ADM, Table 11."""
    return _adm(128, overrides, num_head_channels=None)


def adm_imagenet256(**overrides) -> ADMUNet:
    """ImageNet 256: 553,838,086 parameters class-conditional, 552,814,086 with num_classes=None; ADM, Table 11."""
    return _adm(256, overrides)


def adm_imagenet512(**overrides) -> ADMUNet:
    """ImageNet 512, class-conditional: 558,997,638 parameters; ADM, Table 11."""
    return _adm(512, overrides)


def adm_lsun256(**overrides) -> ADMUNet:
    """LSUN bedroom, cat and horse at 256: 552,814,086 parameters; ADM, Table 12."""
    return _adm(256, overrides, num_classes=None, dropout=0.1)


def adm_upsampler_64_256(**overrides) -> ADMUNet:
    """ImageNet 64 -> 256: 311,795,910 parameters; ADM, §5.3."""
    return _adm(256, overrides, model_channels=192, num_head_channels=None, super_res=True)


def adm_upsampler_128_512(**overrides) -> ADMUNet:
    """ImageNet 128 -> 512: 308,835,270 parameters; ADM, §5.3."""
    return _adm(512, overrides, model_channels=192, channel_mult=CHANNEL_MULT[256], attention_resolutions=(32, 16),
                super_res=True)


def _iddpm(image_size: int, overrides, **flags) -> ADMUNet:
    common = dict(image_size=image_size, channel_mult=CHANNEL_MULT[image_size], num_res_blocks=3, learn_sigma=True)
    return ADMUNet(**{**common, **flags, **overrides})


def iddpm_cifar10(**overrides) -> ADMUNet:
    """CIFAR-10 at 32x32: 52,546,438 parameters; iDDPM, Appendix A."""
    return _iddpm(32, overrides, dropout=0.3)


def iddpm_imagenet64(**overrides) -> ADMUNet:
    """ImageNet 64: 121,063,942 parameters; 273,049,350 with model_channels=192, num_classes=1000; iDDPM, Appendix A."""
    return _iddpm(64, overrides)


def iddpm_lsun256(**overrides) -> ADMUNet:
    """LSUN bedroom at 256: 113,676,678 parameters; iDDPM, Appendix A (the DDPM network with learned variance)."""
    return _iddpm(256, overrides, num_res_blocks=2, num_heads=1, attention_resolutions=(16,),
                  use_scale_shift_norm=False)


def iddpm_upsampler_64_256(**overrides) -> ADMUNet:
    """ImageNet 64 -> 256, class-conditional: 279,792,390 parameters; iDDPM, Appendix A."""
    return _iddpm(256, overrides, model_channels=192, num_res_blocks=2, num_classes=1000, super_res=True)


def iddpm_digits(**overrides) -> ADMUNet:
    """8x8 grey digits, learned variance: about 1 M parameters, for CPUs; num_classes=11 has ten and a null class."""
    common = dict(in_channels=1, model_channels=48, channel_mult=(1, 1), num_res_blocks=2, attention_resolutions=(4,),
                  norm_num_groups=8)
    return ADMUNet(**{'image_size': 8, **common, 'learn_sigma': True, **overrides})


def adm_tiny(**overrides) -> ADMUNet:
    """8x8 grey images with 11 classes and learned variance, in ADM's manner: for tests."""
    return iddpm_digits(**{**dict(model_channels=8, num_res_blocks=1, norm_num_groups=4, num_classes=11,
                                  num_head_channels=4, resblock_updown=True), **overrides})
