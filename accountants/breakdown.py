"""Where the budget went, component by component.

Epsilons do not add up, so each component has three honest figures: its ε alone; the total's ε without it;
and its share of a quantity that does add up, the Rényi divergence at the order that is optimal for the total.
"""

import collections
import dataclasses
import math
from collections.abc import Container, Iterable, Sequence
from typing import Any

import numpy as np

from accountants.accountant import Accountant, make_accountant
from accountants.chain import Charge
from accountants.errors import InvalidEventError, UnsupportedEventError
from accountants.events import DpEvent, NeighbouringRelation, as_relation
from accountants.pld import pair_divergence
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
      epsilon: of everything that was charged. Where `promised` is given, a reading of what was spent and no guarantee.
      promised: what was fixed beforehand, where what was charged depended on what had been released; else None.
      lower: a certain lower bound of it; 0 where the accountant has none.
      accountant: who gave every ε here, "pld" or "rdp".
      order: Rényi order in which `share` is meant: the one at which the Rényi accountant's ε is least.
      rdp_at_order: Rényi divergence of everything at that order: what `share` divides.
      conversion_term: `epsilon` less that: it belongs to δ and to no component, and is negative where turning
        divergences into ε gains.
    """

    epsilon: float
    lower: float
    delta: float
    accountant: str
    neighbouring_relation: NeighbouringRelation
    order: float
    rdp_at_order: float
    conversion_term: float
    components: tuple[Component, ...]
    promised: float | None = None

    @property
    def guarantee(self) -> float:
        """ε that may be stated: `promised`, or `epsilon` where nothing had to be promised."""
        return self.epsilon if self.promised is None else self.promised

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with the guarantee as `epsilon`; an infinite ε becomes the string "inf", which `float` reads back."""
        result = dataclasses.asdict(self) | {"epsilon": self.guarantee, "spent": self.epsilon}
        if result.pop("promised") is not None:
            result["lower"] = 0.0  # of the guarantee; what was spent is no bound of it
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
    accountant: str = "auto",
) -> Breakdown:
    """Adds up `charges` by component path, in order of first appearance.

    Of components that share events (see `Charge`), "alone" and "removed" mean those events with and without their own part.

    Args:
      charges: from a ledger, or made by hand.
      delta: in (0, 1).
      neighbouring_relation: under which the charges are meant.
      accountant: "auto", "pld" or "rdp".

    Raises:
      UnsupportedEventError, InvalidEventError: as the accountant asked for.
    """
    relation = as_relation(neighbouring_relation)
    charges = aggregated(charges)
    paths = list(dict.fromkeys(path for charge in charges for path in charge.parts))

    def compose(paths: Container[str], name: str) -> Accountant:
        result = make_accountant(name, neighbouring_relation=relation)
        for charge in charges:
            if (event := charge.only(paths)) is not None:
                result.compose(event, charge.count)
        return result

    total = compose(paths, accountant)
    interval, name = total.epsilon_interval(delta), total.name  # one accountant for every figure

    def epsilon(paths: Container[str]) -> float:
        # A part never costs more than the whole, and two intervals may overlap.
        return min(compose(paths, name).get_epsilon(delta), interval.upper)

    order, by_charge = divergences(charges, delta, relation)
    spends = [math.fsum(parts.get(path, 0.0) for parts in by_charge) for path in paths]
    shares = _shares(spends)
    components = tuple(
        Component(
            path=path,
            events=sum(charge.count for charge in charges if path in charge.parts),
            epsilon_alone=epsilon([path]),
            epsilon_if_removed=epsilon([other for other in paths if other != path]),
            share=shares[i],
        )
        for i, path in enumerate(paths)
    )
    spent = math.fsum(spends) if all(map(math.isfinite, spends)) else math.inf
    return Breakdown(
        epsilon=interval.upper,
        lower=interval.lower,
        delta=delta,
        accountant=name,
        neighbouring_relation=relation,
        order=order,
        rdp_at_order=spent,
        conversion_term=interval.upper - spent if math.isfinite(spent) else 0.0,
        components=components,
    )


def divergences(
    charges: Sequence[Charge], delta: float, relation: NeighbouringRelation
) -> tuple[float, list[dict[str, float]]]:
    """The optimal order of everything, and for each charge the Rényi divergence there of each of its components.

    What several components share is split in proportion to what each would have cost alone.

    Where the Rényi accountant has no bound for an event, its divergence is computed from its dominating pair, at order 8: good
    enough to share by, though not a bound.
    """
    rdp = RdpAccountant(neighbouring_relation=relation)
    try:
        curves = [rdp.divergence(charge.event, charge.count) for charge in charges]
    except UnsupportedEventError:
        order = 8.0
        divergence = lambda event, count: count * pair_divergence(event, relation, order)  # noqa: E731
    else:
        order = rdp.convert(sum(curves, np.zeros(len(rdp.orders))), delta)[1]
        index = rdp.orders.index(order)
        divergence = lambda event, count: float(rdp.divergence(event, count)[index])  # noqa: E731
    spends = []
    for charge in charges:
        whole = divergence(charge.event, charge.count)
        alone = [divergence(charge.only([part]), charge.count) for part in charge.parts] if len(charge.parts) > 1 else [whole]
        parts = dict.fromkeys(charge.parts, 0.0)
        for part, share in zip(charge.parts, _shares(alone), strict=True):
            parts[part] += whole * share if share else 0.0
        spends.append(parts)
    return order, spends


def aggregated(charges: Iterable[Charge]) -> list[Charge]:
    """One charge for each distinct (path, event), in order of first appearance; the spend is the same."""
    charges = list(charges) if isinstance(charges, Iterable) else [charges]
    if not all(isinstance(charge, Charge) for charge in charges):
        raise InvalidEventError("charges must be a list of Charge, as a ledger has them")
    # A ledger that was read holds few objects many times, and hashing an event is slow.
    times = collections.Counter(map(id, charges))
    counts: dict[tuple[str, DpEvent], int] = {}
    for charge in {id(charge): charge for charge in charges}.values():
        key = (charge.path, charge.event)
        counts[key] = counts.get(key, 0) + charge.count * times[id(charge)]
    return [Charge(path, event, count) for (path, event), count in counts.items()]


def finite_or_text(value: Any) -> Any:
    """`value`, or "inf" where JSON has no number for it."""
    return "inf" if isinstance(value, float) and math.isinf(value) else value


def _shares(spends: list[float]) -> list[float]:
    """Fractions of the sum; where some are infinite, those share all of it equally."""
    infinite = [math.isinf(spend) for spend in spends]
    if any(infinite):
        return [flag / sum(infinite) for flag in infinite]
    total = math.fsum(spends)
    return [spend / total if total else 0.0 for spend in spends]
