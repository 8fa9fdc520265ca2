"""Prompts to what a UNet is told: token ids on the host, encoded inside the program that samples."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from gen_jax.types import Array, PyTree

__all__ = ['TextEncoder', 'encode', 'prompts_of', 'tokenise']


class TextEncoder(NamedTuple):
    """A text tower and the tokenizer that goes with it."""

    name: str
    """Of its weights among the variables, which is its folder's: 'text_encoder', 'text_encoder_2'."""
    module: nn.Module
    tokenizer: Any
    """texts -> int32 [N, L], such as `gen_jax.tokenizers.clip_bpe.ClipTokenizer`."""


def prompts_of(prompt: str | Sequence[str], images_per_prompt: int = 1) -> list[str]:
    """One prompt per image, those of a prompt next to each other.

    Raises:
        ValueError: no prompt, something else than text, or a number below 1.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts or not all(isinstance(p, str) for p in prompts):
        raise ValueError(f'prompt must be a text or a list of texts, got {prompt!r}')
    if isinstance(images_per_prompt, bool) or not isinstance(images_per_prompt, int) or images_per_prompt < 1:
        raise ValueError(f'images_per_prompt must be an integer of at least 1, got {images_per_prompt!r}')
    return [p for p in prompts for _ in range(images_per_prompt)]


def tokenise(encoders: Sequence[TextEncoder], prompts: Sequence[str]) -> dict[str, np.ndarray]:
    """Token ids int32 [B, L] by encoder; the tokenizer warns of what a prompt is too long for, showing what it cut."""
    return {encoder.name: np.asarray(encoder.tokenizer(list(prompts)), np.int32) for encoder in encoders}


def encode(encoders: Sequence[TextEncoder], variables: Mapping[str, PyTree], tokens: Mapping[str, Array], *,
           penultimate: bool = False, clip_skip: int = 0) -> dict[str, Array]:
    """What a UNet is told of a text: {'encoder_hidden_states' [B, L, C]}, for SDXL also 'text_embeds' [B, P].

    Args:
        tokens: int32 [B, L] by encoder.
        penultimate: SDXL's way (Podell et al. 2023, Sec. 2.1): the states before the last layer of every encoder,
            without the final norm, side by side; and the projected text of the last encoder.
        clip_skip: last layers left out, beyond that; the final norm stays where it is used.
    """
    states, pooled = [], None
    for encoder in encoders:
        ids = tokens[encoder.name]
        read = {'params': variables[encoder.name]}
        if not penultimate:
            states.append(encoder.module.apply(read, ids, skip=clip_skip, method='layer_state'))
        else:
            out = encoder.module.apply(read, ids, output_hidden_states=True)
            states.append(out.hidden_states[-2 - clip_skip])
            pooled = out.embeds if out.embeds is not None else out.pooler_output
    told = {'encoder_hidden_states': jnp.concatenate(states, -1)}
    return told if pooled is None else {**told, 'text_embeds': pooled}
