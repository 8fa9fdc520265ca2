"""A config that trains a small system on real data: what tests start as processes, and kill."""

import jax
import jax.numpy as jnp

from gen_jax.config import base_config
from gen_jax.types import Objective, Predict, System


def denoise(width=32):
    """A perceptron that predicts the noise in a digit: noise by example and by batch, a running mean in `extra`."""

    def init(key, batch):
        size = batch['image'][0].size
        a, b = (0.1 * jax.random.normal(k, s) for k, s in zip(jax.random.split(key), ((size, width), (width, size)),
                                                              strict=True))
        return {'mlp': {'a': a, 'b': b}}, {'mean': jnp.zeros(())}

    def apply(params, x):
        return jnp.tanh(x @ params['a']) @ params['b']

    def loss(params, state, batch, noise):
        x = batch['image'].reshape(batch['image'].shape[0], -1)
        eps = noise.normal('eps', x)
        t = noise.stratified('t')[:, None]
        error = jnp.mean(jnp.square(apply(params['mlp'], (1 - t) * x + t * eps) - eps))
        return error, ({'t': jnp.mean(t)}, {'mean': 0.9 * state.extra['mean'] + 0.1 * jnp.mean(x)})

    def score(variables, keys, batch, options):
        x = batch['image'].reshape(batch['image'].shape[0], -1)
        return {'error': jnp.mean(jnp.square(apply(variables.params['mlp'], x) - x), -1)}

    return System(init, {'denoise': Objective(loss, ('mlp',), 'mlp')}, {'losses': Predict(score)})


def get_config(arg=''):
    """No arguments."""
    del arg
    c = base_config()
    c.data.source, c.data.batch_size = 'digits', 16
    c.system = {'name': 'tests.engine.interrupted:denoise'}
    c.optim.name = 'adamw'
    c.optim.schedule = 'cosine'
    c.train.ema = {'slow': {'decay': 0.99, 'warmup': True}}
    c.train.cpu_devices = 2
    c.log.tensorboard = False
    c.sample.predict = ''
    c.evaluate = {'heldout': {'predict': 'losses', 'metrics': ({'name': 'mean', 'key': 'error'},), 'every_steps': 30}}
    return c
