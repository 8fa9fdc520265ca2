"""The files of a folder: what is there, what can be read, and digests that tell two folders apart by content alone."""

import errno
import hashlib
import json
import os
import stat
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ['CONTENT_BYTES', 'Entry', 'examine', 'file_digests', 'list_files', 'walk_files']

CONTENT_BYTES = 2**30
"""Up to so many bytes, a folder's fingerprint covers their content; beyond, only names and sizes."""
RUNS = 2048
KINDS = ((stat.S_ISFIFO, 'a named pipe'), (stat.S_ISSOCK, 'a socket'), (stat.S_ISCHR, 'a device'),
         (stat.S_ISBLK, 'a device'))


class Entry(NamedTuple):
    """A file as found when the folder was opened."""

    size: int
    """Bytes."""
    problem: str = ''
    """Why it must not be read: a link to nothing, a pipe (reading one would wait for ever), larger than any picture."""


def _stop(error: OSError) -> None:
    raise error


def walk_files(root: Path) -> Iterator[str]:
    """Posix paths of all files below root, hidden ones left out; links are followed, but no folder twice.

    Raises:
        OSError: a folder that cannot be listed (its pictures would be missing without a word).
    """
    seen = set()
    for place, folders, names in os.walk(root, followlinks=True, onerror=_stop):
        real = os.path.realpath(place)
        if real in seen:
            folders[:] = []
            continue
        seen.add(real)
        # A folder comes before the links to it, so that its pictures keep their own names.
        folders[:] = sorted((name for name in folders if not name.startswith('.')),
                            key=lambda name: (os.path.islink(os.path.join(place, name)), name))  # noqa: B023
        relative = Path(place).relative_to(root)
        for name in sorted(names):
            if not name.startswith('.'):
                yield (relative / name).as_posix()


def list_files(root: Path) -> list[str]:
    """`walk_files`, sorted: the order of the source, the same on every machine."""
    return sorted(walk_files(root))


def examine(path: str | os.PathLike, max_bytes: int) -> Entry:
    """What a path leads to, without opening it.

    Raises:
        OSError: other than for a link to nothing or a loop of links (permissions, a lost drive).
    """
    try:
        found = os.stat(path)
    except OSError as error:
        if error.errno == errno.ELOOP:
            return Entry(0, 'a loop of links')
        if isinstance(error, FileNotFoundError) and os.path.islink(path):
            return Entry(0, f'a link to {os.readlink(path)!r}, which is not there')
        raise
    if not stat.S_ISREG(found.st_mode):
        return Entry(0, next((kind for test, kind in KINDS if test(found.st_mode)), 'not a file') + ', not a file')
    if found.st_size > max_bytes:
        return Entry(found.st_size, f'{found.st_size} bytes are more than any picture within max_pixels needs')
    return Entry(found.st_size)


def _content(path: Path, entry: Entry) -> str:
    return entry.problem or hashlib.sha256(path.read_bytes()).hexdigest()


def file_digests(root: Path, names: Sequence[str], entries: Sequence[Entry],
                 rows: Sequence[Mapping[str, Any]] | None, digest: str) -> dict[str, Any]:
    """What of the files goes into the fingerprint: their order, names, sizes, bytes and metadata; never their place,
    times or owner, so that a copy elsewhere is the same data.

    Args:
        root, names, entries: the files in order.
        rows: the metadata of each, or None.
        digest: 'content' reads every file; 'sizes' none; 'auto' those of folders up to CONTENT_BYTES.

    Returns:
        'digest': which of the two it was. 'listing': SHA-256 over everything. 'files': {name of the first file of a
        run: 'COUNT PICTURES METADATA'}, with which a difference is traced to its files: every file of a small folder
        is a run of its own; in a large one, runs end at names chosen by their hash, so that a file more or less
        changes one run only.
    """
    if digest == 'auto':
        total = sum(entry.size for entry in entries if not entry.problem)
        digest = 'content' if total <= CONTENT_BYTES else 'sizes'
    if digest == 'content':
        with ThreadPoolExecutor(8) as pool:
            marks = list(pool.map(_content, [root / name for name in names], entries))
    else:
        marks = [entry.problem for entry in entries]
    every = 1
    while len(names) > RUNS * every:
        every *= 2
    whole, runs, parts = hashlib.sha256(), {}, None
    for i, (name, entry, mark) in enumerate(zip(names, entries, marks, strict=True)):
        plain = os.fsencode(name)
        picture = b'%s\0%d\0%s\0' % (plain, entry.size, os.fsencode(mark))
        row = b'' if rows is None else json.dumps(rows[i], sort_keys=True).encode()
        whole.update(picture + row + b'\0')
        if parts is None or zlib.crc32(plain) % every == 0:
            parts = runs[name] = [0, hashlib.sha256(), hashlib.sha256()]
        parts[0] += 1
        parts[1].update(picture)
        parts[2].update(row + b'\0')
    files = {name: f'{n} {pictures.hexdigest()[:12]} {metadata.hexdigest()[:8]}'
             for name, (n, pictures, metadata) in runs.items()}
    return {'digest': digest, 'listing': whole.hexdigest(), 'files': files}
