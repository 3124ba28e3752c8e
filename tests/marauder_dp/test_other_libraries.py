"""Models of other libraries: the same clipping, no adapter. The extra `test` brings them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marauder_dp.clipping import clipped_grad, explain
from tests.marauder_dp.zoo import normal, whole


def check(loss, params, batch):
    """The sum is that of per-example gradients, and only vectors are written out."""
    ours = jax.jit(clipped_grad(loss, clip_norm=0.1, method="cuts"))(params, batch)
    each = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(params, batch)
    norms = jnp.sqrt(sum(jnp.sum(g**2, range(1, g.ndim)) for g in jax.tree.leaves(each)))
    assert (norms > 0.1).any()
    factors = jnp.minimum(1.0, 0.1 / norms)
    for a, b in zip(jax.tree.leaves(ours.sum), jax.tree.leaves(each), strict=True):
        np.testing.assert_allclose(a, jnp.tensordot(factors, b, 1), rtol=2e-5, atol=1e-6)
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    vectors = {name(path) for path, leaf in leaves if max(leaf.shape) == leaf.size}
    for row in explain(loss, params, batch).rows:
        assert row.route != "written out" or set(row.parameters) <= vectors, row


def test_equinox_convolutional_network():
    eqx = pytest.importorskip("equinox")
    keys = jax.random.split(jax.random.key(0), 3)
    model = eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(2, 4, 3, key=keys[0]),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.MaxPool2d(2, 2),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Linear(16, 8, key=keys[1]),
            eqx.nn.Lambda(jnp.tanh),
            eqx.nn.Linear(8, 3, key=keys[2]),
        ]
    )
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss(params, example):
        x, y = example
        return -jax.nn.log_softmax(eqx.combine(params, static)(x))[y]

    check(loss, params, (normal(6, 2, 6, 6), whole(3, 6)))


def test_equinox_transformer_and_recurrent_cell():
    eqx = pytest.importorskip("equinox")
    keys = jax.random.split(jax.random.key(0), 4)
    model = {
        "embed": eqx.nn.Embedding(11, 8, key=keys[0]),
        "attend": eqx.nn.MultiheadAttention(2, 8, key=keys[1]),
        "cell": eqx.nn.GRUCell(8, 6, key=keys[2]),
        "out": eqx.nn.Linear(6, 11, key=keys[3]),
    }
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss(params, ids):
        m = eqx.combine(params, static)
        h = jax.vmap(m["embed"])(ids)
        h = m["attend"](h, h, h)
        state, _ = jax.lax.scan(lambda s, x: (m["cell"](x, s), None), jnp.zeros(6), h)
        return -jax.nn.log_softmax(m["out"](state))[ids[0]]

    check(loss, params, whole(11, 5, 7))


def test_haiku_network():
    hk = pytest.importorskip("haiku")

    def network(x):
        x = hk.Conv2D(4, 3)(x)
        x = jax.nn.relu(hk.LayerNorm(-1, create_scale=True, create_offset=True)(x))
        return hk.Linear(3)(x.reshape(-1))

    model = hk.without_apply_rng(hk.transform(network))
    params = model.init(jax.random.key(0), jnp.zeros((5, 5, 2)))

    def loss(params, example):
        x, y = example
        return -jax.nn.log_softmax(model.apply(params, x))[y]

    check(loss, params, (normal(6, 5, 5, 2), whole(3, 6)))


def test_haiku_recurrent_network():
    hk = pytest.importorskip("haiku")

    def network(ids):
        core = hk.LSTM(6)
        h, _ = hk.dynamic_unroll(core, hk.Embed(9, 4)(ids), core.initial_state(None))
        return hk.Linear(9)(h)

    model = hk.without_apply_rng(hk.transform(network))
    params = model.init(jax.random.key(0), jnp.zeros(5, jnp.int32))

    def loss(params, ids):
        return -jnp.mean(jax.nn.log_softmax(model.apply(params, ids))[jnp.arange(5), ids])

    check(loss, params, whole(9, 6, 5))
