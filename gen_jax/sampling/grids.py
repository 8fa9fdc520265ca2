"""Grids: which levels a sampler visits. Host-side, in float64 numpy, stored as rows of float32.

A grid is a Level whose leaves are rows [max_steps + 1]. Rows 0 .. steps are real, from noise to data; the rows behind
repeat the last, and `last` = steps tells the sampling loop to skip them. Grids of one `max_steps` are the same to a
compiled program, whatever their steps and spacing.

Spacings in time take the levels of the process at chosen times; spacings in noise choose the noise-to-signal ratio
sigma / alpha (EDM's sigma, x / alpha = x0 + ratio * eps) and look up the time at which the process passes it.
"""

import inspect

import numpy as np
from scipy.special import betaincinv

from gen_jax.types import Level, Process

__all__ = ['leading', 'trailing', 'linspace', 'uniform_t', 'karras', 'exponential', 'beta', 'custom', 'grid']

EDM_SIGMA_MIN, EDM_SIGMA_MAX = 0.002, 80.0
FINALS = ('zero', 'sigma_min')


def stack_rows(times, alpha, sigma, max_steps: int | None = None, dtype=np.float32) -> Level:
    """Rows [steps + 1] of a grid, padded to max_steps + 1.

    Raises:
        ValueError: more steps than max_steps.
    """
    steps = len(times) - 1
    max_steps = steps if max_steps is None else max_steps
    if steps > max_steps:
        raise ValueError(f'steps={steps} exceed the {max_steps} that the grid holds; raise max_steps.')
    rows = [np.pad(np.asarray(a, np.float64), (0, max_steps - steps), mode='edge').astype(dtype)
            for a in (times, alpha, sigma)]
    index = np.arange(max_steps + 1, dtype=np.int32)
    return Level(*rows, index, np.full_like(index, steps))


def noise_ratio(process: Process, t) -> np.ndarray:
    """sigma / alpha at time t, inf where alpha is 0; float64."""
    alpha, sigma = process.alpha(np.asarray(t, np.float64)), process.sigma(np.asarray(t, np.float64))
    return np.where(alpha == 0, np.inf, sigma / np.where(alpha == 0, 1.0, alpha))


def _at_times(process: Process, times, max_steps, final: tuple[float, float] | None = None, dtype=np.float32) -> Level:
    """Times [steps + 1] to a grid; `final` replaces (alpha, sigma) of the last row."""
    times = np.asarray(times, np.float64)
    alpha, sigma = process.alpha(times), process.sigma(times)
    if final is not None:
        alpha[-1], sigma[-1] = final
    return stack_rows(times, alpha, sigma, max_steps, dtype)


def _at_ratios(process: Process, ratios, max_steps, dtype=np.float32) -> Level:
    """Noise-to-signal ratios [steps + 1], the last of which may be 0 (the data), to a grid."""
    ratios = np.asarray(ratios, np.float64)
    data = ratios == 0
    times = process.inverse(-np.log(np.where(data, 1.0, ratios)))
    for end in (process.t_min, process.t_max):  # rounding must not step over the ends
        times = np.where(np.abs(times - end) < 1e-9 * (process.t_max - process.t_min), end, times)
    alpha, sigma = np.array(process.alpha(times)), np.array(process.sigma(times))
    with np.errstate(divide='ignore', invalid='ignore'):
        reached = np.isclose(sigma / alpha, ratios, rtol=1e-4)
    if not np.all(reached | data):
        worst = ratios[~(reached | data)][0]
        low, high = (float(noise_ratio(process, t)) for t in (process.t_min, process.t_max))
        raise ValueError(f'The process has no level with sigma / alpha = {worst:.6g}; keep the noise within '
                         f'{low:.6g} .. {high:.6g}.')
    times, alpha, sigma = (np.where(data, a, b) for a, b in ((_data_time(process), times), (1.0, alpha), (0.0, sigma)))
    return stack_rows(times, alpha, sigma, max_steps, dtype)


def _data_time(process: Process) -> float:
    return 0.0 if process.steps is None else -1.0


def check_steps(steps: int):
    if not isinstance(steps, (int, np.integer)) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f'steps must be an integer of at least 1, got {steps!r}.')


def _discrete(process: Process, steps: int, spacing: str, times, set_alpha_to_one: bool, max_steps, dtype) -> Level:
    """times(T, steps) -> descending indices [steps], followed by the data."""
    check_steps(steps)
    if process.steps is None:
        raise ValueError(f'{spacing!r} spacing needs a discrete table of betas, this process is continuous; '
                         "use 'uniform_t', 'karras' or 'log_snr'.")
    if steps > process.steps:
        raise ValueError(f'steps={steps} exceed the {process.steps} levels of the table.')
    indices = times(process.steps)
    if indices[0] >= process.steps or indices[-1] < 0:
        raise ValueError(f'{spacing!r} spacing with these steps and steps_offset visits index {indices[0]:.0f} .. '
                         f'{indices[-1]:.0f}, outside the table 0 .. {process.steps - 1}.')
    if set_alpha_to_one:
        return _at_times(process, np.append(indices, -1.0), max_steps, dtype=dtype)
    first = (process.alpha(0), process.sigma(0))
    return _at_times(process, np.append(indices, 0.0), max_steps, first, dtype)


def leading(process: Process, steps: int, max_steps: int | None = None, steps_offset: int = 0,
            set_alpha_to_one: bool = True, dtype=np.float32) -> Level:
    """Every (T // steps)-th index from `steps_offset` up (DDIM; Lin et al. 2024, Table 2), then the data.

    Args:
        process: a discrete table of T betas.
        steps: 1 .. T.
        max_steps: the padded length.
        steps_offset: added to every index (1 in Stable Diffusion).
        set_alpha_to_one: the last level is the data; False ends at the table's first level instead.

    Raises:
        ValueError: steps out of range, an index outside the table, or a continuous process.
    """
    return _discrete(process, steps, 'leading',
                     lambda T: np.arange(steps)[::-1] * (T // steps) + float(steps_offset),
                     set_alpha_to_one, max_steps, dtype)


def trailing(process: Process, steps: int, max_steps: int | None = None, set_alpha_to_one: bool = True,
             dtype=np.float32) -> Level:
    """From the last index T - 1 down in steps of T / steps (Lin et al. 2024, Table 2), then the data.

    Arguments and errors as in `leading`.
    """
    return _discrete(process, steps, 'trailing', lambda T: np.round(T - np.arange(steps) * (T / steps)) - 1.0,
                     set_alpha_to_one, max_steps, dtype)


def linspace(process: Process, steps: int, max_steps: int | None = None, set_alpha_to_one: bool = True,
             dtype=np.float32) -> Level:
    """`steps` indices evenly from T - 1 to 0, both included (Nichol & Dhariwal 2021), then the data.

    Each step goes to the alpha of the next visited index. (diffusers' DDIM takes the alpha at t - T // steps, which is
    not on this grid: diffusers#12633; `gen_jax.sampling.compat` can follow it.) Arguments and errors as in `leading`.
    """
    return _discrete(process, steps, 'linspace', lambda T: np.round(np.linspace(0, T - 1, steps))[::-1],
                     set_alpha_to_one, max_steps, dtype)


def uniform_t(process: Process, steps: int, max_steps: int | None = None, t_start: float | None = None,
              t_end: float | None = None, dtype=np.float32) -> Level:
    """Evenly spaced in t, from t_start (default t_max) to t_end (default 0, the data on `vp`, `edm` and `flow`).

    On a discrete table the default end is the data, t = -1, and fractional times interpolate the log-SNR.

    Raises:
        ValueError: steps < 1 or over max_steps, or t_start <= t_end.
    """
    check_steps(steps)
    t_start = process.t_max if t_start is None else t_start
    t_end = _data_time(process) if t_end is None else t_end
    if not process.t_max >= t_start > t_end >= _data_time(process):
        raise ValueError(f'uniform_t goes from t_start down to t_end within [{_data_time(process):g}, '
                         f'{process.t_max:g}], the times of the process; got t_start={t_start} and t_end={t_end}.')
    return _at_times(process, np.linspace(t_start, t_end, steps + 1), max_steps, dtype=dtype)


def _noise_range(process: Process, sigma_min, sigma_max) -> tuple[float, float]:
    """The ends of a spacing in sigma / alpha: what was asked for, or the process's own, or EDM's where it has none."""
    if sigma_min is None:
        own = float(noise_ratio(process, process.t_min))
        sigma_min = own if own > 0 else EDM_SIGMA_MIN
    if sigma_max is None:
        own = float(noise_ratio(process, process.t_max))
        sigma_max = own if np.isfinite(own) else EDM_SIGMA_MAX
    own = float(noise_ratio(process, process.t_max))
    if sigma_max > own * (1 + 1e-3):
        raise ValueError(f'sigma_max={sigma_max} is more noise than the process has; keep it at most {own:g}.')
    if not 0 < sigma_min < sigma_max < np.inf:
        raise ValueError(f'The noise must go from a finite sigma_max down to sigma_min > 0, got sigma_min={sigma_min} '
                         f'and sigma_max={sigma_max}.')
    return float(sigma_min), float(sigma_max)


def ramp(steps: int, final_sigmas_type: str) -> np.ndarray:
    """0 .. 1 over the levels before the data ('zero': `steps` of them), or over all (`steps` + 1 of them)."""
    check_steps(steps)
    if final_sigmas_type not in FINALS:
        raise ValueError(f'Unknown final_sigmas_type {final_sigmas_type!r}; choose one of {list(FINALS)}.')
    return np.linspace(0.0, 1.0, steps if final_sigmas_type == 'zero' else steps + 1)


def _ended(ratios: np.ndarray, final_sigmas_type: str) -> np.ndarray:
    return np.append(ratios, 0.0) if final_sigmas_type == 'zero' else ratios


def karras_ratios(u, sigma_min: float, sigma_max: float, rho: float = 7.0):
    """sigma_max at u = 0 to sigma_min at u = 1, linear in sigma^(1/rho)."""
    low, high = sigma_min ** (1.0 / rho), sigma_max ** (1.0 / rho)
    return (high + u * (low - high)) ** rho


def exponential_ratios(u, sigma_min: float, sigma_max: float):
    """sigma_max at u = 0 to sigma_min at u = 1, linear in log sigma."""
    low, high = np.log(sigma_min), np.log(sigma_max)
    return np.exp(high + u * (low - high))


def beta_ratios(u, sigma_min: float, sigma_max: float, a: float = 0.6, b: float = 0.6):
    """sigma_max at u = 0 to sigma_min at u = 1, by quantiles of Beta(a, b)."""
    return sigma_min + betaincinv(a, b, 1.0 - u) * (sigma_max - sigma_min)


def karras(process: Process, steps: int, max_steps: int | None = None, rho: float = 7.0,
           sigma_min: float | None = None, sigma_max: float | None = None, final_sigmas_type: str = 'zero',
           dtype=np.float32) -> Level:
    """sigma_i = (sigma_max^(1/rho) + i / (N - 1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho.

    This is Karras et al. 2022, Eq. 5, where sigma is the noise-to-signal ratio sigma / alpha of any process, and t the
    time at which the process passes it: an exact inverse for continuous processes, linear interpolation in log sigma
    on discrete tables.

    Args:
        rho: 7 in EDM; 1 is uniform in sigma.
        sigma_min, sigma_max: default to the process at t_min and t_max; where that is 0 or infinite (rectified flow,
            zero terminal SNR), to EDM's 0.002 and 80.
        final_sigmas_type: 'zero', N = steps levels and then the data; 'sigma_min', N = steps + 1 levels, the last of
            which is sigma_min.

    Raises:
        ValueError: steps out of range, rho <= 0, an empty range, a level outside the process, unknown final.
    """
    if not rho > 0:
        raise ValueError(f'rho must be positive, got {rho}.')
    ratios = karras_ratios(ramp(steps, final_sigmas_type), *_noise_range(process, sigma_min, sigma_max), rho)
    return _at_ratios(process, _ended(ratios, final_sigmas_type), max_steps, dtype)


def exponential(process: Process, steps: int, max_steps: int | None = None, sigma_min: float | None = None,
                sigma_max: float | None = None, final_sigmas_type: str = 'zero', dtype=np.float32) -> Level:
    """sigma_i geometric from sigma_max to sigma_min (k-diffusion), also named 'log_snr'.

    With sigma = sigma / alpha this is uniform in the log-SNR (Lu et al. 2022, Sec. 3.3), whose paper ends at a positive
    level: final_sigmas_type='sigma_min'. Arguments and errors as in `karras`.
    """
    ratios = exponential_ratios(ramp(steps, final_sigmas_type), *_noise_range(process, sigma_min, sigma_max))
    return _at_ratios(process, _ended(ratios, final_sigmas_type), max_steps, dtype)


def beta(process: Process, steps: int, max_steps: int | None = None, a: float = 0.6, b: float = 0.6,
         space: str = 't', sigma_min: float | None = None, sigma_max: float | None = None,
         final_sigmas_type: str = 'zero', dtype=np.float32) -> Level:
    """Quantiles of a Beta(a, b) distribution: dense at both ends if a, b < 1 (Lee et al. 2024, Sec. 3).

    Args:
        a, b: of the distribution; 0.6 each in the paper.
        space: 't', quantiles of time between t_min and t_max as in the paper; 'sigma', of sigma / alpha between
            sigma_min and sigma_max, as diffusers has it.
        sigma_min, sigma_max, final_sigmas_type: as in `karras`; the first two for space='sigma' only.

    Raises:
        ValueError: as `karras`; a or b <= 0; unknown space; sigma_min or sigma_max given with space='t'.
    """
    if space not in ('t', 'sigma'):
        raise ValueError(f"Unknown space {space!r}; choose 't' or 'sigma'.")
    if not (a > 0 and b > 0):
        raise ValueError(f'a and b must be positive, got a={a} and b={b}.')
    if space == 'sigma':
        ratios = beta_ratios(ramp(steps, final_sigmas_type), *_noise_range(process, sigma_min, sigma_max), a, b)
        return _at_ratios(process, _ended(ratios, final_sigmas_type), max_steps, dtype)
    if sigma_min is not None or sigma_max is not None:
        raise ValueError("sigma_min and sigma_max need space='sigma'; with space='t', t_min .. t_max count.")
    if process.sigma(process.t_min) == 0:  # rectified flow: the last quantile is the data already
        final_sigmas_type = 'sigma_min'
    times = beta_ratios(ramp(steps, final_sigmas_type), process.t_min, process.t_max, a, b)
    if final_sigmas_type == 'sigma_min':
        return _at_times(process, times, max_steps, dtype=dtype)
    return _at_times(process, np.append(times, _data_time(process)), max_steps, (1.0, 0.0), dtype)


def custom(process: Process, steps: int, max_steps: int | None = None, times=None, sigmas=None,
           dtype=np.float32) -> Level:
    """A list of one's own, from noise to data.

    Args:
        times: times of the process, strictly descending: `steps` of them, after which comes the data, or `steps` + 1,
            the last of which is where to end.
        sigmas: the same as noise-to-signal ratios sigma / alpha; a last one of 0 is the data. Give one of the two.

    Raises:
        ValueError: neither or both given, a length that does not fit `steps`, values that do not descend or lie
            outside the process.
    """
    check_steps(steps)
    if (times is None) == (sigmas is None):
        raise ValueError("'custom' spacing needs either times or sigmas.")
    name, values = ('times', times) if sigmas is None else ('sigmas', sigmas)
    values = np.asarray(values, np.float64)
    if values.shape not in ((steps,), (steps + 1,)):
        raise ValueError(f'{name} must be a list of steps={steps} levels (the data follow) or {steps + 1}, '
                         f'got shape {values.shape}.')
    if not (np.all(np.isfinite(values)) and np.all(np.diff(values) < 0)):
        raise ValueError(f'{name} must be finite and strictly descending, got {values}.')
    data = _data_time(process) if sigmas is None else 0.0
    if values[-1] < data or sigmas is None and values[0] > process.t_max:
        high = process.t_max if sigmas is None else 'inf'
        raise ValueError(f'{name} must lie within {data} .. {high}, got {values}.')
    ended = len(values) == steps
    if ended:
        if (values[-1] if sigmas is not None else process.sigma(values[-1])) == 0:
            raise ValueError(f'{name} end with the data, which are one level too many: give {steps + 1} values.')
        values = np.append(values, data)
    if sigmas is not None:
        return _at_ratios(process, values, max_steps, dtype)
    return _at_times(process, values, max_steps, (1.0, 0.0) if ended else None, dtype)


SPACINGS = {'leading': leading, 'trailing': trailing, 'linspace': linspace, 'uniform_t': uniform_t, 'karras': karras,
             'exponential': exponential, 'log_snr': exponential, 'beta': beta, 'custom': custom}


def grid(process: Process, steps: int, spacing: str | None = None, max_steps: int | None = None, **options) -> Level:
    """The grid of that name.

    Args:
        spacing: 'leading', 'trailing', 'linspace' (discrete tables); 'uniform_t', 'karras', 'exponential' = 'log_snr',
            'beta', 'custom' (any process). None is 'leading' on a discrete table and 'uniform_t' on a continuous
            process.
        max_steps: pad to this many steps, so that one compiled sampler serves every number of steps up to it.
        **options: of the spacing: steps_offset, set_alpha_to_one, t_start, t_end, rho, sigma_min, sigma_max,
            final_sigmas_type, times, sigmas, dtype ... (see the function of that name).

    Raises:
        ValueError: unknown spacing or option (with the choices), and all that the spacing itself refuses.
    """
    if spacing is None:
        spacing = 'uniform_t' if process.steps is None else 'leading'
    if spacing not in SPACINGS:
        raise ValueError(f'Unknown spacing {spacing!r}; choose one of {sorted(SPACINGS)}.')
    choices = list(inspect.signature(SPACINGS[spacing]).parameters)[3:]
    unknown = sorted(set(options) - set(choices))
    if unknown:
        raise ValueError(f'{spacing!r} spacing has no option {unknown[0]!r}; it has {choices}.')
    return SPACINGS[spacing](process, steps, max_steps, **options)
