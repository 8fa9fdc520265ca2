"""Grids: which levels a sampler visits. Host-side, in float64 numpy, stored as rows of float32.

A grid is a Level whose leaves are rows [max_steps + 1]. Rows 0 .. steps are real, from noise to data; the rows behind
repeat the last, and `last` = steps tells the sampling loop to skip them. Grids of one `max_steps` are the same to a
compiled program, whatever their steps and spacing.
"""

import numpy as np

from gen_jax.types import Level, Process

__all__ = ['leading', 'trailing', 'linspace', 'uniform_t']


def _rows(process: Process, times, max_steps: int | None, final: tuple[float, float] | None = None,
          dtype=np.float32) -> Level:
    """Times [steps + 1] to a padded grid; `final` replaces (alpha, sigma) of the last row."""
    times = np.asarray(times, np.float64)
    steps = len(times) - 1
    max_steps = steps if max_steps is None else max_steps
    if steps > max_steps:
        raise ValueError(f'steps={steps} exceed the {max_steps} that the grid holds; raise max_steps.')
    alpha, sigma = process.alpha(times), process.sigma(times)
    if final is not None:
        alpha[-1], sigma[-1] = final
    rows = [np.pad(a, (0, max_steps - steps), mode='edge').astype(dtype) for a in (times, alpha, sigma)]
    index = np.arange(max_steps + 1, dtype=np.int32)
    return Level(*rows, index, np.full_like(index, steps))


def _check_steps(steps: int):
    if not isinstance(steps, (int, np.integer)) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f'steps must be an integer of at least 1, got {steps!r}.')


def _discrete(process: Process, steps: int, spacing: str, times, set_alpha_to_one: bool, max_steps, dtype) -> Level:
    """times(T, steps) -> descending indices [steps], followed by the data."""
    _check_steps(steps)
    if process.steps is None:
        raise ValueError(f'{spacing!r} spacing needs a discrete table of betas, this process is continuous; '
                         "use 'uniform_t'.")
    if steps > process.steps:
        raise ValueError(f'steps={steps} exceed the {process.steps} levels of the table.')
    indices = times(process.steps)
    if indices[0] >= process.steps or indices[-1] < 0:
        raise ValueError(f'{spacing!r} spacing with these steps and steps_offset visits index {indices[0]:.0f} .. '
                         f'{indices[-1]:.0f}, outside the table 0 .. {process.steps - 1}.')
    if set_alpha_to_one:
        return _rows(process, np.append(indices, -1.0), max_steps, dtype=dtype)
    first = (process.alpha(0), process.sigma(0))
    return _rows(process, np.append(indices, 0.0), max_steps, first, dtype)


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
    not on this grid: diffusers#12633.) Arguments and errors as in `leading`.
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
    _check_steps(steps)
    t_start = process.t_max if t_start is None else t_start
    t_end = (0.0 if process.steps is None else -1.0) if t_end is None else t_end
    if not t_start > t_end:
        raise ValueError(f't_start must be above t_end, got t_start={t_start} and t_end={t_end}.')
    return _rows(process, np.linspace(t_start, t_end, steps + 1), max_steps, dtype=dtype)


_SPACINGS = {'leading': leading, 'trailing': trailing, 'linspace': linspace, 'uniform_t': uniform_t}


def grid(process: Process, steps: int, spacing: str | None = None, max_steps: int | None = None, **options) -> Level:
    """The grid of that name: 'leading', 'trailing', 'linspace' (discrete tables) or 'uniform_t'.

    Args:
        spacing: None is 'leading' on a discrete table and 'uniform_t' on a continuous process.
        max_steps: pad to this many steps, so that one compiled sampler serves every number of steps up to it.
        **options: of the spacing: steps_offset, set_alpha_to_one, t_start, t_end, dtype.

    Raises:
        ValueError: unknown spacing (with the choices), and all that the spacing itself refuses.
    """
    if spacing is None:
        spacing = 'uniform_t' if process.steps is None else 'leading'
    if spacing not in _SPACINGS:
        raise ValueError(f'Unknown spacing {spacing!r}; choose one of {sorted(_SPACINGS)}.')
    return _SPACINGS[spacing](process, steps, max_steps, **options)
