"""Other libraries' records as events. (A `dp_accounting` tree needs no translation: `as_event` takes it as it is.)"""

from collections.abc import Iterable
from typing import Any

from accountants.domains import whole
from accountants.errors import InvalidEventError
from accountants.events import ComposedDpEvent, DpEvent, SelfComposedDpEvent, dpsgd_event


def from_opacus_history(history: Iterable[Any]) -> DpEvent:
    """What an Opacus accountant has recorded: `privacy_engine.accountant.history`, a list of (σ, q, steps).

    Opacus assumes Poisson sampling (`poisson_sampling=True`, its default) and adding or removing one example. With another
    sampler the history says something else than what happened, and so would the result.

    Raises:
      InvalidEventError: not such a list.
    """
    events: list[DpEvent] = []
    for entry in history:
        try:
            sigma, rate, steps = entry
        except (TypeError, ValueError):
            raise InvalidEventError(
                f"an Opacus history holds (noise_multiplier, sample_rate, steps); got {entry!r:.80}"
            ) from None
        events.append(dpsgd_event(sigma, rate, whole(steps, "steps")))
    return events[0] if len(events) == 1 and isinstance(events[0], SelfComposedDpEvent) else ComposedDpEvent(tuple(events))
