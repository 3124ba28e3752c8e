"""What every accountant can do, and the choice between them.

| name | what it is | for |
|---|---|---|
| `pld` | numerical, certified from both sides (`pld`) | everything with a known dominating pair; the tightest |
| `rdp` | Rényi (`rdp`) | what has no pair: private selection, zCDP guarantees, very large discrete mechanisms |
| `auto` | `pld`, and `rdp` where that has no pair | the default |
"""

import copy
import dataclasses
from typing import Any, Protocol, Self

from accountants.domains import one_of, open_unit, whole
from accountants.errors import UnsupportedEventError
from accountants.events import DpEvent, NeighbouringRelation, as_event, as_relation
from accountants.interval import Interval
from accountants.pld import DEFAULT_RTOL, PldAccountant
from accountants.rdp import RdpAccountant

ACCOUNTANTS = ("auto", "pld", "rdp")


class Accountant(Protocol):
    """Accumulates events and bounds what they cost together, under one neighbouring relation."""

    @property
    def name(self) -> str:
        """Which accountant answers: "pld" or "rdp"."""

    @property
    def neighbouring_relation(self) -> NeighbouringRelation:
        """Under which every answer is meant."""

    def compose(self, event: Any, count: int = 1) -> Self:
        """Adds `count` independent runs of `event`, ours or a `dp_accounting` one. Returns self."""

    def copy(self) -> Self:
        """One with the same composed; further events go to one of both alone."""

    def epsilon_interval(self, delta: float) -> Interval:
        """The exact ε at `delta` in (0, 1) lies in it; an accountant with upper bounds alone gives 0 as the lower end."""

    def delta_interval(self, epsilon: float) -> Interval:
        """The exact δ at `epsilon` ≥ 0 lies in it."""

    def get_epsilon(self, delta: float) -> float:
        """The upper end of `epsilon_interval`."""

    def get_delta(self, epsilon: float) -> float:
        """The upper end of `delta_interval`."""


class AutoAccountant:
    """The numerical accountant, or the Rényi accountant from the first event on that has no dominating pair."""

    def __init__(
        self,
        *,
        neighbouring_relation: str | NeighbouringRelation = NeighbouringRelation.ADD_OR_REMOVE_ONE,
        rtol: float = DEFAULT_RTOL,
    ):
        """Starts with nothing composed. Arguments as those of `PldAccountant`."""
        self.neighbouring_relation = as_relation(neighbouring_relation)
        self.chosen: PldAccountant | RdpAccountant = PldAccountant(neighbouring_relation=neighbouring_relation, rtol=rtol)
        self._history: dict[DpEvent, int] = {}

    @property
    def name(self) -> str:
        """Which accountant answers."""
        return self.chosen.name

    def compose(self, event: Any, count: int = 1) -> Self:
        """Adds `count` independent runs of `event`, ours or a `dp_accounting` one. Returns self.

        Raises:
          InvalidEventError: the event or the count is malformed.
          UnsupportedEventError: no accountant has a bound for everything composed together; nothing was composed.
        """
        event, count = as_event(event), whole(count, "count")
        try:
            self.chosen.compose(event, count)
        except UnsupportedEventError as why:
            if isinstance(self.chosen, RdpAccountant):
                raise
            other = RdpAccountant(neighbouring_relation=self.neighbouring_relation)
            try:
                for past, times in [*self._history.items(), (event, count)]:
                    other.compose(past, times)
            except UnsupportedEventError as error:
                both = str(why) if str(why) == str(error) else f"{why}; and {error}"
                raise UnsupportedEventError(both) from None
            self.chosen = other
        self._history[event] = self._history.get(event, 0) + count
        return self

    def copy(self) -> Self:
        """One with the same composed; further events go to one of both alone."""
        result = copy.copy(self)
        result.chosen, result._history = self.chosen.copy(), dict(self._history)
        return result

    def epsilon_interval(self, delta: float) -> Interval:
        """The exact ε at `delta` in (0, 1) lies in it."""
        return self.chosen.epsilon_interval(delta)

    def delta_interval(self, epsilon: float) -> Interval:
        """The exact δ at `epsilon` ≥ 0 lies in it."""
        return self.chosen.delta_interval(epsilon)

    def get_epsilon(self, delta: float) -> float:
        """Upper bound of ε at `delta`."""
        return self.chosen.get_epsilon(delta)

    def get_delta(self, epsilon: float) -> float:
        """Upper bound of δ at `epsilon`."""
        return self.chosen.get_delta(epsilon)


def make_accountant(
    name: str = "auto",
    *,
    neighbouring_relation: str | NeighbouringRelation = NeighbouringRelation.ADD_OR_REMOVE_ONE,
    rtol: float = DEFAULT_RTOL,
) -> Accountant:
    """A fresh accountant by name.

    Args:
      name: "auto", "pld" or "rdp".
      neighbouring_relation: under which every answer is meant.
      rtol: relative width of the intervals of the numerical accountant, from 1e-6 to 0.1.

    Raises:
      InvalidEventError: an argument lies outside its domain.
    """
    one_of(name, "accountant", ACCOUNTANTS)
    if name == "rdp":
        return RdpAccountant(neighbouring_relation=neighbouring_relation)
    made = PldAccountant if name == "pld" else AutoAccountant
    return made(neighbouring_relation=neighbouring_relation, rtol=rtol)


@dataclasses.dataclass(frozen=True)
class EpsilonBound:
    """The answer of `epsilon`.

    Attributes:
      epsilon: an upper bound.
      lower: a lower bound; 0 where the accountant has none.
      delta: at which both are meant.
      accountant: who answered, "pld" or "rdp".
      neighbouring_relation: under which it is meant.
    """

    epsilon: float
    lower: float
    delta: float
    accountant: str
    neighbouring_relation: NeighbouringRelation


def epsilon(
    event: Any,
    delta: float,
    *,
    neighbouring_relation: str | NeighbouringRelation = NeighbouringRelation.ADD_OR_REMOVE_ONE,
    accountant: str = "auto",
    rtol: float = DEFAULT_RTOL,
) -> EpsilonBound:
    """ε of an event at δ, by the tightest accountant that has a bound for it.

    Args:
      event: any event tree, ours or a `dp_accounting` one.
      delta: in (0, 1).
      neighbouring_relation: under which it is meant.
      accountant: "auto", "pld" or "rdp".
      rtol: relative width that is asked for.

    Raises:
      InvalidEventError: an argument lies outside its domain.
      UnsupportedEventError: no accountant asked for has a bound; says why.
    """
    chosen = make_accountant(accountant, neighbouring_relation=neighbouring_relation, rtol=rtol).compose(event)
    interval = chosen.epsilon_interval(open_unit(delta, "delta"))
    return EpsilonBound(interval.upper, interval.lower, delta, chosen.name, chosen.neighbouring_relation)
