"""Whether a checkpoint's files are the bytes that were written: a manifest with the size and SHA-256 of each.

The manifest carries its own digest and the step's name, and lies in the step's folder before the folder gets that name;
so a step without one is a step of gen_jax before there were manifests, or damaged.
"""

import contextlib
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

__all__ = ['MANIFEST', 'COMMIT_MARK', 'CheckpointError', 'IntegrityError', 'write_manifest', 'verify', 'flush_folder']

MANIFEST = 'MANIFEST.json'
COMMIT_MARK = 'commit_success.txt'
_SAYS_SO = (COMMIT_MARK, 'meta/metadata')  # files that name the manifest, so that its absence shows
_FORMAT = 1


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, unreadable or of another model; the message says which and what to do."""


class IntegrityError(CheckpointError):
    """A step whose files are not what was written; the message names the first bad one and why."""


def write_manifest(folder, step: str) -> None:
    """Writes the manifest of every file under `folder`, which will be called `step`, and flushes all to the disk.

    Flushing makes a full or broken disk show here, while the step can still be given up, and lets the step before be
    deleted afterwards without fear of a power cut.

    Raises:
        OSError: a file cannot be read or flushed, or the manifest not be written.
    """
    folder = Path(folder)
    files = [name for name in _files(folder) if name != MANIFEST]
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(lambda name: _digest(folder / name, flush=True), files))
    entries = {name: [size, digest] for name, (size, digest) in zip(files, digests, strict=True)}
    with open(folder / MANIFEST, 'wb') as file:
        file.write(_render({'format': _FORMAT, 'step': step, 'files': entries}))
        file.flush()
        os.fsync(file.fileno())
    for parent, _, _ in os.walk(folder):
        flush_folder(parent)


def verify(folder, hashes: bool = True) -> bool:
    """Whether a step is verified: True, or False for one that was written before there were manifests.

    Args:
        folder: the step's folder. hashes: False compares names and sizes only, which reads no data.

    Raises:
        IntegrityError: naming the first bad file and why: digest, size, missing, unexpected, or unreadable.
    """
    folder = Path(folder)

    def bad(name, why):
        return IntegrityError(f'{folder / name}: {why}')

    try:
        there = _files(folder)
        if MANIFEST not in there:
            if not there:
                raise bad('', 'the folder is empty')
            if any(MANIFEST.encode() in (folder / name).read_bytes() for name in _SAYS_SO if name in there):
                raise bad(MANIFEST, 'missing')
            return False
        body = _parse((folder / MANIFEST).read_bytes())
    except OSError as e:
        raise bad('', f'cannot be read ({e})') from e
    except ValueError as e:
        raise bad(MANIFEST, f'damaged ({e})') from e
    if body['step'] != folder.name:
        raise bad('', f'the folder holds step {body["step"]}: it was renamed')
    files = body['files']
    for name in sorted({*files, *there} - {MANIFEST}):
        if name not in there:
            raise bad(name, 'missing')
        if name not in files:
            raise bad(name, 'unexpected, it is not in the manifest')
        try:
            size = (folder / name).stat().st_size
        except OSError as e:  # a link to nothing, a loop of links
            raise bad(name, f'cannot be read ({e})') from e
        if size != files[name][0]:
            raise bad(name, f'size {size:,} bytes, {files[name][0]:,} were written')
    if hashes:
        with ThreadPoolExecutor() as pool:
            for name, digest in zip(files, pool.map(lambda name: _digest_or_error(folder / name), files), strict=True):
                if digest != files[name][1]:
                    raise bad(name, digest if digest.startswith('cannot') else 'its SHA-256 is not that of the bytes '
                              'that were written')
    return True


def flush_folder(path) -> None:
    """Makes the names in a folder durable, where the file system can."""
    with contextlib.suppress(OSError):  # some network file systems refuse this for folders
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _files(folder: Path) -> list[str]:
    """Every file below, links included, relative and sorted."""
    return sorted((Path(parent) / name).relative_to(folder).as_posix()
                  for parent, _, names in os.walk(folder, onerror=_raise) for name in names)


def _raise(error):
    raise error


def _digest(path: Path, flush: bool = False) -> tuple[int, str]:
    with open(path, 'rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()  # in pieces, outside Python's lock
        if flush:
            os.fsync(file.fileno())
        return file.tell(), digest


def _digest_or_error(path: Path) -> str:
    try:
        return _digest(path)[1]
    except OSError as e:
        return f'cannot be read ({e})'


def _render(body: dict) -> bytes:
    text = json.dumps(body, sort_keys=True, separators=(',', ':'))
    whole = {'sha256': hashlib.sha256(text.encode()).hexdigest(), 'manifest': body}
    return json.dumps(whole, sort_keys=True, indent=1).encode()


def _parse(data: bytes) -> dict:
    """The manifest's body. Every byte counts: what does not render to the same bytes again is refused."""
    try:
        body = json.loads(data)['manifest']
        same = _render(body) == data
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError('it is not a manifest') from None
    if not same:
        raise ValueError('its own digest does not match')
    if body['format'] != _FORMAT:
        raise ValueError(f'its format is {body["format"]}, this gen_jax reads {_FORMAT}: update gen_jax')
    return body
