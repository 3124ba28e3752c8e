"""Charts of PATE's queries: where their cost comes from, data-dependent beside data-independent."""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from accountants.html import plots
from accountants.html.charts import Chart, Table, chart
from accountants.html.svg import COLOURS
from accountants.pate.independent import Independent
from accountants.report import upper

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[Any]

_POINTS = 400
"""More queries are drawn as so many, evenly picked."""


def independent_costs(costs: Independent, name: str) -> Chart:
    """The publishable half: for any votes, with these answers."""
    n = len(costs.answered)
    parts = [costs.check * np.arange(1, n + 1), costs.plurality * np.cumsum(costs.answered)]
    total = costs.total
    exact = "" if costs.exact is None else f" Accounted exactly (Gaussian DP) the total is ε ≤ {upper(costs.exact)}."
    return _stack(
        parts,
        total.conversion,
        costs.cumulative,
        costs.answered,
        name=f"{name}-queries",
        title="Cost of the answered queries, whatever the votes",
        note=f"Rényi divergence at order {total.order:g}, which adds up, and what turning it into ε takes.{exact} "
        "The strip below shows which share of the queries was answered.",
        word="data-independent",
    )


def dependent_costs(figures: Mapping[str, Any], name: str) -> Chart:
    """For these votes, beside any votes. Private."""
    return _stack(
        [np.cumsum(figures["threshold"]), np.cumsum(figures["argmax"])],
        float(figures["conversion"]),
        np.asarray(figures["cumulative"], float),
        np.asarray(figures["answered"], bool),
        name=f"{name}-votes",
        title="Cost of the answered queries, for these votes",
        note=f"Data-dependent: Rényi divergence at order {figures['order']:g} for the votes that were cast. The dashed "
        f"line is what "
        "the same answers cost for any votes.",
        word="data-dependent",
        beside=np.asarray(figures["cumulative_independent"], float),
    )


def _stack(
    parts: Sequence[Array],
    conversion: float,
    cumulative: Array,
    answered: NDArray[np.bool_],
    *,
    name: str,
    title: str,
    note: str,
    word: str,
    beside: Array | None = None,
) -> Chart:
    n = len(answered)
    at = np.unique(np.linspace(0, n - 1, min(n, _POINTS)).round().astype(int))
    x = at + 1
    layers = [parts[0][at], parts[1][at], np.full(len(at), conversion)]
    labels = ["threshold check", "noisy argmax", "conversion to (ε, δ)"]

    def draw(figure: "Figure") -> None:
        columns = 2 if plots.narrow(figure) else 3
        ax = plots.axes(figure, "ε", bottom=92, top=plots.legend_room(4 + (beside is not None), columns))
        strip = plots.axes(figure, bottom=44, top=72 * figure.get_figheight() - 72)
        colours = [COLOURS["s0"], COLOURS["s1"], COLOURS["grid"]]
        base = np.zeros(len(x))
        for layer, label, colour in zip(layers, labels, colours, strict=True):
            ax.fill_between(x, base, base + layer, color=colour, label=label, edgecolor=COLOURS["paper"], linewidth=0.8)
            base = base + layer
        ax.plot(x, cumulative[at], color=COLOURS["ink"], linewidth=1.8, label="ε so far, at its best order")
        if beside is not None:
            ax.plot(x, beside[at], color=COLOURS["bad"], linewidth=1.8, linestyle=(0, (5, 2)), label="any votes")
        left, right = 0.5, n + 0.5
        ax.set(xlim=(left, right), ylim=(0, None))
        ax.tick_params(labelbottom=False)
        plots.plain_ticks(ax)
        edges = np.linspace(0, n, min(n, 60) + 1).round().astype(int)
        share = np.array([answered[a:b].mean() for a, b in itertools.pairwise(edges)])
        starts, widths = edges[:-1], np.diff(edges)
        strip.axvspan(left, right, color=COLOURS["grid"], linewidth=0)
        strip.bar(starts + 0.5, share, widths, align="edge", color=COLOURS["good"])
        strip.set(xlim=(left, right), ylim=(0, 1), yticks=[], xlabel="query (green: share that was answered)")
        plots.plain_ticks(strip, "x")
        strip.grid(False)
        plots.legend_above(figure, columns)

    total = [float(parts[0][-1]), float(parts[1][-1]), conversion]
    picked = np.unique(np.linspace(0, n - 1, 12).round().astype(int))
    head = ["query", "answered", "threshold checks so far", "argmaxes so far", "ε so far"]
    rows = [
        [f"{i + 1:,}", "yes" if answered[i] else "no", f"{parts[0][i]:.4g}", f"{parts[1][i]:.4g}", upper(float(cumulative[i]))]
        for i in picked
    ]
    if beside is not None:
        head = [*head, "for any votes"]
        rows = [[*row, upper(float(beside[i]))] for row, i in zip(rows, picked, strict=True)]
    return chart(
        draw,
        name=name,
        title=title,
        note=note,
        alt=f"Stacked {word} costs over {n:,} queries, {int(answered.sum()):,} of them answered. At the end: threshold checks "
        f"{total[0]:.4g}, noisy argmaxes {total[1]:.4g}, conversion {total[2]:.4g}; together ε = "
        f"{upper(float(cumulative[-1]))}.",
        table=Table(head, rows),
        height=(400, 380),
    )


def each_query(figures: Mapping[str, Any], name: str) -> Chart:
    """Every query's own cost. Private."""
    answered = np.asarray(figures["answered"], bool)
    check, plurality = np.asarray(figures["threshold"], float), np.asarray(figures["argmax"], float)
    n = len(answered)
    at = np.unique(np.linspace(0, n - 1, min(n, _POINTS)).round().astype(int))
    limit_check = float(figures["threshold_independent"][0])
    limit_plurality = max(map(float, figures["argmax_independent"]))

    def draw(figure: "Figure") -> None:
        columns = 2 if plots.narrow(figure) else 4
        ax = plots.axes(figure, "Rényi divergence", top=plots.legend_room(4, columns))
        yes = at[answered[at]]
        floor = 1e-12
        ax.plot(yes + 1, np.maximum(plurality[yes], floor), "o", color=COLOURS["s1"], markersize=4, label="noisy argmax")
        if check.any():
            ax.plot(at + 1, np.maximum(check[at], floor), "s", color=COLOURS["s0"], markersize=3, label="threshold check")
            ax.axhline(limit_check, color=COLOURS["s0"], linewidth=1.2, linestyle=(0, (4, 3)), label="check, any votes")
        ax.axhline(limit_plurality, color=COLOURS["s1"], linewidth=1.2, linestyle=(0, (4, 3)), label="argmax, any votes")
        ax.set(yscale="log", xlim=(0.5, n + 0.5), xlabel="query")
        low, high = np.log10(ax.get_ylim())
        ax.set_ylim(10 ** np.floor(low), 10 ** np.ceil(high))
        plots.plain_ticks(ax, "x")
        plots.log_ticks(ax, "y")
        plots.legend_above(figure, columns)

    cheap = float((plurality[answered] < 0.1 * limit_plurality).mean()) if answered.any() else 0.0
    quantiles = (0, 0.25, 0.5, 0.75, 1)
    rows = [["threshold check", *(f"{np.quantile(check, q):.3g}" for q in quantiles)]]
    if answered.any():
        rows.append(["noisy argmax, answered", *(f"{np.quantile(plurality[answered], q):.3g}" for q in quantiles)])
    return chart(
        draw,
        name=f"{name}-each",
        title="Each query's own cost",
        note=f"At order {figures['order']:g}. Where the teachers agree, a dot lies far below its dashed line, the cost for "
        f"any votes." + (f" {len(at):,} of {n:,} queries are drawn." if len(at) < n else ""),
        alt=f"Cost of each of {n:,} queries on a logarithmic scale, beside the cost for any votes. {cheap:.0%} of the "
        f"answered ones cost "
        "less than a tenth of that.",
        table=Table(["cost", "least", "a quarter below", "median", "three quarters below", "most"], rows),
    )
