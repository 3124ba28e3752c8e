r"""Dominating pairs of mechanisms that see a random sample of the data.

Poisson sampling turns a pair (P, Q) into ((1−q)Q + qP, Q) in the direction in which the unit takes part, and into
(Q, (1−q)Q + qP) in the other (Zhu, Dong, Wang 2022, Theorem 11). The loss changes to log(1 − q + q e^ℓ).

Sources: Zhu, Dong, Wang 2022; Balle, Barthe, Gaboardi 2018, Theorem 2 (advanced joint convexity).
"""

import dataclasses
from collections.abc import Hashable

import numpy as np
from numpy.typing import NDArray

from accountants.pairs import ROUND, Alone, Cells, LaplacePair, Pair, Stackable

Array = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class SampledRemovePair(Stackable):
    """((1−q)Q + qP, Q): a Poisson sample, in the direction in which the unit takes part.

    Attributes:
      base: the pair without sampling, in the same direction.
      rate: sampling probability, (k, 1), in (0, 1).
    """

    base: Pair
    rate: Array

    def cells(self, edges: Array) -> Cells:
        rate = self.rate
        inner = self.base.cells(_unsampled_loss(edges, rate))
        p = (1 - rate) * inner.q + rate * inner.p
        # p − eʸ q = rate · (p − eˡ q), as eʸ = 1 − rate + rate·eˡ: no cancellation, however small the rate is.
        excess, error = rate * inner.excess, rate * inner.error
        excess[:, 0] = p[:, 0]
        excess[:, 1:] += (
            np.maximum(-(np.expm1(np.minimum(edges, 0.0)) + rate), 0.0) * inner.q[:, 1:]
        )  # an edge below the lowest loss
        return Cells(p, inner.q, excess, error + ROUND * excess)

    def quantiles(self, low: Array, high: Array) -> tuple[Array, Array]:
        few = np.minimum(high / (2 * self.rate), 0.5)
        b = np.maximum(self.base.quantiles(low, few)[1], self.base.base_quantiles(low, high / 2)[1])
        return _sampled_loss(self.base.base_quantiles(low, high)[0], self.rate), _sampled_loss(b, self.rate)

    def base_quantiles(self, low: Array, high: Array) -> tuple[Array, Array]:
        a, b = self.base.base_quantiles(low, high)
        return _sampled_loss(a, self.rate), _sampled_loss(b, self.rate)

    def spacing(self) -> Array | None:
        ends = _two_atoms(self.base)
        return None if ends is None else _sampled_loss(ends[1], self.rate) - _sampled_loss(ends[0], self.rate)

    def atoms(self) -> tuple[Array, Array, Array] | None:
        if (atoms := self.base.atoms()) is None:
            return None
        losses, p, q = atoms
        rate = float(self.rate[0, 0])
        return _sampled_loss(losses, self.rate)[0], (1 - rate) * q + rate * p, q


@dataclasses.dataclass(frozen=True)
class SampledAddPair(Stackable):
    """(Q, (1−q)Q + qP): a Poisson sample, in the direction in which the unit is absent.

    Attributes:
      base: the pair (Q, P) without sampling, in the same direction.
      rate: sampling probability, (k, 1), in (0, 1).
    """

    base: Pair
    rate: Array

    def cells(self, edges: Array) -> Cells:
        rate = self.rate
        inner_edges = -_unsampled_loss(-edges, rate)
        inner = self.base.cells(inner_edges)
        q = (1 - rate) * inner.p + rate * inner.q
        with np.errstate(over="ignore"):
            share = rate / (rate + (1 - rate) * np.exp(inner_edges))
        excess = inner.excess.copy()
        excess[:, 1:] *= share
        error = inner.error.copy()
        error[:, 1:] *= share
        return Cells(inner.p, q, excess, error + ROUND * excess)

    def quantiles(self, low: Array, high: Array) -> tuple[Array, Array]:
        a, b = self.base.quantiles(low, high)
        return -_sampled_loss(-a, self.rate), -_sampled_loss(-b, self.rate)

    def base_quantiles(self, low: Array, high: Array) -> tuple[Array, Array]:
        a = np.minimum(self.base.quantiles(low / 2, high)[0], self.base.base_quantiles(low / 2, high)[0])
        b = np.maximum(self.base.quantiles(low, high / 2)[1], self.base.base_quantiles(low, high / 2)[1])
        return -_sampled_loss(-a, self.rate), -_sampled_loss(-b, self.rate)

    def spacing(self) -> Array | None:
        ends = _two_atoms(self.base)
        return None if ends is None else _sampled_loss(-ends[0], self.rate) - _sampled_loss(-ends[1], self.rate)

    def atoms(self) -> tuple[Array, Array, Array] | None:
        if (atoms := self.base.atoms()) is None:
            return None
        losses, p, q = atoms
        rate = float(self.rate[0, 0])
        return -_sampled_loss(-losses, self.rate)[0], p, (1 - rate) * p + rate * q


@dataclasses.dataclass(frozen=True)
class ReplacePair(Stackable):
    """A sample in which one unit is replaced by another, Poisson or of fixed size.

    With probability q the unit, or its replacement, is in the sample, and then the outputs are the pair (P, Q) of the mechanism
    under replace_one; without it they are the same. By advanced joint convexity δ(ε) ≤ q δ_base(log((e^ε − 1 + q)/q)) for
    ε ≥ 0, the curve of `remove`; by symmetry it is that of `add` for ε ≤ 0; an atom at loss 0 joins them. An upper bound:
    no mechanism need attain it at every ε.

    Attributes:
      remove, add: the sampled pairs in both directions, made from the mechanism's pair under replace_one.
    """

    remove: Pair
    add: Pair

    def cells(self, edges: Array) -> Cells:
        zero = np.zeros((len(edges), 1))
        up = self.remove.cells(np.concatenate([zero, np.maximum(edges, 0.0)], axis=1))
        down = self.add.cells(np.concatenate([np.minimum(edges, 0.0), zero], axis=1))
        positive, negative = Cells(*(part[:, 1:] for part in up)), Cells(*(part[:, :-1] for part in down))
        lower = np.concatenate([np.full_like(zero, -np.inf), edges], axis=1)
        upper = np.concatenate([edges, np.full_like(zero, np.inf)], axis=1)
        from_zero = np.exp(np.minimum(lower, 0.0))  # e^{lower edge − where the positive part begins}
        atom = 1 - positive.p.sum(axis=1, keepdims=True) - negative.p.sum(axis=1, keepdims=True)
        atom = np.where((lower < 0) & (upper >= 0), np.maximum(atom, 0.0), 0.0)
        raised = (positive.p + atom) * (1 - from_zero)
        excess = raised + from_zero * positive.excess + negative.excess
        error = positive.error + negative.error + 2 * ROUND * (raised + excess)
        return Cells(positive.p + negative.p + atom, positive.q + negative.q + atom, excess, error)

    def quantiles(self, low: Array, high: Array) -> tuple[Array, Array]:
        a, b = self.add.quantiles(low, high)[0], self.remove.quantiles(low, high)[1]
        return np.minimum(a, 0.0), np.maximum(b, 0.0)

    def base_quantiles(self, low: Array, high: Array) -> tuple[Array, Array]:
        a, b = self.add.base_quantiles(low, high)[0], self.remove.base_quantiles(low, high)[1]
        return np.minimum(a, 0.0), np.maximum(b, 0.0)

    def spacing(self) -> None:
        return None

    def atom_at_zero(self) -> bool:
        return True

    def atoms(self) -> tuple[Array, Array, Array] | None:
        up, down = self.remove.atoms(), self.add.atoms()
        if up is None or down is None:
            return None
        positive, negative = up[0] > 0, down[0] < 0
        middle = max(1 - float(up[1][positive].sum()) - float(down[1][negative].sum()), 0.0)
        losses = np.concatenate([down[0][negative], [0.0], up[0][positive]])
        p, q = (np.concatenate([down[i][negative], [middle], up[i][positive]]) for i in (1, 2))
        return losses, p, q

    def family(self) -> Hashable:
        return type(self), self.remove.family(), self.add.family()


@dataclasses.dataclass(frozen=True, eq=False)
class RevealedPair(Alone):
    """One of several pairs at random, where the choice is independent of the unit and may be seen. A batch of one.

    Attributes:
      pairs: a batch of m pairs.
      weights: probability of each, (m,).
    """

    pairs: Pair
    weights: Array

    def cells(self, edges: Array) -> Cells:
        inner = self.pairs.cells(np.broadcast_to(edges, (len(self.weights), edges.shape[1])))
        return Cells(*((self.weights @ part)[None] for part in inner))

    def quantiles(self, low: Array, high: Array) -> tuple[Array, Array]:
        a, b = self.pairs.quantiles(low, high)
        return a.min(axis=0, keepdims=True), b.max(axis=0, keepdims=True)

    def base_quantiles(self, low: Array, high: Array) -> tuple[Array, Array]:
        a, b = self.pairs.base_quantiles(low, high)
        return a.min(axis=0, keepdims=True), b.max(axis=0, keepdims=True)


def _sampled_loss(loss: Array, rate: Array) -> Array:
    """log(1 − q + q eˡ)."""
    with np.errstate(over="ignore"):
        small = np.log1p(rate * np.expm1(np.minimum(loss, 1.0)))
        large = loss + np.log(rate + (1 - rate) * np.exp(-np.maximum(loss, 1.0)))
    return np.where(loss < 1.0, small, large)


def _unsampled_loss(y: Array, rate: Array) -> Array:
    """The inverse, log((eʸ − 1 + q)/q); −∞ at and below log(1 − q)."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        small = np.log1p(np.maximum(np.expm1(np.minimum(y, 1.0)) / rate, -1.0))
        large = y + np.log1p(-(1 - rate) * np.exp(-np.maximum(y, 1.0))) - np.log(rate)
    return np.where(y < 1.0, small, large)


def _two_atoms(base: Pair) -> tuple[Array, Array] | None:
    """Lowest and highest loss of a pair, if there are atoms there and nowhere else."""
    if isinstance(base, LaplacePair):
        return -base.kappa, base.kappa
    atoms = base.atoms()
    if atoms is None or np.count_nonzero(atoms[1]) != 2:
        return None
    losses = atoms[0][atoms[1] > 0]
    return losses[:1, None], losses[1:, None]
