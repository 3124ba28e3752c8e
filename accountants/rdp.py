"""The Rényi (moments) accountant: adds up Rényi divergences of events and converts the sum to (ε, δ).

Composition of Rényi DP is addition at each order (Mironov 2017, Proposition 1), adaptively chosen
mechanisms included. Every number returned is an upper bound under the stated neighbouring relation.
"""

import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from accountants import conversion as conversions
from accountants.domains import non_negative, open_unit, whole
from accountants.events import NeighbouringRelation, as_event, as_relation
from accountants.interval import Interval
from accountants.orders import DEFAULT_ORDERS, MAX_ORDER, check_orders
from accountants.renyi_events import event_rdp, times

__all__ = ["DEFAULT_ORDERS", "MAX_ORDER", "RdpAccountant", "check_orders", "event_rdp"]

Array = NDArray[np.float64]


class RdpAccountant:
    """Accumulates events and answers with upper bounds.

    Example:
      >>> from accountants import RdpAccountant, dpsgd_event
      >>> accountant = RdpAccountant().compose(dpsgd_event(1.1, 256 / 60_000, 14_062))
      >>> round(accountant.get_epsilon(1e-5), 3)
      2.597
    """

    name = "rdp"

    def __init__(
        self,
        orders: Sequence[float] | None = None,
        *,
        neighbouring_relation: str | NeighbouringRelation = NeighbouringRelation.ADD_OR_REMOVE_ONE,
        conversion: str = "tight",
    ):
        """Starts with nothing composed.

        Args:
          orders: Rényi orders, each > 1 and at most 10^6; integer and fractional ones may be mixed.
          neighbouring_relation: the relation under which every answer is meant.
          conversion: "tight" (Asoodeh et al. 2021) or "classic" (Mironov 2017); see `conversion.py`.

        Raises:
          InvalidEventError: an argument lies outside its domain.
        """
        self.orders = check_orders(DEFAULT_ORDERS if orders is None else orders)
        self.neighbouring_relation = as_relation(neighbouring_relation)
        self.conversion = conversions.check_name(conversion)
        self._rdp: Array = np.zeros(len(self.orders))

    @property
    def rdp(self) -> Array:
        """Rényi divergence composed so far at each of `orders`: a copy, (k,) float64."""
        return self._rdp.copy()

    def compose(self, event: Any, count: int = 1) -> Self:
        """Adds `count` independent runs of `event`, ours or a `dp_accounting` one. Returns self.

        Raises:
          InvalidEventError: the event or the count is malformed.
          UnsupportedEventError: no valid bound is known here; nothing was composed.
        """
        self._rdp = self._rdp + self.divergence(event, count)
        return self

    def divergence(self, event: Any, count: int = 1) -> Array:
        """What `count` runs of `event` would add at each order: (k,) float64. Composes nothing."""
        single = event_rdp(as_event(event), self.orders, self.neighbouring_relation)
        return times(single, whole(count, "count"))

    def get_epsilon(self, delta: float) -> float:
        """Upper bound of ε at `delta` in (0, 1); infinite if anything composed has no guarantee."""
        return self.get_epsilon_and_optimal_order(delta)[0]

    def copy(self) -> Self:
        """One with the same composed; further events go to one of both alone."""
        result = type(self)(self.orders, neighbouring_relation=self.neighbouring_relation, conversion=self.conversion)
        result._rdp = self._rdp.copy()
        return result

    def epsilon_interval(self, delta: float) -> Interval:
        """ε at `delta`, from 0 to the upper bound: Rényi divergences bound it from one side alone."""
        return Interval(0.0, self.get_epsilon(delta))

    def delta_interval(self, epsilon: float) -> Interval:
        """δ at `epsilon`, from 0 to the upper bound."""
        return Interval(0.0, self.get_delta(epsilon))

    def get_epsilon_and_optimal_order(self, delta: float) -> tuple[float, float]:
        """`get_epsilon` and the Rényi order at which it is attained."""
        return self.convert(self._rdp, delta)

    def get_delta(self, epsilon: float) -> float:
        """Upper bound of δ at `epsilon` ≥ 0, never below 1e-300: the inverse of `get_epsilon`."""
        if epsilon == math.inf:
            epsilon = float(np.finfo(np.float64).max)
        return conversions.delta(np.asarray(self.orders), self._rdp, non_negative(epsilon, "epsilon"), self.conversion)

    def convert(self, rdp: Array, delta: float) -> tuple[float, float]:
        """(ε, order) of an arbitrary curve at this accountant's orders, by its conversion."""
        return conversions.epsilon(np.asarray(self.orders), rdp, open_unit(delta, "delta"), self.conversion)
