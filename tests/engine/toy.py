"""A system of a few floats whose updates are known in closed form, for the engine's tests."""

import jax.numpy as jnp
import numpy as np
import optax

from gen_jax.types import Objective, Predict, System


def regression(lr=0.1, noise_scale=0.1, per_example=True, every=1, poison_step=None):
    """w fits y = 2 x with noisy inputs; a second tree `c` follows w; extra counts the calls."""

    def init(key, batch):
        del key, batch
        return {'w': {'dense': {'kernel': jnp.zeros((1,)), 'bias': jnp.zeros((1,))}}, 'c': {'value': jnp.zeros(())}}, \
            {'calls': jnp.zeros((), jnp.float32)}

    def fit(params, state, batch, noise):
        x = batch['x'] + noise_scale * (noise.normal('input', batch['x']) + noise.stratified('offset'))
        error = x * params['w']['dense']['kernel'] + params['w']['dense']['bias'] - 2.0 * batch['x']
        loss = jnp.mean(jnp.square(error))
        if poison_step is not None:
            loss = jnp.where(state.step == poison_step, jnp.nan, loss)
        return loss, ({'error': jnp.mean(jnp.abs(error))}, {'calls': state.extra['calls'] + 1})

    def follow(params, state, batch, noise):
        del batch, noise
        return jnp.square(params['c']['value'] - state.params['w']['dense']['kernel'][0]), ({}, {})

    def double(variables, keys, batch, options):
        del keys
        return {'y': options['scale'] * batch['x'] * variables.params['w']['dense']['kernel']}

    return System(
        init=init,
        objectives={'fit': Objective(fit, ('w',), 'w', per_example=per_example),
                    'follow': Objective(follow, ('c',), 'c', every=every)},
        optimizers={'w': optax.adam(lr), 'c': optax.sgd(0.5)},
        predict={'double': Predict(double, lambda scale=1.0: {'scale': jnp.float32(scale)})})


def batch(n=8, step=0):
    """Deterministic inputs."""
    return {'x': np.random.default_rng(step).normal(size=(n,)).astype(np.float32)}


class Batches:
    """A pipeline over `at(step)`, and what the loop asks of one."""

    def __init__(self, at=lambda step: batch(step=step), corrupt=0):
        self.at, self.step, self.corrupt_count, self.fingerprint = at, 0, corrupt, {'seed': 0}

    def __next__(self):
        self.step += 1
        return self.at(self.step - 1)

    def get_state(self):
        return {'next_index': self.step}

    def set_state(self, state):
        self.step = state['next_index']

    def close(self):
        pass
