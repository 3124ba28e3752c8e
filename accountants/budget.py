"""A ceiling on what a ledger may record: check, write, then (and only then) release."""

import math
from typing import Any

from accountants.account import Account
from accountants.accountant import Accountant, make_accountant
from accountants.calibration import largest_count
from accountants.domains import open_unit, whole
from accountants.errors import BudgetExceededError, InvalidEventError
from accountants.events import DpEvent, as_event
from accountants.ledger import Ledger


class Budget:
    """Charges a ledger under a ceiling.

    Every check uses the ledger's whole history: earlier processes, other budgets on the same ledger, and
    charges made past all of them.

    What is once known to fit is remembered: charges that are part of it fit too, because releasing less never costs more. So a
    planned run is not stopped on the way by the last digits of a numerical bound.

    Attributes:
      epsilon_ceiling: infinite where there is none.
      delta: at which the ceiling is meant.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        delta: float,
        epsilon_ceiling: float = math.inf,
        accountant: str = "auto",
        account: Account | None = None,
    ):
        """Reads the spend so far from `ledger`.

        Args:
          ledger: open for writing.
          delta: in (0, 1).
          epsilon_ceiling: > 0, possibly infinite.
          accountant: "auto", "pld" or "rdp".
          account: of the data set's budget, if it has one: every charge is drawn from it too, before it is recorded.

        Raises:
          InvalidEventError: an argument lies outside its domain.
          UnsupportedEventError: the ledger holds an event that the accountant can't bound.
        """
        if not epsilon_ceiling > 0:
            raise InvalidEventError(f"epsilon_ceiling must be greater than 0; got {epsilon_ceiling!r}")
        self.epsilon_ceiling = float(epsilon_ceiling)
        self.delta = open_unit(delta, "delta")
        self._ledger, self._account = ledger, account
        self._accountant: Accountant = make_accountant(accountant, neighbouring_relation=ledger.neighbouring_relation)
        self._counts: dict[DpEvent, int] = {}
        self._fits: dict[DpEvent, int] = {}  # counts whose joint ε, below, is known
        self._fits_epsilon = math.inf
        self._seen = 0
        self._catch_up()

    @property
    def epsilon(self) -> float:
        """Upper bound of what has been charged so far, at `delta`."""
        self._catch_up()
        bound = self._accountant.get_epsilon(self.delta)
        return min(bound, self._fits_epsilon) if self._is_part_of_what_fits({}) else bound

    def epsilon_after(self, event: Any, count: int = 1) -> float:
        """Upper bound of ε if `event` were charged `count` times more. Charges nothing."""
        self._catch_up()
        return self._accountant.copy().compose(event, count).get_epsilon(self.delta)

    def affordable(self, event: Any, at_most: int, path: str = "") -> int:
        """How many of `at_most` further runs of `event` fit below the ceiling, and the data set's. Charges nothing.

        Args:
          event: what would be charged.
          at_most: the answer's largest value.
          path: of the component, which tells what is reserved for it.
        """
        event, at_most = as_event(event), whole(at_most, "at_most")
        if self._account is not None:
            at_most = self._account.affordable(path, event, at_most)
        if math.isinf(self.epsilon_ceiling):
            return at_most
        self._catch_up()
        return largest_count(lambda n: n == 0 or self._check(event, n) <= self.epsilon_ceiling, at_most)

    def charge(self, path: str, event: Any, count: int = 1) -> None:
        """Records the charge on disk, or refuses. Release only after it returns.

        Raises:
          BudgetExceededError: it would pass the ceiling; nothing was recorded.
          UnsupportedEventError: the accountant can't bound it; nothing was recorded.
          LedgerError: it could not be recorded.
        """
        event, count = as_event(event), whole(count, "count")
        self._catch_up()
        after = self._check(event, count)
        if not after <= self.epsilon_ceiling:
            raise BudgetExceededError(
                f"charging {path} ({count} more) would bring epsilon to {after:.4g} at delta = {self.delta:g}, "
                f"above the ceiling of {self.epsilon_ceiling:g}; nothing was released"
            )
        if self._account is not None and count:
            self._account.draw(path, event, count)
        self._ledger.charge(path, event, count)

    def _check(self, event: DpEvent, count: int) -> float:
        """An upper bound of ε with `count` more of `event`; remembered if it fits."""
        if self._is_part_of_what_fits({event: count}):
            return self._fits_epsilon
        if math.isinf(self.epsilon_ceiling):
            self._accountant.copy().compose(event, count)  # refuses what it can't bound
            return self.epsilon_ceiling
        after = self.epsilon_after(event, count)
        if after <= self.epsilon_ceiling < math.inf:
            self._fits = dict(self._counts)
            self._fits[event] = self._fits.get(event, 0) + count
            self._fits_epsilon = after
        return after

    def _is_part_of_what_fits(self, more: dict[DpEvent, int]) -> bool:
        counts = [(event, n + more.get(event, 0)) for event, n in self._counts.items()]
        counts += [(event, n) for event, n in more.items() if event not in self._counts]
        return bool(self._fits) and all(n <= self._fits.get(event, 0) for event, n in counts)

    def _catch_up(self) -> None:
        """Composes what the ledger has gained since the last look."""
        charges = self._ledger.charges_from(self._seen)
        for charge in charges:
            self._accountant.compose(charge.event, charge.count)
            self._counts[charge.event] = self._counts.get(charge.event, 0) + charge.count
        self._seen += len(charges)
