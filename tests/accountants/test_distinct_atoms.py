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
