"""Which values arguments may have. Each function returns the value or raises an `InvalidEventError` that names it."""

import math
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accountants.errors import InvalidEventError

MAX_COUNT = 10**15
"""Largest number of repetitions; a product with it is still exact in float64."""


def non_negative(value: Any, name: str) -> float:
    """`value` as a finite float ≥ 0."""
    number = _real(value)
    if number is None or not (math.isfinite(number) and number >= 0):
        raise InvalidEventError(f"{name} must be a finite number ≥ 0; got {value!r:.80}")
    return number


def positive(value: Any, name: str) -> float:
    """`value` as a finite float > 0."""
    number = _real(value)
    if number is None or not (math.isfinite(number) and number > 0):
        raise InvalidEventError(f"{name} must be a finite number greater than 0; got {value!r:.80}")
    return number


def probability(value: Any, name: str) -> float:
    """`value` as a float in [0, 1]."""
    number = _real(value)
    if number is None or not 0 <= number <= 1:
        raise InvalidEventError(f"{name} must lie in [0, 1]; got {value!r:.80}")
    return number


def open_unit(value: Any, name: str) -> float:
    """`value` as a float strictly between 0 and 1 (a δ, say)."""
    number = _real(value)
    if number is None or not 0 < number < 1:
        raise InvalidEventError(f"{name} must lie strictly between 0 and 1; got {value!r:.80}")
    return number


def whole(value: Any, name: str, *, at_least: int = 0, at_most: int = MAX_COUNT) -> int:
    """`value` as an int between both ends, included. A float is refused, even a whole one."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not at_least <= int(value) <= at_most:
        limit = "10^15" if at_most == MAX_COUNT else f"{at_most:,}"
        raise InvalidEventError(f"{name} must be a whole number from {at_least} to {limit}; got {value!r:.80}")
    return int(value)


def floats(values: Any, name: str) -> tuple[float, ...]:
    """`values` as a tuple of finite floats ≥ 0, at least one."""
    if isinstance(values, str | bytes | Mapping):
        raise InvalidEventError(f"{name} must be a list of numbers; got {values!r:.80}")
    try:
        result = tuple(non_negative(value, f"each of {name}") for value in values)
    except TypeError:
        raise InvalidEventError(f"{name} must be a list of numbers; got {values!r:.80}") from None
    if not result:
        raise InvalidEventError(f"{name} must hold at least one number")
    return result


def array(values: Any, name: str) -> NDArray[np.float64]:
    """`values`, a number or numbers in any shape, as float64."""
    try:
        found = np.asarray(values)
        if found.dtype.kind in "iuf" or (found.dtype == object and all(_real(v) is not None for v in found.flat)):
            return found.astype(np.float64)
    except (OverflowError, ValueError):
        pass
    raise InvalidEventError(f"{name} must be a number or an array of numbers; got {values!r:.80}")


def flag(value: Any, name: str) -> bool:
    """`value`, if it is True or False."""
    if not isinstance(value, bool):
        raise InvalidEventError(f"{name} must be true or false; got {value!r:.80}")
    return value


def one_of(value: Any, name: str, allowed: tuple[str, ...]) -> str:
    """`value`, if it is one of the words `allowed`."""
    if value not in allowed:
        raise InvalidEventError(f"{name} must be one of {', '.join(allowed)}; got {value!r:.80}")
    return str(value)


def _real(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return None
