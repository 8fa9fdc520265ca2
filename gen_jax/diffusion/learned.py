"""A process whose noise schedule is learned: built from parameters, inside a loss or a sampler."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gen_jax.types import Array, Process

__all__ = ['learned']


def learned(gamma: Callable[[Array], Array], t_min: float = 0.0, t_max: float = 1.0) -> Process:
    """Variance preserving, alpha^2 = sigmoid(-gamma(t)) and sigma^2 = sigmoid(gamma(t)) (VDM, Eq. 3).

    Kingma et al., 2021 (https://arxiv.org/abs/2107.00630). Since gamma holds parameters, every function answers with
    JAX arrays; `inverse` bisects (to float32's digits) and stays within t_min .. t_max.

    Args:
        gamma: -log(alpha^2 / sigma^2), increasing; t of any shape -> the same shape.
    """

    def level(t, sign):
        return jnp.exp(0.5 * jax.nn.log_sigmoid(sign * gamma(jnp.asarray(t, jnp.float32))))

    def inverse(lam):
        wanted = -2.0 * jnp.asarray(lam, jnp.float32)

        def halve(_, ends):
            low, high = ends
            middle = 0.5 * (low + high)
            early = gamma(middle) < wanted
            return jnp.where(early, middle, low), jnp.where(early, high, middle)

        ends = jnp.full_like(wanted, t_min), jnp.full_like(wanted, t_max)
        return 0.5 * sum(jax.lax.fori_loop(0, 32, halve, ends))

    return Process(lambda t: level(t, -1.0), lambda t: level(t, 1.0), inverse, t_min, t_max)
