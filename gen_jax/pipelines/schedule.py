"""Where a pipeline's sampler starts, and which levels it visits: a scheduler of diffusers, or a solver of ours.

Image-to-image starts late: of `steps` levels the last int(steps * strength) are walked (SDEdit, Meng et al. 2022). For
a scheduler of diffusers that happens as its pipelines do it, PNDM included, whose list of times holds the second one
twice, so that what is left of a shortened list is no longer a PNDM of its own.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import sampling
from gen_jax.sampling.grid_edits import with_rows
from gen_jax.sampling.multistep import ratio
from gen_jax.sampling.pndm import PseudoState
from gen_jax.types import Level, Parameterisation, Point, Process, Sampler, Transform

__all__ = ['Rows', 'Solver', 'levels', 'parts', 'solver_of']


class Solver(NamedTuple):
    """What does not change from call to call, so that one compiled program serves all; hashable."""

    config: str
    """scheduler_config.json as text, the process and the reading of the network's output among it."""
    name: str | None = None
    """A solver of `gen_jax.sampling` in place of the scheduler's own."""
    options: tuple[tuple[str, Any], ...] = ()
    spacing: str | None = None
    """The levels of `gen_jax.sampling.grid` in place of the scheduler's; None: the scheduler's, if it is that."""
    pndm: str = ''
    """Exceptions of PNDM, compiled apart: 'second' starts at the second of its levels, 'single' has one step."""


class Rows(NamedTuple):
    """What changes from call to call: leaves [max_steps + 1]."""

    grid: Level
    targets: Level | None
    start: np.float32
    """What the starting noise is multiplied by, where a sampler starts from noise alone."""
    before: Level
    """The level before the first one, as a row ()."""


def solver_of(config: Mapping[str, Any], scheduler: str | Mapping[str, Any] | None = None, solver: str | None = None,
              spacing: str | None = None, **options) -> Solver:
    """The published scheduler of a pipeline, or what replaces it.

    Args:
        config: scheduler_config.json of the pipeline.
        scheduler: another class of diffusers, told the same betas and prediction type, for instance
            'EulerDiscreteScheduler'; or a whole config.
        solver: a solver of `gen_jax.sampling`, for instance 'dpmpp_2m', with `options` as its arguments.
        spacing: of its levels, for instance 'karras'; None is 'trailing'.

    Raises:
        ValueError: unknown names and options, or both a scheduler and a solver.
    """
    if isinstance(scheduler, Mapping):
        config = scheduler
    elif scheduler is not None:
        config = {**config, '_class_name': scheduler}
    sampling.from_diffusers(config)
    if solver is None:
        if spacing is not None:
            raise ValueError(f'spacing={spacing!r} needs a solver of gen_jax; name one, for instance '
                             "solver='dpmpp_2m', or set timestep_spacing in the scheduler's config")
        unknown = set(options) - {'eta'}
        if unknown:
            raise ValueError(f'{sorted(unknown)[0]}={options[sorted(unknown)[0]]!r} is no setting of a pipeline; '
                             'what a scheduler takes belongs into its config')
        if 'eta' in options and 'eta' not in sampling.from_diffusers(config).sampler:
            raise ValueError(f"eta={options['eta']} is DDIM's; {config['_class_name']} has none")
    elif scheduler is not None:
        raise ValueError(f'give a scheduler ({scheduler!r}) or a solver ({solver!r}), not both')
    elif solver not in sampling.SOLVERS:
        raise ValueError(f'unknown solver {solver!r}; choose from {", ".join(sampling.SOLVERS)}')
    return Solver(json.dumps(dict(config), sort_keys=True), solver, tuple(sorted(options.items())),
                  'trailing' if solver and spacing is None else spacing)


def levels(solver: Solver, steps: int, strength: float | None = None,
           max_steps: int | None = None) -> tuple[Solver, Rows]:
    """The rows to walk, and the solver that walks them.

    Args:
        steps: network evaluations, or what the scheduler calls its inference steps.
        strength: None starts from noise; a share in (0, 1] of the steps starts from a picture.
        max_steps: rows are padded to it, so that fewer steps do not recompile.

    Raises:
        ValueError: no step left, steps that exceed max_steps or the scheduler's table.
    """
    scheduler = sampling.from_diffusers(json.loads(solver.config), compat=True)
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or steps < 1:
        raise ValueError(f'steps must be an integer of at least 1, got {steps!r}')
    max_steps = steps if max_steps is None else max_steps
    if steps > max_steps:
        raise ValueError(f'steps={steps} exceed max_steps={max_steps}; raise max_steps')
    if solver.name is None:
        grid, targets = scheduler.grid(steps, max_steps), scheduler.targets(steps, max_steps)
        start = scheduler.init_noise_sigma(grid)
    else:
        grid, targets = sampling.grid(scheduler.process, steps, solver.spacing, max_steps), None
        start = grid.sigma[0]
    first = 0
    if strength is not None:
        if not 0 < strength <= 1:
            raise ValueError(f'strength must lie within (0, 1], got {strength}')
        first = steps - min(int(steps * strength), steps)
        if first == steps:
            raise ValueError(f'strength={strength} leaves none of the {steps} steps; take a strength of at least '
                             f'{1 / steps:.3g}, or more steps')
    before = Level(*(np.asarray(leaf)[max(first - 1, 0)] for leaf in grid))
    doubled = solver.name is None and scheduler.sampler['name'] == 'pndm' and scheduler.sampler['skip_prk_steps']
    count = np.arange(steps + 1)
    if doubled and first >= 2:
        # The step that is done twice leads from first - 1 to first, where the next one takes it to be one further.
        grid, targets = (with_rows(grid, take) for take in (
            np.append(first - 1, count[first + 1:]), np.concatenate([[first - 1, first], count[first + 2:]])))
    elif first:
        grid = with_rows(grid, count[first:])
        targets = None if targets is None else with_rows(targets, count[first:])
    if doubled and targets is None:
        targets = grid  # the structure of a program must not hang on the strength
    case = {(1, 0): 'single'}.get((steps, first), 'second' if first == 1 else '') if doubled else ''
    return solver._replace(pndm=case), Rows(grid, targets, np.float32(start), before)


def parts(solver: Solver, rows: Rows) -> tuple[Process, Parameterisation, Sampler, Transform]:
    """What `sample` needs of a solver; the rows may be traced."""
    scheduler = sampling.from_diffusers(json.loads(solver.config), compat=True)
    options = dict(solver.options)
    if solver.name is None:
        sampler = sampling.ipndm() if solver.pndm == 'single' else sampling.make_sampler(scheduler, **options)
        if solver.pndm == 'second':
            sampler = _second(sampler, rows.before, scheduler.sampler['compat'])
        sampler = sampling.retarget(sampler, rows.targets)
    else:
        spec = {'name': solver.name, **options}
        sampler = sampling.make_sampler(scheduler._replace(sampler=spec))
    return scheduler.process, scheduler.parameterisation, sampler, sampling.make_clip(scheduler)


def _second(sampler: Sampler, before: Level, v: bool) -> Sampler:
    """PNDM on diffusers' list of times without its first: t1, t1, t2 ...

    The first step is done twice, the second time from what the network says of the first result, told the time of the
    start, as if the start stood one level higher than it does.
    """

    def step(noise, denoise, point, s, state):
        def first(point, state):
            x, t = point.x, point.level
            d = denoise(x, t)
            again = denoise(s.alpha * d.x0 + s.sigma * d.eps, t)
            value, other = (t.alpha * o.eps - t.sigma * o.x0 if v else o.eps for o in (d, again))
            mean = 0.5 * (value + other)
            eps = before.alpha * mean + before.sigma * x if v else mean
            end = ratio(t.alpha, before.alpha) * (x - before.sigma * eps) + t.sigma * eps
            past = jnp.concatenate([value[None], state.past[:2]])
            return Point(end, s, d.aux), PseudoState(past, jnp.int32(1))

        return jax.lax.cond(s.index == 1, first, lambda p, st: sampler.step(noise, denoise, p, s, st), point, state)

    return Sampler(sampler.init, step)
