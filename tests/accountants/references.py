"""Exact privacy curves by high-precision arithmetic, for checking the numerical accountant."""

import itertools
import math

import mpmath as mp
import numpy as np
from scipy.special import ndtr


def gaussian_delta(mu: float, epsilon: float) -> mp.mpf:
    """Balle and Wang 2018, Theorem 5: N(μ, 1) against N(0, 1)."""
    with mp.workdps(50):
        m, e = mp.mpf(mu), mp.mpf(epsilon)
        return mp.ncdf(m / 2 - e / m) - mp.exp(e) * mp.ncdf(-m / 2 - e / m)


def laplace_delta(kappa: float, epsilon: float) -> mp.mpf:
    """Laplace noise of scale 1/κ: 1 − e^{(ε − κ)/2}."""
    with mp.workdps(50):
        return max(1 - mp.exp((mp.mpf(epsilon) - mp.mpf(kappa)) / 2), mp.mpf(0))


def pure_delta(epsilon0: float, count: int, epsilon: float) -> mp.mpf:
    """`count` runs of the worst ε₀-DP mechanism (Kairouz, Oh, Viswanath 2015, Theorem 3.3): a binomial sum."""
    with mp.workdps(60):
        e0, e = mp.mpf(epsilon0), mp.mpf(epsilon)
        high = 1 / (1 + mp.exp(-e0))
        total = mp.mpf(0)
        for k in range(count + 1):  # k losses of +ε₀
            loss = (2 * k - count) * e0
            if loss > e:
                total += mp.binomial(count, k) * high**k * (1 - high) ** (count - k) * (1 - mp.exp(e - loss))
        return total


def atoms_delta(losses: list[mp.mpf], mass: list[mp.mpf], count: int, epsilon: float) -> mp.mpf:
    """`count` runs of a mechanism with few losses, outcome by outcome."""
    with mp.workdps(50):
        e, total = mp.mpf(epsilon), mp.mpf(0)
        for outcome in itertools.combinations_with_replacement(range(len(losses)), count):
            ways = mp.factorial(count)
            for i in set(outcome):
                ways /= mp.factorial(outcome.count(i))
            loss = sum(losses[i] for i in outcome)
            if loss > e:
                total += ways * mp.fprod(mass[i] for i in outcome) * (1 - mp.exp(e - loss))
        return total


def sampled_gaussian_delta(q: float, sigma: float, epsilon: float, remove: bool) -> mp.mpf:
    """One Poisson-sampled Gaussian release, by Balle and Wang's formula at the transformed ε."""
    with mp.workdps(50):
        q, s, e = mp.mpf(q), mp.mpf(sigma), mp.mpf(epsilon)
        # Outcomes x with loss above ε are those beyond the crossing of the two densities.
        gamma = mp.exp(e if remove else -e)
        ratio = (gamma - 1 + q) / q
        if ratio <= 0:
            return (1 - gamma) if remove else mp.mpf(0)
        x = s**2 * mp.log(ratio) + mp.mpf(1) / 2
        base, shifted = mp.ncdf(-x / s), mp.ncdf((1 - x) / s)
        mixture = (1 - q) * base + q * shifted
        if remove:
            return mixture - gamma * base
        return (1 - base) - mp.exp(e) * (1 - mixture)


def twice_sampled_gaussian_delta(q: float, sigma: float, epsilon: float, remove: bool) -> mp.mpf:
    """Two of them: the curve of one averaged over the loss of the other."""
    with mp.workdps(25):
        s = mp.mpf(sigma)

        def density(x: mp.mpf) -> mp.mpf:
            base = mp.npdf(x, 0, s)
            return (1 - q) * base + q * mp.npdf(x, 1, s) if remove else base

        def loss(x: mp.mpf) -> mp.mpf:
            value = mp.log(1 - q + q * mp.exp((2 * x - 1) / (2 * s**2)))
            return value if remove else -value

        def integrand(x: mp.mpf) -> mp.mpf:
            return density(x) * sampled_gaussian_delta(q, sigma, float(epsilon - loss(x)), remove)

        return mp.quad(integrand, [-12 * s, -4 * s, -s, 0, 0.5, 1, 1 + s, 1 + 4 * s, 1 + 12 * s], maxdegree=7)


def log10(x: mp.mpf) -> float:
    """For messages."""
    return float(mp.log10(x)) if x > 0 else -math.inf


def rounded_epsilon(sigmas, q, delta, step, size, remove, up):
    """ε of Poisson-sampled Gaussians, one each, by losses rounded to multiples of `step` and a plain FFT of `size` points.

    Right but for that rounding (all up, or all down) and about 1e-9 of δ, which is added to or taken from it.
    """
    spectrum = np.ones(size // 2 + 1, complex)
    for sigma in sigmas:
        edges = np.linspace(-10 * sigma, 1 + 10 * sigma, 400_001)

        def loss(at, sigma=sigma):
            value = np.log1p(q * np.expm1((at - 0.5) / sigma**2))
            return value if remove else -value

        absent, present = ndtr(edges / sigma), ndtr((edges - 1) / sigma)
        weight = np.diff((1 - q) * absent + q * present) if remove else np.diff(absent)
        ends = np.stack([loss(edges[:-1]), loss(edges[1:])])
        extreme = np.ceil(ends.max(axis=0) / step) if up else np.floor(ends.min(axis=0) / step)
        mass = np.bincount(extreme.astype(np.int64) % size, np.maximum(weight, 0.0), size)
        spectrum *= np.fft.rfft(mass)
    mass = np.roll(np.fft.irfft(spectrum, size), size // 2)
    losses = step * (np.arange(size) - size // 2)
    tail = np.cumsum(mass[::-1])[::-1]
    scaled = np.cumsum((mass * np.exp(-losses))[::-1])[::-1]
    curve = tail - np.exp(losses) * scaled
    target = delta * (1 - 1e-9 if up else 1 + 1e-9)
    return float(losses[np.flatnonzero(curve > target)[-1]]) + (step if up else 0.0)
