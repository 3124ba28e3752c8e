"""Runs an experiment many times with different flags, and accounts for all of it, the choice of the best included.

  python -m experiments.sweep --grid=learning_rate=0.1,0.3 --grid=clip_norm=0.5,1 --jobs=2 --workdir=runs/sweep
  python -m experiments.sweep --grid=learning_rate=0.1,0.3,1 --random=4       # so many of the grid, at random
  python -m experiments.sweep --grid=learning_rate=0.1,0.3,1 --selection=geometric --mean_trials=5

Without --selection all trials may be released, and their costs add up. With it only the best one may be: a secret, random
number of trials is run, and the whole costs as much as two or three of them (Papernot and Steinke 2022). --flags are for every
trial.
"""

import shlex
from typing import Any

from absl import flags

from experiments import launch, record

EXPERIMENT = flags.DEFINE_string("experiment", "dpsgd", "Which of experiments/: dpsgd, pate, …")
GRID = flags.DEFINE_multi_string("grid", [], "A flag and its values, as learning_rate=0.1,0.3. Several span a grid.")
RANDOM = flags.DEFINE_integer(
    "random", None, "Run so many trials, drawn from the grid by --seed, instead of all.", lower_bound=1
)
FLAGS = flags.DEFINE_string("flags", "", "Flags for every trial, such as '--dataset=mnist --epsilon=1'.")
WORKDIR = flags.DEFINE_string("workdir", "runs/sweep", "Where trials, table and statement go; the same command resumes.")
JOBS = flags.DEFINE_integer("jobs", 1, "Trials at a time.", lower_bound=1)
METRIC = flags.DEFINE_string("metric", "accuracy", "On held-out examples, by which the best is chosen; higher is better.")
SELECTION = flags.DEFINE_enum("selection", None, ["geometric", "logarithmic", "poisson"], "Release the best trial alone.")
MEAN_TRIALS = flags.DEFINE_float(
    "mean_trials", None, "With --selection: how many trials are run on average; default: the grid's."
)
SEED = flags.DEFINE_integer("seed", 0, "Of --random; public.", lower_bound=0)
flags.adopt_module_key_flags(record)


def main() -> int:
    """Returns the exit code."""
    from experiments import composition, selection, trials
    from marauder_dp.errors import PlanError
    from marauder_dp.run_directory import RunDirectory

    record.check_signing_key()
    try:
        choices = trials.grid(GRID.value)
    except ValueError as error:
        raise PlanError(str(error)) from None
    if not GRID.value:
        raise PlanError("give at least one --grid, such as --grid=learning_rate=0.1,0.3")
    given = shlex.split(FLAGS.value)
    own = {name for name, _ in choices[0]} | {flag.lstrip("-").partition("=")[0] for flag in given}
    if "workdir" in own:
        raise PlanError("the --workdir of each trial is chosen here; give the sweep's own")
    if SELECTION.value is None and MEAN_TRIALS.value is not None:
        raise PlanError("--mean_trials goes with --selection; without it every trial of the grid, or --random of them, is run")
    if SELECTION.value is not None and RANDOM.value is not None:
        raise PlanError("--selection draws the number of trials itself; leave --random out")
    directory = RunDirectory(WORKDIR.value)
    settings = {name: flags.FLAGS[name].value for name in ("experiment", "grid", "random", "flags", "metric", "selection")}
    settings |= {"mean_trials": MEAN_TRIALS.value, "seed": SEED.value}
    before = directory.read_settings()
    if before is not None and before != settings:
        changed = ", ".join(f"--{name}={before.get(name)}" for name in settings if before.get(name) != settings[name])
        raise PlanError(f"the sweep in {directory.path} began with {changed}; repeat its command, or choose another --workdir")
    directory.write_settings(settings)
    common: dict[str, Any] = {"jobs": JOBS.value, "metric": METRIC.value}
    if SELECTION.value is None:
        chosen = trials.drawn(choices, RANDOM.value, SEED.value)
        print(
            f"{len(chosen)} trials of experiments.{EXPERIMENT.value}, {JOBS.value} at a time; all may be released", flush=True
        )
        code = composition.run(EXPERIMENT.value, chosen, given, directory, **common)
    else:
        common |= {"kind": SELECTION.value, "mean": float(len(choices)) if MEAN_TRIALS.value is None else MEAN_TRIALS.value}
        code = selection.run(EXPERIMENT.value, choices, given, directory, **common)
    if directory.ledger.exists() and (signature := record.sign(directory.ledger)) is not None:
        print(f"signature      {launch.short(signature)}")
    return code


if __name__ == "__main__":
    launch.run(main)
