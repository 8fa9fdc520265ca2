"""The levels that the schedulers of diffusers 0.42.1 visit, by family, as rows for our grids.

A family is a way to choose timesteps and noise levels that several schedulers share:
  index      DDPM, DDIM, PNDM, LCM: indices of the table
  linear     Euler, Heun, LMS, KDPM2, DPM-SDE: fractional indices, sigma / alpha interpolated linearly
  multistep  DPM-Solver, UniPC, DEIS: indices of steps + 1 levels, the last of which is left out
  edm, flow  sigma itself
Everything is float64 numpy; configs `c` are complete (every option of the scheduler has a value).
"""

from typing import NamedTuple

import numpy as np

from gen_jax.sampling.grids import beta_ratios, exponential_ratios, karras_ratios, noise_ratio
from gen_jax.types import Process

__all__ = ['Rows', 'index_times', 'linear_rows', 'multistep_rows', 'edm_rows', 'flow_rows', 'ipndm_rows', 'lcm_times',
           'variance_preserving']


class Rows(NamedTuple):
    """A grid before it is padded: float64 [steps + 1] each."""

    t: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray


def variance_preserving(t, ratios) -> Rows:
    """Rows at noise-to-signal ratios where alpha^2 + sigma^2 = 1."""
    alpha = 1.0 / np.sqrt(1.0 + np.square(ratios))
    return Rows(np.asarray(t, np.float64), alpha, ratios * alpha)


def straight(t, sigma) -> Rows:
    """Rows at noise levels of a flow, alpha = 1 - sigma."""
    return Rows(np.asarray(t, np.float64), 1.0 - sigma, np.asarray(sigma, np.float64))


def spaced(c, steps: int, total: int) -> np.ndarray:
    """'leading' or 'trailing' times of `steps` levels among the first `total` of the table."""
    if c['timestep_spacing'] == 'leading':
        return np.arange(steps)[::-1] * (total // steps) + float(c['steps_offset'])
    if c['timestep_spacing'] == 'trailing':
        return np.round(np.arange(total, 0, -c['num_train_timesteps'] / steps))[:steps] - 1.0
    raise ValueError(f"Unknown timestep_spacing {c['timestep_spacing']!r}; choose 'linspace', 'leading' or 'trailing'.")


def evenly(T: int, steps: int, compat: bool) -> np.ndarray:
    """From T - 1 to 0; a single one is 0 in diffusers (compat), where there is next to no noise, else T - 1."""
    return np.linspace(0, T - 1, steps)[::-1] if compat else np.linspace(T - 1, 0, steps)


def index_times(c, steps: int, compat: bool = False) -> np.ndarray:
    """Indices [steps] of the 'index' family."""
    T = c['num_train_timesteps']
    if c['timestep_spacing'] == 'linspace':
        return np.round(evenly(T, steps, compat))
    return spaced(c, steps, T)


def lcm_times(c, steps: int) -> np.ndarray:
    """`steps` of the original_inference_steps indices that an LCM was distilled on (Luo et al. 2023, Sec. 4.3)."""
    original = c['original_inference_steps']
    if steps > original:
        raise ValueError(f'steps={steps} exceed original_inference_steps={original} of the LCM scheduler.')
    indices = np.arange(original, 0, -1) * (c['num_train_timesteps'] // original) - 1.0
    return indices[np.floor(np.linspace(0, original, steps, endpoint=False)).astype(int)]


def respace(c, steps: int, low: float, high: float, rho: float = 7.0) -> np.ndarray | None:
    """Noise levels [steps] of the use_*_sigmas options, or None if none is set; sigma_min and sigma_max override."""
    low = low if c.get('sigma_min') is None else c['sigma_min']
    high = high if c.get('sigma_max') is None else c['sigma_max']
    u = np.linspace(0.0, 1.0, steps)
    if c.get('use_karras_sigmas'):
        return karras_ratios(u, low, high, rho)
    if c.get('use_exponential_sigmas') or c.get('use_lu_lambdas'):
        return exponential_ratios(u, low, high)
    return beta_ratios(u, low, high) if c.get('use_beta_sigmas') else None


def _table(process: Process) -> np.ndarray:
    return noise_ratio(process, np.arange(process.steps))


def _times_of(process: Process, ratios) -> np.ndarray:
    return process.inverse(-np.log(np.maximum(ratios, 1e-10)))


def linear_rows(c, process: Process, steps: int, round_karras: bool, compat: bool = False) -> Rows:
    """The 'linear' family; `round_karras`: timesteps of Karras levels are rounded (KDPM2)."""
    T, table = process.steps, _table(process)
    times = evenly(T, steps, compat) if c['timestep_spacing'] == 'linspace' else spaced(c, steps, T)
    ratios = np.interp(times, np.arange(T), table)
    new = respace(c, steps, ratios[-1], ratios[0])
    if new is not None:
        ratios, times = new, _times_of(process, new)
        times = np.round(times) if round_karras and c['use_karras_sigmas'] else times
    if c.get('final_sigmas_type', 'zero') == 'sigma_min':
        return variance_preserving(np.append(times, 0.0), np.append(ratios, table[0]))
    return variance_preserving(np.append(times, -1.0), np.append(ratios, 0.0))


def _multistep_times(c, process: Process, steps: int) -> np.ndarray:
    total = process.steps
    if np.isfinite(c.get('lambda_min_clipped', -np.inf)):
        total -= int(np.searchsorted(np.sort(-np.log(_table(process))), c['lambda_min_clipped']))
    spacing = c.get('timestep_spacing', 'linspace')
    if spacing == 'linspace':
        return np.round(np.linspace(0, total - 1, steps + 1))[::-1][:-1]
    if spacing == 'leading':
        return (np.arange(steps + 1) * (total // (steps + 1)))[::-1][:-1] + float(c['steps_offset'])
    return spaced(c, steps, total)


def multistep_rows(c, process: Process, steps: int, kind: str, mu: float | None = None) -> Rows:
    """The 'multistep' family; `kind` is 'multi' or 'single' (DPM-Solver), 'unipc' or 'deis', which end differently."""
    T = c['num_train_timesteps']
    if c.get('use_flow_sigmas'):
        return _multistep_flow(c, steps, kind, mu)
    table = _table(process)
    times = _multistep_times(c, process, steps)
    ratios = respace(c, steps, table[0], table[-1])
    smallest = table[0]
    if ratios is None:
        ratios = np.interp(times, np.arange(T), table)
    else:
        times = _times_of(process, ratios)
        rounded = c['use_karras_sigmas'] or c.get('use_lu_lambdas')
        if rounded and not (kind == 'multi' and c['beta_schedule'] == 'squaredcos_cap_v2'):
            times = np.round(times)
        times = np.floor(times + 1e-9)  # the network is told an integer
        smallest = ratios[-1] if kind in ('unipc', 'deis') else smallest
    if kind == 'deis' or c['final_sigmas_type'] == 'sigma_min':
        return variance_preserving(np.append(times, 0.0), np.append(ratios, smallest))
    return variance_preserving(np.append(times, -1.0), np.append(ratios, 0.0))


def shifted(c, sigmas: np.ndarray, shift: float, mu: float | None) -> np.ndarray:
    """The shift of Esser et al. 2024, Eq. 23: by a constant, or by e^mu (mu itself if 'linear') where it is dynamic."""
    if c['use_dynamic_shifting']:
        if mu is None:
            raise ValueError('This config has use_dynamic_shifting, so the grid needs mu, the log of the shift.')
        shift = np.exp(mu) if c['time_shift_type'] == 'exponential' else mu
    return shift * sigmas / (1.0 + (shift - 1.0) * sigmas)


def stretched(sigmas: np.ndarray, terminal: float | None) -> np.ndarray:
    """1 - sigma scaled so that the last sigma is `terminal`."""
    return sigmas if not terminal else 1.0 - (1.0 - sigmas) * (1.0 - terminal) / (1.0 - sigmas[-1])


def _multistep_flow(c, steps: int, kind: str, mu) -> Rows:
    """use_flow_sigmas: alpha = 1 - sigma, the network told the integer part of T sigma."""
    T = c['num_train_timesteps']
    if kind == 'unipc':
        sigmas = stretched(shifted(c, np.linspace(1.0, 1.0 / T, steps + 1)[:-1], c['flow_shift'], mu),
                           c['shift_terminal'])
        sigmas[0] -= 1e-6 if abs(sigmas[0] - 1.0) < 1e-6 else 0.0
    else:
        dynamic = dict(c, use_dynamic_shifting=mu is not None)
        sigmas = shifted(dynamic, 1.0 - np.linspace(1.0, 1.0 / T, steps + 1), c['flow_shift'], mu)[::-1][:-1]
    end = 0.0
    if kind == 'deis' or kind == 'unipc' and c['final_sigmas_type'] == 'sigma_min':
        end = sigmas[-1]
    times = np.floor(sigmas * T + 1e-9) / T
    return straight(np.append(times, end), np.append(sigmas, end))


def edm_rows(c, steps: int) -> Rows:
    """EDM's levels: t = sigma, alpha = 1."""
    spacing = {f"use_{c['sigma_schedule']}_sigmas": True, 'sigma_min': c['sigma_min'], 'sigma_max': c['sigma_max']}
    sigmas = respace(spacing, steps, c['sigma_min'], c['sigma_max'], c['rho'])
    sigmas = np.append(sigmas, 0.0 if c['final_sigmas_type'] == 'zero' else sigmas[-1])
    return Rows(sigmas, np.ones_like(sigmas), sigmas)


def flow_rows(c, steps: int, mu: float | None = None) -> Rows:
    """Rectified flow: t = sigma, alpha = 1 - sigma. The least level is shifted twice, as the reference does."""
    least = 1.0 / c['num_train_timesteps']
    if not c['use_dynamic_shifting']:
        least = shifted(c, least, c['shift'], None)
    sigmas = stretched(shifted(c, np.linspace(1.0, least, steps), c['shift'], mu), c.get('shift_terminal'))
    new = respace(c, steps, sigmas[-1], sigmas[0])
    sigmas = np.append(sigmas if new is None else new, 0.0)
    return straight(sigmas, sigmas)


def ipndm_rows(steps: int) -> Rows:
    """sigma = sin(pi u / 2)^2 for u from 1 to 0, and t the angle of (alpha, sigma) in units of pi / 2."""
    sigma = np.sin(np.linspace(1.0, 0.0, steps + 1) * np.pi / 2) ** 2
    alpha = np.sqrt((1.0 - sigma) * (1.0 + sigma))
    return Rows(np.arctan2(sigma, alpha) * 2 / np.pi, alpha, sigma)
