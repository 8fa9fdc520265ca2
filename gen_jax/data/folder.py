"""`folder:PATH`: pictures in a folder, by the conventions of Hugging Face's imagefolder.

    PATH/cat/1.png                        class sub-folders; labels are their sorted names
    PATH/train/cat/1.png, PATH/test/...   the same, with a folder for each split
    PATH/1.png, PATH/metadata.jsonl       one JSON object a line: {"file_name": "1.png", "caption": "a cat", ...}

Under a metadata file, folder names are not labels (a column `label`, of ints or names, is). `text` is read as
`caption` where there is no such column; all other columns come through. Hidden files are passed over.
"""

import hashlib
import json
import os
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from gen_jax.data.decode import MAX_PIXELS, check_picture_options, decode_image, fit_image
from gen_jax.data.fingerprint import digest
from gen_jax.data.ledger import CorruptItem

__all__ = ['Folder', 'folder']

EXTENSIONS = ('.png', '.jpg', '.jpeg', '.webp', '.bmp', '.gif')
SPLIT_NAMES = {'train': ('train', 'training'), 'validation': ('validation', 'valid', 'val', 'dev'),
               'test': ('test', 'testing', 'eval', 'evaluation')}
METADATA = 'metadata.jsonl'


def _files(root: Path) -> list[str]:
    """All files below root as sorted posix paths, hidden ones left out, links followed but no folder twice."""
    found, seen = [], set()
    for place, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders[:] = []
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith('.'))
        relative = Path(place).relative_to(root)
        found += [(relative / name).as_posix() for name in names if not name.startswith('.')]
    return sorted(found)


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _split_folders(root: Path) -> dict[str, list[Path]]:
    """{'train': [PATH/train], ...}, or {} where the folder is not divided into splits."""
    alias = {name: split for split, names in SPLIT_NAMES.items() for name in names}
    splits: dict[str, list[Path]] = {}
    others = []
    for place in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith('.')):
        if place.name.lower() in alias:
            splits.setdefault(alias[place.name.lower()], []).append(place)
        elif any(_is_image(name) for name in _files(place)):
            others.append(place.name)
    if splits and others:
        named = sorted(p.name for places in splits.values() for p in places)
        raise ValueError(f'{root}: the sub-folders {named} are named like splits and {others[:5]} like classes; put '
                         f'the classes inside of the splits, or rename those that are classes')
    for split, places in splits.items():
        if len(places) > 1:
            raise ValueError(f'{root}: the folders {[p.name for p in places]} are all the split {split!r}; keep one')
    return splits


def _rows(root: Path, files: list[str]) -> dict[str, dict[str, Any]] | None:
    """Metadata by image path; None without a metadata file. Errors name the file and the line."""
    books = [name for name in files if PurePosixPath(name).name == METADATA]
    if not books:
        other = [name for name in files if PurePosixPath(name).name in ('metadata.csv', 'metadata.parquet')]
        if other:
            raise ValueError(f'{root / other[0]}: only {METADATA} is read; convert it (one JSON object a line)')
        return None
    present, rows, columns = set(files), {}, None
    for book in books:
        base = PurePosixPath(book).parent
        for number, line in enumerate((root / book).read_text(encoding='utf-8-sig').split('\n'), start=1):
            if not line.strip():
                continue
            where = f'{root / book}, line {number}'
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f'{where}: not JSON ({error}); each line must be one JSON object') from None
            name = row.pop('file_name', None) if isinstance(row, dict) else None
            if not isinstance(name, str) or not name:
                raise ValueError(f'{where}: no "file_name"; each line must be like '
                                 f'{{"file_name": "1.png", "caption": "a cat"}}')
            parts = PurePosixPath(name).parts
            if '..' in parts or PurePosixPath(name).is_absolute() or '\\' in name or ':' in parts[0]:
                raise ValueError(f'{where}: file_name {name!r} leaves the folder; use a path below it, with "/"')
            path = (base / name).as_posix()
            if path not in present:
                raise ValueError(f'{where}: there is no file {root / path}; restore the file or remove the line')
            if path in rows:
                raise ValueError(f'{where}: {name!r} has a line already; keep one')
            if 'text' in row and 'caption' not in row:
                row['caption'] = row.pop('text')
            if 'image' in row:
                raise ValueError(f'{where}: a column may not be called "image"; rename it')
            columns = set(row) if columns is None else columns
            if set(row) != columns:
                raise ValueError(f'{where}: its columns {sorted(row)} differ from those before, {sorted(columns)}; '
                                 f'every line needs the same')
            rows[path] = row
    if unlisted := [name for name in files if _is_image(name) and name not in rows]:
        raise ValueError(f'{root}: {len(unlisted)} images have no line in {METADATA}, the first: {unlisted[0]}; '
                         f'add lines or move the images away')
    return rows


def _value(value: Any, as_float: bool, where: str) -> Any:
    if isinstance(value, bool):
        return np.bool_(value)
    if as_float and isinstance(value, (int, float)):
        return np.float32(value)
    if isinstance(value, int):
        if not -2**31 <= value < 2**31:
            raise ValueError(f'{where}: {value} does not fit into int32; write it as a string')
        return np.int32(value)
    return value


def _classes(places: list[Path]) -> list[str] | None:
    """Sorted class names over all splits, so that a class has one label everywhere; None without class folders."""
    names = set()
    for place in places:
        for child in place.iterdir():
            if child.is_dir() and not child.name.startswith('.') and any(map(_is_image, _files(child))):
                names.add(child.name)
    return sorted(names) or None


class Folder:
    """The source made by `folder`; see there."""

    def __init__(self, root: Path, names: list[str], columns: list[dict[str, Any]], info: dict[str, Any],
                 fingerprint: dict[str, Any], picture: dict[str, Any], image_size: int | None):
        self.root, self.names, self.info, self.fingerprint = root, names, info, fingerprint
        self._columns, self._picture, self._image_size = columns, picture, image_size

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self.names):
            raise IndexError(f'index {index} outside of {self.root} with {len(self.names)} images')
        path = self.root / self.names[index]
        image = decode_image(path.read_bytes(), path, **self._picture)
        if self._image_size is not None:
            image = fit_image(image, self._image_size)
        return {'image': image, **self._columns[index]}


def folder(path: str, split: str = 'train', *, image_size: int | None = None, channels: int = 3,
           background: tuple[int, int, int] = (255, 255, 255), max_pixels: int = MAX_PIXELS) -> Folder:
    """Images below `path` (PNG, JPEG, WebP, BMP, first frame of GIF).

    Examples hold `image` uint8 [H, W, channels]; `label` int32 where there are class folders or a `label` column; and
    the columns of the metadata: `caption` str, numbers as int32 and float32, the rest as JSON gives it.

    Args:
        path: the folder.
        split: 'train', 'validation' or 'test' (with their usual other names); a folder without split folders is all
            'train'.
        image_size: resize the shorter side to this and crop the centre; None leaves the sizes as they are.
        channels: 3 (RGB) or 1 (grey).
        background: RGB under transparent pixels.
        max_pixels: pictures of more pixels count as corrupt.

    Raises:
        ValueError: no such folder or split; no image, or none that can be decoded; images beside class folders;
            metadata lines that are not JSON, name a missing file or one outside of the folder.
        CorruptItem: when reading a damaged image (the pipeline replaces it and names it in its ledger).
    """
    check_picture_options('folder', channels, image_size, max_pixels, background)
    top = Path(path).expanduser()
    if not top.is_dir():
        raise ValueError(f'folder:{path}: there is no such folder' + (' (it is a file)' if top.exists() else ''))
    wanted = next((name for name, names in SPLIT_NAMES.items() if split in names), split)
    splits = _split_folders(top) or {'train': [top]}
    if wanted not in splits:
        raise ValueError(f'folder:{path} has no split {split!r}, only {sorted(splits)}; put the images of a split '
                         f'into a sub-folder of its name (train, validation, test)')
    root = splits[wanted][0]
    files = _files(root)
    names = [name for name in files if _is_image(name)]
    if not names:
        seen = dict(Counter(Path(name).suffix or '(none)' for name in files).most_common(5))
        raise ValueError(f'folder:{path}: no images in {root} (looked for {", ".join(EXTENSIONS)}; '
                         + (f'the files there end in {seen})' if seen else 'it is empty)'))
    rows, places = _rows(root, files), [places[0] for places in splits.values()]
    if rows is None:
        columns, labels = _label_by_folder(root, names, _classes(places))
    else:
        columns, labels = _label_by_column(root, [rows[name] for name in names], places)
    listing = hashlib.sha256()
    for name in names:
        listing.update(f'{name}\0{(root / name).stat().st_size}\0'.encode('utf-8', 'surrogateescape'))
    options = {'channels': channels, 'image_size': image_size, 'background': list(background),
               'max_pixels': max_pixels}
    fingerprint = {'source': 'folder', 'split': wanted, 'images': len(names), 'names_and_sizes': listing.hexdigest(),
                   'columns': digest([] if rows is None else [rows[name] for name in names]), 'labels': digest(labels),
                   **options}
    info = {'image_shape': None if image_size is None else (image_size, image_size, channels),
            'num_classes': None if labels is None else len(labels), 'label_names': labels, 'channels': channels}
    picture = {'channels': channels, 'background': tuple(background), 'max_pixels': max_pixels}
    source = Folder(root, names, columns, info, fingerprint, picture, image_size)
    _require_one(source)
    return source


def _label_by_folder(root: Path, names: list[str], labels: list[str] | None):
    if labels is None:
        return [{} for _ in names], None
    number = {label: i for i, label in enumerate(labels)}
    if loose := [name for name in names if '/' not in name]:
        raise ValueError(f'{root}: {len(loose)} images lie beside the class folders, the first: {loose[0]}; move '
                         f'them into a class folder, or describe all images in a {METADATA}')
    return [{'label': np.int32(number[name.split('/')[0]])} for name in names], labels


def _label_by_column(root: Path, rows: list[dict[str, Any]], places: list[Path]):
    labels = None
    if rows and 'label' in rows[0]:
        # Over all splits, so that a name has one number everywhere.
        every = [row['label'] for place in places
                 for row in (rows if place == root else (_rows(place, _files(place)) or {}).values()) if 'label' in row]
        if all(isinstance(label, str) for label in every):
            labels = sorted(set(every))
            number = {label: i for i, label in enumerate(labels)}
            rows = [{**row, 'label': number[row['label']]} for row in rows]
        elif all(isinstance(label, int) and not isinstance(label, bool) and label >= 0 for label in every):
            labels = [str(i) for i in range(max(every) + 1)]
        else:
            raise ValueError(f'{root}: the column "label" of {METADATA} must be all names or all integers >= 0')
    floats = {key for row in rows for key, value in row.items() if isinstance(value, float)}
    return [{key: _value(value, key in floats, f'{root / METADATA}, column {key!r}') for key, value in row.items()}
            for row in rows], labels


def _require_one(source: Folder) -> None:
    """Refuses a folder in which nothing can be decoded; usually looks at one image."""
    first = None
    for index in range(len(source)):
        try:
            source[index]
            return
        except CorruptItem as error:
            first = first or error
    raise ValueError(f'{source.root}: none of the {len(source)} images can be decoded; the first: {first}')
