"""One self-contained HTML page: tables, figures with hover, pictures; no network, no server."""

import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from gen_jax.engine.files import write_text
from gen_jax.report import tables
from gen_jax.report.compare import ABSENT, Group, differing, is_quiet, is_seed, show, units
from gen_jax.report.metrics import number_format
from gen_jax.report.notes import merge_notes, recipe_values, unexplained
from gen_jax.report.pictures import Strip, load_pictures
from gen_jax.report.read import Note
from gen_jax.report.statistics import estimate, t_factor
from gen_jax.report.summary import Report

__all__ = ['page', 'payload', 'write_report']

MOST_POINTS = 400  # of a curve
MOST_COLUMNS = 4  # groups whose settings stand side by side
CELL = ('n', 'bad', 'mean', 'se', 'low', 'high', 'best', 'ref', 'test', 'why', 'diff', 'dlow', 'dhigh', 'p', 'holm')


def write_report(report: Report, out, title: str = '') -> list[Note]:
    """Writes report.html, runs.csv, summary.csv, summary.md (results only) and timing.csv into a folder.

    Returns all notes: those of the report and those on pictures.
    """
    out = Path(out)
    strips, unread = load_pictures(report.runs)
    notes = merge_notes([*report.notes, *unread])
    report = report._replace(notes=tuple(notes))
    texts = {'runs.csv': tables.csv_text(tables.runs_table(report)),
             'summary.csv': tables.csv_text(tables.summary_table(report)),
             'summary.md': tables.summary_markdown(report), 'timing.csv': tables.csv_text(tables.timing_table(report)),
             'report.html': page(report, strips, title)}
    for name, text in texts.items():
        write_text(out / name, text.encode(errors='replace').decode())  # file names may hold bytes that are no text
    return notes


def page(report: Report, strips: Sequence[Strip] = (), title: str = '') -> str:
    """The page as text. Whatever comes from runs is data: it stands in the payload, or escaped in the notes."""
    from plotly.offline import get_plotlyjs  # 5 MB of text

    def part(name):
        return resources.files('gen_jax.report').joinpath(name).read_text()

    data = json.dumps(payload(report, strips), allow_nan=False, separators=(',', ':'))
    parts = {
        'title': html.escape(title or 'Report'), 'facts': html.escape(_facts(report)), 'notes': _notes(report.notes),
        'count': f'{len(report.notes)} note{"s" * (len(report.notes) != 1)}' if report.notes else 'No notes',
        'warn': 'warn' if report.notes else '',
        'style': part('page.css'),
        'data': data.replace('<', '\\u003c').replace('\u2028', '\\u2028').replace('\u2029', '\\u2029'),
        'script': '\n'.join(part(f'{name}.js') for name in ('table', 'charts', 'page')),
        'plotly': re.sub(r'</(?=script)', r'<\\/', get_plotlyjs(), flags=re.I),
    }
    return re.sub(r'\{\{(\w+)\}\}', lambda m: parts[m[1]], part('page.html'))


def _facts(report: Report) -> str:
    runs, groups = len(report.runs), len(report.groups)
    seeds = max((c.estimate.n for cells in report.cells.values() for c in cells), default=0)
    words = [f'{runs} run{"s" * (runs != 1)}', f'{groups} group{"s" * (groups != 1)} of equal settings']
    if seeds > 1:
        words.append(f'up to {seeds} {report.seed_words}')
    for key in ('devices', 'git'):
        found = sorted({r.versions[key] for r in report.runs if r.versions.get(key)})
        words += [f'{key} {", ".join(found[:3])}{" ..." if len(found) > 3 else ""}'] if found else []
    return ' · '.join(words)


def _notes(notes: Sequence[Note]) -> str:
    lines = [f'<li>{f"<b>{html.escape(n.run)}</b>: " if n.run else ""}{html.escape(n.text)}</li>' for n in notes]
    return f'<ul>{"".join(lines)}</ul>' if lines else '<p>Nothing to report.</p>'


# ---------------------------------------------------------------- the payload


def payload(report: Report, strips: Sequence[Strip] = ()) -> dict[str, Any]:
    """What the page's scripts read, JSON-ready: numbers that are not finite are the text 'nan', 'inf' or '-inf'."""
    place = {id(r): i for i, r in enumerate(report.runs)}
    group_of = {id(r): i for i, g in enumerate(report.groups) for r in g.runs}
    formats = {m.name: _format(report, m.name) for m in report.metrics}
    most = max((len(g.runs) for g in report.groups), default=1)
    return _json({
        'axes': [{'key': a.key, 'name': a.name, 'numeric': a.numeric, 'tied': a.tied} for a in report.axes],
        'groups': [{'label': g.label, 'runs': [place[id(r)] for r in g.runs], 'names': tables.names_of(g),
                    'settings': {a.name: {'text': a.show(g.settings[a.key]), 'value': _sortable(g.settings[a.key])}
                                 for a in report.axes}} for g in report.groups],
        'metrics': [{'name': m.name, 'better': m.better, 'headline': m.headline, 'curve': m.curve,
                     'warn': sorted(unexplained(report.runs, report.axes, m.name)),
                     'digits': int(formats[m.name][1:-1]), 'powers': formats[m.name].endswith('e')}
                    for m in report.metrics],
        'cell': CELL,
        'cells': {which: {m.name: [_cell(c) for c in report.cells[which, m.name]] for m in report.metrics
                          if (which, m.name) in report.cells} for which in ('final', 'best')},
        'runs': [{'name': r.name, 'status': r.status, 'error': r.error, 'step': r.step, 'group': group_of.get(id(r)),
                  'seeds': {k: show(r.config.get(k, ABSENT)) for k in report.seeds},
                  'final': {m.name: r.final(m.name) for m in report.metrics if m.name in r.curves},
                  'best': {m.name: found for m in report.metrics if ('best', m.name) in report.cells
                           and (found := r.best(m.name, m.better))}} for r in report.runs],
        'curves': {m.name: _curves(report, m.name, place) for m in report.metrics if m.curve},
        'pictures': [s._asdict() for s in strips],
        'differences': _differences(report), 'recipes': _recipes(report), 'timing': _timing(report),
        't': {n: t_factor(n) for n in range(2, most + 1)}, 'seeds': report.seeds, 'words': report.seed_words,
        'x': report.x.name if report.x else None, 'lines': report.lines.name if report.lines else None,
        'baseline': report.groups[report.baseline].label if report.baseline is not None else None,
    })


def _format(report: Report, metric: str) -> str:
    cells = report.cells['final', metric]
    if any(c.estimate.n for c in cells):
        return tables.cells_format(cells)
    return number_format(r.final(metric) for r in report.runs)  # of runs that stand in no group


def _json(value):
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): _json(v) for k, v in value.items()}
    return [_json(v) for v in value] if isinstance(value, (list, tuple)) else value


def _sortable(value):
    """A setting as the page sorts and draws it: a number, or text."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if number else None if value is None or value == ABSENT else show(value)


def _cell(cell) -> list:
    e, c = cell.estimate, cell.comparison
    tested = (c.test, c.why, c.difference, c.low, c.high, c.p, c.p_holm) if c else (None,) * 7
    return [*e, cell.best, cell.reference, *tested]


def _curves(report: Report, metric: str, place) -> dict[str, Any]:
    """Thinned curves of single runs {index: [steps, values]} and of groups {index: [steps, mean, stderr, n]}."""
    runs, groups = {}, {}
    for index, group in enumerate(report.groups):
        steps = sorted({s for r in group.runs for s, _ in r.curves.get(metric, ())})
        stride = -(-len(steps) // MOST_POINTS)
        steps = sorted({*steps[::max(stride, 1)], *steps[-1:]})
        lines = {id(r): dict(r.curves[metric]) for r in group.runs if len(r.curves.get(metric, ())) > 1}
        if not lines:
            continue
        for run in group.runs:
            if line := lines.get(id(run)):
                kept = [s for s in steps if s in line]
                runs[place[id(run)]] = [kept, [line[s] if math.isfinite(line[s]) else None for s in kept]]
        points = [(s, estimate(list(_at(report, group, lines, s).values()))) for s in steps]
        points = [(s, e) for s, e in points if e.n]
        groups[index] = [[s for s, _ in points], *([getattr(e, k) for _, e in points] for k in ('mean', 'stderr', 'n'))]
    return {'runs': runs, 'groups': groups}


def _at(report: Report, group: Group, lines, step: int):
    return units(group, report.seeds, lambda r: lines.get(id(r), {}).get(step))


# ---------------------------------------------------------------- plain tables of the page


def _table(columns: Sequence[str], rows: Sequence[Sequence], digits: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Rows of text; columns in `digits` are numbers, shown with that many behind the point."""
    return {'columns': [{'label': c, 'digits': (digits or {}).get(c)} for c in columns], 'rows': rows}


def _differences(report: Report) -> dict[str, Any]:
    """Every key that differs: what it is, and its values by group, or by number of runs where groups are many."""
    runs = [r for r in report.runs if r.config]
    axes = {a.key: 'shown' for a in report.axes} | {k: f'with {a.name}' for a in report.axes for k in a.tied}

    def role(key):
        return 'seed' if is_seed(key) else 'not compared' if is_quiet(key) else axes.get(key, '')

    found = differing(runs)
    few = len(report.groups) <= MOST_COLUMNS
    rows = []
    for key, values in sorted(found.items(), key=lambda kv: (role(kv[0]) != 'shown', is_seed(kv[0]), kv[0])):
        if few:
            cells = [_counted([r.config.get(key, ABSENT) for r in g.runs], False) for g in report.groups]
        else:
            cells = [_counted(values, True)]
        rows.append([key, role(key), *cells])
    return _table(['key', 'role', *([g.label for g in report.groups] if few else ['values (runs)'])], rows)


def _counted(values, count: bool) -> str:
    shown = [show(v) for v in values]
    return ' · '.join(f'{v} ({shown.count(v)})' if count else v for v in dict.fromkeys(shown))


RECIPE = {'predict': 'predict', 'split': 'split', 'n': 'n', 'ema': 'EMA', 'settings.solver': 'solver',
          'settings.steps': 'steps', 'nfe': 'NFE', 'settings.guidance_scale': 'guidance', 'seed': 'seed',
          'step': 'training step', 'features': 'feature extractor'}


def _recipes(report: Report) -> dict[str, Any]:
    """How each metric was computed; metrics of one recipe share a row. Values that differ stand beside each other, ⚠
    where no column of the table says so."""
    rows: dict[tuple, list[str]] = {}
    for metric in report.metrics:
        values = recipe_values(report.runs, metric.name)
        if not values:
            continue
        odd = unexplained(report.runs, report.axes, metric.name)

        def said(key, values=values, odd=odd):
            return ('⚠ ' if key in odd else '') + ' · '.join(show(v) for v in values.get(key, ()))

        other = '; '.join(f'{k.removeprefix("settings.")} {said(k)}' for k in values if k not in RECIPE)
        name, _, leaf = metric.name.partition('/')
        rows.setdefault((name, *map(said, RECIPE), other), []).append(leaf)
    used = [i for i in range(1, len(RECIPE) + 2) if any(row[i] for row in rows)]
    labels = ['', *RECIPE.values(), 'other']
    return _table(['metric', *(labels[i] for i in used)],
                  [[f'{row[0]}/{", ".join(names)}', *(row[i] for i in used)] for row, names in rows.items()])


def _timing(report: Report) -> dict[str, Any]:
    rows = tables.timing_table(report)
    labels = {'run': 'run', 'wall_seconds': 'wall time (s)', 'logged_seconds': 'first to last log (s)',
              'images_per_second': 'images/s', 'steps_per_second': 'steps/s', 'devices': 'devices',
              'platform': 'platform', 'python': 'Python', 'jax': 'jax', 'git': 'git', 'folder': 'folder'}
    numbers = ('wall_seconds', 'logged_seconds', 'images_per_second', 'steps_per_second')
    used = [k for k in labels if any(r[k] is not None for r in rows)]
    digits = {labels[k]: int(number_format([r[k] for r in rows])[1:-1]) for k in numbers}
    return _table([labels[k] for k in used], [[r[k] for k in used] for r in rows], digits)
