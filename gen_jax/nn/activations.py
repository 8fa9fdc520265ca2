"""Activations by the names that published configs use."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from gen_jax.types import Array

__all__ = ['activation']


def mish(x: Array) -> Array:
    """x tanh(softplus(x)); Misra, 2019 (https://arxiv.org/abs/1908.08681), Eq. 1."""
    return x * jnp.tanh(jax.nn.softplus(x))


ACTIVATIONS = {
    'silu': jax.nn.silu,
    'swish': jax.nn.silu,
    'mish': mish,
    'gelu': partial(jax.nn.gelu, approximate=False),
    'relu': jax.nn.relu,
}


def activation(name: str) -> Callable[[Array], Array]:
    """The function called `name`: silu, swish (the same), mish, gelu (exact, by erf) or relu.

    Raises:
        ValueError: unknown name.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f'unknown act_fn {name!r}; choose from {", ".join(ACTIVATIONS)}')
    return ACTIVATIONS[name]
