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
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from accountants import ComposedDpEvent, DpEvent, GaussianDpEvent, LaplaceDpEvent
from marauder_dp.errors import PlanError
from marauder_dp.noise import standard_laplace, standard_normal

MECHANISMS = ("confident_gnmax", "interactive_gnmax", "gnmax", "lnmax")

Histograms = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class VotingPlan:
    """How votes become answers. All of it is public.

    Attributes:
      teachers: K.
      classes: m.
      sigma_votes: noise on each count, in votes: a standard deviation, or the scale b of `lnmax`.
      threshold: T, in votes, from 0 to K, of the mechanisms with a check, else None.
      sigma_threshold: standard deviation of the check's noise, in votes; likewise.
      mechanism: one of `MECHANISMS`.
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
        _check_positive("sigma_votes", self.sigma_votes)
        given = [self.threshold is not None, self.sigma_threshold is not None]
        if self.checks != all(given) or any(given) != all(given):
            need = "needs threshold and sigma_threshold" if self.checks else "has no check: no threshold, no sigma_threshold"
            raise PlanError(f"{self.mechanism} {need}; got {self.threshold} and {self.sigma_threshold}")
        if self.threshold is not None:
            _check_positive("sigma_threshold", self.sigma_threshold)
            if not 0 <= self.threshold <= self.teachers:
                raise PlanError(
                    f"the threshold, {self.threshold:g}, must lie between 0 and the number of teachers, {self.teachers}"
                )

    @property
    def checks(self) -> bool:
        """Whether a query may be refused."""
        return self.mechanism in ("confident_gnmax", "interactive_gnmax")

    @property
    def check_event(self) -> DpEvent | None:
        """The release of whether one query passes the check; None where there is none."""
        return None if self.sigma_threshold is None else GaussianDpEvent(self.sigma_threshold)

    @property
    def plurality_event(self) -> DpEvent:
        """The release of one query's class."""
        if self.mechanism == "lnmax":
            return ComposedDpEvent((LaplaceDpEvent(self.sigma_votes), LaplaceDpEvent(self.sigma_votes)))
        return GaussianDpEvent(self.sigma_votes / math.sqrt(2))

    @property
    def query_event(self) -> DpEvent:
        """The most that one query can release: both."""
        return self.plurality_event if self.check_event is None else ComposedDpEvent((self.check_event, self.plurality_event))

    def passes(self, histograms: Histograms, keys: jax.Array, student: Any = None) -> NDArray[np.bool_]:
        """Which queries are answered. Costs `check_event` each.

        Args:
          histograms: (n, m) votes.
          keys: (n,) typed PRNG keys, secret, never used for another histogram.
          student: (n, m) public probabilities, for `interactive_gnmax` alone.
        """
        if self.threshold is None or self.sigma_threshold is None:
            return np.ones(len(histograms), np.bool_)
        if (student is not None) != (self.mechanism == "interactive_gnmax"):
            raise PlanError("the student's probabilities are for interactive_gnmax, which needs them")
        expected = 0 if student is None else self.teachers * np.asarray(student, np.float64)
        noise = _draws(standard_normal, keys, 0, ())
        return np.asarray((histograms - expected).max(axis=1) + self.sigma_threshold * noise >= self.threshold)

    def pluralities(self, histograms: Histograms, keys: jax.Array) -> NDArray[np.int64]:
        """The classes to answer with, (n,). Costs `plurality_event` each. Arguments as of `passes`."""
        draw = standard_laplace if self.mechanism == "lnmax" else standard_normal
        return np.argmax(histograms + self.sigma_votes * _draws(draw, keys, 1, (self.classes,)), axis=1)


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
        _check_positive("sigma_votes", self.sigma_votes)
        if not (self.teachers >= 1 and 1 <= self.most <= self.labels):
            raise PlanError(f"most must lie between 1 and the {self.labels} labels, with at least 1 teacher; got {self.most}")

    @property
    def event(self) -> DpEvent:
        """The release of one query's labels, all of them."""
        return GaussianDpEvent(self.sigma_votes / math.sqrt(min(2 * self.most, self.labels)))

    def bounded(self, scores: Any) -> NDArray[np.int64]:
        """Votes of teachers with scores (teachers, n, m): positive ones count, of each query the `most` largest. (n, m)."""
        scores = np.asarray(scores)
        if not np.isfinite(scores).all():
            raise PlanError("scores must be finite")
        best = np.argsort(-scores, axis=-1, kind="stable")[..., : self.most]
        votes = np.zeros(scores.shape, np.int64)
        np.put_along_axis(votes, best, 1, axis=-1)
        return np.asarray((votes * (scores > 0)).sum(axis=0))

    def answers(self, counts: Histograms, keys: jax.Array) -> NDArray[np.bool_]:
        """Which labels apply, (n, m). `counts` (n, m) from `bounded`; `keys` as for `VotingPlan`."""
        return np.asarray(counts + self.sigma_votes * _draws(standard_normal, keys, 1, (self.labels,)) > self.teachers / 2)


def query_keys(noise_key: jax.Array, start: int, count: int) -> jax.Array:
    """The keys of queries start, …, start + count − 1 of a run, (count,)."""
    return jax.vmap(lambda number: jax.random.fold_in(noise_key, number))(jnp.arange(start, start + count))


def _draws(draw: Any, keys: jax.Array, purpose: int, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Noise of each query for one purpose, (n, *shape)."""
    return np.asarray(jax.vmap(lambda key: draw(jax.random.fold_in(key, purpose), shape))(keys), np.float64)


def _check_positive(name: str, value: Any) -> None:
    if not (isinstance(value, int | float) and 0 < value < math.inf):
        raise PlanError(f"{name} must be a finite number greater than 0; got {value!r}")
