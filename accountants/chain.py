"""The format of a ledger: what a line is, how lines are chained, and how a file of them is verified.

One JSON object a line. The first line is a header (neighbouring relation, unit of privacy, public facts);
the others are charges (component path, event, count) and commitments (salted digests, say). Each line holds the SHA-256 of
the line before (`prev`) and of itself (`hash`), so that the last hash, the *head*, commits to the whole file. Lines are
canonical JSON (sorted keys, no spaces): a single changed byte, even a blank, is an error that names its line.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from accountants.domains import whole
from accountants.errors import AccountingError, InvalidEventError, LedgerError
from accountants.event_json import from_dict
from accountants.events import ComposedDpEvent, DpEvent, NeighbouringRelation, PoissonSampledDpEvent, as_relation

SCHEMA = 1
GENESIS = "0" * 64
"""`prev` of the first line."""

COMPONENT_PATH = re.compile(r"[a-z0-9_]+(/[a-z0-9_]+)*|([a-z0-9_]+/)*\{[a-z0-9_]+(,[a-z0-9_]+)+\}")
"""Such as train/gradients; or train/{gradients,clip_norm} for one event that is made of those components' (see `Charge`)."""

_LINE_START = b'{"'
_FIELDS = {
    "header": {"kind", "schema", "time", "prev", "hash", "neighbouring_relation", "unit", "public"},
    # No time of day here: how long a chunk of training took depends on the examples that were drawn.
    "charge": {"kind", "prev", "hash", "path", "event", "count"},
    "commitment": {"kind", "prev", "hash", "path", "content"},
    "recovered": {"kind", "time", "prev", "hash", "dropped_bytes", "dropped_sha256"},
}


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
    contents = parse(raw)
    if contents is None:
        raise LedgerError(f"the ledger {os.fspath(path)} holds no whole line", line=1)
    return contents


def parse(raw: bytes) -> LedgerContents | None:
    """Verifies every line of a file's content; None if there is not one whole line.

    Raises:
      LedgerError: damaged; `line` says where. A torn last line is returned in `torn`, not raised.
    """
    body, newline, tail = raw.rpartition(b"\n")
    lines = body.split(b"\n") if newline else []
    if tail and not _is_torn(tail):
        raise LedgerError(
            f"line {len(lines) + 1}: neither a whole line nor the beginning of one (edited, or not a ledger)", len(lines) + 1
        )
    if not lines:
        return None
    charges: list[Charge] = []
    commitments: list[Commitment] = []
    hashes: list[str] = []
    header: dict[str, Any] = {}
    for number, line in enumerate(lines, start=1):
        record = _check_line(line, number, hashes[-1] if hashes else GENESIS)
        hashes.append(record["hash"])
        try:
            if record["kind"] == "header":
                header = record
                as_relation(header["neighbouring_relation"])
            elif record["kind"] == "charge":
                charges.append(_charge(record))
            elif record["kind"] == "commitment":
                commitments.append(Commitment(check_path(record["path"]), record["content"]))
        except AccountingError as error:
            raise LedgerError(f"line {number}: {error}", line=number) from error
    return LedgerContents(
        neighbouring_relation=as_relation(header["neighbouring_relation"]),
        unit=header["unit"],
        public=header["public"],
        charges=tuple(charges),
        hashes=tuple(hashes),
        torn=tail,
        commitments=tuple(commitments),
    )


def check_path(path: Any) -> str:
    """`path`, if it is one of a component.

    Raises:
      LedgerError: it isn't.
    """
    if not isinstance(path, str) or not COMPONENT_PATH.fullmatch(path):
        raise LedgerError(f"a component path looks like 'train/gradients' (a-z, 0-9, _, /); got {path!r:.80}")
    return path


def _charge(record: Mapping[str, Any]) -> Charge:
    return Charge(check_path(record["path"]), from_dict(record["event"]), whole(record["count"], "count"))


def _check_line(line: bytes, number: int, prev: str) -> dict[str, Any]:
    """One record, if it is canonical, whole, of a known kind, and follows `prev`."""

    def refuse(why: str) -> LedgerError:
        return LedgerError(f"line {number}: {why}", line=number)

    try:
        record = json.loads(line, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise refuse("not a JSON object") from None
    if not isinstance(record, dict):
        raise refuse("not a JSON object")
    kind = record.get("kind")
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise refuse(f"kind {kind!r:.40} is not one of {', '.join(_FIELDS)}")
    if record.get("schema", SCHEMA) != SCHEMA:
        raise refuse(f"schema {record['schema']!r:.40} is not the one this version reads ({SCHEMA}); upgrade")
    if set(record) != _FIELDS[kind]:
        raise refuse(f"a {kind} must have the fields {sorted(_FIELDS[kind])}; got {sorted(record)}")
    if (number == 1) != (kind == "header"):
        raise refuse("a ledger has one header, on its first line")
    if kind == "header" and not (isinstance(record["public"], dict) and isinstance(record["unit"], str)):
        raise refuse("unit must be a string and public an object")
    if kind == "commitment" and not isinstance(record["content"], dict):
        raise refuse("the content of a commitment must be an object")
    if record["prev"] != prev:
        raise refuse("does not follow the line before it (edited, removed, swapped or inserted)")
    digest = record.pop("hash")
    try:
        intact = digest == digest_of(record) and canonical(record | {"hash": digest}) == line
    except (ValueError, RecursionError):
        intact = False
    if not intact:
        raise refuse("hash does not match (edited)")
    return record | {"hash": digest}


def _is_torn(tail: bytes) -> bool:
    """Whether a write of ours that was cut short can have left `tail`.

    Such a tail begins as every line does and lacks the closing brace. One that holds a whole object was edited, and
    may stand for a release: dropping it could lower ε.
    """
    if not (tail.startswith(_LINE_START) or _LINE_START.startswith(tail)):
        return False
    try:
        json.JSONDecoder().raw_decode(tail.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return True
    return False


def json_ready(public: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `public`, if JSON gives back what it is given."""
    try:
        copy = json.loads(json.dumps(dict(public), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise LedgerError(f"public facts must be plain JSON (no NaN, tuples or other types): {error}") from None
    if copy != public:
        raise LedgerError("public facts must be plain JSON: tuples and keys other than strings don't survive it")
    return dict(copy)


def _no_constant(name: str) -> None:
    raise ValueError(name)


def canonical(record: Mapping[str, Any]) -> bytes:
    """The one way in which a record is written, without its newline."""
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def digest_of(record: Mapping[str, Any]) -> str:
    """SHA-256 of a record that has no `hash` yet."""
    return hashlib.sha256(canonical(record)).hexdigest()
