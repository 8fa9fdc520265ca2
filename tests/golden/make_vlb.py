"""Prints the variational bounds and hybrid losses of openai/guided-diffusion on recorded outputs, into vlb.npz.

The published program rounds its tables to float32 and takes tanh for the normal distribution function, which clamps
and moves the decoder's term. It is run as published (`total32`), and with float64 tables and the exact function
(everything else), by replacing those two functions while it runs.

Needs torch and a checkout: python tests/golden/make_vlb.py PATH_TO_GUIDED_DIFFUSION
"""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import torch

STEPS, SHAPE = 20, (3, 2, 4, 4)  # B, C, H, W
VARIANCES = {'fixed_small': 'FIXED_SMALL', 'fixed_large': 'FIXED_LARGE', 'learned': 'LEARNED_RANGE'}
MEANS = {'eps': 'EPSILON', 'x0': 'START_X'}


def tables():
    u = np.arange(STEPS + 1) / STEPS
    alpha_bar = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    return {'linear': np.linspace(0.1, 20.0, STEPS) / STEPS * 0.9,
            'cosine': np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)}


def main(checkout: str):
    sys.path.insert(0, checkout)
    from guided_diffusion import gaussian_diffusion as reference
    from guided_diffusion import losses

    published = reference._extract_into_tensor, losses.approx_standard_normal_cdf

    def exact_table(table, t, shape):
        rows = torch.from_numpy(np.asarray(table, np.float64))[t]
        return rows.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)

    rng = np.random.default_rng(0)
    x0 = np.round(np.clip(0.6 * rng.standard_normal(SHAPE), -1, 1) * 127.5 + 127.5) / 127.5 - 1
    x0[0, 0, 0] = [-1, 1, -1, 1]
    noise = rng.standard_normal((STEPS, *SHAPE)).astype(np.float32)  # by t
    raw = rng.standard_normal((STEPS, SHAPE[0], 2 * SHAPE[1], *SHAPE[2:])).astype(np.float32)
    raw[:, :, SHAPE[1]:] *= 0.7

    def output(mean, learned, t):
        """The first half stays near the truth: far from it the published decoder clamps."""
        half = (noise[t] if mean == 'eps' else x0) + (0.3 if mean == 'eps' else 0.02) * raw[t, :, :SHAPE[1]]
        return np.concatenate([half, raw[t, :, SHAPE[1]:]], axis=1) if learned else half

    settings, results = [], {'total': [], 'prior': [], 'terms': [], 'total32': [], 'hybrid': []}
    for schedule, mean, variance, clip in itertools.product(tables(), MEANS, VARIANCES, (False, True)):
        settings.append(dict(schedule=schedule, mean=mean, variance=variance, clip=clip))
        for dtype in (torch.float64, torch.float32):
            exact = dtype is torch.float64
            reference._extract_into_tensor = exact_table if exact else published[0]
            losses.approx_standard_normal_cdf = torch.special.ndtr if exact else published[1]
            diffusion = reference.GaussianDiffusion(
                betas=tables()[schedule], model_mean_type=getattr(reference.ModelMeanType, MEANS[mean]),
                model_var_type=getattr(reference.ModelVarType, VARIANCES[variance]),
                loss_type=reference.LossType.RESCALED_MSE)
            draws = iter(noise[::-1])  # the published loop walks from the last t to the first
            torch.randn_like = lambda x, draws=draws: torch.tensor(next(draws), dtype=x.dtype)
            model = lambda x, t, m=mean, v=variance: torch.tensor(  # noqa: E731
                output(m, v == 'learned', int(t[0])), dtype=x.dtype)
            start = torch.tensor(x0, dtype=dtype)
            out = diffusion.calc_bpd_loop(model, start, clip_denoised=clip)
            if not exact:
                results['total32'].append(out['total_bpd'].numpy())
                continue
            results['total'].append(out['total_bpd'].numpy())
            results['prior'].append(out['prior_bpd'].numpy())
            results['terms'].append(out['vb'].numpy().T)  # [T, B], the last t first
            results['hybrid'].append(np.stack([
                diffusion.training_losses(model, start, torch.full((SHAPE[0],), t), noise=torch.tensor(
                    noise[t], dtype=dtype))['loss'].numpy() for t in range(STEPS)]))

    nhwc = lambda a: np.moveaxis(a, -3, -1)  # noqa: E731
    np.savez_compressed(
        Path(__file__).with_name('vlb.npz'), settings=json.dumps(settings), x0=nhwc(x0).astype(np.float32),
        noise=nhwc(noise), raw=nhwc(raw), **{f'betas/{k}': v for k, v in tables().items()},
        **{k: np.stack(v).astype(np.float64) for k, v in results.items()})


if __name__ == '__main__':
    main(sys.argv[1])
