"""Trains a student on labels that an ensemble of teachers voted for, with a privacy budget for every vote (PATE).

  python -m experiments.pate                                    # real digits, a minute or two
  python -m experiments.pate --dataset=mnist --data_dir=DIR --epsilon=3 --workdir=runs/pate-mnist
  python -m experiments.pate --dry_run                          # the plan alone

The same command takes up an interrupted run from its --workdir, at whichever phase it was.
"""

import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from experiments import launch, pate_describe, pate_job, record
from experiments.pate_settings import PateSettings, preset

if TYPE_CHECKING:
    from marauder_dp.pate.session import Job, Result
    from marauder_dp.run_directory import RunDirectory

_PRESET = "default: the data set's preset"
_CALIBRATED = "in votes; default: from --teachers, the classes, --epsilon and --delta"

DATASET = flags.DEFINE_string("dataset", "digits", "digits, mnist, fashion_mnist, adult, or a tensorflow-datasets name.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the data files; default: $MARAUDER_DATA_DIR.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run is kept and taken up; default: runs/pate-DATASET.")
PUBLIC = flags.DEFINE_integer("public", None, f"How many of the held-out examples, the first, count as public; {_PRESET}.")
TEACHERS = flags.DEFINE_integer("teachers", None, f"Number of teachers; {_PRESET}.")
TEACHER_MODEL = flags.DEFINE_string("teacher_model", None, f"logistic, mlp or cnn; {_PRESET}.")
TEACHER_EPOCHS = flags.DEFINE_integer("teacher_epochs", None, f"Passes of a teacher over its examples; {_PRESET}.")
TEACHER_BATCH = flags.DEFINE_integer("teacher_batch_size", None, f"Examples an update; {_PRESET}.")
TEACHER_RATE = flags.DEFINE_float("teacher_learning_rate", None, f"Of Adam; {_PRESET}.")
TEACHER_AUGMENTATION = flags.DEFINE_bool(
    "teacher_augmentation", None, f"Whether teachers see images shifted, turned and scaled; {_PRESET}."
)
CHUNK = flags.DEFINE_integer("chunk", None, "Teachers trained together on a device; default: what suits cache and memory.")
DEVICES = flags.DEFINE_integer(
    "cpu_devices", None, "On a CPU: host devices to share the teachers; default: one for each core.", lower_bound=1
)
UNIT = flags.DEFINE_string("unit", None, "A .npy file of whose each training example is: all of one id go to one teacher.")
OWNERS = flags.DEFINE_string(
    "owners", None, "A folder with a folder for each data owner (x.npy, y.npy, perhaps ids.npy): one teacher for each."
)
MECHANISM = flags.DEFINE_string("mechanism", None, f"confident_gnmax, interactive_gnmax, gnmax or lnmax; {_PRESET}.")
EPSILON = flags.DEFINE_float("epsilon", None, f"Ceiling: no query is answered that might pass it; {_PRESET}, unless --queries.")
QUERIES = flags.DEFINE_integer("queries", None, "The most queries that are asked; default: as many as the ceiling allows.")
DELTA = flags.DEFINE_float("delta", None, "Default: the preset's, or the largest power of ten up to 1/(10 n).")
THRESHOLD = flags.DEFINE_float("threshold", None, f"Votes that a query's largest count must reach; {_CALIBRATED}.")
SIGMA_THRESHOLD = flags.DEFINE_float("sigma_threshold", None, f"Noise of that check, {_CALIBRATED}.")
SIGMA_VOTES = flags.DEFINE_float("sigma_votes", None, f"Noise on each count, {_CALIBRATED}.")
CHOICE = flags.DEFINE_string(
    "choice", None, "Of queries: random, clusters (typical ones), uncertainty (of the student) or given."
)
GIVEN = flags.DEFINE_string("given_queries", None, "A .npy file of numbers of public examples, in the order of asking.")
ROUND = flags.DEFINE_integer("round", None, "Queries between two students, where the next ones depend on the student.")
STUDENT_MODEL = flags.DEFINE_string("student_model", None, f"logistic, mlp, cnn or relu_cnn; {_PRESET}.")
STUDENT_STEPS = flags.DEFINE_integer("student_steps", None, f"Updates of the student; {_PRESET}.")
STUDENT_BATCH = flags.DEFINE_integer("student_batch_size", None, f"Labelled examples an update; {_PRESET}.")
STUDENT_UNLABELLED = flags.DEFINE_integer(
    "student_unlabelled", None, f"Unlabelled examples for each of those; 0: learn from labels alone; {_PRESET}."
)
STUDENT_RATE = flags.DEFINE_float("student_learning_rate", None, f"Of Adam; {_PRESET}.")
STUDENT_PENALTY = flags.DEFINE_float("student_penalty", None, f"λ of λ/2 ‖weights‖² in the student's loss; {_PRESET}.")
SEED = flags.DEFINE_integer(
    "seed", 0, "Of partitions, parameters and order of queries; public, nothing to do with the noise.", 0, 2**32 - 1
)
REPRODUCIBLE_NOISE = flags.DEFINE_bool(
    "reproducible_noise", False, "For tests: derive the noise from --seed. VOIDS the guarantee."
)
POLICY = flags.DEFINE_string("policy", None, "policy.toml of the data, its budget beside it; default: the one beside the data.")
COHORT = flags.DEFINE_string("cohort", None, "Whose data, of the policy's cohorts; all: everybody's.")
PURPOSE = flags.DEFINE_string("purpose", None, "What for, of the policy's purposes.")
CACHE = flags.DEFINE_string("compilation_cache", "~/.cache/marauder_dp/xla", "Folder of compiled programs; empty for none.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the plan and stop.")

flags.adopt_module_key_flags(record)


def settings_from_flags() -> PateSettings:
    """Fills what the flags leave open from the data set's preset.

    Raises:
      PlanError: flags contradict each other.
    """
    from marauder_dp.errors import PlanError
    from marauder_dp.pate.calibration import check_ceiling
    from marauder_dp.policy import find_policy

    default = preset(DATASET.value)
    pick = lambda flag, fallback: fallback if flag.value is None else flag.value  # noqa: E731
    epsilon = EPSILON.value if EPSILON.value is not None or QUERIES.value is not None else default.epsilon
    check_ceiling(epsilon, QUERIES.value)
    choice = CHOICE.value or (default.choice if GIVEN.value is None else "given")
    if (choice == "given") != (GIVEN.value is not None):
        raise PlanError("--choice=given and --given_queries (a file of numbers) go together")
    if OWNERS.value is not None and (TEACHERS.value is not None or UNIT.value is not None):
        raise PlanError(
            "with --owners there is one teacher for each of them, and ids come with their files: drop --teachers and --unit"
        )
    policy = find_policy(POLICY.value, DATA_DIR.value, DATASET.value)
    if policy is None and (COHORT.value or PURPOSE.value):
        raise PlanError("--cohort and --purpose are those of a policy, and there is none beside the data; give --policy")
    return PateSettings(
        dataset=DATASET.value,
        public=pick(PUBLIC, default.public),
        teachers=None if OWNERS.value is not None else pick(TEACHERS, default.teachers),
        teacher_model=pick(TEACHER_MODEL, default.teacher_model),
        teacher_epochs=pick(TEACHER_EPOCHS, default.teacher_epochs),
        teacher_batch_size=pick(TEACHER_BATCH, default.teacher_batch_size),
        teacher_learning_rate=pick(TEACHER_RATE, default.teacher_learning_rate),
        teacher_augmentation=pick(TEACHER_AUGMENTATION, default.teacher_augmentation),
        chunk=CHUNK.value,
        unit=UNIT.value,
        owners=OWNERS.value,
        mechanism=pick(MECHANISM, default.mechanism),
        epsilon=epsilon,
        queries=QUERIES.value,
        delta=pick(DELTA, default.delta),
        threshold=THRESHOLD.value,
        sigma_threshold=SIGMA_THRESHOLD.value,
        sigma_votes=SIGMA_VOTES.value,
        choice=choice,
        given=GIVEN.value,
        round=ROUND.value,
        student_model=pick(STUDENT_MODEL, default.student_model),
        student_steps=pick(STUDENT_STEPS, default.student_steps),
        student_batch_size=pick(STUDENT_BATCH, default.student_batch_size),
        student_unlabelled=pick(STUDENT_UNLABELLED, default.student_unlabelled),
        student_learning_rate=pick(STUDENT_RATE, default.student_learning_rate),
        student_penalty=pick(STUDENT_PENALTY, default.student_penalty),
        seed=SEED.value,
        reproducible_noise=REPRODUCIBLE_NOISE.value,
        policy=None if policy is None else str(policy.absolute()),
        cohort=COHORT.value,
        purpose=PURPOSE.value,
    )


def main() -> int:
    """Plans, trains, asks, reports; returns the exit code."""
    with launch.StopSignals() as stop:
        return _main(stop)


def _main(stop: launch.StopSignals) -> int:
    settings = settings_from_flags()
    record.check_signing_key()
    workdir = Path(WORKDIR.value or f"runs/pate-{settings.dataset}").expanduser()

    import jax

    jax.config.update("jax_num_cpu_devices", DEVICES.value or len(os.sched_getaffinity(0)))
    from marauder_dp.pate import session
    from marauder_dp.run_directory import RunDirectory
    from marauder_dp.session import check_same_settings

    if workdir.exists():
        check_same_settings(RunDirectory(workdir), dataclasses.asdict(settings))
    launch.use_compilation_cache(CACHE.value)
    job = pate_job.prepare(settings, DATA_DIR.value)
    print("Plan:")
    print(pate_describe.plan_text(job))
    if settings.reproducible_noise:
        print("WARNING: --reproducible_noise voids the guarantee for anyone who knows the seed; never publish this student")
    if DRY_RUN.value:
        return launch.DONE
    print(flush=True)
    directory = RunDirectory(workdir)
    result = session.run(
        job, directory, should_stop=lambda: stop.received is not None, say=lambda line: print(line, file=sys.stderr, flush=True)
    )
    if not result.finished:
        print("stopped; the same command goes on from here")
        return 128 + int(stop.received or 0)
    _show(job, directory, result)
    return launch.DONE


def _show(job: "Job", directory: "RunDirectory", result: "Result") -> None:
    """The end of a run, for people."""
    from accountants.pate.command import analysis_text
    from accountants.report import caveats, text_table

    assert result.breakdown is not None
    warnings = caveats({"reproducible_noise": job.reproducible_seed is not None})
    answered = sum(answer.answered for answer in result.answers)
    print("", *warnings, text_table(result.breakdown), "", sep="\n")
    if result.analysis is not None:
        print(analysis_text(result.analysis), "", sep="\n")
    why = f"the next might have passed ε = {job.epsilon_ceiling:g}" if result.exhausted else "there were no more queries"
    print(f"queries        {len(result.answers):,} asked, {answered:,} answered; then {why}")
    if result.test_accuracy is None:
        print("student        none: no query was answered; lower --threshold or raise --epsilon")
    else:
        print(f"test accuracy  {result.test_accuracy:.2%} of the student, on {len(job.public.test_y):,} held-out examples")
    record.show(directory, result.head, result.budget_head, commands=("replay FOLDER",))


if __name__ == "__main__":
    launch.run(main)
