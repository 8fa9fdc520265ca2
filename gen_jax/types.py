"""The grammar: the handful of types that every part of gen_jax speaks.

A config names a *system*; a system is networks + *objectives* + named *predict* functions. One loop trains any
system, one `lax.scan` samples any denoiser, one checkpoint tree holds both. Everything here is a NamedTuple of plain
functions or of arrays, so all of it is a pytree or a closure and nothing needs a base class.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

Array = jax.Array
PyTree = Any
Batch = Mapping[str, Array]
"""What the data pipeline yields; every leaf leads with the batch axis B.

`image` is uint8 NHWC on the host and becomes float32 in [-1, 1] on the device (`gen_jax.data.transforms.normalise`);
other common keys are `label` int32 [B], `tokens` int32 [B, L], `mask`, and `valid` bool [B] (False on padding rows).
"""
Cond = Mapping[str, Array]
"""What the network is told besides x and t; every leaf leads with B."""


class Level(NamedTuple):
    """A place on the diffusion process: one row of a sampling grid, or the training levels of a batch.

    Grids are computed in float64 numpy and stored as float32; a solver never recomputes alpha or sigma from t.
    """

    t: Array
    """Time, in the units of the process that made it; () or [B]."""
    alpha: Array
    """Signal scale: x_t = alpha x0 + sigma eps; () or [B]."""
    sigma: Array
    """Noise scale; () or [B]."""
    index: Array
    """int32 position in the grid (0 for training levels); ()."""
    last: Array
    """int32 index of the last real row of the grid; rows behind it are padding; ()."""


class Denoised(NamedTuple):
    """What a network was trained to output, converted: always both the clean image and the noise."""

    x0: Array
    eps: Array
    log_var: Array | None = None
    """Learned variance of the reverse step, shaped like x, or None: the weight v, 0 .. 1 where well trained, that
    interpolates its logarithm between the posterior's (0) and the forward step's (1), which the solver knows because
    it knows both levels (Nichol & Dhariwal 2021, Eq. 15)."""
    aux: PyTree = ()
    """Self-conditioning, caches: carried to the next step by the sampling scan."""


DenoiseFn = Callable[[Array, Level, Cond], Denoised]
"""(x, level, cond) -> Denoised. The only thing that a sampler sees."""
Transform = Callable[[DenoiseFn], DenoiseFn]
"""Guidance and thresholding: decorators of a DenoiseFn, which stack."""


class Process(NamedTuple):
    """x_t = alpha(t) x0 + sigma(t) eps. Functions accept numpy (float64) or JAX arrays and answer in kind."""

    alpha: Callable[[Array], Array]
    sigma: Callable[[Array], Array]
    inverse: Callable[[Array], Array]
    """log(alpha / sigma) -> t."""
    t_min: float
    """Time of the least noise at which the network is trained."""
    t_max: float
    """Time of the most noise, where sampling starts."""
    steps: int | None = None
    """T of a discrete table, whose t is an index 0 .. T-1 (-1 is the data); None if time is continuous."""


class Parameterisation(NamedTuple):
    """What the network's raw output means."""

    denoiser: Callable[[Callable[..., Array], Process], DenoiseFn]
    """(network, process) -> DenoiseFn, where network(x, label, cond) -> raw output shaped like x."""
    target: Callable[[Array, Array, Level], Array]
    """(x0, eps, level) -> what the loss regresses, in the network's own space."""
    label: Callable[[Level, Process], Array]
    """level -> the number that the network is conditioned on."""
    c_in: Callable[[Level], Array] = lambda level: 1.0
    """level -> what the network's input is multiplied by (EDM's c_in), () or [B]."""
    channels: int = 1
    """Channels of the raw output for each of x: 2 where the second half is a learned variance."""
    space: tuple = ()
    """Name of the target ('eps', 'v' ...) and what scales it, so that a weighting for another one can be refused."""


Times = Callable[[Any, int, PyTree], tuple[Array, Array]]
"""(noise, n, extra) -> training times [n] and their importance weights [n]."""


class Point(NamedTuple):
    """Where a sampler stands: a sample x [B, ...] at a level; `aux` is what the denoiser carries from step to step."""

    x: Array
    level: Level
    aux: PyTree = ()


class Sampler(NamedTuple):
    """A pair of pure functions, as in optax: solvers, correctors and replacement steps, which chain."""

    init: Callable[[Point], PyTree]
    """point -> state (multistep history, error estimates)."""
    step: Callable[..., tuple[Point, PyTree]]
    """(noise, denoise, point, level, state) -> (point, state); denoise(x, level) has its condition bound."""


class Objective(NamedTuple):
    """A loss over named parameters."""

    loss: Callable[..., tuple[Array, tuple[Mapping[str, Array], Mapping[str, PyTree]]]]
    """(params, state, batch, noise) -> scalar, (metrics, new_extra).

    `params` holds the trees named by `params` below; `state` is the whole TrainState; `noise` is the per-example
    `gen_jax.rng.Noise` of this step; `new_extra` is partial and merged into TrainState.extra by key.
    """
    params: tuple[str, ...]
    """Names of the parameter trees that it updates: 'unet', or 'unet/REGEX' for some leaves of one."""
    optimizer: str
    """A name in System.optimizers; objectives that share a name share the optimizer's state."""
    every: int = 1
    """Runs on the steps divisible by this; the metrics of an idle objective are absent, not 0."""
    per_example: bool = True
    """False if examples meet inside the loss (contrastive, batch norm): gradient accumulation and pmap are refused."""


class Variables(NamedTuple):
    """What predict functions read."""

    params: Mapping[str, PyTree]
    """Parameter trees by name: of the chosen EMA, or the raw ones."""
    extra: Mapping[str, PyTree] = {}
    frozen: Mapping[str, PyTree] = {}


class Predict(NamedTuple):
    """A named use of a trained system: 'generate', 'reconstruct', 'encode', 'losses' ..."""

    run: Callable[..., Mapping[str, Array]]
    """(variables, keys[B], batch, options) -> dict of arrays [B, ...]; pure, jitted once by the engine."""
    options: Callable[..., PyTree] = lambda: {}
    """(**settings) -> pytree of arrays, on the host: grids in float64 numpy, ranges checked (ValueError).

    Changing a setting changes leaves, never the structure, so nothing recompiles; None is the exception (a
    guidance_scale of None is the static path that calls the network once).
    """
    reads: tuple[str, ...] = ()
    """Keys of the batch that a generating predict is conditioned on, for instance ('label',)."""
    check: Callable[[Mapping[str, Any]], None] = lambda outputs: None
    """outputs as host arrays -> None; raises ValueError for results that must not be used (no convergence)."""
    defaults: Mapping[str, Any] = {}
    """What settings that are not given stand for (solver, steps ...), for the recipe beside a metric."""
    nfe: Callable[[PyTree], int] | None = None
    """options -> evaluations of the network for one example, where settings decide them; for the recipe, too."""


class System(NamedTuple):
    """All that the engine needs to know of a method."""

    init: Callable[..., tuple[dict[str, PyTree], dict[str, PyTree]]]
    """(key, example_batch) -> params by name, extra. Runs eagerly, once."""
    objectives: Mapping[str, Objective]
    predict: Mapping[str, Predict]
    optimizers: Mapping[str, Any] = {}
    """optax.GradientTransformation by the names that the objectives use; `gen_jax.build` fills this from the config."""
    frozen: Mapping[str, PyTree] = {}
    """Weights that it uses and does not train, as ShapeDtypeStructs by name: what TrainState.frozen holds, from where
    config.frozen says."""


class TrainState(NamedTuple):
    """Everything that a checkpoint holds. No random key: seed and step define all randomness."""

    step: Array
    """int32 (): updates done."""
    params: dict[str, PyTree]
    opt: dict[str, PyTree]
    ema: dict[str, PyTree]
    """By the names in config.train.ema: {'params': ..., 'extra': ...} each."""
    extra: dict[str, PyTree]
    """Non-parameters that the losses maintain: batch statistics, codebooks, the scale of latents."""
    frozen: dict[str, PyTree]
    """Weights of other networks that no update changes (a first stage); see System.frozen."""


class Metric(NamedTuple):
    """Mergeable evaluation state; float64 numpy on the host."""

    init: Callable[[], PyTree]
    update: Callable[[PyTree, Mapping[str, Any]], PyTree]
    """(state, outputs) -> state; `outputs` joins the predict's outputs with the batch, padding rows removed."""
    merge: Callable[[PyTree, PyTree], PyTree]
    compute: Callable[[PyTree], Mapping[str, float]]
