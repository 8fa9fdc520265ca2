"""The peer of `experiments.benchmarks.against_torch`: diffusers' networks and loops on the same weights.

Run by that module, never by hand: reads a network and its inputs from an .npz, then times what stdin names, one line
each. Needs torch and diffusers (`make golden` installs them).
"""

import json
import resource
import sys
import time

import diffusers
import numpy as np
import torch

SCHEDULERS = {
    'ddim': lambda: diffusers.DDIMScheduler(clip_sample=False, timestep_spacing='trailing'),
    'dpmpp_2m': lambda: diffusers.DPMSolverMultistepScheduler(
        algorithm_type='dpmsolver++', solver_order=2, timestep_spacing='trailing', final_sigmas_type='zero'),
}
DECAY = 0.9999


def main():
    data = np.load(sys.argv[1])
    torch.set_num_threads(int(sys.argv[2]))
    config = json.loads(str(data['config']))
    text = torch.tensor(data['encoder_hidden_states']) if 'encoder_hidden_states' in data else None
    model = (diffusers.UNet2DModel if text is None else diffusers.UNet2DConditionModel)(**config)
    model.load_state_dict({k[2:]: torch.tensor(v) for k, v in data.items() if k.startswith('w/')})
    if sys.argv[3:] == ['channels_last']:
        model.to(memory_format=torch.channels_last)
    x, steps = torch.tensor(data['x_T']), int(data['steps'])
    labels = torch.tensor(data['class_labels']).long() if 'class_labels' in data else None
    cond = (labels,) if text is None else (text, labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-2)
    average = [p.detach().clone() for p in model.parameters()]
    alphas_cumprod = diffusers.DDPMScheduler().alphas_cumprod

    @torch.inference_mode()
    def forward():
        return model(x, 500, *cond).sample

    @torch.inference_mode()
    def loop(name):
        scheduler = SCHEDULERS[name]()
        scheduler.set_timesteps(steps)
        y = x
        for t in scheduler.timesteps:
            y = scheduler.step(model(y, t, *cond).sample, t, y).prev_sample
        return y

    def train():
        """One step: noise, forward, loss, backward, AdamW and the average of the weights."""
        noise, t = torch.randn_like(x), torch.randint(0, 1000, (x.shape[0],))
        a = alphas_cumprod[t][:, None, None, None]
        loss = torch.nn.functional.mse_loss(model(a.sqrt() * x + (1 - a).sqrt() * noise, t, *cond).sample, noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, list(model.parameters()), 1 - DECAY)

    versions = {'torch': torch.__version__, 'diffusers': diffusers.__version__, 'threads': torch.get_num_threads()}
    print(json.dumps(versions), flush=True)
    for line in sys.stdin:
        name = line.strip()
        model.train(name == 'train')
        began = time.perf_counter()
        result = {'forward': forward, 'train': train}.get(name, lambda name=name: loop(name))()
        seconds = time.perf_counter() - began
        if result is not None:
            np.save(f'{sys.argv[1]}.{name}.npy', result.numpy())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({'seconds': seconds, 'peak_mib': round(peak)}), flush=True)


if __name__ == '__main__':
    main()
