"""Frozen parameters: the same as closing over them, and untouched by noise and optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from marauder_dp import DpSgd, DpSgdPlan, ModelError, clipped_grad, explain, per_layer
from tests.marauder_dp.test_dpsgd import assert_close, run

pytestmark = pytest.mark.usefixtures("strict_rank")


def second_layer(path):
    return path.startswith("b")


@pytest.mark.parametrize("method", ["cuts", "vmap", "none"])
def test_a_filter_is_the_same_as_closing_over_the_rest(problem, method):
    loss, params, batch = problem
    frozen = {"a": params["a"]}
    expected = clipped_grad(lambda p, x: loss({**frozen, **p}, x), clip_norm=0.5, method=method)({"b": params["b"]}, batch)
    found = jax.jit(clipped_grad(loss, clip_norm=0.5, method=method, trainable=second_layer))(params, batch)
    assert found.sum["a"] is None
    assert_close(found.sum["b"], expected.sum["b"])
    if method != "none":
        assert_close(found.norms, expected.norms)


def test_lora_trains_adapters_of_a_frozen_integer_backbone():
    rng = np.random.default_rng(0)
    params = {
        "backbone": jnp.asarray(rng.integers(-8, 8, (6, 4)), jnp.int8),  # no gradient at all
        "lora": {
            "a": jnp.asarray(rng.normal(size=(6, 2)), jnp.float32),
            "b": jnp.asarray(rng.normal(size=(2, 4)), jnp.float32),
        },
    }

    def loss(params, x):
        weights = params["backbone"].astype(jnp.float32) / 8 + params["lora"]["a"] @ params["lora"]["b"]
        return jnp.sum(jnp.tanh(x @ weights) ** 2)

    x = jnp.asarray(rng.normal(size=(12, 6)), jnp.float32)
    clipped = clipped_grad(loss, clip_norm=0.1, trainable=lambda path: path.startswith("lora/"))(params, x)
    each = jax.vmap(jax.grad(lambda lora, x: loss({**params, "lora": lora}, x)), (None, 0))(params["lora"], x)
    norms = jnp.sqrt(sum(jnp.sum(g.reshape(12, -1) ** 2, axis=1) for g in jax.tree.leaves(each)))
    assert_close(clipped.norms, norms)
    scale = jnp.minimum(1, 0.1 / norms)
    assert_close(clipped.sum["lora"], jax.tree.map(lambda g: jnp.tensordot(scale, g, 1), each))
    rows = explain(loss, params, x, trainable=lambda path: "lora" in path).rows
    assert {name for row in rows for name in row.parameters} == {"lora/a", "lora/b"}


@pytest.mark.parametrize("clipping", ["flat", "per_layer", "adaptive"])
def test_frozen_parameters_are_untouched_by_noise_and_optimizer(problem, clipping):
    loss, params, data = problem
    plan = DpSgdPlan(16, batch_size=8, steps=3, clip_norm=0.5, noise_multiplier=1.0, delta=1e-3, clipping=clipping)
    sgd = DpSgd(plan, loss, optax.adamw(0.1), micro_batch=16, trainable=second_layer)
    state, _ = run(sgd, params, data, 3)
    np.testing.assert_array_equal(state.params["a"], params["a"])
    assert all(
        jnp.abs(after - before).min() > 0
        for after, before in zip(*map(jax.tree.leaves, (state.params["b"], params["b"])), strict=True)
    )
    assert len(jax.tree.leaves(state.opt_state)) == 1 + 2 * len(jax.tree.leaves(params["b"]))


def test_clip_norms_by_path_are_those_of_trained_parameters(problem):
    loss, params, batch = problem
    norms = per_layer({"b": params["b"]}, 0.5)
    clipped = clipped_grad(loss, clip_norm=norms, trainable=second_layer)(params, batch)
    assert clipped.sum["a"] is None
    with pytest.raises(ModelError, match="names 'a', under which"):
        clipped_grad(loss, clip_norm={"a": 1.0, "": 1.0}, trainable=second_layer)(params, batch)


def test_a_filter_that_chooses_nothing_is_refused(problem):
    loss, params, batch = problem
    with pytest.raises(ModelError, match=r"chooses none of \['a', 'b/bias', 'b/w'\]"):
        clipped_grad(loss, clip_norm=1.0, trainable=lambda path: False)(params, batch)
