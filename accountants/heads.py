"""The chain of a file, be it a ledger or a budget: for those who verify or sign it."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accountants.budget_state import read_budget
from accountants.chain import read_ledger
from accountants.errors import AccountingError, LedgerError


def is_budget(path: str | os.PathLike[str]) -> bool:
    """Whether the first line of a file is the header of a budget, sound or not."""
    try:
        with open(path, "rb") as stream:
            record = json.loads(stream.readline())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(record, dict) and record.get("kind") == "header" and "policy" in record


def hashes_of(path: str | os.PathLike[str]) -> Sequence[str]:
    """Hashes of all lines of a ledger or budget, verified.

    Raises:
      LedgerError: damaged, torn, or unreadable.
    """
    if not is_budget(path):
        contents = read_ledger(path)
        hashes: Sequence[str] = contents.hashes
        torn = contents.torn
    else:
        state, torn = read_budget(Path(path).read_bytes())
        hashes = state.hashes
    if torn:
        raise LedgerError("the last line is torn (a crash in mid-write, or an edit)", len(hashes) + 1)
    return hashes


def verify_budget(path: str | os.PathLike[str], head: str | None) -> dict[str, Any]:
    """As `report.verify` does for a ledger; `events` is how many were drawn."""
    try:
        hashes = hashes_of(path)
        if head is not None and head != hashes[-1]:
            raise LedgerError(f"the head is {hashes[-1]}, not {head}: cut short, extended or rewritten")
        state, _ = read_budget(Path(path).read_bytes())
    except AccountingError as error:
        failed = {"ok": False, "head": None, "events": None, "checked": None, "error": str(error)}
        return failed | {"line": getattr(error, "line", None)}
    drawn = sum(sum(reservation.drawn.values()) for reservation in state.reservations.values())
    end = "the end is where it should be" if head else "whether the end was cut off: give --head"
    checked = f"every line follows from the one before and may follow it; {end}"
    return {"ok": True, "head": hashes[-1], "events": drawn, "checked": checked}
