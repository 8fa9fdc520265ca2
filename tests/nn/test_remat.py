"""Rematerialisation: the backward pass keeps less, and finds the same gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import models
from gen_jax.build import make_system
from gen_jax.config import ConfigError, apply_overrides, load_config
from gen_jax.engine.parallel import CPU_REMAT
from gen_jax.nn.remat import recomputed


def kept(f, *arguments) -> int:
    """Bytes that the forward pass hands to the backward pass."""
    pullback = jax.eval_shape(lambda *a: jax.vjp(f, *a)[1], *arguments)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pullback))


@pytest.mark.parametrize('factory, options, image', [
    ('unet_tiny', {'dropout': 0.1}, (16, 8, 8, 1)), ('adm_tiny', {'dropout': 0.1}, (16, 8, 8, 1)),
    ('songunet_digits', {'model_channels': 8, 'num_groups': 4}, (16, 8, 8, 1)),
    ('ddpmpp_digits', {'model_channels': 8}, (16, 8, 8, 1)), ('vdm_tiny', {}, (16, 8, 8, 1)),
    ('clip_tiny', {'vision_layers': 4}, (16, 8, 8, 3))])
def test_every_network_of_blocks_keeps_less_under_the_same_names(factory, options, image):
    def prepare(remat, params=None):
        network = getattr(models, factory)(**options, remat=remat)
        x, label = jnp.zeros(image), jnp.zeros(image[0], jnp.int32)
        classes = getattr(network, 'num_class_embeds', None) or getattr(network, 'num_classes', None) or getattr(
            network, 'label_dim', 0)
        if factory == 'clip_tiny':
            arguments, call = (x, jnp.zeros((image[0], 8), jnp.int32)), {}
        else:
            arguments = (x, jnp.ones(image[0]) * 0.5, *((label,) if classes else ()))
            call = {'deterministic': False, 'rngs': {'dropout': jax.random.key(1)}}
        if params is None:
            params = jax.eval_shape(lambda: network.init(jax.random.key(0), *arguments)['params'])

        def loss(params):
            out = network.apply({'params': params}, *arguments, **call)
            return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(out))

        return params, kept(loss, params)

    params, everything = prepare('')
    same, full = prepare('full')
    assert jax.tree.structure(params) == jax.tree.structure(same)
    assert full < 0.75 * everything, (full, everything)
    if factory in ('unet_tiny', 'clip_tiny'):  # outputs of convolutions and of matrix products
        assert full < prepare('dots', params)[1] < everything


class Block(nn.Module):
    """A residual perceptron with dropout."""

    @nn.compact
    def __call__(self, x, *, deterministic):
        y = jnp.tanh(jnp.sin(jnp.tanh(nn.Dense(32, name='fc1')(x))))
        return x + nn.Dense(8, name='fc2')(nn.Dropout(0.3)(y, deterministic=deterministic))


class Stack(nn.Module):
    """Four of them."""

    remat: str

    @nn.compact
    def __call__(self, x):
        for i in range(4):
            x = recomputed(Block(name=f'blocks.{i}'), self.remat)(x, deterministic=False)
        return x


def test_memory_falls_and_gradients_stay():
    """As the compiler counts temporaries, where its options let it give memory back; dropout draws the same masks."""
    x = jax.random.normal(jax.random.key(2), (4096, 8))
    keys = {'params': jax.random.key(0), 'dropout': jax.random.key(1)}
    params = jax.jit(Stack('').init)(keys, x[:1])['params']
    found, memory = {}, {}
    for remat in ('', 'full'):
        def loss(params, remat=remat):
            return jnp.mean(jnp.square(Stack(remat).apply({'params': params}, x, rngs={'dropout': keys['dropout']})))

        program = jax.jit(jax.grad(loss)).lower(params).compile(compiler_options=CPU_REMAT)
        found[remat], memory[remat] = program(params), program.memory_analysis().temp_size_in_bytes
    assert memory['full'] < 0.7 * memory[''], memory
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found[''], found['full'])
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(found[''])) > 1e-3


def test_configs_name_it():
    config = load_config('digits:debug')
    assert make_system(apply_overrides(config, ['--config.train.remat=dots'])).objectives
    with pytest.raises(ValueError, match=r"unknown remat policy 'dot': choose from full, .*or '' for none"):
        make_system(apply_overrides(config, ['--config.train.remat=dot']))
    with pytest.raises(ConfigError, match='no network of systems.vae has blocks.*models.vae'):
        make_system(apply_overrides(load_config('digits_vae'), ['--config.train.remat=full']))
