"""Three honest columns."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import accountants as acc
from accountants.chain import Charge
from accountants.report import upper

GRADIENTS = Charge("train/gradients", acc.dpsgd_event(1.1, 0.004, 1), 4000)
MEAN = Charge("data/mean", acc.LaplaceDpEvent(20.0), 1)


def test_columns_are_what_they_say():
    result = acc.break_down([GRADIENTS, MEAN, GRADIENTS], 1e-5)
    gradients, mean = result.components
    alone = acc.PldAccountant().compose(GRADIENTS.event, 8000).get_epsilon(1e-5)
    everything = acc.PldAccountant().compose(GRADIENTS.event, 8000).compose(MEAN.event).get_epsilon(1e-5)
    assert (gradients.path, gradients.events) == ("train/gradients", 8000)
    assert gradients.epsilon_alone == pytest.approx(alone)
    assert mean.epsilon_if_removed == pytest.approx(alone)
    assert result.epsilon == pytest.approx(everything)
    assert result.rdp_at_order + result.conversion_term == pytest.approx(result.epsilon)


def test_components_that_share_an_event_are_told_apart():
    sampled = lambda event: acc.PoissonSampledDpEvent(0.05, event)
    parts = acc.GaussianDpEvent(2.0), acc.GaussianDpEvent(6.0), acc.GaussianDpEvent(9.0)
    charges = [Charge("train/{sum,count,max}", sampled(acc.ComposedDpEvent(parts)), 300), Charge("train/max", parts[2], 1)]
    result = acc.break_down(charges, 1e-5, accountant="rdp")
    assert [(c.path, c.events) for c in result.components] == [("train/sum", 300), ("train/count", 300), ("train/max", 301)]
    epsilon = lambda *events: acc.RdpAccountant().compose(acc.ComposedDpEvent(events)).get_epsilon(1e-5)
    many = lambda event: acc.SelfComposedDpEvent(sampled(event), 300)
    biggest, _, last = result.components
    assert biggest.epsilon_alone == pytest.approx(epsilon(many(parts[0])))
    assert biggest.epsilon_if_removed == pytest.approx(epsilon(many(acc.ComposedDpEvent(parts[1:])), parts[2]))
    assert last.epsilon_if_removed == pytest.approx(epsilon(many(acc.ComposedDpEvent(parts[:2]))))
    assert sum(c.share for c in result.components) == pytest.approx(1)


@pytest.mark.parametrize("path", ["a/{b,c}", "{b,c,d}"])
@pytest.mark.parametrize("event", [acc.GaussianDpEvent(1.0), acc.ComposedDpEvent((acc.GaussianDpEvent(1.0),) * 4)])
def test_a_shared_path_needs_an_event_with_as_many_parts(path, event):
    with pytest.raises(acc.InvalidEventError, match="components"):
        Charge(path, event, 1)


CHARGES = st.lists(
    st.builds(
        Charge,
        st.sampled_from(["a", "b/c", "b/d"]),
        st.one_of(
            st.floats(0.5, 50).map(acc.GaussianDpEvent),
            st.floats(0.5, 50).map(acc.LaplaceDpEvent),
            st.just(acc.NonPrivateDpEvent()),
        ),
        st.integers(1, 50),
    ),
    max_size=6,
)


@settings(max_examples=100, deadline=None)
@given(CHARGES)
def test_shares_add_up_and_parts_cost_no_more_than_the_whole(charges):
    result = acc.break_down(charges, 1e-6)
    assert sum(c.share for c in result.components) == pytest.approx(1.0 if charges else 0.0)
    for component in result.components:
        assert component.epsilon_alone <= result.epsilon * (1 + 1e-9)
        assert component.epsilon_if_removed <= result.epsilon * (1 + 1e-9)
        assert not math.isnan(component.share)
    json.dumps(result.to_dict(), allow_nan=False)


def test_by_the_renyi_accountant_where_it_is_asked_for_or_needed():
    rdp = acc.break_down([GRADIENTS, MEAN], 1e-5, accountant="rdp")
    assert rdp.accountant == "rdp"
    assert rdp.lower == 0
    assert rdp.epsilon == acc.RdpAccountant().compose(GRADIENTS.event, 4000).compose(MEAN.event).get_epsilon(1e-5)
    needed = acc.break_down([GRADIENTS, Charge("tuning", acc.ZCDpEvent(0.01), 1)], 1e-5)
    assert needed.accountant == "rdp"


def test_shares_where_the_renyi_accountant_has_no_bound():
    sampled = [Charge("a", acc.dpsgd_event(1.0, 0.01, 1), 300), Charge("b", acc.dpsgd_event(1.0, 0.01, 1), 100)]
    result = acc.break_down(sampled, 1e-5, neighbouring_relation="replace_one")
    assert [c.share for c in result.components] == pytest.approx([0.75, 0.25])


@given(st.floats(1e-12, 1e12))
def test_printed_upper_bounds_are_upper_bounds(value):
    assert float(upper(value)) >= value * (1 - 2e-9)
    assert float(upper(value)) <= value * 1.0011
