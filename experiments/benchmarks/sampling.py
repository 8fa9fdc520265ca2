"""What sampling costs beyond the network, and against diffusers' torch loops on the same weights, in one run.

    python -m experiments.benchmarks.sampling --out docs/benchmarks_sampling.json
    python -m experiments.benchmarks.sampling --reference .venv-reference/bin/python    # with the torch peer

Prints, for every solver: seconds per step over seconds of the same number of jitted network calls (median of
interleaved runs), compile seconds and temporary memory. Then the 50-step loops of DDIM and DPM-Solver++ 2M against
diffusers', with the largest difference between the two results. Network: the UNet of DDPM with 8,952,067 parameters at
32x32, float32. Absolute seconds mean little on a busy machine; the ratios are of neighbours in time.
"""

import argparse
import inspect
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONFIG = {'sample_size': 32, 'in_channels': 3, 'out_channels': 3, 'block_out_channels': (64, 128, 128, 128),
          'down_block_types': ('DownBlock2D', 'AttnDownBlock2D', 'DownBlock2D', 'DownBlock2D'),
          'up_block_types': ('UpBlock2D', 'UpBlock2D', 'AttnUpBlock2D', 'UpBlock2D'), 'layers_per_block': 2,
          'attention_head_dim': 8}


def seconds(run):
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def network_and_weights(batch):
    import jax
    import jax.numpy as jnp

    from gen_jax.engine.sharding import batch_sharding, make_mesh, replicated
    from gen_jax.models import UNet2D
    unet = UNet2D(**CONFIG)
    params = unet.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), jnp.zeros(1))['params']
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))  # the last layers begin at zero: nothing may be skipped
    params = tree.unflatten([a + 0.02 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)])
    x = jax.random.normal(jax.random.key(2), (batch, 32, 32, 3))
    mesh = make_mesh({'data': -1})  # one virtual device per core, as gen-jax runs
    return unet, jax.device_put(params, replicated(mesh)), jax.device_put(x, batch_sharding(mesh))


def samplers():
    """name -> (maker, chained): correctors run before a step of Euler's."""
    from gen_jax import sampling
    from gen_jax.sampling import SAMPLERS
    return {name: getattr(sampling, name) for name, row in SAMPLERS.items()
            if row.kind == 'solver' and row.calls > 0 and name != 'ncsn'}


def program(name, unet, process, steps):
    """Jitted (params, x) -> the sample, and the number of network calls it makes."""
    import jax
    import numpy as np

    from gen_jax import sampling
    from gen_jax.diffusion import parameterisation
    from gen_jax.rng import Noise, example_keys
    maker = getattr(sampling, name)
    sampler = maker(**({'process': process} if 'process' in inspect.signature(maker).parameters else {}))
    rows = sampling.grid(process, steps, 'trailing')
    counted = []

    def denoiser(params):
        def network(x, label, cond):
            jax.debug.callback(lambda: counted.append(1)) if params is None else None
            return unet.apply({'params': params}, x, label) if params is not None else 0.1 * x
        return parameterisation.eps().denoiser(network, process)

    def run(params, x):
        noise = Noise(example_keys(0, np.arange(x.shape[0])))
        return sampling.sample(noise, denoiser(params), sampler, x, rows).x

    jax.block_until_ready(jax.jit(lambda x: run(None, x))(np.zeros((1, 2, 2, 1), np.float32)))
    jax.effects_barrier()
    return jax.jit(run), len(counted)


def costs(args):
    """Seconds of a step over seconds of its network calls, per solver."""
    import jax
    import jax.numpy as jnp

    from gen_jax import diffusion
    unet, params, x = network_and_weights(args.batch)
    process = diffusion.discrete_ddpm()
    call = jax.jit(lambda params, x, t: unet.apply({'params': params}, x, t))
    jax.block_until_ready(call(params, x, jnp.full(args.batch, 500.0)))
    names = [n for n in samplers() if args.solvers == 'all' or n in args.solvers.split(',')]
    print(f'{"solver":24}{"calls":>6}{"ratio":>8}{"compile s":>11}{"temp MiB":>10}')
    found = {}
    for name in names:
        run, calls = program(name, unet, process, args.steps)
        began = time.perf_counter()
        compiled = run.lower(params, x).compile()
        compile_seconds = time.perf_counter() - began
        memory = compiled.memory_analysis()

        def network(calls=calls):
            y = x
            for k in range(calls):
                y = call(params, x, jnp.full(args.batch, float(k)))
            jax.block_until_ready(y)

        def loop(compiled=compiled):
            jax.block_until_ready(compiled(params, x))

        loop(), network()
        pairs = [(seconds(loop), seconds(network)) for _ in range(args.runs)]
        ratio = statistics.median(a / b for a, b in pairs)
        found[name] = {'calls': calls, 'ratio': round(ratio, 3), 'compile_seconds': round(compile_seconds, 2),
                       'seconds': round(statistics.median(a for a, _ in pairs), 3),
                       'temp_mib': round(getattr(memory, 'temp_size_in_bytes', 0) / 2 ** 20, 1)}
        print(f'{name:24}{calls:6}{ratio:8.3f}{compile_seconds:11.1f}{found[name]["temp_mib"]:10}', flush=True)
    return found


def against_torch(args):
    """The same loops, weights and start in diffusers, interleaved."""
    import jax
    import numpy as np

    from gen_jax import diffusion, sampling
    from gen_jax.diffusion import parameterisation
    from gen_jax.interop.torch_layout import to_torch
    from gen_jax.rng import Noise, example_keys
    unet, params, x = network_and_weights(args.batch)
    process = diffusion.discrete_ddpm()
    steps = 50
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'weights.npz'
        weights = {f'w/{k}': np.asarray(v) for k, v in to_torch(params).items()}
        np.savez(path, config=json.dumps(CONFIG), x_T=np.asarray(x).transpose(0, 3, 1, 2), steps=steps, **weights)
        script = Path(__file__).with_name('torch_sampling.py')
        peer = subprocess.Popen([args.reference, script, path, str(args.threads)], stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE, text=True)

        def theirs(name):
            peer.stdin.write(name + '\n')
            peer.stdin.flush()
            return json.loads(peer.stdout.readline())['seconds']

        found = {'versions': json.loads(peer.stdout.readline())}
        denoise, noise = parameterisation.eps(), Noise(example_keys(0, np.arange(args.batch)))
        for name in ('ddim', 'dpmpp_2m'):
            rows = sampling.grid(process, steps, 'trailing')

            def run(params, x, rows, name=name):
                network = lambda x, label, cond: unet.apply({'params': params}, x, label)  # noqa: E731
                return sampling.sample(noise, denoise.denoiser(network, process), getattr(sampling, name)(), x, rows).x

            jitted = jax.jit(run)
            ours_x = np.asarray(jax.block_until_ready(jitted(params, x, rows)))
            theirs(name)
            pairs = [(seconds(lambda: jax.block_until_ready(jitted(params, x, rows))), theirs(name))  # noqa: B023
                     for _ in range(args.runs)]
            theirs_x = np.load(f'{path}.{name}.npy').transpose(0, 2, 3, 1)
            found[name] = {'jax_over_torch': round(statistics.median(a / b for a, b in pairs), 3),
                           'jax_seconds': round(statistics.median(a for a, _ in pairs), 3),
                           'torch_seconds': round(statistics.median(b for _, b in pairs), 3),
                           'largest_difference': float(np.abs(ours_x - theirs_x).max() / np.abs(theirs_x).max())}
            print(name, found[name], flush=True)
        peer.stdin.close()
        peer.wait()
    return found


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--solvers', default='all', help='names separated by commas')
    p.add_argument('--steps', type=int, default=10)
    p.add_argument('--batch', type=int, default=8)
    p.add_argument('--runs', type=int, default=5)
    p.add_argument('--threads', type=int, default=os.cpu_count())
    p.add_argument('--reference', help='Python of an environment with torch and diffusers')
    p.add_argument('--only-torch', action='store_true')
    p.add_argument('--out', help='JSON file')
    args = p.parse_args(argv)
    from gen_jax.engine.sharding import expose_cpu_devices
    expose_cpu_devices(0, args.batch)
    import jax
    found = {'hardware': f'{jax.devices()[0].device_kind}, {os.cpu_count()} cores, {platform.machine()}',
             'jax': jax.__version__, 'python': platform.python_version(), 'batch': args.batch, 'steps': args.steps,
             'runs': args.runs}
    print(found)
    if not args.only_torch:
        found['solvers'] = costs(args)
    if args.reference:
        found['torch'] = against_torch(args)
    if args.out:
        Path(args.out).write_text(json.dumps(found, indent=1) + '\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
