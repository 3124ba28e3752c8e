r"""Products of powers of transforms, and how far rounding may have taken them.

Each output of an FFT of non-negative numbers that sum to 1 is off by at most γ = c·u·log₂N, the depth of its summation tree
times the unit roundoff u (Higham 2002, section 24.1, componentwise); the whole of it by as much in the 2-norm (theorem 24.2).
Where more than half of a measure is one atom, only the rest is transformed, and its error is so much smaller: F = atom + R,
log F = log atom + log(1 + R/atom). Powers carry this to a bound e of the 2-norm of what comes out.
"""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Complex = NDArray[np.complex128]

UNIT = 2.0**-53
_DEPTH = 8  # roundings on each level of the transform's summation tree, generously
_LARGE = 600.0  # largest exponent
_TINY = 1e-290  # below it products of magnitudes are nothing, and more than they are


def relative_rounding(length: int) -> float:
    """Bound of the error of a transform of non-negative numbers that sum to 1."""
    return _DEPTH * UNIT * math.log2(length)


def errors(rounding: Array, length: int) -> tuple[float, float]:
    """Bounds of what errors of a spectrum, of at most `rounding` at each frequency, do to any one point, and in the 2-norm.

    Powers and the inverse transform are two errors in one bound of each frequency, so √2 times its norm.
    """
    with np.errstate(over="ignore"):
        return 2.0 * float(rounding.sum()) / length, 2.0 * math.sqrt(float((rounding**2).sum()) / length)


class Spectrum:
    """A product of powers of transforms, and how far rounding may have taken it."""

    def __init__(self, count: int, gamma: float):
        """Of 1.

        Args:
          count: frequencies.
          gamma: bound of the error of a transform of non-negative numbers that sum to 1.
        """
        self._gamma = gamma
        self._magnitude, self._phase = np.zeros(count), np.zeros(count)  # the logarithm of the one, the other in radians
        self._growth = np.zeros(count)  # log of by how much the largest magnitude that rounding allows is larger
        self._turned = np.zeros(count)  # sum of the magnitudes of what was added up in both, each of which is off by a few u

    def multiply(self, transform: Complex, atoms: Array, rest: Array, times: Array) -> None:
        """Multiplies by rows, each to the power `times`.

        Args:
          transform: of all but the atom at 0, (k, count).
          atoms: mass there, at least a half or 0, (k,).
          rest: mass of all else, (k,).
          times: (k,).
        """
        once = times == 1
        if once.sum() < 2:
            once = np.zeros_like(once)
        rounding = (self._gamma * rest)[:, None]
        if once.any():
            # Multiplied out as one row: it spares a logarithm and an angle a point, which cost ten times a product.
            with np.errstate(under="ignore"):
                powers = transform[once] + atoms[once, None]
                product = np.multiply.reduce(powers, axis=0)
                most = np.multiply.reduce(np.abs(powers) + rounding[once], axis=0)
            size = np.maximum(np.abs(product), _TINY)
            self._magnitude += np.log(size)
            self._phase += np.angle(product)
            self._growth += np.log(np.maximum(most / size, 1.0))
            self._turned += 2.0 * float(once.sum()) + math.pi + np.abs(np.log(size))
        for row in np.flatnonzero(~once):
            self._multiply_power(transform[row], float(atoms[row]), float(rounding[row, 0]), float(times[row]))

    def _multiply_power(self, transform: Complex, atom: float, rounding: float, times: float) -> None:
        whole, z = atom + transform, transform / atom if atom else np.full_like(transform, np.inf)
        log_size, angle = np.log(np.maximum(np.abs(whole), _TINY)), np.angle(whole)
        turned = math.pi + np.abs(log_size)
        small = np.abs(z) < 0.5  # the logarithm of 1 + z is off by a few u |z|
        z = z[small]
        log1p, log_atom = 0.5 * np.log1p(z.real * (2 + z.real) + z.imag**2), math.log(atom or 1.0)
        log_size[small] = log_atom + log1p
        turned[small] = abs(log_atom) + np.abs(log1p) + np.abs(angle[small]) + np.abs(z)
        self._magnitude += times * log_size
        self._phase += times * angle
        self._growth += times * np.log1p(rounding * np.exp(np.minimum(-log_size, _LARGE)))
        self._turned += times * turned

    def values(self) -> Complex:
        """The product, (count,)."""
        with np.errstate(under="ignore"):
            return np.asarray(np.exp(np.minimum(self._magnitude, 1.0)) * np.exp(1j * self._phase), np.complex128)

    def bounds(self) -> tuple[Array, Array, Array]:
        """Logarithms of magnitudes and of by how much larger they may truly be; how many u each logarithm is off. (count,)."""
        return np.minimum(self._magnitude, 1.0), self._growth, self._turned

    def rounding(self) -> Array:
        """Bound of the error of each value, |computed − true| ≤ Π(|F| + γ)^T − Π|F|^T and what powers round, (count,).

        It allows for the error of an inverse transform as well.
        """
        with np.errstate(under="ignore", over="ignore"):
            size = np.exp(np.minimum(self._magnitude, 1.0))
            few = size * np.expm1(np.minimum(self._growth, 1.0))
            many = np.exp(np.minimum(self._magnitude + self._growth, 50.0))
            rounding = np.where(self._growth < 1.0, few, many) * (1 + 1e-12)
            return np.asarray(rounding + _TINY + size * (self._gamma + 4 * UNIT * (self._turned + 8)), np.float64)
