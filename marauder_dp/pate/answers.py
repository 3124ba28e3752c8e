"""Answers to queries: each charged, then drawn, then written down, in that order.

The ledger holds all that is released (see `accountants.pate.record`). A crash can leave charges without answers, which the
next run uses up, and never an answer without its charges. A query that was asked before is answered from the ledger.

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
from accountants.pate.record import CHECKS, LABELS, PLURALITIES, REFUSED, Answer
from accountants.pate.votes import Votes
from marauder_dp.errors import IntegrityError, PlanError
from marauder_dp.pate.voting import VotingPlan, query_keys

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
        if any(c.event != events[c.path] for c in ledger.contents.charges if c.path in events) or any(
            answer.query >= len(votes) or answer.label >= plan.classes for answer in self.answers
        ):
            raise IntegrityError("the ledger holds charges or answers that are not this plan's; use another --workdir")
        answered = sum(answer.answered for answer in self.answers)
        # Charges whose answers a crash prevented.
        self._credit = {
            CHECKS: ledger.contents.count(CHECKS) - len(self.answers) * plan.checks,
            PLURALITIES: ledger.contents.count(PLURALITIES) - answered,
        }

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
        expected = None if student is None else np.round(np.asarray(student, np.float64), _DECIMALS)
        row = {query: i for i, query in enumerate(queries)}
        fresh = [query for query in row if query not in self._known]
        while fresh:
            chunk = fresh[: self._affordable(min(len(fresh), self._chunk))]
            if not chunk:
                break
            rows = [row[query] for query in chunk]
            after_chunk(self._release(chunk, None if expected is None else expected[rows]))
            fresh = fresh[len(chunk) :]
        return [self._known[query] for query in itertools.takewhile(lambda query: query in self._known, queries)]

    def _affordable(self, count: int) -> int:
        """How many of `count` queries fit below the ceiling, even if all of them are answered."""
        paid = self._credit[PLURALITIES]
        if self._credit[CHECKS] >= count:
            event = self._plan.plurality_event
        else:
            event = self._plan.query_event
            paid = min(paid, self._credit[CHECKS]) if self._plan.checks else paid
        return min(count, paid + self._budget.affordable(event, max(count - paid, 0)))

    def _release(self, queries: list[int], student: Any) -> list[Answer]:
        plan, counts = self._plan, self._votes.counts[queries]
        keys = query_keys(self._key, len(self.answers), len(queries))
        if plan.check_event is not None:
            self._charge(CHECKS, plan.check_event, len(queries))
        passed = plan.passes(counts, keys, student)
        if passed.any():
            self._charge(PLURALITIES, plan.plurality_event, int(passed.sum()))
        labels = np.where(passed, plan.pluralities(counts, keys), REFUSED).tolist()
        expected = [None] * len(queries) if student is None else [tuple(p) for p in student.tolist()]
        answers = [Answer(*each) for each in zip(queries, labels, expected, strict=True)]
        self._ledger.commit_to(LABELS, record.line(answers))
        self.answers += answers
        self._known |= {answer.query: answer for answer in answers}
        return answers

    def _charge(self, path: str, event: Any, count: int) -> None:
        """Charges `count` of `event`, but for what an interrupted run has paid already."""
        used = min(count, self._credit[path])
        self._credit[path] -= used
        if count > used:
            self._budget.charge(path, event, count - used)
