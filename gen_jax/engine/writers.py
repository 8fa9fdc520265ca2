"""Where metrics go: JSONL, TensorBoard, the console, Weights & Biases, PNG files, or several of them.

Every factory returns a `Writer`. A line of JSONL is `{"step": 12, "loss": 0.5, ..., "time": 1.7e9}`; keys that measure
the clock, and so differ between two runs that are equal in every other bit, are those of `WALL_CLOCK` and those that
start with `wall/`. `without_wall_clock` drops them.
"""

import importlib
import itertools
import json
import math
import os
import queue
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gen_jax.engine.images import save_png
from gen_jax.engine.progress import emit

__all__ = ['WALL_CLOCK', 'Writer', 'background', 'console', 'jsonl', 'multi', 'null', 'png', 'read_jsonl',
           'tensorboard', 'truncate', 'wandb', 'without_wall_clock']

WALL_CLOCK = ('time', 'elapsed', 'eta', 'steps_per_second', 'images_per_second', 'examples_per_second', 'step_seconds',
              'data_seconds', 'save_seconds', 'compile_seconds', 'eval_seconds')
"""Keys of wall-clock fields. `time` (seconds since 1970) is added by the JSONL writer; the others are the engine's."""


class Writer(NamedTuple):
    """A place for metrics. All functions are called by one process and one thread."""

    write: Callable[[int, Mapping[str, Any]], None]
    """(step, metrics): scalars; JSONL also keeps strings, lists and dicts (recipes), which the others pass over."""
    images: Callable[[int, Mapping[str, np.ndarray]], None]
    """(step, pictures): uint8 [H, W, C] by name."""
    flush: Callable[[], None]
    """Hands what is buffered to the operating system. JSONL buffers nothing; TensorBoard's queue may lag a moment."""
    close: Callable[[], None]


def _nothing(*args) -> None:
    del args


def null() -> Writer:
    """Writes nothing: for every process but the first."""
    return Writer(_nothing, _nothing, _nothing, _nothing)


def without_wall_clock(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record without its wall-clock fields: what bit-equal runs have in common."""
    return {k: v for k, v in record.items() if k not in WALL_CLOCK and not k.startswith('wall/')}


def multi(*writers: Writer) -> Writer:
    """Hands everything to all `writers`; `close` closes them all even if one fails."""

    def each(name: str) -> Callable[..., None]:
        def call(*args):
            for writer in writers:
                getattr(writer, name)(*args)
        return call

    def close():
        errors = []
        for writer in writers:
            try:
                writer.close()
            except Exception as error:  # noqa: BLE001  (the others must be closed too; raised below)
                errors.append(error)
        if errors:
            raise errors[0]

    return Writer(each('write'), each('images'), each('flush'), close)


def background(writer: Writer, size: int = 1000) -> Writer:
    """Hands everything to `writer` in a thread of its own, in order, so that a slow disk delays no step.

    `flush` and `close` return when all that came before is written. What the writer raises is raised by the next call;
    after an error nothing more is written.

    Args:
        size: calls that may wait; then the caller waits too.
    """
    calls: queue.Queue = queue.Queue(size)
    errors: list[BaseException] = []

    def work():
        while (call := calls.get()) is not None:
            try:
                if not errors:
                    call[0](*call[1:])
            except BaseException as error:  # noqa: BLE001  (raised in the caller's thread)
                errors.append(error)
            calls.task_done()
        calls.task_done()

    thread = threading.Thread(target=work, name='log writer', daemon=True)
    thread.start()
    raised = []

    def check():
        if errors and not raised:
            raised.append(True)  # once: closing must not fail for the same reason again
            raise errors[0]

    def put(*call):
        check()
        calls.put(call)

    def flush():
        put(writer.flush)
        calls.join()
        check()

    def close():
        if thread.is_alive():
            calls.put(None)
            thread.join()
            writer.close()
        check()

    return Writer(lambda step, metrics: put(writer.write, step, metrics),
                  lambda step, pictures: put(writer.images, step, pictures), flush, close)


# JSONL

def jsonl(path, clock: Callable[[], float] = time.time) -> Writer:
    """Appends one JSON object per `write` to `path`; a torn last line, left by a crash, is dropped first.

    Floats are written so that they read back to the same bits (float32 and bfloat16 through float64, which holds
    them exactly). JSON has no NaN: non-finite numbers are the strings 'nan', 'inf' and '-inf', which `float` and
    `read_jsonl` understand. Each line is one `write` call of the operating system, so it survives a kill -9.

    Raises:
        ValueError: a metric is named `step` or `time`, or is neither a scalar nor something that JSON can hold.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    truncate(path, None)
    file = open(path, 'ab', buffering=0)

    def write(step: int, metrics: Mapping[str, Any]) -> None:
        for reserved in ('step', 'time'):
            if reserved in metrics:
                raise ValueError(f'metric name {reserved!r} is reserved in {path.name}: rename the metric')
        record = {'step': int(step), **{k: _plain(k, v) for k, v in metrics.items()}, 'time': clock()}
        data = (json.dumps(record, allow_nan=False) + '\n').encode()
        if file.write(data) != len(data):
            raise OSError(f'{path}: only part of a line was written at step {step}; is the disk full?')

    return Writer(write, _nothing, _nothing, file.close)


def _plain(name: str, value: Any) -> Any:
    """A value as JSON holds it."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, Mapping):
        return {str(k): _plain(f'{name}.{k}', v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(f'{name}[{i}]', v) for i, v in enumerate(value)]
    array = np.asarray(value)
    if array.ndim:
        if array.size > 1000:
            raise ValueError(f'metric {name!r} has shape {list(array.shape)}: write a summary of it instead')
        return [_plain(name, v) for v in array]
    if array.dtype.kind == 'b':
        return bool(array)
    if array.dtype.kind in 'iu':
        return int(array)
    try:
        number = float(array)
    except (TypeError, ValueError):
        raise ValueError(f'metric {name!r} is a {type(value).__name__}, not a number: {value!r}') from None
    return number if math.isfinite(number) else str(number)


def read_jsonl(path) -> list[dict[str, Any]]:
    """The records of a JSONL log in order, non-finite numbers as floats; a torn last line is left out."""
    special = {'nan': math.nan, 'inf': math.inf, '-inf': -math.inf}

    def back(value):
        if isinstance(value, dict):
            return {k: back(v) for k, v in value.items()}
        if isinstance(value, list):
            return [back(v) for v in value]
        return special.get(value, value) if isinstance(value, str) else value

    return [back(record) for _, record in _lines(Path(path)) if record is not None]


def _lines(path: Path) -> list[tuple[bytes, dict | None]]:
    """(raw line with its newline, record), record None where the line is not a record with an integer step."""
    found = []
    for raw in path.read_bytes().splitlines(keepends=True):
        try:
            record = json.loads(raw)
            good = isinstance(record, dict) and isinstance(record.get('step'), int)
        except ValueError:
            good = False
        found.append((raw if raw.endswith(b'\n') else raw + b'\n', record if good else None))
    return found


def truncate(path, step: int | None) -> int:
    """Forgets what a run wrote after the step that it now resumes from. Returns how many records were dropped.

    A file is taken as a JSONL log: records with a step above `step` go (None: none do), so do broken lines (a
    warning counts those that are not the torn last one); the rest keeps its bytes. The file is replaced in one
    rename, or left alone where nothing changes. A folder is taken as that of `png`: later pictures are removed.
    For TensorBoard see `tensorboard(purge_after=)`. A missing path is an empty log.
    """
    path = Path(path)
    if path.is_dir():
        later = [p for p in path.glob('*.png') if (m := _PNG_STEP.search(p.name)) and step is not None
                 and int(m.group(1)) > step]
        for picture in later:
            picture.unlink()
        return len(later)
    if not path.exists():
        return 0
    before = path.read_bytes()
    lines = _lines(path)
    broken = sum(record is None for _, record in lines[:-1])
    if broken:
        warnings.warn(f'{path}: dropped {broken} lines that are not records of a metrics log', stacklevel=2)
    keep = [raw for raw, record in lines if record is not None and (step is None or record['step'] <= step)]
    after = b''.join(keep)
    if after != before:
        temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
        try:
            with open(temporary, 'wb') as file:
                file.write(after)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return len(lines) - len(keep)


# Others

_PNG_STEP = re.compile(r'-(\d+)\.png$')


def png(folder) -> Writer:
    """Pictures as `folder/NAME-00001200.png`; metrics are passed over. `/` in a name becomes `_`."""
    folder = Path(folder)

    def images(step: int, pictures: Mapping[str, np.ndarray]) -> None:
        for name, picture in pictures.items():
            save_png(folder / f'{name.replace("/", "_")}-{int(step):08d}.png', picture)

    return Writer(_nothing, images, _nothing, _nothing)


def console(stream=None, keys: tuple[str, ...] | None = None) -> Writer:
    """One plain line per `write`: `step 100  loss 0.1234`. Only `keys`, if given. A closed stream is no error."""
    stream = sys.stdout if stream is None else stream

    def write(step: int, metrics: Mapping[str, Any]) -> None:
        shown = ((k, v) for k, v in _scalars(metrics).items() if keys is None or k in keys)
        emit(stream, '  '.join([f'step {int(step)}', *(f'{k} {v:.5g}' for k, v in shown)]) + '\n')

    return Writer(write, _nothing, _nothing, _nothing)


def _scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The entries that are single numbers."""
    return {k: float(v) for k, v in metrics.items() if not isinstance(v, (str, Mapping, list, tuple)) and v is not None
            and np.ndim(v) == 0}


_event_files = itertools.count()
_said: set[str] = set()


def tensorboard(folder, purge_after: int | None = None) -> Writer:
    """TensorBoard event files through tensorboardX, which needs no TensorFlow.

    Without tensorboardX the writer does nothing and a warning says so once.

    Args:
        folder: where event files go; each call opens a new one.
        purge_after: the step that the run resumes from. TensorBoard then hides every earlier event behind it.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        if 'tensorboardX' not in _said:
            _said.add('tensorboardX')
            warnings.warn('TensorBoard logs are off: tensorboardX is not installed (pip install tensorboardX)',
                          stacklevel=2)
        return null()
    # Event files are named by the second and opened for writing from the start: a quick restart would wipe one.
    suffix = f'.{time.time_ns()}.{os.getpid()}.{next(_event_files)}'
    purge = None if purge_after is None else purge_after + 1
    board = SummaryWriter(str(folder), purge_step=purge, filename_suffix=suffix, flush_secs=30)

    def write(step: int, metrics: Mapping[str, Any]) -> None:
        for name, value in _scalars(metrics).items():
            board.add_scalar(name, value, int(step))

    def images(step: int, pictures: Mapping[str, np.ndarray]) -> None:
        for name, picture in pictures.items():
            board.add_image(name, np.asarray(picture), int(step), dataformats='HWC')

    return Writer(write, images, board.flush, board.close)


def wandb(project: str, name: str | None = None, config: Mapping[str, Any] | None = None, **settings) -> Writer:
    """Weights & Biases (`pip install gen-jax[wandb]`); `settings` go to `wandb.init` (id=, resume=, mode= ...).

    The step is logged as the metric `step` and used as the x axis, so a resumed run may go back.

    Raises:
        ImportError: wandb is not installed.
    """
    try:
        module = importlib.import_module('wandb')
    except ImportError:
        raise ImportError('the wandb writer needs the package wandb: pip install gen-jax[wandb], or take it out of the '
                          'list of writers') from None
    run = module.init(project=project, name=name, config=dict(config or {}), **settings)
    run.define_metric('step')
    run.define_metric('*', step_metric='step')

    def write(step: int, metrics: Mapping[str, Any]) -> None:
        run.log({**_scalars(metrics), 'step': int(step)})

    def images(step: int, pictures: Mapping[str, np.ndarray]) -> None:
        run.log({**{k: module.Image(np.asarray(v)) for k, v in pictures.items()}, 'step': int(step)})

    return Writer(write, images, _nothing, run.finish)
