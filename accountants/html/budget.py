"""The page of a data set's budget: what is spent of each ceiling and by whom, under which terms."""

import collections
import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from accountants.budget_state import BudgetState, Reservation
from accountants.html import budget_charts
from accountants.html.budget_charts import LONGEST, Filling
from accountants.html.charts import Table, short
from accountants.html.plots import power
from accountants.html.render import Part, check_available, render, write
from accountants.policy import ALL, Ceiling
from accountants.report import upper
from accountants.scopes import REST

if TYPE_CHECKING:
    from markupsafe import Markup

_LISTED = 200
"""Runs that get a row of their own."""

_NOT_COVERED = (
    "Whatever was computed from the data without asking the budget: it can't know of it.",
    "What the policy counts as public, and the policy itself.",
    "A copy of the data, or of the folder with its budget: it has a budget of its own.",
)


def budget_page(state: BudgetState) -> str:
    """The HTML of a budget as it stands. The fingerprint of the data is not on it.

    Raises:
      ReportExtraMissingError: jinja2 or matplotlib is not installed.
    """
    check_available()
    fillings = budget_charts.fillings(state)
    unit = state.terms.unit
    warnings = []
    if any(not math.isfinite(filling.spent) for filling in fillings):
        warnings.append(f"Something was released without noise: there is no guarantee for any {unit} that it came from.")
    drawn = [budget_charts.ceilings(fillings), budget_charts.by_run(state, fillings)]
    return render(
        "plain.html.j2",
        title=f"Privacy budget: {state.policy['name']}",
        kind="Privacy budget" + ", sealed" * state.sealed,
        name=str(state.policy["name"]),
        warnings=warnings,
        headline=f"Everything released from these data protects one {unit}, under {state.terms.neighbouring_relation}.",
        cards=_cards(state, fillings),
        parts=[
            Part("What is spent of each ceiling", [each for each in drawn if each is not None]),
            _by_whom(list(state.reservations.values())),
            *_terms(state),
        ],
        not_covered=_NOT_COVERED,
        record=f"The head of the budget commits to every line of it ({len(state.hashes):,} lines). "
        "`python -m accountants verify budget.jsonl --head …` checks it.",
        head=state.head,
        command="python -m accountants budget show … --html",
    )


def write_budget_page(path: str | os.PathLike[str], state: BudgetState) -> None:
    """Writes `budget_page` to a file, whole or not at all.

    Raises:
      ReportExtraMissingError: jinja2 or matplotlib is not installed.
      AccountingError: the file can't be written.
    """
    write(path, budget_page(state))


def _cards(state: BudgetState, fillings: Sequence[Filling]) -> list[tuple[str, str, str]]:
    worst = max((filling for filling in fillings if not filling.scope.purpose), key=lambda filling: filling.full)
    scope = worst.scope
    of_whom = {ALL: "for everybody", REST: "for those in no cohort"}.get(scope.units, f"for the cohort {scope.units}")
    share = f": {worst.full:.0%} of the ceiling." if math.isfinite(worst.full) else "."
    still_open = sum(not r.committed for r in state.reservations.values())
    return [
        (
            "Fullest ceiling",
            f"ε ≤ {upper(worst.spent)} of {scope.ceiling.epsilon:g}",
            f"{of_whom}, at δ = {power(scope.ceiling.delta)}{share}",
        ),
        ("Protects", f"one {state.terms.unit}", f"under {state.terms.neighbouring_relation}, in everything that is released."),
        (
            "Reservations",
            f"{len(state.reservations):,}",
            f"{still_open:,} of them open: they count in full until they end." if still_open else "None of them is open.",
        ),
        (
            "State",
            "sealed" if state.sealed else "in use",
            ("No more charges, ever." if state.sealed else "What would pass a ceiling is refused beforehand.")
            + f" Head {state.head[:12]}…, in full at the end.",
        ),
    ]


@dataclasses.dataclass(frozen=True)
class _Row:
    """Reservations of one run that differ in nothing but their components."""

    key: tuple[str, ...]
    reservations: Sequence[Reservation]

    @property
    def open(self) -> bool:
        return any(not r.committed for r in self.reservations)

    @property
    def counted(self) -> tuple[int, int]:
        """Events reserved, and released."""
        return sum(c.count for r in self.reservations for c in r.charges), sum(sum(r.drawn.values()) for r in self.reservations)

    def state(self) -> "str | Markup":
        import markupsafe

        if self.open:
            return markupsafe.Markup("<strong>open</strong>: counts in full")
        return "ended, counts in full" if any(r.in_full(s) for r in self.reservations for s in r.filters) else "ended"

    def cells(self) -> list[str]:
        _, run, release, cohort, purpose = self.key
        paths = sorted({charge.path for r in self.reservations for charge in r.charges})
        names = ", ".join(paths[:4]) + (f" and {len(paths) - 4} more" if len(paths) > 4 else "")
        counts = (f"{count:,}" for count in self.counted)
        return [short(run, LONGEST) or "–", self.state(), release, cohort, purpose or "–", names, *counts]


def _by_whom(reservations: Sequence[Reservation]) -> Part:
    """A row for each run and what it released, the latest at the end; open ones are there however old."""
    if not reservations:
        return Part("By whom", [], "Nothing is reserved.")
    runs: Mapping[tuple[str, ...], list[Reservation]] = collections.defaultdict(list)
    for r in reservations:
        runs[r.id.partition(".")[0], r.run, r.release, r.cohort, r.purpose].append(r)
    rows = [_Row(key, parts) for key, parts in runs.items()]
    listed = set(sorted(range(len(rows)), key=lambda i: (rows[i].open, i))[-_LISTED:])
    shown = [row.cells() for i, row in enumerate(rows) if i in listed]
    folded = [row for i, row in enumerate(rows) if i not in listed]
    note = (
        "What is open counts with all that is reserved; what has ended, with what was released, unless it fitted below a "
        "ceiling only alone: then in full too."
    )
    if folded:
        shown.insert(0, _sum(folded))
        note += " The latest are listed, and whatever is open; budget show --json has all."
    head = ["run", "state", "what", "cohort", "purpose", "components", "reserved", "released"]
    return Part("By whom", [], note, Table(head, shown, words=(0, 1, 2, 3, 4, 5)))


def _sum(rows: Sequence[_Row]) -> list[str]:
    still_open = sum(row.open for row in rows)
    reserved, released = (sum(counts) for counts in zip(*(row.counted for row in rows), strict=True))
    state = f"{still_open:,} open" if still_open else "ended"
    return [f"{len(rows):,} earlier ones", state, "", "", "", "", f"{reserved:,}", f"{released:,}"]


def _terms(state: BudgetState) -> list[Part]:
    """What the policy says."""
    policy, purposes = state.policy, state.terms.purposes
    release = [
        [
            kind,
            str(whom),
            ", ".join(name for name, (_, kinds) in purposes.items() if kind in kinds) or ("–" if purposes else "any"),
        ]
        for kind, whom in policy["release"].items()
    ]
    described = str(policy["description"]) or "The policy identifies the data by a fingerprint, which stays beside them."
    public = ", ".join(map(str, policy["public"])) or "nothing"
    note = f"{described.rstrip('.')}. What counts as public: {public}. Nothing else than this may be released:"
    whole = "units in no cohort; no cohort may have more" if policy["cohorts"] else "everything"
    limits: list[tuple[str, Ceiling, str]] = [("the whole", state.terms.ceiling, whole)]
    for name, ceiling in state.terms.cohorts.items():
        limits.append((f"cohort {name}", ceiling, f"{policy['cohorts'][name]['rows']['number']:,} rows"))
    for name, (ceiling, kinds) in purposes.items():
        limits.append((f"purpose {name}", ceiling, f"part of each of the above, for {', '.join(kinds)}"))
    rows = [[name, f"{ceiling.epsilon:g}", f"{ceiling.delta:g}", what] for name, ceiling, what in limits]
    return [
        Part("Terms", [], note, Table(["what may be released", "to whom", "for which purposes"], release, words=(0, 1, 2))),
        Part("Ceilings", [], "Fixed when the budget began.", Table(["of", "ε", "δ", "holds for"], rows, words=(0, 3))),
    ]
