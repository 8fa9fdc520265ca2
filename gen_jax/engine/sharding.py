"""Meshes, and where arrays live on them."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gen_jax import trees
from gen_jax.types import PyTree

__all__ = ['AXES', 'PRESETS', 'Placement', 'batch_sharding', 'expose_cpu_devices', 'make_mesh', 'one_per_device',
           'placements', 'process_shard', 'put_batch', 'put_state', 'state_sharding', 'usable_cores']

AXES = ('data', 'fsdp', 'model')
PRESETS = ('fsdp', 'tensor')
MIN_SIZE = 1024
"""The preset 'fsdp' leaves arrays of fewer elements whole: norms and biases cost more to gather than to keep."""

PAIRS = (
    (('to_q', 'to_k', 'to_v'), 'to_out.0'), (('ff.net.0.proj',), 'ff.net.2'),  # diffusers
    (('q_proj', 'k_proj', 'v_proj'), 'out_proj'), (('fc1',), 'fc2'),  # transformers: CLIP; timm, DiT: the MLP
    (('qkv',), 'proj_out'), (('qkv_proj',), 'c_proj'), (('qkv',), 'proj'),  # ADM and its classifier; EDM, DiT
    (('NIN_0', 'NIN_1', 'NIN_2'), 'NIN_3'), (('q', 'k', 'v'), 'proj_out'),  # score_sde; VDM
    (('linear_1',), 'linear_2'), (('time_embed.0',), 'time_embed.2'), (('map_layer0',), 'map_layer1'),
    (('dense0',), 'dense1'),  # the perceptrons that embed the time: diffusers, ADM, EDM, VDM
)
"""Layers whose output the second one reads, by their published names: siblings (or cousins, where a name has dots)."""


def usable_cores() -> int:
    """CPU cores that this process may use."""
    import os
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def expose_cpu_devices(count: int, batch_size: int, cores: int | None = None) -> None:
    """Splits the CPU into virtual devices, so that XLA's one-core convolutions use all cores.

    Must run before JAX touches its backend; later calls and other platforms are left alone.

    Args:
        count: the number of devices; 0 chooses as many as there are cores and as divide the batch.
        batch_size: this process's part of it.
        cores: for this process; None: all there are.

    Raises:
        ValueError: a count below 0.
    """
    import os

    keep_freed_memory()
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise ValueError(f'train.cpu_devices={count!r}: give a number of virtual devices, or 0 for one per core')
    cores = cores or usable_cores()
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


def keep_freed_memory() -> None:
    """Has glibc reuse large blocks, rather than return them to the system at once and fault fresh pages in again.

    XLA on a CPU allocates its buffers anew for every call; page by page the system's zeroing costs 10-15 % of a
    training step. (Not of virtual devices: docs/benchmarks.md says what helps those.) Blocks above 1 GiB, and what is
    free above 2 GiB, still go back. Without glibc nothing happens, and limits that the user has set in the environment
    stand.
    """
    import ctypes
    import os

    if any(f'MALLOC_{name}' in os.environ for name in ('MMAP_THRESHOLD_', 'TRIM_THRESHOLD_', 'MMAP_MAX_', 'ARENA_MAX')):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
    mallopt(M_MMAP_THRESHOLD, 1 << 30)
    mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


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
            The presets 'fsdp' and 'tensor', alone or together, take the leaves that no rule matches. 'fsdp' cuts each
            leaf of at least `MIN_SIZE` elements along its largest dimension that the axis divides (ZeRO stage 3;
            Rajbhandari et al. 2020, https://arxiv.org/abs/1910.02054). 'tensor' cuts attention and perceptrons over
            the axis 'model', the first matrices by output and the last one by input, so that a pair needs one sum
            (Shoeybi et al. 2019, https://arxiv.org/abs/1909.08053, section 3); which they are: `PAIRS`.

    Raises:
        ValueError: unknown axis or preset; leaves that nothing covers, rules that nothing matches; a dimension that
            the axis does not divide.
    """
    def spec(text):
        axes = [a.strip() or None for a in text.split(',')] if text else []
        bad = [a for a in axes if a and a not in AXES]
        if bad:
            raise ValueError(f'axis {bad[0]!r}: choose from {", ".join(AXES)}')
        named = [a for a in axes if a]
        if len(set(named)) < len(named):
            raise ValueError(f'{text!r} names an axis twice; an axis cuts one dimension of a leaf')
        return NamedSharding(mesh, PartitionSpec(*axes))

    presets = [r for r in rules if '=' not in r]
    unknown = [r for r in presets if r not in PRESETS]
    if unknown:
        raise ValueError(f"train.sharding {unknown[0]!r}: give 'REGEX=AXIS,AXIS,...' or one of {', '.join(PRESETS)}")
    parsed = trees.parse_rules([r for r in rules if '=' in r], spec)
    if not presets:
        return trees.map_with_path(_check, tree, trees.match(parsed, tree, 'train.sharding'))
    if any(pattern.pattern == '.*' for pattern, _ in parsed):
        raise ValueError(f"train.sharding {tuple(rules)}: a rule '.*=...' leaves nothing to the preset {presets[0]!r}; "
                         'leave one of them out')
    preset = _preset(mesh, tree, presets)
    chosen = trees.match([*parsed, (re.compile('.*'), 'preset')], tree, 'train.sharding')
    return trees.map_with_path(
        lambda path, leaf, rule: _check(path, leaf, preset(path, leaf) if rule == 'preset' else rule), tree, chosen)


def _check(path: str, leaf, sharding: NamedSharding) -> NamedSharding:
    """The sharding; ValueError if it does not fit the leaf."""
    shape, mesh = tuple(leaf.shape), sharding.mesh
    if len(sharding.spec) > len(shape):
        raise ValueError(f'train.sharding: the rule for {path} names {len(sharding.spec)} dimensions, but its shape is '
                         f'{shape}')
    for i, axis in enumerate(sharding.spec):
        if axis and shape[i] % mesh.shape[axis]:
            fits = [n for n in range(1, mesh.shape[axis]) if shape[i] % n == 0]
            raise ValueError(
                f'train.sharding: dimension {i} of {path} {shape} is not divisible by the {mesh.shape[axis]} devices '
                f'along {axis!r}; use train.mesh.{axis}={fits[-1]}, or put the rule {re.escape(path) + "="!r}, which '
                'leaves it whole, in front')
    return sharding


def _preset(mesh: Mesh, tree, presets: Sequence[str]) -> Callable[..., NamedSharding]:
    """(path, leaf) -> its sharding by the presets."""
    modules = {path.replace('/', '.').rpartition('.')[0] for path in trees.flat(tree)}

    def model_dimension(path, ndim):
        module, _, leaf = path.replace('/', '.').rpartition('.')
        for first, last in PAIRS:
            for name in (*first, last):
                prefix = module.removesuffix(name)
                if prefix == module or prefix and prefix[-1] != '.' or not all(
                        prefix + sibling in modules for sibling in (*first, last)):
                    continue
                if leaf in ('kernel', 'W') and ndim >= 2:  # else a statistic of an optimizer, of another rank
                    return ndim - (2 if name == last else 1)
                return 0 if leaf in ('bias', 'b') and ndim == 1 and name != last else None
        return None

    def sharding(path, leaf):
        axes, shape = [None] * len(leaf.shape), leaf.shape
        if 'tensor' in presets and mesh.shape['model'] > 1:
            i = model_dimension(path, len(shape))
            if i is not None and shape[i] > 1:
                axes[i] = 'model'
        count = mesh.shape['fsdp']
        if 'fsdp' in presets and count > 1 and int(np.prod(shape)) >= MIN_SIZE:
            free = [i for i, axis in enumerate(axes) if axis is None and shape[i] % count == 0]
            if free:
                axes[max(free, key=lambda i: (shape[i], i))] = 'fsdp'
        return NamedSharding(mesh, PartitionSpec(*axes))

    return sharding


class Placement(NamedTuple):
    """Where a leaf lives."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    spec: str
    """The mesh axis of each dimension, '-' for none: '-,fsdp'; 'replicated' if there is none at all."""
    bytes: int
    """On each device."""


def placements(tree: PyTree, shardings: PyTree) -> list[Placement]:
    """One row for each leaf of a tree of arrays or ShapeDtypeStructs."""
    rows = []
    for (path, leaf), sharding in zip(trees.flat(tree).items(), jax.tree.leaves(shardings), strict=True):
        axes = [axis or '-' for axis in sharding.spec]
        size = int(np.prod(sharding.shard_shape(tuple(leaf.shape))))
        rows.append(Placement(path, tuple(leaf.shape), str(leaf.dtype),
                              ','.join(axes) if set(axes) - {'-'} else 'replicated', size * leaf.dtype.itemsize))
    return rows


def process_shard(mesh: Mesh) -> tuple[int, int]:
    """(index, count): this process holds the rows index * B / count ... (index + 1) * B / count - 1 of a batch.

    (0, 1), the whole batch, where its rows are not such a part: on meshes whose order of devices mixes the processes.
    """
    count = batch_shards(mesh)
    rows = sorted({s.start or 0 for s, in batch_sharding(mesh).addressable_devices_indices_map((count,)).values()})
    first, n = rows[0], len(rows)
    return (first // n, count // n) if rows == [*range(first, first + n)] and first % n == count % n == 0 else (0, 1)


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh, index: int = 0, count: int = 1) -> dict[str, jax.Array]:
    """Part `index` of `count` of a global batch onto this process's devices: global arrays, the batch axis sharded."""
    where = batch_sharding(mesh)

    def put(x):
        x = np.asarray(x)
        offset, shape = index * len(x), (count * len(x), *x.shape[1:])
        return jax.make_array_from_callback(
            shape, where, lambda i: x[slice((i[0].start or 0) - offset, (i[0].stop or shape[0]) - offset)])

    return {k: put(v) for k, v in batch.items()}


def one_per_device(mesh: Mesh, value: int) -> jax.Array:
    """int32 [devices of all processes]: each holds the value that its process gave."""
    where = NamedSharding(mesh, PartitionSpec(AXES))
    return jax.make_array_from_callback((mesh.size,), where, lambda i: np.full(1, value, np.int32))


def put_state(state: PyTree, mesh: Mesh, rules: Sequence[str] = ('.*=',)) -> PyTree:
    """Host or single-device arrays onto the mesh, each leaf in buffers of its own (donation needs that)."""
    shardings = state_sharding(mesh, state, rules)
    copy = jax.jit(lambda tree: jax.tree.map(lambda x: x.copy(), tree), out_shardings=shardings)
    # Host copies go in as replicated values, on several hosts as on one; global arrays stay where they are.
    return copy(jax.tree.map(lambda x: np.asarray(x) if getattr(x, 'is_fully_addressable', True) else x, state))
