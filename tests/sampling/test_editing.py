"""Inpainting, RePaint, img2img, inversion and interpolation against exact Gaussians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import diffusion
from gen_jax.rng import Noise, example_keys
from gen_jax.sampling import chain, ddim, ddim_inverse, ddpm, grid, heun, prior, reverse, sample, truncate
from gen_jax.sampling.editing import lerp, slerp, start_from
from gen_jax.sampling.inpainting import repaint, repaint_grid, replace_known, time_travel
from gen_jax.types import Denoised, Level, Point, Sampler
from tests.oracles import GaussianMixture, StepPlayback, gaussian_mixture, rotation

KNOWN = np.array([[1.0, -0.5, 0.0]])
MASK = np.array([[1.0, 1.0, 0.0]])


def tied(seed=0):
    """A Gaussian whose axes are far from independent: what is known says a lot about the rest."""
    rng = np.random.default_rng(seed)
    return GaussianMixture(np.ones(1), 0.3 * rng.standard_normal((1, 3)), rotation(3, rng)[None],
                           np.array([[0.05, 0.3, 1.5]]))


ONE = tied()


def conditional_mean():
    m, c = ONE.means[0], ONE.cov[0]
    return m[2] + c[2, :2] @ np.linalg.solve(c[:2, :2], KNOWN[0, :2] - m[:2])


def test_known_pixels_stay_and_unknown_ones_land_near_the_conditional_mean():
    """The samplers are affine in their noise, so without any they return the mean of what they would sample.

    RePaint as published: 250 steps, jumps of 10, 10 times.
    """
    rows = grid(diffusion.vp(), 250)
    walk = repaint_grid(rows, jump_length=10, jump_n_sample=10)
    silent = StepPlayback(jnp.zeros((len(walk.t), 1, 3)))
    far = {}
    for name, make, path in (('nothing', lambda: ddpm(), rows),
                             ('replacement', lambda: chain(ddpm(), replace_known(KNOWN, MASK)), rows),
                             ('repaint', lambda: repaint(ddpm(), KNOWN, MASK), walk)):
        x = jax.jit(lambda path, make=make: sample(silent, ONE.denoise, make(), jnp.zeros((1, 3)), path).x)(path)
        far[name] = abs(float(x[0, 2]) - conditional_mean())
        assert name == 'nothing' or np.array_equal(x[0, :2], KNOWN[0, :2].astype(np.float32))
    assert far['replacement'] < far['nothing']
    assert far['repaint'] < 0.2 * far['replacement'] and far['repaint'] < 0.03, far  # 0.023 and 0.142


@jax.jit
def run_and_replace(known, mask, table, rows):
    def kept(noise, denoise, point, s, state):
        return point._replace(aux={'x': point.x}), state

    sampler = chain(heun(), Sampler(lambda point: (), kept), replace_known(known, mask))
    point = sample(StepPlayback(table), lambda x, at, cond: ONE.denoise(x, at)._replace(aux=cond), sampler, table[0],
                   rows, carry={'x': table[0]})
    return point.x, point.aux['x']


@pytest.mark.parametrize('process', ['vp', 've', 'flow', 'first_alpha'])
def test_known_pixels_are_exact_with_real_noise(process):
    """Even where the last row is not the data; a soft mask blends; padded rows; chained with a second-order solver."""
    rows = {'vp': lambda: grid(diffusion.vp(), 4, max_steps=6), 've': lambda: grid(diffusion.ve(), 4, max_steps=6),
            'flow': lambda: grid(diffusion.flow(), 4, max_steps=6),
            'first_alpha': lambda: grid(diffusion.discrete_ddpm(), 4, max_steps=6, set_alpha_to_one=False)}[process]()
    mask = np.array([[1.0, 0.0, 0.5]])
    known = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    table = jnp.asarray(np.random.default_rng(1).standard_normal((6, 2, 3)), jnp.float32)
    x, before = run_and_replace(known, mask, table, rows)
    np.testing.assert_array_equal(x[:, 0], known[:, 0])
    np.testing.assert_allclose(x[:, 1], before[:, 1], rtol=1e-6)
    np.testing.assert_allclose(x[:, 2], 0.5 * (known[:, 2] + before[:, 2]), rtol=1e-5)
    assert np.isfinite(x).all() and (process in ('vp', 'flow')) == (rows.sigma[-1] == 0)


def test_every_row_has_the_known_pixels_at_its_own_level():
    rows = grid(diffusion.vp(), 5)
    table = jnp.asarray(np.random.default_rng(0).standard_normal((5, 2, 3)), jnp.float32)
    known, fixed = np.array([[1.0, 2.0, 3.0]] * 2, np.float32), np.array([[0.1, -0.2, 0.3]] * 2, np.float32)

    @jax.jit
    def run():
        samplers = [chain(ddim(), replace_known(known, np.ones((1, 1)), eps)) for eps in (None, fixed)]
        return [sample(StepPlayback(table), ONE.denoise, s, table[0], rows, trace=lambda p: p.x)[1] for s in samplers]

    for xs, z in zip(run(), (np.asarray(table), fixed), strict=True):
        want = rows.alpha[1:, None, None] * known + rows.sigma[1:, None, None] * z
        np.testing.assert_allclose(xs, want, atol=1e-6)


# The walk of the paper's code (get_schedule_jump): 20 levels, jump_length 5, jump_n_sample 3; level 0 is the last
WALK = [*range(19, 10, -1), *[10, 11, 12, 13, 14, 15, 14, 13, 12, 11] * 2, *range(10, 5, -1),
        *[5, 6, 7, 8, 9, 10, 9, 8, 7, 6] * 2, *range(5, 0, -1), *[0, 1, 2, 3, 4, 5, 4, 3, 2, 1] * 2, 0, -1]


def test_repaint_grid():
    rows = grid(diffusion.discrete(np.linspace(0.01, 0.3, 20)), 20)
    walk = repaint_grid(rows, 5, 3, max_steps=100)
    n = len(WALK)
    np.testing.assert_array_equal(walk.t[:n], WALK)
    assert walk.t.shape == (101,) and np.all(walk.last == n - 1) and np.all(walk.t[n:] == -1)
    np.testing.assert_array_equal(walk.index, np.arange(101))
    np.testing.assert_array_equal(walk.sigma[:n], rows.sigma[19 - np.array(WALK)])
    plain = repaint_grid(rows, 5, 1)
    for a, b in zip(plain, rows, strict=True):
        np.testing.assert_array_equal(a, b)
    padded = repaint_grid(grid(diffusion.discrete(np.linspace(0.01, 0.3, 20)), 20, max_steps=30), 5, 3)
    np.testing.assert_array_equal(padded.t, WALK)


def test_a_step_up_is_the_forward_kernel():
    """Calls no network, forgets the solver's history, and composes to the marginal of its level."""
    up = np.array([[1.0, 0.0], [0.8, 0.5], [0.3, 0.7], [0.0, 1.0]], np.float32)
    rows = Level(np.arange(4.0), up[:, 0], up[:, 1], np.arange(4), np.full(4, 3))

    def counted(noise, denoise, point, s, state):
        return Point(denoise(point.x, s).x0, s, point.aux), state + 1

    inner = Sampler(lambda point: jnp.int32(7), counted)
    travel = time_travel(inner)
    sources = np.concatenate([np.zeros((1, 4)), np.eye(4)]).astype(np.float32)  # x0 and three draws, one at a time

    def run(rows):
        def states(noise, denoise, point, s, state):
            point, state = travel.step(noise, denoise, point, s, state)
            return Point(point.x, point.level, {'state': state}), state

        return sample(StepPlayback(jnp.asarray(sources[:, 1:].T[:, :, None])),
                      lambda x, at, cond: Denoised(x + 1, x, aux=cond),
                      Sampler(travel.init, states), sources[:, :1], rows, carry={'state': jnp.int32(0)},
                      trace=lambda point: (point.x[:, 0], point.aux['state']))[1]

    run = jax.jit(run)
    xs, states = run(rows)
    np.testing.assert_array_equal(states, [7, 7, 7])
    for (alpha, sigma), x in zip(up[1:], xs, strict=True):
        np.testing.assert_allclose(x[1], alpha, atol=1e-6)
        np.testing.assert_allclose(np.sum(x[2:] ** 2), sigma ** 2, atol=1e-6)
    walk = jax.tree.map(lambda a: a[[2, 3, 1, 2]], rows)._replace(index=np.arange(4))
    xs, states = run(walk)  # up, down with the inner sampler, and up again
    np.testing.assert_array_equal(states, [7, 8, 7])
    np.testing.assert_allclose(xs[1], xs[0] + 1)


def test_start_from_a_picture():
    """SDEdit: the weaker, the closer to the picture; full strength from pure noise is plain sampling, seed for seed."""
    rows = grid(diffusion.flow(), 20)
    x0 = np.array([[1.0, -1.0, 0.5], [0.0, 2.0, 0.0]], np.float32)
    noise = StepPlayback(jnp.asarray(np.random.default_rng(0).standard_normal((1, 2, 3)), jnp.float32), 0)
    np.testing.assert_array_equal(start_from(noise, x0, truncate(rows, 1.0)), prior(noise, (2, 3), rows))
    for strength in (0.25, 0.5):
        np.testing.assert_allclose(start_from(noise, x0, truncate(rows, strength)),
                                   (1 - strength) * x0 + strength * noise.normal('x_T', x0), rtol=1e-6)
    keys = Noise(example_keys(0, [5, 6]))
    np.testing.assert_array_equal(start_from(keys, x0, rows), prior(keys, (2, 3), rows))
    run = jax.jit(lambda path: sample(noise, ONE.denoise, ddim(), start_from(noise, x0, path), path).x)
    far = [np.abs(run(truncate(rows, s)) - x0).max() for s in (0.05, 0.3, 1.0)]
    assert far[0] < 0.1 < far[1] < far[2], far


PROCESSES = {'vp': (diffusion.vp(), None), 'flow': (diffusion.flow(), None), 'edm': (diffusion.edm(0.02, 10.0), None),
             'zero_snr': (diffusion.discrete_ddpm(zero_terminal_snr=True), 'trailing')}


def test_inversion_round_trip():
    """Invert, then sample: the error of one call per step falls as 1 / steps, that of many is none at any steps."""
    mixture = gaussian_mixture(3, dim=3, seed=1)
    with jax.enable_x64(True):
        x0 = jnp.asarray(mixture.sample(5))

        def round_trip(rows, back, iterations):
            noisy = sample(StepPlayback(None), mixture.denoise, ddim_inverse(iterations), x0, back)
            return sample(StepPlayback(None), mixture.denoise, ddim(), noisy.x, rows).x, noisy.x

        one, many = (jax.jit(lambda rows, back, n=n: round_trip(rows, back, n)) for n in (1, 60))
        for name, (process, spacing) in PROCESSES.items():
            errors = []
            for steps in (40, 80, 160):
                rows = grid(process, steps, spacing, max_steps=160, dtype=np.float64)
                x, noise = one(rows, reverse(rows))
                errors.append(np.abs(x - x0).mean())
                assert np.isfinite(noise).all()
            assert errors[0] / errors[1] > 1.6 and errors[1] / errors[2] > 1.7 and errors[2] < 0.05, (name, errors)
            rows = grid(process, 10, spacing, max_steps=160, dtype=np.float64)
            exact = np.abs(many(rows, reverse(rows))[0] - x0).max()
            assert exact < 1e-3, (name, exact)


def test_inversion_with_a_picture_finds_its_noise():
    """On one Gaussian the flow is known: the noise found is the one that the exact ODE gives."""
    with jax.enable_x64(True):
        x0 = jnp.asarray(ONE.sample(5))
        rows = grid(diffusion.vp(), 200, dtype=np.float64)
        ends = [jax.tree.map(lambda a, i=i: a[i], rows) for i in (-1, 0)]
        found = jax.jit(lambda x: sample(StepPlayback(None), ONE.denoise, ddim_inverse(3), x, reverse(rows)).x)(x0)
        np.testing.assert_allclose(found, ONE.flow(x0, *ends), atol=0.05)


def test_interpolation():
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((5, 8, 8, 3)).astype(np.float32) for _ in range(2))
    b[1], b[2], b[3:], a[4] = 2 * a[1], -a[2], 0.0, 0.0  # parallel, opposite, one end or both without direction
    for mix in (slerp, lerp):
        for ends in ((0.0, a), (1.0, b)):
            np.testing.assert_array_equal(mix(a, b, ends[0]), ends[1])
        assert np.isfinite(mix(a, b, np.array([0.0, 0.3, 0.5, 0.7, 1.0]))).all()
    np.testing.assert_allclose(lerp(a, b, 0.25), 0.75 * a + 0.25 * b, rtol=1e-6)
    np.testing.assert_allclose(slerp(a, b, 0.25)[1:], lerp(a, b, 0.25)[1:], atol=1e-6)
    # of equal lengths: the length stays, and the angle grows in proportion
    u = a[:2] / np.linalg.norm(a[:2].reshape(2, -1), axis=1)[:, None, None, None]
    v = np.flip(u, axis=1)
    angle = lambda p, q: np.arccos(np.sum(np.asarray(p) * np.asarray(q), axis=(1, 2, 3)))  # noqa: E731
    w = np.array([0.25, 0.6], np.float32)
    got = slerp(u, v, w)
    np.testing.assert_allclose(np.sum(got ** 2, axis=(1, 2, 3)), 1.0, rtol=1e-5)
    np.testing.assert_allclose(angle(u, got), w * angle(u, v), rtol=1e-3)
    assert np.all(np.sum(lerp(u, v, w) ** 2, axis=(1, 2, 3)) < 0.9)


ROWS = grid(diffusion.vp(), 20)


@pytest.mark.parametrize('call, match', [
    (lambda: replace_known(KNOWN, np.ones((1, 2))), r'mask has shape \(1, 2\).*\(1, 3\)'),
    (lambda: replace_known(KNOWN, np.ones(3)), 'each axis must be the same or 1'),
    (lambda: replace_known(KNOWN, 2 * MASK), r'mask must lie within \[0, 1\].*0.0 .. 2.0'),
    (lambda: repaint(ddpm(), KNOWN, MASK - 0.1), r'mask must lie within \[0, 1\]'),
    (lambda: replace_known(KNOWN, MASK * np.nan), 'mask must lie within'),
    (lambda: sample(StepPlayback(jnp.zeros((20, 2, 3))), ONE.denoise, replace_known(KNOWN, MASK), jnp.ones((2, 3)),
                    ROWS), r'known pictures.*\(1, 3\).*\(2, 3\)'),
    (lambda: repaint_grid(ROWS, 0), 'jump_length must be an integer of at least 1'),
    (lambda: repaint_grid(ROWS, 5, 0), 'jump_n_sample must be an integer of at least 1'),
    (lambda: repaint_grid(ROWS, 20), 'jump_length=20.*20 steps'),
    (lambda: repaint_grid(ROWS, 5, 3, max_steps=30), r'walk takes \d+ steps.*max_steps=30'),
    (lambda: ddim_inverse(0), 'iterations'), (lambda: ddim_inverse(2, compat=True), 'iterations'),
    (lambda: slerp(np.ones((1, 2)), np.ones((1, 3)), 0.5), 'one shape'),
    (lambda: lerp(np.ones((1, 2)), np.ones((1, 2)), 1.5), r'weight must lie within \[0, 1\], got 1.5'),
    (lambda: truncate(ROWS, 0.0), 'strength')])
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
