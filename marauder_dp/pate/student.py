"""Training of the student: on the labels that were released, and on the remaining public examples.

The labels are few and most public examples have none, so the student also learns from its own confident predictions, in the
manner of FixMatch (Sohn et al. 2020): where the average of recent students is sure of a slightly changed example, the student
is to say the same of a strongly changed one. All this is post-processing of public data and released labels: it costs nothing.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from marauder_dp.convolutions import as_products
from marauder_dp.errors import PlanError
from marauder_dp.memory import examples_in_cache
from marauder_dp.pate.distortions import slight, strong

PyTree = Any

STEPS_BETWEEN_CALLS = 50
"""Updates from one call of `after_steps` to the next."""

_SURE = 0.95  # probability from which a prediction counts as a label
_AVERAGED = 0.99  # decay of the average of parameters


@dataclasses.dataclass(frozen=True)
class StudentTraining:
    """How the student is trained. All of it is public.

    Attributes:
      model: a flax module that takes a batch of examples and returns logits.
      steps: updates.
      batch_size: labelled examples an update.
      unlabelled: other public examples an update, for each labelled one; 0: supervised training alone.
      learning_rate: of Adam, at its peak; follows a cosine to zero.
      penalty: λ of λ/2 · ‖weights‖², added to the loss: for many noisy labels.
      seed: of initial parameters, batches and distortions.
    """

    model: nn.Module
    steps: int = 1000
    batch_size: int = 64
    unlabelled: int = 4
    learning_rate: float = 2e-3
    penalty: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch_size", 1), ("unlabelled", 0)):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < least:
                raise PlanError(
                    f"{name} of the student must be a whole number of at least {least}; got {getattr(self, name)!r}"
                )
        if not 0 < self.learning_rate < math.inf:
            raise PlanError(f"the student's learning rate must be a finite number greater than 0; got {self.learning_rate!r}")
        if not 0 <= self.penalty < math.inf:
            raise PlanError(f"the student's penalty must be a finite number of at least 0; got {self.penalty!r}")


class _State(NamedTuple):
    params: PyTree
    averaged: PyTree
    opt_state: PyTree
    step: jax.Array


def train_student(
    training: StudentTraining,
    x: NDArray[np.float32],
    queries: Any,
    labels: Any,
    *,
    after_steps: Callable[[int], object] = lambda step: None,
) -> PyTree:
    """Parameters of a student, averaged over the last updates.

    Args:
      training: how.
      x: (n, *shape) public examples.
      queries: (k,) numbers of those with a label, k ≥ 1.
      labels: (k,) their classes.
      after_steps: called every `STEPS_BETWEEN_CALLS` updates with the number of updates done; may raise to stop.

    Raises:
      PlanError: no example has a label, or labels don't go with examples.
    """
    queries, labels = np.asarray(queries, np.int32), np.asarray(labels, np.int32)
    if not len(queries):
        raise PlanError("no query was answered, so there is nothing to learn from: lower the threshold or raise epsilon")
    if labels.shape != queries.shape or queries.min() < 0 or queries.max() >= len(x):
        raise PlanError(
            f"{len(labels)} labels of {len(queries)} examples: there must be one for each, of examples 0 to {len(x) - 1}"
        )
    shape = x.shape[1:]
    optimizer = optax.adam(optax.cosine_decay_schedule(training.learning_rate, training.steps))
    start, key = jax.random.split(jax.random.key(training.seed))
    params = training.model.init(start, jnp.zeros((1, *shape)))["params"]
    state = _State(params, params, optimizer.init(params), jnp.zeros((), jnp.int32))

    one = as_products(lambda params, x: training.model.apply({"params": params}, x).astype(jnp.float32))
    logits = jax.vmap(one, (None, 0))

    def loss(params: PyTree, averaged: PyTree, key: jax.Array, x: jax.Array, y: jax.Array, rest: jax.Array) -> jax.Array:
        first, second, third = jax.random.split(key, 3)
        slightly, strongly = slight(shape), strong(shape)
        weights = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params) if leaf.ndim > 1)
        regular = training.penalty / 2 * weights
        if not len(rest):
            return regular + optax.softmax_cross_entropy_with_integer_labels(logits(params, slightly(first, x)), y).mean()
        both = logits(params, jnp.concatenate([slightly(first, x), strongly(third, rest)]))
        supervised = optax.softmax_cross_entropy_with_integer_labels(both[: len(x)], y).mean()
        predicted = jax.nn.softmax(logits(averaged, slightly(second, rest)))
        sure = predicted.max(axis=1) >= _SURE
        guessed = optax.softmax_cross_entropy_with_integer_labels(both[len(x) :], predicted.argmax(axis=1))
        return regular + supervised + jnp.where(sure, guessed, 0).mean()

    groups = _groups(training, examples_in_cache(jax.make_jaxpr(one)(params, jnp.zeros(shape)).jaxpr, params))

    def gradient(state: _State, pool: jax.Array, which: jax.Array, y: jax.Array, rest: jax.Array) -> PyTree:
        step_key = jax.random.fold_in(key, state.step)

        def of_group(group: jax.Array | int, which: jax.Array, y: jax.Array, rest: jax.Array) -> PyTree:
            group_key = jax.random.fold_in(step_key, group)
            return jax.grad(loss)(state.params, state.averaged, group_key, pool[which], y, pool[rest])

        if groups == 1:  # without a loop, in which native convolutions are slow
            return of_group(0, which, y, rest)
        parts = [a.reshape(groups, len(a) // groups) for a in (which, y, rest)]
        add = lambda total, part: (jax.tree.map(jnp.add, total, of_group(*part)), None)  # noqa: E731
        total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, state.params), (jnp.arange(groups), *parts))
        return jax.tree.map(lambda g: g / groups, total)

    @jax.jit
    def update(state: _State, pool: jax.Array, which: jax.Array, y: jax.Array, rest: jax.Array) -> _State:
        mean = gradient(state, pool, which, y, rest)
        updates, opt_state = optimizer.update(mean, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # Short at first, so that the start is soon forgotten.
        decay = jnp.minimum(_AVERAGED, (state.step + 1) / (state.step + 10))
        averaged = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.averaged, params)
        return _State(params, averaged, opt_state, state.step + 1)

    rng = np.random.default_rng(training.seed)
    pool = jnp.asarray(x)
    labelled, others = _Shuffled(rng, len(queries)), _Shuffled(rng, len(x))
    for step in range(training.steps):
        chosen = labelled.draw(training.batch_size)
        rest = others.draw(training.unlabelled * training.batch_size)
        state = update(state, pool, queries[chosen], labels[chosen], rest.astype(np.int32))
        if (step + 1) % STEPS_BETWEEN_CALLS == 0:
            jax.block_until_ready(state)
            after_steps(step + 1)
    return jax.tree.map(np.asarray, state.averaged)


def _groups(training: StudentTraining, at_a_time: float) -> int:
    """Into how many equal parts the examples of an update are divided, so that each has about so many."""
    most = max(1, training.batch_size * (1 + training.unlabelled) / at_a_time)
    return max(d for d in range(1, training.batch_size + 1) if training.batch_size % d == 0 and d <= most)


class _Shuffled:
    """Numbers below n in random order, anew whenever all have been drawn."""

    def __init__(self, rng: np.random.Generator, n: int):
        self._rng, self._n = rng, n
        self._left = np.empty(0, np.int64)

    def draw(self, count: int) -> NDArray[np.int64]:
        while len(self._left) < count:
            self._left = np.concatenate([self._left, self._rng.permutation(self._n)])
        drawn, self._left = self._left[:count], self._left[count:]
        return drawn
