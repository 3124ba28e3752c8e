"""Where a falling function changes its sign."""

from collections.abc import Callable


def falling_zero(f: Callable[[float], float], low: float, high: float, *, rtol: float = 0.0, atol: float = 0.0) -> float:
    """By the Illinois method: an x with f(x) ≤ 0, at most rtol · |x| + atol above one with f > 0; `high` if f > 0 there."""
    at_low, at_high = f(low), f(high)
    if at_high > 0:
        return high
    side = 0  # which end the last try became
    for _ in range(200):
        tolerance = rtol * abs(high) + atol
        if high - low <= tolerance:
            break
        middle = low + (high - low) * (at_low / (at_low - at_high) if at_high < 0 < at_low else 0.5)
        middle = min(max(middle, low + tolerance / 2), high - tolerance / 2)  # just beyond a root that is known: that ends it
        if not low < middle < high:
            middle = 0.5 * (low + high)
        value = f(middle)
        if value > 0:
            low, at_low, at_high, side = middle, value, at_high / (2 if side < 0 else 1), -1
        else:
            high, at_high, at_low, side = middle, value, at_low / (2 if side > 0 else 1), 1
    return high
