r"""E_Q[(1 + u)^p] − 1 for E_Q[u] = 0, as the mean of a positive function: what every Rényi divergence here is made of.

With u = dP/dQ − 1 it gives both directions at order α: p = α belongs to D_α(P‖Q), p = 1 − α to D_α(Q‖P). By Bernoulli's
inequality

    f(u) = (1 + u)^p − 1 − p·u ≥ 0        (p > 1 or p < 0)

and E_Q[f(u)] = E_Q[(1 + u)^p] − 1, so nothing cancels however little P and Q differ.

Arrays of u belong to outcomes, (n,), with log Q-masses or quadrature weights of the same shape; orders are (k,).
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

SMALLEST = float(np.finfo(np.float64).tiny)
"""Stands for a divergence that underflows: zero would say that nothing was released."""

_BLOCK = 1 << 17  # elements of a matrix over orders and outcomes that is held at a time: 1 MiB


def divergence(log_excess: Array, orders: Array) -> Array:
    """log(A)/(α − 1) from log(A − 1). (k,), (k,) → (k,)."""
    return np.maximum(np.logaddexp(0.0, log_excess) / (orders - 1), SMALLEST)


def log_mean(powers: Array, log_weights: Array, u: Array, log1p_u: Array) -> Array:
    """log E_Q[(1 + u)^p − 1 − p·u].

    Args:
      powers: (k,), all > 1 or all < 0.
      log_weights: of the outcomes, (n,).
      u: > −1, (n,); may overflow to infinity.
      log1p_u: log(1 + u), finite, (n,).

    Returns:
      (k,); −∞ where u is 0 throughout.
    """
    rows = max(1, _BLOCK // len(u))
    result = np.empty_like(powers)
    for start in range(0, len(powers), rows):
        logs = log_gap(powers[start : start + rows, None], u, log1p_u) + log_weights
        result[start : start + rows] = log_sum_exp(logs)
    return result


def mixed(log_ratio: Array, q: float) -> tuple[Array, Array]:
    """u = q(ratio − 1) and log(1 + u), the latter finite where u overflows. 0 < q ≤ 1."""
    with np.errstate(over="ignore", divide="ignore"):
        u = q * np.expm1(log_ratio)
        if q == 1:
            return u, log_ratio
        # What is left of 1 + u near 0 is known better than u.
        apart = np.logaddexp(math.log1p(-q), math.log(q) + log_ratio)
        return u, np.where(np.abs(u) < 0.5, np.log1p(u), apart)


def log_gap(power: Array, u: Array, log1p_u: Array) -> Array:
    """log[(1 + u)^p − 1 − p·u], to full relative accuracy; −∞ at u = 0. (k, 1), (n,), (n,) → (k, n)."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        exponent = power * log1p_u
        small = np.abs(u) * np.maximum(np.abs(power), 1) < 0.1
        large = ~small & ((exponent > 30) | (u > 1e100))
        middle = ~small & ~large
        shape = exponent.shape
        p, v, log1p_v = (np.broadcast_to(value, shape) for value in (power, u, log1p_u))
        gap = np.empty(shape)
        gap[small] = _log_gap_small(p[small], v[small])
        gap[middle] = np.log(_gap_middle(p[middle], v[middle], log1p_v[middle]))
        gap[large] = _log_gap_large(p[large], v[large], log1p_v[large])
    return gap


def _log_gap_small(p: Array, v: Array) -> Array:
    """v² times a Taylor series whose terms fall by more than 10 each."""
    coefficient = p * (p - 1) / 2
    series = np.zeros_like(v)
    for k in range(2, 16):
        series += coefficient
        coefficient = coefficient * ((p - k) / (k + 1)) * v
    return np.log(series) + 2 * np.log(np.abs(v))


def _gap_middle(p: Array, v: Array, log1p_v: Array) -> Array:
    """As a sum whose terms are at most 20 times as large as it is, however close p is to 1 or to 0."""
    if p.min(initial=np.inf) > 0:
        return (1 + v) * np.expm1((p - 1) * log1p_v) - (p - 1) * v
    return np.expm1(p * log1p_v) - p * v


def _log_gap_large(p: Array, v: Array, log1p_v: Array) -> Array:
    """The leading term times what the others leave of it."""
    lead = p * log1p_v
    if p.min(initial=np.inf) > 0:  # (1+v)^p − p(1+v) + (p−1)
        return lead + np.log(-np.expm1(np.log(p) - (p - 1) * log1p_v) + (p - 1) * np.exp(-lead))
    # Either (1+v)^p is large, with v close to −1, or v is.
    return np.where(lead > 0, lead + np.log1p(-(1 + p * v) * np.exp(-lead)), np.log(-p) + log1p_v)


def log_sum_exp(logs: Array) -> Array:
    """log Σ exp(logs) along the last axis; +∞ if any term is, −∞ if all terms are."""
    top = logs.max(axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        total = np.log(np.sum(np.exp(logs - top), axis=-1)) + top[..., 0]
    return np.where(np.isfinite(top[..., 0]), total, top[..., 0])


def log_exp_minus_linear(y: Array) -> Array:
    """log(e^y − 1 − y), accurate for small and for large |y|; −∞ at 0."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        small = np.abs(y) < 0.5
        term = y**2 / 2
        series = np.zeros_like(y)
        for k in range(3, 22):
            series += term
            term = term * y / k
        direct = np.where(y < 30, np.log(np.maximum(np.expm1(np.minimum(y, 30)) - y, 0)), y)
        return np.where(small, np.log(series), direct)


def groups(costs: Array) -> Iterator[Indices]:
    """Splits orders into groups whose costs differ by less than a factor of two, so that a group can share its nodes.

    Args:
      costs: of each order, (k,), finite and > 0.

    Yields:
      Indices of the orders in a group.
    """
    exponent = np.floor(np.log2(costs))
    for value in np.unique(exponent):
        yield np.flatnonzero(exponent == value)
