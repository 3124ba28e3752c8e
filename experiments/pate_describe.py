"""The plan of a PATE run, for people."""

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from experiments.pate_settings import PateSettings, preset

if TYPE_CHECKING:
    from marauder_dp.pate.session import Job


def plan_text(job: "Job") -> str:
    """The plan, for people."""
    import jax
    import numpy as np

    from accountants.report import upper

    voting, public = job.voting, job.public
    settings = PateSettings(**job.settings)
    counts = job.partitions.counts
    sizes = f"{counts.min():,} to {counts.max():,} examples each" if job.counts_public else "sizes private"
    params = jax.eval_shape(job.ensemble.training.init, jax.random.key(0))
    size = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
    check = (
        f"refused unless the largest count with N(0, {voting.sigma_threshold:g}²) reaches {voting.threshold:g}; "
        if voting.checks
        else ""
    )
    noise = (
        f"Laplace noise of scale {voting.sigma_votes:g}"
        if voting.mechanism == "lnmax"
        else f"noise N(0, {voting.sigma_votes:g}²)"
    )
    rows = [
        ("data", f"{job.name}, {len(jax.tree.leaves(job.data)[0]):,} private training examples"),
        ("public", f"{len(public.x):,} examples to ask about and learn from, {len(public.test_x):,} to test on"),
        (
            "teachers",
            f"{voting.teachers:,} of {sizes}; {settings.teacher_model}, {size:,} parameters, {settings.teacher_epochs} epochs",
        ),
        (
            "",
            f"{job.ensemble.chunk} together on {_counted(job.ensemble.mesh.size, 'device')}, in "
            f"{_counted(job.ensemble.waves, 'wave')}; compiled once, in {job.ensemble.compile_seconds:.1f} s",
        ),
        ("voting", f"{voting.mechanism}: {check}{noise} on each count"),
        (
            "queries",
            f"{job.choice.by}, at most {job.choice.limit:,}"
            + (f", {job.choice.round:,} a round" if job.choice.round < job.choice.limit else ""),
        ),
    ]
    rule = "given" if settings.delta is not None else "the largest power of ten up to 1/(10 n)"
    at = f"at δ = {job.delta:g} ({rule}; n = {job.units:,} declared public)"
    rows.append(("guarantee", f"ε ≤ {upper(_certain(job))} {at}, fixed beforehand, whatever is answered"))
    if math.isfinite(job.epsilon_ceiling):
        fits = _fits(job)
        more = ", more if some are refused" if voting.checks and fits < job.choice.limit else ""
        rows.append(("budget", f"ε ≤ {upper(job.epsilon_ceiling)}: for {fits:,} queries if all are answered{more}"))
    rows.append(("student", f"{settings.student_model}, {settings.student_steps:,} updates"))
    if settings == _preset_settings(settings):
        rows.append(("expect", preset(settings.dataset).expected))
    return "\n".join(f"  {name:<12}{text}" for name, text in rows)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("s" if number != 1 else "")


def _fits(job: "Job") -> int:
    from accountants.calibration import calibrate_steps

    return min(job.choice.limit, calibrate_steps(job.voting.query_event, epsilon=job.epsilon_ceiling, delta=job.delta))


def _certain(job: "Job") -> float:
    from accountants.accountant import epsilon
    from accountants.events import SelfComposedDpEvent

    every = epsilon(SelfComposedDpEvent(job.voting.query_event, job.choice.limit), job.delta).epsilon
    return min(every, job.epsilon_ceiling)


def _preset_settings(settings: PateSettings) -> PateSettings:
    """These settings with everything a preset knows reset to it, and nothing else given."""
    default = preset(settings.dataset)
    known = {field.name for field in dataclasses.fields(default)} & {field.name for field in dataclasses.fields(PateSettings)}
    values: dict[str, Any] = {name: getattr(default, name) for name in known}
    values |= dict.fromkeys(("queries", "threshold", "sigma_threshold", "sigma_votes", "given", "round", "unit"))
    return dataclasses.replace(settings, **values, owners=None)
