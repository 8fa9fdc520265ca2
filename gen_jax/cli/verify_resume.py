"""gen-jax verify-resume: is a killed and resumed run the run that was left alone?"""

import logging
import sys

from gen_jax.cli.options import fail, parse, parser, show_help


def run(argv) -> int:
    """Runs the command."""
    p = parser('verify-resume', 'Train a config straight, and again with a kill -9 in the middle; compare every bit of '
               'the\ncheckpoints, the data position and the logs. Exit code 0: equal; 1: the first difference is '
               'named.')
    p.add_argument('--config', metavar='NAME[:ARG]', help='a shipped config or a path to a .py file')
    p.add_argument('--steps', type=int, default=100, help='updates of each run (default %(default)s)')
    p.add_argument('--workdir', metavar='DIR', help='keep the two runs there (default: a temporary folder)')
    p.add_argument('--devices-after', type=int, metavar='N', help='resume on another number of virtual CPU devices: '
                   'the largest difference is reported')
    args, overrides = parse(p, argv)
    if args.help:
        return show_help(p, args.config)
    if not args.config:
        return fail('gen-jax verify-resume: needs --config NAME; gen-jax list shows the configs')
    from gen_jax.config import apply_overrides, load_config
    apply_overrides(load_config(args.config), overrides)  # what is misspelt is said before anything runs
    logging.getLogger('absl').setLevel(logging.ERROR)
    from gen_jax.engine.verify_resume import verify
    return verify(args.config, overrides, (sys.executable, '-m', 'gen_jax.cli.main', 'train'), steps=args.steps,
                  workdir=args.workdir, devices_after=args.devices_after, say=lambda text: print(text, flush=True))
