"""What the loop is given, and what it gives back."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gen_jax.engine.evaluate import Evaluator
from gen_jax.types import System

__all__ = ['Run', 'Result']


class Run(NamedTuple):
    """What the loop needs, made by `gen_jax.build`."""

    config: Any
    system: System
    open_data: Callable[..., Any]
    """(shard_index, shard_count, ledger) -> iterator with get_state, set_state, fingerprint, corrupt_count, close.

    Its state is {'next_index': k}, and k only grows with `next`. Where it has `indices(k)`, that names the items of
    the global batch k in a report of an update that was not finite.
    """
    check_data: Callable[[Mapping, Mapping], None]
    """(saved fingerprint, current fingerprint): raises ValueError if the pipeline is another one."""
    example_batch: Mapping[str, np.ndarray]
    evaluators: Mapping[str, Evaluator]
    sampler: Evaluator | None = None
    """Draws the sample grid (its metrics are empty)."""
    schedules: Mapping[str, Callable[[int], Any]] = {}
    """Learning rate by step for each optimizer, for the log."""
    info: Mapping[str, Any] = {}
    """Of the source, for the checkpoint: num_classes, label_names ..."""
    frozen: Callable[[], Mapping[str, Any]] = dict
    """Reads the weights that the system uses and does not train; a run that is resumed has its own copy."""


class Result(NamedTuple):
    """How a call of `train` ended."""

    step: int
    exit_code: int
    """0, or that of gen_jax.engine.signals for a stop that was asked for."""
    metrics: dict[str, float]
    """The last logged and evaluated values."""
    workdir: Path
