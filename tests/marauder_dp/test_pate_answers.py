"""The aggregator: charged before released, below the ceiling whatever the votes, and the same after a crash at any write."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accountants import PldAccountant
from accountants.budget import Budget
from accountants.chain import parse, read_ledger
from accountants.errors import LedgerError
from accountants.ledger import Ledger
from accountants.pate import record
from accountants.pate.record import CHECKS, LABELS, PLURALITIES
from accountants.pate.votes import Votes
from marauder_dp.errors import IntegrityError, PlanError
from marauder_dp.pate import answers as answers_module
from marauder_dp.pate.answers import Aggregator
from marauder_dp.pate.voting import QueryNoise, VotingPlan

pytestmark = pytest.mark.usefixtures("quick_compilation")

TEACHERS, CLASSES, QUERIES, DELTA = 30, 3, 60, 1e-5
PLANS = {
    "confident_gnmax": VotingPlan(TEACHERS, CLASSES, 8.0, 15.0, 12.0),
    "interactive_gnmax": VotingPlan(TEACHERS, CLASSES, 8.0, 8.0, 12.0, "interactive_gnmax"),
    "gnmax": VotingPlan(TEACHERS, CLASSES, 8.0, mechanism="gnmax"),
    "lnmax": VotingPlan(TEACHERS, CLASSES, 8.0, mechanism="lnmax"),
}
KEY = jax.random.key(3)
VOTES = Votes(np.random.default_rng(0).multinomial(TEACHERS, [0.5, 0.3, 0.2], QUERIES))
STUDENT = np.random.default_rng(1).dirichlet([1, 1, 1], QUERIES)


class World:
    """A ledger on disk, and whoever takes it up."""

    def __init__(self, path, plan, *, votes=VOTES, ceiling=4.0, chunk=7):
        self.path, self.plan, self.votes, self.ceiling, self.chunk = path, plan, votes, ceiling, chunk

    def __enter__(self):
        self.ledger = Ledger(self.path)
        self.budget = Budget(self.ledger, delta=DELTA, epsilon_ceiling=self.ceiling)
        try:
            self.aggregator = Aggregator(self.plan, self.votes, KEY, self.ledger, self.budget, chunk=self.chunk)
        except BaseException:
            self.ledger.close()
            raise
        return self

    def __exit__(self, *_):
        self.ledger.close()

    def ask(self, queries, **how):
        queries = list(queries)
        student = STUDENT[queries] if self.plan.mechanism == "interactive_gnmax" else None
        return self.aggregator.ask(queries, student, **how)

    @property
    def charged(self):
        contents = read_ledger(self.path)
        return contents.count(CHECKS), contents.count(PLURALITIES)

    def check(self):
        """At every moment of its history: no answer without its charges, and ε below the ceiling."""
        lines = self.path.read_bytes().splitlines(keepends=True)
        for end in range(1, len(lines) + 1):
            contents = parse(b"".join(lines[:end]))
            released = record.released(contents)
            answered = sum(answer.answered for answer in released)
            assert contents.count(PLURALITIES) >= answered
            assert contents.count(CHECKS) >= len(released) * self.plan.checks
        accountant = PldAccountant()
        for charge in contents.charges:
            accountant.compose(charge.event, charge.count)
        assert not contents.charges or accountant.get_epsilon(DELTA) <= self.ceiling * (1 + 1e-9)
        return released


@pytest.fixture(params=PLANS)
def world(request, tmp_path):
    return World(tmp_path / "ledger.jsonl", PLANS[request.param])


def test_answers_are_the_plans_and_each_is_paid(world):
    with world:
        got = world.ask(range(10))
        assert [answer.query for answer in got] == list(range(10))
        noise = QueryNoise(KEY, range(10))
        student = STUDENT[:10].round(6) if world.plan.mechanism == "interactive_gnmax" else None
        passed = world.plan.passes(VOTES.counts[:10], noise, student)
        labels = np.where(passed, world.plan.pluralities(VOTES.counts[:10], noise), -1)
        assert [answer.label for answer in got] == labels.tolist()
        assert world.charged == (10 * world.plan.checks, passed.sum())
        assert world.check() == got == world.aggregator.answers


def test_what_was_asked_before_is_free_and_the_same(world):
    with world:
        first = world.ask([5, 6, 5, 7, 5])
        assert [answer.query for answer in first] == [5, 6, 5, 7, 5]
        before, size = world.charged, world.path.stat().st_size
        assert world.ask([7, 5, 6]) == [first[3], first[0], first[1]]
        assert world.charged == before
        assert world.path.stat().st_size == size
    with world:
        assert world.ask([7, 5]) == [first[3], first[0]]
        assert world.charged == before


def test_the_ceiling_ends_it_and_it_stays_ended(world):
    with world:
        seen = []
        got = world.ask(range(QUERIES), after_chunk=seen.extend)
        assert 5 < len(got) < QUERIES
        assert seen == got
        assert world.ask(range(QUERIES)) == got
        assert world.ask([QUERIES - 1]) == []
        before = world.charged
    with world:  # a new process
        assert world.ask([QUERIES - 1]) == []
        assert world.charged == before
    world.check()


def test_all_of_the_budget_is_used(world):
    with world:
        world.ask(range(QUERIES))
        assert world.budget.epsilon_after(world.plan.query_event) > world.ceiling


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_ceiling_holds_whatever_the_votes(tmp_path_factory, data):
    """Random plans, votes from unanimous to tied, chunks, orders and interruptions."""
    mechanism = data.draw(st.sampled_from(sorted(PLANS)))
    sigma = data.draw(st.floats(2, 40))
    checks = mechanism in ("confident_gnmax", "interactive_gnmax")
    threshold, spread = data.draw(st.sampled_from([0, 10, 20, 30])), data.draw(st.floats(1, 60))
    plan = VotingPlan(TEACHERS, CLASSES, sigma, threshold if checks else None, spread if checks else None, mechanism)
    shape = data.draw(st.sampled_from([[30, 0, 0], [10, 10, 10], [16, 14, 0]]))
    votes = Votes(np.array([np.random.default_rng(i).permutation(shape) for i in range(QUERIES)]))
    path = tmp_path_factory.mktemp("any") / "ledger.jsonl"
    world = World(path, plan, votes=votes, ceiling=data.draw(st.floats(0.05, 8)), chunk=data.draw(st.integers(1, 40)))
    for _ in range(data.draw(st.integers(1, 3))):
        with world:
            world.ask(data.draw(st.permutations(range(QUERIES)))[: data.draw(st.integers(0, QUERIES))])
    world.check()


class Crash(Exception):
    """Injected."""


def crash_at(monkeypatch, number, *, after):
    """The ledger's write `number` fails: before anything is written, or once it is."""
    counter = itertools.count()
    original = Ledger._append

    def append(self, record):
        here = next(counter) == number
        if here and not after:
            raise Crash
        result = original(self, record)
        if here:
            raise Crash
        return result

    monkeypatch.setattr(Ledger, "_append", append)


@pytest.mark.parametrize("after", [False, True])
def test_a_crash_at_any_write_changes_nothing_in_the_end(world, tmp_path, monkeypatch, after):
    """Uninterrupted, and taken up after a crash at each write: the same answers for the same charges."""
    whole = World(tmp_path / "whole.jsonl", world.plan)
    with whole:
        expected = whole.ask(range(18))
    writes = len(whole.path.read_bytes().splitlines())
    assert writes >= 9
    for number in range(1, writes):
        world.path.unlink(missing_ok=True)
        with monkeypatch.context() as patch:
            crash_at(patch, number, after=after)
            with pytest.raises(Crash), world:
                world.ask(range(18))
        world.check()
        with world:
            assert world.ask(range(18)) == expected
        assert world.check() == expected
        assert world.charged == whole.charged


@pytest.mark.parametrize("after", [pytest.param(False, marks=pytest.mark.slow), True])
def test_after_a_crash_other_questions_share_no_noise(world, monkeypatch, after):
    """What was begun is finished first, as it was asked, and no noise meets two histograms."""
    met: dict[int, set] = {}
    original = VotingPlan.passes

    def passes(self, histograms, noise, student=None):
        for i, query in enumerate(noise.queries):
            met.setdefault(int(query), set()).add((tuple(histograms[i]), None if student is None else tuple(student[i])))
        return original(self, histograms, noise, student)

    monkeypatch.setattr(VotingPlan, "passes", passes)
    for number in range(1, 9):
        world.path.unlink(missing_ok=True)
        met.clear()
        with monkeypatch.context() as patch:
            crash_at(patch, number, after=after)
            with pytest.raises(Crash), world:
                world.ask(range(18))
        begun = record.unanswered(read_ledger(world.path))
        with world:
            student = STUDENT[::-1] if world.plan.mechanism == "interactive_gnmax" else None  # has learnt something else
            world.aggregator.ask(range(QUERIES)[::-1], student)
        released = world.check()
        if begun is not None:
            done = {answer.query: answer.student for answer in released}
            expected = begun.student or (None,) * len(begun)
            assert [done[query] for query in begun.queries] == list(expected)
        assert all(len(histograms) == 1 for histograms in met.values())


def test_the_same_object_goes_on_after_a_failure(world, monkeypatch):
    """A failure between the charges and the answers, survived in the same process."""
    with World(world.path.with_name("whole.jsonl"), world.plan) as whole:
        expected = whole.ask(range(14))
    with world:
        with monkeypatch.context() as patch:
            patch.setattr(VotingPlan, "pluralities", lambda *_: (_ for _ in ()).throw(Crash))
            with pytest.raises(Crash):
                world.ask(range(7))
        assert world.ask(range(14)) == expected
    assert world.charged == whole.charged


def test_a_question_that_no_longer_fits_is_cut_short(world, monkeypatch):
    """Nothing of it was released, and the ceiling is another process's: it is answered as far as it goes, and then closed."""
    with monkeypatch.context() as patch:
        crash_at(patch, 2, after=False)
        with pytest.raises(Crash), world:
            world.ask(range(7))
    for ceiling, fits in ((1e-3, 0), (1.0, None)):
        path = world.path.with_name(f"{ceiling}.jsonl")
        path.write_bytes(world.path.read_bytes())
        with World(path, world.plan, ceiling=ceiling) as later:
            got = later.ask(range(7))
            assert (len(got) == fits) if fits is not None else (0 < len(got) < 7)
            later.aggregator.finish()
        assert record.unanswered(read_ledger(path)) is None
        later.check()


def test_a_user_who_stops_has_all_answers_so_far(world):
    def stop(new):
        raise KeyboardInterrupt

    with world, pytest.raises(KeyboardInterrupt):
        world.ask(range(20), after_chunk=stop)
    assert len(world.check()) == 7
    with world:
        assert len(world.ask(range(9))) == 9


@pytest.mark.parametrize(
    ("votes", "message"),
    [
        (Votes(VOTES.counts * 2), "30 teachers and 3 classes, the votes are of 60 and 3"),
        (Votes(np.pad(VOTES.counts, [(0, 0), (0, 1)])), "the votes are of 30 and 4"),
    ],
)
def test_votes_of_another_plan_are_refused(world, votes, message):
    world.votes = votes
    with pytest.raises(IntegrityError, match=message), world:
        pass


def test_a_ledger_of_another_plan_is_refused(world):
    with world:
        world.ask(range(9))
    good, other = world.path.read_bytes(), dict(world.plan.__dict__, sigma_votes=9.0)
    with pytest.raises(IntegrityError, match="not this plan's; use another --workdir"), World(world.path, VotingPlan(**other)):
        pass
    few = Votes(VOTES.counts[:8])
    with pytest.raises(IntegrityError, match="not this plan's"), World(world.path, world.plan, votes=few):
        pass
    assert world.path.read_bytes() == good


def test_a_question_about_too_few_votes_is_refused(world, monkeypatch):
    with monkeypatch.context() as patch:
        crash_at(patch, 2, after=False)
        with pytest.raises(Crash), world:
            world.ask(range(7))
    world.votes = Votes(VOTES.counts[:3])
    with pytest.raises(IntegrityError, match="not this plan's"), world:
        pass


def test_more_answers_than_charges_are_refused(world):
    with Ledger(world.path) as ledger:
        ledger.commit_to(LABELS, {"queries": [0, 1]})
        ledger.commit_to(LABELS, {"labels": [0, 1]})
    with pytest.raises(LedgerError, match="answers 2 of 2 queries but charges 0 checks, 0 pluralities"), world:
        pass


@pytest.mark.parametrize("queries", [[-1], [QUERIES], [0, 10**6]])
def test_queries_out_of_range_are_refused_before_anything_is_charged(world, queries):
    with world:
        student = np.full((len(queries), 3), 1 / 3) if world.plan.mechanism == "interactive_gnmax" else None
        with pytest.raises(PlanError, match="from 0 to 59"):
            world.aggregator.ask(queries, student)
    assert len(world.path.read_bytes().splitlines()) == 1


@pytest.mark.parametrize("student", [None, np.zeros((2, 3)), np.full((1, 3), 1 / 3), np.full((2, 3), np.nan)], ids=range(4))
def test_a_student_that_makes_no_sense_costs_nothing(tmp_path, student):
    with World(tmp_path / "ledger.jsonl", PLANS["interactive_gnmax"]) as world:
        with pytest.raises(PlanError, match="student's probabilities"):
            world.aggregator.ask([3, 4], student)
        assert world.charged == (0, 0)
        assert record.unanswered(world.ledger.contents) is None


def test_nothing_to_ask(world):
    with world:
        assert world.ask([]) == []
        assert len(world.path.read_bytes().splitlines()) == 1


def test_no_other_road_to_the_votes():
    """The aggregator draws in one place, after the charges."""
    source = open(answers_module.__file__, encoding="utf-8").read()  # noqa: SIM115
    assert source.count(".passes(") == source.count(".pluralities(") == source.count("_votes.counts") == 1
