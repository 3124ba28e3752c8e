"""One DP-SGD run in one folder: begin or resume it, train, and leave the record behind.

The ledger's lock keeps two runs out of one folder. Under it, the keys are read or drawn; they are bound to the data and
to the compiled program they were drawn for, because the same noise in another computation would cancel out. Then
training goes on from the last checkpoint, and charges before it runs.
"""

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from accountants import report
from accountants.breakdown import Breakdown, finite_or_text
from accountants.budget import Budget
from accountants.chain import LedgerContents
from accountants.ledger import Ledger
from accountants.statement import statement
from marauder_dp import secrets
from marauder_dp.checkpoints import Checkpoints, check_belongs
from marauder_dp.datasets import Dataset
from marauder_dp.datasets.base import digest_of_arrays
from marauder_dp.dpsgd import DpSgd, Keys, TrainState
from marauder_dp.errors import IntegrityError, PlanError
from marauder_dp.facts import dpsgd_facts, public_header
from marauder_dp.models import accuracy
from marauder_dp.plan import GRADIENTS, DpSgdPlan
from marauder_dp.policy import Permit, RunAccount
from marauder_dp.progress import ProgressLine
from marauder_dp.report_page import write_page
from marauder_dp.run_directory import RunDirectory
from marauder_dp.training import ChunkReport, Outcome, Program, train

PyTree = Any

_EVALUATIONS = 20  # of the test accuracy, over a run


@dataclasses.dataclass(frozen=True)
class Job:
    """Everything about a run that is fixed before its first update.

    Attributes:
      settings: resolved flags; a resumption must repeat them.
      dataset: private training and held-out test examples.
      data: pytree of arrays (plan.num_examples, ...), a row of which the loss takes: training examples, or units of them.
      model: whose parameters are trained.
      sgd: plan, loss and optimizer.
      program: `sgd`, compiled.
      initial: state before the first update.
      epsilon_ceiling: infinite where there is none.
      reproducible_seed: derive the keys from it (voids the guarantee); None for secret keys.
      permit: of the policy that the data are under; None where they are under none.
    """

    settings: Mapping[str, Any]
    dataset: Dataset
    data: PyTree
    model: nn.Module
    sgd: DpSgd
    program: Program
    initial: TrainState
    epsilon_ceiling: float
    reproducible_seed: int | None = None
    permit: Permit | None = None

    def fingerprint(self) -> str:
        """SHA-256 of the training data. Private (it confirms a guess of the whole data): keep it out of reports."""
        return digest_of_arrays(*map(np.asarray, jax.tree.leaves(self.data)))


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended; the rest is None where it was interrupted.

    Attributes:
      outcome: why training ended.
      steps: updates done.
      test_accuracy: on the held-out examples.
      breakdown: of the ledger.
      head: of the ledger.
      budget_head: of the data set's budget; "" where it has none.
    """

    outcome: Outcome
    steps: int
    test_accuracy: float | None = None
    breakdown: Breakdown | None = None
    head: str | None = None
    budget_head: str = ""


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
    check_same_settings(directory, job.settings)  # for a message in terms of flags; the keys' binding is what counts
    public = dict(
        public_header(plan, reproducible_noise=job.reproducible_seed is not None, epsilon_ceiling=job.epsilon_ceiling)
    )
    with contextlib.ExitStack() as stack:
        account = None
        if job.permit is not None:
            account = stack.enter_context(job.permit.open(directory.ledger, str(directory.path)))
            public |= account.public
        opened = Ledger(directory.ledger, neighbouring_relation=plan.neighbouring_relation, unit=plan.unit, public=public)
        ledger = stack.enter_context(opened)
        if ledger.recovered:
            say(f"recovered the ledger: dropped a torn last line of {len(ledger.recovered)} bytes, left by a crash")
        paid = _paid(ledger.contents, plan)
        keys = _keys(job, directory, paid)
        directory.write_settings(job.settings)
        directory.drop_torn_metrics()
        if account is not None:
            account.begin([(plan.path, plan.event, plan.steps)], {plan.path: paid})
        budget = Budget(ledger, delta=plan.delta, epsilon_ceiling=job.epsilon_ceiling, account=account)
        with Checkpoints(directory.checkpoints) as checkpoints:
            state = job.initial
            restored = checkpoints.restore(state)
            if restored is None:
                checkpoints.save(
                    state, *_heads(ledger, account)
                )  # also proves that checkpoints can be written, before any charge
            else:
                check_belongs(restored, ledger.contents, paid)
                if account is not None:
                    account.check_head(restored.budget_head)
                state = restored.state
                if restored.damaged:
                    say(f"checkpoints of steps {list(restored.damaged)} could not be read and were removed")
                say(f"resuming after update {int(state.step):,} of {plan.steps:,}")
            after_chunk = _Recorder(job, directory, lambda: _heads(ledger, account), checkpoints, checkpoint_seconds)
            try:
                state, outcome = train(
                    job.sgd,
                    job.program,
                    state,
                    keys,
                    jax.tree.map(jnp.asarray, job.data),
                    budget=budget,
                    charged=paid,
                    until=after_chunk.next_stop,
                    after_chunk=after_chunk,
                    should_stop=should_stop,
                )
            finally:
                after_chunk.progress.finish()
            checkpoints.save(state, *_heads(ledger, account))
        if outcome is Outcome.INTERRUPTED:
            return Result(outcome, int(state.step))
        if account is not None:
            account.commit()
        result = _conclude(job, state, outcome, directory, ledger, account)
    write_page(directory, say)
    return result


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


class _Recorder:
    """Called after each chunk: progress line, metrics, test accuracy, checkpoints.

    It evaluates and saves at steps that follow from the plan and from a timing on zeros: how long the real updates
    took depends on private data and must not show in what is kept.
    """

    def __init__(
        self,
        job: Job,
        directory: RunDirectory,
        heads: Callable[[], tuple[str, str]],
        checkpoints: Checkpoints,
        checkpoint_seconds: float,
    ):
        plan = job.sgd.plan
        target = plan.epsilon() if math.isinf(job.epsilon_ceiling) else job.epsilon_ceiling
        self.progress = ProgressLine(plan, target)
        self._job, self._directory, self._heads, self._checkpoints = job, directory, heads, checkpoints
        self._evaluate_every = max(1, plan.steps // _EVALUATIONS)
        self._save_every = max(1, round(checkpoint_seconds / job.program.update_seconds))

    def next_stop(self, step: int) -> int:
        """The next step after `step` at which there is something to do."""
        return min((step // every + 1) * every for every in (self._evaluate_every, self._save_every))

    def __call__(self, chunk: ChunkReport, state: TrainState) -> None:
        self.progress.update(chunk)
        log, step = self._directory.log_metric, chunk.step
        drawn = max(float(chunk.metrics.examples), 1.0)
        for name in ("loss", "clipped", "non_finite"):
            log(step, "train", name, float(getattr(chunk.metrics, name)) / drawn, private=True)
        if self._job.sgd.plan.private:
            ratio = float(chunk.metrics.signal_to_noise) / max(chunk.updates, 1)
            log(step, "train", "signal_to_noise", ratio, private=True)
        log(step, "train", "epsilon", finite_or_text(chunk.epsilon), private=False)
        if self._job.sgd.plan.adaptive:  # paid for as a component of its own
            log(step, "train", "clip_norm", float(state.clip_norm), private=False)
        if step % self._evaluate_every == 0:
            data = self._job.dataset
            log(step, "test", "accuracy", accuracy(self._job.model, state.params, data.test_x, data.test_y), private=False)
        if step % self._save_every == 0:
            self._checkpoints.save(state, *self._heads())


def _heads(ledger: Ledger, account: RunAccount | None) -> tuple[str, str]:
    return ledger.head, account.head if account is not None else ""


def _conclude(
    job: Job, state: TrainState, outcome: Outcome, directory: RunDirectory, ledger: Ledger, account: RunAccount | None
) -> Result:
    """Evaluates on held-out examples and writes the report."""
    plan, steps = job.sgd.plan, int(state.step)
    test_accuracy = accuracy(job.model, state.params, job.dataset.test_x, job.dataset.test_y)
    directory.log_metric(steps, "test", "accuracy", test_accuracy, private=False)
    facts = dpsgd_facts(
        plan,
        job.dataset,
        steps=steps,
        model=type(job.model).__name__,
        reproducible_noise=job.reproducible_seed is not None,
        test_accuracy=test_accuracy,
    )
    if account is not None:
        facts = account.facts(facts)
    document = report.privacy_document(ledger.contents, plan.delta, facts)
    directory.write_json(directory.privacy_json, document)
    directory.write_text(directory.privacy_md, statement(document))
    return Result(outcome, steps, test_accuracy, report.breakdown_of(ledger.contents, plan.delta), *_heads(ledger, account))


def _paid(ledger: LedgerContents, plan: DpSgdPlan) -> int:
    """How many updates of this plan the ledger has charged.

    Raises:
      IntegrityError: something else was charged under their name.
    """
    charges = [charge for charge in ledger.charges if GRADIENTS in charge.parts]
    if any((charge.path, charge.event) != (plan.path, plan.event) for charge in charges):
        raise IntegrityError(f"the ledger charges {GRADIENTS} with events that are not this plan's; use another --workdir")
    return sum(charge.count for charge in charges)


def _keys(job: Job, directory: RunDirectory, paid: int) -> Keys:
    """The run's secrets: the stored ones when resuming, else new ones.

    Raises:
      IntegrityError: updates are paid but their keys are gone, or the keys were drawn for other data or another program.
    """
    begun_with = {
        "data": job.fingerprint(),
        "program": job.program.digest,
        "initial parameters": hashlib.sha256(
            b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(job.initial))
        ).hexdigest(),
    }
    stored = secrets.load(directory.private)
    if stored is not None:
        keys, before = stored
        differing = [name for name in begun_with if before.get(name) != begun_with[name]]
        if differing:
            raise IntegrityError(
                f"the {' and '.join(differing)} are not what the run in {directory.path} began with (other data, settings, "
                "code, JAX version or backend), so it can't be resumed exactly; use another --workdir"
            )
        return keys
    if paid:
        raise IntegrityError(
            f"{directory.ledger} has charges but {directory.private} holds no keys, so the run can't be resumed exactly; "
            "restore that folder or use another --workdir"
        )
    keys = secrets.fresh_keys() if job.reproducible_seed is None else secrets.reproducible_keys(job.reproducible_seed)
    secrets.store(directory.private, keys, begun_with)
    return keys
