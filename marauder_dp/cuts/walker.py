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
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from marauder_dp.cuts.apart import PRODUCTS, apart
from marauder_dp.cuts.jaxprs import INLINE, bind, equations, inner_jaxprs, scan_operands, shape_of
from marauder_dp.cuts.values import Data, Param, of_params

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
IDENTITY = "identity"


class UncuttableError(Exception):
    """Only per-example gradients written out are right for this loss; the message says why."""


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
        # A custom_vjp would hand arrays of NumPy to its Python, where they can't be indexed by traced values.
        consts = [jnp.asarray(v) if isinstance(v, np.ndarray) else v for v in consts]
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
                return of_params(eqn, ins)
            ins = [v if isinstance(v, Param) else Data(v) for v in ins]
        ins = [Data(v.value) if isinstance(v, Param) and not v.leaves else v for v in ins]
        where = [i for i, v in enumerate(ins) if isinstance(v, Param)]
        if any(jnp.issubdtype(eqn.invars[i].aval.dtype, jnp.complexfloating) for i in where):
            raise UncuttableError("a complex value computed from parameters meets data")
        if name == "scan" and where:
            return self._scan(eqn, ins)
        if len(where) == 1 and where[0] in _LINEAR.get(name, ()):
            if (parts := apart(eqn, ins, where[0])) is not None:
                return self.run(*parts)
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

        w, y = (shape_of(var.aval) for var in (eqn.invars[operand], eqn.outvars[0]))
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
        whole = {i for site in found if site.primitive == IDENTITY for i in site.param.leaves if not sliced[i]}
        if whole:  # one cut of such a parameter, before the scan, takes less than one a step
            return self._scan(eqn, [self.identity(v) if i in whole else v for i, v in enumerate(ins)])
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


def _smaller_product(eqn: Any, ins: list[Any]) -> bool:
    """Whether a small constant is multiplied by a parameter, and less comes out than went in: a recurrent cell's first state.

    Then the constant is better taken for data than the product for a parameter.
    """
    used = [i for i, v in enumerate(ins) if isinstance(v, Param) and v.leaves]
    if eqn.primitive.name not in PRODUCTS or len(used) != 1 or used[0] not in _LINEAR[eqn.primitive.name]:
        return False
    w, constant = (eqn.invars[i].aval.size for i in (used[0], 1 - used[0]))
    return eqn.outvars[0].aval.size < w and constant <= w


def _has_custom_vjp(eqn: Any) -> bool:
    """Whether it is a `custom_vjp`, or holds one."""
    every = (eqn, *(each for inner in inner_jaxprs(eqn) for each in equations(inner)))
    return any(each.primitive.name.startswith("custom_vjp") for each in every)


def _same(leaf: Array) -> Array:
    return leaf
