r"""What a run of PATE cost: ε of recorded votes, and where it went.

A query passes a noisy threshold check, if there is one, and is then answered by a noisy plurality or refused:

* `answered` given: what happened. An answered query pays both steps, a refused one the check alone. The result is what an
  odometer reads: answers are chosen as the run goes, so a promise made in advance needs a ceiling (`accountants.Filter`).
* `answered` unknown: each plurality counts times the probability that the check lets it through. That is the *expected* Rényi
  divergence (as Papernot et al. 2018 report it), a plan and not a guarantee of any one run.

**Data-dependent figures are private**: they are functions of the votes. Publish data-independent ones, or sanitised ones
(`smooth`).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accountants import conversion as conversions
from accountants.domains import non_negative, one_of, open_unit
from accountants.errors import VotesError
from accountants.events import GaussianDpEvent
from accountants.orders import DEFAULT_ORDERS, check_orders
from accountants.pate import rdp
from accountants.pate.outcomes import log_answer
from accountants.pate.votes import Votes, noise_in_votes
from accountants.pld import PldAccountant

Array = NDArray[np.float64]

NOISES = ("gaussian", "laplace")
"""Of the plurality: GNMax or LNMax."""


@dataclasses.dataclass(frozen=True)
class Split:
    """ε at one Rényi order as a sum of three: epsilon = threshold + argmax + conversion.

    Attributes:
      epsilon: in nats, rounded up.
      order: the Rényi order at which it is least.
      threshold, argmax: Rényi divergence of all checks and of all pluralities.
      conversion: what turning the sum into (ε, δ) adds; negative where ε is less than the divergence.
    """

    epsilon: float
    order: float
    threshold: float
    argmax: float
    conversion: float


@dataclasses.dataclass(frozen=True, eq=False)
class Analysis:
    """The cost of N queries, neighbouring relation: one vote moves in each (one training example changes one teacher).

    Attributes:
      data_dependent: for these votes. Private: not to be published.
      data_independent: for any votes, with the same answers.
      epsilon_exact_data_independent: the same without Rényi's loss: Gaussian mechanisms compose to μ-GDP exactly, so ε is
        that of one Gaussian. None for Laplace noise.
      expected: whether answers were unknown and costs are expectations.
      answered: how many were answered, or are expected to be.
      delta: of every ε here.
      both_directions: False: the data-dependent divergences are those of the output distribution of these votes from any
        neighbour's, as in the literature. True: either way round. (Data-independent figures always hold either way round.)
      orders: (k,), the Rényi orders looked at.
      rdp_threshold, rdp_argmax: (k,) data-dependent divergence of all queries together; private.
      rdp_independent: (k,) data-independent divergence, both steps together.
      answer_weights: (N,) 1 or 0, or the probability of an answer (then private).
      threshold_costs, argmax_costs: (N,) data-dependent divergence of each query at `data_dependent.order`, the second already
        times `answer_weights`; private.
      threshold_cost_independent, argmax_cost_independent: of one check, and of one plurality, for any votes at that order.
      cumulative_epsilon, cumulative_epsilon_independent: (N,) ε after each query; the first is private.
    """

    data_dependent: Split
    data_independent: Split
    epsilon_exact_data_independent: float | None
    expected: bool
    answered: float
    delta: float
    both_directions: bool
    orders: Array
    rdp_threshold: Array
    rdp_argmax: Array
    rdp_independent: Array
    answer_weights: Array
    threshold_costs: Array
    argmax_costs: Array
    threshold_cost_independent: float
    argmax_cost_independent: float
    cumulative_epsilon: Array
    cumulative_epsilon_independent: Array


def analyse(
    votes: Votes,
    *,
    sigma_votes: float,
    delta: float,
    threshold: float | None = None,
    sigma_threshold: float | None = None,
    answered: Any = None,
    noise: str = "gaussian",
    student: Any = None,
    orders: Sequence[float] | None = None,
    conversion: str = "tight",
    both_directions: bool = False,
) -> Analysis:
    """ε of the answers to `votes`, by component and by query.

    Args:
      votes: of N queries.
      sigma_votes: noise on each count before the plurality: standard deviation if Gaussian, the scale b if Laplace.
      delta: in (0, 1).
      threshold: T, in votes: Confident-GNMax. None: every query is answered without a check.
      sigma_threshold: standard deviation of the check's noise; with `threshold` and only with it.
      answered: (N,) of bool, which queries were answered. None: costs in expectation over answers.
      noise: "gaussian" (GNMax) or "laplace" (LNMax) of the plurality.
      student: (N, m) probabilities p of the student: the check is of max_j(n_j − K p_j) (Interactive-GNMax).
      orders: Rényi orders; by default `accountants.DEFAULT_ORDERS`.
      conversion: "tight" or "classic", see `accountants.conversion`.
      both_directions: see `Analysis`.

    Raises:
      VotesError: `answered` or `student` don't fit the votes, or the threshold exceeds the number of teachers.
      InvalidEventError: another argument lies outside its domain.
    """
    sigma_votes, delta = noise_in_votes(sigma_votes, "sigma_votes"), open_unit(delta, "delta")
    one_of(noise, "noise", NOISES)
    conversions.check_name(conversion)
    alpha = np.asarray(check_orders(DEFAULT_ORDERS if orders is None else orders))
    values = check_values(votes, threshold, sigma_threshold, student)
    weights = answer_weights(votes, threshold, sigma_threshold, values, answered)

    plurality = {"gaussian": rdp.gnmax, "laplace": rdp.lnmax}[noise]
    argmax = plurality(votes.distinct, sigma_votes, alpha, both=both_directions)
    argmax_one = {"gaussian": rdp.gnmax_independent, "laplace": rdp.lnmax_independent}[noise](sigma_votes, alpha)
    if threshold is None or sigma_threshold is None:
        check, check_inverse, check_one = np.zeros((1, len(alpha))), np.zeros(len(votes), np.int64), np.zeros(len(alpha))
    else:
        distinct, check_inverse = np.unique(values, return_inverse=True)
        check = rdp.threshold(distinct, threshold, sigma_threshold, alpha, both=both_directions)
        check_one = rdp.threshold_independent(sigma_threshold, alpha)

    total_check = np.bincount(check_inverse, minlength=len(check)) @ check
    total_argmax = np.bincount(votes.inverse, weights, minlength=len(argmax)) @ argmax
    independent = len(votes) * check_one, weights.sum() * argmax_one
    dependent = split(alpha, total_check, total_argmax, delta, conversion)
    at = int(np.argmin(np.abs(alpha - dependent.order)))
    cumulative = cumulative_epsilon(
        alpha,
        lambda i: check[check_inverse[i]] + weights[i, None] * argmax[votes.inverse[i]],
        len(votes),
        delta,
        conversion,
    )
    cumulative_independent = cumulative_epsilon(
        alpha, lambda i: check_one + weights[i, None] * argmax_one, len(votes), delta, conversion
    )
    return Analysis(
        data_dependent=dependent,
        data_independent=split(alpha, *independent, delta, conversion),
        epsilon_exact_data_independent=exact_epsilon(len(votes), weights.sum(), sigma_threshold, sigma_votes, delta)
        if noise == "gaussian"
        else None,
        expected=threshold is not None and answered is None,
        answered=float(weights.sum()),
        delta=delta,
        both_directions=both_directions,
        orders=alpha,
        rdp_threshold=total_check,
        rdp_argmax=total_argmax,
        rdp_independent=independent[0] + independent[1],
        answer_weights=weights,
        threshold_costs=check[check_inverse, at],
        argmax_costs=weights * argmax[votes.inverse, at],
        threshold_cost_independent=float(check_one[at]),
        argmax_cost_independent=float(argmax_one[at]),
        cumulative_epsilon=cumulative,
        cumulative_epsilon_independent=cumulative_independent,
    )


def check_values(votes: Votes, threshold: float | None, sigma_threshold: float | None, student: Any = None) -> Array:
    """What the threshold check looks at: the largest count, or the largest n_j − K p_j. (N,).

    Raises:
      VotesError: `student` doesn't fit the votes, or the threshold exceeds the number of teachers.
      InvalidEventError: only one of threshold and sigma_threshold is given, or one is outside its domain.
    """
    if (threshold is None) != (sigma_threshold is None):
        raise VotesError("threshold and sigma_threshold go together: give both or neither")
    if threshold is not None:
        noise_in_votes(sigma_threshold, "sigma_threshold")
        if non_negative(threshold, "threshold") > votes.teachers:
            raise VotesError(f"the threshold, {threshold:g}, exceeds the number of teachers, {votes.teachers:,}")
    if student is None:
        return votes.counts.max(axis=1).astype(np.float64)
    if threshold is None:
        raise VotesError("the student's probabilities are for a threshold check: give threshold and sigma_threshold")
    p = np.asarray(student)
    if p.shape != votes.counts.shape or p.dtype.kind not in "iuf":
        raise VotesError(f"the student's probabilities must be numbers of shape {votes.counts.shape}; got {p.dtype} {p.shape}")
    if not ((p >= 0).all() and (np.abs(p.sum(axis=1) - 1) < 1e-3).all()):
        raise VotesError("the student's probabilities must be ≥ 0 and each row sum to 1")
    return np.asarray((votes.counts - votes.teachers * p.astype(np.float64)).max(axis=1))


def answer_weights(votes: Votes, threshold: float | None, sigma_threshold: float | None, values: Array, answered: Any) -> Array:
    """How much of each plurality is charged: 1 or 0, or the probability of an answer. (N,)."""
    if answered is not None:
        given = np.asarray(answered)
        if given.shape != (len(votes),) or given.dtype != np.bool_:
            raise VotesError(f"answered must be {len(votes):,} of true or false, one a query; got {given.dtype} {given.shape}")
        if threshold is None and not given.all():
            raise VotesError("without a threshold every query is answered")
        return given.astype(np.float64)
    if threshold is None or sigma_threshold is None:
        return np.ones(len(votes))
    return np.exp(log_answer(values, threshold, sigma_threshold)[0])


def split(alpha: Array, check: Array, argmax: Array, delta: float, conversion: str) -> Split:
    epsilon, order = conversions.epsilon(alpha, check + argmax, delta, conversion)
    at = int(np.argmin(np.abs(alpha - order)))
    parts = float(check[at]), float(argmax[at])
    return Split(epsilon, order, *parts, conversion=epsilon - (parts[0] + parts[1]))


def cumulative_epsilon(alpha: Array, costs: Any, queries: int, delta: float, conversion: str, block: int = 4096) -> Array:
    """ε after each query. `costs(i)` gives the divergences (len(i), k) of queries i.

    The order is chosen by a plain formula and the conversion that was asked for is done there and at its neighbours: every
    order gives a valid bound.
    """
    result = np.empty(queries)
    total = np.zeros(len(alpha))
    # Proposition 12 of Canonne, Kamath, Steinke 2020; the classic conversion without the last two terms.
    penalty = -math.log(delta) / (alpha - 1)
    if conversion == "tight":
        penalty = penalty + np.log1p(-1 / alpha) - np.log(alpha) / (alpha - 1)
    for start in range(0, queries, block):
        index = np.arange(start, min(start + block, queries))
        curves = total + np.cumsum(costs(index), axis=0)
        total = curves[-1]
        best = np.argmin(curves + penalty, axis=1)
        near = np.clip(best[:, None] + np.arange(-2, 3), 0, len(alpha) - 1)
        at = np.take_along_axis(curves, near, axis=1)
        if conversion == "tight":
            each = conversions.each(alpha[near].ravel(), at.ravel(), delta).reshape(at.shape)
        else:
            each = at + penalty[near]
        result[index] = np.maximum(each.min(axis=1), 0.0)
    # Where little was spent the plain formula is a poor guide. What bounds all queries bounds the first ones too.
    result[-1] = min(result[-1], conversions.epsilon(alpha, total, delta, conversion)[0])
    return np.minimum.accumulate(result[::-1])[::-1]


def exact_epsilon(queries: int, answered: float, sigma_threshold: float | None, sigma_votes: float, delta: float) -> float:
    """ε of N checks and A pluralities by Gaussian DP: μ² = N/σ₁² + 2A/σ₂² (Dong, Roth, Su 2022, Corollary 3.3)."""
    mu = math.hypot(math.sqrt(queries) / sigma_threshold if sigma_threshold else 0.0, math.sqrt(2 * answered) / sigma_votes)
    return PldAccountant().compose(GaussianDpEvent(1 / mu)).get_epsilon(delta) if mu else 0.0
