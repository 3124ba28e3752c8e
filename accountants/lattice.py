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
* Where there are few atoms between the lattice points, that lets down too much: `spread` has another lower bound for them.

Both are off by O(step²): the variance of the loss under either differs from the exact one by about step²/6.

A large part of the mass may sit at one end of the range (a sampled Gaussian is nearly always its lowest loss). The lattice is
laid so that the barycentre of that end is a lattice point, and `lower` merges the end into it; merging outcomes is
post-processing.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from accountants.atomic_pairs import kept
from accountants.grid import WIDEST, Fineness, Grid, TooLongError, lay
from accountants.pairs import Cells, Pair
from accountants.polygons import lower_masses, upper_masses

Array = NDArray[np.float64]
Index = NDArray[np.int64]

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
      outside: mass that is missing, relative, when all is tilted by `tilt`; 0 but for compositions.
      tilt: θ; 0 where nothing is missing.
      beyond: how far beyond the last point losses may go, in what is missing; less than 0 if not so far.
      spread: not 0 where atoms were split between lattice points as in an upper bound; what has to be taken off for a lower one
        follows from it, see `spread`.
    """

    origin: Array
    step: float
    index: Index
    mass: Array
    infinite: Array
    log_scale: float = 0.0
    outside: float = 0.0
    tilt: float = 0.0
    beyond: float = 0.0
    spread: float = 0.0

    @property
    def losses(self) -> Array:
        """(k, n)."""
        return self.origin[:, None] + self.step * self.index

    @property
    def largest(self) -> Array:
        """No finite loss is larger, (k,)."""
        return self.origin + self.step * self.index[-1] + self.beyond


@dataclasses.dataclass(frozen=True)
class Sandwich:
    """`lower` ⪯ exact ⪯ `upper`, on the same lattice points."""

    lower: Lattice
    upper: Lattice


def sandwich(
    pair: Pair, step: float, *, low_tail: Array, high_tail: Array, fineness: Fineness | None = None, spread: bool = False
) -> Sandwich:
    """Discretises a batch of pairs.

    Args:
      pair: a batch of k.
      step: distance of lattice points, > 0.
      low_tail: P-mass of the lowest losses that may be moved (up in `upper`, away in `lower`). (k, 1).
      high_tail: P-mass of the highest losses that `upper` may count as infinite and `lower` leave out. (k, 1).
      fineness: where not every lattice point is needed.
      spread: whether atoms off the lattice may be spread in `lower`, see `Lattice.spread`.
    """
    atoms = pair.atoms()
    if atoms is not None:
        return _atoms_on_lattice(atoms[0], atoms[1], step, low_tail, high_tail, spread)
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


def _atoms_on_lattice(losses: Array, mass: Array, step: float, low_tail: Array, high_tail: Array, spread: bool) -> Sandwich:
    """Atoms as they are, if they lie on a lattice of that step; moved to one from both sides if they do not."""
    position = (losses - losses[0]) / step
    nearest = np.round(position)
    if (np.abs(position - nearest) * step <= 1e-13 * np.maximum(np.abs(losses), abs(losses[0]))).all():
        index = np.round(position).astype(np.int64)
        lattice = Lattice(losses[:1].copy(), step, index, mass[None], np.zeros(1))
        return Sandwich(lattice, lattice)
    first, last = (int(end[0, 0]) for end in kept(mass, low_tail, high_tail))
    below, above, losses, mass = mass[:first].sum(), mass[last + 1 :].sum(), losses[first : last + 1], mass[first : last + 1]
    lower = on_lattice(losses, mass, step, sign=-1, spread=spread)
    upper = on_lattice(losses, np.concatenate([mass[:1] + below, mass[1:]]), step, sign=1)
    return Sandwich(lower, dataclasses.replace(upper, infinite=np.full(1, above)))


def on_lattice(losses: Array, mass: Array, step: float, *, sign: int, spread: bool = False) -> Lattice:
    """A batch of one from atoms, moved to a lattice as `regrid` does, or spread if it may be `spread` and `sign` is −1."""
    spread = spread and sign < 0 and _sparse(losses, step)
    origin, mass = regrid(losses, mass, step, sign=1 if spread else sign)
    if spread:
        # Splitting rounds; losses this much lower make up for it.
        origin -= 4e-14 * (1 + float(np.ptp(losses)) + step)
    return Lattice(
        np.array([origin]), step, np.arange(len(mass)), mass[None], np.zeros(1), spread=step**2 / 8 if spread else 0.0
    )


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
    if sign < 0 and _sparse(losses, step):
        return origin, _contracted(losses, mass, origin, step)
    if step > WIDEST:
        raise TooLongError(f"lattice points {step:.3g} apart, whose exponential does not fit")
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
        return origin, upper_masses(first, second, inner, np.full(count, step))[0]
    nothing, unknown = np.zeros(1), np.array([-1])
    grid = Grid(nothing[:, None], step, np.arange(count + 1), unknown, nothing, unknown, nothing)
    return origin, lower_masses(first, second, inner, nothing, nothing, grid)[0]


def _sparse(losses: Array, step: float) -> bool:
    """Whether so few atoms lie in a cell, or in all, that chords are not worth letting down."""
    cells = float(losses[-1] - losses[0]) / step
    return cells > len(losses) / 8 or cells < _FEW


def moved(lattice: Lattice, step: float, *, sign: int, spread: bool) -> Lattice:
    """A batch of one on a lattice of another step, from above (`sign` 1) or from below (−1)."""
    assert not lattice.spread
    used = np.flatnonzero(lattice.mass[0])
    if not len(used):
        return dataclasses.replace(lattice, step=step)
    assert not lattice.outside
    result = on_lattice(lattice.losses[0, used], lattice.mass[0, used], step, sign=sign, spread=spread)
    return dataclasses.replace(result, infinite=lattice.infinite, log_scale=lattice.log_scale)


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
