r"""Composition of lattice measures by an exponentially tilted FFT, with a bound of every numerical error.

A plain FFT has an absolute error of about 1e-16 of the largest mass, which is useless where δ = 1e-15. So each measure p is
first tilted to w(y) = p(y) e^{θy}/Z, which commutes with convolution; θ is the Rényi optimum at which the composition's
mass is centred on the ε in question. There δ(ε) is a sum of ordinary numbers times e^{K(θ)−θε}, where K = Σ T log Z is the
cumulant generating function (saddle-point tilting: Koskela and Honkela 2021; Alghamdi et al. 2023).

The sources of error, and what is done with them:

* *Aliasing.* The transform is as long as a window that holds all but η of the tilted mass; η comes from Chernoff's bound
  with the measures' own K. Mass outside appears inside, where an upper bound may keep it; a lower bound takes 2η off.
* *Rounding.* What comes out is off by at most e in the 2-norm (`spectrum`). A tail Σ mᵢwᵢ is then off by at most e ‖w‖₂ (Cauchy
  and Schwarz), which for many points is far less than n bounds of one.
* *Weights.* Tilting and normalising round each weight by a few u, so a T-fold product by a factor within (1 ± 1e-14)^T.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from accountants import spread
from accountants.cumulants import OUTSIDE, Cumulants, window
from accountants.grid import TooLongError
from accountants.lattice import Lattice, on_lattice
from accountants.spectrum import UNIT, Spectrum, errors, relative_rounding

Array = NDArray[np.float64]
Index = NDArray[np.int64]
Block = tuple[Array, Index, Array, Array]

WEIGHT_ERROR = 1e-14
_NEAR = 300.0  # largest exponent of a weight, so that products of two fit
_LARGE = 600.0  # largest exponent
_REPEATS, _MORE = 16, 1.02  # of trying what has to be taken off, and by how much more than last time
_FURTHER = 30.0  # times as much instead, where nothing is left; the square of it next time
_WASTED, _LAST = 0.1, 1e-12  # part of it that may be too much, and of δ, which is its rounding
_TRIES, _REFINEMENTS = 65, 4  # of ε where δ is a sum
_LEAST = 1e-300  # mass that is a number with all its digits
MAX_POINTS = 2**24
"""Of one transform."""


@dataclasses.dataclass(frozen=True)
class Composition:
    """A T-fold convolution, tilted. All of it relative to the tilted mass, which is 1.

    Attributes:
      first: loss of the first point of the window.
      step: of the lattice.
      mass: tilted mass at each point, (N,), without the error.
      error: bound of the absolute error of each.
      noise: bound of the 2-norm of all errors.
      tilt: θ.
      log_scale: K(θ).
      outside: bound of the tilted mass outside the window.
      infinite: mass at infinite loss.
      largest: largest finite loss.
      relative: bound of the relative error of everything finite.
      sign: +1 for an upper bound, −1 for a lower one.
      spread: ρ of `spread`; a lower bound is one only when what follows from it has been taken off.
    """

    first: float
    step: float
    mass: Array
    error: float
    noise: float
    tilt: float
    log_scale: float
    outside: float
    infinite: float
    largest: float
    relative: float
    sign: int
    spread: float = 0.0


def compose(parts: Sequence[tuple[Lattice, Array]], tilt: float, *, sign: int) -> Composition:
    """Composes batches of measures with one step, each measure `counts` (k,) times.

    Args:
      parts: batches and how often each of their measures is composed.
      tilt: θ > 0.
      sign: +1 to bound from above, −1 from below.
    """
    from scipy.fft import irfft, next_fast_len, rfft  # a quarter of the time of `import accountants`

    step = parts[0][0].step
    assert all(lattice.tilt in (0, tilt) for lattice, _ in parts)  # what is missing from a composition is known at its own tilt
    if any(not lattice.mass[row].any() for lattice, counts in parts for row in np.flatnonzero(counts)):
        # A lower bound that came to nothing.
        return Composition(0.0, step, np.zeros(2), 0.0, 0.0, tilt, 0.0, 0.0, 0.0, 0.0, 0.0, sign)
    exact, coarse = Cumulants.of(parts), Cumulants.of(parts, coarse=True)
    log_scale = exact.value(tilt)
    low, high = window(coarse, tilt, exact=exact)
    base = sum(float(counts @ lattice.origin) for lattice, counts in parts)
    wanted = (high - low) / step
    if not wanted < MAX_POINTS:
        raise TooLongError(f"a transform of {wanted:.3g} points")
    first = math.floor((low - base) / step)
    length = next_fast_len(max(math.ceil((high - base) / step) - first + 2, 16), real=True)
    count = length // 2 + 1
    spectrum = Spectrum(count, relative_rounding(length))
    shift, total = 0, 0.0
    largest = sum(float(counts @ lattice.largest) for lattice, counts in parts)
    for weights, centres, atoms, times in _blocks(parts, tilt, length):
        spectrum.multiply(rfft(weights, axis=1), atoms, weights.sum(axis=1), times)
        shift += int(centres.astype(object) @ times.astype(np.int64).astype(object))
        total += float(times.sum())
    values, rounding = irfft(spectrum.values(), length), spectrum.rounding()
    error, noise = errors(rounding, length)
    mass = np.roll(values, (shift - first) % length)
    infinite = -math.expm1(sum(float(counts @ np.log1p(-lattice.infinite)) for lattice, counts in parts))
    return Composition(
        first=base + first * step,
        step=step,
        mass=mass,
        error=error,
        noise=noise,
        tilt=tilt,
        log_scale=log_scale,
        outside=2 * (OUTSIDE + sum(lattice.outside * float(counts.sum()) for lattice, counts in parts)),
        infinite=infinite,
        largest=largest,
        relative=math.expm1(min(total * WEIGHT_ERROR + 1e-12, 1.0)),
        sign=sign,
        spread=sum(lattice.spread * float(counts.sum()) for lattice, counts in parts),
    )


def as_lattice(composition: Composition, step: float, *, spread: bool) -> Lattice:
    """A composition as one measure on a lattice of another step, for further composition at the same tilt.

    `spread`: whether that may be by spreading atoms, of which there must be none that are spread already.
    """
    assert not composition.spread
    c = composition
    losses = np.asarray(c.first + c.step * np.arange(len(c.mass)), np.float64)
    mass = np.maximum(c.mass + c.sign * c.error, 0.0) * (1 + c.sign * c.relative)
    centre = float((losses * c.mass).sum())  # not @, whose threads spin on when they have nothing to do
    exponent = -c.tilt * (losses - centre)
    with np.errstate(under="ignore"):
        untilted = mass * np.exp(np.clip(exponent, -745.0, _LARGE))
    missing = (untilted < _LEAST) | (exponent > _LARGE)  # does not fit into a number
    untilted[missing] = 0.0
    result = on_lattice(losses, untilted, step, sign=c.sign, spread=spread)
    return dataclasses.replace(
        result,
        infinite=np.array([c.infinite]),
        log_scale=c.log_scale - c.tilt * centre,
        outside=c.outside + (float(mass[missing].sum()) if c.sign > 0 else 0.0),
        tilt=c.tilt,
        beyond=c.largest + step - float(result.losses[0, -1]),
    )


def epsilon_of_sum(terms: Sequence[Composition], delta_: float) -> float:
    """As `epsilon`, where δ is the sum of what several compositions give."""
    upper = terms[0].sign > 0
    low, high, beyond = 0.0, max(0.0, *(c.largest for c in terms)), math.inf
    least = 1e-12 * high
    for _ in range(_REFINEMENTS):
        tries = np.concatenate([[low], np.geomspace(max(low, least), max(high, least), _TRIES)]) if high else np.zeros(1)
        exceeded = np.flatnonzero(sum(deltas(c, tries) for c in terms) > delta_)
        # Values at a try differ in their last digits from round to round: what was found before still holds.
        if len(exceeded) == 0:
            return low
        if exceeded[-1] + 1 == len(tries):
            return beyond if upper else high
        low, high = tries[exceeded[-1] : exceeded[-1] + 2].tolist()
        beyond = high
    return high if upper else low


def deltas(composition: Composition, epsilons: Array) -> Array:
    """δ at each of `epsilons` (n,), from above or from below, as `composition.sign` says. Sharpest near the tilt's own ε."""
    c = composition
    if spread.worthless(c.spread):
        return np.full(len(epsilons), c.infinite)
    centre = float(np.clip(np.median(epsilons), c.first, c.first + c.step * len(c.mass)))
    tails = _tails(c, centre)
    # Weights are right within _NEAR of the centre. δ falls with ε, so nearer values bound those farther off on one side.
    reach = _NEAR * min(1.0, 1 / c.tilt)
    u = np.clip(epsilons - centre, -reach, reach)
    position = np.floor((u + centre - c.first) / c.step) + 1  # of the next lattice point
    which = np.clip(position, 0, len(c.mass)).astype(np.int64)
    with np.errstate(under="ignore", over="ignore", divide="ignore"):
        finite = tails.a[which] - np.exp(u) * tails.b[which]
        finite += c.sign * _unknown(c, u, c.first + c.step * position - centre)
        if c.spread:
            finite -= np.array([_taken_off(c, float(e), centre) for e in epsilons])
        scale = c.log_scale - c.tilt * centre
        value = np.exp(np.minimum(np.log(np.maximum(finite, 0.0)) + scale, 0.0))
    if c.sign > 0:
        value = np.where(value > 0, np.maximum(value, _LEAST), 0.0)
        value = np.where(epsilons >= c.largest, 0.0, np.where(epsilons < centre - reach, 1.0, value))
    else:
        value = np.where(epsilons > centre + reach, 0.0, value)
    if c.spread:
        # Of losses that `_taken_off` does not see only that they have a probability of 1 at most.
        ends = epsilons - _lowest(c, centre), c.first + c.step * (len(c.mass) - 1) - epsilons
        nearest = np.minimum(np.minimum(*ends), spread.extent(c.spread))
        value = np.where(nearest > 0, np.maximum(value - spread.lost(nearest, c.spread), 0.0), 0.0)
    return np.minimum(c.infinite + value, 1.0)


def _lowest(c: Composition, centre: float) -> float:
    """The loss from which on weights relative to `centre` are right."""
    return max(c.first, centre - _NEAR / c.tilt)


def _taken_off(c: Composition, epsilon_: float, centre: float) -> float:
    """What is to be taken off δ at an ε as atoms were spread, in units as in `_Tails`."""
    extent = spread.extent(c.spread)
    start, end = (
        math.ceil((loss - c.first) / c.step) for loss in (max(epsilon_ - extent, _lowest(c, centre)), epsilon_ + extent)
    )
    index = np.arange(start, min(end + 1, len(c.mass)))
    losses = np.asarray(c.first + c.step * index, np.float64)
    weights = np.exp(np.maximum(-c.tilt * (losses - centre), -745.0)) * spread.lost(losses - epsilon_, c.spread)
    mass = np.maximum(c.mass[index], 0.0)
    return float((weights * mass).sum() * (1 + c.relative) + c.noise * math.sqrt(float((weights**2).sum()))) * (1 + 1e-9)


def epsilon(composition: Composition, delta_: float) -> float:
    """The smallest ε ≥ 0 with δ(ε) ≤ `delta_`, from above or from below; infinite where there is none."""
    c = composition
    if c.spread:
        return _epsilon_of_spread(c, delta_)
    target = delta_ - c.infinite
    if target <= 0:
        return math.inf
    last = c.first + c.step * (len(c.mass) - 1)
    centre = float(np.clip((c.log_scale - math.log(target)) / c.tilt, c.first, last))
    for _ in range(8):
        result = _crossing(c, target, centre)
        if result == -math.inf:
            return 0.0
        # Weights are right within _NEAR of the centre.
        if abs(result - centre) < _NEAR * min(1.0, 1 / c.tilt):
            return max(0.0, min(result, c.largest) if c.sign > 0 else result)
        centre = result
    return max(c.largest, 0.0) if c.sign > 0 else 0.0


def _epsilon_of_spread(c: Composition, delta_: float) -> float:
    """An ε at which δ is more than `delta_`: where the lattice's own δ is more by at least what has to be taken off."""
    whole, best = dataclasses.replace(c, spread=0.0), 0.0
    taken_off, too_little, enough, further = 0.0, 0.0, math.inf, _FURTHER
    for _ in range(_REPEATS):
        found = epsilon(whole, min(delta_ + taken_off, 1.0))
        if found in (0.0, math.inf) and not taken_off:
            return found
        left = float(deltas(c, np.array([found]))[0]) if found else math.inf
        if left > delta_:
            best, enough = max(best, found), taken_off
            if left - delta_ <= _WASTED * taken_off + _LAST * delta_:
                break
        else:
            too_little = taken_off
        if enough < math.inf:
            taken_off = math.sqrt((too_little + delta_) * (enough + delta_)) - delta_
        elif left > 0:
            needed = float(deltas(whole, np.array([found]))[0]) - left
            taken_off = max(_MORE * needed, taken_off + 2 * (delta_ - left) + _LAST * delta_)
        else:  # how much is needed can't be told
            taken_off, further = further * (delta_ + taken_off), further**2
    return best


def _crossing(c: Composition, target: float, centre: float) -> float:
    losses = np.asarray(c.first + c.step * np.arange(len(c.mass)), np.float64)
    tails = _tails(c, centre)
    u = losses - centre
    with np.errstate(under="ignore", over="ignore"):
        slack = c.sign * _unknown(c, u, u + c.step)
        values = tails.a[1:] - np.exp(np.minimum(u, _NEAR)) * tails.b[1:] + slack  # δ at each lattice point
        scaled = math.exp(max(min(math.log(target) - (c.log_scale - c.tilt * centre), _NEAR), -_NEAR))
        too_large = np.flatnonzero(values > scaled)
    if len(too_large) == 0:
        return float(losses[0]) if c.sign > 0 else -math.inf
    j = int(too_large[-1])
    if j + 1 >= len(losses):
        return c.largest if c.sign > 0 else float(losses[-1])
    # Between two lattice points δ + slack is A − e^ε B but for the slack, which is largest at the left.
    left, below = tails.a[j + 1] + slack[j] - scaled, tails.b[j + 1]
    inside = centre + math.log(left / below) if left > 0 and below > 0 else float(losses[j])
    return min(max(inside, float(losses[j])), float(losses[j + 1]))


class _Tails(NamedTuple):
    """Relative to a loss `centre`: δ(ε) = e^{K − θ · centre} (a[i] − e^{ε − centre} b[i]), i the first point above ε."""

    a: Array
    b: Array


def _unknown(c: Composition, u: Array, after: Array) -> Array:
    """By at most this δ (in units as in `_Tails`) may be off at ε = centre + u: mass outside of the window, and rounding.

    All mass lies on lattice points, the next of which is centre + `after`. What lies t above ε counts e^{−θt}(1 − e^{−t})
    of its weight at ε, at most 1/(1 + θ); at the j-th point from there on at most ρ^{j/2} min(1, (j + 1) step) e^{−θ after},
    ρ = e^{−2θ step}, of whose squares the sum is at most 1/(1 − ρ) and step² (1 + ρ)/(1 − ρ)³.
    """
    anywhere = np.exp(np.clip(-c.tilt * u, -745.0, _NEAR)) / (1 + c.tilt)
    next_point = np.exp(np.clip(-c.tilt * after, -745.0, _NEAR))
    rest = -math.expm1(-2 * c.tilt * c.step)
    squares = min(float(len(c.mass)), 1 / rest, c.step**2 * (2 - rest) / rest**3) if rest > 0 else float(len(c.mass))
    return c.outside * np.minimum(anywhere, next_point) + c.noise * math.sqrt(squares) * (1 + 1e-6) * next_point


def _tails(c: Composition, centre: float) -> _Tails:
    n = len(c.mass)
    u = c.first + c.step * np.arange(n) - centre
    with np.errstate(under="ignore", over="ignore"):
        mass = c.mass * (1 + c.sign * c.relative)
        mass *= np.exp(np.clip(-c.tilt * u, -745.0, _NEAR))
        a = np.cumsum(mass[::-1])[::-1]
        b = np.cumsum((mass * np.exp(np.minimum(-u, _NEAR)))[::-1])[::-1]
    # Each of the two sums of n positive terms rounds by n units at most.
    return _Tails(np.append(a * (1 + 2 * c.sign * n * UNIT), 0.0), np.append(b, 0.0))


def _tilted(lattice: Lattice, rows: slice, tilt: float, length: int) -> tuple[Array, Index, Array]:
    """Normalised tilted weights without an atom of more than half of them, wrapped.

    Returns:
      Weights (k, length); which lattice point is at 0 in each row (k,), the atom or the mean; mass of the atom, or 0 (k,).
    """
    mass, index = lattice.mass[rows], lattice.index
    with np.errstate(divide="ignore", under="ignore"):
        logs = np.log(mass) + tilt * lattice.step * index
        weights = np.exp(logs - logs.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    weights[weights < 1e-300] = 0.0
    every, heaviest = np.arange(len(mass)), weights.argmax(axis=1)
    atoms = np.where(weights[every, heaviest] > 0.5, weights[every, heaviest], 0.0)
    centres = np.where(atoms > 0, index[heaviest], np.round((weights * index).sum(axis=1)).astype(np.int64))
    weights[every[atoms > 0], heaviest[atoms > 0]] = 0.0
    out = np.zeros((len(mass), length))
    for row, centre in enumerate(centres):
        out[row] = np.bincount((index - centre) % length, weights=weights[row], minlength=length)
    return out, centres, atoms


def _blocks(parts: Sequence[tuple[Lattice, Array]], tilt: float, length: int) -> Iterator[Block]:
    """What `_tilted` returns, and counts, of as many measures as are transformed together.

    That is some 32 MB of them, and not so many that a product of them rounds much.
    """
    size = min(max(1, 2**21 // length), 1024)
    pending: list[Block] = []
    for lattice, counts in parts:
        for start in range(0, len(counts), size):
            rows = slice(start, start + size)
            pending.append((*_tilted(lattice, rows, tilt, length), counts[rows]))
            if sum(len(block[0]) for block in pending) >= size:
                yield _joined(pending)
                pending = []
    if pending:
        yield _joined(pending)


def _joined(blocks: list[Block]) -> Block:
    if len(blocks) == 1:
        return blocks[0]
    weights, centres, atoms, counts = zip(*blocks, strict=True)
    return np.concatenate(weights), np.concatenate(centres), np.concatenate(atoms), np.concatenate(counts)
