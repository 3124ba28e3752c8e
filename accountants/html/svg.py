"""A matplotlib figure as SVG inside a page: real text, colours that follow the page's light or dark scheme, no addresses.

Figures are drawn in stand-in colours, one for each CSS variable of the page; in the SVG they become `var(--name)`.
"""

import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SERIES = 8
"""How many colours the page has for series: --s0, --s1, …"""

_NAMES = ("ink", "muted", "grid", "paper", "good", "bad", *(f"s{i}" for i in range(SERIES)))
COLOURS = {name: f"#0a0b{i:02x}" for i, name in enumerate(_NAMES, start=16)}
"""Stand-in of each CSS variable."""

WIDE, NARROW = (620.0, 350.0), (350.0, 300.0)
"""Sizes in CSS pixels, for screens from 640 pixels on and below."""

_STYLE: dict[str, Any] = {
    "text.parse_math": False,  # a dollar in a name is a dollar
    "svg.fonttype": "none",
    "svg.hashsalt": "accountants",
    "font.size": 12.0,
    "axes.edgecolor": COLOURS["muted"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": COLOURS["grid"],
    "grid.linewidth": 0.8,
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "xtick.labelcolor": COLOURS["ink"],
    "ytick.labelcolor": COLOURS["ink"],
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 12.0,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
}

Draw = Callable[["Figure"], None]


def inline(draw: Draw, name: str, label: str, size: tuple[float, float] = WIDE) -> str:
    """The SVG element of what `draw` draws.

    Args:
      draw: fills an empty figure of `size` (72 dots an inch, so that a point is a CSS pixel).
      name: unique in the page; prefixes every id.
      label: text alternative.
      size: width and height in CSS pixels.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # text is drawn by the browser, in its own fonts
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), dpi=72)
        draw(figure)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return _for_page(stream.getvalue(), name, label, size)


def _for_page(document: str, name: str, label: str, size: tuple[float, float]) -> str:
    inner = re.sub(r"<metadata>.*?</metadata>", "", document[document.index("<svg") :], flags=re.DOTALL)
    inner = inner[inner.index(">") + 1 : inner.rindex("</svg>")]
    inner = inner.replace("xlink:href", "href")
    inner = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', inner)
    inner = re.sub(r'(href="|url\()#', rf"\g<1>#{name}-", inner)
    inner = re.sub(r"font-family: [^;\"]+(; )?", "", inner)  # the page's
    inner = re.sub(r"<!--.*?-->|<defs>\s*<style.*?</style>\s*</defs>", "", inner, flags=re.DOTALL)
    inner = re.sub(r"\n\s*", "\n", inner)
    for variable, colour in COLOURS.items():
        inner = inner.replace(colour, f"var(--{variable})")
    text = label.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return f'<svg role="img" aria-label="{text}" viewBox="0 0 {size[0]:g} {size[1]:g}">{inner}</svg>'
