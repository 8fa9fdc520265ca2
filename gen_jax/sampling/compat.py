"""diffusers' scheduler_config.json, read as our process, parameterisation, sampler and grid.

A scheduler of diffusers is a solver, a table of noise levels, a choice of levels and a reading of the network's output
in one class; `from_diffusers` takes it apart. Its samples x / alpha (Euler and kin) become ours, x = alpha x0 + sigma
eps. Where a scheduler deviates from its paper, `compat=True` follows the scheduler and the default the paper.
"""

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.diffusion import parameterisation as parameterisations
from gen_jax.diffusion import thresholding
from gen_jax.diffusion.process import cosine, discrete, discrete_ddpm, edm, flow
from gen_jax.sampling import compat_grids as levels
from gen_jax.sampling.compat_options import OPTIONS
from gen_jax.sampling.grids import check_steps, stack_rows
from gen_jax.types import Level, Parameterisation, Process, Sampler, Transform

__all__ = ['Scheduler', 'from_diffusers', 'make_sampler', 'make_clip', 'retarget']

INDEX = ('DDPMScheduler', 'DDIMScheduler', 'DDIMInverseScheduler', 'PNDMScheduler', 'LCMScheduler')
MULTISTEP = {'DPMSolverMultistepScheduler': 'multi', 'DPMSolverSinglestepScheduler': 'single',
             'DEISMultistepScheduler': 'deis', 'UniPCMultistepScheduler': 'unipc'}
NEARLY_ZERO_SNR = 2.0 ** -24  # the last alpha^2 of schedulers that divide by it, after rescale_betas_zero_snr


class Scheduler(NamedTuple):
    """A scheduler of diffusers, taken apart."""

    process: Process
    parameterisation: Parameterisation
    sampler: Mapping[str, Any]
    """{'name': of a sampler in `gen_jax.sampling`, and its arguments}; see `make_sampler`."""
    grid: Callable[..., Level]
    """(steps, max_steps=None, mu=None, dtype=float32) -> the levels that it visits; `mu` where shifting is dynamic."""
    clip: Mapping[str, Any] | None
    """{'name': of a transform in `gen_jax.diffusion.thresholding`, and its arguments}, or None; see `make_clip`."""
    init_noise_sigma: Callable[[Level], float]
    """grid -> what the scheduler multiplies the starting noise by, on our scale of x (`prior` has sigma_T)."""
    targets: Callable[..., Level | None]
    """(steps, max_steps, dtype) -> with compat=True, where each step goes if that is not the next row of the grid (for
    `retarget`), else None."""


def retarget(sampler: Sampler, targets: Level | None) -> Sampler:
    """The sampler that goes to `targets`, row by row, and takes that for the next row of its grid.

    DDIM in diffusers does so where its spacing is uneven: it goes to alpha at t - T // steps, and the next step reads x
    as a sample of the next visited t (diffusers#12633). With targets=None it is the sampler itself. `targets` is a
    Level of rows like the grid and may be traced.
    """
    if targets is None:
        return sampler

    def step(noise, denoise, point, s, state):
        aim = jax.tree.map(lambda a: jnp.asarray(a)[s.index], targets)
        point, state = sampler.step(noise, denoise, point, aim, state)
        return point._replace(level=s), state

    return Sampler(sampler.init, step)


def make_sampler(scheduler: Scheduler, **overrides) -> Sampler:
    """The sampler of a Scheduler; `overrides` replace arguments (eta=0.5).

    Raises:
        ValueError: no sampler of that name.
    """
    from gen_jax import sampling
    spec = {**scheduler.sampler, **overrides}
    name = spec.pop('name')
    if not hasattr(sampling, name):
        raise ValueError(f'Unknown sampler {name!r}; choose one of {sorted(sampling.SAMPLERS)}.')
    make = getattr(sampling, name)
    if 'process' in inspect.signature(make).parameters:
        spec['process'] = scheduler.process
    return make(**spec)


def make_clip(scheduler: Scheduler) -> Transform:
    """The thresholding of a Scheduler as a transform of the denoiser; the identity if it has none."""
    if scheduler.clip is None:
        return lambda denoise: denoise
    spec = dict(scheduler.clip)
    return getattr(thresholding, spec.pop('name'))(**spec)


def _complete(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """(class, every option of it); unknown classes and options are refused by name."""
    kind = config.get('_class_name')
    if kind not in OPTIONS:
        near = get_close_matches(str(kind), OPTIONS, 1)
        raise ValueError(f'Unknown scheduler _class_name={kind!r}{f", did you mean {near[0]!r}" if near else ""}; '
                         f'choose one of {sorted(OPTIONS)}.')
    known = set().union(*OPTIONS.values())
    for key, value in config.items():
        if not key.startswith('_') and key not in known and value is not None:
            near = get_close_matches(key, OPTIONS[kind], 1)
            raise ValueError(f'Unknown option {key}={value!r} of {kind}'
                             f'{f", did you mean {near[0]!r}" if near else ""}; remove it from the config.')
    return kind, {key: config.get(key, default) for key, default in OPTIONS[kind].items()}


def _refuse(kind: str, c: dict, **allowed):
    """Options that may only have these values."""
    for key, values in allowed.items():
        if key in c and c[key] not in values:
            raise ValueError(f'{key}={c[key]!r} of {kind} is not supported; only {" or ".join(map(repr, values))} is.')


def _check(kind: str, c: dict):
    spacings = [key for key in ('use_karras_sigmas', 'use_exponential_sigmas', 'use_beta_sigmas', 'use_lu_lambdas')
                if c.get(key)]
    if len(spacings) > 1:
        raise ValueError(f'{kind} can have only one of {spacings}.')
    _refuse(kind, c, interpolation_type=('linear',), solver_p=(None,), invert_sigmas=(False,),
            final_sigmas_type=('zero', 'sigma_min'), timestep_type=('discrete', 'continuous'),
            time_shift_type=('exponential', 'linear') if kind.startswith('Flow') else ('exponential',),
            timestep_spacing=('leading', 'trailing') if kind == 'DDIMInverseScheduler' else
            ('linspace', 'leading', 'trailing'), sigma_schedule=('karras', 'exponential'))
    if kind.startswith('DPMSolver') or kind.startswith('EDM'):
        _refuse(kind, c, variance_type=(None,))
    if kind.startswith('EDM'):
        _refuse(kind, c, prediction_type=('epsilon',))
    if kind == 'IPNDMScheduler':
        _refuse(kind, c, trained_betas=(None,))
    if kind == 'DDPMScheduler':
        _refuse(kind, c, variance_type=('fixed_small', 'fixed_small_log', 'fixed_large', 'learned_range'))
    if c.get('use_flow_sigmas'):
        _refuse(kind, c, **{key: (False,) for key in ('use_karras_sigmas', 'use_exponential_sigmas',
                                                      'use_beta_sigmas', 'use_lu_lambdas')})
    if c.get('trained_betas') is not None:
        _refuse(kind, c, rescale_betas_zero_snr=(False,))


def _log_sigma_time() -> Process:
    """Variance preserving with t = log(sigma / alpha) / 4, what Stable Video Diffusion is told."""

    def part(sign):
        def value(t):
            xp = jnp if isinstance(t, jax.Array) else np
            return xp.exp(-0.5 * xp.logaddexp(0.0, sign * 8.0 * t))
        return value

    return Process(part(1.0), part(-1.0), lambda lam: -0.25 * lam, 0.25 * np.log(0.002), 0.25 * np.log(700.0))


def _process(kind: str, c: dict) -> Process:
    if kind.startswith('EDM'):
        return edm(c['sigma_min'], c['sigma_max'])
    if kind.startswith('FlowMatch') or c.get('use_flow_sigmas'):
        return flow()
    if kind == 'IPNDMScheduler':
        return cosine(float('inf'), float('-inf'))
    return _log_sigma_time() if _continuous(c) else _table(kind, c)


def _table(kind: str, c: dict) -> Process:
    if c['trained_betas'] is not None:
        return discrete(np.asarray(c['trained_betas'], np.float32))
    zero = c.get('rescale_betas_zero_snr', False)
    process = discrete_ddpm(c['beta_schedule'], c['beta_start'], c['beta_end'], c['num_train_timesteps'], zero)
    if not zero or kind in INDEX:
        return process
    kept = np.append(1.0, process.alpha(np.arange(process.steps)) ** 2)
    kept[-1] = NEARLY_ZERO_SNR
    return discrete(1.0 - kept[1:] / kept[:-1])


def _continuous(c: dict) -> bool:
    return c.get('timestep_type') == 'continuous' and c['prediction_type'] == 'v_prediction'


def _parameterisation(kind: str, c: dict) -> Parameterisation:
    if kind.startswith('EDM'):
        return parameterisations.edm(c['sigma_data'])
    scale = 1.0  # of the time that the network is told: the index of a table, or log sigma / 4
    if kind.startswith('FlowMatch') or c.get('use_flow_sigmas'):
        scale = float(c['num_train_timesteps'])
    if kind.startswith('FlowMatch'):
        return parameterisations.flow(scale)
    makers = {'epsilon': parameterisations.eps, 'sample': parameterisations.x0, 'v_prediction': parameterisations.v,
              'flow_prediction': parameterisations.flow}
    prediction = c.get('prediction_type', 'epsilon')
    if prediction not in makers:
        raise ValueError(f'Unknown prediction_type {prediction!r}; choose one of {sorted(makers)}.')
    return makers[prediction](scale)


def _sampler(kind: str, c: dict, compat: bool) -> dict[str, Any]:
    fixed = {'DDIMScheduler': {'name': 'ddim', 'eta': 0.0}, 'LMSDiscreteScheduler': {'name': 'lms', 'order': 4},
             'DDIMInverseScheduler': {'name': 'ddim_inverse', 'compat': compat},
             'EulerDiscreteScheduler': {'name': 'euler'}, 'EDMEulerScheduler': {'name': 'euler'},
             'EulerAncestralDiscreteScheduler': {'name': 'euler_ancestral'}, 'IPNDMScheduler': {'name': 'ipndm'},
             'HeunDiscreteScheduler': {'name': 'heun'},
             'FlowMatchHeunDiscreteScheduler': {'name': 'heun', 'straight': True},
             'KDPM2DiscreteScheduler': {'name': 'dpm2'}, 'DPMSolverSDEScheduler': {'name': 'dpmpp_sde'},
             'KDPM2AncestralDiscreteScheduler': {'name': 'dpm2_ancestral'}}
    if kind in fixed:
        return fixed[kind]
    if kind == 'DDPMScheduler':
        names = {'fixed_small_log': 'fixed_small', 'learned_range': 'learned'}
        return {'name': 'ddpm', 'variance': names.get(c['variance_type'], c['variance_type'])}
    if kind == 'PNDMScheduler':
        return {'name': 'pndm', 'skip_prk_steps': c['skip_prk_steps'],
                'compat': compat and c['prediction_type'] == 'v_prediction'}
    if kind == 'LCMScheduler':
        return {'name': 'lcm', 'boundary': True, 'timestep_scaling': c['timestep_scaling']}
    if kind == 'FlowMatchEulerDiscreteScheduler':
        return {'name': 'lcm' if c['stochastic_sampling'] else 'euler'}
    ends = {'order': c['solver_order'], 'lower_order_final': c['lower_order_final']}
    if kind == 'DEISMultistepScheduler':
        return {'name': 'deis', **ends}
    if kind == 'UniPCMultistepScheduler':
        solver_type = c['solver_type'] if c['solver_type'] in ('bh1', 'bh2') else 'bh2'
        return {'name': 'unipc', **ends, 'solver_type': solver_type, 'predict_x0': c['predict_x0'],
                'disable_corrector': tuple(c['disable_corrector'])}
    types = {'algorithm_type': 'dpmsolver++' if c['algorithm_type'] == 'deis' else c['algorithm_type'],
             'solver_type': 'midpoint' if c['solver_type'] in ('logrho', 'bh1', 'bh2') else c['solver_type']}
    if not types['algorithm_type'].endswith('++') and c['final_sigmas_type'] == 'zero':
        raise ValueError(f"algorithm_type={c['algorithm_type']!r} of {kind} needs final_sigmas_type='sigma_min'.")
    if kind == 'DPMSolverSinglestepScheduler':
        _refuse(kind, types, algorithm_type=('dpmsolver', 'dpmsolver++'))
        return {'name': 'dpm_solver_interleaved', **ends, **types}
    return {'name': 'dpm_solver_multistep', **ends, **types, 'euler_at_final': c['euler_at_final'], 'compat': compat}


def _clip(kind: str, c: dict, sampler: dict) -> dict[str, Any] | None:
    """Solvers that read eps get it from the clipped x0, except DDIM, whose eps is the network's."""
    eps = kind in ('HeunDiscreteScheduler', 'DEISMultistepScheduler') or 'dpmsolver' == sampler.get(
        'algorithm_type', '').removeprefix('sde-')
    if c.get('thresholding') and c.get('predict_x0', True):
        return {'name': 'dynamic_threshold', 'percentile': c['dynamic_thresholding_ratio'],
                'max_value': c['sample_max_value'], 'recompute_eps': eps}
    return {'name': 'clip_x0', 'limit': c['clip_sample_range'], 'recompute_eps': eps} if c.get('clip_sample') else None


def _index_rows(kind: str, c: dict, process: Process, steps: int, compat: bool = False) -> levels.Rows:
    if kind == 'LCMScheduler':
        times, end = levels.lcm_times(c, steps), -1.0
    else:
        times, end = levels.index_times(c, steps, compat), -1.0 if c.get('set_alpha_to_one', True) else 0.0
    if times[0] >= process.steps or times[-1] < 0:
        raise ValueError(f"timestep_spacing={c['timestep_spacing']!r} with steps={steps} and steps_offset="
                         f"{c['steps_offset']} leaves the table 0 .. {process.steps - 1}; take fewer steps.")
    times = np.append(times, end)
    rows = levels.Rows(times, process.alpha(times), process.sigma(times))
    return levels.Rows(*(a[::-1].copy() for a in rows)) if kind == 'DDIMInverseScheduler' else rows


def _aims(kind: str, c: dict, process: Process, steps: int) -> tuple[levels.Rows, levels.Rows]:
    """(rows, targets) of DDIM as diffusers walks it, T // steps indices at a time; row 0 of the targets is not read."""
    rows = _index_rows(kind, c, process, steps, True)
    stride = process.steps // steps
    end = -1.0 if c['set_alpha_to_one'] else 0.0

    def at(times):
        times = np.where(times < 0, end, times)
        return levels.Rows(times, process.alpha(times), process.sigma(times))

    if kind == 'DDIMInverseScheduler':
        return at(np.append(rows.t[1:] - stride, rows.t[-1])), rows
    return rows, at(np.append(rows.t[0], rows.t[:-1] - stride))


def from_diffusers(config: Mapping[str, Any], compat: bool = False) -> Scheduler:
    """Reads a scheduler_config.json of diffusers (a dict, as json.load gives it).

    Args:
        config: needs `_class_name`; other keys that start with '_' are ignored, and so are options of other
            schedulers, as diffusers ignores them. What the config leaves out has the default of diffusers 0.42.1.
        compat: follow diffusers also where it deviates from the paper: DDIM goes to t - T // steps on uneven spacings,
            DDPM with a large variance adds noise to the last sample unless it stands at index 0, DDIM inversion tells
            the network the time of the target, third-order DPM-Solver++ has half its last term, PNDM averages v, a
            single step of the spacing 'linspace' starts from the least noise.

    Raises:
        ValueError: an unknown class, option or value, and options that we do not have, each by name.
    """
    kind, c = _complete(config)
    _check(kind, c)
    process, sampler = _process(kind, c), _sampler(kind, c, compat)
    table = _table(kind, c) if _continuous(c) else process

    def rows_of(steps: int, mu) -> levels.Rows:
        check_steps(steps)
        if table.steps is not None and steps > table.steps:
            raise ValueError(f'steps={steps} exceed the {table.steps} levels of the table.')
        if mu is not None and not c.get('use_dynamic_shifting'):
            raise ValueError(f'mu={mu} needs a config with use_dynamic_shifting=True.')
        if kind in INDEX:
            aims = compat and kind in ('DDIMScheduler', 'DDIMInverseScheduler')
            return _aims(kind, c, process, steps)[0] if aims else _index_rows(kind, c, process, steps, compat)
        if kind in MULTISTEP:
            return levels.multistep_rows(c, process, steps, MULTISTEP[kind], mu)
        if kind.startswith('EDM'):
            return levels.edm_rows(c, steps)
        if kind.startswith('FlowMatch'):
            return levels.flow_rows({**OPTIONS['FlowMatchEulerDiscreteScheduler'], **c}, steps, mu)
        if kind == 'IPNDMScheduler':
            return levels.ipndm_rows(steps)
        rows = levels.linear_rows(c, table, steps, kind.startswith('KDPM2'), compat)
        if _continuous(c):
            rows = rows._replace(t=0.25 * np.log(np.where(rows.sigma == 0, rows.sigma[-2] / rows.alpha[-2],
                                                          rows.sigma / rows.alpha)))
        return rows

    def grid(steps: int, max_steps: int | None = None, mu: float | None = None, dtype=np.float32) -> Level:
        return stack_rows(*rows_of(steps, mu), max_steps, dtype)

    def targets(steps: int, max_steps: int | None = None, dtype=np.float32) -> Level | None:
        if compat and kind in ('DDIMScheduler', 'DDIMInverseScheduler'):
            return stack_rows(*_aims(kind, c, process, steps)[1], max_steps, dtype)
        if compat and sampler == {'name': 'ddpm', 'variance': 'fixed_large'}:
            rows = grid(steps, max_steps, dtype=dtype)
            return rows._replace(last=rows.last + np.int32(rows.t[steps - 1] > 0))  # the last step is not the last
        return None

    def init_noise_sigma(rows: Level) -> float:
        if kind.startswith('EDM'):
            return float(np.hypot(c['sigma_max'], 1.0))
        linear = kind not in INDEX and kind not in MULTISTEP and 'timestep_spacing' in c
        return float(rows.sigma[0]) if linear and c['timestep_spacing'] != 'leading' else 1.0

    return Scheduler(process, _parameterisation(kind, c), sampler, grid, _clip(kind, c, sampler), init_noise_sigma,
                     targets)
