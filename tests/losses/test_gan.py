import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.losses.gan import discriminator_loss, generator_loss, r1_penalty

REAL, FAKE = np.array([-2.0, 0.3, 4.0]), np.array([1.5, -0.7, 0.2])


def log_sigmoid(x):
    return -np.log1p(np.exp(-x))


CLOSED = {
    'non_saturating': (-log_sigmoid(REAL) - log_sigmoid(-FAKE), -log_sigmoid(FAKE)),
    'hinge': (np.maximum(0, 1 - REAL) + np.maximum(0, 1 + FAKE), -FAKE),
    'wasserstein': (FAKE - REAL, -FAKE),
}


@pytest.mark.parametrize('kind', CLOSED)
def test_closed_forms(kind):
    real, fake = jnp.asarray(REAL), jnp.asarray(FAKE)
    np.testing.assert_allclose(discriminator_loss(real, fake, kind), CLOSED[kind][0], rtol=1e-5)
    np.testing.assert_allclose(generator_loss(fake, kind), CLOSED[kind][1], rtol=1e-5)


@pytest.mark.parametrize('kind', CLOSED)
def test_directions(kind):
    """The discriminator pushes real logits up and fake ones down, the generator pushes fake ones up."""
    real, fake = jnp.asarray([-0.5, 0.5]), jnp.asarray([0.5, -0.5])
    up, down = jax.grad(lambda r, f: discriminator_loss(r, f, kind).sum(), (0, 1))(real, fake)
    assert (up < 0).all() and (down > 0).all()
    assert (jax.grad(lambda f: generator_loss(f, kind).sum())(fake) < 0).all()


def test_generator_learns_where_the_discriminator_is_sure():
    """Non-saturating: the gradient at a rejected sample is near -1, where minimising log(1 - D) would give near 0."""
    slope = jax.grad(lambda f: generator_loss(f).sum())(jnp.asarray([-20.0]))
    np.testing.assert_allclose(slope, [-1.0], rtol=1e-6)


def test_one_sided_label_smoothing():
    """The best real logit has sigmoid 1 - s; the fake side is left as it was."""
    s = 0.1

    def slopes(real):
        return jax.grad(lambda r, f: discriminator_loss(r, f, label_smoothing=s).sum(), (0, 1))(
            real, jnp.asarray([0.3]))

    best = jnp.asarray([np.log((1 - s) / s)])
    np.testing.assert_allclose(slopes(best)[0], [0.0], atol=1e-6)
    assert slopes(best - 0.1)[0] < 0 < slopes(best + 0.1)[0]
    np.testing.assert_allclose(slopes(best)[1], [1 / (1 + np.exp(-0.3))], rtol=1e-6)


def test_patches_are_averaged_per_example():
    patches = np.stack([REAL, FAKE, REAL + 1]).reshape(3, 1, 3)
    got = discriminator_loss(jnp.asarray(patches), jnp.asarray(patches))
    np.testing.assert_allclose(got, (-log_sigmoid(patches) - log_sigmoid(-patches)).mean((1, 2)), rtol=1e-5)


def test_r1_of_a_quadratic():
    """D(x) = x' A x / 2 + b' x has the gradient A x + b, for symmetric A."""
    rng = np.random.RandomState(0)
    a, b, x = rng.normal(size=(4, 4)), rng.normal(size=4), rng.normal(size=(3, 2, 2))
    a = a + a.T

    def discriminate(x):
        flat = x.reshape(len(x), -1)
        return 0.5 * jnp.einsum('bi,ij,bj->b', flat, jnp.asarray(a), flat) + flat @ jnp.asarray(b)

    expected = ((x.reshape(3, 4) @ a + b) ** 2).sum(1)
    np.testing.assert_allclose(r1_penalty(discriminate, jnp.asarray(x)), expected, rtol=1e-5)


def test_bad_input():
    zero = jnp.zeros(2)
    for call in (lambda: discriminator_loss(zero, zero, 'lsgan'), lambda: generator_loss(zero, 'lsgan')):
        with pytest.raises(ValueError, match="'lsgan'.*non_saturating, hinge, wasserstein"):
            call()
    with pytest.raises(ValueError, match='hinge'):
        discriminator_loss(zero, zero, 'hinge', 0.1)
    with pytest.raises(ValueError, match='label_smoothing is 1.0'):
        discriminator_loss(zero, zero, label_smoothing=1.0)
