"""Two ways to run the same pure update on many devices: one sharded program (jit), or pmap."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import jax_utils
from jax.sharding import Mesh

from gen_jax.engine import sharding
from gen_jax.engine.update import make_update, seed_words
from gen_jax.types import System

__all__ = ['Runner', 'make_runner']


class Runner(NamedTuple):
    """The loop's view of the devices."""

    mesh: Mesh
    update: Callable
    """(placed state, placed batch, root) -> (placed state, metrics); the state is donated; root: `seed_words`."""
    place: Callable[[Any], Any]
    put: Callable[[Any], Any]
    """This process's part of a batch (numpy) -> device arrays."""
    fetch: Callable[[Any], Any]
    """The placed state without a leading device axis, for saving and predicting."""
    state_shardings: Callable[[Any], Any]
    description: str


def make_runner(system: System, config, ema) -> Runner:
    """The runner that config.train.parallel names.

    Raises:
        ValueError: unknown mode, or a batch that the devices (times the micro-batches) do not divide.
    """
    mode, batch, accumulate = config.train.parallel, config.data.batch_size, config.train.accumulate
    if mode not in ('jit', 'pmap'):
        raise ValueError(f'train.parallel {mode!r}: choose from jit, pmap')
    if accumulate < 1:
        raise ValueError(f'train.accumulate {accumulate}: at least 1')
    mesh = sharding.make_mesh(dict(config.train.mesh))
    shards = sharding.batch_shards(mesh) if mode == 'jit' else jax.device_count()
    if batch < 1 or batch % (shards * accumulate):
        good = max(batch // (shards * accumulate), 1) * shards * accumulate
        raise ValueError(f'data.batch_size {batch} is not divisible by {shards} devices'
                         + (f' x {accumulate} micro-batches' if accumulate > 1 else '')
                         + f' (train.parallel={mode}): use {good} or {good + shards * accumulate}, or other '
                         'train.mesh / train.cpu_devices / train.accumulate')
    if mode == 'pmap' and tuple(config.train.sharding) != ('.*=',):
        raise ValueError('train.sharding is for train.parallel=jit: pmap holds the whole state on every device')
    kind = jax.devices()[0].device_kind
    rules = tuple(config.train.sharding)
    root = seed_words(config.seed)
    common = {'seed': config.seed, 'ema': ema, 'accumulate': accumulate}
    if mode == 'jit':
        def step(state, batch, root):  # the output keeps the input's sharding, or the second call would recompile
            new, metrics = update(state, batch, root)
            shardings = sharding.state_sharding(mesh, new, rules)
            return jax.lax.with_sharding_constraint(new, shardings), metrics

        update = make_update(system, **common)
        shape = ' x '.join(f'{k} {v}' for k, v in mesh.shape.items() if v > 1) or 'one device'
        jitted = jax.jit(step, donate_argnums=0)
        return Runner(
            mesh, lambda state, batch, root=root: jitted(state, batch, root),
            lambda s: sharding.put_state(s, mesh, rules),
            lambda b: sharding.put_batch(b, mesh), lambda s: s,
            lambda target: sharding.state_sharding(mesh, target, rules), f'jit over {shape} ({kind})')
    if jax.process_count() > 1 and jax.local_device_count() * jax.process_count() != jax.device_count():
        raise ValueError('train.parallel=pmap needs the same number of devices in every process')
    local = jax.local_device_count()
    update = jax.pmap(make_update(system, **common, axis_name='batch'), axis_name='batch', in_axes=(0, 0, None),
                      donate_argnums=0)

    def run(state, batch, root=root):
        state, metrics = update(state, batch, root)
        return state, jax.tree.map(lambda x: x[0], metrics)

    return Runner(
        mesh, run, jax_utils.replicate,
        lambda b: {k: np.reshape(v, (local, -1, *np.shape(v)[1:])) for k, v in b.items()},
        jax_utils.unreplicate, lambda target: jax.tree.map(lambda _: None, target),
        f'pmap over {jax.device_count()} devices ({kind})')
