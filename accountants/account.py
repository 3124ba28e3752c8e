"""One run's part of a shared budget: reserved once, drawn before each release, reconciled after a crash.

A run has a random name, kept in the header of its own ledger. What the budget holds under that name and what the ledger has
charged tell what a crash prevented: more drawn than charged is a credit, used up before anything is drawn again; more charged
than drawn means that the budget was put back to an older state, and nothing may be released.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from accountants.budget_state import Reservation
from accountants.calibration import largest_count
from accountants.domains import whole
from accountants.errors import LedgerError
from accountants.events import as_event
from accountants.policy import ALL
from accountants.shared_budget import SharedBudget


@dataclasses.dataclass(frozen=True)
class Purse:
    """Under what a run charges: cohort, purpose, and the kind of what it releases, in the words of the policy; and a label."""

    release: str
    cohort: str = ALL
    purpose: str = ""
    label: str = ""


class Account:
    """What one run may charge to a data set's budget.

    Example:
      account = Account(budget, name, Purse(release="model"))
      account.begin([("train/gradients", event, 1000)], charged={"train/gradients": ledger.contents.count("train/gradients")})
      Budget(ledger, delta=1e-5, account=account).charge("train/gradients", event, 64)  # drawn, recorded, then released
      account.commit()
    """

    def __init__(self, budget: SharedBudget, name: str, purse: Purse):
        """For the run called `name`, 32 hexadecimal digits that no other run has."""
        self._budget, self.name, self.purse = budget, name, purse
        self._credit: dict[str, int] = {}

    @property
    def head(self) -> str:
        """Of the budget, as of the last operation."""
        return self._budget.head

    def begin(self, plan: Sequence[tuple[str, Any, int]], charged: Mapping[str, int]) -> None:
        """Reserves a plan unless that was done before, and takes up where a crash left off.

        Args:
          plan: (path, event, count) of all that the run is going to release; empty if it isn't known beforehand: then every
            charge is reserved when it is made.
          charged: path → how much the run's ledger holds.

        Raises:
          BudgetExceededError: the plan would pass a ceiling; nothing was reserved.
          LedgerError: the ledger has charged what the budget does not know of, or the plan was another.
        """
        reservations = self._reservations()
        if plan and not reservations:
            if any(charged.values()):
                raise self._rolled_back(next(path for path, count in charged.items() if count), 0)
            self._reserve(plan, self.name, draw=False)
            reservations = self._reservations()
        first = reservations[0] if reservations else None
        if plan and first is not None:
            planned = [(path, as_event(event), whole(count, "count")) for path, event, count in plan]
            purse = Purse(first.release, first.cohort, first.purpose, self.purse.label)
            if [(c.path, c.event, c.count) for c in first.charges] != planned or purse != self.purse:
                raise LedgerError(f"reservation {first.id} was made for another plan, cohort or purpose", line=1)
        drawn: dict[str, int] = {}
        for reservation in reservations:
            for path, count in reservation.drawn.items():
                drawn[path] = drawn.get(path, 0) + count
        for path in {*charged, *drawn}:
            self._credit[path] = drawn.get(path, 0) - charged.get(path, 0)
            if self._credit[path] < 0:
                raise self._rolled_back(path, drawn.get(path, 0))

    def affordable(self, path: str, event: Any, at_most: int) -> int:
        """How many of `at_most` further runs of `event` at `path` the budget has, reserved or not. Charges nothing."""
        event, at_most = as_event(event), whole(at_most, "at_most")
        free = self._credit.get(path, 0)
        held = self._held(path)
        if held is not None:
            reserved = next(charge.count for charge in held.charges if charge.path == path)
            return min(at_most, free + (0 if held.committed else reserved - held.drawn[path]))
        state = self._budget.refresh()
        fits = lambda n: n == 0 or state.fits(self.purse.cohort, self.purse.purpose, {event: n})  # noqa: E731
        return min(at_most, free + largest_count(fits, max(at_most - free, 0)))

    def draw(self, path: str, event: Any, count: int) -> None:
        """Takes what is about to be charged and released; on disk when it returns.

        Raises:
          BudgetExceededError: it would pass a ceiling, or what was reserved.
          LedgerError: the reservation was ended by someone else, or nothing could be written.
        """
        free = min(self._credit.get(path, 0), count)
        if count > free:
            if self._held(path) is not None:
                self._budget.draw(self.name, path, count - free)
            else:
                number = max((int(r.id.partition(".")[2] or 0) for r in self._reservations()), default=0) + 1
                self._reserve([(path, event, count - free)], f"{self.name}.{number}", draw=True)
        if free:
            self._credit[path] -= free

    def commit(self) -> None:
        """Ends the run's reservations: what was not drawn is given back."""
        self._budget.commit(*(reservation.id for reservation in self._reservations()))

    def _held(self, path: str) -> Reservation | None:
        reservation = self._budget.state.reservations.get(self.name)
        return reservation if reservation is not None and path in reservation.drawn else None

    def _reservations(self) -> list[Reservation]:
        """Of this run, in order."""
        every = self._budget.refresh().reservations
        return [reservation for name, reservation in every.items() if name.partition(".")[0] == self.name]

    def _reserve(self, charges: Sequence[tuple[str, Any, int]], name: str, draw: bool) -> None:
        purse = self.purse
        where = {"cohort": purse.cohort, "purpose": purse.purpose, "release": purse.release, "run": purse.label}
        self._budget.reserve(charges, **where, name=name, draw=draw)  # type: ignore[arg-type]

    def _rolled_back(self, path: str, drawn: int) -> LedgerError:
        return LedgerError(
            f"the run's ledger has charged more at {path} than the {drawn:,} that the budget {self._budget.path} knows of: the "
            "budget was put back to an older state; restore the newest one",
            line=len(self._budget.state.hashes),
        )
