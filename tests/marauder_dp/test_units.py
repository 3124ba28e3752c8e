"""Units of several examples: bounded, independent of one another, and clipped once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marauder_dp import DatasetError, PlanError, clipped_grad, group_by_unit, loss_of_unit
from tests.marauder_dp.conftest import tree_norm


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(-3, 5), min_size=1, max_size=40), limit=st.integers(1, 4), seed=st.integers(0, 3))
def test_removing_a_unit_changes_no_other_row(ids, limit, seed):
    ids, data = np.array(ids), np.arange(len(ids)) + 0.5
    examples, present = group_by_unit(data, ids, limit=limit, seed=seed)
    order = list(dict.fromkeys(ids.tolist()))
    assert examples.shape == present.shape == (len(order), limit)
    for row, unit in enumerate(order):
        own = data[ids == unit]
        assert set(examples[row]) <= set(own)
        assert len(set(examples[row][present[row]])) == present[row].sum() == min(limit, len(own))
        others = ids != unit
        if others.any():
            without = group_by_unit(data[others], ids[others], limit=limit, seed=seed)
            np.testing.assert_array_equal(without.examples, np.delete(examples, row, 0))
            np.testing.assert_array_equal(without.present, np.delete(present, row, 0))


def test_a_unit_is_clipped_once(problem):
    loss, params, batch = problem
    ids = np.array(["ann", "bob", "ann", "cy"] * 4)
    examples, present = group_by_unit(batch, ids, limit=9)
    for method in ("cuts", "vmap"):
        fn = jax.jit(clipped_grad(loss_of_unit(loss), clip_norm=0.2, method=method))
        total = jax.tree.map(jnp.zeros_like, params)
        for name in ("ann", "bob", "cy"):
            own = jax.tree.map(lambda x, name=name: x[ids == name], batch)
            mean = jax.grad(lambda p, own=own: jnp.mean(jax.vmap(loss, (None, 0))(p, own)))(params)
            scale = min(1, 0.2 / tree_norm(mean))
            total = jax.tree.map(lambda t, g, scale=scale: t + scale * g, total, mean)
        result = fn(params, (examples, present))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-5, atol=1e-6), result.sum, total)


def test_what_is_wrong_is_named():
    with pytest.raises(PlanError, match="at least 1"):
        group_by_unit(np.ones(3), np.arange(3), limit=0)
    with pytest.raises(PlanError, match="fewer examples of a unit"):
        group_by_unit(np.ones(3), np.arange(3), limit=10**12)
    with pytest.raises(DatasetError, match="3 unit ids"):
        group_by_unit({"x": np.ones(4)}, np.arange(3), limit=1)
    with pytest.raises(DatasetError, match="float64"):
        group_by_unit(np.ones(3), np.ones(3), limit=1)
