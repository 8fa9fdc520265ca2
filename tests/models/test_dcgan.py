from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import trees
from gen_jax.interop.torch_layout import from_torch, to_torch
from gen_jax.models.dcgan import (
    DCGANDiscriminator,
    DCGANGenerator,
    _depth_to_space,
    dcgan_discriminator_64,
    dcgan_discriminator_digits,
    dcgan_generator_64,
    dcgan_generator_digits,
)
from tests.golden.make_dcgan import CHANNELS, LATENT, SIZE, WIDTH, inputs, weight

GOLDEN = np.load(Path(__file__).parents[1] / 'golden' / 'dcgan.npz')
NETWORKS = {'generator': DCGANGenerator(SIZE, WIDTH, CHANNELS, LATENT),
            'discriminator': DCGANDiscriminator(SIZE, WIDTH, CHANNELS)}


def shapes(network, *shape):
    return jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))


def reference_variables(network, x):
    """Our variables with the reference's weights and running statistics."""
    made = shapes(network, *x.shape)
    keys = to_torch(jax.tree.map(lambda s: np.zeros(s.shape), made['params']))
    params = from_torch({k: weight(k, v.shape) for k, v in keys.items()}, made['params'])
    stats = {name: {leaf: weight(f'{name}.running_{leaf}', s.shape) for leaf, s in of.items()}
             for name, of in made['batch_stats'].items()}
    return {'params': params, 'batch_stats': stats}


@pytest.mark.parametrize('name', NETWORKS)
def test_golden_parity(name):
    """Both modes, every key, and the running means after one training step agree with torch."""
    network, x = NETWORKS[name], inputs()[name == 'discriminator']
    variables = reference_variables(network, x)
    names = [*to_torch(variables['params'])]
    names += [f'{k}.running_{s}' for k in variables['batch_stats'] for s in ('mean', 'var')]
    assert sorted(names) == list(GOLDEN[f'{name}/keys'])

    @jax.jit
    def run(variables, x):
        return network.apply(variables, x), network.apply(variables, x, train=True, mutable=['batch_stats'])

    evaluated, (trained, new) = run(variables, x)
    for ours, mode in ((evaluated, 'eval'), (trained, 'train')):
        golden = GOLDEN[f'{name}/{mode}'].reshape(ours.shape)
        np.testing.assert_allclose(ours, golden, atol=1e-4 * np.abs(golden).max())
    for module, of in new['batch_stats'].items():
        np.testing.assert_allclose(of['mean'], GOLDEN[f'{name}/after/{module}.running_mean'], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name, network, shape, count', [
    ('generator', dcgan_generator_64(), (2, 100), 3_576_704),
    ('discriminator', dcgan_discriminator_64(), (2, 64, 64, 3), 2_765_568),
])
def test_published_size(name, network, shape, count):
    params = shapes(network, *shape)['params']
    assert trees.count(params) == count
    ours = to_torch(jax.tree.map(lambda s: np.broadcast_to(np.float32(0), s.shape), params))
    assert sorted(f'{k} {v.shape}' for k, v in ours.items()) == list(GOLDEN[f'{name}/published'])


@pytest.mark.parametrize('upsample', ['transpose', 'subpixel'])
@pytest.mark.parametrize('size', [8, 16, 32, 128])
def test_image_sizes(size, upsample):
    def run():
        generator = DCGANGenerator(size, 2, 1, 3, upsample)
        image, _ = generator.init_with_output(jax.random.key(0), jnp.zeros((2, 3)))
        return image, DCGANDiscriminator(size, 2, 1).init_with_output(jax.random.key(0), image)[0]

    image, logits = jax.eval_shape(run)
    assert image.shape == (2, size, size, 1) and logits.shape == (2,)


def test_subpixel_is_a_shuffle():
    """Channel (2 i + j) C + c of a low-resolution pixel is pixel (i, j) of its 2x2 block, channel c."""
    low = np.random.RandomState(0).standard_normal((2, 3, 5, 12))
    out = np.asarray(_depth_to_space(jnp.asarray(low)))
    assert out.shape == (2, 6, 10, 3)
    for i in range(2):
        for j in range(2):
            np.testing.assert_allclose(out[:, i::2, j::2], low[..., 3 * (2 * i + j):][..., :3], rtol=1e-6)


def test_bfloat16_keeps_parameters_and_outputs_in_float32():
    generator = DCGANGenerator(8, 2, 1, 3, dtype='bfloat16')
    discriminator = DCGANDiscriminator(8, 2, 1, dtype='bfloat16')

    def run():
        image, g = generator.init_with_output(jax.random.key(0), jnp.zeros((2, 3)))
        return image, discriminator.init_with_output(jax.random.key(0), image), g

    made = jax.eval_shape(run)
    assert {x.dtype for x in jax.tree.leaves(made)} == {np.dtype('float32')}


def test_bad_input():
    for size in (4, 12, 0):
        with pytest.raises(ValueError, match=f'image_size is {size}'):
            shapes(DCGANGenerator(size, 2), 1, 100)
    with pytest.raises(ValueError, match="'bicubic'.*transpose or subpixel"):
        shapes(dcgan_generator_digits(upsample='bicubic'), 1, 32)
    with pytest.raises(ValueError, match=r'shape \[B, 32\], got \(1, 31\)'):
        shapes(dcgan_generator_digits(), 1, 31)
    with pytest.raises(ValueError, match=r'\(16, 16, 1\), got \(8, 8, 1\)'):
        shapes(dcgan_discriminator_digits(), 1, 8, 8, 1)
