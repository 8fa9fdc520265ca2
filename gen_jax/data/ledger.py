"""Corrupt items: the error that a source raises for one, and the file in the workdir that names each of them once."""

import json
import os
import threading
from pathlib import Path

__all__ = ['CorruptItem', 'Ledger']


class CorruptItem(ValueError):
    """An item that cannot be decoded; the pipeline replaces it by a fixed substitute and names it in the ledger.

    Sources raise it for damaged *content* only. A file that cannot be read at all (permissions, a lost network drive)
    raises OSError and stops the run, since a passing failure would silently change what the model sees.
    """

    def __init__(self, path, reason: str):
        super().__init__(path, reason)
        self.path, self.reason = str(path), str(reason)

    def __str__(self) -> str:
        return f'{self.path}: {self.reason}'


class Ledger:
    """JSON lines {'step', 'index', 'path', 'reason'}, one for each corrupt item, at the step that first met it.

    Entries of earlier runs are read back, so a restart repeats none. Each entry is one `write` to a file opened for
    appending; a last line torn by a kill is ignored and closed off. Safe to share between threads.

    Args:
        path: the file, made with the first entry; None keeps the entries in memory only.
    """

    def __init__(self, path: str | os.PathLike | None = None):
        self.path = None if path is None else Path(path)
        self._lock = threading.Lock()
        self._steps: dict[str, int] = {}
        self._torn = False
        if self.path is not None and self.path.exists():
            text = self.path.read_text(errors='replace')
            self._torn = bool(text) and not text.endswith('\n')
            for number, line in enumerate(text.splitlines(), start=1):
                try:
                    entry = json.loads(line)
                    self._steps.setdefault(entry['path'], int(entry['step']))
                except (ValueError, KeyError, TypeError):
                    # A torn line stays in the file (it was closed off by a newline); anything else is not ours.
                    if line and not line.startswith('{'):
                        raise ValueError(f'{self.path}, line {number}: not a ledger of corrupt items ({line[:60]!r}); '
                                         f'move the file away') from None

    def record(self, step: int, index: int, path: str, reason: str) -> bool:
        """Adds an entry unless that path has one; True if it was new."""
        with self._lock:
            if path in self._steps:
                return False
            self._steps[path] = step
            if self.path is not None:
                entry = {'step': int(step), 'index': int(index), 'path': path, 'reason': reason}
                line = ('\n' if self._torn else '') + json.dumps(entry) + '\n'
                self.path.parent.mkdir(parents=True, exist_ok=True)
                file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
                try:
                    os.write(file, line.encode())
                finally:
                    os.close(file)
                self._torn = False
            return True

    def count(self, before_step: int | None = None) -> int:
        """Number of corrupt items met before that step (all if None): the same whether or not the run was restarted."""
        with self._lock:
            return sum(before_step is None or step < before_step for step in self._steps.values())

    def __len__(self) -> int:
        return self.count()
