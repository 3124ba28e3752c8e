"""A parameter used at several places, in whatever way: norms and sums are those of per-example gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marauder_dp.clipping import clipped_grad, explain
from tests.marauder_dp.conftest import float64, tree_norm
from tests.marauder_dp.test_cuts import reference
from tests.marauder_dp.zoo import ZOO, normal, whole

BATCH, ROWS, WIDTH = 4, 6, 4

# Uses of a table (ROWS, WIDTH): of (w, x, ids), x: (3, WIDTH), ids: (3,), some of them outside.
USES = {
    "product": lambda w, x, ids: x @ w.T,
    "transposed": lambda w, x, ids: jnp.tile(x, 2)[:, :ROWS] @ w,
    "lookup": lambda w, x, ids: w[ids],
    "clipped lookup": lambda w, x, ids: jnp.take(w, ids, axis=0, mode="clip"),
    "filled lookup": lambda w, x, ids: jnp.take(w, ids, axis=0, mode="fill", fill_value=0),
    "one row": lambda w, x, ids: jax.lax.dynamic_index_in_dim(w, ids[0], keepdims=False),
    "head": lambda w, x, ids: x @ w[:2].T,
    "tail": lambda w, x, ids: x @ w[2:].T,
    "columns": lambda w, x, ids: x[:, :2] @ w[:, 1:3].T,
    "lookup in the tail": lambda w, x, ids: w[2:][ids % 4],
    "reversed": lambda w, x, ids: x @ jnp.flip(w, 0).T,
    "flat": lambda w, x, ids: w.reshape(-1) * x[0, 0],
    "heads": lambda w, x, ids: jnp.einsum("thk,rhk->tr", x.reshape(3, 2, 2), w.reshape(ROWS, 2, 2)),
    "frozen": lambda w, x, ids: x @ jax.lax.stop_gradient(w).T,
    "constant": lambda w, x, ids: jnp.ones((1, WIDTH), w.dtype) @ w.T * x[0, 0],
    "half precision": lambda w, x, ids: (x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16).T).astype(w.dtype),
    "scan": lambda w, x, ids: jax.lax.scan(lambda h, xi: (h, jnp.tanh(xi @ w.T)), 0, x)[1],
    "lookup in a scan": lambda w, x, ids: jax.lax.scan(lambda h, i: (jnp.tanh(h + w[i]), None), x[0], ids)[0],
    "rows in a scan": lambda w, x, ids: jax.lax.scan(lambda h, row: (jnp.tanh(h * row), row), x[0], w)[0],
}


def loss_of(uses):
    def loss(w, example):
        x, ids, on = example
        found = [USES[use](w, x * (i + 1), ids - i) for i, use in enumerate(uses)]
        return on * sum(jnp.sum(jnp.sin(y + jnp.arange(y.size).reshape(y.shape))) for y in found)

    return loss


def batch(seed, dtype):
    """Random examples, of which the last has a gradient of zero."""
    x = normal(BATCH, 3, WIDTH, seed=seed).astype(dtype)
    return x, whole(ROWS + 4, BATCH, 3, seed=seed) - 2, jnp.asarray([1, 1, 1, 0], dtype)


@settings(max_examples=8, deadline=None)
@given(uses=st.lists(st.sampled_from(sorted(USES)), min_size=1, max_size=4), seed=st.integers(0, 2**20))
def test_uses_of_one_parameter_in_any_mixture(uses, seed):
    with float64():
        w, examples = normal(ROWS, WIDTH, seed=seed).astype(jnp.float64), batch(seed, jnp.float64)
        norms, total = reference(loss_of(uses), w, examples, np.inf)
        ours = jax.jit(clipped_grad(loss_of(uses), clip_norm=np.inf, method="cuts"))(w, examples)
    # The reference rounds each product of half precision to it.
    tolerance = 0.02 if "half precision" in uses else 1e-11
    np.testing.assert_allclose(ours.norms, norms, rtol=tolerance, atol=tolerance * max(norms.max(), 1e-9))
    np.testing.assert_allclose(ours.sum, total, atol=tolerance * max(np.linalg.norm(norms), 1e-9))
    assert ours.norms[-1] == 0


@settings(max_examples=5, deadline=None)
@given(
    uses=st.lists(st.sampled_from(sorted(USES)), min_size=2, max_size=3),
    seed=st.integers(0, 2**20),
    dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
    clip_norm=st.sampled_from([1e-3, 0.1, 1.0]),
)
def test_uses_of_one_parameter_stay_below_the_clip_norm(uses, seed, dtype, clip_norm):
    w, examples = normal(ROWS, WIDTH, seed=seed).astype(dtype), jax.tree.map(lambda x: x[:1], batch(seed, dtype))
    total = jax.jit(clipped_grad(loss_of(uses), clip_norm=clip_norm, method="cuts"))(w, examples).sum
    assert total.dtype == jnp.float32
    assert tree_norm(total) <= clip_norm * (1 + 1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "tied_embedding",
        "a_table_looked_up_twice_and_multiplied_twice",
        "the_same_convolution_twice",
        "layers_stacked_in_one_array_and_a_loop",
        "queries_beside_keys_in_one_array",
        "rows_of_a_part_that_is_the_last_layer_too",
        "a_cell_in_a_loop_from_zeros",
        "lookups_in_a_scan",
        "convolutions_in_scans",
        "scan_in_scan",
        "scans_of_grids_of_layers",
        "slices_that_overlap",
    ],
)
def test_what_is_written_out(name):
    """Nothing but what is added as it is (biases, one use a position) and what has no one form."""
    for row in explain(*ZOO[name]()).rows:
        expected = name == "slices_that_overlap" or "add" in row.rule
        assert (row.route == "written out") == expected, row


def test_layers_in_one_array_cost_what_separate_arrays_do():
    """No gradient of the array for each example, only the sum."""
    layers, width, size = 4, 128, 64

    def loss(w, x):
        for i in range(layers):
            x = jnp.tanh(x @ w[i])
        return jnp.sum(x)

    gradient = jax.jit(clipped_grad(loss, clip_norm=1.0, method="cuts"))
    program = gradient.lower(normal(layers, width, width), normal(size, width)).compile()
    assert program.memory_analysis().temp_size_in_bytes < 4 * size * layers * width**2 / 10
