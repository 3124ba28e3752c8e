"""Calibrated noise meets its target, by the accountant that reports it."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import accountants as acc
from accountants.calibration import largest_count


@settings(max_examples=20, deadline=None)
@given(
    epsilon=st.floats(-2, 2.5).map(lambda e: 10**e),
    delta=st.floats(-12, -2).map(lambda e: 10**e),
    q=st.floats(-4, 0).map(lambda e: 10**e),
    steps=st.integers(1, 100_000),
)
@example(epsilon=1.0, delta=1e-12, q=0.9999999999999994, steps=366)
def test_reported_epsilon_lies_just_below_the_target(epsilon, delta, q, steps):
    sigma = acc.calibrate_noise_multiplier(epsilon=epsilon, delta=delta, sampling_probability=q, steps=steps)
    reported = acc.PldAccountant().compose(acc.dpsgd_event(sigma, q, steps)).get_epsilon(delta)
    at_the_least_noise = sigma == pytest.approx(1e-3)
    assert reported <= epsilon
    assert reported >= 0.995 * epsilon or at_the_least_noise


def test_a_target_out_of_reach_is_named():
    with pytest.raises(acc.CalibrationError, match="can't be reached"):
        acc.calibrate_noise_multiplier(epsilon=1e-9, delta=1e-9, sampling_probability=1.0, steps=10**12)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"delta": 1.0}, "delta"),
        ({"sampling_probability": 0.0}, "sampling_probability"),
        ({"sampling_probability": 1.1}, "sampling_probability"),
        ({"steps": 0}, "steps"),
    ],
)
def test_bad_input(change, field):
    arguments = {"epsilon": 1.0, "delta": 1e-5, "sampling_probability": 0.01, "steps": 10} | change
    with pytest.raises(acc.InvalidEventError, match=field):
        acc.calibrate_noise_multiplier(**arguments)


@given(st.integers(0, 500), st.integers(0, 500))
def test_largest_count(limit, at_most):
    assert largest_count(lambda n: n <= limit, at_most) == min(limit, at_most)
