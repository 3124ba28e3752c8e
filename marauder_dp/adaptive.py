"""A clip norm that follows a quantile of the gradients' norms, privately (Andrew, Thakkar, McMahan and Ramaswamy 2021).

Each update also releases how many of its examples had a norm of at most C, with noise, and moves C toward the median:

    b̃ = (Σ_i (1[‖g_i‖ ≤ C] − ½) + N(0, s²))/B + ½,    C ← C · exp(−0.2 (b̃ − 0.5)),    s = B/20,

B the expected batch size. Counting ±½ for an example halves its sensitivity to ½ when it is added, removed or zeroed out
(1 when it is replaced), so this is a Gaussian mechanism of noise multiplier 2s. It looks at the same sample as the gradients,
so both together are one sampled event: accounted as two, each with a sample of its own, they would seem to cost less than they
do.
"""

import jax
import jax.numpy as jnp

from marauder_dp.clipping import MIN_CLIP_NORM
from marauder_dp.noise import standard_normal

QUANTILE = 0.5
STEP = 0.2
_MAX_CLIP_NORM = 1e8


def count_noise(batch_size: int) -> float:
    """s, the standard deviation of the noise on the count."""
    return batch_size / 20


def noise_multiplier(batch_size: int) -> float:
    """Of the count: s over its sensitivity."""
    return 2 * count_noise(batch_size)


def centred_count(norms: jax.Array, clip_norm: jax.Array, used: jax.Array) -> jax.Array:
    """Σ (1[‖g_i‖ ≤ C] − ½) over the examples that are used; private. A norm that is not finite counts as large.

    Args:
      norms: (batch,).
      clip_norm: () C.
      used: (batch,) bool.
    """
    return jnp.sum(jnp.where(used, jnp.where(norms <= clip_norm, 0.5, -0.5), 0))


def next_clip_norm(clip_norm: jax.Array, count: jax.Array, key: jax.Array, batch_size: int) -> jax.Array:
    """C for the next update; may be released once it is paid for.

    Args:
      clip_norm: () float32, C.
      count: () sum of `centred_count` over the whole batch.
      key: typed PRNG key that is used for nothing else.
      batch_size: expected.
    """
    below = (count + count_noise(batch_size) * standard_normal(key, ())) / batch_size + 0.5
    moved = clip_norm * jnp.exp(-STEP * (below - QUANTILE))
    return jnp.clip(moved, MIN_CLIP_NORM, _MAX_CLIP_NORM).astype(jnp.float32)
