"""The format of a ledger: what a line is, how lines are chained, and how a file of them is verified.

One JSON object a line. The first line is a header (neighbouring relation, unit of privacy, public facts);
the others are charges (component path, event, count) and commitments (salted digests, say). Lines are chained by their hashes,
so that the last one, the *head*, commits to the whole file: see `chained`.
"""

import dataclasses
import hashlib
import math
import os
import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from accountants import chained
from accountants.domains import whole
from accountants.errors import AccountingError, InvalidEventError, LedgerError
from accountants.event_json import from_dict
from accountants.events import ComposedDpEvent, DpEvent, NeighbouringRelation, PoissonSampledDpEvent, as_relation

SCHEMA = 1

COMPONENT_PATH = re.compile(r"[a-z0-9_]+(/[a-z0-9_]+)*|([a-z0-9_]+/)*\{[a-z0-9_]+(,[a-z0-9_]+)+\}")
"""Such as train/gradients; or train/{gradients,clip_norm} for one event that is made of those components' (see `Charge`)."""

_FIELDS = {
    "header": {"kind", "schema", "time", "prev", "hash", "neighbouring_relation", "unit", "public"},
    # No time of day here: how long a chunk of training took depends on the examples that were drawn.
    "charge": {"kind", "prev", "hash", "path", "event", "count"},
    "commitment": {"kind", "prev", "hash", "path", "content"},
    "recovered": {"kind", "time", "prev", "hash", "dropped_bytes", "dropped_sha256"},
}
_HASH = b'"hash":"'
_HASH_FIELD = len(_HASH) + 64 + len(b'",')
_PREV = 64 + len(b'"}')
"""The length of a line's field with its hash, and of what it ends in: the hash of the line before."""

_MAX_SEEN = 100_000


@dataclasses.dataclass(frozen=True)
class Charge:
    """`count` runs of `event`, charged to the component at `path`, or to several that it consists of.

    Such a path ends in their names, as in train/{gradients,clip_norm}. The event is then composed of one for each, in that
    order, perhaps on one common sample: what shares a sample must not be charged as separately sampled events, which cost less.
    """

    path: str
    event: DpEvent
    count: int

    def __post_init__(self) -> None:
        names = len(self.parts)
        composed = parts_of(self.event) if names > 1 else ()
        if names > 1 and len(composed) != names:
            raise InvalidEventError(
                f"{self.path} names {names} components, so its event must be composed of {names}, in a sample or not; "
                f"it has {len(composed)}"
            )

    @property
    def parts(self) -> tuple[str, ...]:
        """Paths of the components."""
        folder, brace, names = self.path.partition("{")
        return tuple(folder + name for name in names.rstrip("}").split(",")) if brace else (self.path,)

    def only(self, chosen: Container[str]) -> DpEvent | None:
        """What the event would have been with the `chosen` components alone; None if it has none of them."""
        keep = [i for i, part in enumerate(self.parts) if part in chosen]
        if len(keep) == len(self.parts):
            return self.event
        if not keep:
            return None
        composed = parts_of(self.event)
        event = composed[keep[0]] if len(keep) == 1 else ComposedDpEvent(tuple(composed[i] for i in keep))
        return dataclasses.replace(self.event, event=event) if isinstance(self.event, PoissonSampledDpEvent) else event


def parts_of(event: DpEvent) -> tuple[DpEvent, ...]:
    """The events that `event`, or the one inside its Poisson sample, is composed of; none if it isn't composed."""
    inner = event.event if isinstance(event, PoissonSampledDpEvent) else event
    return tuple(inner.events) if isinstance(inner, ComposedDpEvent) else ()


@dataclasses.dataclass(frozen=True)
class Commitment:
    """What the writer binds itself to without releasing it, such as a salted digest; costs nothing.

    Attributes:
      path: of the component it belongs to.
      content: JSON-ready. Everything in it is public.
    """

    path: str
    content: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class LedgerContents:
    """A ledger, read and verified.

    Attributes:
      neighbouring_relation: under which the charges are meant.
      unit: the unit of privacy, such as "example".
      public: facts that the writer declared public (such as δ).
      charges: in order of writing.
      hashes: one a line; the last is the head.
      torn: bytes after the last whole line, left by a crash in the middle of a write; empty in a sound ledger.
      commitments: in order of writing.
    """

    neighbouring_relation: NeighbouringRelation
    unit: str
    public: Mapping[str, Any]
    charges: tuple[Charge, ...]
    hashes: tuple[str, ...]
    torn: bytes = b""
    commitments: tuple[Commitment, ...] = ()

    @property
    def promise(self) -> DpEvent | None:
        """What all charges amount to at most, fixed beforehand, where what was charged depended on what had been released.

        It stands in `public`, as `event_json.to_dict` makes it. None where nothing was chosen: then the charges say it.

        Raises:
          InvalidEventError: what stands there is no event.
        """
        stated = self.public.get("promise")
        return None if stated is None else from_dict(stated)

    @property
    def ceiling(self) -> tuple[float, float] | None:
        """(ε, δ) that the writer declared never to pass, if it did and both are numbers that make sense."""
        try:
            epsilon, delta = (float(self.public["ceiling"][name]) for name in ("epsilon", "delta"))
        except (TypeError, KeyError, ValueError):
            return None
        return (epsilon, delta) if 0 < epsilon < math.inf and 0 < delta < 1 else None

    @property
    def head(self) -> str:
        """SHA-256 that commits to every line."""
        return self.hashes[-1]

    def count(self, path: str) -> int:
        """How many events were charged to `path`, alone or with others."""
        return sum(charge.count for charge in self.charges if path in charge.parts)


def read_ledger(path: str | os.PathLike[str]) -> LedgerContents:
    """Reads and verifies a ledger without locking it.

    Raises:
      LedgerError: unreadable or damaged; `line` says where. A torn last line is not an error here: see `torn`.
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise LedgerError(f"can't read the ledger {os.fspath(path)}: {error.strerror or error}") from error
    try:
        contents = parse(raw)
    except LedgerError as error:
        raise LedgerError(f"the ledger {os.fspath(path)}, {error}", error.line) from error
    if contents is None:
        raise LedgerError(f"the ledger {os.fspath(path)} holds no whole line", line=1)
    return contents


def parse(raw: bytes) -> LedgerContents | None:
    """Verifies every line of a file's content; None if there is not one whole line.

    Raises:
      LedgerError: damaged; `line` says where. A torn last line is returned in `torn`, not raised.
    """
    lines, tail = chained.split(raw)
    charges: list[Charge] = []
    commitments: list[Commitment] = []
    hashes: list[str] = []
    header: dict[str, Any] = {}
    seen: dict[tuple[bytes, bytes], Charge] = {}  # by their canonical text
    head = chained.GENESIS
    for number, line in enumerate(lines, start=1):
        known = _known_charge(line, head, seen)
        if known is not None:
            charge, head = known
            charges.append(charge)
            hashes.append(head)
            continue
        record = chained.check_line(line, number, head, _FIELDS, SCHEMA)
        head = record["hash"]
        hashes.append(head)
        try:
            _check_content(record)
            if record["kind"] == "header":
                header = record
            elif record["kind"] == "charge":
                charge = Charge(check_path(record["path"]), from_dict(record["event"]), whole(record["count"], "count"))
                charges.append(charge)
                if len(seen) < _MAX_SEEN:
                    seen[_around_hashes(line)] = charge
            elif record["kind"] == "commitment":
                commitments.append(Commitment(check_path(record["path"]), record["content"]))
        except AccountingError as error:
            raise LedgerError(f"line {number}: {error}", line=number) from error
    if not header:
        return None
    return LedgerContents(
        neighbouring_relation=as_relation(header["neighbouring_relation"]),
        unit=header["unit"],
        public=header["public"],
        charges=tuple(charges),
        hashes=tuple(hashes),
        torn=tail,
        commitments=tuple(commitments),
    )


def _check_content(record: Mapping[str, Any]) -> None:
    kind = record["kind"]
    if kind == "header":
        if not (isinstance(record["public"], dict) and isinstance(record["unit"], str)):
            raise LedgerError("unit must be a string and public an object")
        as_relation(record["neighbouring_relation"])
    if kind == "commitment" and not isinstance(record["content"], dict):
        raise LedgerError("the content of a commitment must be an object")


def _known_charge(line: bytes, prev: str, seen: Mapping[tuple[bytes, bytes], Charge]) -> tuple[Charge, str] | None:
    """What `check_line` would find, for a sound line that charges what an earlier one did; None for any other, or if in doubt.

    It spares millions of lines the JSON: such a line differs from that earlier one, which is canonical, in its hashes alone.
    """
    around = _around_hashes(line)
    charge = seen.get(around)
    if charge is None:
        return None
    before, between = around
    after = prev.encode() + b'"}'
    found = hashlib.sha256(before + between + after).hexdigest()
    return (charge, found) if line == b'%b"hash":"%b",%b%b' % (before, found.encode(), between, after) else None


def _around_hashes(line: bytes) -> tuple[bytes, bytes]:
    """What stands before the field with the hash of a line, and what stands from there to the hash of the line before."""
    at = line.find(_HASH)
    return line[:at], line[at + _HASH_FIELD : -_PREV]


def check_path(path: Any) -> str:
    """`path`, if it is one of a component.

    Raises:
      LedgerError: it isn't.
    """
    if not isinstance(path, str) or not COMPONENT_PATH.fullmatch(path):
        raise LedgerError(f"a component path looks like 'train/gradients' (a-z, 0-9, _, /); got {path!r:.80}")
    return path
