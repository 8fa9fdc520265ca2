"""Adversarial losses: discriminator logits [B] or [B, ...] -> losses per example [B].

Logits with more axes (patch discriminators) are averaged over the axes behind the first. Positive logits mean real.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gen_jax.types import Array

__all__ = ['discriminator_loss', 'generator_loss', 'r1_penalty']

_KINDS = ('non_saturating', 'hinge', 'wasserstein')


def _per_example(x: Array) -> Array:
    return x.astype(jnp.float32).reshape(x.shape[0], -1).mean(-1)


def _check_kind(kind: str) -> None:
    if kind not in _KINDS:
        raise ValueError(f'unknown adversarial loss {kind!r}; choose one of {", ".join(_KINDS)}')


def discriminator_loss(real: Array, fake: Array, kind: str = 'non_saturating', label_smoothing: float = 0.0) -> Array:
    """What the discriminator minimises.

    * non_saturating: -log sigmoid(real) - log(1 - sigmoid(fake)) (Goodfellow et al. 2014, arXiv:1406.2661, eq. 1).
      With one-sided label smoothing s the target of a real image is 1 - s, that of a fake one stays 0 (Salimans et
      al. 2016, arXiv:1606.03498, section 3.4: smoothing the fake side would reward samples the generator has already).
    * hinge: max(0, 1 - real) + max(0, 1 + fake) (Lim & Ye 2017, arXiv:1705.02894).
    * wasserstein: fake - real (Arjovsky et al. 2017, arXiv:1701.07875); the Lipschitz bound is the caller's.

    Args:
        real: logits of real images, [B, ...].
        fake: logits of generated images, [B, ...].
        kind: one of the three.
        label_smoothing: s in [0, 1); only with non_saturating.

    Returns:
        [B] float32.
    """
    _check_kind(kind)
    if not 0 <= label_smoothing < 1:
        raise ValueError(f'label_smoothing is {label_smoothing}; it must lie in [0, 1)')
    if label_smoothing and kind != 'non_saturating':
        raise ValueError(f'label_smoothing {label_smoothing} has no meaning for the {kind} loss; set it to 0')
    if kind == 'hinge':
        return _per_example(jax.nn.relu(1 - real)) + _per_example(jax.nn.relu(1 + fake))
    if kind == 'wasserstein':
        return _per_example(fake) - _per_example(real)
    real_loss = (1 - label_smoothing) * jax.nn.softplus(-real) + label_smoothing * jax.nn.softplus(real)
    return _per_example(real_loss) + _per_example(jax.nn.softplus(fake))


def generator_loss(fake: Array, kind: str = 'non_saturating') -> Array:
    """What the generator minimises: -log sigmoid(fake) (non_saturating), else -fake.

    Args:
        fake: the discriminator's logits of generated images, [B, ...].
        kind: non_saturating, hinge or wasserstein.

    Returns:
        [B] float32.
    """
    _check_kind(kind)
    return _per_example(jax.nn.softplus(-fake) if kind == 'non_saturating' else -fake)


def r1_penalty(discriminate: Callable[[Array], Array], real: Array) -> Array:
    """||d logits / d x||^2 at real images (Mescheder et al. 2018, arXiv:1801.04406, eq. 9, without gamma / 2).

    Args:
        discriminate: x [B, ...] -> logits [B, ...]. The gradient of the sum over the batch is taken, which is the
            gradient of each example wherever examples do not meet (no batch norm in training mode).
        real: real images [B, ...].

    Returns:
        [B] float32, the squared norm per example.
    """
    gradient = jax.grad(lambda x: discriminate(x).astype(jnp.float32).sum())(real)
    return jnp.square(gradient.astype(jnp.float32)).reshape(real.shape[0], -1).sum(-1)
