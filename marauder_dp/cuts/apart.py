"""Products with a parameter that was put together, as products with its parts."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from marauder_dp.cuts.jaxprs import bind, shape_of
from marauder_dp.cuts.values import Param

Array = jax.Array

PRODUCTS = {"dot_general", "conv_general_dilated"}


def apart(eqn: Any, ins: list[Any], operand: int) -> tuple[Any, Any, list[Any]] | None:
    """A product with a concatenation, or with a number times w, as products with the parts, or with w: what `run` takes.

    Gradients of the whole would have to be written out and carried back.
    """
    name, made = eqn.primitive.name, ins[operand].made
    if made is None or name not in PRODUCTS:
        return None
    product = lambda a, w: bind(eqn, [w, a] if operand == 0 else [a, w])[0]  # noqa: E731
    taken_apart: Callable[..., Array]
    if made.axis is None:
        dtype = eqn.outvars[0].aval.dtype
        # In 16 bits the product with w may overflow where that with its multiple does not.
        if dtype != eqn.invars[operand].aval.dtype or jnp.finfo(dtype).bits < 32:
            return None
        taken_apart = lambda a, *vs: bind(made.by, [product(a, v) if i == made.factor else v for i, v in enumerate(vs)])[0]  # noqa: E731
    elif name == "dot_general":
        taken_apart = functools.partial(_with_concatenation, product, eqn, operand, made.axis)
    else:
        return None
    values = [v.value if isinstance(v, Param) else v for v in made.operands]
    shapes = [shape_of(eqn.invars[1 - operand].aval), *(jax.ShapeDtypeStruct(jnp.shape(v), jnp.result_type(v)) for v in values)]
    whole = jax.make_jaxpr(taken_apart)(*shapes)
    return whole.jaxpr, whole.consts, [ins[1 - operand], *made.operands]


def _with_concatenation(
    product: Callable[[Array, Array], Array], eqn: Any, operand: int, axis: int, a: Array, *parts: Array
) -> Array:
    """The `dot_general` of a with parts concatenated along an axis."""
    (left, right), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    if operand == 1:
        contracted, batched, of_a, of_a_batch = right, right_batch, left, left_batch
    else:
        contracted, batched, of_a, of_a_batch = left, left_batch, right, right_batch
    shared = dict(zip((*contracted, *batched), (*of_a, *of_a_batch), strict=True))
    if axis not in shared:
        free = [i for i in range(parts[0].ndim) if i not in shared]
        first = len(batched) if operand == 0 else len(eqn.outvars[0].aval.shape) - len(free)
        return jnp.concatenate([product(a, part) for part in parts], first + free.index(axis))
    ends = list(itertools.accumulate(part.shape[axis] for part in parts))
    products = [product(x, part) for x, part in zip(jnp.split(a, ends[:-1], shared[axis]), parts, strict=True)]
    if axis in contracted:
        return functools.reduce(jnp.add, products)
    return jnp.concatenate(products, batched.index(axis))
