"""Guidance against exact Bayes: class posteriors of a Gaussian mixture, and linear observations of a Gaussian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import diffusion
from gen_jax.diffusion.guidance import autoguidance, classifier_free, instruct_pix2pix, interval
from gen_jax.diffusion.guidance_gradient import backward_guidance, classifier_guidance, loss_guidance
from gen_jax.sampling import classifier_shift, grid, heun, sample
from gen_jax.types import Denoised, Level
from tests.oracles import GaussianMixture, Playback, gaussian, gaussian_mixture

MIXTURE = gaussian_mixture(3, dim=4, seed=1)
LEVELS = [(1.0, 0.3), (0.6, 0.8), (0.05, 1.0), (1.0, 5.0), (0.9, 0.0)]


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def level(alpha, sigma):
    return Level(0.5, jnp.float64(alpha), jnp.float64(sigma), 0, 1)


def component(k):
    return GaussianMixture(np.ones(1), *(a[k:k + 1] for a in MIXTURE[1:]))


def by_label(x, at, cond):
    """Component 0 .. 2, or the whole mixture for label 3: a perfect network with an unconditional branch."""
    ds = [m.denoised(x, at.alpha, at.sigma) for m in (*(component(k) for k in range(3)), MIXTURE)]
    pick = lambda *a: jnp.take_along_axis(jnp.stack(a), cond['label'][None, :, None], axis=0)[0]  # noqa: E731
    return jax.tree.map(pick, *ds)


def points(at, n=6):
    rng = np.random.default_rng(0)
    return jnp.asarray(at[0] * MIXTURE.sample(n) + at[1] * rng.standard_normal((n, 4)))


LABELS = {'label': jnp.array([0, 1, 2, 0, 1, 2])}


def test_the_class_posterior_makes_the_mixture_conditional():
    def log_prob(x, at, cond):
        joint = MIXTURE._components(x, at.alpha, at.sigma)[0]
        return jnp.take_along_axis(jax.nn.log_softmax(joint), cond['label'][:, None], axis=1)[:, 0]

    transform = classifier_guidance(1.0, log_prob)
    run = jax.jit(lambda x, at: (transform(MIXTURE.denoise)(x, at, LABELS), by_label(x, at, LABELS),
                                 MIXTURE.denoise(x, at)))
    for at in LEVELS:
        got, want, unguided = run(points(at), level(*at))
        np.testing.assert_allclose(got.x0, want.x0, atol=1e-9)
        np.testing.assert_allclose(got.eps, want.eps, atol=1e-9)
        assert at[1] == 0 or np.abs(got.eps - unguided.eps).max() > 1e-3


def test_scales_tilt_the_density():
    """Scale w gives the score of p(x)^(1 - w) p(x | k)^w; per example too, and limited to an interval."""
    w = jnp.array([0.0, 1.0, 2.0, 7.5, 3.0, 0.5])

    def tilted(x, k, w, at):
        on = jnp.stack([component(i).log_density(x[None], at.alpha, at.sigma)[0] for i in range(3)])[k]
        return (1 - w) * MIXTURE.log_density(x[None], at.alpha, at.sigma)[0] + w * on

    @jax.jit
    def run(x, at, low, high):
        eps = -at.sigma * jax.vmap(jax.grad(tilted), (0, 0, 0, None))(x, LABELS['label'], w, at)
        scales = (w, interval(w, low, high))
        return [classifier_free(scale, {'label': 3})(by_label)(x, at, LABELS) for scale in scales], eps, by_label(
            x, at, LABELS)

    for at in LEVELS[:4]:
        x, at, ratio = points(at), level(*at), at[1] / at[0]
        for low, high, inside in ((0.5 * ratio, 1.01 * ratio, True), (1.01 * ratio, 99.0, False),
                                  (0.0, 0.99 * ratio, False)):
            (everywhere, limited), eps, on = run(x, at, low, high)
            np.testing.assert_allclose(everywhere.eps, eps, atol=1e-9)
            np.testing.assert_allclose(at.alpha * everywhere.x0 + at.sigma * everywhere.eps, x, atol=1e-9)
            want = everywhere if inside else on
            np.testing.assert_allclose(limited.eps, want.eps, atol=1e-13)
            np.testing.assert_allclose(limited.x0, want.x0, atol=1e-13)


def test_the_interval_holds_its_upper_end_and_not_its_lower():
    """(sigma_lo, sigma_hi] of Kynkaanniemi et al. 2024, also at alpha = 0, where sigma / alpha is infinite."""
    scale = interval(jnp.array([3.0, 4.0]), 0.5, 2.0)
    for ratio, inside in ((0.5, False), (0.51, True), (2.0, True), (2.01, False), (0.0, False)):
        np.testing.assert_array_equal(scale(level(0.25, 0.25 * ratio)), [3.0, 4.0] if inside else [1.0, 1.0])
    assert interval(3.0, 0.5)(level(0.0, 1.0)) == 3.0 and interval(3.0, 0.5, 1e9)(level(0.0, 1.0)) == 1.0
    assert interval(lambda at: 10 * at.sigma, 0.5, 2.0, outside=0.0)(level(1.0, 1.5)) == 15.0
    assert interval(3.0, 0.5, 2.0, outside=0.0)(level(1.0, 0.1)) == 0.0
    np.testing.assert_array_equal(scale(level(np.ones(2), np.array([1.0, 3.0]))), [3.0, 1.0])


def test_two_conditions():
    """Score of p(x)^(1 - s_I) p(x | image)^(s_I - s_T) p(x | image, text)^s_T, and its special cases."""
    x, at = points(LEVELS[1]), level(*LEVELS[1])
    branch = {name: by_label(x, at, {'label': jnp.full(6, k)}) for k, name in enumerate(('both', 'image', 'text'))}
    branch['none'] = MIXTURE.denoise(x, at)

    def network(x, at, cond):  # both conditions: component 0; the image: 1; the text: 2; neither: the mixture
        return by_label(x, at, {'label': 3 - 2 * cond['image'] - cond['text']})

    @jax.jit
    def guide(text, image):
        return instruct_pix2pix(text, image, {'text': 0}, lambda cond: {'image': jnp.zeros_like(cond['image'])})(
            network)(x, at, {'text': jnp.ones(6, int), 'image': jnp.ones(6, int)})

    got, both, image, none = guide(7.5, 1.5), *(branch[k] for k in ('both', 'image', 'none'))
    for name in ('x0', 'eps'):
        b, i, n = (getattr(d, name) for d in (both, image, none))
        np.testing.assert_allclose(getattr(got, name), n + 1.5 * (i - n) + 7.5 * (b - i), atol=1e-12)
        np.testing.assert_allclose(getattr(guide(1.0, 1.0), name), b, atol=1e-14)
        np.testing.assert_allclose(getattr(guide(0.0, 1.0), name), i, atol=1e-12)
        np.testing.assert_allclose(getattr(guide(0.0, 0.0), name), n, atol=1e-12)
        np.testing.assert_allclose(getattr(guide(3.0, 3.0), name), n + 3.0 * (b - n), atol=1e-12)
        assert np.abs(b - i).max() > 0.1 and np.abs(i - n).max() > 0.1


def test_autoguidance():
    """Karras et al. 2024, Eq. 3; the worse model has the same aux and log_var dropped."""
    x, at = points(LEVELS[1]), level(*LEVELS[1])
    weak = lambda x, at, cond: MIXTURE.denoise(x, at)._replace(log_var=x, aux=x)  # noqa: E731
    strong = lambda x, at, cond: by_label(x, at, cond)._replace(log_var=-x, aux=-x)  # noqa: E731
    got, a, b = autoguidance(2.5, weak)(strong)(x, at, LABELS), weak(x, at, {}), strong(x, at, LABELS)
    np.testing.assert_allclose(got.x0, 2.5 * b.x0 - 1.5 * a.x0, atol=1e-12)
    np.testing.assert_allclose(got.eps, 2.5 * b.eps - 1.5 * a.eps, atol=1e-12)
    np.testing.assert_array_equal(got.log_var, -x)
    np.testing.assert_array_equal(autoguidance(1.0, weak)(strong)(x, at, LABELS).x0, b.x0)
    assert autoguidance(None, weak)(strong) is strong


def test_rescaling_restores_the_standard_deviation():
    """Lin et al. 2024, Eq. 15-16, in each space; half-way at phi = 0.5; finite where nothing can be divided."""
    x, at = points(LEVELS[1]), level(*LEVELS[1])
    on = by_label(x, at, LABELS)
    plain = classifier_free(7.5, {'label': 3})(by_label)(x, at, LABELS)
    raw = {'eps': lambda d: d.eps, 'x0': lambda d: d.x0, 'v': lambda d: at.alpha * d.eps - at.sigma * d.x0}
    for space, of in raw.items():
        std = {}
        for phi in (1.0, 0.5, 0.0):
            d = classifier_free(7.5, {'label': 3}, phi, space)(by_label)(x, at, LABELS)
            np.testing.assert_allclose(at.alpha * d.x0 + at.sigma * d.eps, x, atol=1e-12)
            ratio = of(d) / of(plain)
            np.testing.assert_allclose(ratio, ratio[:, :1] * np.ones(4), rtol=1e-9)  # nothing but a factor
            std[phi] = np.std(of(d), axis=1)
        np.testing.assert_allclose(std[1.0], np.std(of(on), axis=1), rtol=1e-9)
        np.testing.assert_allclose(std[0.5], (std[1.0] + std[0.0]) / 2, rtol=1e-9)
        assert np.abs(std[0.0] / std[1.0] - 1).max() > 0.5
    flat = lambda x, at, cond: Denoised(0 * x, 0 * x)  # noqa: E731
    for end in ((0.0, 1.0), (1.0, 0.0)):
        d = classifier_free(7.5, {'label': 3}, 0.7)(flat)(x, level(*end), LABELS)
        assert np.isfinite(d.x0).all() and np.isfinite(d.eps).all()


PRIOR = gaussian(dim=4, seed=2)
A = np.random.default_rng(3).standard_normal((2, 4))
Y, S = np.array([0.7, -1.2]), 0.5


def observed(at):
    """(E[x0 | x_t], p(y | x_t)'s precision) of y = A x0 + S n, by textbook conditioning."""
    m, c = PRIOR.means[0], PRIOR.cov[0]
    gain = at.alpha * c @ jnp.linalg.inv(at.alpha ** 2 * c + at.sigma ** 2 * np.eye(4))
    left = c - gain @ (at.alpha * c)
    return lambda x: m + (x - at.alpha * m) @ gain.T, jnp.linalg.inv(A @ left @ A.T + S ** 2 * np.eye(2))


def loss_x0(x0, at, cond):
    away = Y - x0 @ A.T
    return 0.5 * jnp.einsum('bi,ij,bj->b', away, observed(at)[1], away)


def loss_x(x, at, cond):
    return loss_x0(observed(at)[0](x), at, cond)


def conditioned():
    """The exact posterior p(x0 | y)."""
    m, c = PRIOR.means[0], PRIOR.cov[0]
    gain = c @ A.T @ np.linalg.inv(A @ c @ A.T + S ** 2 * np.eye(2))
    values, vectors = np.linalg.eigh(c - gain @ A @ c)
    return GaussianMixture(np.ones(1), (m + gain @ (Y - A @ m))[None], vectors[None], values[None])


@pytest.mark.parametrize('options', [{}, {'loss': loss_x, 'of': 'x_t', 'gradient': 'after'}])
def test_an_observation_gives_the_exact_posterior(options):
    """Denoiser, and the pictures that the probability-flow ODE makes of it: 1e-3 over the whole path."""
    transform = loss_guidance(1.0, **{'loss': loss_x0, **options})
    run = jax.jit(lambda x, at: (transform(PRIOR.denoise)(x, at, {}), conditioned().denoise(x, at)))
    for at in LEVELS[:4]:
        got, want = run(points(at), level(*at))
        np.testing.assert_allclose(got.x0, want.x0, atol=1e-9)
        np.testing.assert_allclose(got.eps, want.eps, atol=1e-9)
    rows = grid(diffusion.edm(0.02, 10.0), 60, 'karras', dtype=np.float64)
    x = 10.0 * points(LEVELS[1])
    got = jax.jit(lambda x: sample(Playback(None), transform(PRIOR.denoise), heun(), x, rows).x)(x)
    want = conditioned().flow(x, *(jax.tree.map(lambda a, i=i: a[i], rows) for i in (0, -1)))
    np.testing.assert_allclose(got, want, atol=2e-3)
    assert np.abs(got - PRIOR.flow(x, *(jax.tree.map(lambda a, i=i: a[i], rows) for i in (0, -1)))).max() > 0.5


def test_gradients_before_and_after_the_network_by_hand():
    x, at = points(LEVELS[1]), level(*LEVELS[1])
    a, s, d, cond = at.alpha, at.sigma, PRIOR.denoise(x, at), {}
    down = lambda loss, x: -jax.grad(lambda x: loss(x, at, {}).sum())(x)  # noqa: E731

    got = loss_guidance(2.0, loss_x0, gradient='after')(PRIOR.denoise)(x, at, cond)
    g = 2.0 * down(loss_x0, d.x0) / a
    np.testing.assert_allclose(got.eps, d.eps - s * g, atol=1e-12)
    np.testing.assert_allclose(got.x0, d.x0 + s ** 2 / a * g, atol=1e-12)

    got = loss_guidance(2.0, loss_x, of='x_t', gradient='before')(PRIOR.denoise)(x, at, cond)
    moved = PRIOR.denoise(x + s ** 2 * 2.0 * down(loss_x, x), at)
    np.testing.assert_allclose(got.eps, moved.eps, atol=1e-12)

    # diffusers' course: the prediction, then x moves by 3 times the gradient, then a step with the old eps
    g = -jax.grad(lambda x: loss_x0((x - s * d.eps) / a, at, {}).sum())(x)
    got = loss_guidance(lambda at: 3.0 / at.sigma ** 2, loss_x0, gradient='after', shift_eps=False)(
        PRIOR.denoise)(x, at, cond)
    np.testing.assert_allclose(got.x0, (x + 3.0 * g - s * d.eps) / a, atol=1e-12)
    np.testing.assert_array_equal(got.eps, d.eps)

    # universal guidance backwards: descent on x0, then eps from x
    got = backward_guidance(0.1, loss_x0, steps=2)(PRIOR.denoise)(x, at, cond)
    x0 = d.x0 + 0.1 * down(loss_x0, d.x0)
    x0 = x0 + 0.1 * down(loss_x0, x0)
    np.testing.assert_allclose(got.x0, x0, atol=1e-12)
    np.testing.assert_allclose(got.eps, d.eps - a / s * (x0 - d.x0), atol=1e-12)  # their Eq. 9


def affine(f, at):
    """(matrix, offset) of an affine function of x [B, 4]."""
    y = np.asarray(f(jnp.asarray(np.eye(5)[:, :4]), at))
    return (y[:4] - y[4]).T, y[4]


@pytest.mark.parametrize('variance', ['fixed_small', 'fixed_large', 'learned'])
def test_the_shift_of_the_mean_follows_the_exact_recursion(variance):
    """Dhariwal & Nichol 2021, Algorithm 1, on betas and in textbook form: every step is affine in x and z."""
    betas, scale, weight = np.linspace(0.02, 0.5, 6), 1.7, np.array([0.1, 0.4, 0.6, 0.9])
    rows = grid(diffusion.discrete(betas), 6, dtype=np.float64)
    slope = lambda x, at: -jax.grad(lambda x: loss_x(x, at, {}).sum())(x)  # noqa: E731

    def denoise(x, at, cond):
        d = PRIOR.denoise(x, at)
        return d._replace(log_var=jnp.broadcast_to(weight, x.shape)) if variance == 'learned' else d

    sources = 4 * 7
    units = np.concatenate([np.zeros((1, sources)), np.eye(sources)]).reshape(-1, 7, 4)
    kind = 'fixed_small' if variance == 'learned' else variance
    run = jax.jit(lambda x, table, scale: sample(Playback(table), denoise, classifier_shift(slope, scale, kind), x,
                                                 rows).x)
    x = np.asarray(run(units[:, 0], jnp.asarray(units[:, 1:].swapaxes(0, 1)), scale))
    mean, cov = np.zeros(4), np.eye(4)
    bar = np.cumprod(1 - betas)
    small = betas * (1 - np.append(1, bar[:-1])) / (1 - bar)
    small[0] = small[1]  # ADM's stand-in for a variance of 0
    both = [jax.jit(f) for f in (lambda x, at: PRIOR.denoise(x, at).x0, slope)]
    for t in range(5, -1, -1):
        at, before = level(np.sqrt(bar[t]), np.sqrt(1 - bar[t])), bar[t - 1] if t else 1.0
        (e, e0), (g, g0) = (affine(f, at) for f in both)
        var = {'fixed_small': np.full(4, small[t]), 'fixed_large': np.full(4, betas[t]),
               'learned': betas[t] ** weight * small[t] ** (1 - weight)}[variance]
        to_x0 = np.sqrt(before) * betas[t] / (1 - bar[t])
        m = to_x0 * e + np.sqrt(1 - betas[t]) * (1 - before) / (1 - bar[t]) * np.eye(4) + scale * var[:, None] * g
        mean = m @ mean + to_x0 * e0 + scale * var * g0
        cov = m @ cov @ m.T + np.diag(var) * (t > 0)
    columns = x[1:] - x[0]
    np.testing.assert_allclose(x[0], mean, atol=1e-8)
    np.testing.assert_allclose(columns.T @ columns, cov, atol=1e-8)


ONES = jnp.ones((2, 4))


@pytest.mark.parametrize('call, match', [
    (lambda: classifier_free(-1.0, {'label': 3}), 'guidance_scale.*-1.0'),
    (lambda: classifier_free(float('inf'), {'label': 3}), 'finite'),
    (lambda: classifier_free(2.0, {'label': 3}, guidance_rescale=1.5), r'guidance_rescale.*\[0, 1\].*1.5'),
    (lambda: classifier_free(2.0, {'label': 3}, 0.5, 'score'), "'score'.*'eps', 'v', 'x0'"),
    (lambda: instruct_pix2pix(7.5, -1.5, {}, {}), 'image_guidance_scale'),
    (lambda: autoguidance(-1, None), 'guidance_scale'),
    (lambda: interval(2.0, 1.0, 0.5), 'sigma_lo=1.0 and sigma_hi=0.5'),
    (lambda: interval(2.0, -1.0), 'sigma_lo'),
    (lambda: loss_guidance(1.0, loss_x, of='xt'), "'xt'.*'x0' or 'x_t'"),
    (lambda: loss_guidance(1.0, loss_x, gradient='through'), "'before' or 'after'"),
    (lambda: loss_guidance(1.0, lambda x, *_: x.sum())(PRIOR.denoise)(ONES, level(0.6, 0.8), {}), 'one number per'),
    (lambda: classifier_guidance(1.0, lambda x, *_: x)(PRIOR.denoise)(ONES, level(0.6, 0.8), {}), 'one number per'),
    (lambda: backward_guidance(0.1, loss_x0, steps=0), 'steps'),
    (lambda: backward_guidance(-0.1, loss_x0), 'learning_rate'),
    (lambda: classifier_shift(None, variance='learned'), "'learned'.*fixed_small"),
    (lambda: classifier_shift(None, scale=-2.0), 'scale.*-2.0'),
])
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_none_is_the_denoiser_itself():
    for transform in (loss_guidance(None, loss_x), classifier_guidance(None, loss_x), interval(None, 0.1, 1.0),
                      instruct_pix2pix(None, 1.5, {}, {}), classifier_free(interval(None), {})):
        assert transform is None or transform(PRIOR.denoise) == PRIOR.denoise
