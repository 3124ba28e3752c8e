"""A lower bound from atoms that were spread between lattice points."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accountants import convolution, spread
from accountants.atomic_pairs import discrete_gaussian, randomized_response
from accountants.lattice import Lattice, on_lattice


def noise(width, share, count):
    """log Z of `count` factors that are e^{−share · width} or e^{(1 − share) · width} with mean 1, and its Q-masses."""
    low, high = math.exp(-share * width), math.exp((1 - share) * width)
    up = (1 - low) / (high - low)
    k = np.arange(count + 1)
    log_binomial = np.array([math.lgamma(count + 1) - math.lgamma(i + 1) - math.lgamma(count - i + 1) for i in k])
    q = np.exp(log_binomial + k * math.log(up) + (count - k) * math.log1p(-up))
    return k * (1 - share) * width - (count - k) * share * width, q / q.sum()


@given(st.floats(1e-3, 1.0), st.floats(0.01, 0.99), st.integers(1, 300), st.floats(-4, 4))
def test_time_value_bounds_every_option(width, share, count, deviations):
    rho = count * width**2 / 8
    if spread.worthless(rho):
        return
    x = deviations * math.sqrt(2 * rho)
    log_z, q = noise(width, share, count)
    exact = float(q @ np.maximum(np.exp(log_z) - math.exp(x), 0.0)) - max(1 - math.exp(x), 0.0)
    assert exact <= float(spread.time_value(np.array([abs(x)]), rho)[0]) * (1 + 1e-9) + 1e-13


@given(st.floats(1e-3, 1.0), st.floats(0.01, 0.99), st.integers(1, 300))
def test_the_noise_rarely_goes_beyond_reach(width, share, count):
    log_z, q = noise(width, share, count)
    beyond = np.abs(log_z) > spread.reach(count * width**2 / 8)
    assert float((q * np.exp(log_z))[beyond].sum()) <= spread.KAPPA


def lower_bound(losses, mass, step, count, epsilon, tilt):
    part = on_lattice(losses, mass, step, sign=-1, spread=True)
    composed = convolution.compose([(part, np.array([float(count)]))], tilt, sign=-1)
    return composed, float(convolution.deltas(composed, np.array([epsilon]))[0])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-2, 2), st.floats(0.01, 1)), min_size=2, max_size=5, unique_by=lambda atom: round(atom[0], 3)),
    st.integers(1, 4),
    st.floats(1e-4, 0.3),
    st.floats(0, 3),
    st.floats(0.1, 5),
)
def test_below_every_composition_by_brute_force(atoms, count, step, epsilon, tilt):
    losses, mass = (np.array(part) for part in zip(*sorted(atoms), strict=True))
    mass = mass / mass.sum()
    exact = math.fsum(
        math.prod(mass[list(which)]) * max(-math.expm1(epsilon - math.fsum(losses[list(which)])), 0.0)
        for which in itertools.product(range(len(mass)), repeat=count)
    )
    composed, found = lower_bound(losses, mass, step, count, epsilon, tilt)
    assert found <= exact * (1 + 1e-9)
    if exact > 0:
        least = convolution.epsilon(composed, exact * (1 + 1e-9))
        assert least <= epsilon + 1e-9


@pytest.mark.parametrize("count", [1, 30, 1000, 100_000])
@pytest.mark.parametrize(("pair", "pieces"), [(discrete_gaussian(3.0, 1), 3.3), (randomized_response(0.99, 3), 40.7)])
def test_close_to_the_same_composition_on_its_own_lattice(pair, pieces, count):
    step = pair.gap / pieces
    while spread.worthless(count * step**2):
        step /= 3.1
    own = Lattice(np.array([pair.first]), pair.gap, np.arange(len(pair.mass)), pair.mass[None], np.zeros(1))
    deviation = math.sqrt(float(pair.mass @ pair.losses**2) - float(pair.mass @ pair.losses) ** 2)
    epsilon = max(count * float(pair.mass @ pair.losses) + 2 * math.sqrt(count) * deviation, 0.1)
    tilt = 2 / (math.sqrt(count) * deviation)
    bounds = []
    for sign in (-1, 1):
        composed = convolution.compose([(own, np.array([float(count)]))], tilt, sign=sign)
        bounds.append(float(convolution.deltas(composed, np.array([epsilon]))[0]))
    composed, found = lower_bound(pair.losses, pair.mass, step, count, epsilon, tilt)
    assert found <= bounds[1]
    density = 1 / (deviation * math.sqrt(count))  # of the composed loss, at most about that
    assert found >= bounds[0] - 0.1 * count * step**2 * density
    if bounds[1] > 0:
        assert convolution.epsilon(composed, bounds[1]) <= epsilon * (1 + 1e-9)
