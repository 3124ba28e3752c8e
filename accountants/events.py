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
import numbers
from collections.abc import Mapping
from typing import Any

from accountants.errors import InvalidEventError

MAX_DEPTH = 64
"""Deepest nesting accepted from outside, so that a hostile file can't exhaust the stack."""


MAX_COUNT = 10**15
"""Largest number of repetitions; a product with it is still exact in float64."""


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
    """Base class of all events."""


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
        object.__setattr__(self, "noise_multiplier", non_negative(self.noise_multiplier, "noise_multiplier"))


@dataclasses.dataclass(frozen=True)
class LaplaceDpEvent(DpEvent):
    """A value plus Laplace noise of scale noise_multiplier · C, where one unit contributes at most C in L1 norm.

    Attributes:
      noise_multiplier: the Laplace scale b over C, ≥ 0 (the standard deviation is √2 times that).
    """

    noise_multiplier: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_multiplier", non_negative(self.noise_multiplier, "noise_multiplier"))


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
        object.__setattr__(self, "sampling_probability", probability(self.sampling_probability, "sampling_probability"))
        object.__setattr__(self, "event", as_event(self.event))


@dataclasses.dataclass(frozen=True)
class ComposedDpEvent(DpEvent):
    """All of `events` happened, each possibly chosen with sight of the ones before."""

    events: tuple[DpEvent, ...]

    def __post_init__(self) -> None:
        if isinstance(self.events, str | bytes | Mapping):
            raise InvalidEventError(f"ComposedDpEvent.events must be a list of events; got {self.events!r}")
        try:
            events = tuple(self.events)
        except TypeError:
            raise InvalidEventError(f"ComposedDpEvent.events must be a list of events; got {self.events!r}") from None
        object.__setattr__(self, "events", tuple(as_event(event) for event in events))


@dataclasses.dataclass(frozen=True)
class SelfComposedDpEvent(DpEvent):
    """`event` happened `count` times."""

    event: DpEvent
    count: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "event", as_event(self.event))
        object.__setattr__(self, "count", whole(self.count, "count"))


EVENT_TYPES: dict[str, type[DpEvent]] = {
    cls.__name__: cls
    for cls in (
        NoOpDpEvent,
        NonPrivateDpEvent,
        GaussianDpEvent,
        LaplaceDpEvent,
        PoissonSampledDpEvent,
        ComposedDpEvent,
        SelfComposedDpEvent,
    )
}


def dpsgd_event(noise_multiplier: float, sampling_probability: float, steps: int) -> DpEvent:
    """The whole of a DP-SGD run: `steps` Poisson-sampled Gaussian releases (Abadi et al. 2016, Algorithm 1)."""
    step = PoissonSampledDpEvent(sampling_probability, GaussianDpEvent(noise_multiplier))
    return SelfComposedDpEvent(step, steps)


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


def to_dict(event: DpEvent) -> dict[str, Any]:
    """A JSON-ready description of `event`; `from_dict` reads it back to an equal event."""
    result: dict[str, Any] = {"type": type(event).__name__}
    for field in dataclasses.fields(event):
        value = getattr(event, field.name)
        if isinstance(value, DpEvent):
            value = to_dict(value)
        elif isinstance(value, tuple):
            value = [to_dict(item) for item in value]
        result[field.name] = value
    return result


def from_dict(data: Any, _depth: int = 0) -> DpEvent:
    """Reads what `to_dict` wrote. Strict: an unknown type, a missing or an extra field is refused.

    Raises:
      InvalidEventError: names the field and what is allowed.
    """
    if _depth > MAX_DEPTH:
        raise InvalidEventError(f"event is nested more than {MAX_DEPTH} deep")
    if not isinstance(data, Mapping):
        raise InvalidEventError(f"an event must be a JSON object with a 'type'; got {data!r:.80}")
    name = data.get("type")
    cls = EVENT_TYPES.get(name) if isinstance(name, str) else None
    if cls is None:
        raise InvalidEventError(f"event type {name!r:.80} is not known; known: {', '.join(EVENT_TYPES)}")
    expected = {field.name for field in dataclasses.fields(cls)}
    given = set(data) - {"type"}
    if given != expected:
        raise InvalidEventError(f"{name} must have the fields {sorted(expected)}; got {sorted(map(str, given))}")
    kwargs = {key: data[key] for key in expected}
    if "event" in kwargs:
        kwargs["event"] = from_dict(kwargs["event"], _depth + 1)
    if "events" in kwargs:
        if not isinstance(kwargs["events"], list):
            raise InvalidEventError(f"{name}.events must be a list; got {kwargs['events']!r:.80}")
        kwargs["events"] = tuple(from_dict(item, _depth + 1) for item in kwargs["events"])
    return cls(**kwargs)


def non_negative(value: Any, name: str) -> float:
    """`value` as a finite float ≥ 0, or an `InvalidEventError` that names it."""
    number = _real(value)
    if number is None or not (math.isfinite(number) and number >= 0):
        raise InvalidEventError(f"{name} must be a finite number ≥ 0; got {value!r}")
    return number


def probability(value: Any, name: str) -> float:
    """`value` as a float in [0, 1], or an `InvalidEventError` that names it."""
    number = _real(value)
    if number is None or not 0 <= number <= 1:
        raise InvalidEventError(f"{name} must lie in [0, 1]; got {value!r}")
    return number


def open_unit(value: Any, name: str) -> float:
    """`value` as a float strictly between 0 and 1 (a δ, say), or an `InvalidEventError` that names it."""
    number = _real(value)
    if number is None or not 0 < number < 1:
        raise InvalidEventError(f"{name} must lie strictly between 0 and 1; got {value!r}")
    return number


def whole(value: Any, name: str) -> int:
    """`value` as an int in [0, 10^15], or an `InvalidEventError` that names it. A float is refused, even a whole one."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not 0 <= int(value) <= MAX_COUNT:
        raise InvalidEventError(f"{name} must be a whole number from 0 to 10^15; got {value!r:.80}")
    return int(value)


def _real(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return None
