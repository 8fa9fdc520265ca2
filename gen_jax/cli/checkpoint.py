"""gen-jax checkpoint: lists, verifies, compares and prunes the checkpoints of runs."""

import time

from gen_jax.cli.options import fail, parse, parser, prepare_jax

TEXT = """What a run saved. PATH is a run folder, its checkpoints folder, or one step in that.

  ls PATH...      steps, bytes, time, metrics, and whether names and sizes agree
                  with the manifest (nothing is hashed)
  verify PATH...  hashes every file; exit code 1 if any is not what was written
  diff A B        settings, leaves by fingerprint, largest difference; exit code 0
                  if every leaf is equal, 1 if not
  prune PATH...   --keep-last N [--keep-every K] [--dry-run]: deletes the other
                  steps, never the newest that verifies; not while the run trains

exit codes: 0; 1 as said; 2 bad input"""


def run(argv) -> int:
    """Runs the command."""
    p = parser('checkpoint', TEXT)
    p.add_argument('action', nargs='?', choices=('ls', 'verify', 'diff', 'prune'))
    p.add_argument('paths', metavar='PATH', nargs='*')
    p.add_argument('--keep-last', type=int, metavar='N', help='prune: newest steps to keep')
    p.add_argument('--keep-every', type=int, metavar='K', help='prune: multiples of this stay too')
    p.add_argument('--dry-run', action='store_true', help='prune: only say what would go')
    args, overrides = parse(p, argv)
    if args.help:
        print(p.format_help())
        return 0
    wrong = len(args.paths) != 2 if args.action == 'diff' else not args.paths
    if not args.action or wrong or overrides:
        return fail('gen-jax checkpoint: needs ls, verify or prune with PATH..., or diff with two paths; '
                    'for instance gen-jax checkpoint ls runs/a')
    if args.action == 'prune' and args.keep_last is None:
        return fail('gen-jax checkpoint prune: needs --keep-last N')
    if args.action == 'diff':
        prepare_jax()
        from gen_jax.engine.difference import compare, lines
        found = compare(*args.paths)
        print('\n'.join(lines(found)))
        return 1 if found.leaves else 0
    return max({'ls': ls, 'verify': verify, 'prune': prune}[args.action](path, args) for path in args.paths)


def ls(path, args) -> int:
    """Prints one line for each step."""
    from gen_jax.engine.steps import describe, find_steps
    for folder in find_steps(path):
        step = describe(folder)
        saved = time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(step.saved)) if step.saved else '?'
        metrics = '  '.join(f'{k} {v:.4g}' for k, v in list(step.metrics.items())[:4])
        print(f'{folder}  {step.bytes:>13,} bytes  {saved:19}  {step.state}  {metrics}'.rstrip())
    return 0


def verify(path, args) -> int:
    """Hashes every step and prints the verdicts."""
    from gen_jax.engine import integrity
    from gen_jax.engine.steps import find_steps
    bad = 0
    for folder in find_steps(path):
        try:
            print(f'{folder}:', 'verified' if integrity.verify(folder) else 'UNVERIFIED: an older gen_jax, no manifest')
        except integrity.IntegrityError as e:
            bad = 1
            print(f'{folder}: BAD: {e}')
    return bad


def prune(path, args) -> int:
    """Deletes old steps and prints them."""
    from gen_jax.engine.steps import prune as delete
    removed, newest = delete(path, args.keep_last, args.keep_every, args.dry_run)
    for folder, size in removed:
        print(f'{"would remove" if args.dry_run else "removed"} {folder}  {size:,} bytes')
    print(f'{path}: {len(removed)} steps, {sum(size for _, size in removed):,} bytes'
          + (f'; the newest that verifies is {newest.name}' if newest else ''))
    return 0
