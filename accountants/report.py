"""Showing a breakdown to people (text) and to programs (`privacy.json`), and checking the latter."""

import decimal
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accountants.accountant import make_accountant
from accountants.breakdown import Breakdown, aggregated, break_down
from accountants.chain import Charge, LedgerContents, read_ledger
from accountants.domains import open_unit, whole
from accountants.errors import AccountingError, LedgerError
from accountants.event_json import from_dict, to_dict
from accountants.events import as_relation
from accountants.profile import profile

SCHEMA = 2
"""Of privacy.json."""

_REDERIVED = 1e-6
"""Relative difference allowed when figures are derived again: another NumPy or processor may round differently."""

_DERIVED = (
    "epsilon",
    "lower",
    "accountant",
    "order",
    "rdp_at_order",
    "conversion_term",
    "components",
    "worst_case_tpr_at_fpr_1_percent",
    "bound",
)


def breakdown_of(contents: LedgerContents, delta: float | None = None, accountant: str = "auto") -> Breakdown:
    """The breakdown of a ledger, at `delta` or at the one its header declares.

    Raises:
      LedgerError: no δ was given and the header has none.
      UnsupportedEventError: the accountant asked for has no bound for what the ledger holds.
    """
    delta = contents.public.get("delta") if delta is None else delta
    if delta is None:
        raise LedgerError("this ledger declares no delta; give one with --delta")
    return break_down(
        contents.charges,
        open_unit(delta, "delta"),
        neighbouring_relation=contents.neighbouring_relation,
        accountant=accountant,
    )


def worst_case_tpr(contents: LedgerContents, accountant: str, fpr: float = 0.01) -> float:
    """The most true positives any membership attack on what a ledger records reaches at a false-positive rate of `fpr`."""
    composed = make_accountant(accountant, neighbouring_relation=contents.neighbouring_relation)
    for charge in aggregated(contents.charges):
        composed.compose(charge.event, charge.count)
    return profile(composed, points=33).max_tpr(fpr)


def caveats(public: Mapping[str, Any]) -> list[str]:
    """What the declared facts of a ledger take away from its ε."""
    if public.get("reproducible_noise"):
        return ["GUARANTEE VOID for anyone who knows the seed: this run used --reproducible_noise. Never publish it."]
    return []


def text_table(breakdown: Breakdown) -> str:
    """The breakdown as a table of plain text."""
    rows = [("component", "events", "ε alone", "ε if removed", "share")]
    rows += [
        (c.path, f"{c.events:,}", upper(c.epsilon_alone), upper(c.epsilon_if_removed), f"{c.share:.1%}")
        for c in breakdown.components
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = [
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    if math.isinf(breakdown.epsilon):
        return "\n".join(["No privacy guarantee: something was released without noise, ε = ∞ at every δ.", "", *lines])
    how = (
        f"{breakdown.accountant} accountant, exact ≥ {lower(breakdown.lower)}"
        if breakdown.lower
        else f"{breakdown.accountant} accountant"
    )
    return "\n".join(
        [
            f"ε ≤ {upper(breakdown.epsilon)} at δ = {breakdown.delta:g} under {breakdown.neighbouring_relation} ({how})",
            "",
            *lines,
            "",
            f"Share: of the Rényi divergence at order {breakdown.order:g}, which adds up to {upper(breakdown.rdp_at_order)}; "
            f"turning it into ε at this δ takes {breakdown.conversion_term:+.4g} more.",
        ]
    )


def privacy_document(
    contents: LedgerContents,
    delta: float | None = None,
    facts: Mapping[str, Any] | None = None,
    accountant: str = "auto",
) -> dict[str, Any]:
    """The content of privacy.json: the breakdown, the events it follows from, and the facts of the statement.

    Args:
      contents: of the ledger.
      delta: as `breakdown_of`.
      accountant: "auto", "pld" or "rdp".
      facts: JSON-ready items for the privacy statement, see `statement.ITEMS`.
    """
    breakdown = breakdown_of(contents, delta, accountant)
    return {
        "schema": SCHEMA,
        "unit": contents.unit,
        **breakdown.to_dict(),
        "worst_case_tpr_at_fpr_1_percent": worst_case_tpr(contents, breakdown.accountant),
        "bound": "upper",
        "events": [
            {"path": charge.path, "count": charge.count, "event": to_dict(charge.event)}
            for charge in aggregated(contents.charges)
        ],
        "ledger": {"head": contents.head, "lines": len(contents.hashes), "public": dict(contents.public)},
        "facts": dict(facts or {}),
    }


def verify(path: str | os.PathLike[str], head: str | None = None) -> dict[str, Any]:
    """Checks a ledger's chain, or re-derives every figure of a privacy.json from its events.

    What stands under `facts` in a privacy.json is the word of the program that wrote it; there is nothing to check
    it against.

    Args:
      path: of either.
      head: what the head must be, to detect truncation or a rewritten chain.

    Returns:
      `ok`, `head`, `events` (how many were charged), `checked` (in words) and, when not ok, `error` and `line` (or None).
    """
    try:
        document = _as_document(path)
        if document is None:
            contents = read_ledger(path)
            if contents.torn:
                raise LedgerError("the last line is torn (a crash in mid-write, or an edit)", len(contents.hashes) + 1)
            found, charges = contents.head, list(contents.charges)
            checked = "every line follows from the one before; "
            checked += "the end is where it should be" if head else "whether the end was cut off: give --head"
        else:
            found, charges = _verify_document(Path(path), document)
            checked = f"ε ≤ {upper(document['epsilon'])} at δ = {document['delta']:g} re-derived from the events; "
            beside = (Path(path).parent / "ledger.jsonl").exists()
            checked += "the ledger beside it agrees" if beside else "no ledger beside it to compare with"
            checked += "; the descriptive text is the writer's word"
        if head is not None and head != found:
            raise LedgerError(f"the head is {found}, not {head}: cut short, extended or rewritten")
    except AccountingError as error:
        return {
            "ok": False,
            "head": None,
            "events": None,
            "checked": None,
            "error": str(error),
            "line": getattr(error, "line", None),
        }
    return {"ok": True, "head": found, "events": sum(charge.count for charge in charges), "checked": checked}


def _verify_document(path: Path, document: Mapping[str, Any]) -> tuple[str, list[Charge]]:
    if document.get("schema") != SCHEMA:
        raise LedgerError(f"schema {document.get('schema')!r:.40} is not the one this version reads ({SCHEMA}); upgrade")
    try:
        charges = [Charge(e["path"], from_dict(e["event"]), whole(e["count"], "count")) for e in document["events"]]
        head = str(document["ledger"]["head"])
        contents = LedgerContents(
            neighbouring_relation=as_relation(document["neighbouring_relation"]),
            unit=document["unit"],
            public=document["ledger"]["public"],
            charges=tuple(charges),
            hashes=(head,),
        )
        derived = privacy_document(contents, open_unit(document["delta"], "delta"), accountant=document["accountant"])
        differing = [key for key in _DERIVED if not _close(document[key], derived[key])]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        if isinstance(error, AccountingError):
            raise
        raise LedgerError(f"not a whole privacy.json: {type(error).__name__} at {error}") from None
    if differing:
        raise LedgerError(
            f"{', '.join(differing)} can't be re-derived from the events: "
            f"{differing[0]} should be {derived[differing[0]]!r:.200}"
        )
    beside = path.parent / "ledger.jsonl"
    if beside.exists():
        ledger = read_ledger(beside)
        belongs = (
            ledger.head == head
            and aggregated(ledger.charges) == charges
            and len(ledger.hashes) == document["ledger"].get("lines")
            and (ledger.unit, ledger.neighbouring_relation) == (contents.unit, contents.neighbouring_relation)
            and dict(ledger.public) == contents.public
        )
        if not belongs:
            raise LedgerError(f"it does not agree with the ledger beside it, whose head is {ledger.head}")
    return head, charges


def _as_document(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The object, if the whole file is one that is not a ledger's single line."""
    try:
        document = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise LedgerError(f"can't read {os.fspath(path)}: {error.strerror or error}") from error
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) and "kind" not in document else None


def _close(given: Any, derived: Any) -> bool:
    """Equal, floats nearly so."""
    if isinstance(derived, float) and isinstance(given, int | float) and not isinstance(given, bool):
        return math.isclose(given, derived, rel_tol=_REDERIVED, abs_tol=1e-12)
    if isinstance(derived, dict):
        return isinstance(given, dict) and given.keys() == derived.keys() and all(_close(given[k], derived[k]) for k in derived)
    if isinstance(derived, list | tuple):
        return isinstance(given, list) and len(given) == len(derived) and all(map(_close, given, derived))
    return bool(given == derived)


def lower(value: float, digits: int = 4) -> str:
    """A lower bound for people: rounded down."""
    exact = decimal.Decimal(value)
    if value == 0:
        return "0"
    step = decimal.Decimal(1).scaleb(exact.adjusted() + 1 - digits)
    return f"{float(exact.quantize(step, rounding=decimal.ROUND_FLOOR)):.{digits}g}"


def upper(value: float | str, digits: int = 4) -> str:
    """An upper bound for people: rounded up, so that what is printed is an upper bound too."""
    value = float(value)
    if not math.isfinite(value) or value == 0:
        return "∞" if value else "0"
    exact = decimal.Decimal(value)
    rounded = round(exact, digits - 1 - exact.adjusted())
    # A hair above is taken for float rounding, so that 3 + 1e-12 prints as 3.
    if rounded < exact * (1 - decimal.Decimal("1e-9")):
        rounded += decimal.Decimal(1).scaleb(exact.adjusted() + 1 - digits)
    return f"{float(rounded):.{digits}g}"
