"""Prints what diffusers 0.42.1 samples with schedulers configured as in published models, into compat.npz.

The network is a smooth function of what it is given and told, so that a wrong level, label, scale, threshold or solver
shows in the sample. The tables of alphas are multiplied up in float64, as in make_grids.py; noise is recorded.

Needs torch and diffusers (the `reference` extra): python tests/golden/make_compat.py
"""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from make_grids import COSINE, FLOW, LATENT, in_float64  # noqa: E402

STEPS = 10  # divides 1000: the Runge-Kutta steps of PNDM stand at whole indices only there
SHAPE = (2, 3, 2, 2)
SD = {**LATENT, 'steps_offset': 1, 'set_alpha_to_one': False, 'clip_sample': False, 'skip_prk_steps': True}
V = {'prediction_type': 'v_prediction'}
CASES = {
    'Stable Diffusion 1': ('PNDM', SD),
    'Stable Diffusion 2': ('DDIM', {**SD, **V}),
    'PNDM with Runge-Kutta steps': ('PNDM', {**SD, 'skip_prk_steps': False}),
    'Stable Diffusion XL': ('EulerDiscrete', {**SD, 'timestep_spacing': 'leading', 'interpolation_type': 'linear'}),
    'SDXL-Turbo': ('EulerAncestralDiscrete', {**SD, 'timestep_spacing': 'trailing'}),
    'Stable Diffusion 3': ('FlowMatchEulerDiscrete', {'shift': 3.0}),
    'FLUX.1-dev': ('FlowMatchEulerDiscrete', {'shift': 3.0, 'use_dynamic_shifting': True, 'mu': 1.15}),
    'Stable Video Diffusion': ('EulerDiscrete', {**LATENT, **V, 'timestep_type': 'continuous', 'sigma_min': 0.002,
                                                 'sigma_max': 700.0, 'use_karras_sigmas': True, 'steps_offset': 1,
                                                 'timestep_spacing': 'leading'}),
    'Playground 2.5': ('EDMDPMSolverMultistep', {}),
    'EDM Euler': ('EDMEuler', {}),
    'LCM Dreamshaper': ('LCM', {**SD, 'set_alpha_to_one': True}),
    'ADM': ('DDPM', {'timestep_spacing': 'trailing'}),
    'IF': ('DDPM', {**COSINE, 'thresholding': True, 'dynamic_thresholding_ratio': 0.95, 'sample_max_value': 1.5}),
    'DDIM inversion': ('DDIMInverse', SD),
    'PixArt': ('DPMSolverMultistep', {**LATENT, 'final_sigmas_type': 'zero'}),
    'Karras 3M': ('DPMSolverMultistep', {**LATENT, **V, 'solver_order': 3, 'use_karras_sigmas': True}),
    'SDE Karras': ('DPMSolverMultistep', {**LATENT, 'algorithm_type': 'sde-dpmsolver++', 'use_karras_sigmas': True}),
    'DPM-Solver, thresholded': ('DPMSolverMultistep', {**COSINE, 'algorithm_type': 'dpmsolver', 'thresholding': True,
                                                       'final_sigmas_type': 'sigma_min', 'sample_max_value': 1.5,
                                                       'lambda_min_clipped': -5.1}),
    'Sana': ('DPMSolverMultistep', FLOW),
    'Wan 2.1': ('UniPCMultistep', FLOW),
    'UniPC': ('UniPCMultistep', {**LATENT, 'solver_order': 3, 'prediction_type': 'sample'}),
    'single step': ('DPMSolverSinglestep', {**LATENT, 'solver_order': 2}),
    'DEIS': ('DEISMultistep', {**LATENT, 'solver_order': 3}),
    'LMS': ('LMSDiscrete', SD),
    'Heun, clipped': ('HeunDiscrete', {**LATENT, 'clip_sample': True, 'use_karras_sigmas': True}),
    'KDPM2': ('KDPM2Discrete', LATENT),
    'KDPM2 ancestral': ('KDPM2AncestralDiscrete', LATENT),
    'rectified flow, Heun': ('FlowMatchHeunDiscrete', {'shift': 2.0}),
}


def network(x, label):
    """Of x [B, ...] and what it is told; the same lines stand in tests/sampling/test_compat.py."""
    return 0.8 * np.sin(1.3 * x + label) + 0.2 * np.cos(3.0 * label) * x


def main():
    rng = np.random.default_rng(0)
    z = rng.standard_normal(SHAPE).astype(np.float32)
    noise = rng.standard_normal((STEPS + 2, *SHAPE)).astype(np.float32)
    xs, cases = [], []
    for title, (name, config) in CASES.items():
        scheduler = in_float64(name, config)
        module = importlib.import_module(type(scheduler).__module__)
        scheduler.set_timesteps(STEPS, **({'mu': config['mu']} if 'mu' in config else {}))
        x = torch.tensor(z, dtype=torch.float64) * (1.0 if name == 'DDIMInverse' else scheduler.init_noise_sigma
                                                    if hasattr(scheduler, 'init_noise_sigma') else 1.0)
        draws = iter(torch.tensor(noise, dtype=torch.float64))
        scale = 1e-3 if scheduler.timesteps.abs().max() > 20 else 1.0
        for t in scheduler.timesteps:
            module.randn_tensor = lambda *args, **kwargs: next(draws)  # noqa: B023
            given = scheduler.scale_model_input(x, t) if hasattr(scheduler, 'scale_model_input') else x
            raw = network(np.asarray(given, np.float64), float(t) * scale)
            x = scheduler.step(torch.tensor(raw), t, x.double()).prev_sample
        xs.append(x.double().numpy())
        cases.append({'title': title, 'class': f'{name}Scheduler', 'config': config, 'scale': scale})
    np.savez_compressed(Path(__file__).with_name('compat.npz'), cases=json.dumps(cases), z=z, noise=noise, steps=STEPS,
                        xs=np.stack(xs).astype(np.float32))


if __name__ == '__main__':
    main()
