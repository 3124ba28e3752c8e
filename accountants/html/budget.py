"""The page of a data set's budget: what is spent of each ceiling and by whom, under which terms."""

import collections
import math
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from accountants.budget_state import BudgetState, Reservation
from accountants.html import plots
from accountants.html.charts import Chart, Table, chart, short
from accountants.html.plots import power
from accountants.html.render import Part, check_available, render, write
from accountants.html.svg import COLOURS
from accountants.policy import ALL
from accountants.report import upper
from accountants.scopes import REST, Scope

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN = 24
"""Ceilings that get a bar."""
_LISTED = 500
"""Reservations that get a row of their own."""

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
    scopes = state.terms.scopes()
    spent = {scope.name: state.spent(scope) for scope in scopes}
    reservations = list(state.reservations.values())
    still_open = sum(not r.committed for r in reservations)
    warnings = []
    if any(not math.isfinite(value) for value in spent.values()):
        warnings.append("Something was released without noise: there is no guarantee for the units that it came from.")
    unit = state.terms.unit
    return render(
        "plain.html.j2",
        title=f"Privacy budget: {state.policy['name']}",
        kind="Privacy budget",
        name=str(state.policy["name"]),
        warnings=warnings,
        headline=f"Everything released from these data protects one {unit}, under {state.terms.neighbouring_relation}.",
        cards=_cards(state, scopes, spent, still_open),
        parts=[
            Part("What is spent of each ceiling", [_ceilings(scopes, spent)]),
            _by_whom(reservations),
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


def _cards(state: BudgetState, scopes: Sequence[Scope], spent: dict[str, float], still_open: int) -> list[tuple[str, str, str]]:
    whole = [scope for scope in scopes if not scope.purpose]
    worst = max(whole, key=lambda scope: spent[scope.name] / scope.ceiling.epsilon)
    of_whom = {ALL: "of everybody", REST: "of those in no cohort"}.get(worst.units, f"of the cohort {worst.units}")
    share = spent[worst.name] / worst.ceiling.epsilon
    cards = [
        (
            "Most is spent",
            f"ε ≤ {upper(spent[worst.name])} of {worst.ceiling.epsilon:g}",
            f"{of_whom}, at δ = {power(worst.ceiling.delta)}"
            + (f": {share:.0%} of the ceiling." if math.isfinite(share) else "."),
        ),
        ("Protects", f"one {state.terms.unit}", f"under {state.terms.neighbouring_relation}, in everything that is released."),
    ]
    cards.append(
        (
            "Reservations",
            f"{len(state.reservations):,}",
            f"{still_open:,} of them open: they count in full until they end."
            if still_open
            else "All of them have ended: they count with what was released.",
        )
    )
    cards.append(
        ("State", "sealed", "No more charges, ever.")
        if state.sealed
        else ("State", "in use", "What would pass a ceiling is refused beforehand.")
    )
    return cards


def _ceilings(scopes: Sequence[Scope], spent: dict[str, float]) -> Chart:
    """A bar each: what is spent, and what is left to the ceiling."""
    fullest = sorted(scopes, key=lambda s: -spent[s.name] / s.ceiling.epsilon)
    shown = [scope for scope in scopes if scope in fullest[:_SHOWN]]

    def draw(figure: "Figure") -> None:
        ax = plots.axes(figure, left=18, right=22, top=plots.legend_room(2, 2))
        for i, scope in enumerate(shown):
            share, y = min(spent[scope.name] / scope.ceiling.epsilon, 1.0), -float(i)
            name = short(scope.name, 20 if plots.narrow(figure) else 44)
            what = f"{name}: {upper(spent[scope.name])} of {scope.ceiling.epsilon:g}"
            ax.text(0, y + 0.3, what, va="center", fontweight="bold" if not scope.purpose else "normal")
            ax.barh(y, 1.0, height=0.26, color=COLOURS["grid"])
            ax.barh(y, share, height=0.26, color=COLOURS["s0" if scope.purpose == "" else "s1"])
        ax.barh(0, 0, color=COLOURS["s0"], label="for everything")
        ax.barh(0, 0, color=COLOURS["s1"], label="for one purpose")
        ax.set(yticks=[], xlim=(0, 1.005), ylim=(0.45 - len(shown), 0.55), xlabel="of the ceiling on ε")
        ax.spines["left"].set_visible(False)
        ax.grid(False)
        plots.percent_ticks(ax, "x")
        plots.legend_above(figure, 2)

    rows = [[s.name, upper(spent[s.name]), f"{s.ceiling.epsilon:g}", f"{s.ceiling.delta:g}"] for s in scopes]
    left_out = f" The {len(shown)} fullest are drawn." if len(shown) < len(scopes) else ""
    return chart(
        draw,
        name="ceilings",
        title="Spent and left",
        note="What is released from one cohort costs the others nothing: each has a ceiling of its own. A purpose is a part "
        f"of a ceiling.{left_out}",
        alt="Bars: "
        + "; ".join(f"{s.name} has spent ε = {upper(spent[s.name])} of {s.ceiling.epsilon:g}" for s in shown)
        + ".",
        table=Table(["ceiling", "spent ε", "of ε", "at δ"], rows),
        height=(96 + 42 * len(shown), 96 + 42 * len(shown)),
    )


def _by_whom(reservations: Sequence[Reservation]) -> Part:
    """A row for each reservation; those of one run are together."""
    if not reservations:
        return Part("By whom", [], "Nothing is reserved.")
    runs: dict[tuple[str, ...], list[Reservation]] = collections.defaultdict(list)
    for r in reservations:
        runs[r.id.partition(".")[0], r.run, r.release, r.cohort, r.purpose].append(r)
    rows = [_row(run, release, cohort, purpose, parts) for (_, run, release, cohort, purpose), parts in runs.items()]
    more = len(rows) - _LISTED
    if more > 0:
        rows = [*rows[-_LISTED:], [f"{more:,} earlier ones", *[""] * 7]]
    note = "What is open counts in full, what has ended with what was released; events of one run are together."
    head = ["run", "what", "cohort", "purpose", "components", "reserved", "released", "state"]
    return Part("By whom", [], note, Table(head, rows, words=(1, 2, 3, 4, 7)))


def _row(run: str, release: str, cohort: str, purpose: str, parts: Iterable[Reservation]) -> list[str]:
    parts = list(parts)
    paths = sorted({charge.path for r in parts for charge in r.charges})
    reserved, drawn = sum(c.count for r in parts for c in r.charges), sum(sum(r.drawn.values()) for r in parts)
    still_open = any(not r.committed for r in parts)
    names = ", ".join(paths[:4]) + (f" and {len(paths) - 4} more" if len(paths) > 4 else "")
    return [
        run or "–",
        release,
        cohort,
        purpose or "–",
        names,
        f"{reserved:,}",
        f"{drawn:,}",
        "open: counts in full" if still_open else "ended",
    ]


def _terms(state: BudgetState) -> list[Part]:
    """What the policy says."""
    policy = state.policy
    release = [[kind, str(whom)] for kind, whom in policy["release"].items()]
    described = str(policy["description"]) or "The policy identifies the data by a fingerprint, which stays beside them."
    public = ", ".join(map(str, policy["public"])) or "nothing"
    note = f"{described.rstrip('.')}. What counts as public: {public}."
    parts = [Part("Terms", [], note, Table(["what may be released", "to whom"], release, words=(1,)))]
    if policy["cohorts"]:
        rows = [[name, f"{cohort['rows']['number']:,}"] for name, cohort in policy["cohorts"].items()]
        parts.append(Part("Cohorts", [], "Disjoint, by number of rows.", Table(["cohort", "rows"], rows)))
    return parts
