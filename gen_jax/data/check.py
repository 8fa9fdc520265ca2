"""Reads every item of a data source once and says what a training would meet: what `gen-jax data check` prints."""

import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from gen_jax.data.folder import Folder, is_image, open_folder
from gen_jax.data.ledger import CorruptItem
from gen_jax.data.listing import list_files
from gen_jax.data.sources import open_source

__all__ = ['check', 'is_clean', 'open_leniently', 'summary']

CHUNK = 512
GROUPS = 20
"""So many groups of equal pictures are listed in the text (all of them in JSON)."""


class Seen(NamedTuple):
    """What one item turned out to be."""

    reason: str = ''
    """Why it is bad."""
    kind: str = ''
    size: tuple[int, int] = (0, 0)
    """(height, width) in pixels."""
    pixels: bytes = b''
    """A digest of the picture."""
    label: Any = None
    captions: int | None = None
    """Captions that are not empty; None where the item has no such entry."""


def open_leniently(name: str, split: str, options: Mapping[str, Any]):
    """(source, problems): a source at its own sizes, and what is wrong with its labels and metadata.

    Raises:
        ValueError: as `gen_jax.data.sources.open_source`, for what leaves nothing to check.
    """
    there = Path(name).expanduser().is_dir()
    if name not in ('digits', 'shapes') and (there or ':' not in name):  # a folder's name may hold a colon
        if not there:
            raise ValueError(f"{name!r} is neither a folder nor a data source; the choices are a path, 'digits', "
                             f"'shapes', 'folder:PATH' and 'tfds:NAME'")
        name = f'folder:{name}'
    kind, _, place = name.partition(':')
    if kind in ('folder', 'tfds'):
        options = {k: v for k, v in options.items() if k not in ('image_size', 'draft')}
    if kind != 'folder' or not place:
        return open_source(name, split, **options), []
    try:
        return open_folder(place, split, **options)
    except TypeError as error:
        raise ValueError(f'data.options {dict(options)} do not fit {name!r}: {error}') from None


def _header(source, index: int, image) -> str:
    """Format and mode of the file, or the array's shape where there is no file."""
    if not isinstance(source, Folder):
        return {1: 'grey', 3: 'RGB'}.get(image.shape[-1], f'{image.shape[-1]} channels')
    from gen_jax.data.decode import open_picture
    with open_picture(source.bytes_of(index), image.shape[0] * image.shape[1]) as picture:
        try:
            several = getattr(picture, 'n_frames', 1) > 1
        except Exception:  # what comes behind the first frame is damaged, and never read
            several = True
        return f'{picture.format} {picture.mode}' + (' (first of several frames)' if several else '')


def _main_entry(item: Mapping[str, Any]) -> str:
    """Of an item without picture, such as cached latents: its largest array."""
    arrays = {k: v.size for k, v in item.items() if isinstance(v, np.ndarray) and v.ndim}
    if not arrays:
        raise ValueError(f'items hold neither a picture nor an array: {sorted(item)}')
    return max(arrays, key=arrays.get)


def _look(source, index: int) -> Seen:
    try:
        item = source[index]
        image = np.ascontiguousarray(item['image' if 'image' in item else _main_entry(item)])
        kind = _header(source, index, image) if 'image' in item else f'{_main_entry(item)} {list(image.shape)}'
    except CorruptItem as error:
        return Seen(error.reason)
    except OSError as error:
        return Seen(f'cannot be read: {error.strerror or error}')
    for key, value in item.items():
        if getattr(value, 'dtype', np.dtype(bool)).kind == 'f' and not np.isfinite(value).all():
            return Seen(f'{key!r} holds NaN or infinity')
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(image)
    texts = item.get('caption', item.get('captions'))
    texts = [texts] if isinstance(texts, str) else texts if isinstance(texts, (list, tuple)) else []
    told = 'caption' in item or 'captions' in item
    captions = sum(isinstance(text, str) and bool(text.strip()) for text in texts) if told else None
    return Seen('', kind, image.shape[:2], digest.digest(), item.get('label'), captions)


def _read(source, threads: int, progress: Callable[[int, int, float], None]) -> Iterator[Seen]:
    began, bad, size = time.monotonic(), 0, len(source)
    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, size, CHUNK):
            for k, seen in enumerate(pool.map(lambda i: _look(source, i), range(first, min(first + CHUNK, size)))):
                bad += bool(seen.reason)
                progress(first + k + 1, bad, time.monotonic() - began)
                yield seen


def check(name: str, split: str = 'train', options: Mapping[str, Any] | None = None, threads: int = 2,
          resized: bool = False, progress: Callable[[int, int, float], None] = lambda done, bad, seconds: None
          ) -> dict[str, Any]:
    """Reads every item of a split.

    Args:
        name: a folder's path, or a source as in `data.source`.
        split, options: as in `data.train_split` and `data.options`; sizes are reported before `image_size`.
        threads: that decode.
        resized: transforms make the sizes equal, so that different ones are nothing to note.
        progress: called after each item with (items read, bad ones, seconds).

    Returns:
        A JSON-able dict: 'source', 'split', 'items', 'good'; 'bad', a list of {'index', 'path', 'reason'};
        'problems' of labels and metadata; 'kinds', counts by file format and mode; 'sizes' {'distinct', 'smallest',
        'largest', 'common'} with [height, width]; 'classes', counts by name, or None; 'captions' {'with', 'without'},
        or None; 'duplicates', lists of paths of equal pictures; and 'notes', lines on what may need a change.

    Raises:
        ValueError: nothing to check: no such folder, source, split or option.
    """
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise ValueError(f'threads={threads!r} must be an integer of at least 1')
    options = dict(options or {})
    source, problems = open_leniently(name, split, options)
    path_of = getattr(source, 'path_of', str)
    bad, kinds, sizes, classes, equal = [], Counter(), Counter(), Counter(), defaultdict(list)
    captions, labels = Counter(), {}
    for index, seen in enumerate(_read(source, threads, progress)):
        if seen.reason:
            bad.append({'index': index, 'path': path_of(index), 'reason': seen.reason})
            continue
        kinds[seen.kind] += 1
        sizes[seen.size] += 1
        if seen.captions is not None:
            captions['with' if seen.captions else 'without'] += 1
        if np.ndim(seen.label) == 0 and np.asarray(seen.label).dtype.kind in 'iu':  # else a problem, named already
            classes[int(seen.label)] += 1
        equal[seen.pixels].append(index)
        labels[index] = repr(seen.label)
    names = source.info.get('label_names') if set(labels.values()) != {'None'} else None
    if names is None and classes:
        names = [str(i) for i in range(max(source.info.get('num_classes') or 0, max(classes) + 1))]
    groups = [group for group in equal.values() if len(group) > 1]
    report = {
        'source': name, 'split': split, 'items': len(source), 'good': len(source) - len(bad), 'bad': bad,
        'problems': problems, 'kinds': dict(kinds.most_common()), 'sizes': _sizes(sizes),
        'classes': None if names is None else {n: classes[i] for i, n in enumerate(names)},
        'captions': {'with': captions['with'], 'without': captions['without']} if captions else None,
        'duplicates': [[path_of(i) for i in group] for group in groups],
    }
    at_odds = sum(len({labels[i] for i in group}) > 1 for group in groups)
    return {**report, 'notes': _notes(report, source, resized or bool(options.get('image_size')), at_odds)}


def _sizes(sizes: Counter) -> dict[str, Any] | None:
    if not sizes:
        return None
    by_area = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    return {'distinct': len(sizes), 'smallest': list(by_area[0]), 'largest': list(by_area[-1]),
            'common': [[*size, count] for size, count in sizes.most_common(5)]}


def _notes(report: Mapping[str, Any], source, resized: bool, at_odds: int) -> list[str]:
    notes = []
    if report['sizes'] and report['sizes']['distinct'] > 1 and not resized:
        notes.append('the pictures differ in size: set data.options.image_size, or resize and crop in data.transforms')
    if empty := [name for name, count in (report['classes'] or {}).items() if not count]:
        notes.append(f'{len(empty)} classes have no readable picture in this split: {", ".join(empty[:10])}')
    if report['captions'] and report['captions']['without']:
        notes.append(f'{report["captions"]["without"]} captions are empty')
    if report['duplicates']:
        notes.append(f'{sum(len(group) - 1 for group in report["duplicates"])} pictures are copies of another one')
    if at_odds:
        notes.append(f'{at_odds} groups of equal pictures carry different labels')
    if isinstance(source, Folder):
        notes += _folder_notes(source, report['source'])
    return notes


def _folder_notes(source: Folder, name: str) -> list[str]:
    root, files = source.root, list_files(source.root)
    notes = []
    others = Counter(PurePosixPath(name).suffix.lower() or '(none)' for name in files
                     if not is_image(name) and not PurePosixPath(name).name.startswith('metadata.'))
    if others:
        notes.append(f'{sum(others.values())} files are not read, by their extension: '
                     + ', '.join(f'{count} {suffix}' for suffix, count in others.most_common(5)))
    if without := sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith('.')
                         and not any(is_image(name) and name.startswith(p.name + '/') for name in files)):
        notes.append(f'{len(without)} sub-folders hold no picture: {", ".join(without[:10])}')
    top = Path(name.removeprefix('folder:')).expanduser()
    if loose := 0 if top == root else sum(is_image(p.name) and p.is_file() for p in top.iterdir()):
        notes.append(f'{loose} pictures lie beside the folders of the splits: they are not read')
    home = root.resolve()
    if away := sum(not (root / name).resolve().is_relative_to(home) for name, entry
                   in zip(source.names, source.entries, strict=True) if not entry.problem):
        notes.append(f'{away} pictures are links out of the folder')
    return notes


def is_clean(report: Mapping[str, Any]) -> bool:
    """Whether every item is good and labels and metadata have no problem (notes do not count)."""
    return not report['bad'] and not report['problems']


def _shown(text: str) -> str:
    """Text that stays on its line of a terminal: odd file names come with escapes."""
    return text if text.isprintable() else ascii(text)


def summary(report: Mapping[str, Any]) -> str:
    """The report as text."""
    lines = [f'{report["good"]:,} of {report["items"]:,} items of {report["source"]}, split {report["split"]!r}, '
             f'are good']
    lines += [f'  bad: {_shown(entry["path"])}: {entry["reason"]}' for entry in report['bad']]
    lines += [f'  problem: {_shown(problem)}' for problem in report['problems']]
    if report['kinds']:
        lines.append('kinds: ' + ', '.join(f'{count:,} {kind}' for kind, count in report['kinds'].items()))
    if sizes := report['sizes']:
        common = ', '.join(f'{h} x {w} ({count:,})' for h, w, count in sizes['common'])
        lines.append(f'sizes (height x width): {sizes["distinct"]:,} in all, from '
                     f'{" x ".join(map(str, sizes["smallest"]))} to {" x ".join(map(str, sizes["largest"]))}; '
                     f'most often {common}')
    if report['classes'] is not None:
        counts = sorted(report['classes'].items(), key=lambda pair: pair[1])
        shown = counts if len(counts) <= 20 else [*counts[:5], ('...', sum(n for _, n in counts[5:-5])), *counts[-5:]]
        lines.append(f'classes: {len(counts):,}; ' + ', '.join(f'{_shown(name)} {n:,}' for name, n in shown))
    if report['captions']:
        lines.append(f'captions: {report["captions"]["with"]:,} items have one')
    lines += ['  equal: ' + ', '.join(_shown(path) for path in group) for group in report['duplicates'][:GROUPS]]
    if more := len(report['duplicates']) - GROUPS:
        lines += [f'  equal: and {more} more groups'] if more > 0 else []
    return '\n'.join(lines + [f'note: {_shown(note)}' for note in report['notes']])
