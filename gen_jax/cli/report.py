"""gen-jax report: runs beside each other, as one HTML page, CSV and Markdown."""

import sys
from pathlib import Path

from gen_jax.cli.options import fail, parse, parser


def run(argv) -> int:
    """Runs the command."""
    p = parser('report', 'Compare runs: OUT/report.html (one file, no network), runs.csv, summary.csv, summary.md '
               '(results\nonly: equal bytes for equal results) and timing.csv. A WORKDIR is a run, a sweep, or a '
               'folder of either.')
    p.add_argument('workdirs', metavar='WORKDIR', nargs='*', help='runs, sweeps, folders of them, in any mixture')
    p.add_argument('--out', metavar='DIR', help='default: report/ in the first WORKDIR that is a folder')
    p.add_argument('--axes', metavar='KEY,KEY', default='', help='settings for the x axis and the lines of the figures')
    p.add_argument('--metric', metavar='NAME', action='append', default=[], help='for the first table, for instance '
                   'guided/frechet; repeatable, or separated by commas (default: the scores of the evaluations)')
    p.add_argument('--baseline', metavar='KEY=VALUE,...', default='', help='compare all with that group (or with the '
                   'group of the run of that name), not with the best of each metric')
    p.add_argument('--better', metavar='NAME=up|down', action='append', default=[], help='which direction of a metric '
                   'is better, where its name does not say; repeatable')
    p.add_argument('--title', default='', help='of the page (default: the names of the folders)')
    args, overrides = parse(p, argv)
    if args.help:
        print(p.format_help())
        return 0
    if overrides:
        return fail(f'gen-jax report: {overrides[0]}: a report changes no config')
    if not args.workdirs:
        return fail('gen-jax report: needs a WORKDIR, what gen-jax train, evaluate or sweep wrote')
    better = dict(item.partition('=')[::2] for item in args.better)
    from gen_jax.report import make_report, write_report
    report = make_report(args.workdirs, [a for a in args.axes.split(',') if a],
                         [m for item in args.metric for m in item.split(',') if m], args.baseline, better)
    out = Path(args.out) if args.out else next(w for w in map(Path, args.workdirs) if w.is_dir()) / 'report'
    names = [Path(w).resolve().name for w in args.workdirs]
    names = names if len(set(names)) == len(names) else args.workdirs
    title = args.title or ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')
    for note in write_report(report, out, title):
        print(f'note: {note.run}: {note.text}' if note.run else f'note: {note.text}', file=sys.stderr)
    print(f'{len(report.runs)} runs in {len(report.groups)} groups: {out / "report.html"} '
          '(tables: runs.csv, summary.csv, summary.md, timing.csv)')
    return 0
