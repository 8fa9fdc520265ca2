"""The contrastive loss of CLIP: Radford et al. 2021, Figure 3, https://arxiv.org/abs/2103.00020.

Plain array code over the whole batch: under a jit whose batch is sharded, XLA inserts the gather that gives every
example all negatives, so the loss of the sharded batch is the loss of the batch.
"""

import math

import jax
import jax.numpy as jnp

from gen_jax.types import Array

__all__ = ['MAX_LOG_SCALE', 'clip_log_scale', 'contrastive']

MAX_LOG_SCALE = math.log(100.0)


@jax.custom_vjp
def clip_log_scale(log_scale: Array) -> Array:
    """min(log_scale, ln 100), with a gradient that can lead back.

    The paper clips the parameter itself. Here the value is clipped where it is used, and beyond the limit only a
    gradient that would lower the parameter passes (with jnp.minimum a parameter beyond the limit would stay there).
    """
    return jnp.minimum(log_scale, MAX_LOG_SCALE)


def _clip_fwd(log_scale):
    return clip_log_scale(log_scale), log_scale


def _clip_bwd(log_scale, g):
    return (jnp.where(log_scale <= MAX_LOG_SCALE, g, jnp.maximum(g, 0.0)),)


clip_log_scale.defvjp(_clip_fwd, _clip_bwd)


def contrastive(u: Array, v: Array, log_scale: Array, valid: Array | None = None, negatives: Array | None = None,
                negative_valid: Array | None = None) -> tuple[Array, dict[str, Array]]:
    """Symmetric cross-entropy of the logits exp(log_scale) u v^T against the diagonal.

    loss_i = -(log softmax_j(l_ij)[i] + log softmax_j(l_ji)[i]) / 2,  l = exp(min(log_scale, ln 100)) u v^T

    With hard negatives w the first softmax, of an image over the texts, is over v and w together (Yuksekgonul et al.
    2023, section 4); the second, of a text over the images, is as it was.

    Args:
        u, v: unit embeddings [B, D]; row i of one belongs to row i of the other.
        log_scale: learnt log inverse temperature ().
        valid: bool [B] or None; rows where it is False are nobody's negative and have loss 0.
        negatives: unit embeddings [B, D] of texts that are nearly right, row i of u's row i, or None.
        negative_valid: bool [B] or None; negatives where it is False count for nothing.

    Returns:
        Losses float32 [B] and per-example metrics: 'image_to_text' and 'text_to_image' bool [B], whether row i
        ranks its partner first (a duplicate caption that ties with the partner counts as found) among the captions and
        images of the batch, and, with negatives, 'hard_negative' bool [B]: above its own negative.
    """
    if u.ndim != 2 or u.shape != v.shape:
        raise ValueError(f'embeddings must both be [B, D], got {u.shape} and {v.shape}')
    if negatives is not None and negatives.shape != v.shape:
        raise ValueError(f'negatives must be {v.shape} as the texts, got {negatives.shape}')
    u, v = u.astype(jnp.float32), v.astype(jnp.float32)
    scale = jnp.exp(clip_log_scale(log_scale))
    logits = scale * jnp.matmul(u, v.T, precision=jax.lax.Precision.HIGHEST)
    own = jnp.eye(len(u), dtype=bool)
    if valid is not None:
        both = valid[:, None] & valid[None, :]
        logits = jnp.where(both | own, logits, -jnp.inf)
    diagonal = jnp.where(own, logits, 0).sum(1)  # jnp.diagonal would gather across the shards
    texts = logits
    if negatives is not None:
        wrong = scale * jnp.matmul(u, negatives.astype(jnp.float32).T, precision=jax.lax.Precision.HIGHEST)
        counts = jnp.ones(own.shape, bool) if negative_valid is None else jnp.broadcast_to(negative_valid, own.shape)
        wrong = jnp.where(counts if valid is None else counts & both, wrong, -jnp.inf)
        texts = jnp.concatenate([logits, wrong], axis=1)
    loss = 0.5 * (jax.nn.logsumexp(texts, axis=1) + jax.nn.logsumexp(logits, axis=0)) - diagonal
    found = {'image_to_text': diagonal >= logits.max(1), 'text_to_image': diagonal >= logits.max(0)}
    if negatives is not None:
        found['hard_negative'] = diagonal > jnp.where(own, wrong, -jnp.inf).max(1)
    return loss, found
