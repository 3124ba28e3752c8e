"""The values in a loss: of parameters alone (`Param`), dependent on the example (`Data`), or constants as they are."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from marauder_dp.cuts.jaxprs import bind

Array = jax.Array

# Linear primitives of one operand that only move its entries, some of them or all, possibly several times.
_MOVES = {"reshape", "transpose", "squeeze", "expand_dims", "rev", "copy", "copy_p", "broadcast_in_dim"}
_MOVES |= {"slice", "split", "unstack"}
_CAST = "convert_element_type"
_PASSES = {_CAST, "name", "optimization_barrier", "sharding_constraint"}  # entries stay where they are
_MULTIPLES = {"mul", "div", "neg"}


@dataclasses.dataclass(frozen=True)
class Param:
    """A value computed from parameters alone.

    Attributes:
      value: it.
      leaves: of which parameters, by their number. Empty where no gradient flows to any: after `stop_gradient`, integers.
      moved: how it comes from the one parameter, if that only moves and casts entries: a linear function that keeps
        its argument's dtype; None otherwise.
      once: whether no entry is in it more than once.
      sliced: inside a scan, whether it differs from step to step.
      own: whether each step of every enclosing scan has its own.
      made: of what, where it is a concatenation, or a value times a number.
    """

    value: Any
    leaves: frozenset[int]
    moved: Callable[[Array], Array] | None
    once: bool = True
    sliced: bool = False
    own: bool = True
    made: "Made | None" = None


@dataclasses.dataclass(frozen=True)
class Made:
    """How a parameter value was computed, if a product with it can be taken apart.

    Attributes:
      by: the equation.
      operands: parameter values and constants.
      axis: of a concatenation.
      factor: which operand is not the number.
    """

    by: Any
    operands: list[Any]
    axis: int | None = None
    factor: int = 0


@dataclasses.dataclass(frozen=True)
class Data:
    """A value that depends on the example; None where only parameters are evaluated."""

    value: Any = None


def of_params(eqn: Any, ins: list[Any]) -> list[Param]:
    """An equation of parameters and constants."""
    params = [v for v in ins if isinstance(v, Param)]
    outs = bind(eqn, [v.value if isinstance(v, Param) else v for v in ins])
    found = frozenset().union(*(p.leaves for p in params)) if eqn.primitive.name != "stop_gradient" else frozenset()
    sliced, own = any(p.sliced for p in params), any(p.own for p in params)
    once = all(p.once for p in params) and (
        eqn.primitive.name != "broadcast_in_dim" or eqn.outvars[0].aval.size <= eqn.invars[0].aval.size
    )
    leaves = [found if _differentiable(var.aval) else frozenset() for var in eqn.outvars]
    moved = [_moved(eqn, ins, i) if some else None for i, some in enumerate(leaves)]
    made = _made(eqn, ins) if found and len(outs) == 1 else None
    return [Param(out, some, by, once, sliced, own, made) for out, some, by in zip(outs, leaves, moved, strict=True)]


def _made(eqn: Any, ins: list[Any]) -> Made | None:
    """`Param.made` of the result of an equation of parameters and constants."""
    name, made = eqn.primitive.name, ins[0].made if isinstance(ins[0], Param) else None
    if name == "concatenate":
        return Made(eqn, ins, eqn.params["dimension"])
    if name in _MULTIPLES:
        whole = [i for i, var in enumerate(eqn.invars) if var.aval.shape == eqn.outvars[0].aval.shape]
        numbers = [i for i, var in enumerate(eqn.invars) if i not in whole and var.aval.shape == ()]
        fits = len(whole) == 1 and len(numbers) == len(ins) - 1 and (name != "div" or whole == [0])
        return Made(eqn, ins, factor=whole[0]) if fits else None
    if made is None or len(ins) > 1:
        return None
    move = lambda v: of_params(eqn, [v])[0] if isinstance(v, Param) else bind(eqn, [v])[0]  # noqa: E731
    if made.axis is None and name in _MOVES:
        operands = [move(v) if i == made.factor else v for i, v in enumerate(made.operands)]
        return dataclasses.replace(made, operands=operands)
    if made.axis is not None and name in ("transpose", _CAST):
        axis = made.axis if name == _CAST else eqn.params["permutation"].index(made.axis)
        return Made(made.by, [move(v) for v in made.operands], axis)
    return None


def _moved(eqn: Any, ins: list[Any], result: int) -> Callable[[Array], Array] | None:
    """`Param.moved` of a result of an equation of parameters and constants."""
    if len(ins) != 1 or (before := ins[0].moved) is None:
        return None
    if eqn.primitive.name in _PASSES:
        return before
    return (lambda leaf: bind(eqn, [before(leaf)])[result]) if eqn.primitive.name in _MOVES else None


def _differentiable(aval: Any) -> bool:
    return bool(jnp.issubdtype(aval.dtype, jnp.inexact))
