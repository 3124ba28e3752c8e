"""Polygons above and below a convex curve δ(γ), as the masses at their kinks, which lie on a lattice.

`upper_masses` joins the curve's own points; `lower_masses` lets the same chords down until they lie below the curve.
Why these are bounds of every composition: `lattice`.
"""

import math

import numpy as np
from numpy.typing import NDArray

from accountants.grid import CUT, Grid
from accountants.pairs import Cells

Array = NDArray[np.float64]
Index = NDArray[np.int64]
Bools = NDArray[np.bool_]

_MUCH = 1e-4  # P-mass at the upper end of `lower`
_LONGEST = 2**18  # cells that are gone through one by one


def upper_masses(first: Cells, second: Cells, inner: Array, width: Array) -> Array:
    """Masses at the count + 1 lattice points; `first` and `second` are the two parts of each of the count cells."""
    p, excess, error = _joined(first, second, inner)
    up = np.minimum((excess + error) * (1 + 1e-14) / -np.expm1(-width), p)
    mass = np.zeros((p.shape[0], p.shape[1] + 1))
    mass[:, :-1] = p - up
    mass[:, 1:] += up
    return mass


def _joined(first: Cells, second: Cells, inner: Array) -> tuple[Array, Array, Array]:
    """P-mass, excess over the lower end and its error of whole cells."""
    excess = _over_lower_end(first.excess, second.p, second.excess, inner)
    return first.p + second.p, excess, first.error + second.error + 1e-15 * excess


def _over_lower_end(first_excess: Array, second_p: Array, second_excess: Array, inner: Array) -> Array:
    """Excess of a whole cell over its lower end; that of its second part was over the inner point."""
    return first_excess - second_p * np.expm1(-inner) + np.exp(-inner) * second_excess


def lower_masses(
    first: Cells, second: Cells, inner: Array, below: Array, above: Array, grid: Grid, low_tail: Array | float = 0.0
) -> Array:
    """Masses at the count + 1 lattice points. The lowest losses, of P-mass `low_tail` (k, 1), are left out."""
    k, count = first.p.shape
    rows, index = np.arange(k), np.arange(count + 1)  # positions in grid.index
    p1, p2 = first.p.copy(), second.p.copy()
    e1 = np.maximum(first.excess - first.error, 0.0)
    e2 = np.maximum(second.excess - second.error, 0.0)
    atoms = np.zeros((k, count + 1))
    start, end = np.maximum(grid.bottom, 0), np.where(grid.top >= 0, grid.top, count)
    low_cell, high_cell = grid.low_cell, grid.high_cell
    # Merge the ends into their lattice points.
    cells, parts = index[:-1], (p1, e1, p2, e2)
    low, high = grid.bottom >= 0, grid.top >= 0
    merged = _taken_out(parts, low[:, None] & (cells <= low_cell[:, None]), low[:, None] & (cells < low_cell[:, None]))
    atoms[rows[low], start[low]] = (below + merged)[low]
    merged = _taken_out(parts, high[:, None] & (cells > high_cell[:, None]), high[:, None] & (cells >= high_cell[:, None]))
    atoms[rows[high], end[high]] = (above + merged)[high]
    if (grid.bottom < 0).any():
        # A narrow measure on a lattice made for wider ones: chords over next to nothing can't be let down.
        nothing = (np.cumsum(p1 + p2, axis=1) <= low_tail) & ~low[:, None] & (cells < end[:, None] - 2)
        start = np.maximum(start, nothing.sum(axis=1))
        _taken_out(parts, nothing, nothing)
    unmerged = np.copy(p1), np.copy(e1), np.copy(p2), np.copy(e2), np.copy(atoms)
    # Elsewhere the last cells become an atom at their lower end, as soon as it is not small beside its neighbours.
    p = p1 + p2
    enough = p > 0
    enough[:, 2:] &= p[:, 2:] >= CUT * p[:, :-2]
    last = np.where(enough.any(axis=1), count - 1 - enough[:, ::-1].argmax(axis=1), 0)
    beyond = ~high[:, None] & (cells >= last[:, None])
    merged_high = np.where(high, 0.0, above + _taken_out(parts, beyond, beyond))
    atoms[rows[~high], last[~high]] += merged_high[~high]
    end = np.where(high, end, last)
    losses = np.asarray(grid.step * grid.index, np.float64)
    w = np.expm1(np.diff(losses))
    p, excess = p1 + p2, _over_lower_end(e1, p2, e2, inner) * (1 - 1e-15)
    excess = np.clip(excess, 0.0, p * (w / (1 + w)))
    sag = _sag(p1, e1, p2, e2, excess, inner, w)
    drop = np.zeros((k, count + 1))
    drop[:, :-1] = sag
    drop[:, 1:] = np.maximum(drop[:, 1:], sag)
    scaled_q = p - excess
    drop[index < start[:, None]] = 0.0
    drop[index > end[:, None]] = 0.0
    # Nothing lies beyond the ends to be balanced with: there the polygon keeps the curve's value and its tangent.
    drop[rows, start] = 0.0
    after = np.minimum(start + 1, count)
    drop[rows, after] = np.maximum(drop[rows, after], (scaled_q * w - excess)[rows, np.minimum(start, count - 1)])
    before = np.maximum(end - 1, 0)
    drop[rows, before] = np.maximum(drop[rows, before], excess[rows, before])
    drop[rows, end] = 0.0
    drop[rows, start] = 0.0
    up = np.minimum(excess * (1 + w) / w, p)
    mass = atoms
    mass[:, :-1] += p - up
    mass[:, 1:] += up
    slope = np.diff(drop, axis=1)
    mass[:, :-1] -= slope / w
    mass[:, 1:] += slope * ((1 + w) / w)
    # Too few points to let down, or much merged at the upper end.
    hard = (end - start < 2) | (merged_high > _MUCH)
    for row in np.flatnonzero((mass < 0).any(axis=1) & ~hard):
        hard[row] = not _make_convex(mass[row], losses, int(start[row]), int(end[row]))
    if hard.any():
        a, b, c, d, ends = (part[hard] for part in unmerged)
        few = count <= _LONGEST  # nothing at all is a lower bound too, and takes no minutes
        mass[hard] = _beneath(a, b, c, d, ends, start[hard], inner[hard], losses) if few else 0.0
    return mass


def _taken_out(parts: tuple[Array, Array, Array, Array], first: Bools, second: Bools) -> Array:
    """Empties the first and second parts of some cells, each (k, count); the mass that was there, (k,)."""
    p1, e1, p2, e2 = parts
    mass = np.sum(p1, axis=1, where=first) + np.sum(p2, axis=1, where=second)
    p1[first] = e1[first] = p2[second] = e2[second] = 0.0
    return np.asarray(mass, np.float64)


def _sag(p1: Array, e1: Array, p2: Array, e2: Array, excess: Array, inner: Array, w: Array) -> Array:
    """How far each chord may lie above the curve: at most this.

    In units in which the cell is γ ∈ [1, 1 + w], the chord falls from `excess` to 0. Tangents at 1, at the inner point and at
    1 + w meet at the barycentres of the two parts, and there a convex curve above its tangents is furthest from the chord.
    """
    q1, q2, k1, k2 = _kinks(p1, e1, p2, e2, inner, w)
    at_first = k1 * (q1 + q2 - excess / w)
    at_second = excess * (w - k2) / w
    return np.maximum(np.maximum(at_first, at_second), 0.0) * (1 + 1e-8)


def _kinks(p1: Array, e1: Array, p2: Array, e2: Array, inner: Array, w: Array) -> tuple[Array, Array, Array, Array]:
    """Q-masses of the two parts of each cell, and how far above the cell's lower end, which is at 1, their barycentres lie."""
    q1 = p1 - e1
    q2 = (p2 - e2) / np.exp(inner)  # e2 is relative to the inner point, everything here to the cell's lower end
    with np.errstate(divide="ignore", invalid="ignore"):
        k1 = np.clip(np.where(q1 > 0, e1 / q1, 0.0), 0.0, w)
        k2 = np.clip(np.where(q2 > 0, p2 / q2 - 1, w), 0.0, w)
    return q1, q2, k1, k2


def _make_convex(mass: Array, losses: Array, start: int, end: int) -> bool:
    """Puts the greatest convex minorant in the place of a polygon given by its masses (kinks) on the vertices start … end.

    Leaving out a vertex with negative mass joins its neighbours by a chord, which lowers the curve; its mass is shared
    between the neighbours so that P and Q are kept. False where the upper end is negative, and `mass` is not to be used.
    """
    before, after = list(range(-1, len(mass) - 1)), list(range(1, len(mass) + 1))
    stack = [int(i) for i in np.flatnonzero(mass < 0)]
    values = mass.tolist()
    while stack:
        i = stack.pop()
        m = values[i]
        if m >= 0:
            continue
        a, b = before[i], after[i]
        if i >= end or b > end:
            return False
        values[i] = 0.0
        if i <= start or a < start:
            # At the lower end: mass is taken from the next point, which is to the right and so worth more.
            values[b] += m
        else:
            share = math.expm1(losses[a] - losses[i]) / math.expm1(losses[a] - losses[b])
            values[a] += m * (1 - share)
            values[b] += m * share
            after[a], before[b] = b, a
            if values[a] < 0:
                stack.append(a)
        if values[b] < 0:
            stack.append(b)
    mass[:] = values
    return True


def _beneath(p1: Array, e1: Array, p2: Array, e2: Array, atoms: Array, start: Index, inner: Array, losses: Array) -> Array:
    """A lower bound where the curve falls within a cell or two by so much that its chords can't be let down.

    Merging each part of a cell at its barycentre lowers the curve to its tangents at lattice points and inner points, a polygon
    with kinks between the lattice points. From the upper end on, where 0 is a lower bound, each segment is as steep as it can
    be without passing above a kink of its cell or the next lattice point.
    """
    k, count = p1.shape
    w = np.expm1(np.diff(losses))
    q1, q2, g1, g2 = _kinks(p1, e1, p2, e2, inner, w)
    g2 = np.maximum(g1, g2)
    tangents, value, slope, steep = (np.zeros(k) for _ in range(4))  # slopes in units in which the lattice point is at 1
    mass = np.zeros((k, count + 1))
    for i in range(count - 1, -1, -1):
        inside = i >= start
        # Tangents at the kinks and at the lower end. Their slope is the Q-mass above.
        slope_2 = (slope + atoms[:, i + 1]) / (1 + w[i])
        rise_2 = slope_2 * (w[i] - g2[:, i])
        rise_1 = rise_2 + (slope_2 + q2[:, i]) * (g2[:, i] - g1[:, i])
        slope_0 = slope_2 + q2[:, i] + q1[:, i]
        at_0 = tangents + rise_1 + slope_0 * g1[:, i]
        steepest = (at_0 - value) / w[i]
        gap = np.maximum(tangents - value, 0.0)
        for rise, g in ((rise_1, g1[:, i]), (rise_2, g2[:, i])):
            # A kink at the upper end itself is no constraint that the next kink is not.
            steepest = np.minimum(steepest, np.divide(gap + rise, w[i] - g, out=np.full(k, np.inf), where=g < w[i]))
        mass[:, i + 1] = np.where(inside, (1 + w[i]) * steepest * (1 - 4e-16) - steep, 0.0)
        steep, value = np.where(inside, steepest, steep), np.where(inside, value + steepest * w[i], value)
        tangents, slope = np.where(inside, at_0, tangents), np.where(inside, slope_0, slope)
    rows = np.arange(k)
    mass[rows, start] = tangents + slope + atoms[rows, start] - value - steep
    for row in np.flatnonzero((mass < 0).any(axis=1)):
        if not _make_convex(mass[row], losses, int(start[row]), count):
            mass[row] = 0.0
    return mass * (1 - 1e-15 * count)
