"""Prints what diffusers 0.42.1 does in inversion, RePaint, dynamic thresholds and rescaled guidance, into editing.npz.

The schedulers run in float64 (same code, betas and inputs cast), as in make_schedulers.py, on recorded model outputs
and noise.

Needs torch and diffusers (the `reference` extra): python tests/golden/make_editing.py
"""

import itertools
import json
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from diffusers.schedulers import scheduling_repaint

SHAPE = (2, 3)
BETAS = {'linear': (1e-4, 0.02), 'scaled_linear': (0.00085, 0.012), 'squaredcos_cap_v2': (1e-4, 0.02)}
MAX_STEPS = 50
REPAINT = {'num_train_timesteps': 20, 'beta_start': 0.005, 'beta_end': 0.4}
JUMPS = {'jump_length': 5, 'jump_n_sample': 3}


def inversion(setting, x, outputs):
    """x after every step [steps, *SHAPE], and the timesteps."""
    start, end = BETAS[setting['schedule']]
    scheduler = diffusers.DDIMInverseScheduler(
        beta_schedule=setting['schedule'], beta_start=start, beta_end=end, prediction_type=setting['prediction'],
        clip_sample=setting['clip'], timestep_spacing=setting['spacing'], steps_offset=setting['steps_offset'],
        set_alpha_to_one=setting['set_alpha_to_one'])
    scheduler.alphas_cumprod = torch.cumprod(1.0 - scheduler.betas.double(), dim=0)
    if not setting['set_alpha_to_one']:
        scheduler.initial_alpha_cumprod = scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(setting['steps'])
    xs = []
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(outputs[i], t, x).prev_sample
        xs.append(x.numpy())
    return np.stack(xs), scheduler.timesteps.numpy()


def repaint(eta, clip, x, outputs, noise, known, mask):
    """x after every step, up or down."""
    scheduler = diffusers.RePaintScheduler(eta=eta, clip_sample=clip, **REPAINT)
    scheduler.betas = scheduler.betas.double()
    scheduler.alphas_cumprod = torch.cumprod(1.0 - scheduler.betas, dim=0)
    scheduler.set_timesteps(REPAINT['num_train_timesteps'], **JUMPS)
    xs, last = [], scheduler.timesteps[0] + 1
    for i, t in enumerate(scheduler.timesteps):
        scheduling_repaint.randn_tensor = lambda *args, i=i, **kwargs: noise[i]
        if t < last:
            x = scheduler.step(outputs[i], t, x, known, mask).prev_sample
        else:
            x = scheduler.undo_step(x, last)
        last = t
        xs.append(x.numpy())
    return np.stack(xs), scheduler.timesteps.numpy()


def undo_scale(steps, level):
    """By how much a step up of diffusers shrinks the signal, from index `level` of 1000 to `level` + 1000 / steps."""
    scheduler = diffusers.RePaintScheduler()
    scheduler.set_timesteps(steps, **JUMPS)
    scheduling_repaint.randn_tensor = lambda shape, **kwargs: torch.zeros(shape)
    return scheduler.undo_step(torch.ones(1), level + 1000 // steps).item()


def main():
    rng = np.random.default_rng(0)
    x, known = torch.tensor(rng.standard_normal((2, *SHAPE)).astype(np.float32)).double()
    outputs, noise = torch.tensor(rng.standard_normal((2, 100, *SHAPE)).astype(np.float32)).double()
    mask = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.25, 1.0]]).double()
    settings = [dict(prediction=prediction, schedule=schedule, spacing=spacing, steps=steps, clip=clip,
                     steps_offset=0, set_alpha_to_one=True)
                for prediction, schedule, spacing, steps, clip in itertools.product(
                    ('epsilon', 'v_prediction'), BETAS, ('leading', 'trailing'), (5, 10, MAX_STEPS), (False, True))]
    settings += [dict(prediction=prediction, schedule='scaled_linear', spacing='leading', steps=MAX_STEPS, clip=False,
                      steps_offset=1, set_alpha_to_one=False) for prediction in ('epsilon', 'sample', 'v_prediction')]
    xs, times = zip(*(inversion(s, x, outputs) for s in settings), strict=True)
    variants = [(0.0, False), (0.5, True), (1.0, False)]
    walks, walk_times = zip(*(repaint(eta, clip, x, outputs, noise, known, mask) for eta, clip in variants),
                            strict=True)
    wide = torch.tensor((np.array([0.4, 2.0, 4.0])[:, None, None] * rng.standard_normal((3, 7, 5))).astype(np.float32))
    thresholds = [(0.995, 10.0), (0.9, 10.0), (0.5, 1.5), (0.995, 1.0)]
    thresholded = [diffusers.DDIMScheduler(thresholding=True, dynamic_thresholding_ratio=ratio, sample_max_value=top)
                   ._threshold_sample(wide).numpy() for ratio, top in thresholds]
    on, off = torch.tensor(rng.standard_normal((2, 3, 7, 5)).astype(np.float32))
    guided = off + 7.5 * (on - off)
    rescaled = [rescale_noise_cfg(guided, on, phi).numpy() for phi in (0.3, 0.7, 1.0)]
    undone = [(steps, level, undo_scale(steps, level)) for steps, level in ((250, 100), (50, 200), (20, 300))]
    np.savez_compressed(
        Path(__file__).with_name('editing.npz'), settings=json.dumps(settings), x=x.numpy().astype(np.float32),
        known=known.numpy().astype(np.float32), mask=mask.numpy().astype(np.float32),
        outputs=outputs.numpy().astype(np.float32), noise=noise.numpy().astype(np.float32),
        xs=np.concatenate(xs).astype(np.float32), times=np.concatenate(times).astype(np.int32),
        variants=np.array(variants), walks=np.stack(walks).astype(np.float32), walk_times=np.stack(walk_times)[0],
        betas=diffusers.RePaintScheduler(**REPAINT).betas.numpy(), undone=np.array(undone), wide=wide.numpy(),
        thresholds=np.array(thresholds), thresholded=np.stack(thresholded), on=on.numpy(), off=off.numpy(),
        rescaled=np.stack(rescaled), version=diffusers.__version__)


if __name__ == '__main__':
    main()
