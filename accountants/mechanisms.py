"""From events to dominating pairs: which pair of distributions each mechanism is, under each neighbouring relation."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from accountants.errors import UnsupportedEventError
from accountants.events import (
    ComposedDpEvent,
    DpEvent,
    GaussianDpEvent,
    LaplaceDpEvent,
    NeighbouringRelation,
    NonPrivateDpEvent,
    NoOpDpEvent,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
)
from accountants.pairs import (
    GaussianPair,
    LaplacePair,
    Pair,
    SampledAddPair,
    SampledRemovePair,
)

MAX_ALTERNATIVES = 256
"""Ways in which one unit can lie in parallel cohorts that are gone through one by one."""


@dataclasses.dataclass(frozen=True)
class Mechanism:
    """A dominating pair (a batch of one) in one direction, composed `count` times.

    Attributes:
      pair: of the finite losses; None where there are none.
      count: how often.
      infinite: P-mass of infinite loss each time.
    """

    pair: Pair | None
    count: int
    infinite: float = 0.0


@dataclasses.dataclass(frozen=True)
class Direction:
    """What a composition is, seen in one direction (the unit's presence against its absence, or the reverse)."""

    mechanisms: tuple[Mechanism, ...]
    spent: float
    """Probability that some loss is infinite: δ that is spent at every ε."""


class _Pairs(NamedTuple):
    """Both directions; `add` is None where it is the same."""

    remove: Pair | None
    add: Pair | None = None
    infinite: float = 0.0


def leaves(event: DpEvent, count: int) -> dict[DpEvent, int]:
    """The mechanisms in a tree of compositions and how often each one ran; the order doesn't matter to what they cost."""
    result: dict[DpEvent, int] = {}

    def visit(node: DpEvent, times: int) -> None:
        if times == 0 or isinstance(node, NoOpDpEvent):
            return
        match node:
            case SelfComposedDpEvent(event=inner, count=more):
                visit(inner, times * more)
            case ComposedDpEvent(events=events):
                for inner in events:
                    visit(inner, times)
            case PoissonSampledDpEvent(sampling_probability=1.0, event=inner):
                visit(inner, times)
            case _:
                result[node] = result.get(node, 0) + times

    visit(event, count)
    return result


def directions(
    counts: Iterable[tuple[DpEvent, int]], relation: NeighbouringRelation
) -> tuple[Direction, ...]:
    """The directions in which a composition has to be looked at; its privacy is that of the worst.

    Raises:
      UnsupportedEventError: no dominating pair is known for an event under this relation.
    """
    shrink = 0.5 if relation is NeighbouringRelation.REPLACE_ONE else 1.0
    pairs: list[tuple[_Pairs, int]] = []
    precision: list[float] = []  # of Gaussians, which compose to a Gaussian: μ² = Σ 1/σ²
    for event, count in counts:
        if isinstance(event, GaussianDpEvent) and event.noise_multiplier > 0:
            mu = 1 / (shrink * event.noise_multiplier)
            precision.append(mu * math.sqrt(count))
        else:
            pairs.append((_pairs(event, relation), count))
    if precision:
        pairs.append((_gaussian(math.hypot(*precision)), 1))
    log_kept = sum(count * _log1m(pair.infinite) for pair, count in pairs)
    spent = -math.expm1(log_kept)
    symmetric = all(pair.add is None for pair, _ in pairs)
    sides = ("remove",) if symmetric else ("remove", "add")
    return tuple(
        Direction(
            tuple(
                Mechanism(chosen, count, pair.infinite)
                for pair, count in pairs
                if (chosen := _side(pair, side)) is not None
            ),
            spent,
        )
        for side in sides
    )


def _side(pair: _Pairs, side: str) -> Pair | None:
    return pair.remove if side == "remove" or pair.add is None else pair.add


def _log1m(probability: float) -> float:
    return math.log1p(-probability) if probability < 1 else -math.inf


def _pairs(event: DpEvent, relation: NeighbouringRelation) -> _Pairs:
    shrink = 0.5 if relation is NeighbouringRelation.REPLACE_ONE else 1.0
    match event:
        case NonPrivateDpEvent():
            return _Pairs(None, infinite=1.0)
        case GaussianDpEvent(noise_multiplier=sigma):
            return _gaussian(_over(1, shrink * sigma))
        case LaplaceDpEvent(noise_multiplier=scale):
            return _laplace(_over(1, shrink * scale))
        case PoissonSampledDpEvent(sampling_probability=q, event=inner):
            return _poisson(q, inner, relation)
    raise UnsupportedEventError(f"the numerical accountant has no dominating pair for {type(event).__name__}")


def _over(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.inf


def _gaussian(mu: float) -> _Pairs:
    if mu == math.inf:
        return _Pairs(None, infinite=1.0)
    return _Pairs(GaussianPair(_batch(mu)) if mu else None)


def _laplace(kappa: float) -> _Pairs:
    if kappa == math.inf:
        return _Pairs(None, infinite=1.0)
    return _Pairs(LaplacePair(_batch(kappa)) if kappa else None)


def _poisson(q: float, inner: DpEvent, relation: NeighbouringRelation) -> _Pairs:
    parts = leaves(inner, 1)
    if q == 0 or not parts:
        return _Pairs(None)
    if relation is NeighbouringRelation.REPLACE_ONE:
        raise UnsupportedEventError("not yet")
    found = directions(parts.items(), relation)
    if len(found[0].mechanisms) != 1 or found[0].mechanisms[0].count != 1:
        raise UnsupportedEventError(
            f"the numerical accountant has no dominating pair for Poisson sampling of {type(inner).__name__} "
            "other than a single mechanism or a composition of Gaussian events"
        )
    remove, add = (found * 2)[:2]
    base, reverse = remove.mechanisms[0].pair, add.mechanisms[0].pair
    return _Pairs(SampledRemovePair(base, _batch(q)), SampledAddPair(reverse, _batch(q)), q * remove.spent)


def _batch(value: float) -> np.ndarray:
    return np.array([[value]])
