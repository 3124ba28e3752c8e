"""What JAX doesn't say about its jaxprs: what an equation holds inside, how a scan's operands divide, how to evaluate one."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax

# Calls that run the jaxpr they hold once, and which parameter that is.
INLINE = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "checkpoint": "jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
}


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a jaxpr, those inside others included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in inner_jaxprs(eqn):
            yield from equations(inner)


def inner_jaxprs(eqn: Any) -> Iterator[Any]:
    """The bodies of an equation: of a scan, a call, the branches of a cond."""
    for value in eqn.params.values():
        for inner in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield inner


def scan_operands(eqn: Any) -> tuple[int, int]:
    """How many constants and carries a scan has: other operands have one dimension more than in its body."""
    body, rank = eqn.params["jaxpr"].jaxpr, lambda var: len(var.aval.shape)
    carries = sum(rank(out) == rank(inner) for out, inner in zip(eqn.outvars, body.outvars, strict=True))
    scanned = sum(rank(operand) != rank(inner) for operand, inner in zip(eqn.invars, body.invars, strict=True))
    return len(eqn.invars) - carries - scanned, carries


def bind(eqn: Any, values: Sequence[Any]) -> list[Any]:
    """The results of an equation for other operands."""
    params = eqn.primitive.get_bind_params(eqn.params)
    functions, params = params if isinstance(params, tuple) else ((), params)  # older JAX returns both
    out = eqn.primitive.bind(*functions, *values, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def shape_of(aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)
