"""Fréchet distance between Gaussians fitted to features, with streaming statistics in float64.

Dowson and Landau, "The Fréchet distance between multivariate normal distributions" (1982), eq. 4; used for images by
Heusel et al., "GANs trained by a two time-scale update rule" (2017), eq. 6.
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gen_jax.metrics.mean import fetch
from gen_jax.types import Metric

__all__ = ['Moments', 'add', 'covariance', 'empty', 'frechet', 'frechet_distance', 'merge', 'moments', 'sqrtm_psd']


class Moments(NamedTuple):
    """Sample size (), mean [D] and sum of outer products of deviations [D, D], float64."""

    n: np.ndarray
    mean: np.ndarray
    m2: np.ndarray


def empty(dimension: int) -> Moments:
    """The moments of no sample."""
    return Moments(np.float64(0), np.zeros(dimension), np.zeros((dimension, dimension)))


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of both samples together (Chan, Golub and LeVeque, 1979), exact but for rounding."""
    n = a.n + b.n
    if n == 0:
        return a
    delta = b.mean - a.mean
    return Moments(n, a.mean + delta * (b.n / n), a.m2 + b.m2 + np.outer(delta, delta) * (a.n * b.n / n))


def moments(features) -> Moments:
    """The moments of features [N, D]."""
    features = np.asarray(features, np.float64)
    if features.ndim != 2:
        raise ValueError(f'features have shape {list(features.shape)}: expected [N, D]')
    bad = int((~np.isfinite(features)).any(1).sum())
    if bad:
        raise ValueError(f'the features of {bad} of {len(features)} examples are not finite')
    if len(features) == 0:
        return empty(features.shape[1])
    mean = features.mean(0)
    centred = features - mean
    return Moments(np.float64(len(features)), mean, centred.T @ centred)


def add(state: Moments, features) -> Moments:
    """Adds features [N, D]."""
    return merge(state, moments(features))


def covariance(state: Moments) -> np.ndarray:
    """Unbiased covariance [D, D] (divided by n - 1, as every FID implementation does)."""
    if state.n < 2:
        raise ValueError(f'a covariance needs at least 2 examples, not {int(state.n)}')
    return state.m2 / (state.n - 1)


def sqrtm_psd(matrix) -> np.ndarray:
    """The symmetric square root of a symmetric positive semi-definite matrix [D, D], singular ones included.

    Raises:
        ValueError: not finite, not symmetric, or an eigenvalue is more negative than rounding explains.
    """
    matrix = np.asarray(matrix, np.float64)
    if not np.isfinite(matrix).all():
        raise ValueError('the matrix is not finite')
    scale = np.abs(matrix).max(initial=0.0)
    if not np.allclose(matrix, matrix.T, rtol=0, atol=1e-9 * scale):
        raise ValueError('the matrix is not symmetric: a covariance must be')
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    if values[0] < -1e-9 * max(values[-1], scale):
        raise ValueError(f'the matrix has the negative eigenvalue {values[0]:.3g}: a covariance has none')
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def frechet_distance(mean1, cov1, mean2, cov2) -> float:
    """|mean1 - mean2|^2 + tr(cov1 + cov2 - 2 (cov1 cov2)^(1/2)), the squared 2-Wasserstein distance of two Gaussians.

    The last trace is the nuclear norm of cov1^(1/2) cov2^(1/2), so no root of a non-symmetric product is taken: the
    result is real and not negative for singular covariances too, and symmetric in its arguments.
    """
    root1, root2 = sqrtm_psd(cov1), sqrtm_psd(cov2)
    cross = np.linalg.svd(root1 @ root2, compute_uv=False).sum()
    gap = np.square(np.asarray(mean1, np.float64) - np.asarray(mean2, np.float64)).sum()
    return max(float(gap + np.trace(cov1) + np.trace(cov2) - 2 * cross), 0.0)


def distance(state: Moments, reference: Moments, name: str = 'frechet') -> float:
    """Fréchet distance of two sets of moments; warns where few examples bias it."""
    dimension = len(reference.mean)
    small = min(int(state.n), int(reference.n))
    if small < 2:
        raise ValueError(f'{name}: {small} examples; at least 2 are needed, and many more than {dimension} (the '
                         'dimension of the features) for a number that means something')
    if small < 10 * dimension:
        warnings.warn(f'{name}: {small} examples for features of dimension {dimension}: the distance is biased upwards '
                      f'(compare only at equal n; use at least {10 * dimension})', stacklevel=2)
    return frechet_distance(state.mean, covariance(state), reference.mean, covariance(reference))


def frechet(features: Callable, reference, key: str = 'image', name: str = 'frechet', recipe: dict | None = None
            ) -> Metric:
    """Fréchet distance between `features` of the generated examples and a reference.

    Args:
        features: outputs[key] [B, ...] -> [B, D], on the host.
        reference: `Moments` of the real features, or the features [N, D] themselves.
        recipe: what a reader must know of features and reference (network, weights, split); given back with the
            sample sizes as `name_recipe`.

    Raises:
        ValueError: at update, for features of another dimension; at compute, for fewer than 2 examples.
    """
    reference = reference if isinstance(reference, Moments) else moments(reference)
    dimension = len(reference.mean)

    def update(state, outputs):
        examples = fetch(outputs, key, name)
        if not len(examples):
            return state
        found = np.asarray(features(examples))
        if found.ndim != 2 or found.shape[1] != dimension:
            raise ValueError(f'metric {name}: features have shape {list(found.shape)}, the reference has {dimension}')
        return add(state, found)

    def compute(state):
        card = {'n': int(state.n), 'reference_n': int(reference.n), 'dimension': dimension, **(recipe or {})}
        return {name: distance(state, reference, name), f'{name}_recipe': card}

    return Metric(lambda: empty(dimension), update, merge, compute)
