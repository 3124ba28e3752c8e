"""The ledger: an append-only, hash-chained file of what was released, written before it was released.

The order of work is: append, fsync, release. A crash can therefore leave a charge without its release (the
spend is over-stated by at most one reservation), never a release without its charge. A crash in the middle of
a write leaves a torn last line, whose release cannot have happened: opening the ledger for writing removes
it and records that it did. What a line looks like is in `chain`.
"""

import contextlib
import dataclasses
import datetime
import errno
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from accountants.chain import (
    GENESIS,
    SCHEMA,
    Charge,
    Commitment,
    LedgerContents,
    canonical,
    check_path,
    digest_of,
    json_ready,
    parse,
)
from accountants.domains import whole
from accountants.errors import InvalidEventError, LedgerError
from accountants.event_json import from_dict, to_dict
from accountants.events import NeighbouringRelation, as_event, as_relation


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
          InvalidEventError: the event or the count is malformed, or the event does not fit the path. Nothing was written.
          LedgerError: the path is malformed, or writing failed: release nothing.
        """
        event, count = as_event(event), whole(count, "count")
        check_path(path)
        if from_dict(to_dict(event)) != event:
            raise InvalidEventError(f"{event!r:.80} can't be written and read back")
        charge = Charge(path, event, count)
        digest = self._append({"kind": "charge", "path": path, "event": to_dict(event), "count": count})
        self._contents = dataclasses.replace(
            self._contents,
            charges=(*self._contents.charges, charge),
            hashes=(*self._contents.hashes, digest),
        )

    def commit_to(self, path: str, content: Mapping[str, Any]) -> None:
        """Records what the writer can be held to, such as a salted digest of what stays private; on disk when it returns.

        Args:
          path: of the component it belongs to.
          content: JSON-ready, and public.

        Raises:
          LedgerError: the path is malformed, the content is not plain JSON, or writing failed.
        """
        commitment = Commitment(check_path(path), json_ready(content))
        digest = self._append({"kind": "commitment", "path": path, "content": commitment.content})
        self._contents = dataclasses.replace(
            self._contents,
            commitments=(*self._contents.commitments, commitment),
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
        declared = json_ready(public or {})
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
        record["hash"] = digest_of(record)
        line = canonical(record) + b"\n"
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


def sync_folder(folder: Path) -> None:
    """Makes what was created, renamed or removed in `folder` survive a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
