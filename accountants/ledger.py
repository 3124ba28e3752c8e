"""The ledger: an append-only, hash-chained file of what was released, written before it was released.

The order of work is: append, fsync, release. A crash can therefore leave a charge without its release (the
spend is over-stated by at most one reservation), never a release without its charge. A crash in the middle of
a write leaves a torn last line, whose release cannot have happened: opening the ledger for writing removes
it and records that it did. What a line looks like is in `chain`.
"""

import dataclasses
import datetime
import errno
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from accountants import chained
from accountants.chain import SCHEMA, Charge, Commitment, LedgerContents, check_path, parse
from accountants.chained import json_ready, sync_folder
from accountants.domains import whole
from accountants.errors import InvalidEventError, LedgerError
from accountants.event_json import from_dict, to_dict
from accountants.events import DpEvent, NeighbouringRelation, as_event, as_relation

__all__ = ["Ledger", "sync_folder"]


_MAX_EVENTS = 10_000


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
        self._begun: LedgerContents  # what was there, or a new header
        self._charges: list[Charge] = []
        self._commitments: list[Commitment] = []
        self._hashes: list[str] = []
        self._snapshot: LedgerContents | None = None
        self._written: dict[DpEvent, dict[str, Any]] = {}  # events known to be read back as they are
        self._fd = self._open_locked()
        try:
            self._load(as_relation(neighbouring_relation), unit, public)
        except BaseException:
            self.close()
            raise

    @property
    def contents(self) -> LedgerContents:
        """Everything on disk, as of now."""
        if self._snapshot is None:
            self._snapshot = dataclasses.replace(
                self._begun,
                charges=tuple(self._charges),
                hashes=tuple(self._hashes),
                commitments=tuple(self._commitments),
            )
        return self._snapshot

    @property
    def head(self) -> str:
        """SHA-256 that commits to every line written so far."""
        return self._hashes[-1] if self._hashes else chained.GENESIS

    @property
    def neighbouring_relation(self) -> NeighbouringRelation:
        """Under which the charges are meant."""
        return self._begun.neighbouring_relation

    def charges_from(self, number: int) -> Sequence[Charge]:
        """All charges but the first `number`, without a copy of those."""
        return self._charges[number:]

    def charge(self, path: str, event: Any, count: int = 1) -> None:
        """Records `count` runs of `event` under the component `path`; on disk (fsync) when it returns.

        Raises:
          InvalidEventError: the event or the count is malformed, or the event does not fit the path. Nothing was written.
          LedgerError: the path is malformed, or writing failed: release nothing.
        """
        self.charge_all([(path, event, count)])

    def charge_all(self, charges: Iterable[tuple[str, Any, int]]) -> None:
        """Records many charges (path, event, count) at once; all on disk, with one fsync, when it returns.

        Raises:
          InvalidEventError, LedgerError: as `charge`; nothing was written, or some first lines at most: release nothing.
        """
        checked, records = [], []
        for path, event, count in charges:
            charge = Charge(check_path(path), as_event(event), whole(count, "count"))
            checked.append(charge)
            content = self._as_written(charge.event)
            records.append({"kind": "charge", "path": path, "event": content, "count": charge.count})
        self._append(*records)
        self._charges += checked

    def _as_written(self, event: DpEvent) -> dict[str, Any]:
        content = self._written.get(event)
        if content is None:
            content = to_dict(event)
            if from_dict(content) != event:
                raise InvalidEventError(f"{event!r:.80} can't be written and read back")
            if len(self._written) < _MAX_EVENTS:
                self._written[event] = content
        return content

    def commit_to(self, path: str, content: Mapping[str, Any]) -> None:
        """Records what the writer can be held to, such as a salted digest of what stays private; on disk when it returns.

        Args:
          path: of the component it belongs to.
          content: JSON-ready, and public.

        Raises:
          LedgerError: the path is malformed, the content is not plain JSON, or writing failed.
        """
        commitment = Commitment(check_path(path), json_ready(content))
        self._append({"kind": "commitment", "path": path, "content": commitment.content})
        self._commitments.append(commitment)

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
        declared = json_ready(public or {})
        if own := declared.keys() & {"neighbouring_relation", "unit"}:
            raise LedgerError(f"{min(own)} is an argument of its own, not one of the facts in `public`")
        raw = self._read()
        contents = parse(raw)
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
            self._begun = LedgerContents(relation, unit, declared, (), ())
            _ = self._begun.promise  # refused if malformed
            header = {"kind": "header", "schema": SCHEMA, "time": now, "unit": unit, "public": declared}
            self._append(header | {"neighbouring_relation": str(relation)})
            sync_folder(self.path.parent)
        else:
            self._begun = dataclasses.replace(contents, torn=b"")
            self._charges, self._commitments = list(contents.charges), list(contents.commitments)
            self._hashes = list(contents.hashes)
        if self.recovered:
            dropped = hashlib.sha256(self.recovered).hexdigest()
            self._append({"kind": "recovered", "time": now, "dropped_bytes": len(self.recovered), "dropped_sha256": dropped})

    def _read(self) -> bytes:
        """The whole file, through the descriptor that is locked."""
        assert self._fd is not None
        with open(os.dup(self._fd), "rb") as stream:
            stream.seek(0)
            return stream.read()

    def _append(self, *records: dict[str, Any]) -> None:
        if self._fd is None or self._failed:
            raise LedgerError(f"the ledger {self.path} is closed{' after a failed write' * self._failed}; release nothing")
        content, hashes = chained.linked(records, self.head)
        try:
            chained.append(self._fd, content)
        except OSError as error:
            # What reached the disk is unknown, so this writer is finished; the next one recovers.
            self._failed = True
            raise LedgerError(f"can't write the ledger {self.path}: {error.strerror}; nothing was released") from error
        self._hashes += hashes
        self._snapshot = None

    def _truncate(self, size: int) -> None:
        assert self._fd is not None
        chained.truncate(self._fd, size)
