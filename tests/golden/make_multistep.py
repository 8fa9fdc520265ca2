"""Prints what diffusers 0.42.1's multistep schedulers do on recorded model outputs and noise, into multistep.npz.

LMSDiscrete, PNDM, IPNDM, DEISMultistep, DPMSolverMultistep and UniPCMultistep run with their tables cast to float64
(why: see make_schedulers.py), from the levels that they built themselves, which are recorded too, in float64. PNDM
calls the network at levels between, so it gets `network` in place of recorded outputs.

Needs torch and diffusers (the `reference` extra): python tests/golden/make_multistep.py
"""

import itertools
import json
from pathlib import Path

import diffusers
import numpy as np
import torch

STEPS = (5, 10, 25, 50)
PREDICTIONS = ('epsilon', 'sample', 'v_prediction')
SCHEDULES = ('linear', 'scaled_linear', 'squaredcos_cap_v2')
SPACINGS = ('leading', 'trailing', 'linspace')
SHAPE = (2, 3)


def network(x, t):
    return 0.5 * np.tanh(x) + 0.3 * np.cos(t / 200)


def cover(count, offset=0, predictions=PREDICTIONS, spacings=SPACINGS):
    """`count` settings in which every pair of values of any two factors meets, given enough of them."""
    every = list(itertools.product(predictions, SCHEDULES, spacings, STEPS))
    return [dict(zip(('prediction', 'schedule', 'spacing', 'steps'), every[(offset + 41 * i) % len(every)],
                     strict=True)) for i in range(count)]


def settings():
    out = []
    algorithms = ('dpmsolver', 'dpmsolver++', 'sde-dpmsolver', 'sde-dpmsolver++')
    kinds = [(a, 1, 'midpoint', {}) for a in algorithms]
    kinds += [(a, 2, kind, {}) for a in algorithms for kind in ('midpoint', 'heun')]
    kinds += [(a, 3, 'midpoint', {}) for a in algorithms if a != 'sde-dpmsolver']  # which has no third order there
    kinds += [('dpmsolver++', 3, 'heun', {'lower_order_final': False}),
              ('dpmsolver++', 2, 'heun', {'euler_at_final': True})]
    for n, (algorithm, order, kind, ends) in enumerate(kinds):
        for i, s in enumerate(cover(9, 5 * n)):
            final = 'zero' if algorithm.endswith('++') and i % 2 else 'sigma_min'
            out.append(dict(s, solver='dpm', final=final, options=dict(
                algorithm_type=algorithm, solver_order=order, solver_type=kind, **ends)))
    for order in (1, 2, 3):
        out += [dict(s, solver='deis', options=dict(solver_order=order)) for s in cover(9, 7 * order)]
    for n, (order, kind, x0) in enumerate(itertools.product((1, 2, 3), ('bh1', 'bh2'), (True, False))):
        for i, s in enumerate(cover(6, 11 * n)):
            out.append(dict(s, solver='unipc', final='zero' if x0 and i % 2 else 'sigma_min', options=dict(
                solver_order=order, solver_type=kind, predict_x0=x0)))
    for s in cover(4, 3):
        out.append(dict(s, solver='unipc', final='sigma_min', options=dict(
            solver_order=3, solver_type='bh2', predict_x0=True, lower_order_final=False, disable_corrector=[0, 2])))
    out += [dict(s, solver='lms', options=dict(order=order)) for order in (2, 4) for s in cover(12, order)]
    for skip in (True, False):
        two = ('epsilon', 'v_prediction')
        for i, s in enumerate(cover(14, 0, two, ('leading', 'trailing')) + cover(2, 0, two, ('linspace',))):
            out.append(dict(s, solver='pndm', options=dict(skip_prk_steps=skip, set_alpha_to_one=bool(i % 2))))
    out += [dict(s, solver='ipndm', options={}) for s in cover(6, 1, ('v_prediction',), ('leading', 'trailing'))]
    out += [dict(solver='ipndm', prediction='v_prediction', schedule='own', spacing='own', steps=10, options={})]
    return out


def betas(schedule):
    start, end = (0.00085, 0.012) if schedule == 'scaled_linear' else (1e-4, 0.02)
    return dict(beta_schedule=schedule, beta_start=start, beta_end=end)


def variance_preserving(ratios):
    ratios = np.asarray(ratios, np.float64)
    return 1 / np.sqrt(1 + ratios ** 2), ratios / np.sqrt(1 + ratios ** 2)


def by_ratio(s, x, outputs, noise):
    """The schedulers that keep sigma / alpha: (x of every row, t, alpha, sigma)."""
    common = dict(betas(s['schedule']), prediction_type=s['prediction'], timestep_spacing=s['spacing'])
    names = {'dpm': 'DPMSolverMultistep', 'deis': 'DEISMultistep', 'unipc': 'UniPCMultistep', 'lms': 'LMSDiscrete'}
    options = dict(s['options'])
    order = options.pop('order', None)
    if 'final' in s:
        options['final_sigmas_type'] = s['final']
    scheduler = getattr(diffusers, names[s['solver']] + 'Scheduler')(**common, **options)
    scheduler.set_timesteps(s['steps'])
    scheduler.sigmas = scheduler.sigmas.double()
    scheduler.set_begin_index(0)
    alpha, sigma = variance_preserving(scheduler.sigmas.numpy())
    scale = alpha if s['solver'] == 'lms' else np.ones_like(alpha)  # k-diffusion keeps x / alpha
    x, xs, more = x / scale[0], [], {}
    for i, t in enumerate(scheduler.timesteps):
        if s['solver'] == 'lms':
            scheduler.scale_model_input(x, t)
            more = {'order': order}
        elif s['options'].get('algorithm_type', '').startswith('sde'):
            more = {'variance_noise': noise[i]}
        torch.float32 = torch.float64  # DPMSolverMultistep rounds the sample to torch.float32 on its way in
        x = scheduler.step(outputs[i], t, x, **more).prev_sample
        torch.float32 = torch.tensor(np.float32(0)).dtype
        xs.append(x.numpy() * scale[i + 1])
    return xs, np.append(scheduler.timesteps.numpy(), -1), alpha, sigma


def pndm(s, x, outputs, noise):
    scheduler = diffusers.PNDMScheduler(prediction_type=s['prediction'], timestep_spacing=s['spacing'],
                                        **betas(s['schedule']), **s['options'])
    scheduler.alphas_cumprod = torch.cumprod(1.0 - scheduler.betas.double(), dim=0)
    if not s['options']['set_alpha_to_one']:
        scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(s['steps'])
    xs = []
    for t in scheduler.timesteps:
        x = scheduler.step(torch.tensor(network(x.numpy(), int(t))), int(t), x).prev_sample
        xs.append(x.numpy())
    # What a step of several calls ends with, and where it began.
    xs = xs[1:] if s['options']['skip_prk_steps'] else xs[3:12:4] + xs[12:]
    times = scheduler._timesteps[::-1]
    alpha_bar = np.append(scheduler.alphas_cumprod.numpy()[times], float(scheduler.final_alpha_cumprod))
    return xs, np.append(times, -1), np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)


def ipndm(s, x, outputs, noise):
    scheduler = diffusers.IPNDMScheduler()
    scheduler.set_timesteps(s['steps'])
    if s['schedule'] == 'own':
        sigma = np.sin(np.linspace(1, 0, s['steps'] + 1) * np.pi / 2) ** 2
    else:
        table = diffusers.DDPMScheduler(**betas(s['schedule']))
        at = np.arange(s['steps'], 0, -1) * (1000 // s['steps']) - (1 if s['spacing'] == 'trailing' else 0)
        at = np.minimum(at, 999)
        sigma = np.append(np.sqrt(1 - np.cumprod(1 - table.betas.double().numpy())[at]), 0.0)
    scheduler.betas = torch.tensor(sigma)
    scheduler.alphas = torch.sqrt(1.0 - scheduler.betas ** 2)
    first = int(s['schedule'] == 'own')  # where alpha = 0: see the test
    scheduler.set_begin_index(first)
    xs = [x.numpy()] if first else []
    for i in range(first, s['steps']):
        x = scheduler.step(outputs[i], scheduler.timesteps[i], x).prev_sample
        xs.append(x.numpy())
    return xs, np.arange(s['steps'], -1, -1), scheduler.alphas.numpy(), sigma


def main():
    rng = np.random.default_rng(0)
    x_T = rng.standard_normal(SHAPE).astype(np.float32)
    outputs, noise = rng.standard_normal((2, max(STEPS), *SHAPE)).astype(np.float32)
    doubles = [torch.tensor(a, dtype=torch.float64) for a in (x_T, outputs, noise)]
    torch.set_default_dtype(torch.float64)
    every, grids, rows, xs = settings(), {}, [], []
    for s in every:
        steps, *levels = {'pndm': pndm, 'ipndm': ipndm}.get(s['solver'], by_ratio)(s, *doubles)
        assert len(steps) == s['steps'] == len(levels[0]) - 1, s
        assert np.isfinite(steps[:-1]).all(), s
        if np.isnan(steps[-1]).any():  # B(h) = h is infinite in the last step, and is multiplied by 0
            assert s['options'].get('solver_type') == 'bh1' and s['final'] == 'zero', s
        xs += steps
        s['grid'] = grids.setdefault(np.stack(levels).tobytes(), len(grids))
        if s['grid'] == len(rows):
            rows.append(np.stack(levels).astype(np.float64))
    np.savez_compressed(Path(__file__).with_name('multistep.npz'), settings=json.dumps(every), x_T=x_T,
                        outputs=outputs, noise=noise, xs=np.stack(xs).astype(np.float32),
                        grids=np.concatenate(rows, axis=1), version=diffusers.__version__)
    print(len(every), 'settings,', len(rows), 'grids')


if __name__ == '__main__':
    main()
