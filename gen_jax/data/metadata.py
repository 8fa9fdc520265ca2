"""metadata.jsonl: what a folder of pictures says about each of them, read with every problem named by file and line.

Such files come from elsewhere: nothing in them may lead out of the folder, and no content may stop the reader.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from gen_jax.data.listing import examine

__all__ = ['METADATA', 'Row', 'label_column', 'read_metadata', 'to_numpy']

METADATA = 'metadata.jsonl'
OTHER_BOOKS = ('metadata.csv', 'metadata.parquet')
MAX_CLASSES = 2**20
Row = dict[str, Any]


def _constant(name: str):
    raise ValueError(f'{name} is not JSON; write a number or leave the line out')


def _parse(line: bytes) -> Row:
    """One line's object; ValueError says what is wrong with it."""
    try:
        text = line.decode('utf-8')
    except UnicodeDecodeError as error:
        raise ValueError(f'not UTF-8 ({error}); save the file as UTF-8') from None
    try:
        row = json.loads(text, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'not JSON ({str(error)[:200]}); each line must be one JSON object') from None
    if not isinstance(row, dict) or not isinstance(row.get('file_name'), str) or not row['file_name']:
        raise ValueError('no "file_name"; each line must be like {"file_name": "1.png", "caption": "a cat"}')
    return row


def _path(name: str, base: PurePosixPath) -> str:
    """The image's path below the folder; ValueError where it would leave it."""
    parts = PurePosixPath(name).parts
    if not parts or '..' in parts or PurePosixPath(name).is_absolute() or '\\' in name or ':' in parts[0]:
        raise ValueError(f'file_name {name!r} leaves the folder; use a path below it, with "/"')
    return (base / name).as_posix()


def _kind(value: Any) -> str:
    """What may share a column: numbers become arrays of numbers, everything else stays as JSON gives it."""
    if isinstance(value, bool):
        return 'true or false'
    return 'numbers' if isinstance(value, (int, float)) else 'text'


def _fits(key: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    if isinstance(value, int) and not -2**31 <= value < 2**31:
        raise ValueError(f'column {key!r}: {str(value)[:40]} does not fit into int32; write it as a string')
    if isinstance(value, float) and not (math.isfinite(value) and abs(value) <= np.finfo(np.float32).max):
        raise ValueError(f'column {key!r}: {value} does not fit into float32; write it as a string')


class _Columns:
    """The columns of the rows so far, and what they hold."""

    def __init__(self):
        self.kinds: dict[str, str] | None = None

    def check(self, row: Row) -> None:
        """ValueError where a row does not go with those before."""
        if 'image' in row:
            raise ValueError('a column may not be called "image"; rename it')
        kinds = {key: _kind(value) for key, value in row.items()}
        if self.kinds is None:
            self.kinds = kinds
        if kinds.keys() != self.kinds.keys():
            raise ValueError(f'its columns {sorted(kinds)} differ from those before, {sorted(self.kinds)}; every '
                             f'line needs the same')
        for key, value in row.items():
            if kinds[key] != self.kinds[key]:
                raise ValueError(f'column {key!r} holds {kinds[key]} here and {self.kinds[key]} before; '
                                 f'every line needs the same')
            _fits(key, value)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    content = path.read_bytes().removeprefix(b'\xef\xbb\xbf')
    for number, line in enumerate(content.split(b'\n'), start=1):
        if line.strip():
            yield number, line


def read_metadata(root: Path, files: Sequence[str], images: Sequence[str]
                  ) -> tuple[dict[str, Row] | None, list[str]]:
    """Rows by image path, without their file_name and with `text` as `caption` where there is no such column.

    Args:
        root: the folder.
        files: all files below it, posix paths.
        images: those of them that are images.

    Returns:
        rows, or None without a metadata file; and the problems, each naming file, line and remedy. Rows with problems
        are left out.
    """
    books = [name for name in files if PurePosixPath(name).name == METADATA]
    if not books:
        other = [name for name in files if PurePosixPath(name).name in OTHER_BOOKS]
        return None, [f'{root / name}: only {METADATA} is read; convert it (one JSON object a line)'
                      for name in other[:1]]
    present, pictures, rows, columns, problems = set(files), set(images), {}, _Columns(), []
    named = set()
    for book in books:
        if what := examine(root / book, 2**63).problem:  # a pipe would be read for ever
            problems.append(f'{root / book}: {what}; put a file of JSON lines there, or remove it')
            continue
        base = PurePosixPath(book).parent
        for number, line in _lines(root / book):
            try:
                row = _parse(line)
                name = row.pop('file_name')
                path = _path(name, base)
                if path not in present:
                    raise ValueError(f'there is no file {str(root / path)!r}; restore the file or remove the line')
                if path not in pictures:
                    raise ValueError(f'{name!r} does not end like a picture; rename it or remove the line')
                if path in named:
                    raise ValueError(f'{name!r} has a line already; keep one')
                named.add(path)
                if 'text' in row and 'caption' not in row:
                    row['caption'] = row.pop('text')
                columns.check(row)
                rows[path] = row
            except ValueError as error:
                problems.append(f'{root / book}, line {number}: {error}')
    if unlisted := [name for name in images if name not in named]:
        problems.append(f'{root}: {len(unlisted)} images have no line in {METADATA}, the first: {unlisted[0]}; '
                        f'add lines or move the images away')
    return rows, problems


def label_column(rows: Sequence[Row], every: Sequence[Any]) -> tuple[list[Row], list[str]]:
    """Rows with their `label` as a number, and the names of all labels.

    Args:
        rows: of this split.
        every: the labels of all splits, so that a name has one number everywhere.

    Raises:
        ValueError: labels that are neither all names nor all integers >= 0.
    """
    if all(isinstance(label, str) for label in every):
        names = sorted(set(every))
        number = {label: i for i, label in enumerate(names)}
        return [{**row, 'label': number[row['label']]} for row in rows], names
    if not all(isinstance(label, int) and not isinstance(label, bool) and label >= 0 for label in every):
        raise ValueError(f'the column "label" of {METADATA} must be all names or all integers >= 0')
    if max(every) >= MAX_CLASSES:
        raise ValueError(f'the column "label" of {METADATA} goes up to {max(every)}; number the classes from 0 (at '
                         f'most {MAX_CLASSES}) or name them')
    return list(rows), [str(i) for i in range(max(every) + 1)]


def to_numpy(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Numbers as np.int32, or np.float32 where any row of the column has a fraction; truth values as np.bool_."""
    floats = {key for row in rows for key, value in row.items() if isinstance(value, float)}

    def value(key, x):
        if isinstance(x, bool):
            return np.bool_(x)
        if isinstance(x, (int, float)):
            return np.float32(x) if key in floats else np.int32(x)
        return x

    return [{key: value(key, x) for key, x in row.items()} for row in rows]
