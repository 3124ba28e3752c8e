"""How a lattice is laid over a batch of pairs, and where its points are thinned out."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from accountants.pairs import Pair

Array = NDArray[np.float64]
Index = NDArray[np.int64]

CUT = 0.25  # an end of `lower` holds at least this part of the mass of the cells beside it
_REACHES = 16
WIDEST = 700.0
"""Most that lattice points may lie apart where there are no atoms: e to its power has to fit."""
MAX_POINTS = 2**22
"""Of one lattice."""


class TooLongError(Exception):
    """A lattice or a transform would take too many points."""


@dataclasses.dataclass(frozen=True)
class Fineness:
    """Where a lattice may be thinned out: beyond the i-th of these losses only every 2^(i+1)-th point is used.

    Attributes:
      low: losses downwards, (levels,), descending.
      high: losses upwards, (levels,), ascending.
      largest: most that lattice points may lie apart.
    """

    low: Array
    high: Array
    largest: float


@dataclasses.dataclass(frozen=True)
class Grid:
    """How a lattice is laid over a batch of k pairs.

    Attributes:
      origin: loss of lattice point 0, (k, 1).
      step: of the lattice.
      index: the lattice points that are used, (n,). Cells lie between them.
      bottom: the position in `index` of the point into which `lower` merges the lowest losses, (k,); −1 for none.
      inner_low: up to where, (k,).
      top, inner_high: likewise for the highest losses.
    """

    origin: Array
    step: float
    index: Index
    bottom: Index
    inner_low: Array
    top: Index
    inner_high: Array

    @property
    def low_cell(self) -> Index:
        """The cell in which `inner_low` lies."""
        return self._cell(self.inner_low, 1e-9)

    @property
    def high_cell(self) -> Index:
        """The cell in which `inner_high` lies."""
        return self._cell(self.inner_high, -1e-9)

    def _cell(self, loss: Array, nudge: float) -> Index:
        position = (loss - self.origin[:, 0]) / self.step + nudge
        return np.clip(np.searchsorted(self.index, position, side="right") - 1, 0, len(self.index) - 2)


def lay(pair: Pair, step: float, low_tail: Array, high_tail: Array, fineness: Fineness | None) -> Grid:
    """Lays lattice points so that the barycentre of the heavier end (of both ends, if both are atoms) is one of them."""
    low, high = (edge[:, 0] for edge in pair.quantiles(low_tail, high_tail))
    none = np.full(len(low), -1)
    if pair.atom_at_zero():
        below, above = (_points(np.max(np.maximum(x, 0.0)) / step) for x in (-low, high))
        return Grid(np.full((len(low), 1), -step * below), step, np.arange(below + above + 1), none, low, none, high)
    spacing = pair.spacing()
    atoms = spacing is not None
    if spacing is not None:
        pieces = spacing / step
        if not (np.abs(pieces - np.round(pieces)) <= 1e-9 * pieces).all():
            raise ValueError(f"step = {step!r} has to divide the distance of the atoms; a lower bound would not be one")
        inner_low, inner_high = low + 1e-7 * step, high - 1e-7 * step
    else:
        inner_low, inner_high = low + _reach(pair, low, step, 1), high - _reach(pair, high, step, -1)
    narrow = inner_high <= inner_low  # all of it within a few steps: it is merged at loss 0
    inner_low = np.where(narrow, np.maximum(inner_low, high), inner_low)
    inner_high = np.where(narrow, inner_low + step, inner_high)
    ends = pair.cells(np.stack([inner_low, inner_high], axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        bottom = np.log(ends.p[:, 0]) - np.log(ends.q[:, 0])
        top = inner_high - np.log1p(-ends.excess[:, 2] / ends.p[:, 2])
    at_bottom = (ends.p[:, 0] >= ends.p[:, 2]) & ~np.full_like(narrow, atoms)
    bottom_known = np.isfinite(bottom) & (bottom <= inner_low)
    top_known = np.isfinite(top) & (top >= inner_high)
    bottom, top = np.where(bottom_known, bottom, low), np.where(top_known, top, high)
    anchor = np.where(at_bottom, bottom, top)
    reach = np.max(np.maximum(anchor - low, 0.0)), np.max(np.maximum(np.maximum(high, inner_high) - anchor, 0.0))
    below, above = (_points(x / step - 1e-9, thinned=fineness is not None and not atoms) for x in reach)
    index = _thinned(anchor, step, below, above, None if atoms else fineness)
    if not atoms and step * float(np.diff(index).max()) > WIDEST:
        raise TooLongError(f"lattice points {step * float(np.diff(index).max()):.3g} apart, whose exponential does not fit")
    position = int(np.searchsorted(index, below))
    # With atoms at both ends `step` divides their distance; a hair less at the bottom is a lower bound still.
    lowest = position - np.round((top - low) / step).astype(np.int64) if atoms else none
    return Grid(
        origin=(anchor - below * step)[:, None],
        step=step,
        index=index,
        bottom=np.where(at_bottom & bottom_known, position, lowest),
        inner_low=inner_low,
        top=np.where(~at_bottom & top_known, position, none),
        inner_high=inner_high,
    )


def _points(steps: float, thinned: bool = False) -> int:
    """Lattice points that reach so many steps, if they are not too many; thinned ones are counted when they are laid."""
    if not steps < (2**52 if thinned else MAX_POINTS):
        raise TooLongError(f"a lattice of {steps:.3g} points")
    return int(np.ceil(steps)) + 1


def _thinned(anchor: Array, step: float, below: int, above: int, fineness: Fineness | None) -> Index:
    """The lattice points used from 0 to `below` + `above` and a little beyond, the anchor at `below` among them."""
    if fineness is None:
        return np.arange(below + above + 1)
    most = 2 ** int(max(np.log2(max(fineness.largest / step, 1.0)), 0))
    up = _outwards((fineness.high - anchor.min()) / step, above, most)
    down = _outwards((anchor.max() - fineness.low) / step, below, most)
    # Whole multiples beyond the lower end would be negative points: the last one is put at 0.
    down = down[down < below]
    return np.concatenate([[0], below - down[::-1], [below], below + up]).astype(np.int64)


def _outwards(levels: Array, limit: int, most: int) -> Index:
    """1, 2, 3, … to the first of `levels`, then every second up to the next one, and so on, to `limit` or just past it."""
    parts, start, stride = [], 0, 1
    for level in [*np.maximum(levels, _REACHES + 4).tolist(), np.inf]:
        stop = min(level, limit)
        if stop > start:
            count = int(np.ceil((stop - start) / stride))
            if count > MAX_POINTS:
                raise TooLongError(f"a lattice of {count:.3g} points")
            parts.append(start + stride * np.arange(1, count + 1))
            start += stride * count
        stride = min(2 * stride, most)
    return np.concatenate(parts) if parts else np.arange(0)


def _reach(pair: Pair, end: Array, step: float, side: int) -> Array:
    """How far from the `end` of the range losses are merged: half a step, or until they are not few beside their neighbours."""
    distance = step * (0.5 + np.arange(_REACHES + 1))
    edges = end[:, None] + side * distance
    p = pair.cells(edges[:, ::side]).p[:, ::side]
    enough = np.cumsum(p, axis=1)[:, :_REACHES] >= CUT * p[:, 1 : _REACHES + 1]
    first = np.where(enough.any(axis=1), enough.argmax(axis=1), _REACHES - 1)
    return np.asarray(distance[first], np.float64)
