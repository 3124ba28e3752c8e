"""The conversion from Rényi DP: valid, tight for one order, and never worse than the published closed forms."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from scipy.stats import norm

from accountants import GaussianDpEvent, LaplaceDpEvent, RdpAccountant, conversion, dpsgd_event

ORDERS = np.array(RdpAccountant().orders)


def one_order(alpha: float, rho: float, delta: float) -> float:
    return conversion.epsilon(np.array([alpha]), np.array([rho]), delta)[0]


def canonne_kamath_steinke(alpha: float, rho: float, delta: float) -> float:
    """Proposition 12 of their paper."""
    return rho + math.log1p(-1 / alpha) - (math.log(delta) + math.log(alpha)) / (alpha - 1)


def worst_bernoulli_delta(alpha: float, rho: float, epsilon: float) -> float:
    """sup p − e^ε q over Bernoulli pairs with D_α(p‖q) ≤ ρ: what a single order allows, by brute force over p."""

    def smallest_q(p: float) -> float:
        def excess(log_q: float) -> float:
            q = math.exp(log_q)
            log_a = alpha * math.log(p) + (1 - alpha) * log_q
            log_b = alpha * math.log1p(-p) + (1 - alpha) * math.log1p(-q)
            return float(np.logaddexp(log_a, log_b)) - (alpha - 1) * rho

        low = math.log(p) - 800
        return 0.0 if excess(low) < 0 else math.exp(optimize.brentq(excess, low, math.log(p), xtol=1e-14))

    ps = np.concatenate([np.geomspace(1e-12, 0.5, 1200), 1 - np.geomspace(0.5, 1e-9, 400)])
    return max(p - math.exp(epsilon) * smallest_q(p) for p in ps)


@pytest.mark.parametrize("alpha", [1.5, 3.0, 20.0])
@pytest.mark.parametrize("rho", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize("delta", [1e-6, 1e-2])
def test_one_order_is_valid_and_optimal(alpha, rho, delta):
    """The bound must reach δ up to the brute force's grid: not below (invalid), not far above (loose)."""
    epsilon = one_order(alpha, rho, delta)
    if epsilon < 1e-11:
        assert worst_bernoulli_delta(alpha, rho, 0.0) <= delta * (1 + 1e-6)
        return
    exact = worst_bernoulli_delta(alpha, rho, epsilon)
    assert exact <= delta * (1 + 1e-6)
    assert exact >= delta * 0.998


@settings(max_examples=500, deadline=None)
@given(
    alpha=st.floats(1.001, 1e4),
    rho=st.floats(-12, 3).map(lambda e: 10**e),
    delta=st.floats(-30, -0.5).map(lambda e: 10**e),
)
def test_never_worse_than_closed_forms_and_always_finite(alpha, rho, delta):
    value = one_order(alpha, rho, delta)
    assert math.isfinite(value)
    assert value >= 0
    slack = 1e-8 * (1 + abs(value)) + 1e-11
    assert value <= max(canonne_kamath_steinke(alpha, rho, delta), 0) + slack
    assert value <= rho - math.log(delta) / (alpha - 1) + slack


@pytest.mark.parametrize("sigma", [0.5, 2.0, 30.0])
@pytest.mark.parametrize("delta", [1e-10, 1e-5, 1e-2])
def test_gaussian_is_bounded_from_below_by_its_exact_profile(sigma, delta):
    """Balle and Wang 2018, Theorem 8: δ(ε) = Φ(1/2σ − εσ) − e^ε Φ(−1/2σ − εσ)."""
    epsilon = RdpAccountant().compose(dpsgd_event(sigma, 1.0, 1)).get_epsilon(delta)
    exact = norm.cdf(0.5 / sigma - epsilon * sigma) - math.exp(epsilon) * norm.cdf(-0.5 / sigma - epsilon * sigma)
    assert exact <= delta


def test_classic_is_mironov():
    values = conversion.epsilon(np.array([10.0]), np.array([0.5]), 1e-5, "classic")[0]
    assert values == pytest.approx(0.5 + math.log(1e5) / 9, rel=1e-8)


def test_delta_inverts_epsilon():
    accountant = RdpAccountant().compose(dpsgd_event(1.1, 0.004, 5000))
    for delta in (1e-12, 1e-5, 0.05):
        epsilon = accountant.get_epsilon(delta)
        assert accountant.get_delta(epsilon) == pytest.approx(delta, rel=1e-6)
        assert accountant.get_epsilon(accountant.get_delta(epsilon)) <= epsilon


def test_edges():
    zeros, infinite = np.zeros(len(ORDERS)), np.full(len(ORDERS), np.inf)
    assert conversion.epsilon(ORDERS, zeros, 1e-5)[0] == 0
    assert conversion.epsilon(ORDERS, infinite, 1e-5)[0] == math.inf
    assert conversion.delta(ORDERS, infinite, 5.0) == 1.0
    assert conversion.delta(ORDERS, zeros, 0.0) == pytest.approx(1e-300)


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.builds(GaussianDpEvent, st.floats(0.3, 30)),
            st.builds(LaplaceDpEvent, st.floats(0.3, 30)),
            st.builds(dpsgd_event, st.floats(0.6, 10), st.floats(1e-4, 0.9), st.integers(1, 10_000)),
        ),
        min_size=1,
        max_size=3,
    ),
    st.floats(1e-8, 0.7),
)
def test_orders_given_up_early_were_not_the_best(events, delta):
    accountant = RdpAccountant()
    for event in events:
        accountant.compose(event)
    whole = conversion.each(ORDERS, accountant.rdp, delta).min()  # searches every order to the end
    assert accountant.get_epsilon(delta) <= max(whole, 0) * (1 + 1e-3) + 1e-4


def test_delta_rises_with_what_is_composed():
    def delta(count):
        accountant = RdpAccountant(neighbouring_relation="zero_out").compose(dpsgd_event(1.88, 0.0196, count))
        return accountant.compose(LaplaceDpEvent(0.65)).compose(GaussianDpEvent(7.8), 10).get_delta(0.5)

    found = [delta(count) for count in (1, 9, 10, 30, 100)]
    assert found == sorted(found)
