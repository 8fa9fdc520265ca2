"""Classification accuracy from logits."""

import numpy as np

from gen_jax.metrics.mean import fetch
from gen_jax.types import Metric

__all__ = ['zero_shot_accuracy']


def zero_shot_accuracy(key: str = 'logits', label: str = 'label', top: tuple[int, ...] = (1,),
                       name: str = 'zero_shot_accuracy') -> Metric:
    """Share of examples whose label is among the k largest of logits [B, K], for each k in `top`.

    A tie counts against the model: constant logits score 0, not 1/K. Gives `name` for k = 1, `name_top5` for k = 5,
    `name_stderr` (binomial, of the first k) and `name_recipe`.

    Raises:
        ValueError: at update, for logits that are not [B, K] or not finite, and labels outside 0..K-1.
    """
    top = tuple(top)
    if not top or min(top) < 1:
        raise ValueError(f'{name}: top={top} must name at least one k >= 1')

    def update(state, outputs):
        logits, labels = fetch(outputs, key, name).astype(np.float64), fetch(outputs, label, name)
        if logits.ndim != 2 or labels.shape != logits.shape[:1]:
            raise ValueError(f'metric {name}: {key!r} has shape {logits.shape} and {label!r} {labels.shape}; expected '
                             '[B, K] and [B]')
        if not np.isfinite(logits).all():
            raise ValueError(f'metric {name}: {key!r} holds NaN or infinity')
        if labels.size and not (0 <= labels.min() and labels.max() < logits.shape[1]):
            raise ValueError(f'metric {name}: labels span {labels.min()}..{labels.max()}, but there are '
                             f'{logits.shape[1]} classes')
        own = np.take_along_axis(logits, labels[:, None].astype(np.int64), 1)
        rank = (logits >= own).sum(1)  # 1 for the only largest
        hits = (rank[:, None] <= np.array(top)).sum(0)
        return state + np.array([len(labels), *hits], np.float64)

    def compute(state):
        n, shares = state[0], state[1:] / max(state[0], 1)
        if n == 0:
            raise ValueError(f'metric {name} has seen no examples: is the evaluated split empty?')
        result = {name if k == 1 else f'{name}_top{k}': float(s) for k, s in zip(top, shares, strict=True)}
        return {**result, f'{name}_stderr': float(np.sqrt(shares[0] * (1 - shares[0]) / n)),
                f'{name}_recipe': {'n': int(n), 'of': key, 'ties': 'wrong'}}

    return Metric(lambda: np.zeros(1 + len(top)), update, np.add, compute)
