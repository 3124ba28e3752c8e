r"""Rényi divergences of PATE's mechanisms, for the votes at hand and for any.

**Data-independent.** GNMax: one vote moved changes two counts by 1, so D_α ≤ α/σ². Threshold: the largest count changes by at
most 1, so D_α ≤ α/(2σ₁²). LNMax: two Laplace mechanisms of sensitivity 1.

**Data-dependent** (Papernot et al. 2018, Theorem 6). If M is (μ₁, ε₁)- and (μ₂, ε₂)-RDP, M(D) ≠ i* has probability at most q,
α ≤ μ₁ and q ≤ e^{(μ₂−1)ε₂}/(μ₁/(μ₁−1) · μ₂/(μ₂−1))^{μ₂}, then for every neighbour D′

    D_α(M(D) ‖ M(D′)) ≤ log((1 − q) A^{α−1} + q B^{α−1})/(α − 1),
    A = (1 − q)/(1 − (q e^{ε₂})^{1−1/μ₂}),   B = e^{ε₁} q^{−1/(μ₁−1)}.

Proposition 10 picks μ₂ = σ √(log 1/q), μ₁ = μ₂ + 1. Where a condition fails the data-independent bound is used, and always
the lesser.

LNMax is ε-DP with ε = 2/b, and for q ≤ 1/(1 + e^ε) (Papernot et al. 2017, Theorem 3)

    D_α(M(D) ‖ M(D′)) ≤ log((1 − q) ((1 − q)/(1 − e^ε q))^{α−1} + q e^{ε(α−1)})/(α − 1).

**Direction.** Both theorems start from the votes that were cast, D, and bound the divergence of M(D) *from* M(D′). The
divergence of M(D′) from M(D) can be far larger (there are histograms where it is 10^12 times the bound); it is bounded by the
same theorem at D′. With `both=True` the functions below take the larger of the bounds at D and at its worst neighbour, which
holds in either direction. Published figures of PATE are of the first kind, the default. Data-independent bounds hold in both.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accountants.pate.outcomes import log_q_gnmax, log_q_lnmax, log_unlikely
from accountants.renyi import laplace

Array = NDArray[np.float64]

_TINY = float(np.finfo(np.float64).tiny)  # a divergence that underflows is not zero


def data_dependent(log_q: Any, sigma: float, orders: Any) -> Array:
    """Theorem 6 with Proposition 10, or α/σ² where that is less or the theorem's conditions fail.

    The one place where that bound is computed. For the threshold check pass √2 σ₁.

    Args:
      log_q: natural logarithm of q, ≤ 0; −inf gives the least positive number.
      sigma: standard deviation of GNMax's noise, in votes.
      orders: α > 1. `log_q` and `orders` broadcast.

    Returns:
      Upper bounds of D_α(M(D) ‖ M(D′)), > 0.
    """
    alpha, log_q = np.broadcast_arrays(np.asarray(orders, np.float64), np.asarray(log_q, np.float64))
    bound, valid = theorem_6(log_q, sigma, alpha)
    independent = alpha / sigma**2
    return np.where(valid, np.minimum(bound, independent), independent)


def theorem_6(log_q: Array, sigma: float, alpha: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Theorem 6 with Proposition 10 alone, and whether its conditions hold. Arguments as in `data_dependent`, of one shape."""
    variance = sigma * sigma
    with np.errstate(all="ignore"):
        log_q = np.maximum(log_q, -1e300)
        mu_2 = sigma * np.sqrt(-log_q)
        epsilon_1, epsilon_2 = (mu_2 + 1) / variance, mu_2 / variance
        limit = (mu_2 - 1) * epsilon_2 - mu_2 * (np.log1p(1 / mu_2) + np.log1p(1 / (mu_2 - 1)))
        valid = (mu_2 > 1) & (alpha <= mu_2 + 1) & (log_q <= limit) & (log_q + epsilon_2 < 0)
        log_rest = log_complement(log_q)
        log_a = log_rest - log_complement((log_q + epsilon_2) * (1 - 1 / mu_2))
        log_b = epsilon_1 - log_q / mu_2
        total = np.logaddexp(log_rest + (alpha - 1) * log_a, log_q + (alpha - 1) * log_b)
        bound = np.maximum(total / (alpha - 1), _TINY)
    return bound, valid & ~np.isnan(bound)


def log_complement(log_p: Any) -> Array:
    """log(1 − p) from log p ≤ 0, without cancellation at either end."""
    x = np.asarray(log_p, np.float64)
    near_one = x > -math.log(2)
    with np.errstate(all="ignore"):
        result = np.asarray(np.log1p(-np.exp(x)))
        if near_one.any():
            result = np.where(near_one, np.log(-np.expm1(x)), result)
    return result


def gnmax(histograms: Any, sigma: float, orders: Any, *, both: bool = False) -> Array:
    """Data-dependent bounds of GNMax. (U, m) sorted in descending order, σ in votes, (k,) orders → (U, k)."""
    bound = data_dependent(log_q_gnmax(histograms, sigma)[:, None], sigma, orders)
    if both:
        bound = np.maximum(bound, data_dependent(log_q_gnmax(histograms, sigma, worst=True)[:, None], sigma, orders))
    return bound


def gnmax_independent(sigma: float, orders: Any) -> Array:
    """α/σ² (Papernot et al. 2018, Proposition 8). (k,)."""
    return np.asarray(orders, np.float64) / sigma**2


def threshold(values: Any, limit: float, sigma: float, orders: Any, *, both: bool = False) -> Array:
    """Data-dependent bounds of the check `value + N(0, σ²) ≥ limit`.

    Args:
      values: (U,): the largest count of each histogram, or of an interactive mechanism the largest n_j − K p_j. One vote moved
        changes it by at most 1.
      limit: the threshold, in votes.
      sigma: of its noise, in votes.
      orders: (k,).
      both: whether the bound has to hold in both directions.

    Returns:
      (U, k).
    """
    scaled = math.sqrt(2) * sigma  # GNMax's bound is of sensitivity √2
    bound = data_dependent(log_unlikely(values, limit, sigma)[:, None], scaled, orders)
    if both:
        bound = np.maximum(bound, data_dependent(log_unlikely(values, limit, sigma, worst=True)[:, None], scaled, orders))
    return bound


def threshold_independent(sigma: float, orders: Any) -> Array:
    """α/(2σ₁²). (k,)."""
    return np.asarray(orders, np.float64) / (2 * sigma**2)


def lnmax(histograms: Any, scale: float, orders: Any, *, both: bool = False) -> Array:
    """Data-dependent bounds of LNMax. (U, m) sorted in descending order, Laplace scale in votes, (k,) orders → (U, k)."""
    bound = lnmax_bound(log_q_lnmax(histograms, scale)[:, None], scale, orders)
    if both:
        bound = np.maximum(bound, lnmax_bound(log_q_lnmax(histograms, scale, worst=True)[:, None], scale, orders))
    return bound


def lnmax_bound(log_q: Any, scale: float, orders: Any) -> Array:
    """Theorem 3 of Papernot et al. 2017, or the data-independent bound where it is less. `log_q` and `orders` broadcast."""
    alpha, log_q = np.broadcast_arrays(np.asarray(orders, np.float64), np.asarray(log_q, np.float64))
    epsilon = 2 / scale
    with np.errstate(all="ignore"):
        log_rest = log_complement(log_q)
        log_a = log_rest - log_complement(log_q + epsilon)
        total = np.logaddexp(log_rest + (alpha - 1) * log_a, log_q + (alpha - 1) * epsilon)
        bound = np.maximum(total / (alpha - 1), _TINY)
    independent = lnmax_independent(scale, alpha)
    return np.where(log_q <= -np.logaddexp(0, epsilon), np.fmin(bound, independent), independent)


def lnmax_independent(scale: float, orders: Any) -> Array:
    """Two Laplace mechanisms of sensitivity 1: D_α is twice that of one. Shape of `orders`.

    The winner is a function of all noisy counts, of which two change.
    """
    alpha = np.asarray(orders, np.float64)
    return 2 * laplace(alpha.reshape(-1), scale).reshape(alpha.shape)
