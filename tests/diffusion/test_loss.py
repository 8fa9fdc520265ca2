"""The denoising loss."""

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


class Named:
    """Recorded noise by purpose; a draw that nobody recorded is a KeyError."""

    def __init__(self, **draws):
        self.draws = draws

    def normal(self, purpose, x):
        shape = x if isinstance(x, tuple) else x.shape
        assert self.draws[purpose].shape == tuple(shape)
        return self.draws[purpose]


def test_offset_noise_and_input_perturbation():
    """Offset noise is in x_t and in the target, a perturbation in x_t alone; off, neither draws."""
    rng = np.random.default_rng(0)
    x0, eps, extra = (rng.standard_normal((2, 3, 3, 2)).astype(np.float32) for _ in range(3))
    offset = rng.standard_normal((2, 1, 1, 2)).astype(np.float32)
    t, p = jnp.array([0.3, 0.6]), parameterisation.eps()
    a, s = (np.asarray(f(t))[:, None, None, None] for f in (COSINE.alpha, COSINE.sigma))
    network = lambda x, label, cond: 0.7 * x  # noqa: E731

    def loss(noise, **kwargs):
        return denoising_loss(network, COSINE, p, **kwargs)(x0, t, noise, {})

    def by_hand(seen, target):
        return np.mean((0.7 * (a * x0 + s * seen) - target) ** 2, (1, 2, 3))

    shifted = eps + 0.1 * offset
    np.testing.assert_allclose(loss(Named(eps=eps)), by_hand(eps, eps), rtol=1e-5)
    np.testing.assert_allclose(loss(Named(eps=eps, offset_noise=offset), offset_noise=0.1), by_hand(shifted, shifted),
                               rtol=1e-5)
    np.testing.assert_allclose(loss(Named(eps=eps, input_perturbation=extra), input_perturbation=0.2),
                               by_hand(eps + 0.2 * extra, eps), rtol=1e-5)
    both = Named(eps=eps, offset_noise=offset, input_perturbation=extra)
    np.testing.assert_allclose(loss(both, offset_noise=0.1, input_perturbation=0.2),
                               by_hand(shifted + 0.2 * extra, shifted), rtol=1e-5)


@pytest.mark.parametrize('kwargs', [{'offset_noise': -0.1}, {'input_perturbation': -1.0}])
def test_bad_input(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        denoising_loss(lambda x, label, cond: x, VP, parameterisation.eps(), **kwargs)
