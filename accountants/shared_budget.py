"""One budget for one data set: a file that all processes which release anything from these data share.

It is append-only, chained (`chained`) and locked for the time of one operation, so that two runs that would both fit, but not
together, can't both reserve. Under the lock a process first reads what others have appended since. On disk (fsync) comes before
release: reserve, draw, release, and in the end commit. What the lines mean is in `budget_state`.

The file holds the policy with the data's fingerprint and belongs beside the data, with the same readers; its head gives nothing
away and may be published.
"""

import contextlib
import datetime
import hashlib
import os
import secrets
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from accountants import chained
from accountants.budget_state import SCHEMA, BudgetState, Reservation, checked_paths
from accountants.chain import Charge, check_path
from accountants.domains import whole
from accountants.errors import InvalidEventError, LedgerError
from accountants.event_json import from_dict, to_dict
from accountants.events import as_event
from accountants.policy import ALL, Policy

FILE = "budget.jsonl"
"""Usual name, beside the policy."""

_LOCK_SECONDS = 60.0


class SharedBudget:
    """The budget of a data set, open. Safe for threads and processes.

    Attributes:
      path: of the file.
      state: as of the last operation; `refresh` brings it up to date.
      recovered: bytes of a torn last line that were dropped.
    """

    def __init__(self, path: str | os.PathLike[str], policy: Policy | None = None, *, read_only: bool = False):
        """Opens the budget at `path` and verifies all of it.

        Args:
          path: of a file that `create` made.
          policy: that it must have been made for; None for any.
          read_only: for readers without the right to write.

        Raises:
          LedgerError: missing, damaged, made for another policy, or locked for a minute.
        """
        self.path, self.state, self.recovered = Path(path), BudgetState(), b""
        self._mutex = threading.Lock()
        self._read_only, self._failed = read_only, False
        self._offset = 0  # of what was read
        self._last = b""  # line that was read last
        self._fd: int | None = _open(self.path, os.O_RDONLY if read_only else os.O_RDWR | os.O_APPEND)
        try:
            self.refresh()
            if not self.state.hashes:
                raise LedgerError(f"the budget {self.path} holds no whole line; make it again with init", line=1)
            if policy is not None:
                self._check_policy(policy)
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(cls, path: str | os.PathLike[str], policy: Policy) -> "SharedBudget":
        """Starts the budget of `policy` at `path`, where nothing may be yet; readable and writable by owner and group.

        Raises:
          LedgerError: something is there, or it can't be written.
        """
        path = Path(path)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        header = {"kind": "header", "schema": SCHEMA, "time": now, "salt": secrets.token_hex(32), "policy": policy.to_dict()}
        content, _ = chained.linked([header], chained.GENESIS)
        partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o660)
            try:
                chained.append(fd, content)
                os.link(partial, path)  # whole or not at all, and never over a budget that is there
            finally:
                os.close(fd)
                os.unlink(partial)
            chained.sync_folder(path.parent)
        except FileExistsError:
            raise LedgerError(f"there is a budget at {path} already; a second one would allow everything twice") from None
        except OSError as error:
            raise LedgerError(f"can't write the budget {path}: {error.strerror}") from error
        return cls(path, policy)

    @property
    def head(self) -> str:
        """SHA-256 that commits to every line that was read or written so far."""
        return self.state.head

    def refresh(self) -> BudgetState:
        """Reads what others have appended, and returns the state."""
        with self._locked():
            return self.state

    def reserve(
        self,
        charges: Sequence[tuple[str, Any, int]],
        *,
        release: str,
        cohort: str = ALL,
        purpose: str = "",
        run: str = "",
        name: str | None = None,
        draw: bool = False,
    ) -> Reservation:
        """Reserves (path, event, count) of each charge, all or nothing; on disk when it returns.

        Args:
          charges: what may be released under it.
          release: kind of what is released, of those in the policy.
          cohort: whose data they are computed from; default: all.
          purpose: of the release; needed where the policy has purposes.
          run: a label for people.
          name: 32 hexadecimal digits, of the reservation; default: random ones.
          draw: draw all of it at once, for a release that follows immediately.

        Raises:
          BudgetExceededError: it would pass a ceiling; nothing was reserved.
          LedgerError, InvalidEventError, UnsupportedEventError: malformed, unknown to the policy, or not written.
        """
        made = [Charge(check_path(path), as_event(event), whole(n, "count", at_least=1)) for path, event, n in charges]
        if not made or any(from_dict(to_dict(charge.event)) != charge.event for charge in made):
            raise InvalidEventError("there is nothing to reserve, or an event that can't be written and read back")
        name = secrets.token_hex(16) if name is None else name
        with self._locked(write=True) as fd:
            if name in self.state.reservations:
                raise LedgerError(f"reservation {name} is there already")
            reservation = Reservation(name, run, cohort, purpose, release, checked_paths(made), {}, {})
            records = [self.state.reserve_record(reservation)]
            if draw:
                records += [{"kind": "draw", "id": name, "path": c.path, "count": c.count} for c in made]
            self._append(fd, records)
            return self.state.reservations[name]

    def draw(self, name: str, path: str, count: int) -> None:
        """Takes `count` from what is reserved under `name` at `path`; release only after it returns.

        Raises:
          LedgerError: there is no such reservation, it has ended, or nothing could be written.
          BudgetExceededError: so much is not left in it.
        """
        count = whole(count, "count", at_least=1)
        with self._locked(write=True) as fd:
            self.state.check_draw(name, path, count)
            self._append(fd, [{"kind": "draw", "id": name, "path": path, "count": count}])

    def commit(self, *names: str) -> None:
        """Ends reservations: what was not drawn is given back, and can't be drawn any more. Does nothing to ended ones.

        Raises:
          LedgerError: there is no such reservation, or nothing could be written.
        """
        with self._locked(write=True) as fd:
            for name in names:
                if name not in self.state.reservations:
                    raise LedgerError(f"there is no reservation {name!r:.80}")
            still = [name for name in dict.fromkeys(names) if not self.state.reservations[name].committed]
            if still:
                self._append(fd, [{"kind": "commit", "id": name} for name in still])

    def seal(self) -> None:
        """Takes no more charges, ever. Does nothing to a sealed budget."""
        with self._locked(write=True) as fd:
            if not self.state.sealed:
                now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
                self._append(fd, [{"kind": "seal", "time": now}])

    def close(self) -> None:
        """Harmless when already closed."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _check_policy(self, policy: Policy) -> None:
        given, begun = chained.json_ready(policy.to_dict()), self.state.policy
        if given != begun:
            name, then, now = _difference(begun, given)
            shown = "" if name.endswith(("fingerprint", "sha256")) else f": {then!s:.100}, not {now!s:.100}"
            raise LedgerError(
                f"the budget {self.path} was made for a policy with another {name}{shown}; "
                "a policy stays as it was when its budget was made",
                line=1,
            )

    @contextlib.contextmanager
    def _locked(self, write: bool = False) -> Iterator[int]:
        """Holds the lock; what others have written is read."""
        with self._mutex:
            if self._fd is None or self._failed:
                raise LedgerError(f"the budget {self.path} is closed{' after a failed write' * self._failed}; release nothing")
            if write and self._read_only:
                raise LedgerError(f"the budget {self.path} is open for reading only")
            _lock(self._fd, self.path, exclusive=not self._read_only)
            try:
                self._catch_up(self._fd)
                yield self._fd
            finally:
                import fcntl

                fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _catch_up(self, fd: int) -> None:
        """Reads and verifies what was appended, and recovers from a writer's crash."""
        number = len(self.state.hashes)
        try:
            there, ours = os.stat(self.path), os.fstat(fd)
            if (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
                raise LedgerError(f"the budget {self.path} was exchanged while it was in use", line=max(number, 1))
            start = self._offset - len(self._last)
            content = _read(fd, start, ours.st_size)
        except OSError as error:
            raise LedgerError(f"can't read the budget {self.path}: {error.strerror}", line=max(number, 1)) from error
        if not content.startswith(self._last):
            raise LedgerError(f"line {number}: the budget {self.path} was cut short or edited while in use", line=number)
        new = content[len(self._last) :]
        try:
            lines, tail = chained.split(new)
        except LedgerError as error:
            at = (error.line or 1) + number
            raise LedgerError(f"line {at}: neither a whole line nor the beginning of one (edited, or no budget)", at) from None
        for line in lines:
            self._take(line)
        if tail and not self._read_only and self.state.hashes:
            self.recovered += tail
            try:
                chained.truncate(fd, self._offset)
            except OSError as error:
                raise LedgerError(f"can't write the budget {self.path}: {error.strerror}; release nothing") from error
            dropped = {"dropped_bytes": len(tail), "dropped_sha256": hashlib.sha256(tail).hexdigest()}
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            self._append(fd, [{"kind": "recovered", "time": now, **dropped}])

    def _append(self, fd: int, records: Sequence[dict[str, Any]]) -> None:
        content, _ = chained.linked(records, self.head)
        for line in content.splitlines():
            self._take(line)  # first: what can't be read must not be written
        try:
            chained.append(fd, content)
        except OSError as error:
            self._failed = True  # the state is ahead of the file
            raise LedgerError(f"can't write the budget {self.path}: {error.strerror}; nothing was released") from error

    def _take(self, line: bytes) -> None:
        self.state.read(line)
        self._offset += len(line) + 1
        self._last = line + b"\n"


def _difference(one: Any, other: Any, name: str = "") -> tuple[str, Any, Any]:
    """The first entry in which two nested tables differ: its path, and both values (None where it is missing)."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return name, one, other
    key = next(key for key in [*one, *other] if one.get(key) != other.get(key))
    return _difference(one.get(key), other.get(key), f"{name}.{key}" if name else key)


def _open(path: Path, flags: int) -> int:
    """A descriptor of a regular file that is no link: a link could be turned to another budget."""
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise LedgerError(f"there is no budget at {path}; make it with: python -m accountants budget init") from None
    except OSError as error:
        link = " (it is a symbolic link, which could be turned to another file: give the file itself)" * path.is_symlink()
        raise LedgerError(f"can't open the budget {path}: {error.strerror}{link}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise LedgerError(f"the budget {path} is not a regular file")
    return fd


def _lock(fd: int, path: Path, *, exclusive: bool) -> None:
    """Waits for the lock, for a minute at most."""
    import fcntl  # not on Windows

    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    end, pause = time.monotonic() + _LOCK_SECONDS, 0.0005
    while True:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                raise LedgerError(
                    f"the budget {path} is held by another process for more than a minute; end that one"
                ) from None
        except OSError as error:
            raise LedgerError(f"can't lock the budget {path}: {error.strerror}") from error
        time.sleep(pause)
        pause = min(2 * pause, 0.02)


def _read(fd: int, start: int, end: int) -> bytes:
    parts = []
    while start < end and (part := os.pread(fd, min(end - start, 1 << 24), start)):
        parts.append(part)
        start += len(part)
    return b"".join(parts)
