"""A 64-bit fingerprint per leaf: equal bits, equal fingerprint, on any devices and however the leaf is sharded.

Element i with bits b adds f(b, i) to each of two 32-bit sums that wrap around, which begin with the shape and dtype.
Addition has no order, so shards and reductions of any shape give the same sums; f(., i) is a bijection of 32-bit words,
so a change within one word always shows, and any other change is missed with a chance of about 2^-64. It finds errors;
it is no defence against a forger.
"""

import functools
import hashlib
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gen_jax import trees
from gen_jax.types import PyTree

__all__ = ['fingerprints', 'differing']

_SEEDS = (0x9E3779B1, 0x7FEB352D)  # two odd words: one sum must not follow from the other
_CHUNK = 1 << 15  # words that numpy mixes at a time: they stay in the processor's cache


def fingerprints(tree: PyTree) -> dict[str, str]:
    """Path -> 16 hexadecimal digits, in the order of the tree.

    Leaves on accelerators, and those that other processes share, are summed where they are, by one program for each
    shape, dtype and sharding (one program for the whole tree took ten times as long to compile). Leaves in this
    process's memory are summed by numpy, which compiles nothing. The digits are the same.

    Args:
        tree: arrays of any dtype (typed PRNG keys too). In several processes all must call it with the same tree.
    """
    leaves = {k: jax.random.key_data(v) if jnp.issubdtype(v.dtype, jax.dtypes.prng_key) else v
              for k, v in trees.flat(tree).items()}
    sums = {k: None if _in_memory(v) else _program(_everywhere(v))(v) for k, v in leaves.items()}
    with ThreadPoolExecutor() as pool:  # numpy computes outside Python's lock
        waiting = {k: pool.submit(_host_sums, leaves[k]) for k, v in sums.items() if v is None}
        sums.update({k: v.result() for k, v in waiting.items()})
    return {k: f'{_add(_kind(leaves[k]), pair):016x}' for k, pair in jax.device_get(sums).items()}


def differing(a: Mapping[str, str], b: Mapping[str, str]) -> list[str]:
    """The paths whose fingerprints differ or that only one has, in the order of `a`, then of `b`."""
    return [k for k in dict.fromkeys((*a, *b)) if a.get(k) != b.get(k)]


def _kind(leaf) -> int:
    """64 bits of the dtype and shape, so that zeros of one kind are not zeros of another."""
    text = f'{leaf.dtype}{list(leaf.shape)}'
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), 'big')


def _add(kind: int, sums) -> int:
    """Both sums, each with its half of `kind` added, modulo 2^32."""
    high, low = ((part + int(total)) % 2**32 for part, total in zip(divmod(kind, 2**32), sums, strict=True))
    return high << 32 | low


def _scramble(h):
    """The finalizer of MurmurHash3 (Austin Appleby; public domain), a bijection of uint32: any bit moves all others."""
    h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


def _sums(words, places):
    """The two sums over uint32 words at uint32 places of a leaf (modulo 2^32), by numpy or JAX."""
    return [_scramble(words ^ _scramble(places * np.uint32(seed) + np.uint32(seed >> 3))).sum(dtype=np.uint32)
            for seed in _SEEDS]


def _bits(dtype) -> int:
    """Bits of an element: 4 for int4, which takes a byte in memory."""
    if jnp.issubdtype(dtype, jnp.integer):
        return jnp.iinfo(dtype).bits
    if jnp.issubdtype(dtype, jnp.floating):
        return jnp.finfo(dtype).bits
    return np.dtype(dtype).itemsize * 8


def _in_memory(leaf) -> bool:
    if not isinstance(leaf, jax.Array):
        return True
    return leaf.is_fully_addressable and all(d.platform == 'cpu' for d in leaf.devices())


def _host_sums(leaf) -> np.ndarray:
    leaf = np.ascontiguousarray(leaf).reshape(-1)
    words = leaf.view(np.dtype(f'<u{min(leaf.dtype.itemsize, 4)}'))
    mask = np.uint32(2 ** min(_bits(leaf.dtype), 32) - 1)
    totals = np.zeros(2, np.uint32)
    for start in range(0, words.size, _CHUNK):
        part = words[start:start + _CHUNK].astype(np.uint32) & mask
        places = np.arange(start, start + part.size, dtype=np.uint64).astype(np.uint32)
        totals += np.array(_sums(part, places), np.uint32)
    return totals


def _everywhere(leaf):
    """The sharding of the sums: every process must be able to read them."""
    here = leaf.sharding
    return NamedSharding(here.mesh, PartitionSpec()) if isinstance(here, NamedSharding) else None


@functools.cache
def _program(out):
    return jax.jit(_device_sums, out_shardings=out)


def _device_sums(leaf):
    bits = _bits(leaf.dtype)
    if leaf.dtype == bool:
        words = leaf.astype(jnp.uint32)
    elif jnp.iscomplexobj(leaf):
        parts = [jax.lax.bitcast_convert_type(p, jnp.uint32) for p in (leaf.real, leaf.imag)]
        words = jnp.stack([p.reshape(*leaf.shape, -1) for p in parts], axis=-2)
    elif bits > 32:
        words = jax.lax.bitcast_convert_type(leaf, jnp.uint32)  # a last axis of two, the low word first
    else:
        words = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f'uint{bits}')).astype(jnp.uint32)
    places = jnp.zeros(words.shape, jnp.uint32)
    for axis in range(words.ndim):
        stride = np.uint32(math.prod(words.shape[axis + 1:]) % 2**32)
        places += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * stride
    return jnp.stack(_sums(words, places))
