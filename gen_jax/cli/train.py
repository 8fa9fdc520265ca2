"""gen-jax train: trains a config, or resumes it where it stopped."""

from gen_jax.cli.options import fail, parse, parser, prepare_jax, show_help

EXITS = """exit codes: 0 finished; 2 bad input; 3 a loss that is not finite;
143 / 130 saved and stopped by SIGTERM / SIGINT; 75 saved at
train.max_seconds: run the same command again to go on"""


def run(argv) -> int:
    """Runs the command."""
    p = parser('train', 'Train a config, or resume it: run the same command again after any interruption.\n\n' + EXITS)
    p.add_argument('--config', metavar='NAME[:ARG]', help='a shipped config or a path to a .py file')
    p.add_argument('--workdir', metavar='DIR', help='where checkpoints, logs and pictures go')
    p.add_argument('--parallel', choices=('jit', 'pmap'), help='short for --config.train.parallel')
    args, overrides = parse(p, argv)
    if args.help:
        return show_help(p, args.config)
    if not args.config or not args.workdir:
        return fail('gen-jax train: needs --config NAME and --workdir DIR; gen-jax list shows the configs')
    from gen_jax.config import apply_overrides, load_config
    if args.parallel:
        overrides.append(f'--config.train.parallel={args.parallel}')
    config = apply_overrides(load_config(args.config), overrides)
    prepare_jax(config.train.cpu_devices, config.data.batch_size, config.train.compile_cache)
    from gen_jax.build import build
    from gen_jax.engine.train import check_workdir, train
    check_workdir(args.workdir, config)
    return train(build(config), args.workdir).exit_code
