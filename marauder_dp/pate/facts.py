"""What the privacy statement of a PATE run says beyond its figures, item by item (see `accountants.statement`)."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from accountants.event_json import to_dict
from accountants.pate.record import Answer
from accountants.report import upper

if TYPE_CHECKING:
    from marauder_dp.pate.session import Job


def public_header(job: "Job") -> Mapping[str, Any]:
    """What the ledger's header declares public."""
    header: dict[str, Any] = {
        "delta": job.delta,
        "num_examples": job.units,
        "voting": dataclasses.asdict(job.voting),
        "reproducible_noise": job.reproducible_seed is not None,
    }
    if job.promise is not None:
        header["promise"] = to_dict(job.promise)
    if math.isfinite(job.epsilon_ceiling):
        header["ceiling"] = {"epsilon": job.epsilon_ceiling, "delta": job.delta}
    return header


def pate_facts(job: "Job", answers: Sequence[Answer], test_accuracy: float | None) -> dict[str, Any]:
    """JSON-ready facts under the keys of `accountants.statement.ITEMS`."""
    voting, answered = job.voting, sum(answer.answered for answer in answers)
    facts: dict[str, Any] = {
        "setting": (
            "Central model: whoever trains the teachers sees the data, the votes and the secrets of the run and is trusted; "
            "whoever receives what is released is not."
        ),
        "released": (
            f"The answers to {len(answers):,} queries about public examples ({answered:,} labels, the rest refusals), all in "
            "the ledger; the student that learned from them; the ledger and this statement. They may be given to anyone. "
            "Teachers, votes and the data-dependent costs stay with the operator."
        ),
        "unit": (
            "One training example. It is seen by one teacher alone, the one that a keyed hash of its number picks, so it moves "
            "at most one vote in each histogram, whether it is added, removed or replaced; the others keep their numbers. "
            "Duplicates of an example count as separate units."
            if job.counts_public
            else "One unit of privacy, told apart by the ids that came with the data. All its examples are seen by one teacher "
            "alone, the one that a keyed hash of its id picks, so it moves at most one vote in each histogram."
        ),
        "public": [
            f"The public examples of which queries are made ({len(job.public.x):,} of {job.name}), and the label set.",
            "The number of teachers, their architecture and training, and every setting in config.json.",
            f"Features: {job.note}",
            "The number of training examples, and of each teacher's. It sets δ and how long teachers train."
            if job.counts_public
            else "The numbers of units and of training examples. They set δ and how long teachers train.",
        ],
        "covered": "Every answer: the outcome of the threshold check, and the class of the noisy plurality.",
        "not_covered": [
            "Choosing hyper-parameters, or the best of several runs, by results on this data.",
            "Whatever the machine itself logs, crash dumps and timings included.",
            "What is marked private in metrics.jsonl and, in privacy.json, the part `pate` that depends on the votes: its "
            "figures are for the operator. `report --public` leaves them out.",
            "The examples that teachers are asked about and the student is tested on: they count as public.",
            "Earlier or later releases from the same data by anyone, and what people decided after looking at it.",
        ],
        "mechanism": _mechanism(job),
        "sampling": (
            f"None. The training examples are split among {voting.teachers:,} teachers by a keyed hash; each trains on its own "
            "alone. Salted digests of all partitions are in the ledger."
        ),
        "data_dependence": _data_dependence(job),
        "randomness": [
            "The noise key (64 bits) comes from the operating system and stays in the run's private folder; `--seed` sets "
            "partitions, initial parameters and the order of queries only.",
            "Noise is added in float64 from float32 draws, cut off at 9.1 standard deviations; only the class, or whether the "
            "threshold was reached, leaves the trusted side.",
        ],
        "user_level": (
            "None: one person may have contributed several examples, to several teachers."
            if job.counts_public
            else "The guarantee is for one unit as a whole; whether that is a person is up to the ids given."
        ),
        "utility": [
            "No query was answered, so there is no student."
            if test_accuracy is None
            else f"The student's accuracy: {test_accuracy:.2%} on {len(job.public.test_y):,} held-out examples. Not measured "
            "by subgroup.",
            "How the data was collected, and who has access to it and to this run's folder, is for its owner to state.",
        ],
        "verify": [
            "The commit of the code and the versions of what it uses are in config.json. No privacy audit was made.",
            "`python -m accountants replay RUN`, with the run's private folder, checks that the stored votes are those the "
            "ledger is bound to and derives the data-dependent figures from them again.",
        ],
    }
    if job.reproducible_seed is not None:
        facts["randomness"] = [
            "WARNING: this run used --reproducible_noise. Anyone who knows the seed can subtract the noise: for them "
            "the guarantee is void. Never publish such a student.",
            *facts["randomness"],
        ]
    return facts


def _mechanism(job: "Job") -> str:
    voting = job.voting
    noise = (
        f"Laplace noise of scale {voting.sigma_votes:g}"
        if voting.mechanism == "lnmax"
        else f"Gaussian noise of standard deviation {voting.sigma_votes:g}"
    )
    plurality = f"{voting.teachers:,} teachers vote and the class of the largest count, after {noise} on each, is the answer"
    what = {
        "gnmax": "GNMax (Papernot et al. 2018)",
        "lnmax": "LNMax (Papernot et al. 2017)",
        "confident_gnmax": "Confident-GNMax (Papernot et al. 2018)",
        "interactive_gnmax": "Interactive-GNMax (Papernot et al. 2018)",
    }[voting.mechanism]
    if voting.threshold is None or voting.sigma_threshold is None:
        return f"{what}: {plurality}."
    value = "largest count" if voting.mechanism == "confident_gnmax" else "largest surplus over what the student expects"
    return (
        f"{what}: a query is answered if the {value}, with Gaussian noise of standard deviation {voting.sigma_threshold:g}, "
        f"reaches {voting.threshold:g}; then {plurality}."
    )


def _data_dependence(job: "Job") -> list[str]:
    if job.promise is None:
        return ["No: every query costs the same, whatever the votes."]
    return [
        "ε above does not: it was fixed before the first query and follows from public parameters alone.",
        "How many queries were answered depends on the votes, through noisy checks, and so does what was spent. "
        + (
            f"No answer was given that could have passed the ceiling, ε ≤ {upper(job.epsilon_ceiling)} at δ = {job.delta:g}; "
            "as a filter it holds whatever was answered."
            if math.isfinite(job.epsilon_ceiling)
            else "ε above is what it would have been had all been answered."
        ),
    ]
