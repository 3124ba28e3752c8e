"""Finding the parameter that meets a target. The accountant that calibrates is the one that reports."""

import math
from collections.abc import Callable
from typing import Any

from accountants.accountant import Accountant, make_accountant
from accountants.domains import open_unit, positive, whole
from accountants.errors import CalibrationError, InvalidEventError
from accountants.events import NeighbouringRelation, SelfComposedDpEvent, dpsgd_event
from accountants.profile import profile

NOISE_RANGE = (1e-3, 1e7)
"""Noise multipliers that calibration will consider."""

MAX_STEPS = 10**9
"""Largest number of steps that calibration will consider."""

_CLOSE = 5e-4  # the cost that is found lies in [(1 − this) · target, target]
_TRIES = 60
_LEAST_FPR = 1e-30


def calibrate(
    make_event: Callable[[float], Any],
    *,
    epsilon: float | None = None,
    delta: float | None = None,
    advantage: float | None = None,
    tpr: float | None = None,
    fpr: float | None = None,
    bounds: tuple[float, float] = NOISE_RANGE,
    rising: bool = False,
    make_accountant: Callable[[], Accountant] = make_accountant,
) -> float:
    """The cheapest parameter whose event costs no more than a target.

    The target is one of: `epsilon` at `delta`; an attacker's `advantage` (TPR − FPR); an attacker's true-positive rate
    `tpr` at the false-positive rate `fpr`.

    Args:
      make_event: parameter → event. The cost must fall as the parameter grows (a noise multiplier, say), or rise if `rising`.
      epsilon, delta: target ε > 0 and its δ in (0, 1).
      advantage: target in (0, 1).
      tpr, fpr: target and where it is meant, 1e-30 ≤ fpr < tpr < 1.
      bounds: (low, high), both > 0: where to look.
      rising: whether more of the parameter costs more (a sampling probability, a common factor of sensitivities).
      make_accountant: a fresh accountant; its neighbouring relation is the one that counts.

    Returns:
      A parameter at which the accountant reports a cost in [0.995 · target, target], or the dearest bound if even that costs
      less than the target.

    Raises:
      CalibrationError: even the cheapest bound costs more than the target; says what it does cost.
      InvalidEventError: an argument lies outside its domain, or not exactly one target is given.
    """
    measure, target, name = _target(epsilon, delta, advantage, tpr, fpr)
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise InvalidEventError(f"bounds must be (low, high); got {bounds!r:.80}")
    low, high = positive(bounds[0], "bounds"), positive(bounds[1], "bounds")
    if low > high:
        raise InvalidEventError(f"bounds must be (low, high), low first; got {bounds!r:.80}")
    cheap, dear = (low, high) if rising else (high, low)

    def cost(parameter: float) -> float:
        return measure(make_accountant().compose(make_event(parameter)))

    least = cost(cheap)
    if least > target:
        if cost(dear) <= target:
            way = "falls" if rising else "rises"
            raise InvalidEventError(f"the cost {way} as the parameter grows: calibrate with rising={not rising}")
        raise CalibrationError(
            f"{name} = {target:g} can't be reached: even {cheap:g} gives {least:.4g}. Raise the target, or lower the sampling "
            "probability or the number of steps."
        )
    # From 1, so that the usual answer, between 0.1 and 30, needs no evaluation of extreme parameters.
    start = math.log(min(max(1.0, low), high))
    found = _search(lambda x: cost(math.exp(x)), target, math.log(cheap), math.log(dear), start)
    return dear if found is None else math.exp(found)


def calibrate_noise_multiplier(
    *,
    epsilon: float,
    delta: float,
    sampling_probability: float,
    steps: int,
    neighbouring_relation: str | NeighbouringRelation = NeighbouringRelation.ADD_OR_REMOVE_ONE,
    accountant: str = "auto",
) -> float:
    """The noise multiplier with which `steps` Poisson-sampled Gaussian releases cost `epsilon`.

    Args:
      epsilon: target, > 0.
      delta: in (0, 1).
      sampling_probability: in (0, 1].
      steps: ≥ 1.
      neighbouring_relation: see `NeighbouringRelation`.
      accountant: "auto", "pld" or "rdp".

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
        make_accountant=lambda: make_accountant(accountant, neighbouring_relation=neighbouring_relation),
    )


def calibrate_sampling_probability(
    *,
    epsilon: float,
    delta: float,
    noise_multiplier: float,
    steps: int,
    neighbouring_relation: str | NeighbouringRelation = NeighbouringRelation.ADD_OR_REMOVE_ONE,
    accountant: str = "auto",
) -> float:
    """The largest sampling probability, 1 at most, with which `steps` Poisson-sampled Gaussian releases cost `epsilon`.

    Arguments and errors as `calibrate_noise_multiplier`.
    """
    return calibrate(
        lambda q: dpsgd_event(noise_multiplier, q, steps),
        epsilon=epsilon,
        delta=delta,
        bounds=(1e-12, 1.0),
        rising=True,
        make_accountant=lambda: make_accountant(accountant, neighbouring_relation=neighbouring_relation),
    )


def calibrate_steps(
    event: Any,
    *,
    epsilon: float,
    delta: float,
    neighbouring_relation: str | NeighbouringRelation = NeighbouringRelation.ADD_OR_REMOVE_ONE,
    accountant: str = "auto",
) -> int:
    """How many runs of `event` cost at most `epsilon`; up to 10^9. Zero if one already costs more.

    Near the limit one run moves ε by less than an accountant resolves: the count may be a fraction of a per cent short,
    never over.
    """
    measure, target, _ = _target(epsilon, delta, None, None, None)

    def cost(count: float) -> float:
        run = SelfComposedDpEvent(event, int(count))
        return measure(make_accountant(accountant, neighbouring_relation=neighbouring_relation).compose(run))

    if cost(1) > target:
        return 0
    found = _search(lambda x: cost(math.floor(math.exp(x))), target, 0.0, math.log(MAX_STEPS), math.log(64))
    if found is None:
        return MAX_STEPS
    best = math.floor(math.exp(found))
    # The last few by one, where counts are few.
    while best < 2000 and cost(best + 1) <= target:
        best += 1
    return best


def largest_count(fits: Callable[[int], bool], at_most: int) -> int:
    """The largest n in [0, at_most] with `fits(n)`, where `fits` holds up to some n and not beyond; `fits(0)` is assumed."""
    if at_most == 0 or fits(at_most):
        return at_most
    low, high = 0, at_most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _target(
    epsilon: float | None, delta: float | None, advantage: float | None, tpr: float | None, fpr: float | None
) -> tuple[Callable[[Accountant], float], float, str]:
    """How to measure the cost, the target, and its name."""
    if sum(value is not None for value in (epsilon, advantage, tpr)) != 1:
        raise InvalidEventError("give exactly one target: epsilon (with delta), advantage, or tpr (with fpr)")
    if epsilon is not None:
        at = open_unit(delta, "delta")
        return lambda accountant: accountant.get_epsilon(at), positive(epsilon, "epsilon"), f"at delta = {at:g}, epsilon"
    if advantage is not None:
        return lambda accountant: accountant.get_delta(0.0), open_unit(advantage, "advantage"), "advantage"
    at, wanted = open_unit(fpr, "fpr"), open_unit(tpr, "tpr")
    if wanted <= at:
        raise InvalidEventError(f"tpr must exceed fpr: guessing alone reaches it; got tpr = {wanted!r}, fpr = {at!r}")
    if at < _LEAST_FPR:
        raise InvalidEventError(f"fpr must be at least {_LEAST_FPR:g}; got {at!r}")
    return lambda accountant: profile(accountant).max_tpr(at), wanted, f"at FPR = {at:g}, TPR"


def _search(cost: Callable[[float], float], target: float, cheap: float, dear: float, start: float) -> float | None:
    """The x nearest to `dear` with cost(x) in [(1 − _CLOSE) · target, target], or None if even cost(dear) does not exceed it.

    `cost` falls from `dear` to `cheap`. First a bracket around `start`, by doubling its distance; then false position
    between the logarithms of costs, halving the weight of an end that stays (the Illinois method).
    """

    def gap(value: float) -> float:
        return math.log(value / target) if 0 < value < math.inf else (-10.0 if value == 0 else 10.0)

    side = 1.0 if dear > cheap else -1.0
    x, value = start, cost(start)
    stride = math.log(2)
    good, bad = (x, None) if value <= target else (None, x)
    good_gap, bad_gap = gap(value), gap(value)
    while good is None or bad is None:
        if good is None:
            x = x - side * stride if (x - side * stride - cheap) * side > 0 else cheap
        else:
            if x == dear:
                return None
            x = x + side * stride if (dear - x - side * stride) * side > 0 else dear
        value = cost(x)
        if value <= target or x == cheap:
            good, good_gap = x, gap(value)
        else:
            bad, bad_gap = x, gap(value)
        stride *= 2
    kept = 0
    weight_good, weight_bad = good_gap, bad_gap
    for _ in range(_TRIES):
        if good_gap >= math.log1p(-_CLOSE) or abs(bad - good) < 1e-13 * max(abs(bad), 1.0):
            break
        aim = 0.3 * math.log1p(-_CLOSE)  # a little below the target, so that the answer falls on its good side
        share = (aim - weight_good) / (weight_bad - weight_good) if weight_bad > weight_good else 0.5
        x = good + min(max(share, 0.02), 0.98) * (bad - good)
        value = cost(x)
        if value <= target:
            good, good_gap, weight_good = x, gap(value), gap(value)
            weight_bad = weight_bad / 2 if kept == 1 else weight_bad
            kept = 1
        else:
            bad, weight_bad = x, gap(value)
            weight_good = weight_good / 2 if kept == -1 else weight_good
            kept = -1
    return good
