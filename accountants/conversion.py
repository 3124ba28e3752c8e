r"""From Rényi DP to (ε, δ)-DP.

`classic`: ε = ρ + log(1/δ)/(α − 1) (Mironov 2017, Proposition 3).

`tight`: the best conversion any single order allows. Asoodeh, Liao, Calmon, Kosut, Sankar 2021 ("Three
variants of differential privacy", section III) characterise it as a two-dimensional convex problem; we
solve its dual, whose every feasible point is a valid bound, so an inexact optimum is still an upper bound:

  Let t = dP/dQ, M = e^{(α−1)ρ} ≥ E_Q[t^α]. For 0 ≤ t₀ < t₁ the convex function
  h(t) = λ(t^α − t₀^α − α t₀^{α−1}(t − t₀)) touches 0 at t₀; choose λ and ε so that it touches t − e^ε at t₁.
  Then h(t) ≥ max(t − e^ε, 0) everywhere, hence δ(ε) = E_Q[(t − e^ε)₊] ≤ E_Q[h] ≤ λK with
  K = M − t₀^α − α t₀^{α−1}(1 − t₀). Tangency gives t₁^{α−1} = t₀^{α−1} + K/(αδ) and
  e^ε = (1 − 1/α) · (t₁^α − t₀^α)/(t₁^{α−1} − t₀^{α−1}).

t₀ = 0 is Proposition 12 of Canonne, Kamath, Steinke 2020; t₀ = 1 is close to optimal for small δ and far
better when ρ is small, since it replaces M by M − 1. The best t₀ in between is found by search.
"""

import math

import numpy as np
from numpy.typing import NDArray

from accountants.errors import InvalidEventError
from accountants.roots import falling_zero

Array = NDArray[np.float64]

CONVERSIONS = ("tight", "classic")

_GAP_RATIO = 4.0
_GAPS = np.concatenate([[0.0], _GAP_RATIO ** -np.arange(24.0)])  # 1 − t₀ to begin with: 0, and 1 down to 1e-14
_FIRST, _ROUNDS = 5, 17  # of the search for t₀: for every order, and in all for the best few
_REFINED = 12
# Float rounding in ρ and in the formulas above is below 1e-11 relative and 1e-13 absolute. Adding this much
# keeps every reported ε an upper bound.
_ROUND_UP_RELATIVE = 1e-9
_ROUND_UP_ABSOLUTE = 1e-12
_ROUND_UP_DELTA = 1e-6
_TOLERANCE = 1e-9  # of log δ

_LOG_DELTA_MIN = math.log(1e-300)


def epsilon(orders: Array, rdp: Array, delta: float, conversion: str = "tight") -> tuple[float, float]:
    """The smallest ε over all orders, rounded up, and the order it came from.

    Args:
      orders: (k,) float64, each > 1.
      rdp: (k,) float64, an upper bound of the Rényi divergence at each order; may be infinite.
      delta: in (0, 1).
      conversion: "tight" or "classic".

    Returns:
      (ε ≥ 0, possibly infinite; the order).

    Raises:
      InvalidEventError: `rdp` holds a NaN, or there is no such conversion.
    """
    value, order = _best(orders, rdp, delta, conversion)
    if rdp.any():  # otherwise nothing was released, and zero is exact
        value = value * (1 + _ROUND_UP_RELATIVE) + _ROUND_UP_ABSOLUTE
    return value, order


def each(orders: Array, rdp: Array, delta: float) -> Array:
    """ε that each order gives on its own, rounded up, by the tight conversion. (k,), (k,) → (k,)."""
    return _tight(orders, rdp, delta, len(orders)) * (1 + _ROUND_UP_RELATIVE) + _ROUND_UP_ABSOLUTE


def delta(orders: Array, rdp: Array, epsilon_: float, conversion: str = "tight") -> float:
    """The smallest δ at which ε does not exceed `epsilon_`, by a search in log δ and rounded up; 1.0 if there is none.

    Never below 1e-300.
    """
    low, high = _LOG_DELTA_MIN, math.log1p(-1e-12)
    if _best(orders, rdp, math.exp(high), conversion)[0] > epsilon_:
        return 1.0
    if _best(orders, rdp, math.exp(low), conversion)[0] <= epsilon_:
        return math.exp(low)
    found = falling_zero(
        lambda log_delta: _best(orders, rdp, math.exp(log_delta), conversion)[0] - epsilon_, low, high, atol=_TOLERANCE
    )
    return min(1.0, math.exp(found) * (1 + _ROUND_UP_DELTA))


def _best(orders: Array, rdp: Array, delta_: float, conversion: str) -> tuple[float, float]:
    """ε before rounding up, and the order it came from."""
    if np.isnan(rdp).any():
        raise InvalidEventError("a Rényi divergence is not a number; refusing to turn it into an epsilon")
    values = _CONVERSIONS[check_name(conversion)](orders, rdp, delta_)
    best = int(np.argmin(values))
    return max(float(values[best]), 0.0), float(orders[best])


def check_name(conversion: str) -> str:
    """Returns `conversion` if there is one of that name.

    Raises:
      InvalidEventError: there is none.
    """
    if conversion not in CONVERSIONS:
        raise InvalidEventError(f"conversion must be one of {', '.join(CONVERSIONS)}; got {conversion!r}")
    return conversion


def _classic(orders: Array, rdp: Array, delta_: float) -> Array:
    # Where ρ = 0 the two distributions are the same and no conversion is needed.
    return np.where(rdp == 0, 0.0, rdp - math.log(delta_) / (orders - 1))


def _tight(orders: Array, rdp: Array, delta_: float, refined: int = _REFINED) -> Array:
    """ε of each order. Only the `refined` best ones are searched to the end for the best t₀; the others are bounds too."""
    best = np.where(rdp == 0, 0.0, np.inf)
    few = np.flatnonzero((rdp > 0) & np.isfinite(rdp))
    if not len(few):
        return best
    coarse = _tangent_bound(orders[few], rdp[few], delta_, _GAPS[:, None])
    best[few] = coarse.min(axis=0)
    # Ternary search of the logarithm around the best of the grid; every point tried is a valid bound.
    centre = np.log(_GAPS[np.maximum(coarse.argmin(axis=0), 1)])
    low, high = centre - math.log(_GAP_RATIO), np.minimum(centre + math.log(_GAP_RATIO), 0.0)
    for step in range(_ROUNDS):
        if step == _FIRST:
            chosen = np.argsort(best[few])[:refined]
            few, low, high = few[chosen], low[chosen], high[chosen]
        left, right = low + (high - low) / 3, high - (high - low) / 3
        at_left, at_right = _tangent_bound(orders[few], rdp[few], delta_, np.exp(np.stack([left, right])))
        best[few] = np.minimum(best[few], np.minimum(at_left, at_right))
        low, high = np.where(at_left < at_right, low, left), np.where(at_left < at_right, right, high)
    return best


def _tangent_bound(alpha: Array, rho: Array, delta_: float, gap: Array) -> Array:
    """ε for t₀ = 1 − gap, in logarithms throughout; +∞ where no bound can be formed."""
    a = alpha - 1
    log_alpha_delta = np.log(alpha) + math.log(delta_)
    with np.errstate(all="ignore"):
        log_t0 = np.log1p(-gap)
        # K = (e^{aρ} − 1) + (1 − t₀^a (1 + a·gap)), two non-negative parts.
        exponent = a * rho
        log_growth = exponent + np.log(-np.expm1(-exponent))
        log_rest = np.log(np.maximum(-np.expm1(a * log_t0 + np.log1p(a * gap)), 0.0))
        log_k = np.logaddexp(log_growth, log_rest)
        log_t1 = np.logaddexp(a * log_t0, log_k - log_alpha_delta) / a
        log_numerator = alpha * log_t1 + np.log(-np.expm1(alpha * (log_t0 - log_t1)))
        bound = np.log1p(-1 / alpha) + log_numerator - (log_k - log_alpha_delta)
    return np.where(np.isnan(bound), np.inf, bound)


_CONVERSIONS = {"tight": _tight, "classic": _classic}
