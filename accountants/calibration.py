"""Finding the noise that meets a target ε. The accountant that calibrates is the one that reports."""

from collections.abc import Callable
from typing import Any

from accountants.domains import open_unit, positive, whole
from accountants.errors import CalibrationError, InvalidEventError
from accountants.events import NeighbouringRelation, dpsgd_event
from accountants.rdp import RdpAccountant

NOISE_RANGE = (1e-3, 1e7)
"""Noise multipliers that calibration will consider."""

_TOLERANCE = 1e-4  # reported ε lies in [(1 − tolerance) · target, target]


def calibrate(
    make_event: Callable[[float], Any],
    *,
    epsilon: float,
    delta: float,
    bounds: tuple[float, float] = NOISE_RANGE,
    make_accountant: Callable[[], RdpAccountant] = RdpAccountant,
) -> float:
    """The smallest parameter whose event costs at most `epsilon`, by bisection of its logarithm.

    Args:
      make_event: parameter → event. More of the parameter must never cost more (a noise multiplier, say).
      epsilon: target, > 0 and finite.
      delta: in (0, 1).
      bounds: (low, high), both > 0: where to look.
      make_accountant: a fresh accountant; its neighbouring relation is the one that counts.

    Returns:
      A parameter at which the accountant reports ε in [0.9999 · target, target], or the low bound if that
      already costs less than the target.

    Raises:
      CalibrationError: even the high bound costs more than the target; says what it does cost.
      InvalidEventError: an argument lies outside its domain.
    """
    target, delta = positive(epsilon, "epsilon"), open_unit(delta, "delta")
    low, high = positive(bounds[0], "bounds[0]"), positive(bounds[1], "bounds[1]")

    def cost(parameter: float) -> float:
        return make_accountant().compose(make_event(parameter)).get_epsilon(delta)

    best = cost(high)
    if best > target:
        raise CalibrationError(
            f"epsilon = {target:g} at delta = {delta:g} can't be reached: even {high:g} gives epsilon = {best:.4g}. "
            "Raise epsilon or delta, or lower the sampling probability or the number of steps."
        )
    if cost(low) <= target:
        return low
    # Gallop from 1 so that the usual answer, between 0.3 and 30, needs few evaluations of extreme noise.
    guess = min(max(1.0, low), high)
    if cost(guess) <= target:
        high = guess
        while (guess := max(high / 2, low)) > low and cost(guess) <= target:
            high = guess
        low = guess
    else:
        low = guess
        while (guess := min(low * 2, high)) < high and cost(guess) > target:
            low = guess
        high = guess
    while high / low - 1 > 1e-12 and cost(high) < (1 - _TOLERANCE) * target:
        middle = (low * high) ** 0.5
        if cost(middle) <= target:
            high = middle
        else:
            low = middle
    return high


def calibrate_noise_multiplier(
    *,
    epsilon: float,
    delta: float,
    sampling_probability: float,
    steps: int,
    neighbouring_relation: str | NeighbouringRelation = NeighbouringRelation.ADD_OR_REMOVE_ONE,
) -> float:
    """The noise multiplier with which `steps` Poisson-sampled Gaussian releases cost `epsilon`.

    Args:
      epsilon: target, > 0.
      delta: in (0, 1).
      sampling_probability: in (0, 1].
      steps: ≥ 1.
      neighbouring_relation: see `NeighbouringRelation`.

    Raises:
      CalibrationError, InvalidEventError, UnsupportedEventError: as `calibrate`.
    """
    if whole(steps, "steps") == 0:
        raise InvalidEventError("steps must be at least 1; got 0")
    positive(sampling_probability, "sampling_probability")
    return calibrate(
        lambda sigma: dpsgd_event(sigma, sampling_probability, steps),
        epsilon=epsilon,
        delta=delta,
        make_accountant=lambda: RdpAccountant(neighbouring_relation=neighbouring_relation),
    )


def largest_count(fits: Callable[[int], bool], at_most: int) -> int:
    """The largest n in [0, at_most] with `fits(n)`, where `fits` holds up to some n and not beyond; `fits(0)` is assumed."""
    if at_most == 0 or fits(at_most):
        return at_most
    low, high = 0, at_most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
