"""JSON that can be read in one way alone: no key twice, no NaN, no infinity."""

import json
from typing import Any


class AmbiguousError(ValueError):
    """JSON, but not for everyone the same: a key is there twice, or a number is none."""


def loads(text: str | bytes) -> Any:
    """`json.loads`, strictly.

    Raises:
      AmbiguousError: a key is there twice, or a number is not finite.
      ValueError: not JSON, or nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=no_constant)
    except (RecursionError, TypeError) as error:
        raise ValueError(str(error)) from None


def no_constant(name: str) -> Any:
    """For `json.loads(…, parse_constant=…)`: refuses NaN and infinities."""
    raise AmbiguousError(f"{name} is no number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise AmbiguousError("a key is there twice")
    return result
