"""Immutable descriptions of what was released: the language between mechanisms and accountants.

An event says which mechanism ran, never what it returned. Names and fields are those of Google's
`dp_accounting`, and `as_event` accepts a `dp_accounting` tree as it is, by structure, without
importing that package.

Convention, used everywhere in this project: a `noise_multiplier` is the scale of the noise divided by
the largest norm that **one privacy unit can contribute** (for DP-SGD the clip norm C; for a Laplace
mechanism the L1 norm). An event therefore means the same thing under every neighbouring relation, and
it is the accountant that knows that replacing one unit moves the result by up to 2C.
"""

import dataclasses
import enum
import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from accountants import domains
from accountants.errors import InvalidEventError

MAX_DEPTH = 64
"""Deepest nesting of events, so that nothing that goes through them can exhaust the stack."""


class NeighbouringRelation(enum.StrEnum):
    """What it means for two data sets to be neighbours. ε under one is not ε under another."""

    ADD_OR_REMOVE_ONE = "add_or_remove_one"
    """One unit is added or removed; contributions move the result by at most C."""
    REPLACE_ONE = "replace_one"
    """One unit is replaced by another; contributions move the result by at most 2C."""
    ZERO_OUT = "zero_out"
    """One unit's contribution is replaced by zero; the number of units stays as it is."""


def as_relation(value: "str | NeighbouringRelation") -> NeighbouringRelation:
    """Parses a neighbouring relation by name.

    Raises:
      InvalidEventError: the name is not one of `NeighbouringRelation`.
    """
    try:
        return NeighbouringRelation(value)
    except ValueError:
        allowed = ", ".join(NeighbouringRelation)
        raise InvalidEventError(f"neighbouring_relation must be one of {allowed}; got {value!r}") from None


@dataclasses.dataclass(frozen=True)
class DpEvent:
    """Base class of all events.

    Attributes:
      nesting: how many levels of events are inside, 64 at most.
    """

    nesting: ClassVar[int] = 0


@dataclasses.dataclass(frozen=True)
class NoOpDpEvent(DpEvent):
    """Nothing was released."""


@dataclasses.dataclass(frozen=True)
class NonPrivateDpEvent(DpEvent):
    """Something was released with no guarantee at all: ε is infinite."""


@dataclasses.dataclass(frozen=True)
class GaussianDpEvent(DpEvent):
    """A vector plus N(0, (noise_multiplier · C)² I), where one unit contributes at most C in L2 norm.

    Attributes:
      noise_multiplier: standard deviation over C, ≥ 0. Zero means no noise: ε is infinite.
    """

    noise_multiplier: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_multiplier", domains.non_negative(self.noise_multiplier, "noise_multiplier"))


@dataclasses.dataclass(frozen=True)
class LaplaceDpEvent(DpEvent):
    """A value plus Laplace noise of scale noise_multiplier · C, where one unit contributes at most C in L1 norm.

    Attributes:
      noise_multiplier: the Laplace scale b over C, ≥ 0 (the standard deviation is √2 times that).
    """

    noise_multiplier: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_multiplier", domains.non_negative(self.noise_multiplier, "noise_multiplier"))


@dataclasses.dataclass(frozen=True)
class PoissonSampledDpEvent(DpEvent):
    """`event` ran on a sample that includes each unit independently with `sampling_probability`.

    Only a true Poisson sample may be described so; a shuffled or fixed-order epoch may not.

    Attributes:
      sampling_probability: in [0, 1].
      event: the mechanism that saw the sample.
    """

    sampling_probability: float
    event: DpEvent

    def __post_init__(self) -> None:
        object.__setattr__(self, "sampling_probability", domains.probability(self.sampling_probability, "sampling_probability"))
        _hold(self, "event")


@dataclasses.dataclass(frozen=True)
class ComposedDpEvent(DpEvent):
    """All of `events` happened, each possibly chosen with sight of the ones before."""

    events: tuple[DpEvent, ...]

    def __post_init__(self) -> None:
        _hold(self, "events")


@dataclasses.dataclass(frozen=True)
class SelfComposedDpEvent(DpEvent):
    """`event` happened `count` times."""

    event: DpEvent
    count: int

    def __post_init__(self) -> None:
        _hold(self, "event")
        object.__setattr__(self, "count", domains.whole(self.count, "count"))


@dataclasses.dataclass(frozen=True)
class DiscreteGaussianDpEvent(DpEvent):
    """A whole number plus discrete Gaussian noise, P(k) ∝ e^{−k²/2σ²} (Canonne, Kamath, Steinke 2020).

    Attributes:
      sigma: > 0, in units of the whole numbers. (The standard deviation is a hair less.)
      sensitivity: by how much one unit moves the number at most, ≥ 1.
    """

    sigma: float
    sensitivity: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma", domains.positive(self.sigma, "sigma"))
        object.__setattr__(self, "sensitivity", domains.whole(self.sensitivity, "sensitivity", at_least=1))


@dataclasses.dataclass(frozen=True)
class DiscreteLaplaceDpEvent(DpEvent):
    """A whole number plus discrete Laplace (two-sided geometric) noise, P(k) ∝ e^{−a|k|}.

    Attributes:
      noise_parameter: a > 0.
      sensitivity: by how much one unit moves the number at most, ≥ 1.
    """

    noise_parameter: float
    sensitivity: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_parameter", domains.positive(self.noise_parameter, "noise_parameter"))
        object.__setattr__(self, "sensitivity", domains.whole(self.sensitivity, "sensitivity", at_least=1))


@dataclasses.dataclass(frozen=True)
class RandomizedResponseDpEvent(DpEvent):
    """One unit's own value in one of `num_buckets` buckets, replaced by a uniformly random one with a probability.

    It has a meaning where a unit's value changes (replace_one) and none where the unit is absent.

    Attributes:
      noise_parameter: that probability, in [0, 1]; the random bucket may be the true one.
      num_buckets: ≥ 2.
    """

    noise_parameter: float
    num_buckets: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_parameter", domains.probability(self.noise_parameter, "noise_parameter"))
        object.__setattr__(self, "num_buckets", domains.whole(self.num_buckets, "num_buckets", at_least=2))


@dataclasses.dataclass(frozen=True)
class ExponentialMechanismDpEvent(DpEvent):
    """A choice with probability ∝ e^{ε · score/(2Δ)}, where one unit moves no score by more than Δ (McSherry, Talwar 2007).

    Attributes:
      epsilon: ε > 0. The mechanism is ε-DP, and more: its loss lies in an interval of length ε (bounded range).
    """

    epsilon: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", domains.positive(self.epsilon, "epsilon"))


@dataclasses.dataclass(frozen=True)
class ReportNoisyMaxDpEvent(DpEvent):
    """The index of the largest of several scores after noise on each, where one unit moves no score by more than Δ.

    Attributes:
      noise_multiplier: scale of the noise over Δ, > 0.
      noise: "gumbel" (which is the exponential mechanism), "laplace", or "exponential" (permute-and-flip, McKenna and Sheldon
        2020, is the same choice).
      monotonic: whether a unit moves all scores in the same direction, as with counts; it halves the cost.
    """

    noise_multiplier: float
    noise: str = "gumbel"
    monotonic: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_multiplier", domains.positive(self.noise_multiplier, "noise_multiplier"))
        domains.one_of(self.noise, "noise", ("gumbel", "laplace", "exponential"))
        domains.flag(self.monotonic, "monotonic")

    @property
    def epsilon(self) -> float:
        """The pure-DP parameter (Dwork and Roth 2014, section 3.3)."""
        return (1 if self.monotonic else 2) / self.noise_multiplier


@dataclasses.dataclass(frozen=True)
class AboveThresholdDpEvent(DpEvent):
    """The sparse vector technique: any number of queries, and for each only whether it lies above a threshold.

    Noise is Laplace: one draw on the threshold, fresh ones on each query; it ends after `answers` queries above (Lyu, Su, Li
    2017, Algorithm 1: ε = 1/b₁ + 2c/b₂, and c/b₂ for monotonic queries). How many lie below costs nothing.

    Attributes:
      threshold_noise_multiplier: b₁ over the sensitivity of a query, > 0.
      query_noise_multiplier: b₂ over it, > 0.
      answers: c ≥ 1.
      monotonic: whether a unit moves all queries in the same direction.
    """

    threshold_noise_multiplier: float
    query_noise_multiplier: float
    answers: int = 1
    monotonic: bool = False

    def __post_init__(self) -> None:
        for name in ("threshold_noise_multiplier", "query_noise_multiplier"):
            object.__setattr__(self, name, domains.positive(getattr(self, name), name))
        object.__setattr__(self, "answers", domains.whole(self.answers, "answers", at_least=1))
        domains.flag(self.monotonic, "monotonic")

    @property
    def epsilon(self) -> float:
        """The pure-DP parameter."""
        per_answer = (1 if self.monotonic else 2) / self.query_noise_multiplier
        return 1 / self.threshold_noise_multiplier + self.answers * per_answer


@dataclasses.dataclass(frozen=True)
class EpsilonDeltaDpEvent(DpEvent):
    """Something of which only an (ε, δ) guarantee is known.

    Attributes:
      epsilon: ≥ 0, for one unit's presence against its absence.
      delta: in [0, 1].
    """

    epsilon: float
    delta: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", domains.non_negative(self.epsilon, "epsilon"))
        object.__setattr__(self, "delta", domains.probability(self.delta, "delta"))


@dataclasses.dataclass(frozen=True)
class ZCDpEvent(DpEvent):
    """Something of which only zero-concentrated DP is known: D_α ≤ ξ + ρα at every order (Bun and Steinke 2016).

    Attributes:
      rho: ρ ≥ 0.
      xi: ξ ≥ 0.
    """

    rho: float
    xi: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "rho", domains.non_negative(self.rho, "rho"))
        object.__setattr__(self, "xi", domains.non_negative(self.xi, "xi"))


@dataclasses.dataclass(frozen=True)
class MixtureOfGaussiansDpEvent(DpEvent):
    """N(s, σ²) with a random shift s when the unit takes part, N(0, σ²) when it does not: what matrix mechanisms need.

    With vector-valued shifts of those norms it is no worse (Choquette-Choo, Ganesh, McKenna, McMahan, Rush, Thakurta, Xu 2023).

    Attributes:
      standard_deviation: σ > 0.
      sensitivities: the shifts, each ≥ 0.
      sampling_probs: their probabilities; they sum to 1.
    """

    standard_deviation: float
    sensitivities: tuple[float, ...]
    sampling_probs: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "standard_deviation", domains.positive(self.standard_deviation, "standard_deviation"))
        for name in ("sensitivities", "sampling_probs"):
            object.__setattr__(self, name, domains.floats(getattr(self, name), name))
        if len(self.sensitivities) != len(self.sampling_probs):
            raise InvalidEventError("sensitivities and sampling_probs must be of one length")
        if abs(sum(self.sampling_probs) - 1) > 1e-9:
            raise InvalidEventError(f"sampling_probs must sum to 1; they sum to {sum(self.sampling_probs)!r}")


@dataclasses.dataclass(frozen=True)
class SampledWithoutReplacementDpEvent(DpEvent):
    """`event` ran on a uniformly random subset of fixed size.

    Attributes:
      source_dataset_size: n ≥ 1.
      sample_size: from 0 to n.
      event: the mechanism that saw the subset.
    """

    source_dataset_size: int
    sample_size: int
    event: DpEvent

    def __post_init__(self) -> None:
        n = domains.whole(self.source_dataset_size, "source_dataset_size", at_least=1)
        object.__setattr__(self, "source_dataset_size", n)
        object.__setattr__(self, "sample_size", domains.whole(self.sample_size, "sample_size", at_most=n))
        _hold(self, "event")


@dataclasses.dataclass(frozen=True)
class TruncatedSubsampledGaussianDpEvent(DpEvent):
    """A Gaussian event on a Poisson sample of which a random part is dropped where it is larger than a batch.

    Attributes:
      dataset_size: n ≥ 1.
      sampling_probability: q, in [0, 1].
      truncated_batch_size: B ≥ 1: the largest batch.
      noise_multiplier: as in `GaussianDpEvent`.
    """

    dataset_size: int
    sampling_probability: float
    truncated_batch_size: int
    noise_multiplier: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "dataset_size", domains.whole(self.dataset_size, "dataset_size", at_least=1))
        q = domains.probability(self.sampling_probability, "sampling_probability")
        object.__setattr__(self, "sampling_probability", q)
        size = domains.whole(self.truncated_batch_size, "truncated_batch_size", at_least=1)
        object.__setattr__(self, "truncated_batch_size", size)
        sigma = domains.non_negative(self.noise_multiplier, "noise_multiplier")
        object.__setattr__(self, "noise_multiplier", sigma)


@dataclasses.dataclass(frozen=True)
class FixedOrderDpEvent(DpEvent):
    """Passes over data in a fixed or shuffled order: in each pass every unit is seen by exactly one run of `event`.

    No amplification by sampling is claimed: what a pass costs a unit is one run of `event` (parallel composition over the
    disjoint batches of a pass). The batch in which a unit lies must not depend on other units.

    Attributes:
      event: the mechanism that saw one batch.
      epochs: number of passes.
    """

    event: DpEvent
    epochs: int = 1

    def __post_init__(self) -> None:
        _hold(self, "event")
        object.__setattr__(self, "epochs", domains.whole(self.epochs, "epochs"))


@dataclasses.dataclass(frozen=True)
class SingleEpochTreeAggregationDpEvent(DpEvent):
    """Tree aggregation of gradients over one pass, restarted at times (Kairouz et al. 2021, DP-FTRL).

    Attributes:
      noise_multiplier: of each node of the tree.
      step_counts: steps of each tree; a unit takes part in one step of one of them.
    """

    noise_multiplier: float
    step_counts: int | tuple[int, ...]

    def __post_init__(self) -> None:
        sigma = domains.non_negative(self.noise_multiplier, "noise_multiplier")
        object.__setattr__(self, "noise_multiplier", sigma)
        counts: Any = self.step_counts
        given: tuple[Any, ...] = tuple(counts) if isinstance(counts, Iterable) else (counts,)
        object.__setattr__(self, "step_counts", tuple(domains.whole(c, "step_counts") for c in given))

    @property
    def depth(self) -> int:
        """Largest number of nodes that hold one step."""
        return max((count.bit_length() for count in self.step_counts), default=0)  # type: ignore[union-attr]


@dataclasses.dataclass(frozen=True)
class RepeatAndSelectDpEvent(DpEvent):
    """The best of a random number of runs of `event`, as private hyper-parameter tuning does (Papernot and Steinke 2022).

    Only the best run and its score are released, and the number of runs stays secret. It is drawn from a truncated negative
    binomial distribution, or a Poisson one.

    Attributes:
      event: one run.
      mean: expected number of runs, > 0 (≥ 1 but for Poisson).
      shape: of the negative binomial distribution, > −1: 0 is the logarithmic, 1 the geometric one; infinite is Poisson.
    """

    event: DpEvent
    mean: float
    shape: float

    def __post_init__(self) -> None:
        _hold(self, "event")
        object.__setattr__(self, "mean", domains.positive(self.mean, "mean"))
        shape = math.inf if self.shape in (math.inf, "inf") else self.shape
        if shape != math.inf:
            shape = domains.non_negative(shape + 1, "shape + 1") - 1 if isinstance(shape, int | float) else shape
            if not isinstance(shape, float) or shape <= -1:
                raise InvalidEventError(f"shape must be a number > -1 or infinite; got {self.shape!r:.80}")
            if self.mean < 1:
                raise InvalidEventError(f"mean must be at least 1 unless shape is infinite (Poisson); got {self.mean!r}")
        object.__setattr__(self, "shape", shape)


@dataclasses.dataclass(frozen=True)
class ParallelDpEvent(DpEvent):
    """Each of `events` saw its own part of the data; the parts are disjoint, and a unit lies in one of them.

    The part in which a unit lies must not depend on other units (McSherry 2009) nor, under replace_one, on its own value.
    """

    events: tuple[DpEvent, ...]

    def __post_init__(self) -> None:
        _hold(self, "events")


EVENT_TYPES: dict[str, type[DpEvent]] = {
    cls.__name__: cls
    for cls in (
        AboveThresholdDpEvent,
        ComposedDpEvent,
        DiscreteGaussianDpEvent,
        DiscreteLaplaceDpEvent,
        EpsilonDeltaDpEvent,
        ExponentialMechanismDpEvent,
        FixedOrderDpEvent,
        GaussianDpEvent,
        LaplaceDpEvent,
        MixtureOfGaussiansDpEvent,
        NoOpDpEvent,
        NonPrivateDpEvent,
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
}


def dpsgd_event(noise_multiplier: float, sampling_probability: float, steps: int) -> DpEvent:
    """The whole of a DP-SGD run: `steps` Poisson-sampled Gaussian releases (Abadi et al. 2016, Algorithm 1)."""
    step = PoissonSampledDpEvent(sampling_probability, GaussianDpEvent(noise_multiplier))
    return SelfComposedDpEvent(step, domains.whole(steps, "steps"))


def _hold(event: DpEvent, field: str) -> None:
    """Takes in what a field holds, an event or several, and how deep it is nested."""
    value = getattr(event, field)
    held = _events(value, type(event).__name__) if field == "events" else (as_event(value),)
    nesting = 1 + max((inner.nesting for inner in held), default=0)
    if nesting > MAX_DEPTH:
        raise InvalidEventError(f"event is nested more than {MAX_DEPTH} deep")
    object.__setattr__(event, field, held if field == "events" else held[0])
    object.__setattr__(event, "nesting", nesting)


def _events(values: Any, name: str) -> tuple[DpEvent, ...]:
    if isinstance(values, str | bytes | Mapping):
        raise InvalidEventError(f"{name}.events must be a list of events; got {values!r:.80}")
    try:
        return tuple(as_event(event) for event in values)
    except TypeError:
        raise InvalidEventError(f"{name}.events must be a list of events; got {values!r:.80}") from None


def as_event(value: Any, _depth: int = 0) -> DpEvent:
    """Returns `value` as one of our events; a `dp_accounting.DpEvent` tree is translated by structure.

    Raises:
      InvalidEventError: the type or a field of it is not known, or a value lies outside its domain.
    """
    if isinstance(value, DpEvent):
        return value
    if _depth > MAX_DEPTH:
        raise InvalidEventError(f"event is nested more than {MAX_DEPTH} deep")
    name = type(value).__name__
    cls = EVENT_TYPES.get(name)
    if cls is None or isinstance(value, Mapping):
        known = ", ".join(EVENT_TYPES)
        raise InvalidEventError(f"{name} is not an event this version knows; known: {known}")
    fields = {field.name for field in dataclasses.fields(cls)}
    foreign = set(getattr(value, "__dict__", {})) | {slot.name for slot in getattr(value, "__attrs_attrs__", ())}
    if foreign != fields:
        raise InvalidEventError(f"{name} must have the fields {sorted(fields)}; got {sorted(foreign)}")
    kwargs: dict[str, Any] = {}
    for field in fields:
        inner = getattr(value, field)
        if field == "event":
            inner = as_event(inner, _depth + 1)
        elif field == "events":
            inner = tuple(as_event(item, _depth + 1) for item in inner)
        kwargs[field] = inner
    return cls(**kwargs)
