"""Events as JSON, and back: strict, so that a file says exactly what was accounted or is refused."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from accountants import strict_json
from accountants.errors import InvalidEventError
from accountants.events import EVENT_TYPES, MAX_DEPTH, DpEvent, as_event

SCHEMA = 1
"""Version of what `to_json` writes."""


def to_json(event: Any) -> str:
    """One line of JSON with a schema version; `from_json` reads it back to an equal event.

    Raises:
      InvalidEventError: not an event, ours or a `dp_accounting` one.
    """
    return json.dumps({"schema": SCHEMA, "event": to_dict(event)}, sort_keys=True, allow_nan=False)


def from_json(text: str | bytes) -> DpEvent:
    """Reads what `to_json` wrote.

    Raises:
      InvalidEventError: not JSON, of another schema, or not an event; names the field and what is allowed.
    """
    try:
        data = strict_json.loads(text)
    except ValueError as error:
        raise InvalidEventError(f"not JSON ({error}): {text!r:.80}") from None
    return from_stored(data)


def from_stored(data: Any) -> DpEvent:
    """The same of what was parsed.

    Raises:
      InvalidEventError: of another schema, or not an event.
    """
    if not isinstance(data, Mapping) or set(data) != {"schema", "event"}:
        raise InvalidEventError("a stored event must be a JSON object with the fields ['event', 'schema']")
    if data["schema"] != SCHEMA or isinstance(data["schema"], bool):
        raise InvalidEventError(
            f"schema {data['schema']!r:.40} is not the one this version reads ({SCHEMA}); upgrade accountants"
        )
    return from_dict(data["event"])


def to_dict(event: Any) -> dict[str, Any]:
    """A JSON-ready description of `event`; `from_dict` reads it back to an equal event. Errors as `to_json`."""
    event = as_event(event)
    result: dict[str, Any] = {"type": type(event).__name__}
    for field in dataclasses.fields(event):
        value = getattr(event, field.name)
        if isinstance(value, DpEvent):
            value = to_dict(value)
        elif isinstance(value, tuple):
            value = [to_dict(item) if isinstance(item, DpEvent) else item for item in value]
        elif value == math.inf:
            value = "inf"
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
