"""Poisson sampling by counter-based draws, and fixed-shape batches of what was drawn.

Whether example i takes part in step t is one Bernoulli draw from (sampling key, t, i): independent over examples
and steps, the same on one device or many, and after a resume. The sampler itself describes what it does to the
accountant, so that what is accounted is what ran.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from accountants.domains import probability, whole
from accountants.events import DpEvent, PoissonSampledDpEvent
from marauder_dp.threefry import words


@dataclasses.dataclass(frozen=True)
class PoissonSampler:
    """Includes each of `num_examples` examples independently with probability at most `sampling_probability`.

    The probability is rounded down to a multiple of 2⁻³² (so that 32 random bits decide it exactly): never above
    what is accounted, and below it by at most 2.3e-10.

    Attributes:
      num_examples: length of the data, including any that are never real (public).
      sampling_probability: q in [0, 1].
    """

    num_examples: int
    sampling_probability: float

    def __post_init__(self) -> None:
        whole(self.num_examples, "num_examples")
        probability(self.sampling_probability, "sampling_probability")

    def event(self, mechanism: DpEvent) -> DpEvent:
        """What a release by `mechanism` from one sample costs."""
        return PoissonSampledDpEvent(self.sampling_probability, mechanism)

    def mask(self, key: jax.Array, step: jax.Array | int) -> jax.Array:
        """(num_examples,) bool: who takes part in `step`. Private.

        Args:
          key: typed PRNG key, used for sampling and nothing else.
          step: () integer; equal keys and steps give equal draws.
        """
        threshold = math.floor(self.sampling_probability * 2**32)
        if threshold >= 2**32:
            return jnp.ones(self.num_examples, bool)
        bits, _ = words(jax.random.fold_in(key, step), (self.num_examples,))
        return bits < jnp.uint32(threshold)


def micro_batch_ids(cumulative: jax.Array, index: jax.Array | int, size: int) -> tuple[jax.Array, jax.Array]:
    """The `index`-th group of `size` included examples.

    Args:
      cumulative: (n,) int32, running count of the mask.
      index: () integer, from 0.
      size: number of slots, fixed at compile time.

    Returns:
      ids (size,) int32, valid positions in [0, n) even where unused; used (size,) bool.
    """
    rank = index * size + jnp.arange(1, size + 1, dtype=cumulative.dtype)
    ids = jnp.searchsorted(cumulative, rank, side="left")
    return jnp.minimum(ids, cumulative.shape[0] - 1), rank <= cumulative[-1]


def take(data: Any, ids: jax.Array) -> Any:
    """Rows `ids` of every array in `data`."""
    return jax.tree.map(lambda x: jnp.take(x, ids, axis=0), data)
