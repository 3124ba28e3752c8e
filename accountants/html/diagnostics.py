"""Charts of what was computed from private data without noise: for the operator's eyes, never for publication."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from accountants.html import plots
from accountants.html.charts import Chart, Table, chart
from accountants.html.curves import Array, series
from accountants.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DRAWN: Mapping[str, tuple[str, str, str]] = {
    "clipped": (
        "Clipped gradients",
        "share clipped",
        "Share of the drawn examples whose gradient was longer than the clip norm. Near 100 %: the clip norm decides the "
        "direction "
        "of every gradient; near 0 %: it is larger than need be, and so is the noise.",
    ),
    "signal_to_noise": (
        "Signal to noise",
        "signal / noise",
        "Norm of the clipped sum over the expected norm of the noise, of an update. Where it is far below 1, updates are "
        "mostly noise: "
        "larger batches, more clipping or fewer parameters help.",
    ),
    "loss": ("Training loss", "loss", "Mean over the drawn examples, exact."),
    "non_finite": (
        "Non-finite gradients",
        "share",
        "Share of the drawn examples whose gradient was not a number; they count as zero.",
    ),
}
_SHARES = ("clipped", "non_finite")


def diagnostics(run: Run, name: str) -> list[Chart]:
    """A chart for each private metric that has at least two values and isn't zero throughout."""
    charts = []
    for metric in _DRAWN:
        steps, values = series(run, metric)
        if len(values) > 1 and (values.any() or metric != "non_finite"):
            charts.append(_over_steps(metric, steps, values, name))
    return charts


def others(run: Run) -> Table | None:
    """The last value of every other private metric; None if there is none."""
    last = {(m.split, m.name): m for m in run.metrics if m.private and m.name not in _DRAWN}
    if not last:
        return None
    return Table(
        ["metric", "step", "value"], [[f"{m.split} {m.name}", f"{m.step:,.0f}", f"{m.value:.4g}"] for m in last.values()]
    )


def _over_steps(metric: str, steps: Array, values: Array, name: str) -> Chart:
    title, label, note = _DRAWN[metric]
    keep = np.unique(np.linspace(0, len(steps) - 1, 400).round().astype(int))
    x, y = steps[keep], values[keep]

    def draw(figure: "Figure") -> None:
        ax = plots.axes(figure, label)
        ax.plot(x, y, color=plots.series(0))
        ax.set(xlabel="update", ylim=(0, 1.05 * max(float(y.max()), 1e-12)))
        plots.plain_ticks(ax)
        if metric in _SHARES:
            plots.percent_ticks(ax, "y")

    show = plots.percent if metric in _SHARES else (lambda value: f"{value:.4g}")
    picked = np.unique(np.linspace(0, len(x) - 1, 9).round().astype(int))
    return chart(
        draw,
        name=f"{name}-{metric}",
        title=title,
        note=note,
        alt=f"{title} from {show(float(y[0]))} at update {x[0]:,.0f} to {show(float(y[-1]))} at update {x[-1]:,.0f}.",
        table=Table(["update", label], [[f"{x[i]:,.0f}", show(float(y[i]))] for i in picked]),
    )
