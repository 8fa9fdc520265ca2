"""What sampling costs beyond the network.

    python -m experiments.benchmarks.sampling --out docs/benchmarks_sampling.json

Prints, for every solver: seconds per step over seconds of the same number of jitted network calls (median of
interleaved runs), compile seconds and temporary memory. Network: the UNet of DDPM with 8,952,067 parameters at 32x32,
float32. Absolute seconds mean little on a busy machine; the ratios are of neighbours in time. Against torch:
`experiments.benchmarks.against_torch`.
"""

import argparse
import inspect
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

from experiments.benchmarks.against_torch import prepare, seconds


def network_and_weights(batch):
    import jax

    from gen_jax.engine.sharding import batch_sharding, make_mesh, replicated
    unet, params, x, _ = prepare('unet32', batch)
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


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--solvers', default='all', help='names separated by commas')
    p.add_argument('--steps', type=int, default=10)
    p.add_argument('--batch', type=int, default=8)
    p.add_argument('--runs', type=int, default=5)
    p.add_argument('--out', help='JSON file')
    args = p.parse_args(argv)
    from gen_jax.engine.sharding import expose_cpu_devices
    expose_cpu_devices(0, args.batch)
    import jax
    found = {'hardware': f'{jax.devices()[0].device_kind}, {os.cpu_count()} cores, {platform.machine()}',
             'jax': jax.__version__, 'python': platform.python_version(), 'batch': args.batch, 'steps': args.steps,
             'runs': args.runs}
    print(found)
    found['solvers'] = costs(args)
    if args.out:
        Path(args.out).write_text(json.dumps(found, indent=1) + '\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
