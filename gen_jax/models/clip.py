"""CLIP: an image encoder and a text encoder that share an embedding space.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision",
https://arxiv.org/abs/2103.00020 (section 2.4 and Table 20). Parameters carry the published key names, so a checkpoint's
key is '.'.join(path) with kernel, scale and embedding called weight.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from gen_jax.nn.transformer import Encoder, LayerNorm, activation
from gen_jax.types import Array

__all__ = ['CLIP', 'TextModel', 'VisionModel', 'clip_shapes', 'clip_tiny', 'clip_vit_b32']

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


class VisionEmbeddings(nn.Module):
    """Image [B, S, S, 3] -> [B, 1 + (S / patch)^2, C]: a class token, patches, learnt positions.

    With `stem = ()` a patch is embedded by one linear map. Otherwise 3x3 convolutions of stride 2 with the widths of
    `stem` come first, then a linear map of what is left of the patch (Xiao et al. 2021, "Early Convolutions Help
    Transformers See Better": easier to optimise, higher learning rates).
    """

    width: int
    patch_size: int
    stem: tuple[int, ...] = ()
    act: str = 'quick_gelu'
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Array) -> Array:
        b, size = image.shape[0], image.shape[1]
        x, patch = image.astype(self.dtype), self.patch_size
        for i, features in enumerate(self.stem):
            x = nn.Conv(features, (3, 3), (2, 2), padding=((1, 1), (1, 1)), dtype=self.dtype, name=f'stem.{i}')(x)
            x = activation(self.act)(LayerNorm(dtype=self.dtype, name=f'stem_norm.{i}')(x))
            patch //= 2
        x = nn.Conv(self.width, (patch, patch), (patch, patch), padding='VALID', use_bias=False, dtype=self.dtype,
                    name='patch_embedding')(x)
        x = x.reshape(b, -1, self.width)
        cls = self.param('class_embedding', nn.initializers.normal(self.width**-0.5), (self.width,))
        x = jnp.concatenate([jnp.broadcast_to(cls, (b, 1, self.width)).astype(x.dtype), x], axis=1)
        n = 1 + (size // self.patch_size) ** 2
        position = nn.Embed(n, self.width, embedding_init=nn.initializers.normal(self.width**-0.5), dtype=self.dtype,
                            name='position_embedding')
        return x + position(jnp.arange(n))


class VisionModel(nn.Module):
    """Vision transformer: image [B, S, S, 3] -> (tokens [B, N, C], the class token after a last norm [B, C])."""

    image_size: int
    patch_size: int
    width: int
    num_layers: int
    num_heads: int
    hidden: int
    stem: tuple[int, ...] = ()
    act: str = 'quick_gelu'
    dtype: Any = jnp.float32
    remat: str = ''

    @nn.compact
    def __call__(self, image: Array) -> tuple[Array, Array]:
        size = self.image_size
        if image.ndim != 4 or image.shape[1:] != (size, size, 3):
            raise ValueError(f'image has shape {image.shape}, but this network was built for [B, {size}, {size}, 3]; '
                             'resize the images or set image_size')
        if size % self.patch_size:
            raise ValueError(f'patch_size = {self.patch_size} does not divide image_size = {size}; choose a divisor')
        if self.patch_size % 2 ** len(self.stem):
            raise ValueError(f'a stem of {len(self.stem)} stride-2 convolutions needs a patch_size divisible by '
                             f'{2 ** len(self.stem)}, not {self.patch_size}')
        x = VisionEmbeddings(self.width, self.patch_size, self.stem, self.act, self.dtype, name='embeddings')(image)
        x = LayerNorm(dtype=self.dtype, name='pre_layrnorm')(x)  # spelt as in the published checkpoints
        x = Encoder(self.num_layers, self.num_heads, self.hidden, self.act, dtype=self.dtype, remat=self.remat,
                    name='encoder')(x)
        return x, LayerNorm(dtype=self.dtype, name='post_layernorm')(x[:, 0])


class TextEmbeddings(nn.Module):
    """Tokens int [B, L] -> [B, L, C]: learnt tokens plus learnt positions."""

    vocab_size: int
    max_length: int
    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        normal = nn.initializers.normal
        token = nn.Embed(self.vocab_size, self.width, embedding_init=normal(0.02), dtype=self.dtype,
                         name='token_embedding')
        position = nn.Embed(self.max_length, self.width, embedding_init=normal(0.01), dtype=self.dtype,
                            name='position_embedding')
        return token(tokens) + position(jnp.arange(tokens.shape[1]))


class TextModel(nn.Module):
    """Causal text transformer: tokens int [B, L] -> (states [B, L, C], the state at the end of the text [B, C]).

    The end is the first `eos_token_id`. None takes the largest token id instead, which is what the original code and
    published configurations that say `eos_token_id: 2` mean (49,407, the end token, is the largest id of that
    vocabulary). Since attention is causal, what stands behind the end does not matter.
    """

    vocab_size: int
    max_length: int
    width: int
    num_layers: int
    num_heads: int
    hidden: int
    eos_token_id: int | None = None
    act: str = 'quick_gelu'
    dtype: Any = jnp.float32
    remat: str = ''

    @nn.compact
    def __call__(self, tokens: Array) -> tuple[Array, Array]:
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(f'tokens must be int [B, L], not {tokens.dtype} {tokens.shape}; tokenise the captions')
        if tokens.shape[1] > self.max_length:
            raise ValueError(f'tokens of length {tokens.shape[1]} exceed max_length = {self.max_length}; '
                             'truncate them or set max_length')
        x = TextEmbeddings(self.vocab_size, self.max_length, self.width, self.dtype, name='embeddings')(tokens)
        x = Encoder(self.num_layers, self.num_heads, self.hidden, self.act, causal=True, dtype=self.dtype,
                    remat=self.remat, name='encoder')(x)
        x = LayerNorm(dtype=self.dtype, name='final_layer_norm')(x)
        ends = tokens if self.eos_token_id is None else (tokens == self.eos_token_id).astype(jnp.int32)
        # A masked sum and not a gather: XLA would exchange the indices of a gather between the shards of the batch.
        at_end = jnp.arange(tokens.shape[1]) == ends.argmax(-1)[:, None]
        return x, jnp.where(at_end[:, :, None], x, 0).sum(1)


class CLIP(nn.Module):
    """Both encoders, their projections to `projection_dim` and the learnt log temperature `logit_scale`.

    `encode_image` and `encode_text` return float32 embeddings [B, D] that are not normalised; `__call__` returns both,
    normalised, and the raw `logit_scale` (the loss clips it).

    Args:
        stem: widths of a convolutional stem, see `VisionEmbeddings`; () is the published linear patch embedding.
        eos_token_id: see `TextModel`.
        pixel_mean, pixel_std: statistics of pixels in [0, 1] with which images in [-1, 1] are standardised; None
            leaves the images as they come.
        dtype: compute dtype; parameters stay float32.
        remat: what the backward pass recomputes of every block, see `gen_jax.nn.remat`; '' is nothing.
    """

    image_size: int = 224
    patch_size: int = 32
    vision_width: int = 768
    vision_layers: int = 12
    vision_heads: int = 12
    vision_hidden: int = 3072
    vocab_size: int = 49408
    max_length: int = 77
    text_width: int = 512
    text_layers: int = 12
    text_heads: int = 8
    text_hidden: int = 2048
    projection_dim: int = 512
    stem: tuple[int, ...] = ()
    eos_token_id: int | None = None
    act: str = 'quick_gelu'
    pixel_mean: tuple[float, ...] | None = None
    pixel_std: tuple[float, ...] | None = None
    logit_scale_init: float = 2.6592  # ln(1 / 0.07), section 2.5
    dtype: Any = jnp.float32
    remat: str = ''

    def setup(self):
        self.vision_model = VisionModel(self.image_size, self.patch_size, self.vision_width, self.vision_layers,
                                        self.vision_heads, self.vision_hidden, tuple(self.stem), self.act, self.dtype,
                                        self.remat)
        self.text_model = TextModel(self.vocab_size, self.max_length, self.text_width, self.text_layers,
                                    self.text_heads, self.text_hidden, self.eos_token_id, self.act, self.dtype,
                                    self.remat)

        def projection(width):
            return nn.Dense(self.projection_dim, use_bias=False, dtype=self.dtype,
                            kernel_init=nn.initializers.normal(width**-0.5))

        self.visual_projection = projection(self.vision_width)
        self.text_projection = projection(self.text_width)
        self.logit_scale = self.param('logit_scale', nn.initializers.constant(self.logit_scale_init), ())

    def encode_image(self, image: Array) -> Array:
        """Image float [B, S, S, 3] in [-1, 1] -> embedding float32 [B, projection_dim]."""
        if (self.pixel_mean is None) != (self.pixel_std is None):
            raise ValueError(f'pixel_mean = {self.pixel_mean} and pixel_std = {self.pixel_std} come together: '
                             'give both or neither')
        if self.pixel_mean is not None:
            image = (0.5 * image + 0.5 - jnp.asarray(self.pixel_mean)) / jnp.asarray(self.pixel_std)
        return self.visual_projection(self.vision_model(image)[1]).astype(jnp.float32)

    def encode_text(self, tokens: Array) -> Array:
        """Tokens int [B, L], L <= max_length -> embedding float32 [B, projection_dim]."""
        return self.text_projection(self.text_model(tokens)[1]).astype(jnp.float32)

    def __call__(self, image: Array, tokens: Array) -> tuple[Array, Array, Array]:
        """(image [B, S, S, 3], tokens [B, L]) -> unit embeddings [B, D] of both, logit_scale ()."""
        u, v = self.encode_image(image), self.encode_text(tokens)
        u, v = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (u, v))
        return u, v, self.logit_scale


def clip_vit_b32(**kwargs) -> CLIP:
    """ViT-B/32 of Radford et al. 2021, Table 20: 151,277,313 parameters; 224x224 images, OpenAI's BPE tokens."""
    return CLIP(**{'pixel_mean': OPENAI_MEAN, 'pixel_std': OPENAI_STD, **kwargs})


def clip_shapes(**kwargs) -> CLIP:
    """A small CLIP with a convolutional stem for the 32x32 scenes and the 31-word language of `shapes`."""
    defaults = dict(image_size=32, patch_size=8, stem=(32, 64, 96), vision_width=96, vision_layers=2, vision_heads=3,
                    vision_hidden=192, vocab_size=31, max_length=24, eos_token_id=2, text_width=64, text_layers=2,
                    text_heads=2, text_hidden=128, projection_dim=64, act='gelu_pytorch_tanh')
    return CLIP(**{**defaults, **kwargs})


def clip_tiny(**kwargs) -> CLIP:
    """For tests: 8x8 images, 16 tokens, one layer of width 16 on each side."""
    defaults = dict(image_size=8, patch_size=4, vision_width=16, vision_layers=1, vision_heads=2, vision_hidden=32,
                    vocab_size=16, max_length=8, text_width=16, text_layers=1, text_heads=2, text_hidden=32,
                    projection_dim=8)
    return CLIP(**{**defaults, **kwargs})
