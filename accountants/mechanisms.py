"""From events to dominating pairs: which pair of distributions each mechanism is, under each neighbouring relation."""

import dataclasses
import itertools
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from accountants import atomic_pairs, special
from accountants.domains import MAX_COUNT
from accountants.errors import UnsupportedEventError
from accountants.events import (
    AboveThresholdDpEvent,
    ComposedDpEvent,
    DiscreteGaussianDpEvent,
    DiscreteLaplaceDpEvent,
    DpEvent,
    EpsilonDeltaDpEvent,
    ExponentialMechanismDpEvent,
    FixedOrderDpEvent,
    GaussianDpEvent,
    LaplaceDpEvent,
    MixtureOfGaussiansDpEvent,
    NeighbouringRelation,
    NonPrivateDpEvent,
    NoOpDpEvent,
    ParallelDpEvent,
    PoissonSampledDpEvent,
    RandomizedResponseDpEvent,
    ReportNoisyMaxDpEvent,
    SampledWithoutReplacementDpEvent,
    SelfComposedDpEvent,
    SingleEpochTreeAggregationDpEvent,
    TruncatedSubsampledGaussianDpEvent,
)
from accountants.mixture_pairs import MixturePair
from accountants.pairs import BoundedRangePair, GaussianPair, LaplacePair, Pair
from accountants.sampled_pairs import ReplacePair, RevealedPair, SampledAddPair, SampledRemovePair

_MAX_UNITS = 10**7  # over whose number in a batch a sum is taken
MAX_SHIFT = 40.0
"""Largest shift in a mixture of Gaussians, in standard deviations."""

MAX_MU = 1e100
"""Largest distance of two Gaussians in standard deviations; its square is still a number."""

MAX_ALTERNATIVES = 256
"""Ways in which one unit can lie in parallel cohorts that are gone through one by one."""


@dataclasses.dataclass(frozen=True)
class Mechanism:
    """A dominating pair (a batch of one) in one direction, composed `count` times.

    Attributes:
      pair: of the finite losses.
      count: how often.
    """

    pair: Pair
    count: int


@dataclasses.dataclass(frozen=True)
class Direction:
    """What a composition is, seen in one direction (the unit's presence against its absence, or the reverse)."""

    mechanisms: tuple[Mechanism, ...]
    spent: float
    """Probability that some loss is infinite: δ that is spent at every ε."""
    attained: bool
    """Whether mechanisms that these events describe can be as bad as their pairs; if not, only an upper bound follows."""


class _Pairs(NamedTuple):
    """A mechanism in both directions; `add` is None where it is the same, `remove` where every loss is 0 or infinite.

    `infinite` is the probability of infinite loss; where it is not 0, the pair's own masses sum to the rest. `attained` is
    false where the pair dominates the mechanism but is not known to be its worst case.
    """

    remove: Pair | None
    add: Pair | None = None
    infinite: float = 0.0
    attained: bool = True


def leaves(event: DpEvent, count: int = 1) -> dict[DpEvent, int]:
    """The mechanisms in a tree of compositions and how often each one ran; the order doesn't matter to what they cost.

    Raises:
      UnsupportedEventError: one ran more than 10^15 times.
    """
    result: dict[DpEvent, int] = {}

    def visit(node: DpEvent, times: int) -> None:
        if times == 0:
            return
        match node:
            case NoOpDpEvent() | PoissonSampledDpEvent(sampling_probability=0.0):
                pass
            case SelfComposedDpEvent(event=inner, count=more) | FixedOrderDpEvent(event=inner, epochs=more):
                visit(inner, times * more)
            case ComposedDpEvent(events=events):
                for inner in events:
                    visit(inner, times)
            case PoissonSampledDpEvent(sampling_probability=1.0, event=inner):
                visit(inner, times)
            case SampledWithoutReplacementDpEvent(source_dataset_size=n, sample_size=m, event=inner) if m in (0, n):
                visit(inner, times if m else 0)
            case SingleEpochTreeAggregationDpEvent(noise_multiplier=sigma):
                visit(GaussianDpEvent(sigma), times * node.depth)
            case _:
                result[node] = result.get(node, 0) + times

    visit(event, count)
    if max(result.values(), default=0) > MAX_COUNT:
        raise UnsupportedEventError("an event that runs more than 10^15 times in all is beyond the numerical accountant")
    return result


def directions(counts: Iterable[tuple[DpEvent, int]], relation: NeighbouringRelation) -> tuple[Direction, ...]:
    """The directions in which a composition has to be looked at; its privacy is that of the worst.

    Where there are parallel cohorts, a unit may lie in any one of each: every combination has directions of its own.

    Raises:
      UnsupportedEventError: no dominating pair is known for an event under this relation.
    """
    fixed: dict[DpEvent, int] = {}
    choices: list[list[dict[DpEvent, int]]] = []
    for event, count in counts:
        if not isinstance(event, ParallelDpEvent):
            fixed[event] = fixed.get(event, 0) + count
            continue
        options = [leaves(inner, count) for inner in event.events]
        if any(isinstance(leaf, ParallelDpEvent) for option in options for leaf in option):
            raise UnsupportedEventError("the numerical accountant can't do parallel cohorts within parallel cohorts")
        choices.append(list({tuple(sorted(option.items(), key=repr)): option for option in options}.values()) or [{}])
    if math.prod(len(options) for options in choices) > MAX_ALTERNATIVES:
        raise UnsupportedEventError(
            f"the numerical accountant goes through at most {MAX_ALTERNATIVES} combinations of parallel cohorts"
        )
    result: list[Direction] = []
    for chosen in itertools.product(*choices):
        total = dict(fixed)
        for option in chosen:
            for event, count in option.items():
                total[event] = total.get(event, 0) + count
        result += _directions(total, relation)
    return tuple(result)


def _directions(counts: dict[DpEvent, int], relation: NeighbouringRelation) -> list[Direction]:
    pairs: list[tuple[_Pairs, int]] = []
    means: list[float] = []  # of Gaussians, which compose to one Gaussian: μ² = Σ 1/σ²
    for event, count in counts.items():
        if isinstance(event, GaussianDpEvent) and event.noise_multiplier > 0:
            means.append(math.sqrt(count) / (_shrink(relation) * event.noise_multiplier))
        else:
            pairs.append((_pairs(event, relation), count))
    if means:
        pairs.append((_gaussian(math.hypot(*means)), 1))
    spent = -math.expm1(sum(count * _log1m(pair.infinite) for pair, count in pairs))
    # At each ε some bounded-range mechanism attains the curve of its pair, but not one of them at every ε, as composing takes.
    single = len(pairs) == 1 and pairs[0][1] == 1 and isinstance(pairs[0][0].remove, BoundedRangePair)
    # A sample of something without noise is infinite or nearly 0, but not quite: it counts as 0 where there is more.
    rounded = len(pairs) > 1 and any(pair.remove is None and 0 < pair.infinite < 1 for pair, _ in pairs)
    attained = single or (all(pair.attained for pair, _ in pairs) and not rounded)
    sides = [(pair.remove, pair.remove if pair.add is None else pair.add, count) for pair, count in pairs]
    result = [Direction(tuple(Mechanism(remove, count) for remove, _, count in sides if remove is not None), spent, attained)]
    if any(pair.add is not None for pair, _ in pairs):
        result.append(Direction(tuple(Mechanism(add, count) for _, add, count in sides if add is not None), spent, attained))
    return result


def _shrink(relation: NeighbouringRelation) -> float:
    """Replacing a unit moves a sum twice as far as adding or removing it, so noise counts half."""
    return 0.5 if relation is NeighbouringRelation.REPLACE_ONE else 1.0


def _log1m(probability: float) -> float:
    return math.log1p(-probability) if probability < 1 else -math.inf


def _pairs(event: DpEvent, relation: NeighbouringRelation) -> _Pairs:
    replace = relation is NeighbouringRelation.REPLACE_ONE
    twice = 2 if replace else 1
    match event:
        case NonPrivateDpEvent():
            return _Pairs(None, infinite=1.0)
        case GaussianDpEvent(noise_multiplier=sigma):
            return _gaussian(twice / sigma if sigma else math.inf)
        case LaplaceDpEvent(noise_multiplier=scale):
            kappa = twice / scale if scale else math.inf
            return _Pairs(None, infinite=1.0) if kappa == math.inf else _Pairs(LaplacePair(_batch(kappa)))
        case DiscreteLaplaceDpEvent(noise_parameter=a, sensitivity=delta):
            _few_enough(event, twice * delta + 1)
            return _Pairs(atomic_pairs.discrete_laplace(a, twice * delta))
        case DiscreteGaussianDpEvent(sigma=sigma, sensitivity=delta):
            _few_enough(event, 76 * sigma + twice * delta)
            return _Pairs(atomic_pairs.discrete_gaussian(sigma, twice * delta))
        case RandomizedResponseDpEvent(noise_parameter=noise, num_buckets=buckets):
            return _randomized_response(noise, buckets, relation)
        case ExponentialMechanismDpEvent(epsilon=epsilon):
            return _Pairs(BoundedRangePair(_batch(twice * epsilon)), attained=False)
        case ReportNoisyMaxDpEvent(noise="gumbel"):
            return _Pairs(BoundedRangePair(_batch(twice * event.epsilon)), attained=False)
        case ReportNoisyMaxDpEvent() | AboveThresholdDpEvent():
            return _Pairs(atomic_pairs.pure(twice * event.epsilon), attained=False)
        case EpsilonDeltaDpEvent(epsilon=epsilon, delta=delta):
            # Replacing is removing and adding: group privacy for two, which no chain of two attains at every ε.
            spent = min(1.0, delta * (1 + math.exp(min(epsilon, 700.0)))) if replace else delta
            return _Pairs(atomic_pairs.scaled_pure(twice * epsilon, 1 - spent), infinite=spent, attained=not replace)
        case MixtureOfGaussiansDpEvent():
            return _mixture(event, relation)
        case PoissonSampledDpEvent(sampling_probability=q, event=inner):
            if replace:
                # A unit that is not drawn is absent, not replaced: the mechanism has to have a bound for that too.
                directions(leaves(inner).items(), NeighbouringRelation.ADD_OR_REMOVE_ONE)
            return _sampled(event, q, inner, relation)
        case SampledWithoutReplacementDpEvent(source_dataset_size=n, sample_size=m, event=inner):
            if not replace:
                raise UnsupportedEventError(
                    f"sampling without replacement has a bound under replace_one only, not under {relation}"
                )
            return _sampled(event, m / n, inner, relation)
        case TruncatedSubsampledGaussianDpEvent():
            return _truncated(event, relation)
    raise UnsupportedEventError(
        f"the numerical accountant has no dominating pair for {type(event).__name__} (the Rényi accountant may have a bound)"
    )


def _gaussian(mu: float) -> _Pairs:
    if mu > MAX_MU:  # so little noise that the loss is as good as infinite; an upper bound
        return _Pairs(None, infinite=1.0, attained=mu == math.inf)
    return _Pairs(GaussianPair(_batch(mu)) if mu else None)


def _randomized_response(noise: float, buckets: int, relation: NeighbouringRelation) -> _Pairs:
    if relation is not NeighbouringRelation.REPLACE_ONE:
        raise UnsupportedEventError(
            f"randomised response is about a unit's value: it has a bound under replace_one only, not under {relation}"
        )
    if noise == 1:
        return _Pairs(None)
    if noise / buckets == 0:
        return _Pairs(None, infinite=1.0)
    if buckets == 2:
        return _Pairs(atomic_pairs.pure(math.log1p((1 - noise) / (noise / 2))))
    return _Pairs(atomic_pairs.randomized_response(noise, buckets))


def _mixture(event: MixtureOfGaussiansDpEvent, relation: NeighbouringRelation) -> _Pairs:
    if relation is NeighbouringRelation.REPLACE_ONE:
        raise UnsupportedEventError("a mixture of Gaussians has a bound under add_or_remove_one or zero_out, not replace_one")
    terms: dict[float, float] = {}
    for shift, weight in zip(event.sensitivities, event.sampling_probs, strict=True):
        if weight:
            terms[shift / event.standard_deviation] = terms.get(shift / event.standard_deviation, 0.0) + weight
    means, weights = np.array(list(terms)), np.array(list(terms.values()))
    if not means.any():
        return _Pairs(None)
    if means.max() > MAX_SHIFT:
        raise UnsupportedEventError(
            f"a shift of more than {MAX_SHIFT:g} standard deviations is beyond the numerical accountant"
        )
    weights = weights / weights.sum()
    return _Pairs(MixturePair(means, weights, True), MixturePair(means, weights, False))


def _sampled(event: DpEvent, q: float, inner: DpEvent, relation: NeighbouringRelation) -> _Pairs:
    parts = leaves(inner)
    match list(parts.items()):
        case [(EpsilonDeltaDpEvent(epsilon=epsilon, delta=delta), 1)] if delta > 0:
            # Balle, Barthe, Gaboardi 2018, Theorems 8 and 9: (log(1 + q(e^ε − 1)), qδ), under the relation that is sampled by.
            # A Poisson sample has it under add or remove, and then for two units; one of fixed size under replace_one.
            if isinstance(event, SampledWithoutReplacementDpEvent):
                delta, epsilon = min(1.0, delta * (1 + math.exp(min(epsilon, 700.0)))), 2 * epsilon
            amplified = max(epsilon + math.log(q + (1 - q) * math.exp(-epsilon)) if q < 1 else epsilon, 0.0)
            if isinstance(event, SampledWithoutReplacementDpEvent):
                return _Pairs(atomic_pairs.scaled_pure(amplified, 1 - q * delta), infinite=q * delta, attained=False)
            return _pairs(EpsilonDeltaDpEvent(amplified, q * delta), relation)._replace(attained=False)
    if any(isinstance(part, ParallelDpEvent) for part in parts):
        raise UnsupportedEventError("sampling of parallel cohorts has no pair: sample within each cohort instead")
    found = directions(parts.items(), relation)
    if not found[0].mechanisms:
        return _Pairs(None, infinite=q * found[0].spent, attained=found[0].attained)
    if len(found) > 2 or len(found[0].mechanisms) > 1 or found[0].mechanisms[0].count > 1 or found[0].spent > 0:
        raise UnsupportedEventError(
            f"the numerical accountant has no dominating pair for {type(event).__name__} of {type(inner).__name__} "
            "other than a single mechanism or a composition of Gaussian events"
        )
    base, reverse = found[0].mechanisms[0].pair, found[-1].mechanisms[0].pair
    remove, add = SampledRemovePair(base, _batch(q)), SampledAddPair(reverse, _batch(q))
    if relation is NeighbouringRelation.REPLACE_ONE:
        return _Pairs(ReplacePair(remove, add), attained=False)
    attained = found[0].attained and not isinstance(base, BoundedRangePair)
    return _Pairs(remove, add, attained=attained)


def _truncated(event: TruncatedSubsampledGaussianDpEvent, relation: NeighbouringRelation) -> _Pairs:
    """Poisson sampling with a largest batch B.

    Given how many others, M, were drawn (which does not depend on the unit): if M < B nothing is dropped. If M ≥ B, the unit
    is drawn and kept with probability qB/(M + 1), and takes the place of another, so that the sum moves by up to 2C. An empty
    unit (zero_out) takes a place as well, so it is one that replaces the unit.
    """
    q, sigma = event.sampling_probability, event.noise_multiplier
    if q == 0:
        return _Pairs(None)
    if sigma == 0:
        return _Pairs(None, infinite=q)
    if relation is not NeighbouringRelation.ADD_OR_REMOVE_ONE:
        # Both the unit and its replacement are in the batch with one probability of at most q, in the same place; where neither
        # is, another unit may be, up to 2C away from each.
        base = GaussianPair(_batch(2 / sigma))
        return _Pairs(ReplacePair(SampledRemovePair(base, _batch(q)), SampledAddPair(base, _batch(q))), attained=False)
    others, size = event.dataset_size - 1, event.truncated_batch_size
    if others > _MAX_UNITS:
        raise UnsupportedEventError(
            f"truncated batches of more than {_MAX_UNITS:,} units are beyond the numerical accountant; got dataset_size = "
            f"{event.dataset_size:,}"
        )
    kept = float(special.bdtr(size - 1, others, q)) if size <= others else 1.0
    drawn = np.arange(size, others + 1, dtype=np.float64)
    log_pmf = special.gammaln(others + 1) - special.gammaln(drawn + 1) - special.gammaln(others - drawn + 1)
    with np.errstate(divide="ignore", under="ignore"):
        weights = np.exp(log_pmf + drawn * np.log(q) + (others - drawn) * np.log1p(-q))
    keep = weights > 1e-3 * weights.max(initial=0.0) / max(len(weights), 1)
    # What was left out, and the rounding of the rest, goes to the case that costs most: just one too many.
    rest = max(1 - kept - float(weights[keep].sum()), 0.0)
    rates = np.concatenate([[q], [q * size / (size + 1)], q * size / (drawn[keep] + 1)])
    mus = np.concatenate([[1.0], np.full(len(rates) - 1, 2.0)]) / sigma
    chance = np.concatenate([[kept], [rest], weights[keep]])
    base = GaussianPair(mus[:, None])
    rates = np.minimum(rates, 1 - 2.0**-53)[:, None]
    sampled = SampledRemovePair(base, rates), SampledAddPair(base, rates)
    return _Pairs(RevealedPair(sampled[0], chance), RevealedPair(sampled[1], chance), attained=False)


def _few_enough(event: DpEvent, atoms: float) -> None:
    if atoms > atomic_pairs.MAX_ATOMS:
        raise UnsupportedEventError(
            f"{event!r:.80} has more than {atomic_pairs.MAX_ATOMS:,} distinct losses, too many for the numerical accountant; "
            "the Rényi accountant bounds it"
        )


def _batch(value: float) -> np.ndarray:
    return np.array([[value]])
