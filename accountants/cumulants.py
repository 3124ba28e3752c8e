"""The cumulant generating function of a composition: where its tilted mass lies, and which tilt suits a question."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from accountants import special
from accountants.lattice import Lattice

Array = NDArray[np.float64]

OUTSIDE = 1e-14
"""η: tilted mass that may lie outside a window, on either side."""

_COARSE = 256  # points with which the tilt and the window are searched
STAND_INS = 32
"""Measures of a batch with which tilt and window are searched, instead of all."""
CHERNOFF = np.geomspace(0.02, 20, 13)
"""How far the tilt is moved for a tail bound, over 1/(standard deviation)."""
NORMAL = 10
"""The one of them that is best for a normal distribution."""
_GIVEN_UP = 5.0  # in log δ, of what the best tilt would give


class Tilt(NamedTuple):
    """θ at which a bound is least, and the one to compute with."""

    best: float
    used: float


class Cumulants:
    """K(θ) = Σ T log Σ p e^{θy} of batches of measures, with its derivatives."""

    def __init__(self, parts: Sequence[tuple[Array, Array, Array]]):
        """`parts`: batches of masses (k, n), their losses (k, n) and how often each measure is composed (k,)."""
        with np.errstate(divide="ignore"):
            self._parts = [(np.log(mass), losses, counts) for mass, losses, counts in parts]
        self.widest = max(float(np.ptp(losses, axis=1).max()) for _, losses, _ in parts)
        self._constant = 0.0

    @classmethod
    def of(cls, parts: Sequence[tuple[Lattice, Array]], *, coarse: bool = False) -> "Cumulants":
        """Of lattice measures, all their points or blocks of them (for searches, where nothing depends on precision)."""
        chosen, few = [], max(STAND_INS // len(parts), 2)
        for lattice, counts in parts:
            mass, losses = lattice.mass, lattice.losses
            if coarse and mass.shape[1] > 4 * _COARSE:
                starts = _block_starts(mass.shape[1])
                mass = np.add.reduceat(mass, starts, axis=1)
                losses = losses[:, (starts + np.append(starts[1:], losses.shape[1])) // 2]
            chosen.append(_some(mass, losses, counts, few) if coarse else (mass, losses, counts))
        result = cls(chosen)
        result._constant = sum(lattice.log_scale * float(counts.sum()) for lattice, counts in parts)
        return result

    def value(self, tilt: float) -> float:
        """K(θ)."""
        return self.derivatives(tilt, 0)[0]

    def derivatives(self, tilt: float, how_many: int = 2) -> tuple[float, ...]:
        """K and, where asked for, K′ (mean of the tilted loss) and K″ (its variance)."""
        total = np.zeros(1 + how_many)
        total[0] = self._constant
        for logs, losses, counts in self._parts:
            exponent = logs + tilt * losses
            top = exponent.max(axis=1, keepdims=True)
            with np.errstate(under="ignore"):
                weight = np.exp(exponent - top)
                size = weight.sum(axis=1)
                terms = [top[:, 0] + np.log(size)]
                if how_many:
                    mean = (weight * losses).sum(axis=1) / size
                    terms += [mean, (weight * (losses - mean[:, None]) ** 2).sum(axis=1) / size]
            total += np.array([counts @ term for term in terms])
        return tuple(total.tolist())

    def tilted(self, tilt: float) -> list[tuple[Array, Array]]:
        """Tilted masses of each batch, normalised (k, n), and where they are."""
        result = []
        for logs, losses, _ in self._parts:
            exponent = logs + tilt * losses
            with np.errstate(under="ignore"):
                weight = np.exp(exponent - exponent.max(axis=1, keepdims=True))
            result.append((weight / weight.sum(axis=1, keepdims=True), losses))
        return result

    def _deviation(self, tilt: float) -> float:
        return math.sqrt(self.derivatives(tilt)[2])

    def tilt_for_delta(self, delta_: float) -> Tilt:
        """θ that is best for ε at δ: least (K(θ) − log δ + θ log θ − (θ+1) log(θ+1))/θ, Canonne, Kamath, Steinke 2020."""
        return _least(lambda t: (self.value(t) - math.log(delta_) + _conversion(t)) / t, lambda t: t, self._deviation)

    def tilt_for_epsilon(self, epsilon_: float) -> Tilt:
        """θ that is best for δ at ε: least K(θ) − θε + θ log θ − (θ+1) log(θ+1)."""
        return _least(lambda t: self.value(t) - t * epsilon_ + _conversion(t), lambda _: 1.0, self._deviation)

    def epsilon(self, tilt: float, delta_: float) -> float:
        """ε at δ that follows from K(θ) alone."""
        return (self.value(tilt) - math.log(delta_) + _conversion(tilt)) / tilt

    def log_delta(self, tilt: float, epsilon_: float) -> float:
        """log δ at ε that follows from K(θ) alone."""
        return self.value(tilt) - tilt * epsilon_ + _conversion(tilt)


def _conversion(tilt: float) -> float:
    return float(special.xlogy(tilt, tilt)) - (tilt + 1) * math.log1p(tilt)


def _some(mass: Array, losses: Array, counts: Array, few: int) -> tuple[Array, Array, Array]:
    """Few of a large batch's measures, each composed as often as those of like spread are together."""
    if len(counts) <= max(STAND_INS, few):
        return mass, losses, counts
    alike = np.array_split(np.argsort(np.sum(mass * losses**2, axis=1)), few)
    middle = [rows[len(rows) // 2] for rows in alike]
    return mass[middle], losses[middle], np.array([counts[rows].sum() for rows in alike])


def _block_starts(size: int) -> NDArray[np.int64]:
    """Where blocks of a coarse copy begin: single points at both ends, where sampled mechanisms have their mass."""
    near = np.unique(np.geomspace(1, size / 2, _COARSE // 2).astype(np.int64))
    even = np.linspace(0, size - 1, _COARSE).astype(np.int64)
    return np.unique(np.concatenate([even, near - 1, size - near]))


def _least(f: Callable[[float], float], weight: Callable[[float], float], deviation: Callable[[float], float]) -> Tilt:
    """About the θ in [1e-7, 1e8] at which a function that is unimodal in log θ is least, and one to compute with.

    Any θ gives a valid bound. Where the loss has a heavy tail the best θ lies where the tilted mass jumps into that tail and is
    spread widely. A lower θ then asks for less work: `weight(θ)` times the difference in f is lost in log δ, that is in
    the precision of the transform, which has some to give.

    Args:
      f: what is to be least.
      weight: see above.
      deviation: standard deviation of the tilted loss at θ.
    """
    seen: dict[float, float] = {}
    grid = np.linspace(math.log(1e-7), math.log(1e8), 21)
    for points in (7, 7, 5):
        seen |= {float(t): f(math.exp(t)) for t in grid}
        best = min(seen, key=lambda t: (math.isnan(seen[t]), seen[t]))
        below = max((t for t in seen if t < best), default=best)
        above = min((t for t in seen if t > best), default=best)
        grid = np.linspace(below, above, points)
    seen |= {t: f(math.exp(t)) for t in best - np.geomspace(0.03, 0.6, 8)}
    lost = {t: (seen[t] - seen[best]) * weight(math.exp(t)) for t in seen if t <= best}
    used = min(
        (t for t in lost if lost[t] <= _GIVEN_UP), key=lambda t: math.log(deviation(math.exp(t)) + 1e-300) + lost[t] / 50
    )
    return Tilt(math.exp(best), math.exp(used))


def lowest(f: Callable[[float], float], tries: Array, start: int) -> float:
    """The one of `tries` at which a function that falls and then rises is least, looked for from the one at `start`."""
    best, least = start, f(float(tries[start]))
    for side in (-1, 1):
        while 0 <= best + side < len(tries) and (value := f(float(tries[best + side]))) < least:
            best, least = best + side, value
    return float(tries[best])


def window(search: Cumulants, tilt: float, part: float = 1.0, exact: Cumulants | None = None) -> tuple[float, float]:
    """Losses outside of which lies at most OUTSIDE of the tilted mass on either side, by Chernoff's bound.

    Args:
      search: of the parts, perhaps coarse.
      tilt: θ.
      part: how much of the composition is meant, K being proportional to it.
      exact: of the parts, exactly, if the window has to be certain.
    """
    exact = exact or search
    log_eta = math.log(OUTSIDE)
    centre, _, variance = search.derivatives(tilt)
    certain = exact.value(tilt)
    tries = CHERNOFF / (math.sqrt(part * variance) + 1e-3 * search.widest + 1e-150)  # a deviation of 0 is no scale

    def best(side: int) -> float:
        z = lowest(lambda t: (part * (search.value(tilt + side * t) - centre) - log_eta) / t, tries, NORMAL)
        return float(side * (part * (exact.value(tilt + side * z) - certain) - log_eta) / z)

    return best(-1), best(1)
