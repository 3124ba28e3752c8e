"""Convolutions as matrix products, and max-pooling as maxima, of slices: the same function in a form that CPUs run faster.

XLA's CPU backend runs a native convolution's gradient many times slower inside a loop, where updates and micro-batches run, and
not so fast outside; the gradient of max-pooling is slow everywhere. A convolution is also the product of its input's patches
with the kernel; patches are concatenated slices, whose gradient is cheap. They take as much memory as the input, times the
places of the kernel, so a batch is best taken a few examples at a time (`memory.examples_in_cache`).
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from marauder_dp.cuts.factors import has_patches
from marauder_dp.cuts.jaxprs import INLINE, bind, equations, scan_operands

Array = jax.Array

Chosen = Callable[[Any], bool]

_CONVOLUTION = "conv_general_dilated"
_LARGEST = 256 * 2**20  # bytes of all patches of one example
_LONGEST = 32  # places of a kernel or window in one direction


def as_products(fn: Callable[..., Any], chosen: Chosen = lambda eqn: True) -> Callable[..., Any]:
    """`fn` with its convolutions as matrix products, and its max-pooling as maxima, of slices.

    Values and gradients are the same up to rounding; of equals in a window, the first gets the gradient. All convolutions that
    are `chosen` are rewritten or none: none where patches would be too large, where one is inside `cond`, `while`, `custom_jvp`
    or `custom_vjp`, or where `fn` has side effects.

    Args:
      fn: any JAX function of arrays, such as the loss of one example.
      chosen: which equations may be rewritten; by default all.
    """

    @functools.wraps(fn)
    def rewritten(*args: Any) -> Any:
        jaxpr, out = jax.make_jaxpr(fn, return_shape=True)(*args)
        reached = [eqn for eqn in _reached(jaxpr.jaxpr) if _rewritable(eqn, chosen)]
        convolutions = [eqn for eqn in reached if eqn.primitive.name == _CONVOLUTION]
        every = [eqn for eqn in equations(jaxpr.jaxpr) if eqn.primitive.name == _CONVOLUTION and chosen(eqn)]
        too_large = sum(map(_patch_bytes, convolutions)) > _LARGEST
        if not reached or len(convolutions) < len(every) or too_large or jaxpr.effects:
            return fn(*args)
        return jax.tree.unflatten(jax.tree.structure(out), _run(chosen, jaxpr.jaxpr, jaxpr.consts, jax.tree.leaves(args)))

    return rewritten


def for_device(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`as_products(fn)` where that is faster, on a CPU; on several devices only what has to be: see `mixed_up`."""
    if jax.device_count() > 1:
        return as_products(fn, lambda eqn: eqn.primitive.name == _CONVOLUTION and not has_patches(eqn))
    return as_products(fn) if jax.default_backend() == "cpu" else fn


def mixed_up(loss: Any, *, written_out: bool) -> bool:
    """Whether gradients of examples that are spread over several devices may come out wrong.

    XLA (seen with jax 0.10, CPU devices) gets the vmapped gradient of a convolution with respect to its kernel wrong when the
    batch is sharded: most examples' are 0. Where the factored form takes its place, all is well.

    Args:
      loss: jaxpr of the loss of one example.
      written_out: whether no gradient is factored.
    """
    every = sum(eqn.primitive.name == _CONVOLUTION for eqn in equations(loss))
    safe = sum(eqn.primitive.name == _CONVOLUTION and has_patches(eqn) for eqn in _reached(loss))
    return every > (0 if written_out else safe)


def has_convolutions(jaxpr: Any) -> bool:
    """Whether any are left as they are."""
    return any(eqn.primitive.name == _CONVOLUTION for eqn in equations(jaxpr))


def _run(chosen: Chosen, jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    read = lambda var: var.val if isinstance(var, core.Literal) else env[var]  # noqa: E731
    for eqn in jaxpr.eqns:
        env.update(zip(eqn.outvars, _equation(chosen, eqn, [read(var) for var in eqn.invars]), strict=True))
    return [read(var) for var in jaxpr.outvars]


def _equation(chosen: Chosen, eqn: Any, ins: list[Any]) -> list[Any]:
    name, body = eqn.primitive.name, _body(eqn)
    if _rewritable(eqn, chosen):
        return [_RULES[name](eqn, *ins)]
    if body is None or not any(_rewritable(inner, chosen) for inner in _reached(body.jaxpr)):
        return bind(eqn, ins)
    run: Callable[[list[Any]], list[Any]] = functools.partial(_run, chosen, body.jaxpr, body.consts)
    if name == "scan":
        consts, carries = scan_operands(eqn)

        def step(carry: list[Any], xs: list[Any]) -> tuple[list[Any], list[Any]]:
            outs = run([*ins[:consts], *carry, *xs])
            return outs[:carries], outs[carries:]

        options = {"length": eqn.params["length"], "reverse": eqn.params["reverse"], "unroll": eqn.params.get("unroll", 1)}
        carry, ys = jax.lax.scan(step, ins[consts : consts + carries], ins[consts + carries :], **options)
        return [*carry, *ys]
    if "prevent_cse" in eqn.params:
        run = jax.checkpoint(run, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"])
    return run(ins)


def _reached(jaxpr: Any) -> Iterator[Any]:
    """Equations that can be rebuilt, those of bodies that are run once or scanned included."""
    for eqn in jaxpr.eqns:
        yield eqn
        if (body := _body(eqn)) is not None:
            yield from _reached(body.jaxpr)


def _body(eqn: Any) -> core.ClosedJaxpr | None:
    """What an equation runs, if that can be rebuilt."""
    name = INLINE.get(eqn.primitive.name, "jaxpr" if eqn.primitive.name == "scan" else None)
    if name is None:
        return None
    inner = eqn.params[name]
    return inner if hasattr(inner, "consts") else core.ClosedJaxpr(inner, ())


def _rewritable(eqn: Any, chosen: Chosen) -> bool:
    name, params = eqn.primitive.name, eqn.params
    if name not in _RULES or not chosen(eqn):
        return False
    if not jnp.issubdtype((out := eqn.outvars[0].aval).dtype, jnp.floating) or not out.size:
        return False
    if name == "reduce_window_max":
        return max(params["window_dimensions"]) <= _LONGEST
    kernel = [eqn.invars[1].aval.shape[i] for i in params["dimension_numbers"].rhs_spec[2:]]
    return params["batch_group_count"] == 1 and max(kernel, default=1) <= _LONGEST


def _patch_bytes(eqn: Any) -> int:
    """At most, for a convolution."""
    x, w, y = (var.aval for var in (*eqn.invars, *eqn.outvars))
    layout = eqn.params["dimension_numbers"]
    places = math.prod(w.shape[i] for i in layout.rhs_spec[2:])
    return y.size // y.shape[layout.out_spec[1]] * places * x.shape[layout.lhs_spec[1]] * x.dtype.itemsize


def _convolution(eqn: Any, x: Array, w: Array) -> Array:
    params = eqn.params
    layout, groups = params["dimension_numbers"], params["feature_group_count"]
    strides, holes, apart = (params[name] for name in ("window_strides", "lhs_dilation", "rhs_dilation"))
    kernel, outputs = [w.shape[i] for i in layout.rhs_spec[2:]], [eqn.outvars[0].aval.shape[i] for i in layout.out_spec[2:]]
    x = jnp.transpose(x, (layout.lhs_spec[0], *layout.lhs_spec[2:], layout.lhs_spec[1]))
    w = jnp.transpose(w, (*reversed(layout.rhs_spec[2:]), layout.rhs_spec[1], layout.rhs_spec[0]))
    w = w.reshape(math.prod(kernel), w.shape[-2], groups, w.shape[-1] // groups)  # places, in, groups, out
    places, into, _, out = w.shape
    product = functools.partial(_products, precision=params["precision"], dtype=params["preferred_element_type"])
    if max(holes, default=1) > 1 == max(strides):
        # Transposed: each input is multiplied by the kernel, turned round, and what overlaps is added up.
        w = jnp.transpose(w[::-1], (2, 1, 0, 3)).reshape(groups, into, places * out)
        y = product(x.reshape(*x.shape[:-1], groups, into), w)
        y = jnp.moveaxis(y.reshape(*x.shape[:-1], groups, places, out), -2, -3).reshape(*x.shape[:-1], places * groups * out)
        reach = [(k - 1) * far for k, far in zip(kernel, apart, strict=True)]
        sizes = [(n - 1) * hole + 1 + over for n, hole, over in zip(x.shape[1:-1], holes, reach, strict=True)]
        whole = jax.ShapeDtypeStruct((len(x), *sizes, groups * out), y.dtype)
        (y,) = jax.linear_transpose(functools.partial(_patches, kernel=kernel, strides=holes, apart=apart), whole)(y)
        lows = [low - over for (low, _), over in zip(params["padding"], reach, strict=True)]
        y = _pad(y, [(low, n - size - low, 0) for low, n, size in zip(lows, outputs, sizes, strict=True)])
    else:
        x = _pad(x, [(low, high, hole - 1) for (low, high), hole in zip(params["padding"], holes, strict=True)])
        x = _patches(x, kernel, strides, apart).reshape(len(x), *outputs, places, groups, into)
        x = jnp.moveaxis(x, -2, -3).reshape(len(x), *outputs, groups, places * into)
        y = product(x, jnp.transpose(w, (2, 0, 1, 3)).reshape(groups, places * into, out))
        y = y.reshape(len(x), *outputs, groups * out)
    order = (layout.out_spec[0], *layout.out_spec[2:], layout.out_spec[1])
    return jnp.transpose(y, [order.index(i) for i in range(len(order))])


def _products(x: Array, w: Array, precision: Any, dtype: Any) -> Array:
    """(..., groups, p) times (groups, p, d), group by group."""
    if len(w) == 1:  # without a batch dimension: half as fast again
        return jnp.matmul(x[..., 0, :], w[0], precision=precision, preferred_element_type=dtype)[..., None, :]
    return jnp.einsum("...gp,gpd->...gd", x, w, precision=precision, preferred_element_type=dtype)


def _pad(x: Array, margins: list[tuple[int, int, int]]) -> Array:
    """Zeros around and between positions: (images, space, channels)."""
    return jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *margins, (0, 0, 0)])


def _patches(x: Array, kernel: Sequence[int], strides: Sequence[int], apart: Sequence[int]) -> Array:
    """(images, space, channels) → (images, positions, places of the kernel, the last direction outermost, × channels)."""
    # One direction after the other: 2k slices instead of k², which compiles in half the time and runs faster.
    for axis, (k, stride, far) in enumerate(zip(kernel, strides, apart, strict=True)):
        x = jnp.concatenate(_slices(x, axis + 1, k, stride, far), axis=-1)
    return x


def _max_pooling(eqn: Any, x: Array) -> Array:
    params = eqn.params
    margins = zip(params["padding"], params["base_dilation"], strict=True)
    x = jax.lax.pad(x, jnp.full((), -jnp.inf, x.dtype), [(low, high, hole - 1) for (low, high), hole in margins])
    windows = zip(params["window_dimensions"], params["window_strides"], params["window_dilation"], strict=True)
    # From the last direction to the first, so that the first of equals is the one that comes first in the window.
    for axis, (k, stride, apart) in reversed(list(enumerate(windows))):
        x = functools.reduce(_first_largest, _slices(x, axis, k, stride, apart))
    return x


def _first_largest(a: Array, b: Array) -> Array:
    """The larger, the first of equals, or NaN."""
    return jnp.where((a >= b) | jnp.isnan(a), a, b)


def _slices(x: Array, axis: int, count: int, stride: int, apart: int) -> list[Array]:
    """The `count` places of a window that moves by `stride`, each of them at all its positions."""
    positions = (x.shape[axis] - (count - 1) * apart - 1) // stride + 1
    starts = itertools.islice(itertools.count(0, apart), count)
    return [jax.lax.slice_in_dim(x, i, i + (positions - 1) * stride + 1, stride, axis) for i in starts]


_RULES: dict[str, Callable[..., Array]] = {_CONVOLUTION: _convolution, "reduce_window_max": _max_pooling}
