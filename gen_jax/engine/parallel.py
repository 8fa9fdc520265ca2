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
    """(placed state, placed batch, root, flag=0) -> (placed state, metrics); the state is donated; root: `seed_words`.

    In a run of several processes metrics['stop'] is the largest flag that any of them gave.
    """
    place: Callable[[Any], Any]
    put: Callable[[Any], Any]
    """This process's part of a batch (numpy) -> device arrays."""
    fetch: Callable[[Any], Any]
    """The placed state without a leading device axis, for saving and predicting."""
    state_shardings: Callable[[Any], Any]
    description: str
    trace: Callable[..., Any] = None
    """(state, batch) as ShapeDtypeStructs, the batch being global -> what `update` traces, `.jaxpr` and `.lower()`."""
    shard: tuple[int, int] = (0, 1)
    """(index, count): the part of every global batch that this process reads and `put` takes."""


CPU_REMAT = {'xla_disable_hlo_passes': 'cse_barrier_expander'}
"""Compiler options without which XLA's CPU compiler removes the barriers between what `train.remat` recomputes and what
it was first computed from: it computes both, and keeps the first one all the same."""


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
    several = jax.process_count() > 1
    if mode == 'jit':
        def step(state, batch, root, *flags):  # the output keeps the input's sharding, or the second call recompiles
            new, metrics = update(state, batch, root)
            shardings = sharding.state_sharding(mesh, new, rules)
            new = jax.lax.with_sharding_constraint(new, shardings)
            return new, {**metrics, 'stop': flags[0].max()} if flags else metrics

        def run(state, batch, root=root, flag=0):
            return jitted(state, batch, root, *([sharding.one_per_device(mesh, flag)] if several else []))

        update = make_update(system, **common)
        shape = ' x '.join(f'{k} {v}' for k, v in mesh.shape.items() if v > 1) or 'one device'
        idle = ''.join(f'; train.sharding={preset} cuts nothing, since train.mesh.{axis} is 1'
                       for preset, axis in zip(sharding.PRESETS, ('fsdp', 'model'), strict=True)
                       if preset in rules and mesh.shape[axis] == 1 < mesh.size)
        options = CPU_REMAT if config.train.remat and devices[0].platform == 'cpu' else None
        jitted = jax.jit(step, donate_argnums=0, compiler_options=options)

        def trace(state, batch):
            rows, layout = sharding.batch_sharding(mesh), sharding.state_sharding(mesh, state, rules)
            state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, layout)
            batch = {k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows) for k, x in batch.items()}
            return jitted.trace(state, batch, root)

        shard = sharding.process_shard(mesh)
        return Runner(
            mesh, run, lambda s: sharding.put_state(s, mesh, rules), lambda b: sharding.put_batch(b, mesh, *shard),
            lambda s: s, lambda target: sharding.state_sharding(mesh, target, rules),
            f'jit over {shape} ({kind}){idle}', trace, shard)
    if several and jax.local_device_count() * jax.process_count() != jax.device_count():
        raise ValueError('train.parallel=pmap needs the same number of devices in every process')
    local, one = jax.local_device_count(), make_update(system, **common, axis_name='batch')

    def step(state, batch, root, *flags):
        new, metrics = one(state, batch, root)
        return new, {**metrics, 'stop': jax.lax.pmax(flags[0], 'batch')} if flags else metrics

    update = jax.pmap(step, axis_name='batch', in_axes=(0, 0, None, *([0] if several else [])), donate_argnums=0,
                      devices=devices if len(devices) < jax.device_count() else None)

    def run(state, batch, root=root, flag=0):
        state, metrics = update(state, batch, root, *([np.full(local, flag, np.int32)] if several else []))
        return state, jax.tree.map(lambda x: x.addressable_shards[0].data[0], metrics)

    def fetch(state):  # the replicas of several processes become global arrays, as Orbax and predict want them
        def join(x):
            parts = [shard.data.reshape(shard.data.shape[1:]) for shard in x.addressable_shards]
            return jax.make_array_from_single_device_arrays(x.shape[1:], sharding.replicated(mesh), parts)

        return jax.tree.map(join, state) if several else jax_utils.unreplicate(state)

    def trace(state, batch):
        n = len(devices)
        state = jax.tree.map(lambda x: jax.ShapeDtypeStruct((n, *x.shape), x.dtype), state)
        batch = {k: jax.ShapeDtypeStruct((n, x.shape[0] // n, *x.shape[1:]), x.dtype) for k, x in batch.items()}
        return SimpleNamespace(jaxpr=jax.make_jaxpr(update)(state, batch, root),
                               lower=lambda: update.lower(state, batch, root))

    return Runner(
        mesh, run, lambda s: jax_utils.replicate(jax.tree.map(np.asarray, s) if several else s),
        lambda b: {k: np.reshape(v, (local, -1, *np.shape(v)[1:])) for k, v in b.items()}, fetch,
        lambda target: jax.tree.map(lambda _: sharding.replicated(mesh) if several else None, target),
        f'pmap over {len(devices)} devices ({kind})', trace, (jax.process_index(), jax.process_count()))
