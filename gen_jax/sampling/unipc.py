"""UniPC: a multistep predictor and a corrector that costs no call of its own (Zhao et al. 2023)."""

from typing import NamedTuple

import jax.numpy as jnp

from gen_jax.sampling.multistep import (
    History,
    corrections,
    empty,
    exponential_moments,
    limit_order,
    log_snr_gain,
    push,
    ratio,
    usable,
    weigh,
)
from gen_jax.types import Array, Level, Point, Sampler

__all__ = ['unipc']


class _State(NamedTuple):
    history: History
    base: Array
    """The last point, corrected: its x (predict_x0), or the x0 that agrees with its x and the eps read there."""
    order: Array
    """Of the last step; 0 where there is nothing to correct from."""


def unipc(order: int = 2, solver_type: str = 'bh2', predict_x0: bool = True, lower_order_final: bool = True,
          disable_corrector: tuple[int, ...] = ()) -> Sampler:
    """UniPC-p (Zhao et al. 2023, Algorithms 1 and 2). One call per step; order p + 1 with the corrector.

    A step first corrects the point where it stands, with what the denoiser says there, and then predicts the next one;
    the last point stays uncorrected. Both integrate, over the step in lambda, the polynomial through the last p values
    (the corrector: and the new one). B(h) is felt only where the paper simplifies: the predictor of order 2 and the
    corrector of order 1 take B(h) / 2 for the weight of the slope. Elsewhere it cancels.

    Args:
        order: p, 1 .. 3 (`solver_order`).
        solver_type: 'bh1', B(h) = h; 'bh2', B(h) = e^h - 1.
        predict_x0: the polynomial is that of x0 (reads x0 and x) or of eps (reads x0 and eps).
        lower_order_final: the order falls to 1 towards the last step, in runs of any length.
        disable_corrector: the steps (0 for the first) whose result is left as predicted.

    Raises:
        ValueError: order outside 1 .. 3, or unknown solver_type.
    """
    if order not in (1, 2, 3):
        raise ValueError(f'The order of unipc is 1, 2 or 3, got {order!r}.')
    if solver_type not in ('bh1', 'bh2'):
        raise ValueError(f"Unknown solver_type {solver_type!r}; choose 'bh1' or 'bh2'.")
    sign = -1.0 if predict_x0 else 1.0

    def integrate(t: Level, s: Level, nodes: Array, moments_used: Array, simple: int) -> Array:
        """Weights over a step from t to s of values at `nodes`, of which moments_used count, in the final units."""
        h = log_snr_gain(t, s)
        z = sign * jnp.where(jnp.isfinite(h) & (h != 0), h, 1.0)
        moments = exponential_moments(z, max(len(nodes), 2))
        half = 0.5 * (z if solver_type == 'bh1' else moments[0])
        second = half if len(nodes) > 1 and simple == 2 else None
        scale = -(s.alpha if predict_x0 else s.sigma)
        return scale * corrections(nodes, moments[:len(nodes)], moments_used, second)

    def past_nodes(t, s, alpha, sigma):
        """(u [k], how many count): the levels (alpha, sigma) [k] on the scale on which t is 0 and s is 1."""
        h = log_snr_gain(t, s)
        inner = jnp.isfinite(h) & (h != 0)
        past = -log_snr_gain(History(0, alpha, sigma), t)
        return usable(jnp.where(inner, past / jnp.where(inner, h, 1.0), jnp.inf))

    def step(noise, denoise, point, s, state):
        del noise
        x, t = point.x, point.level
        d = denoise(x, t)
        value = d.x0 if predict_x0 else d.eps
        old = state.history

        # Correct x at t: from the last level `p`, with the value just read as the node at 1.
        p = Level(None, old.alpha[0], old.sigma[0], None, None)
        u, _ = past_nodes(p, t, old.alpha[1:], old.sigma[1:])
        nodes = jnp.concatenate([jnp.array([0.0, 1.0], u.dtype), u])
        weights = integrate(p, t, nodes, state.order + 1, 2)
        sure = (state.order > 0) & jnp.isfinite(log_snr_gain(p, t))
        for skipped in disable_corrector:
            sure = sure & (t.index - 1 != skipped)
        change = weigh(weights, old.values[:1], value[None], old.values[1:])
        if predict_x0:
            keep = ratio(t.sigma, p.sigma)
            corrected = keep * state.base + (t.alpha - p.alpha * keep) * old.values[0] + change
            x = jnp.where(sure, corrected, x)
            base = x
        else:
            corrected = t.alpha * state.base + t.sigma * old.values[0] + change
            base = d.x0 + jnp.where(sure, ratio(corrected - x, t.alpha), 0.0)

        # Predict x at s.
        u, known = past_nodes(t, s, old.alpha[:order - 1], old.sigma[:order - 1])
        now = limit_order(order, known, s, False)
        if lower_order_final:
            now = jnp.minimum(now, jnp.maximum(s.last - s.index, 0) + 1)
        nodes = jnp.concatenate([jnp.zeros(1, u.dtype), u])
        change = weigh(integrate(t, s, nodes, now, 2), value[None], old.values[:order - 1]) if order > 1 else 0.0
        if predict_x0:
            keep = ratio(s.sigma, t.sigma)
            first = keep * x + (s.alpha - t.alpha * keep) * d.x0
            first = jnp.where(t.sigma == 0, s.alpha * d.x0 + s.sigma * d.eps, first)
        else:
            first = s.alpha * base + s.sigma * d.eps
        return Point(first + change, s, d.aux), _State(push(old, value, t), base, now)

    return Sampler(lambda point: _State(empty(point, order), point.x, jnp.int32(0)), step)
