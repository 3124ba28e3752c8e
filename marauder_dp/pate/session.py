"""One run of PATE in one folder: teachers, votes, answers, student, and the record of them.

Each phase takes up where an interrupted run left it. Teachers are kept wave by wave in the run's private folder, and so are
the votes; answers stand in the ledger; the student is public and is trained again. What is kept private is bound to the ledger
by salted digests, so that it can be shown later, to someone entitled, that these were the partitions and these the votes.
"""

import contextlib
import dataclasses
import functools
import math
import secrets as entropy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from accountants import DpEvent, report
from accountants.breakdown import Breakdown
from accountants.budget import Budget
from accountants.chain import LedgerContents
from accountants.ledger import Ledger
from accountants.pate import record, replay
from accountants.pate.analysis import Analysis
from accountants.pate.record import Answer
from accountants.pate.votes import Votes
from accountants.statement import statement
from marauder_dp import secrets
from marauder_dp.checkpoints import Checkpoints
from marauder_dp.datasets.base import digest_of_arrays
from marauder_dp.errors import IntegrityError
from marauder_dp.files import write_atomically
from marauder_dp.models import accuracy
from marauder_dp.pate.answers import Aggregator
from marauder_dp.pate.ballots import cast_votes
from marauder_dp.pate.facts import pate_facts, public_header
from marauder_dp.pate.partitions import Partitions
from marauder_dp.pate.predictions import Apply
from marauder_dp.pate.promise import promise
from marauder_dp.pate.queries import Choice, next_queries
from marauder_dp.pate.student import STEPS_BETWEEN_CALLS, StudentTraining, train_student
from marauder_dp.pate.teachers import Ensemble
from marauder_dp.pate.voting import VotingPlan
from marauder_dp.policy import Permit, RunAccount
from marauder_dp.report_page import write_page
from marauder_dp.run_directory import RunDirectory
from marauder_dp.session import check_same_settings

PyTree = Any

PARTITIONS = "teachers/partitions"
"""Path of the ledger's line about them."""


@dataclasses.dataclass(frozen=True)
class PublicExamples:
    """Examples that anyone may see: the student's, and those it is tested on.

    Attributes:
      x: (n, *shape) float32: queries are numbers of these.
      test_x, test_y: (m, *shape) and (m,): held out.
      y: (n,) what they really are, to report how right the votes are; the student doesn't see it. Or None.
    """

    x: NDArray[np.float32]
    test_x: NDArray[np.float32]
    test_y: NDArray[np.int32]
    y: NDArray[np.int32] | None = None


@dataclasses.dataclass(frozen=True)
class Job:
    """Everything about a run that is fixed before its first teacher.

    Attributes:
      settings: resolved flags; a resumption must repeat them.
      name: of the data.
      note: how features were scaled, say, for the statement.
      data: pytree of private training examples (n, …).
      public: examples.
      ensemble: of teachers, compiled.
      apply: (a teacher's parameters, examples) → logits.
      voting: how votes become answers.
      choice: of queries.
      student: its training.
      epsilon_ceiling: fixed beforehand; infinite where there is none.
      delta: at which it is meant.
      units: of privacy, how many there are: training examples unless they have ids. Declared public.
      counts_public: whether how many examples a teacher has follows from public numbers.
      reproducible_seed: derive the noise from it (voids the guarantee); None for a secret key.
      permit: of the policy that the private data are under; None where they are under none.
    """

    settings: Mapping[str, Any]
    name: str
    note: str
    data: PyTree
    public: PublicExamples
    ensemble: Ensemble
    apply: Apply
    voting: VotingPlan
    choice: Choice
    student: StudentTraining
    epsilon_ceiling: float
    delta: float
    units: int
    counts_public: bool = True
    reproducible_seed: int | None = None
    permit: Permit | None = None

    @functools.cached_property
    def promise(self) -> DpEvent | None:
        """What is fixed before the first query, where the number of answers depends on the votes."""
        return promise(self.voting, self.choice.limit, epsilon_ceiling=self.epsilon_ceiling, delta=self.delta)

    @property
    def partitions(self) -> Partitions:
        """Of the private examples."""
        return self.ensemble.partitions


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended; the rest is None where it was interrupted.

    Attributes:
      finished: False: the same command goes on.
      exhausted: whether the ceiling ended the questions.
      answers: what was released.
      analysis: of their cost; partly private. None where nothing was asked.
      breakdown: of the ledger.
      test_accuracy: the student's, on held-out public examples.
      head: of the ledger.
      budget_head: of the data set's budget; "" where it has none.
    """

    finished: bool
    exhausted: bool = False
    answers: tuple[Answer, ...] = ()
    analysis: Analysis | None = None
    breakdown: Breakdown | None = None
    test_accuracy: float | None = None
    head: str | None = None
    budget_head: str = ""


class _Stopped(Exception):
    """The user asked to stop."""


class _Student(NamedTuple):
    step: Any
    params: PyTree


def run(
    job: Job,
    directory: RunDirectory,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = print,
) -> Result:
    """Begins `job` in `directory`, or takes it up there.

    Raises:
      PlanError: the run that began in `directory` had other settings.
      IntegrityError, LedgerError: what is in `directory` contradicts itself, or another process is using it.
      ModelError: teachers or their logits aren't finite.
    """

    def may_stop() -> None:
        if should_stop():
            raise _Stopped

    check_same_settings(directory, job.settings)
    with contextlib.ExitStack() as stack:
        public, account = dict(public_header(job)), None
        if job.permit is not None:
            account = stack.enter_context(job.permit.open(directory.ledger, str(directory.path)))
            public |= account.public
        ledger = stack.enter_context(Ledger(directory.ledger, public=public))
        if ledger.recovered:
            say(f"recovered the ledger: dropped a torn last line of {len(ledger.recovered)} bytes, left by a crash")
        noise_key, salt = _secrets(job, directory, ledger.contents)
        directory.write_settings(job.settings)
        directory.drop_torn_metrics()
        _prove_partitions(job, ledger, salt)
        try:
            votes = cast_votes(job, directory, may_stop, say)
            record.bind(ledger, votes, salt)
            if account is not None:  # how many will be answered isn't known: each chunk is reserved when it is asked
                account.begin([], {path: ledger.contents.count(path) for path in (record.CHECKS, record.PLURALITIES)})
            budget = Budget(ledger, delta=job.delta, epsilon_ceiling=job.epsilon_ceiling, account=account)
            aggregator = Aggregator(job.voting, votes, noise_key, ledger, budget)
            params, exhausted = _ask_and_learn(job, aggregator, budget, may_stop, say)
        except _Stopped:
            return Result(finished=False)
        if account is not None:
            account.commit()
        result = _conclude(job, params, exhausted, votes, directory, ledger, account)
    write_page(directory, say)
    return result


def _secrets(job: Job, directory: RunDirectory, contents: LedgerContents) -> tuple[jax.Array, bytes]:
    """The noise key and the salt: the stored ones if the ledger holds anything that rests on them, else new ones.

    Raises:
      IntegrityError: the ledger is past its first line but they are gone, or they were drawn for other data or teachers.
    """
    salt_file = directory.path / replay.SALT
    begun_with = {
        "data": _fingerprint(job.data),
        "teachers": job.ensemble.digest,
        "public examples": _fingerprint(job.public.x),
    }
    stored = secrets.load(directory.private)
    if stored is not None:
        known, before = stored
        differing = [name for name in begun_with if before.get(name) != begun_with[name]]
        if differing:
            raise IntegrityError(
                f"the {' and '.join(differing)} are not what the run in {directory.path} began with (other data, settings, "
                "code, number of devices, JAX version or backend), so it can't be taken up; use another --workdir"
            )
    if contents.commitments or contents.charges:
        if stored is None or not salt_file.exists():
            raise IntegrityError(
                f"{directory.ledger} is past its beginning but {directory.private} lacks the run's secrets; restore that "
                "folder or use another --workdir"
            )
        return known.noise, salt_file.read_bytes()
    # Also where a ledger was taken away and its secrets were not: noise that may have been used is never used again.
    keys = secrets.fresh_keys() if job.reproducible_seed is None else secrets.reproducible_keys(job.reproducible_seed)
    secrets.store(directory.private, keys, begun_with)
    write_atomically(salt_file, entropy.token_bytes(32), mode=0o600)
    return keys.noise, salt_file.read_bytes()


def _fingerprint(tree: PyTree) -> str:
    return digest_of_arrays(*map(np.asarray, jax.tree.leaves(tree)))


def _prove_partitions(job: Job, ledger: Ledger, salt: bytes) -> None:
    """Binds the ledger to who sees what, once; later it checks.

    Raises:
      IntegrityError: it is bound to other partitions.
    """
    content: dict[str, Any] = {
        "teachers": job.partitions.teachers,
        "digests": job.partitions.digests(job.data, salt),
    }
    if job.counts_public:
        content["counts"] = job.partitions.counts.tolist()
    before = [c.content for c in ledger.contents.commitments if c.path == PARTITIONS]
    if not before:
        ledger.commit_to(PARTITIONS, content)
    elif before != [content]:
        raise IntegrityError("the ledger is bound to other partitions of the data than these; use another --workdir")


def _ask_and_learn(
    job: Job, aggregator: Aggregator, budget: Budget, may_stop: Callable[[], None], say: Callable[[str], None]
) -> tuple[PyTree, bool]:
    """Asks in rounds, with a student in between where the choice of queries or the check needs one.

    Returns:
      The last student's parameters, None where nothing was answered; and whether the budget ended it.
    """

    def after_chunk(_: list[Answer]) -> None:
        answered = sum(answer.answered for answer in aggregator.answers)
        ceiling = "" if math.isinf(job.epsilon_ceiling) else f" / {job.epsilon_ceiling:.3f}"
        say(f"asked {len(aggregator.answers):,}, answered {answered:,}  ε {budget.epsilon:.3f}{ceiling}")
        may_stop()

    interactive = job.voting.mechanism == "interactive_gnmax"
    aggregator.finish(after_chunk)
    while True:
        asked = [answer.query for answer in aggregator.answers]
        known = (
            _probabilities(job, _learn(job, aggregator, may_stop, say))
            if interactive or job.choice.by == "uncertainty"
            else None
        )
        queries = next_queries(job.choice, asked, len(job.public.x), known)
        expected = known[queries] if interactive and known is not None else None
        answers = aggregator.ask(queries, expected, after_chunk=after_chunk)
        if not queries or len(answers) < len(queries):
            return _learn(job, aggregator, may_stop, say), bool(queries)


def _learn(job: Job, aggregator: Aggregator, may_stop: Callable[[], None], say: Callable[[str], None]) -> PyTree:
    answered = [answer for answer in aggregator.answers if answer.answered]
    if not answered:
        return None
    queries, labels = [a.query for a in answered], [a.label for a in answered]
    tenth = max(1, job.student.steps // 10)

    def after_steps(step: int) -> None:
        may_stop()
        if step % tenth < STEPS_BETWEEN_CALLS and step < job.student.steps:
            say(f"student {step:,}/{job.student.steps:,} updates")

    return train_student(job.student, job.public.x, queries, labels, after_steps=after_steps)


def _probabilities(job: Job, params: PyTree) -> NDArray[np.float64]:
    """What a student makes of the public examples, (n, m); all the same where there is none yet."""
    x, classes = job.public.x, job.voting.classes
    if params is None:
        return np.full((len(x), classes), 1 / classes)
    model = jax.jit(lambda x: jax.nn.softmax(job.student.model.apply({"params": params}, x)))
    parts = [np.asarray(model(x[i : i + 1000]), np.float64) for i in range(0, len(x), 1000)]
    return np.concatenate(parts)


def _conclude(
    job: Job,
    params: PyTree,
    exhausted: bool,
    votes: Votes,
    directory: RunDirectory,
    ledger: Ledger,
    account: RunAccount | None,
) -> Result:
    """Keeps the student, tests it on held-out examples and writes the report."""
    contents, budget_head = ledger.contents, account.head if account is not None else ""
    answers = record.released(contents)
    analysis = replay.analyse_run(contents, votes)
    test_accuracy = None
    if params is not None:
        with Checkpoints(directory.checkpoints) as checkpoints:
            checkpoints.save(_Student(np.asarray(job.student.steps), params), contents.head, budget_head, anew=True)
        test_accuracy = accuracy(job.student.model, params, job.public.test_x, job.public.test_y)
        directory.log_metric(len(answers), "test", "accuracy", test_accuracy, private=False)
    if job.public.y is not None and any(answer.answered for answer in answers):
        right = np.mean([answer.label == job.public.y[answer.query] for answer in answers if answer.answered])
        directory.log_metric(len(answers), "public", "label_accuracy", float(right), private=False)
    facts = pate_facts(job, answers, test_accuracy)
    document = report.privacy_document(contents, job.delta, facts if account is None else account.facts(facts))
    if analysis is not None:
        document["pate"] = replay.figures(analysis)
    directory.write_json(directory.privacy_json, document)
    directory.write_text(directory.privacy_md, statement(document))
    return Result(
        finished=True,
        exhausted=exhausted,
        answers=tuple(answers),
        analysis=analysis,
        breakdown=report.breakdown_of(contents, job.delta),
        test_accuracy=test_accuracy,
        head=contents.head,
        budget_head=budget_head,
    )
