"""One DP-SGD run in one folder: begin or resume it, train, and leave the record behind.

Order matters here. The ledger's lock comes first, so that two runs can't share a folder; then the check that this is
the run that began here; then the keys; then training, which charges before it runs.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from accountants import report
from accountants.breakdown import Breakdown, finite_or_text
from accountants.budget import Budget
from accountants.ledger import Ledger, LedgerContents
from accountants.statement import statement
from marauder_dp import secrets
from marauder_dp.checkpoints import Checkpoints, check_belongs
from marauder_dp.datasets import Dataset
from marauder_dp.dpsgd import DpSgd, Keys, TrainState
from marauder_dp.errors import IntegrityError, PlanError
from marauder_dp.facts import dpsgd_facts, public_header
from marauder_dp.models import accuracy
from marauder_dp.plan import GRADIENTS
from marauder_dp.progress import ProgressLine
from marauder_dp.run_directory import RunDirectory
from marauder_dp.training import ChunkReport, Outcome, Program, train

_EVALUATIONS = 20  # of the test accuracy, over a run


@dataclasses.dataclass(frozen=True)
class Job:
    """Everything about a run that is fixed before its first update.

    Attributes:
      settings: resolved flags; a resumption must repeat them.
      dataset: private training and held-out test examples.
      model: whose parameters are trained.
      sgd: plan, loss and optimizer.
      program: `sgd`, compiled.
      initial: state before the first update.
      epsilon_ceiling: infinite where there is none.
      reproducible_seed: derive the keys from it (voids the guarantee); None for secret keys.
    """

    settings: Mapping[str, Any]
    dataset: Dataset
    model: nn.Module
    sgd: DpSgd
    program: Program
    initial: TrainState
    epsilon_ceiling: float
    reproducible_seed: int | None = None

    @property
    def data(self) -> tuple[Any, Any]:
        """Training examples on the device."""
        return jnp.asarray(self.dataset.train_x), jnp.asarray(self.dataset.train_y)


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended; the rest is None where it was interrupted.

    Attributes:
      outcome: why training ended.
      steps: updates done.
      test_accuracy: on the held-out examples.
      breakdown: of the ledger.
      head: of the ledger.
    """

    outcome: Outcome
    steps: int
    test_accuracy: float | None = None
    breakdown: Breakdown | None = None
    head: str | None = None


def run(
    job: Job,
    directory: RunDirectory,
    *,
    checkpoint_seconds: float = 60.0,
    should_stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = print,
) -> Result:
    """Begins `job` in `directory`, or resumes it there, and trains until it is done or told to stop.

    Raises:
      PlanError: the run that began in `directory` had other settings.
      IntegrityError, LedgerError: what is in `directory` contradicts itself, or another process is using it.
    """
    plan = job.sgd.plan
    check_same_settings(directory, job.settings)
    public = public_header(plan, reproducible_noise=job.reproducible_seed is not None)
    with Ledger(directory.ledger, neighbouring_relation=plan.neighbouring_relation, public=public) as ledger:
        if ledger.recovered:
            say(f"recovered the ledger: dropped a torn last line of {len(ledger.recovered)} bytes, left by a crash")
        keys = _keys(job, directory, ledger.contents)
        directory.write_settings(job.settings)
        budget = Budget(ledger, delta=plan.delta, epsilon_ceiling=job.epsilon_ceiling)
        with Checkpoints(directory.checkpoints) as checkpoints:
            state = job.initial
            restored = checkpoints.restore(state)
            if restored is not None:
                check_belongs(restored, ledger.contents)
                state = restored.state
                say(f"resuming after update {int(state.step):,} of {plan.steps:,}")
            state, outcome = _train(job, state, keys, directory, ledger, budget, checkpoints, checkpoint_seconds, should_stop)
            checkpoints.save(state, ledger.head)
        if outcome is Outcome.INTERRUPTED:
            return Result(outcome, int(state.step))
        return _conclude(job, state, outcome, directory, ledger)


def check_same_settings(directory: RunDirectory, settings: Mapping[str, Any]) -> None:
    """Refuses to resume under settings that the run did not begin with, naming them.

    Raises:
      PlanError: some differ.
    """
    before = directory.read_settings()
    changed = [name for name in settings if before is not None and before.get(name) != settings[name]]
    if before is not None and changed:
        what = ", ".join(f"--{name}={before.get(name)} (now {settings[name]})" for name in changed)
        raise PlanError(
            f"the run in {directory.path} began with {what}; repeat its command to resume it, or choose another --workdir"
        )


def _train(
    job: Job,
    state: TrainState,
    keys: Keys,
    directory: RunDirectory,
    ledger: Ledger,
    budget: Budget,
    checkpoints: Checkpoints,
    checkpoint_seconds: float,
    should_stop: Callable[[], bool],
) -> tuple[TrainState, Outcome]:
    plan, dataset = job.sgd.plan, job.dataset
    evaluate_every = max(1, plan.steps // _EVALUATIONS)
    target = plan.epsilon() if math.isinf(job.epsilon_ceiling) else job.epsilon_ceiling
    progress = ProgressLine(plan.steps, target)
    saved_at = time.monotonic()

    def after_chunk(chunk: ChunkReport, state: TrainState) -> None:
        nonlocal saved_at
        progress.update(chunk)
        drawn = max(float(chunk.metrics.examples), 1.0)
        for name in ("loss", "clipped", "non_finite"):
            directory.log_metric(chunk.step, "train", name, float(getattr(chunk.metrics, name)) / drawn, private=True)
        directory.log_metric(chunk.step, "train", "epsilon", finite_or_text(chunk.epsilon), private=False)
        if chunk.step % evaluate_every == 0:
            value = accuracy(job.model, state.params, dataset.test_x, dataset.test_y)
            directory.log_metric(chunk.step, "test", "accuracy", value, private=False)
        if time.monotonic() - saved_at > checkpoint_seconds:
            checkpoints.save(state, ledger.head)
            saved_at = time.monotonic()

    try:
        return train(
            job.sgd,
            job.program,
            state,
            keys,
            job.data,
            budget=budget,
            charged=ledger.contents.count(GRADIENTS),
            until=lambda step: (step // evaluate_every + 1) * evaluate_every,
            after_chunk=after_chunk,
            should_stop=should_stop,
        )
    finally:
        progress.finish()


def _conclude(job: Job, state: TrainState, outcome: Outcome, directory: RunDirectory, ledger: Ledger) -> Result:
    """Evaluates on held-out examples and writes the report."""
    plan, steps = job.sgd.plan, int(state.step)
    test_accuracy = accuracy(job.model, state.params, job.dataset.test_x, job.dataset.test_y)
    facts = dpsgd_facts(
        plan,
        job.dataset,
        steps=steps,
        model=type(job.model).__name__,
        reproducible_noise=job.reproducible_seed is not None,
        test_accuracy=test_accuracy,
    )
    document = report.privacy_document(ledger.contents, plan.delta, facts)
    directory.write_json(directory.privacy_json, document)
    directory.write_text(directory.privacy_md, statement(document))
    return Result(outcome, steps, test_accuracy, report.breakdown_of(ledger.contents, plan.delta), ledger.head)


def _keys(job: Job, directory: RunDirectory, ledger: LedgerContents) -> Keys:
    """The run's secrets: the stored ones when resuming, else new ones.

    Raises:
      IntegrityError: the run has begun but its keys are gone, or its data is not what it began with.
    """
    fingerprint = job.dataset.fingerprint()
    stored = secrets.load(directory.private)
    if stored is not None:
        if stored[1] != fingerprint:
            raise IntegrityError(f"the training data is not what the run in {directory.path} began with; use another --workdir")
        return stored[0]
    if ledger.charges:
        raise IntegrityError(
            f"{directory.ledger} has charges but {directory.private} holds no keys, so the run can't be resumed exactly; "
            "restore that folder or use another --workdir"
        )
    keys = secrets.fresh_keys() if job.reproducible_seed is None else secrets.reproducible_keys(job.reproducible_seed)
    secrets.store(directory.private, keys, fingerprint)
    return keys
