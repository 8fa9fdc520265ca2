"""gen-jax inspect: what a training step of a config will cost, before anything runs."""

import math
import os
import subprocess
import sys

from gen_jax.cli.options import fail, parse, parser, prepare_jax, show_help

ABOUT = """Estimate a training run without running it: parameters, state and peak memory per device, FLOPs, bytes,
collectives, compile time and the best possible speed on a named chip. A mesh larger than this machine is compiled for
as many virtual CPU devices, in a process of its own."""
STAND_IN = 'GEN_JAX_STAND_IN'  # set in that process


def run(argv) -> int:
    """Runs the command."""
    p = parser('inspect', ABOUT)
    p.add_argument('--config', metavar='NAME[:ARG]', help='a shipped config or a path to a .py file')
    p.add_argument('--mesh', metavar='AXIS=N,...', help='short for --config.train.mesh.AXIS=N; axes left out are 1')
    p.add_argument('--batch-size', type=int, metavar='N', help='short for --config.data.batch_size=N')
    p.add_argument('--chip', help='also the roofline on A100, H100, H200, v4, v5e, v5p or v6e')
    p.add_argument('--fit', type=float, metavar='GIB', help='also the largest batch within so many GiB per device')
    p.add_argument('--depth', type=int, default=2, help='words per name in the table of parameters (default: 2)')
    p.add_argument('--leaves', action='store_true', help='also where every leaf of the state lives')
    p.add_argument('--input', action='append', metavar='KEY=DTYPE[D,D]', default=[],
                   help='an entry of the batch without its batch axis, image=uint8[32,32,3]; default: from the data')
    p.add_argument('--no-compile', action='store_true', help='trace and lower only: seconds instead of minutes')
    p.add_argument('--json', action='store_true', help='print the same as JSON')
    args, overrides = parse(p, argv)
    if args.help:
        return show_help(p, args.config)
    if args.depth < 1:
        return fail(f'gen-jax inspect: --depth {args.depth}: at least 1')
    if not args.config:
        return fail('gen-jax inspect: needs --config NAME; gen-jax list shows the configs')
    from gen_jax.config import apply_overrides, load_config
    for axis, n in _mesh(args.mesh).items():
        overrides.append(f'--config.train.mesh.{axis}={n}')
    if args.batch_size is not None:
        overrides.append(f'--config.data.batch_size={args.batch_size}')
    config = apply_overrides(load_config(args.config), overrides)
    if not config.system.get('name'):
        raise ValueError(f'config {args.config} names no system: set system.name')
    stand_in = int(os.environ.get(STAND_IN, 0))
    prepare_jax(stand_in or config.train.cpu_devices, config.data.batch_size, config.train.compile_cache)
    import jax
    sizes = [int(n) for n in config.train.mesh.to_dict().values()]
    count = jax.device_count() if -1 in sizes else math.prod(sizes)
    if count > jax.device_count() and not stand_in:
        # XLA would start threads for devices that compute nothing here.
        env = {**os.environ, STAND_IN: str(count), 'JAX_PLATFORMS': 'cpu', 'NPROC': str(os.cpu_count())}
        return subprocess.run([sys.executable, '-m', 'gen_jax.cli.main', 'inspect', *argv], env=env).returncode
    from gen_jax.cli.inspect_batch import abstract_batch
    from gen_jax.engine.inspect_page import page, to_json
    batch = abstract_batch(config, args.input)
    report = _report(config, batch, args, jax.devices()[:count])
    print(to_json(report, args.config) if args.json else page(report, args.config, args.depth, args.leaves))
    return 0


def _report(config, batch, args, devices):
    from gen_jax.build import make_system
    from gen_jax.config import apply_overrides
    from gen_jax.engine.inspect import inspect_run
    plain = make_system(apply_overrides(config, ['--config.train.remat='])) if config.train.remat else None
    return inspect_run(make_system(config), config, batch, plain=plain, devices=devices, chip=args.chip,
                       fit_gib=args.fit, compiled=not args.no_compile, depth=args.depth)


def _mesh(text: str | None) -> dict[str, int]:
    """'data=4,fsdp=8' -> sizes of all axes; {} if none is given."""
    sizes = {}
    for part in (text or '').split(',') if text else ():
        axis, _, n = part.partition('=')
        if axis not in ('data', 'fsdp', 'model') or not n.removeprefix('-').isdigit():
            raise ValueError(f'--mesh {text}: {part!r} is not AXIS=N with an axis of data, fsdp, model')
        sizes[axis] = int(n)
    return {axis: sizes.get(axis, 1) for axis in ('data', 'fsdp', 'model')} if sizes else {}
