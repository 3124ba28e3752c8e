r"""Rare and large losses, composed apart from all others.

At a sampling rate of 1e-6 nearly every loss is next to 0, and now and then one is large. Where such a jump alone makes up δ, no
tilt θ puts much of the mass near the ε in question: it lies at 0 for small θ and at the largest losses for large ones. Then the
rounding of a transform, relative to all of the mass, may exceed δ.

So each measure on a lattice is split at a `cutoff` above its heaviest point, p = b + h, and

    p₁^T₁ ∗ p₂^T₂ ∗ … = (∏ bᵢ^Tᵢ) + (∏ (bᵢ + hᵢ)^Tᵢ − ∏ bᵢ^Tᵢ),

of which the first term has no jumps and a tilt of its own, and the second has at least one. The transform of the second is
∏ Bᵢ^Tᵢ · (e^λ − 1), λ = Σ Tᵢ log(1 + Hᵢ/Bᵢ), in which nothing cancels: its rounding is relative to the mass of jumps.

What rounding may do to it follows from F(x, y) = ∏ (xᵢ + yᵢ)^Tᵢ − ∏ xᵢ^Tᵢ, a power series with coefficients ≥ 0: an error of
at most eᵢ in Bᵢ and of fᵢ in Hᵢ moves the second term by at most F(|B| + e, |H| + f) − F(|B|, |H|).
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from accountants import convolution
from accountants import spectrum as spectra
from accountants.convolution import Composition
from accountants.cumulants import CHERNOFF, NORMAL, OUTSIDE, Cumulants, lowest
from accountants.grid import TooLongError
from accountants.lattice import Lattice

Array = NDArray[np.float64]
Index = NDArray[np.int64]
Complex = NDArray[np.complex128]
Parts = Sequence[tuple[Lattice, Array]]

MAX_POINTS = 2**20
"""Of one transform."""

_MOST_JUMPS = 1.0  # expected, under the tilt
_TOO_MANY = 30.0
_FAINT = 0.2  # |B| below which H/B is not taken
_STEEPEST = 75.0  # tilt, over 1/ε: results are precise up to several times ε
_TILTS = np.geomspace(1e-3, _STEEPEST, 41)  # over 1/ε
_FAINTEST = 1e-250  # jumps expected, under the tilt, that numbers are precise for
_LARGE = 50.0  # largest exponent


class NotRareError(Exception):
    """Composing jumps apart is no use: they are not rare, or a measure has nothing else."""


def compose(parts: Parts, cutoff: float, epsilon: float, *, sign: int) -> tuple[Composition, Composition]:
    """The composition as two: without losses that lie more than `cutoff` above the heaviest one of their measure, and with.

    Args:
      parts: batches and how often each of their measures is composed.
      cutoff: > 0.
      epsilon: > 0, where the result is to be precise.
      sign: +1 to bound from above, −1 from below.

    Raises:
      NotRareError: see there; or a part is a composition, of which mass may be missing, known at another tilt alone.
      TooLongError: the transform would be.
    """
    if any(lattice.tilt for lattice, _ in parts):
        raise NotRareError
    rows = [row for lattice, counts in parts for row in _rows(lattice, counts, cutoff)]
    tilt = _tilt(rows, epsilon)
    low, high = _window(rows, tilt)
    if not (high - low) / rows[0].step < MAX_POINTS:
        raise TooLongError(f"a transform of {(high - low) / rows[0].step:.3g} points")
    small = [(_below(lattice, cutoff), counts) for lattice, counts in parts]
    lower_tilt = min(Cumulants.of(small, coarse=True).tilt_for_epsilon(epsilon).used, _STEEPEST / epsilon)
    without = convolution.compose(small, lower_tilt, sign=sign)
    return without, _with_jumps(rows, parts, tilt, low, high, without)


@dataclasses.dataclass(frozen=True)
class _Row:
    """One measure, split: at which points there is mass, and the logarithms of it.

    Attributes:
      times: how often it is composed.
      origin: its heaviest loss.
      step: of the lattice.
      index, log_mass: of losses below the cutoff, counted from the heaviest one, (n,).
      far_index, far_log_mass: of those above, (m,), perhaps none.
    """

    times: float
    origin: float
    step: float
    index: Index
    log_mass: Array
    far_index: Index
    far_log_mass: Array

    def tilted(self, tilt: float) -> tuple[Array, Array, float]:
        """Tilted masses over that of all losses below the cutoff, and the logarithm of that; losses count from the heaviest."""
        small, far = self.log_mass + tilt * self.step * self.index, self.far_log_mass + tilt * self.step * self.far_index
        top = float(small.max())
        with np.errstate(under="ignore", over="ignore"):
            scale = top + math.log(float(np.exp(small - top).sum()))
            return np.exp(small - scale), np.exp(far - scale), scale


def _above(lattice: Lattice, cutoff: float) -> tuple[Index, NDArray[np.bool_]]:
    """Points, counted from the heaviest one of each row, and which of them are above the cutoff; each (k, n)."""
    index = lattice.index - lattice.index[lattice.mass.argmax(axis=1)][:, None]
    return index, np.asarray(index * lattice.step > cutoff, np.bool_)


def _below(lattice: Lattice, cutoff: float) -> Lattice:
    return dataclasses.replace(lattice, mass=np.where(_above(lattice, cutoff)[1], 0.0, lattice.mass))


def _rows(lattice: Lattice, counts: Array, cutoff: float) -> list[_Row]:
    result = []
    for mass, index, above, times, losses in zip(
        lattice.mass, *_above(lattice, cutoff), counts.tolist(), lattice.losses, strict=True
    ):
        if times and not mass.any():
            raise NotRareError
        if times:
            near, far = ~above & (mass > 0), above & (mass > 0)
            parts = index[near], np.log(mass[near]), index[far], np.log(mass[far])
            result.append(_Row(times, float(losses[mass.argmax()]), lattice.step, *parts))
    return result


def _with_jumps(rows: Sequence[_Row], parts: Parts, tilt: float, low: float, high: float, without: Composition) -> Composition:
    """Everything with at least one jump, in the window (low, high); `without` is everything else."""
    from scipy.fft import irfft, next_fast_len, rfft

    step, sign = without.step, without.sign
    total = sum(row.times for row in rows)
    origin = sum(row.times * row.origin for row in rows)
    scale = sum(float(counts.sum()) * lattice.log_scale for lattice, counts in parts)
    outside = 2 * (OUTSIDE + sum(lattice.outside * float(counts.sum()) for lattice, counts in parts))
    largest = origin + step * sum(row.times * float(max(row.index[-1], row.far_index.max(initial=0))) for row in rows)
    expected = _log_masses(rows, tilt)[1]
    if expected > _TOO_MANY or (expected < _FAINTEST and any(len(row.far_index) for row in rows)):
        raise NotRareError
    if expected == 0:
        return dataclasses.replace(without, mass=np.zeros(2), error=0.0, noise=0.0, outside=0.0, infinite=0.0, largest=largest)
    first = math.floor(low / step)
    length = next_fast_len(max(math.ceil(high / step) - first + 2, 16), real=True)
    count = length // 2 + 1
    gamma = spectra.relative_rounding(length)
    spectrum = spectra.Spectrum(count, gamma)
    jumps = np.zeros(count, np.complex128)  # λ
    most, more, ceiling = np.zeros(count), np.zeros(count), np.zeros(count)  # λ of magnitudes; its error; log ∏ (|B| + |H|)^T
    nearest = np.ones(count)  # |1 + H/B|, by which the logarithm's rounding grows
    clear, shift = np.ones(count, np.bool_), 0
    for row in rows:
        weights, far, _ = row.tilted(tilt)
        peak = int(weights.argmax())
        atom = float(weights[peak]) if weights[peak] > 0.5 else 0.0
        weights[peak] -= atom
        at, far_at = ((index - row.index[peak]) % length for index in (row.index, row.far_index))
        b, h = (rfft(np.bincount(i, weights=w, minlength=length)) for i, w in ((at, weights), (far_at, far)))
        spectrum.multiply(b[None], np.array([atom]), np.array([weights.sum()]), np.array([row.times]))
        whole = np.maximum(np.abs(atom + b), _FAINT)
        clear &= whole > _FAINT
        ratio = np.where(clear, h / np.where(clear, atom + b, 1.0), 0.0)
        jumps += row.times * _log1p(ratio)
        nearest = np.minimum(nearest, np.abs(1 + ratio))
        most += row.times * np.log1p(np.abs(h) / whole)
        more += row.times * np.log1p(gamma * far.sum() / whole)
        ceiling += row.times * (np.log(whole + gamma) + np.log1p((np.abs(h) + gamma * far.sum()) / whole))
        shift += int(row.index[peak]) * int(row.times)
    mass = math.expm1(expected)
    values = irfft(np.where(clear, spectrum.values() * _expm1(jumps) / mass, 0.0), length)
    log_size, grown, turned = spectrum.bounds()
    with np.errstate(under="ignore"):
        spread = _times_growth(log_size, grown, most + more) + _times_growth(log_size + most, more)
        spread = spread * (1 + 1e-9) + _times_growth(log_size, most) * (gamma + 4 * spectra.UNIT * (turned + 8))
        spread += _times_growth(log_size + most, most) * (64 * spectra.UNIT / np.maximum(nearest, 1e-16))
        # Where some |B| is faint, what may be there at most is left out: ∏ (|B| + |H|)^T twice, with |B| taken for larger.
        faint = 2 * np.exp(np.minimum(ceiling, _LARGE))
        spread = np.where(clear, spread, faint) / mass + 1e-290
    error, noise = spectra.errors(spread, length)
    return Composition(
        first=origin + first * step,
        step=step,
        mass=np.roll(values, (shift - first) % length),
        error=error,
        noise=noise,
        tilt=tilt,
        log_scale=_log_mass(rows, tilt) + scale + tilt * origin,
        outside=outside,
        infinite=0.0,
        largest=largest,
        relative=math.expm1(min(total * convolution.WEIGHT_ERROR + 1e-12, 1.0)),
        sign=sign,
    )


def _times_growth(log_size: Array, *growths: Array) -> Array:
    """e^log_size · ∏ (e^growth − 1), of which one may be large where the other is small; growths are ≥ 0. At most e^50."""
    with np.errstate(divide="ignore"):
        logs = log_size + sum(growth + np.log(-np.expm1(-growth)) for growth in growths)
    return np.asarray(np.exp(np.minimum(logs, _LARGE)), np.float64)


def _log_mass(rows: Sequence[_Row], tilt: float) -> float:
    """log of the tilted mass of everything with at least one jump; −∞ if there is none. Losses count from the heaviest."""
    without, expected = _log_masses(rows, tilt)
    return without + (expected + math.log(-math.expm1(-expected)) if expected else -math.inf)


def _log_masses(rows: Sequence[_Row], tilt: float) -> tuple[float, float]:
    """log of the tilted mass without jumps, and log of the ratio of all of it to that: about how many jumps are expected."""
    without = expected = 0.0
    for row in rows:
        _, far, scale = row.tilted(tilt)
        with np.errstate(over="ignore"):
            without, expected = without + row.times * scale, expected + row.times * math.log1p(float(far.sum()))
    return without, expected


def _tilt(rows: Sequence[_Row], epsilon: float) -> float:
    """θ at which Chernoff's bound of losses above ε is least, with few jumps expected: any θ is valid."""
    origin = sum(row.times * row.origin for row in rows)
    best, least = float(_TILTS[0]) / epsilon, math.inf
    for tilt in (_TILTS / epsilon).tolist():
        without, expected = _log_masses(rows, tilt)
        if not 0 < expected <= _MOST_JUMPS:
            break
        value = without + math.log(math.expm1(expected)) - tilt * (epsilon - origin)
        if value >= least:
            break
        best, least = tilt, value
    return best


def _window(rows: Sequence[_Row], tilt: float) -> tuple[float, float]:
    """Losses outside of which lies at most OUTSIDE of the tilted mass with jumps on either side, by Chernoff's bound."""
    centre, log_eta, by = _log_mass(rows, tilt), math.log(OUTSIDE), 1e-2 * tilt
    if centre == -math.inf:
        return 0.0, 0.0
    curvature = (_log_mass(rows, tilt + by) - 2 * centre + _log_mass(rows, tilt - by)) / by**2
    tries = CHERNOFF / math.sqrt(max(curvature, rows[0].step ** 2))

    def reach(side: int) -> float:
        def bound(z: float) -> float:
            log_mass = _log_mass(rows, tilt + side * z)
            return (log_mass - centre - log_eta) / z if log_mass > -math.inf else math.inf  # jumps of less than 1e-308

        return bound(lowest(bound, tries, NORMAL))

    return -reach(-1), reach(1)


def _log1p(z: Complex) -> Complex:
    """log(1 + z), off by a few u |z| / |1 + z|² for |z| < 1."""
    square = np.maximum(z.real * (2 + z.real) + z.imag**2, -1 + 1e-16)
    return np.asarray(0.5 * np.log1p(square) + 1j * np.arctan2(z.imag, 1 + z.real), np.complex128)


def _expm1(z: Complex) -> Complex:
    """e^z − 1, off by a few u (|z| + 1) |e^z − 1| or so for |z| of 1 or less."""
    real = np.expm1(z.real) * np.cos(z.imag) - 2 * np.sin(z.imag / 2) ** 2
    return np.asarray(real + 1j * np.exp(z.real) * np.sin(z.imag), np.complex128)
