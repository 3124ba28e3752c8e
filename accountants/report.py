"""Showing a breakdown to people (text) and to programs (`privacy.json`), and checking the latter."""

import dataclasses
import decimal
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accountants import strict_json
from accountants.accountant import Accountant, make_accountant
from accountants.breakdown import Breakdown, aggregated, break_down, finite_or_text
from accountants.chain import Charge, LedgerContents, read_ledger
from accountants.domains import open_unit, whole
from accountants.errors import AccountingError, LedgerError
from accountants.event_json import from_dict, to_dict
from accountants.events import as_relation
from accountants.profile import Profile, gdp, profile

SCHEMA = 5
"""Of privacy.json."""

_REDERIVED = 1e-6
"""Relative difference allowed when figures are derived again: another NumPy or processor may round differently."""

_TOLERANCE = {"gdp": 1e-3}
"""Where it is more: μ is searched for to a relative 1e-4."""

_DERIVED = (
    "epsilon",
    "spent",
    "lower",
    "accountant",
    "order",
    "rdp_at_order",
    "conversion_term",
    "components",
    "worst_case_tpr_at_fpr_1_percent",
    "advantage",
    "gdp",
    "profile",
    "bound",
)

_PROFILE_RTOL = 1e-2
"""Of the profile, which is taken at many ε at once; what follows from it is some 1e-4 looser than with the usual 1e-3."""

_CHECKED, _SLACK = (1e-10, 1e-2), 2e-3
"""Other δ at which what was spent is held against what was promised, and by how much both may be rounded up."""

_EVERY = 8
"""Of the profile's points, one in so many is written to privacy.json."""


def breakdown_of(contents: LedgerContents, delta: float | None = None, accountant: str = "auto") -> Breakdown:
    """The breakdown of a ledger, at `delta` or at the one its header declares, with what was promised.

    Raises:
      LedgerError: no δ was given and the header has none; or more was spent than was promised.
      UnsupportedEventError: the accountant asked for has no bound for what the ledger holds.
    """
    delta = contents.public.get("delta") if delta is None else delta
    if delta is None:
        raise LedgerError("this ledger declares no delta; give one with --delta")
    relation, promise = contents.neighbouring_relation, contents.promise
    spent = break_down(contents.charges, open_unit(delta, "delta"), neighbouring_relation=relation, accountant=accountant)
    if promise is None:
        return spent
    charged, fixed = (make_accountant(spent.accountant, neighbouring_relation=relation) for _ in range(2))
    fixed.compose(promise)
    for charge in aggregated(contents.charges):
        charged.compose(charge.event, charge.count)
    for other in (delta, *_CHECKED):
        within, found = fixed.get_epsilon(other), charged.epsilon_interval(other)
        if max(found.lower, found.upper * (1 - _SLACK)) > within:
            raise LedgerError(
                f"more was spent (ε = {upper(found.upper)}) than promised (ε ≤ {upper(within)}), at δ = {other:g}"
            )
    promised = fixed.get_epsilon(delta)
    if (ceiling := contents.ceiling) is not None and ceiling[1] <= delta:
        promised = min(promised, ceiling[0])
    return dataclasses.replace(spent, promised=promised)


def profile_of(contents: LedgerContents, accountant: str) -> tuple[Accountant, Profile]:
    """Everything that a ledger records, composed, and its privacy profile; what it promises, if it does."""
    composed = make_accountant(accountant, neighbouring_relation=contents.neighbouring_relation, rtol=_PROFILE_RTOL)
    if (promise := contents.promise) is not None:
        composed.compose(promise)
    else:
        for charge in aggregated(contents.charges):
            composed.compose(charge.event, charge.count)
    return composed, profile(composed)


def _attacker(contents: LedgerContents, accountant: str) -> dict[str, Any]:
    """What an attacker gains, from the whole profile."""
    composed, curve = profile_of(contents, accountant)
    mu = gdp(composed, curve=curve)
    return {
        "worst_case_tpr_at_fpr_1_percent": curve.max_tpr(0.01),
        "advantage": curve.advantage,
        "gdp": {key: finite_or_text(value) for key, value in dataclasses.asdict(mu).items()},
        "profile": [
            {"epsilon": float(e), "delta": float(d)}
            for e, d in zip(curve.epsilons[::_EVERY], curve.upper[::_EVERY], strict=True)
        ],
    }


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
    how = f"{breakdown.accountant} accountant"
    if breakdown.promised is not None:
        how += "; fixed beforehand, whatever was released"
    elif breakdown.lower:
        how += f", exact ≥ {lower(breakdown.lower)}"
    head = [f"ε ≤ {upper(breakdown.guarantee)} at δ = {breakdown.delta:g} under {breakdown.neighbouring_relation} ({how})"]
    if breakdown.promised is not None:
        head.append(
            f"spent: ε = {upper(breakdown.epsilon)}, a reading and no guarantee: what was charged depended on what was released"
        )
    return "\n".join(
        [
            *head,
            "",
            *lines,
            "",
            f"Share: of the Rényi divergence at order {breakdown.order:g}, which adds up to {upper(breakdown.rdp_at_order)}; "
            + (
                f"turning it into ε at this δ takes {breakdown.conversion_term:.4g} more."
                if breakdown.conversion_term >= 0
                else "ε at this δ is less than that."
            ),
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
    return document_of(breakdown_of(contents, delta, accountant), contents, facts)


def document_of(breakdown: Breakdown, contents: LedgerContents, facts: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The same, of a breakdown that is known."""
    return {
        "schema": SCHEMA,
        "unit": contents.unit,
        **breakdown.to_dict(),
        **_attacker(contents, breakdown.accountant),
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
            checked += "; costs that depend on votes add up, `replay` derives them from the votes" if "pate" in document else ""
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
    if "schema" not in document or "events" not in document:
        raise LedgerError(f"{path} is no privacy.json: it has no schema or no events")
    if document["schema"] != SCHEMA:
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
        differing = [key for key in _DERIVED if not _close(document[key], derived[key], _TOLERANCE.get(key, _REDERIVED))]
        pate = document.get("pate")
        wrong = [] if pate is None else _differing_pate(pate, contents)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        if isinstance(error, AccountingError):
            raise
        raise LedgerError(f"not a whole privacy.json: {type(error).__name__} at {error}") from None
    if differing:
        raise LedgerError(
            f"{', '.join(differing)} can't be re-derived from the events: "
            f"{differing[0]} should be {derived[differing[0]]!r:.200}"
        )
    if wrong:
        raise LedgerError(f"pate: {', '.join(wrong)} can't be re-derived from the header and from what was answered")
    beside = path.parent / "ledger.jsonl"
    if beside.exists():
        ledger = read_ledger(beside)
        belongs = (
            ledger.head == head
            and aggregated(ledger.charges) == charges
            and len(ledger.hashes) == document["ledger"].get("lines")
            and (ledger.unit, ledger.neighbouring_relation) == (contents.unit, contents.neighbouring_relation)
            and dict(ledger.public) == contents.public
            and (pate is None or pate["answered"] == _answered(ledger))
        )
        if not belongs:
            raise LedgerError(f"it does not agree with the ledger beside it, whose head is {ledger.head}")
    return head, charges


def _differing_pate(figures: Mapping[str, Any], contents: LedgerContents) -> list[str]:
    """Names of PATE's figures that don't follow from public facts and from which queries were answered."""
    from accountants.pate.independent import differing, independent
    from accountants.pate.record import CHECKS, PLURALITIES

    answered, voting = figures["answered"], contents.public["voting"]
    checked = len(answered) if voting["threshold"] is not None else 0
    whole_list = bool(answered) and all(isinstance(flag, bool) for flag in answered)
    # More may be charged than was answered: a crash in between leaves that.
    if not whole_list or sum(answered) > contents.count(PLURALITIES) or checked > contents.count(CHECKS):
        return ["answered"]
    return differing(figures, independent(answered, voting, contents.public["delta"]))


def _answered(ledger: LedgerContents) -> list[bool]:
    from accountants.pate.record import released

    return [answer.answered for answer in released(ledger)]


def _as_document(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The object, if the whole file is one that is not a ledger's single line."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise LedgerError(f"can't read {os.fspath(path)}: {error.strerror or error}") from error
    try:
        document = strict_json.loads(content)
    except strict_json.AmbiguousError as error:
        raise LedgerError(f"{os.fspath(path)} can be read in two ways: {error}") from error
    except ValueError:
        return None
    return document if isinstance(document, dict) and "kind" not in document else None


def _close(given: Any, derived: Any, tolerance: float) -> bool:
    """Equal, floats nearly so."""
    if isinstance(derived, float) and isinstance(given, int | float) and not isinstance(given, bool):
        return math.isclose(given, derived, rel_tol=tolerance, abs_tol=1e-12)
    if isinstance(derived, dict):
        return (
            isinstance(given, dict)
            and given.keys() == derived.keys()
            and all(_close(given[k], derived[k], tolerance) for k in derived)
        )
    if isinstance(derived, list | tuple):
        return (
            isinstance(given, list)
            and len(given) == len(derived)
            and all(_close(a, b, tolerance) for a, b in zip(given, derived, strict=True))
        )
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
