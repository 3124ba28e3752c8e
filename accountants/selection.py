r"""Private selection: the Rényi divergence of the best of a random number K of runs (Papernot and Steinke 2022).

Only the best run is released, and K is drawn from a fixed distribution and stays secret. Given the curve of one run, D_λ for
every order λ, these functions give the curve of the whole.

**Truncated negative binomial** K, shape η > −1 and parameter γ (Theorem 2; η = 0 is the logarithmic, η = 1 the geometric
distribution). For any second order λ̂ ≥ 1, which is free and chosen best (λ̂ = 1 needs no knowledge of the run),

    D′_λ ≤ D_λ + (1 + η)((1 − 1/λ̂) D_λ̂ + log(1/γ)/λ̂) + log(E K)/(λ − 1).

**Poisson** K with mean μ (Theorem 6). If one run is (ε̂, δ̂)-DP for e^ε̂ = 1 + 1/(λ − 1),

    D′_λ ≤ D_λ + μδ̂ + log(μ)/(λ − 1).

That forgets that nothing is run with probability e^{−μ}, and would be negative for small μ. What is used is

    e^{(λ−1)D′_λ} ≤ 1 + μ e^{(λ−1)μδ̂} (e^{(λ−1)D_λ} − 1),

which holds for every μ > 0, is no larger than Theorem 6 where μ ≥ 1, and is 0 where a run releases nothing. Proof: as in
Lemma 7 of the paper, order outcomes from worst to best, ties broken at random. Let s and G(s) be the probabilities, without and
with the unit or the other way round, that a run does worse than some outcome, and r = G′, the ratio of the densities. The best
of K runs does worse with probability f(s) or f(G), f(x) = e^{μ(x−1)}, of which f(0) = e^{−μ} is that of no run at all. With
φ(s) = λ(1 − G) − (λ − 1)(1 − s),

    e^{(λ−1)D′} = e^{−μ} + ∫ r^λ f′(G)^λ f′(s)^{1−λ} ds = e^{−μ} + μ ∫ r^λ e^{−μφ} ds.

φ′ = −(1 + λ(r − 1)), φ(0) = 1 and φ(1) = 0, so that 1 − e^{−μ} = μ ∫ (1 + λ(r − 1)) e^{−μφ} ds. Take one from the other:

    e^{(λ−1)D′} = 1 + μ ∫ (r^λ − 1 − λ(r − 1)) e^{−μφ} ds.

The bracket is ≥ 0 and integrates to e^{(λ−1)D} − 1; and −φ ≤ (λ − 1)δ̂, since (1 − s) ≤ e^ε̂ (1 − G) + δ̂.

**Either.** The best is a function of all runs together, whose divergence is log(E M^K)/(λ − 1) with M = e^{(λ−1)D_λ}: about E K
times that of one run where that is small, while what Theorem 2 adds doesn't vanish with it.

Divergences increase in the order, so every order also has the bounds of the orders above it.
"""

import math

import numpy as np
from numpy.typing import NDArray

from accountants import bernoulli

Array = NDArray[np.float64]


def repeat_and_select(orders: Array, rdp: Array, mean: float, shape: float) -> Array:
    """Curve of the best of K runs: the least of the bounds above.

    Args:
      orders: (k,), each > 1, ascending.
      rdp: of one run, larger of both directions, (k,).
      mean: E K; > 0 for Poisson, otherwise ≥ 1.
      shape: η of the truncated negative binomial distribution, > −1; infinite for Poisson.

    Returns:
      (k,) float64; infinite where no order gives a bound.
    """
    if not rdp.any():
        return np.zeros_like(rdp)
    with np.errstate(over="ignore", divide="ignore"):
        exponent = (orders - 1) * rdp
        log_excess = exponent + np.log(-np.expm1(-exponent))  # log(M − 1)
        if shape == math.inf:
            best_run = _poisson(orders, rdp, log_excess, mean)
            all_runs = np.exp(math.log(mean) + log_excess) / (orders - 1)
        else:
            log_inverse = log_inverse_gamma(mean, shape)
            best_run = _negative_binomial(orders, rdp, mean, shape, log_inverse)
            all_runs = _all_of_negative_binomial(orders, log_excess, shape, log_inverse)
    bound = np.maximum(np.minimum(best_run, all_runs), bernoulli.SMALLEST)
    return np.minimum.accumulate(bound[::-1])[::-1]


def _negative_binomial(orders: Array, rdp: Array, mean: float, shape: float, log_inverse: float) -> Array:
    """Theorem 2; `log_inverse` is log(1/γ)."""
    second = np.append((1 - 1 / orders) * rdp + log_inverse / orders, log_inverse)
    return rdp + (1 + shape) * second.min() + math.log(mean) / (orders - 1)


def _all_of_negative_binomial(orders: Array, log_excess: Array, shape: float, log_inverse: float) -> Array:
    """log(E M^K)/(λ − 1), infinite where M is too large.

    With z = (1/γ − 1)(M − 1) < 1, E M^K = 1 + ((1 − z)^{−η} − 1)/(1 − γ^η), for η = 0 the limit 1 + log(1 − z)/log γ.
    """
    if log_inverse == 0:  # always one run
        return bernoulli.divergence(log_excess, orders)
    log_z = log_excess + log_inverse + math.log(-math.expm1(-log_inverse))
    result = np.full_like(orders, np.inf)
    few = log_z < 0
    growth = -np.log1p(-np.exp(log_z[few]))
    log_ratio = np.log(growth / log_inverse) + _log_growth(shape * growth) - _log_growth(np.array(-shape * log_inverse))
    result[few] = bernoulli.divergence(log_ratio, orders[few])
    return result


def _poisson(orders: Array, rdp: Array, log_excess: Array, mean: float) -> Array:
    """Theorem 6 as improved above."""
    delta = _delta_of_curve(orders, rdp, 1 / (orders - 1))
    return bernoulli.divergence(math.log(mean) + (orders - 1) * mean * delta + log_excess, orders)


def _delta_of_curve(orders: Array, rdp: Array, growth: Array) -> Array:
    """Upper bound of δ at each e^ε = 1 + growth, from a whole Rényi curve. (k,), (k,), (n,) → (n,).

    The least of: Proposition 12 of Canonne, Kamath, Steinke 2020 at every order; E_Q[(r − 1 − g)₊] ≤ (√(g² + χ²) − g)/2 with
    χ² = e^{D₂} − 1, which follows from (r − 1 − g)₊ ≤ (r − t)²/(4(1 + g − t)) at the best t; and of the total variation
    distance, √(D/2) and √(1 − e^{−D}) (Pinsker; Bretagnolle and Huber).
    """
    with np.errstate(over="ignore", under="ignore"):
        epsilon = np.log1p(growth)[:, None]
        log_delta = (orders - 1) * (rdp - epsilon + np.log1p(-1 / orders)) - np.log(orders)
        concentrated = np.exp(log_delta.min(axis=1))
    lowest = float(rdp.min())
    distance = min(math.sqrt(lowest / 2), math.sqrt(-math.expm1(-lowest)))
    # Capped where the bound exceeds 1 anyway.
    chi_squared = math.expm1(min(float(rdp[orders >= 2].min(initial=np.inf)), 700.0))
    spread = chi_squared / (2 * (np.sqrt(growth**2 + chi_squared) + growth))
    return np.minimum(np.minimum(concentrated, spread), distance)


def log_inverse_gamma(mean: float, shape: float) -> float:
    """log(1/γ) of the truncated negative binomial distribution of a given mean ≥ 1, rounded up.

    By bisection of E K = η(1 − γ)/(γ(1 − γ^η)), for η = 0 (1 − γ)/(γ log(1/γ)), which decreases in γ (Definition 1).
    """
    target = math.log(mean)
    if target == 0:
        return 0.0  # γ = 1: always one run
    low, high = 0.0, 1.0
    while _log_mean(high, shape) < target:
        low, high = high, 2 * high
    while high - low > 1e-13 * high:
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (middle, high) if _log_mean(middle, shape) < target else (low, middle)
    return high * (1 + 1e-12) + 1e-15 / (1 + shape)  # E K ≈ 1 + (1 + η)·log(1/γ)/2 where that is small


def draw_count(mean: float, shape: float, uniform: float) -> int:
    """K, the number of runs, by inversion. It has to stay secret.

    Args:
      mean: E K; > 0 for Poisson, otherwise ≥ 1.
      shape: η of the truncated negative binomial distribution, > −1; infinite for Poisson.
      uniform: drawn from [0, 1) for this purpose alone.
    """
    if shape == math.inf:
        count, probability, ratio = 0, math.exp(-mean), lambda k: mean / (k + 1)
    else:
        x = log_inverse_gamma(mean, shape)
        kept = -math.expm1(-x)  # 1 − γ
        if x == 0:
            return 1
        # P(K = k) ∝ (1 − γ)^k ∏_{l<k} (l + η)/k! (Definition 1); with η → 0, (1 − γ)^k/k.
        first = kept / x if shape == 0 else kept * shape / math.expm1(shape * x)
        count, probability, ratio = 1, first, lambda k: kept * (k + shape) / (k + 1)
    below = probability
    while below <= uniform and probability > 1e-300:
        probability *= ratio(count)
        count += 1
        below += probability
    return count


def _log_mean(x: float, shape: float) -> float:
    """log E K at γ = e^{−x}, x > 0."""
    if shape < 0:  # E K = |η|(e^x − 1)/(e^{|η|x} − 1), whose exponents nearly cancel for η close to −1
        return (1 + shape) * x + math.log(-shape * math.expm1(-x) / math.expm1(shape * x))
    return float(_log_growth(np.array(x)) - _log_growth(np.array(-shape * x)))  # E K = (e^x − 1)/x · ηx/(1 − e^{−ηx})


def _log_growth(x: Array) -> Array:
    """log((e^x − 1)/x), which is 0 at 0."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        direct = np.maximum(x, 0) + np.log(-np.expm1(-np.abs(x))) - np.log(np.abs(x))
        return np.where(np.abs(x) < 1e-5, x / 2 + x * x / 24, direct)
