"""Types of parameters, masks and constants that are not the usual ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marauder_dp import ModelError, clipped_grad, explain
from tests.marauder_dp.conftest import float64
from tests.marauder_dp.zoo import normal

BATCH = 4


def dense(params, x):
    return jnp.sum((jnp.tanh(x @ params["a"]) + params["b"]) ** 2)


def scanned(params, x):
    def step(carry, row):
        return jnp.tanh(carry * params["b"] + row @ params["a"]).astype(carry.dtype), carry.sum()

    carry, ys = jax.lax.scan(step, jnp.zeros(3, jnp.float32), x)
    return (carry**2).sum() + ys.sum()


@pytest.mark.parametrize("micro_batch", [None, 1, 2])
@pytest.mark.parametrize("data", ["float32", "float64"])
@pytest.mark.parametrize("types", [("float32", "float64"), ("float64", "float32")])
@pytest.mark.parametrize(("loss", "shape"), [(dense, (5,)), (scanned, (7, 5))])
def test_parameters_in_single_beside_double_precision(loss, shape, types, data, micro_batch):
    with float64():
        params = {name: normal(*size).astype(dtype) for name, size, dtype in zip("ab", [(5, 3), (3,)], types, strict=True)}
        x = normal(BATCH, *shape).astype(data)
        cuts = jax.jit(clipped_grad(loss, clip_norm=0.5, method="cuts", micro_batch=micro_batch))(params, x)
        full = jax.jit(clipped_grad(loss, clip_norm=0.5, method="vmap", micro_batch=micro_batch))(params, x)
    for name, dtype in zip("ab", types, strict=True):
        assert cuts.sum[name].dtype == full.sum[name].dtype == dtype
        np.testing.assert_allclose(cuts.sum[name], full.sum[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_parameters_of_eight_bits(dtype):
    w, x = normal(5, 3).astype(dtype), normal(BATCH, 5)
    loss = lambda w, x: jnp.sum((x @ w.astype(jnp.float32)) ** 2)
    total = clipped_grad(loss, clip_norm=0.5)(w, x).sum
    assert total.dtype == jnp.float32
    np.testing.assert_allclose(total, clipped_grad(loss, clip_norm=0.5)(w.astype(jnp.float32), x).sum, rtol=1e-5, atol=1e-6)


def test_numbers_of_python_and_numpy():
    loss = lambda p, x: jnp.sum(x) * p["a"] + p["b"] * jnp.sum(x**2)
    x = normal(BATCH, 5)
    found = clipped_grad(loss, clip_norm=np.float32(0.5))({"a": 1.0, "b": np.float64(2.0)}, x, [True, True, False, True])
    same = clipped_grad(loss, clip_norm=0.5)({"a": jnp.ones(()), "b": jnp.full((), 2.0)}, x, jnp.array([1, 1, 0, 1], bool))
    np.testing.assert_allclose(found.sum["b"], same.sum["b"], rtol=1e-6)
    assert found.norms[2] == 0


@pytest.mark.parametrize("mask", [[1.0, 1.0, 0.0, 1.0], np.array([1, 1, 0, 1]), [True] * 3])
def test_a_mask_is_boolean(mask):
    with pytest.raises(ModelError, match="mask must be boolean, of the shape"):
        clipped_grad(dense, clip_norm=0.5)({"a": normal(5, 3), "b": normal(3)}, normal(BATCH, 5), mask)


def test_arrays_of_numpy_inside_a_custom_derivative():
    """`odeint` indexes its times by a traced number."""
    from jax.experimental.ode import odeint

    times = np.linspace(0, 1, 4).astype(np.float32)
    loss = lambda w, x: jnp.sum(odeint(lambda y, t: jnp.tanh(w @ y), x, times) ** 2)
    w, x = normal(3, 3), normal(BATCH, 3)
    cuts, full = (jax.jit(clipped_grad(loss, clip_norm=0.5, method=method))(w, x) for method in ("cuts", "vmap"))
    np.testing.assert_allclose(cuts.sum, full.sum, rtol=1e-4, atol=1e-5)


def test_explain_takes_shapes_of_what_is_not_trained_too():
    shapes = {"a": jax.ShapeDtypeStruct((5, 3), jnp.float32), "b": jax.ShapeDtypeStruct((3,), jnp.float32)}
    (row,) = explain(dense, shapes, jax.ShapeDtypeStruct((BATCH, 5), jnp.float32), trainable=lambda name: name == "a").rows
    assert (row.parameters, row.route) == (("a",), "factors")


def test_a_large_constant_is_not_copied_for_each_example():
    table = normal(400, 500)  # their product is smaller than the parameter
    loss = lambda w, x: jnp.sum(jnp.tanh(table @ w)[:50] * x)
    program = jax.jit(clipped_grad(loss, clip_norm=1.0, method="cuts")).lower(normal(500, 1), normal(64, 50, 1)).compile()
    assert program.memory_analysis().temp_size_in_bytes < 64 * table.nbytes / 10
