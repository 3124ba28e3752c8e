"""Files of lines that commit to the line before: how they are written, and how they are verified.

One JSON object a line, each with the SHA-256 of the line before (`prev`) and of itself (`hash`), so that the last hash, the
*head*, commits to the whole file. Lines are canonical JSON (sorted keys, no spaces): a single changed byte, even a blank, is an
error that names its line. What the lines say is up to who uses this: `chain` (a run's ledger) and `budget_state` (a data set's
budget).
"""

import contextlib
import hashlib
import io
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from accountants.errors import LedgerError
from accountants.strict_json import no_constant

GENESIS = "0" * 64
"""`prev` of the first line."""

_LINE_START = b'{"'


def split(raw: bytes) -> tuple[Iterator[bytes], bytes]:
    """The whole lines of a file's content, one at a time, and what a write that a crash cut short left behind them.

    Raises:
      LedgerError: what follows the last newline can't have been left by one of our writes.
    """
    number, tail = raw.count(b"\n"), raw[raw.rfind(b"\n") + 1 :]
    if tail and not _is_torn(tail):
        raise LedgerError(
            f"line {number + 1}: neither a whole line nor the beginning of one (edited, or not a ledger)", number + 1
        )
    return (line[:-1] for line in itertools.islice(io.BytesIO(raw), number)), tail


def check_line(line: bytes, number: int, prev: str, fields: Mapping[str, set[str]], schema: int) -> dict[str, Any]:
    """One record, if it is canonical, whole, of a known kind, and follows `prev`.

    Args:
      line: without its newline.
      number: of the line, from 1.
      prev: hash of the line before, or `GENESIS`.
      fields: kind → its fields. The first line is of the kind "header", and no other.
      schema: that a header must have.

    Raises:
      LedgerError: names the line.
    """

    def refuse(why: str) -> LedgerError:
        return LedgerError(f"line {number}: {why}", line=number)

    try:
        # A key that is there twice is not canonical, which is found below.
        record = json.loads(line, parse_constant=no_constant)
    except (ValueError, RecursionError):
        raise refuse("not a JSON object") from None
    if not isinstance(record, dict):
        raise refuse("not a JSON object")
    kind = record.get("kind")
    if not isinstance(kind, str) or kind not in fields:
        raise refuse(f"kind {kind!r:.40} is not one of {', '.join(fields)}")
    if record.get("schema", schema) != schema:
        raise refuse(f"schema {record['schema']!r:.40} is not the one this version reads ({schema}); upgrade")
    if set(record) != fields[kind]:
        raise refuse(f"a {kind} must have the fields {sorted(fields[kind])}; got {sorted(record)}")
    if (number == 1) != (kind == "header"):
        raise refuse("there is one header, on the first line")
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


def linked(records: Sequence[Mapping[str, Any]], prev: str) -> tuple[bytes, list[str]]:
    """The lines of `records` after a line whose hash is `prev`, and the hash of each."""
    lines, hashes = [], []
    for record in records:
        whole = {**record, "prev": prev}
        whole["hash"] = prev = digest_of(whole)
        lines.append(canonical(whole) + b"\n")
        hashes.append(prev)
    return b"".join(lines), hashes


def append(fd: int, content: bytes) -> None:
    """Appends to a locked file; on disk (fsync) when it returns.

    Raises:
      OSError: it could not. What reached the disk was taken back, if that could be done.
    """
    size = os.fstat(fd).st_size
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    except OSError:
        with contextlib.suppress(OSError):
            truncate(fd, size)
        raise


def truncate(fd: int, size: int) -> None:
    """Cuts a locked file; on disk when it returns."""
    os.ftruncate(fd, size)
    os.fsync(fd)


def sync_folder(folder: Path) -> None:
    """Makes what was created, renamed or removed in `folder` survive a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def json_ready(public: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `public`, if JSON gives back what it is given."""
    try:
        copy = json.loads(json.dumps(dict(public), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise LedgerError(f"public facts must be plain JSON (no NaN, tuples or other types): {error}") from None
    if copy != public:
        raise LedgerError("public facts must be plain JSON: tuples and keys other than strings don't survive it")
    return dict(copy)


def canonical(record: Mapping[str, Any]) -> bytes:
    """The one way in which a record is written, without its newline."""
    return json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def digest_of(record: Mapping[str, Any]) -> str:
    """SHA-256 of a record that has no `hash` yet."""
    return hashlib.sha256(canonical(record)).hexdigest()


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
