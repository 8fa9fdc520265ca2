"""The variational bound against the published code, and against closed forms with exact denoisers."""

import math
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen_jax import sampling
from gen_jax.diffusion.learned import learned
from gen_jax.diffusion.process import half_log_snr, level_at
from gen_jax.engine.update import init_state, make_update
from gen_jax.losses.reconstruction import bin_centres, level_to_image, nearest_level
from gen_jax.models import VDM, vdm_tiny
from gen_jax.nn.monotone import MonotoneMLP
from gen_jax.rng import example_keys
from gen_jax.systems.vdm import vdm
from gen_jax.types import Denoised, Point, Variables
from tests.golden.make_vdm import CASES, COMMON, STEP, STEPS, inputs
from tests.models.test_vdm import GOLDEN, drawn

LEVELS = 4
P = np.array([0.1, 0.2, 0.3, 0.4])
BITS = math.log(2)


class Recorded(SimpleNamespace):
    """The reference's draws in place of a Noise."""

    def normal(self, purpose, x):
        return jnp.asarray(getattr(self, purpose))

    def stratified(self, purpose):
        return (self.u + jnp.arange(4) / 4) % 1.0

    def key(self, purpose):
        return jax.random.key(0)


@pytest.mark.parametrize('name', CASES)
def test_terms_and_sampling_step_agree_with_the_published_code(name):
    given = inputs()
    network = VDM(**{**COMMON, **CASES[name], 'sm_pdrop': 0.0})
    params = drawn(network, jnp.zeros((1, 6, 4, 3)), jnp.zeros(1))
    system = vdm(network, image_shape=(6, 4, 3), timesteps=STEPS[name], cond={'conditioning': 'label'})
    batch = {'image': level_to_image(given['images'], 256), 'label': given['conditioning']}
    noise = Recorded(**{k: given[k] for k in ('eps', 'eps_0', 'u')})

    @jax.jit
    def run(params):
        loss, (metrics, _) = system.objectives['elbo'].loss({'vdm': params}, SimpleNamespace(extra={}), batch, noise)
        gamma = lambda t: network.apply({'params': params}, t, method='noise_level')  # noqa: E731
        if name == 'scalar':
            return loss, metrics, None, None
        process, (i, steps) = learned(gamma), STEP
        t, s = (level_at(process, jnp.float32((steps - k) / steps)) for k in (i, i + 1))

        def denoise(x, level):
            eps = network.apply({'params': params}, x, jnp.full(4, level.t), given['conditioning'])
            return Denoised((x - level.sigma * eps) / level.alpha, eps)

        point, _ = sampling.ddpm().step(SimpleNamespace(normal=lambda *_: given['eps_0']), denoise,
                                        Point(jnp.asarray(given['eps']), t), s, ())
        pixels = nearest_level(given['eps'] / process.alpha(0.0), 256)
        return loss, metrics, point.x, pixels

    loss, metrics, x, pixels = run(params)
    total = 0.0
    for ours, theirs in (('diffusion', 'loss_diff'), ('prior', 'loss_klz'), ('reconstruction', 'loss_recon')):
        expected = GOLDEN[f'{name}/{theirs}'].mean() / (6 * 4 * 3 * BITS)
        np.testing.assert_allclose(metrics[ours], expected, rtol=2e-5, atol=1e-7, err_msg=ours)
        total += expected
    np.testing.assert_allclose(loss, total, rtol=1e-5)
    np.testing.assert_allclose(metrics['gamma_1'], GOLDEN[f'{name}/gamma'][-1], rtol=1e-5)
    if name == 'scalar':
        return
    np.testing.assert_allclose(x, GOLDEN[f'{name}/step'], atol=1e-5 * np.abs(x).max())
    np.testing.assert_array_equal(pixels, GOLDEN[f'{name}/pixels'])


class Schedule(nn.Module):
    """gamma from `low` to `high`, bent by `bend`: no parameters."""

    low: float = -8.0
    high: float = 8.0
    bend: float = 0.0

    def noise_level(self, t):
        return self.low + (self.high - self.low) * (t + self.bend * t * (1 - t))

    def __call__(self, z, t, deterministic=True):
        return self.predict_noise(z, self.noise_level(t), deterministic)

    def predict_noise(self, z, gamma, deterministic=True):
        alpha2, sigma2 = (nn.sigmoid(s * gamma)[:, None, None, None] for s in (-1, 1))
        return (z - jnp.sqrt(alpha2) * self.x0(z, alpha2, sigma2)) / jnp.sqrt(sigma2)


class Gaussian(Schedule):
    """The exact denoiser of pixels N(0, 1/16)."""

    def x0(self, z, alpha2, sigma2):
        return jnp.sqrt(alpha2) * z / (alpha2 + 16 * sigma2)


class GreyLevels(Schedule):
    """The exact denoiser of independent pixels that take four levels with the probabilities p."""

    p: tuple[float, ...] = tuple(P)

    def x0(self, z, alpha2, sigma2):
        centres = bin_centres(jnp.arange(LEVELS), LEVELS)
        away = jnp.square(z[..., None] - jnp.sqrt(alpha2)[..., None] * centres)
        return jax.nn.softmax(jnp.log(jnp.asarray(self.p)) - 0.5 * away / sigma2[..., None]) @ centres


def run(system, name, batch, params=None, **settings):
    predict = system.predict[name]
    keys = example_keys(0, np.arange(len(batch['image'])))
    return jax.jit(predict.run)(Variables({'vdm': params or {}}), keys, batch, predict.options(**settings))


@pytest.mark.parametrize('bend, timesteps', [(0.9, 0), (-0.5, 5)])
def test_diffusion_loss_of_a_gaussian_is_its_information(bend, timesteps):
    """I(x; z_0) - I(x; z_1) in continuous time, whatever the path between the ends; in T steps, T rectangles of it.

    The denoiser is linear, so pixels +-1/4 cost, on average over the noise, what the Gaussian of that variance costs.
    """
    network = Gaussian(bend=bend)
    image = level_to_image(np.random.RandomState(0).randint(1, 3, (64, 8, 8, 1)), LEVELS)
    out = run(vdm(network, image_shape=(8, 8, 1), levels=LEVELS, timesteps=timesteps), 'losses', {'image': image},
              samples=200)
    assert out['loss'].shape == out['t'].shape == (64, 200)
    if timesteps:
        gamma = network.noise_level(np.arange(timesteps + 1) / timesteps)
        share = 1 / (1 + 16 * np.exp(gamma))  # of the signal in the variance of z; E|eps - eps_hat|^2
        expected = 0.5 * np.sum(np.expm1(np.diff(gamma)) * share[1:])
    else:
        first, last = (0.5 * np.log1p(np.exp(-g) / 16) for g in (-8.0, 8.0))
        expected = first - last
    per_image = np.asarray(out['loss'], np.float64).mean(1) * BITS
    assert abs(per_image.mean() - expected) < 5 * per_image.std() / 8
    assert per_image.std() / 8 < 0.005 * expected


@pytest.mark.parametrize('low, p', [(-8.0, tuple(P)), (-1.0, (0.25,) * 4)])
def test_the_bound_of_an_exact_denoiser_is_the_entropy(low, p):
    """Of grey levels: -8 leaves none of it to the decoder, -1 most (whose posterior is exact if p is uniform)."""
    counts = np.round(np.array(p) * 40).astype(int)
    pixels = np.repeat(np.arange(LEVELS), counts).reshape(1, 8, 5, 1)  # their frequencies are exactly p
    image = level_to_image(np.repeat(pixels, 128, 0), LEVELS)
    out = run(vdm(GreyLevels(low=low, p=p), image_shape=(8, 5, 1), levels=LEVELS), 'bpd', {'image': image}, samples=200)
    bits = {k: np.asarray(v, np.float64) for k, v in out.items()}
    assert (bits['reconstruction'].mean() > 0.8) == (low == -1.0)
    assert 0 < bits['prior'].mean() < 1e-4
    if low == -8.0:
        assert bits['reconstruction'].mean() < 1e-3
    standard_error = bits['bits_per_dim'].std() / math.sqrt(128)
    assert standard_error < 0.01
    entropy = -np.sum(np.array(p) * np.log2(p))
    assert abs(bits['bits_per_dim'].mean() - entropy) < 5 * standard_error


def test_samples_of_an_exact_denoiser_have_the_frequencies_of_the_data():
    """And another number of steps does not compile again."""
    system = vdm(GreyLevels(bend=0.5), image_shape=(8, 8, 1), levels=LEVELS, steps=100, max_steps=200)
    generate = system.predict['generate']
    call, keys = jax.jit(generate.run), example_keys(0, np.arange(64))
    image, coarse = (call(Variables({'vdm': {}}), keys, {}, generate.options(steps=n))['image'] for n in (150, 2))
    assert call._cache_size() == 1 and (image != coarse).any()
    level = np.asarray((image + 1) * 1.5)
    np.testing.assert_allclose(level, np.round(level), atol=1e-5)
    seen = np.bincount(np.round(level).astype(int).ravel(), minlength=LEVELS) / level.size
    assert (np.abs(seen - P) < 5 * np.sqrt(P * (1 - P) / level.size)).all(), seen


def test_any_solver_samples_a_learned_schedule():
    """With an exact denoiser the deterministic ones agree where steps are fine, and differ where they are coarse."""
    system = vdm(GreyLevels(bend=0.5), image_shape=(8, 8, 1), levels=LEVELS, steps=100, max_steps=200)
    generate = system.predict['generate']
    assert [generate.nfe(generate.options(steps=9, solver=s)) for s in ('ddpm', 'heun', 'plms')] == [9, 18, 10]

    def samples(solver, steps):
        options = generate.options(steps=steps, solver=solver)
        out = jax.jit(generate.run)(Variables({'vdm': {}}), example_keys(0, np.arange(8)), {}, options)
        return np.asarray(out['image'])

    exact = samples('heun', 200)
    assert (samples('dpm2', 200) != exact).mean() < 0.02 and (samples('ddim', 3) != exact).mean() > 0.02


def test_inverse_of_a_learned_process():
    process = learned(Schedule(bend=0.7).noise_level)
    t = jnp.linspace(0.0, 1.0, 11)
    np.testing.assert_allclose(process.inverse(half_log_snr(process, t)), t, atol=2e-6)
    np.testing.assert_allclose(process.alpha(t) ** 2 + process.sigma(t) ** 2, 1.0, rtol=1e-6)


class Perceptron(Schedule):
    """A denoiser and a schedule with parameters, quick to compile."""

    def setup(self):
        self.gamma = MonotoneMLP(-5.0, 5.0, features=16)
        self.layers = [nn.Dense(64), nn.Dense(16)]

    def noise_level(self, t):
        return self.gamma(t)

    def x0(self, z, alpha2, sigma2):
        h = jnp.concatenate([z.reshape(-1, 16), jnp.sqrt(alpha2)[:, :, 0, 0]], -1)
        return self.layers[1](jnp.tanh(4.0 * self.layers[0](h))).reshape(z.shape)


def test_learns_a_two_point_distribution():
    """Two equally frequent images cost one bit each, 1/16 bits/dim, of 2 without learning; the schedule moves."""
    patterns = np.random.RandomState(1).randint(0, LEVELS, (2, 4, 4, 1))
    data = {'image': level_to_image(np.repeat(patterns, 32, 0), LEVELS)}
    system = vdm(Perceptron(), image_shape=(4, 4, 1), levels=LEVELS)._replace(optimizers={'vdm': optax.adam(1e-2)})
    state = init_state(system, 0, data, {})
    fresh = jax.tree.map(np.asarray, state.params['vdm']['gamma'])
    update = jax.jit(make_update(system, seed=0))
    for _ in range(250):
        state, metrics = update(state, data)
    named = {'bits_per_dim', 'diffusion', 'prior', 'reconstruction', 'gamma_0', 'gamma_1'}
    assert set(metrics) >= {f'elbo/{name}' for name in named}
    moved = jax.tree.map(lambda a, b: (a != b).any(), fresh, state.params['vdm']['gamma'])
    assert all(jax.tree.leaves(moved)), moved
    bits = float(run(system, 'bpd', data, state.params['vdm'], samples=20)['bits_per_dim'].mean())
    assert 1 / 16 < bits < 0.55, bits  # independent pixels would cost 0.75


def test_bad_input():
    network, shape = vdm_tiny(), dict(image_shape=(8, 8, 1))
    batch = {'image': np.zeros((2, 4, 4, 1))}
    for call, message in (
        (lambda: vdm(network, **shape, levels=1), 'levels is 1'),
        (lambda: vdm(network, **shape, timesteps=-1), 'timesteps is -1'),
        (lambda: vdm(network, **shape, solver='dpm'), "solver 'dpm': choose from ddpm"),
        (lambda: vdm(network, **shape).predict['bpd'].options(samples=0), 'samples is 0'),
        (lambda: vdm(network, **shape).predict['generate'].options(steps=0), 'steps must be .* got 0'),
        (lambda: vdm(network, **shape).predict['generate'].options(steps=1001), 'steps is 1001; give 1 to 1000'),
        (lambda: vdm(network, **shape).predict['generate'].options(solver='ddim', eta=2.0), 'eta must lie'),
        (lambda: vdm(network, **shape).predict['generate'].options(spacing='karras'), 'spacing: a VDM is sampled on'),
        (lambda: vdm(network, **shape).init(jax.random.key(0), batch), r'\(4, 4, 1\) for a model of.*\(8, 8, 1\)'),
        (lambda: vdm(network, **shape, cond={'conditioning': 'label'}).init(jax.random.key(0), batch), "no 'label'"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
