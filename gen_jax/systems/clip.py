"""Contrastive language-image pre-training as a system: one network, one objective over the whole batch.

Radford et al. 2021, Figure 3, https://arxiv.org/abs/2103.00020.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.losses.contrastive import clip_log_scale, contrastive
from gen_jax.types import Array, Objective, Predict, System

__all__ = ['clip']


def _normalise(x: Array) -> Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def clip(network, tokenizer=None, optimizers=None) -> System:
    """A dual encoder trained by symmetric cross-entropy over the global batch.

    Args:
        network: Linen module with `encode_image(image) -> [B, D]`, `encode_text(tokens) -> [B, D]` and
            `(image, tokens) -> (unit u, unit v, log scale)` (`gen_jax.models.clip`); for text_states also
            `text_states(tokens) -> ([B, L, C], [B, C])`.
        tokenizer: str or list of str -> int [N, L]; only zero_shot's `captions` need it.
        optimizers: optax transformations by name; the objective uses 'clip'.

    Returns:
        A System with parameters 'clip' and objective 'contrastive' (per_example=False: examples are each other's
        negatives, so gradient accumulation and pmap would change the loss). Batches hold 'image' float [B, S, S, 3]
        in [-1, 1] and 'tokens' int [B, L], and may hold hard negatives, captions that are nearly right:
        'negative_tokens' int [B, L] and 'negative_valid' bool [B] (`exchange` of the transform tokenize). Predict
        functions:

        * encode_image, encode_text: unit 'embedding' [B, D].
        * text_states: 'encoder_hidden_states' [B, L, C] and 'pooled' [B, C] of the text tower, neither projected nor
          normalised to unit length: what a conditional network attends to.
        * zero_shot: 'logits' [B, K], 'prediction' int32 [B] and 'probability' [B, K] over K candidate classes of P
          phrasings each, a class being the normalised mean of its unit embeddings (section 3.1.4). Options: tokens int
          [K, P, L] (or [K, L]), or captions, K strings or K equally long lists of P strings.
        * losses: 'loss' [B] and whether each image finds its caption and each caption its image among the batch;
          padding rows ('valid' False) are left out.
    """

    def need(batch, *keys):
        remedy = {
            'image': 'choose a data source with images',
            'tokens': "choose a source with captions and add {'name': 'tokenize', ...} to data.transforms",
        }
        for key in keys:
            if key not in batch:
                raise ValueError(f'CLIP needs {key!r} in the batch, which has {sorted(batch)}: {remedy[key]}')
        return tuple(batch[key] for key in keys)

    def apply(params, method, x):
        return _normalise(network.apply({'params': params['clip']}, x, method=method))

    def init(key, batch):
        image, tokens = need(batch, 'image', 'tokens')
        image, tokens = jnp.asarray(image[:1], jnp.float32), jnp.asarray(tokens[:1])
        return {'clip': network.init(key, image, tokens)['params']}, {}

    def terms(params, batch):
        image, tokens = need(batch, 'image', 'tokens')
        if 'negative_tokens' in batch:
            tokens = jnp.concatenate([tokens, batch['negative_tokens']])
        u, v, log_scale = network.apply({'params': params['clip']}, image, tokens)
        v, negatives = v[:len(u)], v[len(u):] if len(v) > len(u) else None
        losses, found = contrastive(u, v, log_scale, batch.get('valid'), negatives, batch.get('negative_valid'))
        return losses, found, log_scale

    def loss(params, state, batch, noise):
        del state, noise
        losses, found, log_scale = terms(params, batch)
        weight = batch.get('valid', jnp.ones(len(losses))).astype(jnp.float32)
        weight = weight / jnp.maximum(weight.sum(), 1)
        metrics = {name: (weight * hit).sum() for name, hit in found.items()}
        metrics['temperature'] = jnp.exp(-clip_log_scale(log_scale))
        return (weight * losses).sum(), (metrics, {})

    def encode_image(variables, keys, batch, options):
        del keys, options
        return {'embedding': apply(variables.params, 'encode_image', *need(batch, 'image'))}

    def encode_text(variables, keys, batch, options):
        del keys, options
        return {'embedding': apply(variables.params, 'encode_text', *need(batch, 'tokens'))}

    def text_states(variables, keys, batch, options):
        del keys, options
        states, pooled = network.apply({'params': variables.params['clip']}, *need(batch, 'tokens'),
                                       method='text_states')
        return {'encoder_hidden_states': states, 'pooled': pooled}

    def zero_shot(variables, keys, batch, options):
        del keys
        params, tokens = variables.params, options['tokens']
        if tokens is None:
            raise ValueError('zero_shot needs its candidates: give the option tokens (int [K, P, L]) or captions')
        classes = apply(params, 'encode_text', tokens.reshape(-1, tokens.shape[-1]))
        classes = _normalise(classes.reshape(*tokens.shape[:2], -1).mean(1))
        u = apply(params, 'encode_image', *need(batch, 'image'))
        logits = jnp.exp(clip_log_scale(params['clip']['logit_scale'])) * (u @ classes.T)
        return {'logits': logits, 'prediction': logits.argmax(-1).astype(jnp.int32),
                'probability': jax.nn.softmax(logits, axis=-1)}

    def zero_shot_options(tokens=None, captions: Sequence | None = None):
        if (tokens is None) == (captions is None):
            raise ValueError('zero_shot needs either tokens (int [K, P, L]) or captions (K strings or K lists)')
        if captions is not None:
            tokens = _tokenise(tokenizer, captions)
        tokens = np.asarray(tokens)
        tokens = tokens[:, None] if tokens.ndim == 2 else tokens
        if tokens.ndim != 3 or tokens.dtype.kind not in 'iu' or 0 in tokens.shape:
            raise ValueError(f'candidate tokens must be integers [K, P, L], got {tokens.dtype} {tokens.shape}')
        return {'tokens': tokens.astype(np.int32)}

    def losses(variables, keys, batch, options):
        del keys, options
        value, found, _ = terms(variables.params, batch)
        return {'loss': value, **found}

    predict = {
        'encode_image': Predict(encode_image),
        'encode_text': Predict(encode_text),
        'text_states': Predict(text_states),
        'zero_shot': Predict(zero_shot, zero_shot_options),
        'losses': Predict(losses),
    }
    objective = Objective(loss, ('clip',), 'clip', per_example=False)
    return System(init, {'contrastive': objective}, predict, optimizers or {})


def _tokenise(tokenizer, captions) -> np.ndarray:
    """K strings or K equally long lists of strings -> int [K, P, L]."""
    if tokenizer is None:
        raise ValueError('captions need a tokenizer: build clip(network, tokenizer=...), or give tokens')
    classes = [[c] if isinstance(c, str) else list(c) for c in captions]
    lengths = {len(c) for c in classes}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f'every class needs the same number of phrasings, at least one; got {sorted(lengths)}')
    return np.stack([np.asarray(tokenizer(phrasings)) for phrasings in classes])
