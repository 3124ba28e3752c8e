"""Answers to queries: what is asked is written down, then charged, then drawn, and answers are written before they are used.

The ledger holds all that is released (see `accountants.pate.record`). A crash can leave charges without answers, never an
answer without its charges; and what had been asked is then answered first, by the same draws: noise is a function of the secret
key and the number of the example, so that no two histograms ever share it. A query that was asked before is answered from the
ledger.

Whether to go on depends on the budget's data-independent bound and on outcomes that are public, never on the votes. The
events of which the number of answers depends on them are Gaussian, and Gaussian mechanisms compose adaptively as they do when
fixed (Smith and Thakurta 2022, Theorem 1), so the ceiling holds whatever was answered.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from accountants.budget import Budget
from accountants.ledger import Ledger
from accountants.pate import record
from accountants.pate.record import CHECKS, LABELS, PLURALITIES, REFUSED, Answer, Question
from accountants.pate.votes import Votes
from marauder_dp.errors import IntegrityError, PlanError
from marauder_dp.pate.voting import QueryNoise, VotingPlan

_DECIMALS = 6  # of a student's probabilities, so that the ledger holds what was used


class Aggregator:
    """Stands between the votes, which are private, and whoever asks.

    Attributes:
      answers: everything released so far, in order of asking.
    """

    def __init__(
        self, plan: VotingPlan, votes: Votes, noise_key: jax.Array, ledger: Ledger, budget: Budget, *, chunk: int = 100
    ):
        """Takes up where `ledger` ends.

        Args:
          plan: mechanism and noise.
          votes: histograms of all public examples, private.
          noise_key: secret; the same for the whole run.
          ledger: open for writing.
          budget: on that ledger.
          chunk: queries that are charged together: what a crash can waste.

        Raises:
          IntegrityError: the votes don't fit the plan, or the ledger holds what this plan can't have released.
          LedgerError: the ledger answers more than it charges.
        """
        if (votes.teachers, votes.classes) != (plan.teachers, plan.classes):
            raise IntegrityError(
                f"the plan is for {plan.teachers} teachers and {plan.classes} classes, the votes are of {votes.teachers} "
                f"and {votes.classes}"
            )
        self._plan, self._votes, self._key = plan, votes, noise_key
        self._ledger, self._budget, self._chunk = ledger, budget, chunk
        self.answers = record.released(ledger.contents)
        self._known = {answer.query: answer for answer in self.answers}
        events = {CHECKS: plan.check_event, PLURALITIES: plan.plurality_event}
        asked = record.unanswered(ledger.contents) or Question(())
        if any(c.event != events[c.path] for c in ledger.contents.charges if c.path in events) or not (
            all(answer.query < len(votes) and answer.label < plan.classes for answer in self.answers)
            and all(query < len(votes) and query not in self._known for query in asked.queries)
        ):
            raise IntegrityError("the ledger holds charges or answers that are not this plan's; use another --workdir")

    def ask(
        self, queries: Sequence[int], student: Any = None, *, after_chunk: Callable[[list[Answer]], object] = lambda _: None
    ) -> list[Answer]:
        """Answers queries, as far as the budget goes.

        Args:
          queries: numbers of public examples. What was asked before costs nothing.
          student: (len(queries), m) public probabilities, for `interactive_gnmax`.
          after_chunk: called with the new answers of each chunk; may raise to stop.

        Returns:
          The answers of the first queries, in order: of all of them unless the budget is used up.

        Raises:
          PlanError: a query is not the number of a public example.
        """
        queries = [int(query) for query in queries]
        if queries and not (min(queries) >= 0 and max(queries) < len(self._votes)):
            raise PlanError(f"queries are numbers of public examples, from 0 to {len(self._votes) - 1}")
        self._plan.check_student(student, len(queries))
        expected = None if student is None else np.round(np.asarray(student, np.float64), _DECIMALS)
        self.finish(after_chunk)
        row = {query: i for i, query in enumerate(queries)}
        fresh = [query for query in row if query not in self._known]
        while fresh:
            chunk = fresh[: self._affordable(min(len(fresh), self._chunk))]
            if not chunk:
                break
            given = None if expected is None else tuple(tuple(expected[row[query]].tolist()) for query in chunk)
            question = Question(tuple(chunk), given)
            self._ledger.commit_to(LABELS, question.content)
            after_chunk(self._release(question))
            fresh = fresh[len(chunk) :]
        return [self._known[query] for query in itertools.takewhile(lambda query: query in self._known, queries)]

    def finish(self, after_chunk: Callable[[list[Answer]], object] = lambda _: None) -> None:
        """Answers what a run had asked when it was interrupted, as it was asked, if there is such a question."""
        question = record.unanswered(self._ledger.contents)
        if question is None:
            return
        if not self._credit(PLURALITIES):
            # Nothing of it is known yet, so it may be cut short. Otherwise all of it was found to fit.
            count = self._affordable(len(question))
            question = Question(question.queries[:count], question.student and question.student[:count])
        after_chunk(self._release(question))

    def _credit(self, path: str) -> int:
        """Charges whose answers a crash prevented."""
        charged = self._ledger.contents.count(path)
        if path == CHECKS:
            return charged - len(self.answers) * self._plan.checks
        return charged - sum(answer.answered for answer in self.answers)

    def _affordable(self, count: int) -> int:
        """How many of `count` queries fit below the ceiling, even if all of them are answered."""
        paid, event = self._credit(PLURALITIES), self._plan.plurality_event
        if self._plan.checks and self._credit(CHECKS) < count:
            paid, event = min(paid, self._credit(CHECKS)), self._plan.query_event
        return min(count, paid + self._budget.affordable(event, max(count - paid, 0)))

    def _release(self, question: Question) -> list[Answer]:
        """Charges, draws and writes down the answers to a question that was written down."""
        labels = self._labels(question) if len(question) else []
        answers = question.answers(labels)
        self._ledger.commit_to(LABELS, {"labels": labels})
        self.answers += answers
        self._known |= {answer.query: answer for answer in answers}
        return answers

    def _labels(self, question: Question) -> list[int]:
        plan, counts = self._plan, self._votes.counts[list(question.queries)]
        noise = QueryNoise(self._key, question.queries)
        plan.check_student(question.student, len(question))
        if plan.check_event is not None:
            self._charge(CHECKS, plan.check_event, len(question))
        passed = plan.passes(counts, noise, question.student)
        self._charge(PLURALITIES, plan.plurality_event, int(passed.sum()))
        return np.where(passed, plan.pluralities(counts, noise), REFUSED).tolist()

    def _charge(self, path: str, event: Any, count: int) -> None:
        """Charges `count` of `event`, but for what an interrupted run has paid already."""
        due = count - self._credit(path)
        if due > 0:
            self._budget.charge(path, event, due)
