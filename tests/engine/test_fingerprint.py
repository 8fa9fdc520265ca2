"""Fingerprints: the same bits give the same digits wherever they lie, and any change of them gives others."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from gen_jax.engine import fingerprint
from gen_jax.engine.fingerprint import differing, fingerprints

DTYPES = ('float32', 'bfloat16', 'float16', 'float8_e4m3fn', 'int32', 'uint32', 'int8', 'uint8', 'int4', 'uint4',
          'bool', 'complex64')


def on_devices(tree):
    """By the programs that accelerators run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fingerprint, '_in_memory', lambda leaf: False)
        return fingerprints(tree)


def values(dtype, shape=(8, 6)):
    raw = np.random.default_rng(0).normal(size=shape) * 5
    return jnp.asarray(raw.astype(dtype) if dtype != 'complex64' else (raw + 1j * raw[::-1]).astype(dtype))


def test_numpy_and_the_device_program_agree_in_every_dtype():
    tree = {dtype: values(dtype) for dtype in DTYPES} | {'scalar': jnp.float32(3), 'empty': jnp.zeros((0, 3)),
                                                         'key': jax.random.key(7)}
    host = fingerprints(tree)
    assert host == on_devices(tree) == fingerprints(jax.device_get(tree) | {'key': tree['key']})
    assert list(host) == sorted(tree) and all(len(v) == 16 and int(v, 16) >= 0 for v in host.values())
    assert len(set(host.values())) == len(host)


def test_64_bit_leaves_agree():
    with jax.enable_x64(True):
        tree = {'f': jnp.asarray(np.random.default_rng(0).normal(size=5)), 'i': jnp.arange(5) - 2 ** 40}
        assert tree['f'].dtype == 'float64' and tree['i'].dtype == 'int64'
        assert fingerprints(tree) == on_devices(tree)


@pytest.mark.parametrize('shape, spec', [((8,), ('a',)), ((4, 2), ('a', 'b')), ((4, 2), ('b', None)),
                                         ((2, 4), (None, ('b', 'a')))])
def test_sharding_and_device_count_do_not_matter(shape, spec):
    array = np.random.default_rng(1).normal(size=(16, 8)).astype(np.float32)
    expected = fingerprints({'x': array})
    devices = np.array(jax.devices()[:int(np.prod(shape))]).reshape(shape)
    if len(shape) == 1:
        spec = (spec[0], None)
    mesh = Mesh(devices, ('a', 'b')[:len(shape)])
    placed = {'x': jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))}
    assert fingerprints(placed) == on_devices(placed) == expected
    alone = {'x': jax.device_put(array, SingleDeviceSharding(jax.devices()[3]))}
    assert on_devices(alone) == expected


def test_any_changed_bit_shows():
    array = np.random.default_rng(2).normal(size=(64, 40)).astype(np.float32)
    before, rng = fingerprints({'x': array})['x'], np.random.default_rng(3)
    for _ in range(300):
        changed = array.copy()
        changed.view(np.uint32).reshape(-1)[rng.integers(array.size)] ^= np.uint32(1 << int(rng.integers(32)))
        after = fingerprints({'x': changed})['x']
        assert after[:8] != before[:8] and after[8:] != before[8:], 'either sum alone shows it'
    # -0 is another number than 0, and one NaN another than the next.
    assert fingerprints({'x': np.float32([0.0])}) != fingerprints({'x': np.float32([-0.0])})
    assert fingerprints({'x': np.uint32([0x7FC00000]).view(np.float32)}) \
        != fingerprints({'x': np.uint32([0x7FC00001]).view(np.float32)})


def test_places_count():
    """Swapped, shifted, reversed or moved values have another fingerprint, also across numpy's chunks."""
    array = np.arange(2 * fingerprint._CHUNK + 10, dtype=np.int32)
    swapped, shift = array.copy(), fingerprint._CHUNK
    swapped[[5, 5 + shift]] = swapped[[5 + shift, 5]]
    others = [swapped, np.roll(array, 1), np.roll(array, shift), array[::-1], array + 1, array[:-1],
              np.append(array, np.int32(0))]
    found = {fingerprints({'x': a})['x'] for a in (array, *others)}
    assert len(found) == 1 + len(others)
    assert fingerprints({'x': array}) == on_devices({'x': jnp.asarray(array)})


def test_shape_and_dtype_count():
    zeros = [np.zeros(shape, dtype) for shape in ((), (0,), (4,), (2, 2), (1, 4)) for dtype in DTYPES]
    assert len({fingerprints({'x': z})['x'] for z in zeros}) == len(zeros)


def test_the_sums_are_what_the_docstring_says():
    """Recomputed with Python's integers, so that what older checkpoints hold can never change unseen."""
    def scramble(h):
        h = (h ^ (h >> 16)) * 0x85EBCA6B % 2 ** 32
        h = (h ^ (h >> 13)) * 0xC2B2AE35 % 2 ** 32
        return h ^ (h >> 16)

    array = np.float32([1.5, -2.0, 3.25])
    bits = [int(b) for b in array.view(np.uint32)]
    sums = [sum(scramble(b ^ scramble((i * seed + (seed >> 3)) % 2 ** 32)) for i, b in enumerate(bits)) % 2 ** 32
            for seed in (0x9E3779B1, 0x7FEB352D)]
    kind = hashlib.blake2b(b'float32[3]', digest_size=8).hexdigest()
    expected = ''.join(f'{(int(kind[i * 8:i * 8 + 8], 16) + sums[i]) % 2 ** 32:08x}' for i in range(2))
    assert fingerprints({'x': array}) == {'x': expected}


def test_differing_names_what_one_side_lacks():
    assert differing({'b': '1', 'a': '2', 'c': '3'}, {'a': '2', 'b': '0', 'd': '4'}) == ['b', 'c', 'd']
