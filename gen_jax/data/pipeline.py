"""Position-exact reads: the global batch at step k is a pure function of (seed, k).

A Grain map dataset (shuffled, reseeded every epoch, repeated) maps global positions to items. Shard h of n reads for
batch k the positions k*B + h*B/n + j with j in 0..B/n-1, so the concatenated shards are the same batch for any n, and
the iterator's whole state is the step. The fingerprint guards what that step means.
"""

import json
import math
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from gen_jax.data.fingerprint import FingerprintError, check_fingerprint, digest
from gen_jax.data.ledger import CorruptItem, Ledger
from gen_jax.data.transforms import PerExample

__all__ = ['FingerprintError', 'Pipeline', 'check_fingerprint', 'eval_batches', 'fingerprint', 'train_iterator']

CACHE_BYTES = 256 * 2**20


class _Generator:
    """A np.random.Generator of (seed, position), made when first used (making one costs more than a small image)."""

    def __init__(self, seed: int, position: int):
        self._entropy, self._rng = (seed, position), None

    def __getattr__(self, name):
        if self._rng is None:
            self._rng = np.random.default_rng(self._entropy)
        return getattr(self._rng, name)


class _Reader:
    """Validated reads of a source, with a cache for small ones and fixed substitutes for corrupt items."""

    def __init__(self, source, cache: bool | str):
        if cache not in (True, False, 'auto'):
            raise ValueError(f"cache={cache!r} is not one of True, False, 'auto'")
        self.source, self.size = source, len(source)
        if self.size == 0:
            raise ValueError('the data source is empty: there is nothing to read')
        self.corrupt: dict[int, tuple[str, str]] = {}
        self._cache: dict[int, dict] = {}
        self._caching = cache

    def _validated(self, index: int, item: Mapping[str, Any]) -> dict[str, Any]:
        item = dict(item)
        for key, value in item.items():
            if not hasattr(value, 'dtype'):
                continue
            if value.dtype.kind == 'f' and np.isnan(value).any():
                raise ValueError(f'item {index} of the source: {key!r} holds NaN; repair or remove the item')
            if key == 'image' and value.dtype != np.uint8:
                raise ValueError(f'item {index} of the source: the image is {value.dtype}; sources give uint8 in '
                                 f'0..255, and the engine normalises on the device')
            if isinstance(value, np.ndarray) and self._caching:
                value = value.view()
                value.flags.writeable = False  # a transform that writes in place would change later epochs
                item[key] = value
        return item

    def item(self, index: int) -> dict[str, Any]:
        """Item `index`; CorruptItem if it is corrupt."""
        if index in self.corrupt:
            raise CorruptItem(*self.corrupt[index])
        if (item := self._cache.get(index)) is not None:
            return item
        try:
            item = self._validated(index, self.source[index])
        except CorruptItem as error:
            self.corrupt[index] = (error.path, error.reason)
            raise
        if self._caching == 'auto':
            nbytes = sum(getattr(value, 'nbytes', 200) for value in item.values())
            self._caching = nbytes * self.size <= CACHE_BYTES
        if self._caching:
            self._cache[index] = item
        return item

    def _transformed(self, index: int, transforms: Sequence[PerExample], seeds: tuple[int, int]) -> dict[str, Any]:
        item, rng = self.item(index), _Generator(*seeds)
        try:
            for transform in transforms:
                item = transform.apply(item, rng)
        except CorruptItem as error:  # a transform can do nothing with this item: it is corrupt from now on
            name = getattr(self.source, 'path_of', 'item {} of the source'.format)(index)
            self.corrupt[index] = (error.path or name, error.reason)
            raise
        except ValueError as error:
            raise ValueError(f'item {index} of the source: {error}') from error
        return item

    def substituted(self, index: int, transforms: Sequence[PerExample] = (), seeds: tuple[int, int] = (0, 0)
                    ) -> tuple[dict[str, Any], list[int]]:
        """Item `index` or its substitute, transformed, and the corrupt indices met on the way.

        A function of `index` and the seeds of the transforms alone: no other item and no other reader has a say.

        The candidates are index + t * stride (mod N) for t = 0, 1, ...; the stride is drawn from `index` and coprime
        to N, so all items are tried, in an order that no other item influences.
        """
        met: list[int] = []
        stride = None
        for t in range(self.size):
            candidate = index if t == 0 else (index + t * stride) % self.size
            try:
                return self._transformed(candidate, transforms, seeds), met
            except CorruptItem:
                met.append(candidate)
            if stride is None:
                rng = np.random.default_rng((0x5B57, index))
                stride = next((s for s in rng.integers(1, self.size, 64).tolist() if math.gcd(s, self.size) == 1),
                              1) if self.size > 1 else 1
        path, reason = self.corrupt[met[0]]
        raise AllCorrupt(f'all {self.size} items of the source are corrupt; the first: {path}: {reason}', met)


class AllCorrupt(ValueError):
    """No item of the source can be decoded."""

    def __init__(self, message: str, met: list[int]):
        super().__init__(message)
        self.met = met


def _stack(items: Iterable[Mapping[str, Any]], names: Sequence[int]) -> dict[str, np.ndarray]:
    """Dicts to a dict of arrays with a leading batch axis; what is not numeric becomes an object array.

    Row by row: an item is let go before the next one is made, so that all of them use the same memory.
    """
    batch: dict[str, np.ndarray] = {}
    for row, (item, name) in enumerate(zip(items, names, strict=True)):
        if not row:
            batch = {key: _column(value, len(names)) for key, value in item.items()}
        if item.keys() != batch.keys():
            raise ValueError(f'items {names[0]} and {name} of the source have different entries: {sorted(batch)} and '
                             f'{sorted(item)}; keep([...]) the common ones')
        for key, value in item.items():
            column = batch[key]
            if column.dtype != object:
                value = _plain_number(value)
                kind = getattr(value, 'dtype', type(value).__name__)
                if np.shape(value) != column.shape[1:] or kind != column.dtype:
                    raise ValueError(f'{key!r} of items {names[0]} and {name} of the source cannot be stacked: '
                                     f'{column.dtype}{column.shape[1:]} and {kind}{np.shape(value)}; resize and crop '
                                     f'images to one size, or keep([...]) without {key!r}')
            column[row] = value
    return batch


def _plain_number(value: Any) -> Any:
    """Python's own numbers as NumPy's of 32 bits."""
    if isinstance(value, (bool, int, float)) and not isinstance(value, np.generic):
        return {bool: np.bool_, int: np.int32, float: np.float32}[type(value)](value)
    return value


def _column(value: Any, rows: int) -> np.ndarray:
    """An array for `rows` such values."""
    value = _plain_number(value)
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in 'biuf':
        return np.empty((rows, *value.shape), value.dtype)
    return np.empty(rows, object)


def _examples(reader: _Reader, transforms: Sequence[PerExample], seed: int, positions, indices):
    """Transformed, stacked examples; and for each the corrupt indices that it met."""
    met = []

    def items():
        for position, index in zip(positions, indices, strict=True):
            item, corrupt = reader.substituted(index, transforms, (seed, position))
            met.append(corrupt)
            yield item

    return _stack(items(), indices), met


def _check_shards(size: int, batch_size: int, shard_index: int, shard_count: int) -> int:
    for name, value, least in (('batch_size', batch_size, 1), ('shard_count', shard_count, 1),
                               ('shard_index', shard_index, 0)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(f'{name}={value!r} must be an integer of at least {least}')
    if shard_index >= shard_count:
        raise ValueError(f'shard_index={shard_index} must be less than shard_count={shard_count}')
    if shard_count > size:
        raise ValueError(f'{shard_count} shards for {size} examples: use at most {size} shards, or more data')
    if batch_size % shard_count:
        raise ValueError(f'the global batch_size={batch_size} is not divisible by shard_count={shard_count}; '
                         f'use a multiple of {shard_count}')
    return batch_size // shard_count


def _order(size: int, seed: int):
    """Global position -> item, without end: a Grain map dataset."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**32:
        raise ValueError(f'seed={seed!r} must be an integer in 0..2**32-1')
    # `.seed` hashes the seed; `shuffle(seed=s)` would use s + epoch, so that seed 1 replays epoch 1 of seed 0.
    return grain.MapDataset.range(size).seed(int(seed)).shuffle().repeat()


def fingerprint(source, transforms: Sequence[PerExample] = (), *, seed: int, batch_size: int) -> dict[str, Any]:
    """All that decides the content of batch k, JSON-able, with a digest `sha256` over the rest.

    The number of shards, threads and the cache are absent because they change nothing. `order` is a digest of the
    first positions of the first two epochs: it catches another shuffle in another version of Grain.
    """
    order, size = _order(len(source), seed), len(source)
    parts = {
        'version': 1,
        'seed': int(seed),
        'batch_size': int(batch_size),
        'source': {**source.fingerprint, 'length': size},
        'transforms': [dict(transform.spec) for transform in transforms],
        'order': digest([int(order[e * size + i]) for e in (0, 1) for i in range(min(size, 16))])[:16],
    }
    parts = json.loads(json.dumps(parts))
    return {**parts, 'sha256': digest(parts)}


class Pipeline:
    """An endless iterator of training batches: dicts of stacked numpy arrays with leading axis B / shard_count.

    `next()` gives the batch of step `self.step` and moves on; `batch(k)` reads any step without moving. Text and other
    entries that are not numbers come as object arrays. Iterate from one thread. Use as a context manager, or `close()`.
    """

    def __init__(self, source, *, batch_size: int, seed: int, transforms: Sequence[PerExample] = (),
                 shard_index: int = 0, shard_count: int = 1, start_step: int = 0,
                 ledger: str | os.PathLike | None = None, num_threads: int = 1, buffer_size: int = 4,
                 cache: bool | str = 'auto'):
        """See `train_iterator`."""
        self._local = _check_shards(len(source) or 1, batch_size, shard_index, shard_count)
        for name, value in (('data.threads', num_threads), ('data.buffer', buffer_size)):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
                raise ValueError(f'{name}={value!r} must be an integer of at least 0')
        self._reader = _Reader(source, cache)
        self._order = _order(len(source), seed)
        self._transforms = tuple(transforms)
        self._seed, self._batch_size, self._offset = int(seed), int(batch_size), shard_index * self._local
        self.fingerprint = fingerprint(source, transforms, seed=seed, batch_size=batch_size)
        if ledger is not None and shard_count > 1:
            # Hosts that share a file system must not append to one file.
            stem, suffix = os.path.splitext(os.fspath(ledger))
            ledger = f'{stem}-{shard_index}-of-{shard_count}{suffix}'
        self.ledger = Ledger(ledger)
        self._met: dict[int, list[int]] = {}
        self._lock = threading.Lock()
        steps = grain.MapDataset.range(2**40).map(self._produce)
        options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=max(buffer_size, num_threads)
                                    if num_threads else 0)
        self._iterator = iter(steps.to_iter_dataset(options))
        self.set_state({'next_index': start_step})

    def _read(self, step: int) -> tuple[dict[str, np.ndarray], list[list[int]]]:
        start = step * self._batch_size + self._offset
        positions = range(start, start + self._local)
        return _examples(self._reader, self._transforms, self._seed, positions, [self._order[p] for p in positions])

    def _produce(self, step: int) -> dict[str, np.ndarray]:
        step = int(step)
        batch, met = self._read(step)
        if any(met):
            with self._lock:
                self._met[step] = sum(met, [])
        return batch

    def _record(self, step: int, met: Sequence[int]) -> None:
        for index in met:
            self.ledger.record(step, index, *self._reader.corrupt[index])

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The batch of any step, without moving the iterator or touching the ledger."""
        return self._read(step)[0]

    def indices(self, step: int) -> list[int]:
        """Items of the source in the global batch of any step, of all shards in order, before any is substituted."""
        return [int(self._order[p]) for p in range(step * self._batch_size, (step + 1) * self._batch_size)]

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        step = self.step
        try:
            batch = next(self._iterator)
        except AllCorrupt as error:
            self._record(step, error.met)
            raise
        # Recorded when consumed, not when prefetched: the count at step k is then the same after a restart.
        with self._lock:
            met = self._met.pop(step, ())
        self._record(step, met)
        return batch

    @property
    def step(self) -> int:
        """Step of the next batch."""
        return int(self._iterator.get_state()['next_index'])

    @property
    def corrupt_count(self) -> int:
        """Distinct corrupt items met in the batches before this step (by this shard), earlier runs included."""
        return self.ledger.count(before_step=self.step)

    def get_state(self) -> dict[str, int]:
        """{'next_index': step}: JSON-able and the whole state; save it with `self.fingerprint`."""
        return {'next_index': self.step}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Moves to a step; check_fingerprint(saved, self.fingerprint) first."""
        step = state.get('next_index')
        if set(state) != {'next_index'} or isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise ValueError(f"a pipeline's state is {{'next_index': step}} with a step >= 0, got {dict(state)}")
        self._iterator.set_state({'next_index': step})

    def close(self) -> None:
        """Stops the prefetching threads."""
        self._iterator.close()

    def __enter__(self) -> 'Pipeline':
        return self

    def __exit__(self, *error) -> None:
        self.close()


def train_iterator(source, *, batch_size: int, seed: int, transforms: Sequence[PerExample] = (), shard_index: int = 0,
                   shard_count: int = 1, start_step: int = 0, ledger: str | os.PathLike | None = None,
                   num_threads: int = 1, buffer_size: int = 4, cache: bool | str = 'auto') -> Pipeline:
    """Shuffled, endless training batches, exact by position.

    Args:
        source: see `gen_jax.data.sources`.
        batch_size: the *global* batch size B; it may exceed the size of the source (epochs then meet in a batch).
        seed: 0..2**32-1; decides the order and every random transform.
        transforms: see `gen_jax.data.transforms`.
        shard_index, shard_count: this process reads rows h*B/n .. (h+1)*B/n-1 of each global batch.
        start_step: step of the first batch.
        ledger: path of the JSON-lines file for corrupt items ('-H-of-N' is added where there are several shards).
        num_threads, buffer_size: prefetching, in batches; more threads help where decoding is slow (Pillow releases
            the GIL), not for embedded data. 0 threads read when asked.
        cache: keep decoded items in memory; 'auto' does so for sources that are estimated under 256 MiB.

    Raises:
        ValueError: empty source; batch_size not divisible by shard_count; more shards than examples; seed out of
            range. While reading: all items corrupt, float or NaN images, items that do not stack, failing transforms.
    """
    return Pipeline(source, batch_size=batch_size, seed=seed, transforms=transforms, shard_index=shard_index,
                    shard_count=shard_count, start_step=start_step, ledger=ledger, num_threads=num_threads,
                    buffer_size=buffer_size, cache=cache)


def eval_batches(source, *, batch_size: int, transforms: Sequence[PerExample] = (), shard_index: int = 0,
                 shard_count: int = 1, limit: int | None = None, seed: int = 0,
                 ledger: str | os.PathLike | None = None,
                 cache: bool | str = False) -> Iterator[dict[str, np.ndarray]]:
    """One pass in order, the first `limit` items, the same number of batches for every shard.

    Batches are as in `train_iterator`, plus `valid` bool [B / shard_count]: False on the rows that pad the last batch
    (repeats of the last item) and on the substitutes of corrupt items, which must not count twice.

    Raises:
        ValueError: as `train_iterator`, at the call.
    """
    local = _check_shards(len(source) or 1, batch_size, shard_index, shard_count)
    reader = _Reader(source, cache)
    if limit is not None and limit < 1:
        raise ValueError(f'limit={limit!r} must be at least 1, or None for all')
    size = len(source) if limit is None else min(limit, len(source))
    book = Ledger(ledger)

    def batches():
        for step, first in enumerate(range(0, size, batch_size)):
            positions = range(first + shard_index * local, first + (shard_index + 1) * local)
            indices = [min(p, size - 1) for p in positions]
            batch, met = _examples(reader, transforms, seed, positions, indices)
            for index in sum(met, []):
                book.record(step, index, *reader.corrupt[index])
            yield {**batch, 'valid': np.array([p < size and not m for p, m in zip(positions, met, strict=True)])}

    return batches()
