"""Noise: the stated distribution, far into its tails, and no key where keys don't belong.

Statistical tests have fixed seeds and thresholds with a false-alarm rate below 1e-6 each.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from marauder_dp import gaussian_noise, standard_normal
from marauder_dp.threefry import words

pytestmark = pytest.mark.usefixtures("strict_rank")

N = 4_000_000


@pytest.fixture(scope="module")
def draws():
    return np.asarray(jax.jit(standard_normal, static_argnums=1)(jax.random.key(1), (N,)), np.float64)


def test_standard_deviation_is_the_stated_one(draws):
    """Σ z² is χ² with N degrees of freedom."""
    p = stats.chi2.cdf(np.sum(draws**2), N)
    assert 5e-7 < p < 1 - 5e-7


def test_distribution_is_normal(draws):
    assert stats.kstest(draws, "norm").pvalue > 1e-6


def test_tails_hold_as_many_draws_as_they_should(draws):
    """Counts beyond 2 … 4.8 standard deviations, both sides, are binomial."""
    for threshold in (2.0, 3.0, 4.0, 4.5, 4.8):
        for side in (draws, -draws):
            count = int(np.sum(side > threshold))
            assert stats.binomtest(count, N, stats.norm.sf(threshold)).pvalue > 1e-7


def test_extreme_words_reach_nine_standard_deviations(monkeypatch):
    """The draw with all-zero words is the farthest: far beyond the 5.42 of `jax.random.normal`, and finite."""
    extremes = jnp.array([[0, 1, 0xFFFFFFFF, 0xFFFFFFFE], [0, 0, 0xFFFFFFFF, 0xFFFFFFFF]], jnp.uint32)
    monkeypatch.setattr("marauder_dp.noise.words", lambda *_: extremes)
    z = np.asarray(standard_normal(jax.random.key(0), (4,)))
    assert z[0] == pytest.approx(-stats.norm.isf(2.0**-65), rel=1e-3)
    assert z[1] == -z[0]
    assert np.isfinite(z).all()
    assert np.abs(z[2:]).max() < 1e-6


def test_matches_the_inverse_distribution_function():
    both = np.asarray(words(jax.random.key(3), (10_000,))).astype(object)
    z = np.asarray(standard_normal(jax.random.key(3), (10_000,)), np.float64)
    u = np.array([((w >> 1) * 2**32 + v + 0.5) / 2**64 for w, v in both.T], dtype=np.float64)
    np.testing.assert_allclose(np.abs(z), -stats.norm.ppf(u), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("large", [1, 100_000, 10**9])
def test_transformation_adds_the_stated_noise_to_every_leaf(monkeypatch, large):
    monkeypatch.setattr("marauder_dp.noise._LARGE", large)
    updates = {
        "a": jnp.ones((300, 400)),
        "b": jnp.zeros(80_001),
        "c": jnp.ones((300, 400)),
        "d": jnp.zeros(()),
        "e": jnp.zeros(0),
    }
    noise = gaussian_noise(2.5)
    noisy, _ = noise.update(updates, noise.init(updates), noise_key=jax.random.key(7))
    assert jax.tree.map(jnp.shape, noisy) == jax.tree.map(jnp.shape, updates)
    z = {name: (np.asarray(noisy[name], np.float64) - np.asarray(updates[name])).ravel() / 2.5 for name in updates}
    for name in "abc":
        assert 5e-7 < stats.chi2.cdf(np.sum(z[name] ** 2), z[name].size) < 1 - 5e-7
    assert z["d"] != 0
    # Neither leaves nor parts of them share their noise, at whatever distance.
    assert len(np.unique(np.concatenate(list(z.values())))) > 0.99 * sum(map(len, z.values()))
    for one, other in itertools.combinations("abc", 2):
        assert abs(np.corrcoef(z[one][:80_000], z[other][:80_000])[0, 1]) < 5 / np.sqrt(80_000)


def test_keys_decide_and_state_holds_none():
    updates = {"a": jnp.zeros(1000)}
    noise = optax.chain(gaussian_noise(1.0), optax.scale(0.5))
    state = noise.init(updates)
    assert jax.tree.leaves(state) == []
    one, _ = noise.update(updates, state, noise_key=jax.random.key(0))
    again, _ = noise.update(updates, state, noise_key=jax.random.key(0))
    other, _ = noise.update(updates, state, noise_key=jax.random.key(1))
    np.testing.assert_array_equal(one["a"], again["a"])
    assert abs(np.corrcoef(one["a"], other["a"])[0, 1]) < 0.2


def test_zero_adds_nothing():
    updates = {"a": jnp.ones(3)}
    noise = gaussian_noise(0.0)
    assert noise.update(updates, noise.init(updates), noise_key=jax.random.key(0))[0] is updates
