"""`cached:PATH`: what a frozen network made of a data set, written once and read by every training on it.

Encoding anew in every step costs latent diffusion 1.4 to 1.5 times the time (Rombach et al. 2022 train on stored
latents for that reason). One folder holds one split: an .npy file for each entry, mapped into memory, a line of JSON
for each example's text, and a manifest that says by what weights and from what data it was made.
"""

import json
import operator
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gen_jax.data.fingerprint import digest

__all__ = ['Cached', 'cached', 'write_cache']

MANIFEST, TEXT, VERSION = 'manifest.json', 'text.jsonl', 1


def write_cache(path, split: str, batches: Iterable[Mapping[str, Any]], *, length: int, made_by: Mapping[str, Any],
                info: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the folder PATH/SPLIT: all of it or nothing.

    Args:
        batches: dicts of arrays [B, ...] in the order of the examples; rows behind `length` are left out. What is not
            numeric must be text, or lists of it.
        length: number of examples.
        made_by: JSON-able: the weights, the data and the settings that decide the content. A folder made by the same
            is left as it is; another one is never overwritten.
        info: the source's, JSON-able.

    Returns:
        The manifest; its 'statistics' hold 'mean' and 'std' over all values of each floating-point entry.

    Raises:
        ValueError: too few rows, entries that cannot be stored, a folder made by something else.
    """
    folder = Path(path) / split
    made_by, info = json.loads(json.dumps([made_by, info]))
    if folder.exists():
        manifest = read_manifest(folder)
        if manifest['made_by'] != made_by or manifest['length'] != length:
            raise ValueError(f'{folder} was made by other weights, data or settings; delete it or choose another place')
        return manifest
    work = folder.with_name(f'.{split}.{os.getpid()}.tmp')
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        fields, texts, statistics = _write(work, batches, length)
        manifest = {'version': VERSION, 'split': split, 'length': length, 'made_by': made_by, 'info': info,
                    'fields': fields, 'texts': texts, 'statistics': statistics}
        (work / MANIFEST).write_text(json.dumps(manifest, indent=1))
        os.replace(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return manifest


def _write(work: Path, batches, length: int):
    arrays, texts, sums, row = {}, [], {}, 0
    with open(work / TEXT, 'w', encoding='utf-8') as file:
        for batch in batches:
            rows = min(len(next(iter(batch.values()))), length - row)
            batch = {k: np.asarray(v)[:rows] for k, v in batch.items()}
            if not row:
                texts = sorted(k for k, v in batch.items() if v.dtype.kind not in 'biuf')
                arrays = {k: np.lib.format.open_memmap(work / f'{k}.npy', 'w+', v.dtype, (length, *v.shape[1:]))
                          for k, v in batch.items() if k not in texts}
            for key, array in arrays.items():
                array[row:row + rows] = batch[key]
                if array.dtype.kind == 'f':
                    values = batch[key].astype(np.float64)
                    sums[key] = sums.get(key, 0) + np.array([values.size, values.sum(), np.square(values).sum()])
            for i in range(rows):
                try:
                    file.write(json.dumps({k: batch[k][i] for k in texts}, ensure_ascii=False) + '\n')
                except TypeError as error:
                    raise ValueError(f'{", ".join(texts)} of example {row + i} cannot be stored ({error}); leave out '
                                     'what is neither numbers nor text') from None
            row += rows
            if row == length:
                break
    if row < length:
        raise ValueError(f'{length} examples were announced, but {row} came')
    for array in arrays.values():
        array.flush()
    statistics = {k: {'mean': s / n, 'std': max(q / n - (s / n) ** 2, 0.0) ** 0.5} for k, (n, s, q) in sums.items()}
    return {k: [str(v.dtype), list(v.shape[1:])] for k, v in arrays.items()}, texts, statistics


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder that `write_cache` made; ValueError for any other folder."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        raise ValueError(f'{folder} holds no cache ({MANIFEST} is missing or unreadable); make one with gen-jax '
                         'cache') from None
    if manifest.get('version') != VERSION:
        raise ValueError(f'{folder} is a cache of version {manifest.get("version")}, not {VERSION}; make it anew')
    return manifest


class Cached:
    """The source made by `cached`; see there."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any], fields: Sequence[str]):
        self._folder, self._manifest, self._fields = folder, manifest, tuple(fields)
        self._arrays = {k: np.load(folder / f'{k}.npy', mmap_mode='r') for k in fields if k in manifest['fields']}
        for key, array in self._arrays.items():
            dtype, shape = manifest['fields'][key]
            if array.dtype != np.dtype(dtype) or array.shape != (manifest['length'], *shape):
                raise ValueError(f'{folder / key}.npy holds {array.dtype}{array.shape}, not {dtype} of '
                                 f'{(manifest["length"], *shape)} as its manifest says; make the cache anew')
        wanted = [k for k in fields if k in manifest['texts']]
        self._texts = [{} for _ in range(manifest['length'])]
        if wanted:
            with open(folder / TEXT, encoding='utf-8') as file:
                self._texts = [{k: row[k] for k in wanted} for row in map(json.loads, file)]
            if len(self._texts) != manifest['length']:
                raise ValueError(f'{folder / TEXT} has {len(self._texts)} lines, not {manifest["length"]}; make the '
                                 'cache anew')

    def __len__(self) -> int:
        return self._manifest['length']

    def __getitem__(self, index: int) -> dict:
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f'index {index} outside of the cache {self._folder} with {len(self)} examples')
        return {**{k: v[index].copy() if v.ndim > 1 else v[index] for k, v in self._arrays.items()},
                **self._texts[index]}

    @property
    def fingerprint(self) -> dict:
        # What decides the content, not the statistics: their last digits depend on the size of the batches.
        parts = {k: v for k, v in self._manifest.items() if k not in ('statistics', 'info')}
        return {'source': 'cached', 'manifest': digest(parts), 'fields': list(self._fields)}

    @property
    def info(self) -> dict:
        return {**self._manifest['info'], 'made_by': self._manifest['made_by'],
                'statistics': self._manifest['statistics']}


def cached(path: str, split: str = 'train', fields: Sequence[str] = ()) -> Cached:
    """Reads what `gen-jax cache` wrote.

    Args:
        path: its folder, with one folder inside for each split.
        fields: the entries of an example; () is all of them.

    Raises:
        ValueError: no such split or entry, with the choices; a folder that is no cache or is damaged.
    """
    folder = Path(path) / split
    if not folder.is_dir():
        there = sorted(p.parent.name for p in Path(path).glob(f'*/{MANIFEST}'))
        raise ValueError(f'{path} holds no cached split {split!r}: '
                         + (f'there are {", ".join(there)}' if there else 'make one with gen-jax cache'))
    manifest = read_manifest(folder)
    known = [*manifest['fields'], *manifest['texts']]
    if unknown := [k for k in fields if k not in known]:
        raise ValueError(f'{folder} has no entry {unknown[0]!r}; choose from {", ".join(known)}')
    return Cached(folder, manifest, tuple(fields) or tuple(known))
