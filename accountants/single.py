"""ε and δ where a single pair is all there is, from its own formula."""

import math
from collections.abc import Callable

import numpy as np

from accountants.interval import Interval
from accountants.pairs import Pair


def curve(pair: Pair, epsilon: float) -> Interval:
    """δ(ε) of a single pair, from its own formula."""
    cells = pair.cells(np.array([[epsilon]]))
    value, error = float(cells.excess[0, 1]), float(cells.error[0, 1])
    return Interval(max(value - error, 0.0), value + error)


def solve(pair: Pair, delta: float) -> Interval:
    """ε(δ) of a single pair, by solving its own formula."""
    if curve(pair, 0.0).upper <= delta:
        return Interval(0.0, 0.0)
    top = max(float(pair.quantiles(np.array([[0.5]]), np.array([[max(delta, 1e-300)]]))[1][0, 0]), 0.0)
    root = _zero(lambda e: math.log(max(curve(pair, e).upper, 1e-320) / delta), 0.0, top)
    # A root is where a computed function changes its sign: step aside until both sides are certain.
    margin = 1e-15
    while margin < 1:
        low, high = root * (1 - margin), root * (1 + margin)
        if curve(pair, low).lower >= delta >= curve(pair, high).upper:
            return Interval(low, high)
        margin *= 4
    return Interval(0.0, top)  # where P[L > ε] ≤ δ by itself


def _zero(f: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function changes its sign, by the Illinois method; `high` if it does not."""
    at_low, at_high = f(low), f(high)
    if at_high > 0:
        return high
    for _ in range(200):
        if high - low <= 1e-15 * high:
            break
        middle = low + (high - low) * (at_low / (at_low - at_high) if at_low > at_high else 0.5)
        if not low < middle < high:
            middle = 0.5 * (low + high)
        value = f(middle)
        if value > 0:
            low, at_low, at_high = middle, value, at_high / 2
        else:
            high, at_high, at_low = middle, value, at_low / 2
    return high
