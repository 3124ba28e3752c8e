r"""Rényi divergences of mechanisms of bounded privacy loss: pure DP, randomised response, discrete Laplace, bounded range.

Conventions and accuracy are those of `renyi`. Every pair here is symmetric (an exchange of outcomes turns (P, Q) into (Q, P)),
so (mixture, base) is the larger direction of a sampled pair (Mironov, Talwar, Zhang 2019, Theorem 5).

**Bounded range.** The loss of an η-bounded-range mechanism lies in an interval [t − η, t] (Dong, Durfee, Rogers 2020). As r^α
is convex and E_Q[r] = 1 for the ratio r = dP/dQ, the worst ratio takes the two ends alone. With E = e^{−η} and x = e^t,

    A(x) = x^α (E^α − E)/(1 − E) + x^{α−1} (1 − E^α)/(1 − E),

which is largest at x = (α−1)(1 − E^α)/(α(E − E^α)). Put in, with ℓ(y) = log(sinh(y/2)/(y/2)),

    D_α = ℓ(αη) − ℓ((α−1)η) + (ℓ(αη) − ℓ(η))/(α−1).

For small η this is αη²/8, since ℓ(y) ≈ y²/24; it is never more, which is the bound of Cesar and Rogers 2021 (with ψ(α) = log A:
ψ(0) = ψ(1) = 0, and ψ'' is a variance on an interval of length η, hence ≤ η²/4). For large α it tends to η.

Sources: Mironov 2017 (Proposition 5: randomised response); Kairouz, Oh, Viswanath 2015 (it is the worst ε-DP mechanism); Ghosh,
Roughgarden, Sundararajan 2009 (discrete Laplace).
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from accountants import bernoulli, renyi

Array = NDArray[np.float64]

MAX_ATOMS = 4096
"""Most losses of discrete Laplace noise that are gone through one by one."""

_NEAR_ONE = 1.001  # below this order the formula of bounded range would cancel


def pure(orders: ArrayLike, epsilon: float, sampling_probability: float = 1.0) -> Array:
    """Any ε-DP mechanism, Poisson-sampled or not: exact for randomised response between two values. (k,) → (k,)."""
    if epsilon == 0:
        return np.zeros_like(np.asarray(orders, np.float64))
    if epsilon == math.inf:
        return np.full_like(np.asarray(orders, np.float64), np.inf)
    losses = np.array([-epsilon, epsilon])
    log_mass = -np.logaddexp(0.0, -losses[::-1])
    return _atoms(orders, losses, log_mass, sampling_probability)


def randomized_response(orders: ArrayLike, noise: float, buckets: int) -> Array:
    """Two true values of randomised response over `buckets` ≥ 2 buckets, replaced with probability `noise`. (k,) → (k,)."""
    orders = np.asarray(orders, np.float64)
    other = noise / buckets
    if noise == 1:
        return np.zeros_like(orders)
    epsilon = math.log1p((1 - noise) / other) if other else math.inf
    if epsilon == math.inf:
        return np.full_like(orders, np.inf)
    log_mass = np.log([1 - noise + other, other])  # the other buckets have loss 0, which costs nothing
    return _atoms(orders, np.array([-epsilon, epsilon]), log_mass, 1.0)


def discrete_laplace(orders: ArrayLike, parameter: float, sensitivity: int, sampling_probability: float = 1.0) -> Array:
    """P(k) ∝ e^{−a|k|} against itself shifted by Δ, Poisson-sampled or not. (k,) → (k,).

    Exact up to Δ = MAX_ATOMS; beyond it off by a factor of 1 + 2/MAX_ATOMS at most in aΔ and little more in what follows.

    Args:
      orders: (k,), each > 1.
      parameter: a > 0.
      sensitivity: Δ ≥ 1.
      sampling_probability: in (0, 1].
    """
    # δ(ε) is the polygon through the points ε = a(2k − Δ), k = 0 … Δ, of the convex curve 1 − e^{(ε − aΔ)/2}. So to leave out
    # points is an upper bound: every m-th point belongs to noise of parameter m·a and shift Δ/m. A larger shift is one as well.
    merged = -(-sensitivity // MAX_ATOMS)
    a, shift = parameter * merged, -(-sensitivity // merged)
    if not math.isfinite(a * shift):
        return np.full_like(np.asarray(orders, np.float64), np.inf)
    k = np.arange(shift + 1, dtype=np.float64)
    log_end = -np.logaddexp(0.0, -a)
    log_mass = np.log(math.tanh(a / 2)) - a * k
    log_mass[[0, -1]] = log_end, log_end - a * shift
    return _atoms(orders, a * (2 * k - shift), log_mass, sampling_probability)


def bounded_range(orders: ArrayLike, eta: float) -> Array:
    """The worst η-bounded-range mechanism at each order: see the module's docstring. (k,) → (k,)."""
    # The divergence increases in the order, so what is far enough from 1 bounds what isn't.
    orders = np.maximum(np.asarray(orders, np.float64), _NEAR_ONE)
    if eta == math.inf:
        return np.full_like(orders, np.inf)
    with np.errstate(over="ignore", invalid="ignore"):
        quadratic = np.maximum(orders * eta / 8 * eta, bernoulli.SMALLEST)
        if eta < 1e-4:  # the difference, a part of η²/20, isn't worth the cancellation
            return np.minimum(quadratic, eta)
        curve = [_log_sinch(y) for y in (orders * eta, (orders - 1) * eta, np.full_like(orders, eta))]
        exact = curve[0] - curve[1] + (curve[0] - curve[2]) / (orders - 1)
    return np.minimum(np.minimum(np.where(np.isnan(exact), np.inf, exact), quadratic), eta)


def sampled_bounded_range(orders: ArrayLike, eta: float, sampling_probability: float) -> Array:
    """A Poisson-sampled η-bounded-range mechanism, add/remove or zero-out. (k,) → (k,).

    The worst mechanism of the sampled kind differs from that of the unsampled one, so this takes the pair that dominates all of
    them, whose loss has the P-density e^{(y−η)/2}/(2(1 − e^{−η})) on [−η, η] (`pairs.BoundedRangePair`): for small η that is
    αη²/6 at q → 1, where the unsampled bound takes over.
    """
    orders = np.asarray(orders, np.float64)
    if sampling_probability == 1 or eta == math.inf:
        return bounded_range(orders, eta)
    log_density = -math.log(2) - math.log(-math.expm1(-eta))
    dominating = renyi.sampled_bounded(orders, eta, sampling_probability, log_density=log_density)
    return np.minimum(dominating, bounded_range(orders, eta))


def _atoms(orders: ArrayLike, losses: Array, log_mass: Array, q: float) -> Array:
    """D_α of a symmetric pair with finitely many losses and their log Q-masses, (n,); no loss exceeds the last."""
    orders = np.asarray(orders, np.float64)
    u, log1p_u = bernoulli.mixed(losses, q)
    limit = max(float(log1p_u[-1]), bernoulli.SMALLEST)
    return np.minimum(bernoulli.divergence(bernoulli.log_mean(orders, log_mass, u, log1p_u), orders), limit)


def _log_sinch(y: Array) -> Array:
    """log(sinh(y/2)/(y/2)) for y > 0, to full relative accuracy."""
    h = y / 2
    term = excess = np.minimum(h, 1.0) ** 2 / 6  # of sinh(h)/h over 1
    for k in range(2, 10):
        term = term * np.minimum(h, 1.0) ** 2 / (2 * k * (2 * k + 1))
        excess = excess + term
    with np.errstate(under="ignore"):
        direct = h + np.log(-np.expm1(-2 * h)) - np.log(2 * h)
    return np.where(h < 1, np.log1p(excess), direct)
