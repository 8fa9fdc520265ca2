"""gen-jax data: what is in a data source, and what is wrong with it."""

import json
import os
import sys
import time

from gen_jax.cli.options import fail, parse, parser, show_help

TEXT = """Check a data source before training on it: every item is read once, and what a training
would meet is said.

  gen-jax data check /data/flowers
  gen-jax data check digits --split test
  gen-jax data check tfds:cifar10 --config.data.options="{'data_dir': '/data/tfds'}"
  gen-jax data check --config my_config.py --json

Listed: each bad file with its reason, problems of labels and metadata, kinds and sizes of
the pictures, classes, captions, equal pictures, and what may need a change of the config.

exit codes: 0 clean; 1 bad items or problems; 2 bad input."""


def run(argv) -> int:
    """Runs the command."""
    p = parser('data', TEXT)
    p.add_argument('action', nargs='?', choices=('check',), help='what to do')
    p.add_argument('source', nargs='?', metavar='PATH_OR_SOURCE', help='a folder, digits, shapes, folder:PATH or '
                   'tfds:NAME; by default data.source of --config')
    p.add_argument('--split', metavar='S', help='which split; by default data.train_split')
    p.add_argument('--config', metavar='NAME[:ARG]', help='a config whose data settings hold')
    p.add_argument('--threads', type=int, default=os.cpu_count() or 1, metavar='N', help='threads that read')
    p.add_argument('--json', action='store_true', help='print one JSON object')
    args, overrides = parse(p, argv)
    if args.help:
        return show_help(p, args.config)
    if args.action is None or not (args.source or args.config):
        return fail('gen-jax data: needs an action and a source, for instance gen-jax data check PATH')
    from gen_jax import config as config_lib
    from gen_jax.data import check
    settings = config_lib.load_config(args.config) if args.config else config_lib.base_config()
    data = json.loads(config_lib.to_json(config_lib.apply_overrides(settings, overrides)))['data']
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in data['options'].items()}
    report = check.check(args.source or data['source'], args.split or data['train_split'], options, args.threads,
                         resized=bool(data['transforms']), progress=Progress())
    if args.json:
        print(json.dumps(report, indent=1))
    else:
        print(check.summary(report).encode(sys.stdout.encoding or 'utf-8', 'backslashreplace').decode(
            sys.stdout.encoding or 'utf-8'))
    return 0 if check.is_clean(report) else 1


class Progress:
    """A line on stderr: rewritten twice a second on a terminal, a new one every half minute elsewhere."""

    def __init__(self):
        self.live = sys.stderr.isatty()
        self.next = time.monotonic() + (0.5 if self.live else 30)

    def __call__(self, done: int, bad: int, seconds: float) -> None:
        if time.monotonic() < self.next:
            return
        self.next = time.monotonic() + (0.5 if self.live else 30)
        line = f'{done:,} read, {bad:,} bad, {done / seconds:,.0f} a second'
        print(f'\r{line:60}\r' if self.live else line, end='' if self.live else '\n', file=sys.stderr, flush=True)
