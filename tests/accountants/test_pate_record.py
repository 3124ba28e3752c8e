"""What a ledger says was asked and answered: read back as written, and anything else refused by name."""

import contextlib
import hashlib
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accountants.chain import LedgerContents, read_ledger
from accountants.errors import AccountingError, LedgerError
from accountants.events import GaussianDpEvent, NeighbouringRelation
from accountants.ledger import Ledger
from accountants.pate import record
from accountants.pate.record import CHECKS, LABELS, PLURALITIES, Answer, Question
from accountants.pate.votes import Votes
from tests.accountants.pate_run import SALT, some_votes, write_run

PROBABILITIES = st.lists(st.floats(0, 1), min_size=2, max_size=2).map(tuple)


def chunks(interactive):
    """Questions and their labels."""
    one = st.tuples(st.integers(-1, 4), PROBABILITIES if interactive else st.none())
    return st.lists(st.lists(one, min_size=1, max_size=5), min_size=0, max_size=5)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), interactive=st.booleans())
def test_round_trip(tmp_path_factory, data, interactive):
    path = tmp_path_factory.mktemp("run") / "ledger.jsonl"
    number, expected = 0, []
    with Ledger(path) as ledger:
        for chunk in data.draw(chunks(interactive)):
            queries = tuple(range(number, number + len(chunk)))
            number += len(chunk)
            question = Question(queries, tuple(p for _, p in chunk) if interactive else None)
            ledger.commit_to(LABELS, question.content)
            assert record.unanswered(ledger.contents) == question
            assert record.released(ledger.contents) == expected
            answered = data.draw(st.integers(0, len(chunk)))
            labels = [label for label, _ in chunk[:answered]]
            ledger.charge(CHECKS, GaussianDpEvent(5.0), len(chunk))
            if passed := sum(label >= 0 for label in labels):
                ledger.charge(PLURALITIES, GaussianDpEvent(2.0), passed)
            ledger.commit_to(LABELS, {"labels": labels})
            expected += [Answer(q, label, p) for q, (label, p) in zip(queries, chunk[:answered], strict=False)]
    contents = read_ledger(path)
    assert record.released(contents) == expected
    assert record.unanswered(contents) is None


def contents_of(*lines, checks=0, pluralities=0, path=LABELS):
    from accountants.chain import Charge, Commitment

    charges = [Charge(p, GaussianDpEvent(3.0), n) for p, n in ((CHECKS, checks), (PLURALITIES, pluralities)) if n]
    commitments = tuple(Commitment(path, line) for line in lines)
    return LedgerContents(NeighbouringRelation.ADD_OR_REMOVE_ONE, "example", {}, tuple(charges), ("0" * 64,), b"", commitments)


def test_charges_cover_answers():
    asked, answers = {"queries": [3, 1, 2]}, {"labels": [0, -1, 1]}
    record.released(contents_of(asked, answers, checks=3, pluralities=2))
    for checks, pluralities in ((2, 2), (3, 1), (0, 3), (0, 0)):
        with pytest.raises(LedgerError, match="answers 2 of 3 queries but charges"):
            record.released(contents_of(asked, answers, checks=checks, pluralities=pluralities))
    record.released(contents_of(asked, {"labels": [0, 2, 1]}, pluralities=3))  # a mechanism without checks
    record.released(contents_of(asked, checks=0))  # asked, nothing released yet
    assert record.released(contents_of(asked, answers, path="other/path")) == []


@pytest.mark.parametrize(
    "lines",
    [
        [{"queries": [1]}, {"queries": [2]}],
        [{"labels": [1]}],
        [{"queries": [1]}, {"labels": [1, 2]}],
        [{"queries": [1]}, {"labels": [-2]}],
        [{"queries": [1]}, {"labels": [1.0]}],
        [{"queries": [1]}, {"labels": [True]}],
        [{"queries": [1]}, {"labels": [2**63]}],
        [{"queries": [1]}, {"labels": "1"}],
        [{"queries": [1]}, {"labels": [1], "more": 1}],
        [{"queries": [-1]}],
        [{"queries": [2**63]}],
        [{"queries": [None]}],
        [{"queries": 1}],
        [{"queries": {}}],
        [{"queries": [1], "labels": [1]}],
        [{"queries": [1], "student": []}],
        [{"queries": [1], "student": [1]}],
        [{"queries": [1], "student": [[10**400]]}],
        [{"queries": [1], "student": [["a"]]}],
        [{"queries": [1], "student": [[-0.1]]}],
        [{}],
        [{"query": [1]}],
    ],
    ids=str,
)
def test_malformed_lines(lines):
    with pytest.raises(LedgerError, match="malformed") as caught:
        record.released(contents_of(*lines, checks=9, pluralities=9))
    assert "\n" not in str(caught.value)


def test_a_query_answered_twice():
    for lines in ([{"queries": [1, 1]}, {"labels": [0, 0]}], [{"queries": [1]}, {"labels": [0]}] * 2):
        with pytest.raises(LedgerError, match="answers a query twice"):
            record.released(contents_of(*lines, checks=9, pluralities=9))


NUMBER = st.integers(-(10**25), 10**25) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBER | st.text(max_size=3),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x, max_size=2),
    max_leaves=6,
)
KEYS = st.sampled_from(["queries", "labels", "student", "votes_sha256", "public_examples", "x"])
NUMBERS = st.lists(st.integers(-2, 5), max_size=3)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.dictionaries(KEYS, JSON | NUMBERS, max_size=3), max_size=4), st.integers(0, 9), st.integers(0, 9))
def test_any_content_is_read_or_refused_by_name(lines, checks, pluralities):
    contents = contents_of(*lines, checks=checks, pluralities=pluralities)
    for read in (record.released, record.unanswered, record.bound_to):
        with contextlib.suppress(AccountingError):
            read(contents)


class TestBinding:
    def test_votes_and_salt(self, tmp_path):
        votes, other = some_votes(), Votes(some_votes().counts[::-1])
        with Ledger(tmp_path / "ledger.jsonl") as ledger:
            with pytest.raises(LedgerError, match="not the votes, or the salt"):
                record.check_bound(ledger.contents, votes, SALT)
            record.bind(ledger, votes, SALT)
            record.bind(ledger, votes, SALT)
            assert len(ledger.contents.commitments) == 1
            for wrong in ((other, SALT), (votes, b"f" * 16), (Votes(votes.counts[:-1]), SALT)):
                with pytest.raises(LedgerError, match="not the votes, or the salt"):
                    record.bind(ledger, *wrong)
            ledger.commit_to(LABELS, {"votes_sha256": "x", "public_examples": 1})
            with pytest.raises(LedgerError, match="bound to votes twice"):
                record.bind(ledger, votes, SALT)

    def test_one_vote_moved_is_another_digest(self):
        counts = some_votes().counts.copy()
        counts[7, [0, 1]] += (-1, 1)
        assert record.digest(Votes(counts), SALT) != record.digest(some_votes(), SALT)

    def test_the_digest_by_hand(self):
        """SHA-256 of salt, shape, little-endian int64 counts."""
        raw = SALT + b"(2, 2)" + np.array([3, 1, 0, 4], "<i8").tobytes()
        assert record.digest(Votes([[3, 1], [0, 4]]), SALT) == hashlib.sha256(raw).hexdigest()

    @pytest.mark.parametrize("salt", [b"", b"short"])
    def test_a_salt_that_hides_nothing(self, salt):
        with pytest.raises(LedgerError, match="at least 16 bytes"):
            record.digest(some_votes(), salt)


def test_the_public_ledger_holds_no_votes(tmp_path):
    """Queries, labels, digests and charges: no count of a histogram is in it."""
    contents, _ = write_run(tmp_path / "run")
    found = {key for c in contents.commitments for key in c.content}
    assert found == {"votes_sha256", "public_examples", "queries", "labels"}
    json.dumps([dict(c.content) for c in contents.commitments])
