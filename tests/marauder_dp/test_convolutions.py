"""Convolutions as products and pooling as maxima: the same values and gradients as XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from marauder_dp import clipped_grad, explain
from marauder_dp.convolutions import as_products
from marauder_dp.cuts.jaxprs import equations
from tests.marauder_dp.conftest import float64

NATIVE = {"conv_general_dilated", "reduce_window_max", "select_and_scatter_add"}


def primitives(fn, *args):
    return {eqn.primitive.name for eqn in equations(jax.make_jaxpr(fn)(*args).jaxpr)}


def same_with_gradients(fn, *args, rtol=1e-10):
    """Values and gradients of both forms, weighted so that every output counts differently; in float64."""
    seen = []
    for form in (fn, as_products(fn)):
        weighted = lambda *args, form=form: jnp.sum(jnp.sin(form(*args)))
        seen.append((jax.jit(form)(*args), jax.jit(jax.grad(weighted, tuple(range(len(args)))))(*args)))
    (value, gradients), (ours, our_gradients) = seen
    for a, b in zip([ours, *our_gradients], [value, *gradients], strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


@st.composite
def convolutions(draw):
    """A function of (x, w) and their shapes."""
    space, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    each = lambda low, high: draw(st.lists(st.integers(low, high), min_size=space, max_size=space))
    size, kernel, strides, holes, apart = each(1, 6), each(1, 3), each(1, 3), each(1, 2), each(1, 2)
    padding = list(zip(each(-1, 2), each(-1, 3), strict=True))
    images, channels, features = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    order = lambda: tuple(draw(st.permutations(range(space + 2))))
    layout = jax.lax.ConvDimensionNumbers(order(), order(), order())
    place = lambda spec, values: tuple(v for _, v in sorted(zip(spec, values, strict=True)))
    x = place(layout.lhs_spec, (images, channels * groups, *size))
    w = place(layout.rhs_spec, (features * groups, channels, *kernel))
    options = {"lhs_dilation": holes, "rhs_dilation": apart, "dimension_numbers": layout, "feature_group_count": groups}
    fn = lambda x, w: jax.lax.conv_general_dilated(x, w, strides, padding, **options)
    widened = [(n - 1) * hole + 1 + low + high for n, hole, (low, high) in zip(size, holes, padding, strict=True)]
    assume(all(n >= (k - 1) * far + 1 for n, k, far in zip(widened, kernel, apart, strict=True)))
    return fn, x, w


@settings(max_examples=25, deadline=None)
@given(case=convolutions(), seed=st.integers(0, 9))
def test_every_convolution_is_a_product(case, seed):
    fn, *shapes = case
    rng = np.random.default_rng(seed)
    with float64():
        x, w = (jnp.asarray(rng.normal(size=shape)) for shape in shapes)
        assert not primitives(as_products(fn), x, w) & NATIVE
        same_with_gradients(fn, x, w)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), space=st.integers(1, 3), seed=st.integers(0, 9))
def test_pooling_is_a_maximum_and_the_first_of_equals_has_the_gradient(data, space, seed):
    each = lambda low, high: data.draw(st.lists(st.integers(low, high), min_size=space, max_size=space))
    size, window, strides, holes, apart = each(2, 6), each(1, 3), each(1, 3), each(1, 2), each(1, 2)
    padding = list(zip(each(0, 2), each(0, 2), strict=True))
    fn = lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, padding, holes, apart)
    with float64():
        x = jnp.asarray(np.random.default_rng(seed).integers(0, 3, size), jnp.float64)  # many equals
        assume(fn(x).size)
        assert not primitives(as_products(fn), x) & NATIVE
        np.testing.assert_array_equal(as_products(fn)(x), fn(x))
        if set(holes) | set(apart) == {1}:  # what JAX can differentiate
            weights = jnp.asarray(np.random.default_rng(seed + 1).normal(size=fn(x).shape))
            weighted = lambda form: lambda x: jnp.sum(jnp.where(form(x) >= 0, form(x), 0) * weights)
            ours, theirs = (jax.grad(weighted(form))(x) for form in (as_products(fn), fn))
            np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_nan_is_the_largest_as_in_xla():
    fn = lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (2,), (1,), "VALID")
    for x in ([jnp.nan, 1.0, 2.0], [1.0, jnp.nan, 2.0]):
        np.testing.assert_array_equal(as_products(fn)(jnp.array(x)), fn(jnp.array(x)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_types_stay(dtype):
    x, w = jnp.ones((1, 5, 5, 2), dtype), jnp.ones((3, 3, 2, 4), dtype)
    for preferred in (None, jnp.float32):
        fn = lambda x, w, p=preferred: jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), preferred_element_type=p
        )
        assert as_products(fn)(x, w).dtype == fn(x, w).dtype


def conv(x, w):
    return jax.lax.conv_general_dilated(x[None], w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))[0]


X, W = jnp.ones((6, 6, 2)), jnp.full((3, 3, 2, 2), 0.1)


@pytest.mark.parametrize(
    "fn",
    [
        jax.jit(conv),
        jax.checkpoint(lambda x, w: jnp.tanh(conv(x, w))),
        lambda x, w: jax.lax.scan(lambda h, s: (jnp.tanh(conv(h, w)) * s, jnp.sum(h)), x, jnp.arange(3.0), reverse=True)[0],
        lambda x, w: jax.lax.scan(lambda h, w: (jax.jit(conv)(h, w), None), x, jnp.stack([w, 2 * w]))[0],
    ],
)
def test_inside_calls_and_scans(fn):
    assert not primitives(as_products(fn), X, W) & NATIVE
    same_with_gradients(fn, X, W, rtol=1e-5)
    outer = lambda name: name in primitives(fn, X, W)
    assert "remat2" not in primitives(fn, X, W) or "remat2" in primitives(as_products(fn), X, W)
    assert outer("scan") == ("scan" in primitives(as_products(fn), X, W))


@jax.custom_jvp
def hidden(x, w):
    return conv(x, w)


hidden.defjvp(lambda primals, tangents: jax.jvp(conv, primals, tangents))


@pytest.mark.parametrize(
    "fn",
    [
        hidden,
        lambda x, w: jax.lax.cond(x[0, 0, 0] > 0, conv, lambda x, w: x, x, w),
        lambda x, w: jax.lax.conv_general_dilated(
            jnp.stack([x[None, :, :, 0]] * 2), jnp.ones((2, 1, 3, 3)), (1, 1), "SAME", batch_group_count=2
        ),
    ],
)
def test_all_or_none(fn):
    """One that can't be rewritten leaves another as it is: a batch would be taken whole, with patches of all examples."""
    both = lambda x, w: jnp.sum(fn(x, w)) + jnp.sum(conv(x, w))
    assert "conv_general_dilated" in primitives(as_products(both), X, W)
    assert "dot_general" not in primitives(as_products(both), X, W)
    np.testing.assert_allclose(as_products(both)(X, W), both(X, W), rtol=1e-6)


def test_patches_that_would_be_too_large_are_not_made(monkeypatch):
    monkeypatch.setattr("marauder_dp.convolutions._LARGEST", 6 * 6 * 9 * 2 * 4)
    assert not primitives(as_products(conv), X, W) & NATIVE
    assert primitives(as_products(lambda x, w: conv(conv(x, w), w)), X, W) & NATIVE


def test_a_batch_is_clipped_a_few_at_a_time_and_takes_less_memory_than_plain_training():
    x, params = jnp.ones((64, 32, 32, 8)), [jnp.full((3, 3, 8, 8), 0.1)] * 3

    def loss(params, x):
        for w in params:
            x = jnp.tanh(conv(x, w))
        return jnp.sum(x)

    memory = lambda fn: jax.jit(fn).lower(params, x).compile().memory_analysis().temp_size_in_bytes
    assert explain(loss, params, x).batch_size < 32
    plain = memory(jax.grad(lambda params, x: jnp.sum(jax.vmap(loss, (None, 0))(params, x))))
    assert memory(clipped_grad(loss, clip_norm=1.0)) < plain


@pytest.mark.parametrize("hidden_in", ["custom_jvp", "cond"])
@pytest.mark.parametrize("method", ["cuts", "vmap"])
@pytest.mark.parametrize("counted", [False, True])
def test_an_example_that_overflows_takes_no_other_with_it(hidden_in, method, counted):
    """A native convolution with a kernel for each example is one operation of all of them."""

    def convolved(x, w):
        return jnp.tanh(jax.lax.conv_general_dilated(x[None], w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))[0])

    block = jax.custom_jvp(convolved)
    block.defjvp(lambda primals, tangents: jax.jvp(convolved, primals, tangents))

    def loss(w, x):
        if hidden_in == "custom_jvp":
            return jnp.sum(block(x**2, w))
        return jnp.sum(jax.lax.cond(x[0, 0, 0] > 1e9, lambda x, w: convolved(x, w), convolved, x**2, w))

    rng = np.random.default_rng(0)
    w, x = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((3, 3, 2, 2), (4, 4, 4, 2)))
    mask = jnp.array([counted, True, True, True])
    f = jax.jit(clipped_grad(loss, clip_norm=1.0, method=method))
    spoilt, without = f(w, x.at[0].set(1e20), mask), f(w, x, jnp.arange(4) > 0)
    np.testing.assert_allclose(spoilt.norms[1:], without.norms[1:], rtol=1e-5)
    np.testing.assert_allclose(spoilt.sum, without.sum, rtol=1e-5, atol=1e-6)
