"""One study from the sweep to the table and the figure; run it again after any interruption.

    python -m experiments.study fewer_steps --workdir runs/fewer_steps
    python -m experiments.study guidance_scale --workdir runs/debug --debug        # shrunk: a minute

Does the sweep of experiments/NAME/NAME.py, writes WORKDIR/report (page, CSV, Markdown), and writes the study's own
table.md and figure.png to --out, WORKDIR by default; `--out experiments/NAME` is what is committed.
"""

import argparse
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gen_jax.report import Report, make_report, markdown
from gen_jax.report.statistics import Estimate, compare

STUDIES = ('fewer_steps', 'guidance_scale', 'training_choices')
HERE = Path(__file__).resolve().parent


def estimates(report: Report, metric: str, key: Callable) -> dict:
    """{key(a run of the group): Estimate over its seeds} of the groups that have the metric; None: not asked for."""
    cells = report.cells['final', metric]
    found = {}
    for group, cell in zip(report.groups, cells, strict=True):
        keys = [k for k in map(key, group.runs) if k is not None]  # a training may stand beside its evaluations
        if keys and cell.estimate.n:
            found[keys[0]] = cell.estimate
    return found


def differences(report: Report, metric: str, key: Callable, seed: str, pairs: Sequence[tuple]) -> list[dict[str, str]]:
    """Rows of a table: for each pair of keys, first minus second over equal seeds, with the t-interval and p."""
    values: dict = {}
    for run in report.runs:
        if (found := key(run)) is not None and (value := run.final(metric)) is not None:
            values.setdefault(found, {})[run.config[seed]] = value
    rows = []
    for first, second in pairs:
        if first in values and second in values and len(values[first]) > 1:
            c = compare([values[first], values[second]], 1)[0]
            rows.append({'first': said(first), 'second': said(second),
                         'difference': '–' if c.difference is None else f'{c.difference:.2f}',
                         '95 % interval': '–' if c.low is None else f'{c.low:.2f} .. {c.high:.2f}',
                         'p': '–' if c.p is None else f'{c.p:.3f}' if c.p >= 0.0005 else '< 0.001',
                         'test': c.test or c.why})
    return rows


def said(key) -> str:
    """A key of a table in words."""
    return ', '.join(str(part).replace('_', '-') for part in key) if isinstance(key, tuple) else str(key)


def text(e: Estimate, digits: int = 2) -> str:
    """'1.15 ± 0.02', mean and standard error."""
    return f'{e.mean:.{digits}f}' + (f' ± {e.stderr:.{digits}f}' if e.stderr is not None else '')


def draw(axes, curves: Mapping[str, Sequence[tuple[float, Estimate]]], styles: Mapping[str, dict] = {}) -> None:
    """A line with error bars (95 % interval over seeds, where there is one) for each label."""
    for label, points in curves.items():
        points = sorted(points, key=lambda p: p[0])
        bars = [[e.mean - e.low if e.low is not None else 0.0 for _, e in points],
                [e.high - e.mean if e.high is not None else 0.0 for _, e in points]]
        axes.errorbar([x for x, _ in points], [e.mean for _, e in points], yerr=bars, label=label, capsize=2,
                      **{'marker': 'o', 'markersize': 3, 'linewidth': 1.2, 'elinewidth': 0.8,
                         **styles.get(label, {})})


def figure(path: Path, plot: Callable, columns: int = 1) -> None:
    """Draws with plot(axes, ...) and writes a PNG of at most a few dozen kilobytes."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(1, columns, figsize=(4.8 * columns, 3.6), constrained_layout=True, squeeze=False)
    plot(*axes[0])
    fig.savefig(path, dpi=110, metadata={'Software': None})
    plt.close(fig)


def main(argv=None) -> int:
    """Returns the exit code of the sweep."""
    p = argparse.ArgumentParser(prog='python -m experiments.study', description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('name', choices=STUDIES)
    p.add_argument('--workdir', required=True)
    p.add_argument('--out')
    p.add_argument('--debug', action='store_true')
    p.add_argument('--jobs', type=int, default=1)
    args = p.parse_args(argv)
    from gen_jax.cli.main import main as gen_jax
    spec = f'{HERE / args.name / args.name}.py' + (':debug' if args.debug else '')
    code = gen_jax(['sweep', '--config', spec, '--workdir', args.workdir, '--jobs', str(args.jobs)])
    if code not in (0, 1):  # 1: some runs failed, which the report shows
        return code
    if wrong := gen_jax(['report', args.workdir]):
        return wrong
    study = importlib.import_module(f'experiments.{args.name}.{args.name}')
    report, out = make_report([args.workdir]), Path(args.out or args.workdir)
    if not any(m.name.startswith('generate/') for m in report.metrics):
        print(f'{args.name}: nothing was scored, so there is no table; the report says why', file=sys.stderr)
        return code or 1
    out.mkdir(parents=True, exist_ok=True)
    parts = [f'{caption}\n\n{markdown(rows)}' for caption, rows in study.tables(report) if rows]
    (out / 'table.md').write_text('\n'.join(parts))
    figure(out / 'figure.png', *study.plots(report))
    print(f'{out / "table.md"}, {out / "figure.png"}')
    return code


if __name__ == '__main__':
    sys.exit(main())
