"""Files that appear complete or not at all, and folders that one run alone writes to."""

import contextlib
import errno
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ['holding', 'replacing', 'write_text', 'save_npz']


@contextlib.contextmanager
def replacing(path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed onto it when the block ends well and removed otherwise.

    Missing folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def holding(folder, seconds: float = 5.0) -> Iterator[None]:
    """Keeps other runs out of a folder for the block, where its file system can; a killed process keeps nothing.

    Args:
        seconds: that the run before may take to end.

    Raises:
        BlockingIOError: another process holds it.
    """
    import fcntl

    handle, end = os.open(folder, os.O_RDONLY), time.monotonic() + seconds
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as e:
                if e.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    break  # a network file system without such locks
            if time.monotonic() >= end:
                raise BlockingIOError(f'{folder} is in use by another run, which would be damaged: wait for its end, '
                                      'stop it, or use another folder')
            time.sleep(0.1)
        yield
    finally:
        os.close(handle)


def write_text(path, text: str) -> None:
    """Writes a text file."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def save_npz(path, arrays: Mapping[str, Any]) -> None:
    """Writes a compressed NPZ file."""
    import numpy as np  # here, because what only writes text starts in half the time without

    with replacing(path) as temporary, open(temporary, 'wb') as file:
        np.savez_compressed(file, **arrays)
