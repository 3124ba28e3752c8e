"""The page: what is on it, in which order, and how it is written."""

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

from accountants.html import charts, curves
from accountants.html.charts import Table
from accountants.html.plots import power
from accountants.html.render import Part, check_available, render, write
from accountants.profile import Profile
from accountants.report import caveats, profile_of, upper
from accountants.runs import Run
from accountants.statement import Item, headline, items


@dataclasses.dataclass(frozen=True)
class Section:
    """All about one run.

    Attributes:
      run: itself.
      anchor: id on the page.
      headline: the guarantee in one sentence.
      caveats: what takes away from it.
      cards: (what, figure, explanation), the first things to read.
      parts: groups of charts.
      private: groups that must not be published.
      items: of the statement.
      missing: titles of items that nobody stated.
      merged: names and heads of the ledgers that it was put together from, if it was.
    """

    run: Run
    anchor: str
    headline: str
    caveats: Sequence[str]
    cards: Sequence[tuple[str, str, str]]
    parts: Sequence[Part]
    private: Sequence[Part]
    items: Sequence[Item]
    missing: Sequence[str]
    merged: Table | None


def page(runs: Sequence[Run], *, public: bool = False) -> str:
    """The HTML of one run, or of several beside each other.

    Args:
      runs: at least one.
      public: leave out whatever was computed from private data without noise.

    Raises:
      ReportExtraMissingError: jinja2 or matplotlib is not installed.
    """
    check_available()
    runs = _named_apart([run.public() for run in runs] if public else list(runs))
    profiles = [profile_of(run.spent, run.document["accountant"])[1] for run in runs]
    spends = [curves.spend(run) for run in runs]
    sections = [
        _section(run, profile, spend, f"run{i}", alone=len(runs) == 1)
        for i, (run, profile, spend) in enumerate(zip(runs, profiles, spends, strict=True))
    ]
    return render(
        "page.html.j2",
        title="Privacy report: "
        + " and ".join([", ".join(r.name for r in runs[:-1]), runs[-1].name] if runs[1:] else [runs[0].name]),
        sections=sections,
        comparison=_comparison(runs, profiles, spends) if len(runs) > 1 else None,
        public=public,
        private=any(section.private for section in sections),
    )


def write_page(path: str | os.PathLike[str], runs: Sequence[Run], *, public: bool = False) -> None:
    """Writes `page` to a file, whole or not at all.

    Raises:
      ReportExtraMissingError: jinja2 or matplotlib is not installed.
      AccountingError: the file can't be written.
    """
    write(path, page(runs, public=public))


def _named_apart(runs: list[Run]) -> list[Run]:
    names = [run.name for run in runs]
    return [
        dataclasses.replace(run, name=f"{run.name} ({names[: i + 1].count(run.name)})") if names.count(run.name) > 1 else run
        for i, run in enumerate(runs)
    ]


def _section(run: Run, profile: Profile, spend: curves.Spend, anchor: str, alone: bool) -> Section:
    document = run.document
    left = curves.remaining(run)
    shown = [charts.components(document, anchor)]
    if alone:
        shown.append(charts.spend([(run.name, spend)], None if left is None else left.ceiling, anchor))
    if len(spend.parts) > 1:
        shown.append(charts.stacked(spend, anchor))
    if left is not None:
        shown.append(charts.budget(left, anchor))
    parts = [Part("Where the budget went", shown)]
    if alone:
        epsilon, size = float(document["epsilon"]), _size(run)
        meant = [
            charts.attack([(run.name, profile)], anchor),
            charts.privacy_profile([(run.name, profile, epsilon, document["delta"])], size, anchor),
        ]
        points = curves.accuracy(run)
        if len(points) > 1:
            meant.append(charts.accuracy([(run.name, points)], anchor))
        parts.append(Part("What it means", meant))
    parts += _queries(run, anchor)
    stated = items(document)
    return Section(
        run=run,
        anchor=anchor,
        headline=headline(document),
        caveats=caveats(document["ledger"]["public"]),
        cards=_cards(run, left),
        parts=parts,
        private=_private(run, anchor),
        items=[item for item in stated if item.paragraphs],
        missing=[item.title for item in stated if not item.paragraphs],
        merged=_heads(run),
    )


def _heads(run: Run) -> Table | None:
    ledgers = run.contents.public.get("merged")
    return Table(["run", "head"], [[each["name"], each["head"]] for each in ledgers]) if ledgers and not run.is_ledger else None


def _size(run: Run) -> int | None:
    size = run.contents.public.get("num_examples")
    return size if isinstance(size, int) and not isinstance(size, bool) and size > 0 else None


def _cards(run: Run, left: curves.Remaining | None) -> list[tuple[str, str, str]]:
    document, unit = run.document, run.contents.unit
    epsilon = float(document["epsilon"])
    if math.isinf(epsilon):
        return [("Guarantee", "none", "Something was released without noise.")]
    tpr = 100 * document["worst_case_tpr_at_fpr_1_percent"]
    cards = [
        (
            "Guarantee",
            f"ε ≤ {upper(epsilon)}",
            f"at δ = {power(document['delta'])}. Whatever was released was at most {_growth(epsilon)} times (e^ε) more or less "
            f"likely than without any one {unit}, but for a probability of δ.",
        ),
        (
            "Protects",
            f"one {unit}",
            f"under {run.contents.neighbouring_relation}. It is not comparable with an ε under another relation.",
        ),
        (
            "An attacker gains",
            f"{upper(tpr, 3)} %",
            "of those present are found at most, by any test that accuses 1 % of those absent. Guessing finds 1 %.",
        ),
    ]
    if "promise" in document["ledger"]["public"]:
        cards.append(("Spent", f"ε = {upper(document['spent'])}", "A reading and no guarantee."))
    elif left is not None:
        share = left.used / left.ceiling
        cards.append(
            (
                "Budget",
                f"{upper(left.used)} of {left.ceiling:g}",
                f"of the ceiling on ε that was fixed beforehand ({share:.0%}).",
            )
        )
    scores = [m for m in run.metrics if (m.split, m.name) == ("test", "accuracy") and not m.private]
    if scores:
        cards.append(("Test accuracy", f"{scores[-1].value:.1%}".replace("%", " %"), "on held-out examples, measured exactly."))
    return cards


def _growth(epsilon: float) -> str:
    return upper(math.exp(epsilon), 3) if epsilon < 50 else f"e^{upper(epsilon)}"


def _queries(run: Run, anchor: str) -> list[Part]:
    """The publishable costs of PATE's queries, if the ledger has any."""
    from accountants.html import query_charts
    from accountants.pate.independent import independent
    from accountants.pate.record import released

    answers = released(run.contents) if run.contents.commitments else []
    if not answers:
        return []
    costs = independent([answer.answered for answer in answers], run.contents.public.get("voting", {}), run.document["delta"])
    answered = int(costs.answered.sum())
    note = f"{len(answers):,} queries were asked, {answered:,} answered, {len(answers) - answered:,} refused."
    return [Part("Queries", [query_charts.independent_costs(costs, anchor)], note)]


def _private(run: Run, anchor: str) -> list[Part]:
    """What must not be published."""
    from accountants.html import query_charts
    from accountants.html.diagnostics import diagnostics, others

    parts = []
    if run.pate is not None:
        shown = [query_charts.dependent_costs(run.pate, anchor), query_charts.each_query(run.pate, anchor)]
        note = (
            f"For these votes ε = {upper(run.pate['epsilon'])} at δ = {run.pate['delta']:g}, for any votes "
            f"{upper(run.pate['epsilon_independent'])} by the same accountant. The first depends on private votes."
        )
        parts.append(Part("Data-dependent costs", shown, note))
    drawn, table = diagnostics(run, anchor), others(run)
    if drawn or table:
        parts.append(Part("Diagnostics of training", drawn, table=table))
    return parts


def _comparison(runs: Sequence[Run], profiles: Sequence[Profile], spends: Sequence[curves.Spend]) -> dict[str, Any]:
    """Several runs beside each other."""
    names = [run.name for run in runs]
    scores = [(run.name, points) for run in runs if (points := curves.accuracy(run))]
    figures = [(float(run.document["epsilon"]), run.document["delta"]) for run in runs]
    shown = [
        charts.spend(list(zip(names, spends, strict=True)), None, "all"),
        charts.attack(list(zip(names, profiles, strict=True)), "all"),
        charts.privacy_profile([(n, p, *f) for n, p, f in zip(names, profiles, figures, strict=True)], None, "all"),
    ]
    if scores:
        shown.insert(0, charts.accuracy(scores, "all"))
    kinds = {(run.contents.unit, run.contents.neighbouring_relation) for run in runs}
    rows = []
    for run in runs:
        accuracy = dict(scores).get(run.name)
        rows.append(
            [
                run.name,
                upper(run.document["epsilon"]),
                f"{run.document['delta']:g}",
                f"one {run.contents.unit}",
                str(run.contents.neighbouring_relation),
                f"{upper(100 * run.document['worst_case_tpr_at_fpr_1_percent'], 3)} %",
                f"{accuracy[-1][1]:.2%}" if accuracy else "–",
            ]
        )
    head = ["run", "ε", "δ", "unit", "neighbouring relation", "attacker's TPR at 1 % FPR", "test accuracy"]
    warning = (
        ""
        if len(kinds) == 1
        else "These runs protect different units or under different relations: their ε must not be compared."
    )
    return {"table": Table(head, rows), "charts": shown, "warning": warning}
