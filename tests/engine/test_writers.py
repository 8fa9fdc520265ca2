"""Logs: bits survive the round trip, torn lines and later steps go, nothing else changes."""

import builtins
import io
import json
import math
import os
import sys
import types
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gen_jax.engine import writers
from gen_jax.engine.writers import console, jsonl, multi, null, png, read_jsonl, tensorboard, truncate, wandb


def test_floats_round_trip_to_the_bit(tmp_path):
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.integers(0, 2 ** 32, 200, dtype=np.uint32).view(np.float32), np.float32([0.1, -0.0])])
    values = values[np.isfinite(values)]
    writer = jsonl(tmp_path / 'a' / 'log.jsonl', clock=lambda: 1.5)
    writer.write(3, {f'f{i}': v for i, v in enumerate(values)})
    writer.write(4, {'device': jnp.float32(0.1), 'half': jnp.bfloat16(0.1), 'double': 0.1, 'n': np.int64(2 ** 60),
                     'flag': np.bool_(True), 'bad': float('nan'), 'low': -jnp.inf, 'recipe': {'n': 5, 'by': [1.0, 2]},
                     'name': 'x'})
    writer.close()
    first, second = read_jsonl(tmp_path / 'a' / 'log.jsonl')
    back = np.float32([first[f'f{i}'] for i in range(len(values))])
    np.testing.assert_array_equal(back.view(np.uint32), values.view(np.uint32))
    assert first['step'] == 3 and first['time'] == 1.5
    assert np.float32(second['device']) == np.float32(0.1) and second['double'] == 0.1
    assert second['half'] == float(jnp.bfloat16(0.1)) and second['n'] == 2 ** 60 and second['flag'] is True
    assert math.isnan(second['bad']) and second['low'] == -math.inf
    assert second['recipe'] == {'n': 5, 'by': [1.0, 2]} and second['name'] == 'x'
    for line in (tmp_path / 'a' / 'log.jsonl').read_text().splitlines():
        json.loads(line, parse_constant=lambda c: pytest.fail(f'{c} is not JSON'))


def test_wall_clock_fields_can_be_dropped():
    record = {'step': 1, 'loss': 0.5, 'time': 1e9, 'steps_per_second': 3.0, 'wall/anything': 1.0}
    assert writers.without_wall_clock(record) == {'step': 1, 'loss': 0.5}


def test_jsonl_refuses_reserved_names_and_non_numbers(tmp_path):
    writer = jsonl(tmp_path / 'log.jsonl')
    for name in ('step', 'time'):
        with pytest.raises(ValueError, match=f"'{name}' is reserved"):
            writer.write(1, {name: 1.0})
    with pytest.raises(ValueError, match="'loss' is a object"):
        writer.write(1, {'loss': object()})
    with pytest.raises(ValueError, match="'image' has shape"):
        writer.write(1, {'image': np.zeros((64, 64))})
    assert read_jsonl(tmp_path / 'log.jsonl') == [], 'nothing half-written'


def test_every_line_is_on_disk_at_once(tmp_path):
    writer = jsonl(tmp_path / 'log.jsonl')
    writer.write(1, {'loss': 1.0})
    assert len(read_jsonl(tmp_path / 'log.jsonl')) == 1  # no flush, no close: kill -9 loses nothing


@pytest.mark.parametrize('cut', range(1, 40, 6))
def test_torn_last_line_goes_and_the_next_run_appends_cleanly(tmp_path, cut):
    path = tmp_path / 'log.jsonl'
    writer = jsonl(path, clock=lambda: 0.0)
    for step in (1, 2, 3):
        writer.write(step, {'loss': 1.0})
    writer.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    expected = [1, 2] if cut > 1 else [1, 2, 3]  # without its newline alone, the last line is still a record
    assert [r['step'] for r in read_jsonl(path)] == expected
    writer = jsonl(path, clock=lambda: 0.0)
    writer.write(9, {'loss': 1.0})
    writer.close()
    assert [json.loads(line)['step'] for line in path.read_text().splitlines()] == [*expected, 9]


def test_truncate_forgets_later_steps_only(tmp_path):
    path = tmp_path / 'log.jsonl'
    writer = jsonl(path)
    for step in (1, 2, 2, 5, 3, 6):  # a rollback may leave steps out of order
        writer.write(step, {'loss': np.float32(step) / 7})
    writer.close()
    kept = [line for line in path.read_bytes().splitlines(keepends=True) if json.loads(line)['step'] <= 3]
    with open(path, 'ab') as file:
        file.write(b'{"step": 7, "lo')
    assert truncate(path, 3) == 3
    assert path.read_bytes() == b''.join(kept)
    stamp = os.stat(path).st_ino
    assert truncate(path, 3) == 0 and os.stat(path).st_ino == stamp, 'nothing to drop: the file is left alone'
    assert truncate(path, 0) == 4 and path.read_bytes() == b''
    assert truncate(tmp_path / 'none.jsonl', 3) == 0 and not (tmp_path / 'none.jsonl').exists()
    assert len(list(tmp_path.iterdir())) == 1


def test_truncate_says_when_it_drops_lines_in_the_middle(tmp_path):
    path = tmp_path / 'log.jsonl'
    path.write_bytes(b'{"step": 1}\n\x00\x00\x00\n[1]\n{"step": 2}\n')
    with pytest.warns(UserWarning, match='dropped 2 lines'):
        truncate(path, 10)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_truncate_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / 'log.jsonl'
    path.write_text('{"step": 1}\n{"step": 2}\n')

    def fail(*args):
        raise OSError('disk full')

    monkeypatch.setattr(writers.os, 'fsync', fail)
    with pytest.raises(OSError, match='disk full'):
        truncate(path, 1)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n' and len(list(tmp_path.iterdir())) == 1


def test_png_writer_and_its_truncation(tmp_path):
    writer, picture = png(tmp_path), np.full((4, 5, 3), 9, np.uint8)
    for step in (10, 20):
        writer.images(step, {'samples/ema': picture})
    writer.write(20, {'loss': 1.0})
    assert sorted(p.name for p in tmp_path.iterdir()) == ['samples_ema-00000010.png', 'samples_ema-00000020.png']
    np.testing.assert_array_equal(Image.open(tmp_path / 'samples_ema-00000010.png'), picture)
    assert truncate(tmp_path, 10) == 1 and [p.name for p in tmp_path.iterdir()] == ['samples_ema-00000010.png']


def events(folder):
    """(step, tag, value) of a folder, as TensorBoard reads it: SessionLog START hides older events from its step on."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.record_writer import masked_crc32c

    found = []
    for path in sorted(folder.iterdir(), key=lambda p: p.stat().st_mtime_ns):
        data, at = path.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at:at + 8], 'little')
            assert int.from_bytes(data[at + 8:at + 12], 'little') == masked_crc32c(data[at:at + 8])
            event = Event.FromString(data[at + 12:at + 12 + size])
            at += size + 16
            if event.HasField('session_log') and event.session_log.status == SessionLog.START:
                found = [f for f in found if f[0] < event.step]
            found += [(event.step, v.tag, v.simple_value if v.HasField('simple_value') else 'image')
                      for v in event.summary.value]
    return found


def test_tensorboard_and_resume(tmp_path):
    writer = tensorboard(tmp_path)
    for step in (1, 2, 3):
        writer.write(step, {'loss': step, 'recipe': {'n': 1}, 'skipped': 'text'})
    writer.images(2, {'samples': np.zeros((4, 4, 1), np.uint8)})
    writer.close()
    writer = tensorboard(tmp_path, purge_after=2)  # within the same second: must not overwrite the first file
    writer.write(3, {'loss': 30})
    writer.close()
    assert len(list(tmp_path.iterdir())) == 2
    assert sorted(events(tmp_path), key=str) == [(1, 'loss', 1.0), (2, 'loss', 2.0), (2, 'samples', 'image'),
                                                 (3, 'loss', 30.0)]


def test_missing_tensorboard_says_so_once_and_missing_wandb_is_an_error(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split('.')[0] in ('tensorboardX', 'wandb'):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', without)
    monkeypatch.setattr(writers, '_said', set())
    with pytest.warns(UserWarning, match='tensorboardX is not installed'):
        tensorboard(tmp_path).write(1, {'loss': 1.0})
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        tensorboard(tmp_path).close()
    monkeypatch.setitem(sys.modules, 'wandb', None)
    with pytest.raises(ImportError, match='pip install gen-jax'):
        wandb('project')


def test_wandb_gets_numbers_with_their_step(monkeypatch):
    calls = []
    run = types.SimpleNamespace(log=calls.append, define_metric=lambda *a, **k: None,
                                finish=lambda: calls.append('end'))
    module = types.SimpleNamespace(init=lambda **kw: calls.append(kw) or run, Image=lambda x: ('image', x.shape))
    monkeypatch.setitem(sys.modules, 'wandb', module)
    writer = wandb('p', config={'lr': 1}, id='abc')
    writer.write(5, {'loss': jnp.float32(2.0), 'recipe': {'n': 1}})
    writer.images(5, {'grid': np.zeros((2, 2, 3), np.uint8)})
    writer.close()
    assert calls == [{'project': 'p', 'name': None, 'config': {'lr': 1}, 'id': 'abc'}, {'loss': 2.0, 'step': 5},
                     {'grid': ('image', (2, 2, 3)), 'step': 5}, 'end']


def test_console_and_multi():
    a, b, closed = io.StringIO(), io.StringIO(), []

    def fail():
        raise OSError('full')

    last = null()._replace(close=lambda: closed.append(True))
    writer = multi(console(a), null()._replace(close=fail), console(b, keys=('loss',)), last)
    writer.write(7, {'loss': np.float32(0.123456789), 'n': 3, 'text': 'x'})
    assert a.getvalue() == 'step 7  loss 0.12346  n 3\n' and b.getvalue() == 'step 7  loss 0.12346\n'
    with pytest.raises(OSError, match='full'):
        writer.close()
    assert closed == [True]
    a.close()
    console(a).write(8, {'loss': 1.0})
