r"""Dominating pairs: for each mechanism the two output distributions that are hardest to tell apart.

A mechanism's privacy is that of a pair (P, Q) with δ(ε) = E_P[(1 − e^{ε−L})₊], where L = log dP/dQ is the privacy loss
(Dwork and Rothblum 2016; Zhu, Dong, Wang 2022, Definition 7 and Theorem 10: pairs of the parts, composed, dominate the
composition, however adaptively the parts were chosen). A relation that is not symmetric has two pairs, one for each direction.

All that the numerical accountant asks of a pair is the mass of loss intervals, in a form that neither cancels nor
overflows. For the interval (a, b] of losses:

    p      = P[a < L ≤ b]
    q      = Q[a < L ≤ b]                      (may underflow; then it no longer matters)
    excess = E_P[1 − e^{a−L}; a < L ≤ b] = p − eᵃ q        (δ(a), if b = ∞)
    error  ≥ |computed − true excess|

Every object is a *batch* of k pairs of one family: parameters are (k, 1), edges (k, n), results (k, n + 1).

Sampled mechanisms are in `sampled_pairs`, discrete ones in `atomic_pairs`, mixtures in `mixture_pairs`.

Sources: Balle and Wang 2018 (Gaussian); Dong, Durfee, Rogers 2020 (bounded range).
"""

import dataclasses
from collections.abc import Hashable, Sequence
from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from accountants import special

Array = NDArray[np.float64]

ROUND = 1e-15  # relative error of a tail probability
SQRT_HALF = np.sqrt(0.5)


class Cells(NamedTuple):
    """Masses of the n + 1 intervals between n edges, each (k, n + 1); see the module's docstring."""

    p: Array
    q: Array
    excess: Array
    error: Array


class Pair(Protocol):
    """A batch of dominating pairs of one family, in one direction."""

    def cells(self, edges: Array) -> Cells:
        """Masses of (−∞, e₀], (e₀, e₁], …, (eₙ₋₁, ∞). `edges` (k, n), ascending along the last axis."""

    def quantiles(self, low: Array, high: Array) -> tuple[Array, Array]:
        """Losses (a, b), each (k, 1), with P[L < a] ≤ low and P[L > b] ≤ high."""

    def base_quantiles(self, low: Array, high: Array) -> tuple[Array, Array]:
        """The same with Q in place of P."""

    def spacing(self) -> Array | None:
        """(k, 1), if all atoms of the loss lie at multiples of it from one another; None if not, or if there are no atoms."""

    def atom_at_zero(self) -> bool:
        """Whether a loss of exactly 0 has a probability, and no other loss has."""

    def atoms(self) -> tuple[Array, Array, Array] | None:
        """Losses, ascending, their P- and Q-masses, each (n,), if there is nothing else (a batch of one); None otherwise."""

    def family(self) -> Hashable:
        """Equal for pairs that can be stacked and share a lattice."""

    def stacked(self, others: Sequence[Self]) -> Self:
        """This batch and `others` as one."""


class Stackable:
    """Batches of dataclasses whose array fields are (k, 1)."""

    def atom_at_zero(self) -> bool:
        return False

    def atoms(self) -> tuple[Array, Array, Array] | None:
        return None

    def family(self) -> Hashable:
        if self.atoms() is not None:
            return id(self)
        base, spacing = getattr(self, "base", None), self.spacing()  # type: ignore[attr-defined]
        return type(self), base and base.family(), None if spacing is None else float(spacing[0, 0])

    def stacked(self, others: Sequence[Self]) -> Self:
        values = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            mine = getattr(self, field.name)
            theirs = [getattr(other, field.name) for other in others]
            values[field.name] = np.concatenate([mine, *theirs]) if isinstance(mine, np.ndarray) else mine.stacked(theirs)
        return type(self)(**values)


class Alone:
    """A pair of a family of its own: a batch of one, without atoms unless the class says otherwise."""

    def spacing(self) -> Array | None:
        return None

    def atom_at_zero(self) -> bool:
        return False

    def atoms(self) -> tuple[Array, Array, Array] | None:
        return None

    def family(self) -> Hashable:
        return id(self)

    def stacked(self, others: Sequence[Self]) -> Self:
        assert not others
        return self


@dataclasses.dataclass(frozen=True)
class GaussianPair(Stackable):
    """N(μ, 1) against N(0, 1): the loss is N(μ²/2, μ²) under P. Symmetric, so it serves both directions.

    Attributes:
      mu: distance of the means in standard deviations, 1/σ at sensitivity 1. (k, 1), > 0.
    """

    mu: Array

    def cells(self, edges: Array) -> Cells:
        mu = self.mu
        edges = np.clip(edges, -1e300, 1e300)  # an infinite edge belongs to the end of a sample's range
        t = np.clip(edges / mu - mu / 2, -1e150, 1e150)  # the loss is μt + μ²/2 with t standard normal under P, t + μ under Q
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            p, error = normal_masses(t)
            q, _ = normal_masses(t + mu)
            # eᵃ Q[a < L ≤ b] without overflow: eᵃ φ(t+μ) = φ(t), and Q's tail is φ times a Mills ratio.
            z = np.maximum(t + mu, 0.0)
            scaled = np.exp(-0.5 * t * t) * (0.5 * special.erfcx(z * SQRT_HALF))
            growth = np.exp(-np.diff(edges))
            above = scaled.copy()
            above[:, :-1] -= scaled[:, 1:] * growth
            below = np.exp(np.minimum(edges, 0.0)) * q[:, 1:]
            positive = t + mu > 0
            weighted = np.where(positive, above, below)
            # exp(−t²/2) is good to t²/2 units in the last place.
            error[:, 1:] += ROUND * (1 + t * t / 4) * np.where(positive, scaled, 0.0)
        excess = np.concatenate([p[:, :1], np.maximum(p[:, 1:] - weighted, 0.0)], axis=1)
        return Cells(p, q, excess, error)

    def quantiles(self, low: Array, high: Array) -> tuple[Array, Array]:
        mu = self.mu
        return mu * (special.ndtri(low) + mu / 2), mu * (mu / 2 - special.ndtri(high))

    def base_quantiles(self, low: Array, high: Array) -> tuple[Array, Array]:
        mu = self.mu
        return mu * (special.ndtri(low) - mu / 2), mu * (-special.ndtri(high) - mu / 2)

    def spacing(self) -> None:
        return None


@dataclasses.dataclass(frozen=True)
class LaplacePair(Stackable):
    """Laplace noise on values one apart. The loss is ±κ with atoms, and even in between. Symmetric.

    Attributes:
      kappa: 1/b at sensitivity 1, the pure-DP parameter. (k, 1), > 0.
    """

    kappa: Array

    def cells(self, edges: Array) -> Cells:
        k = self.kappa
        u = np.clip((edges / k + 1) / 2, 0.0, 1.0)  # where noise falls between the two values
        u = np.concatenate([np.zeros_like(k), u, np.ones_like(k)], axis=1)
        start, x = u[:, :-1], k * np.diff(u)
        with np.errstate(under="ignore", over="ignore"):
            fraction = -np.expm1(-x)
            p = 0.5 * np.exp(-k * (1 - u[:, 1:])) * fraction
            q = 0.5 * np.exp(-k * start) * fraction
            excess = p * fraction
            # `excess` so far is relative to where the interval enters [−κ, κ], which may be above its lower edge.
            lower = np.concatenate([np.full_like(k, -np.inf), edges], axis=1)
            gap = np.minimum(lower + k, 0.0)
            excess = -p * np.expm1(gap) + np.exp(gap) * excess
            upper = np.concatenate([edges, np.full_like(k, np.inf)], axis=1)
            half, rest = np.full_like(k, 0.5), 0.5 * np.exp(-k)
            for where, mass, q_mass in ((-k, rest, half), (k, half, rest)):
                inside = (lower < where) & (where <= upper)
                p += np.where(inside, mass, 0.0)
                q += np.where(inside, q_mass, 0.0)
                excess += np.where(inside, -mass * np.expm1(np.minimum(lower - where, 0.0)), 0.0)
        return Cells(p, q, excess, ROUND * (p + excess))

    def quantiles(self, low: Array, high: Array) -> tuple[Array, Array]:
        return -self.kappa, self.kappa

    base_quantiles = quantiles

    def spacing(self) -> Array:
        return 2 * self.kappa


@dataclasses.dataclass(frozen=True)
class BoundedRangePair(Stackable):
    """The worst of all η-bounded-range mechanisms, the exponential mechanism among them.

    A mechanism is η-bounded-range if its loss lies in some interval of length η. At every ε the worst is a two-point
    mechanism, and the best choice of points gives δ(ε) = (e^{η/2} − e^{ε/2})²/(e^η − 1) for |ε| ≤ η (Dong, Durfee, Rogers
    2020, Lemma 4.3, maximised over t). Its second derivative is the density of a loss without atoms. Symmetric.

    Attributes:
      eta: the length, (k, 1), > 0.
    """

    eta: Array

    def cells(self, edges: Array) -> Cells:
        eta = self.eta
        y = np.concatenate([-eta, np.clip(edges, -eta, eta), eta], axis=1)
        a, b = y[:, :-1], y[:, 1:]
        scale = 1 / -np.expm1(-eta)
        half = (b - a) / 2
        with np.errstate(under="ignore", over="ignore"):
            # P[L > y] = (1 − e^{(y−η)/2}) / (1 − e^{−η}), Q[L > y] = (e^{−(y+η)/2} − e^{−η}) / (1 − e^{−η})
            p = scale * np.exp((b - eta) / 2) * -np.expm1(-half)
            q = scale * np.exp(-(a + eta) / 2) * -np.expm1(-half)
            excess = p * -np.expm1(-half)
            lower = np.concatenate([np.full_like(eta, -np.inf), edges], axis=1)
            gap = np.minimum(lower - a, 0.0)
            excess = -p * np.expm1(gap) + np.exp(gap) * excess
        return Cells(p, q, excess, ROUND * (p + excess))

    def quantiles(self, low: Array, high: Array) -> tuple[Array, Array]:
        return -self.eta, self.eta

    base_quantiles = quantiles

    def spacing(self) -> None:
        return None


def normal_masses(t: Array) -> tuple[Array, Array]:
    """Standard normal mass of the intervals between `t` (k, n) and a bound of its absolute error; each (k, n + 1)."""
    k = t.shape[0]
    t = np.concatenate([np.full((k, 1), -np.inf), t, np.full((k, 1), np.inf)], axis=1)
    tail = special.ndtr(-np.abs(t))  # of the nearer side
    upper = t > 0
    a, b = tail[:, :-1], tail[:, 1:]
    mass = np.where(upper[:, :-1], a - b, np.where(upper[:, 1:], (0.5 - a) + (0.5 - b), b - a))
    straddles = upper[:, 1:] & ~upper[:, :-1]
    with np.errstate(invalid="ignore"):
        tail = tail * (4 + np.where(np.isfinite(t), t * t, 0.0) / 4)
    return np.maximum(mass, 0.0), ROUND * np.where(straddles, 2.0, np.maximum(tail[:, :-1], tail[:, 1:]))
