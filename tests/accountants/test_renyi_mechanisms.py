"""Rényi curves of every event, against distributions written out, high-precision arithmetic and the other accountants."""

import itertools
import math

import mpmath as mp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

import accountants as acc
from accountants import bernoulli, events, renyi, renyi_bounded, renyi_mixture
from accountants.events import EVENT_TYPES, NeighbouringRelation
from accountants.orders import DEFAULT_ORDERS
from accountants.pld import PldAccountant

ORDERS = (1.01, 1.5, 2.0, 3.7, 16.0, 64.0)
ADD, REPLACE, ZERO = (NeighbouringRelation(name) for name in ("add_or_remove_one", "replace_one", "zero_out"))
GAUSSIAN = acc.GaussianDpEvent(2.0)


def curve(event, relation=ADD, orders=ORDERS):
    return acc.event_rdp(event, tuple(orders), relation)


def divergence(order, p, q):
    """D_α(p‖q) of two lists of masses, exact: mpmath numbers throughout."""
    return mp.log(mp.fsum(a**order * b ** (1 - order) for a, b in zip(p, q, strict=True) if a)) / (order - 1)


def larger(order, p, q):
    order = mp.mpf(order)
    return max(divergence(order, p, q), divergence(order, q, p))


def exact_curve(p, q, sampling=1.0, orders=ORDERS):
    """The larger direction of a pair of masses, with p on a sample."""
    s = mp.mpf(sampling)
    mixture = [(1 - s) * b + s * a for a, b in zip(p, q, strict=True)]
    return np.array([float(larger(order, mixture, q)) for order in orders])


@pytest.fixture(autouse=True)
def _precision():
    with mp.workdps(40):
        yield


def discrete_masses(log_mass, shift, reach):
    """A whole-number noise distribution shifted by `shift` and by 0, on −reach … shift + reach."""
    places = range(-reach, shift + reach + 1)
    total = mp.fsum(mp.exp(log_mass(k)) for k in range(-4 * reach, 4 * reach + 1))
    return [[mp.exp(log_mass(k - move)) / total for k in places] for move in (shift, 0)]


class TestPureDp:
    @pytest.mark.parametrize("epsilon", [1e-8, 0.3, 5.0])
    @pytest.mark.parametrize("q", [1.0, 0.2])
    def test_equals_randomised_response(self, epsilon, q):
        high = 1 / (1 + mp.exp(-mp.mpf(epsilon)))
        exact = exact_curve([high, 1 - high], [1 - high, high], q)
        np.testing.assert_allclose(renyi_bounded.pure(ORDERS, epsilon, q), exact, rtol=1e-12)

    def test_all_that_is_known_to_be_pure_has_its_curve(self):
        pure = renyi_bounded.pure(ORDERS, 1.0)
        for event in (
            events.EpsilonDeltaDpEvent(1.0),
            events.AboveThresholdDpEvent(2.0, 4.0),
            events.ReportNoisyMaxDpEvent(2.0, "laplace"),
            events.ReportNoisyMaxDpEvent(1.0, "exponential", monotonic=True),
        ):
            np.testing.assert_array_equal(curve(event), pure)
            np.testing.assert_array_equal(curve(event, ZERO), pure)
            np.testing.assert_array_equal(curve(event, REPLACE), renyi_bounded.pure(ORDERS, 2.0))
            sampled = curve(acc.PoissonSampledDpEvent(0.1, event))
            np.testing.assert_array_equal(sampled, renyi_bounded.pure(ORDERS, 1.0, 0.1))

    def test_limits(self):
        """KL divergence ε·tanh(ε/2) at order 1, ε at order ∞; amplified to log(1 + q(e^ε − 1))."""
        assert renyi_bounded.pure([1 + 1e-9], 2.0)[0] == pytest.approx(2 * math.tanh(1), rel=1e-7)
        assert renyi_bounded.pure([1e6], 2.0)[0] == pytest.approx(2, rel=1e-6)
        assert renyi_bounded.pure([1e6], 2.0, 0.1)[0] == pytest.approx(math.log1p(0.1 * math.expm1(2)), rel=1e-5)

    def test_a_delta_leaves_no_renyi_bound(self):
        event = events.EpsilonDeltaDpEvent(0.1, 1e-9)
        for relation in NeighbouringRelation:
            assert np.isinf(curve(event, relation)).all()
        assert np.isinf(curve(acc.PoissonSampledDpEvent(0.1, event))).all()
        assert not curve(events.EpsilonDeltaDpEvent(0.0)).any()


class TestDiscreteLaplace:
    @pytest.mark.parametrize(("a", "shift"), [(1.0, 1), (0.4, 3), (1e-3, 2)])
    @pytest.mark.parametrize("q", [1.0, 0.1])
    def test_equals_the_distribution(self, a, shift, q):
        # The tails beyond the shift have one ratio each, so they are summed in closed form.
        a_ = mp.mpf(a)
        end, middle = 1 / (1 + mp.exp(-a_)), [mp.tanh(a_ / 2) * mp.exp(-a_ * k) for k in range(1, shift)]
        base = [end, *middle, end * mp.exp(-a_ * shift)]
        exact = exact_curve(base[::-1], base, q)
        event = events.DiscreteLaplaceDpEvent(a, shift)
        np.testing.assert_allclose(curve(acc.PoissonSampledDpEvent(q, event)), exact, rtol=1e-11)

    def test_replacing_doubles_the_shift(self):
        np.testing.assert_array_equal(
            curve(events.DiscreteLaplaceDpEvent(0.3, 2), REPLACE), curve(events.DiscreteLaplaceDpEvent(0.3, 4))
        )

    @pytest.mark.parametrize("q", [1.0, 0.05])
    def test_approaches_continuous_noise_from_above(self, q):
        """With ever finer steps it becomes Laplace noise; merged atoms are still an upper bound."""
        continuous = curve(acc.PoissonSampledDpEvent(q, acc.LaplaceDpEvent(1.0)))
        for shift in (4096, 4097, 10**6 + 1, 10**12):
            discrete = curve(acc.PoissonSampledDpEvent(q, events.DiscreteLaplaceDpEvent(1 / shift, shift)))
            assert (discrete >= continuous * (1 - 1e-12)).all()
            np.testing.assert_allclose(discrete, continuous, rtol=2e-3)

    def test_merged_atoms_bound_the_exact_curve(self, monkeypatch):
        exact = renyi_bounded.discrete_laplace(ORDERS, 0.02, 97, 0.3)
        monkeypatch.setattr(renyi_bounded, "MAX_ATOMS", 20)
        merged = renyi_bounded.discrete_laplace(ORDERS, 0.02, 97, 0.3)
        assert (exact < merged).all()
        assert (merged < exact * 1.2).all()


class TestRandomisedResponse:
    @pytest.mark.parametrize(("noise", "buckets"), [(0.5, 2), (0.2, 7), (1e-6, 3), (0.999999, 10)])
    def test_equals_the_distribution(self, noise, buckets):
        other = mp.mpf(noise) / buckets
        kept = 1 - mp.mpf(noise) + other
        exact = exact_curve([kept, other] + [other] * (buckets - 2), [other, kept] + [other] * (buckets - 2))
        np.testing.assert_allclose(curve(events.RandomizedResponseDpEvent(noise, buckets), REPLACE), exact, rtol=1e-9)

    def test_equals_dp_accounting(self):
        rdp = pytest.importorskip("dp_accounting.rdp.rdp_privacy_accountant")
        theirs = rdp._compute_randomized_response_rdp(0.3, 5, ORDERS, rdp.NeighborRel.REPLACE_ONE)
        np.testing.assert_allclose(curve(events.RandomizedResponseDpEvent(0.3, 5), REPLACE), theirs, rtol=1e-9)

    def test_ends(self):
        assert not curve(events.RandomizedResponseDpEvent(1.0, 3), REPLACE).any()
        assert np.isinf(curve(events.RandomizedResponseDpEvent(0.0, 3), REPLACE)).all()


class TestBoundedRange:
    @pytest.mark.parametrize("eta", [1e-3, 0.5, 4.0, 60.0])
    def test_is_the_worst_two_point_mechanism(self, eta):
        """Over all t: outcomes with losses t and t − η, the masses being those that sum to 1."""
        exact = []
        for order in ORDERS:
            best = 0.0
            for t in np.linspace(0, 1, 20001)[1:-1] * eta:
                high = math.log(math.expm1(t - eta) / math.expm1(-eta)) - t  # log of the mass at the loss t
                low = math.log(math.expm1(-t) / math.expm1(-eta))
                best = max(best, np.logaddexp(high + order * t, low + order * (t - eta)) / (order - 1))
            exact.append(best)
        ours = renyi_bounded.bounded_range(ORDERS, eta)
        if eta > 0.1:  # below, the reference cancels
            assert (ours >= np.array(exact) * (1 - 1e-9)).all()
            np.testing.assert_allclose(ours, exact, rtol=1e-3)
        assert (ours <= np.minimum(np.array(ORDERS) * eta**2 / 8, eta)).all()  # Cesar and Rogers 2021
        np.testing.assert_allclose(renyi_bounded.bounded_range(ORDERS, 1e-5), np.array(ORDERS) * 1e-10 / 8, rtol=1e-6)

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(st.tuples(st.floats(-8, 8), st.floats(-1, 1)), min_size=2, max_size=6),
        st.floats(0.05, 6),
        st.floats(0.01, 0.99),
    )
    def test_bounds_exponential_mechanisms(self, scores, epsilon, q):
        """Scores that differ by at most Δ = 1; both directions, sampled or not."""
        score, change = np.array(scores).T
        p, base = (epsilon / 2 * s - logsumexp(epsilon / 2 * s) for s in (score + change, score))  # logarithms
        event = events.ExponentialMechanismDpEvent(epsilon)
        orders = (1.5, 4.0, 20.0)
        for rate, pair in ((1.0, p), (q, np.logaddexp(math.log1p(-q) + base, math.log(q) + p))):
            bound = curve(acc.PoissonSampledDpEvent(rate, event), orders=orders)
            for order, limit in zip(orders, bound, strict=True):
                for a, b in ((pair, base), (base, pair)):
                    assert logsumexp(order * a + (1 - order) * b) / (order - 1) <= limit * (1 + 1e-9) + 1e-13

    @pytest.mark.parametrize(("eta", "q", "order"), [(0.5, 0.3, 2.5), (6.0, 1e-3, 40.0), (1e-3, 0.9, 300.0), (3.0, 0.5, 1.01)])
    def test_sampled_equals_quadrature_of_the_dominating_pair(self, eta, q, order):
        e, q_, power = mp.mpf(eta), mp.mpf(q), mp.mpf(order)
        density = lambda y: mp.exp(-(y + e) / 2) / (2 * (1 - mp.exp(-e)))
        values = []
        for exponent in (power, 1 - power):
            integrand = lambda y: density(y) * (1 - q_ + q_ * mp.exp(y)) ** exponent
            values.append(mp.log(mp.quad(integrand, mp.linspace(-e, e, 9))) / (power - 1))
        assert values[0] >= values[1]
        exact = min(float(values[0]), float(renyi_bounded.bounded_range([order], eta)[0]))
        assert renyi_bounded.sampled_bounded_range([order], eta, q)[0] == pytest.approx(exact, rel=1e-11)

    def test_events(self):
        bound = renyi_bounded.bounded_range(ORDERS, 0.5)
        np.testing.assert_array_equal(curve(events.ExponentialMechanismDpEvent(0.5)), bound)
        np.testing.assert_array_equal(curve(events.ReportNoisyMaxDpEvent(4.0)), bound)
        np.testing.assert_array_equal(curve(events.ReportNoisyMaxDpEvent(2.0, monotonic=True)), bound)
        np.testing.assert_array_equal(curve(events.ExponentialMechanismDpEvent(0.25), REPLACE), bound)


class TestDiscreteGaussian:
    @pytest.mark.parametrize(("sigma", "shift"), [(0.4, 1), (1.5, 1), (3.0, 4)])
    @pytest.mark.parametrize("q", [1.0, 0.05])
    def test_bounds_the_distribution_and_is_exact_at_integer_orders(self, sigma, shift, q):
        orders = (1.3, 2.0, 2.5, 6.0)
        p, base = discrete_masses(lambda k: -(mp.mpf(k) ** 2) / (2 * mp.mpf(sigma) ** 2), shift, 60)
        exact = exact_curve(p, base, q, orders)
        ours = curve(acc.PoissonSampledDpEvent(q, events.DiscreteGaussianDpEvent(sigma, shift)), orders=orders)
        assert (ours >= exact * (1 - 1e-11)).all()
        np.testing.assert_allclose(ours[[1, 3]], exact[[1, 3]], rtol=1e-11)
        if q < 1:
            np.testing.assert_allclose(ours, exact, rtol=1e-11)

    def test_is_gaussian_noise_where_sigma_is_large(self):
        discrete = curve(acc.PoissonSampledDpEvent(0.01, events.DiscreteGaussianDpEvent(30.0, 20)))
        np.testing.assert_allclose(discrete, curve(acc.dpsgd_event(1.5, 0.01, 1)), rtol=1e-10)

    def test_too_many_nodes_fall_back_to_a_bound(self):
        exact = curve(acc.PoissonSampledDpEvent(0.01, events.DiscreteGaussianDpEvent(300.0, 200)))
        bound = curve(acc.PoissonSampledDpEvent(0.01, events.DiscreteGaussianDpEvent(3e7, 2 * 10**7)))
        assert (bound >= exact * (1 - 1e-10)).all()
        assert bound[2] == pytest.approx(exact[2], rel=1e-10)

    def test_replacing_doubles_the_shift(self):
        event = events.DiscreteGaussianDpEvent(2.0, 3)
        np.testing.assert_allclose(curve(event, REPLACE), np.array(ORDERS) * 36 / 8, rtol=1e-15)


def exact_mixture(order, shifts, weights, forward):
    """One direction by 30-digit quadrature, split at every peak."""
    order, shifts, weights = mp.mpf(order), [mp.mpf(s) for s in shifts], [mp.mpf(w) for w in weights]
    power = order if forward else 1 - order
    ratio = lambda t: mp.fsum(w * mp.exp(s * t - s * s / 2) for s, w in zip(shifts, weights, strict=True))
    integrand = lambda t: mp.npdf(t) * (ratio(t) ** power - 1 - power * (ratio(t) - 1))
    peaks = [order * s for s in shifts] if forward else [-(order - 1) * s for s in shifts] + list(shifts)
    cuts = sorted({p + d for p in [mp.mpf(0), *peaks] for d in (-20, -6, -2, 0, 2, 6, 20)})
    return mp.log1p(mp.quad(integrand, cuts)) / (order - 1)


class TestMixtureOfGaussians:
    @pytest.mark.parametrize(
        ("shifts", "weights", "order"),
        [((0.0, 0.5, 2.0), (0.5, 0.3, 0.2), 3.0), ((1.0, 2.0), (0.9, 0.1), 8.5), ((0.0, 0.02), (0.75, 0.25), 1.1)],
    )
    def test_each_direction_equals_quadrature(self, shifts, weights, order):
        args = np.array([order]), np.array(shifts), np.array(weights)
        forward, backward = (float(exact_mixture(order, shifts, weights, way)) for way in (True, False))
        assert renyi_mixture._with_against_without(*args)[0] == pytest.approx(forward, rel=1e-11)
        assert renyi_mixture._without_against_with(*args)[0] == pytest.approx(backward, rel=1e-11)
        event = events.MixtureOfGaussiansDpEvent(2.0, tuple(2 * s for s in shifts), weights)
        assert curve(event, orders=(order,))[0] == pytest.approx(max(forward, backward), rel=1e-11)

    def test_one_shift_that_is_sometimes_missing_is_a_sampled_gaussian(self):
        event = events.MixtureOfGaussiansDpEvent(1.5, (0.0, 1.0), (0.8, 0.2))
        np.testing.assert_allclose(curve(event), curve(acc.dpsgd_event(1.5, 0.2, 1)), rtol=1e-11)
        np.testing.assert_allclose(curve(event, ZERO), curve(event), rtol=0)
        whole = acc.PoissonSampledDpEvent(0.2, events.MixtureOfGaussiansDpEvent(1.5, (1.0,), (1.0,)))
        np.testing.assert_allclose(curve(whole), curve(event), rtol=1e-11)

    def test_one_shift_is_a_gaussian_at_every_order(self):
        event = events.MixtureOfGaussiansDpEvent(1.0, (1.0, 1.0), (0.5, 0.5))
        np.testing.assert_allclose(
            curve(event, orders=DEFAULT_ORDERS), curve(acc.GaussianDpEvent(1.0), orders=DEFAULT_ORDERS), rtol=1e-11
        )

    def test_what_is_too_large_for_quadrature_is_bounded(self, monkeypatch):
        args = np.array(ORDERS), np.array([0.0, 0.5, 1.0]), np.array([0.6, 0.3, 0.1])
        exact = renyi_mixture.mixture_of_gaussians(*args)
        monkeypatch.setattr(renyi_mixture, "MAX_NODES", 0)
        assert (renyi_mixture.mixture_of_gaussians(*args) >= exact).all()
        monkeypatch.undo()
        monkeypatch.setattr(renyi_mixture, "_MAX_SHIFTS", 3)
        many = np.linspace(0, 1, 50), np.full(50, 0.02)
        rounded = renyi_mixture.mixture_of_gaussians(ORDERS, *many)
        monkeypatch.undo()
        exact = renyi_mixture.mixture_of_gaussians(ORDERS, *many)
        assert (rounded > exact).all()

    def test_nothing_and_too_much(self):
        assert not curve(events.MixtureOfGaussiansDpEvent(1.0, (0.0, 3.0), (1.0, 0.0))).any()
        assert np.isinf(curve(events.MixtureOfGaussiansDpEvent(1e-200, (1.0, 2.0), (0.5, 0.5)))).all()


class TestZcdp:
    def test_add(self):
        np.testing.assert_allclose(curve(events.ZCDpEvent(0.3, 0.1)), 0.1 + 0.3 * np.array(ORDERS), rtol=1e-15)

    def test_replacing_is_group_privacy_for_two(self):
        """Tight for the Gaussian mechanism, whose ρ is 1/(2σ²); and no more than (3ξ, 4ρ)."""
        np.testing.assert_allclose(curve(events.ZCDpEvent(1 / 8), REPLACE), curve(GAUSSIAN, REPLACE), rtol=1e-15)
        with_xi = curve(events.ZCDpEvent(0.3, 0.1), REPLACE)
        assert (with_xi > 4 * 0.3 * np.array(ORDERS) + 2 * 0.1).all()
        assert (with_xi < 4 * 0.3 * np.array(ORDERS) + 3 * 0.1).all()


class TestTrees:
    @pytest.mark.parametrize("relation", NeighbouringRelation)
    def test_compositions(self, relation):
        one = curve(GAUSSIAN, relation)
        np.testing.assert_allclose(curve(events.FixedOrderDpEvent(GAUSSIAN, 7), relation), 7 * one)
        np.testing.assert_allclose(curve(events.SingleEpochTreeAggregationDpEvent(2.0, (8, 3, 5)), relation), 4 * one)
        assert not curve(events.SingleEpochTreeAggregationDpEvent(2.0, 0), relation).any()
        laplace = acc.LaplaceDpEvent(5.0)
        both = np.maximum(one, curve(laplace, relation))
        np.testing.assert_array_equal(curve(events.ParallelDpEvent((GAUSSIAN, laplace)), relation), both)
        assert not curve(events.ParallelDpEvent(()), relation).any()

    @pytest.mark.parametrize("relation", NeighbouringRelation)
    def test_a_subset_of_nothing_or_of_all_is_no_sampling(self, relation):
        np.testing.assert_array_equal(
            curve(events.SampledWithoutReplacementDpEvent(9, 9, GAUSSIAN), relation), curve(GAUSSIAN, relation)
        )
        assert not curve(events.SampledWithoutReplacementDpEvent(9, 0, acc.NonPrivateDpEvent()), relation).any()

    def test_sampling_of_trees(self):
        sample = lambda event, q=0.1: curve(acc.PoissonSampledDpEvent(q, event))
        one = sample(GAUSSIAN)
        np.testing.assert_array_equal(sample(events.FixedOrderDpEvent(GAUSSIAN)), one)
        np.testing.assert_allclose(sample(events.SingleEpochTreeAggregationDpEvent(4.0, 8)), one, rtol=1e-12)
        np.testing.assert_array_equal(sample(acc.PoissonSampledDpEvent(0.2, GAUSSIAN), 0.5), one)
        laplace = acc.LaplaceDpEvent(5.0)
        np.testing.assert_array_equal(sample(events.ParallelDpEvent((GAUSSIAN, laplace))), np.maximum(one, sample(laplace)))


REFUSED = [
    (acc.dpsgd_event(1.0, 0.1, 2), REPLACE, "replace_one.*pld"),
    (acc.PoissonSampledDpEvent(0.1, acc.LaplaceDpEvent(1.0)), REPLACE, "replace_one.*pld"),
    (events.SampledWithoutReplacementDpEvent(10, 3, GAUSSIAN), ADD, "pld.*replace_one only.*add_or_remove_one"),
    (events.SampledWithoutReplacementDpEvent(10, 3, GAUSSIAN), REPLACE, "pld.*replace_one"),
    (events.TruncatedSubsampledGaussianDpEvent(100, 0.1, 20, 1.0), ADD, "truncated.*pld"),
    (events.RandomizedResponseDpEvent(0.5, 3), ADD, "replace_one only, not under add_or_remove_one"),
    (acc.PoissonSampledDpEvent(0.1, events.RandomizedResponseDpEvent(0.5, 3)), ZERO, "replace_one only, not under zero_out"),
    (events.MixtureOfGaussiansDpEvent(1.0, (1.0,), (1.0,)), REPLACE, "add_or_remove_one or zero_out, not replace_one"),
    (acc.PoissonSampledDpEvent(0.1, events.ZCDpEvent(0.1)), ADD, "Poisson sampling of ZCDpEvent"),
    (
        acc.PoissonSampledDpEvent(0.1, acc.ComposedDpEvent((GAUSSIAN, acc.LaplaceDpEvent(1.0)))),
        ADD,
        "sampling of a composition",
    ),
    (acc.PoissonSampledDpEvent(0.1, events.RepeatAndSelectDpEvent(GAUSSIAN, 2, 1)), ADD, "Poisson sampling of RepeatAndSelect"),
    (events.RepeatAndSelectDpEvent(acc.dpsgd_event(1.0, 0.1, 2), 2, 1), REPLACE, "replace_one.*pld"),
]


@pytest.mark.parametrize(("event", "relation", "message"), REFUSED)
def test_refusals_say_why(event, relation, message):
    with pytest.raises(acc.UnsupportedEventError, match=message):
        curve(event, relation)


EVENTS = [
    acc.NoOpDpEvent(),
    acc.NonPrivateDpEvent(),
    GAUSSIAN,
    acc.LaplaceDpEvent(3.0),
    events.DiscreteGaussianDpEvent(4.0, 2),
    events.DiscreteLaplaceDpEvent(0.2, 2),
    events.RandomizedResponseDpEvent(0.5, 4),
    events.ExponentialMechanismDpEvent(0.7),
    *(events.ReportNoisyMaxDpEvent(3.0, noise) for noise in ("gumbel", "laplace", "exponential")),
    events.AboveThresholdDpEvent(3.0, 6.0, 2),
    events.EpsilonDeltaDpEvent(0.5, 0.0),
    events.EpsilonDeltaDpEvent(0.5, 1e-6),
    events.ZCDpEvent(0.1, 0.01),
    events.MixtureOfGaussiansDpEvent(2.0, (0.0, 1.0, 2.0), (0.7, 0.2, 0.1)),
    acc.PoissonSampledDpEvent(0.1, GAUSSIAN),
    events.SampledWithoutReplacementDpEvent(10, 3, GAUSSIAN),
    events.TruncatedSubsampledGaussianDpEvent(100, 0.1, 20, 1.0),
    acc.ComposedDpEvent((GAUSSIAN, acc.LaplaceDpEvent(3.0))),
    acc.SelfComposedDpEvent(GAUSSIAN, 3),
    events.FixedOrderDpEvent(GAUSSIAN, 3),
    events.SingleEpochTreeAggregationDpEvent(3.0, 10),
    events.RepeatAndSelectDpEvent(GAUSSIAN, 3.0, 1.0),
    events.ParallelDpEvent((GAUSSIAN, acc.LaplaceDpEvent(3.0))),
]
REFUSED_TYPES = {
    ADD: {"RandomizedResponseDpEvent", "SampledWithoutReplacementDpEvent", "TruncatedSubsampledGaussianDpEvent"},
    REPLACE: {
        "MixtureOfGaussiansDpEvent",
        "PoissonSampledDpEvent",
        "SampledWithoutReplacementDpEvent",
        "TruncatedSubsampledGaussianDpEvent",
    },
}
REFUSED_TYPES[ZERO] = REFUSED_TYPES[ADD]


@pytest.mark.parametrize("relation", NeighbouringRelation)
def test_every_event_has_a_curve_or_is_refused(relation):
    assert {type(event).__name__ for event in EVENTS} == set(EVENT_TYPES)
    refused = set()
    for event in EVENTS:
        try:
            value = curve(event, relation)
        except acc.UnsupportedEventError:
            refused.add(type(event).__name__)
            continue
        assert value.shape == (len(ORDERS),)
        assert not value.flags.writeable
        assert (value >= 0).all()  # fails for a NaN
        with np.errstate(invalid="ignore"):
            assert (np.diff(value)[np.isfinite(value[1:])] >= -1e-15).all()
        if relation is REPLACE and type(event).__name__ != "RandomizedResponseDpEvent":
            assert (value >= curve(event, ADD)).all()
    assert refused == REFUSED_TYPES[relation]


SAMPLED = [event for event in EVENTS if type(event).__name__ not in {"NoOpDpEvent", "NonPrivateDpEvent", *REFUSED_TYPES[ADD]}]


@pytest.mark.parametrize("event", SAMPLED, ids=lambda event: type(event).__name__)
def test_sampling_amplifies_or_is_refused(event):
    try:
        sampled = [curve(acc.PoissonSampledDpEvent(q, event)) for q in (0.01, 0.3, 1.0)]
    except acc.UnsupportedEventError as error:
        assert "Poisson sampling" in str(error)  # noqa: PT017
        return
    for less, more in itertools.pairwise(sampled):
        assert (less <= more * (1 + 1e-12)).all()
    np.testing.assert_array_equal(sampled[-1], curve(event))


NUMERICAL = [
    (event, relation)
    for relation in (ADD, REPLACE)
    for event in EVENTS
    if type(event).__name__ not in {"ZCDpEvent", "RepeatAndSelectDpEvent", "NonPrivateDpEvent", *REFUSED_TYPES[relation]}
    and not (isinstance(event, events.EpsilonDeltaDpEvent) and event.delta)
] + [
    (acc.PoissonSampledDpEvent(0.2, event), ADD)
    for event in EVENTS[3:12]  # of a sampled guarantee the numerical accountant knows the amplified guarantee alone
    if not isinstance(event, events.RandomizedResponseDpEvent)
]


@pytest.mark.parametrize(("event", "relation"), NUMERICAL, ids=lambda value: type(value).__name__)
def test_is_an_upper_bound_of_the_numerical_accountant(event, relation):
    """Two independent ways from the event to ε. After many compositions the Rényi one must not be far off either."""
    numerical = PldAccountant(neighbouring_relation=relation).compose(event, 30).epsilon_interval(1e-6)
    epsilon = acc.RdpAccountant(neighbouring_relation=relation).compose(event, 30).get_epsilon(1e-6)
    assert numerical.lower <= epsilon <= 1.35 * numerical.upper + 1e-9


@pytest.mark.parametrize("extreme", [1e-320, 1e-160, 1e-20, 1e20, 1e160, 1e308])
def test_extreme_but_legal_mechanisms_have_a_bound(extreme):
    made = [
        events.DiscreteGaussianDpEvent(extreme, 3),
        events.DiscreteLaplaceDpEvent(extreme, 3),
        events.DiscreteLaplaceDpEvent(extreme, 10**15),
        events.ExponentialMechanismDpEvent(extreme),
        *(events.ReportNoisyMaxDpEvent(extreme, noise) for noise in ("gumbel", "laplace")),
        events.AboveThresholdDpEvent(extreme, extreme, 10**15),
        events.EpsilonDeltaDpEvent(extreme),
        events.ZCDpEvent(extreme, extreme),
        events.MixtureOfGaussiansDpEvent(extreme, (0.0, 1.0, 1e-9), (0.5, 0.25, 0.25)),
        events.MixtureOfGaussiansDpEvent(1.0, (0.0, 1.0), (1 - 1e-12, 1e-12)),
    ]
    for event in made:
        assert (curve(event) > 0).all()  # what underflows is not nothing, and nothing is a NaN
        if not isinstance(event, events.MixtureOfGaussiansDpEvent):
            assert (curve(event, REPLACE) > 0).all()
        if not isinstance(event, events.ZCDpEvent):
            assert (curve(acc.PoissonSampledDpEvent(1e-200, event)) > 0).all()
            assert (curve(acc.PoissonSampledDpEvent(0.5, event)) <= curve(event) * (1 + 1e-12)).all()


@settings(max_examples=200, deadline=None)
@given(st.floats(-3.0, 3.0), st.floats(-30, 4), st.booleans())
def test_the_positive_function_keeps_every_digit(log_order, log_size, negative):
    """log[(1 + u)^p − 1 − p·u] against 60 digits, for p = α > 1 and p = 1 − α < 0 and u of both signs."""
    power = 1 + 10**log_order
    power = 1 - power if negative else power
    for sign in (1, -1):
        log_ratio = sign * 2.0**log_size
        u, log1p_u = np.array([math.expm1(log_ratio)]), np.array([log_ratio])
        with mp.workdps(60):
            exact_u = mp.expm1(mp.mpf(log_ratio))
            exact = mp.log((1 + exact_u) ** mp.mpf(power) - 1 - mp.mpf(power) * exact_u)
        ours = bernoulli.log_gap(np.array([[power]]), u, log1p_u)[0, 0]
        assert ours == pytest.approx(float(exact), rel=1e-12, abs=3e-12)


class TestSampledGaussianOfManyOrders:
    orders = tuple(float(order) for order in range(2, 257))

    def theirs(self, q, sigma):
        dp, rdp = pytest.importorskip("dp_accounting"), pytest.importorskip("dp_accounting.rdp")
        event = dp.PoissonSampledDpEvent(q, dp.GaussianDpEvent(sigma))
        return rdp.RdpAccountant(list(range(2, 257))).compose(event).rdp

    @pytest.mark.parametrize(("q", "sigma"), [(0.01, 1.0), (0.2, 4.0), (1e-3, 0.6), (0.5, 0.8)])
    def test_equals_dp_accounting_where_it_is_right(self, q, sigma):
        """It adds A to 1 in float64, which leaves no digits of an A − 1 below 1e-5 that could be compared."""
        ours, theirs = renyi.sampled_gaussian(self.orders, sigma, q), self.theirs(q, sigma)
        right = theirs * (np.array(self.orders) - 1) > 1e-2
        assert right.sum() > 100
        np.testing.assert_allclose(ours[right], theirs[right], rtol=1e-10)

    def test_orders_do_not_depend_on_their_company(self):
        """Blocks of orders, in any sequence, give what each order gives alone."""
        orders = np.array([700.0, 2.0, 3.0, 1.5, 20_000.0, 60_000.0, 7.25, 2.0, 90.5])
        together = renyi.sampled_gaussian(orders, 2.0, 0.01)
        alone = [renyi.sampled_gaussian(np.array([order]), 2.0, 0.01)[0] for order in orders]
        np.testing.assert_allclose(together, alone, rtol=1e-11)
