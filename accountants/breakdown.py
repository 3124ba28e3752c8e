"""Where the budget went, component by component.

Epsilons do not add up, so each component has three honest figures: its ε alone; the total's ε without it;
and its share of a quantity that does add up, the Rényi divergence at the order that is optimal for the total.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accountants.chain import Charge
from accountants.events import DpEvent, NeighbouringRelation
from accountants.rdp import RdpAccountant


@dataclasses.dataclass(frozen=True)
class Component:
    """One component's part of the spend.

    Attributes:
      path: such as "train/gradients".
      events: how many were charged.
      epsilon_alone: ε if nothing else had been released.
      epsilon_if_removed: ε of everything else.
      share: of the Rényi divergence at the total's optimal order; all shares sum to 1.
    """

    path: str
    events: int
    epsilon_alone: float
    epsilon_if_removed: float
    share: float


@dataclasses.dataclass(frozen=True)
class Breakdown:
    """Total and components, all at the same δ under the same neighbouring relation; every ε is an upper bound.

    Attributes:
      epsilon: of everything, = rdp_at_order + conversion_term (up to rounding).
      order: Rényi order at which `epsilon` is attained.
      rdp_at_order: Rényi divergence of everything at that order: what `share` divides.
      conversion_term: the rest of `epsilon`, which belongs to δ and to no component; negative where the
        conversion gains.
    """

    epsilon: float
    delta: float
    accountant: str
    conversion: str
    neighbouring_relation: NeighbouringRelation
    order: float
    rdp_at_order: float
    conversion_term: float
    components: tuple[Component, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; an infinite ε becomes the string "inf", which `float` reads back."""
        result = dataclasses.asdict(self)
        result["neighbouring_relation"] = str(self.neighbouring_relation)
        result["components"] = [
            {key: finite_or_text(value) for key, value in component.items()} for component in result["components"]
        ]
        return {key: finite_or_text(value) for key, value in result.items()}


def break_down(
    charges: Iterable[Charge],
    delta: float,
    *,
    neighbouring_relation: str | NeighbouringRelation = NeighbouringRelation.ADD_OR_REMOVE_ONE,
    conversion: str = "tight",
) -> Breakdown:
    """Adds up `charges` by component path, in order of first appearance.

    Args:
      charges: from a ledger, or made by hand.
      delta: in (0, 1).
      neighbouring_relation: under which the charges are meant.
      conversion: see `conversion.py`.

    Raises:
      UnsupportedEventError, InvalidEventError: as `RdpAccountant`.
    """
    accountant = RdpAccountant(neighbouring_relation=neighbouring_relation, conversion=conversion)
    curves: dict[str, NDArray[np.float64]] = {}
    counts: dict[str, int] = {}
    for charge in aggregated(charges):
        curve = accountant.divergence(charge.event, charge.count)
        curves[charge.path] = curves.get(charge.path, 0.0) + curve
        counts[charge.path] = counts.get(charge.path, 0) + charge.count

    rows = list(curves.values())
    zero = np.zeros(len(accountant.orders))
    # What is left without each component, by sums from both ends: ∞ − ∞ never arises.
    before = _running_sums(rows, zero)
    after = _running_sums(rows[::-1], zero)[::-1]
    total = before[-1]
    epsilon, order = accountant.convert(total, delta)
    at_order = accountant.orders.index(order)
    shares = _shares([float(row[at_order]) for row in rows])
    components = tuple(
        Component(
            path=path,
            events=counts[path],
            epsilon_alone=accountant.convert(curve, delta)[0],
            epsilon_if_removed=accountant.convert(before[i] + after[i + 1], delta)[0],
            share=shares[i],
        )
        for i, (path, curve) in enumerate(curves.items())
    )
    spent = float(total[at_order])
    return Breakdown(
        epsilon=epsilon,
        delta=delta,
        accountant=accountant.name,
        conversion=conversion,
        neighbouring_relation=accountant.neighbouring_relation,
        order=order,
        rdp_at_order=spent,
        conversion_term=epsilon - spent if math.isfinite(spent) else 0.0,
        components=components,
    )


def aggregated(charges: Iterable[Charge]) -> list[Charge]:
    """One charge for each distinct (path, event), in order of first appearance; the spend is the same."""
    counts: dict[tuple[str, DpEvent], int] = {}
    for charge in charges:
        key = (charge.path, charge.event)
        counts[key] = counts.get(key, 0) + charge.count
    return [Charge(path, event, count) for (path, event), count in counts.items()]


def worst_case_tpr(epsilon: float, delta: float, fpr: float = 0.01) -> float:
    """The most true positives any membership attack can reach at a false-positive rate of `fpr`.

    From the definition of (ε, δ)-DP (Kairouz, Oh, Viswanath 2015, Theorem 2.1): TPR ≤ e^ε · FPR + δ and
    1 − TPR ≥ e^{−ε}(1 − δ − FPR).
    """
    if math.isinf(epsilon):
        return 1.0
    by_first = math.exp(min(epsilon, 700.0)) * fpr + delta
    by_second = 1 - math.exp(-epsilon) * (1 - delta - fpr)
    return max(0.0, min(1.0, by_first, by_second))


def finite_or_text(value: Any) -> Any:
    """`value`, or "inf" where JSON has no number for it."""
    return "inf" if isinstance(value, float) and math.isinf(value) else value


def _running_sums(rows: list[NDArray[np.float64]], zero: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    sums = [zero]
    for row in rows:
        sums.append(sums[-1] + row)
    return sums


def _shares(spends: list[float]) -> list[float]:
    """Fractions of the sum; where some are infinite, those share all of it equally."""
    infinite = [math.isinf(spend) for spend in spends]
    if any(infinite):
        return [flag / sum(infinite) for flag in infinite]
    total = math.fsum(spends)
    return [spend / total if total else 0.0 for spend in spends]
