"""Kullback-Leibler divergences in closed form: arrays [B, ...] -> nats per example [B]."""

import jax.numpy as jnp

from gen_jax.types import Array

__all__ = ['gaussian_kl', 'standard_normal_kl']


def _per_example(x: Array) -> Array:
    return x.reshape(x.shape[0], -1).sum(-1)


def standard_normal_kl(mean: Array, log_var: Array) -> Array:
    """KL(N(mean, exp(log_var)) || N(0, 1)) of a diagonal Gaussian, summed over all axes but the first.

    0.5 sum(mean^2 + exp(log_var) - 1 - log_var): Kingma & Welling 2013 (arXiv:1312.6114), appendix B.

    Args:
        mean: [B, ...].
        log_var: [B, ...], log of the variance (not of the standard deviation).

    Returns:
        Nats, [B]; never negative, 0 only at mean = 0, log_var = 0.
    """
    mean, log_var = mean.astype(jnp.float32), log_var.astype(jnp.float32)
    # expm1(v) - v keeps its digits near v = 0, where exp(v) - 1 - v would cancel.
    return 0.5 * _per_example(jnp.square(mean) + (jnp.expm1(log_var) - log_var))


def gaussian_kl(mean_q: Array, log_var_q: Array, mean_p: Array, log_var_p: Array) -> Array:
    """KL(N(mean_q, exp(log_var_q)) || N(mean_p, exp(log_var_p))) of diagonal Gaussians.

    Args:
        mean_q, log_var_q, mean_p, log_var_p: [B, ...], broadcast against each other.

    Returns:
        Nats, [B], summed over all axes but the first.
    """
    mean_q, log_var_q, mean_p, log_var_p = (x.astype(jnp.float32) for x in (mean_q, log_var_q, mean_p, log_var_p))
    delta = log_var_q - log_var_p
    return 0.5 * _per_example(jnp.square(mean_q - mean_p) * jnp.exp(-log_var_p) + (jnp.expm1(delta) - delta))
