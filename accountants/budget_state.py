"""What the lines of a data set's budget add up to: reservations, what was drawn from them, what counts against each ceiling.

| line | says |
|---|---|
| `header` | the policy; a random salt, so that the head gives away nothing of it |
| `reserve` | this may be released: events and counts, on a cohort, for a purpose; it fits below every ceiling it comes under |
| `draw` | so many of them are about to be released |
| `commit` | the reservation has ended: what was not drawn is given back |
| `seal` | nothing will be released any more |
| `recovered` | a torn last line, left by a crash, was dropped |

A reservation counts in full until it is committed, then with what was drawn; if it fits exactly alone (see `scopes`), in full
for ever, unless nothing was drawn. Here are no files: see `shared_budget`.
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any

from accountants import scopes
from accountants.chain import Charge, check_path
from accountants.chained import GENESIS, check_line, split
from accountants.domains import whole
from accountants.errors import AccountingError, BudgetExceededError, LedgerError
from accountants.event_json import from_dict, to_dict
from accountants.events import DpEvent
from accountants.scopes import Admission, Scope, Terms

SCHEMA = 1

_FIELDS = {
    "header": {"kind", "schema", "time", "prev", "hash", "salt", "policy"},
    # No times of day: how long a run took depends on the data.
    "reserve": {"kind", "prev", "hash", "id", "run", "cohort", "purpose", "release", "charges", "filters"},
    "draw": {"kind", "prev", "hash", "id", "path", "count"},
    "commit": {"kind", "prev", "hash", "id"},
    "seal": {"kind", "time", "prev", "hash"},
    "recovered": {"kind", "time", "prev", "hash", "dropped_bytes", "dropped_sha256"},
}
_ID = re.compile(r"[0-9a-f]{32}(\.[0-9]{1,9})?")


@dataclasses.dataclass
class Reservation:
    """What a run may release.

    Attributes:
      id: random; a run's later ones have a number behind it.
      run: a label for people.
      cohort: whose data, or `ALL`.
      purpose: or "" where the policy has none.
      release: kind of what is released.
      charges: component path, event, count; no path twice.
      filters: scope → how it was admitted there.
      drawn: path → how many of the count are released or about to be.
      committed: whether it has ended.
    """

    id: str
    run: str
    cohort: str
    purpose: str
    release: str
    charges: tuple[Charge, ...]
    filters: dict[str, Admission]
    drawn: dict[str, int]
    committed: bool = False

    def counts(self, scope: str) -> dict[DpEvent, int]:
        """Events that count in a scope, each with its number."""
        full = self.in_full(scope)
        return added(((c.event, c.count if full else self.drawn[c.path]) for c in self.charges), {})

    def in_full(self, scope: str) -> bool:
        """Whether all that is reserved counts in a scope, or only what was drawn."""
        return not self.committed or (self.filters[scope].exact and any(self.drawn.values()))


class BudgetState:
    """Read line by line; answers what is left. Every change is a line first: `read` is the only way to change it."""

    def __init__(self) -> None:
        self.hashes: list[str] = []
        self.reservations: dict[str, Reservation] = {}
        self.sealed = False
        self.policy: dict[str, Any] = {}
        self.terms: Terms
        self._held: dict[str, dict[DpEvent, int]] = {}  # by scope
        self._holders: dict[str, int] = {}  # reservations of which something counts, by scope
        self._orders: dict[str, float] = {}

    @property
    def head(self) -> str:
        """SHA-256 that commits to every line."""
        return self.hashes[-1] if self.hashes else GENESIS

    def read(self, line: bytes) -> None:
        """Verifies and takes in the next line.

        Raises:
          LedgerError: it is not a sound line that may follow; nothing has changed.
        """
        number = len(self.hashes) + 1
        record = check_line(line, number, self.head, _FIELDS, SCHEMA)
        try:
            self._take(record)
        except AccountingError as error:
            raise LedgerError(f"line {number}: {error}", line=number) from error
        self.hashes.append(record["hash"])

    def reserve_record(self, reservation: Reservation) -> dict[str, Any]:
        """The line that reserves, if it fits.

        Args:
          reservation: its `filters` are filled in.

        Raises:
          BudgetExceededError: it would pass a ceiling, or the budget is sealed.
          UnsupportedEventError: no accountant has a bound for an event.
          LedgerError: the policy doesn't know the cohort, the purpose or what is to be released.
        """
        self.terms.check(reservation.cohort, reservation.purpose, reservation.release)
        if self.sealed:
            raise BudgetExceededError("the budget is sealed: nothing more may be released from these data")
        more = added(((charge.event, charge.count) for charge in reservation.charges), {})
        for scope in self.terms.scopes(reservation.cohort, reservation.purpose):
            reservation.filters[scope.name] = self.admit(scope, more)
        fields = {name: getattr(reservation, name) for name in ("id", "run", "cohort", "purpose", "release")}
        charges = [{"path": c.path, "event": to_dict(c.event), "count": c.count} for c in reservation.charges]
        filters = {name: [admission.order, admission.exact] for name, admission in reservation.filters.items()}
        return {"kind": "reserve", **fields, "charges": charges, "filters": filters}

    def admit(self, scope: Scope, more: dict[DpEvent, int], exact: bool = True) -> Admission:
        """How `more` fits into a scope; without `exact`, by its Rényi filter alone.

        Raises:
          BudgetExceededError, UnsupportedEventError: it doesn't.
        """
        held, order = self._counts(scope), self._orders.get(scope.name)
        return scopes.admit(scope, self.terms.neighbouring_relation, held, more, order, exact)

    def fits(self, cohort: str, purpose: str, more: dict[DpEvent, int], exact: bool = True) -> bool:
        """Whether `more` fits below every ceiling that it comes under; see `admit`."""
        try:
            for scope in self.terms.scopes(cohort, purpose):
                self.admit(scope, more, exact)
        except BudgetExceededError:
            return False
        return not self.sealed

    def spent(self, scope: Scope) -> float:
        """ε that counts against a scope's ceiling, at its δ."""
        order, alone = self._orders.get(scope.name), self._holders.get(scope.name) == 1
        return scopes.spent_epsilon(scope, self.terms.neighbouring_relation, self._counts(scope), order, alone)

    def shares(self, scope: Scope) -> dict[str, float]:
        """Reservation → its share of what is spent in a scope; see `scopes.shares`."""
        parts = {r.id: r.counts(scope.name) for r in self.reservations.values() if scope.name in r.filters}
        return scopes.shares(parts, self._orders.get(scope.name), self.terms.neighbouring_relation)

    def _counts(self, scope: Scope) -> dict[DpEvent, int]:
        return self._held[scope.name] if self._holders.get(scope.name) else {}

    def check_draw(self, name: str, path: str, count: int) -> Reservation:
        """The reservation to draw from, if it may be drawn from.

        Raises:
          LedgerError: there is none of that name and path, it has ended, or the budget is sealed.
          BudgetExceededError: there is not so much left in it.
        """
        reservation = self._open(name)
        reserved = next((c.count for c in reservation.charges if c.path == path), None)
        if reserved is None:
            raise LedgerError(f"reservation {name} has nothing at {path!r:.80}")
        if self.sealed:
            raise BudgetExceededError("the budget is sealed: nothing more may be released from these data")
        if reservation.drawn[path] + count > reserved:
            raise BudgetExceededError(
                f"reservation {name} has {reserved - reservation.drawn[path]:,} of {reserved:,} left at {path}, not {count:,}"
            )
        return reservation

    def _open(self, name: Any) -> Reservation:
        reservation = self.reservations.get(name) if isinstance(name, str) else None
        if reservation is None:
            raise LedgerError(f"there is no reservation {name!r:.80}")
        if reservation.committed:
            raise LedgerError(f"reservation {name} has ended: nothing may be released under it; nothing was")
        return reservation

    def _take(self, record: dict[str, Any]) -> None:
        kind = record["kind"]
        if kind == "header":
            if not isinstance(record["salt"], str):
                raise LedgerError("salt must be a text")
            self.terms, self.policy = Terms.read(record["policy"]), record["policy"]
        elif kind == "reserve":
            self._take_reservation(record)
        elif kind == "draw":
            count = whole(record["count"], "count", at_least=1)
            reservation = self.check_draw(record["id"], record["path"], count)
            reservation.drawn[record["path"]] += count
        elif kind == "commit":
            self._commit(self._open(record["id"]))
        elif kind == "seal":
            self.sealed = True

    def _take_reservation(self, record: dict[str, Any]) -> None:
        texts = [record[name] for name in ("id", "run", "cohort", "purpose", "release")]
        if not all(isinstance(text, str) for text in texts) or not _ID.fullmatch(texts[0]):
            raise LedgerError("id must be 32 hexadecimal digits; id, run, cohort, purpose and release must be texts")
        if texts[0] in self.reservations:
            raise LedgerError(f"reservation {texts[0]} is there twice")
        if self.sealed:
            raise LedgerError("reserves from a sealed budget")
        name, run, cohort, purpose, release = texts
        reservation = Reservation(name, run, cohort, purpose, release, _charges(record["charges"]), {}, {})
        self.terms.check(reservation.cohort, reservation.purpose, reservation.release)
        names = [scope.name for scope in self.terms.scopes(reservation.cohort, reservation.purpose)]
        reservation.filters |= _filters(record["filters"], names)
        reservation.drawn |= {charge.path: 0 for charge in reservation.charges}
        self.reservations[reservation.id] = reservation
        for scope in names:
            if not self._holders.get(scope):
                self._orders[scope], self._held[scope] = reservation.filters[scope].order, {}
            self._holders[scope] = self._holders.get(scope, 0) + 1
            added(reservation.counts(scope).items(), self._held[scope])

    def _commit(self, reservation: Reservation) -> None:
        before = {name: reservation.counts(name) for name in reservation.filters}
        reservation.committed = True
        for name, counts in before.items():
            now = reservation.counts(name)
            added(((event, now[event] - count) for event, count in counts.items()), self._held[name])
            self._holders[name] -= not any(now.values())
            if not self._holders[name]:  # nothing was ever released in it: the next to come is the first
                self._orders.pop(name)


def read_budget(raw: bytes) -> tuple[BudgetState, bytes]:
    """The state after all whole lines of a file's content, and a torn last line.

    Raises:
      LedgerError: damaged; `line` says where.
    """
    lines, tail = split(raw)
    state = BudgetState()
    for line in lines:
        state.read(line)
    return state, tail


def added(more: Iterable[tuple[DpEvent, int]], counts: dict[DpEvent, int]) -> dict[DpEvent, int]:
    """Adds `more` to `counts`, and returns it."""
    for event, count in more:
        counts[event] = counts.get(event, 0) + count
    return counts


def _charges(records: Any) -> tuple[Charge, ...]:
    if not isinstance(records, list) or not records:
        raise LedgerError("charges must be a list, not empty")
    charges = []
    for record in records:
        if not isinstance(record, dict) or set(record) != {"path", "event", "count"}:
            raise LedgerError("a charge must have path, event and count")
        count = whole(record["count"], "count", at_least=1)
        charges.append(Charge(check_path(record["path"]), from_dict(record["event"]), count))
    return checked_paths(charges)


def checked_paths(charges: Sequence[Charge]) -> tuple[Charge, ...]:
    """The charges, if no two have the same path.

    Raises:
      LedgerError: some have.
    """
    if len({charge.path for charge in charges}) < len(charges):
        raise LedgerError("a reservation has a path twice; add their counts up or give them different paths")
    return tuple(charges)


def _filters(records: Any, names: Sequence[str]) -> dict[str, Admission]:
    if not isinstance(records, dict) or sorted(records) != sorted(names):
        raise LedgerError(f"filters must be those of {', '.join(names)}")
    result = {}
    for name, pair in records.items():
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], float) and isinstance(pair[1], bool)):
            raise LedgerError("a filter must be an order and whether it fits exactly")
        if not (pair[0] == 0 or 1 < pair[0] <= 1e6):
            raise LedgerError(f"a Rényi order is above 1; got {pair[0]!r}")
        result[name] = Admission(pair[0], pair[1])
    return result
