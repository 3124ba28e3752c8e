"""Norms and clipped sums from cuts equal those from per-example gradients, whatever the loss is made of."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from marauder_dp import ModelError, clipped_grad, explain
from marauder_dp.cuts.engine import Gradients, cut
from marauder_dp.cuts.routes import Product, choose, ways
from marauder_dp.cuts.sums import sum_of_squares
from tests.marauder_dp.conftest import float64, tree_norm
from tests.marauder_dp.zoo import ZOO, normal, whole


def reference(loss, params, batch, clip_norm):
    """Norms and the clipped sum, from written-out gradients in float64 arithmetic."""
    gradients = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(params, batch)
    gradients = jax.tree.map(lambda g: np.asarray(g, np.float64), gradients)
    rows = [g.reshape(len(g), -1) for g in jax.tree.leaves(gradients)]
    norms = np.linalg.norm(np.concatenate(rows, axis=1), axis=1)
    factors = np.minimum(1, clip_norm / np.maximum(norms, 1e-30))
    return norms, jax.tree.map(lambda g: np.tensordot(factors, g, 1), gradients)


def agree(loss, params, batch, clip_norm, rtol):
    norms, total = reference(loss, params, batch, clip_norm)
    ours = jax.jit(clipped_grad(loss, clip_norm=clip_norm, method="cuts"))(params, batch)
    np.testing.assert_allclose(ours.norms, norms, rtol=rtol, atol=rtol * norms.max() * 1e-2)
    largest = max(float(np.abs(t).max(initial=0)) for t in jax.tree.leaves(total))
    for a, b in zip(jax.tree.leaves(ours.sum), jax.tree.leaves(total), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * largest)


@pytest.mark.parametrize("name", ZOO)
def test_equals_per_example_gradients(name):
    loss, params, batch = ZOO[name]()
    norms, _ = reference(loss, params, batch, math.inf)
    agree(loss, params, batch, float(np.median(norms)), 1e-5)


@pytest.mark.parametrize("name", [name for name in ZOO if "convolution" in name or name == "weight_standardisation"])
def test_native_convolutions_as_on_accelerators(name, monkeypatch):
    monkeypatch.setattr("marauder_dp.clipping.for_device", lambda fn: fn)
    loss, params, batch = ZOO[name]()
    agree(loss, params, batch, float(np.median(reference(loss, params, batch, math.inf)[0])), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_equals_per_example_gradients_in_float64(name):
    """Without clipping, which leaves a margin of 1e-6 on purpose."""
    with float64():
        loss, params, batch = ZOO[name]()
        agree(loss, jax.tree.map(lambda p: p.astype(jnp.float64), params), batch, math.inf, 1e-12)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["mlp", "convolution", "attention", "embedding", "weight_standardisation", "scan_in_scan"])
def test_low_precision_clips_the_gradient_that_the_loss_has(name, dtype):
    """Rounding of the loss's own arithmetic aside, it is the gradient of the reference, summed in float32."""
    loss, params, batch = ZOO[name]()
    params = jax.tree.map(lambda p: p.astype(dtype), params)
    norms, total = reference(loss, params, batch, 0.1)
    ours = jax.jit(clipped_grad(loss, clip_norm=0.1, method="cuts"))(params, batch)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(ours.sum))
    np.testing.assert_allclose(ours.norms, norms, rtol=0.05)
    assert tree_norm(jax.tree.map(jnp.subtract, ours.sum, total)) < 0.05 * tree_norm(total)


@pytest.mark.parametrize("keep", [0, 10**9])
@pytest.mark.parametrize("name", ["attention", "convolution_net_with_pooling", "recurrent", "transformer_of_scanned_layers"])
def test_what_is_kept_changes_nothing(name, keep):
    loss, params, batch = ZOO[name]()
    norms, total = reference(loss, params, batch, math.inf)
    found = jax.jit(lambda p, b: (g := Gradients(loss, p, b, keep=keep), (g.norms(), g.weighted_sum(jnp.ones((1, 5)))))[1])
    ((ours,), (bound,)), summed = found(params, batch)
    np.testing.assert_allclose(ours, norms, rtol=1e-5)
    assert (bound >= ours).all()
    np.testing.assert_allclose(bound, norms, rtol=3e-5)
    largest = max(float(np.abs(t).max()) for t in jax.tree.leaves(total))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * largest), summed, total)


@pytest.mark.parametrize("route", ["gram", "direct", "kept"])
def test_each_route_gives_the_same(route, monkeypatch):
    loss, params, batch = ZOO["convolution_net_with_pooling"]()
    norms, total = reference(loss, params, batch, 1.0)
    pick = lambda works, keep: [next((r for r in ways(w) if r.how == route), ways(w)[0]) for w in works]
    monkeypatch.setattr("marauder_dp.cuts.routes.choose", pick)
    ours = jax.jit(clipped_grad(loss, clip_norm=1.0, method="cuts"))(params, batch)
    np.testing.assert_allclose(ours.norms, norms, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours.sum, total)


@settings(max_examples=150, deadline=None)
@given(
    x=hnp.arrays(np.float32, (1, 3, 2), elements=st.floats(width=32)),
    w=hnp.arrays(np.float32, (2, 2), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
    scale=st.floats(-35, 35).map(lambda e: np.float32(10**e)),
    clip_norm=st.floats(-8, 6).map(lambda e: 10**e),
    dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
    positions=st.sampled_from([1, 3]),
)
def test_one_example_never_contributes_more_than_the_clip_norm(x, w, scale, clip_norm, dtype, positions):
    """Products of huge operands with tiny cotangents, the other way round, and positions that cancel."""
    sign = np.array([[1.0], [-1.0], [1e-3]], np.float32)[:positions]
    loss = lambda w, x: jnp.sum((x @ w.astype(jnp.float32)) * sign) * scale
    total = clipped_grad(loss, clip_norm=clip_norm, method="cuts")(jnp.asarray(w, dtype), jnp.asarray(x[:, :positions])).sum
    assert tree_norm(total) <= clip_norm * (1 + 1e-6)


def test_positions_that_cancel_do_not_hide_a_gradient():
    """Two positions with nearly opposite gradients: the Gram form loses all its digits, and must not clip too little."""
    rng = np.random.default_rng(0)
    for exponent in range(0, 9):
        a = rng.normal(size=(1, 64)).astype(np.float32)
        x = jnp.asarray(np.stack([a, -a * (1 + np.float32(10.0**-exponent))], 1))  # (1, 2, 64)
        loss = lambda w, x: jnp.sum(jnp.sum(x[:, None] @ w, 0) * 1e4)
        total = clipped_grad(loss, clip_norm=1.0, method="cuts")(jnp.ones((64, 64)), x).sum
        assert tree_norm(total) <= 1 + 1e-6


def test_memory_does_not_grow_with_batch_times_parameters():
    loss = lambda p, x: jnp.sum(jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]))
    params, batch = {"a": normal(300, 500), "b": normal(500, 200)}, normal(128, 300)
    program = jax.jit(clipped_grad(loss, clip_norm=1.0, method="cuts")).lower(params, batch).compile()
    written_out = 4 * 128 * (300 * 500 + 500 * 200)
    assert program.memory_analysis().temp_size_in_bytes < written_out / 20


def test_memory_of_a_large_batch_is_that_of_plain_training():
    """Each array is scaled once, for the kernel and for the bias; twice would be 1.44 times plain."""
    params = {"a": normal(300, 1000), "b": normal(1000), "c": normal(1000, 10)}
    loss = lambda p, x: jnp.sum(jnp.tanh(jax.nn.relu(x @ p["a"] + p["b"]) @ p["c"]))
    plain = jax.grad(lambda p, x: jnp.sum(jax.vmap(loss, (None, 0))(p, x)))
    programs = (jax.jit(fn).lower(params, normal(2000, 300)).compile() for fn in (clipped_grad(loss, clip_norm=1.0), plain))
    ours, floor = (program.memory_analysis().temp_size_in_bytes for program in programs)
    assert ours < 1.3 * floor


def test_memory_of_tied_weights_does_not_either():
    """An embedding that is the last layer too: neither tables nor one-hot rows for each example."""
    rows, width, size = 5000, 40, 64

    def loss(table, ids):
        return jnp.sum(jnp.tanh(jnp.tanh(table[ids]) @ table.T))

    program = (
        jax.jit(clipped_grad(loss, clip_norm=1.0, method="cuts")).lower(normal(rows, width), whole(rows, size, 2)).compile()
    )
    logits, written_out = 4 * size * 2 * rows, 4 * size * rows * width
    assert program.memory_analysis().temp_size_in_bytes < 4 * logits < written_out / 4


def test_kept_gradients_respect_their_budget():
    works = [Product(32, 1, 128, 256, 1024), Product(32, 1, 1024, 64, 64), Product(32, 1, 1, 1024, 1024)]
    assert [route.how for route in choose(works, 0)] == ["gram", "kept", "factors"]  # the second needs less than its factors
    assert [route.how for route in choose(works, 10**9)] == ["kept", "kept", "factors"]


def test_explain():
    loss, params, batch = ZOO["tied_embedding"]()
    table = explain(loss, params, batch)
    by_name = {name: row for row in table.rows for name in row.parameters}
    assert by_name["Dense_0/kernel"].route in ("gram", "kept", "direct")
    assert by_name["Embed_0/embedding"].route in ("gram", "kept", "direct")
    assert "2 uses together" in by_name["Embed_0/embedding"].why
    assert all(name in str(table) for name in by_name)
    loss, params, batch = ZOO["a_parameter_that_is_not_used"]()
    assert {row.parameters[0]: row.route for row in explain(loss, params, batch).rows} == {"used": "factors", "unused": "none"}
    (row,) = explain(*ZOO["complex_values_of_parameters"]()).rows
    assert row.route == "written out"


@pytest.mark.parametrize(
    ("name", "still"),
    [
        ("recurrent_with_concatenated_parameters", {"bias"}),
        ("products_with_concatenations", set()),
        ("products_with_multiples", {"scale", "b"}),  # b is used as 1/b too
    ],
)
def test_concatenations_and_multiples_are_not_written_out(name, still):
    routes = {parameter: row.route for row in explain(*ZOO[name]()).rows for parameter in row.parameters}
    assert {parameter.split("/")[-1] for parameter, route in routes.items() if route == "written out"} == still


def test_explain_says_that_convolutions_are_computed_as_products(monkeypatch):
    assert "products of patches" in str(explain(*ZOO["convolution"]()))
    assert "products of patches" not in str(explain(*ZOO["mlp"]()))
    monkeypatch.setattr("marauder_dp.clipping.for_device", lambda fn: fn)
    assert "products of patches" not in str(explain(*ZOO["convolution"]()))


def test_side_effects_are_refused():
    def loss(w, x):
        jax.debug.print("{}", x)
        return jnp.sum(x * w)

    def calls(w, x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jnp.sum(w * jax.jit(lambda x: jax.pure_callback(lambda x: x, shape, x, vmap_method="sequential"))(x))

    for method in ("cuts", "vmap"):
        with pytest.raises(ModelError, match="debug"):
            clipped_grad(loss, clip_norm=1.0, method=method)(jnp.ones(2), jnp.ones((3, 2)))
        with pytest.raises(ModelError, match="pure_callback"):
            clipped_grad(calls, clip_norm=1.0, method=method)(jnp.ones(2), jnp.ones((3, 2)))


def test_side_effects_of_a_backward_pass_are_refused():
    """They are not in the jaxpr of the loss."""

    def backward(x, g):
        jax.debug.print("{}", g)
        return (2 * g * x,)

    square = jax.custom_vjp(lambda x: x**2)
    square.defvjp(lambda x: (x**2, x), backward)
    for method in ("cuts", "vmap"):
        with pytest.raises(ModelError, match="debug"):
            clipped_grad(lambda w, x: jnp.sum(square(w) * x), clip_norm=1.0, method=method)(jnp.ones(2), jnp.ones((3, 2)))


@pytest.mark.parametrize("where", ["loss", "backward pass", "derivative rule"])
def test_a_batching_rule_that_mixes_examples_is_refused(where):
    """Batch normalisation, say: one example would move the gradients of all others."""

    @jax.custom_batching.custom_vmap
    def normalised(x):
        return x

    normalised.def_vmap(lambda size, batched, x: ((x - jnp.mean(x, 0)) / (jnp.std(x, 0) + 1), True))
    passed = jax.custom_vjp(lambda x: x)
    passed.defvjp(lambda x: (x, None), lambda _, g: (normalised(g),))
    ruled = jax.custom_jvp(lambda x: x)
    ruled.defjvp(lambda primals, tangents: (primals[0], normalised(primals[0]) * tangents[0]))
    layer = {"loss": normalised, "backward pass": passed, "derivative rule": ruled}[where]
    loss = lambda w, x: jnp.sum(layer(x @ w) ** 2)
    for method in ("cuts", "vmap"):
        with pytest.raises(ModelError, match="custom_vmap"):
            clipped_grad(loss, clip_norm=1.0, method=method)(jnp.ones((2, 3)), jnp.ones((4, 2)))


def test_what_a_scan_hands_to_a_cond_is_cut_once_and_not_at_each_step():
    def loss(w, x):
        step = lambda h, s: (jax.lax.cond(s[0] > 0, lambda h: jnp.tanh(h @ w), lambda h: h, h) + s, None)
        return jnp.sum(jax.lax.scan(step, jnp.zeros(3), x)[0] ** 2)

    w, batch = normal(3, 3), normal(4, 7, 3)
    assert [site.y.shape for site in cut(loss, w, batch[0]).sites] == [(3, 3)]
    agree(loss, w, batch, 0.5, 1e-5)


@pytest.mark.parametrize("passed", ["name", "barrier"])
def test_what_only_passes_a_parameter_on_stays_factored(passed):
    from jax.ad_checkpoint import checkpoint_name

    on = {"name": lambda w: checkpoint_name(w, "w"), "barrier": jax.lax.optimization_barrier}[passed]
    loss = lambda w, x: jnp.sum(jnp.tanh(x @ on(w)))
    w, x = normal(5, 4), normal(6, 3, 5)
    (row,) = explain(loss, w, x).rows
    assert row.route != "written out"
    expected = jax.vmap(jax.grad(loss), (None, 0))(w, x)
    found = clipped_grad(loss, clip_norm=1e6)(w, x)
    np.testing.assert_allclose(found.sum, expected.sum(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.7, 0.9999, 1.1, 1.7])
def test_thousands_of_equal_terms_stay_below_the_clip_norm(value):
    for positions, rows, width in ((1000, 300, 500), (200, 30, 5000)):
        table = clipped_grad(lambda e, i: jnp.sum(e[i]) * value, clip_norm=1e-2, method="cuts")
        total = table(jnp.ones((rows, width)), jnp.zeros((1, positions), jnp.int32)).sum
        assert tree_norm(total) <= 1e-2 * (1 + 1e-6)
    for positions, p, d in ((64, 3000, 900), (8, 3000, 30)):
        products = clipped_grad(lambda w, x: jnp.sum(x @ w) * value, clip_norm=1e-2, method="cuts")
        assert tree_norm(products(jnp.ones((p, d)), jnp.full((1, positions, p), value)).sum) <= 1e-2 * (1 + 1e-6)


@pytest.mark.parametrize("method", ["cuts", "vmap"])
def test_millions_of_equal_entries_stay_below_the_clip_norm(method):
    loss = lambda w, e: jnp.sum((e[0] @ w) * e[1])
    batch = jnp.full((1, 64, 3000), 0.9999), jnp.full((1, 64, 900), 0.9999)
    total = jax.jit(lambda w: clipped_grad(loss, clip_norm=1.0, method=method)(w, batch).sum)(jnp.zeros((3000, 900)))
    assert tree_norm(total) <= 1 + 1e-6


@pytest.mark.parametrize("shape", [(3,), (2, 1), (1, 31), (2, 97), (1, 4, 1025), (1, 1_000_003), (2, 0)])
@pytest.mark.parametrize("value", [1 / 3, 0.9999, 1.7])
def test_sums_of_squares_are_off_by_no_more_than_they_say(shape, value):
    x = jnp.full(shape, value, jnp.float32)
    square, unsure = jax.jit(lambda x: sum_of_squares(x))(x)
    exact = np.sqrt(np.sum(np.asarray(x, np.float64) ** 2, tuple(range(1, x.ndim))))
    computed = np.sqrt(np.asarray(square, np.float64))
    assert square.shape == shape[:1]
    assert unsure < 5e-6
    assert np.all(exact <= computed * (1 + unsure))
    assert np.all(computed <= exact * (1 + unsure))


def test_a_float64_parameter_does_not_hide_the_rounding_of_float32_ones():
    """Eight nearly equal positions whose cotangents cancel, beside a tiny gradient in float64."""
    rng = np.random.default_rng(0)
    with float64():
        x = rng.normal(size=300) + 1e-4 * rng.normal(size=(1, 8, 300))
        g = rng.normal(size=(1, 8, 300))
        x, g = jnp.asarray(x, jnp.float32), jnp.asarray(g - g.mean(1, keepdims=True), jnp.float32)
        params = {"w": jnp.zeros((300, 300), jnp.float32), "b": jnp.zeros(3, jnp.float64)}
        loss = lambda p, e: jnp.sum(e[0] @ p["w"] * e[1]) + 1e-12 * jnp.sum(p["b"].astype(jnp.float32) * e[0][0, :3])
        total = clipped_grad(loss, clip_norm=1e-5, method="cuts")(params, (x, g)).sum
    assert tree_norm(total) <= 1e-5 * (1 + 1e-6)
