"""Private selection: the bounds against exact distributions of the best run, limiting cases, and dp_accounting."""

import itertools
import math

import mpmath as mp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import accountants as acc
from accountants import conversion, selection
from accountants.events import NeighbouringRelation, RepeatAndSelectDpEvent
from accountants.orders import DEFAULT_ORDERS

ADD = NeighbouringRelation.ADD_OR_REMOVE_ONE
ORDERS = np.array(DEFAULT_ORDERS)
SHAPES = (-0.999, -0.5, 0.0, 1e-9, 0.5, 1.0, 3.0, math.inf)


def curve(inner, mean, shape, orders=DEFAULT_ORDERS, relation=ADD):
    return acc.event_rdp(RepeatAndSelectDpEvent(inner, mean, shape), tuple(orders), relation)


def generating_function(mean, shape):
    """f(x) = E x^K, from the definitions."""
    if mean == 1 and shape != math.inf:
        return lambda x: x
    if shape == math.inf:
        return lambda x: mp.exp(mean * (x - 1))
    gamma = mp.exp(-mp.mpf(selection.log_inverse_gamma(mean, shape)))
    if shape == 0:
        return lambda x: mp.log(1 - (1 - gamma) * x) / mp.log(gamma)
    return lambda x: ((1 - (1 - gamma) * x) ** -mp.mpf(shape) - 1) / (gamma ** -mp.mpf(shape) - 1)


def best_of_runs(masses, f):
    """Distribution of the best of K runs, outcomes in ascending order; the first mass is that of no run."""
    sums = [mp.mpf(0)]
    for mass in masses:
        sums.append(sums[-1] + mass)
    sums[-1] = mp.mpf(1)
    return [f(mp.mpf(0))] + [f(high) - f(low) for low, high in itertools.pairwise(sums)]


def divergence(order, p, q):
    return float(mp.log(mp.fsum(a**order * b ** (1 - order) for a, b in zip(p, q, strict=True) if b)) / (order - 1))


def both_ways(p, q):
    return np.array([max(divergence(order, p, q), divergence(order, q, p)) for order in COARSE])


COARSE = (1.1, 1.5, 2.0, 3.0, 5.0, 8.0, 20.0, 64.0)


def exact_and_bound(logits, changes, mean, shape):
    """(exact, bound) at COARSE for one mechanism given by log-masses of its outcomes and how a unit changes them."""
    with mp.workdps(40):
        pair = []
        for logs in (logits, [a + b for a, b in zip(logits, changes, strict=True)]):
            weights = [mp.exp(mp.mpf(value)) for value in logs]
            pair.append([weight / mp.fsum(weights) for weight in weights])
        f = generating_function(mean, shape)
        exact = both_ways(*(best_of_runs(masses, f) for masses in pair))
        run = np.maximum(both_ways(*pair), 0.0)
    return exact, selection.repeat_and_select(np.array(COARSE), run, mean, shape)


@settings(max_examples=120, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-12, 4), st.floats(-2, 2)), min_size=2, max_size=5),
    st.floats(0, 4).map(lambda e: 10**e),
    st.sampled_from([-0.5, 0.0, 0.5, 1.0, 3.0, math.inf]),
    st.floats(-6, 0).map(lambda e: 10**e),
)
def test_bounds_the_exact_divergence(outcomes, mean, shape, scale):
    """Any ranking of outcomes, rare good ones among them, and units that matter little or much."""
    logits, changes = zip(*outcomes, strict=True)
    exact, bound = exact_and_bound(logits, [scale * change for change in changes], mean, shape)
    assert (exact <= bound * (1 + 1e-8) + 1e-13).all()


@pytest.mark.parametrize("mean", [0.01, 0.3, 1.0])
def test_poisson_of_few_runs_is_bounded_too(mean):
    """Theorem 6 as it is stated would give log(mean)/(λ − 1) < 0 for a run that releases next to nothing."""
    for scale in (1e-4, 0.1, 2.0):
        exact, bound = exact_and_bound([0.0, -1.0, -8.0], [0.0, scale, -scale], mean, math.inf)
        assert (exact <= bound * (1 + 1e-9)).all()
        assert (exact > 0).all()


def test_is_nearly_attained():
    """A rare best outcome whose probability a unit multiplies by e⁴: with so few runs it is that of one run times E K."""
    exact, bound = exact_and_bound([0.0, -25.0], [0.0, 4.0], 1000.0, math.inf)
    np.testing.assert_allclose(bound[3], exact[3], rtol=0.02)


class TestLimits:
    inner = acc.GaussianDpEvent(2.0)
    run = acc.event_rdp(acc.GaussianDpEvent(2.0), DEFAULT_ORDERS, ADD)

    @pytest.mark.parametrize("shape", SHAPES[:-1])
    def test_a_mean_of_one_is_one_run(self, shape):
        np.testing.assert_allclose(curve(self.inner, 1, shape), self.run, rtol=1e-12)
        np.testing.assert_allclose(curve(self.inner, 1 + 1e-12, shape), self.run, rtol=1e-6)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_runs_that_release_nothing_cost_nothing(self, shape):
        assert not curve(acc.NoOpDpEvent(), 10, shape).any()

    @pytest.mark.parametrize("shape", SHAPES)
    def test_runs_that_release_everything_have_no_bound(self, shape):
        assert np.isinf(curve(acc.NonPrivateDpEvent(), 10, shape)).all()

    @pytest.mark.parametrize("shape", SHAPES[1:])
    def test_runs_that_release_little_cost_what_the_mean_number_of_them_does(self, shape):
        """All of them together cost no more, and cost E K times as much to first order."""
        run = np.full_like(ORDERS, 1e-9)
        whole = selection.repeat_and_select(ORDERS, run, 10.0, shape)
        np.testing.assert_allclose(whole[:200], 1e-8, rtol=1e-3)

    @pytest.mark.parametrize("shape", [-0.5, 0.0, 1.0, 3.0])
    def test_pure_dp(self, shape):
        """ε-DP runs make a (2 + η)ε-DP selection (the limit λ = λ̂ → ∞ of Theorem 2), whatever the mean."""
        whole = curve(acc.events.EpsilonDeltaDpEvent(0.5), 100, shape, (*COARSE, 10.0**6))
        assert whole[-1] == pytest.approx((2 + shape) * 0.5, rel=2e-3)

    def test_poisson_of_a_small_mean_costs_little(self):
        np.testing.assert_allclose(curve(self.inner, 1e-9, math.inf, (1.5, 2.0)), 1e-9, rtol=1)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_grows_with_the_mean_and_the_order_and_the_cost_of_a_run(self, shape):
        means = [curve(self.inner, mean, shape) for mean in (1.0, 1.5, 4.0, 100.0, 1e6)]
        for less, more in itertools.pairwise(means):
            assert (less <= more * (1 + 1e-12)).all()
        for whole in means:
            assert (np.diff(whole) >= 0).all()
        assert (curve(acc.GaussianDpEvent(4.0), 4, shape) <= means[2]).all()


class TestGamma:
    @pytest.mark.parametrize("shape", SHAPES[:-1])
    @pytest.mark.parametrize("mean", [1 + 1e-9, 1.5, 10.0, 1e6])
    def test_has_the_mean_that_was_asked_for(self, mean, shape):
        with mp.workdps(60):
            x, eta = mp.mpf(selection.log_inverse_gamma(mean, shape)), mp.mpf(shape)
            excess = mp.expm1(x) / x if shape == 0 else eta * mp.expm1(x) / -mp.expm1(-eta * x)
            assert mp.mpf(mean) - 1 <= excess - 1  # log(1/γ) is rounded up
            assert float(excess - 1) == pytest.approx(mean - 1, rel=1e-5)

    def test_known_distributions(self):
        assert selection.log_inverse_gamma(20.0, 1.0) == pytest.approx(math.log(20), rel=1e-11)  # geometric
        assert selection.log_inverse_gamma(3.0, 1e300) < 1e-298  # as good as a truncated Poisson one
        assert selection.log_inverse_gamma(1.0, 1.0) == 0
        assert selection.log_inverse_gamma(1e300, -0.9999) == pytest.approx(math.log(1e300) / 1e-4, rel=1e-3)


class TestPoissonDelta:
    def test_is_an_upper_bound_for_gaussian_noise(self):
        """δ(ε) of the Gaussian mechanism is known exactly (Balle and Wang 2018, Theorem 8)."""
        growth = 1 / (ORDERS - 1)
        with mp.workdps(40):
            for sigma in (0.5, 3.0, 100.0):
                s = mp.mpf(sigma)
                bound = selection._delta_of_curve(ORDERS, ORDERS / (2 * sigma**2), growth)
                for g, value in zip(growth[::12], bound[::12], strict=True):
                    epsilon = mp.log1p(mp.mpf(g))
                    exact = mp.ncdf(1 / (2 * s) - epsilon * s) - (1 + mp.mpf(g)) * mp.ncdf(-1 / (2 * s) - epsilon * s)
                    assert float(exact) <= value <= 1
                assert bound[-1] < 3 * float(mp.erf(1 / (2 * mp.sqrt(2) * s)))  # total variation, as ε → 0

    def test_is_close_to_the_best_conversion(self):
        rdp, growth = ORDERS / 18, 1 / (ORDERS - 1)
        bound = selection._delta_of_curve(ORDERS, rdp, growth)
        for i in (20, 60, 150):
            assert bound[i] <= 2 * conversion.delta(ORDERS, rdp, math.log1p(growth[i]))


@pytest.mark.parametrize("mean", [1.0, 1.5, 10.0, 1000.0])
@pytest.mark.parametrize("sigma", [0.7, 3.0, 50.0])
class TestAgainstDpAccounting:
    def theirs(self, sigma, mean, shape):
        dp, rdp = pytest.importorskip("dp_accounting.dp_event"), pytest.importorskip("dp_accounting.rdp")
        event = dp.RepeatAndSelectDpEvent(dp.GaussianDpEvent(sigma), mean, shape)
        return rdp.RdpAccountant(list(DEFAULT_ORDERS)).compose(event).rdp

    @pytest.mark.parametrize("shape", [0.0, 0.5, 1.0, 3.0])
    def test_theorem_2_is_the_same(self, sigma, mean, shape):
        """But for λ̂ = 1, which dp_accounting doesn't try, and for what all runs together cost."""
        theirs = self.theirs(sigma, mean, shape)
        run = acc.event_rdp(acc.GaussianDpEvent(sigma), DEFAULT_ORDERS, ADD)
        log_inverse = selection.log_inverse_gamma(mean, shape)
        theorem = selection._negative_binomial(ORDERS, run, mean, shape, log_inverse)
        theorem = np.minimum.accumulate(theorem[::-1])[::-1]
        assert (theorem <= theirs * (1 + 1e-6)).all()
        if mean > 1.5:
            np.testing.assert_allclose(theorem, theirs, rtol=0.01)
        assert (curve(acc.GaussianDpEvent(sigma), mean, shape) <= theirs * (1 + 1e-6)).all()

    def test_poisson_is_no_larger(self, sigma, mean):
        theirs = self.theirs(sigma, mean, math.inf)
        ours = curve(acc.GaussianDpEvent(sigma), mean, math.inf)
        assert (ours <= theirs * (1 + 1e-9)).all()
        if sigma == 0.7 and mean <= 10:  # many digits of A − 1, and δ̂ from the same proposition
            np.testing.assert_allclose(ours[150:], theirs[150:], rtol=0.01)


def test_a_few_orders_are_enough():
    """The second order is chosen among the default ones as well, whatever orders were asked for."""
    inner = acc.dpsgd_event(1.0, 0.01, 500)
    few = curve(inner, 30.0, 1.0, (12.0, 3.0))
    many = curve(inner, 30.0, 1.0, (*DEFAULT_ORDERS, 3.0, 12.0))
    np.testing.assert_array_equal(few, many[[-1, -2]])


def test_selection_of_selections_and_compositions():
    run = acc.ComposedDpEvent((acc.GaussianDpEvent(3.0), acc.LaplaceDpEvent(10.0)))
    nested = RepeatAndSelectDpEvent(RepeatAndSelectDpEvent(run, 2.0, 0.0), 3.0, 1.0)
    accountant = acc.RdpAccountant().compose(nested, 2)
    np.testing.assert_allclose(accountant.rdp, 2 * curve(nested.event, 3.0, 1.0), rtol=1e-12)
    assert math.isfinite(accountant.get_epsilon(1e-6))


@pytest.mark.parametrize("relation", NeighbouringRelation)
def test_every_relation(relation):
    """What the selection costs follows from what a run costs under the same relation."""
    inner = acc.GaussianDpEvent(4.0)
    equal = acc.GaussianDpEvent(2.0) if relation == "replace_one" else inner
    np.testing.assert_array_equal(curve(inner, 5.0, 1.0, relation=relation), curve(equal, 5.0, 1.0))


@pytest.mark.parametrize("sigma", [1e-160, 1e-20, 1e20, 1e160])
@pytest.mark.parametrize("mean", [1.0, 1 + 1e-15, 7.0, 1e300])
@pytest.mark.parametrize("shape", [-1 + 1e-15, -0.5, 0.0, 1e-300, 1.0, 1e300, math.inf])
def test_extreme_but_legal_values_have_a_bound(sigma, mean, shape):
    whole = curve(acc.GaussianDpEvent(sigma), mean, shape)
    assert (whole > 0).all()  # fails for a NaN as well
