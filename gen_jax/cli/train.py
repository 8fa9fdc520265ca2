"""gen-jax train: trains a config, or resumes it where it stopped."""

from gen_jax.cli.options import fail, parse, parser, prepare_jax, show_help

EXITS = """exit codes: 0 finished; 2 bad input; 3 a loss that is not finite;
143 / 130 saved and stopped by SIGTERM / SIGINT; 75 saved at
train.max_seconds; 70 a process hung or died (--distributed, or
train.hang_seconds): run the same command again to go on"""


def run(argv) -> int:
    """Runs the command."""
    p = parser('train', 'Train a config, or resume it: run the same command again after any interruption.\n\n' + EXITS)
    p.add_argument('--config', metavar='NAME[:ARG]', help='a shipped config or a path to a .py file')
    p.add_argument('--workdir', metavar='DIR', help='where checkpoints, logs and pictures go')
    p.add_argument('--parallel', choices=('jit', 'pmap'), help='short for --config.train.parallel')
    p.add_argument('--distributed', action='store_true', help='one of several processes; see docs/pods.md')
    p.add_argument('--coordinator', metavar='HOST:PORT', help='with --distributed: where process 0 is')
    p.add_argument('--process-id', type=int, metavar='K', help='with --coordinator: 0 to N - 1')
    p.add_argument('--process-count', type=int, metavar='N', help='with --coordinator')
    p.add_argument('--join-seconds', type=float, default=300, metavar='S', help='in which all must have come')
    args, overrides = parse(p, argv)
    if args.help:
        return show_help(p, args.config)
    if not args.config or not args.workdir:
        return fail('gen-jax train: needs --config NAME and --workdir DIR; gen-jax list shows the configs')
    if not args.distributed and (args.coordinator or args.process_id is not None or args.process_count is not None):
        return fail('gen-jax train: --coordinator, --process-id and --process-count need --distributed')
    from gen_jax.config import apply_overrides, load_config
    if args.parallel:
        overrides.append(f'--config.train.parallel={args.parallel}')
    config = apply_overrides(load_config(args.config), overrides)
    if not args.distributed:
        return _train(config, args.workdir)
    from gen_jax.engine import distributed
    address = distributed.find_address(args.coordinator, args.process_id, args.process_count)
    with distributed.join(address, args.join_seconds) as job:
        return _train(config, args.workdir, job)


def _train(config, workdir, job=None) -> int:
    prepare_jax(config.train.cpu_devices, config.data.batch_size, config.train.compile_cache, job)
    from gen_jax.build import build
    from gen_jax.engine.train import check_workdir, train
    check_workdir(workdir, config)
    return train(build(config), workdir, dog=job and job.dog).exit_code
