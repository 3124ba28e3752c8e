"""The plan of a DP-SGD run: one immutable object from which sampling, noise and accounting all follow."""

import dataclasses
import math

from accountants import calibration
from accountants.accountant import EpsilonBound, make_accountant
from accountants.accountant import epsilon as accounted_epsilon
from accountants.errors import AccountingError
from accountants.events import (
    ComposedDpEvent,
    DpEvent,
    GaussianDpEvent,
    NeighbouringRelation,
    NonPrivateDpEvent,
    SelfComposedDpEvent,
    as_relation,
)
from marauder_dp import adaptive
from marauder_dp.clipping import MIN_CLIP_NORM
from marauder_dp.errors import PlanError
from marauder_dp.sampling import PoissonSampler

GRADIENTS = "train/gradients"
"""Component path of the noisy gradient sums."""

GRADIENTS_AND_CLIP_NORM = "train/{gradients,clip_norm}"
"""Component paths of gradient sums and of the clip norm's adaptation, which come from one sample and are one event."""

CLIPPINGS = ("flat", "per_layer", "auto_s", "auto_v", "adaptive")
"""Ways to clip, by name; `DpSgdPlan.clipping` says what they do."""


@dataclasses.dataclass(frozen=True)
class DpSgdPlan:
    """What one run of DP-SGD (Abadi et al. 2016, Algorithm 1) does. All of it is public.

    Attributes:
      num_examples: length of the training data, declared public.
      batch_size: expected number of examples a step; the sum of clipped gradients is divided by it, never by the
        number that was drawn.
      steps: number of updates, each one release.
      clip_norm: C; where it adapts, the first one.
      noise_multiplier: standard deviation of the noise on the sum, over C. Zero makes the run non-private.
      delta: at which ε is stated.
      neighbouring_relation: under which ε is stated.
      clipping: "flat": an example contributes a gradient of norm at most C. "per_layer": at most C/√L to each of L layers.
        "auto_s", "auto_v": of norm C, whatever it was (see `clipping`). "adaptive": as flat, and C follows the median of the
        norms by a release of its own (see `adaptive`).
      unit: of privacy, in words; where it is not one example, num_examples and batch_size count units.
    """

    num_examples: int
    batch_size: int
    steps: int
    clip_norm: float
    noise_multiplier: float
    delta: float
    neighbouring_relation: NeighbouringRelation = NeighbouringRelation.ADD_OR_REMOVE_ONE
    clipping: str = "flat"
    unit: str = "example"

    def __post_init__(self) -> None:
        object.__setattr__(self, "neighbouring_relation", as_relation(self.neighbouring_relation))
        for name in ("num_examples", "batch_size", "steps"):
            value = getattr(self, name)
            if not isinstance(value, int) or not 1 <= value < 2**31:
                raise PlanError(f"{name} must be a whole number from 1 to 2^31 - 1; got {value!r}")
        if self.batch_size > self.num_examples:
            raise PlanError(
                f"batch_size = {self.batch_size} is larger than the data ({self.num_examples} examples); "
                f"use at most --batch_size={self.num_examples}"
            )
        if not (self.noise_multiplier >= 0 and math.isfinite(self.noise_multiplier)):
            raise PlanError(f"noise_multiplier must be a finite number ≥ 0; got {self.noise_multiplier!r}")
        if not self.clip_norm >= MIN_CLIP_NORM or (self.private and math.isinf(self.clip_norm)):
            raise PlanError(f"clip_norm must be a finite number of at least {MIN_CLIP_NORM:g}; got {self.clip_norm!r}")
        if self.clipping not in CLIPPINGS:
            raise PlanError(f"clipping must be one of {', '.join(CLIPPINGS)}; got {self.clipping!r}")
        check_delta(self.delta)

    @property
    def private(self) -> bool:
        """Whether noise is added at all."""
        return self.noise_multiplier > 0

    @property
    def sampler(self) -> PoissonSampler:
        """Who takes part in each step."""
        return PoissonSampler(self.num_examples, self.batch_size / self.num_examples)

    @property
    def noise_stddev(self) -> float:
        """Of the noise on the sum of clipped gradients; where C adapts, over C."""
        if not self.private:
            return 0.0
        return self.noise_multiplier * (1.0 if self.adaptive else self.clip_norm)

    @property
    def adaptive(self) -> bool:
        """Whether the clip norm changes."""
        return self.private and self.clipping == "adaptive"

    @property
    def path(self) -> str:
        """Of the components that a step is charged to."""
        return GRADIENTS_AND_CLIP_NORM if self.adaptive else GRADIENTS

    @property
    def event(self) -> DpEvent:
        """What one step releases, as the sampler that runs it describes it."""
        if not self.private:
            return NonPrivateDpEvent()
        gradients = GaussianDpEvent(self.noise_multiplier)
        if not self.adaptive:
            return self.sampler.event(gradients)
        count = GaussianDpEvent(adaptive.noise_multiplier(self.batch_size))
        return self.sampler.event(ComposedDpEvent((gradients, count)))

    def epsilon(self, steps: int | None = None) -> float:
        """Upper bound of ε after `steps` (default: all) steps, infinite if not private."""
        return self.epsilon_bound(steps).epsilon

    def epsilon_bound(self, steps: int | None = None) -> EpsilonBound:
        """ε after `steps` (default: all) steps from both sides, and the accountant that says so."""
        run = SelfComposedDpEvent(self.event, self.steps if steps is None else steps)
        return accounted_epsilon(run, self.delta, neighbouring_relation=self.neighbouring_relation)

    def rdp_noise_multiplier(self) -> float:
        """The noise that the Rényi accountant would ask for to certify the same ε: what the numerical one saves."""
        return calibration.calibrate(
            lambda value: SelfComposedDpEvent(dataclasses.replace(self, noise_multiplier=value).event, self.steps),
            epsilon=self.epsilon(),
            delta=self.delta,
            make_accountant=lambda: make_accountant("rdp", neighbouring_relation=self.neighbouring_relation),
        )


def plan_dpsgd(
    *,
    num_examples: int,
    batch_size: int,
    steps: int,
    clip_norm: float,
    epsilon: float | None = None,
    noise_multiplier: float | None = None,
    delta: float | None = None,
    neighbouring_relation: str | NeighbouringRelation = NeighbouringRelation.ADD_OR_REMOVE_ONE,
    clipping: str = "flat",
    unit: str = "example",
) -> DpSgdPlan:
    """Plans a run from either a target ε, for which the noise is calibrated, or a noise multiplier; never from both.

    Args:
      num_examples, batch_size, steps, clip_norm: see `DpSgdPlan`.
      epsilon: target, > 0; the planned ε lies in [0.995 · target, target].
      noise_multiplier: > 0.
      delta: default `default_delta(num_examples)`.
      neighbouring_relation: add_or_remove_one, zero_out or replace_one.
      clipping, unit: see `DpSgdPlan`.

    Raises:
      PlanError: an argument is out of its domain, or no noise meets the target.
    """
    if (epsilon is None) == (noise_multiplier is None):
        raise PlanError("give exactly one of epsilon (the noise is calibrated to it) and noise_multiplier")
    plan = DpSgdPlan(
        num_examples=num_examples,
        batch_size=batch_size,
        steps=steps,
        clip_norm=clip_norm,
        noise_multiplier=1.0 if noise_multiplier is None else noise_multiplier,
        delta=default_delta(num_examples) if delta is None else delta,
        neighbouring_relation=as_relation(neighbouring_relation),
        clipping=clipping,
        unit=unit,
    )
    if not plan.private:
        raise PlanError(
            f"noise_multiplier must be greater than 0; got {noise_multiplier!r} (--private=false trains without noise)"
        )
    try:
        if epsilon is not None:
            sigma = calibration.calibrate(
                lambda value: SelfComposedDpEvent(dataclasses.replace(plan, noise_multiplier=value).event, steps),
                epsilon=epsilon,
                delta=plan.delta,
                make_accountant=lambda: make_accountant(neighbouring_relation=plan.neighbouring_relation),
            )
            plan = dataclasses.replace(plan, noise_multiplier=sigma)
        plan.epsilon()
    except AccountingError as error:
        raise PlanError(f"{error}") from error
    return plan


def non_private_plan(
    *, num_examples: int, batch_size: int, steps: int, delta: float | None = None, unit: str = "example"
) -> DpSgdPlan:
    """The same sampling and steps with neither clipping nor noise: the baseline, with ε = ∞."""
    return DpSgdPlan(
        num_examples=num_examples,
        batch_size=batch_size,
        steps=steps,
        clip_norm=math.inf,
        noise_multiplier=0.0,
        delta=default_delta(num_examples) if delta is None else delta,
        unit=unit,
    )


def default_delta(num_examples: int) -> float:
    """The largest power of ten ≤ 1/(10 n)."""
    if num_examples < 1:
        raise PlanError(f"num_examples must be at least 1; got {num_examples}")
    exponent = -1
    while 10 * num_examples > 10**-exponent:
        exponent -= 1
    return float(f"1e{exponent}")


def check_delta(delta: float) -> float:
    """Returns δ if it lies in (0, 1).

    Raises:
      PlanError: it does not.
    """
    if not (isinstance(delta, float) and 0 < delta < 1):
        raise PlanError(f"delta must lie strictly between 0 and 1; got {delta!r}")
    return delta
