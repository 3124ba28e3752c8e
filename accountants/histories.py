"""Other libraries' records as events and as ledgers' contents, so that breakdowns, statements and pages can be made from them.

(A `dp_accounting` tree needs no translation: `as_event` takes it as it is.)
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from accountants import strict_json
from accountants.chain import Charge, LedgerContents
from accountants.domains import whole
from accountants.errors import InvalidEventError, LedgerError
from accountants.event_json import from_stored, to_json
from accountants.events import (
    ComposedDpEvent,
    DpEvent,
    NeighbouringRelation,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
    as_event,
    as_relation,
    dpsgd_event,
)


def from_opacus_history(history: Iterable[Any]) -> DpEvent:
    """What an Opacus accountant has recorded: `privacy_engine.accountant.history`, a list of (σ, q, steps).

    Opacus assumes Poisson sampling (`poisson_sampling=True`, its default) and adding or removing one example. With another
    sampler the history says something else than what happened, and so would the result.

    Raises:
      InvalidEventError: not such a list, or an empty one: where nothing was released say so, with `NoOpDpEvent()`.
    """
    if isinstance(history, str | bytes | Mapping) or not isinstance(history, Iterable):
        raise InvalidEventError(f"an Opacus history is a list of (noise_multiplier, sample_rate, steps); got {history!r:.80}")
    events: list[DpEvent] = []
    for entry in history:
        try:
            sigma, rate, steps = entry
        except (TypeError, ValueError):
            raise InvalidEventError(
                f"an Opacus history holds (noise_multiplier, sample_rate, steps); got {entry!r:.80}"
            ) from None
        events.append(dpsgd_event(sigma, rate, whole(steps, "steps")))
    if not events:
        raise InvalidEventError("an Opacus history without a step: nothing was recorded, and no cost follows from that")
    return events[0] if len(events) == 1 and isinstance(events[0], SelfComposedDpEvent) else ComposedDpEvent(tuple(events))


def contents_of(
    event: Any,
    *,
    neighbouring_relation: str | NeighbouringRelation = NeighbouringRelation.ADD_OR_REMOVE_ONE,
    unit: str = "example",
) -> LedgerContents:
    """What a ledger of `event` would hold: one charge for each event that it is composed of, named by its kind.

    There is no chain: in place of a head stands the SHA-256 of the event as JSON.

    Args:
      event: any event tree, ours or a `dp_accounting` one; an Opacus history through `from_opacus_history`.
      neighbouring_relation: under which it is meant.
      unit: of privacy.

    Raises:
      InvalidEventError: malformed.
    """
    event = as_event(event)
    charges = tuple(Charge(f"history/{_kind(part)}", part, count) for part, count in _parts(event, 1) if count)
    digest = hashlib.sha256(to_json(event).encode()).hexdigest()
    return LedgerContents(as_relation(neighbouring_relation), unit, {"record": "history"}, charges, (digest,))


def read_history(path: Path) -> LedgerContents:
    """Reads a history from a JSON file: a list of (σ, q, steps), Opacus' `accountant.state_dict()`, or what `to_json` wrote.

    Raises:
      LedgerError: none of these, or unreadable.
      InvalidEventError: it holds what is no event.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise LedgerError(f"can't read {path}: {error.strerror or error}") from error
    try:
        data = strict_json.loads(raw)
    except ValueError as error:
        raise LedgerError(f"{path} is not JSON: {error}") from None
    if isinstance(data, Mapping) and isinstance(data.get("history"), list):
        data = data["history"]
    if isinstance(data, list):
        return contents_of(from_opacus_history(data))
    if isinstance(data, Mapping) and set(data) == {"schema", "event"}:
        return contents_of(from_stored(data))
    raise LedgerError(
        f"{path} is neither an Opacus history, a list of [noise_multiplier, sample_rate, steps], nor an event that "
        "accountants.to_json wrote. `report` takes ledger.jsonl or a run's folder too; `verify` takes privacy.json"
    )


def _parts(event: DpEvent, count: int) -> Iterator[tuple[DpEvent, int]]:
    if isinstance(event, ComposedDpEvent):
        for part in event.events:
            yield from _parts(part, count)
    elif isinstance(event, SelfComposedDpEvent):
        yield from _parts(event.event, count * event.count)
    else:
        yield event, count


def _kind(event: DpEvent) -> str:
    """Such as poisson_sampled_gaussian."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(event).__name__.removesuffix("DpEvent")).lower()
    inner = f"_{_kind(event.event)}" if isinstance(event, PoissonSampledDpEvent) else ""
    return name + inner
