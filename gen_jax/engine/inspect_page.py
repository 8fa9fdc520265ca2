"""The report of `gen_jax.engine.inspect` as text and as JSON."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ['module_of', 'page', 'to_json']


def module_of(path: str, depth: int) -> str:
    """The module of a leaf by its published name, cut at `depth` words: 'unet/up_blocks.0/conv/kernel' at 2 is
    'unet.up_blocks'."""
    return '.'.join(path.replace('/', '.').split('.')[:-1][:depth]) or path


def size(n: float) -> str:
    """Bytes for reading: '1.50 GiB'."""
    for unit in ('B', 'KiB', 'MiB', 'GiB', 'TiB'):
        if abs(n) < 1024 or unit == 'TiB':
            return f'{n:.0f} B' if unit == 'B' else f'{n:.2f} {unit}'
        n /= 1024
    raise AssertionError


def count(n: float) -> str:
    """A large number for reading: '3.03 G'."""
    for unit in ('', 'k', 'M', 'G', 'T', 'P'):
        if abs(n) < 1000 or unit == 'P':
            return f'{n:.3g} {unit}'.rstrip()
        n /= 1000
    raise AssertionError


def span(seconds: float) -> str:
    """A time for reading."""
    return f'{seconds * 1e3:.3g} ms' if seconds < 1 else f'{seconds:.3g} s'


def table(rows: Iterable[tuple], right: str) -> list[str]:
    """Columns of equal width; `right` holds '<' or '>' for each."""
    rows = [[str(c) for c in row] for row in rows]
    widths = [max(len(r[i]) for r in rows) for i in range(len(right))]
    return ['  ' + '  '.join(f'{c:{side}{w}}' for c, side, w in zip(r, right, widths, strict=True)).rstrip()
            for r in rows]


def placement_rows(placements, depth: int) -> list[tuple]:
    """Leaves of one part of the state, module, shape, dtype and spec, merged where all of these agree."""
    merged: dict[tuple, list[int]] = {}
    for row in placements:
        key = (module_of(row.path, depth + 1), 'x'.join(map(str, row.shape)) or 'scalar', row.dtype, row.spec)
        found = merged.setdefault(key, [0, 0])
        found[0] += 1
        found[1] += row.bytes
    return [('module', 'leaves', 'shape', 'dtype', 'sharding', 'bytes per device')] + [
        (m, n, shape, dtype, spec, size(b)) for (m, shape, dtype, spec), (n, b) in merged.items()]


def page(report: Mapping[str, Any], name: str, depth: int = 2, leaves: bool = False) -> str:
    """The report for reading; `leaves` adds where every leaf of the state lives."""
    r = report
    n = r['devices']
    mesh = ' x '.join(f'{k} {v}' for k, v in r['mesh'].items())
    stand_in = r['memory'] and r['platform'] == 'cpu'
    lines = [f'{name}: an estimate of one training step; nothing was run',
             f'{n} {r["device"]} device{"s" * (n > 1)} ({mesh}), {r["parallel"]}, batch {r["batch_size"]} '
             f'({r["batch_size"] / n:g} per device), {r["precision"]}, accumulate {r["accumulate"]}, '
             f'sharding {",".join(r["sharding"])}' + (f', remat {r["remat"]}' if r['remat'] else '')]
    if stand_in:
        lines.append("numbers marked * come from XLA's compiler for CPUs; that of an accelerator fuses and orders "
                     'otherwise' + (', and keeps as bfloat16 what a CPU widens' if r['precision'] != 'float32' else ''))
    star = ' *' if stand_in else ''
    total = sum(r['parameters'].values())
    lines += ['', f'parameters: {total:,}' + (f' ({", ".join(f"{k} {v:,}" for k, v in r["parameters"].items())})'
                                               if len(r['parameters']) > 1 else '')]
    lines += table([(k, f'{v["parameters"]:,}', f'{100 * v["parameters"] / max(total, 1):.1f} %')
                    for k, v in r['modules'].items()], '<>>')
    lines += ['', 'state per device (whole: without sharding)']
    whole = r['state_bytes_whole']
    lines += table([(k, size(v), f'of {size(whole[k])}', f'{v / max(whole[k], 1):.3f}')
                    for k, v in r['state_bytes'].items()], '<>><')
    if leaves:
        lines += ['', 'where the state lives'] + table(placement_rows(r['placements'], depth), '<><<<>')
    lines += ['', 'work per step']
    rows = [('FLOPs of the model (matrix products and convolutions)', count(r['model_flops']))]
    counted = sum(v for k, v in r['flops'].items() if k != 'unknown loops')
    if counted != r['model_flops']:
        rows.append(('  with what remat repeats', count(counted)))
    if r['xla']:
        rows += [("XLA's count per device, elementwise included; a loop counts once" + star, count(r['xla']['flops'])),
                 ('bytes accessed per device' + star, size(r['xla']['bytes'])),
                 ('arithmetic intensity, FLOPs per byte' + star, f'{r["intensity"]:.3g}')]
    lines += table(rows, '<>')
    if r['memory']:
        m = r['memory']
        lines += ['', f'peak memory per device{star}: {size(m["peak_bytes"])}']
        lines += table([(k, size(m[f'{key}_bytes'])) for k, key in (
            ('arguments (state and batch)', 'argument'), ('results that reuse no argument', 'fresh'),
            ('temporaries', 'temp'))], '<>')
        found = r['collectives']
        lines += ['', f'collectives per step{star}' + ('' if found else ': none')]
        lines += table([(k, f'{v["count"]} x', size(v['bytes'])) for k, v in found.items()], '<>>') if found else []
    else:
        lines += ['', 'not compiled: peak memory, bytes accessed and collectives are unknown']
    if 'roofline' in r:
        f = r['roofline']
        lines += ['', f'on {f["chip"]} ({count(f["peak_flops"])}FLOP/s, {count(f["bandwidth"])}B/s, '
                      f'{size(f["memory"])}): a step takes at least {span(f["seconds"])}, {f["bound"]}-bound; '
                      f'MFU at most {100 * f["mfu"]:.1f} %',
                  f'  computing {span(f["compute_seconds"])}, memory{star} '
                  + ('unknown' if f['memory_seconds'] is None else span(f['memory_seconds']))
                  + '; communication between devices is not counted']
    if r['fit']:
        f = r['fit']
        tried = ', '.join(f'{b}: {size(p)}' for b, p in f['compilations'].items())
        lines += ['', f'largest batch within {size(f["limit"])} per device{star}: '
                  + (f'{f["batch"]} ({size(f["bytes"])}' if f['batch'] else 'none')
                  + (f', predicted {size(f["predicted_bytes"])}' if f['predicted_bytes'] else '')
                  + (')' if f['batch'] else '') + f'; compiled {tried}']
    if r['sampler']:
        s = r['sampler']
        lines += ['', f'sampling ({s["predict"]}): {s["calls"]} network calls of {count(s["flops_per_call"])}FLOPs, '
                      f'{count(s["flops"])}FLOPs per example']
    t = r['seconds']
    lines += ['', '  '.join(f'{k} {v:.1f} s' for k, v in t.items())
              + (f'; compilation cache: {r["cache"]}' if r['cache'] else '')]
    return '\n'.join(lines)


def to_json(report: Mapping[str, Any], name: str) -> str:
    """The same numbers, in bytes, FLOPs and seconds."""
    plain = {**report, 'config': name, 'estimate': True, 'placements': [p._asdict() for p in report['placements']]}
    return json.dumps(plain, indent=1)
