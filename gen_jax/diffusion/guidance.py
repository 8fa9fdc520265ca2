"""Transforms of a denoiser, which stack: classifier-free guidance and thresholding."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gen_jax.diffusion.parameterisation import from_x0
from gen_jax.diffusion.process import expand
from gen_jax.types import Array, Cond, Denoised, DenoiseFn, Level, Transform

__all__ = ['classifier_free', 'clip_x0']


def _interleave(a: Array, b: Array) -> Array:
    """[a0, b0, a1, b1, ...]: neighbours stay on the device of their example, so no collective is needed."""
    return jnp.stack([a, b], axis=1).reshape((2 * a.shape[0],) + a.shape[1:])


def classifier_free(scale, uncond: Mapping[str, Any] | Callable[[Cond], Mapping[str, Any]]) -> Transform:
    """Classifier-free guidance: d_uncond + scale (d_cond - d_uncond) (Ho & Salimans 2022, Eq. 6; scale = 1 + w).

    x0 and eps are guided alike, both being linear in the network's output; log_var and aux are those of the
    conditional branch. The network is called once, on the batch doubled by interleaving.

    Args:
        scale: guidance scale, () or [B], may be traced: 1 is conditional sampling, 0 unconditional. None returns the
            denoiser itself, which calls the network once per step on the batch as it is.
        uncond: null value per condition key, for one example or broadcastable to cond[key]; or a function from cond
            to such a mapping. Keys of cond that it does not name are shared by both branches.

    Raises:
        ValueError: at trace time, for an empty `uncond` or a key that cond lacks.
    """
    if scale is None:
        return lambda denoise: denoise

    def transform(denoise: DenoiseFn) -> DenoiseFn:
        def guided(x: Array, level: Level, cond: Cond) -> Denoised:
            null = uncond(cond) if callable(uncond) else uncond
            missing = sorted(set(null) - set(cond))
            if missing or not null:
                raise ValueError(f'Guidance needs null values for keys of the condition {sorted(cond)}, '
                                 f'got {sorted(null)}; pass scale=None to sample without guidance.')
            batch = x.shape[0]
            both = {}
            for key, value in cond.items():
                other = jnp.broadcast_to(jnp.asarray(null[key], value.dtype), value.shape) if key in null else value
                both[key] = _interleave(value, other)
            level2 = level._replace(**{name: _interleave(a, a) for name in ('t', 'alpha', 'sigma')
                                       if jnp.ndim(a := getattr(level, name))})
            d = denoise(_interleave(x, x), level2, both)
            first, second = (jax.tree.map(lambda a, i=i: a.reshape((batch, 2) + a.shape[1:])[:, i], d) for i in (0, 1))
            w = expand(jnp.asarray(scale), x)
            return first._replace(x0=second.x0 + w * (first.x0 - second.x0),
                                  eps=second.eps + w * (first.eps - second.eps))

        return guided

    return transform


def clip_x0(limit: float = 1.0, recompute_eps: bool = False) -> Transform:
    """Static thresholding: x0 clipped to [-limit, limit]; the limit may be traced, inf clips nothing.

    Args:
        recompute_eps: False keeps the network's eps (what `clip_sample` usually means in DDIM; DDPM does not read it);
            True makes eps agree with the clipped x0 and x (GLIDE).
    """
    if isinstance(limit, (int, float)) and not limit > 0:
        raise ValueError(f'limit must be positive, got {limit}.')

    def transform(denoise: DenoiseFn) -> DenoiseFn:
        def clipped(x: Array, level: Level, cond: Cond) -> Denoised:
            d = denoise(x, level, cond)
            x0 = jnp.clip(d.x0, -limit, limit)
            return d._replace(x0=x0, eps=from_x0(x, x0, level).eps if recompute_eps else d.eps)

        return clipped

    return transform
