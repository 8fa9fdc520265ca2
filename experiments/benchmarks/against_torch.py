"""gen_jax against diffusers and torch on the same machine, weights and batch: interleaved medians.

    python -m experiments.benchmarks.against_torch --reference .venv-reference/bin/python

Jobs for each of four networks: the forward pass, a training step (noise, forward, backward, AdamW, EMA; ours is the
trainer's own update, on one virtual device per core as `gen-jax train` runs) and the loops of two samplers. A ratio
below 1 means that JAX is faster. Beside it: seconds to compile, peak memory of both processes, and the largest
difference of the two results where they are the same numbers (forward and loop). Each network runs in processes of its
own.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NETWORKS = {
    'unet32': {'batch': 16, 'config': {
        'sample_size': 32, 'in_channels': 3, 'out_channels': 3, 'block_out_channels': (64, 128, 128, 128),
        'down_block_types': ('DownBlock2D', 'AttnDownBlock2D', 'DownBlock2D', 'DownBlock2D'),
        'up_block_types': ('UpBlock2D', 'UpBlock2D', 'AttnUpBlock2D', 'UpBlock2D'), 'layers_per_block': 2,
        'attention_head_dim': 8}},
    'digits': {'batch': 128, 'config': {
        'sample_size': 8, 'in_channels': 1, 'out_channels': 1, 'block_out_channels': (64, 64),
        'down_block_types': ('DownBlock2D', 'AttnDownBlock2D'), 'up_block_types': ('AttnUpBlock2D', 'UpBlock2D'),
        'layers_per_block': 1, 'attention_head_dim': None, 'norm_num_groups': 8, 'num_class_embeds': 11}},
    'text_tiny': {'batch': 2, 'jobs': ('forward', 'ddim', 'dpmpp_2m'), 'config': {
        'sample_size': 32, 'block_out_channels': (32, 64), 'down_block_types': ('DownBlock2D', 'CrossAttnDownBlock2D'),
        'up_block_types': ('CrossAttnUpBlock2D', 'UpBlock2D'), 'cross_attention_dim': 32}},
    'text100': {'batch': 2, 'jobs': ('forward', 'ddim', 'dpmpp_2m'), 'steps': 10, 'config': {
        'sample_size': 32, 'block_out_channels': (160, 320, 448), 'down_block_types': ('CrossAttnDownBlock2D',) * 3,
        'up_block_types': ('CrossAttnUpBlock2D',) * 3, 'cross_attention_dim': 768}},
}
"""8,952,067 parameters at 32x32; the UNet of configs/digits.py at 8x8; told a text of 77 vectors at 32x32x4, the UNet
of the tiny Stable Diffusion pipelines in the tests of diffusers, and one of 99,257,060 parameters. Their batch of 2 is
what guidance makes of one image."""
JOBS = ('forward', 'ddim', 'dpmpp_2m', 'train')  # the peer's training changes its weights: last
SHORT = ('forward', 'train')
STEPS = 50  # of a loop, unless a network says otherwise
PAUSE = 0.2  # seconds: idle threads of the one before may spin for a while


def seconds(run):
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def prepare(name, batch):
    """(network, parameters, start [B, H, W, C], its conditions by keyword); no parameter is zero."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from gen_jax.models import UNet2D, UNet2DCondition
    config = NETWORKS[name]['config']
    unet = (UNet2DCondition if 'cross_attention_dim' in config else UNet2D)(**config)
    shape, cond = (config['sample_size'],) * 2 + (unet.in_channels,), {}
    if 'num_class_embeds' in config:
        cond['class_labels'] = np.arange(batch, dtype=np.int32) % 10
    if 'cross_attention_dim' in config:
        text = (batch, 77, config['cross_attention_dim'])
        cond['encoder_hidden_states'] = np.asarray(jax.random.normal(jax.random.key(3), text))
    given = {k: v[:1] for k, v in cond.items()}
    shapes = jax.eval_shape(lambda: unet.init(jax.random.key(0), jnp.zeros((1, *shape)), jnp.zeros(1), **given))
    random = np.random.default_rng(1)

    def drawn(path, leaf):
        x = random.standard_normal(leaf.shape, np.float32) / np.float32(np.sqrt(np.prod(leaf.shape[:-1]) or 1))
        return jnp.asarray(x if leaf.ndim > 1 else 0.1 * x + (path[-1].key == 'scale'))

    params = jax.tree_util.tree_map_with_path(drawn, shapes['params'])
    return unet, params, jax.random.normal(jax.random.key(2), (batch, *shape)), cond


def jobs(wanted, unet, params, x, cond, steps):
    """{wanted job: (compile seconds, function that runs it and waits)} on one virtual device per core."""
    import functools

    import jax
    import numpy as np

    from gen_jax import diffusion, sampling, systems
    from gen_jax.config import base_config
    from gen_jax.diffusion import parameterisation
    from gen_jax.engine.optim import make_optimizer
    from gen_jax.engine.parallel import make_runner
    from gen_jax.engine.sharding import batch_sharding, make_mesh, replicated
    from gen_jax.engine.update import init_state
    from gen_jax.rng import Noise, example_keys
    mesh = make_mesh({'data': -1})
    placed = jax.device_put(params, replicated(mesh))
    batch = x.shape[0]
    x_T = jax.device_put(x, batch_sharding(mesh))
    given = {k: jax.device_put(v, batch_sharding(mesh)) for k, v in cond.items()}
    process = diffusion.discrete_ddpm()
    eps, noise = parameterisation.eps(), Noise(example_keys(0, np.arange(batch)))
    times = jax.device_put(np.full(batch, 500.0, np.float32), batch_sharding(mesh))
    rows = sampling.grid(process, steps, 'trailing')

    def loop(params, x, given, solver):
        network = lambda x, label, cond: unet.apply({'params': params}, x, label, **given)  # noqa: E731
        return sampling.sample(noise, eps.denoiser(network, process), getattr(sampling, solver)(), x, rows).x

    programs = {'forward': (lambda params, x, given: unet.apply({'params': params}, x, times, **given))}
    programs |= {solver: functools.partial(loop, solver=solver) for solver in ('ddim', 'dpmpp_2m')}
    found = {}
    for job, program in programs.items():
        if job not in wanted:
            continue
        began = time.perf_counter()
        compiled = jax.jit(program).lower(placed, x_T, given).compile()
        found[job] = time.perf_counter() - began, lambda c=compiled: jax.block_until_ready(c(placed, x_T, given))

    if 'train' not in wanted:
        return found
    conditional = 'class_labels' in cond
    system = systems.diffusion(unet, process, eps, image_shape=tuple(x.shape[1:]),
                               **({'cond': {'class_labels': 'label'}} if conditional else {}))
    system = system._replace(optimizers={k: make_optimizer('adamw', lr=1e-4, weight_decay=1e-2, steps=1000)
                                         for k in {o.optimizer for o in system.objectives.values()}})
    config = base_config()
    config.data.batch_size = batch
    ema = {'slow': {'decay': 0.9999}}
    runner = make_runner(system, config, ema)
    host = {'image': np.asarray(x), **({'label': cond['class_labels']} if conditional else {})}
    state = runner.place(init_state(system, 0, host, ema))
    data = runner.put(host)
    began = time.perf_counter()
    state, metrics = runner.update(state, data)
    jax.block_until_ready(metrics)
    holder = [state]

    def train():
        holder[0], metrics = runner.update(holder[0], data)
        jax.block_until_ready((holder[0], metrics))

    found['train'] = time.perf_counter() - began, train
    return found


def compare(name, args):
    """All jobs of one network, interleaved with the peer's."""
    import jax
    import numpy as np

    from gen_jax.interop.torch_layout import to_torch
    batch = args.batch or NETWORKS[name]['batch']
    unet, params, x, cond = prepare(name, batch)
    steps = NETWORKS[name].get('steps', STEPS)
    wanted = [job for job in args.jobs.split(',') if job in NETWORKS[name].get('jobs', JOBS)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'weights.npz'
        np.savez(path, config=json.dumps(NETWORKS[name]['config']), x_T=np.asarray(x).transpose(0, 3, 1, 2),
                 steps=steps, **cond,
                 **{f'w/{k}': np.asarray(v) for k, v in to_torch(params).items()})
        script = Path(__file__).with_name('torch_peer.py')
        peer = subprocess.Popen([args.reference, script, path, str(args.threads), *args.peer], stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE, text=True)

        def theirs(job):
            peer.stdin.write(job + '\n')
            peer.stdin.flush()
            return json.loads(peer.stdout.readline())

        found = {'parameters': sum(v.size for v in jax.tree.leaves(params)), 'batch': batch, 'steps': steps,
                 'peer': json.loads(peer.stdout.readline())}
        for job, (compile_seconds, ours) in jobs(wanted, unet, params, x, cond, steps).items():
            result, _ = ours(), theirs(job)
            pairs = []
            for _ in range(args.runs if job in SHORT else max(args.runs // 4, 3)):
                time.sleep(PAUSE)
                mine = seconds(ours)
                time.sleep(PAUSE)
                pairs.append((mine, theirs(job)))
            found[job] = {'jax_over_torch': round(statistics.median(a / b['seconds'] for a, b in pairs), 3),
                          'jax_seconds': round(statistics.median(a for a, _ in pairs), 4),
                          'torch_seconds': round(statistics.median(b['seconds'] for _, b in pairs), 4),
                          'compile_seconds': round(compile_seconds, 1), 'torch_peak_mib': pairs[-1][1]['peak_mib']}
            if job != 'train':
                reference = np.load(f'{path}.{job}.npy').transpose(0, 2, 3, 1)
                found[job]['largest_difference'] = float(np.abs(result - reference).max() / np.abs(reference).max())
            print(name, job, found[job], flush=True)
        found['jax_peak_mib'] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        peer.stdin.close()
        peer.wait()
    return found


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--reference', required=True, help='Python of an environment with torch and diffusers')
    p.add_argument('--network', choices=tuple(NETWORKS), help='default: each, in a process of its own')
    p.add_argument('--jobs', default=','.join(JOBS), help='names separated by commas')
    p.add_argument('--batch', type=int, help="default: the network's own")
    p.add_argument('--runs', type=int, default=20, help='pairs of a short job; a loop has a quarter of them')
    p.add_argument('--threads', type=int, default=os.cpu_count())
    p.add_argument('--peer', nargs='*', default=[], choices=('channels_last',), help='variants of the peer')
    p.add_argument('--out', help='JSON file')
    args = p.parse_args(argv)
    if args.network is None:
        code = 0
        for name in NETWORKS:
            out = ['--out', f'{Path(args.out).with_suffix("")}-{name}.json'] if args.out else []
            code |= subprocess.run([sys.executable, '-m', 'experiments.benchmarks.against_torch',
                                    *(sys.argv[1:] if argv is None else argv), '--network', name, *out]).returncode
        return code
    from gen_jax.engine.sharding import expose_cpu_devices
    expose_cpu_devices(0, args.batch or NETWORKS[args.network]['batch'])
    import jax
    found = {'hardware': f'{jax.devices()[0].device_kind} x{jax.device_count()}, {os.cpu_count()} cores, '
             f'{platform.machine()}', 'jax': jax.__version__, 'python': platform.python_version(), 'runs': args.runs,
             args.network: compare(args.network, args)}
    print(json.dumps(found))
    if args.out:
        Path(args.out).write_text(json.dumps(found, indent=1) + '\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
