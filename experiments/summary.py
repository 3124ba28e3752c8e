"""summary.html of a sweep: its trials beside each other, and what they cost together."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accountants.html import plots, render
from accountants.html.charts import Chart, Table, chart
from accountants.html.plots import power
from accountants.html.svg import COLOURS
from accountants.report import caveats, upper
from experiments.trials import Outcome, best

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FAR = 20
"""Ratio of values from which an axis is logarithmic."""
_FEW = 6
"""Values that get a tick each."""


def write_summary(path: Path, document: Mapping[str, Any], outcomes: Sequence[Outcome], metric: str, choosing: str) -> None:
    """Writes the page, or says why it could not; the sweep is complete without it.

    Args:
      path: of the page, in the folder of the sweep.
      document: privacy.json of the sweep.
      outcomes: those that may be released: all trials, or only the best one.
      metric: by which the best was chosen.
      choosing: how choosing was charged, in a sentence.
    """
    try:
        render.write(path, page(path.parent, document, outcomes, metric, choosing))
    except render.ReportExtraMissingError as error:
        print(f"no {path.name}: {error}")
    except Exception as error:  # whatever it is, the sweep is done and must end well
        print(f"no {path.name} ({type(error).__name__}: {error!s:.200})")


def page(folder: Path, document: Mapping[str, Any], outcomes: Sequence[Outcome], metric: str, choosing: str) -> str:
    """The HTML; see `write_summary`.

    Raises:
      ReportExtraMissingError: jinja2 or matplotlib is not installed.
    """
    render.check_available()
    scored = [outcome for outcome in outcomes if outcome.code == 0 and outcome.score is not None]
    top, metric_name = best(outcomes), metric.replace("_", " ")
    epsilon = float(document["epsilon"])
    cards = [
        (
            "Together" if len(outcomes) > 1 else "Guarantee",
            f"ε ≤ {upper(epsilon)}",
            f"at δ = {power(document['delta'])}, for one {document['unit']}, under {document['neighbouring_relation']}.",
        )
    ]
    if top is not None:
        settings = ", ".join(f"{name} {value}" for name, value in top.trial.choice)
        cards.append(("Best", f"{top.score:.4g}", f"{metric_name} on held-out examples, with {settings}."))
    if len(outcomes) > 1:
        cards.append(("Trials", f"{len(scored)} of {len(outcomes)}", "completed with a score."))
    drawn = _charts(scored, metric_name) if len(scored) > 1 else []
    return render.render(
        "plain.html.j2",
        title=f"Sweep: {folder.name}",
        kind="Sweep",
        name=folder.name,
        warnings=caveats(document["ledger"]["public"]),
        headline=choosing,
        cards=cards,
        parts=[
            *([render.Part("What made a difference", drawn)] if drawn else []),
            render.Part("Trials" if len(outcomes) > 1 else "The best trial", [], table=_table(folder, outcomes, metric)),
        ],
        not_covered=["The held-out examples: scores are exact and say something about them."],
        record="The head of the sweep's ledger commits to every line of it. `python -m accountants verify privacy.json` "
        "derives its cost again.",
        head=document["ledger"]["head"],
        command="python -m experiments.sweep",
    )


def _table(folder: Path, outcomes: Sequence[Outcome], metric: str) -> Table:
    """Best first; a trial's name leads to its report, if there is one beside the page."""
    names, several = [name for name, _ in outcomes[0].trial.choice], len(outcomes) > 1
    ordered = sorted(outcomes, key=lambda o: (o.code != 0, -(o.score if o.score is not None else -math.inf)))
    rows = [
        [
            _name(folder, outcome) if several else "best",
            *(value for _, value in outcome.trial.choice),
            "–" if outcome.score is None else f"{outcome.score:.6g}",
            *(["–" if outcome.epsilon is None else upper(outcome.epsilon)] if several else []),
            "done" if outcome.code == 0 else f"exit code {outcome.code}",
        ]
        for outcome in ordered
    ]
    # The best alone cost what the whole did, and no less.
    head = ["trial", *names, metric, *(["ε alone"] if several else []), "state"]
    return Table(head, rows, words=(*range(1, len(names) + 1), len(head) - 1))


def _name(folder: Path, outcome: Outcome) -> "str | Markup":
    import markupsafe

    name, report = f"{outcome.trial.number:03d}", outcome.trial.folder / "report.html"
    if not (report.exists() and report.is_relative_to(folder)):
        return name
    return markupsafe.Markup('<a href="{}">{}</a>').format(report.relative_to(folder).as_posix(), name)


def _charts(scored: Sequence[Outcome], metric: str) -> list[Chart]:
    """Score against whatever differs: ε, and each flag of the grid."""
    axes: list[tuple[str, list[str]]] = []
    costs = [math.nan if outcome.epsilon is None else outcome.epsilon for outcome in scored]
    if all(map(math.isfinite, costs)) and max(costs) > 1.01 * min(costs):
        axes.append(("ε alone", [repr(cost) for cost in costs]))
    for i, (name, _) in enumerate(scored[0].trial.choice):
        values = [outcome.trial.choice[i][1] for outcome in scored]
        if len(set(values)) > 1:
            axes.append((name, values))
    scores = [float(outcome.score or 0.0) for outcome in scored]
    return [_scatter(f"against{i}", name, values, scores, metric) for i, (name, values) in enumerate(axes)]


def _scatter(name: str, what: str, values: Sequence[str], scores: Sequence[float], metric: str) -> Chart:
    places, labels = _places(values)
    top = max(range(len(scores)), key=lambda i: scores[i])

    def draw(figure: "Figure") -> None:
        ax = plots.axes(figure, metric, right=26)
        ax.plot(places, scores, "o", color=COLOURS["s0"], markersize=7, alpha=0.75)
        ax.plot(places[top], scores[top], "o", markersize=13, markerfacecolor="none", color=COLOURS["s1"], markeredgewidth=2)
        ax.set(xlabel=what.replace("_", " "))
        _scale(ax, places, labels)

    pairs = sorted(zip(places, values, scores, strict=True))
    return chart(
        draw,
        name=name,
        title=f"{metric.capitalize()} against {what.replace('_', ' ')}",
        note="A dot for each trial; the best one has a ring.",
        alt=f"{len(scores)} dots of {metric} against {what}; the best, {scores[top]:.4g}, is at {values[top]}.",
        table=Table([what, metric], [[_shown(value), f"{score:.6g}"] for _, value, score in pairs]),
    )


def _scale(ax: "Axes", places: Sequence[float], labels: Sequence[str] | None) -> None:
    """A tick at each value, if they are few."""
    from matplotlib.ticker import NullLocator

    plots.plain_ticks(ax, "y")
    ax.margins(x=0.08, y=0.12)
    distinct = sorted(set(places))
    if labels is None and distinct[0] > 0 and distinct[-1] / distinct[0] >= _FAR:
        ax.set_xscale("log")
        plots.log_ticks(ax, "x")
    else:
        plots.plain_ticks(ax, "x")
    if labels is not None or len(distinct) <= _FEW:
        names = labels if labels is not None else [f"{place:.4g}" for place in distinct]
        ax.set_xticks(distinct, [name if len(name) < 15 else f"{name[:13]}…" for name in names])
        ax.xaxis.set_minor_locator(NullLocator())


def _places(values: Sequence[str]) -> tuple[list[float], list[str] | None]:
    """Numbers where they are; anything else one beside the other, with their names."""
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        numbers = [math.nan]
    if all(map(math.isfinite, numbers)):
        return numbers, None
    labels = list(dict.fromkeys(values))
    return [float(labels.index(value)) for value in values], labels


def _shown(value: str) -> str:
    try:
        return f"{float(value):.6g}"
    except ValueError:
        return value
