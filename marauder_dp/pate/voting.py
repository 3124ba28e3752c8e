"""How an answer is drawn from the teachers' votes, and which events that is: one plan gives both.

A query asks all teachers for the class of one public example; its histogram counts their votes. One training example more,
less or other changes one teacher, so in each histogram at most one vote moves.

* `gnmax`: the class of the largest count, Gaussian noise σ₂ on each (Papernot et al. 2018, section 4.1). Two counts change
  by 1: as a Gaussian of sensitivity √2.
* `lnmax`: the same with Laplace noise of scale b (Papernot et al. 2017): as two Laplace mechanisms of sensitivity 1.
* `confident_gnmax`: first a check that the largest count plus N(0, σ₁²) reaches a threshold T; without it the query is
  refused and costs the check alone (2018, Algorithm 1). The largest count changes by at most 1.
* `interactive_gnmax`: the check is of the largest surplus n_j − K p_j over what the student expects, so that budget goes
  where it is wrong (2018, Algorithm 2). p is public; the surplus changes by at most 1.

Counts are whole numbers and noise is added in float64, from float32 draws whose tails reach nine standard deviations.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from accountants import ComposedDpEvent, DpEvent, GaussianDpEvent
from accountants.errors import InvalidEventError
from accountants.pate import record
from accountants.pate.record import CHECKED, MECHANISMS
from accountants.pate.votes import noise_in_votes
from marauder_dp.errors import PlanError
from marauder_dp.noise import standard_laplace, standard_normal

Histograms = NDArray[np.int64]

_TOGETHER = 128  # queries that noise is drawn for, at least
_SUM_TO_ONE = 1e-3  # how far a student's probabilities may be from it


@dataclasses.dataclass(frozen=True)
class QueryNoise:
    """The noise of some queries, a function of the key and of the number of each example: whoever asks again gets the same.

    Attributes:
      key: secret, typed PRNG key; the same for all queries of a run, and for no other votes.
      queries: (n,) numbers of public examples.
    """

    key: jax.Array
    queries: Sequence[int]

    def draws(self, draw: Any, purpose: int, shape: tuple[int, ...] = ()) -> NDArray[np.float64]:
        """(n, *shape) draws of `draw(key, shape)`, independent for each purpose."""
        numbers = np.zeros(max(_TOGETHER, 1 << (len(self.queries) - 1).bit_length()), np.uint32)  # few shapes to compile for
        numbers[: len(self.queries)] = self.queries
        return np.asarray(_draws(draw, self.key, numbers, purpose, shape), np.float64)[: len(self.queries)]


@dataclasses.dataclass(frozen=True)
class VotingPlan:
    """How votes become answers. All of it is public.

    Attributes:
      teachers: K.
      classes: m.
      sigma_votes: noise on each count, in votes: a standard deviation, or the scale b of `lnmax`.
      threshold: T, in votes, from 0 to K, of the mechanisms with a check, else None.
      sigma_threshold: standard deviation of the check's noise, in votes; likewise.
      mechanism: one of `accountants.pate.record.MECHANISMS`.
    """

    teachers: int
    classes: int
    sigma_votes: float
    threshold: float | None = None
    sigma_threshold: float | None = None
    mechanism: str = "confident_gnmax"

    def __post_init__(self) -> None:
        if self.mechanism not in MECHANISMS:
            raise PlanError(f"mechanism must be one of {', '.join(MECHANISMS)}; got {self.mechanism!r}")
        if self.teachers < 1 or self.classes < 2:
            raise PlanError(f"voting takes at least 1 teacher and 2 classes; got {self.teachers} and {self.classes}")
        _check_noise("sigma_votes", self.sigma_votes)
        given = [self.threshold is not None, self.sigma_threshold is not None]
        if self.checks != all(given) or any(given) != all(given):
            need = "needs threshold and sigma_threshold" if self.checks else "has no check: no threshold, no sigma_threshold"
            raise PlanError(f"{self.mechanism} {need}; got {self.threshold} and {self.sigma_threshold}")
        if self.threshold is not None:
            _check_noise("sigma_threshold", self.sigma_threshold)
            if not 0 <= self.threshold <= self.teachers:
                raise PlanError(
                    f"the threshold, {self.threshold:g}, must lie between 0 and the number of teachers, {self.teachers}"
                )

    @property
    def checks(self) -> bool:
        """Whether a query may be refused."""
        return self.mechanism in CHECKED

    @property
    def check_event(self) -> DpEvent | None:
        """The release of whether one query passes the check; None where there is none."""
        return record.events(self.mechanism, self.sigma_votes, self.sigma_threshold)[0]

    @property
    def plurality_event(self) -> DpEvent:
        """The release of one query's class."""
        return record.events(self.mechanism, self.sigma_votes)[1]

    @property
    def query_event(self) -> DpEvent:
        """The most that one query can release: both."""
        return self.plurality_event if self.check_event is None else ComposedDpEvent((self.check_event, self.plurality_event))

    def passes(self, histograms: Histograms, noise: QueryNoise, student: Any = None) -> NDArray[np.bool_]:
        """Which queries are answered. Costs `check_event` each.

        Args:
          histograms: (n, m) votes.
          noise: of these queries.
          student: (n, m) public probabilities, for `interactive_gnmax` alone.
        """
        self.check_student(student, len(histograms))
        if self.threshold is None or self.sigma_threshold is None:
            return np.ones(len(histograms), np.bool_)
        expected = 0 if student is None else self.teachers * np.asarray(student, np.float64)
        largest = (histograms - expected).max(axis=1)
        return np.asarray(largest + self.sigma_threshold * noise.draws(standard_normal, 0) >= self.threshold)

    def check_student(self, student: Any, queries: int) -> None:
        """Refuses what can't be a student's probabilities for so many queries.

        Raises:
          PlanError: they aren't, or the mechanism has no use for them, or they are missing.
        """
        if (student is not None) != (self.mechanism == "interactive_gnmax"):
            raise PlanError("the student's probabilities are for interactive_gnmax, which needs them")
        if student is None:
            return
        given = np.asarray(student)
        if given.shape != (queries, self.classes) or given.dtype.kind not in "iuf":
            raise PlanError(
                f"the student's probabilities must be numbers of shape {(queries, self.classes)}; got {given.shape}"
            )
        if not ((given >= 0).all() and (np.abs(given.sum(axis=1) - 1) < _SUM_TO_ONE).all()):
            raise PlanError("the student's probabilities must be finite, at least 0, and sum to 1 for each query")

    def pluralities(self, histograms: Histograms, noise: QueryNoise) -> NDArray[np.int64]:
        """The classes to answer with, (n,). Costs `plurality_event` each. Arguments as of `passes`."""
        draw = standard_laplace if self.mechanism == "lnmax" else standard_normal
        return np.argmax(histograms + self.sigma_votes * noise.draws(draw, 1, (self.classes,)), axis=1)


@dataclasses.dataclass(frozen=True)
class MultiLabelPlan:
    """Voting on queries to which several labels apply: released are those that, with noise, over half of the teachers chose.

    A teacher may vote for at most `most` labels of a query (`bounded` sees to it), so one example changes at most 2 · most
    counts by 1: as a Gaussian of sensitivity √(2 · most) (Zhu et al. 2020, section 4.3).

    Attributes:
      teachers: K.
      labels: m.
      most: at least 1, at most m.
      sigma_votes: standard deviation of the noise on each count, in votes.
    """

    teachers: int
    labels: int
    most: int
    sigma_votes: float

    def __post_init__(self) -> None:
        _check_noise("sigma_votes", self.sigma_votes)
        if not (self.teachers >= 1 and 1 <= self.most <= self.labels):
            raise PlanError(f"most must lie between 1 and the {self.labels} labels, with at least 1 teacher; got {self.most}")

    @property
    def event(self) -> DpEvent:
        """The release of one query's labels, all of them."""
        return GaussianDpEvent(self.sigma_votes / math.sqrt(min(2 * self.most, self.labels)))

    def bounded(self, scores: Any) -> NDArray[np.int64]:
        """Votes of teachers with scores (teachers, n, m): positive ones count, of each query the `most` largest. (n, m)."""
        scores = np.asarray(scores)
        if scores.ndim != 3 or scores.shape[::2] != (self.teachers, self.labels):
            raise PlanError(f"scores must have the shape ({self.teachers}, queries, {self.labels}); got {scores.shape}")
        if not np.isfinite(scores).all():
            raise PlanError("scores must be finite")
        best = np.argsort(-scores, axis=-1, kind="stable")[..., : self.most]
        votes = np.zeros(scores.shape, np.int64)
        np.put_along_axis(votes, best, 1, axis=-1)
        return np.asarray((votes * (scores > 0)).sum(axis=0))

    def answers(self, counts: Histograms, noise: QueryNoise) -> NDArray[np.bool_]:
        """Which labels apply, (n, m). `counts` (n, m) from `bounded`."""
        return np.asarray(counts + self.sigma_votes * noise.draws(standard_normal, 1, (self.labels,)) > self.teachers / 2)


@functools.partial(jax.jit, static_argnames=("draw", "purpose", "shape"))
def _draws(draw: Any, key: jax.Array, queries: jax.Array, purpose: int, shape: tuple[int, ...]) -> jax.Array:
    one = lambda query: draw(jax.random.fold_in(jax.random.fold_in(key, query), purpose), shape)  # noqa: E731
    return jax.vmap(one)(queries)


def _check_noise(name: str, value: Any) -> None:
    try:
        noise_in_votes(value, name)
    except InvalidEventError as error:
        raise PlanError(str(error)) from None
