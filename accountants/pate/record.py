"""What a ledger says about a run of PATE: which public examples were asked about, and what was answered.

Lines are commitments under `student/labels`. The first binds the run to its votes by a salted digest; each of the others
holds the answers to a chunk of queries, and is written after their charges and before they are released:

    {"votes_sha256": HEX, "public_examples": N}
    {"queries": [17, 4, …], "labels": [3, -1, …]}                       -1: refused by the threshold check
    {"queries": […], "labels": […], "student": [[0.1, 0.9], …]}         what an interactive check expected

All of it but the meaning of the digest is public.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any, TypeGuard

from accountants.chain import LedgerContents
from accountants.errors import LedgerError
from accountants.ledger import Ledger
from accountants.pate.votes import Votes

LABELS = "student/labels"
CHECKS = f"{LABELS}/threshold_check"
PLURALITIES = f"{LABELS}/argmax"
REFUSED = -1


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


def released(contents: LedgerContents) -> list[Answer]:
    """All answers that a ledger holds, in order of asking.

    Raises:
      LedgerError: a line of answers is malformed, a query is answered twice, or more was answered than charged.
    """
    answers = [
        answer
        for commitment in contents.commitments
        if commitment.path == LABELS and "queries" in commitment.content
        for answer in _answers(commitment.content)
    ]
    if len({answer.query for answer in answers}) != len(answers):
        raise LedgerError("the ledger answers a query twice")
    checked, drawn = contents.count(CHECKS), contents.count(PLURALITIES)
    number = sum(answer.answered for answer in answers)
    if number > drawn or ((checked or number < len(answers)) and len(answers) > checked):
        raise LedgerError(
            f"the ledger answers {number:,} of {len(answers):,} queries but charges {checked:,} checks, {drawn:,} pluralities"
        )
    return answers


def line(answers: list[Answer]) -> dict[str, Any]:
    """The content of a line of answers."""
    content: dict[str, Any] = {"queries": [a.query for a in answers], "labels": [a.label for a in answers]}
    if any(answer.student is not None for answer in answers):
        content["student"] = [list(answer.student or ()) for answer in answers]
    return content


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


def _answers(content: Mapping[str, Any]) -> list[Answer]:
    queries, labels, student = content["queries"], content.get("labels"), content.get("student")
    if not (
        set(content) <= {"queries", "labels", "student"}
        and _whole_numbers(queries, at_least=0)
        and _whole_numbers(labels, at_least=REFUSED)
        and len(queries) == len(labels)
        and (student is None or (isinstance(student, list) and len(student) == len(queries) and all(map(_numbers, student))))
    ):
        raise LedgerError(f"malformed answers in the ledger: {content!s:.80}")
    expected = [None] * len(queries) if student is None else [tuple(map(float, row)) for row in student]
    return [Answer(*each) for each in zip(queries, labels, expected, strict=True)]


def _whole_numbers(values: Any, at_least: int) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and value >= at_least for value in values)


def _numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) in (int, float) for value in values)
