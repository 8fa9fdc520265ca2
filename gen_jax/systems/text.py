"""Text as a condition: a frozen text encoder in front of a model that is trained on embeddings from the disk."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.types import Batch, Predict, PyTree, Variables

__all__ = ['frozen_text_encoder', 'tell', 'with_text']


def frozen_text_encoder(text_encoder) -> dict[str, PyTree]:
    """{'text_encoder': its parameters as ShapeDtypeStructs}, for `System.frozen`.

    Args:
        text_encoder: a CLIP (`gen_jax.models.clip`); all of it, since that is what a run of it holds.
    """
    tokens = jax.ShapeDtypeStruct((1, text_encoder.max_length), jnp.int32)
    image = jax.ShapeDtypeStruct((1, text_encoder.image_size, text_encoder.image_size, 3), jnp.float32)
    return {'text_encoder': jax.eval_shape(text_encoder.init, jax.random.key(0), image, tokens)['params']}


def tell(text_encoder, variables: Variables, batch: Batch) -> dict:
    """The batch with 'encoder_hidden_states' [B, L, C] and 'pooled' [B, C] of its 'tokens' [B, L], and with those of
    its 'negative_tokens' under 'negative_...'; a batch that has no tokens stays as it is."""
    batch = dict(batch)
    for prefix in ('', 'negative_'):
        if f'{prefix}tokens' in batch:
            states, pooled = text_encoder.apply({'params': variables.frozen['text_encoder']},
                                                batch.pop(f'{prefix}tokens'), method='text_states')
            batch |= {f'{prefix}encoder_hidden_states': states, f'{prefix}pooled': pooled}
    return batch


def with_text(use: Predict, text_encoder, tokenizer: Callable | None) -> Predict:
    """A predict that reads text too: batches may hold 'tokens' and 'negative_tokens', and settings a `prompt` and a
    `negative_prompt` (by default the empty one), which hold for all examples.

    Args:
        tokenizer: list of str -> int [N, L]; only `prompt` needs it.
    """
    def options(prompt: str | None = None, negative_prompt: str | None = None, **settings):
        if prompt is None and negative_prompt is not None:
            raise ValueError(f'negative_prompt {negative_prompt!r} needs a prompt, too')
        found = use.options(**settings)
        if negative_prompt is not None and not found.get('guidance'):
            raise ValueError(f'negative_prompt {negative_prompt!r} needs a guidance_scale, which leads away from it')
        if prompt is None:
            return {'settings': found, 'text': {}}
        if tokenizer is None:
            raise ValueError(f'prompt {prompt!r} needs a tokenizer: set system.tokenizer')
        texts = {'tokens': prompt, 'negative_tokens': negative_prompt or ''}
        for text in texts.values():
            if not isinstance(text, str):
                raise ValueError(f'a prompt is one text, got {text!r}; give several as tokens in the batch')
        return {'settings': found, 'text': {k: jnp.asarray(np.asarray(tokenizer([text])), jnp.int32)
                                            for k, text in texts.items()}}

    def run(variables, keys, batch, options):
        asked = {k: jnp.broadcast_to(v, (keys.shape[0], v.shape[1])) for k, v in options['text'].items()}
        return use.run(variables, keys, tell(text_encoder, variables, {**batch, **asked}), options['settings'])

    nfe = None if use.nfe is None else lambda options: use.nfe(options['settings'])
    return use._replace(run=run, options=options, nfe=nfe)
