"""Peak signal-to-noise ratio."""

import numpy as np

from gen_jax.metrics.mean import Running, fetch, running_add, running_merge
from gen_jax.types import Metric

__all__ = ['psnr']


def _unit(images: np.ndarray, key: str) -> np.ndarray:
    """uint8 or floats in [-1, 1] -> float64 in [0, 1]; floats are clipped, as any picture file would."""
    if images.dtype == np.uint8:
        return images / 255.0
    if images.dtype.kind not in 'fV':
        raise ValueError(f'psnr: {key!r} is {images.dtype}: expected uint8, or floating point in [-1, 1]')
    return np.clip(images.astype(np.float64), -1.0, 1.0) / 2 + 0.5


def psnr(prediction: str = 'reconstruction', target: str = 'image', name: str = 'psnr') -> Metric:
    """Mean over images of 10 log10(peak^2 / MSE), in dB, between outputs `prediction` and `target` [B, ...].

    Each is uint8 (peak 255) or floating point in [-1, 1] (peak 2, clipped), so both may be of different kinds. A pair
    of equal images makes the mean inf (the recipe counts them under `exact`). Gives `name`, `name_stderr` and
    `name_recipe`.
    """

    def update(state, outputs):
        a, b = fetch(outputs, prediction, name), fetch(outputs, target, name)
        if a.shape != b.shape or a.ndim < 2:
            raise ValueError(f'metric {name}: {prediction!r} has shape {a.shape} and {target!r} {b.shape}; they must '
                             'be equal [B, ...]')
        error = np.square(_unit(a, prediction) - _unit(b, target)).mean(tuple(range(1, a.ndim)))
        exact = error == 0
        return running_add(state[0], -10 * np.log10(error[~exact])), state[1] + exact.sum()

    def merge(a, b):
        return running_merge(a[0], b[0]), a[1] + b[1]

    def compute(state):
        (n, center, m2), exact = state
        if n + exact == 0:
            raise ValueError(f'metric {name} has seen no images: is the evaluated split empty?')
        error = float(np.sqrt(m2 / (n - 1) / n)) if n > 1 and not exact else float('nan')
        return {name: float('inf') if exact else float(center), f'{name}_stderr': error,
                f'{name}_recipe': {'n': int(n + exact), 'exact': int(exact), 'mean': 'of the dB of each image',
                                   'clip': True}}

    return Metric(lambda: (Running(*np.zeros(3)), np.float64(0)), update, merge, compute)
