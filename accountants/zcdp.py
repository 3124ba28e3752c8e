"""Zero-concentrated DP: the ρ with D_α ≤ ρα at every order (Bun and Steinke 2016), from closed forms."""

from typing import Any

from accountants.errors import UnsupportedEventError
from accountants.events import (
    AboveThresholdDpEvent,
    DiscreteGaussianDpEvent,
    DiscreteLaplaceDpEvent,
    DpEvent,
    EpsilonDeltaDpEvent,
    ExponentialMechanismDpEvent,
    GaussianDpEvent,
    LaplaceDpEvent,
    NeighbouringRelation,
    ParallelDpEvent,
    PoissonSampledDpEvent,
    ReportNoisyMaxDpEvent,
    SampledWithoutReplacementDpEvent,
    ZCDpEvent,
    as_event,
    as_relation,
)
from accountants.mechanisms import leaves


def zcdp(event: Any, *, neighbouring_relation: str | NeighbouringRelation = NeighbouringRelation.ADD_OR_REMOVE_ONE) -> float:
    """ρ of an event tree, an upper bound; composition adds up. Infinite where there is no guarantee.

    A pure ε-DP mechanism is ε²/2-zCDP (Bun and Steinke 2016, Proposition 3.3), an η-bounded-range one η²/8 (Cesar and
    Rogers 2021, Lemma 3.2). A random sample does not lower ρ in general, so a sampled mechanism has the ρ of the mechanism.

    Args:
      event: ours or a `dp_accounting` one.
      neighbouring_relation: replacing a unit costs four times as much as adding or removing it.

    Raises:
      UnsupportedEventError: no finite ρ is known for an event in it.
    """
    factor = 4.0 if as_relation(neighbouring_relation) is NeighbouringRelation.REPLACE_ONE else 1.0
    return factor * _rho(as_event(event))


def _rho(event: DpEvent) -> float:
    return sum(count * _leaf(leaf) for leaf, count in leaves(event).items())


def _leaf(event: DpEvent) -> float:
    match event:
        case GaussianDpEvent(noise_multiplier=sigma):
            return 0.5 / sigma / sigma if sigma else float("inf")
        case DiscreteGaussianDpEvent(sigma=sigma, sensitivity=sensitivity):
            return 0.5 * (sensitivity / sigma) ** 2
        case LaplaceDpEvent(noise_multiplier=scale):
            return 0.5 / scale / scale if scale else float("inf")
        case DiscreteLaplaceDpEvent(noise_parameter=a, sensitivity=sensitivity):
            return 0.5 * (a * sensitivity) ** 2
        case ExponentialMechanismDpEvent(epsilon=epsilon) | ReportNoisyMaxDpEvent(noise="gumbel", epsilon=epsilon):
            return epsilon**2 / 8
        case ReportNoisyMaxDpEvent(epsilon=epsilon) | AboveThresholdDpEvent(epsilon=epsilon):
            return epsilon**2 / 2
        case EpsilonDeltaDpEvent(epsilon=epsilon, delta=0.0):
            return epsilon**2 / 2
        case ZCDpEvent(rho=rho, xi=0.0):
            return rho
        case PoissonSampledDpEvent(event=inner) | SampledWithoutReplacementDpEvent(event=inner):
            return _rho(inner)
        case ParallelDpEvent(events=events):
            return max((_rho(inner) for inner in events), default=0.0)
    raise UnsupportedEventError(f"no finite zCDP parameter is known for {type(event).__name__}")
