"""The flip test: whatever happens to a file of a checkpoint, it is noticed, and the file is named."""

import json
import random
import shutil

import jax.numpy as jnp
import pytest

from gen_jax.engine import integrity
from gen_jax.engine.checkpoint import Checkpoints
from gen_jax.engine.integrity import COMMIT_MARK, MANIFEST, IntegrityError, verify, write_manifest
from gen_jax.types import TrainState


@pytest.fixture(scope='module')
def step(tmp_path_factory):
    """A step as a run saves it: arrays, JSON, metrics, Orbax's own files, manifest and commit mark."""
    workdir = tmp_path_factory.mktemp('run')
    store = Checkpoints(workdir, best_metric='fid')
    weights = {'net': {'kernel': jnp.arange(30_000.0), 'bias': jnp.ones(7, jnp.bfloat16)}}
    state = TrainState(jnp.int32(7), weights, {}, {}, {}, {})
    store.save(7, state, {'note': 'x' * 500}, metrics={'fid': 1.0}, wait=True)
    store.close()
    return workdir / 'checkpoints' / '7'


def files(folder):
    return sorted(p for p in folder.rglob('*') if p.is_file())


def caught(folder, name, why=''):
    """Verification fails, with and without the user knowing where to look, and names the file."""
    with pytest.raises(IntegrityError) as found:
        verify(folder)
    assert str(folder / name) in str(found.value) and why in str(found.value), (name, str(found.value))


def test_every_kind_of_file_is_covered(step):
    assert verify(step) and verify(step, hashes=False)
    names = {p.relative_to(step).as_posix() for p in files(step)}
    listed = json.loads((step / MANIFEST).read_text())['manifest']['files']
    assert set(listed) == names - {MANIFEST}
    assert {COMMIT_MARK, '_CHECKPOINT_METADATA', 'meta/metadata', 'metrics/metrics', 'state/_METADATA',
            'state/_sharding', 'state/manifest.ocdbt'} <= set(listed)
    assert any(name.startswith('state/ocdbt.process_0/d/') for name in listed)


def test_200_flipped_bits(step):
    seed = random.randrange(10 ** 6)
    rng, everything = random.Random(seed), files(step)
    places = [(path, None) for path in everything]  # every file at least once, then by chance
    places += [(rng.choice(everything), None) for _ in range(200 - len(places))]
    assert len(places) == 200
    for path, _ in places:
        data = path.read_bytes()
        at, bit = rng.randrange(len(data)), 1 << rng.randrange(8)
        path.write_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1:])
        try:
            caught(step, path.relative_to(step), 'SHA-256' if path.name != MANIFEST else 'damaged')
        except AssertionError as e:
            raise AssertionError(f'seed {seed}: {path}, byte {at}, bit {bit}') from e
        finally:
            path.write_bytes(data)
    assert verify(step)


def test_every_bit_of_a_manifest_counts(tmp_path):
    folder = tmp_path / '3'
    (folder / 'a').mkdir(parents=True)
    (folder / 'a' / 'b').write_bytes(b'data')
    write_manifest(folder, '3')
    data = (folder / MANIFEST).read_bytes()
    for at in range(len(data)):
        for bit in range(8):
            with pytest.raises(ValueError):
                integrity._parse(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1:])
    for cut in range(len(data)):
        with pytest.raises(ValueError):
            integrity._parse(data[:cut])
    for longer in (data + b'\n', b' ' + data, json.dumps(json.loads(data)).encode()):
        with pytest.raises(ValueError, match='digest does not match'):
            integrity._parse(longer)
    assert integrity._parse(data)['step'] == '3'


def test_truncated_emptied_and_deleted_files(step):
    for path in files(step):
        data, name = path.read_bytes(), path.relative_to(step)
        for part in (data[:-1], data[:len(data) // 2], b'', data + b'\0'):
            path.write_bytes(part)
            caught(step, name, 'size' if path.name != MANIFEST else 'damaged')
            with pytest.raises(IntegrityError):
                verify(step, hashes=False)
        path.unlink()
        caught(step, name, 'missing')
        path.write_bytes(data)
    assert verify(step)


def test_folders_extra_files_and_swapped_files(step, tmp_path):
    copy = tmp_path / '7'

    def again():
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(step, copy)
        assert verify(copy), 'a copy is as good, its times do not matter'
        return copy

    for folder in sorted(p for p in step.rglob('*') if p.is_dir()):
        shutil.rmtree(again() / folder.relative_to(step))
        caught(copy, folder.relative_to(step), 'missing')
    (again() / 'state' / 'd' / 'more').write_text('')
    caught(copy, 'state/d/more', 'unexpected')
    (again() / 'note.txt').symlink_to('nowhere')
    caught(copy, 'note.txt', 'unexpected')
    target = again() / 'meta' / 'metadata'
    target.unlink()
    target.mkdir()
    caught(copy, 'meta/metadata', 'missing')
    target = again() / 'meta' / 'metadata'
    target.unlink()
    target.symlink_to('loop')
    (target.parent / 'loop').symlink_to('metadata')
    with pytest.raises(IntegrityError):
        verify(copy)
    target = again() / 'meta' / 'metadata'
    target.unlink()
    target.symlink_to('nowhere')  # moved to a disk that is gone
    caught(copy, 'meta/metadata', 'cannot be read')
    one, two = (again() / n / COMMIT_MARK for n in ('meta', 'state'))
    (copy / 'a').write_bytes(one.read_bytes())
    one.write_bytes(two.read_bytes())
    two.write_bytes((copy / 'a').read_bytes())
    (copy / 'a').unlink()
    caught(copy, 'm')  # meta or metrics or the state's: of another size or digest
    for path in files(again()):
        path.unlink()
    caught(copy, '', 'the folder is empty')
    with pytest.raises(IntegrityError, match='No such file'):
        verify(tmp_path / '8')


def test_a_renamed_step_is_not_that_step(step, tmp_path):
    shutil.copytree(step, tmp_path / '9')
    with pytest.raises(IntegrityError, match='holds step 7: it was renamed'):
        verify(tmp_path / '9')


def test_steps_of_before_there_were_manifests(step, tmp_path):
    """No manifest is fine only where nothing else says that there was one."""
    copy = tmp_path / '7'
    shutil.copytree(step, copy)
    (copy / MANIFEST).unlink()
    caught(copy, MANIFEST, 'missing')
    (copy / COMMIT_MARK).unlink()
    caught(copy, MANIFEST, 'missing')
    meta = json.loads((copy / 'meta' / 'metadata').read_text())
    (copy / 'meta' / 'metadata').write_text(json.dumps({k: v for k, v in meta.items() if k != 'manifest'}))
    assert verify(copy) is False


def test_a_newer_format_is_refused_with_a_remedy(tmp_path, monkeypatch):
    (tmp_path / '1').mkdir()
    monkeypatch.setattr(integrity, '_FORMAT', 2)
    write_manifest(tmp_path / '1', '1')
    monkeypatch.undo()
    with pytest.raises(IntegrityError, match='format is 2, this gen_jax reads 1: update'):
        verify(tmp_path / '1')


def test_a_large_file_is_hashed_in_pieces(tmp_path, monkeypatch):
    """No file is ever in memory as a whole."""
    (tmp_path / '1').mkdir()
    (tmp_path / '1' / 'big').write_bytes(b'x' * 5_000_000)
    monkeypatch.setattr('pathlib.Path.read_bytes', lambda path: pytest.fail(f'read {path} whole')
                        if path.name == 'big' else open(path, 'rb').read())
    write_manifest(tmp_path / '1', '1')
    assert verify(tmp_path / '1')
