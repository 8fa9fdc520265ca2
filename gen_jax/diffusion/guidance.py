"""Guidance by a second opinion: transforms that extrapolate away from another prediction of the denoiser.

x0 and eps are guided alike, both being linear in the network's output. `log_var` and `aux` are always those of the
fully conditioned branch. A `scale` is a number or an array, () or [B], which may be traced, or a function of the
Level (`interval` makes one); None returns the denoiser itself. Transforms stack: g(f(denoise)).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gen_jax.diffusion import parameterisation
from gen_jax.diffusion.parameterisation import at_least_float32
from gen_jax.diffusion.process import expand
from gen_jax.diffusion.thresholding import clip_x0, dynamic_threshold
from gen_jax.types import Array, Cond, Denoised, DenoiseFn, Level, Transform

__all__ = ['classifier_free', 'instruct_pix2pix', 'autoguidance', 'interval', 'clip_x0', 'dynamic_threshold']

Scale = float | Array | Callable[[Level], Array]
Null = Mapping[str, Any] | Callable[[Cond], Mapping[str, Any]]

# What guidance_rescale rescales; the label is not read, the network's output being known.
_SPACES = {name: getattr(parameterisation, name)(label_scale=1.0) for name in ('eps', 'x0', 'v')}


def check_scale(name: str, scale) -> None:
    """Refuses a Python number that no guidance scale can be."""
    if isinstance(scale, (int, float)) and not 0 <= scale < math.inf:
        raise ValueError(f'{name} must be at least 0 and finite, got {scale}.')


def scale_at(scale: Scale, level: Level, x: Array) -> Array:
    """The scale at that level, shaped to broadcast against x [B, ...]."""
    return expand(scale(level) if callable(scale) else scale, x)


def interval(scale: Scale | None, sigma_lo: float = 0.0, sigma_hi: float = math.inf, outside: float = 1.0):
    """A guidance scale limited to noise levels (Kynkaanniemi et al. 2024, Eq. 5): `scale` where
    sigma_lo < sigma / alpha <= sigma_hi, and `outside` elsewhere, where a scale of 1 leaves the conditional model.

    Args:
        scale: any guidance scale, or None, which is returned.
        sigma_lo, sigma_hi: noise-to-signal ratios (EDM's sigma), () or [B], may be traced.
        outside: 1, or 0 for gradient guidance.

    Returns:
        A function level -> scale, for any transform that takes a scale.

    Raises:
        ValueError: Python numbers without 0 <= sigma_lo < sigma_hi.
    """
    check_scale('scale', scale)
    numbers = [isinstance(a, (int, float)) for a in (sigma_lo, sigma_hi)]
    if numbers[0] and not sigma_lo >= 0 or all(numbers) and not sigma_lo < sigma_hi:
        raise ValueError(f'an interval of noise levels needs 0 <= sigma_lo < sigma_hi, got sigma_lo={sigma_lo} and '
                         f'sigma_hi={sigma_hi}.')
    if scale is None:
        return None

    def at(level: Level) -> Array:
        noise_only = level.alpha == 0
        ratio = jnp.where(noise_only, jnp.inf, level.sigma / jnp.where(noise_only, 1.0, level.alpha))
        value = scale(level) if callable(scale) else scale
        return jnp.where((ratio > sigma_lo) & (ratio <= sigma_hi), value, outside)

    return at


def _interleave(*branches: Array) -> Array:
    """[a0, b0, a1, b1, ...]: neighbours stay on the device of their example, so no collective is needed."""
    return jnp.stack(branches, axis=1).reshape((-1,) + branches[0].shape[1:])


def _branches(denoise: DenoiseFn, x: Array, level: Level, conds: Sequence[Cond]) -> list[Denoised]:
    """One call of the denoiser under several conditions, the batch being multiplied by interleaving."""
    n, batch = len(conds), x.shape[0]
    levels = level._replace(**{name: _interleave(*[a] * n) for name in ('t', 'alpha', 'sigma')
                               if jnp.ndim(a := getattr(level, name))})
    d = denoise(_interleave(*[x] * n), levels, jax.tree.map(_interleave, *(dict(c) for c in conds)))
    return [jax.tree.map(lambda a, i=i: a.reshape((batch, n) + a.shape[1:])[:, i], d) for i in range(n)]


def _without(cond: Cond, uncond: Null) -> dict[str, Any]:
    """cond with the null values put in; a condition that is a mapping itself has its own, by key."""
    null = uncond(cond) if callable(uncond) else uncond
    missing = sorted(set(null) - set(cond))
    if missing or not null:
        raise ValueError(f'Guidance needs null values for keys of the condition {sorted(cond)}, '
                         f'got {sorted(null)}; pass scale=None to sample without guidance.')

    def put(key, value):
        if key not in null:
            return value
        if isinstance(value, Mapping):
            return _without(value, null[key])
        return jnp.broadcast_to(jnp.asarray(null[key], value.dtype), value.shape)

    return {key: put(key, value) for key, value in cond.items()}


def _away(on: Denoised, *steps: tuple[Array, Denoised, Denoised]) -> Denoised:
    """on + sum of w (better - worse), which at w = 0 is exactly `on`."""
    def moved(name):
        value = at_least_float32(getattr(on, name))
        return sum((w * (getattr(better, name) - getattr(worse, name)) for w, better, worse in steps), value)

    return on._replace(x0=moved('x0'), eps=moved('eps'))


def _rescale(guided: Denoised, on: Denoised, x: Array, level: Level, phi, space: str) -> Denoised:
    kind = _SPACES[space]
    raw, goal = (kind.target(d.x0, d.eps, level) for d in (guided, on))
    axes = tuple(range(1, x.ndim))
    std, goal_std = (jnp.std(a, axis=axes, keepdims=True) for a in (raw, goal))
    ratio = jnp.where(std == 0, 1.0, goal_std / jnp.where(std == 0, 1.0, std))
    phi = expand(phi, x)
    d = kind.denoiser(lambda *_: raw * (phi * ratio + (1.0 - phi)), None)(x, level, {})
    return guided._replace(x0=d.x0, eps=d.eps)


def classifier_free(scale: Scale | None, uncond: Null, guidance_rescale: float = 0.0,
                    rescale_space: str = 'v') -> Transform:
    """Classifier-free guidance: d_uncond + scale (d_cond - d_uncond) (Ho & Salimans 2022, Eq. 6; scale = 1 + w).

    The network is called once, on the batch doubled by interleaving, which needs no collectives when sharded.

    Args:
        scale: guidance scale, () or [B], may be traced, or level -> scale (`interval`): 1 is exactly conditional
            sampling, 0 unconditional. None returns the denoiser itself, which calls the network once per step on the
            batch as it is.
        uncond: null value per condition key, for one example or broadcastable to cond[key]; or a function from cond
            to such a mapping. Keys of cond that it does not name are shared by both branches.
        guidance_rescale: phi of Lin et al. 2024, Eq. 15-16, 0 .. 1, may be traced: how far the standard deviation of
            each guided prediction is pulled back to that of the conditional one. The Python number 0 costs nothing.
        rescale_space: what is rescaled: 'v' (the paper; finite at alpha = 0), 'eps' or 'x0'. diffusers rescales
            whatever its network puts out.

    Raises:
        ValueError: a negative or infinite scale, guidance_rescale outside [0, 1], an unknown rescale_space; at trace
            time, an empty `uncond` or a key that cond lacks.
    """
    check_scale('guidance_scale', scale)
    if isinstance(guidance_rescale, (int, float)) and not 0 <= guidance_rescale <= 1:
        raise ValueError(f'guidance_rescale must lie within [0, 1], got {guidance_rescale}.')
    if rescale_space not in _SPACES:
        raise ValueError(f'Unknown rescale_space {rescale_space!r}; choose one of {sorted(_SPACES)}.')
    if scale is None:
        return lambda denoise: denoise
    rescales = not (isinstance(guidance_rescale, (int, float)) and guidance_rescale == 0)

    def transform(denoise: DenoiseFn) -> DenoiseFn:
        def guided(x: Array, level: Level, cond: Cond) -> Denoised:
            on, off = _branches(denoise, x, level, (cond, _without(cond, uncond)))
            d = _away(on, (scale_at(scale, level, x) - 1.0, on, off))
            return _rescale(d, on, x, level, guidance_rescale, rescale_space) if rescales else d

        return guided

    return transform


def instruct_pix2pix(guidance_scale: Scale | None, image_guidance_scale: Scale, uncond: Null,
                     uncond_image: Null) -> Transform:
    """Guidance by two conditions (Brooks et al. 2023, InstructPix2Pix, Eq. 3), in one call on the tripled batch.

    d(0, 0) + image_guidance_scale (d(image, 0) - d(0, 0)) + guidance_scale (d(image, text) - d(image, 0)). At equal
    scales it is classifier-free guidance of both conditions at once; at image_guidance_scale 1, of the text alone.

    Args:
        guidance_scale: of the instruction, as `scale` in `classifier_free`; None returns the denoiser itself.
        image_guidance_scale: of the image.
        uncond: null values of the instruction's keys, as in `classifier_free`.
        uncond_image: null values of the image's keys.

    Raises:
        ValueError: as in `classifier_free`.
    """
    check_scale('guidance_scale', guidance_scale)
    check_scale('image_guidance_scale', image_guidance_scale)
    if guidance_scale is None:
        return lambda denoise: denoise

    def transform(denoise: DenoiseFn) -> DenoiseFn:
        def guided(x: Array, level: Level, cond: Cond) -> Denoised:
            image_only = _without(cond, uncond)
            both, image, none = _branches(denoise, x, level, (cond, image_only, _without(image_only, uncond_image)))
            return _away(both, (scale_at(guidance_scale, level, x) - 1.0, both, image),
                         (scale_at(image_guidance_scale, level, x) - 1.0, image, none))

        return guided

    return transform


def autoguidance(scale: Scale | None, weak: DenoiseFn) -> Transform:
    """Guidance by a worse version of the model (Karras et al. 2024, Eq. 3): d_weak + scale (d - d_weak).

    Args:
        scale: as in `classifier_free`; 1 is exactly the model, None returns it and never calls `weak`.
        weak: a smaller or less trained denoiser, told the same condition; its log_var and aux are dropped. The
            paper's joint use with conditions is a transform of either denoiser before this one.

    Raises:
        ValueError: a negative or infinite scale.
    """
    check_scale('guidance_scale', scale)
    if scale is None:
        return lambda denoise: denoise

    def transform(denoise: DenoiseFn) -> DenoiseFn:
        def guided(x: Array, level: Level, cond: Cond) -> Denoised:
            strong = denoise(x, level, cond)
            return _away(strong, (scale_at(scale, level, x) - 1.0, strong, weak(x, level, cond)))

        return guided

    return transform
