"""The peer of `experiments.benchmarks.sampling`: diffusers' own loops on the same weights, in its own environment.

Run by that module, never by hand: reads a network and a start from an .npz, then times what stdin names, one line each.
Needs torch and diffusers (the `reference` extra).
"""

import json
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


def main():
    data = np.load(sys.argv[1])
    torch.set_num_threads(int(sys.argv[2]))
    model = diffusers.UNet2DModel(**json.loads(str(data['config'])))
    model.load_state_dict({k[2:]: torch.tensor(v) for k, v in data.items() if k.startswith('w/')})
    model.eval()
    x_T, steps = torch.tensor(data['x_T']), int(data['steps'])

    @torch.inference_mode()
    def network():
        model(x_T, 500)

    @torch.inference_mode()
    def loop(name):
        scheduler = SCHEDULERS[name]()
        scheduler.set_timesteps(steps)
        x = x_T
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t).sample, t, x).prev_sample
        return x

    versions = {'torch': torch.__version__, 'diffusers': diffusers.__version__, 'threads': torch.get_num_threads()}
    print(json.dumps(versions), flush=True)
    for line in sys.stdin:
        name = line.strip()
        began = time.perf_counter()
        if name == 'network':
            network()
            result = None
        else:
            result = loop(name)
        seconds = time.perf_counter() - began
        if result is not None:
            np.save(f'{sys.argv[1]}.{name}.npy', result.numpy())
        print(json.dumps({'seconds': seconds}), flush=True)


if __name__ == '__main__':
    main()
