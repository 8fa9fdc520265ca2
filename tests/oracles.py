"""Exact diffusion of Gaussian mixtures, the truth for solvers, guidance and likelihoods; recorded noise.

With x = alpha x0 + sigma eps and x0 ~ sum_k w_k N(m_k, C_k), the noisy density is sum_k w_k N(alpha m_k, S_k) with
S_k = alpha^2 C_k + sigma^2 I. Each C_k is kept as its eigenvectors and eigenvalues, so that everything is closed form
for every (alpha, sigma), including sigma = 0 and alpha = 0, in the dtype of x.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.diffusion.process import expand, level_at
from gen_jax.types import Denoised


class Playback:
    """Recorded noise [N, B, ...] in place of a `gen_jax.rng.Noise`: step i draws row i, whatever the purpose."""

    def __init__(self, table, i=0):
        self.table, self.i = table, i

    def at(self, i):
        return Playback(self.table, i)

    def normal(self, purpose, x):
        return self.table[self.i]


class StepPlayback(Playback):
    """One row for all that a step draws, however its sampler is chained: `chain` does not count on."""

    def __init__(self, table, i=None):
        super().__init__(table, i)

    def at(self, i):
        return StepPlayback(self.table, i if self.i is None else self.i)


class PurposePlayback(StepPlayback):
    """A StepPlayback of several tables by purpose; purposes without one of their own draw from 'z'."""

    def at(self, i):
        return PurposePlayback(self.table, i if self.i is None else self.i)

    def normal(self, purpose, x):
        return self.table.get(purpose, self.table.get('z'))[self.i]


class GaussianMixture(NamedTuple):
    """Float64 numpy: weights [K], means [K, D], eigenvectors [K, D, D] (columns), eigenvalues [K, D] of C_k."""

    weights: np.ndarray
    means: np.ndarray
    vectors: np.ndarray
    values: np.ndarray

    @property
    def cov(self) -> np.ndarray:
        """C_k [K, D, D]."""
        return np.einsum('kij,kj,klj->kil', self.vectors, self.values, self.vectors)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean [D] and covariance [D, D] of the whole mixture."""
        mean = self.weights @ self.means
        away = self.means - mean
        return mean, np.einsum('k,kij->ij', self.weights, self.cov + np.einsum('ki,kj->kij', away, away))

    def sample(self, n: int, seed: int = 0) -> np.ndarray:
        """n draws of x0 [n, D], float64."""
        rng = np.random.default_rng(seed)
        k = rng.choice(len(self.weights), n, p=self.weights)
        z = rng.standard_normal((n, self.means.shape[1])) * np.sqrt(self.values[k])
        return self.means[k] + np.einsum('nij,nj->ni', self.vectors[k], z)

    def _components(self, x, alpha, sigma):
        """log w_k N(x; k) [B, K], and x - alpha m_k [B, K, D] in the eigenbasis, and the eigenvalues of S_k."""
        x = x.reshape(x.shape[0], -1)
        weights, means, vectors, values = (jnp.asarray(a, x.dtype) for a in self)
        alpha, sigma = (jnp.broadcast_to(jnp.asarray(a, x.dtype), x.shape[:1])[:, None, None] for a in (alpha, sigma))
        y = jnp.einsum('kij,bki->bkj', vectors, x[:, None] - alpha * means)
        s = alpha ** 2 * values + sigma ** 2
        log_p = jnp.log(weights) - 0.5 * jnp.sum(y ** 2 / s + jnp.log(2 * jnp.pi * s), axis=-1)
        return log_p, y, s, alpha, sigma

    def log_density(self, x, alpha=1.0, sigma=0.0):
        """log p(x) [B] of the noisy density; x [B, ...] is flattened to D."""
        return jax.nn.logsumexp(self._components(x, alpha, sigma)[0], axis=-1)

    def score(self, x, alpha=1.0, sigma=0.0):
        """The gradient of log_density, shaped like x."""
        log_p, y, s, _, _ = self._components(x, alpha, sigma)
        vectors = jnp.asarray(self.vectors, x.dtype)
        return -jnp.einsum('bk,kij,bkj->bi', jax.nn.softmax(log_p), vectors, y / s).reshape(x.shape)

    def denoised(self, x, alpha, sigma) -> Denoised:
        """E[x0 | x] and E[eps | x]."""
        log_p, y, s, alpha, sigma = self._components(x, alpha, sigma)
        resp = jax.nn.softmax(log_p)
        means, vectors, values = (jnp.asarray(a, x.dtype) for a in self[1:])
        x0 = means + jnp.einsum('kij,bkj->bki', vectors, alpha * values * y / s)
        eps = jnp.einsum('kij,bkj->bki', vectors, sigma * y / s)
        return Denoised(*(jnp.einsum('bk,bki->bi', resp, a).reshape(x.shape) for a in (x0, eps)))

    def denoise(self, x, level, cond=None) -> Denoised:
        """The exact DenoiseFn."""
        del cond
        return self.denoised(x, level.alpha, level.sigma)

    def network(self, process, parameterisation):
        """(x, label, cond) -> raw output of a perfect network whose label is t (build with label_scale=1)."""

        def network(x, label, cond):
            del cond
            level = level_at(process, label)
            d = self.denoise(x / expand(parameterisation.c_in(level), x), level)
            return parameterisation.target(d.x0, d.eps, level)

        return network

    def flow(self, x, start, stop):
        """The probability-flow ODE solved exactly, for K = 1: x at level `start` carried to level `stop`.

        In the eigenbasis the marginal stays Gaussian and order is kept, so x - alpha m scales by the ratio of the
        standard deviations, whatever the path between the levels.
        """
        if len(self.weights) != 1:
            raise ValueError(f'the flow is closed-form for one component, this mixture has {len(self.weights)}.')
        means, vectors, values = (jnp.asarray(a[0], x.dtype) for a in self[1:])
        std = [jnp.sqrt(level.alpha ** 2 * values + level.sigma ** 2) for level in (start, stop)]
        y = (x.reshape(x.shape[0], -1) - start.alpha * means) @ vectors
        return (stop.alpha * means + (y * std[1] / std[0]) @ vectors.T).reshape(x.shape)


def rotation(dim: int, rng) -> np.ndarray:
    """A random rotation [D, D]."""
    q, r = np.linalg.qr(rng.standard_normal((dim, dim)))
    return q * np.sign(np.diag(r))


def gaussian_mixture(components: int = 3, dim: int = 2, seed: int = 0, spread: float = 1.5) -> GaussianMixture:
    """A random mixture of rotated, anisotropic Gaussians: standard deviations 0.2 .. 1.2, means of scale `spread`."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(components, 4.0))
    values = np.linspace(0.2, 1.2, dim) ** 2 * rng.uniform(0.7, 1.3, (components, dim))
    vectors = np.stack([rotation(dim, rng) for _ in range(components)])
    return GaussianMixture(weights, spread * rng.standard_normal((components, dim)), vectors, values)


def gaussian(dim: int = 3, seed: int = 0) -> GaussianMixture:
    """One rotated, anisotropic Gaussian off the origin."""
    return gaussian_mixture(1, dim, seed, spread=0.5)
