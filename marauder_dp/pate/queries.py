"""Which public examples to ask about next. What decides is public, so it costs nothing."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marauder_dp.errors import PlanError

CHOICES = ("random", "clusters", "uncertainty", "given")
_AXES = 50  # principal ones, to which examples are reduced before they are grouped


@dataclasses.dataclass(frozen=True)
class Choice:
    """How queries are chosen.

    Attributes:
      by: "random"; "clusters": those given, which are `typical`, and then others at random; "uncertainty": those that the
        student of the round before knows least about; "given": those given and no others.
      limit: ask at most so many in all.
      round: ask so many, then let the student learn.
      seed: of the random order.
      given: (k,) numbers of public examples, in order, for "given" and "clusters" alone.
    """

    by: str
    limit: int
    round: int
    seed: int = 0
    given: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.by not in CHOICES:
            raise PlanError(f"the choice of queries must be one of {', '.join(CHOICES)}; got {self.by!r}")
        for name in ("limit", "round"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise PlanError(f"the {name} of queries must be a whole number of at least 1; got {getattr(self, name)!r}")
        if (self.by in ("given", "clusters")) != bool(self.given):
            raise PlanError("a choice of given queries or of clusters needs them, and no other does")


def next_queries(choice: Choice, asked: Sequence[int], examples: int, probabilities: Any = None) -> list[int]:
    """The next round; empty when there is nothing left to ask.

    Args:
      choice: how.
      asked: before, in order.
      examples: how many public ones there are.
      probabilities: (examples, classes) of the last student, if there was one.
    """
    count = min(choice.round, choice.limit - len(asked))
    order: Any = choice.given
    if choice.by != "given":
        order = [*choice.given, *np.random.default_rng(choice.seed).permutation(examples)]
    if choice.by == "uncertainty" and probabilities is not None:
        order = np.argsort(np.asarray(probabilities).max(axis=1), kind="stable")
    before = set(asked)
    return [int(query) for query in dict.fromkeys(map(int, order)) if query not in before][: max(count, 0)]


def typical(x: NDArray[Any], count: int, seed: int) -> tuple[int, ...]:
    """The public examples nearest to the centres of `count` clusters, in random order: unlike each other, and like many others.

    Teachers agree on them more often than on random ones.

    Args:
      x: (n, *shape) public examples.
      count: how many, ≥ 1; fewer come back where examples are equal.
      seed: of the clusters' beginning and the order.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from threadpoolctl import threadpool_limits

    flat = np.asarray(x, np.float64).reshape(len(x), -1)
    count = min(count, len(np.unique(flat, axis=0)))
    with threadpool_limits(1):  # sums over threads would differ from one call to the next
        if count > 1 and flat.shape[1] > _AXES < len(flat):
            flat = PCA(_AXES, random_state=seed).fit_transform(flat)
        clusters = KMeans(count, n_init=1, random_state=seed).fit(flat)
    distance = np.linalg.norm(flat - clusters.cluster_centers_[clusters.labels_], axis=1)
    nearest = {int(clusters.labels_[i]): int(i) for i in np.argsort(-distance, kind="stable")}
    return tuple(np.random.default_rng(seed).permutation(sorted(nearest.values())).tolist())
