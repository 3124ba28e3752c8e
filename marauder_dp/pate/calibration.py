"""Threshold and noise where they aren't given: from public numbers alone, never from votes."""

import math

from accountants import GaussianDpEvent, LaplaceDpEvent, SelfComposedDpEvent
from accountants.accountant import epsilon as accounted_epsilon
from accountants.pate.record import CHECKED
from marauder_dp.errors import PlanError
from marauder_dp.pate.voting import VotingPlan

_THRESHOLD = 0.6  # of the teachers
_CHECK = 2.5  # noise of the check, over noise of the counts
_LABELS_PER_CLASS = 36
_LEAST, _MOST = 0.08, 0.2  # noise of the counts, over the number of teachers
_TWO_CLASSES = 0.42  # the same without a check


def plan_voting(
    teachers: int,
    classes: int,
    delta: float,
    *,
    epsilon: float | None,
    mechanism: str = "confident_gnmax",
    threshold: float | None = None,
    sigma_threshold: float | None = None,
    sigma_votes: float | None = None,
) -> VotingPlan:
    """A plan with what was given, and the rest chosen.

    Noise on the counts is such that about 36 queries a class can be answered below the ceiling, within 8 and 20 percent of
    the teachers: with less, the student has too few labels, with more too many of them are wrong. Of two classes without a
    check it is 42 percent: then a label is right with the chance that noise leaves the margin its sign, and many such labels
    teach a small model more than few right ones.

    Args:
      teachers: K.
      classes: m.
      delta: in (0, 1).
      epsilon: the ceiling, if there is one.
      mechanism: one of `accountants.pate.record.MECHANISMS`.
      threshold, sigma_threshold, sigma_votes: what is given, in votes.

    Raises:
      PlanError: they contradict the mechanism or make no sense.
    """
    checks = mechanism in CHECKED
    if sigma_votes is None:
        sigma_votes = _round(_noise(teachers, classes, delta, epsilon, checks, laplace=mechanism == "lnmax"))
    if checks:
        interactive = mechanism == "interactive_gnmax"
        threshold = _round((0.5 if interactive else _THRESHOLD) * teachers) if threshold is None else threshold
        sigma_threshold = _round(_CHECK * sigma_votes) if sigma_threshold is None else sigma_threshold
    return VotingPlan(teachers, classes, sigma_votes, threshold, sigma_threshold, mechanism)


def _noise(teachers: int, classes: int, delta: float, epsilon: float | None, checks: bool, *, laplace: bool) -> float:
    """Noise on the counts."""
    least, most = _LEAST * teachers, _MOST * teachers
    if classes == 2 and not checks:
        return _TWO_CLASSES * teachers
    if epsilon is None:
        return math.sqrt(least * most)
    labels = _LABELS_PER_CLASS * classes

    def spent(sigma: float) -> float:
        if laplace:
            return accounted_epsilon(SelfComposedDpEvent(LaplaceDpEvent(sigma), 2 * labels), delta).epsilon
        # With a check as well, for one query and a half an answer.
        each = 2 + (1.5 / _CHECK**2 if checks else 0)
        return accounted_epsilon(GaussianDpEvent(sigma / math.sqrt(each * labels)), delta).epsilon

    low, high = least, most
    for _ in range(20):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if spent(middle) <= epsilon else (middle, high)
    return high


def _round(value: float) -> float:
    """To three digits, so that a plan reads well."""
    return float(f"{value:.3g}")


def check_ceiling(epsilon: float | None, queries: int | None) -> None:
    """Refuses a run without any bound on what it may spend.

    Raises:
      PlanError: neither is given, epsilon is not a finite number greater than 0, or queries are fewer than 1.
    """
    if queries is not None and queries < 1:
        raise PlanError(f"--queries must be at least 1; got {queries}")
    if epsilon is None and queries is None:
        raise PlanError("give --epsilon, the ceiling, or --queries, the most that are asked, or both")
    if epsilon is not None and not 0 < epsilon < math.inf:
        raise PlanError(f"--epsilon must be a finite number greater than 0; got {epsilon!r}")
