"""Plans from public numbers alone."""

import inspect
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accountants.calibration import calibrate_steps
from accountants.pate.record import CHECKED, MECHANISMS
from marauder_dp.errors import PlanError
from marauder_dp.pate.calibration import check_ceiling, plan_voting


def test_it_never_sees_votes_or_data():
    assert set(inspect.signature(plan_voting).parameters) == {
        "teachers", "classes", "delta", "epsilon", "mechanism", "threshold", "sigma_threshold", "sigma_votes",
    }  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 5000),
    st.integers(2, 150),
    st.sampled_from([1e-9, 1e-5, 0.01]),
    st.one_of(st.none(), st.floats(0.01, 100)),
    st.sampled_from(["confident_gnmax", "interactive_gnmax", "gnmax"]),
)
def test_any_numbers_give_a_plan(teachers, classes, delta, epsilon, mechanism):
    plan = plan_voting(teachers, classes, delta, epsilon=epsilon, mechanism=mechanism)
    assert (plan.teachers, plan.classes, plan.mechanism) == (teachers, classes, mechanism)
    assert 0.05 * teachers < plan.sigma_votes < 0.5 * teachers
    assert (plan.threshold is None) == (plan.sigma_threshold is None) == (mechanism not in CHECKED)
    if plan.checks:
        assert 0 <= plan.threshold <= teachers
        assert plan.sigma_threshold >= plan.sigma_votes


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_lower_ceiling_never_means_less_noise(mechanism):
    noise = [plan_voting(250, 10, 1e-5, epsilon=e, mechanism=mechanism).sigma_votes for e in (0.5, 2.0, 8.0)]
    assert noise == sorted(noise, reverse=True)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_usual_ceiling_lets_some_queries_through(mechanism):
    plan = plan_voting(250, 10, 1e-5, epsilon=3.0, mechanism=mechanism)
    assert calibrate_steps(plan.query_event, epsilon=3.0, delta=1e-5) >= 10


def test_what_is_given_stays():
    given_ = {"threshold": 200.0, "sigma_threshold": 150.0, "sigma_votes": 40.0}
    plan = plan_voting(250, 10, 1e-5, epsilon=3.0, **given_)
    assert {name: getattr(plan, name) for name in given_} == given_
    for name in given_:
        assert getattr(plan_voting(250, 10, 1e-5, epsilon=3.0, **{name: given_[name]}), name) == given_[name]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mechanism": "gnmax", "threshold": 10.0}, "has no check"),
        ({"mechanism": "lnmax", "sigma_threshold": 10.0}, "has no check"),
        ({"threshold": 251.0}, "number of teachers, 250"),
        ({"sigma_votes": 0.0}, "sigma_votes"),
        ({"sigma_votes": math.nan}, "sigma_votes"),
        ({"sigma_threshold": -1.0}, "sigma_threshold"),
        ({"mechanism": "vote"}, "mechanism must be one of"),
    ],
)
def test_contradictions(changes, message):
    with pytest.raises(PlanError, match=message) as caught:
        plan_voting(250, 10, 1e-5, epsilon=3.0, **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, math.inf])
def test_a_ceiling_is_finite_and_positive(epsilon):
    with pytest.raises(PlanError, match="--epsilon"):
        check_ceiling(epsilon, None)


def test_some_bound_is_needed():
    with pytest.raises(PlanError, match="--epsilon, the ceiling, or --queries"):
        check_ceiling(None, None)
    for queries in (0, -3):
        with pytest.raises(PlanError, match="--queries must be at least 1"):
            check_ceiling(1.0, queries)
    check_ceiling(1.0, None)
    check_ceiling(None, 1)
