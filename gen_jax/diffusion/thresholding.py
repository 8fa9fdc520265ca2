"""Thresholding of the predicted x0, as transforms of a denoiser: static and dynamic."""

import jax.numpy as jnp

from gen_jax.diffusion.parameterisation import at_least_float32, from_x0
from gen_jax.diffusion.process import expand
from gen_jax.types import Array, Cond, Denoised, DenoiseFn, Level, Transform

__all__ = ['clip_x0', 'dynamic_threshold']


def _positive(name, value):
    if isinstance(value, (int, float)) and not value > 0:
        raise ValueError(f'{name} must be positive, got {value}.')


def _threshold(limited, recompute_eps: bool) -> Transform:
    """limited(x0) -> x0; log_var and aux stay."""

    def transform(denoise: DenoiseFn) -> DenoiseFn:
        def thresholded(x: Array, level: Level, cond: Cond) -> Denoised:
            d = denoise(x, level, cond)
            x0 = limited(d.x0)
            return d._replace(x0=x0, eps=from_x0(x, x0, level).eps if recompute_eps else d.eps)

        return thresholded

    return transform


def clip_x0(limit: float = 1.0, recompute_eps: bool = False) -> Transform:
    """Static thresholding: x0 clipped to [-limit, limit].

    Args:
        limit: () or [B], may be traced; inf clips nothing.
        recompute_eps: False keeps the network's eps (what `clip_sample` usually means in DDIM; DDPM does not read it);
            True makes eps agree with the clipped x0 and x (GLIDE).

    Raises:
        ValueError: a limit of 0 or less.
    """
    _positive('limit', limit)
    return _threshold(lambda x0: jnp.clip(x0, -expand(limit, x0), expand(limit, x0)), recompute_eps)


def dynamic_threshold(percentile: float = 0.995, limit: float = 1.0, max_value: float = float('inf'),
                      recompute_eps: bool = False) -> Transform:
    """Dynamic thresholding (Saharia et al. 2022, Imagen, Sec. 2.3): x0 is clipped to [-s, s] and scaled by limit / s.

    s is the `percentile` of |x0| over all pixels and channels of each example, linearly interpolated, but at least
    `limit` (where it is static thresholding) and at most `max_value`.

    Args:
        percentile: (), within [0, 1], may be traced (diffusers: `dynamic_thresholding_ratio`).
        limit: data range of the model, [-limit, limit]; () or [B], may be traced.
        max_value: largest s, () or [B], may be traced (diffusers: `sample_max_value`, whose default of 1 makes it
            static).
        recompute_eps: as in `clip_x0`.

    Raises:
        ValueError: a percentile outside [0, 1], or a limit or max_value of 0 or less.
    """
    if isinstance(percentile, (int, float)) and not 0 <= percentile <= 1:
        raise ValueError(f'percentile must lie within [0, 1], got {percentile}; 99.5 % is 0.995.')
    _positive('limit', limit)
    _positive('max_value', max_value)

    def limited(x0):
        x0 = at_least_float32(x0)
        s = jnp.quantile(jnp.abs(x0).reshape(x0.shape[0], -1), percentile, axis=1)
        s = jnp.clip(s, limit, max_value)
        bound = expand(s, x0)
        return jnp.clip(x0, -bound, bound) * expand(limit / s, x0)

    return _threshold(limited, recompute_eps)
