"""gen-jax evaluate: the metrics of a run's config, as JSON."""

import json
import time
from pathlib import Path

from gen_jax.cli.options import fail, parse, parser, prepare_jax, show_help


def run(argv) -> int:
    """Runs the command."""
    p = parser('evaluate', 'Score a run: every entry of config.evaluate, printed and written to OUT (JSON).')
    p.add_argument('--workdir', metavar='DIR', help='a run made by gen-jax train')
    p.add_argument('--only', help='names of config.evaluate, separated by commas (default: all)')
    p.add_argument('--out', metavar='PATH', help='default: WORKDIR/evaluation.json')
    p.add_argument('--step', type=int, help='checkpoint step (default: the newest)')
    p.add_argument('--ema', help='name of the average to use; "" for the raw parameters')
    args, overrides = parse(p, argv)
    if args.help:
        return show_help(p)
    if not args.workdir:
        return fail('gen-jax evaluate: needs --workdir DIR, a run made by gen-jax train')
    prepare_jax()
    from gen_jax.build import load
    loaded = load(args.workdir, step=args.step, ema=args.ema, overrides=overrides)
    names = args.only.split(',') if args.only else list(loaded.config.evaluate)
    path = Path(args.out) if args.out else Path(args.workdir) / 'evaluation.json'
    score(loaded, names, path)
    print(f'step {loaded.step}, written to {path}')
    return 0


def score(loaded, names, path: Path) -> None:
    """Evaluates those entries of the config, prints them, and writes PATH (JSON) and PATH's stem-NAME.png."""
    from gen_jax.engine.files import write_text
    results = {}
    for name in names:
        began = time.perf_counter()
        results[name] = loaded.evaluate(name, path.with_name(f'{path.stem}-{name}.png'))
        print(f'{name} ({time.perf_counter() - began:.1f} s)')
        for key, value in results[name].items():
            print(f'  {key:36}{value:.5g}' if isinstance(value, (int, float)) else f'  {key:36}{value}')
    write_text(path, json.dumps({'step': loaded.step, **results}, indent=1, default=float))
