"""Prints which levels the schedulers of diffusers 0.42.1 visit, and their options with defaults, into grids.npz.

The table of betas is the scheduler's own, multiplied up in float64 (in float32 the first levels lose three digits of
1 - alpha_bar); all else is the scheduler's code. Samples x / alpha (Euler and kin) are put on the scale of
x = alpha x0 + sigma eps. Repeated levels of two-call schedulers are recorded once.

Needs torch and diffusers (the `reference` extra): python tests/golden/make_grids.py
"""

import inspect
import json
import sys
import types
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

sys.modules.setdefault('torchsde', types.ModuleType('torchsde'))  # draws the noise, which is not wanted here
from diffusers.schedulers.scheduling_dpmsolver_sde import DPMSolverSDEScheduler  # noqa: E402

STEPS = (5, 10, 25, 50)
SPACINGS = ('leading', 'trailing', 'linspace')
SIGMAS = ('use_karras_sigmas', 'use_exponential_sigmas', 'use_beta_sigmas')
LATENT = {'beta_schedule': 'scaled_linear', 'beta_start': 0.00085, 'beta_end': 0.012}
COSINE = {'beta_schedule': 'squaredcos_cap_v2'}
FLOW = {'use_flow_sigmas': True, 'flow_shift': 3.0, 'prediction_type': 'flow_prediction'}
TWO_CALLS = ('HeunDiscrete', 'KDPM2Discrete', 'KDPM2AncestralDiscrete', 'DPMSolverSDE', 'FlowMatchHeunDiscrete')
INDEX = ('DDPM', 'DDIM', 'DDIMInverse', 'PNDM', 'LCM')
NAMES = (*INDEX, *TWO_CALLS, 'EulerDiscrete', 'EulerAncestralDiscrete', 'LMSDiscrete', 'DPMSolverMultistep',
         'DPMSolverSinglestep', 'DEISMultistep', 'UniPCMultistep', 'IPNDM', 'EDMEuler', 'EDMDPMSolverMultistep',
         'FlowMatchEulerDiscrete')


def settings():
    """(scheduler, config, mu)"""
    for spacing in SPACINGS:
        offset = {'timestep_spacing': spacing, 'steps_offset': int(spacing == 'leading'), **LATENT}
        for name in ('DDPM', 'DDIM', 'PNDM', 'LCM', 'EulerDiscrete', 'EulerAncestralDiscrete', 'LMSDiscrete',
                     'HeunDiscrete', 'KDPM2Discrete', 'DPMSolverMultistep', 'DEISMultistep', 'UniPCMultistep'):
            yield name, {**offset, **({'skip_prk_steps': True} if name == 'PNDM' else {})}
        if spacing != 'linspace':
            yield 'DDIMInverse', offset
        for sigmas in SIGMAS:
            for name in ('EulerDiscrete', 'HeunDiscrete', 'KDPM2Discrete'):
                yield name, {**offset, sigmas: True}
    yield 'DDIM', {**LATENT, 'set_alpha_to_one': False, 'steps_offset': 1}
    yield 'DDIM', {**LATENT, 'rescale_betas_zero_snr': True, 'timestep_spacing': 'trailing'}
    yield 'DDPM', {'beta_schedule': 'sigmoid'}
    yield 'DPMSolverSDE', {'use_karras_sigmas': True}
    yield 'KDPM2AncestralDiscrete', {'use_karras_sigmas': True}
    yield 'LMSDiscrete', {**LATENT, 'use_karras_sigmas': True}
    yield 'EulerDiscrete', {**LATENT, 'final_sigmas_type': 'sigma_min', 'sigma_min': 0.05, 'sigma_max': 12.0,
                            'use_karras_sigmas': True}
    yield 'EulerDiscrete', {**LATENT, 'rescale_betas_zero_snr': True, 'timestep_spacing': 'trailing'}
    yield 'EulerDiscrete', {**LATENT, 'timestep_type': 'continuous', 'prediction_type': 'v_prediction',
                            'sigma_min': 0.002, 'sigma_max': 700.0, 'use_karras_sigmas': True}  # Stable Video
    for name in ('DPMSolverMultistep', 'DPMSolverSinglestep', 'DEISMultistep', 'UniPCMultistep'):
        for sigmas in SIGMAS:
            yield name, {**LATENT, sigmas: True}
            yield name, {**COSINE, sigmas: True, **({} if name[0] == 'D' and name[1] == 'E' else
                                                    {'final_sigmas_type': 'sigma_min'})}
        yield name, COSINE
        yield name, FLOW
    yield 'DPMSolverMultistep', {**LATENT, 'use_lu_lambdas': True}
    for spacing in SPACINGS:
        yield 'DPMSolverMultistep', {**COSINE, 'lambda_min_clipped': -5.1, 'timestep_spacing': spacing,
                                     'final_sigmas_type': 'sigma_min'}
    yield 'DPMSolverSinglestep', {**COSINE, 'lambda_min_clipped': -5.1}
    yield 'UniPCMultistep', {**LATENT, 'rescale_betas_zero_snr': True, 'timestep_spacing': 'trailing'}
    yield 'UniPCMultistep', {**FLOW, 'use_dynamic_shifting': True, 'shift_terminal': 0.02, 'mu': 0.8}
    yield 'DPMSolverMultistep', {**FLOW, 'use_dynamic_shifting': True, 'mu': 0.8}
    yield 'IPNDM', {}
    for name in ('EDMEuler', 'EDMDPMSolverMultistep'):
        for schedule in ('karras', 'exponential'):
            yield name, {'sigma_schedule': schedule, 'rho': 5.0,
                         'final_sigmas_type': 'zero' if schedule == 'karras' else 'sigma_min'}
    for shift in (1.0, 3.0):
        yield 'FlowMatchEulerDiscrete', {'shift': shift}
        yield 'FlowMatchHeunDiscrete', {'shift': shift}
    for sigmas in SIGMAS:
        yield 'FlowMatchEulerDiscrete', {'shift': 3.0, sigmas: True}
    for kind in ('exponential', 'linear'):
        yield 'FlowMatchEulerDiscrete', {'use_dynamic_shifting': True, 'time_shift_type': kind, 'mu': 0.8}
    yield 'FlowMatchEulerDiscrete', {'shift': 2.0, 'shift_terminal': 0.1}


def class_of(name):
    return DPMSolverSDEScheduler if name == 'DPMSolverSDE' else getattr(diffusers, f'{name}Scheduler')


def in_float64(name, config):
    """A scheduler whose table of alphas is in float64."""
    make = class_of(name)
    scheduler = make.from_config({k: v for k, v in config.items() if k != 'mu'})
    if hasattr(scheduler, 'alphas_cumprod'):
        plain = {k: v for k, v in config.items() if k not in ('mu', 'rescale_betas_zero_snr')}
        betas = make.from_config(plain).betas.double()
        betas = rescale_zero_terminal_snr(betas) if config.get('rescale_betas_zero_snr') else betas
        scheduler.alphas_cumprod = torch.cumprod(1.0 - betas, 0)
        if config.get('rescale_betas_zero_snr') and name not in INDEX:
            scheduler.alphas_cumprod[-1] = 2 ** -24
        scheduler.lambda_t = 0.5 * torch.log(scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod))
        for final in ('final_alpha_cumprod', 'initial_alpha_cumprod'):
            if hasattr(scheduler, final) and getattr(scheduler, final) != 1:
                setattr(scheduler, final, scheduler.alphas_cumprod[0])
    return scheduler


def visit(name, config, steps):
    """What the network is told [n], alpha and sigma [n + 1], and the factor of the starting noise."""
    scheduler = in_float64(name, config)
    scheduler.set_timesteps(steps, **({'mu': config['mu']} if 'mu' in config else {}))
    times, start = scheduler.timesteps.double().numpy(), 1.0
    if name in INDEX:
        if name == 'PNDM':
            times = np.delete(times, 1)  # visited twice by its first step
        kept = scheduler.alphas_cumprod.numpy()[times.astype(int)]
        end = {'DDPM': 1.0, 'LCM': 1.0}.get(name)
        if end is None:
            end = float(getattr(scheduler, 'initial_alpha_cumprod' if name == 'DDIMInverse' else
                                'final_alpha_cumprod'))
        kept = np.append(end, kept) if name == 'DDIMInverse' else np.append(kept, end)
        return times, np.sqrt(kept), np.sqrt(1 - kept), start
    if name == 'IPNDM':
        return times, scheduler.alphas.numpy(), scheduler.betas.numpy(), start
    sigmas = scheduler.sigmas.double()
    if name in TWO_CALLS:
        times, sigmas = times[::2], sigmas[[0, *range(1, 2 * steps, 2)]]
    if name.startswith('EDM'):
        return times, np.ones(len(sigmas)), sigmas.numpy(), float(scheduler.init_noise_sigma)
    if name.startswith('FlowMatch'):
        return times, 1 - sigmas.numpy(), sigmas.numpy(), start
    if hasattr(scheduler, '_sigma_to_alpha_sigma_t'):
        return times, *(a.numpy() for a in scheduler._sigma_to_alpha_sigma_t(sigmas)), start
    alpha = 1 / np.sqrt(1 + sigmas.numpy() ** 2)
    return times, alpha, sigmas.numpy() * alpha, float(scheduler.init_noise_sigma) * alpha[0]


def defaults(name):
    parameters = inspect.signature(class_of(name).__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.name not in ('self', 'kwargs')}


def main():
    found, columns = [], ([], [], [])
    for name, config in settings():
        for steps in STEPS:
            times, alpha, sigma, start = visit(name, config, steps)
            assert len(times) + 1 == len(alpha) == len(sigma), (name, config, len(times), len(alpha), len(sigma))
            found.append({'class': f'{name}Scheduler', 'config': config, 'steps': steps, 'rows': len(alpha),
                          'init_noise_sigma': start})
            for column, values in zip(columns, (np.append(times, np.nan), alpha, sigma), strict=True):
                column.append(values)
    times, alpha, sigma = (np.concatenate(column) for column in columns)
    np.savez_compressed(Path(__file__).with_name('grids.npz'), settings=json.dumps(found),
                        defaults=json.dumps({f'{name}Scheduler': defaults(name) for name in NAMES}),
                        times=times.astype(np.float32), alpha=alpha.astype(np.float32),
                        sigma=sigma.astype(np.float32), version=diffusers.__version__)


if __name__ == '__main__':
    main()
