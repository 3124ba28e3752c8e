"""Building blocks of the charts: axes with margins in pixels, numbers on ticks, lines that differ in more than colour."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from accountants.html.svg import COLOURS, SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DASHES: Sequence[Any] = ("-", (0, (6, 2)), (0, (2, 2)), (0, (6, 2, 2, 2)))
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def narrow(figure: "Figure") -> bool:
    """Whether it is for a small screen."""
    return bool(figure.get_figwidth() * 72 < 480)


def axes(figure: "Figure", y: str = "", left: float = 52, bottom: float = 44, right: float = 16, top: float = 10) -> "Axes":
    """Axes that leave margins of so many pixels; `y` names the vertical one, above it, where it reads like any text."""
    width, height = figure.get_figwidth() * 72, figure.get_figheight() * 72
    if y:
        top += 16
    ax = figure.add_axes((left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height))
    if y:
        ax.annotate(y, (0, 1), (6 - left, 4), xycoords="axes fraction", textcoords="offset points", color=COLOURS["muted"])
    return ax


def series(number: int) -> str:
    """Colour of series `number`."""
    return COLOURS[f"s{number % SERIES}"]


def line_style(number: int, of: int) -> dict[str, Any]:
    """Colour and dashes of line `number` among `of`."""
    return {"color": series(number), "linestyle": DASHES[number % len(DASHES)] if of > 1 else "-"}


def plain_ticks(ax: "Axes", which: str = "xy") -> None:
    """1,200 instead of 1.2e3, and few of them."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for name in which:
        axis = getattr(ax, f"{name}axis")
        axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
        axis.set_major_locator(MaxNLocator(5 if name == "x" else 6, steps=[1, 2, 2.5, 5, 10]))


def log_ticks(ax: "Axes", which: str) -> None:
    """10⁻⁵ as text, no minor ticks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for name in which:
        axis = getattr(ax, f"{name}axis")
        axis.set_major_locator(LogLocator(10, numticks=7))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: power(value)))


def number(value: float) -> str:
    """For a tick: 1,200; 35M; 0.25."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:,.4g}{letter}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}".replace("-", "−")


def power(value: float) -> str:
    """10⁻⁵ for 1e-5."""
    mantissa, exponent = f"{value:e}".split("e")
    mantissa = f"{float(mantissa):.4g}"
    text = f"10{str(int(exponent)).translate(_SUPERSCRIPT)}"
    return text if mantissa == "1" else f"{mantissa}·{text}"


def percent(value: float) -> str:
    """For a tick of a share."""
    return f"{100 * value:.4g} %"


def percent_ticks(ax: "Axes", which: str) -> None:
    """Shares as per cent."""
    from matplotlib.ticker import FuncFormatter

    for name in which:
        getattr(ax, f"{name}axis").set_major_formatter(FuncFormatter(lambda value, _: percent(value)))


def legend_room(entries: int, columns: int) -> float:
    """Pixels to leave above the axes for a legend there."""
    return 8.0 + 18.0 * math.ceil(entries / columns)


def legend_above(figure: "Figure", columns: int) -> None:
    """A legend of all labelled artists over the axes."""
    figure.legend(loc="upper left", ncols=columns, handlelength=1.6, columnspacing=1.2, labelspacing=0.3, borderaxespad=0.1)


def legend(ax: "Axes", place: str = "best") -> None:
    """Of the labelled artists, inside the axes."""
    ax.legend(loc=place, handlelength=2.4, borderaxespad=0.3, labelspacing=0.3)


def axes_for_runs(figure: "Figure", runs: int, y: str, **margins: float) -> "Axes":
    """Axes with room above for the names of several runs; draw their legend by `legend_of_runs`."""
    return axes(figure, y, top=legend_room(runs, _columns(figure)) if runs > 1 else 10, **margins)


def legend_of_runs(figure: "Figure", runs: int) -> None:
    """Their names, if there are several."""
    if runs > 1:
        legend_above(figure, _columns(figure))


def _columns(figure: "Figure") -> int:
    return 1 if narrow(figure) else 3
