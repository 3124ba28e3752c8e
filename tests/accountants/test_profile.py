"""Profile, trade-off curve, GDP, zCDP, filters and odometers."""

import math

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

import accountants as acc
from accountants.profile import gaussian_delta

RUN = acc.PldAccountant().compose(acc.dpsgd_event(1.1, 0.01, 1000))


def test_the_gaussian_trade_off_curve_is_the_known_one():
    """f(α) = Φ(Φ⁻¹(1 − α) − μ): Dong, Roth, Su 2022."""
    curve = acc.profile(acc.PldAccountant().compose(acc.GaussianDpEvent(0.5)))
    for fpr in (0.001, 0.01, 0.1, 0.5):
        exact = ndtr(ndtri(1 - fpr) - 2.0)
        assert exact * (1 - 0.01) - 1e-4 <= float(curve.min_fnr(fpr)) <= exact * (1 + 1e-9)
        assert curve.max_tpr(fpr) >= 1 - exact
    assert curve.advantage == pytest.approx(2 * ndtr(1.0) - 1, rel=1e-9)
    assert acc.bayes_risk(acc.PldAccountant().compose(acc.GaussianDpEvent(0.5)), 0.5) == pytest.approx(ndtr(-1.0), rel=1e-9)


def test_pure_dp_is_the_textbook_region():
    curve = acc.profile(acc.PldAccountant().compose(acc.EpsilonDeltaDpEvent(math.log(2))))
    assert curve.max_tpr(0.01) == pytest.approx(0.02, rel=1e-6)
    assert acc.profile(acc.PldAccountant()).max_tpr(0.01) == pytest.approx(0.01)
    assert acc.profile(acc.PldAccountant().compose(acc.NonPrivateDpEvent())).max_tpr(0.01) == 1


def test_the_whole_profile_bounds_an_attacker_more_tightly_than_one_point_of_it():
    epsilon = RUN.get_epsilon(1e-5)
    from_one_point = math.exp(epsilon) * 0.01 + 1e-5
    assert 0.01 < acc.profile(RUN).max_tpr(0.01) < from_one_point


def test_bayes_risk_is_symmetric_in_the_prior():
    assert acc.bayes_risk(RUN, 0.2) == pytest.approx(acc.bayes_risk(RUN, 0.8), rel=1e-9)
    assert acc.bayes_risk(RUN, 0.2) <= 0.2


def test_gdp_dominates_the_profile_and_knows_the_gaussian():
    for mu in (0.01, 0.5, 5, 20, 1000):
        bound = acc.gdp(acc.PldAccountant().compose(acc.GaussianDpEvent(1 / mu)))
        assert mu * (1 - 1e-9) <= bound.mu <= mu * 1.002
    sampled = acc.gdp(RUN)
    for epsilon in np.linspace(0, 3, 37):
        delta = RUN.delta_interval(float(epsilon)).lower
        assert delta <= (float(gaussian_delta(sampled.mu, epsilon)) + sampled.floor) * (1 + 1e-9)
    assert 0 < sampled.fit_error < 0.1
    assert acc.gdp(acc.PldAccountant()).mu == 0
    assert acc.gdp(acc.PldAccountant().compose(acc.NonPrivateDpEvent())).mu == math.inf


def test_by_the_renyi_accountant_too():
    rdp = acc.RdpAccountant().compose(acc.dpsgd_event(1.1, 0.01, 1000))
    assert acc.profile(rdp, points=5).max_tpr(0.1) >= acc.profile(RUN).max_tpr(0.1)


def test_zcdp():
    assert acc.zcdp(acc.GaussianDpEvent(2.0)) == 1 / 8
    assert acc.zcdp(acc.SelfComposedDpEvent(acc.GaussianDpEvent(2.0), 3), neighbouring_relation="replace_one") == 12 / 8
    assert acc.zcdp(acc.dpsgd_event(2.0, 0.01, 10)) == pytest.approx(10 / 8)
    assert acc.zcdp(acc.EpsilonDeltaDpEvent(0.4)) == pytest.approx(0.08)
    with pytest.raises(acc.UnsupportedEventError, match="EpsilonDelta"):
        acc.zcdp(acc.EpsilonDeltaDpEvent(0.4, 1e-9))


class TestFilter:
    def test_stops_before_its_promise_is_passed(self):
        stop, event = acc.Filter(epsilon=1.0, delta=1e-5), acc.GaussianDpEvent(20.0)
        n = 0
        while not stop.would_exceed(event):
            stop.charge(event)
            n += 1
        composed = acc.RdpAccountant().compose(event, n)
        assert composed.get_epsilon(1e-5) <= 1.0 < acc.RdpAccountant().compose(event, n + 2).get_epsilon(1e-5)
        assert 0 <= stop.remaining < 0.1
        before = stop.remaining
        with pytest.raises(acc.BudgetExceededError, match="nothing was released"):
            stop.charge(event)
        assert stop.remaining == before
        assert (stop.promise.epsilon, stop.promise.delta) == (1.0, 1e-5)

    def test_holds_for_unlike_events(self):
        stop = acc.Filter(epsilon=2.0, delta=1e-6, neighbouring_relation="zero_out")
        total = acc.RdpAccountant(neighbouring_relation="zero_out")
        for i in range(200):
            event = (acc.GaussianDpEvent(10.0 + i), acc.LaplaceDpEvent(30.0), acc.dpsgd_event(1.0, 0.01, 5))[i % 3]
            if not stop.would_exceed(event):
                stop.charge(event)
                total.compose(event)
        assert 1.5 < total.get_epsilon(1e-6) <= 2.0

    def test_a_typical_event_sets_the_order(self):
        """Sampled events with little noise are dear at the order that suits Gaussians."""
        step = acc.dpsgd_event(1.1, 0.01, 5)
        plain, suited = (acc.Filter(epsilon=1.0, delta=1e-5, typical_event=e) for e in (None, step))
        assert plain.would_exceed(step)
        assert not suited.would_exceed(step, 20)
        runs = next(n for n in range(1, 1000) if suited.would_exceed(step, n + 1))
        assert acc.RdpAccountant((suited.order,)).compose(step, runs).get_epsilon(1e-5) <= 1.0

    def test_odometer_is_coarse_and_never_below(self):
        odometer, exact = acc.Odometer(delta=1e-5), acc.RdpAccountant()
        assert odometer.reading.epsilon == 0
        last = 0.0
        for _ in range(30):
            odometer.charge(acc.GaussianDpEvent(15.0))
            exact.compose(acc.GaussianDpEvent(15.0))
            reading = odometer.reading.epsilon
            assert reading >= max(last, exact.get_epsilon(1e-5))
            last = reading
        assert last <= 4 * exact.get_epsilon(1e-5)


def test_success_is_not_bounded_too_low_where_e_to_epsilon_is_no_number():
    curve = acc.profile(acc.PldAccountant().compose(acc.GaussianDpEvent(0.01)))
    assert curve.max_tpr(1e-308) == pytest.approx(1, abs=1e-6)
    assert curve.max_tpr(0.0) <= 1
