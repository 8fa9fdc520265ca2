"""Where x0 lives: pictures and latents, there and back."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.rng import Noise, example_keys
from gen_jax.systems.spaces import latents, pixels
from gen_jax.types import Variables


class Blocks(nn.Module):
    """A first stage that is exact: 2x2 blocks of one channel become four channels, times a weight."""

    def setup(self):
        self.weight = self.param('weight', lambda key: jnp.float32(2.0))

    def encode(self, image):
        b, h, w, _ = image.shape
        z = image.reshape(b, h // 2, 2, w // 2, 2).transpose(0, 1, 3, 2, 4).reshape(b, h // 2, w // 2, 4)
        return z * self.weight, jnp.full_like(z, -2.0)

    def decode(self, z):
        b, h, w, _ = z.shape
        return (z / self.weight).reshape(b, h, w, 2, 2).transpose(0, 1, 3, 2, 4).reshape(b, 2 * h, 2 * w, 1)

    def __call__(self, image):
        return self.decode(self.encode(image)[0])


IMAGE = np.random.default_rng(0).uniform(-1, 1, (16, 4, 4, 1)).astype(np.float32)
NOISE = Noise(example_keys(0, range(16)))


def test_latents_are_scaled_to_unit_variance_and_come_back():
    space = latents(Blocks(), (4, 4, 1))
    assert space.shape == (2, 2, 4) and not space.centred and space.frozen['first_stage']['weight'].shape == ()
    frozen = {'first_stage': {'weight': jnp.float32(3.0)}}
    mean, log_var = Blocks().apply({'params': frozen['first_stage']}, IMAGE, method='encode')
    cached = {'mean': mean, 'log_var': log_var}
    variables = Variables({}, space.extra(cached), frozen)
    z = space.read(variables, cached)
    np.testing.assert_allclose(np.std(z), 1.0, rtol=1e-5)
    np.testing.assert_allclose(z, space.read(variables, {'image': IMAGE}), rtol=1e-5)  # what was cached is what it is
    np.testing.assert_allclose(space.show(variables, z), IMAGE, atol=1e-5)
    assert abs(space.show(variables, 9 * z)).max() == 1.0
    # In training a latent is drawn of its posterior, whose standard deviation is scaled alike.
    drawn = space.read(variables, cached, NOISE)
    np.testing.assert_allclose(np.std((drawn - z) / variables.extra['scaling_factor']), np.exp(-1.0), rtol=0.15)
    np.testing.assert_array_equal(space.read(variables, {'mean': mean}, NOISE), z)
    fixed = latents(Blocks(), (4, 4, 1), scaling_factor=0.5)
    assert fixed.extra({}) == {}
    np.testing.assert_allclose(fixed.read(Variables({}, {}, frozen), cached), 0.5 * mean)


def test_a_latent_is_known_where_all_its_pixels_are():
    mask = np.ones((1, 4, 4, 1), np.float32)
    mask[0, 1, 3] = 0.0
    np.testing.assert_array_equal(latents(Blocks(), (4, 4, 1)).keep(mask)[0, :, :, 0], [[1, 0], [1, 1]])
    np.testing.assert_array_equal(pixels((4, 4, 1)).keep(mask), mask)


def test_bad_input_is_named():
    space = latents(Blocks(), (4, 4, 1))
    with pytest.raises(ValueError, match=r"cached latents of shape \(4, 4, 4\), but system.first_stage makes \(2, 2"):
        space.read(Variables({}, {'scaling_factor': 1.0}, {}), {'mean': jnp.zeros((1, 4, 4, 4))})
    with pytest.raises(ValueError, match="no 'mean' to measure the scale .*gen-jax cache.*scaling_factor"):
        space.extra({'image': IMAGE})
    for factor in (0.0, -1.0, float('inf')):
        with pytest.raises(ValueError, match=f'scaling_factor {factor}'):
            latents(Blocks(), (4, 4, 1), factor)


@pytest.mark.parametrize('image_range', [(-1.0, 1.0), (0.0, 1.0)])
def test_pictures_come_back(image_range):
    space, variables = pixels((4, 4, 1), image_range=image_range), Variables({})
    x0 = space.read(variables, {'image': IMAGE})
    assert image_range[0] <= x0.min() < x0.max() <= image_range[1]
    np.testing.assert_allclose(space.show(variables, x0), IMAGE, atol=1e-6)
    levels = np.round((IMAGE + 1) * 8) / 8 - 1
    grey = pixels((4, 4, 1), levels=17, dequantise=True)
    moved = jax.jit(lambda x: grey.read(variables, {'image': x}, NOISE))(levels)
    assert 0 < abs(moved - grey.read(variables, {'image': levels})).max() <= 1 / 17 + 1e-6
    np.testing.assert_allclose(grey.show(variables, moved), levels, atol=1e-6)
