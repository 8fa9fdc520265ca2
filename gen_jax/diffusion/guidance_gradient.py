"""Guidance by a gradient: of a classifier, or of any differentiable loss of x_t or of the predicted x0.

Adding scale * g to the score of p(x_t) moves eps by -sigma scale g and x0 by (sigma^2 / alpha) scale g, so that x, x0
and eps still agree. All gradients are taken in float32 at least; `log_var` and `aux` stay the network's. A `scale` is
as in `gen_jax.diffusion.guidance`, None returns the denoiser itself, and `interval(scale, ..., outside=0)` limits it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gen_jax.diffusion.guidance import Scale, check_scale, scale_at
from gen_jax.diffusion.parameterisation import at_least_float32, from_x0
from gen_jax.diffusion.process import expand
from gen_jax.types import Array, Cond, Denoised, DenoiseFn, Level, Transform

__all__ = ['classifier_guidance', 'loss_guidance', 'backward_guidance']

Loss = Callable[[Array, Level, Cond], Array]
"""(x0 or x_t, level, cond) -> one number per example [B]."""


def _per_example(values: Array, x: Array) -> Array:
    if values.shape != x.shape[:1]:
        raise ValueError(f'A guiding loss or log_prob returns one number per example, {x.shape[:1]}, got shape '
                         f'{values.shape}; sum over the other axes.')
    return values


def _slope(loss: Loss, x: Array, level: Level, cond: Cond) -> Array:
    """The gradient of each example's loss with respect to that example."""
    values, pullback = jax.vjp(lambda x: _per_example(loss(x, level, cond), x), x)
    return pullback(jnp.ones_like(values))[0]


def _over_alpha(a, alpha: Array) -> Array:
    """a / alpha, and 0 at alpha = 0, where x says nothing about x0."""
    return a / jnp.where(alpha == 0, jnp.inf, alpha)


def loss_guidance(scale: Scale | None, loss: Loss, of: str = 'x0', gradient: str = 'before',
                  shift_eps: bool = True) -> Transform:
    """The score moves down the gradient of a loss: score - scale d loss / d x_t.

    With loss = -log p(y | x_t) and scale 1 this samples from the posterior given y.

    Args:
        scale: strength, () or [B], may be traced, or a function of the level.
        loss: (x0 or x_t, level, cond) -> [B], differentiable, in float32.
        of: 'x0', the network's prediction, or 'x_t'.
        gradient: where, with respect to x_t, the gradient is taken.
            of='x0', 'before' the network: through it (Chung et al. 2023, DPS, Eq. 15-16; Bansal et al. 2023, Universal
                Guidance, Eq. 6); costs a backward pass.
            of='x0', 'after' it: eps is held, so that d x0 / d x_t = 1 / alpha.
            of='x_t', 'after': the network is not involved (Dhariwal & Nichol 2021, Eq. 14).
            of='x_t', 'before': the network is shown x_t - sigma^2 scale d loss / d x_t, the same step to first order.
        shift_eps: False moves x0 alone. With scale = level -> s / level.sigma ** 2 a DDIM step then is that of
            diffusers' course, where x moves by s times the gradient under an eps already predicted. Not read by
            of='x_t', gradient='before', where both are the network's.

    Raises:
        ValueError: negative or infinite scale, unknown `of` or `gradient`; at trace time, a loss that is not [B].
    """
    check_scale('scale', scale)
    for name, value, choices in (('of', of, ('x0', 'x_t')), ('gradient', gradient, ('before', 'after'))):
        if value not in choices:
            raise ValueError(f'Unknown {name} {value!r}; choose {choices[0]!r} or {choices[1]!r}.')
    if scale is None:
        return lambda denoise: denoise

    def transform(denoise: DenoiseFn) -> DenoiseFn:
        def through(x, level, cond):
            def predicted(x):
                d = denoise(x, level, cond)
                return _per_example(loss(at_least_float32(d.x0), level, cond), x), d

            values, pullback, d = jax.vjp(predicted, x, has_aux=True)
            return pullback(jnp.ones_like(values))[0], d

        def guided(x: Array, level: Level, cond: Cond) -> Denoised:
            x = at_least_float32(x)
            alpha, sigma, w = expand(level.alpha, x), expand(level.sigma, x), scale_at(scale, level, x)
            if of == 'x_t':
                slope = _slope(loss, x, level, cond)
                if gradient == 'before':
                    return denoise(x - sigma ** 2 * w * slope, level, cond)
                d = denoise(x, level, cond)
            elif gradient == 'before':
                slope, d = through(x, level, cond)
            else:
                d = denoise(x, level, cond)
                slope = _over_alpha(_slope(loss, at_least_float32(d.x0), level, cond), alpha)
            return d._replace(x0=d.x0 - _over_alpha(sigma ** 2, alpha) * w * slope,
                              eps=d.eps + sigma * w * slope if shift_eps else d.eps)

        return guided

    return transform


def classifier_guidance(scale: Scale | None, log_prob: Loss) -> Transform:
    """Classifier guidance (Dhariwal & Nichol 2021, Eq. 14): eps - sigma scale grad log p(y | x_t), x0 to match.

    At scale 1 and with the exact class posterior an unconditional model becomes the conditional one. The shift of the
    mean by the learned Sigma (their Algorithm 1) is a sampler: `gen_jax.sampling.classifier_shift`.

    Args:
        scale: () or [B], may be traced, or a function of the level.
        log_prob: (x_t, level, cond) -> log p(y | x_t) [B] of a classifier trained on noisy images; y is in cond.

    Raises:
        ValueError: negative or infinite scale; at trace time, a log_prob that is not [B].
    """
    return loss_guidance(scale, lambda x, level, cond: -log_prob(x, level, cond), of='x_t', gradient='after')


def backward_guidance(learning_rate: float, loss: Loss, steps: int = 1) -> Transform:
    """The predicted x0 is moved down a loss by gradient descent, without the network, and eps made to agree with x
    (Bansal et al. 2023, Universal Guidance, Eq. 7-9). It stacks with `loss_guidance`, their forward guidance.

    Args:
        learning_rate: of the descent, () or [B], may be traced, or a function of the level.
        loss: (x0, level, cond) -> [B], differentiable.
        steps: how many, at least 1.

    Raises:
        ValueError: steps < 1, a negative or infinite learning rate; at trace time, a loss that is not [B].
    """
    check_scale('learning_rate', learning_rate)
    if steps < 1:
        raise ValueError(f'steps must be at least 1, got {steps}.')

    def transform(denoise: DenoiseFn) -> DenoiseFn:
        def guided(x: Array, level: Level, cond: Cond) -> Denoised:
            x, d = at_least_float32(x), denoise(x, level, cond)
            rate = scale_at(learning_rate, level, x)
            x0 = jax.lax.fori_loop(0, steps, lambda _, x0: x0 - rate * _slope(loss, x0, level, cond),
                                   at_least_float32(d.x0))
            return d._replace(x0=x0, eps=from_x0(x, x0, level).eps)

        return guided

    return transform
