"""Two ways to run the same pure update on many devices: one sharded program (jit), or pmap."""

from collections.abc import Callable
from types import SimpleNamespace
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
    trace: Callable[..., Any] = None
    """(state, batch) as ShapeDtypeStructs, the batch being global -> what `update` traces, `.jaxpr` and `.lower()`."""


LEAST_MEMORY = {'xla_cpu_scheduler_type': 'CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED',
                'xla_disable_hlo_passes': 'cse_barrier_expander'}
"""Compiler options under which XLA's CPU programs give memory back as those of accelerators do. By default it merges
what `train.remat` recomputes with what it was computed from, and orders the work for concurrency, not for memory."""


def make_runner(system: System, config, ema, devices=None) -> Runner:
    """The runner that config.train.parallel names.

    Args:
        devices: all there are by default.

    Raises:
        ValueError: unknown mode, or a batch that the devices (times the micro-batches) do not divide.
    """
    mode, batch, accumulate = config.train.parallel, config.data.batch_size, config.train.accumulate
    if mode not in ('jit', 'pmap'):
        raise ValueError(f'train.parallel {mode!r}: choose from jit, pmap')
    if accumulate < 1:
        raise ValueError(f'train.accumulate {accumulate}: at least 1')
    devices = list(devices or jax.devices())
    mesh = sharding.make_mesh(dict(config.train.mesh), devices)
    shards = sharding.batch_shards(mesh) if mode == 'jit' else len(devices)
    if batch < 1 or batch % (shards * accumulate):
        good = max(batch // (shards * accumulate), 1) * shards * accumulate
        raise ValueError(f'data.batch_size {batch} is not divisible by {shards} devices'
                         + (f' x {accumulate} micro-batches' if accumulate > 1 else '')
                         + f' (train.parallel={mode}): use {good} or {good + shards * accumulate}, or other '
                         'train.mesh / train.cpu_devices / train.accumulate')
    cut = [axis for axis in ('fsdp', 'model') if mesh.shape[axis] > 1]
    if mode == 'pmap' and (tuple(config.train.sharding) != ('.*=',) or cut):
        what = f'train.mesh.{cut[0]}={mesh.shape[cut[0]]}' if cut else f'train.sharding={tuple(config.train.sharding)}'
        raise ValueError(f'{what} needs train.parallel=jit: pmap holds the whole state on every device')
    kind = devices[0].device_kind
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
        least = config.train.remat and devices[0].platform == 'cpu'
        jitted = jax.jit(step, donate_argnums=0, compiler_options=LEAST_MEMORY if least else None)

        def trace(state, batch):
            rows, layout = sharding.batch_sharding(mesh), sharding.state_sharding(mesh, state, rules)
            state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, layout)
            batch = {k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows) for k, x in batch.items()}
            return jitted.trace(state, batch, root)

        return Runner(
            mesh, lambda state, batch, root=root: jitted(state, batch, root),
            lambda s: sharding.put_state(s, mesh, rules),
            lambda b: sharding.put_batch(b, mesh), lambda s: s,
            lambda target: sharding.state_sharding(mesh, target, rules), f'jit over {shape} ({kind})', trace)
    if jax.process_count() > 1 and jax.local_device_count() * jax.process_count() != jax.device_count():
        raise ValueError('train.parallel=pmap needs the same number of devices in every process')
    local = jax.local_device_count()
    update = jax.pmap(make_update(system, **common, axis_name='batch'), axis_name='batch', in_axes=(0, 0, None),
                      donate_argnums=0, devices=devices if len(devices) < jax.device_count() else None)

    def run(state, batch, root=root):
        state, metrics = update(state, batch, root)
        return state, jax.tree.map(lambda x: x[0], metrics)

    def trace(state, batch):
        n = len(devices)
        state = jax.tree.map(lambda x: jax.ShapeDtypeStruct((n, *x.shape), x.dtype), state)
        batch = {k: jax.ShapeDtypeStruct((n, x.shape[0] // n, *x.shape[1:]), x.dtype) for k, x in batch.items()}
        return SimpleNamespace(jaxpr=jax.make_jaxpr(update)(state, batch, root),
                               lower=lambda: update.lower(state, batch, root))

    return Runner(
        mesh, run, jax_utils.replicate,
        lambda b: {k: np.reshape(v, (local, -1, *np.shape(v)[1:])) for k, v in b.items()},
        jax_utils.unreplicate, lambda target: jax.tree.map(lambda _: None, target),
        f'pmap over {len(devices)} devices ({kind})', trace)
