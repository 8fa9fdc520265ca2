"""Prints what diffusers 0.42.1's single-step and stochastic schedulers do on recorded model outputs and noise.

Into singlestep.npz: for every setting the levels sigma / alpha that the reference visited (`sigmas`, float64) and x
after every step (`xs`), both in the reference's own units. Everything runs in float64 from the reference's own levels
(which its float32 tables hold), because its logarithms and differences of squares lose digits in float32. The Brownian
tree of DPMSolverSDE is replaced by a path made of recorded draws.

Needs torch and diffusers (the `reference` extra): python tests/golden/make_singlestep.py
"""

import itertools
import json
import sys
import types
from pathlib import Path

import diffusers
import numpy as np
import torch

sys.modules.setdefault('torchsde', types.ModuleType('torchsde'))  # only for the noise that is replaced here
from diffusers.schedulers import (  # noqa: E402
    scheduling_ddpm,
    scheduling_dpmsolver_sde,
    scheduling_euler_ancestral_discrete,
    scheduling_euler_discrete,
    scheduling_k_dpm_2_ancestral_discrete,
    scheduling_lcm,
    scheduling_sde_ve,
)

SHAPE, CALLS = (2, 2), 102
STEPS = (5, 10, 25, 50)
SPACINGS = ('leading', 'trailing', 'linspace')
SCHEDULES = ('linear', 'scaled_linear')
PREDICTIONS = ('epsilon', 'v_prediction')
DOUBLE = torch.float64


def betas(schedule):
    return {'beta_schedule': schedule, 'beta_start': 0.00085 if schedule == 'scaled_linear' else 1e-4,
            'beta_end': 0.012 if schedule == 'scaled_linear' else 0.02}


def settings():
    grid = list(itertools.product(PREDICTIONS, SCHEDULES, SPACINGS, STEPS))
    for solver in ('euler_ancestral', 'dpm2', 'dpm2_ancestral', 'dpmpp_sde'):
        for prediction, schedule, spacing, steps in grid:
            yield dict(solver=solver, prediction=prediction, schedule=schedule, spacing=spacing, steps=steps)
    churns = ((0.0, 0.0, 1e9, 1.0), (10.0, 0.05, 10.0, 1.003), (100.0, 0.0, 1e9, 1.0), (5.0, 0.3, 3.0, 1.007))
    for prediction, steps, churn in itertools.product(PREDICTIONS, STEPS, churns):
        yield dict(solver='churn', prediction=prediction, schedule='scaled_linear', spacing='linspace', steps=steps,
                   churn=churn)
    for prediction, schedule, steps in itertools.product((*PREDICTIONS, 'sample'), SCHEDULES, (1, 2, 4, 8)):
        yield dict(solver='lcm', prediction=prediction, schedule=schedule, steps=steps)
    for prediction, schedule, steps in itertools.product((*PREDICTIONS, 'sample'), SCHEDULES, STEPS):
        yield dict(solver='learned', prediction=prediction, schedule=schedule, spacing='leading', steps=steps)
    for steps in (5, 10, 25):
        yield dict(solver='sde_ve', steps=steps)
    kinds = [(1, 'midpoint'), *itertools.product((2, 3), ('midpoint', 'heun'))]
    for (order, kind), algorithm, prediction, schedule, steps in itertools.product(
            kinds, ('dpmsolver++', 'dpmsolver'), (*PREDICTIONS, 'sample'), ('scaled_linear',), STEPS):
        final = 'sigma_min' if algorithm == 'dpmsolver' else 'zero'
        yield dict(solver='interleaved', prediction=prediction, schedule=schedule, steps=steps, order=order,
                   algorithm=algorithm, kind=kind, final=final, lower_order_final=True, karras=steps == 25)
    for (order, kind), algorithm, lower in itertools.product(kinds, ('dpmsolver++', 'dpmsolver'), (False, True)):
        yield dict(solver='interleaved', prediction='epsilon', schedule='linear', steps=12, order=order,
                   algorithm=algorithm, kind=kind, final='sigma_min', lower_order_final=lower, karras=False)


def two_calls(scheduler, sigmas, x, outputs, before_call=lambda i: None):
    """Runs a scheduler whose every step but the last takes two calls; x after every step."""
    xs = []
    for i, t in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(x, t)
        before_call(i)
        x = scheduler.step(outputs[i], t, x).prev_sample
        if i % 2 or i == len(scheduler.timesteps) - 1:
            xs.append(x)
    assert len(xs) == len(sigmas) - 1
    return xs


def k_discrete(s, x, outputs, noise, noise2):
    """The schedulers in x / alpha: (sigmas, xs)."""
    make = {'euler_ancestral': diffusers.EulerAncestralDiscreteScheduler, 'churn': diffusers.EulerDiscreteScheduler,
            'dpm2': diffusers.KDPM2DiscreteScheduler, 'dpm2_ancestral': diffusers.KDPM2AncestralDiscreteScheduler,
            'dpmpp_sde': scheduling_dpmsolver_sde.DPMSolverSDEScheduler}[s['solver']]
    scheduler = make(prediction_type=s['prediction'], timestep_spacing=s['spacing'], **betas(s['schedule']))
    scheduler.set_timesteps(s['steps'])
    for name in ('sigmas', 'sigmas_interpol', 'sigmas_up', 'sigmas_down'):
        if hasattr(scheduler, name):
            setattr(scheduler, name, getattr(scheduler, name).to(DOUBLE))
    sigmas = scheduler.sigmas
    if s['solver'] in ('euler_ancestral', 'churn'):
        xs = []
        for i, t in enumerate(scheduler.timesteps):
            for module in (scheduling_euler_ancestral_discrete, scheduling_euler_discrete):
                module.randn_tensor = lambda *args, i=i, **kwargs: noise[i]
            scheduler.scale_model_input(x, t)
            options = dict(zip(('s_churn', 's_tmin', 's_tmax', 's_noise'), s.get('churn', ()), strict=False))
            x = scheduler.step(outputs[i], t, x, **options).prev_sample
            xs.append(x)
        return sigmas, xs
    ends = sigmas[:-1:2]
    if s['solver'] == 'dpmpp_sde':
        ends = torch.cat([sigmas[:1], sigmas[1:-1:2], sigmas[-1:]])
        between = {}

        def brownian(start, stop):
            i = scheduler.step_index // 2
            if scheduler.state_in_first_order:
                between[i] = stop
                return noise[i]
            share = (start - between[i]) / (start - stop)
            return share ** 0.5 * noise[i] + (1 - share) ** 0.5 * noise2[i]

        scheduler.noise_sampler = brownian
    scheduling_k_dpm_2_ancestral_discrete.randn_tensor = lambda *args, **kwargs: noise[scheduler.step_index // 2]
    return ends, two_calls(scheduler, ends, x, outputs)


def interleaved(s, x, outputs, noise, noise2):
    scheduler = diffusers.DPMSolverSinglestepScheduler(
        prediction_type=s['prediction'], solver_order=s['order'], algorithm_type=s['algorithm'],
        solver_type=s['kind'], final_sigmas_type=s['final'], lower_order_final=s['lower_order_final'],
        use_karras_sigmas=s['karras'], **betas(s['schedule']))
    scheduler.set_timesteps(s['steps'])
    scheduler.sigmas = scheduler.sigmas.to(DOUBLE)
    xs = []
    for i, t in enumerate(scheduler.timesteps):
        if i == 0:
            scheduler.set_begin_index(0)
        x = scheduler.step(outputs[i], t, x).prev_sample
        xs.append(x)
    return scheduler.sigmas, xs


def lcm(s, x, outputs, noise, noise2):
    scheduler = diffusers.LCMScheduler(prediction_type=s['prediction'], **betas(s['schedule']))
    scheduler.alphas_cumprod = torch.cumprod(1.0 - scheduler.betas.to(DOUBLE), dim=0)
    scheduler.set_timesteps(s['steps'])
    xs = []
    for i, t in enumerate(scheduler.timesteps):
        scheduling_lcm.randn_tensor = lambda *args, i=i, **kwargs: noise[i]
        x = scheduler.step(outputs[i], t, x).prev_sample
        xs.append(x)
    s['times'] = scheduler.timesteps.tolist()
    visited = scheduler.alphas_cumprod[scheduler.timesteps]
    return torch.cat([((1 - visited) / visited) ** 0.5, torch.zeros(1, dtype=DOUBLE)]), xs


def learned(s, x, outputs, noise, noise2):
    scheduler = diffusers.DDPMScheduler(prediction_type=s['prediction'], variance_type='learned_range',
                                        clip_sample=False, timestep_spacing=s['spacing'], **betas(s['schedule']))
    scheduler.alphas_cumprod = torch.cumprod(1.0 - scheduler.betas.to(DOUBLE), dim=0)
    scheduler.set_timesteps(s['steps'])
    xs = []
    for i, t in enumerate(scheduler.timesteps):
        scheduling_ddpm.randn_tensor = lambda *args, i=i, **kwargs: noise[i]
        # the second half of the channels is the variance's weight, here another draw
        x = scheduler.step(torch.cat([outputs[i], noise2[i]], dim=1), t, x).prev_sample
        xs.append(x)
    visited = scheduler.alphas_cumprod[scheduler.timesteps]
    return torch.cat([((1 - visited) / visited) ** 0.5, torch.zeros(1, dtype=DOUBLE)]), xs


def sde_ve(s, x, outputs, noise, noise2):
    """Corrector, then predictor, at every level; outputs are scores times -sigma. The last step is the mean."""
    scheduler = diffusers.ScoreSdeVeScheduler(num_train_timesteps=s['steps'], sigma_max=50.0, snr=0.16)
    scheduler.set_timesteps(s['steps'])
    scheduler.set_sigmas(s['steps'])
    scheduler.discrete_sigmas = scheduler.discrete_sigmas.to(DOUBLE)
    sigmas = torch.cat([scheduler.discrete_sigmas.flip(0), torch.zeros(1, dtype=DOUBLE)])
    xs = []
    for i, t in enumerate(scheduler.timesteps):
        scheduling_sde_ve.randn_tensor = lambda *args, i=i, **kwargs: noise[i]
        x = scheduler.step_correct(-outputs[2 * i] / sigmas[i], x).prev_sample
        scheduling_sde_ve.randn_tensor = lambda *args, i=i, **kwargs: noise2[i]
        answer = scheduler.step_pred(-outputs[2 * i + 1] / sigmas[i], t, x)
        x = answer.prev_sample_mean if i == s['steps'] - 1 else answer.prev_sample
        xs.append(x)
    return sigmas, xs


def main():
    rng = np.random.default_rng(0)
    x_T = rng.standard_normal(SHAPE).astype(np.float32)
    outputs, noise, noise2 = rng.standard_normal((3, CALLS, *SHAPE)).astype(np.float32)
    tensors = [torch.tensor(a, dtype=DOUBLE) for a in (outputs, noise, noise2)]
    run = {'interleaved': interleaved, 'lcm': lcm, 'learned': learned, 'sde_ve': sde_ve}
    done, levels, trajectories = [], [], []
    for s in settings():
        # schedulers in x / alpha start from their largest sigma, sde_ve from 50
        sigmas, xs = run.get(s['solver'], k_discrete)(s, torch.tensor(x_T, dtype=DOUBLE) * start(s), *tensors)
        assert len(sigmas) == s['steps'] + 1 and len(xs) == s['steps'], s
        done.append(s)
        levels.append(sigmas.numpy().astype(np.float64))
        trajectories.append(np.stack([x.numpy() for x in xs]).astype(np.float32))
    tables = np.unique(np.concatenate(levels), return_inverse=True)
    np.savez_compressed(Path(__file__).with_name('singlestep.npz'), settings=json.dumps(done), x_T=x_T,
                        outputs=outputs, noise=noise, noise2=noise2, levels=tables[0],
                        sigmas=tables[1].astype(np.int32), xs=np.concatenate(trajectories),
                        version=diffusers.__version__)


def start(s):
    return {'sde_ve': 50.0}.get(s['solver'], 1.0 if s['solver'] in ('interleaved', 'lcm', 'learned') else 14.0)


if __name__ == '__main__':
    main()
