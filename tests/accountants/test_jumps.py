"""Compositions with rare jumps apart equal direct convolutions, which round by a few units relative to every entry."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import accountants as acc
from accountants import convolution, jumps
from accountants.lattice import Lattice

STEP = 0.01


def lattice(rng, rate, size=120, origin=-0.03):
    """Nearly all of it at a few points, and a heavy tail of probability `rate`."""
    mass = np.zeros(size)
    mass[:6] = (1 - rate) * rng.dirichlet([0.2, 1, 20, 1, 0.5, 0.2])  # all of it is a probability, as bounds of δ are 1 at most
    tail = rng.random(size - 8) * np.exp(-np.linspace(0, rng.uniform(0, 12), size - 8))
    mass[8:] = rate * tail / tail.sum()
    return Lattice(np.array([origin]), STEP, np.arange(size), mass[None], np.zeros(1))


def convolved(mass, times):
    result = np.ones(1)
    for bit in bin(times)[2:]:
        result = np.convolve(result, result)
        if bit == "1":
            result = np.convolve(result, mass)
    return result


def exact_deltas(parts, epsilons):
    mass, origin = np.ones(1), 0.0
    for measure, times in parts:
        mass = np.convolve(mass, convolved(measure.mass[0], times))
        origin += times * float(measure.origin[0])
    losses = origin + STEP * np.arange(len(mass))
    return np.array([np.sum(mass * np.maximum(-np.expm1(e - losses), 0)) for e in epsilons])


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    log_rate=st.floats(-30, -1.5),
    times=st.lists(st.integers(1, 60), min_size=1, max_size=3),
    cutoff=st.floats(0.08, 0.5),
)
def test_equals_direct_convolution(seed, log_rate, times, cutoff):
    rng = np.random.default_rng(seed)
    parts = [(lattice(rng, 10**log_rate), t) for t in times]
    epsilons = np.array([0.3, 0.5, 0.8, 1.1])
    exact = exact_deltas(parts, epsilons)
    batches = [(measure, np.array([float(t)])) for measure, t in parts]
    below, above = (sum(convolution.deltas(c, epsilons) for c in jumps.compose(batches, cutoff, 0.5, sign=s)) for s in (-1, 1))
    assert (below <= exact * (1 + 1e-11)).all()
    assert (above >= exact * (1 - 1e-11)).all()
    aimed = 1  # at 0.5
    assert above[aimed] - below[aimed] <= 1e-3 * exact[aimed] + 1e-20


def test_far_below_what_one_transform_resolves():
    """δ of 1e-25 next to a mass of 1: the same lattice, composed at once, bounds nothing at this tilt."""
    rng = np.random.default_rng(0)
    part = lattice(rng, 1e-24)
    exact = exact_deltas([(part, 50)], [0.7])[0]
    batches = [(part, np.array([50.0]))]
    below, above = (
        sum(float(convolution.deltas(c, np.array([0.7]))[0]) for c in jumps.compose(batches, 0.3, 0.7, sign=s)) for s in (-1, 1)
    )
    assert below <= exact <= above
    assert above - below < 1e-4 * exact
    at_once = convolution.compose(batches, 5.0, sign=1)
    assert float(convolution.deltas(at_once, np.array([0.7]))[0]) > 100 * exact


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_epsilon_of_a_sum(sign):
    rng = np.random.default_rng(1)
    part = lattice(rng, 1e-5)
    terms = jumps.compose([(part, np.array([30.0]))], 0.2, 0.6, sign=sign)
    delta = float(exact_deltas([(part, 30)], [0.6])[0])
    found = convolution.epsilon_of_sum(terms, delta)
    assert math.isclose(found, 0.6, rel_tol=1e-3)
    assert (found - 0.6) * sign >= -1e-9
    assert convolution.epsilon_of_sum(terms, 0.9999) == 0.0


def test_a_measure_without_jumps():
    rng = np.random.default_rng(2)
    part = lattice(rng, 1e-5)
    without, with_jumps = jumps.compose([(part, np.array([10.0]))], 5.0, 0.3, sign=1)
    assert with_jumps.infinite == 0
    assert float(convolution.deltas(with_jumps, np.array([0.3]))[0]) == 0
    assert float(convolution.deltas(without, np.array([0.3]))[0]) >= exact_deltas([(part, 10)], [0.3])[0] * (1 - 1e-11)


@pytest.mark.parametrize(
    ("q", "sigma", "count", "delta", "between"),
    [
        # From both sides by dp-accounting 0.6.0's pessimistic and optimistic grids of 1e-6 and 1e-5, where they end.
        (1e-6, 0.6, 100_000, 1e-9, (5e-4, 0.0298)),
        (1e-6, 0.6, 1000, 1e-12, (0.0483, 0.0563)),
    ],
)
def test_rare_sampling(q, sigma, count, delta, between):
    found = acc.PldAccountant().compose(acc.dpsgd_event(sigma, q, count)).epsilon_interval(delta)
    assert found.relative_width <= 5e-3
    assert between[0] <= found.upper
    assert found.lower <= between[1]


@pytest.mark.parametrize(
    ("q", "sigma", "count", "epsilon"),
    [(1e-6, 1.0, 1000, 0.1), (1e-7, 1.0, 1000, 0.1), (1e-6, 0.8, 10**5, 1.0), (1e-4, 1.0, 1000, 1.0), (1e-5, 0.8, 10**5, 1.0)],
)
def test_delta_far_out_is_that_of_one_jump(q, sigma, count, epsilon):
    """Where one loss alone can be so large, δ is nearly `count` times that of a single release, which has a closed form."""
    found = acc.PldAccountant().compose(acc.dpsgd_event(sigma, q, 1), count).delta_interval(epsilon)
    one = acc.PldAccountant().compose(acc.dpsgd_event(sigma, q, 1)).delta_interval(epsilon)
    assert found.relative_width < 2e-3
    assert found.lower <= count * one.upper * (1 + 20 * math.sqrt(count) * q)
    assert found.upper >= count * one.lower * (1 - 20 * math.sqrt(count) * q)
