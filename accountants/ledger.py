"""The ledger: an append-only, hash-chained file of what was released, written before it was released.

One JSON object a line. The first line is a header (neighbouring relation, unit of privacy, public facts);
every other one is a charge (component path, event, count). Each line holds the SHA-256 of the line before
(`prev`) and of itself (`hash`), so that the last hash, the *head*, commits to the whole file. Lines are
canonical JSON (sorted keys, no spaces): a single changed byte, even a blank, is an error that names its line.

The order of work is: append, fsync, release. A crash can therefore leave a charge without its release (the
spend is over-stated by at most one reservation), never a release without its charge. A crash in the middle of
a write leaves a torn last line, whose release cannot have happened: opening the ledger for writing removes
it and records that it did.
"""

import contextlib
import dataclasses
import datetime
import errno
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from accountants.errors import AccountingError, InvalidEventError, LedgerError
from accountants.events import DpEvent, NeighbouringRelation, as_event, as_relation, from_dict, to_dict, whole

SCHEMA = 1
GENESIS = "0" * 64
"""`prev` of the first line."""

_PATH = re.compile(r"[a-z0-9_]+(/[a-z0-9_]+)*")
_LINE_START = b'{"'
_FIELDS = {
    "header": {"kind", "schema", "time", "prev", "hash", "neighbouring_relation", "unit", "public"},
    # No time of day here: how long a chunk of training took depends on the examples that were drawn.
    "charge": {"kind", "prev", "hash", "path", "event", "count"},
    "recovered": {"kind", "time", "prev", "hash", "dropped_bytes", "dropped_sha256"},
}


@dataclasses.dataclass(frozen=True)
class Charge:
    """`count` runs of `event`, charged to the component at `path`."""

    path: str
    event: DpEvent
    count: int


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
    """

    neighbouring_relation: NeighbouringRelation
    unit: str
    public: Mapping[str, Any]
    charges: tuple[Charge, ...]
    hashes: tuple[str, ...]
    torn: bytes = b""

    @property
    def head(self) -> str:
        """SHA-256 that commits to every line."""
        return self.hashes[-1]

    def count(self, path: str) -> int:
        """How many events were charged to `path`."""
        return sum(charge.count for charge in self.charges if charge.path == path)


def read_ledger(path: str | os.PathLike[str]) -> LedgerContents:
    """Reads and verifies a ledger without locking it.

    Raises:
      LedgerError: unreadable or damaged; `line` says where. A torn last line is not an error here: see `torn`.
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise LedgerError(f"can't read the ledger {os.fspath(path)}: {error.strerror or error}") from error
    contents = _parse(raw)
    if contents is None:
        raise LedgerError(f"the ledger {os.fspath(path)} holds no whole line", line=1)
    return contents


class Ledger:
    """A ledger open for writing, locked against every other writer until closed.

    Example:
      with Ledger("ledger.jsonl") as ledger:
          ledger.charge("train/gradients", event, count=64)   # on disk when this returns
          ...                                                   # only now release
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        neighbouring_relation: str | NeighbouringRelation = NeighbouringRelation.ADD_OR_REMOVE_ONE,
        unit: str = "example",
        public: Mapping[str, Any] | None = None,
    ):
        """Opens the ledger at `path`, or starts one there.

        Args:
          path: of the file; its folder must exist.
          neighbouring_relation: must be the one an existing ledger was started with.
          unit: likewise.
          public: JSON-ready facts to declare public; must equal an existing ledger's where given.

        Raises:
          LedgerError: damaged, locked by another process, started under other terms, or not writable.
        """
        self.path = Path(path)
        self.recovered = b""
        self._failed = False
        self._contents: LedgerContents
        self._fd = self._open_locked()
        try:
            self._load(as_relation(neighbouring_relation), unit, public)
        except BaseException:
            self.close()
            raise

    @property
    def contents(self) -> LedgerContents:
        """Everything on disk, as of now."""
        return self._contents

    @property
    def head(self) -> str:
        """SHA-256 that commits to every line written so far."""
        return self._contents.head

    def charge(self, path: str, event: Any, count: int = 1) -> None:
        """Records `count` runs of `event` under the component `path`; on disk (fsync) when it returns.

        Raises:
          InvalidEventError: the event or the count is malformed. Nothing was written.
          LedgerError: the path is malformed, or writing failed: release nothing.
        """
        event, count = as_event(event), whole(count, "count")
        if not isinstance(path, str) or not _PATH.fullmatch(path):
            raise LedgerError(f"a component path looks like 'train/gradients' (a-z, 0-9, _, /); got {path!r}")
        if from_dict(to_dict(event)) != event:
            raise InvalidEventError(f"{event!r:.80} can't be written and read back")
        digest = self._append({"kind": "charge", "path": path, "event": to_dict(event), "count": count})
        self._contents = dataclasses.replace(
            self._contents,
            charges=(*self._contents.charges, Charge(path, event, count)),
            hashes=(*self._contents.hashes, digest),
        )

    def close(self) -> None:
        """Releases the lock. Harmless when already closed."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _open_locked(self) -> int | None:
        import fcntl  # not on Windows, where reading a ledger still works

        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise LedgerError(f"can't open the ledger {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if error.errno != errno.EWOULDBLOCK:
                raise LedgerError(f"can't lock the ledger {self.path}: {error.strerror}") from error
            raise LedgerError(
                f"the ledger {self.path} is in use by another process; wait for that run to end or use another folder"
            ) from None
        return fd

    def _load(self, relation: NeighbouringRelation, unit: str, public: Mapping[str, Any] | None) -> None:
        """Verifies what is there, refuses other terms, and only then drops a torn last line or starts a header."""
        declared = _json_ready(public or {})
        raw = self._read()
        contents = _parse(raw)
        if contents is not None:
            terms = {"neighbouring_relation": relation, "unit": unit, **({} if public is None else declared)}
            begun = {"neighbouring_relation": contents.neighbouring_relation, "unit": contents.unit}
            begun |= contents.public if public is not None else {}
            differing = sorted(name for name in terms.keys() | begun.keys() if terms.get(name) != begun.get(name))
            if differing:
                name = differing[0]
                raise LedgerError(
                    f"the ledger {self.path} was started with {name} = {begun.get(name)!s:.200}, not {terms.get(name)!s:.200}; "
                    "start another ledger for other terms",
                    line=1,
                )
        self.recovered = raw if contents is None else contents.torn
        if self.recovered:
            self._truncate(len(raw) - len(self.recovered))
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        if contents is None:
            header = {"kind": "header", "schema": SCHEMA, "time": now, "unit": unit, "public": declared}
            header["neighbouring_relation"] = str(relation)
            self._contents = LedgerContents(relation, unit, declared, (), (GENESIS,))
            self._contents = dataclasses.replace(self._contents, hashes=(self._append(header),))
            sync_folder(self.path.parent)
        else:
            self._contents = dataclasses.replace(contents, torn=b"")
        if self.recovered:
            dropped = hashlib.sha256(self.recovered).hexdigest()
            record = {"kind": "recovered", "time": now, "dropped_bytes": len(self.recovered), "dropped_sha256": dropped}
            digest = self._append(record)
            self._contents = dataclasses.replace(self._contents, hashes=(*self._contents.hashes, digest))

    def _read(self) -> bytes:
        """The whole file, through the descriptor that is locked."""
        assert self._fd is not None
        with open(os.dup(self._fd), "rb") as stream:
            stream.seek(0)
            return stream.read()

    def _append(self, record: dict[str, Any]) -> str:
        if self._fd is None or self._failed:
            raise LedgerError(f"the ledger {self.path} is closed{' after a failed write' * self._failed}; release nothing")
        record = record | {"prev": self._contents.head}
        record["hash"] = _digest(record)
        line = _canonical(record) + b"\n"
        size = os.fstat(self._fd).st_size
        try:
            view = memoryview(line)
            while view:
                view = view[os.write(self._fd, view) :]
            os.fsync(self._fd)
        except OSError as error:
            # What reached the disk is unknown, so this writer is finished; the next one recovers.
            self._failed = True
            with contextlib.suppress(OSError):
                self._truncate(size)
            raise LedgerError(f"can't write the ledger {self.path}: {error.strerror}; nothing was released") from error
        return record["hash"]

    def _truncate(self, size: int) -> None:
        assert self._fd is not None
        os.ftruncate(self._fd, size)
        os.fsync(self._fd)


def _parse(raw: bytes) -> LedgerContents | None:
    """Verifies every line; None if there is not one whole line."""
    body, newline, tail = raw.rpartition(b"\n")
    lines = body.split(b"\n") if newline else []
    if tail and not _is_torn(tail):
        raise LedgerError(
            f"line {len(lines) + 1}: neither a whole line nor the beginning of one (edited, or not a ledger)", len(lines) + 1
        )
    if not lines:
        return None
    charges: list[Charge] = []
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
        except AccountingError as error:
            raise LedgerError(f"line {number}: {error}", line=number) from error
    return LedgerContents(
        neighbouring_relation=as_relation(header["neighbouring_relation"]),
        unit=header["unit"],
        public=header["public"],
        charges=tuple(charges),
        hashes=tuple(hashes),
        torn=tail,
    )


def _charge(record: Mapping[str, Any]) -> Charge:
    if not isinstance(record["path"], str) or not _PATH.fullmatch(record["path"]):
        raise LedgerError(f"malformed component path {record['path']!r:.80}")
    return Charge(record["path"], from_dict(record["event"]), whole(record["count"], "count"))


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
    if record["prev"] != prev:
        raise refuse("does not follow the line before it (edited, removed, swapped or inserted)")
    digest = record.pop("hash")
    try:
        intact = digest == _digest(record) and _canonical(record | {"hash": digest}) == line
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


def _json_ready(public: Mapping[str, Any]) -> dict[str, Any]:
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


def _canonical(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(record)).hexdigest()


def sync_folder(folder: Path) -> None:
    """Makes what was created, renamed or removed in `folder` survive a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
