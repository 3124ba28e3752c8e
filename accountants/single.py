"""ε and δ where a single pair is all there is, from its own formula."""

import math

import numpy as np

from accountants.interval import Interval
from accountants.pairs import Pair
from accountants.roots import falling_zero


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
    root = falling_zero(lambda e: math.log(max(curve(pair, e).upper, 1e-320) / delta), 0.0, top, rtol=1e-15)
    # A root is where a computed function changes its sign: step aside until both sides are certain.
    margin = 1e-15
    while margin < 1:
        low, high = root * (1 - margin), root * (1 + margin)
        if curve(pair, low).lower >= delta >= curve(pair, high).upper:
            return Interval(low, high)
        margin *= 4
    return Interval(0.0, top)  # where P[L > ε] ≤ δ by itself
