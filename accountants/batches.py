"""Mechanisms in batches: what shares a lattice, what stands in for many, and roughly how their losses are spread."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from accountants.cumulants import STAND_INS, Cumulants
from accountants.grid import WIDEST
from accountants.mechanisms import Direction, Mechanism
from accountants.pairs import Pair

Array = NDArray[np.float64]

MANY = 192
"""Mechanisms from which few stand in for them in searches."""

_FAR_OUT = 1e-6  # quantile by which mechanisms are alike

Groups = list[tuple[Pair, Array]]
Batches = list[list[Mechanism]]


def steps(groups: Groups, step: float) -> tuple[float, list[float]]:
    """A common lattice step, at most `step`, and the step of each group.

    Atoms have to lie on the lattice, or a lower bound loses up to a step at each composition. One group's atoms can lie on the
    common lattice; any other with atoms is composed on its own, and moved to the common lattice once.
    """
    spacings = [pair.spacing() for pair, _ in groups]
    largest = max((float(s[0, 0]) for s in spacings if s is not None), default=0.0)
    if largest >= step:
        step = largest / math.ceil(largest / step)
    own = []
    for (pair, _), spacing in zip(groups, spacings, strict=True):
        if spacing is None:
            own.append(step)
            continue
        gap = float(spacing[0, 0])
        pieces = max(round(gap / step), 1)
        on_lattice = abs(pieces * step - gap) <= 1e-13 * gap
        coarsest = step if pair.atoms() is None else WIDEST  # nothing lies between atoms
        own.append(step if on_lattice else gap / math.ceil(gap / coarsest))
    return step, own


def batches(direction: Direction) -> Batches:
    """Mechanisms of one family together; many of them in parts of like spread, as a narrow loss needs fewer lattice points."""
    families: dict[object, list[Mechanism]] = {}
    for mechanism in direction.mechanisms:
        families.setdefault(mechanism.pair.family(), []).append(mechanism)
    result = []
    for family in families.values():
        result += [family] if len(family) <= MANY else _by_doubled_spread(family)
    return result


def stand_ins(mechanisms: Batches) -> Batches:
    """Few mechanisms in the place of many, each as often as those of like spread are together: for searches."""
    if sum(map(len, mechanisms)) <= STAND_INS:
        return mechanisms
    few = []
    for batch in mechanisms:
        parts = np.array_split(np.argsort(_spread(batch)), min(len(batch), max(STAND_INS // len(mechanisms), 2)))
        alike = [[batch[i] for i in part] for part in parts]
        few.append([dataclasses.replace(part[len(part) // 2], count=sum(m.count for m in part)) for part in alike])
    return few


def _by_doubled_spread(batch: Sequence[Mechanism]) -> Batches:
    """Parts of a batch in each of which the losses spread at most twice as far in one mechanism as in another."""
    spread = np.maximum(_spread(batch), 1e-300)
    doubled = np.floor(np.log2(spread / spread.min())).tolist()
    return [[m for m, d in zip(batch, doubled, strict=True) if d == level] for level in sorted(set(doubled))]


def _spread(batch: Sequence[Mechanism]) -> Array:
    """How far the losses of each of a batch spread, (n,)."""
    low, high = _stacked(batch).quantiles(*np.full((2, len(batch), 1), _FAR_OUT))
    return np.asarray((high - low)[:, 0], np.float64)


def grouped(mechanisms: Batches) -> Groups:
    """Each batch as one pair, with the count of each mechanism."""
    return [(_stacked(batch), np.array([float(m.count) for m in batch])) for batch in mechanisms]


def _stacked(batch: Sequence[Mechanism]) -> Pair:
    return batch[0].pair.stacked([m.pair for m in batch[1:]])


def rough_cumulants(groups: Groups, tail: float) -> tuple[Cumulants, float, float]:
    """K(θ) on some two hundred losses of each pair, for choosing tilt and step; the widest range of losses; the largest one."""
    widest = farthest = 0.0
    tails = np.geomspace(tail, 0.5, 48)[None, :]
    parts = []
    for pair, counts in groups:
        low, high = pair.quantiles(tails, tails)
        shape = (len(counts), len(tails[0]))
        low, high = np.broadcast_to(low, shape), np.broadcast_to(high, shape)
        # Where all losses are nearly one, their size is the scale.
        size = max(float(np.max(np.abs(high[:, 0]))), float(np.max(np.abs(low[:, 0]))), 1e-287)
        widest, farthest = max(widest, float(np.max(high[:, 0] - low[:, 0])), 1e-3 * size), max(farthest, size)
        even = low[:, :1] + (high[:, :1] - low[:, :1]) * np.linspace(0, 1, 129)
        edges = np.sort(np.concatenate([low, high, even], axis=1), axis=1)
        cells = pair.cells(edges)
        # Each cell at its barycentre: merging outcomes keeps the masses of both distributions.
        with np.errstate(divide="ignore", invalid="ignore"):
            losses = edges - np.log1p(-cells.excess[:, 1:] / cells.p[:, 1:])
            first = np.log(cells.p[:, :1] / cells.q[:, :1])
        losses = np.concatenate([np.where(np.isfinite(first), first, edges[:, :1]), losses], axis=1)
        losses[:, 1:] = np.where(np.isfinite(losses[:, 1:]), losses[:, 1:], edges)
        losses[:, 1:-1] = np.clip(losses[:, 1:-1], edges[:, :-1], edges[:, 1:])  # of next to no mass they are rounding
        parts.append((cells.p, losses, counts))
    return Cumulants(parts), widest, farthest
