"""The Rényi (moments) accountant: adds up Rényi divergences of events and converts the sum to (ε, δ).

Composition of Rényi DP is addition at each order (Mironov 2017, Proposition 1), adaptively chosen
mechanisms included. Every number returned is an upper bound under the stated neighbouring relation.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from accountants import conversion as conversions
from accountants import renyi
from accountants.domains import non_negative, open_unit, whole
from accountants.errors import InvalidEventError, UnsupportedEventError
from accountants.events import (
    ComposedDpEvent,
    DpEvent,
    GaussianDpEvent,
    LaplaceDpEvent,
    NeighbouringRelation,
    NonPrivateDpEvent,
    NoOpDpEvent,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
    as_event,
    as_relation,
)

Array = NDArray[np.float64]


def _default_orders() -> tuple[float, ...]:
    near_one = 1 + np.concatenate([np.geomspace(0.005, 0.1, 12)[:-1], np.arange(10, 100, 4) / 100])
    fractional = np.arange(20, 110) / 10
    integer = np.arange(11, 65)
    large = np.unique(np.round(np.geomspace(65, 16384, 72)))
    return tuple(np.concatenate([near_one, fractional, integer, large]).tolist())


MAX_ORDER = 10**6
"""Work and memory grow with the order."""

DEFAULT_ORDERS = _default_orders()
"""Fine where DP-SGD has its optimum, and up to 16384 for very small ε."""


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
        return _times(single, whole(count, "count"))

    def get_epsilon(self, delta: float) -> float:
        """Upper bound of ε at `delta` in (0, 1); infinite if anything composed has no guarantee."""
        return self.get_epsilon_and_optimal_order(delta)[0]

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


def check_orders(orders: Sequence[float]) -> tuple[float, ...]:
    """Returns `orders` as a tuple of floats.

    Raises:
      InvalidEventError: there is none, or one is not a finite number > 1.
    """
    try:
        result = tuple(float(order) for order in orders)
    except (TypeError, ValueError):
        raise InvalidEventError(f"orders must be a list of numbers > 1; got {orders!r:.80}") from None
    if not result or not all(1 < order <= MAX_ORDER for order in result):
        raise InvalidEventError(f"orders must be numbers in (1, {MAX_ORDER:,}], at least one; got {orders!r:.80}")
    return result


@functools.lru_cache(maxsize=512)
def event_rdp(event: DpEvent, orders: tuple[float, ...], relation: NeighbouringRelation) -> Array:
    """Rényi divergence of one `event` at each of `orders`, the larger of both directions.

    Args:
      event: any event tree.
      orders: (k,) each > 1.
      relation: see `NeighbouringRelation`.

    Returns:
      (k,) float64, read-only (it is cached); infinite where there is no guarantee.

    Raises:
      UnsupportedEventError: no valid bound is known here for this event under this relation.
    """
    with np.errstate(over="ignore", divide="ignore"):  # infinities are meant; a NaN would be refused later
        result = _event_rdp(event, orders, relation)
    result.setflags(write=False)
    return result


def _event_rdp(event: DpEvent, orders: tuple[float, ...], relation: NeighbouringRelation) -> Array:
    alpha = np.asarray(orders)
    # Replacing a unit moves a sum twice as far as adding or removing it.
    shrink = 0.5 if relation is NeighbouringRelation.REPLACE_ONE else 1.0
    match event:
        case NoOpDpEvent():
            return np.zeros_like(alpha)
        case NonPrivateDpEvent():
            return np.full_like(alpha, np.inf)
        case GaussianDpEvent(noise_multiplier=sigma):
            return renyi.gaussian(alpha, shrink * sigma)
        case LaplaceDpEvent(noise_multiplier=scale):
            return renyi.laplace(alpha, shrink * scale)
        case SelfComposedDpEvent(event=inner, count=count):
            return _times(event_rdp(inner, orders, relation), count)
        case ComposedDpEvent(events=events):
            return sum((event_rdp(inner, orders, relation) for inner in events), np.zeros_like(alpha))
        case PoissonSampledDpEvent(sampling_probability=q, event=inner):
            return _poisson_sampled(q, inner, orders, relation)
    raise UnsupportedEventError(f"the Rényi accountant has no bound for {type(event).__name__}")


def _poisson_sampled(q: float, inner: DpEvent, orders: tuple[float, ...], relation: NeighbouringRelation) -> Array:
    alpha = np.asarray(orders)
    sigma = _equivalent_gaussian(inner)
    if q == 0 or sigma == math.inf:
        return np.zeros_like(alpha)
    if q == 1:
        return event_rdp(inner, orders, relation).copy()
    if isinstance(inner, NonPrivateDpEvent):
        return np.full_like(alpha, np.inf)
    if relation is NeighbouringRelation.REPLACE_ONE:
        raise UnsupportedEventError(
            "the Rényi accountant has no bound for Poisson sampling under replace_one; "
            "use add_or_remove_one or zero_out (an ε under one is not an ε under the other)"
        )
    if isinstance(inner, LaplaceDpEvent):
        return renyi.sampled_laplace(alpha, inner.noise_multiplier, q)
    if sigma is None:
        raise UnsupportedEventError(
            f"the Rényi accountant has no bound for Poisson sampling of {type(inner).__name__} other than "
            "a Laplace event or a composition of Gaussian events"
        )
    return renyi.sampled_gaussian(alpha, sigma, q)


def _equivalent_gaussian(event: DpEvent) -> float | None:
    """σ of the one Gaussian event that equals `event`, several Gaussians on the same sample: 1/σ² = Σ 1/σᵢ².

    Infinite where nothing is released, None where `event` is not made of Gaussians alone.
    """
    parts = _gaussians(event)
    if parts is None:
        return None
    least = min((sigma for sigma, _ in parts), default=math.inf)
    if least in (0, math.inf):
        return least
    return least / math.sqrt(sum(count * (least / sigma) ** 2 for sigma, count in parts))


def _gaussians(event: DpEvent, count: int = 1) -> list[tuple[float, int]] | None:
    """(σ, how often) of each Gaussian in `event`, or None if there is anything else."""
    match event:
        case NoOpDpEvent():
            return []
        case GaussianDpEvent(noise_multiplier=sigma):
            return [(sigma, count)] if count else []
        case SelfComposedDpEvent(event=inner, count=times):
            return _gaussians(inner, count * times)
        case ComposedDpEvent(events=events):
            parts = [_gaussians(inner, count) for inner in events]
            return None if None in parts else [pair for part in parts if part for pair in part]
    return None


def _times(rdp: Array, count: int) -> Array:
    """count · rdp with 0 · ∞ = 0."""
    with np.errstate(over="ignore"):
        return rdp * count if count else np.zeros_like(rdp)
