"""safetensors files, read as views of a memory map and written tensor by tensor.

The format (https://github.com/huggingface/safetensors, "Format"): 8 bytes little-endian length N, N bytes of JSON
{name: {dtype, shape, data_offsets}}, then the tensors. A view costs no memory until it is read, so that a checkpoint of
any size is loaded leaf by leaf, and no code in a file is ever run: pickles are refused.
"""

import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

__all__ = ['DTYPES', 'Tensor', 'find_weights', 'read_safetensors', 'read_weights', 'shard', 'write_safetensors']

DTYPES = {
    'F64': np.float64, 'F32': np.float32, 'F16': np.float16, 'BF16': ml_dtypes.bfloat16,
    'F8_E4M3': ml_dtypes.float8_e4m3fn, 'F8_E5M2': ml_dtypes.float8_e5m2, 'I64': np.int64, 'I32': np.int32,
    'I16': np.int16, 'I8': np.int8, 'U64': np.uint64, 'U32': np.uint32, 'U16': np.uint16, 'U8': np.uint8,
    'BOOL': np.bool_,
}
"""The format's names of numbers."""
NAMES = {np.dtype(v): k for k, v in DTYPES.items()}
PICKLES = ('.bin', '.pt', '.pth', '.ckpt', '.pkl', '.pickle')
STEMS = ('diffusion_pytorch_model', 'model')
"""What diffusers and transformers call the file of weights in a model's folder."""
MAX_HEADER = 100_000_000  # the reference implementation's limit


class Tensor(NamedTuple):
    """A tensor to be written; its values are asked for when its turn has come."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def refuse_pickle(path: Path) -> None:
    """Raises ValueError, with the way out, if the file is called as pickles are."""
    if path.suffix not in PICKLES:
        return
    how = ('load it once where you trust it (torch.load(path, weights_only=True); EDM and StyleGAN files with the code '
           "of their repository: pickle.load(file)['G_ema' or 'ema'].state_dict()), then write it with "
           'safetensors.torch.save_file({k: v.contiguous() for k, v in state_dict.items()}, "model.safetensors")')
    raise ValueError(f'{path} is a pickle, which can run any code when it is read, so gen_jax does not read it: {how}; '
                     'see docs/weights.md')


def read_safetensors(path) -> dict[str, np.ndarray]:
    """Name -> a read-only view of the file; nothing is read but the header.

    The file must not be changed while the views are in use.

    Raises:
        ValueError: a pickle, another kind of file, a truncated file, a header that the file cannot hold.
    """
    path = Path(path)
    refuse_pickle(path)
    if not path.is_file():
        raise ValueError(f'there is no file {path}')
    size = path.stat().st_size
    with open(path, 'rb') as file:
        start = file.read(8)
        length = struct.unpack('<Q', start)[0] if len(start) == 8 else size
        if length > min(size - 8, MAX_HEADER):
            raise ValueError(_no_header(path, start, length, size))
        text = file.read(length)
    try:
        header = json.loads(text)
        entries = {k: (DTYPES.get(v['dtype'], v['dtype']), tuple(v['shape']), *v['data_offsets'])
                   for k, v in header.items() if k != '__metadata__'}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f'{path} is not a safetensors file: its header is no table of tensors; download or convert '
                         'it again') from None
    data = np.memmap(path, np.uint8, 'r', offset=0) if size else None
    return {k: _view(path, k, data, 8 + length, *entry) for k, entry in entries.items()}


def _no_header(path: Path, start: bytes, length: int, size: int) -> str:
    """What a file is whose first bytes are no length of a header."""
    if start.startswith(b'version '):
        return f'{path} is a Git LFS pointer, not the weights: run git lfs pull in that folder'
    if start.startswith((b'PK\x03\x04', b'\x80')):
        return f'{path} is not a safetensors file but a torch pickle under another name; see docs/weights.md'
    if len(start) < 8:
        return f'{path} is not a safetensors file: it is only {size} bytes long; download it again'
    return (f'{path} is truncated or not a safetensors file: its header should have {length:,} bytes, but the file has '
            f'{size:,}; download it again')


def _view(path, name, data, base, dtype, shape, begin, end) -> np.ndarray:
    if isinstance(dtype, str):
        raise ValueError(f'{path}: {name!r} has the unknown dtype {dtype!r}; known are {", ".join(DTYPES)}')
    needed = math.prod(shape) * np.dtype(dtype).itemsize
    if end - begin != needed or begin < 0:
        raise ValueError(f'{path} is damaged: {name!r} {shape} needs {needed:,} bytes, its header says '
                         f'{end - begin:,}; download it again')
    if base + end > data.size:
        raise ValueError(f'{path} is truncated: {name!r} should end at byte {base + end:,}, but the file has '
                         f'{data.size:,}; download it again')
    return np.ndarray(shape, dtype, data, base + begin)


def read_weights(path) -> dict[str, np.ndarray]:
    """A safetensors file, or all the shards that an index (`*.index*.json`) names, as `read_safetensors`.

    Raises:
        ValueError: as there; missing shards, and tensors that their shard does not have.
    """
    path = Path(path)
    if path.suffix != '.json':
        return read_safetensors(path)
    try:
        where = dict(json.loads(path.read_text())['weight_map'])
    except (ValueError, KeyError, TypeError, OSError) as e:
        raise ValueError(f"{path} is no index of shards (no 'weight_map' in it): {e}") from None
    shards = sorted(set(where.values()))
    lost = [name for name in shards if not (path.parent / name).is_file()]
    if lost:
        raise ValueError(f'{len(lost)} of {len(shards)} shards that {path} names are missing: {", ".join(lost)}; '
                         'download them again')
    files = {name: read_safetensors(path.parent / name) for name in shards}
    absent = [k for k, name in where.items() if k not in files[name]]
    if absent:
        raise ValueError(f'{path} says that {where[absent[0]]} has {absent[0]!r} ({len(absent)} such in all), but it '
                         'has not: the shards are of another version; download them again')
    return {k: v for name in shards for k, v in files[name].items()}


def weight_names(variant: str | None = None) -> list[str]:
    """Names that a file of weights, or the index of its shards, may have in a model's folder."""
    dot = f'.{variant}' if variant else ''
    return [name for stem in STEMS for name in (f'{stem}{dot}.safetensors', f'{stem}.safetensors.index{dot}.json')]


def find_weights(folder, variant: str | None = None) -> Path:
    """The file, or the index, with the weights of a model's folder.

    Args:
        variant: 'fp16' finds `model.fp16.safetensors`.

    Raises:
        ValueError: there is none; says which variants and pickles there are.
    """
    folder = Path(folder)
    names = weight_names(variant)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    pickles = [n for n in there if n.endswith(PICKLES)]
    others = [n for n in there if '.safetensors' in n]
    if pickles and not others:
        refuse_pickle(folder / pickles[0])
    hint = f'; it holds {", ".join(others)} (variant={_variant_of(others[0])!r}?)' if others else ''
    raise ValueError(f'{folder} holds no safetensors of the name {names[0]} or {names[2]}'
                     + (f' (variant {variant!r})' if variant else '') + hint)


def _variant_of(name: str) -> str | None:
    return next((p.split('-')[0] for p in name.split('.')[1:] if p not in ('safetensors', 'index', 'json')), None)


def write_safetensors(path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a file, holding one tensor in memory at a time; it appears complete or not at all.

    Args:
        metadata: strings for the header; loaders of PyTorch weights ask for {'format': 'pt'}, which is the default.
    """
    path = Path(path)
    order = sorted(tensors, key=lambda k: (-np.dtype(tensors[k].dtype).itemsize, k))  # so that all are aligned
    header, end = {'__metadata__': dict(metadata or {'format': 'pt'})}, 0
    for name in order:
        tensor = tensors[name]
        begin, end = end, end + tensor.nbytes
        header[name] = {'dtype': NAMES[np.dtype(tensor.dtype)], 'shape': list(tensor.shape),
                        'data_offsets': [begin, end]}
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        with open(temporary, 'wb') as file:
            file.write(struct.pack('<Q', len(text)) + text)
            for name in order:
                value = np.ascontiguousarray(tensors[name].read(), tensors[name].dtype)
                if value.size != math.prod(tensors[name].shape):
                    raise ValueError(f'{name!r} has {value.size} values, {tensors[name].shape} were announced')
                file.write(value.reshape(-1).view(np.uint8).data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def shard(tensors: Mapping[str, Tensor], limit: int) -> list[dict[str, Tensor]]:
    """Splits tensors, in their order, into parts of at most `limit` bytes; a larger tensor stands alone."""
    parts, used = [{}], 0
    for name, tensor in tensors.items():
        if parts[-1] and used + tensor.nbytes > limit:
            parts.append({})
            used = 0
        parts[-1][name] = tensor
        used += tensor.nbytes
    return parts


def parse_size(size: int | str) -> int:
    """'10GB', '500MB', '4KB' or a number of bytes -> bytes.

    Raises:
        ValueError: anything else, or less than one byte.
    """
    units = {'KB': 10**3, 'MB': 10**6, 'GB': 10**9}
    text = str(size).strip().upper()
    unit = next((u for u in units if text.endswith(u)), '')
    try:
        value = int(float(text.removesuffix(unit)) * units.get(unit, 1))
    except (ValueError, OverflowError):
        value = 0
    if value < 1:
        raise ValueError(f'max_shard_size {size!r}: give bytes, or a number with KB, MB or GB')
    return value


def write_weights(folder, stem: str, tensors: Mapping[str, Tensor], max_shard_size: int | str = '10GB',
                  variant: str | None = None) -> list[Path]:
    """Writes `STEM.safetensors`, or shards and their index if that would be larger than max_shard_size.

    Returns:
        The files written; former weights of the same stem and variant that are not among them are removed.
    """
    folder, dot = Path(folder), f'.{variant}' if variant else ''
    parts = shard(tensors, parse_size(max_shard_size))
    names = [f'{stem}{dot}.safetensors'] if len(parts) == 1 else [
        f'{stem}{dot}-{i + 1:05d}-of-{len(parts):05d}.safetensors' for i in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        write_safetensors(folder / name, part)
    if len(parts) > 1:
        index = {'metadata': {'total_size': sum(t.nbytes for t in tensors.values())},
                 'weight_map': {k: name for name, part in zip(names, parts, strict=True) for k in part}}
        names.append(f'{stem}.safetensors.index{dot}.json')
        write_json(folder / names[-1], index)
    for old in _former(folder, stem, dot):
        if old.name not in names:
            old.unlink()
    return [folder / name for name in names]


def _former(folder: Path, stem: str, dot: str) -> Iterable[Path]:
    for pattern in (f'{stem}{dot}.safetensors', f'{stem}{dot}-?????-of-?????.safetensors',
                    f'{stem}.safetensors.index{dot}.json'):
        yield from folder.glob(pattern)


def write_json(path: Path, value) -> None:
    """Writes JSON as the published configs look; complete or not at all."""
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + '\n')
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
