"""A ceiling on what a ledger may record: check, write, then (and only then) release."""

import math
from typing import Any

from accountants.calibration import largest_count
from accountants.domains import open_unit, whole
from accountants.errors import BudgetExceededError, InvalidEventError
from accountants.ledger import Ledger
from accountants.rdp import RdpAccountant


class Budget:
    """Charges a ledger under a ceiling.

    Every check uses the ledger's whole history: earlier processes, other budgets on the same ledger, and
    charges made past all of them.

    Attributes:
      epsilon_ceiling: infinite where there is none.
      delta: at which the ceiling is meant.
    """

    def __init__(self, ledger: Ledger, *, delta: float, epsilon_ceiling: float = math.inf):
        """Reads the spend so far from `ledger`.

        Args:
          ledger: open for writing.
          delta: in (0, 1).
          epsilon_ceiling: > 0, possibly infinite.

        Raises:
          InvalidEventError: an argument lies outside its domain.
          UnsupportedEventError: the ledger holds an event that the accountant can't bound.
        """
        if not epsilon_ceiling > 0:
            raise InvalidEventError(f"epsilon_ceiling must be greater than 0; got {epsilon_ceiling!r}")
        self.epsilon_ceiling = float(epsilon_ceiling)
        self.delta = open_unit(delta, "delta")
        self._ledger = ledger
        self._accountant = RdpAccountant(neighbouring_relation=ledger.contents.neighbouring_relation)
        self._seen = 0
        self._catch_up()

    @property
    def epsilon(self) -> float:
        """Upper bound of what has been charged so far, at `delta`."""
        self._catch_up()
        return self._accountant.get_epsilon(self.delta)

    def epsilon_after(self, event: Any, count: int = 1) -> float:
        """Upper bound of ε if `event` were charged `count` times more. Charges nothing."""
        self._catch_up()
        total = self._accountant.rdp + self._accountant.divergence(event, count)
        return self._accountant.convert(total, self.delta)[0]

    def affordable(self, event: Any, at_most: int) -> int:
        """How many of `at_most` further runs of `event` fit below the ceiling. Charges nothing."""
        if math.isinf(self.epsilon_ceiling):
            return at_most
        return largest_count(lambda n: self.epsilon_after(event, n) <= self.epsilon_ceiling, whole(at_most, "at_most"))

    def charge(self, path: str, event: Any, count: int = 1) -> None:
        """Records the charge on disk, or refuses. Release only after it returns.

        Raises:
          BudgetExceededError: it would pass the ceiling; nothing was recorded.
          LedgerError: it could not be recorded.
        """
        after = self.epsilon_after(event, count)
        if not after <= self.epsilon_ceiling:
            raise BudgetExceededError(
                f"charging {path} ({count} more) would bring epsilon to {after:.4g} at delta = {self.delta:g}, "
                f"above the ceiling of {self.epsilon_ceiling:g}; nothing was released"
            )
        self._ledger.charge(path, event, count)

    def _catch_up(self) -> None:
        """Composes what the ledger has gained since the last look."""
        charges = self._ledger.contents.charges
        for charge in charges[self._seen :]:
            self._accountant.compose(charge.event, charge.count)
        self._seen = len(charges)
