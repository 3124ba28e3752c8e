r"""What an attacker can do: the whole privacy profile and the figures that follow from it.

Everything here follows from upper bounds of δ(ε), so every bound of an attacker's success is one too.

* Trade-off curve (Dong, Roth, Su 2022, Proposition 6): a test that errs on a share `fpr` of the absent misses at least
  f(fpr) = max over ε of max(1 − δ(ε) − e^ε fpr, e^{−ε}(1 − δ(ε) − fpr)) of the present.
* Advantage: TPR − FPR ≤ δ(0).
* Bayes risk at a prior π of presence: the error of the best guess is at least π(1 − δ(log((1 − π)/π))) for π ≤ 1/2, and
  the same with 1 − π beyond (Kaissis et al. 2024 give the same relation).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accountants import special
from accountants.accountant import Accountant, AutoAccountant
from accountants.domains import array, floats, open_unit, probability, whole
from accountants.errors import InvalidEventError
from accountants.pld import PldAccountant

Array = NDArray[np.float64]

_POINTS = 97  # of ε on which curves are supported
_MANY_POINTS = 401  # where they cost little
_FLOOR = 1e-12  # δ down to which they are


@dataclasses.dataclass(frozen=True)
class Profile:
    """δ at increasing ε, from below and from above.

    Attributes:
      epsilons: (n,), ascending, the first is 0.
      lower, upper: of δ, (n,). `lower` is zero for accountants with upper bounds alone.
    """

    epsilons: Array
    lower: Array
    upper: Array

    @property
    def advantage(self) -> float:
        """The most that any test's true-positive rate exceeds its false-positive rate."""
        return float(self.upper[0])

    def min_fnr(self, fpr: Any) -> Array:
        """At least this share of the present is missed by a test with false-positive rate `fpr` (any shape, in [0, 1])."""
        alpha = array(fpr, "fpr")[..., None]
        if not ((alpha >= 0) & (alpha <= 1)).all():
            raise InvalidEventError(f"fpr must lie in [0, 1]; got {fpr!r:.80}")
        with np.errstate(over="ignore", under="ignore", divide="ignore"):
            grown = np.exp(self.epsilons + np.log(alpha))  # e^ε alone may not be a number
            first = 1 - self.upper - grown
            second = (1 - self.upper - alpha) * np.exp(-self.epsilons)
        return np.maximum(np.maximum(first, second), 0.0).max(axis=-1)

    def max_tpr(self, fpr: float) -> float:
        """The most true positives at a false-positive rate of `fpr` in [0, 1]."""
        return float(1 - self.min_fnr(probability(fpr, "fpr")))


def profile(accountant: Accountant, epsilons: Sequence[float] | None = None, *, points: int = 97) -> Profile:
    """The privacy profile of what `accountant` has composed.

    Args:
      accountant: any.
      epsilons: where, besides 0; by default from 0 to the ε at δ = 1e-12.
      points: how many of them by default, ≥ 2.

    Raises:
      InvalidEventError: an ε is negative or not a number.
    """
    chosen: Sequence[float] | Array
    if epsilons is not None:
        chosen = floats(epsilons, "epsilons")
    else:
        whole(points, "points", at_least=2)
        top = accountant.get_epsilon(_FLOOR)
        top = 0.0 if math.isinf(top) else top
        # Dense near 0, where the trade-off curve bends most.
        chosen = top * np.linspace(0, 1, points) ** 1.5
    at = np.unique(np.append(np.asarray(chosen, np.float64), 0.0))
    numerical = _numerical(accountant)
    if numerical is not None:
        lower, upper = numerical.profile(at.tolist())
    else:
        intervals = [accountant.delta_interval(float(e)) for e in at]
        lower, upper = np.array([i.lower for i in intervals]), np.array([i.upper for i in intervals])
    return Profile(at, lower, upper)


def bayes_risk(accountant: Accountant, prior: float) -> float:
    """The least error of any guess whether the unit was present, if it is with probability `prior` in (0, 1)."""
    prior = open_unit(prior, "prior")
    rarer = min(prior, 1 - prior)
    return rarer * (1 - accountant.get_delta(math.log1p(-rarer) - math.log(rarer)))


@dataclasses.dataclass(frozen=True)
class GdpBound:
    """Gaussian differential privacy: but for δ = `floor`, no test does better than telling N(0, 1) from N(μ, 1).

    Attributes:
      mu: μ, an upper bound: δ(ε) ≤ δ_μ(ε) + floor at every ε ≥ 0.
      fit_error: by how much δ_μ(ε) exceeds δ(ε)'s bound at most: how much the single number gives away.
      floor: see `mu`. (A sampled mechanism's far tail is heavier than any useful μ.)
    """

    mu: float
    fit_error: float
    floor: float


def gdp(accountant: Accountant, floor: float = 1e-10, curve: Profile | None = None) -> GdpBound:
    """The smallest μ-GDP that a bound of the whole profile allows; never a central-limit approximation.

    Between two points of the profile δ lies below the chord in e^ε, and μ is raised until the Gaussian's convex curve, by
    its tangents, lies above all chords.

    Args:
      accountant: any.
      floor: what δ may exceed that of μ by, in (0, 1).
      curve: a profile of the same accountant that reaches down to `floor`, to save computing one; the coarser, the larger μ.
    """
    floor = open_unit(floor, "floor")
    top = accountant.get_epsilon(floor)
    if math.isinf(top):
        return GdpBound(math.inf, 1.0, floor)
    if curve is None:
        points = _POINTS if _numerical(accountant) is None else _MANY_POINTS
        curve = profile(accountant, (top * np.linspace(0, 1, points)).tolist())
    if curve.upper[0] <= 0:
        return GdpBound(0.0, 0.0, floor)
    low, high = 0.0, 1.0
    while not _dominates(high, curve, floor):
        low, high = high, 2 * high
        if high > 1e8:
            return GdpBound(math.inf, 1.0, floor)
    while high - low > 1e-4 * high:
        middle = 0.5 * (low + high)
        low, high = (low, middle) if _dominates(middle, curve, floor) else (middle, high)
    return GdpBound(high, max(float(np.max(gaussian_delta(high, curve.epsilons) - curve.upper)), 0.0), floor)


def gaussian_delta(mu: float, epsilons: Any) -> Array:
    """δ of N(μ, 1) against N(0, 1) at each ε (Balle and Wang 2018, Theorem 5)."""
    e = np.asarray(epsilons, np.float64)
    if mu == 0:
        return np.zeros_like(e)
    with np.errstate(over="ignore", under="ignore"):
        return np.maximum(special.ndtr(mu / 2 - e / mu) - np.exp(e + special.log_ndtr(-mu / 2 - e / mu)), 0.0)


def _dominates(mu: float, curve: Profile, floor: float) -> bool:
    """Whether δ_μ + floor is above the profile's chords, by tangents of δ_μ in γ = e^ε at both ends of each."""
    e = curve.epsilons
    value = gaussian_delta(mu, e)
    if not (value + floor >= curve.upper).all():
        return False
    if len(e) < 2:
        return True
    # In units in which the lower end of each chord is at γ = 1, so that nothing overflows before the chord itself does.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"):
        width = np.expm1(np.diff(e))
        first, second = (-np.exp(e[:-1] + special.log_ndtr(-mu / 2 - x / mu)) for x in (e[:-1], e[1:]))  # slopes of δ_μ
        # Where both tangents meet, the curve is at least there; the chord of the profile must not be higher.
        meet = (value[1:] - value[:-1] - second * width) / (first - second)
        known = np.isfinite(meet) & np.isfinite(width)
        meet = np.clip(np.where(known, meet, 0.0), 0.0, width)
        least = np.where(known, value[:-1] + first * meet, value[1:])
        chord = curve.upper[:-1] + np.where(known, (curve.upper[1:] - curve.upper[:-1]) * (meet / width), 0.0)
    return bool((least + floor >= chord).all())


def _numerical(accountant: Accountant) -> PldAccountant | None:
    if isinstance(accountant, AutoAccountant):
        accountant = accountant.chosen
    return accountant if isinstance(accountant, PldAccountant) else None
