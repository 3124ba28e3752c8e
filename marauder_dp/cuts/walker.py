"""Where parameters meet data: the jaxpr of a per-example loss, cut at every such place.

Every value in the loss is one of three: a constant, computed from parameters alone (`Param`: casts, reshapes, weight
standardisation), or dependent on the example (`Data`). An equation in which both meet is a *site*. If its primitive is linear
in its one parameter operand w, it computes y = L(a, w), a being its operands that depend on the example. Adding a zero e to y
and differentiating with respect to e gives the cotangent g of y, and the example's gradient with respect to w at this site is
Lᵀ(a, ·) g: held in factored form, never written out. Any other equation is a site of the identity, y = w + e, whose gradient
is g itself: exact, whatever the equation does.

The gradient of a parameter is the sum over its sites, carried back through the computation from the parameter to w.

Jaxprs inside (`jit`, `remat`) are walked in place; a `scan` whose body uses parameters is rebuilt around cuts that are stacked
over its steps. `custom_jvp`, `custom_vjp`, `cond`, `while` stay whole: parameters are cut before they go in.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

Array = jax.Array
Values = tuple[Any, ...]

# Primitives that are linear in one operand while the others are fixed, and which operands.
_LINEAR = {
    "dot_general": (0, 1),
    "conv_general_dilated": (1,),
    "gather": (0,),
    "dynamic_slice": (0,),
    "mul": (0, 1),
    "div": (0,),
    "add": (0, 1),
    "add_any": (0, 1),
    "sub": (0, 1),
}
# Linear primitives of one operand that only move its entries, some of them or all, possibly several times.
_MOVES = {"reshape", "transpose", "squeeze", "expand_dims", "rev", "copy", "copy_p", "broadcast_in_dim"}
_MOVES |= {"slice", "split", "unstack"}
_CAST = "convert_element_type"
_MULTIPLES = {"mul", "div", "neg"}
_PRODUCTS = {"dot_general", "conv_general_dilated"}
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
IDENTITY = "identity"


class UncuttableError(Exception):
    """Only per-example gradients written out are right for this loss; the message says why."""


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


@dataclasses.dataclass(frozen=True)
class Site:
    """Where a computation of parameters meets data.

    Attributes:
      primitive: its name, or "identity".
      eqn: the equation; None for the identity.
      operand: which operand is w.
      apply: (a, w) → y for one example, all steps of enclosing scans together.
      w, y: shapes and dtypes; stacked for sites in scans, w only where it is sliced.
      param: what w is. Its value is w.
      data: which operands a are.
      scans: for each enclosing scan, outermost first, whether w is sliced there.
    """

    primitive: str
    eqn: Any
    operand: int
    apply: Callable[[Values, Array], Array]
    w: jax.ShapeDtypeStruct
    y: jax.ShapeDtypeStruct
    param: Param
    data: tuple[int, ...] = ()
    scans: tuple[bool, ...] = ()


class Walk:
    """One evaluation of a jaxpr: of all of it, with `cuts` added at the sites, or of what parameters alone determine.

    Attributes:
      sites: in order of evaluation; the same in both kinds of evaluation.
      operands: the values a of each site, in an evaluation of all of it.
    """

    def __init__(self, cuts: Sequence[Array] | None = None):
        self._cuts = cuts
        self.sites: list[Site] = []
        self.operands: list[Values] = []

    def run(self, jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
        """Evaluates `jaxpr`; arguments and results are `Param`, `Data`, or constants as they are."""
        env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

        def read(var: Any) -> Any:
            return var.val if isinstance(var, core.Literal) else env[var]

        for eqn in jaxpr.eqns:
            env.update(zip(eqn.outvars, self._equation(eqn, [read(v) for v in eqn.invars]), strict=True))
        return [read(var) for var in jaxpr.outvars]

    def body(self, jaxpr: Any, args: Sequence[Any]) -> list[Any]:
        """Evaluates the body of a loop, whose results are data outside: what is computed from parameters alone is cut."""
        outs = self.run(jaxpr.jaxpr, jaxpr.consts, args)
        return [self.identity(v) if isinstance(v, Param) and v.leaves else v for v in outs]

    def _equation(self, eqn: Any, ins: list[Any]) -> list[Any]:
        name = eqn.primitive.name
        if not any(isinstance(v, Param) for v in ins):
            return self._data(eqn, ins) if any(isinstance(v, Data) for v in ins) else bind(eqn, ins)
        if name in INLINE:
            inner = eqn.params[INLINE[name]]
            return self.run(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), ins)
        # The backward pass of a custom_vjp need not be linear, and runs once a step: the sum over steps comes after it.
        ready = any(v.own for v in ins if isinstance(v, Param)) or not _has_custom_vjp(eqn)
        if ready and not any(isinstance(v, Data) for v in ins):
            if not _smaller_product(eqn, ins):
                return _param(eqn, ins)
            ins = [v if isinstance(v, Param) else Data(v) for v in ins]
        ins = [Data(v.value) if isinstance(v, Param) and not v.leaves else v for v in ins]
        where = [i for i, v in enumerate(ins) if isinstance(v, Param)]
        if any(jnp.issubdtype(eqn.invars[i].aval.dtype, jnp.complexfloating) for i in where):
            raise UncuttableError("a complex value computed from parameters meets data")
        if name == "scan" and where:
            return self._scan(eqn, ins)
        if len(where) == 1 and where[0] in _LINEAR.get(name, ()):
            if (apart := _apart(eqn, ins, where[0])) is not None:
                return self.run(*apart)
            return [self._linear(eqn, ins, where[0])]
        return self._data(eqn, [self.identity(v) if isinstance(v, Param) else v for v in ins])

    def _data(self, eqn: Any, ins: list[Any]) -> list[Data]:
        if self._cuts is None:
            return [Data() for _ in eqn.outvars]
        return [Data(out) for out in bind(eqn, [v.value if isinstance(v, Data) else v for v in ins])]

    def _linear(self, eqn: Any, ins: list[Any], operand: int) -> Data:
        fixed = {i: v for i, v in enumerate(ins) if not isinstance(v, Data | Param)}
        data = [i for i, v in enumerate(ins) if isinstance(v, Data)]

        def apply(a: Values, w: Array) -> Array:
            values = fixed | dict(zip(data, a, strict=True)) | {operand: w}
            return bind(eqn, [values[i] for i in range(len(ins))])[0]

        w, y = (_shape(var.aval) for var in (eqn.invars[operand], eqn.outvars[0]))
        site = Site(eqn.primitive.name, eqn, operand, apply, w, y, ins[operand], tuple(data))
        return self._cut(site, tuple(ins[i].value for i in data))

    def identity(self, param: Param) -> Data:
        """Cuts a parameter value itself."""
        shape = jax.ShapeDtypeStruct(jnp.shape(param.value), jnp.result_type(param.value))
        return self._cut(Site(IDENTITY, None, 0, lambda a, w: w, shape, shape, param), ())

    def _cut(self, site: Site, a: Values) -> Data:
        number = len(self.sites)
        self.sites.append(site)
        if self._cuts is None:
            return Data()
        self.operands.append(a)
        return Data(site.apply(a, site.param.value) + self._cuts[number])

    def _scan(self, eqn: Any, ins: list[Any]) -> list[Data]:
        """A scan whose body uses parameters: cuts inside become cuts that are stacked over the steps."""
        body, length = eqn.params["jaxpr"], eqn.params["length"]
        first_carry, carries = scan_operands(eqn)
        first_x = first_carry + carries
        # A carry depends on the example from the second step on.
        ins = [self.identity(v) if isinstance(v, Param) and first_carry <= i < first_x else v for i, v in enumerate(ins)]
        ins = [v if isinstance(v, Param | Data) else Data(v) for v in ins]
        params = {i: v for i, v in enumerate(ins) if isinstance(v, Param)}
        sliced = {i: i >= first_x for i in params}
        inside = lambda i, value: Param(value, frozenset([i]), _same, True, sliced[i], sliced[i] and params[i].own)  # noqa: E731
        found: list[Site] = []

        def weights(values: dict[int, Array]) -> list[Array]:
            """What each site inside uses in one step."""
            inner = Walk()
            start = [inside(i, values[i]) if i in params else Data() for i in range(len(ins))]
            inner.body(body, start)
            found[:] = inner.sites
            return [site.param.value for site in inner.sites]

        values = {i: v.value for i, v in params.items()}
        one_step = {i: jax.ShapeDtypeStruct(jnp.shape(v)[1 if sliced[i] else 0 :], v.dtype) for i, v in values.items()}
        jax.eval_shape(weights, one_step)
        axes = [0 if site.param.sliced else None for site in found]
        in_axes = {i: 0 if s else None for i, s in sliced.items()}
        stacked = jax.vmap(weights, (in_axes,), axes, axis_size=length)(values) if found else []
        start, count = len(self.sites), len(found)
        for site, w, axis in zip(found, stacked, axes, strict=True):
            self.sites.append(_stacked(site, w, axis, length, params))
        if self._cuts is None:
            return [Data() for _ in eqn.outvars]
        cuts = list(self._cuts[start : start + count])
        kept = {i: v.value for i, v in params.items() if not sliced[i]}

        def step(carry: list[Any], x: tuple[dict[int, Any], list[Array]]) -> tuple[list[Any], Any]:
            xs, step_cuts = x
            inner = Walk(step_cuts)
            now = kept | xs | dict(zip(range(first_carry, first_x), carry, strict=True))
            args = [inside(i, now[i]) if i in params else Data(now.get(i, ins[i].value)) for i in range(len(ins))]
            outs = [v.value if isinstance(v, Data | Param) else v for v in inner.body(body, args)]
            outs = [jnp.asarray(v, var.aval.dtype) for v, var in zip(outs, body.jaxpr.outvars, strict=True)]
            return outs[: len(carry)], (outs[len(carry) :], inner.operands)

        xs = {i: ins[i].value for i in range(first_x, len(ins))}
        carry = [jnp.asarray(ins[i].value, eqn.invars[i].aval.dtype) for i in range(first_carry, first_x)]
        options = {"length": length, "reverse": eqn.params["reverse"], "unroll": eqn.params.get("unroll", 1)}
        carry, (ys, operands) = jax.lax.scan(step, carry, (xs, cuts), **options)
        self.operands += operands
        return [Data(v) for v in [*carry, *ys]]


def _stacked(site: Site, w: Array, axis: int | None, length: int, outer: dict[int, Param]) -> Site:
    """A site inside a scan's body, as one of all its steps."""
    owners = [outer[i] for i in sorted(site.param.leaves)]
    moved, once = None, site.param.once and all(p.once for p in owners)
    if len(owners) == 1 and (before := owners[0].moved) is not None and (within := site.param.moved) is not None:
        each = jax.vmap(within) if axis == 0 else within
        moved = lambda leaf: each(before(leaf))  # noqa: E731
    return dataclasses.replace(
        site,
        apply=jax.vmap(site.apply, (0, axis), axis_size=length),
        w=jax.ShapeDtypeStruct(w.shape, w.dtype),
        y=jax.ShapeDtypeStruct((length, *site.y.shape), site.y.dtype),
        param=Param(w, frozenset().union(*(p.leaves for p in owners)), moved, once, any(p.sliced for p in owners)),
        scans=(axis == 0, *site.scans),
    )


def _param(eqn: Any, ins: list[Any]) -> list[Param]:
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
    move = lambda v: _param(eqn, [v])[0] if isinstance(v, Param) else bind(eqn, [v])[0]  # noqa: E731
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
    if eqn.primitive.name == _CAST:
        return before
    return (lambda leaf: bind(eqn, [before(leaf)])[result]) if eqn.primitive.name in _MOVES else None


def _apart(eqn: Any, ins: list[Any], operand: int) -> tuple[Any, Any, list[Any]] | None:
    """A product with a concatenation, or with a number times w, as products with the parts, or with w: what `run` takes.

    Gradients of the whole would have to be written out and carried back.
    """
    name, made = eqn.primitive.name, ins[operand].made
    if made is None or name not in _PRODUCTS:
        return None
    product = lambda a, w: bind(eqn, [w, a] if operand == 0 else [a, w])[0]  # noqa: E731
    taken_apart: Callable[..., Array]
    if made.axis is None:
        if eqn.outvars[0].aval.dtype != eqn.invars[operand].aval.dtype:
            return None
        taken_apart = lambda a, *vs: bind(made.by, [product(a, v) if i == made.factor else v for i, v in enumerate(vs)])[0]  # noqa: E731
    elif name == "dot_general":
        taken_apart = functools.partial(_with_concatenation, product, eqn, operand, made.axis)
    else:
        return None
    values = [_value(v) for v in made.operands]
    shapes = [_shape(eqn.invars[1 - operand].aval), *(jax.ShapeDtypeStruct(jnp.shape(v), jnp.result_type(v)) for v in values)]
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


def _smaller_product(eqn: Any, ins: list[Any]) -> bool:
    """Whether a constant is multiplied by a parameter, and less comes out than went in: the first state of a recurrent cell.

    Then the constant is better taken for data than the product for a parameter.
    """
    used = [i for i, v in enumerate(ins) if isinstance(v, Param) and v.leaves]
    linear = eqn.primitive.name in _PRODUCTS and len(used) == 1 and used[0] in _LINEAR[eqn.primitive.name]
    return linear and eqn.outvars[0].aval.size < eqn.invars[used[0]].aval.size


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


def _has_custom_vjp(eqn: Any) -> bool:
    """Whether it is a `custom_vjp`, or holds one."""
    every = (eqn, *(each for inner in inner_jaxprs(eqn) for each in equations(inner)))
    return any(each.primitive.name.startswith("custom_vjp") for each in every)


def bind(eqn: Any, values: Sequence[Any]) -> list[Any]:
    """The results of an equation for other operands."""
    params = eqn.primitive.get_bind_params(eqn.params)
    functions, params = params if isinstance(params, tuple) else ((), params)  # older JAX returns both
    out = eqn.primitive.bind(*functions, *values, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def _value(v: Any) -> Any:
    return v.value if isinstance(v, Param) else v


def _differentiable(aval: Any) -> bool:
    return bool(jnp.issubdtype(aval.dtype, jnp.inexact))


def _shape(aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


def _same(leaf: Array) -> Array:
    return leaf
