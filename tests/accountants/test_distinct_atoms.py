"""Many different mechanisms of finitely many losses: each lies on a lattice of its own, no two on the same."""

import functools
import math

import numpy as np
import pytest

import accountants as acc


def outcomes(event):
    """Probabilities of each outcome for two data sets of which one unit is replaced, (n,) each."""
    if isinstance(event, acc.RandomizedResponseDpEvent):
        other = event.noise_parameter / event.num_buckets
        present = np.full(event.num_buckets, other)
        absent = present.copy()
        present[0] += 1 - event.noise_parameter
        absent[1] += 1 - event.noise_parameter
        return present, absent
    moved = 2 * event.sensitivity  # one unit leaves and another one comes
    if isinstance(event, acc.DiscreteGaussianDpEvent):
        k = np.arange(-math.ceil(9 * event.sigma), math.ceil(9 * event.sigma) + 1 + moved)
        weights = [np.exp(-0.5 * ((k - shift) / event.sigma) ** 2) for shift in (moved, 0)]
    else:
        k = np.arange(-math.ceil(40 / event.noise_parameter), math.ceil(40 / event.noise_parameter) + 1 + moved)
        weights = [np.exp(-event.noise_parameter * np.abs(k - shift)) for shift in (moved, 0)]
    return tuple(w / w.sum() for w in weights)


def brute_force(events, epsilon):
    """δ over all combinations of outcomes."""
    pairs = [outcomes(event) for event in events]
    present, absent = (
        functools.reduce(lambda a, b: np.multiply.outer(a, b).ravel(), side) for side in zip(*pairs, strict=True)
    )
    return math.fsum(np.maximum(present - math.exp(epsilon) * absent, 0.0).tolist())


@pytest.mark.parametrize(
    "events",
    [
        [acc.RandomizedResponseDpEvent(noise, 3) for noise in np.linspace(0.3, 0.9, 11)],
        [
            acc.RandomizedResponseDpEvent(noise, buckets)
            for noise, buckets in zip((0.2, 0.5, 0.55, 0.8), (2, 3, 7, 9), strict=True)
        ],
        [acc.DiscreteGaussianDpEvent(sigma) for sigma in (0.7, 1.3, 2.1, 3.0)],
        [acc.DiscreteGaussianDpEvent(sigma, 2) for sigma in (5.0, 5.05, 9.7)],
        [acc.DiscreteLaplaceDpEvent(a, s) for a, s in ((0.9, 1), (0.7, 3), (1.3, 2))],
        [acc.DiscreteLaplaceDpEvent(1.0), acc.DiscreteGaussianDpEvent(2.0), acc.RandomizedResponseDpEvent(0.4, 5)],
    ],
)
@pytest.mark.parametrize("rtol", [1e-2, 1e-3, 1e-5])
def test_few_by_brute_force(events, rtol):
    accountant = acc.PldAccountant(neighbouring_relation="replace_one", rtol=rtol)
    for event in events:
        accountant.compose(event)
    for epsilon in (0.01, 0.7, 3.0):
        exact, found = brute_force(events, epsilon), accountant.delta_interval(epsilon)
        # What lies beyond nine standard deviations is not among the outcomes.
        assert found.lower <= exact + 1e-17
        assert exact <= found.upper + 1e-17
        if exact > 1e-12:
            at = accountant.epsilon_interval(exact)
            assert at.lower <= epsilon * (1 + 1e-9)
            assert epsilon <= at.upper * (1 + 1e-9)


@pytest.mark.parametrize(
    ("events", "count"),
    [
        ([acc.DiscreteGaussianDpEvent(sigma) for sigma in np.linspace(20, 30, 100)], 1),
        ([acc.DiscreteLaplaceDpEvent(a) for a in np.linspace(0.1, 0.3, 10)], 30),
        ([acc.RandomizedResponseDpEvent(noise, 4) for noise in np.linspace(0.5, 0.9, 50)], 1),
    ],
)
def test_many_have_a_narrow_interval(events, count):
    accountant = acc.PldAccountant(neighbouring_relation="replace_one")
    for event in events:
        accountant.compose(event, count)
    found = accountant.epsilon_interval(1e-6)
    assert found.relative_width <= 1e-3
    assert accountant.delta_interval(found.upper).upper <= 1e-6 * (1 + 2e-3)


def two_groups(first, count, second, times):
    """Losses and their P-masses, (n,), of `count` and `times` runs of the worst mechanisms of two pure ε."""

    def binomial(epsilon, n):
        k = np.arange(n + 1)
        logs = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in k]
        return (2 * k - n) * epsilon, np.array(logs) - k * math.log1p(math.exp(-epsilon)) - (n - k) * (
            epsilon + math.log1p(math.exp(-epsilon))
        )

    (a, p), (b, q) = binomial(first, count), binomial(second, times)
    return np.add.outer(a, b).ravel(), np.exp(np.add.outer(p, q).ravel())


def exact_delta(losses, mass, epsilon):
    above = losses > epsilon
    return math.fsum((mass[above] * -np.expm1(epsilon - losses[above])).tolist())


GROUPS = [
    (0.06644755833613412, 22, 0.7404851841690916, 2),
    (0.06, 3, 0.05, 1000),
    (0.0022395007894343492, 475, 0.7526412786714974, 2),
    (2.0, 1, 0.7, 1),
    (1.0, 2, 0.3, 2),
    (0.003, 30, 0.7, 40),
]


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("points", [12, 97])
def test_a_profile_holds_everywhere_up_to_the_largest_loss(groups, points):
    """Compositions are of compositions here, of which a window is all that is kept."""
    losses, mass = two_groups(*groups)
    first, count, second, times = groups
    accountant = acc.PldAccountant()
    accountant.compose(acc.EpsilonDeltaDpEvent(first), count).compose(acc.EpsilonDeltaDpEvent(second), times)
    curve = acc.profile(accountant, np.linspace(0, 1.05 * losses.max(), points).tolist())
    exact = np.array([exact_delta(losses, mass, e) for e in curve.epsilons])
    assert (exact <= curve.upper * (1 + 1e-9) + 1e-290).all()
    assert (curve.lower <= exact * (1 + 1e-9) + 1e-290).all()
    usual = acc.profile(accountant)
    # Neyman and Pearson: the most that a test which errs on 1 % of the absent finds.
    order = np.argsort(-losses)
    fpr = np.cumsum((mass * np.exp(-losses))[order])
    whole = int(np.searchsorted(fpr, 0.01, side="right"))
    tpr = math.fsum(mass[order][:whole].tolist())
    assert tpr <= usual.max_tpr(0.01) * (1 + 1e-9)


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("rtol", [1e-2, 1e-3, 1e-4])
def test_epsilon_at_any_delta(groups, rtol):
    losses, mass = two_groups(*groups)
    first, count, second, times = groups
    accountant = acc.PldAccountant(rtol=rtol)
    accountant.compose(acc.EpsilonDeltaDpEvent(first), count).compose(acc.EpsilonDeltaDpEvent(second), times)
    for delta in (0.3, 1e-3, 1e-6, 1e-13, 1e-16, 1e-20, 1e-30):
        found = accountant.epsilon_interval(delta)
        assert exact_delta(losses, mass, found.upper * (1 + 1e-9)) <= delta * (1 + 1e-9)
        assert found.lower == 0 or exact_delta(losses, mass, found.lower * (1 - 1e-9)) >= delta * (1 - 1e-9)
        assert found.upper <= losses.max() * (1 + 2 * rtol)


def test_losses_far_below_1_at_a_tiny_delta():
    """The tilt is as large as it gets, and the window ends far below the largest loss."""
    losses, mass = two_groups(1.5e-10, 3, 1e-10, 1000)
    accountant = acc.PldAccountant()
    accountant.compose(acc.EpsilonDeltaDpEvent(1.5e-10), 3).compose(acc.EpsilonDeltaDpEvent(1e-10), 1000)
    found = accountant.epsilon_interval(1e-30)
    assert exact_delta(losses, mass, found.upper) <= 1e-30 <= exact_delta(losses, mass, found.lower)
    assert accountant.delta_interval(2.954e-8).upper >= exact_delta(losses, mass, 2.954e-8) > 0


def test_no_more_than_the_total_variation_nor_beyond_the_largest_loss():
    sampled = acc.PoissonSampledDpEvent(0.3, acc.EpsilonDeltaDpEvent(0.7))
    accountant = acc.PldAccountant().compose(acc.EpsilonDeltaDpEvent(0.5, 1e-6), 10).compose(sampled, 10)
    for epsilon in (7.0, 7.1, 7.5):  # the largest loss when a unit is added is 6.6
        found = accountant.delta_interval(epsilon)
        assert 0.99 * found.upper <= found.lower <= found.upper < 1e-4
