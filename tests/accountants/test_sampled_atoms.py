"""Poisson samples of discrete mechanisms, whose losses are finitely many and lie on no lattice."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import accountants as acc
from accountants.atomic_pairs import discrete_gaussian, kept


def brute_force(sigma, rate, epsilon):
    """δ of three releases of the sampled discrete Gaussian, the larger of both directions, over all triples of outcomes."""
    noise = np.arange(-60, 62)
    weights = np.exp(-0.5 * (noise / sigma) ** 2), np.exp(-0.5 * ((noise - 1) / sigma) ** 2)
    absent, present = (w / w.sum() for w in weights)
    mixed = (1 - rate) * absent + rate * present
    found = []
    for p, q in ((mixed, absent), (absent, mixed)):
        triples_p, triples_q = (np.einsum("i,j,k->ijk", x, x, x) for x in (p, q))
        found.append(math.fsum(np.maximum(triples_p - math.exp(epsilon) * triples_q, 0.0).ravel().tolist()))
    return max(found)


@pytest.mark.parametrize(("sigma", "rate"), [(0.5, 0.3), (1.3, 0.01), (4.0, 0.7)])
def test_three_releases_by_brute_force(sigma, rate):
    accountant = acc.PldAccountant(rtol=1e-4)
    accountant.compose(acc.PoissonSampledDpEvent(rate, acc.DiscreteGaussianDpEvent(sigma)), 3)
    for epsilon in (0.01, 0.3, 1.5):
        exact, found = brute_force(sigma, rate, epsilon), accountant.delta_interval(epsilon)
        assert found.lower <= exact * (1 + 1e-9)
        assert exact <= found.upper * (1 + 1e-9)


@pytest.mark.parametrize(
    ("sigma", "rate", "count", "width"), [(0.5, 0.001, 10**6, 0.05), (1.0, 0.01, 1000, 2e-3), (10.0, 0.1, 10**4, 2e-3)]
)
def test_many_releases_have_a_narrow_interval(sigma, rate, count, width):
    event = acc.PoissonSampledDpEvent(rate, acc.DiscreteGaussianDpEvent(sigma))
    found = acc.PldAccountant().compose(event, count).epsilon_interval(1e-5)
    assert found.relative_width < width


@given(st.floats(0.05, 20), st.floats(-300, -0.31), st.floats(-300, -0.31))  # less than one half at either end
def test_quantiles_leave_out_no_more_than_they_may(sigma, log_low, log_high):
    pair = discrete_gaussian(sigma, 1)
    low, high = 10**log_low, 10**log_high
    for find, mass in ((pair.quantiles, pair.mass), (pair.base_quantiles, pair.q)):
        (a,), (b,) = (end[0] for end in find(np.array([[low]]), np.array([[high]])))
        assert mass[pair.losses < a].sum() <= low * (1 + 1e-12)
        assert mass[pair.losses > b].sum() <= high * (1 + 1e-12)
        # and no less than they can
        assert mass[pair.losses <= a].sum() > low * (1 - 1e-12) or a == pair.losses[-1]
        assert mass[pair.losses >= b].sum() > high * (1 - 1e-12) or b == pair.losses[0]


def test_one_atom_stays_however_little_there_is():
    first, last = kept(np.array([1e-20, 1e-21, 1e-20]), np.array([[1e-14]]), np.array([[1e-10]]))
    assert first == last
