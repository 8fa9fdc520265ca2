"""The report as lists of dicts, CSV and Markdown: results only, equal bytes for equal results."""

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gen_jax.report.compare import ABSENT, Axis, show, sort_key
from gen_jax.report.metrics import number_format, present
from gen_jax.report.statistics import Estimate
from gen_jax.report.summary import Cell, Report

__all__ = ['cross_table', 'csv_text', 'markdown', 'runs_table', 'summary_markdown', 'summary_table', 'timing_table']

ARROWS = {'up': '↑', 'down': '↓', '': ''}


def runs_table(report: Report) -> list[dict[str, Any]]:
    """A row for each run: settings that differ, seeds, and each metric's final (and, over steps, best) value."""
    rows = []
    for run in report.runs:
        row: dict[str, Any] = {'run': run.name, 'status': run.status, 'step': run.step}
        for axis in report.axes:
            group = next((g for g in report.groups if run in g.runs), None)
            row[axis.key] = group.settings[axis.key] if group else run.overrides.get(axis.key, ABSENT)
        row.update({k: run.config.get(k, ABSENT) for k in report.seeds})
        for metric in report.metrics:
            row[metric.name] = run.final(metric.name)
            if ('best', metric.name) in report.cells:
                row[f'{metric.name} (best)'], row[f'{metric.name} (best step)'] = \
                    run.best(metric.name, metric.better) or (None, None)
        rows.append(row)
    return rows


def summary_table(report: Report) -> list[dict[str, Any]]:
    """A row for each group, metric and choice of step: mean over seeds, its 95 % interval, and the test against the
    reference. `difference` is the group's mean minus the reference's; `p_holm` is adjusted over the metric's rows."""
    rows = []
    for metric in report.metrics:
        for which in ('final', 'best'):
            for group, cell in zip(report.groups, report.cells.get((which, metric.name), ()), strict=False):
                e, c = cell.estimate, cell.comparison
                rows.append({
                    **{a.key: group.settings[a.key] for a in report.axes}, 'metric': metric.name,
                    'better': metric.better, 'value': which, 'n': e.n, 'not_finite': e.bad, 'mean': e.mean,
                    'stderr': e.stderr, 'low': e.low, 'high': e.high, 'best': cell.best, 'reference': cell.reference,
                    'test': c.test or c.why if c else None, 'difference': c.difference if c else None,
                    'difference_low': c.low if c else None, 'difference_high': c.high if c else None,
                    'p': c.p if c else None, 'p_holm': c.p_holm if c else None})
    return rows


def timing_table(report: Report) -> list[dict[str, Any]]:
    """A row for each run: wall time, speed, hardware, versions. Never equal between two executions."""
    keys = ('devices', 'backend', 'platform', 'python', 'jax', 'gen_jax', 'git')
    clocks = ('logged_seconds', 'images_per_second', 'steps_per_second')
    return [{'run': r.name, 'wall_seconds': r.timing.get('seconds'), **{k: r.timing.get(k) for k in clocks},
             **{k: r.versions.get(k) for k in keys}, 'folder': str(r.path)} for r in report.runs]


# ---------------------------------------------------------------- text


def _plain(value) -> str:
    if value is None or value == ABSENT:
        return ''
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str) else json.dumps(value)


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """CSV with a header; floats in the digits that read back to the same bits, nothing for None."""
    if not rows:
        return ''
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(k for r in rows for k in r)), restval='', lineterminator='\n')
    writer.writeheader()
    writer.writerows({k: _plain(v) for k, v in row.items()} for row in rows)
    return out.getvalue()


class Markup(str):
    """Text that is Markdown already."""


def _cell(text) -> str:
    """A value inside a Markdown table: nothing of it may become a column, markup or HTML."""
    if isinstance(text, Markup):
        return text
    text = re.sub(r'[\\|`*\[\]]|(?<!\w)_|_(?!\w)', r'\\\g<0>', ' '.join(str(text).split()))
    return text.replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """A Markdown table of rows of text, escaped unless it is `Markup`."""
    if not rows:
        return ''
    keys = list(rows[0])
    lines = ['| ' + ' | '.join(map(_cell, keys)) + ' |', '|' + '---|' * len(keys)]
    lines += ['| ' + ' | '.join(_cell(r[k]) for k in keys) + ' |' for r in rows]
    return '\n'.join(lines) + '\n'


def estimate_text(e: Estimate, spec: str) -> str:
    """'1.15 ± 0.02 (1 not finite)'."""
    text = present(e.mean, spec) + (f' ± {present(e.stderr, spec)}' if e.stderr is not None else '')
    return text + (f' ({e.bad} not finite)' if e.bad else '')


def cell_text(cell: Cell, spec: str) -> Markup:
    """A cell in Markdown: the best in bold, `*` where it differs from the reference, ° where that was not seen."""
    text = estimate_text(cell.estimate, spec)
    text = f'**{text}**' if cell.best else text
    if not cell.reference and cell.comparison and cell.comparison.significant is not None:
        text += r' \*' if cell.comparison.significant else ' °'
    return Markup(text)


def cells_format(cells: Sequence[Cell]) -> str:
    """The number format of one metric's column."""
    return number_format([c.estimate.mean for c in cells], [c.estimate.stderr for c in cells])


def cross_table(report: Report, metric: str, rows: Axis | None = None, columns: Axis | None = None,
                which: str = 'final') -> list[dict[str, str]]:
    """One metric, a row for each value of an axis, a column for each value of another: Markdown cells.

    Axes that are neither make rows of their own where they change along a row, and not simply with the columns (as
    steps do with network calls). Without axes: the report's lines and x.

    Raises:
        KeyError: the report has no such metric.
    """
    columns, rows = columns or report.x, rows or report.lines
    cells, table = report.cells[which, metric], {}
    spec = cells_format(cells)
    rest = _rest(report, rows, columns)
    order = sorted(zip(report.groups, cells, strict=True),
                   key=lambda gc: [sort_key(gc[0].settings[a.key]) for a in (rows, *rest) if a])
    for group, cell in order:
        if columns is None or cell.estimate.n + cell.estimate.bad == 0:
            continue
        head = tuple((a.name, a.show(group.settings[a.key])) for a in (rows, *rest) if a)
        table.setdefault(head, {})[columns.show(group.settings[columns.key])] = cell_text(cell, spec)
    heads = map(columns.show, columns.values) if columns else ()
    seen = [v for v in heads if any(v in line for line in table.values())]
    return [{**dict(head), **{f'{columns.name}={v}': line.get(v, '–') for v in seen}} for head, line in table.items()]


def _rest(report: Report, rows: Axis | None, columns: Axis | None) -> list[Axis]:
    """Axes that change along a row, and not simply with the columns: each of their values is a row of its own."""
    def count(groups, *axes):
        return len({tuple(show(g.settings[a.key]) for a in axes) for g in groups})

    chosen = [rows] if rows else []
    for axis in report.axes if columns else ():
        lines: dict[tuple, list] = {}
        for g in report.groups:
            lines.setdefault(tuple(show(g.settings[a.key]) for a in chosen), []).append(g)
        if axis not in (rows, columns) and any(
                count(line, axis) not in (1, count(line, columns)) or
                count(line, columns, axis) > count(line, columns) for line in lines.values()):
            chosen.append(axis)
    return [a for a in chosen if a != rows]


def legend(report: Report) -> str:
    """What the numbers and marks of a table mean, in Markdown."""
    if max((c.estimate.n for cells in report.cells.values() for c in cells), default=0) < 2:
        return '**Bold**: best. One seed each: there is no interval, and no test of a difference is possible.'
    against = 'the best group of several seeds' if report.baseline is None \
        else f'the baseline ({_cell(report.groups[report.baseline].label)})'
    return (f'Mean ± standard error over n {report.seed_words}. **Bold**: best mean. \\*: differs from {against}, '
            "p < 0.05 (t-test, paired where the seeds are the same, else Welch's; adjusted by Holm over the groups of "
            'a column); °: tested, not significant; no mark: no test is possible. A few seeds give an interval, not a '
            'proof.')


def summary_markdown(report: Report) -> str:
    """The headline metrics as Markdown: all groups, cross tables where two axes were swept, and the notes."""
    headlines = [m for m in report.metrics if m.headline]
    title = {m.name: f'{m.name} {ARROWS[m.better]}'.strip() for m in headlines}
    rows = []
    for i, group in enumerate(report.groups):
        row = {a.name: a.show(group.settings[a.key]) for a in report.axes} or {'runs': names_of(group)}
        row['n'] = str(max((report.cells['final', m.name][i].estimate.n for m in headlines), default=0))
        for m in headlines:
            cells = report.cells['final', m.name]
            row[title[m.name]] = cell_text(cells[i], cells_format(cells))
        rows.append(row)
    parts = [markdown(rows), legend(report) + '\n'] if rows else []
    if report.x and report.lines:
        for m in headlines:
            table = cross_table(report, m.name)
            if table and len(table) < len(report.groups):
                parts += [f'### {_cell(title[m.name])}\n', markdown(table)]
    notes = [f'- {_cell(f"{n.run}: {n.text}" if n.run else n.text)}' for n in report.notes if not n.record]
    return '\n'.join(parts + (['### Notes\n', '\n'.join(notes) + '\n'] if notes else []))


def names_of(group, most: int = 3) -> str:
    """The names of a group's runs."""
    return ', '.join(r.name for r in group.runs[:most]) + (' ...' if len(group.runs) > most else '')
