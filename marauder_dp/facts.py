"""What the privacy statement of a DP-SGD run says beyond its figures, item by item (see `accountants.statement`)."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from marauder_dp import adaptive
from marauder_dp.datasets import Dataset
from marauder_dp.plan import DpSgdPlan


def dpsgd_facts(
    plan: DpSgdPlan, dataset: Dataset, *, steps: int, model: str, reproducible_noise: bool, test_accuracy: float
) -> dict[str, Any]:
    """JSON-ready facts under the keys of `accountants.statement.ITEMS`. `steps`: updates that were really done."""
    q = plan.batch_size / plan.num_examples
    units = "training examples" if plan.unit == "example" else "units"
    facts: dict[str, Any] = {
        "setting": (
            "Central model: whoever runs the training sees the data and the secrets of the run and is trusted; whoever "
            "receives what is released is not."
        ),
        "released": (
            f"The parameters of one {model} model trained on {dataset.name}, every intermediate state of it and of its "
            "optimizer, the ledger and this statement. They may be given to anyone, as far as the training examples are "
            "concerned; the exact accuracy on held-out examples, here and in metrics.jsonl, only if those are not sensitive."
        ),
        "unit": _unit(plan),
        "public": [
            f"The number of {units}, {plan.num_examples:,}, which sets the sampling probability and δ.",
            "Architecture, label set, initial parameters, and every setting in config.json.",
            f"Features: {dataset.note}",
        ],
        "covered": _covered(plan),
        "not_covered": [
            "Choosing hyper-parameters, when to stop, or the best of several runs or checkpoints, by results on this data.",
            "The loss, the clipped fraction and other values marked private in metrics.jsonl and on the progress line.",
            "The test examples: accuracy on them is exact and says something about them.",
            "Whatever the machine itself logs, crash dumps and timings included.",
            "Earlier or later releases from the same data by anyone, and what people decided after looking at it.",
        ],
        "mechanism": (
            f"DP-SGD (Abadi et al. 2016): {steps:,} updates; {_clipping(plan)}; Gaussian noise "
            f"of standard deviation {plan.noise_multiplier:.6g} · C on each sum, which is divided by the expected batch size "
            f"{plan.batch_size:,}."
        ),
        "sampling": (
            f"As accounted: Poisson, each {plan.unit} with probability {q:.6g} in each step, independently. As implemented: "
            "the same, by counter-based draws (threefry2x32) with the probability rounded down to a multiple of 2^-32; batches "
            "are padded to a fixed shape, nothing is dropped, and an empty batch takes its noisy step."
        ),
        "data_dependence": "No: ε follows from public parameters alone.",
        "randomness": [
            "Sampling and noise keys (64 bits each) come from the operating system and stay in the run's private folder; "
            "`--seed` sets the initial parameters only.",
            "Noise is float32, cut off at 9.1 standard deviations; a real-valued Gaussian is assumed in the analysis, so "
            "attacks on the lowest bits of floating-point noise (Mironov 2012) are not excluded.",
            "Sums are float32 too: their rounding, about 1e-7 of their size, is not in the analysis.",
            "Running time grows with the number of examples drawn: hide it from those who are not trusted.",
        ],
        "user_level": (
            "None: one person may have contributed several examples, and contributions are not bounded."
            if plan.unit == "example"
            else f"The guarantee is for one {plan.unit}, as a whole; whether that is a person is up to the ids given."
        ),
        "verify": "The commit of the code and the versions of what it uses are in config.json. No privacy audit was made.",
        "utility": [
            f"Accuracy {test_accuracy:.2%} on {len(dataset.test_y):,} held-out test examples. Not measured by subgroup.",
            "How the data was collected, and who has access to it and to this run's folder, is for its owner to state.",
        ],
    }
    if not plan.private:
        facts |= {
            "released": "Nothing should leave the trusted side: the parameters were trained without any protection.",
            "unit": "None: gradients are not clipped.",
            "covered": "Nothing: this run was asked to train without privacy (--private=false).",
            "mechanism": f"Plain SGD: {steps:,} updates without clipping or noise.",
            "sampling": f"Poisson, each example with probability {q:.6g} in each step; it protects nothing here.",
            "not_covered": "Everything.",
            "data_dependence": "There is no guarantee to depend on it.",
            "randomness": ["No noise is added."],
        }
    if reproducible_noise:
        facts["randomness"] = [
            "WARNING: this run used --reproducible_noise. Anyone who knows the seed can subtract the noise: for them "
            "the guarantee is void. Never publish such a model.",
            *facts["randomness"],
        ]
    return facts


def _unit(plan: DpSgdPlan) -> str:
    bound = "contributes to an update at most a vector of L2 norm C, enforced by clipping its own gradient"
    if plan.unit == "example":
        return f"One training example. Each {bound}. Duplicates of an example count as separate units."
    return (
        f"One {plan.unit}, told apart by the ids that came with the data. It {bound}, which is that of the mean loss of its "
        "examples. Further examples of it are left out, chosen by its id alone."
    )


def _covered(plan: DpSgdPlan) -> str:
    if plan.adaptive:
        return (
            "Every update of the parameters and of the clip norm: clipped gradient sums and counts of gradients below the clip "
            "norm, both with noise; both of one sample, so one event each update in the ledger."
        )
    return "Every update of the parameters: clipped gradient sums with noise, one event each in the ledger."


def _clipping(plan: DpSgdPlan) -> str:
    c = f"C = {plan.clip_norm:g}"
    return {
        "flat": f"clip norm {c}",
        "per_layer": f"clip norm C/√L for each of the model's L layers, {c} in all",
        "auto_s": f"automatic clipping (AUTO-S, Bu et al. 2023) to norm {c}",
        "auto_v": f"automatic clipping (AUTO-V, Bu et al. 2023) to norm {c}",
        "adaptive": (
            f"clip norm C that starts at {plan.clip_norm:g} and follows the median of gradient norms (Andrew et al. 2021) by a "
            f"count with Gaussian noise of standard deviation {adaptive.count_noise(plan.batch_size):g}"
        ),
    }[plan.clipping]


def public_header(plan: DpSgdPlan, *, reproducible_noise: bool, epsilon_ceiling: float = math.inf) -> Mapping[str, Any]:
    """What the ledger's header declares public."""
    plan_fields = dataclasses.asdict(plan) | {"neighbouring_relation": str(plan.neighbouring_relation)}
    header = {
        "delta": plan.delta,
        "num_examples": plan.num_examples,
        "plan": {k: v for k, v in plan_fields.items() if v != math.inf},
        "reproducible_noise": reproducible_noise,
    }
    if math.isfinite(epsilon_ceiling):
        header["ceiling"] = {"epsilon": epsilon_ceiling, "delta": plan.delta}
    return header
