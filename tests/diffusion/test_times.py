"""Training times against their distributions, given evenly spaced quantiles of the noise that they transform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gen_jax import diffusion
from gen_jax.diffusion import times
from gen_jax.diffusion.loss_aware import probabilities
from gen_jax.diffusion.process import half_log_snr
from gen_jax.rng import Noise, example_keys

VP, FLOW, TABLE = diffusion.vp(), diffusion.flow(), diffusion.discrete_ddpm()
N = 2001


class Quantiles:
    """Every draw is the set of N quantiles of its distribution, shuffled."""

    order = np.random.default_rng(0).permutation(N)
    u = jnp.asarray(((np.arange(N) + 0.5) / N)[order], jnp.float32)

    def uniform(self, purpose, shape=()):
        return self.u

    stratified = uniform

    def normal(self, purpose, x):
        return jnp.asarray(stats.norm.ppf(self.u), jnp.float32)

    def randint(self, purpose, low, high):
        return (low + jnp.floor(self.u * (high - low))).astype(jnp.int32)


def draw(law, extra=None):
    t, w = law(Quantiles(), N, extra or {})
    assert t.shape == w.shape == (N,)
    return np.asarray(t, np.float64), np.asarray(w, np.float64)


def lam(process, t):
    return half_log_snr(process, np.asarray(t, np.float64))


@pytest.mark.parametrize('law, cdf', [
    (times.uniform(VP, t_min=0.2), lambda t: (t - 0.2) / 0.8),
    (times.low_discrepancy(FLOW), lambda t: t),
    (times.log_normal(diffusion.edm()), lambda t: stats.norm.cdf(np.log(t), -1.2, 1.2)),
    (times.log_normal(FLOW, 0.5, 0.7), lambda t: stats.norm.cdf(-lam(FLOW, t), 0.5, 0.7)),
    (times.log_normal(VP, 0.0, 0.5), lambda t: stats.norm.cdf(-lam(VP, t), 0.0, 0.5)),
    (times.logit_normal(FLOW, 0.5, 0.8), lambda t: stats.norm.cdf(np.log(t / (1 - t)), 0.5, 0.8)),
    (times.mode(FLOW, 0.0), lambda t: t),
    (times.mode(FLOW, -1.0), lambda t: 2 / np.pi * np.arcsin(np.sqrt(t))),
    (times.cosmap(FLOW), lambda t: 2 / np.pi * (np.arctan(2 * t - 1) + np.pi / 4)),
    (times.uniform_log_snr(VP, t_min=0.01, unbiased=False),
     lambda t: (lam(VP, t) - lam(VP, 0.01)) / (lam(VP, 1.0) - lam(VP, 0.01))),
], ids=['uniform', 'low_discrepancy', 'log_normal_edm', 'log_normal_flow', 'log_normal_vp', 'logit_normal', 'mode_0',
        'mode_-1', 'cosmap', 'uniform_log_snr'])
def test_distributions(law, cdf):
    """The Kolmogorov-Smirnov distance of N exact quantiles is 1 / (2 N)."""
    t, w = draw(law)
    assert np.all(w == 1)
    assert stats.ks_1samp(t, cdf).statistic < 1 / N


def test_mode_moves_times_to_the_middle():
    t = np.sort(draw(times.mode(FLOW, 1.29))[0])
    assert 0 <= t[0] and t[-1] <= 1 and np.mean(np.abs(t - 0.5) < 0.25) > 0.7
    np.testing.assert_allclose(t, 1 - t[::-1], atol=1e-5)


def test_real_noise():
    n = 4000
    noise = Noise(example_keys(0, np.arange(n)))
    t, _ = times.uniform(VP)(noise, n, {})
    assert stats.ks_1samp(np.asarray(t, np.float64), lambda t: t).pvalue > 1e-3
    t, _ = times.discrete_uniform(diffusion.discrete_ve(1.0, 0.01, 4))(noise, n, {})
    assert t.dtype == jnp.int32
    assert stats.chisquare(np.bincount(t, minlength=4)).pvalue > 1e-3


@pytest.mark.parametrize('process, kwargs', [(VP, {'t_min': 0.01}), (diffusion.cosine(), {}), (diffusion.ve(), {}),
                                             (FLOW, {'t_min': 0.02, 't_max': 0.98})])
def test_importance_weights_are_unbiased(process, kwargs):
    t, w = draw(times.uniform_log_snr(process, **kwargs))
    low, high = kwargs.get('t_min', process.t_min), kwargs.get('t_max', process.t_max)
    for power in (0, 1, 2):
        want = (high ** (power + 1) - low ** (power + 1)) / (power + 1) / (high - low)
        np.testing.assert_allclose(np.mean(w * t ** power), want, rtol=2e-3)


def test_even_spacing_is_of_the_global_batch():
    """The same times for the batch as a whole, over four devices, and in micro-batches; each uniform by itself."""
    n, key = 8, jax.random.key(5)
    noise = Noise(example_keys(key, np.arange(n)), jnp.broadcast_to(key, (n,)), jnp.arange(n) / n)
    draw = jax.jit(lambda noise: times.low_discrepancy(FLOW)(noise.at(3), noise.keys.shape[0], {})[0])
    whole = np.asarray(draw(noise))
    np.testing.assert_allclose(np.diff(np.sort(whole)), 1 / n, atol=1e-6)
    part = jax.tree.map(lambda a: a.reshape(4, 2), noise)
    np.testing.assert_array_equal(jax.pmap(draw, devices=jax.devices()[:4])(part).reshape(n), whole)
    micro = jax.tree.map(lambda a: a.reshape(4, 2).swapaxes(0, 1), noise)
    np.testing.assert_array_equal(jax.lax.map(draw, micro).swapaxes(0, 1).reshape(n), whole)
    alone = np.asarray(draw(Noise(noise.keys)))  # not told where it stands: even among what it holds
    np.testing.assert_allclose(np.diff(np.sort(alone)), 1 / n, atol=1e-6)
    many = jax.jit(jax.vmap(lambda i: noise.at(i).stratified('times')))(jnp.arange(2000))
    assert stats.ks_1samp(np.asarray(many[:, 3], np.float64), lambda t: t).pvalue > 1e-3


class ByHand:
    """The update rule of Nichol & Dhariwal 2021, Sec. 3.3, one example at a time, in float64."""

    def __init__(self, steps, kept):
        self.rows, self.kept = [[] for _ in range(steps)], kept

    def update(self, ts, losses):
        for t, loss in zip(ts, losses, strict=True):
            self.rows[t] = (self.rows[t] + [float(loss)])[-self.kept:]

    def p(self, share):
        if any(len(row) < self.kept for row in self.rows):
            return np.full(len(self.rows), 1 / len(self.rows))
        size = np.sqrt([np.mean(np.square(row)) for row in self.rows])
        return size / size.sum() * (1 - share) + share / len(self.rows)


def test_loss_aware_follows_the_paper():
    steps, kept, n = 5, 3, 16
    law = times.loss_aware(diffusion.discrete(np.full(steps, 0.1)), kept, 0.01)
    truth, history, update = ByHand(steps, kept), law.init(), jax.jit(law.update)
    rng, warm = np.random.default_rng(0), []
    for step in range(8):
        t = rng.integers(0, steps if step > 1 else 2, n)  # first only a few times, some of them far more than `kept`
        losses = rng.exponential(1 + t).astype(np.float32)
        truth.update(t, losses)
        history = update(history, jnp.asarray(t), jnp.asarray(losses))
        for row, filled, want in zip(history['losses'], history['counts'], truth.rows, strict=True):
            np.testing.assert_allclose(row[:filled], want)
        np.testing.assert_allclose(probabilities(history, 0.01), truth.p(0.01), rtol=1e-6)
        warm.append(bool(np.all(history['counts'] == kept)))
    assert not warm[1] and warm[-1] and np.ptp(truth.p(0.01)) > 0.1
    t, w = draw(law, {'times': history})
    np.testing.assert_allclose(np.bincount(t.astype(int), minlength=steps) / N, truth.p(0.01), atol=1 / N)
    np.testing.assert_allclose(w, 1 / (steps * truth.p(0.01)[t.astype(int)]), rtol=1e-5)
    values = np.array([3.0, -1.0, 4.0, 1.0, 5.0])  # the loss keeps the mean it has under uniform times
    np.testing.assert_allclose(np.mean(w * values[t.astype(int)]), values.mean(), atol=0.02)


@pytest.mark.parametrize('call, match', [
    (lambda: times.uniform(TABLE), 'discrete_uniform'),
    (lambda: times.low_discrepancy(TABLE), 'low_discrepancy.*discrete_uniform'),
    (lambda: times.discrete_uniform(VP), 'uniform'),
    (lambda: times.uniform(VP, t_min=2.0), 't_min'),
    (lambda: times.log_normal(VP, std=0.0), 'std'),
    (lambda: times.logit_normal(VP, std=-1.0), 'std'),
    (lambda: times.logit_normal(TABLE), 'logit_normal'),
    (lambda: times.mode(FLOW, 2.0), 'scale'),
    (lambda: times.uniform_log_snr(FLOW), 'infinite'),
    (lambda: times.loss_aware(VP), 'continuous'),
    (lambda: times.loss_aware(TABLE, history=0), 'history'),
    (lambda: times.loss_aware(TABLE, uniform_prob=0.0), 'uniform_prob'),
])
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
