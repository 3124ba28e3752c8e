r"""A data-dependent ε that may be published: noise in proportion to its smooth sensitivity (GNSS).

Source: Papernot et al. 2018, Theorem 23.

At one order α the divergence ρ of a run is released as ρ + SS_β · σ_ss · N(0, 1), which itself costs

    α e^{2β}/σ_ss² + (βα − ½ log(1 − 2αβ))/(α − 1)      for 1 < α < 1/(2β).

α, β and σ_ss have to be chosen without sight of the votes. The defaults are: β = 0.4/α; σ_ss such that the first term above
is an eighth of the data-independent divergence; α the order at which the data-independent ε of the same run is least, as far
as conditions C5 and C6 hold. (Published scripts pick all three for the votes at hand, and say that their results are not to
be published.)

A released draw is unbiased, not an upper bound: half of all draws lie below the true figure. It speaks of the divergence of
these votes' outputs from a neighbour's, the direction that Theorem 6 bounds (see `rdp`).
"""

import dataclasses
import math
import random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accountants import conversion as conversions
from accountants.domains import open_unit, positive
from accountants.errors import InvalidEventError, NotPublishableError
from accountants.orders import DEFAULT_ORDERS, check_orders
from accountants.pate import rdp
from accountants.pate.analysis import answer_weights, check_values
from accountants.pate.conditions import GnmaxBound
from accountants.pate.outcomes import log_q_gnmax
from accountants.pate.smooth import gnmax_local_sensitivities, smooth_sensitivity, threshold_local_sensitivities
from accountants.pate.votes import Votes

Array = NDArray[np.float64]

_NOISE_SHARE = 1 / 8  # of the data-independent divergence that the default σ_ss spends on its own release


@dataclasses.dataclass(frozen=True)
class Sanitised:
    """What a release of the data-dependent ε would be. All but `publishable`, `reason` and the public parameters is private.

    Attributes:
      order, beta, sigma_ss, delta, conversion: the public parameters.
      divergence: ρ of the run at `order`; private.
      smooth_sensitivity: SS_β of ρ; private.
      distance: moved votes at which it is attained; private.
      cost: divergence that the release adds; public.
      mean: ε of ρ + cost, before noise; private.
      standard_deviation: of the noise on the divergence, smooth_sensitivity · sigma_ss; private.
      publishable: whether `draw` may be called.
      reason: why not, or "".
    """

    order: float
    beta: float
    sigma_ss: float
    delta: float
    conversion: str
    divergence: float
    smooth_sensitivity: float
    distance: int
    cost: float
    mean: float
    standard_deviation: float
    publishable: bool
    reason: str

    def draw(self) -> float:
        """The ε to publish, with fresh noise from the operating system. Draw once: each draw costs `cost` again.

        Raises:
          NotPublishableError: see `reason`.
        """
        if not self.publishable:
            raise NotPublishableError(self.reason)
        noise = random.SystemRandom().gauss(0.0, self.standard_deviation)
        return _epsilon(self.order, max(self.divergence + self.cost + noise, self.cost), self.delta, self.conversion)


def sanitise(
    votes: Votes,
    *,
    sigma_votes: float,
    delta: float,
    threshold: float | None = None,
    sigma_threshold: float | None = None,
    answered: Any = None,
    order: float | None = None,
    beta: float | None = None,
    sigma_ss: float | None = None,
    chosen_without_votes: bool = False,
    conversion: str = "tight",
) -> Sanitised:
    """Prepares the data-dependent ε of a run of GNMax, with or without a threshold check, for publishing.

    Args:
      votes, sigma_votes, delta, threshold, sigma_threshold, answered, conversion: as for `analyse`. Without `answered` the
        divergence is an expectation whose weights depend on the votes, so the result is not publishable.
      order: α, by default chosen from data-independent figures.
      beta: smoothness, below 1/(2α); by default 0.4/α.
      sigma_ss: noise in units of the smooth sensitivity; default as in the module's description.
      chosen_without_votes: whoever gives order, beta or sigma_ss declares that the votes had no part in the choice; otherwise
        the result is not publishable.

    Raises:
      NotPublishableError: condition C5 or C6 fails at the order; the message names one at which both hold.
      VotesError, InvalidEventError: as for `analyse`, or β ≥ 1/(2α).
    """
    sigma_votes, delta = positive(sigma_votes, "sigma_votes"), open_unit(delta, "delta")
    values = check_values(votes, threshold, sigma_threshold)
    weights = answer_weights(votes, threshold, sigma_threshold, values, answered)
    reason = _reason(threshold is not None and answered is None, (order, beta, sigma_ss), chosen_without_votes)

    def independent(alpha: Any) -> Array:
        checks = len(votes) * rdp.threshold_independent(sigma_threshold, alpha) if sigma_threshold else 0.0
        return np.asarray(weights.sum() * rdp.gnmax_independent(sigma_votes, alpha) + checks)

    if order is None:
        order = _default_order(votes, sigma_votes, independent, delta, conversion)
    (order,) = check_orders([order])
    bound = GnmaxBound.of(sigma_votes, order, votes.classes)
    if not all(bound.conditions(votes.teachers)):
        raise NotPublishableError(_advice(bound, votes))
    beta = 0.4 / order if beta is None else positive(beta, "beta")
    if sigma_ss is None:
        sigma_ss = math.sqrt(order * math.exp(2 * beta) / (_NOISE_SHARE * max(float(independent(order)), 1e-300)))
    sigma_ss = positive(sigma_ss, "sigma_ss")
    cost = gnss_rdp(order, beta, sigma_ss)

    argmax_weights = np.bincount(votes.inverse, weights, minlength=len(votes.distinct))
    used = np.flatnonzero(argmax_weights)
    divergence = float(argmax_weights @ bound.beta(log_q_gnmax(votes.distinct, sigma_votes)))
    curves = [(gnmax_local_sensitivities(votes.distinct[used], bound), argmax_weights[used])]
    most = bound.plateau * float(weights.sum())
    if threshold is not None and sigma_threshold is not None:
        largest, count = np.unique(votes.counts.max(axis=1), return_counts=True)
        divergence += float(count @ rdp.threshold(largest, threshold, sigma_threshold, [order])[:, 0])
        curves.append(
            (
                threshold_local_sensitivities(largest, threshold, sigma_threshold, order, votes.teachers, votes.classes),
                count.astype(np.float64),
            )
        )
        most += len(votes) * float(rdp.threshold_independent(sigma_threshold, order))
    sums = (
        math.fsum(float(w @ part) for part, (_, w) in zip(parts, curves, strict=True))
        for parts in zip(*(c for c, _ in curves), strict=True)
    )
    smooth, distance = smooth_sensitivity(sums, most, beta, votes.teachers)
    return Sanitised(
        order=order,
        beta=beta,
        sigma_ss=sigma_ss,
        delta=delta,
        conversion=conversion,
        divergence=divergence,
        smooth_sensitivity=smooth,
        distance=distance,
        cost=cost,
        mean=_epsilon(order, divergence + cost, delta, conversion),
        standard_deviation=smooth * sigma_ss,
        publishable=not reason,
        reason=reason,
    )


def gnss_rdp(order: float, beta: float, sigma_ss: float) -> float:
    """Rényi divergence of the release of a value with noise σ_ss times its β-smooth sensitivity (Theorem 23).

    Raises:
      InvalidEventError: β ≥ 1/(2α).
    """
    if not 0 < beta < 1 / (2 * order):
        raise InvalidEventError(f"beta must lie between 0 and 1/(2 order) = {1 / (2 * order):.6g}; got {beta:g}")
    return order * math.exp(2 * beta) / sigma_ss**2 + (beta * order - 0.5 * math.log1p(-2 * order * beta)) / (order - 1)


def _epsilon(order: float, divergence: float, delta: float, conversion: str) -> float:
    return conversions.epsilon(np.array([order]), np.array([divergence]), delta, conversion)[0]


def _reason(expected: bool, parameters: tuple[float | None, ...], blind: bool) -> str:
    if expected:
        return "not publishable: costs are in expectation over answers; say which queries were answered"
    if any(p is not None for p in parameters) and not blind:
        return "not publishable: order, beta or sigma_ss may have been chosen with sight of the votes"
    return ""


def _default_order(votes: Votes, sigma: float, independent: Any, delta: float, conversion: str) -> float:
    """The order of the least data-independent ε, or the largest below it at which the conditions hold."""
    alpha = np.asarray(DEFAULT_ORDERS)
    best = conversions.epsilon(alpha, independent(alpha), delta, conversion)[1]
    return _allowed(votes, sigma, best) or best


def _allowed(votes: Votes, sigma: float, at_most: float) -> float | None:
    for order in sorted((o for o in DEFAULT_ORDERS if o <= at_most), reverse=True):
        if all(GnmaxBound.of(sigma, order, votes.classes).conditions(votes.teachers)):
            return order
    return None


def _advice(bound: GnmaxBound, votes: Votes) -> str:
    failing = "C6" if bound.conditions(votes.teachers)[0] else "C5"
    found = _allowed(votes, bound.sigma, bound.order)
    advice = f"the largest order below it that works is {found:g}" if found else "no lower order works; use more noise"
    return f"condition {failing} fails at order {bound.order:g}, so the ε can't be sanitised there; {advice}"
