r"""Smooth sensitivity of the data-dependent Rényi divergence of a run (Papernot et al. 2018, section 3.4 and appendix B).

The local sensitivity at distance d of a query bounds how far one vote can move its divergence, from any histogram within d
moved votes. One training example may move one vote in every query at once, so the local sensitivities of the queries add up,
and

    SS_β = max_d e^{−βd} Σ_queries LS_d.

**GNMax** (Algorithms 3 to 5). Under C5 and C6 (`conditions`) the local sensitivity as a function of q̃ rises up to q₁, is
largest between q₁ and q₀, and falls beyond. So LS_d is that of the q̃ nearest to [q₁, q₀] within d moves. From below, the
most that d moves do is to give d votes of the plurality to its strongest rival; from above, d times a vote of the then
strongest rival to the plurality. A path never jumps over [q₁, q₀], since q₁ = B_L(q₀). Paths don't depend on the order and
need only the vector of counts.

**Threshold.** The divergence depends on the largest count v alone, which one vote moves by at most 1: LS at v is the larger
difference to v ± 1, and LS_d its maximum over all v within d.

All distinct histograms go through the recursion together, and a histogram leaves it once it is on the plateau. Distances end
where e^{−βd} times the most that all queries together can reach is no more than the best so far.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accountants import special
from accountants.pate import rdp
from accountants.pate.conditions import GnmaxBound
from accountants.pate.outcomes import log_q_gnmax

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

_NEGLIGIBLE = -45.0  # e^−45 of the largest term of a sum, times any number of classes, is below rounding


def gnmax_local_sensitivities(histograms: IntArray, bound: GnmaxBound) -> Iterator[Array]:
    """LS_d of each histogram for d = 0, 1, 2, …, without end.

    Args:
      histograms: (U, m), each sorted in descending order.
      bound: of the same m; its conditions C5 and C6 must hold.

    Yields:
      (U,), of the same array each time, non-decreasing in d.
    """
    log_q = log_q_gnmax(histograms, bound.sigma)
    result = bound.local_sensitivity(log_q)
    plateau = bound.plateau
    result[(log_q >= bound.log_q1) & (log_q <= bound.log_q0)] = plateau
    yield result
    below, above = np.flatnonzero(log_q < bound.log_q1), np.flatnonzero(log_q > bound.log_q0)
    rising = _Rising(histograms[below], bound.sigma)
    falling = _Falling(histograms[above], bound.sigma)
    while True:
        if len(below):
            here = rising.step()
            inside = here >= bound.log_q1
            # By C6 the way up is the larger of both.
            result[below] = np.where(inside, plateau, bound.beta(bound.upper(here)) - bound.beta(here))
            below = below[~inside]
            rising.keep(~inside)
        if len(above):
            here, ended = falling.step()
            inside = here <= bound.log_q0
            result[above] = np.where(inside, plateau, bound.independent - bound.beta(bound.lower(here)))
            above = above[~(inside | ended)]
            falling.keep(~(inside | ended))
        yield result


class _Rising:
    """log q̃ while the plurality gives its votes to its strongest rival: the first gap shrinks by 2, all others by 1."""

    def __init__(self, histograms: IntArray, sigma: float):
        self._gaps = histograms[:, :1] - histograms[:, 1:]
        self._classes = histograms.shape[1]
        self._sigma = sigma
        # A gap that no class has more than `top` votes of is enough of a table; gaps below zero end a path.
        size = int(self._gaps.max(initial=0)) + 1
        self._table = special.log_ndtr(-np.arange(size) / (math.sqrt(2) * sigma))
        self._trim()

    def step(self) -> Array:
        """Moves one vote in each and returns log q̃, (n,)."""
        self._gaps -= 1
        self._gaps[:, 0] -= 1
        # A gap below 0 would be a tie or a new plurality: q̃ ≥ 1/2, which is beyond q₁ whatever it is.
        first = self._table[np.maximum(self._gaps[:, 0], 0)]
        rest = self._table[np.maximum(self._gaps[:, 1:], 0)]
        total = first + np.log1p(np.exp(np.minimum(rest - first[:, None], 700.0)).sum(axis=1))
        return np.minimum(total, -math.log1p(1 / (self._classes - 1)))

    def keep(self, which: NDArray[np.bool_]) -> None:
        if not which.all():
            self._gaps = self._gaps[which]
            self._trim()

    def _trim(self) -> None:
        """Drops classes that add nothing: a rival's term only shrinks beside that of the strongest."""
        if len(self._gaps):
            beside = self._table[self._gaps[:, 1:]] - self._table[self._gaps[:, :1]]
            used = np.flatnonzero((beside > _NEGLIGIBLE).any(axis=0))
            self._gaps = self._gaps[:, : 2 + int(used.max(initial=-1))].copy()


class _Falling:
    """log q̃ while the plurality takes votes, each from the then strongest rival; ended where no rival has any left."""

    def __init__(self, histograms: IntArray, sigma: float):
        self._counts = histograms.copy()
        self._sigma = sigma

    def step(self) -> tuple[Array, NDArray[np.bool_]]:
        """Moves one vote in each that has one to move; returns log q̃ and which have no more, both (n,)."""
        rivals = self._counts[:, 1:]
        rows = np.arange(len(rivals))
        strongest = rivals.argmax(axis=1)
        moved = np.minimum(rivals[rows, strongest], 1)
        rivals[rows, strongest] -= moved
        self._counts[:, 0] += moved
        return log_q_gnmax(self._counts, self._sigma), rivals.max(axis=1) == 0

    def keep(self, which: NDArray[np.bool_]) -> None:
        if not which.all():
            self._counts = self._counts[which]


def threshold_local_sensitivities(
    largest: Any, threshold: float, sigma: float, order: float, teachers: int, classes: int
) -> Iterator[Array]:
    """LS_d of the threshold check for d = 0, 1, 2, …, without end.

    Args:
      largest: (U,) whole numbers, the largest count of each histogram.
      threshold, sigma: in votes; standard deviation of the check's noise.
      order: α.
      teachers, classes: K and m; no largest count is below K/m.

    Yields:
      (U,), non-decreasing in d.
    """
    least = -(-teachers // classes)
    beta = rdp.threshold(np.arange(least, teachers + 1), threshold, sigma, [order])[:, 0]
    step = np.abs(np.diff(beta, prepend=beta[0], append=beta[-1]))
    reach = np.maximum(step[:-1], step[1:])  # LS at each v
    index = np.asarray(largest, np.int64) - least
    while True:
        yield reach[index]
        padded = np.pad(reach, 1, mode="edge")
        reach = np.maximum(np.maximum(padded[:-2], padded[1:-1]), padded[2:])


def smooth_sensitivity(sums: Iterator[float], most: float, beta: float, farthest: int) -> tuple[float, int]:
    """max_d e^{−βd} · sums_d and the distance d where it is attained.

    Args:
      sums: local sensitivities of the sum over queries at d = 0, 1, …, non-decreasing.
      most: an upper bound of all of them.
      beta: > 0.
      farthest: the largest distance there is, K.
    """
    best, where = 0.0, 0
    for distance, value in enumerate(sums):
        discounted = math.exp(-beta * distance) * value
        if discounted > best:
            best, where = discounted, distance
        if distance >= farthest or math.exp(-beta * (distance + 1)) * most <= best:
            break
    return best, where
