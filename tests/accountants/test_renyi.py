"""Rényi divergences against high-precision quadrature and independent libraries."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import norm

from accountants import renyi
from tests.accountants.conftest import exact_laplace, exact_sampled_gaussian

FRACTIONAL = (1.01, 1.5, 7.25)
INTEGER = (2.0, 10.0, 64.0)


def sampled(order: float, sigma: float, q: float) -> float:
    return float(renyi.sampled_gaussian(np.array([order]), sigma, q)[0])


def relative_error(value: float, exact: object) -> float:
    return abs(float((value - exact) / exact))  # type: ignore[operator]


@pytest.mark.parametrize(("q", "sigma"), [(1e-5, 0.3), (1e-5, 100), (0.01, 1.0), (0.2, 0.5), (0.9, 5)])
@pytest.mark.parametrize("order", [1.1, 7.25])
def test_sampled_gaussian_equals_quadrature(q, sigma, order):
    assert relative_error(sampled(order, sigma, q), exact_sampled_gaussian(order, sigma, q)) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize(("q", "sigma"), list(itertools.product((1e-5, 1e-3, 0.2, 0.9, 1 - 1e-9), (0.3, 1, 5, 100))))
def test_sampled_gaussian_equals_quadrature_on_the_whole_grid(q, sigma):
    for order in (1.01, 1.1, 1.5, 2.5, 7.25, 10.9, *INTEGER, 3.0):
        assert relative_error(sampled(order, sigma, q), exact_sampled_gaussian(order, sigma, q)) < 1e-10


@pytest.mark.parametrize(("q", "sigma", "order"), [(0.2, 2, 1.5), (0.005, 0.6, 1.1), (0.2, 2, 1.1)])
def test_signs_are_right_where_dp_accounting_drops_them(q, sigma, order):
    assert relative_error(sampled(order, sigma, q), exact_sampled_gaussian(order, sigma, q)) < 1e-10


def test_integer_orders_equal_dp_accounting():
    rdp = pytest.importorskip("dp_accounting.rdp")
    dp = pytest.importorskip("dp_accounting")
    orders = list(range(2, 257))
    for q, sigma in [(0.01, 1.0), (0.2, 4.0), (1e-3, 0.6)]:
        theirs = rdp.RdpAccountant(orders)
        theirs.compose(dp.PoissonSampledDpEvent(q, dp.GaussianDpEvent(sigma)))
        ours = renyi.sampled_gaussian(np.array(orders, float), sigma, q)
        np.testing.assert_allclose(ours, theirs._rdp, rtol=1e-8)


@pytest.mark.parametrize(("q", "sigma"), [(0.01, 1.0), (0.3, 0.7), (1e-4, 20.0)])
def test_integer_sum_meets_quadrature(q, sigma):
    """Two independent formulas: the binomial sum at an integer order and the integral beside it."""
    for order in (2.0, 5.0, 9.0):
        beside = np.array([order - 1e-7, order + 1e-7])
        assert np.mean(renyi.sampled_gaussian(beside, sigma, q)) == pytest.approx(sampled(order, sigma, q), rel=1e-9)


@pytest.mark.parametrize("order", [*FRACTIONAL, *INTEGER])
def test_full_sample_is_the_plain_gaussian(order):
    assert sampled(order, 3.0, 1.0) == pytest.approx(order / 18, rel=1e-15)
    assert sampled(order, 3.0, 0.0) == 0
    assert sampled(order, 3.0, 1 - 1e-13) == pytest.approx(order / 18, rel=1e-9)


@pytest.mark.parametrize(("q", "sigma"), [(0.01, 1.0), (0.3, 2.0)])
def test_mixture_against_base_is_the_larger_direction(q, sigma):
    """Mironov, Talwar, Zhang 2019, Theorem 5, by brute-force quadrature of the other direction."""
    x = np.linspace(-40 * sigma, 40 * sigma, 400_001)
    log_base, log_shifted = (norm.logpdf(x, mean, sigma) for mean in (0, 1))
    log_mixture = np.logaddexp(math.log1p(-q) + log_base, math.log(q) + log_shifted)
    for order in (1.5, 4.0, 10.0):
        log_integrand = order * log_base + (1 - order) * log_mixture
        reverse = (logsumexp(log_integrand) + math.log(x[1] - x[0])) / (order - 1)
        assert reverse <= sampled(order, sigma, q) * (1 + 1e-9) + 1e-13


@pytest.mark.parametrize("scale", [0.3, 1.0, 20.0])
@pytest.mark.parametrize("order", [1.5, 7.25, 10])
def test_laplace_equals_quadrature(scale, order):
    value = float(renyi.laplace(np.array([float(order)]), scale)[0])
    assert relative_error(value, exact_laplace(order, scale)) < 1e-10


@pytest.mark.parametrize(("q", "scale"), [(0.01, 1.0), (0.5, 0.4), (0.2, 10.0)])
@pytest.mark.parametrize("order", [1.1, 3.0, 7.25])
def test_sampled_laplace_equals_quadrature(q, scale, order):
    value = float(renyi.sampled_laplace(np.array([order]), scale, q)[0])
    assert relative_error(value, exact_laplace(order, scale, q)) < 1e-10


def test_laplace_of_large_scale_does_not_cancel():
    """For b → ∞ the divergence is α/(2b²); naive exponentials would lose every digit."""
    value = float(renyi.laplace(np.array([8.0]), 1e6)[0])
    assert value == pytest.approx(8 / (2 * 1e12), rel=1e-5)


def test_orders_too_large_for_quadrature_fall_back_to_an_upper_bound():
    order = 3000.5
    bound = sampled(order, 0.003, 0.01)
    low, high = sampled(3000.0, 0.003, 0.01), sampled(3001.0, 0.003, 0.01)
    assert low <= bound <= high * (1 + 1e-12)


@settings(max_examples=300, deadline=None)
@given(
    order=st.floats(1.001, 500),
    sigma=st.floats(-1, 4).map(lambda e: 10**e),
    q=st.floats(-7, 0).map(lambda e: 10**e),
)
def test_sampled_gaussian_is_finite_monotone_and_amplified(order, sigma, q):
    value = sampled(order, sigma, q)
    assert 0 <= value <= order / (2 * sigma**2) * (1 + 1e-9)
    assert sampled(order, sigma * 1.1, q) <= value * (1 + 1e-9)
    assert sampled(order * 1.1, sigma, q) >= value * (1 - 1e-9)
    assert sampled(order, sigma, q * 0.9) <= value * (1 + 1e-9)
