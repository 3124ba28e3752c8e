"""Answers against closed forms, and events against brute force over what one teacher can change.

Statistical tests count outcomes of 20,000 draws with fixed keys and allow five standard deviations: a false alarm of 6e-7 each.
"""

import itertools
import math

import jax
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

from accountants import GaussianDpEvent, LaplaceDpEvent, PldAccountant
from accountants.pate.record import CHECKED, MECHANISMS
from marauder_dp.errors import PlanError
from marauder_dp.noise import standard_normal
from marauder_dp.pate.voting import MultiLabelPlan, QueryNoise, VotingPlan
from tests.accountants.pate_references import log_answers, log_winners, log_winners_laplace

pytestmark = pytest.mark.usefixtures("quick_compilation")

DRAWS = 20_000


def plan_of(mechanism, teachers, classes, sigma, threshold=None, sigma_threshold=None):
    checks = mechanism in CHECKED
    return VotingPlan(
        teachers,
        classes,
        sigma,
        (teachers / 2 if threshold is None else threshold) if checks else None,
        (2 * sigma if sigma_threshold is None else sigma_threshold) if checks else None,
        mechanism,
    )


def noise(seed, queries=range(DRAWS)):
    return QueryNoise(jax.random.key(seed), queries)


def assert_share(hits, probability):
    """Of DRAWS, within five standard deviations."""
    assert abs(np.mean(hits) - probability) <= 5 * math.sqrt(probability * (1 - probability) / DRAWS) + 1e-12


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_without_noise_the_largest_count_wins_and_the_threshold_is_sharp(mechanism):
    votes = np.random.default_rng(0).multinomial(30, [0.2] * 5, 200)
    plan = plan_of(mechanism, 30, 5, 1e-6, threshold=10.5)
    some = noise(1, range(200))
    student = np.full((200, 5), 0.2) if mechanism == "interactive_gnmax" else None
    passed = plan.passes(votes, some, student)
    surplus = votes.max(axis=1) - (6 if mechanism == "interactive_gnmax" else 0)
    np.testing.assert_array_equal(passed, surplus >= 10.5 if plan.checks else np.ones(200, bool))
    clear = np.sort(votes)[:, -1] > np.sort(votes)[:, -2]
    np.testing.assert_array_equal(plan.pluralities(votes, some)[clear], votes.argmax(axis=1)[clear])


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_with_infinite_noise_votes_do_not_matter(mechanism):
    votes = np.tile([30, 0, 0], (DRAWS, 1))
    plan = plan_of(mechanism, 30, 3, 4e8)
    student = np.full((DRAWS, 3), 1 / 3) if mechanism == "interactive_gnmax" else None
    some = noise(2)
    if plan.checks:
        assert_share(plan.passes(votes, some, student), 0.5)
    for label in range(3):
        assert_share(plan.pluralities(votes, some) == label, 1 / 3)


@pytest.mark.parametrize("largest", [0, 15, 18, 30])
def test_the_check_passes_as_often_as_it_should(largest):
    votes = np.tile([largest, *([0] * 29)], (DRAWS, 1))
    plan = VotingPlan(30, 30, 2.0, threshold=17.0, sigma_threshold=4.0)
    assert_share(plan.passes(votes, noise(largest)), norm.cdf((largest - 17) / 4))


def test_the_interactive_check_looks_at_the_surplus():
    votes = np.tile([20, 10, 0], (DRAWS, 1))
    student = np.tile([0.9, 0.05, 0.05], (DRAWS, 1))
    plan = VotingPlan(30, 3, 2.0, threshold=12.0, sigma_threshold=4.0, mechanism="interactive_gnmax")
    assert_share(plan.passes(votes, noise(3), student), norm.cdf((8.5 - 12) / 4))  # of the second class, 10 − 1.5


@pytest.mark.parametrize(("mechanism", "winners"), [("gnmax", log_winners), ("lnmax", log_winners_laplace)])
@pytest.mark.parametrize("votes", [(12, 9, 4), (9, 9, 9), (20, 1, 0)])
def test_classes_win_as_often_as_by_quadrature(mechanism, winners, votes):
    plan = plan_of(mechanism, sum(votes), 3, 4.0)
    labels = plan.pluralities(np.tile(votes, (DRAWS, 1)), noise(sum(votes)))
    expected = np.exp(winners(np.array(votes), 4.0))
    for label in range(3):
        assert_share(labels == label, expected[label])


def test_two_classes_by_hand():
    votes = np.tile([17, 13], (DRAWS, 1))
    gaussian = plan_of("gnmax", 30, 2, 5.0).pluralities(votes, noise(4))
    assert_share(gaussian == 0, norm.cdf(4 / (math.sqrt(2) * 5)))
    laplace = plan_of("lnmax", 30, 2, 5.0).pluralities(votes, noise(5))
    assert_share(laplace == 1, (2 + 4 / 5) * math.exp(-4 / 5) / 4)


def test_noise_is_of_the_query_alone_and_each_purpose_has_its_own():
    plan = VotingPlan(30, 3, 5.0, threshold=15.0, sigma_threshold=5.0)
    votes = np.random.default_rng(1).multinomial(30, [1 / 3] * 3, 400)
    some = noise(6, range(400))
    order = np.random.default_rng(2).permutation(400)
    shuffled = noise(6, order)
    np.testing.assert_array_equal(plan.passes(votes[order], shuffled), plan.passes(votes, some)[order])
    np.testing.assert_array_equal(plan.pluralities(votes[order], shuffled), plan.pluralities(votes, some)[order])
    drawn = [some.draws(standard_normal, purpose) for purpose in (0, 1)]
    assert len(np.unique(drawn)) == 800
    tied = np.tile([10, 10, 10], (DRAWS, 1))  # a check's noise says nothing about the winner
    passed = VotingPlan(30, 3, 5.0, 10.0, 5.0).passes(tied, noise(7))
    first = VotingPlan(30, 3, 5.0, 10.0, 5.0).pluralities(tied, noise(7)) == 0
    assert abs(np.corrcoef(passed, first)[0, 1]) < 5 / math.sqrt(DRAWS)


def moves(votes):
    """Histograms that differ by one vote moved."""
    for a, b in itertools.permutations(range(len(votes)), 2):
        if votes[a]:
            other = np.array(votes)
            other[a] -= 1
            other[b] += 1
            yield other


def all_histograms(teachers, classes):
    return [np.array(v) for v in itertools.product(range(teachers + 1), repeat=classes) if sum(v) == teachers]


def test_sensitivities_by_brute_force():
    """Counts move by exactly √2 (two by 1), the largest by at most 1, and the surplus by at most 1; each is attained."""
    counts, largest, surplus = set(), set(), 0.0
    student = np.random.default_rng(3).dirichlet([1, 1, 1], 20)
    for votes in all_histograms(6, 3):
        for other in moves(votes):
            counts.add(tuple(sorted(np.abs(votes - other).tolist())))
            largest.add(abs(votes.max() - other.max()))
            differences = (votes - 6 * student).max(axis=1) - (other - 6 * student).max(axis=1)
            surplus = max(surplus, np.abs(differences).max())
    assert counts == {(0, 1, 1)}
    assert max(largest) == 1
    assert surplus == pytest.approx(1)
    plan = VotingPlan(6, 3, 3.0, 4.0, 7.0)
    assert plan.check_event == GaussianDpEvent(7.0)
    assert plan.plurality_event.noise_multiplier * math.sqrt(2) == pytest.approx(3.0)
    assert plan_of("lnmax", 6, 3, 3.0).plurality_event.events == (LaplaceDpEvent(3.0),) * 2
    assert plan.query_event.events == (plan.check_event, plan.plurality_event)
    for mechanism in ("gnmax", "lnmax"):
        assert plan_of(mechanism, 6, 3, 3.0).check_event is None
        assert plan_of(mechanism, 6, 3, 3.0).query_event == plan_of(mechanism, 6, 3, 3.0).plurality_event


def hockey_stick(log_p, log_q, epsilon):
    return float(np.maximum(np.exp(log_p) - np.exp(epsilon + log_q), 0).sum())


@pytest.mark.parametrize(("mechanism", "winners"), [("gnmax", log_winners), ("lnmax", log_winners_laplace)])
def test_events_cover_the_exact_divergence_of_all_neighbours(mechanism, winners):
    """δ(ε) of what is released, by quadrature, is never above that of the event."""
    sigma, teachers = 1.5, 5
    event = plan_of(mechanism, teachers, 3, sigma).plurality_event
    here = {tuple(votes): winners(votes, sigma) for votes in all_histograms(teachers, 3)}
    for epsilon in (0.0, 0.3, 1.0):
        delta = PldAccountant().compose(event, 1).get_delta(epsilon)
        worst = max(
            hockey_stick(log_p, here[tuple(other)], epsilon)
            for votes, log_p in here.items()
            for other in moves(np.array(votes))
        )
        assert 0.1 * delta < worst <= delta * (1 + 1e-6)


def test_the_event_of_a_check_covers_its_exact_divergence():
    check = VotingPlan(5, 3, 1.5, 3.0, 1.5).check_event
    for epsilon in (0.0, 0.3, 1.0):
        delta = PldAccountant().compose(check, 1).get_delta(epsilon)
        pairs = [(v, v + s) for v in range(6) for s in (-1, 1)]
        worst = max(hockey_stick(log_answers(a, 3.0, 1.5), log_answers(b, 3.0, 1.5), epsilon) for a, b in pairs)
        assert 0.2 * delta < worst <= delta * (1 + 1e-6)


BAD_PLANS = [
    ((30, 3, 0.0), {}, "sigma_votes"),
    ((30, 3, -1.0), {}, "sigma_votes"),
    ((30, 3, math.nan), {}, "sigma_votes"),
    ((30, 3, math.inf), {}, "sigma_votes"),
    ((30, 3, "4"), {}, "sigma_votes"),
    ((30, 3, 1e-200), {}, "sigma_votes, noise in votes, must lie between 1e-06 and 1e"),
    ((30, 3, 1e200), {}, "sigma_votes, noise in votes"),
    ((30, 3, 1.0, 20.0, 1e-9), {}, "sigma_threshold, noise in votes"),
    ((0, 3, 1.0), {}, "at least 1 teacher"),
    ((30, 1, 1.0), {}, "2 classes"),
    ((30, 3, 1.0, 20.0), {}, "needs threshold and sigma_threshold"),
    ((30, 3, 1.0, None, 2.0), {}, "needs threshold and sigma_threshold"),
    ((30, 3, 1.0), {}, "needs threshold and sigma_threshold"),
    ((30, 3, 1.0, 20.0, 2.0), {"mechanism": "gnmax"}, "has no check"),
    ((30, 3, 1.0, None, 2.0), {"mechanism": "lnmax"}, "has no check"),
    ((30, 3, 1.0, 31.0, 2.0), {}, "between 0 and the number of teachers, 30"),
    ((30, 3, 1.0, -0.1, 2.0), {}, "between 0 and the number of teachers"),
    ((30, 3, 1.0, math.nan, 2.0), {}, "between 0 and the number of teachers"),
    ((30, 3, 1.0, 20.0, 0.0), {}, "sigma_threshold"),
    ((30, 3, 1.0, 20.0, 2.0), {"mechanism": "best"}, "confident_gnmax, interactive_gnmax, gnmax, lnmax"),
]


@pytest.mark.parametrize(("arguments", "options", "message"), BAD_PLANS, ids=range(len(BAD_PLANS)))
def test_plans_that_make_no_sense(arguments, options, message):
    with pytest.raises(PlanError, match=message) as caught:
        VotingPlan(*arguments, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "student",
    [None, np.full((4, 2), 0.5), np.full((3, 3), 1 / 3), np.full((4, 3), 0.5), np.full((4, 3), np.nan), np.full((4, 3), "a"),
     np.array([[1.5, -0.5, 0.0]] * 4)],
    ids=range(7),
)  # fmt: skip
def test_a_students_probabilities_are_checked(student):
    plan = plan_of("interactive_gnmax", 30, 3, 2.0)
    with pytest.raises(PlanError, match="student's probabilities"):
        plan.passes(np.full((4, 3), 10), noise(0, range(4)), student)
    with pytest.raises(PlanError, match="interactive_gnmax, which needs them"):
        plan_of("gnmax", 30, 3, 2.0).passes(np.full((4, 3), 10), noise(0, range(4)), np.full((4, 3), 1 / 3))


class TestMultiLabel:
    def test_a_teacher_has_a_bounded_number_of_votes(self):
        plan = MultiLabelPlan(teachers=3, labels=5, most=2, sigma_votes=1.0)
        scores = np.array([[[5, 4, 3, 2, 1.0]], [[-1, -2, -3, -4, -5.0]], [[-1, 7, -3, -4, 0.0]]])
        assert plan.bounded(scores).tolist() == [[1, 2, 0, 0, 0]]  # the two best, none, the only positive one

    @pytest.mark.parametrize("most", [1, 2, 3])
    def test_one_teacher_moves_no_more_than_the_event_says(self, most):
        """Over all pairs of what one teacher may vote for; attained."""
        labels = 4
        plan = MultiLabelPlan(teachers=1, labels=labels, most=most, sigma_votes=3.0)
        votes = [
            plan.bounded(np.array(s, float).reshape(1, 1, labels))[0] for s in itertools.product([-1, 1, 2], repeat=labels)
        ]
        assert max(vote.sum() for vote in votes) == most
        worst = max(((a - b) ** 2).sum() for a in votes for b in votes)
        assert 3.0 / plan.event.noise_multiplier == pytest.approx(math.sqrt(worst))

    def test_answers(self):
        plan = MultiLabelPlan(teachers=30, labels=2, most=1, sigma_votes=4.0)
        released = plan.answers(np.tile([18, 2], (DRAWS, 1)), noise(8))
        assert_share(released[:, 0], norm.cdf(3 / 4))
        assert_share(released[:, 1], norm.cdf(-13 / 4))
        exact = MultiLabelPlan(30, 2, 1, 1e-6).answers(np.array([[16, 14]]), noise(9, range(1)))
        assert exact.tolist() == [[True, False]]

    def test_bad_input(self):
        with pytest.raises(PlanError, match="most must lie between 1 and the 5 labels"):
            MultiLabelPlan(3, 5, 6, 1.0)
        with pytest.raises(PlanError, match="sigma_votes"):
            MultiLabelPlan(3, 5, 2, 0.0)
        with pytest.raises(PlanError, match="scores must be finite"):
            MultiLabelPlan(3, 5, 2, 1.0).bounded(np.full((3, 1, 5), np.nan))
        with pytest.raises(PlanError, match=r"scores must have the shape \(3, queries, 5\)"):
            MultiLabelPlan(3, 5, 2, 1.0).bounded(np.zeros((4, 1, 5)))


def test_probabilities_sum_to_one():
    """The references used above."""
    for winners in (log_winners, log_winners_laplace):
        assert logsumexp(winners(np.array([7, 5, 2]), 3.0)) == pytest.approx(0, abs=1e-6)
