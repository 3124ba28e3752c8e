r"""Composition of lattice measures by an exponentially tilted FFT, with a bound of every numerical error.

A plain FFT has an absolute error of about 1e-16 of the largest mass, which is useless where δ = 1e-15. So each measure p is
first tilted to w(y) = p(y) e^{θy}/Z, which commutes with convolution; θ is the Rényi optimum at which the composition's
mass is centred on the ε in question. There δ(ε) is a sum of ordinary numbers times e^{K(θ)−θε}, where K = Σ T log Z is the
cumulant generating function (saddle-point tilting: Koskela and Honkela 2021; Alghamdi et al. 2023).

The sources of error, and what is done with them:

* *Aliasing.* The transform is as long as a window that holds all but η of the tilted mass; η comes from Chernoff's bound
  with the measures' own K. Mass outside appears inside, where an upper bound may keep it; a lower bound takes 2η off.
* *Rounding.* Each output of an FFT of non-negative numbers that sum to 1 is off by at most γ = c·u·log₂N, the depth of its
  summation tree times the unit roundoff u (Higham 2002, section 24.1, componentwise). Powers and the inverse transform carry
  this to a bound per lattice point, which is added (upper) or subtracted (lower).
* *Weights.* Tilting and normalising round each weight by a few u, so a T-fold product by a factor within (1 ± 1e-14)^T.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from accountants.cumulants import OUTSIDE, Cumulants, window
from accountants.lattice import Lattice, regrid

Array = NDArray[np.float64]
Complex = NDArray[np.complex128]

_UNIT = 2.0**-53
_DEPTH = 8  # roundings on each level of the transform's summation tree, generously
_WEIGHT_ERROR = 1e-14
_NEAR = 300.0  # largest exponent of a weight, so that products of two fit
_LARGE = 600.0  # largest exponent
_TINY = 1e-290  # below it products of magnitudes are nothing, and more than they are
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
      tilt: θ.
      log_scale: K(θ).
      outside: bound of the tilted mass outside the window.
      infinite: mass at infinite loss.
      largest: largest finite loss.
      relative: bound of the relative error of everything finite.
      sign: +1 for an upper bound, −1 for a lower one.
    """

    first: float
    step: float
    mass: Array
    error: float
    tilt: float
    log_scale: float
    outside: float
    infinite: float
    largest: float
    relative: float
    sign: int


class TooLongError(Exception):
    """A composition asks for a transform that takes too long."""


def compose(parts: Sequence[tuple[Lattice, Array]], tilt: float, *, sign: int) -> Composition:
    """Composes batches of measures with one step, each measure `counts` (k,) times.

    Args:
      parts: batches and how often each of their measures is composed.
      tilt: θ > 0.
      sign: +1 to bound from above, −1 from below.
    """
    from scipy.fft import irfft, next_fast_len, rfft  # a quarter of the time of `import accountants`

    step = parts[0][0].step
    if any(not lattice.mass[row].any() for lattice, counts in parts for row in np.flatnonzero(counts)):
        # A lower bound that came to nothing.
        return Composition(0.0, step, np.zeros(2), 0.0, tilt, 0.0, 0.0, 0.0, 0.0, 0.0, sign)
    exact, coarse = Cumulants.of(parts), Cumulants.of(parts, coarse=True)
    log_scale = exact.value(tilt)
    low, high = window(coarse, tilt, exact=exact)
    base = sum(float(counts @ lattice.origin) for lattice, counts in parts)
    first = math.floor((low - base) / step)
    wanted = (high - low) / step
    if not wanted < MAX_POINTS:
        raise TooLongError(f"a transform of {wanted:.3g} points")
    length = next_fast_len(max(math.ceil((high - base) / step) - first + 2, 16), real=True)
    count = length // 2 + 1
    magnitude, phase = np.zeros(count), np.zeros(count)  # of the spectrum: log of the one, the other in radians
    most = np.zeros(count)  # log of the largest magnitude that rounding allows
    gamma = _DEPTH * _UNIT * math.log2(length)
    shift, total, largest = 0, 0.0, 0.0
    for lattice, counts in parts:
        largest += float(counts @ (lattice.origin + step * lattice.index[-1]))
        for rows in _blocks(lattice.mass.shape[0], length):
            weights, centres = _tilted(lattice, rows, tilt, length)
            times, transform = counts[rows], rfft(weights, axis=1)
            powers, bound, often = _multiplied_out(transform, np.abs(transform) + gamma, times)
            magnitude += often @ np.log(np.maximum(np.abs(powers), _TINY))
            phase += often @ np.angle(powers)
            most += often @ np.log(np.maximum(bound, _TINY))
            shift += int(centres.astype(object) @ times.astype(np.int64).astype(object))
            total += float(times.sum())
    with np.errstate(under="ignore"):
        size = np.exp(np.minimum(magnitude, 1.0))
        values = irfft(size * np.exp(1j * phase), length)
        # |computed − true spectrum| ≤ Π(|F| + γ)^T − Π|F|^T, and a power rounds by about u per turn of its phase.
        spread = np.maximum(np.exp(np.minimum(most, 50.0)) * (1 + 1e-12) - size, 0.0)
        spread += _TINY + size * (gamma + 4 * _UNIT * (total * math.pi + np.abs(most) + 8))
    error = 2.0 * float(spread.sum()) / length
    mass = np.roll(values, (shift - first) % length)
    infinite = -math.expm1(sum(float(counts @ np.log1p(-lattice.infinite)) for lattice, counts in parts))
    return Composition(
        first=base + first * step,
        step=step,
        mass=mass,
        error=error,
        tilt=tilt,
        log_scale=log_scale,
        outside=2 * (OUTSIDE + sum(lattice.outside * float(counts.sum()) for lattice, counts in parts)),
        infinite=infinite,
        largest=largest,
        relative=math.expm1(min(total * _WEIGHT_ERROR + 1e-12, 1.0)),
        sign=sign,
    )


def _multiplied_out(transform: Complex, bound: Array, times: Array) -> tuple[Complex, Array, Array]:
    """What is composed once as one row: it spares a logarithm and an angle a point, which cost ten times a product.

    A product of n rows rounds by less than n turns of a phase do, and by less than 1e-12 in a block. Underflow is `_TINY`.
    """
    once = times == 1
    if once.sum() < 2:
        return transform, bound, times
    with np.errstate(under="ignore"):
        both = [np.concatenate([x[~once], np.multiply.reduce(x[once], axis=0)[None]]) for x in (transform, bound)]
    return both[0], both[1], np.append(times[~once], 1.0)


def as_lattice(composition: Composition, step: float) -> Lattice:
    """A composition as one measure on a lattice of another step, for further composition at the same tilt."""
    c = composition
    losses = np.asarray(c.first + c.step * np.arange(len(c.mass)), np.float64)
    mass = np.maximum(c.mass + c.sign * c.error, 0.0) * (1 + c.sign * c.relative)
    centre = float((losses * c.mass).sum())  # not @, whose threads spin on when they have nothing to do
    exponent = -c.tilt * (losses - centre)
    with np.errstate(under="ignore"):
        mass = mass * np.exp(np.clip(exponent, -745.0, _LARGE))
    if c.sign > 0 and (far := exponent > _LARGE).any():
        # Losses so low that their true mass, 1 at most, does not fit: all of it at the first loss that fits.
        mass[far] = 0.0
        mass[int(np.argmin(far))] += math.exp(min(c.tilt * centre - c.log_scale, _LARGE))
    origin, mass = regrid(losses, mass, step, sign=c.sign)
    return Lattice(
        origin=np.array([origin]),
        step=step,
        index=np.arange(len(mass)),
        mass=mass[None],
        infinite=np.array([c.infinite]),
        log_scale=c.log_scale - c.tilt * centre,
        outside=c.outside,
    )


def deltas(composition: Composition, epsilons: Array) -> Array:
    """δ at each of `epsilons` (n,), from above or from below, as `composition.sign` says. Sharpest near the tilt's own ε."""
    c = composition
    centre = float(np.clip(np.median(epsilons), c.first, c.first + c.step * len(c.mass)))
    tails = _tails(c, centre)
    # Weights are right within _NEAR of the centre. δ falls with ε, so nearer values bound those farther off on one side.
    reach = _NEAR * min(1.0, 1 / c.tilt)
    u = np.clip(epsilons - centre, -reach, reach)
    position = np.floor((u + centre - c.first) / c.step) + 1  # of the next lattice point
    which = np.clip(position, 0, len(c.mass)).astype(np.int64)
    with np.errstate(under="ignore", over="ignore", divide="ignore"):
        finite = tails.a[which] - np.exp(u) * tails.b[which]
        finite += c.sign * _missing(c, u, c.first + c.step * position - centre)
        scale = c.log_scale - c.tilt * centre
        value = np.exp(np.minimum(np.log(np.maximum(finite, 0.0)) + scale, 0.0))
    if c.sign > 0:
        value = np.where(epsilons >= c.largest, 0.0, np.where(epsilons < centre - reach, 1.0, value))
    else:
        value = np.where(epsilons > centre + reach, 0.0, value)
    return np.minimum(c.infinite + value, 1.0)


def epsilon(composition: Composition, delta_: float) -> float:
    """The smallest ε ≥ 0 with δ(ε) ≤ `delta_`, from above or from below; infinite where there is none."""
    c = composition
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


def _crossing(c: Composition, target: float, centre: float) -> float:
    losses = np.asarray(c.first + c.step * np.arange(len(c.mass)), np.float64)
    tails = _tails(c, centre)
    u = losses - centre
    with np.errstate(under="ignore", over="ignore"):
        slack = c.sign * _missing(c, u, u + c.step)
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


def _missing(c: Composition, u: Array, after: Array) -> Array:
    """At most this of δ (in units as in `_Tails`) comes from mass that lies outside the window, at ε = centre + u.

    All mass lies on lattice points, the next of which is centre + `after`. What lies t above ε counts e^{−θt}(1 − e^{−t})
    of its weight at ε, at most 1/(1 + θ).
    """
    anywhere = np.exp(np.clip(-c.tilt * u, -745.0, _NEAR)) / (1 + c.tilt)
    return c.outside * np.minimum(anywhere, np.exp(np.clip(-c.tilt * after, -745.0, _NEAR)))


def _tails(c: Composition, centre: float) -> _Tails:
    n = len(c.mass)
    u = c.first + c.step * np.arange(n) - centre
    with np.errstate(under="ignore", over="ignore"):
        mass = np.maximum(c.mass + c.sign * c.error, 0.0) * (1 + c.sign * c.relative)
        mass *= np.exp(np.clip(-c.tilt * u, -745.0, _NEAR))
        a = np.cumsum(mass[::-1])[::-1]
        b = np.cumsum((mass * np.exp(np.minimum(-u, _NEAR)))[::-1])[::-1]
    # Each of the two sums of n positive terms rounds by n units at most.
    return _Tails(np.append(a * (1 + 2 * c.sign * n * _UNIT), 0.0), np.append(b, 0.0))


def _tilted(lattice: Lattice, rows: slice, tilt: float, length: int) -> tuple[Array, NDArray[np.int64]]:
    """Normalised tilted weights (k, length), wrapped so that each row's mean is at index 0, and where that mean was."""
    mass, index = lattice.mass[rows], lattice.index
    with np.errstate(divide="ignore", under="ignore"):
        logs = np.log(mass) + tilt * lattice.step * index
        weights = np.exp(logs - logs.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    weights[weights < 1e-300] = 0.0
    centres = np.round((weights * index).sum(axis=1)).astype(np.int64)
    out = np.zeros((len(mass), length))
    for row, centre in enumerate(centres):
        out[row] = np.bincount((index - centre) % length, weights=weights[row], minlength=length)
    return out, centres


def _blocks(count: int, length: int) -> list[slice]:
    """Rows that are transformed together: some 32 MB of them, and not so many that a product of them rounds much."""
    size = min(max(1, 2**21 // length), 1024)
    return [slice(i, min(i + size, count)) for i in range(0, count, size)]
