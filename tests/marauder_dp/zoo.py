"""Losses of all shapes: each a function that returns (loss of one example, params, batch of 5)."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

BATCH = 5
ZOO = {}


def member(function):
    ZOO[function.__name__] = function
    return function


def normal(*shape, seed=0, scale=1.0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape) * scale)


def whole(high, *shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).integers(0, high, shape), jnp.int32)


def linen(module, x):
    """The sum of squares of a module's output, weighed so that positions differ."""
    x0 = x[0]
    params = module.init(jax.random.key(0), x0)["params"]
    params = jax.tree.map(lambda p: p + 0.3 * normal(*p.shape, seed=p.size).astype(p.dtype), params)

    def loss(params, x):
        y = module.apply({"params": params}, x)
        return jnp.sum(jnp.sin(y + jnp.arange(y.size).reshape(y.shape) / y.size) ** 2)

    return loss, params, x


@member
def linear():
    return lambda w, x: jnp.sum(jnp.tanh(x @ w)), normal(4, 3), normal(BATCH, 4)


@member
def scalar_parameter():
    return lambda p, x: jnp.sum(jnp.sin(p["t"] * x) + p["b"]), {"t": normal(), "b": normal(seed=1)}, normal(BATCH, 4)


@member
def mlp():
    return linen(nn.Sequential([nn.Dense(7), nn.gelu, nn.Dense(5), nn.relu, nn.Dense(3)]), normal(BATCH, 6))


@member
def matrix_products_in_every_layout():
    params = {"a": normal(4, 5), "b": normal(3, 6, seed=1), "c": normal(2, 3, 4, seed=2), "d": normal(5, 2, seed=3)}

    def loss(p, x):  # x: (6, 4)
        y = jnp.einsum("tk,kd->td", x, p["a"])
        z = jnp.einsum("ht,td->hd", p["b"], y)
        w = jnp.einsum("gac,tc->gat", p["c"], x)
        v = jnp.einsum("td,dg->gt", y, p["d"])
        return jnp.sum(jnp.sin(z)) + jnp.sum(jnp.cos(w) * v[:, None])

    return loss, params, normal(BATCH, 6, 4)


@member
def batched_product():
    return lambda w, x: jnp.sum(jnp.sin(jnp.einsum("htk,hkd->thd", x, w))), normal(3, 4, 2), normal(BATCH, 3, 6, 4)


@member
def parameter_on_the_left_of_a_batched_product():
    return lambda w, x: jnp.sum(jnp.sin(jnp.einsum("dkh,htk->hdt", w, x))), normal(2, 4, 3), normal(BATCH, 3, 6, 4)


def convolution(features=4, size=(3, 3), shape=(7, 6, 2), **options):
    return linen(nn.Conv(features, size, **options), normal(BATCH, *shape))


ZOO["convolution"] = convolution
ZOO["convolution_strided"] = functools.partial(convolution, strides=(2, 3))
ZOO["convolution_valid_dilated"] = functools.partial(convolution, padding="VALID", kernel_dilation=(2, 1))
ZOO["convolution_grouped"] = functools.partial(convolution, shape=(7, 6, 4), feature_group_count=2)
ZOO["convolution_depthwise"] = functools.partial(convolution, features=6, shape=(5, 5, 3), feature_group_count=3)
ZOO["convolution_input_dilated"] = functools.partial(convolution, input_dilation=(2, 2), padding=((1, 1), (1, 2)))
ZOO["convolution_circular"] = functools.partial(convolution, padding="CIRCULAR")
ZOO["convolution_1d_causal"] = functools.partial(convolution, size=(3,), shape=(9, 2), padding="CAUSAL")
ZOO["convolution_3d"] = functools.partial(convolution, size=(2, 3, 2), shape=(4, 5, 3, 2))
ZOO["convolution_without_bias_1x1"] = functools.partial(convolution, size=(1, 1), use_bias=False)


@member
def convolution_with_other_layout():
    def loss(w, x):
        y = jax.lax.conv_general_dilated(x[None], w, (1, 2), ((1, 0), (2, 1)), dimension_numbers=("NCHW", "IHWO", "NHWC"))
        return jnp.sum(jnp.sin(y))

    return loss, normal(3, 3, 2, 4), normal(BATCH, 3, 6, 7)


@member
def convolution_transposed():
    return linen(nn.ConvTranspose(3, (3, 3), strides=(2, 2)), normal(BATCH, 4, 4, 2))


@member
def convolution_net_with_pooling():
    layers = [nn.Conv(4, (3, 3)), nn.relu, lambda x: nn.max_pool(x, (2, 2), (2, 2)), nn.Conv(3, (3, 3)), nn.tanh]
    return linen(nn.Sequential([*layers, lambda x: x.reshape(-1), nn.Dense(3)]), normal(BATCH, 8, 8, 1))


@member
def weight_standardisation():
    class Standardised(nn.Module):
        @nn.compact
        def __call__(self, x):
            kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, 2, 4))
            gain = self.param("gain", nn.initializers.ones, (4,))
            kernel = (gain * (kernel - kernel.mean((0, 1, 2))) / jnp.sqrt(kernel.var((0, 1, 2)) + 1e-4)).astype(x.dtype)
            y = jax.lax.conv_general_dilated(x[None], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            return nn.GroupNorm(2)(nn.relu(y))

    return linen(Standardised(), normal(BATCH, 5, 5, 2))


@member
def normalisations():
    return linen(nn.Sequential([nn.LayerNorm(), nn.Dense(6), nn.RMSNorm(), nn.Dense(8), nn.GroupNorm(2)]), normal(BATCH, 3, 5))


@member
def spectral_like_normalisation():
    return lambda w, x: jnp.sum(jnp.sin(x @ (w / jnp.linalg.norm(w)))), normal(4, 3), normal(BATCH, 6, 4)


@member
def embedding():
    def loss(p, ids):
        return jnp.sum(jnp.tanh(p["table"][ids] @ p["w"]))

    return loss, {"table": normal(9, 4), "w": normal(4, 2, seed=1)}, whole(9, BATCH, 7)


@member
def embedding_of_one_token_and_negative_ids():
    return lambda table, i: jnp.sum(jnp.sin(table[i - 3])), normal(9, 4), whole(6, BATCH)


@member
def embedding_out_of_range():
    take = functools.partial(jnp.take, axis=0, mode="fill", fill_value=0)
    return lambda table, ids: jnp.sum(jnp.sin(take(table, ids))), normal(4, 3), whole(7, BATCH, 6)


@member
def embedding_sliced():
    """As equinox looks rows up, one by one: slices whose starts are clipped."""

    def loss(table, ids):
        rows = jax.vmap(lambda i: jax.lax.dynamic_slice(table, (i - 1, i), (1, 3))[0])(ids)
        return jnp.sum(jnp.sin(rows))

    return loss, normal(4, 3), whole(7, BATCH, 6)


@member
def rows_by_dynamic_slice():
    """Rows from one on, their first clipped; and a column, which is no row."""

    def loss(table, i):
        rows = jax.lax.dynamic_slice(table, (i, i * 0 + 1), (2, 3)) + table[2 * i - 3]
        return jnp.sum(jnp.sin(rows)) + jnp.sum(jnp.cos(jax.lax.dynamic_slice(table, (i * 0, i), (5, 1))))

    return loss, normal(5, 3), whole(9, BATCH)


@member
def embedding_clipped():
    return lambda table, ids: jnp.sum(jnp.sin(jnp.take(table, ids, axis=0, mode="clip"))), normal(4, 3), whole(7, BATCH, 6)


@member
def embedding_by_bytes():
    """More rows than a byte counts."""
    return (
        lambda table, ids: jnp.sum(jnp.sin(jnp.take(table, ids, axis=0))),
        normal(300, 2),
        whole(250, BATCH, 4).astype(jnp.uint8),
    )


@member
def complex_values_of_parameters():
    return lambda w, x: jnp.sum(jnp.sin(jnp.fft.irfft(jnp.fft.rfft(w) * jnp.fft.rfft(x)))), normal(6), normal(BATCH, 6)


@member
def gather_of_columns():
    return lambda table, ids: jnp.sum(jnp.sin(table[:, ids])), normal(4, 6), whole(6, BATCH, 3)


@member
def dynamic_slice_of_a_parameter():
    return lambda w, i: jnp.sum(jnp.sin(jax.lax.dynamic_slice(w, (i, i - i), (2, 3)))), normal(6, 3), whole(4, BATCH)


@member
def tied_embedding():
    class Tied(nn.Module):
        @nn.compact
        def __call__(self, ids):
            embed = nn.Embed(9, 4)
            return nn.log_softmax(embed.attend(nn.tanh(nn.Dense(4)(embed(ids)))))

    return linen(Tied(), whole(9, BATCH, 6))


@member
def the_same_layer_twice():
    def loss(w, x):
        return jnp.sum(jnp.sin(jnp.tanh(x @ w) @ w.T) + x @ w @ w.T)

    return loss, normal(4, 3), normal(BATCH, 2, 4)


@member
def a_layer_in_an_unrolled_loop():
    def loss(p, x):
        h = jnp.zeros(3)
        for step in x:
            h = jnp.tanh(h @ p["h"] + step @ p["x"])
        return jnp.sum(h**2)

    return loss, {"h": normal(3, 3), "x": normal(4, 3)}, normal(BATCH, 5, 4)


@member
def a_table_looked_up_twice_and_multiplied_twice():
    def loss(e, i):
        h = e[i] + jnp.sin(e[(i * i) % 7])
        return jnp.sum(jnp.sin(jnp.tanh(h @ e.T) @ e))

    return loss, normal(7, 3), whole(7, BATCH, 5)


@member
def a_layer_in_a_scan_and_after_it():
    def loss(w, x):
        h, _ = jax.lax.scan(lambda h, step: (jnp.tanh(h @ w + step), None), jnp.zeros(3), x)
        return jnp.sum(jnp.sin(h @ w))

    return loss, normal(3, 3), normal(BATCH, 5, 3)


@member
def layers_stacked_in_one_array_and_a_loop():
    def loss(p, x):
        for i in range(3):
            x = jnp.tanh(x @ p["w"][i] + p["b"][i])
            x = jnp.sin(x @ p["w"][i].T)
        return jnp.sum(x)

    return loss, {"w": normal(3, 4, 4), "b": normal(3, 4)}, normal(BATCH, 2, 4)


@member
def queries_beside_keys_in_one_array():
    def loss(p, x):
        query, key = jnp.split(p["qk"], 2, axis=1)
        even, odd = x @ p["v"][:, ::2], x @ p["v"][:, 1::2]
        return jnp.sum((x @ query) @ (x @ key).T) + jnp.sum(jnp.sin(even) * jnp.cos(odd))

    return loss, {"qk": normal(4, 6), "v": normal(4, 8)}, normal(BATCH, 3, 4)


@member
def slices_that_overlap():
    """No form for all: written out."""

    def loss(w, x):
        return jnp.sum(jnp.sin(x @ w[:, :4])) + jnp.sum(jnp.cos(x @ w[:, 2:]))

    return loss, normal(4, 6), normal(BATCH, 3, 4)


@member
def rows_of_a_part_that_is_the_last_layer_too():
    def loss(table, ids):
        words, places = table[:6], table[6:]
        h = jnp.tanh(words[ids] + places[jnp.arange(3)])
        return jnp.sum(jnp.sin(h @ words.T)) + jnp.sum(jnp.cos(h @ places.T))

    return loss, normal(9, 4), whole(6, BATCH, 3)


@member
def a_cell_in_a_loop_from_zeros():
    """The first product is of a constant."""

    def loss(p, x):
        h = jnp.zeros(3)
        for step in x:
            z, n = jnp.split(h @ p["h"] + p["b"], [3])
            h = jnp.tanh(n * (step @ p["x"])) + z * h
        return jnp.sum(h**2)

    return loss, {"h": normal(3, 6), "x": normal(4, 3), "b": normal(6)}, normal(BATCH, 3, 4)


@member
def projections_of_a_parameter():
    """Constants times a parameter: smaller than it, and larger."""
    narrow, wide = normal(2, 6, seed=8), normal(9, 6, seed=9)

    def loss(w, x):
        frozen = jax.lax.stop_gradient(w)
        return jnp.sum(jnp.sin((narrow @ w) @ x)) + jnp.sum((wide @ w) @ x) + jnp.sum(narrow @ frozen) * jnp.sum(x)

    return loss, normal(6, 4), normal(BATCH, 4)


@member
def lookups_in_a_scan():
    """A table that is the last layer too, used in each step."""

    def loss(p, ids):
        def step(h, i):
            h = jnp.tanh(h @ p["w"] + p["e"][i])
            return h, h @ p["e"].T

        return jnp.sum(jnp.sin(jax.lax.scan(step, jnp.zeros(4), ids)[1]))

    return loss, {"w": normal(4, 4), "e": normal(9, 4)}, whole(9, BATCH, 5)


@member
def lookups_in_scans_of_stacked_tables():
    def loss(tables, ids):
        step = lambda h, table: (jnp.tanh(h + table[ids].sum(0)), None)
        return jnp.sum(jax.lax.scan(step, jnp.zeros(3), tables)[0])

    return loss, normal(2, 5, 3), whole(5, BATCH, 4)


@member
def convolutions_in_scans():
    """One for all steps, one a step, and both in a scan of a scan."""

    def loss(p, x):
        conv = lambda x, w: jax.lax.conv(x[None], w, (1, 1), "SAME")[0]
        deep = lambda x: jax.lax.scan(lambda h, w: (jnp.tanh(conv(h, w)), None), x, p["own"])[0]
        step = lambda h, xt: (jnp.tanh(deep(h) + conv(xt, p["same"])), None)
        return jnp.sum(jnp.sin(jax.lax.scan(step, x[0], x)[0]))

    return loss, {"own": normal(2, 2, 2, 3, 3), "same": normal(2, 2, 1, 1)}, normal(BATCH, 3, 2, 4, 4)


@member
def scans_of_grids_of_layers():
    """Each step of the inner and of the outer scan has its own slice, of one and of two products."""

    def loss(w, x):
        inner = lambda h, wi: (jnp.tanh(jnp.einsum("nk,nkd->nd", h, wi)), None)
        outer = lambda h, wo: (jax.lax.scan(inner, h, wo)[0], None)
        return jnp.sum(jnp.sin(jax.lax.scan(outer, x, w)[0]))

    return loss, normal(2, 3, 2, 4, 4), normal(BATCH, 2, 4)


@member
def the_same_convolution_twice():
    def loss(w, x):
        conv = lambda x: jax.lax.conv(x[None], w, (1, 1), "SAME")[0]
        return jnp.sum(jnp.sin(conv(jnp.tanh(conv(x)))))

    return loss, normal(2, 2, 3, 3), normal(BATCH, 2, 5, 5)


@member
def heads_in_two_layouts():
    def loss(w, x):
        y = jnp.einsum("tnp,npd->tnd", x, w)
        return jnp.sum(jnp.sin(jnp.einsum("tnd,npd->ntp", jnp.tanh(y), w)))

    return loss, normal(2, 3, 4), normal(BATCH, 5, 2, 3)


@member
def a_product_of_two_parameters():
    return lambda p, x: jnp.sum(jnp.sin(x @ (p["a"] @ p["b"]))), {"a": normal(4, 2), "b": normal(2, 3)}, normal(BATCH, 6, 4)


@member
def low_rank_adapter_beside_frozen_weights():
    frozen = normal(4, 3, seed=7)
    return (
        lambda p, x: jnp.sum(jnp.sin(x @ frozen + x @ p["a"] @ p["b"])),
        {"a": normal(4, 2), "b": normal(2, 3)},
        normal(BATCH, 4),
    )


@member
def attention():
    return linen(nn.MultiHeadDotProductAttention(2, qkv_features=8), normal(BATCH, 6, 4))


@member
def transformer_of_scanned_layers():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
            return x + nn.Dense(4)(nn.gelu(nn.Dense(8)(nn.LayerNorm()(x)))), None

    class Net(nn.Module):
        @nn.compact
        def __call__(self, ids):
            x = nn.Embed(9, 4)(ids) + self.param("position", nn.initializers.normal(), (6, 4))
            stack = nn.scan(nn.remat(Layer), variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
            return nn.Dense(9)(stack()(x, None)[0])

    return linen(Net(), whole(9, BATCH, 6))


@member
def scanned_layers_with_casts_inside():
    params = {"w": normal(3, 4, 4), "b": normal(3, 4, seed=1)}

    def loss(p, x):
        def layer(h, wb):
            w, b = wb
            return jnp.tanh(h @ (w - w.mean()).T + 2 * b), jnp.sum(h)

        h, sums = jax.lax.scan(layer, x, (p["w"], p["b"]))
        return jnp.sum(jnp.sin(h)) + jnp.sum(sums**2)

    return loss, params, normal(BATCH, 4)


@member
def recurrent():
    return linen(nn.RNN(nn.LSTMCell(4, param_dtype=jnp.result_type(float))), normal(BATCH, 6, 3))


@member
def recurrent_gru():
    return linen(nn.RNN(nn.GRUCell(4, param_dtype=jnp.result_type(float)), reverse=True), normal(BATCH, 6, 3))


@member
def recurrent_with_concatenated_parameters():
    return linen(nn.RNN(nn.OptimizedLSTMCell(4, param_dtype=jnp.result_type(float))), normal(BATCH, 6, 3))


@member
def products_with_concatenations():
    def loss(p, x):
        y = jnp.tanh(x @ jnp.concatenate([p["a"], p["b"] * 0.5, jnp.ones((4, 1))], 1))  # free
        y = jnp.tanh(jnp.concatenate([p["c"], -p["d"]], 0).T @ y.T)  # contracted, on the left
        y = jnp.einsum("pbt,bpd->btd", y.reshape(3, 2, -1), jnp.concatenate([p["e"], p["f"]], 0))  # a batch dimension
        return jnp.sum(jnp.sin(y))

    sizes = {"a": (4, 3), "b": (4, 2), "c": (2, 6), "d": (4, 6), "e": (1, 3, 2), "f": (1, 3, 2)}
    return loss, {name: normal(*size) for name, size in sizes.items()}, normal(BATCH, 5, 4)


@member
def products_with_multiples():
    def loss(p, x):
        y = jnp.tanh(x @ (p["a"] / 3.0)) @ (p["scale"] * p["b"])
        y = jax.lax.conv(y[None], -2.0 * p["c"], (1,), "SAME")[0]
        return jnp.sum(jnp.sin(y @ (1.0 / p["b"].T))) + jnp.sum(x[:, :1] @ (2.0 * p["one"]))

    params = {
        "one": normal(1, 1),
        "a": normal(4, 3),
        "b": 2.0 + jnp.abs(normal(3, 3)),
        "c": normal(5, 5, 3),
        "scale": jnp.asarray(0.7),
    }
    return loss, params, normal(BATCH, 5, 4)


@member
def scan_in_scan():
    def loss(w, x):
        inner = lambda h, wi: (jnp.tanh(h @ wi), None)
        outer = lambda h, xi: (jax.lax.scan(inner, h + xi, w)[0], None)
        return jnp.sum(jnp.sin(jax.lax.scan(outer, jnp.zeros_like(x[0]), x)[0]))

    return loss, normal(2, 4, 4), normal(BATCH, 3, 4)


@member
def parameter_as_the_first_state_of_a_scan():
    def loss(p, x):
        return jnp.sum(jax.lax.scan(lambda h, xi: (jnp.tanh(h * xi + p["c"]), h), p["h"], x)[1] ** 2)

    return loss, {"h": normal(4), "c": normal(4, seed=1)}, normal(BATCH, 3, 4)


@member
def parameters_that_leave_a_scan():
    def loss(p, x):
        step = lambda h, w: (2 * p["c"], (jnp.tanh(h + w), w * w))
        h, (a, b) = jax.lax.scan(step, x, p["w"])
        return jnp.sum(jnp.sin(h * x)) + jnp.sum(a) + jnp.sum(b * x)

    return loss, {"w": normal(3, 4), "c": normal(4, seed=1)}, normal(BATCH, 4)


@member
def loop_with_a_fixed_number_of_rounds():
    return lambda w, x: jnp.sum(jax.lax.fori_loop(0, 3, lambda _, h: jnp.tanh(h @ w), x)), normal(4, 4), normal(BATCH, 4)


@member
def branches():
    def loss(p, x):
        return jnp.sum(jax.lax.cond(x[0] > 0, lambda x: jnp.sin(x @ p["a"]), lambda x: x @ (p["b"] * p["a"]), x))

    return loss, {"a": normal(4, 3), "b": normal(4, 3, seed=1)}, normal(BATCH, 4)


@member
def custom_derivatives():
    @jax.custom_vjp
    def product(x, w):
        return x @ w

    product.defvjp(lambda x, w: (x @ w, (x, w)), lambda xw, g: (g @ xw[1].T, 2 * jnp.outer(xw[0], g)))

    @jax.custom_jvp
    def swish(x, beta):
        return x * jax.nn.sigmoid(beta * x)

    @swish.defjvp
    def _(primals, tangents):
        x, beta = primals
        return swish(x, beta), tangents[0] + tangents[1] * jnp.sum(x)

    return lambda p, x: jnp.sum(swish(product(x, p["w"]), p["beta"])), {"w": normal(4, 3), "beta": normal()}, normal(BATCH, 4)


@member
def stopped_gradients():
    def loss(p, x):
        return jnp.sum(jnp.sin(x @ p["a"])) + jnp.sum(x @ jax.lax.stop_gradient(p["a"]) + p["b"])

    return loss, {"a": normal(4, 3), "b": normal(3)}, normal(BATCH, 4)


@member
def quantised_weights_with_a_straight_through_gradient():
    def loss(w, x):
        return jnp.sum(jnp.sin(x @ (w + jax.lax.stop_gradient(jnp.round(w) - w))))

    return loss, normal(4, 3), normal(BATCH, 2, 4)


@member
def regularised():
    loss, params, batch = mlp()
    return lambda p, x: loss(p, x) + 0.1 * sum(jnp.sum(w**2) for w in jax.tree.leaves(p)), params, batch


@member
def independent_of_the_example():
    return lambda w, x: jnp.sum(jnp.sin(w)) + 0 * jnp.sum(x), normal(3), normal(BATCH, 2)


@member
def a_parameter_that_is_not_used():
    return lambda p, x: jnp.sum(jnp.sin(x @ p["used"])), {"used": normal(4, 3), "unused": normal(2)}, normal(BATCH, 4)


@member
def masks_and_thresholds_of_parameters():
    def loss(w, x):
        return jnp.sum(jnp.where(w > 0, x @ w, 0.0)) + jnp.sum(jnp.maximum(w, x[:, None]))

    return loss, normal(4, 4), normal(BATCH, 4)


@member
def concatenated_and_sliced_parameters():
    def loss(p, x):
        token = jnp.concatenate([p["token"][None], x + p["position"][1:]])
        return jnp.sum(jnp.sin(token @ p["w"][:, ::-1]))

    return loss, {"token": normal(4), "position": normal(4, 4), "w": normal(4, 3)}, normal(BATCH, 3, 4)


@member
def mixture_of_experts():
    def loss(p, x):
        gate = jax.nn.softmax(x @ p["gate"])
        return jnp.sum(jnp.sin(jnp.einsum("te,td,edf->tf", gate, x, p["experts"])))

    return loss, {"gate": normal(4, 3), "experts": normal(3, 4, 2)}, normal(BATCH, 5, 4)


@member
def nnx_module():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(2, 3, (3, 3), rngs=rngs)
            self.norm = nnx.LayerNorm(3, rngs=rngs)
            self.out = nnx.Linear(3, 2, rngs=rngs)

        def __call__(self, x):
            return self.out(jax.nn.silu(self.norm(self.conv(x[None])[0])).mean((0, 1)))

    graph, params = nnx.split(Net(nnx.Rngs(0)), nnx.Param)
    params = jax.tree.map(lambda p: p.astype(jnp.result_type(float)), params)
    return lambda p, x: jnp.sum(jnp.sin(nnx.merge(graph, p)(x))), params, normal(BATCH, 5, 5, 2)


def clipped_backwards():
    """The identity, whose cotangent is clipped entry by entry: not linear backwards."""
    fn = jax.custom_vjp(lambda w: w)
    fn.defvjp(lambda w: (w, None), lambda _, g: (jnp.clip(g, -0.1, 0.1),))
    return fn


@member
def custom_vjp_that_is_not_linear_in_a_scan():
    """One backward pass a step, not one of the sum; but a slice of stacked weights has its own."""
    odd = clipped_backwards()

    def loss(p, x):
        def step(c, wx):
            w, x = wx
            x = x + odd(jax.lax.stop_gradient(p["same"]))[0]
            return jnp.tanh(c @ odd(w) + x @ jax.jit(lambda v: odd(2 * v))(p["same"])), None

        inner = lambda c, _: (jax.lax.scan(step, c, (p["own"], x))[0], None)
        return jnp.sum(jax.lax.scan(inner, x[0], length=2)[0])

    return loss, {"same": normal(3, 3), "own": normal(4, 3, 3)}, normal(BATCH, 4, 3)


@member
def custom_vjp_that_is_not_linear_used_twice():
    odd = clipped_backwards()
    return lambda w, x: jnp.sum(jnp.sin(x @ odd(w)) + x @ odd(w)), normal(3, 3), normal(BATCH, 3)


@member
def stopped_gradients_where_there_is_no_derivative():
    def loss(p, x):
        frozen = jax.lax.stop_gradient(p["a"])
        x = jnp.nextafter(frozen, x) @ frozen.T  # nextafter has no derivative
        scan = lambda c, w: (jnp.tanh(c @ jax.lax.stop_gradient(w) + c @ w), None)
        return jnp.sum(jax.lax.scan(scan, x, p["b"])[0] * jnp.argmax(p["a"][0]) + jnp.sum(p["a"], 0))

    return loss, {"a": normal(3, 3), "b": normal(2, 3, 3)}, normal(BATCH, 3, 3)


@member
def nothing_at_all():
    """Dimensions and scans of length zero."""

    def loss(p, x):
        y = jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, p["stack"])[0]
        rows = p["table"][x[:0].astype(jnp.int32)]
        return sum(jnp.sum(part) for part in (y * p["used"], x[:0] @ p["wide"], rows, x @ p["narrow"]))

    shapes = {"stack": (0, 3, 3), "wide": (0, 2), "table": (4, 2), "narrow": (3, 0), "used": (3,)}
    return loss, {name: normal(*shape) for name, shape in shapes.items()}, normal(BATCH, 3)


@member
def arrays_of_its_own():
    def loss(w, x):
        state = jax.new_ref(x)
        state[...] = state[...] * 2
        return jnp.sum(w * state[...])

    return (loss if hasattr(jax, "new_ref") else lambda w, x: jnp.sum(w * x * 2)), normal(3), normal(BATCH, 3)


@member
def ordinary_differential_equation():
    from jax.experimental.ode import odeint

    def loss(w, x):
        times = jnp.linspace(0, 1, 3, dtype=x.dtype)
        return jnp.sum(odeint(lambda y, t: jnp.tanh(w @ y), x, times)[-1])

    return loss, normal(3, 3), normal(BATCH, 3)


@member
def connectionist_temporal_classification():
    def loss(w, x):
        logits = (x @ w)[None]
        return optax.ctc_loss(logits, jnp.zeros(logits.shape[:2]), jnp.array([[1, 2, 1]]), jnp.zeros((1, 3)))[0]

    return loss, normal(3, 4), normal(BATCH, 7, 3)


@member
def penalty_beside_products():
    def loss(p, x):
        h = jnp.tanh(x @ p["a"] + p["bias"])
        return jnp.sum(jnp.sin(h @ p["b"])) + 0.3 * sum(jnp.sum(v**2) for v in p.values())

    return loss, {"a": normal(4, 5), "b": normal(5, 3), "bias": normal(5), "alone": normal(2, 2)}, normal(BATCH, 7, 4)


@member
def penalty_beside_a_table_that_is_the_last_layer_too():
    def loss(e, i):
        return jnp.sum(jnp.sin(jnp.tanh(e[i]) @ e.T)) + jnp.cos(i[0]) * jnp.sum(jnp.abs(e) ** 1.5)

    return loss, normal(7, 3), whole(7, BATCH, 5)


@member
def penalty_beside_a_table():
    return lambda e, i: jnp.sum(jnp.sin(e[i])) - jnp.sum(jnp.sqrt(1 + e**2)), normal(9, 3), whole(9, BATCH, 4)


@member
def penalty_beside_layers_in_a_scan():
    def loss(p, x):
        h, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p["stack"])
        first = jax.lax.conv_general_dilated(
            h.reshape(1, 3, 4), p["kernel"], (1,), "SAME", dimension_numbers=("NCW", "IOW", "NCW")
        )
        return jnp.sum(first**2) * jnp.exp(-jnp.sum(p["stack"] ** 2 / 9) - jnp.mean(p["kernel"] ** 2))

    return loss, {"stack": normal(3, 4, 4), "kernel": normal(3, 2, 3)}, normal(BATCH, 3, 4)


@member
def penalties_that_share_parameters():
    def loss(p, x):
        return jnp.sum(jnp.sin(x @ p["a"] @ p["b"])) + jnp.sum(p["a"] ** 2) + x[0] * jnp.sum(p["a"] ** 3) + jnp.max(p["b"])

    return loss, {"a": normal(4, 3), "b": normal(3, 3)}, normal(BATCH, 4)


@member
def numbers_computed_from_parameters():
    def loss(p, x):
        return jnp.sum(jax.nn.softplus(p["scale"]) * jnp.tanh(x @ (p["w"] / jnp.linalg.norm(p["w"])))) * jnp.exp(p["log"][1])

    return loss, {"scale": normal(), "w": normal(4, 3), "log": normal(3)}, normal(BATCH, 4)
