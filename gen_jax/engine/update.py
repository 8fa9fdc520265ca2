"""The pure update: every objective of a system, once. The same function runs under jit and under pmap."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gen_jax import trees
from gen_jax.rng import Noise, example_keys, purpose_id
from gen_jax.types import Objective, System, TrainState, Variables

__all__ = ['init_state', 'make_update', 'run_objective', 'gradients', 'seed_words', 'step_noise', 'variables_of',
           'prepare']


def prepare(batch: Mapping) -> dict:
    """uint8 images become float32 in [-1, 1], on the device; all else stays."""
    return {k: v.astype(jnp.float32) / 127.5 - 1.0 if v.dtype == jnp.uint8 and k.startswith('image') else v
            for k, v in batch.items()}


def split_name(entry: str) -> tuple[str, str]:
    """'unet/REGEX' -> ('unet', REGEX); 'unet' -> ('unet', '.*')."""
    name, _, regex = entry.partition('/')
    return name, regex or '.*'


def init_state(system: System, seed: int, example_batch: Mapping, ema: Mapping[str, Mapping],
               frozen: Mapping[str, Any] | None = None) -> TrainState:
    """Initial parameters, optimizer states and averages, eagerly (a jitted init compiles for longer than it runs).

    Args:
        example_batch: as the data pipeline yields it.
        ema: {name: {'decay': ..., 'warmup': ..., optionally 'params': names}}.
        frozen: the weights that the system does not train; None: zeros, of which only the shapes are wanted.

    Raises:
        ValueError: objectives naming parameters or optimizers that do not exist.
    """
    key = jax.random.fold_in(jax.random.key(seed), purpose_id('init'))
    params, extra = system.init(key, prepare({k: jnp.asarray(v) for k, v in example_batch.items()}))
    trees.joined(params)
    opt, over = {}, {}
    for name, objective in system.objectives.items():
        names = tuple(split_name(p)[0] for p in objective.params)
        missing = [n for n in names if n not in params]
        if missing:
            raise ValueError(f'objective {name!r} updates {missing[0]!r}, but the system has {sorted(params)}')
        if objective.optimizer not in system.optimizers:
            raise ValueError(f'objective {name!r} uses optimizer {objective.optimizer!r}, but the system has '
                             f'{sorted(system.optimizers)}')
        if over.setdefault(objective.optimizer, set(names)) != set(names):
            raise ValueError(f'objectives that share the optimizer {objective.optimizer!r} must update the same '
                             f'parameters, not {sorted(over[objective.optimizer])} and {sorted(names)}')
        opt[objective.optimizer] = system.optimizers[objective.optimizer].init({n: params[n] for n in names})
    averages = {name: _average_of(params, extra, spec) for name, spec in ema.items()}
    if frozen is None:
        frozen = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), dict(system.frozen))
    return TrainState(jnp.zeros((), jnp.int32), params, opt, averages, extra, dict(frozen))


def _average_of(params, extra, spec):
    unknown = set(spec) - {'decay', 'warmup', 'params'}
    if unknown or not 0.0 <= spec.get('decay', 0.999) < 1.0:
        raise ValueError(f'train.ema {dict(spec)}: the settings are decay (0 to below 1), warmup and params')
    names = tuple(spec.get('params', ())) or tuple(params)
    unknown = [n for n in names if n not in params]
    if unknown:
        raise ValueError(f'train.ema averages {unknown[0]!r}, but the system has the parameters {sorted(params)}')
    return {'params': {n: params[n] for n in names}, 'extra': {k: v for k, v in extra.items() if k == 'batch_stats'}}


def ema_decay(spec: Mapping, step):
    """Decay at an update: constant, or min(decay, (1 + n) / (10 + n)) with warm-up, which forgets the random start."""
    decay = jnp.float32(spec.get('decay', 0.999))
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step)) if spec.get('warmup', False) else decay


def variables_of(state: TrainState, ema: str | None = None) -> Variables:
    """What predict functions read: raw parameters, or those of an EMA with its batch statistics.

    Raises:
        ValueError: no such EMA (with the names).
    """
    if not ema:
        return Variables(state.params, state.extra, state.frozen)
    if ema not in state.ema:
        raise ValueError(f'there is no EMA {ema!r}: choose from {sorted(state.ema) or "none (raw parameters only)"}')
    average = state.ema[ema]
    return Variables({**state.params, **average['params']}, {**state.extra, **average['extra']}, state.frozen)


def seed_words(seed: int, rollbacks: int = 0) -> np.ndarray:
    """The key of a seed as plain numbers, uint32 [2]; another one after each rollback."""
    key = jax.random.key(seed)
    if rollbacks:
        key = jax.random.fold_in(jax.random.fold_in(key, purpose_id('rollback')), rollbacks)
    return np.asarray(jax.random.key_data(key))


def step_noise(root, step, size: int, first=0, total: int | None = None) -> Noise:
    """The noise of `size` examples of the global batch of an update, from its example `first` on.

    Args:
        root: `seed_words`.
        total: examples in the global batch; None: `size`.
    """
    key = jax.random.fold_in(jax.random.wrap_key_data(root), step)
    index = jnp.arange(size) + first
    return Noise(example_keys(key, index), jnp.broadcast_to(key, (size,)), index / (total or size))


def make_update(system: System, *, seed: int, ema: Mapping[str, Mapping] = {}, accumulate: int = 1,  # noqa: B006
                axis_name: str | None = None) -> Callable[..., tuple[TrainState, dict]]:
    """(state, batch) -> (state, metrics): the objectives run in order, each seeing what the ones before it did.

    A non-finite loss or gradient leaves the state as it was (but for the step); metrics['finite'] says so, and the
    loop decides whether to go on. Noise derives from (seed, step, global example index, objective), so neither the
    devices nor the micro-batches change it.

    Given as a third argument, `seed_words(seed)` are no constants of the program: runs of other seeds share its
    compilation.

    Args:
        accumulate: micro-batches per step; the loss is their mean.
        axis_name: the pmap axis that holds the shards of the batch, or None under jit.

    Raises:
        ValueError: accumulation or pmap with an objective whose examples meet inside the loss.
    """
    for name, objective in system.objectives.items():
        if not objective.per_example and (accumulate > 1 or axis_name):
            what = f'train.accumulate={accumulate}' if accumulate > 1 else 'train.parallel=pmap'
            raise ValueError(f'objective {name!r} mixes the examples of a batch, which {what} would cut apart; '
                             'use train.parallel=jit and train.accumulate=1')
    root = seed_words(seed)

    def update(state: TrainState, batch: Mapping, root=root) -> tuple[TrainState, dict]:
        batch = prepare(batch)
        size = jax.tree.leaves(batch)[0].shape[0]
        first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * size
        shards = 1 if axis_name is None else jax.lax.axis_size(axis_name)
        source = step_noise(root, state.step, size, first, size * shards)
        new, metrics, finite = state, {}, jnp.bool_(True)
        for name, objective in system.objectives.items():
            noise = source.at(purpose_id(name))

            def run(s, objective=objective, noise=noise):
                return run_objective(system, objective, s, batch, noise, accumulate, axis_name)

            if objective.every > 1:
                shapes = jax.eval_shape(run, new)
                idle = lambda s, shapes=shapes: (s, *jax.tree.map(  # noqa: E731
                    lambda x: jnp.ones(x.shape, x.dtype), shapes[1:]))
                new, ok, m = jax.lax.cond(state.step % objective.every == 0, run, idle, new)
            else:
                new, ok, m = run(new)
            finite &= ok
            metrics.update({f'{name}/{k}': v for k, v in m.items()})
        new = new._replace(ema={k: _average(spec, new.ema[k], new, state.step) for k, spec in ema.items()})
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        return new._replace(step=state.step + 1), {**metrics, 'finite': finite}

    return update


def _average(spec, average, state, step):
    decay = ema_decay(spec, step)
    now = _average_of(state.params, state.extra, spec)
    return jax.tree.map(lambda a, x: (decay * a + (1.0 - decay) * x).astype(x.dtype), average, now)


def gradients(objective: Objective, state: TrainState, batch, noise: Noise, accumulate: int = 1,
              axis_name: str | None = None):
    """(loss float32, metrics, new extra, gradients by parameter name) of one objective at a state."""
    regex = dict(split_name(p) for p in objective.params)
    params = {n: state.params[n] for n in regex}

    def loss_of(params, batch, noise):
        loss, aux = objective.loss(params, state, batch, noise)
        return loss.astype(jnp.float32), aux

    gradient = jax.value_and_grad(loss_of, has_aux=True)
    if accumulate == 1:
        (loss, (metrics, extra)), grads = gradient(params, batch, noise)
    else:
        def cut(x):  # micro-batch j takes examples j, j + A, ...: every device keeps the examples it has
            return x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:]).swapaxes(0, 1)

        def body(total, part):
            return jax.tree.map(jnp.add, total, gradient(params, *part)), None

        parts = (jax.tree.map(cut, batch), jax.tree.map(cut, noise))
        shapes = jax.eval_shape(gradient, params, *jax.tree.map(lambda x: x[0], parts))
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        total, _ = jax.lax.scan(body, zeros, parts)
        (loss, (metrics, extra)), grads = jax.tree.map(lambda x: x / accumulate, total)
    if axis_name:
        loss, metrics, extra, grads = jax.lax.pmean((loss, metrics, extra, grads), axis_name)
    if _partial(regex):
        grads = jax.tree.map(lambda k, g: g if k else jnp.zeros_like(g), _covered(regex, params), grads)
    return loss, metrics, extra, grads


def _partial(regex: Mapping[str, str]) -> bool:
    return any(r != '.*' for r in regex.values())


def _covered(regex: Mapping[str, str], params):
    """True on the leaves that an objective updates."""
    return trees.map_with_path(lambda path, _: bool(re.fullmatch(
        regex[path.partition('/')[0]], path.partition('/')[2])), params)


def run_objective(system: System, objective: Objective, state: TrainState, batch, noise: Noise, accumulate: int = 1,
                  axis_name: str | None = None):
    """(new state, whether loss and gradient are finite, metrics) of one objective."""
    loss, metrics, extra, grads = gradients(objective, state, batch, noise, accumulate, axis_name)
    regex = dict(split_name(p) for p in objective.params)
    params = {n: state.params[n] for n in regex}
    norm = optax.global_norm(grads)
    updates, opt = system.optimizers[objective.optimizer].update(grads, state.opt[objective.optimizer], params)
    if _partial(regex):  # nor weight decay on leaves that are not ours
        updates = jax.tree.map(lambda k, u: u if k else jnp.zeros_like(u), _covered(regex, params), updates)
    ok = jnp.isfinite(loss) & jnp.isfinite(norm)
    state = state._replace(params={**state.params, **optax.apply_updates(params, updates)},
                           opt={**state.opt, objective.optimizer: opt}, extra={**state.extra, **extra})
    return state, ok, {'loss': loss, 'grad_norm': norm, **metrics}


def active_metrics(system: System, step: int, metrics: Mapping) -> dict:
    """The metrics of the objectives that ran in the update from `step` to `step + 1` (the others hold padding)."""
    idle = tuple(f'{n}/' for n, o in system.objectives.items() if step % o.every)
    return {k: v for k, v in metrics.items() if not (idle and k.startswith(idle))}
