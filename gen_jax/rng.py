"""Randomness by name: every draw is a pure function of (seed, step, example, purpose).

No split chain is carried anywhere. Keys are folded per example by its global index, so that jit, pmap and any number
of devices or chunks draw the same noise, and image k does not depend on the batch size.
"""

import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gen_jax.types import Array


def purpose_id(purpose: str) -> int:
    """A stable 31-bit integer for a name (crc32: Python's `hash` differs from process to process)."""
    return zlib.crc32(purpose.encode()) & 0x7FFFFFFF


def example_keys(seed_or_key, indices) -> Array:
    """Typed keys [B], one per global example index.

    Args:
        seed_or_key: an int seed or a typed key ().
        indices: ints [B], global example indices.
    """
    key = jax.random.key(seed_or_key) if isinstance(seed_or_key, int) else seed_or_key
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.asarray(indices, jnp.uint32))


class Noise(NamedTuple):
    """A per-example source of randomness.

    Tests may pass any object with the same methods, for instance one that plays back recorded noise.
    """

    keys: Array
    """Typed keys [B]."""
    batch_keys: Array | None = None
    """Typed keys [B], all the same: those of the global batch, which `stratified` needs. None: none was given."""
    position: Array | None = None
    """float32 [B]: index in the global batch over its size, in [0, 1); given with batch_keys."""

    def at(self, i) -> 'Noise':
        """The source of step i of a loop (i may be traced)."""
        fold = jax.vmap(lambda k: jax.random.fold_in(k, i))
        return Noise(fold(self.keys), None if self.batch_keys is None else fold(self.batch_keys), self.position)

    def _fold(self, purpose: str) -> Array:
        return self.at(purpose_id(purpose)).keys

    def normal(self, purpose: str, x) -> Array:
        """Standard normal noise shaped like x [B, ...], float32. `x` may be an array or a shape with leading B."""
        shape = tuple(x) if isinstance(x, (tuple, list)) else x.shape
        return jax.vmap(lambda k: jax.random.normal(k, shape[1:], jnp.float32))(self._fold(purpose))

    def uniform(self, purpose: str, shape: tuple[int, ...] = ()) -> Array:
        """Uniform in [0, 1): [B, *shape], float32."""
        return jax.vmap(lambda k: jax.random.uniform(k, shape, jnp.float32))(self._fold(purpose))

    def stratified(self, purpose: str) -> Array:
        """(u + k / n) mod 1 with one uniform u for the n examples of the global batch: [B], float32, in [0, 1).

        Each is uniform, and together they are evenly spaced (VDM, Appendix I.1; Kingma et al. 2021). With `batch_keys`
        and `position` the draw depends on neither shards nor micro-batches; without, the examples held are the batch.
        """
        n = self.keys.shape[0]
        if self.batch_keys is None:
            shared, position = self.keys[:1], jnp.arange(n, dtype=jnp.float32) / n
        else:
            shared, position = self.batch_keys, self.position
        return (Noise(shared).uniform(purpose) + position) % 1.0

    def randint(self, purpose: str, low: int, high: int, shape: tuple[int, ...] = ()) -> Array:
        """Integers in [low, high): [B, *shape], int32."""
        return jax.vmap(lambda k: jax.random.randint(k, shape, low, high))(self._fold(purpose))

    def bernoulli(self, purpose: str, p, shape: tuple[int, ...] = ()) -> Array:
        """True with probability p: [B, *shape], bool."""
        return self.uniform(purpose, shape) < p

    def key(self, purpose: str) -> Array:
        """One key for all examples, for modules that draw for a whole batch (dropout).

        It derives from the first example of this shard, so it is the one draw that depends on the sharding in pmap.
        """
        return self._fold(purpose)[0]
