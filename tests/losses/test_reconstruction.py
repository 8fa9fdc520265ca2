import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.losses import reconstruction as R


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize('levels', [2, 17, 256])
@pytest.mark.parametrize('log_scale', [-7.0, -2.5, 0.0, 3.0])
def test_probabilities_sum_to_one(levels, log_scale):
    """For locations in, on the edges of, and outside the range."""
    mean = jnp.asarray([-3.0, -1.0, -0.3, 0.111, 1.0, 2.0])[:, None]
    log_p = R.discretised_logistic_log_prob(jnp.arange(levels)[None], mean, jnp.full((6, 1), log_scale), levels)
    assert log_p.shape == (6, levels) and (log_p <= 0).all() and jnp.isfinite(log_p).all()
    np.testing.assert_allclose(np.exp(np.float64(log_p)).sum(1), 1, atol=2e-6)


def test_closed_form():
    """Differences of the logistic distribution function, in float64."""
    levels, mean, scale = 17, 0.2, 0.3
    edges = np.concatenate([[-np.inf], (np.arange(16) + 0.5) / 8 - 1, [np.inf]])
    expected = np.diff(sigmoid((edges - mean) / scale))
    got = R.discretised_logistic_log_prob(jnp.arange(17), jnp.float32(mean), jnp.float32(np.log(scale)), levels)
    np.testing.assert_allclose(np.exp(got), expected, rtol=2e-5)
    wide = R.discretised_logistic_log_prob(jnp.arange(2), jnp.float32(0), jnp.float32(20), 2)
    np.testing.assert_allclose(wide, np.log([0.5, 0.5]), rtol=1e-6)


def test_tails_keep_a_gradient():
    """Far from the mean, where the difference of two sigmoids is 0 in float32, log P falls by 1 / scale per unit."""
    def log_p(mean):
        return R.discretised_logistic_log_prob(jnp.int32(8), mean, jnp.float32(-5.0), 17)

    value, slope = jax.value_and_grad(log_p)(jnp.float32(-1.0))
    assert np.isfinite(value) and value < -100
    np.testing.assert_allclose(slope, np.exp(5.0), rtol=1e-3)


def test_nll_sums_over_pixels():
    rng = np.random.RandomState(0)
    level = rng.randint(0, 17, (3, 4, 4, 1))
    mean, log_scale = rng.normal(size=(2, 3, 4, 4, 1))
    got = R.discretised_logistic_nll(jnp.asarray(level), jnp.asarray(mean), jnp.asarray(log_scale), 17)
    each = R.discretised_logistic_log_prob(jnp.asarray(level), jnp.asarray(mean), jnp.asarray(log_scale), 17)
    assert got.shape == (3,)
    np.testing.assert_allclose(got, -np.asarray(each).sum((1, 2, 3)), rtol=1e-6)


def test_samples_follow_the_probabilities():
    """A regular grid of uniforms lands in every bin as often as its probability says."""
    n, mean, log_scale = 20000, jnp.float32(0.7), jnp.float32(-1.5)
    drawn = R.discretised_logistic_sample((jnp.arange(n) + 0.5) / n, mean, log_scale, 17)
    expected = np.exp(R.discretised_logistic_log_prob(jnp.arange(17), mean, log_scale, 17))
    np.testing.assert_allclose(np.bincount(drawn, minlength=17) / n, expected, atol=2e-4)


def test_levels_survive_the_way_through_uint8():
    """Level -> the pipeline's uint8 -> [-1, 1] -> level, for every level."""
    for levels in (17, 256):
        level = np.arange(levels)
        pixel = np.rint(level * 255 / (levels - 1)).astype(np.uint8)
        image = jnp.asarray(pixel, jnp.float32) / 127.5 - 1
        np.testing.assert_array_equal(R.image_to_level(image, levels), level)
        np.testing.assert_array_equal(R.image_to_level(R.level_to_image(jnp.asarray(level), levels), levels), level)
    np.testing.assert_array_equal(R.image_to_level(jnp.asarray([-1.5, 1.5]), 17), [0, 16])


def test_one_level_is_refused():
    for call in (lambda: R.image_to_level(jnp.zeros(1), 1), lambda: R.level_to_image(jnp.zeros(1), 0),
                 lambda: R.discretised_logistic_nll(jnp.zeros((1, 1), int), jnp.zeros((1, 1)), jnp.zeros((1, 1)), 1)):
        with pytest.raises(ValueError, match='at least 2'):
            call()


def test_gaussian_and_bernoulli():
    rng = np.random.RandomState(0)
    x, mean, log_var = rng.normal(size=(3, 4, 5))
    expected = (0.5 * (x - mean) ** 2 / np.exp(log_var) + 0.5 * np.log(2 * np.pi * np.exp(log_var))).sum(1)
    np.testing.assert_allclose(R.gaussian_nll(jnp.asarray(x), jnp.asarray(mean), jnp.asarray(log_var)),
                               expected, rtol=1e-5)
    # A shared scalar variance still counts its logarithm once a pixel.
    np.testing.assert_allclose(R.gaussian_nll(jnp.zeros((2, 3)), jnp.zeros((2, 3)), 0.0), 1.5 * np.log(2 * np.pi) *
                               np.ones(2), rtol=1e-6)
    p, target = sigmoid(mean), rng.uniform(size=mean.shape)
    np.testing.assert_allclose(R.bernoulli_nll(jnp.asarray(target), jnp.asarray(mean)),
                               -(target * np.log(p) + (1 - target) * np.log(1 - p)).sum(1), rtol=1e-5)
    np.testing.assert_allclose(R.bernoulli_nll(jnp.ones((1, 1)), jnp.full((1, 1), -200.0)), [200.0])


def test_reconstruction_error_and_its_weight():
    x, y = jnp.asarray([[[1.0, -2.0], [0.5, 0.0]]]), jnp.zeros((1, 2, 2))
    weight = jnp.asarray([[[2.0], [4.0]]])
    assert R.reconstruction_error(x, y).tolist() == [3.5]
    assert R.reconstruction_error(x, y, 'l2').tolist() == [5.25]
    assert R.reconstruction_error(x, y, 'l1', weight).tolist() == [8.0]
    with pytest.raises(ValueError, match="'huber'; choose l1 or l2"):
        R.reconstruction_error(x, y, 'huber')


def test_local_contrast_is_that_of_the_neighbourhood():
    image = np.full((1, 5, 6, 2), -1.0, np.float32)
    image[0, 2, 0, 1] = 0.5  # against -1 in one channel: 0.75 of the range
    expected = np.zeros((5, 6))
    expected[1:4, 0:2] = 0.75
    np.testing.assert_allclose(R.local_contrast(image)[0, :, :, 0], expected)
