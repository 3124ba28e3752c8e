"""What the charts show, as numbers: spend over time, profile, trade-off, remaining budget, accuracy. No plotting here."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from accountants.accountant import Accountant, make_accountant
from accountants.breakdown import divergences
from accountants.chain import Charge
from accountants.events import DpEvent
from accountants.profile import Profile
from accountants.runs import Run

Array = NDArray[np.float64]

_MOMENTS = 16  # at which the spend is computed
_FPR = np.logspace(-4, 0, 81)


@dataclasses.dataclass(frozen=True)
class Spend:
    """How the total came about.

    Attributes:
      events: (k,) how many had been charged at each moment, from 0 to all.
      epsilon: (k,) upper bound of ε then.
      parts: component → (k,) its Rényi divergence then, at one order: these add up.
      order: that order.
    """

    events: Array
    epsilon: Array
    parts: dict[str, Array]
    order: float


def spend(run: Run) -> Spend:
    """ε and the components' divergences along a run, in order of charging; the events of one line count as spread out."""
    charges = run.spent.charges
    counts = _counts_along(run.contents.charges, charges)
    events = counts.sum(axis=1)
    total = float(run.document["spent"])
    epsilon = np.array([0.0, *(min(_epsilon(run, charges, row), total) for row in counts[1:-1]), total])
    # More releases never cost less, whatever the last digit of a numerical bound says.
    epsilon = np.minimum.accumulate(epsilon[::-1])[::-1]
    order, by_charge = divergences(charges, run.document["delta"], run.contents.neighbouring_relation)
    parts: dict[str, Array] = {}
    for i, charge in enumerate(charges):
        done = counts[:, i] / charge.count if charge.count else counts[:, i]
        for path, value in by_charge[i].items():
            parts[path] = parts.get(path, np.zeros(len(done))) + done * (value if math.isfinite(value) else 0.0)
    return Spend(events, epsilon, parts, order)


def _counts_along(charges: Sequence[Charge], distinct: Sequence[Charge]) -> Array:
    """How often each of the distinct charges had been made at each moment: (moments, distinct)."""
    number = {(charge.path, charge.event): i for i, charge in enumerate(distinct)}
    # A ledger that was read holds few objects many times, and hashing an event is slow.
    ids = np.fromiter(map(id, charges), np.int64, len(charges))
    _, first, which = np.unique(ids, return_index=True, return_inverse=True)
    objects = [charges[i] for i in first]
    index = np.array([number[charge.path, charge.event] for charge in objects], np.int64)[which]
    sizes = np.array([charge.count for charge in objects], np.float64)[which]
    ends = np.cumsum(sizes)
    total = ends[-1] if len(ends) else 0.0
    moments = np.unique(np.round(np.linspace(0, total, _MOMENTS + 1)))
    counts = np.zeros((max(len(moments), 2), len(distinct)))
    before, line = np.zeros(len(distinct)), 0
    for k, moment in enumerate(moments):
        upto = int(np.searchsorted(ends, moment, side="right"))
        before += np.bincount(index[line:upto], sizes[line:upto], minlength=len(distinct))
        line = upto
        counts[k] = before
        if upto < len(charges):
            counts[k, index[upto]] += moment - (ends[upto] - sizes[upto])
    return counts


def _epsilon(run: Run, charges: Sequence[Charge], counts: Array) -> float:
    composed = _accountant(run)
    for charge, count in zip(charges, counts, strict=True):
        if count:
            composed.compose(charge.event, math.ceil(count))
    return composed.get_epsilon(run.document["delta"])


def _accountant(run: Run) -> Accountant:
    relation = run.contents.neighbouring_relation
    return make_accountant(run.document["accountant"], neighbouring_relation=relation, rtol=1e-2)


@dataclasses.dataclass(frozen=True)
class Tradeoff:
    """The most true positives of any membership test: (n,) false-positive rates and (n,) true-positive rates."""

    fpr: Array
    tpr: Array


def tradeoff(curve: Profile) -> Tradeoff:
    """From a whole profile, on a logarithmic grid of false-positive rates."""
    return Tradeoff(_FPR, np.maximum(1 - curve.min_fnr(_FPR), _FPR))


@dataclasses.dataclass(frozen=True)
class Remaining:
    """What is left below a ceiling.

    Attributes:
      ceiling: ε.
      used: ε so far.
      more: component → how many more events like its last one fit for certain, if nothing else is charged.
    """

    ceiling: float
    used: float
    more: dict[str, int]


_FAR = 10**9


def remaining(run: Run) -> Remaining | None:
    """What is left of the ceiling that the ledger declares at the run's δ; None if it declares none."""
    if (ceiling := run.contents.ceiling) is None or ceiling[1] != run.document["delta"]:
        return None
    epsilon, delta = ceiling
    charges = run.spent.charges
    last = {charge.path: charge for charge in charges}
    base = _accountant(run)
    for charge in charges:
        base.compose(charge.event, charge.count)

    more = {}
    for path, charge in list(last.items())[:_ROOMS]:
        guess = charge.count * (epsilon / max(float(run.document["spent"]), 1e-9)) ** 2 - charge.count
        more[path] = _room(functools.partial(_fits, base, charge.event, delta, epsilon), guess)
    return Remaining(epsilon, float(run.document["spent"]), more)


_ROOMS = 3


def _fits(base: Accountant, event: DpEvent, delta: float, ceiling: float, count: int) -> bool:
    return base.copy().compose(event, count).get_epsilon(delta) <= ceiling


def _room(fits: Callable[[int], bool], guess: float) -> int:
    """A count that fits, within 2 % of the largest (or `_FAR`); searched for from a guess, because each look takes long."""
    low, high = 0, max(1, math.ceil(min(guess, _FAR)))
    while fits(high):
        low, high = high, high + max(1, math.ceil(0.1 * high), 4 * (high - low) if low else 0)
        if low >= _FAR:
            return low
    while high - low > max(1, 0.02 * low):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def accuracy(run: Run) -> list[tuple[float, float]]:
    """(ε, test accuracy) wherever a run's metrics give both for a step; the last step's ε is the total."""
    at = {m.step: m.value for m in run.metrics if (m.split, m.name) == ("train", "epsilon")}
    scores = {m.step: m.value for m in run.metrics if (m.split, m.name) == ("test", "accuracy") and not m.private}
    if not scores or run.document["epsilon"] == "inf":
        return []
    at.setdefault(max(scores), float(run.document["epsilon"]))
    return [(at[step], value) for step, value in sorted(scores.items()) if step in at]


def series(run: Run, name: str, split: str = "train") -> tuple[Array, Array]:
    """(steps, values) of one metric."""
    rows = [(m.step, m.value) for m in run.metrics if (m.split, m.name) == (split, name)]
    return np.array([step for step, _ in rows]), np.array([value for _, value in rows])
