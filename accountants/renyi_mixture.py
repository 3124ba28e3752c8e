r"""Rényi divergences of mixtures of Gaussians, P = Σ wᵢ N(μᵢ, 1) with μᵢ ≥ 0 against Q = N(0, 1), in both directions.

Matrix mechanisms need it (Choquette-Choo, Ganesh, McKenna, McMahan, Rush, Thakurta, Xu 2023). No reflection exchanges P and Q,
so neither direction is known to be the larger one, and both are computed: with X = dP/dQ and u = X − 1, E_Q[X^α] − 1 for (P, Q)
and E_Q[X^{1−α}] − 1 for (Q, P), each as the mean of a positive function (`bernoulli`), by the trapezoid rule.

Steps. X has no zero where |Im t| < π/μ (μ the largest shift), since all its terms then point into one half-plane. For (P, Q)
the integrand is nowhere larger than on the real axis but for e^{(Im t)²/2}, as for the sampled Gaussian (`renyi`). For (Q, P),
|X| ≥ cos(μ·Im t/2)·|X(Re t)|, so at Im t = y ≤ 2/μ the integrand grows by e^{κy²/2} at most, κ = 1 + 0.31(α−1)μ². A step of
min(0.5/√κ, 0.1/μ) then makes the error e^{−60} or less.

What is too large for quadrature has a bound in closed form: D_α(P‖Q) ≤ αμ²/2 (quasi-convexity), and D_α(Q‖P) ≤ αΣwᵢμᵢ²/2 (it is
convex in P: van Erven, Harremoës 2014, Theorem 12) or αμᵢ²/2 − log wᵢ for any i (since P ≥ wᵢN(μᵢ, 1)).
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from accountants import bernoulli
from accountants.renyi import MAX_NODES, TAIL

Array = NDArray[np.float64]

_MAX_SHIFTS = 1024  # distinct ones; more are rounded up
_MAX_ELEMENTS = 1 << 23  # of shifts times nodes in one quadrature
_BLOCK = 1 << 18  # elements of a matrix over shifts and nodes that is held at a time: 2 MiB


def mixture_of_gaussians(orders: ArrayLike, shifts: ArrayLike, weights: ArrayLike) -> Array:
    """The larger of D_α(P‖Q) and D_α(Q‖P).

    Args:
      orders: (k,), each > 1.
      shifts: μᵢ ≥ 0 in standard deviations of the noise, (m,).
      weights: wᵢ ≥ 0, (m,); they sum to 1.

    Returns:
      (k,) float64; 0 where there is no shift.
    """
    orders = np.asarray(orders, np.float64)
    mu, w = np.asarray(shifts, np.float64), np.asarray(weights, np.float64)
    mu, w = _distinct(mu[w > 0], w[w > 0])
    if mu[-1] == 0:
        return np.zeros_like(orders)
    if not math.isfinite(mu[-1] * mu[-1]):
        return np.full_like(orders, np.inf)
    return np.maximum(_with_against_without(orders, mu, w), _without_against_with(orders, mu, w))


def _distinct(mu: Array, w: Array) -> tuple[Array, Array]:
    """Shifts, ascending, and their weights, which sum to 1: at most _MAX_SHIFTS + 1 of them.

    To round a shift up is an upper bound: the best tests of P against Q are thresholds of t, and P passes each more often.
    """
    distinct, which = np.unique(mu, return_inverse=True)
    if len(distinct) > _MAX_SHIFTS:
        mu = np.ceil(mu / distinct[-1] * _MAX_SHIFTS) / _MAX_SHIFTS * distinct[-1]
        distinct, which = np.unique(mu, return_inverse=True)
    weights = np.bincount(which, w)
    return distinct, weights / weights.sum()


def _node_limit(mu: Array) -> int:
    return min(MAX_NODES, _MAX_ELEMENTS // len(mu))


def _with_against_without(orders: Array, mu: Array, w: Array) -> Array:
    """D_α(P‖Q)."""
    step = min(0.1, 1 / (3 * mu[-1]))
    result = np.maximum(orders * mu[-1] ** 2 / 2, bernoulli.SMALLEST)
    nodes = (2 * TAIL + orders * mu[-1]) / step
    feasible = np.flatnonzero(nodes <= _node_limit(mu))
    for group in bernoulli.groups(nodes[feasible]):
        chosen = feasible[group]
        log_excess = _trapezoid(orders[chosen], -TAIL, orders[chosen].max() * mu[-1] + TAIL, step, mu, w)
        result[chosen] = np.minimum(result[chosen], bernoulli.divergence(log_excess, orders[chosen]))
    return result


def _without_against_with(orders: Array, mu: Array, w: Array) -> Array:
    """D_α(Q‖P)."""
    each = np.minimum((orders[:, None] * mu**2 / 2 - np.log(w)).min(axis=1), orders * (w @ mu**2) / 2)
    result = np.maximum(each, bernoulli.SMALLEST)
    for group in bernoulli.groups(orders):
        highest = orders[group].max()
        kappa = 1 + 0.31 * (highest - 1) * mu[-1] ** 2
        step = min(0.5 / math.sqrt(kappa), 0.1 / mu[-1])
        low, high = _lowest_peak(highest, mu, w) - TAIL, mu[-1] + TAIL
        if (high - low) / step <= _node_limit(mu):
            log_excess = _trapezoid(1 - orders[group], low, high, step, mu, w)
            result[group] = np.minimum(result[group], bernoulli.divergence(log_excess, orders[group]))
    return result


def _trapezoid(powers: Array, low: float, high: float, step: float, mu: Array, w: Array) -> Array:
    """log E_Q[X^p − 1 − p(X − 1)] by nodes from `low` to `high`. (k,) → (k,)."""
    t = np.arange(low, high, step)
    u, log1p_u = np.empty_like(t), np.empty_like(t)
    count = max(1, _BLOCK // len(mu))
    for start in range(0, len(t), count):
        part = slice(start, start + count)
        log_ratio = t[part, None] * mu - mu**2 / 2
        with np.errstate(over="ignore", divide="ignore"):
            u[part] = np.expm1(log_ratio) @ w
            log1p_u[part] = np.where(np.abs(u[part]) < 0.5, np.log1p(u[part]), bernoulli.log_sum_exp(log_ratio + np.log(w)))
    return bernoulli.log_mean(powers, -0.5 * t**2 + math.log(step / math.sqrt(2 * math.pi)), u, log1p_u)


def _lowest_peak(order: float, mu: Array, w: Array) -> float:
    """Where e^{−t²/2}·X^{1−α} is largest: it is log-concave, since log X is convex. At most 0, at least −(α−1)μ."""
    low, high = -(order - 1) * float(mu[-1]), 0.0
    for _ in range(60):
        t = (low + high) / 2
        logs = mu * t - mu**2 / 2 + np.log(w)
        share = np.exp(logs - logs.max())
        slope = float(share @ mu / share.sum())  # of log X
        low, high = (t, high) if t + (order - 1) * slope < 0 else (low, t)
    return low
