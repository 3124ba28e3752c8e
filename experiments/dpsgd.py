"""Trains a model with DP-SGD and leaves a privacy budget that anyone can read.

  python -m experiments.dpsgd                                   # real digits, epsilon 3, half a minute
  python -m experiments.dpsgd --dataset=mnist --data_dir=DIR --epsilon=2 --workdir=runs/mnist
  python -m experiments.dpsgd --dry_run                         # the plan alone

The same command resumes an interrupted run from its --workdir, bit for bit.
"""

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from experiments import describe, launch, record
from experiments.presets import preset
from experiments.settings import Settings

if TYPE_CHECKING:
    from marauder_dp.plan import DpSgdPlan
    from marauder_dp.run_directory import RunDirectory
    from marauder_dp.session import Job, Result

_PRESET = "default: the data set's preset"

DATASET = flags.DEFINE_string("dataset", "digits", "digits, mnist, fashion_mnist, adult, or a tensorflow-datasets name.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the data files; default: $MARAUDER_DATA_DIR.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run is kept and resumed; default: runs/dpsgd-DATASET.")
MODEL = flags.DEFINE_string("model", None, f"logistic, mlp or cnn; {_PRESET}.")
PRIVATE = flags.DEFINE_bool("private", True, "False: the non-private baseline, without clipping and noise.")
EPSILON = flags.DEFINE_float("epsilon", None, f"Target: the noise is calibrated to it; {_PRESET}.")
NOISE_MULTIPLIER = flags.DEFINE_float("noise_multiplier", None, "Noise over clip norm, instead of --epsilon.")
EPSILON_CEILING = flags.DEFINE_float(
    "epsilon_ceiling", None, "With --noise_multiplier: stop before the update that exceeds it."
)
DELTA = flags.DEFINE_float("delta", None, "Default: the largest power of ten up to 1/(10 n).")
RELATION = flags.DEFINE_string("neighbouring_relation", "add_or_remove_one", "add_or_remove_one, zero_out or replace_one.")
CLIP_NORM = flags.DEFINE_float("clip_norm", None, f"Largest L2 norm of an example's gradient; {_PRESET}.")
CLIPPING = flags.DEFINE_string(
    "clipping", "flat", "flat, per_layer, auto_s, auto_v, or adaptive: the clip norm follows the norms' median, at a charge."
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", None, f"Expected examples an update; {_PRESET}.")
EPOCHS = flags.DEFINE_float("epochs", None, f"Average passes over the data; {_PRESET}.")
STEPS = flags.DEFINE_integer("steps", None, "Number of updates, instead of --epochs.")
OPTIMIZER = flags.DEFINE_string("optimizer", None, f"Any optax optimizer: sgd, adam, …; {_PRESET}.")
OPTIMIZER_ARGS = flags.DEFINE_string("optimizer_args", None, "Its arguments, such as momentum=0.9.")
LEARNING_RATE = flags.DEFINE_float("learning_rate", None, f"At its peak; {_PRESET}.")
SCHEDULE = flags.DEFINE_string("learning_rate_schedule", None, f"constant or cosine; {_PRESET}.")
SEED = flags.DEFINE_integer(
    "seed", 0, "Of the initial parameters; public, has nothing to do with the noise.", lower_bound=0, upper_bound=2**32 - 1
)
REPRODUCIBLE_NOISE = flags.DEFINE_bool(
    "reproducible_noise", False, "For tests: derive the noise from --seed. VOIDS the guarantee."
)
AUGMENTATIONS = flags.DEFINE_integer(
    "augmentations", 0, "Shifted copies of an image in each update, averaged before clipping.", lower_bound=0
)
UNIT = flags.DEFINE_string("unit", None, "A .npy file of whose each training example is: protects all of one id together.")
EXAMPLES_PER_UNIT = flags.DEFINE_integer("examples_per_unit", None, "With --unit: the most examples of one id that are used.")
POLICY = flags.DEFINE_string("policy", None, "policy.toml of the data, its budget beside it; default: the one beside the data.")
COHORT = flags.DEFINE_string("cohort", None, "Whose data, of the policy's cohorts; all: everybody's.")
PURPOSE = flags.DEFINE_string("purpose", None, "What for, of the policy's purposes.")
SELECTION = flags.DEFINE_string("selection", "", "Set by experiments.sweep: the reservation that has paid for this trial.")
PLAN_FILE = flags.DEFINE_string("plan_file", None, "Also write what the run is going to charge to this file, as JSON.")
MEMORY_LIMIT = flags.DEFINE_string("memory_limit", None, "Such as 2GiB; default: four fifths of the device's memory.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the plan and stop.")
CHECKPOINT_SECONDS = flags.DEFINE_float("checkpoint_seconds", 60.0, "Time between checkpoints.")
CACHE = flags.DEFINE_string("compilation_cache", "~/.cache/marauder_dp/xla", "Folder of compiled programs; empty for none.")

flags.adopt_module_key_flags(record)


def settings_from_flags() -> Settings:
    """Fills what the flags leave open from the data set's preset.

    Raises:
      PlanError: flags contradict each other.
    """
    from marauder_dp.errors import PlanError
    from marauder_dp.policy import Permit, find_policy

    default = preset(DATASET.value)
    pick = lambda flag, fallback: fallback if flag.value is None else flag.value  # noqa: E731
    if EPSILON.value is not None and NOISE_MULTIPLIER.value is not None:
        raise PlanError(
            "give --epsilon (the noise is calibrated to it) or --noise_multiplier, not both; "
            "to stop a run with given noise at a ceiling use --epsilon_ceiling"
        )
    if not PRIVATE.value:
        for flag in (EPSILON, NOISE_MULTIPLIER, EPSILON_CEILING, CLIP_NORM, CLIPPING):
            if flag.present:
                raise PlanError(f"--{flag.name} means nothing with --private=false; leave one of them out")
    if EPSILON_CEILING.value is not None and NOISE_MULTIPLIER.value is None:
        raise PlanError("--epsilon_ceiling goes with --noise_multiplier; a run with --epsilon stops there anyway")
    if EPSILON_CEILING.value is not None and not 0 < EPSILON_CEILING.value < math.inf:
        raise PlanError(f"--epsilon_ceiling must be a finite number greater than 0; got {EPSILON_CEILING.value!r}")
    if not CHECKPOINT_SECONDS.value > 0:
        raise PlanError(f"--checkpoint_seconds must be greater than 0; got {CHECKPOINT_SECONDS.value!r}")
    if STEPS.value is not None and EPOCHS.value is not None:
        raise PlanError("give --steps or --epochs, not both")
    if (UNIT.value is None) != (EXAMPLES_PER_UNIT.value is None):
        raise PlanError("--unit (a file of ids) and --examples_per_unit (the most examples of one id) go together")
    policy = find_policy(POLICY.value, DATA_DIR.value, DATASET.value)
    if policy is None and (COHORT.value or PURPOSE.value):
        raise PlanError("--cohort and --purpose are those of a policy, and there is none beside the data; give --policy")
    delta = DELTA.value
    if policy is not None and delta is None:
        delta = Permit.of(policy, release="model", cohort=COHORT.value, purpose=PURPOSE.value).delta
    calibrated = PRIVATE.value and NOISE_MULTIPLIER.value is None
    optimizer = pick(OPTIMIZER, default.optimizer)
    return Settings(
        dataset=DATASET.value,
        model=pick(MODEL, default.model),
        private=PRIVATE.value,
        epsilon=pick(EPSILON, default.epsilon) if calibrated else None,
        noise_multiplier=NOISE_MULTIPLIER.value,
        epsilon_ceiling=EPSILON_CEILING.value,
        delta=delta,
        neighbouring_relation=RELATION.value,
        clipping=CLIPPING.value,
        clip_norm=pick(CLIP_NORM, default.clip_norm),
        batch_size=pick(BATCH_SIZE, default.batch_size),
        epochs=pick(EPOCHS, default.epochs) if STEPS.value is None else None,
        steps=STEPS.value,
        optimizer=optimizer,
        optimizer_args=pick(OPTIMIZER_ARGS, default.optimizer_args if optimizer == default.optimizer else ""),
        learning_rate=pick(LEARNING_RATE, default.learning_rate),
        learning_rate_schedule=pick(SCHEDULE, default.learning_rate_schedule),
        augmentations=AUGMENTATIONS.value,
        unit=UNIT.value,
        examples_per_unit=EXAMPLES_PER_UNIT.value,
        seed=SEED.value,
        reproducible_noise=REPRODUCIBLE_NOISE.value,
        policy=None if policy is None else str(policy.absolute()),
        cohort=COHORT.value,
        purpose=PURPOSE.value,
    )


def make_plan(settings: Settings, num_examples: int) -> "DpSgdPlan":
    """The plan of these settings on `num_examples` examples, or units.

    Raises:
      PlanError: they make no sense, or no noise meets the target.
    """
    from marauder_dp.errors import PlanError
    from marauder_dp.plan import non_private_plan, plan_dpsgd

    if settings.steps is not None:
        steps = settings.steps
    else:
        if settings.epochs is None or not 0 < settings.epochs < math.inf:
            raise PlanError(f"epochs must be a finite number greater than 0; got {settings.epochs!r}")
        steps = max(1, round(settings.epochs * num_examples / max(settings.batch_size, 1)))
    common: dict[str, Any] = {
        "num_examples": num_examples,
        "batch_size": settings.batch_size,
        "steps": steps,
        "delta": settings.delta,
        "unit": "example" if settings.unit is None else f"unit of up to {settings.examples_per_unit} examples",
    }
    if not settings.private:
        return non_private_plan(**common)
    return plan_dpsgd(
        **common,
        clip_norm=settings.clip_norm,
        epsilon=settings.epsilon,
        noise_multiplier=settings.noise_multiplier,
        neighbouring_relation=settings.neighbouring_relation,
        clipping=settings.clipping,
    )


def prepare(settings: Settings) -> "Job":
    """Loads the data, plans, checks the model and compiles; nothing is released yet.

    Raises:
      MarauderError: whatever is wrong with data, settings or model.
    """
    import jax

    from marauder_dp import augmentation, preflight
    from marauder_dp.datasets import load_dataset
    from marauder_dp.dpsgd import DpSgd, choose_micro_batch
    from marauder_dp.errors import PlanError
    from marauder_dp.memory import memory_limit
    from marauder_dp.models import cross_entropy, make_model
    from marauder_dp.optimizers import make_optimizer
    from marauder_dp.policy import Permit
    from marauder_dp.secrets import fresh_keys
    from marauder_dp.session import Job
    from marauder_dp.training import compile_program
    from marauder_dp.units import group_by_unit, loss_of_unit, read_ids

    dataset, permit, rows = load_dataset(settings.dataset, DATA_DIR.value), None, None
    if settings.policy is not None:
        where = {"cohort": settings.cohort, "purpose": settings.purpose, "within": SELECTION.value}
        permit = Permit.of(Path(settings.policy), release="model", **where)
        dataset, rows = permit.select(dataset)
    shape = dataset.train_x.shape[1:]
    model = make_model(settings.model, shape, dataset.num_classes)
    params = preflight.initialise(model, shape, settings.seed)
    loss = cross_entropy(model)
    preflight.check_loss(loss, params, preflight.synthetic_examples(shape, dataset.num_classes))
    data: Any = (dataset.train_x, dataset.train_y)
    if settings.augmentations:
        if len(shape) != 3:
            raise PlanError(f"--augmentations shifts images, but an example of {settings.dataset} has the shape {shape}")
        loss = augmentation.loss_of_augmented(loss, augmentation.usual(shape), settings.augmentations)
    if settings.unit is not None:
        ids = read_ids(settings.unit)
        if permit is not None:
            ids = permit.units(ids, rows)
        data = group_by_unit(data, ids, limit=settings.examples_per_unit or 0)
        loss = loss_of_unit(loss, keyed=settings.augmentations > 0)
    plan = make_plan(settings, len(jax.tree.leaves(data)[0]))
    if permit is not None:
        permit.check_terms(plan.neighbouring_relation, plan.unit)
    schedule = (settings.learning_rate, settings.learning_rate_schedule, plan.steps)
    sgd = DpSgd(
        plan,
        loss,
        make_optimizer(settings.optimizer, *schedule, settings.optimizer_args),
        choose_micro_batch(plan.batch_size, plan.num_examples),
        keyed=settings.augmentations > 0,
    )
    state = sgd.init(params)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), data)
    program = compile_program(sgd, state, fresh_keys(), shapes, memory_limit(MEMORY_LIMIT.value))
    return Job(
        settings=dataclasses.asdict(settings),
        dataset=dataset,
        data=data,
        model=model,
        sgd=program.sgd,
        program=program,
        initial=state,
        # The target is the ceiling too, should planning ever be wrong.
        epsilon_ceiling=next((e for e in (settings.epsilon, settings.epsilon_ceiling) if e is not None), math.inf),
        reproducible_seed=settings.seed if settings.reproducible_noise else None,
        permit=permit,
    )


def main() -> int:
    """Plans, trains, reports; returns the exit code."""
    with launch.StopSignals() as stop:  # before JAX is imported: it swallows a KeyboardInterrupt in the wrong place
        return _main(stop)


def _main(stop: launch.StopSignals) -> int:
    settings = settings_from_flags()
    record.check_signing_key()
    workdir = Path(WORKDIR.value or f"runs/dpsgd-{settings.dataset}").expanduser()

    from marauder_dp import session
    from marauder_dp.run_directory import RunDirectory
    from marauder_dp.training import Outcome

    if workdir.exists():  # refuse early what can't go on there, before minutes of compilation
        session.check_same_settings(RunDirectory(workdir), dataclasses.asdict(settings))
    launch.use_compilation_cache(CACHE.value)
    job = prepare(settings)
    print("Plan:")
    print(describe.plan_text(settings, job))
    for warning in describe.warnings(settings, job.sgd.plan):
        print(f"WARNING: {warning}")
    if PLAN_FILE.value is not None:
        describe.write_plan(Path(PLAN_FILE.value), job)
    if DRY_RUN.value:
        return launch.DONE
    print(flush=True)
    directory = RunDirectory(workdir)
    result = session.run(
        job,
        directory,
        checkpoint_seconds=CHECKPOINT_SECONDS.value,
        should_stop=lambda: stop.received is not None,
    )
    if result.outcome is Outcome.INTERRUPTED:
        print(f"stopped after update {result.steps:,} of {job.sgd.plan.steps:,}; the same command resumes it")
        return 128 + int(stop.received or 0)
    _show(job, directory, result)
    if result.outcome is Outcome.CEILING:
        print(f"stopped before the update that would bring ε above {job.epsilon_ceiling:g}")
        return launch.BUDGET_EXCEEDED
    return launch.DONE


def _show(job: "Job", directory: "RunDirectory", result: "Result") -> None:
    """The end of a run, for people."""
    from accountants.report import caveats, text_table

    assert result.breakdown is not None
    warnings = caveats({"reproducible_noise": job.reproducible_seed is not None})
    print("", *warnings, text_table(result.breakdown), "", sep="\n")
    print(
        f"test accuracy  {result.test_accuracy:.2%} on {len(job.dataset.test_y):,} held-out examples, "
        f"after {result.steps:,} updates"
    )
    record.show(directory, result.head, result.budget_head)


if __name__ == "__main__":
    launch.run(main)
