"""A sweep of which only the best trial may be released: private selection (Papernot and Steinke 2022).

A random number of trials is run, each with settings drawn from the grid with replacement. The number, the draws and all trials
but the best stay in the private part of the folder. The whole is one event, charged before the first trial begins.
"""

import contextlib
import json
import math
import random
import secrets
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accountants.account import Account, Purse
from accountants.budget import Budget
from accountants.chain import read_ledger
from accountants.errors import LedgerError
from accountants.event_json import from_dict
from accountants.events import RepeatAndSelectDpEvent, SelfComposedDpEvent
from accountants.ledger import Ledger
from accountants.selection import draw_count
from accountants.shared_budget import FILE, SharedBudget
from experiments import launch, trials
from experiments.composition import write_report
from experiments.summary import write_summary
from marauder_dp.checkpoints import Checkpoints
from marauder_dp.errors import IntegrityError, PlanError
from marauder_dp.files import write_atomically
from marauder_dp.policy import Permit, find_policy
from marauder_dp.run_directory import RunDirectory

SHAPES = {"geometric": 1.0, "logarithmic": 0.0, "poisson": math.inf}
"""η of the distribution of the number of trials."""

PATH = "sweep/best"

_SAME_COST = ("learning_rate", "learning_rate_schedule", "optimizer", "optimizer_args", "clip_norm", "model", "augmentations")
"""Flags that don't change what a trial costs: Theorem 2 is about draws of one mechanism."""


def run(
    experiment: str,
    choices: Sequence[trials.Choice],
    flags: Sequence[str],
    directory: RunDirectory,
    *,
    jobs: int,
    metric: str,
    kind: str,
    mean: float,
) -> int:
    """Charges, runs a random number of trials, and releases the best; returns the exit code."""
    if experiment != "dpsgd":
        raise PlanError(f"--selection knows what a trial of experiments.dpsgd costs, not of experiments.{experiment}")
    other = sorted({name for name, _ in choices[0]} - set(_SAME_COST))
    if other:
        raise PlanError(f"--selection needs trials of equal cost, so a grid may have {', '.join(_SAME_COST)}; not {other[0]}")
    if directory.privacy_json.exists():
        print(f"done before: see {directory.path}/privacy.md, and best/ there")
        return launch.DONE
    directory.private.mkdir(mode=0o700, exist_ok=True)
    plan = _plan(choices[0], flags, directory.private / "plan.json")
    (charge,) = plan["charges"]
    one = SelfComposedDpEvent(from_dict(charge["event"]), charge["count"])
    event = RepeatAndSelectDpEvent(one, mean, SHAPES[kind])
    secret = _secret(directory.private / "sweep.json", mean, kind, len(choices))
    permit = _permit(flags)
    with contextlib.ExitStack() as stack:
        public: dict[str, Any] = {"delta": plan["delta"], "reproducible_noise": "--reproducible_noise" in flags}
        account = None
        extra = []
        if permit is not None:
            budget = stack.enter_context(SharedBudget(permit.path.parent / FILE, permit.policy))
            account = Account(budget, secret["name"], Purse(**_purse(permit), label=str(directory.path)))
            public["budget"] = {"id": budget.state.hashes[0], "run": account.name, **_purse(permit)}
            extra = [f"--selection={account.name}"]
        ledger = stack.enter_context(
            Ledger(directory.ledger, neighbouring_relation=plan["neighbouring_relation"], unit=plan["unit"], public=public)
        )
        paid = ledger.contents.count(PATH)
        if account is not None:
            account.begin([(PATH, event, 1)], {PATH: paid})
        if not paid:
            Budget(ledger, delta=plan["delta"], account=account).charge(PATH, event)
        planned = [
            trials.Trial(i, choices[number], directory.private / "trials" / f"{i:03d}")
            for i, number in enumerate(secret["choices"])
        ]
        outcomes = trials.run(experiment, planned, [*flags, *extra], jobs=jobs, metric=metric)
        _check(outcomes, one, charge["path"])
        chosen = trials.best(outcomes)
        if planned and chosen is None:
            raise IntegrityError("no trial has a score, so none can be chosen; their logs are in private/trials")
        if outcomes:
            write_atomically(
                directory.private / "summary.csv", trials.as_csv(trials.rows(outcomes, metric)).encode(), mode=0o600
            )
        if account is not None:
            account.commit()
        _release(chosen, directory, metric, ledger.head)
        document = write_report(directory, ledger.contents, _facts(kind, mean, len(choices)))
        if chosen is not None:
            write_summary(directory.path / "summary.html", document, [chosen], metric, document["facts"]["mechanism"])
        if account is not None:
            print(f"budget head    {account.head}")
    return launch.DONE


def _plan(choice: trials.Choice, flags: Sequence[str], path: Path) -> dict[str, Any]:
    """What one trial charges, as its own dry run says."""
    command = [sys.executable, "-m", "experiments.dpsgd", "--dry_run", f"--plan_file={path}", *flags]
    command += [f"--{name}={value}" for name, value in choice]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise PlanError(f"a trial can't be planned: {lines[-1].removeprefix('error: ')}")
    return dict(json.loads(path.read_bytes()))


def _secret(path: Path, mean: float, kind: str, number: int) -> dict[str, Any]:
    """How many trials, and which: drawn once."""
    try:
        return dict(json.loads(path.read_bytes()))
    except FileNotFoundError:
        pass
    except ValueError as error:
        raise IntegrityError(f"{path} is damaged; use another --workdir") from error
    system = random.SystemRandom()
    count = draw_count(mean, SHAPES[kind], system.random())
    secret = {"name": secrets.token_hex(16), "choices": [system.randrange(number) for _ in range(count)]}
    write_atomically(path, json.dumps(secret).encode(), mode=0o600)
    return secret


def _permit(flags: Sequence[str]) -> Permit | None:
    """Of the trials' flags."""
    given = dict(flag.lstrip("-").partition("=")[::2] for flag in flags)
    path = find_policy(given.get("policy"), given.get("data_dir"), given.get("dataset", "digits"))
    if path is None:
        return None
    return Permit.of(path, release="model", cohort=given.get("cohort"), purpose=given.get("purpose"))


def _purse(permit: Permit) -> dict[str, str]:
    purse = permit.purse
    return {"release": purse.release, "cohort": purse.cohort, "purpose": purse.purpose}


def _check(outcomes: Sequence[trials.Outcome], one: SelfComposedDpEvent, path: str) -> None:
    """Refuses to release anything if a trial was not what was charged."""
    for outcome in outcomes:
        if outcome.code != 0:
            raise IntegrityError(
                f"a trial ended with exit code {outcome.code}, so nothing may be released; its log is "
                f"{outcome.trial.folder}.log; the same command goes on"
            )
        try:
            charges = read_ledger(outcome.trial.folder / "ledger.jsonl").charges
        except LedgerError as error:
            raise IntegrityError(f"{outcome.trial.folder}: {error}") from error
        if {(c.path, c.event) for c in charges} != {(path, one.event)} or sum(c.count for c in charges) != one.count:
            raise IntegrityError(f"the trial in {outcome.trial.folder} is not what was charged; nothing may be released")


def _release(chosen: trials.Outcome | None, directory: RunDirectory, metric: str, head: str) -> None:
    if chosen is None:  # possible with poisson
        print("no trial was run: there is nothing to release")
        return
    best = directory.path / "best"
    shutil.rmtree(best, ignore_errors=True)
    best.mkdir()
    # Anew: orbax notes when a checkpoint was saved, and it has the head of the trial's ledger, which has a time in it.
    with Checkpoints(chosen.trial.folder / "checkpoints") as secret, Checkpoints(best / "checkpoints") as published:
        published.save_copy(secret, head)
    shutil.copyfile(chosen.trial.folder / "config.json", best / "config.json")
    row = {**dict(chosen.trial.choice), metric: f"{chosen.score:.6g}"}
    directory.write_text(directory.path / "summary.csv", trials.as_csv([row]))
    print(trials.as_text([row]))


def _facts(kind: str, mean: float, number: int) -> dict[str, Any]:
    distribution = "Poisson" if kind == "poisson" else f"truncated negative binomial (η = {SHAPES[kind]:g}: {kind})"
    return {
        "released": "The best trial's model (best/), settings and score on held-out examples. Nothing of any other trial.",
        "covered": "All trials and the choice among them, as one event.",
        "not_covered": [
            "The held-out examples: the score is exact and says something about them.",
            "What is in private/: how many trials were run, which, and how they did. How long the sweep took hints at it: keep "
            "that, and the load of the machine, from those who are not trusted.",
        ],
        "mechanism": (
            f"Private selection (Papernot and Steinke 2022): a secret number of trials with the {distribution} distribution, "
            f"mean {mean:g}, each with settings drawn uniformly from a grid of {number}; the best is released. Choosing is "
            "charged by private selection, not by composition of the trials."
        ),
        "data_dependence": "No: ε follows from public parameters alone.",
    }
