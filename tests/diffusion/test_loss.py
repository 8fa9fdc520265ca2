"""The denoising loss, its training times and its weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import diffusion
from gen_jax.diffusion import parameterisation, times, weighting
from gen_jax.diffusion.loss import denoising_loss
from gen_jax.diffusion.process import level_at, perturb
from gen_jax.rng import Noise, example_keys
from tests.oracles import Playback, gaussian

VP, COSINE, TABLE = diffusion.vp(), diffusion.cosine(), diffusion.discrete_ddpm()


def noise(n, seed=0):
    return Noise(example_keys(seed, np.arange(n)))


@pytest.mark.parametrize('process', [VP, diffusion.edm(), TABLE], ids=['vp', 'edm', 'table'])
@pytest.mark.parametrize('name', ['eps', 'x0', 'v', 'edm'])
def test_the_exact_denoiser_has_the_irreducible_loss(name, process):
    """For N(m, C) the x0 error of the posterior mean is tr(sigma^2 C S^-1) / D; targets scale it by known factors."""
    n, one = 4096, gaussian(dim=2)
    p = getattr(parameterisation, name)(**({} if name == 'edm' else {'label_scale': 1}))
    t = 100 if process.steps else 3.0 if process.t_max > 1 else 0.1
    x0, t = jnp.asarray(one.sample(n), jnp.float32), jnp.full(n, t)
    level = level_at(process, t)
    a, s = float(level.alpha[0]), float(level.sigma[0])

    def network(x, label, cond):
        return one.network(process, p)(x, t if name == 'edm' else label, cond)

    eps = np.random.default_rng(1).standard_normal((1, n, 2)).astype(np.float32)
    loss = jax.jit(lambda x0, t, eps: denoising_loss(network, process, p)(x0, t, Playback(eps), {}))(x0, t, eps)
    assert loss.shape == (n,) and loss.dtype == jnp.float32
    error = np.sum(s ** 2 * one.values[0] / (a ** 2 * one.values[0] + s ** 2)) / 2
    size = np.sqrt(s ** 2 + a ** 2 / 4)
    factor = {'x0': 1.0, 'eps': a ** 2 / s ** 2, 'v': (a ** 2 + s ** 2) ** 2 / s ** 2, 'edm': (size / (s * 0.5)) ** 2}
    np.testing.assert_allclose(loss.mean(), error * factor[name], atol=5 * float(loss.std()) / np.sqrt(n))


def test_value_by_hand_and_finite_at_the_ends():
    x0 = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4, 4, 1)), jnp.float32)
    source, t = noise(3), jnp.array([0.0, 0.5, 1.0])
    network = lambda x, label, cond: (x + cond['shift'][:, None, None, None]).astype(jnp.bfloat16)  # noqa: E731
    cond = {'shift': jnp.arange(3.0)}
    for process, name in ((diffusion.flow(), 'eps'), (COSINE, 'v'), (diffusion.flow(), 'score')):
        p = getattr(parameterisation, name)()
        def by_hand(x0, t, eps, p=p, process=process):
            level = level_at(process, t)
            raw = network(perturb(x0, eps, level), t, cond).astype(jnp.float32)
            error = (raw - p.target(x0, eps, level)) ** 2
            return weighting.min_snr(5.0)(level) * error.mean((1, 2, 3))

        loss = denoising_loss(network, process, p, weighting.min_snr(5.0))(x0, t, source, cond)
        assert np.isfinite(loss).all()
        np.testing.assert_allclose(loss, jax.jit(by_hand)(x0, t, source.normal('eps', x0)), rtol=1e-5)


def test_example_does_not_depend_on_the_batch():
    x0 = jnp.asarray(np.random.default_rng(0).standard_normal((4, 5)), jnp.float32)
    loss = denoising_loss(lambda x, label, cond: 0.3 * x, COSINE, parameterisation.v())
    full = loss(x0, times.uniform(COSINE)(noise(4), 4, {})[0], noise(4), {})
    part = Noise(noise(4).keys[2:])
    np.testing.assert_array_equal(full[2:], loss(x0[2:], times.uniform(COSINE)(part, 2, {})[0], part, {}))


def test_wrong_output_shape_is_refused():
    with pytest.raises(ValueError, match=r'\(2, 6\).*\(2, 3\)'):
        denoising_loss(lambda x, *_: jnp.tile(x, 2), VP, parameterisation.eps())(
            jnp.ones((2, 3)), jnp.array([0.1, 0.2]), noise(2), {})


def test_times():
    n = 4000
    t, w = times.uniform(VP, t_min=0.2)(noise(n), n, {})
    assert t.shape == w.shape == (n,) and t.min() >= 0.2 and t.max() < 1 and (w == 1).all()
    np.testing.assert_allclose(t.mean(), 0.6, atol=5 * 0.8 / np.sqrt(12 * n))
    small = diffusion.discrete(np.full(4, 0.1))
    t, _ = times.discrete_uniform(small)(noise(n), n, {})
    assert t.dtype == jnp.int32
    np.testing.assert_allclose(np.bincount(t, minlength=4) / n, 0.25, atol=5 * np.sqrt(0.25 * 0.75 / n))


def test_weightings():
    level = level_at(VP, jnp.array([0.05, 0.3, 0.9]))
    snr = np.square(np.asarray(level.alpha) / np.asarray(level.sigma))
    assert snr.min() < 1 < 5 < snr.max()
    per = {'x0': 1.0, 'eps': 1 / snr, 'v': 1 / (snr + 1)}
    for target, factor in per.items():
        np.testing.assert_allclose(weighting.snr(target)(level), snr * factor, rtol=1e-5)
        np.testing.assert_allclose(weighting.min_snr(5.0, target)(level), np.minimum(snr, 5) * factor, rtol=1e-5)
        np.testing.assert_allclose(weighting.truncated_snr(target)(level), np.maximum(snr, 1) * factor, rtol=1e-5)
        np.testing.assert_allclose(weighting.p2(1.0, 1.0, target)(level), snr / (1 + snr) * factor, rtol=1e-5)
    np.testing.assert_array_equal(weighting.simple()(level), 1.0)
    ends = level_at(diffusion.flow(), jnp.array([0.0, 1.0]))
    for target in per:
        assert np.isfinite(weighting.min_snr(5.0, target)(ends)).all()


@pytest.mark.parametrize('call, match', [
    (lambda: times.uniform(TABLE), 'discrete_uniform'),
    (lambda: times.discrete_uniform(VP), 'uniform'),
    (lambda: times.uniform(VP, t_min=2.0), 't_min'),
    (lambda: weighting.min_snr(0.0), 'gamma'),
    (lambda: weighting.min_snr(5.0, 'score'), "'score'.*eps"),
])
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
