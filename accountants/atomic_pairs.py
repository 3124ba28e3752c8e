r"""Dominating pairs of discrete mechanisms: finitely many, evenly spaced losses.

Sources: Canonne, Kamath, Steinke 2020 (discrete Gaussian); Ghosh, Roughgarden, Sundararajan 2009 (discrete Laplace);
Kairouz, Oh, Viswanath 2015 (randomised response dominates every (ε, δ) guarantee).
"""

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from accountants.pairs import ROUND, Alone, Cells

Array = NDArray[np.float64]
Index = NDArray[np.int64]

MAX_ATOMS = 2_000_000
"""Most losses that one mechanism may have."""


@dataclasses.dataclass(frozen=True, eq=False)
class AtomicPair(Alone):
    """Losses first + i · gap with P-mass mass[i], a batch of one.

    Attributes:
      first: lowest loss.
      gap: > 0.
      mass: (n,), ≥ 0.
      q: their Q-masses, e^{−loss} times that, but known where the one underflows and the other overflows. (n,).
    """

    first: float
    gap: float
    mass: Array
    q: Array

    @property
    def losses(self) -> Array:
        """(n,)."""
        return np.asarray(self.first + self.gap * np.arange(len(self.mass)), np.float64)

    def reversed(self) -> "AtomicPair":
        """(Q, P): each loss changes its sign."""
        return AtomicPair(-float(self.losses[-1]), self.gap, self.q[::-1], self.mass[::-1])

    def cells(self, edges: Array) -> Cells:
        losses, edges = self.losses, edges[0]
        which = np.searchsorted(edges, losses, side="left")
        lower = np.concatenate([[-np.inf], edges])[which]
        count = len(edges) + 1
        p = np.asarray(np.bincount(which, self.mass, count), np.float64)
        q = np.asarray(np.bincount(which, self.q, count), np.float64)
        excess = np.asarray(np.bincount(which, -self.mass * np.expm1(np.minimum(lower - losses, 0.0)), count), np.float64)
        error = ROUND * (excess + p * float(np.abs(losses).max()))
        return Cells(p[None], q[None], excess[None], error[None])

    def quantiles(self, low: Array, high: Array) -> tuple[Array, Array]:
        return self._quantiles(self.mass, low, high)

    def base_quantiles(self, low: Array, high: Array) -> tuple[Array, Array]:
        return self._quantiles(self.q, low, high)

    def _quantiles(self, mass: Array, low: Array, high: Array) -> tuple[Array, Array]:
        first, last = kept(mass, low, high)
        return self.losses[first], self.losses[last]

    def spacing(self) -> Array:
        return np.array([[self.gap]])

    def atoms(self) -> tuple[Array, Array, Array]:
        return self.losses, self.mass, self.q


def kept(mass: Array, low: Array, high: Array) -> tuple[Index, Index]:
    """The first and the last of atoms (n,) when as many go from either end as weigh at most `low` and `high` (any shape).

    One stays at least.
    """
    last = len(mass) - 1
    below, above = np.cumsum(mass), np.cumsum(mass[::-1])
    first = np.minimum(np.searchsorted(below, low, side="right"), last)
    return first, np.maximum(last - np.searchsorted(above, high, side="right"), first)


def _symmetric(first: float, gap: float, mass: Array) -> AtomicPair:
    """A pair that is its own reverse."""
    return AtomicPair(first, gap, mass, mass[::-1])


def pure(epsilon: float) -> AtomicPair:
    """Randomised response between two values, the worst ε-DP mechanism. `epsilon` > 0. Symmetric."""
    low, high = 1 / (1 + math.exp(min(epsilon, 700.0))), 1 / (1 + math.exp(-epsilon))
    return _symmetric(-epsilon, 2 * epsilon, np.array([low, high]))


def scaled_pure(epsilon: float, total: float) -> AtomicPair | None:
    """`pure` with a P-mass of `total`; None if nothing is left of it."""
    if total <= 0:
        return None
    if epsilon == 0:
        return _symmetric(0.0, 1.0, np.array([total]))
    both = pure(epsilon)
    return dataclasses.replace(both, mass=total * both.mass, q=total * both.q)


def randomized_response(noise: float, buckets: int) -> AtomicPair:
    """Two true values of randomised response over `buckets` ≥ 3 buckets, `noise` in (0, 1). Symmetric."""
    other = noise / buckets
    epsilon = math.log1p((1 - noise) / other)
    return _symmetric(-epsilon, epsilon, np.array([other, (buckets - 2) * other, 1 - noise + other]))


def discrete_laplace(parameter: float, sensitivity: int) -> AtomicPair:
    """P(k) ∝ e^{−a|k|}, shifted by `sensitivity` ≤ MAX_ATOMS − 1. Losses a(2k − Δ) for k = 0 … Δ. Symmetric."""
    a = parameter
    k = np.arange(sensitivity + 1)
    with np.errstate(under="ignore"):
        mass = math.tanh(a / 2) * np.exp(-a * (sensitivity - k))
        end = 1 / (1 + math.exp(-a))
        mass[0], mass[-1] = end * math.exp(-a * sensitivity), end
    return _symmetric(-a * sensitivity, 2 * a, mass)


def discrete_gaussian(sigma: float, sensitivity: int) -> AtomicPair:
    """P(k) ∝ e^{−k²/2σ²}, shifted by `sensitivity`; what lies beyond 38 σ (1e-314 of the mass) is left out. Symmetric."""
    reach = math.ceil(38 * sigma)
    k = np.arange(-reach, reach + sensitivity + 1)
    with np.errstate(under="ignore"):
        mass = np.exp(-0.5 * ((k - sensitivity) / sigma) ** 2)
        mass /= mass.sum()
    gap = sensitivity / sigma**2
    return _symmetric((k[0] - sensitivity / 2) * gap, gap, mass)
