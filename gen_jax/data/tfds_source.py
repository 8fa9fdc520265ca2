"""`tfds:NAME`: image data sets prepared by TensorFlow Datasets as ArrayRecord, read without TensorFlow.

TFDS describes a prepared data set by two JSON files, so it opens from its folder alone; images come as the PNG or JPEG
bytes they are stored as and are decoded by Pillow, like those of `folder`.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from gen_jax.data.decode import MAX_PIXELS, check_picture_options, decode_image
from gen_jax.data.ledger import CorruptItem

__all__ = ['TfdsSource', 'tfds_source']


def _import_tfds():
    try:
        import tensorflow_datasets as tfds
        from array_record.python import array_record_data_source  # noqa: F401 (fails here rather than at the first read)
    except ImportError as error:
        raise ImportError(f'tfds: data needs TensorFlow Datasets ({error}); install it with '
                          f'pip install "gen_jax[tfds]"') from error
    return tfds


def _versions(place: Path) -> list[Path]:
    """Prepared versions in a folder, oldest first."""
    def number(path):
        parts = path.name.split('.')
        return tuple(map(int, parts)) if len(parts) == 3 and all(p.isdigit() for p in parts) else None

    found = [p for p in place.iterdir() if number(p) and (p / 'dataset_info.json').exists()] if place.is_dir() else []
    return sorted(found, key=number)


def _find(name: str, data_dir: Path, how: str) -> Path:
    """The folder of NAME[/CONFIG][:VERSION] below data_dir."""
    bare, _, version = name.partition(':')
    place = data_dir / bare
    if '/' not in bare and not _versions(place) and place.is_dir():
        configs = sorted(p for p in place.iterdir() if _versions(p))
        if len(configs) > 1:
            raise ValueError(f'tfds:{name} is prepared in several configurations; say one of '
                             f'{[f"tfds:{bare}/{p.name}" for p in configs]}')
        place = configs[0] if configs else place
    versions = _versions(place)
    if version:
        chosen = [p for p in versions if p.name == version]
        if not chosen and versions:
            raise ValueError(f'tfds:{name}: version {version} is not prepared in {place}, only '
                             f'{[p.name for p in versions]}; leave the version out, or {how}')
        versions = chosen
    if not versions:
        raise ValueError(f'tfds:{name} is not prepared in {data_dir}; {how}')
    return versions[-1]


class TfdsSource:
    """The source made by `tfds_source`; see there."""

    def __init__(self, records, image_key: str, texts: set[str], picture: dict[str, Any], name: str,
                 fingerprint: dict[str, Any], info: dict[str, Any]):
        self.fingerprint, self.info = fingerprint, info
        self._records, self._image_key, self._texts = records, image_key, texts
        self._picture, self._name = picture, name

    def __len__(self) -> int:
        return len(self._records)

    def path_of(self, index: int) -> str:
        """What the ledger calls item `index`."""
        return f'{self._name}[{index}]'

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f'index {index} outside of {self._name} with {len(self)} examples')
        where = self.path_of(index)
        try:
            record = self._records[index]
        except (ValueError, RuntimeError) as error:  # a damaged chunk or message
            raise CorruptItem(where, f'{error} ({type(error).__name__})') from error
        data = record.pop(self._image_key)
        example = {'image': decode_image(bytes(data), where, **self._picture)}
        for key, value in record.items():
            if key in self._texts:
                value = value.decode('utf-8', 'replace') if isinstance(value, bytes) else value
                key = 'caption' if key == 'text' and 'caption' not in record else key
            elif isinstance(value, (bool, np.bool_)):
                value = np.bool_(value)
            elif key == 'label' or (isinstance(value, (int, np.integer)) and -2**31 <= value < 2**31):
                value = np.int32(value)
            elif isinstance(value, float):
                value = np.float32(value)
            example[key] = value
        return example


def tfds_source(name: str, split: str = 'train', *, data_dir: str | None = None, image_size: int | None = None,
                channels: int | None = None, background: tuple[int, int, int] = (255, 255, 255),
                max_pixels: int = MAX_PIXELS, draft: bool = False) -> TfdsSource:
    """A prepared TFDS image data set.

    Examples hold `image` uint8 [H, W, channels] and the other features: `label` int32, `caption` str (also from a
    feature called text), numbers and arrays as stored.

    Args:
        name: 'NAME[/CONFIG][:VERSION]', by default the only configuration and the newest version.
        split: as TFDS writes it, slices included: 'train', 'test', 'train[:90%]'.
        data_dir: where data sets are prepared; by default TFDS_DATA_DIR, or ~/tensorflow_datasets.
        image_size: resize the shorter side to this and crop the centre; None leaves the sizes as they are.
        channels: 3 or 1; by default what the data set declares.
        background: RGB under transparent pixels.
        max_pixels: pictures of more pixels count as corrupt.
        draft: decode large JPEGs at reduced size; see `gen_jax.data.decode.decode_image`.

    Raises:
        ValueError: not prepared, or prepared as TFRecord (both with the command that prepares it); unknown split; no
            image feature, or several of which none is called 'image'.
        ImportError: TensorFlow Datasets is not installed.
    """
    tfds = _import_tfds()
    root = Path(data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets').expanduser()
    how = (f'prepare it once with (this step needs TensorFlow, reading does not):\n'
           f'  tfds build {name} --file_format=array_record')
    if data_dir or os.environ.get('TFDS_DATA_DIR'):
        how += f'\n(and --data_dir={root})'
    place = _find(name, root, how)
    builder = tfds.builder_from_directory(place)
    formats = sorted(str(f.value) for f in builder.info.available_file_formats())
    if 'array_record' not in formats:
        raise ValueError(f'tfds:{name} is prepared in {place} as {", ".join(formats)}, which has no random access; '
                         f'move that folder away and {how}')
    features = builder.info.features
    images = [key for key in features if isinstance(features[key], tfds.features.Image)]
    key = 'image' if 'image' in images else images[0] if len(images) == 1 else None
    if key is None:
        raise ValueError(f"tfds:{name} has no feature 'image' that is an image, nor exactly one other: its images are "
                         f'{images}, its features {sorted(features)}')
    feature = features[key]
    if feature.np_dtype == np.float32:
        raise ValueError(f'tfds:{name}: its {key!r} is float32; only 8-bit and 16-bit images are read')
    height, width, declared = feature.shape
    channels = (1 if declared == 1 else 3) if channels is None else channels
    check_picture_options('tfds', channels, image_size, max_pixels, background, draft)
    try:
        records = builder.as_data_source(split, decoders={key: tfds.decode.SkipDecoding()}, file_format='array_record')
    except (ValueError, AssertionError) as error:
        raise ValueError(f'tfds:{name}, split {split!r}: {error} (splits: {sorted(builder.info.splits)}, or slices of '
                         f'them)') from error
    if missing := [file for file in _shards(builder, split) if not os.path.exists(file)]:
        raise ValueError(f'tfds:{name}: the file {missing[0]} is missing; restore it, or {how}')
    label = features['label'] if 'label' in features else None
    names = list(label.names) if isinstance(label, tfds.features.ClassLabel) and label.names else None
    info = {'image_shape': (image_size, image_size, channels) if image_size else
            (height, width, channels) if height and width else None,
            'num_classes': getattr(label, 'num_classes', None), 'label_names': names, 'channels': channels}
    fingerprint = {'source': 'tfds', 'name': builder.info.full_name, 'split': split,
                   'shards': [[Path(file).name, os.path.getsize(file)] for file in _shards(builder, split)],
                   'channels': channels, 'image_size': image_size, 'background': list(background),
                   'max_pixels': max_pixels, **({'draft': True} if draft else {})}
    texts = {k for k in features if isinstance(features[k], tfds.features.Text)}
    picture = {'channels': channels, 'background': tuple(background), 'max_pixels': max_pixels,
               'image_size': image_size, 'draft': draft}
    return TfdsSource(records, key, texts, picture, f'tfds:{builder.info.full_name}#{split}', fingerprint, info)


def _shards(builder, split: str) -> list[str]:
    return [str(instruction.filename) for instruction in builder.info.splits[split].file_instructions]
