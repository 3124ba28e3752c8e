r"""Rényi divergences of Gaussian and Laplace noise, Poisson-sampled or not, at integer and fractional orders.

A mechanism is described by its worst pair of output distributions, P with and Q without the unit. Every
function returns, for each order α > 1, the larger of D_α(P‖Q) and D_α(Q‖P); where a reflection exchanges the
unsampled pair, as it does for Gaussian and Laplace noise, that is the direction (mixture, base) of the sampled
pair (Mironov, Talwar, Zhang 2019, Theorem 5).

For a Poisson-sampled mechanism the pair is ((1−q)Q + qP, Q) and the quantity to find is
A_α = E_Q[(1 + u)^α] with u = q(P/Q − 1), and `bernoulli` finds A_α − 1 as the mean of a positive function: nothing cancels
however close A_α is to 1, and there are none of the alternating signs of the binomial series at fractional orders, which is
where other implementations go wrong. D_α = log1p(A_α − 1)/(α − 1).

Accuracy: relative error below 1e-10 (see `tests/accountants/test_renyi.py`, against 40-digit quadrature). What
underflows is reported as the smallest normal float, never as zero.

Sources: Mironov 2017 (Table II: Gaussian, Laplace); Mironov, Talwar, Zhang 2019 (sampled Gaussian: sections
3.1 to 3.3); Canonne, Kamath, Steinke 2020 (discrete Gaussian); Wang, Balle, Kasiviswanathan 2019 (convexity of (α−1)D_α in α,
used only where quadrature would be too large).
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from accountants import bernoulli, special

Array = NDArray[np.float64]

TAIL = 12.0
"""Standard deviations kept beyond the outermost peak: e^−72 of the mass is left out."""
MAX_NODES = 1 << 17
"""Of one quadrature; beyond it an upper bound in closed form is used."""

_MAX_PANELS = 4096  # of Gauss and Legendre's quadrature; beyond it the pure-DP bound is used
_BLOCK = 1 << 18  # terms of binomial sums held at a time: 2 MiB an array


def gaussian(orders: ArrayLike, noise_multiplier: float) -> Array:
    """D_α(N(1, σ²)‖N(0, σ²)) = α/(2σ²). `orders` (k,) > 1 → (k,) float64.

    For discrete Gaussian noise it is an upper bound, exact at integer orders (Canonne, Kamath, Steinke 2020, Proposition 5).
    """
    orders = np.asarray(orders, np.float64)
    if noise_multiplier == 0:
        return np.full_like(orders, np.inf)
    with np.errstate(over="ignore"):
        return np.maximum(orders / (2.0 * noise_multiplier) / noise_multiplier, bernoulli.SMALLEST)


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
            np.log(orders / (2 * orders - 1)) + bernoulli.log_exp_minus_linear(up),
            np.log((orders - 1) / (2 * orders - 1)) + bernoulli.log_exp_minus_linear(down),
        ],
        axis=-1,
    )
    # Rounding must not push the divergence above its limit, the pure-DP parameter 1/b.
    return np.minimum(bernoulli.divergence(bernoulli.log_sum_exp(log_terms), orders), pure)


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
    result[~integer] = _sampled_gaussian_fractional(orders[~integer], sigma, q)
    return result


def sampled_discrete_gaussian(orders: ArrayLike, sigma: float, sensitivity: int, sampling_probability: float) -> Array:
    """Poisson-sampled discrete Gaussian noise, add/remove or zero-out. (k,) → (k,).

    Args:
      orders: (k,), each > 1.
      sigma: P(x) ∝ e^{−x²/2σ²} on the whole numbers, > 0.
      sensitivity: Δ ≥ 1. A shift by less is no worse: the noise is log-concave, so every test gains from a larger shift.
      sampling_probability: strictly between 0 and 1.
    """
    orders, q = np.asarray(orders, np.float64), sampling_probability
    # E_Q[(P/Q)^k] = e^{k(k−1)Δ²/2σ²} as for continuous noise, since kΔ is a whole number; hence so are integer orders.
    ratio = sigma / sensitivity
    result = np.empty_like(orders)
    integer = orders == np.floor(orders)
    result[integer] = _sampled_gaussian_integer(orders[integer], ratio, q)
    fractional = orders[~integer]
    if fractional.size:
        low, high = -TAIL * sigma - 2, float(fractional.max()) * sensitivity + TAIL * sigma + 2
        if high - low <= MAX_NODES and ratio > 1e-100:  # below, losses overflow
            t = np.arange(math.floor(low), math.ceil(high) + 1) / sigma
            log_mass = -0.5 * t**2
            log_mass -= bernoulli.log_sum_exp(log_mass)
            result[~integer] = _on_nodes(fractional, ratio, q, t, log_mass)
        else:
            result[~integer] = _between_integer_orders(fractional, ratio, q)
    return result


def sampled_laplace(orders: ArrayLike, noise_multiplier: float, sampling_probability: float) -> Array:
    """Poisson-sampled Laplace mechanism, add/remove or zero-out. (k,) → (k,)."""
    orders, q, b = np.asarray(orders, np.float64), sampling_probability, noise_multiplier
    if q == 0:
        return np.zeros_like(orders)
    if q == 1 or b == 0 or not np.isfinite(1 / b):
        return laplace(orders, b)
    # Atoms where noise falls outside both values; in between, the loss y has Q-density e^{−(y + 1/b)/2}/4.
    atoms = (math.log(0.5), math.log(0.5) - 1 / b)
    return sampled_bounded(orders, 1 / b, q, log_density=math.log(0.25), log_atoms=atoms)


def sampled_bounded(
    orders: Array, bound: float, q: float, *, log_density: float, log_atoms: tuple[float, float] | None = None
) -> Array:
    """A Poisson-sampled pair whose loss has the Q-density e^{log_density − (y + bound)/2} on [−bound, bound].

    The Laplace mechanism is of this form, and so is the worst pair of bounded range. The P-density is e^y times as large, and a
    reflection of y exchanges both.

    Args:
      orders: (k,), each > 1.
      bound: the pure-DP parameter, finite and > 0.
      q: probability of sampling, strictly between 0 and 1.
      log_density: as above.
      log_atoms: logarithms of the Q-masses at −bound and at bound, if there are any.
    """
    # The log ratio of the sampled pair lies in [low, high]; the higher end is the limit α → ∞.
    high = float(np.logaddexp(math.log1p(-q), math.log(q) + bound))
    low = math.log1p(q * math.expm1(-bound))
    limit = max(high, bernoulli.SMALLEST)
    result = np.full_like(orders, limit)
    panels = np.maximum((orders * (high - low) + bound) / 2, 1.0)
    feasible = np.flatnonzero(panels <= _MAX_PANELS)
    for group in bernoulli.groups(panels[feasible]):
        chosen = feasible[group]
        loss, log_weight = _legendre(math.ceil(panels[chosen].max()), bound)
        log_weight += log_density - (loss + bound) / 2
        if log_atoms is not None:
            loss, log_weight = np.append(loss, [-bound, bound]), np.append(log_weight, log_atoms)
        log_excess = bernoulli.log_mean(orders[chosen], log_weight, *bernoulli.mixed(loss, q))
        result[chosen] = np.minimum(bernoulli.divergence(log_excess, orders[chosen]), limit)
    return result


def _legendre(panels: int, bound: float) -> tuple[Array, Array]:
    """Nodes in [−bound, bound] and log weights of Gauss and Legendre's rule with 16 nodes in each of `panels` panels."""
    nodes, weights = np.polynomial.legendre.leggauss(16)
    centres = (2 * np.arange(panels) + 1) / panels - 1
    places = (centres[:, None] + nodes / panels).ravel()
    return bound * places, np.log(np.tile(weights, panels)) + (math.log(bound) - math.log(panels))


def _sampled_gaussian_integer(orders: Array, sigma: float, q: float) -> Array:
    """A − 1 = Σ_{k≥2} C(α,k) (1−q)^{α−k} q^k (e^{(k²−k)/2σ²} − 1): every term is positive."""
    if orders.size == 0:
        return orders
    top = int(orders.max())
    log_factorial = special.gammaln(np.arange(top + 1) + 1.0)
    k = np.arange(top + 1, dtype=np.float64)
    with np.errstate(over="ignore", divide="ignore"):
        exponent = k * (k - 1) / (2 * sigma) / sigma
        log_drawn = exponent + np.log(-np.expm1(-exponent)) - log_factorial + k * math.log(q)
    log_left = k * math.log1p(-q) - log_factorial  # of the α − k others
    result = np.empty_like(orders)
    ends = np.cumsum(orders)
    for block in np.split(np.arange(len(orders)), np.flatnonzero(np.diff(ends // _BLOCK)) + 1):
        # The terms k = 2..α of all orders of a block lie end to end: a rectangle would be half empty.
        alpha = orders[block].astype(np.int64)
        starts = np.cumsum(alpha - 1) - (alpha - 1)
        drawn = np.arange(starts[-1] + alpha[-1] - 1) - np.repeat(starts - 2, alpha - 1)
        logs = log_drawn[drawn] + log_left[np.repeat(alpha, alpha - 1) - drawn]
        highest = np.maximum.reduceat(logs, starts)
        finite = np.where(np.isfinite(highest), highest, 0.0)
        with np.errstate(over="ignore", divide="ignore"):
            total = np.add.reduceat(np.exp(logs - np.repeat(finite, alpha - 1)), starts)
            result[block] = log_factorial[alpha] + finite + np.log(total)
    return bernoulli.divergence(result, orders)


def _sampled_gaussian_fractional(orders: Array, sigma: float, q: float) -> Array:
    r"""Trapezoid rule over t = z/σ. The integrand is analytic for |Im t| < πσ, so the error is about e^{−2π·πσ/step}."""
    step = min(0.1, sigma / 3)
    nodes = (2 * TAIL + orders / sigma) / step
    few = nodes <= MAX_NODES
    result = np.empty_like(orders)
    result[~few] = _between_integer_orders(orders[~few], sigma, q)
    feasible = np.flatnonzero(few)
    for group in bernoulli.groups(nodes[feasible]):
        chosen = feasible[group]
        t = np.arange(-TAIL, orders[chosen].max() / sigma + TAIL, step)
        log_weight = -0.5 * t**2 + math.log(step / math.sqrt(2 * math.pi))
        result[chosen] = _on_nodes(orders[chosen], sigma, q, t, log_weight)
    return result


def _on_nodes(orders: Array, sigma: float, q: float, t: Array, log_weight: Array) -> Array:
    """D_α of the sampled Gaussian from noise of t standard deviations with given weights, (n,)."""
    log_ratio = (t - 1 / (2 * sigma)) / sigma
    return bernoulli.divergence(bernoulli.log_mean(orders, log_weight, *bernoulli.mixed(log_ratio, q)), orders)


def _between_integer_orders(orders: Array, sigma: float, q: float) -> Array:
    """Upper bound: (α−1)D_α is convex in α, so a chord between integer orders lies above it. So does the unsampled one."""
    low = np.floor(orders)
    high = low + 1
    above = np.maximum(low, 2)  # at order 1 the product (α−1)D_α is zero
    at_low = np.where(low > 1, _sampled_gaussian_integer(above, sigma, q) * (above - 1), 0.0)
    at_high = _sampled_gaussian_integer(high, sigma, q) * (high - 1)
    with np.errstate(invalid="ignore"):
        chord = at_low + (orders - low) * (at_high - at_low)
    chord = np.where(np.isfinite(at_high), chord / (orders - 1), np.inf)
    return np.minimum(chord, gaussian(orders, sigma))
