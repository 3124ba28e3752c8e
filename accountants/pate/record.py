"""What a ledger says about a run of PATE: which public examples were asked about, and what was answered.

Lines are commitments under `student/labels`. The first binds the run to its votes by a salted digest. Then, for each chunk of
queries, one line is written before anything is charged for them, and one after their charges and before the answers are
released:

    {"votes_sha256": HEX, "public_examples": N}
    {"queries": [17, 4, …]}                                what is asked
    {"queries": […], "student": [[0.1, 0.9], …]}           and what an interactive check expects
    {"labels": [3, -1, …]}                                 the answers; −1: refused by the threshold check

How many passed the check can be read from the charge for their pluralities. So a run that is interrupted before it wrote the
answers has released something already, and whoever takes it up must ask the same again: that is what the first line is for.
There can be fewer labels than queries, if the rest turned out to be beyond the ceiling.

All of it but the meaning of the digest is public.
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from accountants.chain import LedgerContents
from accountants.errors import LedgerError
from accountants.events import ComposedDpEvent, DpEvent, GaussianDpEvent, LaplaceDpEvent
from accountants.ledger import Ledger
from accountants.pate.votes import Votes

LABELS = "student/labels"
CHECKS = f"{LABELS}/threshold_check"
PLURALITIES = f"{LABELS}/argmax"
REFUSED = -1

CHECKED = ("confident_gnmax", "interactive_gnmax")
"""Mechanisms that refuse some queries."""
MECHANISMS = (*CHECKED, "gnmax", "lnmax")


@dataclasses.dataclass(frozen=True)
class Answer:
    """What was released about one query.

    Attributes:
      query: number of the public example.
      label: its class, or `REFUSED`.
      student: the public probabilities that an interactive check compared the votes with, else None.
    """

    query: int
    label: int
    student: tuple[float, ...] | None = None

    @property
    def answered(self) -> bool:
        """Whether it was."""
        return self.label != REFUSED


@dataclasses.dataclass(frozen=True)
class Question:
    """A chunk of queries.

    Attributes:
      queries: numbers of public examples.
      student: of each, the public probabilities that an interactive check compares the votes with, else None.
    """

    queries: tuple[int, ...]
    student: tuple[tuple[float, ...], ...] | None = None

    def __len__(self) -> int:
        """How many there are."""
        return len(self.queries)

    @property
    def content(self) -> dict[str, Any]:
        """Of its line in the ledger."""
        if self.student is None:
            return {"queries": list(self.queries)}
        return {"queries": list(self.queries), "student": list(map(list, self.student))}

    def answers(self, labels: Sequence[int]) -> list[Answer]:
        """What `labels` say about the first queries."""
        student = (None,) * len(self) if self.student is None else self.student
        return [Answer(*each) for each in zip(self.queries, labels, student, strict=False)]


def events(mechanism: str, sigma_votes: float, sigma_threshold: float | None = None) -> tuple[DpEvent | None, DpEvent]:
    """What one query releases: whether it passes the check, if there is one, and the class of its plurality.

    One vote moved changes two counts by 1: for Gaussian noise a sensitivity of √2, for Laplace noise two mechanisms. It changes
    the largest count, or surplus, by at most 1.

    Args:
      mechanism: "lnmax" has Laplace noise, all others Gaussian.
      sigma_votes, sigma_threshold: noise in votes.
    """
    check = None if sigma_threshold is None else GaussianDpEvent(sigma_threshold)
    if mechanism == "lnmax":
        return check, ComposedDpEvent((LaplaceDpEvent(sigma_votes), LaplaceDpEvent(sigma_votes)))
    return check, GaussianDpEvent(sigma_votes / math.sqrt(2))


def released(contents: LedgerContents) -> list[Answer]:
    """All answers that a ledger holds, in order of asking.

    Raises:
      LedgerError: a line is malformed or out of order, a query is answered twice, or more was answered than charged.
    """
    answers = _read(contents)[0]
    checked, drawn = contents.count(CHECKS), contents.count(PLURALITIES)
    number = sum(answer.answered for answer in answers)
    if number > drawn or ((checked or number < len(answers)) and len(answers) > checked):
        raise LedgerError(
            f"the ledger answers {number:,} of {len(answers):,} queries but charges {checked:,} checks, {drawn:,} pluralities"
        )
    return answers


def unanswered(contents: LedgerContents) -> Question | None:
    """What was asked last, if a crash came before its answers.

    Raises:
      LedgerError: as `released`.
    """
    return _read(contents)[1]


def bind(ledger: Ledger, votes: Votes, salt: bytes) -> None:
    """Writes the salted digest of the votes, before any is used; a second time it checks them instead.

    Args:
      ledger: open for writing.
      votes: private.
      salt: at least 16 secret random bytes. Who has it can check the votes; who hasn't can't confirm a guess of them.

    Raises:
      LedgerError: the ledger is bound to other votes.
    """
    if bound_to(ledger.contents) is None:
        ledger.commit_to(LABELS, {"votes_sha256": digest(votes, salt), "public_examples": len(votes)})
    check_bound(ledger.contents, votes, salt)


def check_bound(contents: LedgerContents, votes: Votes, salt: bytes) -> None:
    """Refuses votes that are not those a ledger is bound to.

    Raises:
      LedgerError: they are others, or it is bound to none.
    """
    if bound_to(contents) != digest(votes, salt):
        raise LedgerError("these are not the votes, or the salt, that the ledger is bound to")


def bound_to(contents: LedgerContents) -> str | None:
    """The digest of the votes that a ledger is bound to; None before it is."""
    found = [c.content["votes_sha256"] for c in contents.commitments if c.path == LABELS and "votes_sha256" in c.content]
    if len(found) > 1:
        raise LedgerError("the ledger is bound to votes twice")
    return str(found[0]) if found else None


def digest(votes: Votes, salt: bytes) -> str:
    """SHA-256 of the salt, the shape as decimal text, and the counts as little-endian int64."""
    if len(salt) < 16:
        raise LedgerError("a salt has at least 16 bytes")
    return hashlib.sha256(salt + f"{votes.counts.shape}".encode() + votes.counts.astype("<i8").tobytes()).hexdigest()


def _read(contents: LedgerContents) -> tuple[list[Answer], Question | None]:
    """All answers, and the question that has none yet."""
    answers: list[Answer] = []
    asked: Question | None = None
    for content in (c.content for c in contents.commitments if c.path == LABELS and "votes_sha256" not in c.content):
        if asked is None:
            asked = _question(content)
        else:
            answers += asked.answers(_labels(content, len(asked)))
            asked = None
    if len({answer.query for answer in answers}) != len(answers):
        raise LedgerError("the ledger answers a query twice")
    return answers, asked


def _question(content: Mapping[str, Any]) -> Question:
    queries, student = content.get("queries"), content.get("student")
    if not (
        set(content) <= {"queries", "student"}
        and _whole_numbers(queries, at_least=0)
        and (student is None or (isinstance(student, list) and len(student) == len(queries) and all(map(_numbers, student))))
    ):
        raise LedgerError(f"malformed question in the ledger: {content!s:.80}")
    expected = None if student is None else tuple(tuple(map(float, row)) for row in student)
    return Question(tuple(queries), expected)


def _labels(content: Mapping[str, Any], at_most: int) -> list[int]:
    labels = content.get("labels")
    if set(content) != {"labels"} or not _whole_numbers(labels, at_least=REFUSED) or len(labels) > at_most:
        raise LedgerError(f"malformed answers in the ledger: {content!s:.80}")
    return labels


def _whole_numbers(values: Any, at_least: int) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and at_least <= value < 2**63 for value in values)


def _numbers(values: Any) -> bool:
    """Of probabilities."""
    return isinstance(values, list) and all(type(value) in (int, float) and 0 <= value <= 1 for value in values)
