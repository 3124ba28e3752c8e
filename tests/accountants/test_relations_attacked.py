"""Instances of mechanisms under a neighbouring relation whose exact δ is no more than what their events claim."""

import math

import numpy as np
import pytest
from scipy import stats

import accountants as acc


@pytest.mark.parametrize(("n", "q", "sigma"), [(1000, 0.1, 1.1), (100, 0.5, 0.5), (2, 0.5, 0.25)])
@pytest.mark.parametrize("relation", ["zero_out", "replace_one", "add_or_remove_one"])
def test_batches_truncated_to_one(n, q, sigma, relation):
    """All others contribute −1 and the unit 1; instead of it 0, −1 or nothing. Only one is kept."""
    delta = 1e-3
    epsilon = acc.epsilon(acc.TruncatedSubsampledGaussianDpEvent(n, q, 1, sigma), delta, neighbouring_relation=relation).epsilon
    others = np.arange(n)
    drawn = stats.binom.pmf(others, n - 1, q)
    kept = q * np.sum(drawn / (others + 1))  # the unit is in the batch
    none = (1 - q) * drawn[0]
    x = np.linspace(-1 - 12 * sigma, 1 + 12 * sigma, 400_001)
    at = lambda mean: stats.norm.pdf(x, mean, sigma)
    present = (1 - none - kept) * at(-1) + none * at(0) + kept * at(1)
    if relation == "add_or_remove_one":  # where it would have been, another is, if any was drawn
        absent = (1 - drawn[0]) * at(-1) + drawn[0] * at(0)
    else:
        instead = 0 if relation == "zero_out" else -1
        absent = (1 - none - kept) * at(-1) + none * at(0) + kept * at(instead)
    for p, r in ((present, absent), (absent, present)):
        exact = np.trapezoid(np.maximum(p - math.exp(min(epsilon, 700)) * r, 0), x)
        assert exact <= delta * (1 + 1e-6)


def test_a_poisson_sample_needs_a_bound_for_who_is_absent():
    """Whoever is not drawn gives no answer at all, which randomised response does not hide."""
    sampled = acc.PoissonSampledDpEvent(0.01, acc.RandomizedResponseDpEvent(0.5, 4))
    with pytest.raises(acc.UnsupportedEventError, match="randomised response"):
        acc.epsilon(sampled, 1e-6, neighbouring_relation="replace_one")
    fixed = acc.PoissonSampledDpEvent(0.1, acc.SampledWithoutReplacementDpEvent(1000, 10, acc.GaussianDpEvent(1.0)))
    with pytest.raises(acc.UnsupportedEventError, match="without replacement"):
        acc.epsilon(fixed, 1e-6, neighbouring_relation="replace_one")


@pytest.mark.parametrize("delta", [0.0, 1e-9])
def test_a_guarantee_on_one_of_two(delta):
    """Two outcomes; e-DP against absence. Of two units one is drawn, and one of the two is replaced."""
    c = 1 / (math.e + 1)
    drawn, instead, other = math.e * c, c / math.e, c / math.e  # probability of the first outcome
    event = acc.SampledWithoutReplacementDpEvent(2, 1, acc.EpsilonDeltaDpEvent(1.0, delta))
    epsilon = acc.epsilon(event, 1e-6, neighbouring_relation="replace_one").epsilon
    p, r = (drawn + other) / 2, (instead + other) / 2
    exact = max(p - math.exp(epsilon) * r, 0) + max(1 - p - math.exp(epsilon) * (1 - r), 0)
    assert exact <= 1e-6
    assert epsilon <= math.log(1 + 0.5 * math.expm1(2)) * 1.001


@pytest.mark.parametrize("mu", [1.0, 20.0, 37.0, 300.0, 2500.0, 10_000.0])
def test_mu_of_a_gaussian_is_not_below_it(mu):
    found = acc.gdp(acc.PldAccountant().compose(acc.GaussianDpEvent(1 / mu)), 1e-5)
    assert mu * (1 - 1e-9) <= found.mu <= 1.2 * mu


def test_a_profile_begins_at_zero():
    curve = acc.profile(acc.PldAccountant().compose(acc.LaplaceDpEvent(1.0)), [0.5])
    assert curve.epsilons.tolist() == [0.0, 0.5]
    assert curve.advantage == pytest.approx(1 - math.exp(-0.5), rel=1e-6)
    for fpr in (-1.0, 1.5, math.nan):
        with pytest.raises(acc.InvalidEventError, match="fpr"):
            curve.min_fnr(fpr)
    for points in (0, -1, 1):
        with pytest.raises(acc.InvalidEventError, match="points"):
            acc.profile(acc.PldAccountant().compose(acc.LaplaceDpEvent(1.0)), points=points)


@pytest.mark.parametrize(("q", "sigma", "count"), [(1e-9, 1.0, 100), (1e-9, 1e-3, 10**7)])
def test_lattices_out_of_reach_end_in_a_bound(q, sigma, count):
    accountant = acc.PldAccountant().compose(acc.dpsgd_event(sigma, q, count))
    for found in (accountant.delta_interval(1.0), accountant.epsilon_interval(1e-5)):
        assert 0 <= found.lower <= found.upper < math.inf


@pytest.mark.parametrize(
    ("sigma", "q", "count", "delta"), [(0.8, 0.01, 500, 1e-6), (1.1, 0.01, 1000, 1e-5), (4.0, 0.01, 10_000, 1e-5)]
)
def test_replacing_costs_at_most_removing_and_adding(sigma, q, count, delta):
    event = acc.dpsgd_event(sigma, q, count)
    once = acc.PldAccountant().compose(event)
    replaced = acc.PldAccountant(neighbouring_relation="replace_one").compose(event)
    found = replaced.get_epsilon(delta)
    assert found >= once.epsilon_interval(delta).lower
    # Whatever one step costs, two cost at most: the sum of epsilons, and both deltas, the second grown by the first step.
    steps = np.linspace(0.2, 0.6, 41) * found
    bounds = [(2 * e, once.get_delta(e) * (1 + math.exp(e))) for e in steps]
    assert found <= min(e for e, d in bounds if d <= delta) * 1.005
    assert replaced.get_delta(found) <= delta * 1.01
    assert replaced.profile([found])[1][0] <= delta * 1.01


def test_where_a_replaced_unit_costs_what_the_mechanism_does():
    """Twice a pure guarantee, whichever way it is bounded."""
    found = acc.epsilon(acc.PoissonSampledDpEvent(1.0, acc.LaplaceDpEvent(2.0)), 1e-9, neighbouring_relation="replace_one")
    assert found.epsilon == pytest.approx(1.0, rel=1e-3)


def worst_of_two(epsilon, delta, asked):
    """δ at `asked` of the worst pair of data sets each of which is (ε, δ)-close to a third: of trade-off functions, g∘g."""

    def g(x):  # most of the one's probability where the other's is x
        return np.minimum(1, np.minimum(delta + np.exp(epsilon) * x, 1 - np.exp(-epsilon) * (1 - delta - x)))

    x = np.linspace(0, 1, 200_001)
    return float(np.max(g(g(x)) - math.exp(asked) * x))


@pytest.mark.parametrize("delta", [0.0, 1e-3])
@pytest.mark.parametrize("asked", [0.0, 1.0, 1.9])
def test_a_guarantee_for_presence_holds_for_replacing(delta, asked):
    accountant = acc.PldAccountant(neighbouring_relation="replace_one").compose(acc.EpsilonDeltaDpEvent(1.0, delta))
    exact, found = worst_of_two(1.0, delta, asked), accountant.delta_interval(asked)
    assert found.lower <= exact <= found.upper


@pytest.mark.parametrize("q", [0.01, 0.5])
@pytest.mark.parametrize("noiseless", [acc.GaussianDpEvent(0.0), acc.LaplaceDpEvent(0.0), acc.NonPrivateDpEvent()])
@pytest.mark.parametrize("epsilon", [0.0, 1.0])
def test_samples_without_noise_beside_others(q, noiseless, epsilon):
    accountant = acc.PldAccountant().compose(acc.PoissonSampledDpEvent(q, noiseless)).compose(acc.GaussianDpEvent(1.0))
    gaussian = lambda e: stats.norm.cdf(0.5 - e) - math.exp(e) * stats.norm.cdf(-0.5 - e)
    exact = max(q + (1 - q) * gaussian(epsilon - math.log1p(-q)), gaussian(epsilon + math.log1p(-q)))
    found = accountant.delta_interval(epsilon)
    assert found.lower <= exact <= found.upper


def test_what_is_next_to_nothing_is_answered_at_once():
    """δ below 1e-300 at an ε far out, where a lattice would have millions of points."""
    found = acc.PldAccountant().compose(acc.dpsgd_event(1.1, 0.01, 100)).delta_interval(1e300)
    assert found.lower == 0
    assert 0 < found.upper < 1e-298
    lower, upper = acc.PldAccountant().compose(acc.dpsgd_event(1.1, 0.01, 100)).profile([0.5, 200.0, 1e300])
    assert 0 < lower[0] <= upper[0] < 1
    assert upper[2] <= upper[1] <= upper[0]
