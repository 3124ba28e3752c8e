"""Sums of squares with a proven bound of their rounding, however the compiler orders additions.

XLA may add thousands of terms one after the other, and a sum of n equal terms can then be short by a relative n/2 units in the
last place: a gradient of three million equal entries passed its clip norm by 4e-6. Here no more than `_BLOCK` terms are added
at a time. A barrier between the levels keeps XLA from merging them into one sum, which it does otherwise.

A sum of k non-negative terms in any order is short by a relative (k − 1)u at most, u half a unit in the last place (Higham
2002, section 4.2), and so its root by half of that.
"""

import math

import jax
import jax.numpy as jnp

Array = jax.Array

_BLOCK = 32


def sum_of_squares(x: Array, lead: int = 1) -> tuple[Array, float]:
    """Σ x² over all but the first `lead` dimensions, and a bound e: the exact root is at most √(result) · (1 + e)."""
    shape = x.shape[:lead]
    rows, length = math.prod(shape), math.prod(x.shape[lead:])
    if rows * length == 0:
        return jnp.zeros(shape, x.dtype), 0.0
    barrier = jax.lax.optimization_barrier
    # The barrier keeps the reshape from being moved behind the square, which would then be written to memory.
    total, added = barrier(_blocks(x.reshape(rows, length))), 1
    total, added = jnp.sum(total * total, 2), added + total.shape[2]
    while total.shape[1] > 1:
        total = barrier(_blocks(total))
        total, added = jnp.sum(total, 2), added + total.shape[2]
    return total.reshape(shape), (added / 2 + 1) * float(jnp.finfo(x.dtype).eps) / 2


def _blocks(x: Array) -> Array:
    """(rows, length) as (rows, number of blocks, terms of a block), with zeros at the end where no divisor is near."""
    length = x.shape[1]
    block = next((k for k in range(min(_BLOCK, length), _BLOCK // 2, -1) if length % k == 0), min(_BLOCK, length))
    return jnp.pad(x, ((0, 0), (0, -length % block))).reshape(len(x), -1, block)
