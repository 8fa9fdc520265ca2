"""Prints what diffusers 0.42.1's DDPM and DDIM schedulers do on recorded model outputs, into schedulers.npz.

Twice: as shipped in float32 (`xs32`), and with the same code, betas and inputs cast to float64 (`xs`), because the
float32 table loses three digits of 1 - alpha_bar at the first levels, which alone makes its trajectories wrong by up
to 5.3e-5 of their scale, and NaN in three settings (the root of 1 - alpha_bar_prev - std^2 just below 0).

Needs torch and diffusers (the `reference` extra): python tests/golden/make_schedulers.py
"""

import itertools
import json
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers.schedulers import scheduling_ddpm

STEPS = (5, 10, 50)
PREDICTIONS = ('epsilon', 'sample', 'v_prediction')
SCHEDULES = ('linear', 'scaled_linear', 'squaredcos_cap_v2')
SPACINGS = ('leading', 'trailing', 'linspace')
SHAPE = (2, 3)
# (variance, eta, clip): ancestral variances for DDPM, eta for DDIM
DDPM = (('fixed_small', None, False), ('fixed_small', None, True), ('fixed_large', None, False))
DDIM = ((None, 0.0, False), (None, 0.5, True), (None, 1.0, False))


def betas(schedule):
    return {'beta_schedule': schedule, 'beta_start': 0.00085 if schedule == 'scaled_linear' else 1e-4,
            'beta_end': 0.012 if schedule == 'scaled_linear' else 0.02}


def trajectory(setting, x_T, outputs, noise, dtype):
    """x after every step [steps, *SHAPE], and the timesteps."""
    x_T, outputs, noise = (torch.tensor(a, dtype=dtype) for a in (x_T, outputs, noise))
    common = dict(betas(setting['schedule']), prediction_type=setting['prediction'], clip_sample=setting['clip'],
                  timestep_spacing=setting['spacing'], steps_offset=setting['steps_offset'])
    if setting['solver'] == 'ddpm':
        scheduler = diffusers.DDPMScheduler(variance_type=setting['variance'], **common)
    else:
        scheduler = diffusers.DDIMScheduler(set_alpha_to_one=setting['set_alpha_to_one'], **common)
    scheduler.alphas_cumprod = torch.cumprod(1.0 - scheduler.betas.to(dtype), dim=0)
    if not setting['set_alpha_to_one']:
        scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(setting['steps'])
    x, xs = x_T, []
    for i, t in enumerate(scheduler.timesteps):
        if setting['solver'] == 'ddpm':
            scheduling_ddpm.randn_tensor = lambda *args, i=i, **kwargs: noise[i]
            x = scheduler.step(outputs[i], t, x).prev_sample
        else:
            x = scheduler.step(outputs[i], t, x, eta=setting['eta'], variance_noise=noise[i]).prev_sample
        xs.append(x.numpy())
    return np.stack(xs), scheduler.timesteps.numpy()


def main():
    rng = np.random.default_rng(0)
    tables = {f'alphas_cumprod/{name}': diffusers.DDPMScheduler(**betas(name)).alphas_cumprod.numpy()
              for name in (*SCHEDULES, 'sigmoid')}
    tables['alphas_cumprod/zero_terminal_snr'] = diffusers.DDPMScheduler(
        **betas('scaled_linear'), rescale_betas_zero_snr=True).alphas_cumprod.numpy()
    x_T = rng.standard_normal(SHAPE).astype(np.float32)
    outputs, noise = rng.standard_normal((2, max(STEPS), *SHAPE)).astype(np.float32)
    settings = []
    for prediction, schedule, spacing, steps in itertools.product(PREDICTIONS, SCHEDULES, SPACINGS, STEPS):
        for solver, variants in (('ddpm', DDPM), ('ddim', DDIM)):
            for variance, eta, clip in variants:
                settings.append(dict(solver=solver, prediction=prediction, schedule=schedule, spacing=spacing,
                                     steps=steps, variance=variance, eta=eta, clip=clip, steps_offset=0,
                                     set_alpha_to_one=True))
    for prediction, eta in itertools.product(PREDICTIONS, (0.0, 1.0)):  # as Stable Diffusion 1 is configured
        settings.append(dict(solver='ddim', prediction=prediction, schedule='scaled_linear', spacing='leading',
                             steps=50, variance=None, eta=eta, clip=False, steps_offset=1, set_alpha_to_one=False))
    xs, times = zip(*(trajectory(s, x_T, outputs, noise, torch.float64) for s in settings), strict=True)
    xs32, _ = zip(*(trajectory(s, x_T, outputs, noise, torch.float32) for s in settings), strict=True)
    np.savez_compressed(Path(__file__).with_name('schedulers.npz'), settings=json.dumps(settings), x_T=x_T,
                        outputs=outputs, noise=noise, xs=np.concatenate(xs).astype(np.float32),
                        xs32=np.concatenate(xs32), times=np.concatenate(times).astype(np.int32),
                        version=diffusers.__version__, **tables)


if __name__ == '__main__':
    main()
