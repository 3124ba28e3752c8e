r"""The numerical accountant: an interval that contains the exact ε (or δ), as narrow as asked for.

Privacy loss distributions (Sommer, Meiser, Mohammadi 2019; Koskela, Jälkö, Honkela 2020; Gopi, Lee, Wutschitz 2021), from
both sides. An event becomes dominating pairs with counts (`mechanisms`), these become measures on a lattice above and
below the exact ones (`lattice`), and these are composed (`convolution`). How fine the lattice has to be: `search`.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from accountants import convolution
from accountants.batches import batches, grouped, rough_cumulants
from accountants.domains import floats, non_negative, open_unit, whole
from accountants.errors import InvalidEventError, UnsupportedEventError
from accountants.events import (
    DpEvent,
    NeighbouringRelation,
    as_event,
    as_relation,
)
from accountants.interval import Interval
from accountants.mechanisms import Direction, directions, leaves
from accountants.rdp import RdpAccountant
from accountants.search import DeltaQuestion, EpsilonQuestion, Question, Search
from accountants.single import curve

Array = NDArray[np.float64]

DEFAULT_RTOL = 1e-3
MIN_RTOL = 1e-6

_ROUND_UP = 1e-11  # relative, on every bound that is returned
_WIDE = 0.02  # relative width from which the Rényi accountant is asked as well
_IRRELEVANT = 0.01  # of an upper bound in one direction: below it nothing in the other one matters
_TRIES = 12  # to find what two units cost
_MOST = 600.0  # ε of one of them, so that δ over its exponential is a number
_FAINT = 1e-299  # δ about which nothing more is worth knowing
_LEAST = 1e-300  # δ below which a bound may have underflowed
_ANCHORS = 9  # tilts from which a profile is computed

Counts = tuple[tuple[DpEvent, int], ...]


class PldAccountant:
    """Accumulates events and answers with certified intervals, whose upper ends are what `get_epsilon` and `get_delta` return.

    Example:
      >>> from accountants import PldAccountant, dpsgd_event
      >>> accountant = PldAccountant().compose(dpsgd_event(1.1, 256 / 60_000, 14_062))
      >>> interval = accountant.epsilon_interval(1e-5)
      >>> interval.lower < 2.3816 < interval.upper, interval.relative_width < 1e-3
      (True, True)
    """

    name = "pld"

    def __init__(
        self,
        *,
        neighbouring_relation: str | NeighbouringRelation = NeighbouringRelation.ADD_OR_REMOVE_ONE,
        rtol: float = DEFAULT_RTOL,
    ):
        """Starts with nothing composed.

        Args:
          neighbouring_relation: the relation under which every answer is meant.
          rtol: how wide an interval may be, relative to its upper end; from 1e-6 to 0.1.

        Raises:
          InvalidEventError: an argument lies outside its domain.
        """
        self.neighbouring_relation = as_relation(neighbouring_relation)
        self.rtol = check_rtol(rtol)
        self._counts: dict[DpEvent, int] = {}

    def compose(self, event: Any, count: int = 1) -> Self:
        """Adds `count` independent runs of `event`, ours or a `dp_accounting` one. Returns self.

        Raises:
          InvalidEventError: the event or the count is malformed.
          UnsupportedEventError: no dominating pair is known here; nothing was composed.
        """
        added = leaves(as_event(event), whole(count, "count"))
        directions(tuple(added.items()), self.neighbouring_relation)
        for leaf, times in added.items():
            self._counts[leaf] = self._counts.get(leaf, 0) + times
        return self

    def copy(self) -> Self:
        """One with the same composed; further events go to one of both alone."""
        result = type(self)(neighbouring_relation=self.neighbouring_relation, rtol=self.rtol)
        result._counts = dict(self._counts)
        return result

    def epsilon_interval(self, delta: float) -> Interval:
        """The exact ε at `delta` in (0, 1) lies in it; both ends are infinite if there is no guarantee."""
        return _epsilon_interval(*self._key(), open_unit(delta, "delta"), self.rtol)

    def delta_interval(self, epsilon: float) -> Interval:
        """The exact δ at `epsilon` ≥ 0 lies in it."""
        if epsilon == math.inf:
            epsilon = float(np.finfo(np.float64).max)
        return _delta_interval(*self._key(), non_negative(epsilon, "epsilon"), self.rtol)

    def profile(self, epsilons: Sequence[float]) -> tuple[Array, Array]:
        """Lower and upper bounds of δ at each of `epsilons` ≥ 0: the privacy profile. Two arrays (n,), each non-increasing."""
        wanted = tuple(min(epsilon, 1e300) for epsilon in floats(epsilons, "epsilons"))
        return _profile(*self._key(), wanted, self.rtol)

    def get_epsilon(self, delta: float) -> float:
        """Upper bound of ε at `delta` in (0, 1), within `rtol` of the exact value."""
        return self.epsilon_interval(delta).upper

    def get_delta(self, epsilon: float) -> float:
        """Upper bound of δ at `epsilon` ≥ 0, within `rtol` of the exact value."""
        return self.delta_interval(epsilon).upper

    def _key(self) -> tuple[tuple[tuple[DpEvent, int], ...], NeighbouringRelation]:
        items = sorted(self._counts.items(), key=lambda item: repr(item[0]))  # the order of composition is irrelevant
        return tuple(items), self.neighbouring_relation


def pair_divergence(event: DpEvent, relation: NeighbouringRelation, order: float) -> float:
    """Rényi divergence of an event's dominating pairs, the larger of both directions, to about a per cent and not a bound.

    Infinite losses are left out: what they cost is δ, not divergence.
    """
    found = [d for d in directions(tuple(leaves(event).items()), relation) if d.mechanisms]
    return max((rough_cumulants(grouped(batches(d)), 1e-12)[0].value(order - 1) / (order - 1) for d in found), default=0.0)


def check_rtol(rtol: float) -> float:
    """Returns `rtol` if it is a number from 1e-6 to 0.1.

    Raises:
      InvalidEventError: it is not.
    """
    if isinstance(rtol, bool) or not isinstance(rtol, int | float) or not MIN_RTOL <= rtol <= 0.1:
        raise InvalidEventError(f"rtol must lie between {MIN_RTOL:g} and 0.1; got {rtol!r}")
    return float(rtol)


@functools.lru_cache(maxsize=256)
def _epsilon_interval(counts: Counts, relation: NeighbouringRelation, delta: float, rtol: float) -> Interval:
    found = directions(counts, relation)
    if any(direction.spent >= delta for direction in found):
        return Interval(math.inf if all(direction.attained for direction in found) else 0.0, math.inf)
    interval = _worst([EpsilonQuestion(delta - direction.spent) for direction in found], found, rtol)
    if not all(direction.attained for direction in found):
        interval = Interval(0.0, interval.upper)
        if relation is NeighbouringRelation.REPLACE_ONE:
            interval = _epsilon_of_two(interval, counts, delta, rtol)
    return _with_renyi(interval, counts, relation, lambda rdp: rdp.get_epsilon(delta))


@functools.lru_cache(maxsize=256)
def _delta_interval(counts: Counts, relation: NeighbouringRelation, epsilon: float, rtol: float) -> Interval:
    found = directions(counts, relation)
    interval = _worst(
        [DeltaQuestion(epsilon) for _ in found], found, rtol, functools.partial(_least, counts, relation, epsilon)
    )
    spent = max(direction.spent for direction in found)
    interval = Interval(min(spent + interval.lower, 1.0), min(spent + interval.upper, 1.0))
    if not all(direction.attained for direction in found):
        interval = Interval(0.0, interval.upper)
        if relation is NeighbouringRelation.REPLACE_ONE:
            interval = _delta_of_two(interval, counts, epsilon, rtol)
    return _with_renyi(interval, counts, relation, lambda rdp: rdp.get_delta(epsilon))


def _epsilon_of_two(interval: Interval, counts: Counts, delta: float, rtol: float) -> Interval:
    """`interval` under replace_one, or what follows from removing a unit and adding another, if that is lower.

    (ε, δ) once is (2ε, (1 + e^ε)δ) twice (Vadhan 2017, Lemma 2.2).
    """

    def once(delta: float) -> float:
        return _epsilon_interval(counts, NeighbouringRelation.ADD_OR_REMOVE_ONE, delta, rtol).upper

    try:
        epsilon = once(delta / 2)
        for _ in range(_TRIES):
            epsilon *= 1 + rtol
            if 2 * epsilon >= interval.upper or epsilon > _MOST:
                break
            found = once(delta / (1 + math.exp(epsilon)))
            if found <= epsilon:
                return Interval(interval.lower, 2 * epsilon)
            epsilon = found
    except UnsupportedEventError:
        pass  # no bound for a unit that is absent
    return interval


def _delta_of_two(interval: Interval, counts: Counts, epsilon: float, rtol: float) -> Interval:
    """As `_epsilon_of_two`."""
    if epsilon / 2 > _MOST:
        return interval
    try:
        once = _delta_interval(counts, NeighbouringRelation.ADD_OR_REMOVE_ONE, epsilon / 2, rtol).upper
    except UnsupportedEventError:
        return interval
    return Interval(interval.lower, min(interval.upper, max(once, _LEAST) * (1 + math.exp(epsilon / 2))))


def _with_renyi(
    interval: Interval, counts: Counts, relation: NeighbouringRelation, bound: Callable[[RdpAccountant], float]
) -> Interval:
    """`interval`, or the Rényi accountant's upper bound if that is lower: refining ended early, or pairs are not attained."""
    if interval.lower >= (1 - _WIDE) * interval.upper or interval.upper == 0:
        return interval
    rdp = RdpAccountant(neighbouring_relation=relation)
    try:
        for event, count in counts:
            rdp.compose(event, count)
    except UnsupportedEventError:
        return interval
    return Interval(interval.lower, max(min(interval.upper, bound(rdp)), interval.lower))


def _least(counts: Counts, relation: NeighbouringRelation, epsilon: float) -> Interval:
    """An interval of δ that takes next to no time."""
    return _with_renyi(Interval(0.0, 1.0), counts, relation, lambda rdp: rdp.get_delta(epsilon))


@functools.lru_cache(maxsize=64)
def _profile(counts: Counts, relation: NeighbouringRelation, epsilons: tuple[float, ...], rtol: float) -> tuple[Array, Array]:
    wanted = np.array(epsilons)
    lower, upper = np.zeros(len(wanted)), np.zeros(len(wanted))
    for direction in directions(counts, relation):
        least, most = np.zeros(len(wanted)), np.ones(len(wanted))
        if not direction.mechanisms:
            most = least
        elif len(direction.mechanisms) == 1 and direction.mechanisms[0].count == 1:
            exact = [curve(direction.mechanisms[0].pair, e) for e in epsilons]
            least, most = np.array([i.lower for i in exact]), np.array([i.upper for i in exact])
        else:
            ordered = np.unique(epsilons)
            for anchor in np.unique(ordered[np.linspace(0, len(ordered) - 1, _ANCHORS).round().astype(int)]):
                search = Search(DeltaQuestion(float(anchor)), batches(direction), rtol)
                if search.guess <= _FAINT and (bound := _least(counts, relation, float(anchor)).upper) <= _FAINT:
                    most = np.where(wanted >= anchor, np.minimum(most, bound), most)
                    continue
                search.run(unless_below=0.0)
                if search.compositions is None:
                    continue
                low, high = search.compositions
                least = np.maximum(least, sum(convolution.deltas(c, wanted) for c in low))
                most = np.minimum(most, sum(convolution.deltas(c, wanted) for c in high))
        least = least if direction.attained else 0 * least
        lower = np.maximum(lower, np.minimum(direction.spent + least, 1.0))
        upper = np.maximum(upper, np.minimum(direction.spent + most, 1.0))
    if relation is NeighbouringRelation.REPLACE_ONE and not all(
        direction.attained for direction in directions(counts, relation)
    ):
        try:
            once = _profile(counts, NeighbouringRelation.ADD_OR_REMOVE_ONE, tuple((wanted / 2).tolist()), rtol)[1]
            twice = np.maximum(once, _LEAST) * (1 + np.exp(np.minimum(wanted / 2, _MOST)))  # see `_epsilon_of_two`
            upper = np.where(wanted / 2 <= _MOST, np.minimum(upper, twice), upper)
        except UnsupportedEventError:
            pass
    # δ never rises with ε, so the best bound at one ε serves others too.
    order = np.argsort(epsilons)
    upper[order] = np.minimum.accumulate(upper[order]) * (1 + _ROUND_UP)
    lower[order] = np.maximum.accumulate(lower[order][::-1])[::-1] * (1 - _ROUND_UP)
    upper = np.minimum(upper, 1.0)
    return np.minimum(lower, upper), upper


def _worst(
    questions: list[Question], found: tuple[Direction, ...], rtol: float, least: Callable[[], Interval] | None = None
) -> Interval:
    """The largest answer over all directions; `least` is another one that will do where it is next to nothing."""
    lower = upper = 0.0
    searches = []
    for question, direction in zip(questions, found, strict=True):
        if len(direction.mechanisms) == 1 and direction.mechanisms[0].count == 1:
            exact = question.exact(direction.mechanisms[0].pair)
            lower, upper = max(lower, exact.lower), max(upper, exact.upper)
        elif direction.mechanisms:
            searches.append(Search(question, batches(direction), rtol))
    searches.sort(key=lambda s: -s.guess)
    faint = searches and max(searches[0].guess, upper) <= _FAINT
    if faint and least is not None and (bound := least()).upper <= _FAINT:
        return bound
    for search in searches:
        interval = search.run(unless_below=max(lower, _IRRELEVANT * upper))
        lower, upper = max(lower, interval.lower), max(upper, interval.upper)
    lower, upper = lower * (1 - _ROUND_UP), upper * (1 + _ROUND_UP)
    return Interval(min(lower, upper), upper)
