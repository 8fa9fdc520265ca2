"""The two transformers of CLIP: an image tower and a causal text tower, each with all its layers' states on request.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision",
https://arxiv.org/abs/2103.00020 (section 2.4). Parameters carry the published key names, so a checkpoint's key is
'.'.join(path) with kernel, scale and embedding called weight.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from gen_jax.nn.transformer import Encoder, LayerNorm, activation
from gen_jax.types import Array

__all__ = ['TextModel', 'TowerOutput', 'VisionModel']


class TowerOutput(NamedTuple):
    """What a tower computes.

    Attributes:
        last_hidden_state: [B, N, C], of all tokens; the text tower's is behind its final norm.
        pooler_output: [B, C], of the token that stands for the whole input, normalised.
        hidden_states: on request num_layers + 1 arrays [B, N, C] without a final norm: the input of the first layer
            and what stands behind each; otherwise ().
        embeds: [B, projection_dim], the projection of pooler_output, by the models that have one.
    """

    last_hidden_state: Array
    pooler_output: Array
    hidden_states: tuple[Array, ...] = ()
    embeds: Array | None = None


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
    initializer_factor: float = 1.0

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
        normal = nn.initializers.normal(self.initializer_factor * self.width**-0.5)
        cls = self.param('class_embedding', normal, (self.width,))
        x = jnp.concatenate([jnp.broadcast_to(cls, (b, 1, self.width)).astype(x.dtype), x], axis=1)
        n = 1 + (size // self.patch_size) ** 2
        position = nn.Embed(n, self.width, embedding_init=normal, dtype=self.dtype, name='position_embedding')
        return x + position(jnp.arange(n))


class VisionModel(nn.Module):
    """Vision transformer: image [B, S, S, 3] -> `TowerOutput`, pooled at the class token behind a last norm."""

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
    layer_norm_eps: float = 1e-5
    attention_implementation: str | None = None
    initializer_factor: float = 1.0

    @nn.compact
    def __call__(self, image: Array, output_hidden_states: bool = False) -> TowerOutput:
        size = self.image_size
        if image.ndim != 4 or image.shape[1:] != (size, size, 3):
            raise ValueError(f'image has shape {image.shape}, but this network was built for [B, {size}, {size}, 3]; '
                             'resize the images or set image_size')
        if size % self.patch_size:
            raise ValueError(f'patch_size = {self.patch_size} does not divide image_size = {size}; choose a divisor')
        if self.patch_size % 2 ** len(self.stem):
            raise ValueError(f'a stem of {len(self.stem)} stride-2 convolutions needs a patch_size divisible by '
                             f'{2 ** len(self.stem)}, not {self.patch_size}')
        x = VisionEmbeddings(self.width, self.patch_size, self.stem, self.act, self.dtype, self.initializer_factor,
                             name='embeddings')(image)
        eps = self.layer_norm_eps
        x = LayerNorm(eps, self.dtype, name='pre_layrnorm')(x)  # spelt as in the published checkpoints
        encoder = Encoder(self.num_layers, self.num_heads, self.hidden, self.act, False, eps, self.dtype, self.remat,
                          self.attention_implementation, name='encoder')
        states = encoder(x, hidden_states=True)
        pooled = LayerNorm(eps, self.dtype, name='post_layernorm')(states[-1][:, 0])
        return TowerOutput(states[-1], pooled, states if output_hidden_states else ())


class TextEmbeddings(nn.Module):
    """Tokens int [B, L] -> [B, L, C]: learnt tokens plus learnt positions."""

    vocab_size: int
    max_length: int
    width: int
    dtype: Any = jnp.float32
    initializer_factor: float = 1.0

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        normal, factor = nn.initializers.normal, self.initializer_factor
        token = nn.Embed(self.vocab_size, self.width, embedding_init=normal(0.02 * factor), dtype=self.dtype,
                         name='token_embedding')
        position = nn.Embed(self.max_length, self.width, embedding_init=normal(0.01 * factor), dtype=self.dtype,
                            name='position_embedding')
        return token(tokens) + position(jnp.arange(tokens.shape[1]))


class TextModel(nn.Module):
    """Causal text transformer: tokens int [B, L] -> `TowerOutput`, pooled at the end of the text.

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
    layer_norm_eps: float = 1e-5
    attention_implementation: str | None = None
    initializer_factor: float = 1.0

    def setup(self):
        self.embeddings = TextEmbeddings(self.vocab_size, self.max_length, self.width, self.dtype,
                                         self.initializer_factor)
        self.encoder = Encoder(self.num_layers, self.num_heads, self.hidden, self.act, True, self.layer_norm_eps,
                               self.dtype, self.remat, self.attention_implementation)
        self.final_layer_norm = LayerNorm(self.layer_norm_eps, self.dtype)

    def states(self, tokens: Array, attention_mask: Array | None = None) -> tuple[Array, ...]:
        """The input of the first layer and what stands behind each: num_layers + 1 arrays [B, L, C]."""
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(f'tokens must be int [B, L], not {tokens.dtype} {tokens.shape}; tokenise the captions')
        if tokens.shape[1] > self.max_length:
            raise ValueError(f'tokens of length {tokens.shape[1]} exceed max_length = {self.max_length}; '
                             'truncate them or set max_length')
        if attention_mask is not None:
            if attention_mask.shape != tokens.shape:
                raise ValueError(f'attention_mask has shape {attention_mask.shape} but tokens {tokens.shape}; '
                                 'give one number per token, 0 where none may look')
            attention_mask = (attention_mask != 0)[:, None, None]
        return self.encoder(self.embeddings(tokens), attention_mask, hidden_states=True)

    def layer_state(self, tokens: Array, skip: int = 0, final_norm: bool = True,
                    attention_mask: Array | None = None) -> Array:
        """What stands `skip` layers before the last one's output, [B, L, C]: what diffusion models condition on.

        Stable Diffusion 1.x and 2.x: skip = clip_skip, 0 by default, with the final norm. SDXL: skip = 1 + clip_skip
        without it (Podell et al. 2023, https://arxiv.org/abs/2307.01952, section 2.1: the penultimate outputs).

        Raises:
            ValueError: skip outside of 0..num_layers.
        """
        if not 0 <= skip <= self.num_layers:
            raise ValueError(f'skip = {skip} leaves none of the {self.num_layers} layers; choose 0 to '
                             f'{self.num_layers}')
        x = self.states(tokens, attention_mask)[self.num_layers - skip]
        return self.final_layer_norm(x) if final_norm else x

    def __call__(self, tokens: Array, attention_mask: Array | None = None,
                 output_hidden_states: bool = False) -> TowerOutput:
        """Tokens int [B, L], L <= max_length; attention_mask [B, L], 0 where no token may look (padding)."""
        states = self.states(tokens, attention_mask)
        x = self.final_layer_norm(states[-1])
        ends = tokens if self.eos_token_id is None else (tokens == self.eos_token_id).astype(jnp.int32)
        # A masked sum and not a gather: XLA would exchange the indices of a gather between the shards of the batch.
        at_end = jnp.arange(tokens.shape[1]) == ends.argmax(-1)[:, None]
        pooled = jnp.where(at_end[:, :, None], x, 0).sum(1)
        return TowerOutput(x, pooled, states if output_hidden_states else ())
