"""The charts of a budget's page: how full each ceiling is, and which runs filled it."""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from accountants.budget_state import BudgetState, Reservation
from accountants.html import plots
from accountants.html.charts import Chart, Table, chart, short
from accountants.html.svg import COLOURS
from accountants.report import upper
from accountants.scopes import Scope

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CEILINGS = 24
"""Ceilings that get a bar."""
_RUNS = 6
"""Runs that get a colour."""
_OTHERS = "all others"
LONGEST = 200
"""Letters of a run's name."""

Part = tuple[float, str]
"""Of a bar: share of what is spent, colour."""


@dataclasses.dataclass(frozen=True)
class Filling:
    """How full a ceiling is.

    Attributes:
      scope: that it is the ceiling of.
      spent: ε that counts against it, at its δ.
      shares: reservation → its share of that; they add up to 1, or there are none.
      open: share of reservations that have not ended.
    """

    scope: Scope
    spent: float
    shares: Mapping[str, float]
    open: float

    @property
    def full(self) -> float:
        """Spent ε over the ceiling's."""
        return self.spent / self.scope.ceiling.epsilon


def fillings(state: BudgetState) -> list[Filling]:
    """Of every ceiling of the policy, those for everything first."""
    result = []
    for scope in state.terms.scopes():
        shares = state.shares(scope)
        still_open = math.fsum(share for name, share in shares.items() if not state.reservations[name].committed)
        result.append(Filling(scope, state.spent(scope), shares, still_open))
    return result


def label(reservation: Reservation) -> str:
    """What people know it by."""
    return short(reservation.run or min(charge.path for charge in reservation.charges), LONGEST)


def ceilings(fillings: Sequence[Filling]) -> Chart:
    """A bar for each: what has ended, what is open, what is left."""
    shown = _fullest(fillings)

    def draw(figure: "Figure") -> None:
        ax = _bars(figure, shown, [[(1 - f.open, "s0"), (f.open, "s1")] for f in shown], plots.legend_room(3, 3))
        for name, colour in (("ended", "s0"), ("open", "s1"), ("left", "grid")):
            ax.barh(0, 0, color=COLOURS[colour], label=name)
        plots.legend_above(figure, 3)

    rows = [
        [
            f.scope.name,
            upper(f.spent),
            f"{f.scope.ceiling.epsilon:g}",
            f"{f.scope.ceiling.delta:g}",
            _percent(f.full),
            _percent(f.open) if f.shares else "–",
        ]
        for f in fillings
    ]
    height = _height(shown, 3, 3)
    return chart(
        draw,
        name="ceilings",
        title="Spent and left",
        note="What is released from one cohort costs the others nothing: each has a ceiling of its own. A purpose, such as "
        f"cohort/purpose, is a part of one.{_left_out(shown, fillings)}",
        alt="Bars: "
        + "; ".join(f"{f.scope.name} has spent ε = {upper(f.spent)} of {f.scope.ceiling.epsilon:g}" for f in shown)
        + ".",
        table=Table(["ceiling", "spent ε", "of ε", "at δ", "spent", "of that open"], rows),
        height=(height, height),
    )


def by_run(state: BudgetState, fillings: Sequence[Filling]) -> Chart | None:
    """Which runs filled the ceilings for everything; nothing where there is nothing to share."""
    spent = [f for f in fillings if not f.scope.purpose and f.shares]
    if not spent:
        return None
    shown = _fullest(spent)
    shares = [_of_runs(state, f) for f in shown]
    most: dict[str, float] = collections.defaultdict(float)
    for f, runs in zip(shown, shares, strict=True):
        for run, share in runs.items():
            most[run] = max(most[run], share * f.full)
    ranked = sorted(most, key=lambda run: -most[run])
    named = ranked if len(ranked) <= _RUNS + 1 else ranked[:_RUNS]
    entries = [*named, *([_OTHERS] if len(named) < len(ranked) else [])]
    colours = {run: f"s{i}" for i, run in enumerate(entries)}

    def parts(runs: Mapping[str, float]) -> list[Part]:
        rest = math.fsum(share for run, share in runs.items() if run not in named)
        return [(runs.get(run, 0.0), colours[run]) for run in named] + ([(rest, colours[_OTHERS])] if rest else [])

    def draw(figure: "Figure") -> None:
        columns = 1 if plots.narrow(figure) else 2
        ax = _bars(figure, shown, [parts(runs) for runs in shares], plots.legend_room(len(entries), columns))
        for run in entries:  # matplotlib leaves out labels that begin with _
            ax.barh(0, 0, color=COLOURS[colours[run]], label=f" {short(run, 44 if plots.narrow(figure) else 40)}")
        plots.legend_above(figure, columns)

    first = max(zip(shown, shares, strict=True), key=lambda pair: pair[0].full)
    top = max(first[1], key=lambda run: first[1][run])
    return chart(
        draw,
        name="runs",
        title="Who spent it",
        note="Epsilons don't add up; the Rényi divergences that each ceiling is kept by do. A bar is as long as its ceiling is "
        f"spent, and shared out by them. An open run counts with all that it has reserved.{_left_out(shown, spent)}",
        alt=f"Bars of {len(shown)} ceilings, shared out among {len(ranked)} runs. Of {first[0].scope.name}, the fullest, "
        f"{_percent(first[1][top])} was spent by {top}.",
        table=Table(
            ["run", "ceiling", "share"],
            [
                [run, f.scope.name, _percent(share)]
                for f, runs in zip(shown, shares, strict=True)
                for run, share in _rows(runs, named)
            ],
            words=(0, 1),
        ),
        height=(_height(shown, len(entries), 2), _height(shown, len(entries), 1)),
    )


def _of_runs(state: BudgetState, filling: Filling) -> dict[str, float]:
    """Those of one name are together."""
    result: dict[str, float] = collections.defaultdict(float)
    for name, share in filling.shares.items():
        result[label(state.reservations[name])] += share
    return result


def _rows(runs: Mapping[str, float], named: Sequence[str]) -> list[tuple[str, float]]:
    rest = math.fsum(share for run, share in runs.items() if run not in named)
    return [(run, runs[run]) for run in named if run in runs] + ([(_OTHERS, rest)] if rest else [])


def _fullest(fillings: Sequence[Filling]) -> list[Filling]:
    """As many as are drawn, in their order."""
    order = sorted(range(len(fillings)), key=lambda i: -fillings[i].full)
    return [fillings[i] for i in sorted(order[:_CEILINGS])]


def _bars(figure: "Figure", shown: Sequence[Filling], parts: Sequence[Sequence[Part]], top: float) -> "Axes":
    ax = plots.axes(figure, left=18, right=22, top=top)
    for i, (filling, pieces) in enumerate(zip(shown, parts, strict=True)):
        scope, y = filling.scope, -float(i)
        name = short(scope.name, 26 if plots.narrow(figure) else 50)
        what = f"{name}: {upper(filling.spent)} of {scope.ceiling.epsilon:g}"
        ax.text(0, y + 0.3, what, va="center", fontweight="normal" if scope.purpose else "bold")
        ax.barh(y, 1.0, height=0.26, color=COLOURS["grid"])
        start = 0.0
        for share, colour in pieces:
            width = share * min(filling.full, 1.0)
            ax.barh(y, width, left=start, height=0.26, color=COLOURS[colour])
            if start and share:  # a gap tells neighbours apart without colour
                ax.barh(y, 0.003, left=start - 0.0015, height=0.28, color=COLOURS["paper"])
            start += width
    ax.set(yticks=[], xlim=(0, 1.005), ylim=(0.45 - len(shown), 0.55), xlabel="of the ceiling on ε")
    ax.spines["left"].set_visible(False)
    ax.grid(False)
    plots.percent_ticks(ax, "x")
    return ax


def _height(shown: Sequence[Filling], entries: int, columns: int) -> float:
    return 60 + plots.legend_room(entries, columns) + 42 * len(shown)


def _left_out(shown: Sequence[Filling], fillings: Sequence[Filling]) -> str:
    return f" The {len(shown)} fullest are drawn." if len(shown) < len(fillings) else ""


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %" if math.isfinite(share) else "∞"
