r"""A data-dependent ε that may be published: noise in proportion to its smooth sensitivity (GNSS, Papernot et al. 2018, B.4).

At one order α the divergence ρ of a run is released as ρ + SS_β · σ · N(0, 1). Neighbours' outputs are two Gaussians, whose
standard deviations have a ratio r in [e^{−β}, e^β] and whose means differ by at most the smaller smooth sensitivity. For 1 −
α + αr² > 0

    D_α = α min(1, r)²/(2σ²(1 − α + αr²)) + V(r),   V(r) = (α log r − ½ log(1 − α + αr²))/(α − 1).

The first term falls in r; V is 0 at r = 1 and rises on either side. So the release costs at most the larger of the value at
r = e^{−β} and α/(2σ²) + V(e^β). That is `gnss_rdp`, for β < log(α/(α − 1))/2.

The formula of the published scripts (there Theorem 23), α e^{2β}/σ² + (βα − ½ log(1 − 2αβ))/(α − 1), is *less than the exact
divergence* where αβ is near 1/2: at α = 14, β = 0.028, σ = 6 it gives 0.500, quadrature 0.799. `published_gnss_rdp` has it,
to reproduce published figures; what rests on it is marked not publishable.

α, β and σ have to be chosen without sight of the votes. The defaults are: β = 0.4/α; σ such that the cost's first term is an
eighth of the data-independent divergence; α the order at which the data-independent ε of the same run is least, as far as
conditions C5 and C6 hold. (Published scripts pick all three for the votes at hand, and say that their results are not to be
published.)

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
from accountants.domains import one_of, open_unit, positive
from accountants.errors import InvalidEventError, NotPublishableError
from accountants.orders import DEFAULT_ORDERS, check_orders
from accountants.pate import rdp
from accountants.pate.analysis import answer_weights, check_values
from accountants.pate.conditions import GnmaxBound
from accountants.pate.outcomes import log_q_gnmax
from accountants.pate.smooth import gnmax_local_sensitivities, smooth_sensitivity, threshold_local_sensitivities
from accountants.pate.votes import Votes, noise_in_votes

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
    release: str = "exact",
) -> Sanitised:
    """Prepares the data-dependent ε of a run of GNMax, with or without a threshold check, for publishing.

    Args:
      votes, sigma_votes, delta, threshold, sigma_threshold, answered, conversion: as for `analyse`. Without `answered` the
        divergence is an expectation whose weights depend on the votes, so the result is not publishable.
      order: α, by default chosen from data-independent figures.
      beta: smoothness, below log(α/(α − 1))/2, which is a little more than 1/(2α); by default 0.4/α.
      sigma_ss: noise in units of the smooth sensitivity; default as in the module's description.
      chosen_without_votes: whoever gives order, beta or sigma_ss declares that the votes had no part in the choice; otherwise
        the result is not publishable.
      release: "exact", or "published" for the cost of the release that published figures contain, which is too low.

    Raises:
      NotPublishableError: condition C5 or C6 fails at the order; the message names one at which both hold.
      VotesError, InvalidEventError: as for `analyse`, or β is too large for the order.
    """
    sigma_votes, delta = noise_in_votes(sigma_votes, "sigma_votes"), open_unit(delta, "delta")
    values = check_values(votes, threshold, sigma_threshold)
    weights = answer_weights(votes, threshold, sigma_threshold, values, answered)
    release_cost = {"exact": gnss_rdp, "published": published_gnss_rdp}[one_of(release, "release", ("exact", "published"))]
    seen = any(p is not None for p in (order, beta, sigma_ss)) and not chosen_without_votes
    reason = _reason(threshold is not None and answered is None, seen, release)

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
        sigma_ss = math.sqrt(_shift_cost(order, beta) / (_NOISE_SHARE * max(float(independent(order)), 1e-300)))
    sigma_ss = positive(sigma_ss, "sigma_ss")
    cost = release_cost(order, beta, sigma_ss)

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
    """An upper bound of the divergence, in either direction, of releasing a value with noise σ_ss times its β-smooth
    sensitivity.

    Raises:
      InvalidEventError: β is not between 0 and log(α/(α − 1))/2.
    """
    shift = _shift_cost(order, beta) / sigma_ss**2
    return max(shift + _spread_cost(order, -beta), order / (2 * sigma_ss**2) + _spread_cost(order, beta))


def published_gnss_rdp(order: float, beta: float, sigma_ss: float) -> float:
    """The formula behind published figures. Not an upper bound: see the module's description.

    Raises:
      InvalidEventError: β ≥ 1/(2α).
    """
    if not 0 < beta < 1 / (2 * order):
        raise InvalidEventError(f"beta must lie between 0 and 1/(2 order) = {1 / (2 * order):.6g}; got {beta:g}")
    return order * math.exp(2 * beta) / sigma_ss**2 + (beta * order - 0.5 * math.log1p(-2 * order * beta)) / (order - 1)


def _shift_cost(order: float, beta: float) -> float:
    """The first term of D_α at r = e^{−β}, for σ_ss = 1."""
    mixed = 1 + order * math.expm1(-2 * beta)
    if not (beta > 0 and mixed > 0):
        limit = -0.5 * math.log1p(-1 / order)
        raise InvalidEventError(f"beta must lie between 0 and {limit:.6g} at order {order:g}; got {beta:g}")
    return order * math.exp(-2 * beta) / (2 * mixed)


def _spread_cost(order: float, log_ratio: float) -> float:
    """V(r)."""
    return (order * log_ratio - 0.5 * math.log1p(order * math.expm1(2 * log_ratio))) / (order - 1)


def _epsilon(order: float, divergence: float, delta: float, conversion: str) -> float:
    return conversions.epsilon(np.array([order]), np.array([divergence]), delta, conversion)[0]


def _reason(expected: bool, seen: bool, release: str) -> str:
    if expected:
        return "not publishable: costs are in expectation over answers; say which queries were answered"
    if seen:
        return "not publishable: order, beta or sigma_ss may have been chosen with sight of the votes"
    if release == "published":
        return "not publishable: the published formula of the release's cost is not an upper bound"
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
