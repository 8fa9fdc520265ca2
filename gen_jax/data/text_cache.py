"""Text embeddings on disk: computed once by a trained text encoder, mapped into memory while a model trains on them.

A folder holds states.npy [N, L, C] and pooled.npy [N, C], a row for each distinct caption; captions.json, their texts
in this order (the first is '', what guidance calls the null condition); meta.json, what the numbers depend on.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gen_jax.data.fingerprint import digest

__all__ = ['TextCache', 'captions_of', 'open_text_cache', 'write_text_cache']

Encode = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]


class TextCache(NamedTuple):
    """An open cache: cache[caption] is (states float32 [L, C], pooled float32 [C])."""

    folder: Path
    rows: Mapping[str, int]
    """Caption -> row."""
    states: np.ndarray
    pooled: np.ndarray
    meta: Mapping[str, Any]
    """'encoder': the fingerprint that `write_text_cache` was given; 'dtype'; 'shape', (L, C)."""

    def __getitem__(self, caption: str) -> tuple[np.ndarray, np.ndarray]:
        """Raises ValueError for a caption that is not there."""
        if caption not in self.rows:
            raise ValueError(f'{self.folder} holds {len(self.rows)} captions, but not {caption!r}; make it again for '
                             'these data: gen-jax embed-text')
        row = self.rows[caption]
        return self.states[row].astype(np.float32), self.pooled[row].astype(np.float32)


def captions_of(source, key: str = 'captions') -> list[str]:
    """The distinct captions of a source, and the class captions of its info, in the order they are met.

    Raises:
        ValueError: the source's examples have no such entry.
    """
    found: dict[str, None] = {}
    for i in range(len(source)):
        example = source[i]
        if key not in example:
            raise ValueError(f'the data have no {key!r} but {sorted(example)}; name the entry that holds the text')
        found.update(dict.fromkeys([example[key]] if isinstance(example[key], str) else example[key]))
    found.update(dict.fromkeys(source.info.get('class_captions') or ()))
    return list(found)


def write_text_cache(root, captions: Iterable[str], encode: Encode, encoder: Mapping[str, Any], *,
                     batch_size: int = 256, dtype: str = 'float16') -> Path:
    """Embeds captions into a folder below `root`, named after what decides the numbers.

    A cache that is there already and has all the captions is kept; one that lacks some is replaced by one with both.
    The folder appears when it is complete.

    Args:
        captions: texts; '' is added, repeated ones are stored once.
        encode: up to batch_size texts -> (states [n, L, C], pooled [n, C]).
        encoder: JSON-able; equal values promise equal numbers: fingerprints of the weights and of the tokenizer.
        dtype: of the files, 'float16' or 'float32'.

    Returns:
        The folder.

    Raises:
        ValueError: unknown dtype; numbers that are not finite in it.
    """
    if dtype not in ('float16', 'float32'):
        raise ValueError(f'dtype {dtype!r}: choose float16 or float32')
    identity = {'encoder': dict(encoder), 'dtype': dtype}
    folder = Path(root) / digest(identity)[:16]
    wanted = dict.fromkeys(('', *captions))
    if folder.exists():
        known = open_text_cache(folder).rows
        if wanted.keys() <= known.keys():
            return folder
        wanted = {**dict.fromkeys(known), **wanted}
    texts = list(wanted)
    temporary, old = (folder.with_name(f'.{folder.name}.{os.getpid()}.{suffix}') for suffix in ('tmp', 'old'))
    temporary.mkdir(parents=True)
    try:
        files = {}
        for first in range(0, len(texts), batch_size):
            part = texts[first:first + batch_size]
            for name, values in zip(('states', 'pooled'), encode(part), strict=True):
                with np.errstate(over='ignore'):  # what does not fit is refused below
                    stored = np.asarray(values).astype(dtype)
                if len(stored) != len(part) or not np.isfinite(stored).all():
                    raise ValueError(f'{name} of {len(part)} captions, the first {part[0]!r}: {stored.shape} values, '
                                     f'not all of them finite as {dtype}; try float32')
                if name not in files:
                    files[name] = np.lib.format.open_memmap(temporary / f'{name}.npy', 'w+', stored.dtype,
                                                            (len(texts), *stored.shape[1:]))
                files[name][first:first + len(part)] = stored
        shape = list(files['states'].shape[1:])
        for file in files.values():
            file.flush()
        (temporary / 'captions.json').write_text(json.dumps(texts))
        (temporary / 'meta.json').write_text(json.dumps({**identity, 'shape': shape}))
        if folder.exists():
            os.replace(folder, old)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return folder


def open_text_cache(folder) -> TextCache:
    """Maps a cache into memory; nothing is read but the texts.

    Args:
        folder: of the cache, or the one in which `write_text_cache` made it, if that holds no other.

    Raises:
        ValueError: no cache, several, or one whose files do not belong together.
    """
    folder = Path(folder)
    if not (folder / 'meta.json').is_file():
        inside = sorted(p.parent for p in folder.glob('[!.]*/meta.json'))
        if len(inside) > 1:
            raise ValueError(f'{folder} holds {len(inside)} caches of text embeddings: name one of '
                             f'{", ".join(p.name for p in inside)}')
        folder = inside[0] if inside else folder
    missing = [name for name in ('meta.json', 'captions.json', 'states.npy', 'pooled.npy')
               if not (folder / name).is_file()]
    if missing:
        raise ValueError(f'{folder} is no cache of text embeddings (no {", no ".join(missing)}); make one with '
                         'gen-jax embed-text and give the folder that it names')
    meta = json.loads((folder / 'meta.json').read_text())
    rows = {text: row for row, text in enumerate(json.loads((folder / 'captions.json').read_text()))}
    states, pooled = (np.load(folder / f'{name}.npy', mmap_mode='r') for name in ('states', 'pooled'))
    expected = (len(rows), *meta['shape'])
    if states.shape != expected or pooled.shape != (expected[0], expected[2]):
        raise ValueError(f'{folder}: {len(rows)} captions of shape {meta["shape"]}, but states {states.shape} and '
                         f'pooled {pooled.shape}; make the cache again')
    return TextCache(folder, rows, states, pooled, meta)
