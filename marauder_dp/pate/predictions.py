"""From trained teachers to histograms of votes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from marauder_dp.errors import ModelError

PyTree = Any
Apply = Callable[[PyTree, jax.Array], jax.Array]
"""(parameters, (n, …) examples) → (n, classes) logits."""

_TOGETHER = 1000  # examples for which one teacher votes at a time


def compile_votes(apply: Apply, params: PyTree, x: Any) -> Callable[[range, PyTree], NDArray[np.int32]]:
    """Compiles the votes of a wave of teachers for public examples.

    Args:
      apply: of one teacher.
      params: arrays or shapes of a wave: a leading dimension of teachers.
      x: (n, …) examples.

    Returns:
      (numbers of teachers, their parameters) → (teachers, n) int32 classes. A shorter wave than `params` is fine. Logits that
      aren't finite raise `ModelError` with the teacher's number: a vote made from them would mean nothing.
    """
    length = len(x)
    size = min(_TOGETHER, length)
    padding = -length % size
    x = jnp.asarray(np.concatenate([x, np.repeat(x[-1:], padding, axis=0)]))
    batches = x.reshape(-1, size, *x.shape[1:])
    teachers = len(jax.tree.leaves(params)[0])

    @jax.jit
    def vote(params: PyTree, batches: jax.Array) -> tuple[jax.Array, jax.Array]:
        def batch(params: PyTree, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = apply(params, x)
            return jnp.argmax(logits, axis=-1).astype(jnp.int32), jnp.all(jnp.isfinite(logits))

        classes, finite = jax.lax.map(lambda one: jax.lax.map(lambda x: batch(one, x), batches), params)
        return classes.reshape(teachers, -1)[:, :length], finite.all(axis=1)

    def votes(numbers: range, params: PyTree) -> NDArray[np.int32]:
        short = teachers - len(numbers)
        full = jax.tree.map(lambda leaf: np.concatenate([leaf, np.repeat(leaf[-1:], short, axis=0)]), params)
        classes, finite = vote(full, batches)
        finite = np.asarray(finite)[: len(numbers)]
        if not finite.all():
            raise ModelError(
                f"teacher {numbers[int(np.argmin(finite))]} gives logits that aren't finite, which are no vote; lower the "
                "learning rate of teachers"
            )
        return np.asarray(classes)[: len(numbers)]

    return votes


def histograms(votes: Any, classes: int) -> NDArray[np.int64]:
    """Counts of votes. (teachers, n) classes → (n, classes) int64, each row sums to the number of teachers."""
    votes = np.asarray(votes)
    return np.stack([(votes == label).sum(axis=0) for label in range(classes)], axis=1).astype(np.int64)
