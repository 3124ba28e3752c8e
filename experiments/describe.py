"""The plan of a run, for people."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.presets import preset
from experiments.settings import Settings

if TYPE_CHECKING:
    from marauder_dp.cuts.explain import Row
    from marauder_dp.plan import DpSgdPlan
    from marauder_dp.session import Job


def plan_text(settings: Settings, job: "Job") -> str:
    """The plan, for people."""
    import jax

    from accountants.report import upper

    plan = job.sgd.plan
    n, memory, seconds = plan.num_examples, job.program.memory_bytes, job.program.update_seconds
    size = sum(leaf.size for leaf in jax.tree.leaves(job.initial.params))
    rows = [
        ("data", f"{settings.dataset}, {job.dataset.num_examples:,} training examples, {len(job.dataset.test_y):,} held out"),
        ("model", f"{settings.model}, {size:,} parameters, on {jax.default_backend()}"),
        (
            "optimizer",
            f"{settings.optimizer}({settings.optimizer_args}), learning rate {settings.learning_rate:g}, "
            f"{settings.learning_rate_schedule}",
        ),
        ("sampling", f"Poisson, q = {plan.batch_size / n:.6g} (expected batch {plan.batch_size:,}), {plan.steps:,} updates"),
    ]
    if settings.unit is not None:
        rows.insert(1, ("unit", f"{plan.unit}, {n:,} of them; the batch counts them"))
    if settings.augmentations:
        rows.append(("augmented", f"{settings.augmentations} copies of an image, averaged before clipping"))
    if plan.private:
        rule = "given" if settings.delta is not None else "the largest power of ten up to 1/(10 n)"
        rule += " or the policy's" if settings.policy is not None else ""
        basis = "given" if settings.epsilon is None else "calibrated to the target"
        rows += [
            ("clipping", _CLIPPING[plan.clipping].format(f"{plan.clip_norm:g}")),
            ("noise", f"σ = {plan.noise_multiplier:.6g}, {basis}"),
            ("guarantee", f"ε ≤ {upper(plan.epsilon())} at δ = {plan.delta:g} ({rule}; n = {n:,} declared public)"),
            ("accounting", _accounting(plan)),
        ]
    else:
        rows.append(("guarantee", "NONE: --private=false trains without clipping and noise"))
    if job.permit is not None:
        rows.append(("budget", job.permit.outlook()))
    if settings.epsilon_ceiling is not None:
        rows.append(("ceiling", f"stops before the update that would bring ε above {settings.epsilon_ceiling:g}"))
    size_text = "unknown" if memory is None else f"{memory / 2**20:,.0f} MiB by XLA's count, data included"
    rows += [
        ("memory", f"{size_text}, {job.sgd.micro_batch:,} examples at a time"),
        (
            "time",
            f"compiled in {job.program.compile_seconds:.1f} s; training takes {_duration(seconds * plan.steps)} "
            f"({1e3 * seconds:.2f} ms an update)",
        ),
    ]
    if plan.private:
        rows += [("gradients" if i == 0 else "", line) for i, line in enumerate(_routes(job))]
    if settings == _preset_settings(settings):
        rows.append(("expect", preset(settings.dataset).expected))
    return "\n".join(f"  {name:<12}{text}" for name, text in rows)


_CLIPPING = {
    "flat": "each gradient to a norm of at most {}",
    "per_layer": "each layer's gradient, to norms of at most {} together",
    "auto_s": "automatic (AUTO-S): each gradient to a norm of nearly {}",
    "auto_v": "automatic (AUTO-V): each gradient to a norm of {}",
    "adaptive": "each gradient to a norm that starts at {} and follows their median (charged as train/clip_norm)",
}


def _routes(job: "Job") -> list[str]:
    """How per-example gradients are clipped, a line for each way it is done."""
    rows = job.sgd.explain(job.initial.params, job.data).rows
    ways: dict[str, list[Row]] = {}
    for row in rows:
        ways.setdefault(row.route, []).append(row)
    lines = []
    for route, some in ways.items():
        names = [name for row in some for name in row.parameters]
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        held = sum(row.bytes for row in some) / 2**20
        lines.append(f"{_ROUTES[route]}: {shown}" + (f" ({held:,.1f} MiB)" if held >= 0.05 else ""))
    return lines


_ROUTES = {
    "factors": "never written out, norms from two factors",
    "gram": "never written out, norms from inner products",
    "direct": "written out one layer at a time",
    "kept": "written out and kept for the sum",
    "rows": "never written out, norms from rows of the table",
    "written out": "written out for each example",
    "none": "no data reaches",
}


def _accounting(plan: "DpSgdPlan") -> str:
    from accountants.errors import AccountingError
    from accountants.report import lower

    bound = plan.epsilon_bound()
    exact = f", certified (exact ε ≥ {lower(bound.lower)})" if bound.lower else ", an upper bound"
    text = f"{bound.accountant} accountant{exact}; {plan.neighbouring_relation}; unit: one {plan.unit}"
    try:
        more = plan.rdp_noise_multiplier() / plan.noise_multiplier - 1
    except AccountingError:  # the Rényi accountant has no bound here
        return text
    return f"{text}; the Rényi accountant would need {more:.1%} more noise" if more > 0.001 else text


def _preset_settings(settings: Settings) -> Settings:
    """These settings with everything a preset knows reset to it."""
    default = preset(settings.dataset)
    known = {field.name for field in dataclasses.fields(default)} & {field.name for field in dataclasses.fields(Settings)}
    values = {name: getattr(default, name) for name in known}
    values |= {"clipping": "flat", "augmentations": 0, "unit": None, "examples_per_unit": None, "cohort": None}
    return dataclasses.replace(settings, **values)


def warnings(settings: Settings, plan: "DpSgdPlan") -> list[str]:
    """What speaks against this plan."""
    result = []
    if plan.delta >= 1 / plan.num_examples:
        result.append(
            f"δ = {plan.delta:g} is not below 1/n = {1 / plan.num_examples:.3g}: publishing a few whole examples would "
            "satisfy such a guarantee. Use a smaller --delta"
        )
    if settings.reproducible_noise:
        result.append("--reproducible_noise voids the guarantee for anyone who knows the seed; never publish this model")
    return result


def write_plan(path: Path, job: "Job") -> None:
    """Writes what the run is going to charge, and at which δ, for programs."""
    from accountants.event_json import to_dict
    from marauder_dp.files import write_atomically

    plan = job.sgd.plan
    charge = {"path": plan.path, "event": to_dict(plan.event), "count": plan.steps}
    terms = {"delta": plan.delta, "unit": plan.unit, "neighbouring_relation": str(plan.neighbouring_relation)}
    write_atomically(path, json.dumps({"charges": [charge], **terms}).encode())


def _duration(seconds: float) -> str:
    if seconds < 1:
        return "less than a second"
    return f"about {seconds:.0f} s" if seconds < 120 else f"about {seconds / 60:.1f} min"
