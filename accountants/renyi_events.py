"""From events to Rényi divergences: a curve for every mechanism under every neighbouring relation, or a refusal by name.

Under `replace_one` a unit moves a sum twice as far as under the other relations, so noise counts half and a pure ε doubles.
Where only a guarantee is known (zCDP), replacing is removing and adding: group privacy for two.
"""

import dataclasses
import functools
import math

import numpy as np
from numpy.typing import NDArray

from accountants import renyi, renyi_bounded, selection
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
    RepeatAndSelectDpEvent,
    ReportNoisyMaxDpEvent,
    SampledWithoutReplacementDpEvent,
    SelfComposedDpEvent,
    SingleEpochTreeAggregationDpEvent,
    TruncatedSubsampledGaussianDpEvent,
    ZCDpEvent,
)
from accountants.mechanisms import leaves
from accountants.orders import DEFAULT_ORDERS
from accountants.renyi_mixture import mixture_of_gaussians

Array = NDArray[np.float64]


@functools.lru_cache(maxsize=512)
def event_rdp(event: DpEvent, orders: tuple[float, ...], relation: NeighbouringRelation) -> Array:
    """Rényi divergence of one `event` at each of `orders`, the larger of both directions.

    Args:
      event: any event tree.
      orders: (k,) each > 1.
      relation: see `NeighbouringRelation`.

    Returns:
      (k,) float64, read-only (it is cached); infinite where there is no guarantee.

    Raises:
      UnsupportedEventError: no valid bound is known here for this event under this relation.
    """
    with np.errstate(over="ignore", under="ignore", divide="ignore"):  # infinities are meant; a NaN would be refused later
        result = _event_rdp(event, orders, relation)
    result.setflags(write=False)
    return result


def times(rdp: Array, count: int) -> Array:
    """count · rdp with 0 · ∞ = 0. (k,) → (k,)."""
    with np.errstate(over="ignore"):
        return rdp * count if count else np.zeros_like(rdp)


def _event_rdp(event: DpEvent, orders: tuple[float, ...], relation: NeighbouringRelation) -> Array:
    """Trees; `_mechanism` has the leaves."""
    zero = np.zeros(len(orders))
    match event:
        case NoOpDpEvent():
            return zero
        case NonPrivateDpEvent():
            return np.full_like(zero, np.inf)
        case SelfComposedDpEvent(event=inner, count=count) | FixedOrderDpEvent(event=inner, epochs=count):
            return times(event_rdp(inner, orders, relation), count)
        case SingleEpochTreeAggregationDpEvent(noise_multiplier=sigma):
            return times(event_rdp(GaussianDpEvent(sigma), orders, relation), event.depth)
        case ComposedDpEvent(events=events):
            return sum((event_rdp(inner, orders, relation) for inner in events), zero)
        case ParallelDpEvent(events=events):
            return functools.reduce(np.maximum, (event_rdp(inner, orders, relation) for inner in events), zero)
        case RepeatAndSelectDpEvent(event=inner, mean=mean, shape=shape):
            # Its bound at one order depends on the curve at other ones.
            more = tuple(sorted({*orders, *DEFAULT_ORDERS}))
            curve = selection.repeat_and_select(np.asarray(more), event_rdp(inner, more, relation), mean, shape)
            return curve[np.searchsorted(more, orders)]
        case PoissonSampledDpEvent(sampling_probability=q, event=inner):
            return _poisson_sampled(q, inner, orders, relation)
    return _mechanism(event, np.asarray(orders), relation)


def _mechanism(event: DpEvent, alpha: Array, relation: NeighbouringRelation) -> Array:
    replace = relation is NeighbouringRelation.REPLACE_ONE
    twice = 2 if replace else 1
    match event:
        case GaussianDpEvent(noise_multiplier=sigma):
            return renyi.gaussian(alpha, sigma / twice)
        case LaplaceDpEvent(noise_multiplier=scale):
            return renyi.laplace(alpha, scale / twice)
        case DiscreteGaussianDpEvent(sigma=sigma, sensitivity=delta):
            return renyi.gaussian(alpha, sigma / (twice * delta))
        case DiscreteLaplaceDpEvent(noise_parameter=a, sensitivity=delta):
            return renyi_bounded.discrete_laplace(alpha, a, twice * delta)
        case ExponentialMechanismDpEvent(epsilon=eta):
            return renyi_bounded.bounded_range(alpha, twice * eta)
        case ReportNoisyMaxDpEvent(noise="gumbel"):
            return renyi_bounded.bounded_range(alpha, twice * event.epsilon)
        case ReportNoisyMaxDpEvent() | AboveThresholdDpEvent():
            return renyi_bounded.pure(alpha, twice * event.epsilon)
        case EpsilonDeltaDpEvent(epsilon=epsilon, delta=delta):
            return np.full_like(alpha, np.inf) if delta else renyi_bounded.pure(alpha, twice * epsilon)
        case ZCDpEvent(rho=rho, xi=xi):
            return _zcdp(alpha, rho, xi, replace)
        case RandomizedResponseDpEvent(noise_parameter=noise, num_buckets=buckets):
            if not replace:
                raise UnsupportedEventError(
                    f"randomised response is about a unit's value: it has a bound under replace_one only, not under {relation}"
                )
            return renyi_bounded.randomized_response(alpha, noise, buckets)
        case MixtureOfGaussiansDpEvent(standard_deviation=sigma, sensitivities=shifts, sampling_probs=weights):
            if replace:
                raise UnsupportedEventError(
                    "a mixture of Gaussians has a bound under add_or_remove_one or zero_out, not replace_one"
                )
            return mixture_of_gaussians(alpha, np.asarray(shifts) / sigma, weights)
        case SampledWithoutReplacementDpEvent(source_dataset_size=n, sample_size=m, event=inner) if m in (0, n):
            return times(event_rdp(inner, tuple(alpha.tolist()), relation), 1 if m else 0)
        case SampledWithoutReplacementDpEvent():
            raise UnsupportedEventError(
                "the Rényi accountant has no bound for sampling without replacement; the numerical accountant (`pld`) has one, "
                f"under replace_one only{'' if replace else f' and not under {relation}'}"
            )
        case TruncatedSubsampledGaussianDpEvent():
            raise UnsupportedEventError(
                "the Rényi accountant has no bound for Poisson sampling with truncated batches; "
                "the numerical accountant (`pld`) has"
            )
    raise UnsupportedEventError(f"the Rényi accountant has no bound for {type(event).__name__}")


def _zcdp(alpha: Array, rho: float, xi: float, replace: bool) -> Array:
    """ξ + ρα (Bun and Steinke 2016), and by the weak triangle inequality what two units cost. (k,) → (k,).

    That is D_α(P‖Q) ≤ 2α/(2α−1) · D_{2α−1}(P‖R) + D_{2α}(R‖Q): Mironov 2017, Proposition 11, at p = (2α−1)/α.
    """
    if replace:
        return xi * (1 + 2 * alpha / (2 * alpha - 1)) + 4 * rho * alpha
    return xi + rho * alpha


def _poisson_sampled(q: float, inner: DpEvent, orders: tuple[float, ...], relation: NeighbouringRelation) -> Array:
    parts = leaves(inner)
    if q == 0 or not parts:
        return np.zeros(len(orders))
    if q == 1:
        return event_rdp(inner, orders, relation).copy()
    if NonPrivateDpEvent() in parts:
        return np.full(len(orders), np.inf)
    if relation is NeighbouringRelation.REPLACE_ONE:
        raise UnsupportedEventError(
            "the Rényi accountant has no bound for Poisson sampling under replace_one; use the numerical accountant (`pld`), "
            "or add_or_remove_one or zero_out (an ε under one is not an ε under the other)"
        )
    if all(isinstance(part, GaussianDpEvent) for part in parts):
        return renyi.sampled_gaussian(orders, _joint_noise(parts), q)
    if list(parts.values()) != [1]:
        raise UnsupportedEventError(
            f"the Rényi accountant has no bound for Poisson sampling of a composition ({type(inner).__name__}) other than of "
            "Gaussian events"
        )
    return _sampled_mechanism(q, next(iter(parts)), orders, relation)


def _sampled_mechanism(q: float, event: DpEvent, orders: tuple[float, ...], relation: NeighbouringRelation) -> Array:
    """One mechanism on a Poisson sample with 0 < q < 1, under add_or_remove_one or zero_out."""
    match event:
        case LaplaceDpEvent(noise_multiplier=scale):
            return renyi.sampled_laplace(orders, scale, q)
        case DiscreteGaussianDpEvent(sigma=sigma, sensitivity=delta):
            return renyi.sampled_discrete_gaussian(orders, sigma, delta, q)
        case DiscreteLaplaceDpEvent(noise_parameter=a, sensitivity=delta):
            return renyi_bounded.discrete_laplace(orders, a, delta, q)
        case ExponentialMechanismDpEvent(epsilon=eta):
            return renyi_bounded.sampled_bounded_range(orders, eta, q)
        case ReportNoisyMaxDpEvent(noise="gumbel"):
            return renyi_bounded.sampled_bounded_range(orders, event.epsilon, q)
        case ReportNoisyMaxDpEvent() | AboveThresholdDpEvent() | EpsilonDeltaDpEvent(delta=0.0):
            return renyi_bounded.pure(orders, event.epsilon, q)
        case EpsilonDeltaDpEvent():
            return np.full(len(orders), np.inf)
        case MixtureOfGaussiansDpEvent(sensitivities=shifts, sampling_probs=weights):
            # Not drawn is a shift of 0.
            drawn = tuple(q * weight for weight in weights)
            whole = dataclasses.replace(event, sensitivities=(0.0, *shifts), sampling_probs=(1 - q, *drawn))
            return event_rdp(whole, orders, relation).copy()
        case PoissonSampledDpEvent(sampling_probability=outer, event=inner):
            both = max(q * outer, float(np.finfo(np.float64).tiny))  # what underflows is not nothing
            return event_rdp(PoissonSampledDpEvent(both, inner), orders, relation).copy()
        case ParallelDpEvent(events=events):
            each = tuple(PoissonSampledDpEvent(q, inner) for inner in events)
            return event_rdp(ParallelDpEvent(each), orders, relation).copy()
    event_rdp(event, orders, relation)  # refuses what has no bound without sampling either, and says why
    raise UnsupportedEventError(f"the Rényi accountant has no bound for Poisson sampling of {type(event).__name__}")


def _joint_noise(parts: dict[DpEvent, int]) -> float:
    """σ of the one Gaussian event that equals several on the same sample: 1/σ² = Σ 1/σᵢ²."""
    sigmas = {part.noise_multiplier: count for part, count in parts.items() if isinstance(part, GaussianDpEvent)}
    least = min(sigmas)
    if least == 0:
        return 0.0
    return least / math.sqrt(sum(count * (least / sigma) ** 2 for sigma, count in sigmas.items()))
