r"""Where the data-dependent bound of GNMax may be sanitised: the functions and conditions of Papernot et al. 2018, appendix B.

For σ, α and m classes fixed, β(q) is Theorem 6's bound where q < q₀ and α/σ² beyond, q₀ being where the two meet (or where the
theorem's conditions end). One vote moved takes q̃ to between

    B_L(q) = (m − 1) Φc(Φc⁻¹(q/(m − 1)) + √2/σ)   and   B_U(q) = (m − 1) Φc(Φc⁻¹(q/(m − 1)) − √2/σ), at most 1

(Proposition 12), and q₁ = B_L(q₀). The paper's bound of the local sensitivity relies on two conditions:

* C5: β is non-decreasing on (0, q₀).
* C6: β(B_U(q)) − β(q) is non-decreasing on (0, q₁).

They are checked on a grid of log q from the least q̃ that K teachers can reach, one move below unanimity, up to q₀ or q₁, dense
near the upper end, where C6 fails first: a numerical check, as the paper's is. Both depend on (σ, α, m, K) alone, never on
votes. C6 fails at high orders.
"""

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accountants import special
from accountants.pate.outcomes import log_q_gnmax
from accountants.pate.rdp import data_dependent, theorem_6

Array = NDArray[np.float64]

_POINTS = 2000  # of log q at which conditions are checked
_NEVER = -1e300  # log of a q that no votes reach
_ROUND = 1e-9  # relative to the data-independent bound: a decrease below it is rounding


@dataclasses.dataclass(frozen=True)
class GnmaxBound:
    """β of GNMax at one order, and what one vote does to q̃.

    Attributes:
      sigma: standard deviation of the noise on each count, in votes.
      order: α.
      classes: m.
      log_q0, log_q1: where the data-independent bound begins, and B_L of it.
    """

    sigma: float
    order: float
    classes: int
    log_q0: float
    log_q1: float

    @classmethod
    def of(cls, sigma: float, order: float, classes: int) -> "GnmaxBound":
        """Finds q₀ and q₁."""
        log_q0 = _log_q0(sigma, order)
        return cls(sigma, order, classes, log_q0, float(_moved(np.array(log_q0), sigma, classes, +1)))

    @property
    def independent(self) -> float:
        """α/σ²."""
        return self.order / self.sigma**2

    def beta(self, log_q: Any) -> Array:
        """β(q): `rdp.data_dependent`, the data-independent bound from q₀ on."""
        log_q = np.asarray(log_q, np.float64)
        return np.where(log_q < self.log_q0, data_dependent(log_q, self.sigma, self.order), self.independent)

    def lower(self, log_q: Any) -> Array:
        """log B_L(q)."""
        return _moved(log_q, self.sigma, self.classes, +1)

    def upper(self, log_q: Any) -> Array:
        """log B_U(q), at most 0."""
        return _moved(log_q, self.sigma, self.classes, -1)

    def local_sensitivity(self, log_q: Any) -> Array:
        """How far one vote can take β from β(q), at most (Algorithm 3, Proposition 13). Between q₁ and q₀ that at q₁ counts."""
        log_q = np.asarray(log_q, np.float64)
        at = np.where((log_q >= self.log_q1) & (log_q <= self.log_q0), self.log_q1, log_q)
        here = self.beta(at)
        return np.maximum(self.beta(self.upper(at)) - here, here - self.beta(self.lower(at)))

    @property
    def plateau(self) -> float:
        """The largest local sensitivity of any votes, under C5 and C6: that at q₁."""
        return float(self.local_sensitivity(self.log_q1))

    def conditions(self, teachers: int) -> tuple[bool, bool]:
        """Whether C5 and C6 hold as far as `teachers` votes reach."""
        unanimous = np.zeros(self.classes)
        unanimous[0] = teachers + 1
        floor = float(log_q_gnmax(unanimous, self.sigma))
        if floor >= self.log_q0:
            return True, True  # always data-independent
        log_q = _grid(floor, self.log_q0)
        c5 = self._non_decreasing(theorem_6(log_q, self.sigma, np.full(log_q.shape, self.order))[0])
        if floor >= self.log_q1:
            return c5, c5
        log_q = _grid(floor, self.log_q1)
        return c5, c5 and self._non_decreasing(self.beta(self.upper(log_q)) - self.beta(log_q))

    def _non_decreasing(self, values: Array) -> bool:
        return bool((np.diff(values) >= -_ROUND * self.independent).all())


def _grid(low: float, high: float) -> Array:
    """Ascending points in [low, high), both negative."""
    near = np.linspace(max(low, 2 * high), high, _POINTS, endpoint=False)
    return np.unique(np.concatenate([-np.geomspace(-low, -near[0], _POINTS), near]))


def _moved(log_q: Any, sigma: float, classes: int, side: int) -> Array:
    share = math.log(classes - 1)
    z = -special.ndtri_exp(np.minimum(np.asarray(log_q, np.float64) - share, -1e-300))
    return np.asarray(np.minimum(share + special.log_ndtr(-(z + side * math.sqrt(2) / sigma)), 0.0))


def _log_q0(sigma: float, order: float) -> float:
    """Where β reaches α/σ² or Theorem 6's conditions end, by bisection: below it β is Theorem 6's."""

    def useful(log_q: float) -> bool:
        bound, valid = theorem_6(np.array(log_q), sigma, np.array(order))
        return bool(valid) and float(bound) < order / sigma**2

    low, high = -1.0, 0.0
    while not useful(low):
        low, high = 2 * low, low
        if low < -1e15:
            return _NEVER
    while high - low > 1e-13 * -low:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if useful(middle) else (low, middle)
    return low
