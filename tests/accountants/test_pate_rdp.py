"""PATE's Rényi bounds against exact divergences, limiting cases, and the whole range of parameters."""

import math

import numpy as np
import pytest

from accountants import pate
from accountants.pate.rdp import log_complement
from tests.accountants.pate_references import (
    divergence,
    log_answers,
    log_winners,
    log_winners_laplace,
    neighbours,
    random_histogram,
)

ORDERS = np.array([1.1, 1.5, 2, 3, 5, 8, 14, 20, 32, 64, 128])
SLACK = 1 + 1e-9


def gnmax_never_below_exact(count, seed):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        votes, sigma = random_histogram(rng), math.exp(rng.uniform(math.log(0.5), math.log(15)))
        here = log_winners(votes, sigma)
        one_way = pate.gnmax(votes[None], sigma, ORDERS)[0] * SLACK
        both = pate.gnmax(votes[None], sigma, ORDERS, both=True)[0] * SLACK
        assert (one_way <= both).all()
        for other in neighbours(votes):
            there = log_winners(other, sigma)
            assert (divergence(here, there, ORDERS) <= one_way).all(), (votes, other, sigma)
            assert (divergence(there, here, ORDERS) <= both).all(), (votes, other, sigma)


def threshold_never_below_exact(count, seed):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        value, sigma = rng.uniform(0, 60), math.exp(rng.uniform(math.log(0.5), math.log(30)))
        limit = rng.uniform(0, 60)
        here = log_answers(value, limit, sigma)
        one_way = pate.threshold([value], limit, sigma, ORDERS)[0] * SLACK
        both = pate.threshold([value], limit, sigma, ORDERS, both=True)[0] * SLACK
        for change in (-1.0, -0.3, 0.5, 1.0):
            there = log_answers(value + change, limit, sigma)
            assert (divergence(here, there, ORDERS) <= one_way).all(), (value, change, limit, sigma)
            assert (divergence(there, here, ORDERS) <= both).all(), (value, change, limit, sigma)


def lnmax_never_below_exact(count, seed):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        votes, scale = random_histogram(rng, 3, 25), math.exp(rng.uniform(math.log(0.7), math.log(10)))
        here = log_winners_laplace(votes, scale)
        one_way = pate.lnmax(votes[None], scale, ORDERS)[0] * (1 + 1e-5)
        both = pate.lnmax(votes[None], scale, ORDERS, both=True)[0] * (1 + 1e-5)
        for other in neighbours(votes):
            there = log_winners_laplace(other, scale)
            assert (divergence(here, there, ORDERS) <= one_way).all(), (votes, other, scale)
            assert (divergence(there, here, ORDERS) <= both).all(), (votes, other, scale)


def test_gnmax_is_never_below_the_exact_divergence():
    gnmax_never_below_exact(120, 0)


def test_threshold_is_never_below_the_exact_divergence():
    threshold_never_below_exact(400, 1)


def test_lnmax_is_never_below_the_exact_divergence():
    lnmax_never_below_exact(25, 2)


@pytest.mark.slow
def test_never_below_the_exact_divergence_thousands():
    gnmax_never_below_exact(3000, 3)
    threshold_never_below_exact(20_000, 4)
    lnmax_never_below_exact(400, 5)


def test_theorem_6_bounds_one_direction_alone():
    """Why `both` exists: from the neighbour to these votes the exact divergence is 14 times the bound at these votes."""
    votes, other, sigma = np.array([20, 4]), np.array([19, 5]), 2.0
    reverse = divergence(log_winners(other, sigma), log_winners(votes, sigma), [2.0])[0]
    assert reverse > 14 * pate.gnmax(votes[None], sigma, [2.0])[0, 0]
    assert reverse < pate.gnmax(votes[None], sigma, [2.0], both=True)[0, 0]


def test_hand_derived_probabilities():
    """Two classes, gap 2, σ = 1: Φc(√2). A tie of two among three: 1/2 + Φc(1/√2), capped at 2/3."""
    assert pate.log_q_gnmax([3, 1], 1.0) == pytest.approx(math.log(0.5 * math.erfc(1.0)))
    assert pate.log_q_gnmax([2, 2, 1], 1.0) == pytest.approx(math.log(2 / 3))
    assert pate.log_q_lnmax([3, 1], 2.0) == pytest.approx(math.log(3 / (4 * math.e)))
    answer, refuse = pate.log_answer([200.0, 250.0], 200, 50)
    assert np.exp(answer) == pytest.approx([0.5, 0.841344746], rel=1e-8)
    assert np.exp(answer) + np.exp(refuse) == pytest.approx([1, 1])


def test_both_tails_of_the_threshold_survive():
    answer, refuse = pate.log_answer([0.0, 5000.0], 200, 5.0)
    assert answer[0] == pytest.approx(-804.6, abs=0.1)
    assert refuse[1] < -1e5
    # q is smaller than the complement of a rounded tail can be, and so is the cost
    cost = pate.threshold([0.0, 5000.0], 200, 5.0, [2.0])[:, 0]
    assert (cost > 0).all()
    assert (cost < 1e-300).all()


@pytest.mark.parametrize("sigma", [1.0, 1.5, 7.0, 40.0, 1e3, 1e4])
def test_nothing_overflows_in_the_whole_range(sigma):
    orders = np.array([1.1, 1.5, 2, 14, 64, 250, 512])
    histograms = []
    for teachers in (2, 3, 10, 250, 5000):
        for top in {teachers, teachers - 1, (3 * teachers) // 4, -(-teachers // 2)}:
            histograms.append([top, teachers - top, 0, 0])
    histograms = np.sort(np.array(histograms))[:, ::-1]
    for both in (False, True):
        for cost, most in (
            (pate.gnmax(histograms, sigma, orders, both=both), pate.gnmax_independent(sigma, orders)),
            (pate.threshold(histograms[:, 0], 200.0, sigma, orders, both=both), pate.threshold_independent(sigma, orders)),
            (pate.lnmax(histograms, sigma, orders, both=both), pate.lnmax_independent(sigma, orders)),
        ):
            assert cost.shape == (len(histograms), len(orders))
            assert np.isfinite(cost).all()
            assert (cost > 0).all()
            assert (cost <= most).all()
            assert (np.diff(cost, axis=1) >= -1e-12 * cost[:, 1:]).all()  # divergences rise with the order


def test_monotone_in_consensus_and_blind_to_names():
    tops = np.arange(125, 251)
    histograms = np.stack([tops, 250 - tops, np.zeros_like(tops)], axis=1)
    for cost in (pate.gnmax(histograms, 20.0, ORDERS), pate.lnmax(histograms, 20.0, ORDERS)):
        assert (np.diff(cost, axis=0) <= 1e-12).all()
    names = pate.Votes([[1, 5, 2], [5, 2, 1], [2, 1, 5]])
    assert len(names.distinct) == 1
    # a tie costs what any votes cost
    assert pate.gnmax([[125, 125, 0]], 20.0, ORDERS)[0] == pytest.approx(pate.gnmax_independent(20.0, ORDERS))


def test_certain_outcomes_cost_almost_nothing_but_never_zero():
    assert (pate.data_dependent(-np.inf, 40.0, ORDERS) < 1e-300).all()
    assert (pate.data_dependent(-np.inf, 40.0, ORDERS) > 0).all()
    assert pate.data_dependent(0.0, 40.0, ORDERS) == pytest.approx(ORDERS / 1600)


def test_log_complement():
    x = np.array([-1e-300, -1e-17, -0.5, -1.0, -50.0, -1000.0])
    assert log_complement(x) == pytest.approx([-690.7755, -39.1439, -0.932752, -0.458675, -1.9287e-22, 0.0], rel=1e-4)
