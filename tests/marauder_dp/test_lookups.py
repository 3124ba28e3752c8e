"""Rows of a table looked up many times: by pairs of positions, or by what each row receives in all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marauder_dp import clipped_grad, explain
from marauder_dp.cuts.routes import lookup
from tests.marauder_dp.conftest import tree_norm
from tests.marauder_dp.zoo import normal, whole

SIZE = 4


def looked_up(table, ids):
    """Twice, once with ids outside of the table counting nothing."""
    outside = jnp.take(table, ids - 3, axis=0, mode="fill", fill_value=0)
    return jnp.sum(jnp.sin(table[ids])) + jnp.sum(jnp.tanh(outside.sum(0)) ** 2)


def tied(table, ids):
    return jnp.sum(jnp.tanh(jnp.tanh(table[ids]) @ table.T) ** 2)


@pytest.mark.parametrize(("rows", "positions"), [(7, 3), (7, 90), (400, 90), (30, 1)])
@pytest.mark.parametrize(
    ("loss", "dtype"), [(looked_up, "int32"), (looked_up, "int16"), (tied, "int32"), (tied, "int16"), (tied, "uint32")]
)
def test_equals_gradients_written_out(loss, dtype, rows, positions):
    table, ids = normal(rows, 5), whole(rows, SIZE, positions).astype(dtype)
    cuts, full = (jax.jit(clipped_grad(loss, clip_norm=0.3, method=method))(table, ids) for method in ("cuts", "vmap"))
    np.testing.assert_allclose(cuts.norms, full.norms, rtol=1e-5)
    np.testing.assert_allclose(cuts.sum, full.sum, rtol=1e-4, atol=1e-5 * float(jnp.abs(full.sum).max()))


def test_the_way_follows_from_sizes():
    assert lookup(64, 8, 64, 30_000).how == "rows"
    assert lookup(64, 1024, 64, 30_000).how == "summed rows"
    assert lookup(64, 64, 64, 20).how == "summed rows"
    table = normal(30, 5)
    assert explain(looked_up, table, whole(30, SIZE, 900)).rows[0].route == "summed rows"
    assert explain(lambda table, ids: jnp.sum(jnp.sin(table[ids])), table, whole(30, SIZE, 2)).rows[0].route == "rows"


def test_memory_does_not_grow_with_the_square_of_positions():
    table, ids = normal(1000, 8), whole(1000, SIZE, 4000)
    program = jax.jit(clipped_grad(looked_up, clip_norm=1.0, method="cuts")).lower(table, ids).compile()
    assert program.memory_analysis().temp_size_in_bytes < 4 * SIZE * 4000**2 / 10


@pytest.mark.parametrize("positions", [6, 500])
def test_positions_that_cancel_do_not_hide_a_gradient(positions):
    """Of one row, so that what it receives is next to nothing beside what each position gives."""
    signs = jnp.asarray([1.0, -1.0] * (positions // 2))
    loss = lambda table, e: jnp.sum(table[e[0]] * signs[:, None] * 1e3) + 1e-3 * jnp.sum(jnp.sin(table[e[0][0]]) * e[1])
    batch = jnp.zeros((SIZE, positions), jnp.int32), jnp.ones((SIZE, 5))
    for i in range(SIZE):
        mask = jnp.arange(SIZE) == i
        total = clipped_grad(loss, clip_norm=1e-4, method="cuts")(normal(40, 5), batch, mask).sum
        assert tree_norm(total) <= 1e-4 * (1 + 1e-6)
