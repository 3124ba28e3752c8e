"""Random words: the cipher Threefry-2x32 with 20 rounds (Salmon, Moraes, Dror and Shaw 2011), on counters.

The same cipher as JAX's, written out in one line of operations, so that XLA computes words and what is made of them in one
pass. JAX's own is a loop over arrays in memory on a CPU, and keeps one of the two words of each block.

JAX derives keys from a key by the same cipher on the blocks (0, 0), (0, 1), …; ours begin with a number of their own, so what
is drawn under a key is never a key derived from it.
"""

import math

import jax
import jax.numpy as jnp

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
FIRST = 0x4D445057
"""The first word of every block that `words` enciphers; the second is the position."""


def words(key: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Two uint32 arrays of a shape, 64 random bits an entry, decided by (key, position of the entry) alone.

    Args:
      key: () typed PRNG key, for this purpose alone. One of another cipher than JAX's default gives its own words.
      shape: of less than 2³² entries.

    Raises:
      ValueError: of more.
    """
    if math.prod(shape) >= 2**32:
        raise ValueError(f"the positions of {shape} are not numbers of 32 bits")
    if str(jax.random.key_impl(key)) != "threefry2x32":
        both = jax.random.bits(key, (2, *shape), jnp.uint32)
        return both[0], both[1]
    first, second = jax.random.key_data(key)
    # By dimension, and not one count reshaped: each device then counts for its own part.
    position = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = math.prod(shape[axis + 1 :])
        position += jnp.uint32(stride) * jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return encipher(first, second, jnp.full(shape, FIRST, jnp.uint32), position)


def encipher(key0: jax.Array, key1: jax.Array, x0: jax.Array, x1: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The block (x0, x1) under the key, all uint32; the arrays are of one shape, the key's words scalars."""
    keys = (key0, key1, key0 ^ key1 ^ jnp.uint32(_PARITY))
    x0, x1 = x0 + keys[0], x1 + keys[1]
    for four in range(5):
        for by in _ROTATIONS[four % 2]:
            x0 += x1
            x1 = ((x1 << by) | (x1 >> (32 - by))) ^ x0
        x0 += keys[(four + 1) % 3]
        x1 += keys[(four + 2) % 3] + jnp.uint32(four + 1)
    return x0, x1
