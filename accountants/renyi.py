r"""Rényi divergences of single mechanisms, at integer and fractional orders.

A mechanism is described by its worst pair of output distributions, P with and Q without the unit. Every
function returns, for each order α > 1, the larger of D_α(P‖Q) and D_α(Q‖P); where a reflection exchanges the
unsampled pair, as it does for Gaussian and Laplace noise, that is the direction (mixture, base) of the sampled
pair (Mironov, Talwar, Zhang 2019, Theorem 5).

For a Poisson-sampled mechanism the pair is ((1−q)Q + qP, Q) and the quantity to find is
A_α = E_Q[(1 + u)^α] with u = q(P/Q − 1). Because E_Q[u] = 0,

    A_α − 1 = E_Q[ f(u) ],   f(u) = (1 + u)^α − 1 − αu ≥ 0     (Bernoulli's inequality),

an integral of a *positive* function: nothing cancels however close A_α is to 1, and there are none of
the alternating signs of the binomial series at fractional orders, which is where other implementations
go wrong. D_α = log1p(A_α − 1)/(α − 1).

Accuracy: relative error below 1e-10 (see `tests/accountants/test_renyi.py`, against 40-digit quadrature). What
underflows is reported as the smallest normal float, never as zero.

Sources: Mironov 2017 (Table II: Gaussian, Laplace); Mironov, Talwar, Zhang 2019 (sampled Gaussian: sections
3.1 to 3.3); Wang, Balle, Kasiviswanathan 2019 (convexity of (α−1)D_α in α, used only where quadrature would be
too large).
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln, logsumexp

Array = NDArray[np.float64]

_SMALLEST = float(np.finfo(np.float64).tiny)
_TAIL = 12.0  # standard deviations kept beyond the outermost peak: exp(-72) of the mass is left out
_MAX_NODES = 1_000_000  # of one quadrature; beyond it an upper bound from integer orders is used
_MAX_PANELS = 4096  # of the sampled Laplace quadrature; beyond it the pure-DP bound is used


def gaussian(orders: ArrayLike, noise_multiplier: float) -> Array:
    """D_α(N(1, σ²)‖N(0, σ²)) = α/(2σ²). `orders` (k,) > 1 → (k,) float64."""
    orders = np.asarray(orders, np.float64)
    if noise_multiplier == 0:
        return np.full_like(orders, np.inf)
    with np.errstate(over="ignore"):
        return np.maximum(orders / (2.0 * noise_multiplier) / noise_multiplier, _SMALLEST)


def laplace(orders: ArrayLike, noise_multiplier: float) -> Array:
    """D_α(Lap(1, b)‖Lap(0, b)), symmetric in its arguments (Mironov 2017, Proposition 6). (k,) → (k,)."""
    orders = np.asarray(orders, np.float64)
    if noise_multiplier == 0:
        return np.full_like(orders, np.inf)
    pure = 1.0 / noise_multiplier
    if not np.isfinite(pure):
        return np.full_like(orders, np.inf)
    up, down = (orders - 1) * pure, -orders * pure
    # A − 1 with the first-order terms, which cancel exactly, left out of both exponentials.
    log_terms = np.stack(
        [
            np.log(orders / (2 * orders - 1)) + _log_exp_minus_linear(up),
            np.log((orders - 1) / (2 * orders - 1)) + _log_exp_minus_linear(down),
        ]
    )
    # Rounding must not push the divergence above its limit, the pure-DP parameter 1/b.
    return np.minimum(_divergence(logsumexp(log_terms, axis=0), orders), pure)


def sampled_gaussian(orders: ArrayLike, noise_multiplier: float, sampling_probability: float) -> Array:
    """Poisson-sampled Gaussian mechanism, add/remove or zero-out. (k,) → (k,).

    Integer orders by the binomial sum with its two vanishing terms removed, fractional ones by quadrature.
    """
    orders, q, sigma = np.asarray(orders, np.float64), sampling_probability, noise_multiplier
    if q == 0:
        return np.zeros_like(orders)
    if q == 1 or sigma == 0:
        return gaussian(orders, sigma)
    result = np.empty_like(orders)
    integer = orders == np.floor(orders)
    result[integer] = _sampled_gaussian_integer(orders[integer], sigma, q)
    if not integer.all():
        fractional = orders[~integer]
        step = min(0.1, sigma / 3)
        if (2 * _TAIL + float(fractional.max()) / sigma) / step <= _MAX_NODES:
            result[~integer] = _sampled_gaussian_quadrature(fractional, sigma, q, step)
        else:
            result[~integer] = _between_integer_orders(fractional, sigma, q)
    return result


def sampled_laplace(orders: ArrayLike, noise_multiplier: float, sampling_probability: float) -> Array:
    """Poisson-sampled Laplace mechanism, add/remove or zero-out. (k,) → (k,)."""
    orders, q, b = np.asarray(orders, np.float64), sampling_probability, noise_multiplier
    if q == 0:
        return np.zeros_like(orders)
    if q == 1 or b == 0 or not np.isfinite(1 / b):
        return laplace(orders, b)
    # The log ratio of the sampled pair lies in [low, high]; the higher end is the limit α → ∞.
    high = float(np.logaddexp(math.log1p(-q), math.log(q) + 1 / b))
    low = math.log1p(q * math.expm1(-1 / b))
    result = np.full_like(orders, max(high, _SMALLEST))
    for i, order in enumerate(orders):
        panels = (order * (high - low) + 1 / b) / 2
        if panels <= _MAX_PANELS:
            result[i] = min(result[i], _sampled_laplace_quadrature(float(order), b, q, math.ceil(panels)))
    return result


def _sampled_gaussian_integer(orders: Array, sigma: float, q: float) -> Array:
    """A − 1 = Σ_{k≥2} C(α,k) (1−q)^{α−k} q^k (e^{(k²−k)/2σ²} − 1): every term is positive."""
    if orders.size == 0:
        return orders
    top = int(orders.max())
    log_factorial = gammaln(np.arange(top + 1) + 1.0)
    k = np.arange(2, top + 1, dtype=np.float64)
    with np.errstate(over="ignore", divide="ignore"):
        exponent = k * (k - 1) / (2 * sigma) / sigma
        log_term = exponent + np.log(-np.expm1(-exponent)) - log_factorial[2:] + k * math.log(q)
    result = np.empty_like(orders)
    for i, alpha in enumerate(orders.astype(np.int64)):
        upto = alpha - 1  # terms k = 2..alpha
        logs = log_factorial[alpha] - log_factorial[alpha - 2 :: -1] + log_term[:upto]
        logs += (alpha - k[:upto]) * math.log1p(-q)
        result[i] = _logsumexp(logs)
    return _divergence(result, orders)


def _sampled_gaussian_quadrature(orders: Array, sigma: float, q: float, step: float) -> Array:
    r"""Trapezoid rule over t = z/σ. The integrand is analytic for |Im t| < πσ, so the error is about e^{−2π·πσ/step}."""
    t = np.arange(-_TAIL, orders.max() / sigma + _TAIL, step)
    log_ratio = (t - 1 / (2 * sigma)) / sigma
    u, log1p_u = _sampled_ratio(log_ratio, q)
    log_weight = -0.5 * t**2 + math.log(step / math.sqrt(2 * math.pi))
    logs = [_logsumexp(log_weight + _log_bernoulli_gap(alpha, u, log1p_u)) for alpha in orders]
    return _divergence(np.array(logs), orders)


def _between_integer_orders(orders: Array, sigma: float, q: float) -> Array:
    """Upper bound: (α−1)D_α is convex in α, so a chord between integer orders lies above it."""
    low = np.floor(orders)
    high = low + 1
    above = np.maximum(low, 2)  # at order 1 the product (α−1)D_α is zero
    at_low = np.where(low > 1, _sampled_gaussian_integer(above, sigma, q) * (above - 1), 0.0)
    at_high = _sampled_gaussian_integer(high, sigma, q) * (high - 1)
    with np.errstate(invalid="ignore"):
        chord = at_low + (orders - low) * (at_high - at_low)
    return np.where(np.isfinite(at_high), chord / (orders - 1), np.inf)


def _sampled_laplace_quadrature(order: float, b: float, q: float, panels: int) -> float:
    """Two atoms of the ratio outside [0, 1], Gauss–Legendre in between."""
    nodes, weights = np.polynomial.legendre.leggauss(16)
    edges = np.linspace(0.0, 1.0, panels + 1)
    x = (edges[:-1, None] + (nodes + 1) / (2 * panels)).ravel()
    log_ratio = np.concatenate([[-1 / b], (2 * x - 1) / b, [1 / b]])
    log_weight = np.concatenate(
        [
            [math.log(0.5)],
            -x / b + np.log(np.tile(weights, panels) / (4 * b * panels)),
            [math.log(0.5) - 1 / b],
        ]
    )
    u, log1p_u = _sampled_ratio(log_ratio, q)
    log_a_minus_one = _logsumexp(log_weight + _log_bernoulli_gap(order, u, log1p_u))
    return float(_divergence(np.array([log_a_minus_one]), np.array([order]))[0])


def _sampled_ratio(log_ratio: Array, q: float) -> tuple[Array, Array]:
    """u = q(ratio − 1) and log(1 + u), the latter finite where u overflows."""
    with np.errstate(over="ignore"):
        u = q * np.expm1(log_ratio)
        return u, np.where(log_ratio < 600, np.log1p(u), np.logaddexp(0.0, math.log(q) + log_ratio))


def _log_bernoulli_gap(power: float, u: Array, log1p_u: Array) -> Array:
    """log[(1 + u)^p − 1 − p·u] for u > −1 and p > 1, to full relative accuracy; −∞ at u = 0."""
    gap = np.empty_like(u)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        exponent = power * log1p_u
        small = np.abs(u) * power < 0.1
        large = ~small & ((exponent > 30) | (u > 1e100))
        middle = ~small & ~large
        # Small: u² times a Taylor series whose terms fall by more than 10 each.
        v, series, coefficient = u[small], np.zeros(int(small.sum())), power * (power - 1) / 2
        for k in range(2, 16):
            series += coefficient * v ** (k - 2)
            coefficient *= (power - k) / (k + 1)
        gap[small] = np.log(series) + 2 * np.log(np.abs(v))
        # Middle: the form (1+u)((1+u)^{p−1} − 1) − (p−1)u stays accurate as p → 1.
        v = u[middle]
        gap[middle] = np.log((1 + v) * np.expm1((power - 1) * log1p_u[middle]) - (power - 1) * v)
        # Large: (1+u)^p times what is left of 1 after the linear term.
        lead, base = exponent[large], log1p_u[large]
        rest = -np.expm1(math.log1p(power - 1) - (power - 1) * base) + (power - 1) * np.exp(-lead)
        gap[large] = lead + np.log(rest)
    return gap


def _log_exp_minus_linear(y: Array) -> Array:
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


def _divergence(log_a_minus_one: Array, orders: Array) -> Array:
    """log(A)/(α − 1) from log(A − 1)."""
    return np.maximum(np.logaddexp(0.0, log_a_minus_one) / (orders - 1), _SMALLEST)


def _logsumexp(logs: Array) -> float:
    """log Σ exp(logs); +∞ if any term is."""
    top = logs.max()
    if not np.isfinite(top):
        return float(top)
    return float(top + np.log(np.sum(np.exp(logs - top))))
