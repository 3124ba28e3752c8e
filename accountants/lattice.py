r"""From a dominating pair to two measures on a lattice of losses, one above it and one below.

For a finite measure p of losses let δ_p(ε) = ∫(1 − e^{ε−y})₊ dp(y), and write p ⪯ p′ if δ_p(ε) ≤ δ_p′(ε) for every real ε.
Composition is convolution, and it keeps the order: δ_{p∗r}(ε) = ∫ δ_p(ε − y) dr(y). So measures on a lattice with
`lower ⪯ exact ⪯ upper` give bounds for any number of compositions. Neither has to be a probability measure: leaving out mass
is a lower bound, adding some an upper one.

In terms of γ = e^ε, δ_p is a convex, decreasing curve. A measure on the lattice is a polygon with kinks at γ_i = e^{y_i}, whose
slope changes by the Q-mass of y_i.

* `upper` is the polygon through the curve's own points ("connect the dots", Doroshenko, Ghazi, Kamath, Kumar,
  Manurangsi 2022): what lies between two lattice points is split between them so that P- and Q-mass are kept.
* `lower` is the same polygon let down until it lies below the curve: each point by the larger sag of the two chords that
  meet there. The sag of a chord is bounded by tangents of the curve at both ends and at an inner point. Where the result is not
  convex (a negative mass) its greatest convex minorant takes its place, which is lower still and has kinks on the lattice.

Both are off by O(step²): the variance of the loss under either differs from the exact one by about step²/6.

A large part of the mass may sit at one end of the range (a sampled Gaussian is nearly always its lowest loss). The lattice is
laid so that the barycentre of that end is a lattice point, and `lower` merges the end into it; merging outcomes is
post-processing.
"""

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from accountants.pairs import Cells, Pair

Array = NDArray[np.float64]
Index = NDArray[np.int64]

_CUT = 0.25  # an end of `lower` holds at least this part of the mass of the cells beside it
_MUCH = 1e-4  # P-mass at the upper end of `lower`
_REACHES = 16
_FEW = 64  # cells over which letting down chords does not pay


@dataclasses.dataclass(frozen=True)
class Lattice:
    """A batch of k measures on the losses origin + index · step.

    Attributes:
      origin: (k,).
      step: of the lattice, the same for the whole batch.
      index: the lattice points that are used, (n,), ascending.
      mass: (k, n), non-negative, in units of e^log_scale.
      infinite: mass at infinite loss, (k,).
      log_scale: 0 but for measures that are compositions themselves.
      outside: mass that is missing, tilted and relative; 0 but for compositions.
    """

    origin: Array
    step: float
    index: Index
    mass: Array
    infinite: Array
    log_scale: float = 0.0
    outside: float = 0.0

    @property
    def losses(self) -> Array:
        """(k, n)."""
        return self.origin[:, None] + self.step * self.index


@dataclasses.dataclass(frozen=True)
class Sandwich:
    """`lower` ⪯ exact ⪯ `upper`, on the same lattice points."""

    lower: Lattice
    upper: Lattice


@dataclasses.dataclass(frozen=True)
class Fineness:
    """Where a lattice may be thinned out: beyond the i-th of these losses only every 2^(i+1)-th point is used.

    Attributes:
      low: losses downwards, (k, levels), descending along the last axis.
      high: losses upwards, (k, levels), ascending.
      largest: most that lattice points may lie apart.
    """

    low: Array
    high: Array
    largest: float


def sandwich(pair: Pair, step: float, *, low_tail: Array, high_tail: Array, fineness: Fineness | None = None) -> Sandwich:
    """Discretises a batch of pairs.

    Args:
      pair: a batch of k.
      step: distance of lattice points, > 0.
      low_tail: P-mass of the lowest losses that may be moved (up in `upper`, away in `lower`). (k, 1).
      high_tail: P-mass of the highest losses that `upper` may count as infinite and `lower` leave out. (k, 1).
      fineness: where not every lattice point is needed.
    """
    atoms = pair.atoms()
    if atoms is not None:
        return _atoms_on_lattice(atoms[0], atoms[1], step)
    grid = _lay(pair, step, low_tail, high_tail, fineness)
    points = grid.origin + step * grid.index
    width = step * np.diff(grid.index)
    inner = points[:, :-1] + width / 2
    rows = np.arange(len(points))
    # A merged end reaches up to (down to) its own edge, not to the middle of a cell.
    merged = grid.bottom >= 0
    inner[rows[merged], grid.low_cell[merged]] = grid.inner_low[merged]
    merged = grid.top >= 0
    inner[rows[merged], grid.high_cell[merged]] = grid.inner_high[merged]
    edges = np.empty((len(points), 2 * len(width) + 1))
    edges[:, 0::2], edges[:, 1::2] = points, inner
    cells = pair.cells(edges)
    first = Cells(*(part[:, 1:-1:2] for part in cells))  # from a lattice point to the inner point
    second = Cells(*(part[:, 2:-1:2] for part in cells))
    below, above = cells.p[:, 0], cells.p[:, -1]
    inner = inner - points[:, :-1]
    upper_mass = _upper(first, second, inner, width)
    upper_mass[:, 0] += below
    lower_mass = _lower(first, second, inner, below, above, grid)
    origin, index = grid.origin[:, 0], grid.index
    return Sandwich(
        Lattice(origin, step, index, lower_mass, np.zeros_like(above)), Lattice(origin, step, index, upper_mass, above)
    )


def _atoms_on_lattice(losses: Array, mass: Array, step: float) -> Sandwich:
    """Atoms as they are, if they lie on a lattice of that step; moved to one from both sides if they do not."""
    position = (losses - losses[0]) / step
    nearest = np.round(position)
    if (np.abs(position - nearest) * step <= 1e-13 * np.maximum(np.abs(losses), abs(losses[0]))).all():
        index = np.round(position).astype(np.int64)
        lattice = Lattice(losses[:1].copy(), step, index, mass[None], np.zeros(1))
        return Sandwich(lattice, lattice)
    both = []
    for sign in (-1, 1):
        origin, moved = regrid(losses, mass, step, sign=sign)
        both.append(Lattice(np.array([origin]), step, np.arange(len(moved)), moved[None], np.zeros(1)))
    return Sandwich(*both)


@dataclasses.dataclass(frozen=True)
class _Grid:
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


def _lay(pair: Pair, step: float, low_tail: Array, high_tail: Array, fineness: Fineness | None) -> _Grid:
    """Lays lattice points so that the barycentre of the heavier end (of both ends, if both are atoms) is one of them."""
    low, high = (edge[:, 0] for edge in pair.quantiles(low_tail, high_tail))
    none = np.full(len(low), -1)
    if pair.atom_at_zero():
        below, above = (int(np.ceil(np.max(np.maximum(x, 0.0)) / step)) + 1 for x in (-low, high))
        return _Grid(np.full((len(low), 1), -step * below), step, np.arange(below + above + 1), none, low, none, high)
    atoms = pair.spacing() is not None
    if atoms:
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
    below = int(np.ceil(np.max(np.maximum(anchor - low, 0.0)) / step - 1e-9)) + 1
    above = int(np.ceil(np.max(np.maximum(np.maximum(high, inner_high) - anchor, 0.0)) / step - 1e-9)) + 1
    index = _thinned(anchor, step, below, above, None if atoms else fineness)
    position = int(np.searchsorted(index, below))
    # With atoms at both ends `step` divides their distance; a hair less at the bottom is a lower bound still.
    lowest = position - np.round((top - low) / step).astype(np.int64) if atoms else none
    return _Grid(
        origin=(anchor - below * step)[:, None],
        step=step,
        index=index,
        bottom=np.where(at_bottom & bottom_known, position, lowest),
        inner_low=inner_low,
        top=np.where(~at_bottom & top_known, position, none),
        inner_high=inner_high,
    )


def _thinned(anchor: Array, step: float, below: int, above: int, fineness: Fineness | None) -> Index:
    """The lattice points used from 0 to `below` + `above` and a little beyond, the anchor at `below` among them."""
    if fineness is None:
        return np.arange(below + above + 1)
    most = 2 ** int(max(np.log2(max(fineness.largest / step, 1.0)), 0))
    up = _outwards(np.max(fineness.high - anchor[:, None], axis=0) / step, above, most)
    down = _outwards(np.max(anchor[:, None] - fineness.low, axis=0) / step, below, most)
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
            parts.append(start + stride * np.arange(1, count + 1))
            start += stride * count
        stride = min(2 * stride, most)
    return np.concatenate(parts) if parts else np.arange(0)


def _reach(pair: Pair, end: Array, step: float, side: int) -> Array:
    """How far from the `end` of the range losses are merged: half a step, or until they are not few beside their neighbours."""
    distance = step * (0.5 + np.arange(_REACHES + 1))
    edges = end[:, None] + side * distance
    p = pair.cells(edges[:, ::side]).p[:, ::side]
    enough = np.cumsum(p, axis=1)[:, :_REACHES] >= _CUT * p[:, 1 : _REACHES + 1]
    first = np.where(enough.any(axis=1), enough.argmax(axis=1), _REACHES - 1)
    return np.asarray(distance[first], np.float64)


def regrid(losses: Array, mass: Array, step: float, *, sign: int) -> tuple[float, Array]:
    """Moves a measure with many atoms to a lattice: from above (`sign` 1) or from below (−1).

    Args:
      losses: of the atoms, (n,), ascending.
      mass: of the atoms, (n,), in any unit.
      step: of the lattice.
      sign: which bound.

    Returns:
      Loss of the first lattice point, and the masses there.
    """
    origin = float(losses[0]) - step
    position = (losses - origin) / step
    cells = (losses[-1] - losses[0]) / step
    if sign < 0 and (cells > len(losses) / 8 or cells < _FEW):
        return origin, _contracted(losses, mass, origin, step)
    cell = np.ceil(position).astype(np.int64) - 1
    inside = np.asarray((position - cell) * step, np.float64)  # from the cell's lower end, in (0, step]
    count = int(cell[-1]) + 2

    def part(chosen: NDArray[np.bool_], edge: float) -> Cells:
        p = binned(cell[chosen], mass[chosen], count)
        excess = binned(cell[chosen], mass[chosen] * -np.expm1(edge - inside[chosen]), count)
        return Cells(p[None], (p - excess)[None], excess[None], 1e-15 * p[None] * step)

    low = inside <= step / 2
    first, second, inner = part(low, 0.0), part(~low, step / 2), np.full((1, count), step / 2)
    if sign > 0:
        return origin, _upper(first, second, inner, np.full(count, step))[0]
    nothing, unknown = np.zeros(1), np.array([-1])
    grid = _Grid(nothing[:, None], step, np.arange(count + 1), unknown, nothing, unknown, nothing)
    return origin, _lower(first, second, inner, nothing, nothing, grid)[0]


def binned(index: Index, mass: Array, count: int = 0) -> Array:
    """Sums of `mass` (n,) over equal `index` (n,), at least `count` of them."""
    return np.asarray(np.bincount(index, mass, count), np.float64)


def _contracted(losses: Array, mass: Array, origin: float, step: float) -> Array:
    """A lower bound for few atoms: the lower ones move up to the next lattice point, the higher ones down.

    That makes the measure less spread out. What it adds to δ(ε) e^{−ε} comes from atoms that moved up and falls with ε
    until it is 0 where
    the last of them lies; what it takes away comes from those that moved down and is constant up to where the first of
    them lies. So it is
    below the original if it is so at ε → −∞, that is if the Q-mass does not fall, which says how many may move up; atoms of one
    cell move the same way.
    """
    position = (losses - origin) / step
    down, up = np.floor(position), np.ceil(position)
    with np.errstate(under="ignore"):
        q = mass * np.exp(np.minimum(losses[np.argmax(mass > 0)] - losses, 0.0))
        gained = q * np.expm1(np.minimum((position - down) * step, 700.0))  # less is a lower bound still
        lost = -q * np.expm1((position - up) * step)
    left = gained.sum() * (1 - 1e-12) - np.cumsum(gained + lost)
    rising = int(np.searchsorted(-left, 0.0, side="left"))  # strictly positive: what underflowed proves nothing
    if rising < len(mass):
        rising = int(np.searchsorted(down, down[rising]))  # the first atom of that cell
    index = np.where(np.arange(len(mass)) < rising, up, down).astype(np.int64)
    return binned(index, mass)


def _upper(first: Cells, second: Cells, inner: Array, width: Array) -> Array:
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


def _lower(first: Cells, second: Cells, inner: Array, below: Array, above: Array, grid: _Grid) -> Array:
    """Masses at the count + 1 lattice points."""
    k, count = first.p.shape
    rows, index = np.arange(k), np.arange(count + 1)  # positions in grid.index
    p1, p2 = first.p.copy(), second.p.copy()
    e1 = np.maximum(first.excess - first.error, 0.0)
    e2 = np.maximum(second.excess - second.error, 0.0)
    atoms = np.zeros((k, count + 1))
    start, end = np.maximum(grid.bottom, 0), np.where(grid.top >= 0, grid.top, count)
    low_cell, high_cell = grid.low_cell, grid.high_cell
    # Merge the ends into their lattice points.
    for row in rows[grid.bottom >= 0]:
        cell = low_cell[row]
        atoms[row, start[row]] = below[row] + p1[row, : cell + 1].sum() + p2[row, :cell].sum()
        p1[row, : cell + 1] = p2[row, :cell] = e1[row, : cell + 1] = e2[row, :cell] = 0.0
    for row in rows[grid.top >= 0]:
        cell = high_cell[row]
        atoms[row, end[row]] = above[row] + p1[row, cell + 1 :].sum() + p2[row, cell:].sum()
        p1[row, cell + 1 :] = p2[row, cell:] = e1[row, cell + 1 :] = e2[row, cell:] = 0.0
    unmerged = np.copy(p1), np.copy(e1), np.copy(p2), np.copy(e2), np.copy(atoms)
    # Elsewhere the last cells become an atom at their lower end, as soon as it is not small beside its neighbours.
    p, merged_high = p1 + p2, np.zeros(k)
    for row in rows[grid.top < 0]:
        enough = p[row] > 0
        enough[2:] &= p[row, 2:] >= _CUT * p[row, :-2]
        last = int(np.flatnonzero(enough)[-1]) if enough.any() else 0
        merged_high[row] = p[row, last:].sum() + above[row]
        atoms[row, last] += merged_high[row]
        end[row] = last
        p1[row, last:] = p2[row, last:] = e1[row, last:] = e2[row, last:] = 0.0
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
    hard = (end - start < 2) | ((grid.top < 0) & (merged_high > _MUCH))
    for row in np.flatnonzero((mass < 0).any(axis=1) & ~hard):
        hard[row] = not _make_convex(mass[row], losses, int(start[row]), int(end[row]))
    if hard.any():
        a, b, c, d, ends = (part[hard] for part in unmerged)
        mass[hard] = _beneath(a, b, c, d, ends, start[hard], inner[hard], losses)
    return mass


def _sag(p1: Array, e1: Array, p2: Array, e2: Array, excess: Array, inner: Array, w: Array) -> Array:
    """How far each chord may lie above the curve: at most this.

    In units in which the cell is γ ∈ [1, 1 + w], the chord falls from `excess` to 0. Tangents at 1, at the inner point and at
    1 + w meet at the barycentres of the two parts, and there a convex curve above its tangents is furthest from the chord.
    """
    q1 = p1 - e1
    growth = np.exp(inner)
    q2 = (p2 - e2) / growth  # e2 is relative to the inner point, everything here to the cell's lower end
    with np.errstate(divide="ignore", invalid="ignore"):
        k1 = np.clip(np.where(q1 > 0, e1 / q1, 0.0), 0.0, w)
        k2 = np.clip(np.where(q2 > 0, p2 / q2 - 1, w), 0.0, w)
    q = q1 + q2
    at_first = k1 * (q - excess / w)
    at_second = excess * (w - k2) / w
    return np.maximum(np.maximum(at_first, at_second), 0.0) * (1 + 1e-8)


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
    q1, q2 = p1 - e1, (p2 - e2) * np.exp(-inner)
    with np.errstate(divide="ignore", invalid="ignore"):
        g1 = np.where(q1 > 0, np.minimum(e1 / q1, w), 0.0)  # where the kinks are, from the lower end of the cell
        g2 = np.where(q2 > 0, np.clip(p2 / q2 - 1, g1, w), w)
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
