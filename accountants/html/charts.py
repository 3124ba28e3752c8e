"""The charts of a page: what each shows, in pictures, in words, and as a table."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from accountants.html import plots
from accountants.html.curves import Remaining, Spend, tradeoff
from accountants.html.svg import COLOURS, NARROW, WIDE, Draw, inline
from accountants.profile import Profile
from accountants.report import upper

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN = 8
"""Components that get a bar or a colour of their own; the rest are together."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Figures behind a chart. The first column holds names; those in `words` hold text that may be long, the others numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[int] = ()


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart, ready for the template.

    Attributes:
      name: unique in the page.
      title: what it shows.
      note: how to read it, a sentence or two.
      alt: what it says, for those who can't see it.
      wide, narrow: SVG elements.
      table: of its figures.
    """

    name: str
    title: str
    note: str
    alt: str
    wide: str
    narrow: str
    table: Table


def chart(
    draw: Draw, *, name: str, title: str, note: str, alt: str, table: Table, height: tuple[float, float] = (WIDE[1], NARROW[1])
) -> Chart:
    """Draws it for wide and for narrow screens."""
    wide = inline(draw, f"{name}-w", alt, (WIDE[0], height[0]))
    small = inline(draw, f"{name}-n", alt, (NARROW[0], height[1]))
    return Chart(name, title, note, alt, wide, small, table)


def components(document: Mapping[str, Any], name: str) -> Chart:
    """Three honest columns."""
    rows = document["components"]
    total = float(document["spent"])
    shown = sorted(rows, key=lambda c: -c["share"])[:_SHOWN]
    finite = [v for c in shown for v in (float(c["epsilon_alone"]), float(c["epsilon_if_removed"])) if math.isfinite(v)]
    top = max([*finite, total if math.isfinite(total) else 0.0, 1e-9])

    def draw(figure: "Figure") -> None:
        small = plots.narrow(figure)
        columns = 2 if small else 3
        ax = plots.axes(figure, left=8, right=80, top=plots.legend_room(3, columns))
        width = lambda value: min(float(value), 1.02 * top)  # noqa: E731
        for i, c in enumerate(shown):
            y = -float(i)
            ax.text(0, y + 0.36, f"{short(c['path'], 26 if small else 54)}, {c['share']:.1%}", va="center", fontweight="bold")
            for offset, key, colour in ((0.1, "epsilon_alone", "s0"), (-0.16, "epsilon_if_removed", "s1")):
                ax.barh(y + offset, width(c[key]), height=0.2, color=COLOURS[colour])
                ax.text(width(c[key]) + 0.01 * top, y + offset, f" {upper(c[key])}", va="center")
        if math.isfinite(total):
            ax.axvline(total, color=COLOURS["ink"], linewidth=1.2, linestyle=(0, (4, 3)))
        ax.barh(0, 0, color=COLOURS["s0"], label="ε alone")
        ax.barh(0, 0, color=COLOURS["s1"], label="ε if removed")
        ax.plot([], [], color=COLOURS["ink"], linewidth=1.2, linestyle=(0, (4, 3)), label="ε of everything")
        ax.set(yticks=[], xlim=(0, 1.04 * top), ylim=(-len(shown) + 0.55, 0.6), xlabel="ε")
        ax.spines["left"].set_visible(False)
        ax.grid(False, axis="y")
        plots.plain_ticks(ax, "x")
        plots.legend_above(figure, columns)

    most = shown[0] if shown else None
    alt = (
        f"Bars of {len(shown)} components, each with its ε alone and the total's ε without it; everything together is "
        f"{upper(total)}. "
        + (f"The largest share, {most['share']:.0%}, is {most['path']}." if most else "Nothing was charged.")
    )
    left_out = f" The {len(shown)} with the largest shares are drawn." if len(rows) > len(shown) else ""
    return chart(
        draw,
        name=f"{name}-components",
        title="Spend by component",
        note="Epsilons don't add up. <b>Alone</b>: if nothing else had been released. <b>If removed</b>: the total without it. "
        f"<b>Share</b>: of the Rényi divergence at order {document['order']:g}, which does add up.{left_out}",
        alt=alt,
        table=Table(
            ["component", "events", "ε alone", "ε if removed", "share"],
            [
                [c["path"], f"{c['events']:,}", upper(c["epsilon_alone"]), upper(c["epsilon_if_removed"]), f"{c['share']:.1%}"]
                for c in rows
            ],
        ),
        height=(84 + 64 * max(len(shown), 1), 104 + 64 * max(len(shown), 1)),
    )


def spend(runs: Sequence[tuple[str, Spend]], ceiling: float | None, name: str) -> Chart:
    """ε as events were charged; several runs in one."""
    last = [(label, float(s.events[-1]), float(s.epsilon[-1])) for label, s in runs]
    several = len(runs) > 1

    def draw(figure: "Figure") -> None:
        ax = plots.axes_for_runs(figure, len(runs), "ε")
        for i, (label, s) in enumerate(runs):
            x = s.events / max(1.0, float(s.events[-1])) if several else s.events
            ax.plot(x, s.epsilon, label=label, **plots.line_style(i, len(runs)))
            if not several:
                ax.fill_between(x, s.epsilon, color=plots.series(i), alpha=0.15, linewidth=0)
            ax.plot(x[-1:], s.epsilon[-1:], "o", color=plots.series(i), markersize=6)
        if ceiling is not None:
            ax.axhline(ceiling, color=COLOURS["bad"], linewidth=1.4, linestyle=(0, (4, 3)))
            where = ax.get_yaxis_transform()
            ax.annotate(f"ceiling {ceiling:g}", (0.01, ceiling), (0, 4), xycoords=where, textcoords="offset points")
        top = max([e for _, _, e in last if math.isfinite(e)] + [ceiling or 0.0, 1e-9])
        right = 1.0 if several else max(1.0, last[0][1])
        ax.set(xlim=(0, right * 1.03), ylim=(0, top * 1.12), xlabel="events charged")
        plots.plain_ticks(ax)
        if several:
            ax.set_xlabel("of the run's events")
            plots.percent_ticks(ax, "x")
        plots.legend_of_runs(figure, len(runs))

    rows = []
    for label, s in runs:
        picked = np.unique(np.linspace(0, len(s.events) - 1, 9).round().astype(int))
        rows += [[label, f"{s.events[i]:,.0f}", upper(float(s.epsilon[i]))] for i in picked]
    ends = "; ".join(f"{label} reaches ε = {upper(e)} after {n:,.0f} events" for label, n, e in last)
    return chart(
        draw,
        name=f"{name}-spend",
        title="Spend over time",
        note="ε of all that had been charged so far. The ledger keeps order, not time of "
        "day: how long "
        "a step takes can depend on private data.",
        alt=f"Line of ε against events charged: {ends}." + (f" The ceiling is {ceiling:g}." if ceiling is not None else ""),
        table=Table(["run", "events", "ε"], rows),
    )


def stacked(s: Spend, name: str) -> Chart:
    """The components' Rényi divergences, which add up, along the run."""
    ordered = sorted(s.parts.items(), key=lambda item: -item[1][-1])
    parts = ordered[:_SHOWN]
    if len(ordered) > _SHOWN:
        parts = [
            *ordered[: _SHOWN - 1],
            (f"{len(ordered) - _SHOWN + 1} others", np.sum([v for _, v in ordered[_SHOWN - 1 :]], axis=0)),
        ]

    def draw(figure: "Figure") -> None:
        small = plots.narrow(figure)
        columns = 1 if small else 2
        ax = plots.axes(figure, "Rényi divergence", top=plots.legend_room(len(parts), columns))
        ax.stackplot(
            s.events,
            [values for _, values in parts],
            colors=[plots.series(i) for i in range(len(parts))],
            labels=[short(path, 34) for path, _ in parts],
            edgecolor=COLOURS["paper"],
            linewidth=0.8,
        )
        ax.set(xlim=(0, max(1.0, float(s.events[-1]))), ylim=(0, None), xlabel="events charged")
        plots.plain_ticks(ax)
        plots.legend_above(figure, columns)

    total = sum(float(values[-1]) for _, values in parts)
    return chart(
        draw,
        name=f"{name}-stacked",
        title="Spend by component over time",
        note=f"Rényi divergence at order {s.order:g}: unlike ε it adds up over components, so each layer is what that "
        f"component spent.",
        alt=f"Stacked areas over events charged, together {total:.4g} at the end: "
        + ", ".join(f"{path} {float(values[-1]):.4g}" for path, values in parts)
        + ".",
        table=Table(
            ["component", "divergence", "share"],
            [[path, f"{float(v[-1]):.4g}", f"{float(v[-1]) / total:.1%}" if total else "–"] for path, v in ordered],
        ),
        height=(WIDE[1] + 9 * len(parts), NARROW[1] + 18 * len(parts)),
    )


def budget(left: Remaining, name: str) -> Chart:
    """Used and left of a ceiling."""

    def draw(figure: "Figure") -> None:
        ax = plots.axes(figure, left=16, right=16, top=34)
        ax.barh(0, left.ceiling, color=COLOURS["grid"], height=0.5)
        ax.barh(0, min(left.used, left.ceiling), color=COLOURS["s0"], height=0.5)
        ax.axvline(left.ceiling, color=COLOURS["bad"], linewidth=2)
        figure.text(16 / (72 * figure.get_figwidth()), 0.92, f"used: ε ≤ {upper(left.used)}", va="top")
        figure.text(1 - 16 / (72 * figure.get_figwidth()), 0.92, f"ceiling: ε = {left.ceiling:g}", va="top", ha="right")
        ax.set(yticks=[], xlim=(0, 1.01 * max(left.ceiling, left.used)), xlabel="ε")
        ax.spines["left"].set_visible(False)
        ax.grid(False)
        plots.plain_ticks(ax, "x")

    rows = [[path, f"{count:,}" if count < 10**9 else "more than 10⁹"] for path, count in left.more.items()]
    return chart(
        draw,
        name=f"{name}-budget",
        title="Remaining budget",
        note="What is left is not a difference of epsilons, which don't add up. It is what else fits below the ceiling: "
        "the table has, "
        "for each component, how many more events like its last certainly fit if nothing else is charged.",
        alt=f"Bar: ε of {upper(left.used)} used of a ceiling of {left.ceiling:g}.",
        table=Table(["component", "more events that fit"], rows),
        height=(150, 150),
    )


def privacy_profile(runs: Sequence[tuple[str, Profile, float, float]], size: int | None, name: str) -> Chart:
    """δ against ε; `runs` with their (ε, δ)."""

    def draw(figure: "Figure") -> None:
        ax = plots.axes_for_runs(figure, len(runs), "δ at most")
        top, floor = 1e-9, min(1e-10, *(d / 100 for *_, d in runs))
        for i, (label, curve, epsilon, delta) in enumerate(runs):
            style = plots.line_style(i, len(runs))
            ax.plot(curve.epsilons, np.maximum(curve.upper, floor / 10), label=label if len(runs) > 1 else None, **style)
            if math.isfinite(epsilon):
                ax.plot([epsilon], [delta], "o", color=plots.series(i), markersize=7)
                if len(runs) == 1:
                    ax.annotate(
                        f"({upper(epsilon)}, {delta:g})",
                        (epsilon, delta),
                        (-8, -4),
                        textcoords="offset points",
                        ha="right",
                        va="top",
                    )
            above = curve.epsilons[curve.upper >= floor]
            top = max(top, float(above[-1]) if len(above) else 0.0)
        if size:
            ax.axhline(1 / size, color=COLOURS["bad"], linewidth=1.2, linestyle=(0, (4, 3)), label=f"1/n, n = {size:,}")
        ax.set(yscale="log", xlim=(0, top * 1.02), ylim=(floor, 1.5), xlabel="ε")
        plots.plain_ticks(ax, "x")
        plots.log_ticks(ax, "y")
        if size and len(runs) == 1:
            plots.legend(ax, "upper right")
        plots.legend_of_runs(figure, len(runs))

    rows = []
    for label, curve, _, _ in runs:
        for i in np.linspace(0, len(curve.epsilons) - 1, min(9, len(curve.epsilons))).round().astype(int):
            rows.append([label, f"{curve.epsilons[i]:.4g}", upper(float(curve.upper[i]), 3)])
    return chart(
        draw,
        name=f"{name}-profile",
        title="Privacy profile δ(ε)",
        note="One mechanism has many (ε, δ) pairs, and all hold at once. δ must stay well below 1/n, or whole examples "
        "could be published.",
        alt="Curve of δ falling with ε on a logarithmic scale: "
        + "; ".join(f"{label} passes through ε = {upper(e)} at δ = {d:g}" for label, _, e, d in runs)
        + ".",
        table=Table(["run", "ε", "δ at most"], rows),
    )


def attack(runs: Sequence[tuple[str, Profile]], name: str) -> Chart:
    """What a membership attack can reach."""
    curves = [(label, tradeoff(curve)) for label, curve in runs]

    def draw(figure: "Figure") -> None:
        ax = plots.axes_for_runs(figure, len(runs) + (len(runs) > 1), "true-positive rate", left=58, right=26)
        for i, (label, curve) in enumerate(curves):
            ax.plot(
                curve.fpr, curve.tpr, label=label if len(runs) > 1 else "any attack, at most", **plots.line_style(i, len(runs))
            )
            if len(runs) == 1:
                ax.fill_between(curve.fpr, curve.tpr, curve.fpr, color=plots.series(i), alpha=0.12, linewidth=0)
        ax.plot([1e-4, 1], [1e-4, 1], color=COLOURS["muted"], linewidth=1.2, linestyle=(0, (2, 2)), label="guessing")
        ax.axvline(0.01, color=COLOURS["muted"], linewidth=0.8)
        for i, (_, curve) in enumerate(curves):
            ax.plot([0.01], [np.interp(0.01, curve.fpr, curve.tpr)], "o", color=plots.series(i), markersize=7)
        ax.set(xscale="log", yscale="log", xlim=(1e-4, 1), ylim=(1e-4, 1.15))
        ax.set(xlabel="false-positive rate")
        plots.log_ticks(ax, "xy")
        plots.percent_ticks(ax, "xy")
        if len(runs) == 1:
            plots.legend(ax, "lower right")
        plots.legend_of_runs(figure, len(runs))

    wanted = [0.0001, 0.001, 0.01, 0.1, 0.5]
    rows = [
        [label, *(f"{upper(100 * float(np.maximum(1 - curve.min_fnr(f), f)), 3)} %" for f in wanted)] for label, curve in runs
    ]
    at = "; ".join(f"{row[0]} {row[3]}" for row in rows)
    return chart(
        draw,
        name=f"{name}-attack",
        title="What an attacker gains",
        note="No test for the presence of one unit lies above the line, whatever it knows besides. The dot is where 1 % of "
        "those absent "
        "are accused: guessing finds 1 % of those present.",
        alt="Largest true-positive rate of any membership attack against its false-positive rate. At 1 % false positives: "
        f"{at}.",
        table=Table(["run", *(f"FPR {plots.percent(f)}" for f in wanted)], rows),
    )


def accuracy(runs: Sequence[tuple[str, Sequence[tuple[float, float]]]], name: str) -> Chart:
    """Test accuracy against ε."""

    def draw(figure: "Figure") -> None:
        ax = plots.axes_for_runs(figure, len(runs), "test accuracy")
        for i, (label, points) in enumerate(runs):
            x, y = [p[0] for p in points], [p[1] for p in points]
            marker = "osD^vPX*"[i % 8]
            ax.plot(x, y, marker=marker, markersize=5 if len(points) > 1 else 9, label=label, **plots.line_style(i, len(runs)))
        ax.set(xlabel="ε spent")
        ax.margins(x=0.05, y=0.12)
        ax.set_xlim(left=0)
        plots.plain_ticks(ax)
        plots.percent_ticks(ax, "y")
        plots.legend_of_runs(figure, len(runs))

    rows = []
    for label, points in runs:
        for i in np.unique(np.linspace(0, len(points) - 1, 9).round().astype(int)):
            rows.append([label, upper(points[i][0]), f"{points[i][1]:.2%}"])
    ends = "; ".join(f"{label} ends at {points[-1][1]:.2%} with ε = {upper(points[-1][0])}" for label, points in runs)
    return chart(
        draw,
        name=f"{name}-accuracy",
        title="Accuracy against ε",
        note="On held-out examples, measured exactly: it says something about them, so it may only be published if they "
        "are not sensitive.",
        alt=f"Test accuracy against ε spent: {ends}.",
        table=Table(["run", "ε", "test accuracy"], rows),
    )


def short(text: str, most: int) -> str:
    """The end of a text that is too long; what can't be drawn, or turns what follows around, is a question mark."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= most else "…" + text[1 - most :]
