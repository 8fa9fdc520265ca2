"""What a run will cost, before it runs: the real update is traced, lowered and compiled on shapes alone."""

import copy
import functools
import re
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from gen_jax import trees
from gen_jax.engine import costs, sharding
from gen_jax.engine.evaluate import options_of
from gen_jax.engine.inspect_page import module_of
from gen_jax.engine.parallel import make_runner
from gen_jax.engine.update import init_state, prepare, split_name
from gen_jax.rng import Noise, example_keys
from gen_jax.types import System

__all__ = ['fit_batch', 'inspect_run', 'largest_batch', 'modules_of']

GIB = 2**30
CACHE_EVENTS = {'/jax/compilation_cache/cache_hits': 'hit', '/jax/compilation_cache/cache_misses': 'miss'}


def modules_of(tree, depth: int = 2) -> dict[str, dict[str, Any]]:
    """{published name of a module, cut at `depth` words: {'leaves', 'parameters'}}, numbers in their order."""
    rows: dict[str, dict[str, Any]] = {}
    for path, leaf in trees.flat(tree).items():
        row = rows.setdefault(module_of(path, depth), {'leaves': 0, 'parameters': 0})
        row['leaves'] += 1
        row['parameters'] += int(np.prod(leaf.shape, dtype=np.int64))
    return dict(sorted(rows.items(), key=lambda kv: [int(t) if t.isdigit() else t for t in re.split(r'(\d+)', kv[0])]))


def state_bytes(rows) -> dict[str, int]:
    """{'params', 'opt', 'ema', 'extra' ..., 'total'} on each device, of `sharding.placements` of a TrainState."""
    parts: dict[str, int] = defaultdict(int)
    for row in rows:
        parts[row.path.partition('/')[0]] += row.bytes
    return {**parts, 'total': sum(parts.values())}


def resized(batch: Mapping[str, Any], size: int) -> dict[str, Any]:
    """The abstract batch with another leading axis."""
    return {k: jax.ShapeDtypeStruct((size, *v.shape[1:]), v.dtype) for k, v in batch.items()}


def abstract_state(system: System, config, batch: Mapping[str, Any]):
    """The TrainState as ShapeDtypeStructs; nothing is initialised."""
    ema = {k: dict(v) for k, v in config.train.ema.items()}
    return jax.eval_shape(lambda b: init_state(system, config.seed, b, ema), resized(batch, 1))


def _runner(system, config, devices):
    return make_runner(system, config, {k: dict(v) for k, v in config.train.ema.items()}, devices)


def _compile(lowered) -> tuple[Any, dict[str, Any]]:
    """(compiled, {'seconds', 'cache', 'peak_bytes', 'argument_bytes' ...}) of one program."""
    seen = []

    def listen(event, **_):
        seen.append(CACHE_EVENTS.get(event))

    jax.monitoring.register_event_listener(listen)
    began = time.perf_counter()
    try:
        compiled = lowered.compile()
    finally:
        jax.monitoring.unregister_event_listener(listen)
    seconds = time.perf_counter() - began
    cache = next((kind for kind in seen if kind), 'off')
    m = compiled.memory_analysis()
    sizes = {k: int(getattr(m, f'{k}_size_in_bytes')) for k in ('argument', 'output', 'alias', 'temp')}
    fresh = sizes.pop('output') - sizes.pop('alias')  # the donated state is written over
    return compiled, {'seconds': seconds, 'cache': cache, **{f'{k}_bytes': v for k, v in sizes.items()},
                      'fresh_bytes': fresh, 'peak_bytes': sum(sizes.values()) + fresh}


def largest_batch(points, limit: float, unit: int) -> tuple[int, int]:
    """(batch, bytes): the largest multiple of `unit` that the line through two points (batch, bytes) keeps within
    `limit`, at least 0, and what it says of it."""
    (b0, p0), (b1, p1) = points
    slope = (p1 - p0) / (b1 - b0)
    if slope <= 0:
        raise ValueError(f'{p1} bytes at batch {b1}, but {p0} at {b0}: memory does not grow with the batch, so no '
                         'largest one can be told; use a larger --batch-size')
    found = max(int((limit - (p0 - slope * b0)) / slope / unit) * unit, 0)
    return found, round(p0 + slope * (found - b0))


def fit_batch(peak: Callable[[int], int], batch: int, unit: int, limit: float, tries: int = 3,
              known: int | None = None) -> dict[str, Any]:
    """The largest batch whose peak stays within `limit` bytes: two measurements, a line, a third to confirm.

    Should the third exceed the limit, lines between the best batch so far and the first that is too large go on, at
    most `tries` times.

    Args:
        peak: batch -> bytes on one device (a compilation).
        batch: a first guess, a multiple of `unit`.
        known: its peak, if it has been measured.

    Returns:
        {'batch', 'bytes', 'limit', 'predicted_bytes', 'compilations': {batch: bytes}}: batch is 0 if nothing fits,
        predicted_bytes None for one of the first two.
    """
    seen = {batch: peak(batch) if known is None else known}
    other = max(batch // 2 // unit, 1) * unit
    other = other if other != batch else 2 * batch
    seen[other] = peak(other)
    predicted: dict[int, int] = {}
    for attempt in range(1 + tries):
        points = sorted(seen.items())
        fitting = sum(p <= limit for _, p in points)
        first = min(max(fitting - 1, 0), len(points) - 2)  # the two around the limit, or those next to it
        found, expected = largest_batch(points[first:first + 2], limit, unit)
        if not found or found in seen:
            break
        predicted[found], seen[found] = expected, peak(found)
        if attempt == 0 and seen[found] <= limit:
            break
    best = max((b for b, p in seen.items() if p <= limit), default=0)
    return {'batch': best, 'bytes': seen.get(best), 'limit': round(limit), 'predicted_bytes': predicted.get(best),
            'compilations': seen}


def _forward_flops(system: System, state, batch) -> float:
    """FLOPs of the losses of one batch without their gradients."""
    def losses(state, batch):
        batch = prepare(batch)
        size = jax.tree.leaves(batch)[0].shape[0]
        noise = Noise(example_keys(jax.random.key(0), np.arange(size)))
        return [o.loss({n: state.params[n] for n in (split_name(p)[0] for p in o.params)}, state, batch, noise)[0]
                for o in system.objectives.values()]

    return _total(costs.flops_of(jax.make_jaxpr(losses)(state, batch)))


def _total(flops: Mapping[str, float]) -> float:
    return float(sum(v for k, v in flops.items() if k != 'unknown loops'))


def _sampler(system: System, config, state, batch) -> dict[str, Any] | None:
    """FLOPs of drawing one example by config.sample, where its network calls are known."""
    name = config.sample.predict
    predict = system.predict.get(name)
    if predict is None or predict.nfe is None or len(system.objectives) > 1:
        return None
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in config.sample.settings.to_dict().items()}
    calls = int(predict.nfe(options_of(system, name, settings)))
    forward = _forward_flops(system, state, resized(batch, 1))
    return {'predict': name, 'calls': calls, 'flops_per_call': forward, 'flops': calls * forward}


def inspect_run(system: System, config, batch: Mapping[str, Any], *, plain: System | None = None, devices=None,
                chip: str | None = None, fit_gib: float | None = None, compiled: bool = True,
                depth: int = 2) -> dict[str, Any]:
    """Every number that the update of a config gives away without being run. Bytes and FLOPs are integers or floats,
    times seconds.

    Args:
        batch: the global batch as ShapeDtypeStructs.
        plain: the system without `train.remat`, for the FLOPs of the model; by default there is no remat.
        devices: the devices of config.train.mesh; all by default.
        chip: a name in `costs.CHIPS`, for the roofline.
        fit_gib: also search the largest batch that stays within so many GiB on one device.
        compiled: False lowers only, and leaves out what only a compilation tells.
        depth: words per name in the table of parameters.

    Raises:
        ValueError: unknown chip or axis, mesh or batch that do not fit, rules that do not cover the state.
    """
    chip = costs.find_chip(chip) if chip else None
    if fit_gib is not None and not 0 < fit_gib < np.inf:
        raise ValueError(f'--fit {fit_gib}: a positive number of GiB')
    if fit_gib is not None and not compiled:
        raise ValueError('--fit needs to compile: leave --no-compile out')
    runner = _runner(system, config, devices)
    mesh = runner.mesh
    count, size = mesh.size, config.data.batch_size
    state = abstract_state(system, config, batch)
    layout = runner.state_shardings(state) if config.train.parallel == 'jit' else sharding.state_sharding(mesh, state)
    rows = sharding.placements(state, layout)
    whole = sharding.placements(state, sharding.state_sharding(mesh, state))
    kind = mesh.devices.flat[0]

    began = time.perf_counter()
    traced = runner.trace(state, resized(batch, size))
    flops = costs.flops_of(traced.jaxpr)
    marks = [time.perf_counter() - began]
    lowered = traced.lower()
    marks.append(time.perf_counter() - began - marks[0])
    model = flops
    if plain is not None:
        model = costs.flops_of(_runner(plain, config, devices).trace(state, resized(batch, size)).jaxpr)
    report = {
        'platform': kind.platform, 'device': kind.device_kind, 'devices': count, 'mesh': dict(mesh.shape),
        'parallel': config.train.parallel, 'sharding': list(config.train.sharding), 'remat': config.train.remat,
        'precision': config.train.precision, 'accumulate': config.train.accumulate,
        'batch_size': size,
        'parameters': {k: trees.count(v) for k, v in state.params.items()},
        'modules': {k: v for name, tree in state.params.items() for k, v in modules_of({name: tree}, depth).items()},
        'state_bytes': state_bytes(rows), 'state_bytes_whole': state_bytes(whole), 'placements': rows,
        'batch_bytes': int(sum(np.prod(v.shape[1:], dtype=np.int64) * v.dtype.itemsize for v in batch.values())) * size,
        'model_flops': _total(model), 'flops': dict(flops), 'seconds': {'trace': marks[0], 'lower': marks[1]},
        'xla': None, 'memory': None, 'collectives': None, 'cache': None, 'fit': None,
        'sampler': _sampler(system, config, state, batch)}
    if compiled:
        program, memory = _compile(lowered)
        analysis = program.cost_analysis() or {}
        report['seconds']['compile'] = memory.pop('seconds')
        report['cache'] = memory.pop('cache')
        report['memory'] = memory
        report['xla'] = {'flops': analysis.get('flops'), 'bytes': analysis.get('bytes accessed')}
        report['collectives'] = costs.collectives(program.as_text())
        moved = report['xla']['bytes']
        report['intensity'] = report['xla']['flops'] / moved if moved else None
        if fit_gib is not None:
            unit = config.train.accumulate * (sharding.batch_shards(mesh) if config.train.parallel == 'jit' else count)
            peak = functools.partial(_peak, system, config, batch, state, devices)
            report['fit'] = fit_batch(peak, size, unit, fit_gib * GIB, known=memory['peak_bytes'])
    if chip:
        on_one = {k: v / count for k, v in flops.items() if k != 'unknown loops'}
        moved, done = (report['xla'][k] if report['xla'] else None for k in ('bytes', 'flops'))
        if done and done > 1.5 * sum(on_one.values()):  # devices repeat each other's work
            on_one = {k: v * done / sum(on_one.values()) for k, v in on_one.items()}
        report['roofline'] = {**costs.roofline(chip, on_one, moved, _total(model) / count), 'memory': chip.memory,
                              'bandwidth': chip.bandwidth}
    return report


def _peak(system, config, batch, state, devices, size: int) -> int:
    config = copy.deepcopy(config)
    with config.unlocked():
        config.data.batch_size = size
    lowered = _runner(system, config, devices).trace(state, resized(batch, size)).lower()
    return _compile(lowered)[1]['peak_bytes']
