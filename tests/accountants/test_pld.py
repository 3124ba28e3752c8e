"""The interval contains the exact value, is as narrow as asked for, and obeys the laws of composition."""

import math
import warnings

import mpmath as mp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import accountants as acc
from tests.accountants import references
from tests.accountants.test_rdp import CONFIGURATIONS

QUICK = settings(max_examples=25, deadline=None, derandomize=True)


def interval(event, delta=1e-5, count=1, **options):
    return acc.PldAccountant(**options).compose(event, count).epsilon_interval(delta)


def contains_delta(event, count, epsilon, exact, **options):
    """The exact δ lies in the interval at `epsilon`, and `epsilon` in the one at the exact δ."""
    accountant = acc.PldAccountant(**options).compose(event, count)
    found = accountant.delta_interval(epsilon)
    assert found.lower * (1 - 1e-9) <= exact <= found.upper * (1 + 1e-9), (found, exact)
    if 1e-290 < exact < 0.999:
        back = accountant.epsilon_interval(float(exact))
        assert back.lower * (1 - 1e-9) - 1e-9 <= epsilon <= back.upper * (1 + 1e-9) + 1e-9, (back, epsilon)


@pytest.mark.parametrize("rtol", [1e-3, 1e-4])
@pytest.mark.parametrize(("name", "q", "sigma", "steps", "delta", "exact", "peer"), CONFIGURATIONS)
def test_known_configurations(name, q, sigma, steps, delta, exact, peer, rtol):
    found = interval(acc.dpsgd_event(sigma, q, steps), delta, rtol=rtol)
    assert found.lower <= exact * (1 + 1e-4)  # the reference has four or five digits
    assert found.upper >= exact * (1 - 1e-4)
    assert found.relative_width <= rtol
    assert found.upper < peer


def test_heterogeneous_configuration():
    """Gaussian, Laplace and sampled Gaussian together; dp-accounting's numerical accountant gives 2.43870."""
    parts = [(acc.GaussianDpEvent(20.0), 10), (acc.LaplaceDpEvent(20.0), 20), (acc.dpsgd_event(1.0, 0.01, 1), 1000)]
    accountant = acc.PldAccountant(rtol=1e-4)
    for event, count in parts:
        accountant.compose(event, count)
    found = accountant.epsilon_interval(1e-6)
    assert found.lower <= 2.43870
    assert found.upper >= 2.4386
    assert found.relative_width <= 1e-4


class TestClosedForms:
    @QUICK
    @given(sigma=st.floats(-1.3, 4), count=st.integers(1, 10**6), z=st.floats(-1, 12))
    def test_gaussian(self, sigma, count, z):
        sigma = 10**sigma
        mu = math.sqrt(count) / sigma
        epsilon = max(mu * mu / 2 + z * mu, 0.0)
        if epsilon < 1e4:
            contains_delta(acc.GaussianDpEvent(sigma), count, epsilon, references.gaussian_delta(mu, epsilon))

    @QUICK
    @given(scale=st.floats(-1, 3), part=st.floats(0, 0.999))
    def test_laplace(self, scale, part):
        kappa = 10**-scale
        contains_delta(acc.LaplaceDpEvent(10**scale), 1, part * kappa, references.laplace_delta(1 / 10**scale, part * kappa))

    @QUICK
    @given(epsilon0=st.floats(-3, 0.7), count=st.integers(1, 60), part=st.floats(0, 0.99))
    def test_pure(self, epsilon0, count, part):
        epsilon0 = 10**epsilon0
        epsilon = part * count * epsilon0
        exact = references.pure_delta(epsilon0, count, epsilon)
        contains_delta(acc.EpsilonDeltaDpEvent(epsilon0), count, epsilon, exact)

    @QUICK
    @given(noise=st.floats(0.05, 0.95), buckets=st.integers(2, 6), count=st.integers(1, 4), part=st.floats(0, 0.95))
    def test_randomized_response(self, noise, buckets, count, part):
        other = mp.mpf(noise) / buckets
        truth = 1 - mp.mpf(noise) + other
        size = mp.log(truth / other)
        losses, mass = [size, -size, mp.mpf(0)], [truth, other, (buckets - 2) * other]
        epsilon = part * count * float(size)
        exact = references.atoms_delta(losses, mass, count, epsilon)
        event = acc.RandomizedResponseDpEvent(noise, buckets)
        contains_delta(event, count, epsilon, exact, neighbouring_relation="replace_one")

    @QUICK
    @given(a=st.floats(0.1, 2), sensitivity=st.integers(1, 3), count=st.integers(1, 3), part=st.floats(0, 0.95))
    def test_discrete_laplace(self, a, sensitivity, count, part):
        with mp.workdps(50):
            z = mp.tanh(mp.mpf(a) / 2)
            masses = {}
            for k in range(-200, 201):
                loss = mp.mpf(a) * (abs(k) - abs(k - sensitivity))
                masses[loss] = masses.get(loss, 0) + z * mp.exp(-mp.mpf(a) * abs(k - sensitivity))
        epsilon = part * count * a * sensitivity
        exact = references.atoms_delta(list(masses), list(masses.values()), count, epsilon)
        found = acc.PldAccountant().compose(acc.DiscreteLaplaceDpEvent(a, sensitivity), count).delta_interval(epsilon)
        assert found.lower * (1 - 1e-6) <= exact <= found.upper * (1 + 1e-6)

    @QUICK
    @given(epsilon=st.floats(-2, 1), part=st.floats(0, 0.99))
    def test_exponential_mechanism(self, epsilon, part):
        """Dong, Durfee, Rogers 2020, Lemma 4.3, maximised over where the interval of losses lies."""
        eta = 10**epsilon
        at = part * eta
        points = np.linspace(at, eta, 2001)
        chance = (math.exp(eta) - np.exp(points)) / math.expm1(eta)
        exact = float(np.max(chance * -np.expm1(at - points)))
        found = acc.PldAccountant().compose(acc.ExponentialMechanismDpEvent(eta)).delta_interval(at)
        assert found.upper >= exact * (1 - 1e-12)
        assert found.lower <= exact * (1 + 1e-5)

    @QUICK
    @given(q=st.floats(-5, -0.05), sigma=st.floats(-0.5, 1.5), log_epsilon=st.floats(-3, 1))
    def test_sampled_gaussian(self, q, sigma, log_epsilon):
        q, sigma, epsilon = 10**q, 10**sigma, 10**log_epsilon
        exact = max(references.sampled_gaussian_delta(q, sigma, epsilon, remove) for remove in (True, False))
        if exact > 1e-280:
            contains_delta(acc.dpsgd_event(sigma, q, 1), 1, epsilon, exact)

    @pytest.mark.parametrize(("q", "sigma", "epsilon"), [(0.1, 1.0, 0.5), (0.5, 0.7, 3.0), (0.01, 2.0, 0.01)])
    def test_sampled_gaussian_twice(self, q, sigma, epsilon):
        exact = max(references.twice_sampled_gaussian_delta(q, sigma, epsilon, remove) for remove in (True, False))
        found = acc.PldAccountant(rtol=1e-5).compose(acc.dpsgd_event(sigma, q, 2)).delta_interval(epsilon)
        assert found.lower * (1 - 1e-8) <= exact <= found.upper * (1 + 1e-8)
        assert found.relative_width <= 1e-5

    def test_spent_delta_is_exact(self):
        event = acc.EpsilonDeltaDpEvent(0.3, 1e-6)
        assert interval(event, 0.9e-6) == acc.Interval(math.inf, math.inf)
        assert acc.PldAccountant().compose(event, 3).delta_interval(50.0).upper == pytest.approx(3e-6, rel=1e-5)
        assert acc.PldAccountant().compose(acc.NonPrivateDpEvent()).get_delta(5.0) == 1
        assert interval(acc.NoOpDpEvent()) == acc.Interval(0.0, 0.0)


EVENTS = st.one_of(
    st.floats(-0.5, 2).map(lambda s: acc.GaussianDpEvent(10**s)),
    st.floats(-0.5, 2).map(lambda s: acc.LaplaceDpEvent(10**s)),
    st.builds(lambda q, s: acc.dpsgd_event(10**s, 10**q, 1), st.floats(-4, -0.3), st.floats(-0.3, 1)),
    st.builds(
        lambda q, s: acc.PoissonSampledDpEvent(10**q, acc.LaplaceDpEvent(10**s)), st.floats(-3, -0.3), st.floats(-0.5, 1)
    ),
    st.floats(0.7, 5).map(acc.DiscreteGaussianDpEvent),
    st.floats(0.05, 1).map(acc.DiscreteLaplaceDpEvent),
    st.floats(0.01, 2).map(acc.ExponentialMechanismDpEvent),
    st.floats(0.01, 2).map(acc.EpsilonDeltaDpEvent),
)
COUNTS = st.integers(1, 300)
DELTAS = st.floats(-12, -2).map(lambda x: 10**x)


def overlaps(one, other):
    return one.lower <= other.upper * (1 + 1e-9) + 1e-12 and other.lower <= one.upper * (1 + 1e-9) + 1e-12


class TestLaws:
    @QUICK
    @given(EVENTS, st.integers(2, 12), DELTAS)
    def test_a_count_is_a_loop(self, event, count, delta):
        loop = acc.PldAccountant()
        for _ in range(count):
            loop.compose(event)
        assert loop.epsilon_interval(delta) == interval(event, delta, count)
        nested = acc.SelfComposedDpEvent(acc.ComposedDpEvent((event, acc.NoOpDpEvent())), count)
        assert interval(nested, delta) == interval(event, delta, count)

    @QUICK
    @given(EVENTS, COUNTS, EVENTS, COUNTS, DELTAS)
    def test_order_is_irrelevant_and_a_part_costs_no_more(self, a, n, b, m, delta):
        both = acc.PldAccountant().compose(a, n).compose(b, m).epsilon_interval(delta)
        assert both == acc.PldAccountant().compose(b, m).compose(a, n).epsilon_interval(delta)
        for part in (interval(a, delta, n), interval(b, delta, m)):
            assert part.lower <= both.upper * (1 + 1e-9)

    @QUICK
    @given(st.floats(-0.3, 1), st.floats(-3, -0.3), st.floats(1.0, 2.0), COUNTS, DELTAS)
    def test_more_noise_and_less_sampling_never_cost_more(self, sigma, q, factor, count, delta):
        sigma, q = 10**sigma, 10**q
        base = interval(acc.dpsgd_event(sigma, q, 1), delta, count)
        assert interval(acc.dpsgd_event(sigma * factor, q, 1), delta, count).lower <= base.upper
        assert interval(acc.dpsgd_event(sigma, q / factor, 1), delta, count).lower <= base.upper
        assert base.lower <= interval(acc.GaussianDpEvent(sigma), delta, count).upper

    @QUICK
    @given(EVENTS, COUNTS, DELTAS)
    def test_full_sampling_is_none_and_what_is_written_reads_back(self, event, count, delta):
        direct = interval(event, delta, count)
        assert interval(acc.PoissonSampledDpEvent(1.0, event), delta, count) == direct
        assert interval(acc.from_json(acc.to_json(event)), delta, count) == direct

    @QUICK
    @given(EVENTS, COUNTS, DELTAS)
    def test_epsilon_and_delta_agree_and_rtol_is_kept(self, event, count, delta):
        accountant = acc.PldAccountant().compose(event, count)
        found = accountant.epsilon_interval(delta)
        assert found.lower <= found.upper
        if found.upper > 0.05 and found.lower > 0:
            assert found.relative_width <= (2e-3 if delta > 1e-9 else 0.1)  # wider where one step alone makes up all of δ
            assert accountant.delta_interval(found.upper).lower <= delta * (1 + 1e-9)
            narrow = interval(event, delta, count, rtol=1e-4)
            assert overlaps(found, narrow)

    @QUICK
    @given(EVENTS, COUNTS, DELTAS)
    def test_never_above_the_renyi_accountant(self, event, count, delta):
        rdp = acc.RdpAccountant().compose(event, count).get_epsilon(delta)
        assert interval(event, delta, count).lower <= rdp * (1 + 1e-9)

    @QUICK
    @given(EVENTS, COUNTS)
    def test_the_profile_is_made_of_intervals(self, event, count):
        accountant = acc.PldAccountant().compose(event, count)
        points = np.linspace(0, accountant.get_epsilon(1e-9), 7)
        lower, upper = accountant.profile(points.tolist())
        assert (lower <= upper).all()
        for e, low, high in zip(points, lower, upper, strict=True):
            exact = accountant.delta_interval(float(e))
            assert low <= exact.upper * (1 + 1e-9)
            assert high >= exact.lower * (1 - 1e-9)


class TestRelations:
    def test_replacing_doubles_the_sensitivity(self):
        for small, large in [
            (acc.GaussianDpEvent(1.0), acc.GaussianDpEvent(2.0)),
            (acc.LaplaceDpEvent(1.0), acc.LaplaceDpEvent(2.0)),
            (acc.DiscreteLaplaceDpEvent(0.3, 4), acc.DiscreteLaplaceDpEvent(0.3, 2)),
            (acc.ExponentialMechanismDpEvent(1.0), acc.ExponentialMechanismDpEvent(0.5)),
        ]:
            assert overlaps(interval(small, count=7), interval(large, count=7, neighbouring_relation="replace_one"))

    def test_sampling_under_replace_one_lies_between(self):
        """At least the cost of removing; at most that without sampling."""
        event = acc.dpsgd_event(1.0, 0.05, 200)
        removed, replaced = interval(event), interval(event, neighbouring_relation="replace_one")
        assert removed.lower < replaced.upper < interval(acc.GaussianDpEvent(0.5), count=200).upper
        fixed = acc.SampledWithoutReplacementDpEvent(1000, 50, acc.GaussianDpEvent(1.0))
        assert overlaps(replaced, interval(fixed, count=200, neighbouring_relation="replace_one"))

    def test_truncation_that_never_happens_is_poisson_sampling(self):
        truncated = acc.TruncatedSubsampledGaussianDpEvent(1000, 0.01, 1000, 1.0)
        assert overlaps(interval(truncated, count=100), interval(acc.dpsgd_event(1.0, 0.01, 100)))
        often = acc.TruncatedSubsampledGaussianDpEvent(1000, 0.01, 8, 1.0)
        assert interval(often, count=100).upper > interval(acc.dpsgd_event(1.0, 0.01, 100)).upper

    def test_a_mixture_of_two_is_a_sampled_gaussian(self):
        mixture = acc.MixtureOfGaussiansDpEvent(1.5, (0.0, 1.0), (0.9, 0.1))
        assert overlaps(interval(mixture, count=50), interval(acc.dpsgd_event(1.5, 0.1, 50)))

    def test_parallel_cohorts_cost_the_dearest(self):
        a, b = acc.dpsgd_event(1.0, 0.01, 100), acc.GaussianDpEvent(3.0)
        rest = acc.LaplaceDpEvent(5.0)
        together = acc.PldAccountant().compose(acc.ParallelDpEvent((a, b))).compose(rest).epsilon_interval(1e-5)
        either = [acc.PldAccountant().compose(e).compose(rest).epsilon_interval(1e-5) for e in (a, b)]
        assert together.upper == max(i.upper for i in either)

    def test_passes_in_fixed_order_are_not_amplified(self):
        assert interval(acc.FixedOrderDpEvent(acc.GaussianDpEvent(2.0), 5)) == interval(acc.GaussianDpEvent(2.0), count=5)
        tree = acc.SingleEpochTreeAggregationDpEvent(3.0, 100)
        assert interval(tree) == interval(acc.GaussianDpEvent(3.0), count=7)

    @pytest.mark.parametrize(
        ("event", "relation"),
        [
            (acc.MixtureOfGaussiansDpEvent(1.0, (0.0, 1.0), (0.5, 0.5)), "replace_one"),
            (acc.RandomizedResponseDpEvent(0.5, 3), "add_or_remove_one"),
            (acc.SampledWithoutReplacementDpEvent(10, 5, acc.GaussianDpEvent(1.0)), "add_or_remove_one"),
            (
                acc.PoissonSampledDpEvent(0.1, acc.ComposedDpEvent((acc.GaussianDpEvent(1.0), acc.LaplaceDpEvent(1.0)))),
                "zero_out",
            ),
            (acc.ZCDpEvent(0.1), "add_or_remove_one"),
            (acc.DiscreteGaussianDpEvent(1e6), "add_or_remove_one"),
        ],
    )
    def test_what_has_no_pair_is_refused_by_name(self, event, relation):
        accountant = acc.PldAccountant(neighbouring_relation=relation)
        with pytest.raises(acc.UnsupportedEventError):
            accountant.compose(event)
        assert accountant.get_epsilon(1e-5) == 0


class TestRobustness:
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(
        q=st.floats(-8, 0),
        sigma=st.floats(-1.3, 4),
        count=st.floats(0, 7),
        delta=st.floats(-30, -1),
        relation=st.sampled_from(list(acc.NeighbouringRelation)),
    )
    def test_dpsgd_over_the_whole_range(self, q, sigma, count, delta, relation):
        """No exception, warning, NaN or inversion, and never worse than the Rényi accountant by more than the width."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            event, times = acc.dpsgd_event(10**sigma, 10**q, 1), int(10**count)
            found = interval(event, 10**delta, times, neighbouring_relation=relation)
        assert 0 <= found.lower <= found.upper < math.inf
        if relation is not acc.NeighbouringRelation.REPLACE_ONE:
            rdp = acc.RdpAccountant().compose(event, times).get_epsilon(10**delta)
            assert found.upper <= rdp * 1.03 + 1e-9
            assert found.lower <= rdp

    @pytest.mark.parametrize("count", [40, 400])
    def test_many_that_are_all_but_equal(self, count):
        """Each a row of its own, and all of them one mechanism composed so often: two roads to one figure."""
        q, sigma, delta = 0.02, 0.9, 1e-6
        rows = acc.PldAccountant()
        for i in range(count):
            rows.compose(acc.dpsgd_event(sigma * (1 + 1e-12 * i), q, 1))
        once, many = interval(acc.dpsgd_event(sigma, q, count), delta, rtol=1e-5), rows.epsilon_interval(delta)
        assert many.lower <= once.upper * (1 + 1e-9)
        assert many.upper >= once.lower * (1 - 1e-9)
        assert many.relative_width <= 1e-3

    @pytest.mark.slow
    def test_a_wide_range_of_noise(self):
        """300 rows, against losses rounded up and down on a fine grid: no chords, no tilt."""
        sigmas, q, delta, step, size = np.geomspace(0.8, 30, 300), 0.02, 1e-5, 1e-5, 2**20
        accountant = acc.PldAccountant()
        for sigma in sigmas:
            accountant.compose(acc.dpsgd_event(float(sigma), q, 1))
        found = accountant.epsilon_interval(delta)
        assert found.relative_width <= 1e-3
        least, most = (
            max(references.rounded_epsilon(sigmas, q, delta, step, size, remove, up) for remove in (True, False))
            for up in (False, True)
        )
        assert most - least < 0.01
        assert least <= found.upper
        assert found.lower <= most

    def test_many_distinct_mechanisms(self):
        accountant = acc.PldAccountant()
        for i in range(300):
            accountant.compose(acc.dpsgd_event(1 + i / 300, 0.01, 1))
        found = accountant.epsilon_interval(1e-5)
        assert found.relative_width <= 1e-3
        dearest, cheapest = (interval(acc.dpsgd_event(s, 0.01, 300)) for s in (1.0, 2.0))
        assert cheapest.lower < found.upper
        assert found.lower < dearest.upper

    def test_nearly_everyone_is_sampled(self):
        """Masses of 1e-16 next to no loss are rounding, and no reason to look for heavy tails."""
        found = interval(acc.dpsgd_event(125.21874430718687, 0.9999999999999994, 366), 1e-12)
        exact = interval(acc.GaussianDpEvent(125.21874430718687), 1e-12, 366)
        assert found.relative_width <= 1e-3
        assert found.lower <= exact.upper <= found.upper * (1 + 1e-9)

    def test_more_families_than_a_pilot_may_have(self):
        """Laplace noise of each scale has atoms, and so a lattice, of its own."""
        accountant = acc.PldAccountant(rtol=0.1)
        for i in range(200):
            accountant.compose(acc.LaplaceDpEvent(40 * 1.01**i))
        found = accountant.epsilon_interval(1e-6)
        rdp = acc.RdpAccountant()
        for i in range(200):
            rdp.compose(acc.LaplaceDpEvent(40 * 1.01**i))
        assert 0.9 * found.upper <= found.lower <= found.upper <= rdp.get_epsilon(1e-6)

    def test_several_laplace_scales(self):
        accountant = acc.PldAccountant()
        for scale, count in ((3.0, 5), (7.0, 11), (20.0, 40)):
            accountant.compose(acc.LaplaceDpEvent(scale), count)
        found = accountant.epsilon_interval(1e-6)
        assert found.relative_width <= 2e-3
        assert found.upper < acc.RdpAccountant().compose(acc.LaplaceDpEvent(3.0), 5).compose(
            acc.LaplaceDpEvent(7.0), 11
        ).compose(acc.LaplaceDpEvent(20.0), 40).get_epsilon(1e-6)

    @pytest.mark.parametrize("rtol", [0, 1e-9, 0.5, math.nan, "1e-3", True])
    def test_rtol_is_checked(self, rtol):
        with pytest.raises(acc.InvalidEventError, match="rtol"):
            acc.PldAccountant(rtol=rtol)


def test_samples_of_parallel_cohorts_are_never_taken_for_a_direction():
    """A sampled cohort that releases nothing once hid the others."""
    for cohorts in ((acc.NoOpDpEvent(), acc.GaussianDpEvent(1.0)), (acc.GaussianDpEvent(5.0), acc.GaussianDpEvent(1.0))):
        event = acc.PoissonSampledDpEvent(0.5, acc.ParallelDpEvent(cohorts))
        with pytest.raises(acc.UnsupportedEventError, match="cohorts"):
            acc.PldAccountant().compose(event)
        assert acc.epsilon(event, 1e-5).epsilon >= interval(acc.dpsgd_event(1.0, 0.5, 1)).lower


def test_the_largest_shift_of_a_mixture_is_not_over_stated():
    found = interval(acc.MixtureOfGaussiansDpEvent(1.0, (40.0,), (1.0,)))
    assert found.lower <= 969.65 <= found.upper
