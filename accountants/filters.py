"""Adaptively chosen events: a filter that stops in time, and an odometer that says what was spent.

They make different promises. A *filter* fixes (ε, δ) first; whatever is then chosen, with sight of everything released before,
the whole interaction is (ε, δ)-DP. Rényi filters do so without loss: the sum of the (adaptive) divergences may not pass the
budget (Feldman and Zrnic 2021, Theorem 4.3; Lécuyer 2021). The order is fixed with the budget: which of several orders holds
could depend on what was released, and then δ would have to be paid for each. An *odometer* has no ceiling fixed first; its
running figure holds at every moment at once only if it pays for the choice of when to look, so its δ is split over doubling
thresholds (Rogers, Roth, Ullman, Vadhan 2016; Lécuyer 2021, section 4).
"""

import dataclasses
import functools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accountants import conversion
from accountants.domains import open_unit, positive
from accountants.errors import BudgetExceededError
from accountants.events import GaussianDpEvent, NeighbouringRelation
from accountants.pairs import GaussianPair
from accountants.rdp import DEFAULT_ORDERS, RdpAccountant, check_orders
from accountants.roots import falling_zero
from accountants.single import curve


@dataclasses.dataclass(frozen=True)
class FilterPromise:
    """(ε, δ) for everything that a filter let pass, however it was chosen. Fixed before the first event."""

    epsilon: float
    delta: float
    neighbouring_relation: NeighbouringRelation


@dataclasses.dataclass(frozen=True)
class OdometerReading:
    """(ε, δ) for what was released up to now: it holds at all readings at once, and moves only upwards."""

    epsilon: float
    delta: float
    neighbouring_relation: NeighbouringRelation


class Filter:
    """Stops before (ε, δ) is passed. Events may be chosen adaptively.

    Attributes:
      order: Rényi order at which divergences are added up.
      allowance: what they may add up to.
      promise: (ε, δ).

    Example:
      >>> from accountants import Filter, GaussianDpEvent
      >>> stop = Filter(epsilon=1.0, delta=1e-5)
      >>> while not stop.would_exceed(GaussianDpEvent(10.0)):
      ...     stop.charge(GaussianDpEvent(10.0))
      >>> stop.promise.epsilon
      1.0
    """

    def __init__(
        self,
        *,
        epsilon: float,
        delta: float,
        neighbouring_relation: str | NeighbouringRelation = NeighbouringRelation.ADD_OR_REMOVE_ONE,
        typical_event: Any = None,
        order: float | None = None,
    ):
        """Fixes the budget.

        Args:
          epsilon: > 0.
          delta: in (0, 1).
          neighbouring_relation: under which both are meant.
          typical_event: most runs of it are to fit; what is charged later may differ. A Gaussian by default, which is a poor
            guide to sampled mechanisms.
          order: Rényi order, > 1, in place of the one that suits `typical_event`.
        """
        orders = DEFAULT_ORDERS if order is None else check_orders((order,))
        costs = orders
        if typical_event is not None:
            typical = RdpAccountant(orders, neighbouring_relation=neighbouring_relation).compose(typical_event)
            costs = tuple(typical.rdp.tolist())
        self.order, self.allowance = _allowance(orders, costs, positive(epsilon, "epsilon"), open_unit(delta, "delta"))
        self._accountant = RdpAccountant((self.order,), neighbouring_relation=neighbouring_relation)
        self.promise = FilterPromise(float(epsilon), float(delta), self._accountant.neighbouring_relation)

    def would_exceed(self, event: Any, count: int = 1) -> bool:
        """Whether charging `count` runs of `event` would pass the budget. Charges nothing."""
        after = self._accountant.rdp + self._accountant.divergence(event, count)
        return not float(after[0]) <= self.allowance

    def charge(self, event: Any, count: int = 1) -> None:
        """Counts `count` runs of `event`, which may be released after it returns.

        Raises:
          BudgetExceededError: they would pass the budget; nothing was counted and nothing may be released.
        """
        if self.would_exceed(event, count):
            raise BudgetExceededError(
                f"{count} more would pass epsilon = {self.promise.epsilon:g} at delta = {self.promise.delta:g}; "
                "nothing was released"
            )
        self._accountant.compose(event, count)

    @property
    def remaining(self) -> float:
        """The part of the Rényi budget that is left, from 1 to 0."""
        return 1 - float(self._accountant.rdp[0]) / self.allowance if self.allowance else 0.0


def gaussian_ceiling(epsilon: float, delta: float) -> GaussianDpEvent:
    """What Gaussian mechanisms amount to at most, chosen with sight of what was released, as long as they never add up to more
    than (ε, δ): one Gaussian mechanism of that cost, and so at every other δ too.

    Gaussians need no filter of Rényi divergences: their 1/σ² add up, however they were chosen (Smith and Thakurta 2022,
    Theorem 1).

    Args:
      epsilon: > 0, where units are added or removed (or zeroed out); the event costs more under `replace_one`.
      delta: in (0, 1).
    """
    epsilon, delta = positive(epsilon, "epsilon"), open_unit(delta, "delta")

    def excess(sigma: float) -> float:
        """> 0 where it certainly costs more."""
        return math.log(max(curve(GaussianPair(np.array([[1 / sigma]])), epsilon).lower, 1e-320) / delta)

    high = 1.0
    while excess(high) > 0:
        high *= 2
    low = high / 2
    while excess(low) <= 0 and low > 1e-150:
        low /= 2
    root, margin = falling_zero(excess, low, high, rtol=1e-14), 0.0
    while margin < 1 and excess(root * (1 - margin)) <= 0:
        margin = min(max(4 * margin, 1e-14), 1.0)
    return GaussianDpEvent(root * (1 - margin))


class Odometer:
    """Says at any time what was spent so far. Events, and when to look, may be chosen adaptively.

    It is a series of filters with ε doubling from `first`, each with its part of δ, of which the first that is not yet
    passed gives the reading: a reading is coarse, several times what was spent at worst. For a ceiling known beforehand use
    `Filter`; for events fixed beforehand an accountant, which is exact.
    """

    def __init__(
        self,
        *,
        delta: float,
        first: float = 0.125,
        neighbouring_relation: str | NeighbouringRelation = NeighbouringRelation.ADD_OR_REMOVE_ONE,
    ):
        """Starts at zero.

        Args:
          delta: in (0, 1), for all readings together.
          first: smallest reading but zero, > 0.
          neighbouring_relation: under which readings are meant.
        """
        self.delta, self.first = open_unit(delta, "delta"), positive(first, "first")
        self._accountant = RdpAccountant(neighbouring_relation=neighbouring_relation)

    def charge(self, event: Any, count: int = 1) -> None:
        """Counts `count` runs of `event`. Charge before releasing."""
        self._accountant.compose(event, count)

    @property
    def reading(self) -> OdometerReading:
        """What was spent so far, an upper bound."""
        rdp, relation = self._accountant.rdp, self._accountant.neighbouring_relation
        if not rdp.any():
            return OdometerReading(0.0, self.delta, relation)
        for k in range(64):
            epsilon = self.first * 2**k
            part = self.delta * 6 / (math.pi * (k + 1)) ** 2  # the parts sum to δ
            order, budget = _allowance(self._accountant.orders, self._accountant.orders, epsilon, part)
            if rdp[self._accountant.orders.index(order)] <= budget:
                return OdometerReading(epsilon, self.delta, relation)
        return OdometerReading(math.inf, self.delta, relation)


@functools.lru_cache(maxsize=256)
def allowances(orders: tuple[float, ...], epsilon: float, delta: float) -> NDArray[np.float64]:
    """The largest Rényi divergence at each order that is (ε, δ)-DP: (k,), read-only."""
    alpha = np.asarray(orders)
    low, high = np.zeros_like(alpha), np.full_like(alpha, epsilon + 1.0)
    for _ in range(60):
        middle = 0.5 * (low + high)
        fits = conversion.each(alpha, middle, delta) <= epsilon
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    low.setflags(write=False)
    return low


@functools.lru_cache(maxsize=256)
def _allowance(orders: tuple[float, ...], costs: tuple[float, ...], epsilon: float, delta: float) -> tuple[float, float]:
    """The order at which most fit into (ε, δ) of what costs `costs`, and the allowance there.

    A Gaussian's divergence is proportional to the order.
    """
    low = allowances(orders, epsilon, delta)
    best = int(np.argmax(low / np.maximum(costs, 1e-300)))
    return orders[best], float(low[best])
