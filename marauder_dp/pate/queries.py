"""Which public examples to ask about next. What decides is public, so it costs nothing."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from marauder_dp.errors import PlanError

CHOICES = ("random", "uncertainty", "given")


@dataclasses.dataclass(frozen=True)
class Choice:
    """How queries are chosen.

    Attributes:
      by: "random"; "uncertainty": those that the student of the round before knows least about; "given".
      limit: ask at most so many in all.
      round: ask so many, then let the student learn.
      seed: of the random order.
      given: (k,) numbers of public examples, in order, for "given" alone.
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
        if (self.by == "given") != bool(self.given):
            raise PlanError("a choice of given queries needs them, and no other does")


def next_queries(choice: Choice, asked: Sequence[int], examples: int, probabilities: Any = None) -> list[int]:
    """The next round; empty when there is nothing left to ask.

    Args:
      choice: how.
      asked: before, in order.
      examples: how many public ones there are.
      probabilities: (examples, classes) of the last student, if there was one.
    """
    count = min(choice.round, choice.limit - len(asked))
    order: Any = choice.given or np.random.default_rng(choice.seed).permutation(examples)
    if choice.by == "uncertainty" and probabilities is not None:
        order = np.argsort(np.asarray(probabilities).max(axis=1), kind="stable")
    before = set(asked)
    return [int(query) for query in dict.fromkeys(map(int, order)) if query not in before][: max(count, 0)]
