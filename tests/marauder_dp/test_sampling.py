"""Poisson sampling: rate, independence, and the same draw everywhere.

Statistical tests have fixed seeds and a false-alarm rate below 1e-6 each.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from accountants import GaussianDpEvent, InvalidEventError, PoissonSampledDpEvent
from marauder_dp import PoissonSampler
from marauder_dp.sampling import micro_batch_ids, take

pytestmark = pytest.mark.usefixtures("strict_rank")

KEY = jax.random.key(5)


def masks(sampler, steps, key=KEY):
    return np.asarray(jax.jit(jax.vmap(lambda t: sampler.mask(key, t)))(jnp.arange(steps)))


@pytest.mark.parametrize("q", [0.001, 0.01, 0.3, 0.95])
def test_rate_over_examples_and_steps(q):
    drawn = masks(PoissonSampler(5000, q), 400)
    assert stats.binomtest(int(drawn.sum()), drawn.size, q).pvalue > 1e-6


def test_batch_sizes_are_binomial():
    """Of a fixed size, or over-dispersed, they would not be."""
    n, q = 2000, 0.05
    sizes = masks(PoissonSampler(n, q), 4000).sum(axis=1)
    dispersion = np.sum((sizes - n * q) ** 2) / (n * q * (1 - q))
    assert 5e-7 < stats.chi2.cdf(dispersion, len(sizes)) < 1 - 5e-7


def test_examples_and_steps_are_independent():
    """2x2 tables of neighbours: included together as often as independence says."""
    drawn = masks(PoissonSampler(1000, 0.3), 2000)
    for a, b in ((drawn[:-1], drawn[1:]), (drawn[:, :-1], drawn[:, 1:]), (drawn[:1000], drawn[1000:])):
        table = [[np.sum(a & b), np.sum(a & ~b)], [np.sum(~a & b), np.sum(~a & ~b)]]
        assert stats.chi2_contingency(table, correction=False).pvalue > 1e-6


def test_every_example_has_the_same_rate():
    drawn = masks(PoissonSampler(500, 0.2), 3000).sum(axis=0)
    expected = 3000 * 0.2
    assert 5e-7 < stats.chi2.cdf(np.sum((drawn - expected) ** 2 / (expected * 0.8)), 500) < 1 - 5e-7


def test_a_draw_depends_on_key_step_and_example_alone():
    """The first 100 of 1,000 examples are drawn as the 100 of a data set that ends there."""
    few, many = PoissonSampler(100, 0.3), PoissonSampler(1000, 0.3)
    np.testing.assert_array_equal(few.mask(KEY, 3), many.mask(KEY, 3)[:100])
    np.testing.assert_array_equal(few.mask(KEY, 3), jax.jit(few.mask)(KEY, jnp.int32(3)))
    assert (few.mask(KEY, 3) != few.mask(KEY, 4)).any()
    assert (few.mask(KEY, 3) != few.mask(jax.random.key(6), 3)).any()


def test_edges():
    assert PoissonSampler(10, 1.0).mask(KEY, 0).all()
    assert not PoissonSampler(10, 0.0).mask(KEY, 0).any()


def test_describes_itself_to_the_accountant():
    event = PoissonSampler(100, 0.25).event(GaussianDpEvent(1.0))
    assert event == PoissonSampledDpEvent(0.25, GaussianDpEvent(1.0))


@pytest.mark.parametrize(("n", "q"), [(-1, 0.5), (10, 1.5), (10, float("nan"))])
def test_bad_input(n, q):
    with pytest.raises(InvalidEventError):
        PoissonSampler(n, q)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(1, 20))
def test_micro_batches_cover_the_mask_once_and_in_order(mask, size):
    mask = jnp.array(mask)
    cumulative = jnp.cumsum(mask, dtype=jnp.int32)
    covered = []
    for index in range(-(-int(cumulative[-1]) // size)):
        ids, used = micro_batch_ids(cumulative, index, size)
        assert ids.shape == used.shape == (size,)
        assert int(ids.max()) < len(mask)
        covered += np.asarray(ids)[np.asarray(used)].tolist()
    assert covered == np.flatnonzero(mask).tolist()
    _, used = micro_batch_ids(cumulative, -(-int(cumulative[-1]) // size), size)
    assert not used.any()


def test_take_gathers_every_array():
    x, y = take((jnp.arange(12).reshape(6, 2), jnp.arange(6)), jnp.array([4, 1]))
    np.testing.assert_array_equal(x, [[8, 9], [2, 3]])
    np.testing.assert_array_equal(y, [4, 1])
