"""Running a system's predict functions, and scoring what they return.

A predict is jitted once and called in chunks of one size; keys are folded by global example index, so that neither the
chunk nor the devices change example k.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.engine import sharding
from gen_jax.engine.update import prepare
from gen_jax.rng import example_keys
from gen_jax.types import Metric, Predict, System, Variables

__all__ = ['Predictor', 'Evaluator', 'evaluate', 'numeric', 'options_of', 'recipe']


def numeric(batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The entries that a device can hold (captions and other text stay on the host)."""
    arrays = {k: np.asarray(v) for k, v in batch.items()}
    return {k: v for k, v in arrays.items() if v.dtype == bool or jax.dtypes.issubdtype(v.dtype, np.number)}


def rows_of(batch: Mapping[str, np.ndarray]) -> int:
    """Length of the leading axis that all entries share; an entry of length 1 goes with any.

    Raises:
        ValueError: entries of different length.
    """
    shapes = {k: np.shape(v) for k, v in batch.items()}
    lengths = {k: s[0] if s else 1 for k, s in shapes.items()}
    size = max(lengths.values())
    for k, n in lengths.items():
        if n not in (1, size) or not shapes[k]:
            raise ValueError(f'{k!r} has shape {shapes[k]}, beside {max(lengths, key=lengths.get)!r} of {size} rows: '
                             'every entry of a batch leads with one row per example, or one for all')
    return size


def find_predict(system: System, name: str) -> Predict:
    """The predict of that name; ValueError with the choices if there is none."""
    if name not in system.predict:
        raise ValueError(f'the system has no predict {name!r}: choose from {sorted(system.predict)}')
    return system.predict[name]


def options_of(system: System, name: str, settings: Mapping[str, Any]):
    """The options pytree of a predict from plain settings; unknown settings and bad values raise ValueError."""
    options = find_predict(system, name).options
    takes = inspect.signature(options).parameters
    unknown = [k for k in settings if k not in takes]
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        raise ValueError(f'predict {name!r} of this system has no setting {unknown[0]!r}: '
                         + (f'choose from {", ".join(takes)}' if takes else 'it has none'))
    settings = {k: v.item() if isinstance(v, np.generic) else v for k, v in settings.items()}
    try:
        return options(**settings)
    except TypeError as e:
        raise ValueError(f'settings of predict {name!r}: {e}') from None


class Predictor:
    """Calls the predict functions of a system over a mesh, with one compilation for each name and shape."""

    def __init__(self, system: System, mesh=None):
        self.system = system
        self.mesh = mesh or sharding.make_mesh({'data': -1})
        self._jitted: dict[str, Callable] = {}

    def place(self, variables: Variables) -> Variables:
        """Variables on every device of the mesh."""
        return jax.device_put(variables, sharding.replicated(self.mesh))

    def options(self, name: str, settings: Mapping[str, Any]):
        """The options pytree of a predict from plain settings; unknown settings and bad values raise ValueError."""
        return options_of(self.system, name, settings)

    def call(self, name: str, variables: Variables, *, seed: int, first: int, batch: Mapping[str, np.ndarray],
             options) -> dict[str, np.ndarray]:
        """One chunk: rows first .. first + B - 1 of an endless sequence of examples; B is padded to the mesh.

        Returns host arrays [B, ...].
        """
        if name not in self._jitted:
            run = find_predict(self.system, name).run
            self._jitted[name] = jax.jit(lambda v, k, b, o: run(v, k, prepare(b), o))
        batch = numeric(batch)
        size = rows_of(batch)
        padded = -(-size // sharding.batch_shards(self.mesh)) * sharding.batch_shards(self.mesh)
        batch = {k: np.concatenate([v, np.repeat(v[-1:], padded - len(v), 0)]) for k, v in batch.items()}
        where = sharding.batch_sharding(self.mesh)
        batch = {k: jax.make_array_from_callback(v.shape, where, lambda i, v=v: v[i]) for k, v in batch.items()}
        keys = jax.jit(example_keys, out_shardings=where)(jax.random.key(seed), jnp.arange(padded) + first)
        out = self._jitted[name](variables, keys, batch, options)
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils
            out = multihost_utils.process_allgather(out, tiled=True)
        out = {k: np.asarray(v)[:size] for k, v in jax.device_get(out).items()}
        find_predict(self.system, name).check(out)
        return out

    def stream(self, name: str, variables: Variables, *, seed: int, batches: Iterable[Mapping], options
               ) -> Iterator[tuple[dict[str, np.ndarray], Mapping]]:
        """(outputs, batch) for each batch, in order."""
        variables, first = self.place(variables), 0
        for batch in batches:
            yield self.call(name, variables, seed=seed, first=first, batch=batch, options=options), batch
            first += rows_of(numeric(batch))


class Evaluator(NamedTuple):
    """One entry of config.evaluate, made ready."""

    predict: str
    batches: Callable[..., Iterable[Mapping]]
    """(ledger path or None) -> batches, with `valid` False on rows that do not count."""
    metrics: Mapping[str, Metric]
    settings: Mapping[str, Any]
    seed: int
    ema: str | None
    split: str
    every_steps: int | None = None
    """In training: every so many steps and at the end; None: at the end only; 0: never (gen-jax evaluate does it)."""


def recipe(evaluator: Evaluator, system: System) -> dict[str, Any]:
    """What its numbers depend on besides the weights: predict, its settings with their defaults, split, EMA, seed,
    and the evaluations of the network that one example takes (nfe; two per step under classifier-free guidance)."""
    predict = find_predict(system, evaluator.predict)
    nfe = {'nfe': predict.nfe(predict.options(**evaluator.settings))} if predict.nfe else {}
    return {'predict': evaluator.predict, 'split': evaluator.split, 'ema': evaluator.ema, 'seed': evaluator.seed,
            'settings': {k: v for k, v in {**predict.defaults, **evaluator.settings}.items() if v is not None}, **nfe}


def evaluate(evaluator: Evaluator, predictor: Predictor, variables: Variables, ledger=None,
             watch: Callable[[Mapping[str, np.ndarray]], None] = lambda rows: None) -> dict[str, float]:
    """Runs one evaluator. Outputs take precedence over batch entries of the same name.

    Args:
        ledger: where corrupt items of the evaluation data are named.
        watch: is shown the outputs of every chunk, rows that count only.

    Raises:
        ValueError: two metrics that return the same name.
    """
    states = {k: m.init() for k, m in evaluator.metrics.items()}
    options = predictor.options(evaluator.predict, evaluator.settings)
    for out, batch in predictor.stream(evaluator.predict, variables, seed=evaluator.seed,
                                       batches=evaluator.batches(ledger), options=options):
        valid = np.asarray(batch.get('valid', np.ones(len(next(iter(out.values()))), bool)))
        out = {k: v[valid] for k, v in out.items()}
        joined = {**{k: np.asarray(v)[valid] for k, v in batch.items() if k not in (*out, 'valid')}, **out}
        watch(out)
        states = {k: evaluator.metrics[k].update(s, joined) for k, s in states.items()}
    results = {}
    for k, m in evaluator.metrics.items():
        found = m.compute(states[k])
        if twice := set(found) & set(results):
            raise ValueError(f'two metrics return {sorted(twice)[0]!r}: give one of them a name of its own')
        results.update(found)
    return results
