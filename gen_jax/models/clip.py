"""CLIP: an image encoder and a text encoder that share an embedding space.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision",
https://arxiv.org/abs/2103.00020 (section 2.4 and Table 20); networks by their published config.json are in
`gen_jax.models.clip_published`. Parameters carry the published key names, so a checkpoint's
key is '.'.join(path) with kernel, scale and embedding called weight.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from gen_jax.models.clip_towers import TextModel, VisionModel
from gen_jax.types import Array

__all__ = ['CLIP', 'TextModel', 'VisionModel', 'clip_shapes', 'clip_tiny', 'clip_vit_b16', 'clip_vit_b32',
           'clip_vit_l14', 'openclip_vit_b32', 'openclip_vit_bigg14', 'openclip_vit_h14']

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


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
        layer_norm_eps: added to every variance.
        attention_implementation: see `gen_jax.nn.attention.dot_product_attention`.
        vision_initializer_factor, text_initializer_factor: times the published standard deviations of tokens, positions
            and class token at the start, which suit long trainings: of words and of where they stand little is left
            behind the first layer, and short ones never learn word order.
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
    layer_norm_eps: float = 1e-5
    attention_implementation: str | None = None
    vision_initializer_factor: float = 1.0
    text_initializer_factor: float = 1.0

    def setup(self):
        self.vision_model = VisionModel(self.image_size, self.patch_size, self.vision_width, self.vision_layers,
                                        self.vision_heads, self.vision_hidden, tuple(self.stem), self.act, self.dtype,
                                        self.remat, self.layer_norm_eps, self.attention_implementation,
                                        self.vision_initializer_factor)
        self.text_model = TextModel(self.vocab_size, self.max_length, self.text_width, self.text_layers,
                                    self.text_heads, self.text_hidden, self.eos_token_id, self.act, self.dtype,
                                    self.remat, self.layer_norm_eps, self.attention_implementation,
                                    self.text_initializer_factor)

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
        return self.visual_projection(self.vision_model(image).pooler_output).astype(jnp.float32)

    def encode_text(self, tokens: Array, attention_mask: Array | None = None) -> Array:
        """Tokens int [B, L], L <= max_length; mask [B, L], 0 where none may look -> float32 [B, projection_dim]."""
        return self.text_projection(self.text_model(tokens, attention_mask).pooler_output).astype(jnp.float32)

    def text_states(self, tokens: Array) -> tuple[Array, Array]:
        """What a network can condition on, float32: states [B, L, C] behind the last norm, the pooled one [B, C]."""
        output = self.text_model(tokens)
        return output.last_hidden_state.astype(jnp.float32), output.pooler_output.astype(jnp.float32)

    def __call__(self, image: Array, tokens: Array, attention_mask: Array | None = None) -> tuple[Array, Array, Array]:
        """(image [B, S, S, 3], tokens [B, L]) -> unit embeddings [B, D] of both, logit_scale ()."""
        u, v = self.encode_image(image), self.encode_text(tokens, attention_mask)
        u, v = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (u, v))
        return u, v, self.logit_scale


def clip_vit_b32(**kwargs) -> CLIP:
    """ViT-B/32 of Radford et al. 2021, Table 20: 151,277,313 parameters; 224x224 images, OpenAI's BPE tokens."""
    return CLIP(**{'pixel_mean': OPENAI_MEAN, 'pixel_std': OPENAI_STD, **kwargs})


def clip_vit_b16(**kwargs) -> CLIP:
    """ViT-B/16 of Radford et al. 2021, Table 20."""
    return clip_vit_b32(**{'patch_size': 16, **kwargs})


def clip_vit_l14(**kwargs) -> CLIP:
    """ViT-L/14 of Radford et al. 2021, Table 20: 427,616,513 parameters; image_size=336 is the finer of the two."""
    defaults = dict(patch_size=14, vision_width=1024, vision_layers=24, vision_heads=16, vision_hidden=4096,
                    text_width=768, text_heads=12, text_hidden=3072, projection_dim=768)
    return clip_vit_b32(**{**defaults, **kwargs})


def openclip_vit_b32(**kwargs) -> CLIP:
    """OpenCLIP's ViT-B/32 (Cherti et al. 2023, https://arxiv.org/abs/2212.07143): OpenAI's with the exact GELU."""
    return clip_vit_b32(**{'act': 'gelu', **kwargs})


def openclip_vit_h14(**kwargs) -> CLIP:
    """OpenCLIP's ViT-H/14 (ibid.): 986,109,441 parameters."""
    defaults = dict(patch_size=14, vision_width=1280, vision_layers=32, vision_heads=16, vision_hidden=5120,
                    text_width=1024, text_layers=24, text_heads=16, text_hidden=4096, projection_dim=1024)
    return openclip_vit_b32(**{**defaults, **kwargs})


def openclip_vit_bigg14(**kwargs) -> CLIP:
    """OpenCLIP's ViT-bigG/14 (ibid.): 2,539,567,105 parameters."""
    defaults = dict(patch_size=14, vision_width=1664, vision_layers=48, vision_heads=16, vision_hidden=8192,
                    text_width=1280, text_layers=32, text_heads=20, text_hidden=5120, projection_dim=1280)
    return openclip_vit_b32(**{**defaults, **kwargs})


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
