"""Which ceilings of a policy a charge comes under, and whether it still fits below each.

Every unit lies in one cohort or in the rest, and what is released from one cohort says nothing about a unit of another: the
ceiling of each such class of units is filtered by itself (parallel composition, McSherry 2009), and so is the part of it that a
purpose has. What is released from all data counts in every class.

A scope's filter is a Rényi filter (Feldman and Zrnic 2021, Theorem 4.3) at an order that is fixed before anything is released
in it, by what is reserved first. What is reserved first was not chosen with sight of a release, so it may instead be accounted
exactly, by the numerical accountant; if only that fits, nothing else ever fits beside it.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from accountants.accountant import make_accountant
from accountants.domains import open_unit, positive
from accountants.errors import BudgetExceededError, LedgerError, UnsupportedEventError
from accountants.events import DpEvent, NeighbouringRelation, as_relation
from accountants.filters import Filter, allowances
from accountants.policy import ALL, Ceiling, Policy
from accountants.rdp import RdpAccountant
from accountants.report import upper

REST = "rest"
"""The class of units that lie in no cohort."""

Counts = Mapping[DpEvent, int]


@dataclasses.dataclass(frozen=True)
class Scope:
    """A ceiling, and what comes under it.

    Attributes:
      units: name of a cohort, `REST`, or `ALL` where there are no cohorts.
      purpose: or "" for every purpose.
      ceiling: for that.
    """

    units: str
    purpose: str
    ceiling: Ceiling

    @property
    def name(self) -> str:
        """As it stands in the budget's lines and in messages."""
        return f"{self.units}/{self.purpose}" if self.purpose else self.units


@dataclasses.dataclass(frozen=True)
class Terms:
    """What of a policy a budget enforces, read back from its header.

    Attributes:
      neighbouring_relation, unit: as in the policy.
      ceiling: of the whole.
      cohorts: name → ceiling.
      purposes: name → (ceiling, kinds that may be released for it).
      release: kinds that may be released at all.
    """

    neighbouring_relation: NeighbouringRelation
    unit: str
    ceiling: Ceiling
    cohorts: Mapping[str, Ceiling]
    purposes: Mapping[str, tuple[Ceiling, tuple[str, ...]]]
    release: tuple[str, ...]

    @classmethod
    def read(cls, policy: Any) -> "Terms":
        """From what `Policy.to_dict` made.

        Raises:
          LedgerError, InvalidEventError: it isn't of that form.
        """
        fields = {field.name for field in dataclasses.fields(Policy)}
        if not isinstance(policy, dict) or set(policy) != fields:
            raise LedgerError(f"the policy in the header must have the fields {sorted(fields)}")
        tables = [policy[name] for name in ("cohorts", "purposes", "release")]
        parts = [part for table in tables[:2] if isinstance(table, dict) for part in table.values()]
        if not all(isinstance(table, dict) for table in (*tables, *parts)) or not isinstance(policy["unit"], str):
            raise LedgerError("the policy in the header is not of the form that init writes")
        rows = [cohort.get("rows") for cohort in policy["cohorts"].values()]
        counted = all(isinstance(each, dict) and isinstance(each.get("number"), int) for each in rows)
        if not counted or not isinstance(policy["public"], list):
            raise LedgerError("the policy in the header must count the rows of each cohort, and list what is public")
        kinds = {name: purpose.get("release") for name, purpose in policy["purposes"].items()}
        if not all(isinstance(some, list) and all(isinstance(kind, str) for kind in some) for some in kinds.values()):
            raise LedgerError("a purpose in the header must list what may be released")
        return cls(
            as_relation(policy["neighbouring_relation"]),
            policy["unit"],
            _ceiling(policy["ceiling"]),
            {name: _ceiling(cohort.get("ceiling")) for name, cohort in policy["cohorts"].items()},
            {name: (_ceiling(part.get("ceiling")), tuple(kinds[name])) for name, part in policy["purposes"].items()},
            tuple(policy["release"]),
        )

    def scopes(self, cohort: str | None = None, purpose: str | None = None) -> list[Scope]:
        """Those that a charge on `cohort` (`ALL` for all data) for `purpose` counts in; without arguments, all there are."""
        units = {name: ceiling for name, ceiling in self.cohorts.items() if cohort in (None, ALL, name)}
        if cohort in (None, ALL):
            units |= {REST if self.cohorts else ALL: self.ceiling}
        parts = {name: ceiling for name, (ceiling, _) in self.purposes.items() if purpose in (None, name)}
        whole = [Scope(name, "", ceiling) for name, ceiling in units.items()]
        return whole + [Scope(name, part, ceiling) for name in units for part, ceiling in parts.items()]

    def check(self, cohort: str, purpose: str, release: str) -> None:
        """Refuses what the policy doesn't know.

        Raises:
          LedgerError: names what may be given.
        """
        if cohort != ALL and cohort not in self.cohorts:
            raise LedgerError(f"cohort {cohort!r:.80} is not in the policy, which has {_listed([ALL, *self.cohorts])}")
        if purpose not in (self.purposes or {""}):
            known = _listed(self.purposes) if self.purposes else "none, so give none"
            raise LedgerError(f"purpose {purpose!r:.80} is not in the policy, which has {known}")
        kinds = self.purposes[purpose][1] if purpose else self.release
        if release not in kinds:
            what = f"for {purpose} " if purpose else ""
            raise LedgerError(f"the policy does not allow {release!r:.80} to be released; {what}it allows {_listed(kinds)}")


@dataclasses.dataclass(frozen=True)
class Admission:
    """How a scope let a charge pass.

    Attributes:
      order: of the scope's Rényi filter from now on; 0 where what was admitted has no Rényi divergence.
      exact: it fits by the numerical accountant alone, so it fills the scope.
    """

    order: float
    exact: bool


def admit(
    scope: Scope, relation: NeighbouringRelation, held: Counts, more: Counts, order: float | None, exact: bool = True
) -> Admission:
    """Whether `more` fits beside what is `held`.

    Args:
      scope: the ceiling.
      relation: under which it is meant.
      held: events that count in this scope so far.
      more: to be added.
      order: of the scope's filter; None if nothing is held.
      exact: whether it may fit by the numerical accountant where nothing is held; not if more is to come in parts.

    Raises:
      BudgetExceededError: it does not fit.
      UnsupportedEventError: no accountant has a bound for it.
    """
    ceiling = scope.ceiling
    after = "∞"
    try:
        if order == 0:
            raise UnsupportedEventError("what this scope holds has no Rényi divergence")
        chosen = _filter(ceiling, relation, order or _best_order(ceiling, relation, tuple(more.items())))
        spent = _divergence(held, chosen.order, relation) + _divergence(more, chosen.order, relation)
        if spent <= chosen.allowance:
            return Admission(chosen.order, exact=False)
        after = upper(
            RdpAccountant((chosen.order,), neighbouring_relation=relation).convert(np.array([spent]), ceiling.delta)[0]
        )
        order = chosen.order
    except UnsupportedEventError:
        if held:
            _exact(tuple(more.items()), ceiling.delta, relation)  # refuses what no accountant has a bound for
            after = "above it (it can be bounded only alone)"
    if not held and exact:
        alone = _exact(tuple(more.items()), ceiling.delta, relation)
        if alone <= ceiling.epsilon:
            return Admission(order or 0.0, exact=True)
        after = upper(alone)
    raise BudgetExceededError(
        f"the ceiling of {scope.name}, ε = {ceiling.epsilon:g} at δ = {ceiling.delta:g}, would be passed: with this "
        f"reservation it would be {after}; nothing was reserved"
    )


def spent_epsilon(scope: Scope, relation: NeighbouringRelation, held: Counts, order: float | None, alone: bool) -> float:
    """What counts against a scope's ceiling, as an ε at its δ: by the filter, or exactly where one reservation stands alone."""
    if not any(held.values()):
        return 0.0
    if alone or not order:
        return _exact(tuple((event, count) for event, count in held.items() if count), scope.ceiling.delta, relation)
    spent = _divergence(held, order, relation)
    return RdpAccountant((order,), neighbouring_relation=relation).convert(np.array([spent]), scope.ceiling.delta)[0]


def shares(parts: Mapping[str, Counts], order: float | None, relation: NeighbouringRelation) -> dict[str, float]:
    """How much of what is spent in a scope is each part's: Rényi divergences at the scope's order add up, where epsilons don't.

    Only parts that spent something are in it. It is empty where nothing is finite to share.
    """
    spenders = {name: counts for name, counts in parts.items() if any(counts.values())}
    if len(spenders) < 2 or not order:
        return dict.fromkeys(spenders, 1.0) if len(spenders) == 1 else {}
    costs = {name: _divergence(counts, order, relation) for name, counts in spenders.items()}
    total = math.fsum(costs.values())
    return {name: cost / total for name, cost in costs.items()} if 0 < total < math.inf else {}


def _divergence(counts: Counts, order: float, relation: NeighbouringRelation) -> float:
    return math.fsum(count * _of_one(event, order, relation) for event, count in counts.items() if count) * (1 + 1e-12)


@functools.lru_cache(maxsize=100_000)
def _of_one(event: DpEvent, order: float, relation: NeighbouringRelation) -> float:
    return float(RdpAccountant((order,), neighbouring_relation=relation).divergence(event)[0])


@functools.lru_cache(maxsize=256)
def _filter(ceiling: Ceiling, relation: NeighbouringRelation, order: float) -> Filter:
    return Filter(epsilon=ceiling.epsilon, delta=ceiling.delta, neighbouring_relation=relation, order=order)


@functools.lru_cache(maxsize=256)
def _best_order(ceiling: Ceiling, relation: NeighbouringRelation, first: tuple[tuple[DpEvent, int], ...]) -> float:
    """The order that leaves most room beside what is reserved first, be it for more of the same or for Gaussian mechanisms.

    Of both, the one that comes off worse compared with its own best order decides: an order that suits a Laplace mechanism
    alone would leave no room for anything else.
    """
    accountant = RdpAccountant(neighbouring_relation=relation)
    for event, count in first:
        accountant.compose(event, count)
    orders, costs = np.asarray(accountant.orders), np.clip(accountant.rdp, 1e-300, 1e300)
    allowed = allowances(accountant.orders, ceiling.epsilon, ceiling.delta)
    left = allowed - costs
    if not (left > 0).any():
        return float(orders[np.argmax(allowed / costs)])
    room = [left / cost for cost in (costs, orders)]
    return float(orders[np.argmax(np.min([some / some.max() for some in room], axis=0))])


@functools.lru_cache(maxsize=256)
def _exact(counts: tuple[tuple[DpEvent, int], ...], delta: float, relation: NeighbouringRelation) -> float:
    accountant = make_accountant(neighbouring_relation=relation)
    for event, count in counts:
        accountant.compose(event, count)
    return accountant.get_epsilon(delta)


def _ceiling(table: Any) -> Ceiling:
    if not isinstance(table, dict) or set(table) != {"epsilon", "delta"}:
        raise LedgerError("a ceiling in the header must have epsilon and delta")
    return Ceiling(positive(table["epsilon"], "epsilon"), open_unit(table["delta"], "delta"))


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(names) or "nothing"
