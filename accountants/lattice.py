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
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from accountants.atomic_pairs import kept
from accountants.grid import WIDEST, Fineness, Grid, TooLongError, lay
from accountants.pairs import Cells, Pair
from accountants.polygons import lower_masses, upper_masses

Array = NDArray[np.float64]
Index = NDArray[np.int64]

_SUMS, _MOST_SUMS = 2**16, 2**21  # of losses that are composed one by one: of several, and of two
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
        return _atoms_on_lattice(atoms[0], atoms[1], step, low_tail, high_tail)
    grid = lay(pair, step, low_tail, high_tail, fineness)
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
    upper_mass = upper_masses(first, second, inner, width)
    upper_mass[:, 0] += below
    lower_mass = lower_masses(first, second, inner, below, above, grid, low_tail)
    origin, index = grid.origin[:, 0], grid.index
    return Sandwich(
        Lattice(origin, step, index, lower_mass, np.zeros_like(above)), Lattice(origin, step, index, upper_mass, above)
    )


def _atoms_on_lattice(losses: Array, mass: Array, step: float, low_tail: Array, high_tail: Array) -> Sandwich:
    """Atoms as they are, if they lie on a lattice of that step; moved to one from both sides if they do not."""
    position = (losses - losses[0]) / step
    nearest = np.round(position)
    if (np.abs(position - nearest) * step <= 1e-13 * np.maximum(np.abs(losses), abs(losses[0]))).all():
        index = np.round(position).astype(np.int64)
        lattice = Lattice(losses[:1].copy(), step, index, mass[None], np.zeros(1))
        return Sandwich(lattice, lattice)
    first, last = (int(end[0, 0]) for end in kept(mass, low_tail, high_tail))
    below, above, losses, mass = mass[:first].sum(), mass[last + 1 :].sum(), losses[first : last + 1], mass[first : last + 1]
    both = []
    for sign in (-1, 1):
        if sign > 0:
            mass = np.concatenate([mass[:1] + below, mass[1:]])
        origin, moved = regrid(losses, mass, step, sign=sign)
        infinite = np.full(1, above if sign > 0 else 0.0)
        both.append(Lattice(np.array([origin]), step, np.arange(len(moved)), moved[None], infinite))
    return Sandwich(*both)


def regrid(losses: Array, mass: Array, step: float, *, sign: int) -> tuple[float, Array]:
    """Moves a measure with many atoms to a lattice: from above (`sign` 1) or from below (−1).

    Args:
      losses: of the atoms, (n,), in any order.
      mass: of the atoms, (n,), in any unit.
      step: of the lattice.
      sign: which bound.

    Returns:
      Loss of the first lattice point, and the masses there.
    """
    lowest, highest = float(losses.min()), float(losses.max())
    origin = lowest - step
    position = (losses - origin) / step
    cells = (highest - lowest) / step
    if sign < 0 and (cells > len(losses) / 8 or cells < _FEW):
        order = np.argsort(losses)
        return origin, _contracted(losses[order], mass[order], origin, step)
    if step > WIDEST:
        raise TooLongError(f"lattice points {step:.3g} apart, whose exponential does not fit")
    cell = np.ceil(position).astype(np.int64) - 1
    inside = np.asarray((position - cell) * step, np.float64)  # from the cell's lower end, in (0, step]
    count = int(cell.max()) + 2

    def part(chosen: NDArray[np.bool_], edge: float) -> Cells:
        p = binned(cell[chosen], mass[chosen], count)
        excess = binned(cell[chosen], mass[chosen] * -np.expm1(edge - inside[chosen]), count)
        return Cells(p[None], (p - excess)[None], excess[None], 1e-15 * p[None] * step)

    low = inside <= step / 2
    first, second, inner = part(low, 0.0), part(~low, step / 2), np.full((1, count), step / 2)
    if sign > 0:
        return origin, upper_masses(first, second, inner, np.full(count, step))[0]
    nothing, unknown = np.zeros(1), np.array([-1])
    grid = Grid(nothing[:, None], step, np.arange(count + 1), unknown, nothing, unknown, nothing)
    return origin, lower_masses(first, second, inner, nothing, nothing, grid)[0]


def moved(lattice: Lattice, step: float, *, sign: int) -> Lattice:
    """A batch of one on a lattice of another step, from above (`sign` 1) or from below (−1)."""
    if step == lattice.step:
        return lattice
    used = np.flatnonzero(lattice.mass[0])
    if not len(used):
        return dataclasses.replace(lattice, step=step)
    origin, mass = regrid(lattice.losses[0, used], lattice.mass[0, used], step, sign=sign)
    return dataclasses.replace(lattice, origin=np.array([origin]), step=step, index=np.arange(len(mass)), mass=mass[None])


def joined_below(parts: Sequence[Lattice], step: float, tail: float, tilt: float) -> list[Lattice]:
    """Lower bounds on a lattice of another step, of which the composition of `parts` is one of the composition.

    A chord has to be let down wherever an atom lies off the lattice. Sums of losses from several lattices, of steps that are$
    not alike, lie so close that this costs O(step²), where each alone would cost O(step · its own).

    Args:
      parts: lower bounds, batches of one.
      step: of the lattice.
      tail: probability that each may lose at either end.
      tilt: at which they are composed further.
    """
    ends = [_without_tails(part, tail, tilt) for part in parts]
    most = max((end.mass.size for end in ends), default=1)
    together = max(int(math.log(_SUMS) / math.log(max(most, 2))), 2 if most**2 <= _MOST_SUMS else 1)
    groups = math.ceil(len(parts) / together)
    by_step = sorted(range(len(parts)), key=lambda i: parts[i].step)
    result = []
    for members in (by_step[i::groups] for i in range(groups)):
        several = [ends[i] for i in members]
        losses, mass = np.zeros(1), np.full(1, 1 - 1e-15 * len(several))
        for part in several:
            losses, mass = np.add.outer(losses, part.losses).ravel(), np.multiply.outer(mass, part.mass).ravel()
        origin, mass = regrid(losses, mass, step, sign=-1)
        result.append(
            Lattice(
                origin=np.array([origin]),
                step=step,
                index=np.arange(len(mass)),
                mass=mass[None],
                infinite=1 - np.prod([1 - part.infinite for part in several], axis=0),
                log_scale=sum(part.log_scale for part in several),
                outside=math.prod(1 + part.outside for part in several) - 1,
            )
        )
    return result


def _without_tails(lattice: Lattice, tail: float, tilt: float) -> Lattice:
    """A batch of one without its empty points and without `tail` at either end."""
    if not lattice.mass.any():
        return dataclasses.replace(lattice, index=lattice.index[:1], mass=lattice.mass[:, :1])
    scaled = np.full((1, 1), tail * math.exp(min(-lattice.log_scale, 700.0)))
    start, end = (int(i[0, 0]) for i in kept(lattice.mass[0], scaled, scaled))
    with np.errstate(divide="ignore", under="ignore"):
        tilted = np.log(lattice.mass[0]) + tilt * lattice.step * lattice.index
        tilted = np.exp(tilted - tilted.max())
    share = tilted[start : end + 1].sum() / tilted.sum()
    used = start + np.flatnonzero(lattice.mass[0, start : end + 1])
    mass = lattice.mass[:, used]
    return dataclasses.replace(lattice, index=lattice.index[used], mass=mass, outside=lattice.outside / share)


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
