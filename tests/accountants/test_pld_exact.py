"""Intervals against exact figures of random compositions, over the whole range of parameters; and what once went wrong."""

import math

import mpmath as mp
import numpy as np
import pytest
import scipy.fft

import accountants as acc
from accountants import atomic_pairs
from accountants.mechanisms import directions, leaves
from tests.accountants import pair_references as exact

DRAWS = 25


def draw(rng, low, high):
    """Log-uniform."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def atoms_delta(losses, mass, epsilon):
    above = losses > epsilon
    return float(np.sum(mass[above] * -np.expm1(epsilon - losses[above])))


def power(pair, count):
    losses, mass = exact.atoms_power(pair.losses, pair.mass, count)
    return (lambda e: atoms_delta(losses, mass, float(e))), float(losses[-1])


def composition(kind, rng):
    """(event, relation, count, exact δ(ε), largest loss of interest, how good the exact value is)."""
    match kind:
        case "pure":
            e0 = draw(rng, 1e-4, 20)
            count = int(draw(rng, 1, 1e7 if e0 < 0.1 else 1e4))
            event = acc.EpsilonDeltaDpEvent(e0)
            return event, "add_or_remove_one", count, lambda e: exact.pure_power_delta(e0, count, e), e0 * count, 0
        case "laplace":
            scale, count = draw(rng, 0.05, 20), int(rng.integers(2, 5))
            kappa = 1 / mp.mpf(scale)
            curve = lambda e: exact.laplace_power_delta(kappa, count, e)
            return acc.LaplaceDpEvent(scale), "add_or_remove_one", count, curve, count / scale, 0
        case "discrete_laplace":
            a, sensitivity, count = draw(rng, 1e-3, 3), int(rng.integers(1, 20)), int(draw(rng, 2, 60))
            curve, top = power(atomic_pairs.discrete_laplace(a, sensitivity), count)
            return acc.DiscreteLaplaceDpEvent(a, sensitivity), "add_or_remove_one", count, curve, top, 1e-11
        case "discrete_gaussian":
            sigma, sensitivity, count = draw(rng, 0.3, 20), int(rng.integers(1, 4)), int(draw(rng, 2, 20))
            curve, _ = power(atomic_pairs.discrete_gaussian(sigma, sensitivity), count)
            top = 5 * count * sensitivity / sigma
            return acc.DiscreteGaussianDpEvent(sigma, sensitivity), "add_or_remove_one", count, curve, top, 1e-11
        case "randomized_response":
            noise, buckets, count = draw(rng, 1e-3, 0.99), int(rng.integers(3, 10)), int(draw(rng, 2, 300))
            curve, top = power(atomic_pairs.randomized_response(noise, buckets), count)
            return acc.RandomizedResponseDpEvent(noise, buckets), "replace_one", count, curve, top, 1e-11
        case "little_noise":
            q, sigma, count = draw(rng, 0.01, 0.99), draw(rng, 0.042, 0.06), int(draw(rng, 2, 150))
            curve = lambda e: exact.strongly_sampled_gaussian_delta(q, sigma, count, e)
            top = count / sigma**2 / 2 + count / sigma
            return acc.dpsgd_event(sigma, q, 1), "add_or_remove_one", count, curve, top, 0
    raise ValueError(kind)


KINDS = ["pure", "laplace", "discrete_laplace", "discrete_gaussian", "randomized_response", "little_noise"]


def faults(accountant, curve, delta, epsilon, known, width):
    """What is wrong with both answers, in words. `known`: relative error of `curve`."""
    found = accountant.epsilon_interval(delta)
    if not 0 <= found.lower <= found.upper < math.inf:
        yield f"{found}"
        return
    if (at := curve(found.upper)) > delta * (1 + known):
        yield f"upper too low: {found}, where δ is {mp.nstr(at, 12)}, not {delta}"
    if found.lower > 0 and (at := curve(found.lower)) < delta * (1 - known):
        yield f"lower too high: {found}, where δ is {mp.nstr(at, 12)}, not {delta}"
    if found.lower > 0 and found.relative_width > width:
        yield f"too wide: {found}, {found.relative_width}"
    found, at = accountant.delta_interval(epsilon), curve(mp.mpf(epsilon))
    if at > 1e-280 and not found.lower * (1 - known) <= at <= found.upper * (1 + known):
        yield f"δ is {mp.nstr(at, 17)} at {epsilon!r}, not in {found}"


@pytest.mark.parametrize("kind", [*KINDS[:-1], pytest.param("little_noise", marks=pytest.mark.slow)])
def test_compositions(kind):
    rng = np.random.default_rng(7)
    with mp.workdps(60):
        for _ in range(DRAWS if kind != "laplace" else 8):
            event, relation, count, curve, top, known = composition(kind, rng)
            delta = 10 ** -rng.uniform(0.3, 30 if rng.random() < 0.5 else 6)
            rtol = 10 ** -rng.uniform(2, 6)
            accountant = acc.PldAccountant(neighbouring_relation=relation, rtol=rtol).compose(event, count)
            wrong = list(faults(accountant, curve, delta, top * rng.random(), max(known, 1e-14), max(5 * rtol, 1e-5)))
            assert not wrong, (event, count, delta, rtol)


def single(kind, rng):
    """A random mechanism and a relation under which it has a pair."""
    if kind.startswith("sampled_"):
        inner, relation = single(kind.removeprefix("sampled_"), rng)
        return acc.PoissonSampledDpEvent(draw(rng, 1e-8, 1), inner), relation
    if kind.startswith("fixed_size_"):
        inner, _ = single(kind.removeprefix("fixed_size_"), rng)
        n = int(draw(rng, 2, 1e6))
        return acc.SampledWithoutReplacementDpEvent(n, int(rng.integers(1, n)), inner), "replace_one"
    sigma, relation = draw(rng, 0.05, 1e4), str(rng.choice(list(acc.NeighbouringRelation)))
    match kind:
        case "gaussian":
            return acc.GaussianDpEvent(sigma), relation
        case "laplace":
            return acc.LaplaceDpEvent(sigma), relation
        case "discrete_laplace":
            return acc.DiscreteLaplaceDpEvent(draw(rng, 1e-4, 5), int(rng.integers(1, 20))), relation
        case "discrete_gaussian":
            return acc.DiscreteGaussianDpEvent(draw(rng, 0.3, 5), int(rng.integers(1, 4))), relation
        case "randomized_response":
            return acc.RandomizedResponseDpEvent(draw(rng, 1e-9, 0.999), int(rng.integers(2, 30))), "replace_one"
        case "exponential":
            return acc.ExponentialMechanismDpEvent(draw(rng, 1e-4, 100)), relation
        case "pure":
            return acc.EpsilonDeltaDpEvent(draw(rng, 1e-4, 100)), relation
        case "truncated":
            size = int(rng.integers(1, 20))
            return acc.TruncatedSubsampledGaussianDpEvent(
                200, draw(rng, 1e-3, 1), size, draw(rng, 0.3, 20)
            ), "add_or_remove_one"
    raise ValueError(kind)


SINGLES = [
    "gaussian",
    "laplace",
    "discrete_laplace",
    "discrete_gaussian",
    "randomized_response",
    "exponential",
    "pure",
    "truncated",
]
SINGLES += [
    "sampled_gaussian",
    "sampled_laplace",
    "sampled_discrete_laplace",
    "sampled_exponential",
    "sampled_sampled_gaussian",
]
SINGLES += ["fixed_size_gaussian", "fixed_size_laplace"]


@pytest.mark.parametrize("kind", SINGLES)
def test_single_mechanisms(kind):
    """The larger of both directions' curves, from the tails of the pair to 60 digits.

    A sample under replace_one is bounded by its pair and by removing a unit and adding another: the lower of two curves.
    """
    rng = np.random.default_rng(8)
    with mp.workdps(60):
        for _ in range(DRAWS):
            event, relation = single(kind, rng)
            accountant = acc.PldAccountant(neighbouring_relation=relation).compose(event)

            def curve_under(relation, event=event):
                found = directions(tuple(leaves(event).items()), acc.NeighbouringRelation(relation))
                tails = [exact.exact_tails(d.mechanisms[0].pair) for d in found]
                return lambda epsilon: max(p - mp.exp(epsilon) * q for p, q in (tail(epsilon) for tail in tails))

            of_pair = curve_under(relation)
            twice = relation == "replace_one" and isinstance(event, acc.PoissonSampledDpEvent)
            once = curve_under("add_or_remove_one") if twice else None

            def curve(epsilon, of_pair=of_pair, once=once):
                epsilon = mp.mpf(epsilon)
                bound = of_pair(epsilon)
                return bound if once is None else min(bound, (1 + mp.exp(epsilon / 2)) * once(epsilon / 2))

            delta = 10 ** -rng.uniform(1, 30)
            upper = accountant.get_epsilon(delta)
            epsilon = (upper or draw(rng, 1e-4, 1)) * rng.uniform(0, 1.5)
            assert not list(faults(accountant, curve, delta, epsilon, 1e-14, 1e-3)), (event, relation, delta)


def interval(event, delta=1e-5, count=1, **options):
    return acc.PldAccountant(**options).compose(event, count).epsilon_interval(delta)


@pytest.mark.parametrize("cheap", [acc.NoOpDpEvent(), acc.GaussianDpEvent(5.0)])
def test_sampled_parallel_cohorts_cost_the_dearest(cheap):
    dear = acc.GaussianDpEvent(1.0)
    exact_epsilon = interval(acc.PoissonSampledDpEvent(0.5, dear))
    for events in ((cheap, dear), (dear, cheap)):
        found = acc.epsilon(acc.PoissonSampledDpEvent(0.5, acc.ParallelDpEvent(events)), 1e-5)
        assert found.epsilon >= exact_epsilon.lower


def test_fixed_size_samples_of_a_guarantee_may_swap_the_unit_for_another():
    """ε-DP for presence: the sample without the unit holds another one in its place, 2ε away."""
    event = acc.SampledWithoutReplacementDpEvent(2, 1, acc.EpsilonDeltaDpEvent(1.0))
    found = interval(event, 1e-12, neighbouring_relation="replace_one")
    assert found.upper >= math.log(0.5 + 0.5 * math.exp(2.0)) * (1 - 1e-9)


@pytest.mark.parametrize("count", [1, 4])
def test_a_mixture_of_one_is_a_gaussian(count):
    mixture, gaussian = (
        interval(event, count=count)
        for event in (acc.MixtureOfGaussiansDpEvent(1.0, (40.0,), (1.0,)), acc.GaussianDpEvent(1 / 40))
    )
    assert mixture.lower <= gaussian.upper
    assert gaussian.lower <= mixture.upper


@pytest.mark.parametrize("q", [1e-8, 1e-3])
def test_amplified_guarantees_keep_their_digits(q):
    found = interval(acc.PoissonSampledDpEvent(q, acc.EpsilonDeltaDpEvent(1e-4)), 1e-20)
    exact_epsilon = float(mp.log1p(mp.mpf(q) * mp.expm1(mp.mpf(1e-4))))
    assert found.lower <= exact_epsilon * (1 + 1e-9)
    assert found.upper >= exact_epsilon * (1 - 1e-7)  # δ is 1e-20 of 1e-12: it takes 2e-8 off


def test_little_noise_and_large_epsilon():
    """Far from where the tilt was chosen, e^{-loss} must not be cut off."""
    with mp.workdps(40):
        found = interval(acc.dpsgd_event(0.05, 0.5, 1), 0.1, 100, rtol=1e-6)
        assert exact.strongly_sampled_gaussian_delta(0.5, 0.05, 100, found.upper) <= 0.1
        assert exact.strongly_sampled_gaussian_delta(0.5, 0.05, 100, found.lower) >= 0.1


@pytest.mark.parametrize(
    ("event", "count"),
    [
        (acc.LaplaceDpEvent(1e-4), 1),
        (acc.LaplaceDpEvent(1e-3), 3),
        (acc.ExponentialMechanismDpEvent(1e4), 1),
        (acc.PoissonSampledDpEvent(0.5, acc.AboveThresholdDpEvent(1e-3, 1e-3)), 5),
        (acc.DiscreteGaussianDpEvent(0.05), 5),
        (acc.DiscreteGaussianDpEvent(1e-3), 5),
        (acc.EpsilonDeltaDpEvent(1e4, 1e-6), 5),
        (acc.PoissonSampledDpEvent(0.2, acc.GaussianDpEvent(0.036)), 2),
        (acc.dpsgd_event(1 / 128, 8.4e-4, 1), 16),  # cells thinned out beyond a loss of 700 each overflowed
    ],
)
def test_very_large_losses(event, count):
    for delta in (0.1, 1e-5):
        found = interval(event, delta, count)
        assert 0 <= found.lower <= found.upper < math.inf


def test_discrete_noise_far_smaller_than_the_sensitivity_keeps_both_distributions():
    """All of Q lies where P is no number: left out, a sample would lose the probability of not being drawn."""
    pair = atomic_pairs.discrete_gaussian(0.02, 2)
    assert pair.mass.sum() == pytest.approx(1, abs=1e-12)
    assert pair.q.sum() == pytest.approx(1, abs=1e-12)
    # Whoever is in the sample is given away: delta is 1 - (1 - q)^T at any epsilon short of the largest loss.
    found = acc.PldAccountant().compose(acc.PoissonSampledDpEvent(0.01, acc.DiscreteGaussianDpEvent(0.02, 2)), 5)
    delta = found.delta_interval(1.0)
    assert delta.lower <= 1 - 0.99**5 <= delta.upper * (1 + 1e-12)


def test_discrete_noise_with_too_large_a_sensitivity_is_refused():
    with pytest.raises(acc.UnsupportedEventError, match="distinct losses"):
        acc.PldAccountant().compose(acc.DiscreteGaussianDpEvent(10.0, 10**9))


def test_discrete_losses_on_a_coarser_lattice():
    interval(acc.DiscreteLaplaceDpEvent(2.0), 1e-10, 100_000, neighbouring_relation="replace_one")


@pytest.mark.parametrize(("q", "sigma", "count", "delta"), [(6e-8, 0.45, 750_000, 4e-8), (1.5e-7, 0.68, 33, 6e-30)])
def test_rare_and_heavy_losses_have_a_narrow_interval(q, sigma, count, delta):
    assert interval(acc.dpsgd_event(sigma, q, 1), delta, count).relative_width < 5e-3


def test_nothing_is_spent_where_delta_covers_it_all():
    event = acc.PoissonSampledDpEvent(1.7e-8, acc.DiscreteGaussianDpEvent(0.323, 2))
    assert interval(event, 2.5e-5).upper == 0


@pytest.mark.parametrize(
    ("q", "sigma", "count", "delta"),
    [
        (4.84e-8, 0.9, 406_369, 1.3e-18),
        (6.6e-6, 0.64, 64_352, 2.7e-30),
        (3.9603568171276484e-08, 2.7659501494817857, 358, 2.704912001882406e-27),
    ],
)
def test_transforms_are_of_bounded_length(q, sigma, count, delta, monkeypatch):
    original = scipy.fft.next_fast_len

    def bounded(length, **options):
        assert length <= 1.2 * acc.search.convolution.MAX_POINTS
        return original(length, **options)

    monkeypatch.setattr(scipy.fft, "next_fast_len", bounded)
    interval(acc.dpsgd_event(sigma, q, 1), delta, count)
