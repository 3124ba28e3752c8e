"""Clipping: equal to a hand-written loop, and bounded whatever the input."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from marauder_dp import ModelError, PlanError, clipped_grad, explain, per_layer
from tests.marauder_dp.conftest import tree_norm

pytestmark = pytest.mark.usefixtures("strict_rank")


def by_hand(loss, params, batch, clip_norm):
    """One example at a time, in float64."""
    total = jax.tree.map(lambda p: np.zeros(p.shape), params)
    norms = []
    for i in range(len(batch[1])):
        grad = jax.grad(loss)(params, jax.tree.map(lambda x: x[i], batch))
        norms.append(tree_norm(grad))
        scale = min(1.0, clip_norm / norms[-1]) if norms[-1] else 1.0
        total = jax.tree.map(lambda t, g: t + scale * np.asarray(g, np.float64), total, grad)
    return total, norms


@pytest.mark.parametrize("clip_norm", [1e-3, 0.5, 2.0, math.inf])
def test_equals_a_loop_by_hand(problem, clip_norm):
    loss, params, batch = problem
    result = jax.jit(clipped_grad(loss, clip_norm=clip_norm))(params, batch)
    total, norms = by_hand(loss, params, batch, clip_norm)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-5, atol=3e-6 * min(clip_norm, 1)), result.sum, total)
    np.testing.assert_allclose(result.norms, norms, rtol=1e-5)
    np.testing.assert_allclose(result.losses, jax.vmap(loss, (None, 0))(params, batch), rtol=1e-6)


def test_infinite_clip_is_the_plain_gradient(problem):
    loss, params, batch = problem
    plain = jax.grad(lambda p: jnp.sum(jax.vmap(loss, (None, 0))(p, batch)))(params)
    for method in ("vmap", "none"):
        ours = clipped_grad(loss, clip_norm=math.inf, method=method)(params, batch).sum
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, plain)


def test_mask_equals_absence(problem):
    loss, params, batch = problem
    fn = clipped_grad(loss, clip_norm=0.5)
    mask = jnp.arange(16) % 3 == 0
    masked = fn(params, batch, mask)
    present = fn(params, jax.tree.map(lambda x: x[mask], batch))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), masked.sum, present.sum)
    np.testing.assert_allclose(masked.norms[mask], present.norms, rtol=1e-6)
    assert not masked.norms[~mask].any()
    assert not masked.losses[~mask].any()


def test_padding_may_hold_anything(problem):
    loss, params, (x, y) = problem
    fn = clipped_grad(loss, clip_norm=0.5)
    mask = jnp.arange(16) < 8
    clean = fn(params, (x, y), mask)
    poisoned = fn(params, (x.at[8:].set(jnp.nan), y), mask)
    jax.tree.map(np.testing.assert_array_equal, clean.sum, poisoned.sum)


def test_nothing_included_is_zero(problem):
    loss, params, batch = problem
    result = clipped_grad(loss, clip_norm=0.5)(params, batch, jnp.zeros(16, bool))
    assert tree_norm(result.sum) == 0


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, 1e30])
def test_a_non_finite_example_contributes_zero_and_shows_in_its_norm(bad):
    """1e30 is finite, but its squared norm is not."""
    loss = lambda params, x: jnp.sum(params["w"] * x)
    params = {"w": jnp.ones(3)}
    batch = jnp.array([[0.1, 0.2, 0.3], [bad, 0.0, 0.0]])
    result = clipped_grad(loss, clip_norm=1.0)(params, batch)
    np.testing.assert_allclose(result.sum["w"], [0.1, 0.2, 0.3], rtol=1e-6)
    assert not np.isfinite(result.norms[1])


def test_zero_gradient_is_no_division_by_zero():
    result = clipped_grad(lambda p, x: jnp.sum(p * x) * 0, clip_norm=1.0)(jnp.ones(3), jnp.ones((2, 3)))
    np.testing.assert_array_equal(result.sum, jnp.zeros(3))


@settings(max_examples=200, deadline=None)
@given(
    x=hnp.arrays(np.float32, (1, 50), elements=st.floats(width=32, allow_nan=True, allow_infinity=True)),
    clip_norm=st.floats(-8, 6).map(lambda e: 10**e),
    dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
)
def test_one_example_never_contributes_more_than_the_clip_norm(x, clip_norm, dtype):
    loss = lambda params, x: jnp.sum(params.astype(jnp.float32) * x)
    params = jnp.ones(50, dtype)
    total = clipped_grad(loss, clip_norm=clip_norm)(params, jnp.asarray(x)).sum
    assert total.dtype == jnp.float32
    assert tree_norm(total) <= clip_norm * (1 + 1e-6)


def test_a_norm_that_rounds_down_to_the_clip_norm_is_still_bounded():
    """True norms a hair above C, whose float32 value is C or less."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 1000))
    x *= (1 + rng.uniform(-2e-7, 2e-7, (200, 1))) / np.linalg.norm(x, axis=1, keepdims=True)
    fn = jax.jit(clipped_grad(lambda params, x: jnp.sum(params * x), clip_norm=1.0))
    for row in x.astype(np.float32):
        assert tree_norm(fn(jnp.ones(1000), jnp.asarray(row)[None]).sum) <= 1.0


def test_the_sum_is_computed_at_full_precision_on_every_backend(problem):
    """Accelerators round the operands of products to TF32 or bfloat16 by default, which would pass C."""
    _, params, batch = problem
    quiet = lambda params, example: jnp.sum(params["a"] * example[0][0])  # a loss without products of its own
    text = jax.jit(clipped_grad(quiet, clip_norm=1.0)).lower(params, batch).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


def test_float16_norms_do_not_underflow():
    """100,000 entries of 1e-4 in float16: a float16 norm would be 0 and nothing would be clipped (it should be 0.0316)."""
    params = jnp.ones(100_000, jnp.float16)
    loss = lambda p, x: jnp.sum((p * x).astype(jnp.float32))
    result = clipped_grad(loss, clip_norm=0.01)(params, jnp.full((1, 1), 1e-4, jnp.float16).repeat(100_000, 1))
    assert float(result.norms[0]) == pytest.approx(0.0316, rel=1e-2)
    assert tree_norm(result.sum) == pytest.approx(0.01, rel=1e-5)


def test_neighbouring_batches_differ_by_at_most_the_sensitivity(problem):
    loss, params, (x, y) = problem
    fn = clipped_grad(loss, clip_norm=0.5)
    everyone = fn(params, (x, y)).sum
    for i in range(16):
        without = fn(params, (x, y), jnp.arange(16) != i).sum
        replaced = fn(params, (x.at[i].set(-50.0), y)).sum
        assert tree_norm(jax.tree.map(jnp.subtract, everyone, without)) <= fn.sensitivity("add_or_remove_one") * (1 + 1e-5)
        assert tree_norm(jax.tree.map(jnp.subtract, everyone, replaced)) <= fn.sensitivity("replace_one") * (1 + 1e-5)


def test_sensitivity():
    fn = clipped_grad(lambda p, x: jnp.sum(p * x), clip_norm=0.5)
    assert [fn.sensitivity(r) for r in ("add_or_remove_one", "zero_out", "replace_one")] == [0.5, 0.5, 1.0]
    assert clipped_grad(fn.loss_fn, clip_norm=0.5, method="none").sensitivity("zero_out") == math.inf


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.nan, 1e-9, "1"])
def test_bad_clip_norm(clip_norm):
    with pytest.raises(PlanError, match="clip_norm"):
        clipped_grad(lambda p, x: p * x, clip_norm=clip_norm)


def test_bad_use_is_named(problem):
    loss, params, batch = problem
    with pytest.raises(PlanError, match="method"):
        clipped_grad(loss, clip_norm=1.0, method="magic")
    with pytest.raises(ModelError, match="mask"):
        clipped_grad(loss, clip_norm=1.0)(params, batch, jnp.ones(3, bool))
    with pytest.raises(ModelError, match="scalar"):
        clipped_grad(lambda p, e: e[0] @ p["a"], clip_norm=1.0)(params, batch)
    with pytest.raises(ModelError, match="ONE example"):
        clipped_grad(lambda p, e: jnp.mean(jax.vmap(loss, (None, 0))(p, e)), clip_norm=1.0)(params, batch)
    with pytest.raises(ModelError, match="b/steps is int32"):
        clipped_grad(loss, clip_norm=1.0)({**params, "b": {**params["b"], "steps": jnp.zeros((), jnp.int32)}}, batch)
    with pytest.raises(ModelError, match="leading batch dimension"):
        clipped_grad(loss, clip_norm=1.0)(params, (batch[0], batch[1][:3]))


@pytest.mark.parametrize("method", ["cuts", "vmap"])
def test_groups_are_clipped_each_to_its_own_norm(problem, method):
    loss, params, batch = problem
    fn = clipped_grad(loss, clip_norm={"a": 0.3, "": 0.05}, method=method)
    result = jax.jit(fn)(params, batch)
    for name, norm in (("a", 0.3), ("b", 0.05)):
        other = "b" if name == "a" else "a"
        alone = lambda part, example, name=name, other=other: loss({name: part, other: params[other]}, example)
        total, _ = by_hand(alone, params[name], batch, norm)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-5, atol=1e-6), result.sum[name], total)
    np.testing.assert_allclose(result.norms, by_hand(loss, params, batch, 1.0)[1], rtol=1e-5)
    assert fn.sensitivity("add_or_remove_one") == pytest.approx(math.hypot(0.3, 0.05))
    assert fn.sensitivity("replace_one") == pytest.approx(2 * math.hypot(0.3, 0.05))


def test_a_non_finite_group_drops_the_example_from_all():
    loss = lambda p, x: jnp.sum(p["a"] * x[0]) + jnp.sum(p["b"] * x[1])
    batch = jnp.array([[[1.0, 2.0], [jnp.inf, 0.0]], [[3.0, 0.0], [0.0, 4.0]]])
    for method in ("cuts", "vmap"):
        fn = clipped_grad(loss, clip_norm={"a": 1.0, "b": 2.0}, method=method)
        total = fn({"a": jnp.zeros(2), "b": jnp.zeros(2)}, batch).sum
        np.testing.assert_allclose(total["a"], [1, 0], rtol=1e-5)
        np.testing.assert_allclose(total["b"], [0, 2], rtol=1e-5)


def test_per_layer_clip_norms_add_up():
    params = {"conv": {"kernel": jnp.ones(2), "bias": jnp.ones(1)}, "dense": {"kernel": jnp.ones(2)}, "scale": jnp.ones(1)}
    norms = per_layer(params, 0.9)
    assert set(norms) == {"conv", "dense", "scale"}
    assert math.hypot(*norms.values()) == pytest.approx(0.9)


@pytest.mark.parametrize("method", ["cuts", "vmap"])
@pytest.mark.parametrize(("rule", "scale"), [("auto_v", lambda n: 2 / n), ("auto_s", lambda n: 2 / (n + 0.01))])
def test_automatic_clipping(rule, scale, method):
    """Bu et al. 2023, section 3: every gradient is scaled by R/‖g‖, or by R/(‖g‖ + γ)."""
    x = jnp.array([[3.0, 4.0], [0.006, 0.008], [0.0, 0.0]])
    loss = lambda p, x: jnp.sum(p * x)
    result = clipped_grad(loss, clip_norm=2.0, rule=rule, method=method)(jnp.ones(2), x)
    expected = scale(5.0) * x[0] + scale(0.01) * x[1]
    np.testing.assert_allclose(result.sum, expected, rtol=1e-5)


@settings(max_examples=150, deadline=None)
@given(
    x=hnp.arrays(np.float32, (1, 20), elements=st.floats(width=32)),
    clip_norm=st.floats(-8, 6).map(lambda e: 10**e),
    rule=st.sampled_from(["clip", "auto_s", "auto_v"]),
    method=st.sampled_from(["cuts", "vmap"]),
)
def test_no_rule_lets_an_example_contribute_more(x, clip_norm, rule, method):
    loss = lambda params, x: jnp.sum(params["a"] * x[:10]) + jnp.sum(params["b"] * x[10:])
    fn = clipped_grad(loss, clip_norm={"a": clip_norm, "b": 3 * clip_norm}, rule=rule, method=method)
    total = fn({"a": jnp.ones(10), "b": jnp.ones(10)}, jnp.asarray(x)).sum
    assert tree_norm(total["a"]) <= clip_norm * (1 + 1e-6)
    assert tree_norm(total["b"]) <= 3 * clip_norm * (1 + 1e-6)


def test_wrong_groups_and_rules_are_refused(problem):
    loss, params, batch = problem
    with pytest.raises(ModelError, match="no clip norm for parameter b"):
        clipped_grad(loss, clip_norm={"a": 1.0})(params, batch)
    with pytest.raises(ModelError, match="'c'"):
        clipped_grad(loss, clip_norm={"c": 1.0, "": 1.0})(params, batch)
    with pytest.raises(PlanError, match=r"clip_norm\['a'\]"):
        clipped_grad(loss, clip_norm={"a": math.nan})
    with pytest.raises(PlanError, match="no group"):
        clipped_grad(loss, clip_norm={})
    with pytest.raises(PlanError, match="rule must be"):
        clipped_grad(loss, clip_norm=1.0, rule="magic")
    with pytest.raises(PlanError, match="finite"):
        clipped_grad(loss, clip_norm=math.inf, rule="auto_v")


class TestMicroBatches:
    @pytest.mark.parametrize("method", ["cuts", "vmap", "none"])
    @pytest.mark.parametrize("size", [1, 3, 5, 8, 20])
    def test_change_nothing_but_rounding(self, problem, method, size):
        loss, params, batch = problem
        mask = jnp.arange(len(batch[1])) % 3 != 1
        whole, parts = (
            jax.jit(clipped_grad(loss, clip_norm=0.5 if method != "none" else math.inf, method=method, micro_batch=m))
            for m in (None, size)
        )
        for a, b in zip(jax.tree.leaves(whole(params, batch, mask)), jax.tree.leaves(parts(params, batch, mask)), strict=True):
            assert a.shape == b.shape
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)

    def test_an_example_that_fills_the_last_group_does_not_count(self):
        """NaN in the first example, with which the last group is filled up, is dropped once and harms no other."""
        x = jnp.array([[jnp.nan], [1.0], [1.0], [1.0], [1.0]])
        out = clipped_grad(lambda w, x: jnp.sum(w * x), clip_norm=1.0, micro_batch=2)(jnp.ones(1), x)
        assert float(out.sum[0]) == pytest.approx(4, rel=1e-5)
        assert np.isnan(out.norms[0])
        assert np.isfinite(out.norms[1:]).all()

    def test_keys_in_the_batch(self):
        keys = jax.random.split(jax.random.key(0), 5)
        loss = lambda w, key: jnp.sum(w * jax.random.normal(key, w.shape))
        whole, parts = (clipped_grad(loss, clip_norm=1.0, micro_batch=m)(jnp.ones(3), keys) for m in (None, 2))
        np.testing.assert_allclose(whole.sum, parts.sum, rtol=1e-5)

    def test_chosen_so_that_intermediate_values_stay_in_cache(self, monkeypatch):
        """A loss that writes 100 times its input, a MiB an example: in groups, with less memory than whole."""
        monkeypatch.setattr(jax, "device_count", lambda: 1)
        monkeypatch.setattr("marauder_dp.memory._CACHE", 8 * 2**20)

        def loss(w, x):
            for _ in range(100):
                x = jnp.sin(x) * w
            return jnp.sum(x)

        w, x = jnp.ones(1300), jnp.ones((64, 1300))
        memory = {}
        for micro_batch in (None, 64):
            fn = jax.jit(clipped_grad(loss, clip_norm=1.0, micro_batch=micro_batch))
            memory[micro_batch] = fn.lower(w, x).compile().memory_analysis().temp_size_in_bytes
        assert memory[None] < memory[64] / 4
        assert explain(loss, w, x).batch_size == 8

    def test_few_large_parameters_or_native_convolutions_stay_whole(self, monkeypatch):
        dense = lambda w, x: jnp.sum(jnp.tanh(x @ w))
        assert explain(dense, jnp.ones((2000, 3000)), jnp.ones((64, 2000))).batch_size == 64
        conv = lambda w, x: jnp.sum(jax.lax.conv(x[None], w, (1, 1), "SAME") ** 2)
        assert explain(conv, jnp.ones((8, 3, 3, 3)), jnp.ones((64, 3, 300, 300))).batch_size < 64
        monkeypatch.setattr("marauder_dp.clipping.for_device", lambda fn: fn)
        assert explain(conv, jnp.ones((8, 3, 3, 3)), jnp.ones((64, 3, 300, 300))).batch_size == 64

    @pytest.mark.parametrize("size", [0, -1, 2.0, "4"])
    def test_impossible_ones_are_refused(self, size):
        with pytest.raises(PlanError, match="micro_batch"):
            clipped_grad(lambda w, x: w * x, clip_norm=1.0, micro_batch=size)
