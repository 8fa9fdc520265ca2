"""safetensors read as views and written tensor by tensor: against the format's own library, and every damage."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gen_jax.interop.formats import (
    Tensor,
    find_weights,
    parse_size,
    read_safetensors,
    read_weights,
    write_safetensors,
    write_weights,
)

RNG = np.random.RandomState(0)
ARRAYS = {
    'a.weight': RNG.randn(5, 3).astype(np.float32), 'half': RNG.randn(7).astype(np.float16),
    'brain': RNG.randn(3, 2).astype(ml_dtypes.bfloat16), 'ids': np.arange(77)[None],
    'small': np.arange(5, dtype=np.uint8), 'scalar': np.array(2.5, np.float32),
    'none': np.zeros((0, 4), np.float32), 'mask': np.array([True, False, True]),
}


def tensors(arrays):
    return {k: Tensor(v.shape, v.dtype, lambda v=v: v) for k, v in arrays.items()}


def same(found, expected=None):
    expected = expected or ARRAYS
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert found[key].dtype == value.dtype and found[key].shape == value.shape, key
        np.testing.assert_array_equal(found[key], value, err_msg=key)


def test_what_the_library_writes_we_read_and_the_reverse(tmp_path):
    save_file(ARRAYS, tmp_path / 'theirs.safetensors', {'format': 'pt'})
    same(read_safetensors(tmp_path / 'theirs.safetensors'))
    write_safetensors(tmp_path / 'ours.safetensors', tensors(ARRAYS))
    same(load_file(tmp_path / 'ours.safetensors'))
    same(read_safetensors(tmp_path / 'ours.safetensors'))
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith('.')] == []


def test_tensors_are_views_of_the_file_and_cannot_be_written(tmp_path):
    write_safetensors(tmp_path / 'x.safetensors', tensors(ARRAYS))
    view = read_safetensors(tmp_path / 'x.safetensors')['a.weight']
    base = view
    while base.base is not None and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap) and view.ctypes.data % 4 == 0
    with pytest.raises(ValueError, match='read-only'):
        view[0] = 1


def test_writing_holds_one_tensor_at_a_time(tmp_path):
    alive = []

    def read(value):
        assert not alive[:-1], 'an earlier tensor is still wanted'
        alive.append(value)
        array = np.full(4, value, np.float32)
        alive.pop()
        return array

    write_safetensors(tmp_path / 'x.safetensors',
                      {str(i): Tensor((4,), np.dtype(np.float32), lambda i=i: read(i)) for i in range(3)})
    assert {k: v[0] for k, v in load_file(tmp_path / 'x.safetensors').items()} == {'0': 0, '1': 1, '2': 2}


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / 'x.safetensors'
    write_safetensors(path, tensors(ARRAYS))

    def fail():
        raise RuntimeError('device lost')

    with pytest.raises(RuntimeError):
        write_safetensors(path, {**tensors(ARRAYS), 'zz': Tensor((1,), np.dtype(np.uint8), fail)})
    with pytest.raises(ValueError, match="'a' has 3 values"):
        write_safetensors(path, {'a': Tensor((2,), np.dtype(np.uint8), lambda: np.zeros(3, np.uint8))})
    same(read_safetensors(path))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('variant', [None, 'fp16'])
def test_shards_and_their_index(tmp_path, variant):
    floats = {f'layer.{i}': RNG.randn(10, 10).astype(np.float32) for i in range(5)}
    files = write_weights(tmp_path, 'model', tensors(floats), 500, variant)
    dot = f'.{variant}' if variant else ''
    assert [f.name for f in files][::5] == [f'model{dot}-00001-of-00005.safetensors',
                                            f'model.safetensors.index{dot}.json']
    index = json.loads(files[-1].read_text())
    assert index['metadata'] == {'total_size': 2000} and set(index['weight_map']) == set(floats)
    path = find_weights(tmp_path, variant)
    assert path == files[-1]
    same(read_weights(path), floats)
    # Smaller weights in their place leave no shard behind that a loader would take.
    write_weights(tmp_path, 'model', tensors(ARRAYS), '10GB', variant)
    assert [p.name for p in tmp_path.iterdir()] == [f'model{dot}.safetensors']
    same(read_weights(find_weights(tmp_path, variant)))


def test_a_shard_holds_as_much_as_allowed(tmp_path):
    floats = {f'{i}': np.zeros(n, np.float32) for i, n in enumerate((100, 100, 300, 50, 150))}
    write_weights(tmp_path, 'model', tensors(floats), 800)
    shards = {p.name: set(read_safetensors(p)) for p in tmp_path.glob('*.safetensors')}
    assert list(map(shards.get, sorted(shards))) == [{'0', '1'}, {'2'}, {'3', '4'}]


@pytest.mark.parametrize('size, expected', [('10GB', 10**10), ('1.5 mb', 1_500_000), (800, 800), ('2KB', 2000)])
def test_sizes(size, expected):
    assert parse_size(size) == expected


@pytest.mark.parametrize('size', ['10 GiB', '', '-1GB', 0, 'many', 'inf'])
def test_sizes_that_are_none(size):
    with pytest.raises(ValueError, match='max_shard_size'):
        parse_size(size)


def header(entries, data=b'', length=None):
    text = json.dumps(entries).encode()
    return struct.pack('<Q', len(text) if length is None else length) + text + data


ENTRY = {'a': {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]}}


@pytest.mark.parametrize('content, message', [
    (b'', 'only 0 bytes'),
    (b'1234', 'only 4 bytes'),
    (header(ENTRY, bytes(7)), "truncated: 'a' should end at byte"),
    (header(ENTRY, length=10**6), 'truncated or not a safetensors.*should have 1,000,000 bytes'),
    (header(ENTRY, bytes(8), length=2**63), 'header should have'),
    (header(ENTRY)[:30], 'truncated or not a safetensors'),
    (struct.pack('<Q', 5) + b'hello', 'no table of tensors'),
    (header([1, 2]), 'no table of tensors'),
    (header({'a': {'shape': [1]}}), 'no table of tensors'),
    (header({'a': {'dtype': 'F4', 'shape': [2], 'data_offsets': [0, 8]}}, bytes(8)), "unknown dtype 'F4'"),
    (header({'a': {'dtype': 'F32', 'shape': [3], 'data_offsets': [0, 8]}}, bytes(8)), 'needs 12 bytes, .* says 8'),
    (header({'a': {'dtype': 'F32', 'shape': [2], 'data_offsets': [-8, 0]}}, bytes(8)), 'damaged'),
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:00\n', 'git lfs pull'),
    (b'PK\x03\x04' + bytes(100), 'torch pickle under another name'),
    (b'\x80\x04\x95' + bytes(100), 'torch pickle under another name'),
])
def test_damaged_files(tmp_path, content, message):
    path = tmp_path / 'x.safetensors'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_safetensors(path)
    assert str(path) in str(error.value) and '\n' not in str(error.value)


def test_a_header_whose_length_looks_like_a_pickle(tmp_path):
    entries = {'__metadata__': {'x': ''}}
    entries['__metadata__']['x'] = 'y' * (0x480 - len(json.dumps(entries)))
    (tmp_path / 'x.safetensors').write_bytes(header(entries))
    assert (tmp_path / 'x.safetensors').read_bytes()[:2] == b'\x80\x04'
    assert read_safetensors(tmp_path / 'x.safetensors') == {}


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match='no file'):
        read_safetensors(tmp_path / 'x.safetensors')


@pytest.mark.parametrize('name', ['pytorch_model.bin', 'v1-5.ckpt', 'adm.pt', 'x.pth', 'edm-cifar10-32x32.pkl'])
def test_pickles_are_refused_unread(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b'cos\nsystem\n(S"exit 1"\ntR.')
    for read in (lambda: read_safetensors(path), lambda: read_weights(path)):
        with pytest.raises(ValueError, match='pickle.*weights_only=True.*save_file.*docs/weights.md'):
            read()
    if name.endswith('.bin'):
        with pytest.raises(ValueError, match='pytorch_model.bin is a pickle'):
            find_weights(tmp_path)


def test_missing_shards_and_stale_ones(tmp_path):
    floats = {f'layer.{i}': np.zeros(100, np.float32) for i in range(3)}
    *shards, index = write_weights(tmp_path, 'diffusion_pytorch_model', tensors(floats), 400)
    kept = shards[1].read_bytes()
    write_safetensors(shards[1], tensors({'other': np.zeros(1)}))
    with pytest.raises(ValueError, match=f"{shards[1].name} has 'layer.1' .1 such"):
        read_weights(index)
    shards[1].write_bytes(kept)
    shards[0].unlink()
    shards[2].unlink()
    with pytest.raises(ValueError, match=f'2 of 3 shards .* missing: {shards[0].name}, {shards[2].name}'):
        read_weights(index)
    index.write_text('{}')
    with pytest.raises(ValueError, match='no index of shards'):
        read_weights(index)


def test_a_folder_without_weights_says_what_it_holds(tmp_path):
    with pytest.raises(ValueError, match='no safetensors of the name diffusion_pytorch_model.safetensors or model'):
        find_weights(tmp_path)
    write_weights(tmp_path, 'model', tensors(ARRAYS), variant='fp16')
    with pytest.raises(ValueError, match=r"it holds model.fp16.safetensors \(variant='fp16'\?\)"):
        find_weights(tmp_path)
