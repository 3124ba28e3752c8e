"""Roots are enclosed, in few tries."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accountants.roots import falling_zero


@given(st.floats(0.01, 0.99), st.floats(0.05, 30), st.sampled_from([1e-3, 1e-9, 0.0]))
def test_a_root_is_enclosed(root, steepness, atol):
    tries = []

    def f(x):
        tries.append(x)
        return math.expm1(steepness * (root - x))

    found = falling_zero(f, 0.0, 1.0, rtol=1e-15, atol=atol)
    assert f(found) <= 0
    assert found - max(x for x in tries if math.expm1(steepness * (root - x)) > 0) <= atol + 2e-15
    assert len(tries) < 80


def test_few_tries_do_for_a_smooth_function():
    tries = []
    falling_zero(lambda x: tries.append(x) or math.exp(-x / 100) - 0.99, -700.0, 1.5, atol=1e-9)
    assert len(tries) < 25


@pytest.mark.parametrize("edge", [0.0, 0.25, 1.0])
def test_the_first_zero_of_a_plateau(edge):
    assert falling_zero(lambda x: max(edge - x, 0.0), 0.0, 1.0, atol=1e-9) == pytest.approx(edge, abs=1e-9)


def test_none_at_all():
    assert falling_zero(lambda x: 1.0, 0.0, 2.0) == 2.0
