"""`folder:PATH`: pictures in a folder, by the conventions of Hugging Face's imagefolder.

    PATH/cat/1.png                        class sub-folders; labels are their sorted names
    PATH/train/cat/1.png, PATH/test/...   the same, with a folder for each split
    PATH/1.png, PATH/metadata.jsonl       one JSON object a line: {"file_name": "1.png", "caption": "a cat", ...}

Under a metadata file, folder names are not labels (a column `label`, of ints or names, is). `text` is read as
`caption` where there is no such column; all other columns come through. Hidden files are passed over; links are
followed, also out of the folder (a folder of links is a usual way to choose pictures).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gen_jax.data.decode import EXTENSIONS, MAX_PIXELS, check_picture_options, decode_image
from gen_jax.data.fingerprint import digest as digest_of
from gen_jax.data.ledger import CorruptItem
from gen_jax.data.listing import Entry, examine, file_digests, list_files, walk_files
from gen_jax.data.metadata import METADATA, label_column, read_metadata, to_numpy

__all__ = ['Folder', 'folder', 'open_folder']

SPLIT_NAMES = {'train': ('train', 'training'), 'validation': ('validation', 'valid', 'val', 'dev'),
               'test': ('test', 'testing', 'eval', 'evaluation')}
BYTES_PER_PIXEL = 16
"""No picture file needs more (four channels of 32 bits, uncompressed)."""


def is_image(name: str) -> bool:
    """Whether a file counts as a picture: by its extension, in any case."""
    return name.lower().endswith(EXTENSIONS)


def _has_image(place: Path) -> bool:
    return any(map(is_image, walk_files(place)))


def _split_folders(root: Path) -> dict[str, list[Path]]:
    """{'train': [PATH/train], ...}, or {} where the folder is not divided into splits."""
    alias = {name: split for split, names in SPLIT_NAMES.items() for name in names}
    splits: dict[str, list[Path]] = {}
    others = []
    for place in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith('.')):
        if place.name.lower() in alias:
            splits.setdefault(alias[place.name.lower()], []).append(place)
        else:
            others.append(place)
    if not splits:
        return {}
    if others := [place.name for place in others if _has_image(place)]:
        named = sorted(p.name for places in splits.values() for p in places)
        raise ValueError(f'{root}: the sub-folders {named} are named like splits and {others[:5]} like classes; put '
                         f'the classes inside of the splits, or rename those that are classes')
    for split, places in splits.items():
        if len(places) > 1:
            raise ValueError(f'{root}: the folders {[p.name for p in places]} are all the split {split!r}; keep one')
    return splits


class Folder:
    """The source made by `folder`; see there."""

    def __init__(self, root: Path, names: Sequence[str], entries: Sequence[Entry], columns: Sequence[Mapping[str, Any]],
                 info: dict[str, Any], picture: Mapping[str, Any], described: Mapping[str, Any], digest: str):
        self.root, self.names, self.entries, self.info = root, names, entries, info
        self._columns, self._picture, self._described, self._digest = columns, picture, described, digest

    def __len__(self) -> int:
        return len(self.names)

    def path_of(self, index: int) -> str:
        """What the ledger calls item `index`."""
        return str(self.root / self.names[index])

    def columns_of(self, index: int) -> Mapping[str, Any]:
        """The item without its picture."""
        return self._columns[index]

    def bytes_of(self, index: int) -> bytes:
        """The file's content.

        Raises:
            CorruptItem: what is there is not a file, or larger than any picture.
            OSError: a file that cannot be read (permissions, a lost drive): a passing failure, which must not change
                what the model sees.
        """
        if problem := self.entries[index].problem:
            raise CorruptItem(self.path_of(index), problem)
        return (self.root / self.names[index]).read_bytes()

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self.names):
            raise IndexError(f'index {index} outside of {self.root} with {len(self.names)} images')
        image = decode_image(self.bytes_of(index), self.path_of(index), **self._picture)
        return {'image': image, **self._columns[index]}

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """See `gen_jax.data.listing.file_digests`; made when first asked for, since it may read every file."""
        described = dict(self._described)
        rows = described.pop('rows')
        return {**described, **file_digests(self.root, self.names, self.entries, rows, self._digest)}


def folder(path: str, split: str = 'train', *, image_size: int | None = None, channels: int = 3,
           background: tuple[int, int, int] = (255, 255, 255), max_pixels: int = MAX_PIXELS, draft: bool = False,
           digest: str = 'auto') -> Folder:
    """Images below `path` (PNG, JPEG, WebP, BMP, first frame of GIF and TIFF).

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
        draft: decode large JPEGs at reduced size; see `gen_jax.data.decode.decode_image`.
        digest: what the fingerprint covers of the files beside their names and sizes: 'content', nothing ('sizes'), or
            the content of folders up to 1 GiB ('auto').

    Raises:
        ValueError: no such folder or split; no image, or none that can be decoded; images beside class folders;
            metadata lines that are not JSON, name a missing file or one outside of the folder.
        OSError: a folder that cannot be listed or a file that cannot be read.
        CorruptItem: when reading a damaged image (the pipeline replaces it and names it in its ledger).
    """
    source, problems = open_folder(path, split, image_size=image_size, channels=channels, background=background,
                                   max_pixels=max_pixels, draft=draft, digest=digest)
    if problems:
        more = f' (and {len(problems) - 1} more: gen-jax data check shows them)' if problems[1:] else ''
        raise ValueError(problems[0] + more)
    _require_one(source)
    return source


def open_folder(path: str, split: str = 'train', *, image_size: int | None = None, channels: int = 3,
                background: tuple[int, int, int] = (255, 255, 255), max_pixels: int = MAX_PIXELS,
                draft: bool = False, digest: str = 'auto') -> tuple[Folder, list[str]]:
    """`folder`, with what is wrong with labels and metadata handed back instead of raised, and no image decoded."""
    check_picture_options('folder', channels, image_size, max_pixels, background, draft)
    if digest not in ('auto', 'content', 'sizes'):
        raise ValueError(f"folder: digest={digest!r} is not one of 'auto', 'content', 'sizes'")
    top = Path(path).expanduser()
    if not top.is_dir():
        raise ValueError(f'folder:{path}: there is no such folder' + (' (it is a file)' if top.exists() else ''))
    wanted = next((name for name, names in SPLIT_NAMES.items() if split in names), split)
    splits = _split_folders(top) or {'train': [top]}
    if wanted not in splits:
        raise ValueError(f'folder:{path} has no split {split!r}, only {sorted(splits)}; put the images of a split '
                         f'into a sub-folder of its name (train, validation, test)')
    root = splits[wanted][0]
    files = {places[0]: list_files(places[0]) for places in splits.values()}
    names = [name for name in files[root] if is_image(name)]
    if not names:
        seen = dict(Counter(Path(name).suffix or '(none)' for name in files[root]).most_common(5))
        raise ValueError(f'folder:{path}: no images in {root} (looked for {", ".join(EXTENSIONS)}; '
                         + (f'the files there end in {seen})' if seen else 'it is empty)'))
    entries = [examine(root / name, BYTES_PER_PIXEL * max_pixels + 2**20) for name in names]
    rows, problems = read_metadata(root, files[root], names)
    listed = None if rows is None else [rows.get(name, {}) for name in names]
    if rows is None:
        columns, labels = _label_by_folder(root, names, _classes(files), problems)
    else:
        columns, labels = _label_by_column(root, listed, rows, files, problems)
    picture = {'channels': channels, 'background': tuple(background), 'max_pixels': max_pixels,
               'image_size': image_size, 'draft': draft}
    described = {'source': 'folder', 'split': wanted, 'images': len(names), 'labels': digest_of(labels),
                 **{k: v for k, v in picture.items() if k != 'draft' or v}, 'background': list(background),
                 'rows': listed}
    info = {'image_shape': None if image_size is None else (image_size, image_size, channels),
            'num_classes': None if labels is None else len(labels), 'label_names': labels, 'channels': channels}
    return Folder(root, names, entries, columns, info, picture, described, digest), problems


def _classes(files: Mapping[Path, Sequence[str]]) -> list[str] | None:
    """Sorted class names over all splits, so that a class has one label everywhere; None without class folders."""
    return sorted({name.split('/')[0] for names in files.values() for name in names
                   if '/' in name and is_image(name)}) or None


def _label_by_folder(root: Path, names: Sequence[str], labels: list[str] | None, problems: list[str]):
    if labels is None:
        return [{} for _ in names], None
    if loose := [name for name in names if '/' not in name]:
        problems.append(f'{root}: {len(loose)} images lie beside the class folders, the first: {loose[0]}; move '
                        f'them into a class folder, or describe all images in a {METADATA}')
        return [{} for _ in names], None
    number = {label: i for i, label in enumerate(labels)}
    return [{'label': np.int32(number[name.split('/')[0]])} for name in names], labels


def _label_by_column(root: Path, listed, rows, files: Mapping[Path, Sequence[str]], problems: list[str]):
    labels = None
    if not problems and any('label' in row for row in rows.values()):
        # Over all splits, so that a name has one number everywhere.
        every = [row['label'] for place, names in files.items()
                 for row in (rows if place == root else
                             read_metadata(place, names, list(filter(is_image, names)))[0] or {}).values()
                 if 'label' in row]
        try:
            listed, labels = label_column(listed, every)
        except ValueError as error:
            problems.append(f'{root}: {error}')
    return to_numpy(listed), labels


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
