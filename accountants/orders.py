"""Which Rényi orders to look at."""

from collections.abc import Sequence

import numpy as np

from accountants.errors import InvalidEventError


def _default_orders() -> tuple[float, ...]:
    near_one = 1 + np.concatenate([np.geomspace(0.005, 0.1, 12)[:-1], np.arange(10, 100, 4) / 100])
    fractional = np.arange(20, 110) / 10
    integer = np.arange(11, 65)
    large = np.unique(np.round(np.geomspace(65, 16384, 72)))
    return tuple(np.concatenate([near_one, fractional, integer, large]).tolist())


MAX_ORDER = 10**6
"""Work and memory grow with the order."""

DEFAULT_ORDERS = _default_orders()
"""Fine where DP-SGD has its optimum, and up to 16384 for very small ε."""


def check_orders(orders: Sequence[float]) -> tuple[float, ...]:
    """Returns `orders` as a tuple of floats.

    Raises:
      InvalidEventError: there is none, or one is not a finite number > 1.
    """
    try:
        result = tuple(float(order) for order in orders)
    except (TypeError, ValueError, OverflowError):
        raise InvalidEventError(f"orders must be a list of numbers > 1; got {orders!r:.80}") from None
    if not result or not all(1 < order <= MAX_ORDER for order in result):
        raise InvalidEventError(f"orders must be numbers in (1, {MAX_ORDER:,}], at least one; got {orders!r:.80}")
    return result
