"""Meshes, and where arrays live on them."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gen_jax import trees
from gen_jax.types import PyTree

__all__ = ['AXES', 'expose_cpu_devices', 'make_mesh', 'batch_sharding', 'state_sharding', 'put_batch', 'put_state']

AXES = ('data', 'fsdp', 'model')


def expose_cpu_devices(count: int, batch_size: int) -> None:
    """Splits the CPU into virtual devices, so that XLA's one-core convolutions use all cores.

    Must run before JAX touches its backend; later calls and other platforms are left alone.

    Args:
        count: the number of devices; 0 chooses as many as there are cores and as divide the batch.
    """
    import os

    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    if not count:
        count = next(n for n in range(cores, 0, -1) if batch_size % n == 0)
    if count > 1:
        # XLA takes as many threads as there are cores. All of them can come to wait in collectives of which each lacks
        # somebody, and XLA aborts after 40 s (seen with independent all-gathers and programs from the compilation
        # cache). Spare threads prevent that; they cost about 8 % of the speed on 2 cores.
        os.environ.setdefault('NPROC', str(max(2 * cores, 4 if count <= cores else 8 * count)))
    try:
        jax.config.update('jax_num_cpu_devices', count)
    except RuntimeError:  # the backend already runs: whoever started it chose its devices
        pass


def make_mesh(sizes: Mapping[str, int], devices: Sequence | None = None) -> Mesh:
    """A mesh with the axes data, fsdp and model.

    Args:
        sizes: devices along each axis; one of them may be -1 and takes what is left.

    Raises:
        ValueError: unknown axes, or sizes whose product is not the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    unknown = set(sizes) - set(AXES)
    if unknown:
        raise ValueError(f'train.mesh has the axes {", ".join(AXES)}, not {sorted(unknown)[0]!r}')
    shape = [int(sizes.get(axis, 1)) for axis in AXES]
    if shape.count(-1) > 1 or any(n < 1 and n != -1 for n in shape):
        raise ValueError(f'train.mesh {dict(sizes)}: sizes are at least 1, and one at most may be -1')
    known = int(np.prod([n for n in shape if n != -1]))
    if -1 in shape and len(devices) % known == 0:
        shape[shape.index(-1)] = len(devices) // known
    if int(np.prod(shape)) != len(devices):
        raise ValueError(f'train.mesh {dict(sizes)} does not make the {len(devices)} devices that there are; '
                         'use -1 for one axis')
    return jax.make_mesh(tuple(shape), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def batch_shards(mesh: Mesh) -> int:
    """Number of pieces that the batch axis is cut into."""
    return mesh.shape['data'] * mesh.shape['fsdp']


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(mesh: Mesh, tree: PyTree, rules: Sequence[str] = ('.*=',)) -> PyTree:
    """A NamedSharding for each leaf, by the first rule that matches its path; every leaf must be covered.

    Args:
        rules: 'REGEX=AXIS,AXIS,...': one mesh axis (or nothing) for each dimension of the leaf; empty: replicated.
    """
    def spec(text):
        axes = [a.strip() or None for a in text.split(',')] if text else []
        bad = [a for a in axes if a and a not in AXES]
        if bad:
            raise ValueError(f'axis {bad[0]!r}: choose from {", ".join(AXES)}')
        return NamedSharding(mesh, PartitionSpec(*axes))

    return trees.match(trees.parse_rules(rules, spec), tree, 'train.sharding')


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's part of a global batch onto its devices: global arrays with the batch axis sharded."""
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, np.asarray(v)) for k, v in batch.items()}


def put_state(state: PyTree, mesh: Mesh, rules: Sequence[str] = ('.*=',)) -> PyTree:
    """Host or single-device arrays onto the mesh, each leaf in buffers of its own (donation needs that)."""
    shardings = state_sharding(mesh, state, rules)
    copy = jax.jit(lambda tree: jax.tree.map(lambda x: x.copy(), tree), out_shardings=shardings)
    # Host copies go in as replicated values, on several hosts as on one; global arrays stay where they are.
    return copy(jax.tree.map(lambda x: np.asarray(x) if getattr(x, 'is_fully_addressable', True) else x, state))
