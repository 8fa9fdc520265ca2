"""Optimizers and schedules from plain settings: optax with a learning rate per path."""

from collections.abc import Sequence

import jax
import optax

from gen_jax import trees

__all__ = ['make_optimizer', 'make_schedule']

OPTIMIZERS = ('adam', 'adamw', 'sgd', 'lion', 'adafactor')
SCHEDULES = ('constant', 'cosine', 'linear', 'rsqrt')


def make_schedule(name: str, lr: float, steps: int, warmup_steps: int = 0) -> optax.Schedule:
    """Learning rate by step: linear warm-up from 0, then the named curve down to 0 at `steps` (constant: none).

    Raises:
        ValueError: unknown name, or a warm-up longer than the run.
    """
    if name not in SCHEDULES:
        raise ValueError(f'optim.schedule {name!r}: choose from {", ".join(SCHEDULES)}')
    if warmup_steps and warmup_steps >= steps:
        raise ValueError(f'optim.warmup_steps {warmup_steps} is not less than train.steps {steps}; shorten the warm-up')
    rest = max(steps - warmup_steps, 1)
    if name == 'constant':
        main = optax.constant_schedule(lr)
    elif name == 'cosine':
        main = optax.cosine_decay_schedule(lr, rest)
    elif name == 'linear':
        main = optax.linear_schedule(lr, 0.0, rest)
    else:
        start = max(warmup_steps, 1)
        main = lambda n: lr * (start / (n + start)) ** 0.5  # noqa: E731
    if not warmup_steps:
        return main
    return optax.join_schedules([optax.linear_schedule(0.0, lr, warmup_steps), main], [warmup_steps])


def make_optimizer(name: str, lr: float, *, steps: int, schedule: str = 'constant', warmup_steps: int = 0,
                   b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.0,
                   clip_norm: float | None = None,
                   lr_multipliers: Sequence[str] = ('.*=1',)) -> optax.GradientTransformation:
    """clip -> scale by the named rule -> learning rate -> multiplier by path.

    Args:
        steps: length of the run, for schedules that end.
        clip_norm: global gradient norm, or None.
        lr_multipliers: 'REGEX=FACTOR' over leaf paths ('unet/conv_in/kernel'); first match wins and every leaf must
            match. A factor of 0 freezes the leaf (no update, no weight decay).

    Raises:
        ValueError: unknown names (with the choices), uncovered leaves (at init).
    """
    if name not in OPTIMIZERS:
        raise ValueError(f'optim.name {name!r}: choose from {", ".join(OPTIMIZERS)}')
    if lr < 0:
        raise ValueError(f'optim.lr {lr}: must not be negative')
    rate = make_schedule(schedule, lr, steps, warmup_steps)
    if weight_decay and name in ('adam', 'sgd'):
        raise ValueError(f'optim.weight_decay with {name}: use optim.name=adamw (decoupled weight decay)')
    if name == 'adam':
        rule = optax.adam(rate, b1=b1, b2=b2, eps=eps)
    elif name == 'adamw':
        rule = optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
    elif name == 'lion':
        rule = optax.lion(rate, b1=b1, b2=b2, weight_decay=weight_decay)
    elif name == 'sgd':
        rule = optax.sgd(rate, momentum=b1 or None)
    else:
        rule = optax.adafactor(rate, weight_decay_rate=weight_decay or None)
    parts = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
    parts.append(rule)
    rules = trees.parse_rules(lr_multipliers, float)
    if any(factor != 1 for _, factor in rules):
        parts.append(_scale_by_path(rules))
        if any(factor == 0 for _, factor in rules):  # frozen leaves must not enter the clipped norm either
            parts.insert(0, _scale_by_path([(p, float(f != 0)) for p, f in rules]))
    return optax.chain(*parts)


def _scale_by_path(rules) -> optax.GradientTransformation:
    def init(params):
        trees.match(rules, params, 'optim.lr_multipliers')
        return optax.EmptyState()

    def update(updates, state, params=None):
        del params
        factors = trees.match(rules, updates, 'optim.lr_multipliers')
        return jax.tree.map(lambda u, f: u * f, updates, factors), state

    return optax.GradientTransformation(init, update)
