r"""Per-example gradient clipping: the sum of clipped gradients of one batch, and how far one example can move it.

**Formal guarantee.** For every batch, mask, parameters and loss, each example contributes to `sum` a vector of L2
norm at most C = `clip_norm`, over all parameters together; where groups of parameters have clip norms C_g of their own, at
most C_g to each group, and so at most C = (Σ_g C_g²)^½ in all. So `sum` moves by at most C when one example is added,
removed or zeroed out, and by at most 2C when one is replaced (`ClippedGradFn.sensitivity`). That is all that the
noise and the accountant rest on. It does not depend on the model or on the loss behaving well:

| case | contribution |
|---|---|
| ‖g‖ < C(1 − 1e-6) | g |
| otherwise | g · C(1 − 1e-6)/‖g‖: rounding of the norm can't push it above C |
| masked out | 0, whatever the padding holds |
| NaN or infinity anywhere in g, or ‖g‖² overflows float32 | 0; `norms` is NaN or infinite there |
| g = 0 | 0, no division by zero |

The first two rows are the rule "clip" (Abadi et al. 2016), for each group on its own. Automatic clipping (Bu, Wang, Zha and
Karypis 2023) gives every g the same length instead: "auto_v" g · C(1 − 1e-6)/‖g‖, "auto_s" g · C(1 − 1e-6)/(‖g‖ + 0.01), which
keeps small gradients small. A non-finite entry in one group drops the example from all of them.

Norms, factors and sums are float32 whatever the type of the parameters (float64 if that is their type), and at full
precision where an accelerator's default for products is less.

`loss_fn` sees one example at a time, so it can't mix them; a batching rule of its own (`custom_vmap`) could, and is refused.
"""

import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun

from accountants.events import NeighbouringRelation, as_relation
from marauder_dp.convolutions import for_device, has_convolutions, mixed_up
from marauder_dp.cuts.engine import Gradients
from marauder_dp.cuts.explain import Explanation
from marauder_dp.cuts.explain import explain as explained
from marauder_dp.cuts.factors import Size, combined, wide_type
from marauder_dp.cuts.jaxprs import equations
from marauder_dp.cuts.walker import UncuttableError
from marauder_dp.errors import ModelError, PlanError
from marauder_dp.memory import examples_in_cache, in_equal_groups
from marauder_dp.trainable import Filter, join, path_name, split

PyTree = Any
LossFn = Callable[[PyTree, PyTree], jax.Array]
"""(params, one example without batch dimension) → scalar."""

# Entries below 1.1e-19 vanish when squared in float32. With up to 1e9 of them the norm misses at most 3.5e-15,
# which is below rounding for every C from here on.
MIN_CLIP_NORM = 1e-8
_ROUNDING_MARGIN = 1e-6


class ClippedGrad(NamedTuple):
    """What a `ClippedGradFn` returns. Everything here is private: only `sum` plus noise may be released.

    Attributes:
      sum: pytree like the parameters, float32 (float64 for such parameters): by the rule "clip"
        Σ_i mask_i · min(1, C/‖g_i‖) · g_i, up to the margin of 1e-6.
      norms: (batch,) float32, ‖g_i‖ of all groups together before clipping; 0 where masked out, not finite where g_i isn't.
      losses: (batch,) float32; 0 where masked out.
    """

    sum: PyTree
    norms: jax.Array
    losses: jax.Array


@dataclasses.dataclass(frozen=True)
class ClippedGradFn:
    """f(params, batch, mask=None) → ClippedGrad; made by `clipped_grad`."""

    loss_fn: LossFn
    clip_norms: tuple[tuple[str, float], ...]
    rule: str
    method: str
    trainable: Filter | None = None
    micro_batch: int | None = None

    @property
    def clip_norm(self) -> float:
        """The largest norm of what one example contributes to the sum."""
        return math.hypot(*(norm for _, norm in self.clip_norms))

    def __call__(self, params: PyTree, batch: PyTree, mask: jax.Array | None = None) -> ClippedGrad:
        """Clips and sums.

        Args:
          params: pytree of arrays, of floating-point numbers where they are trained.
          batch: pytree of arrays (batch, ...), one row an example.
          mask: (batch,) bool, True for real examples; default all True.

        Raises:
          ModelError: parameters aren't floating-point, the loss isn't a scalar, the mask's length is wrong, or no clip norm is
            given for a parameter.
        """
        if self.trainable is not None:
            trained, frozen = split(params, self.trainable)
            loss = lambda trained, example: self.loss_fn(join(trained, frozen), example)  # noqa: E731
            return dataclasses.replace(self, loss_fn=loss, trainable=None)(trained, batch, mask)
        fn = dataclasses.replace(self, loss_fn=for_device(self.loss_fn))
        params = jax.tree.map(jnp.asarray, params)
        mask = None if mask is None else jnp.asarray(mask)
        fn, size, at_a_time, entangled = _checked(fn, params, batch, mask)
        if mask is None:
            mask = jnp.ones(size, bool)
        if at_a_time < size:
            return _in_groups(fn, at_a_time, params, batch, mask, entangled)
        return _group(fn, params, batch, mask, entangled)

    def sensitivity(self, neighbouring_relation: str | NeighbouringRelation) -> float:
        """The largest L2 distance between the `sum`s of two neighbouring batches; infinite without clipping."""
        if self.method == "none":
            return math.inf
        return self.clip_norm * (2 if as_relation(neighbouring_relation) is NeighbouringRelation.REPLACE_ONE else 1)


def clipped_grad(
    loss_fn: LossFn,
    *,
    clip_norm: float | Mapping[str, float],
    rule: str = "clip",
    method: str = "auto",
    trainable: Filter | None = None,
    micro_batch: int | None = None,
) -> ClippedGradFn:
    """Turns the loss of one example into the sum of clipped per-example gradients of a batch.

    Args:
      loss_fn: (params, example) → scalar; any JAX function. `example` is one row of the batch.
      clip_norm: C, at least 1e-8; `math.inf` clips nothing (but still drops non-finite gradients). Or a C for each group of
        parameters, by path: {"encoder": 0.5, "encoder/norm": 0.1, "": 1.0}; the longest that leads to a parameter counts.
        `per_layer` makes one.
      rule: "clip", "auto_s" or "auto_v": see the table above.
      method: how to compute it; the result is the same up to rounding. "cuts": per-example gradients stay factored
        (`explain` says how), at about the price of plain training. "vmap": they are written out, batch × parameters × 4
        bytes. "none": no clipping at all, for the non-private baseline (`norms` are NaN, the sensitivity infinite).
        "auto": the best that is private, "cuts".
      trainable: path of a parameter → whether it is trained; default: all are. The others (a backbone under LoRA, say) cost
        nothing, may be of any type, and `sum` has None in their place, so neither noise nor an optimizer sees them.
      micro_batch: examples at a time, in a loop; less memory, and the same up to rounding. By default as many as a CPU's
        caches hold where that is faster (`memory.examples_in_cache`), otherwise the whole batch.

    Raises:
      PlanError: a clip norm, rule, method or micro-batch that does not exist.
    """
    norms = dict(clip_norm) if isinstance(clip_norm, Mapping) else {"": clip_norm}
    if not norms:
        raise PlanError("clip_norm names no group of parameters; give a number, or a number for each")
    for path, norm in norms.items():
        where = f"clip_norm[{path!r}]" if isinstance(clip_norm, Mapping) else "clip_norm"
        if isinstance(norm, bool) or not (isinstance(norm, numbers.Real) and norm >= MIN_CLIP_NORM):
            raise PlanError(f"{where} must be a number of at least {MIN_CLIP_NORM:g}; got {norm!r}")
        if math.isinf(norm) and rule != "clip":
            raise PlanError(f"{where} must be finite with the rule {rule}, which gives every gradient that length")
    if rule not in _RULES:
        raise PlanError(f"clipping rule must be one of {', '.join(_RULES)}; got {rule!r}")
    if method not in ("auto", *_METHODS):
        raise PlanError(f"clipping method must be one of auto, {', '.join(_METHODS)}; got {method!r}")
    if micro_batch is not None and not (isinstance(micro_batch, int) and micro_batch >= 1):
        raise PlanError(f"micro_batch must be a whole number of at least 1, or None for the fastest; got {micro_batch!r}")
    norms = {path.strip("/"): float(norm) for path, norm in norms.items()}
    return ClippedGradFn(loss_fn, tuple(norms.items()), rule, "cuts" if method == "auto" else method, trainable, micro_batch)


def per_layer(params: PyTree, clip_norm: float) -> dict[str, float]:
    """Clip norms of C/√L for each of the L layers of a model: one example contributes at most C = `clip_norm` in all.

    A layer is what holds parameters side by side, such as a kernel and its bias; a parameter on the top level is its own.
    """
    layers = {name.rpartition("/")[0] or name for name in _names(params)}
    return {layer: clip_norm / math.sqrt(len(layers)) for layer in sorted(layers)}


def explain(
    loss_fn: LossFn, params: PyTree, batch: PyTree, *, trainable: Filter | None = None, micro_batch: int | None = None
) -> Explanation:
    """How `clipped_grad` treats each parameter for a batch of this shape: print it. Nothing is computed.

    Args:
      loss_fn: (params, example) → scalar.
      params, batch: as for a `ClippedGradFn`; shapes (`jax.ShapeDtypeStruct`) do as well.
      trainable, micro_batch: as for `clipped_grad`.

    Raises:
      ModelError: as a `ClippedGradFn`.
    """
    if trainable is not None:
        trained, frozen = split(params, trainable)
        found: list[Explanation] = []

        def restricted(frozen: PyTree) -> None:  # traced, so that shapes do
            loss = lambda trained, example: loss_fn(join(trained, frozen), example)  # noqa: E731
            found.append(explain(loss, trained, batch, micro_batch=micro_batch))

        jax.eval_shape(restricted, frozen)
        return found[0]
    fn = clipped_grad(for_device(loss_fn), clip_norm=1.0, micro_batch=micro_batch)
    fn, _, at_a_time, _ = _checked(fn, params, batch, None)
    group = jax.tree.map(lambda x: jax.ShapeDtypeStruct((at_a_time, *jnp.shape(x)[1:]), jnp.result_type(x)), batch)
    explanation = explained(fn.loss_fn, params, group, [name or "the parameter" for name in _names(params)])
    forms = (loss_fn, fn.loss_fn)
    native, ours = (has_convolutions(jax.make_jaxpr(jax.vmap(form, (None, 0)))(params, group).jaxpr) for form in forms)
    note = "Convolutions are computed as products of patches, which a CPU does faster." if native and not ours else ""
    return dataclasses.replace(explanation, note=note)


def _group(fn: ClippedGradFn, params: PyTree, batch: PyTree, mask: jax.Array, entangled: bool) -> ClippedGrad:
    """One group of examples; one by one where one of them may have spoilt others."""
    found = _METHODS[fn.method](fn, params, batch, mask)
    if not entangled or fn.method == "none" or len(mask) == 1:
        return found
    # A convolution with kernels of each example's own is one of all of them, in which XLA may multiply one example's entries by
    # another's zeros: 0 · NaN is NaN. Then one example, which may not even count, would take all others out of the sum.
    clean = jnp.all(jnp.isfinite(found.norms))
    return jax.lax.cond(clean, lambda: found, lambda: _in_groups(fn, 1, params, batch, mask, False))


def _in_groups(
    fn: ClippedGradFn, at_a_time: int, params: PyTree, batch: PyTree, mask: jax.Array, entangled: bool
) -> ClippedGrad:
    """So many examples at a time; the last group is filled up with examples that don't count."""
    size = len(mask)
    count = math.ceil(size / at_a_time)
    missing = count * at_a_time - size
    grouped = lambda x, fill: jnp.concatenate([x, fill]).reshape(count, at_a_time, *x.shape[1:])  # noqa: E731
    groups = jax.tree.map(lambda x: grouped(jnp.asarray(x), jnp.asarray(x)[:missing]), batch)

    def add(total: PyTree, group: tuple[PyTree, jax.Array]) -> tuple[PyTree, tuple[jax.Array, jax.Array]]:
        part = _group(fn, params, *group, entangled)
        return jax.tree.map(jnp.add, total, part.sum), (part.norms, part.losses)

    zeros = jax.tree.map(lambda p: jnp.zeros(jnp.shape(p), wide_type(p)), params)
    total, seen = jax.lax.scan(add, zeros, (groups, grouped(mask, jnp.zeros(missing, bool))))
    norms, losses = (each.reshape(-1)[:size] for each in seen)
    return ClippedGrad(total, norms, losses)


def _vmap(fn: ClippedGradFn, params: PyTree, batch: PyTree, mask: jax.Array) -> ClippedGrad:
    """Writes every per-example gradient out."""
    losses, grads = jax.vmap(jax.value_and_grad(fn.loss_fn), (None, 0))(params, batch)
    treedef: Any
    leaves, treedef = jax.tree.flatten(jax.tree.map(lambda g: g.astype(wide_type(g)), grads))
    parts = _parts(fn, params)
    sizes: list[list[Size]] = [[] for _ in fn.clip_norms]
    for part, g in zip(parts, leaves, strict=True):
        sizes[part].append(Size.written_out(g))
    norms, bounds = combined(sizes, mask.shape[0])
    factors = _factors(fn, bounds, mask)

    def weighted_sum(g: jax.Array, factors: jax.Array) -> jax.Array:
        # 0 · NaN is NaN: rows that don't count are replaced, not scaled.
        kept = jnp.where((factors != 0).reshape(-1, *[1] * (g.ndim - 1)), g, 0)
        # The default precision of accelerators (TF32, bfloat16) would round by more than the margin below C.
        return jnp.tensordot(factors.astype(g.dtype), kept, axes=1, precision=jax.lax.Precision.HIGHEST)

    return ClippedGrad(
        sum=treedef.unflatten([weighted_sum(g, factors[part]) for part, g in zip(parts, leaves, strict=True)]),
        norms=jnp.where(mask, _total(norms), 0),
        losses=jnp.where(mask, losses.astype(jnp.float32), 0),
    )


def _cuts(fn: ClippedGradFn, params: PyTree, batch: PyTree, mask: jax.Array) -> ClippedGrad:
    """Keeps per-example gradients in factored form: see `cuts.engine`."""
    parts = _parts(fn, params)
    try:
        gradients = Gradients(fn.loss_fn, params, batch)
    except UncuttableError:
        return _vmap(fn, params, batch, mask)
    norms, bounds = gradients.norms(parts)
    return ClippedGrad(
        sum=gradients.weighted_sum(_factors(fn, bounds, mask), parts),
        norms=jnp.where(mask, _total(norms), 0),
        losses=jnp.where(mask, gradients.losses.astype(jnp.float32), 0),
    )


def _none(fn: ClippedGradFn, params: PyTree, batch: PyTree, mask: jax.Array) -> ClippedGrad:
    """The plain gradient of the summed loss: the non-private floor."""

    def total(params: PyTree) -> tuple[jax.Array, jax.Array]:
        losses = jnp.where(mask, jax.vmap(fn.loss_fn, (None, 0))(params, batch).astype(jnp.float32), 0)
        return jnp.sum(losses), losses

    grads, losses = jax.grad(total, has_aux=True)(params)
    return ClippedGrad(
        sum=jax.tree.map(lambda g: g.astype(wide_type(g)), grads),
        norms=jnp.where(mask, jnp.nan, 0),
        losses=losses,
    )


_METHODS: dict[str, Callable[[ClippedGradFn, PyTree, PyTree, jax.Array], ClippedGrad]] = {
    "cuts": _cuts,
    "vmap": _vmap,
    "none": _none,
}


_RULES: dict[str, Callable[[jax.Array, float], jax.Array]] = {
    "clip": lambda norms, target: target / jnp.maximum(norms, target),
    "auto_s": lambda norms, target: target / (norms + 0.01),
    "auto_v": lambda norms, target: target / jnp.where(norms > 1e-30, norms, jnp.inf),
}
"""What scales a gradient of a norm, so that no result is longer than the target."""


def _factors(fn: ClippedGradFn, norms: jax.Array, mask: jax.Array) -> jax.Array:
    """What each part of each example's gradient is scaled by, (parts, batch); 0 for examples that don't count."""
    use = mask & jnp.all(jnp.isfinite(norms), axis=0)
    rule = _RULES[fn.rule]
    # The choice comes before the division: XLA fuses what comes after it into each of many sums, in a time that is quadratic.
    norms = jnp.where(use, norms, jnp.inf)
    return jnp.stack(
        [
            (norm < math.inf).astype(norm.dtype) if math.isinf(clip_norm) else rule(norm, clip_norm * (1 - _ROUNDING_MARGIN))
            for (_, clip_norm), norm in zip(fn.clip_norms, norms, strict=True)
        ]
    )


def _total(norms: jax.Array) -> jax.Array:
    """(batch,) from the norms of parts (parts, batch)."""
    return norms[0] if len(norms) == 1 else jnp.sqrt(jnp.sum(norms**2, axis=0))


def _parts(fn: ClippedGradFn, params: PyTree) -> list[int]:
    """For each parameter, the number of the clip norm that counts for it.

    Raises:
      ModelError: a parameter has none, or a clip norm no parameter.
    """
    paths = [path for path, _ in fn.clip_norms]
    leads = lambda path, name: path in ("", name) or name.startswith(path + "/")  # noqa: E731
    parts = []
    for name in _names(params):
        found = [path for path in paths if leads(path, name)]
        if not found:
            raise ModelError(f"no clip norm for parameter {name}; add it, or one for the rest under the empty path ''")
        parts.append(paths.index(max(found, key=len)))
    unused = [path for i, path in enumerate(paths) if i not in parts and path]
    if unused:
        raise ModelError(
            f"clip_norm names {unused[0]!r}, under which there is no parameter of its own; there are {_names(params)}"
        )
    return parts


def _names(params: PyTree) -> list[str]:
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def _checked(fn: ClippedGradFn, params: PyTree, batch: PyTree, mask: jax.Array | None) -> tuple[ClippedGradFn, int, int, bool]:
    """Refuses what can't be clipped rightly, at trace time.

    Returns:
      The same with its loss traced once and for all, the batch size, how many examples to take at a time, and whether their
      gradients are computed in operations that may mix them.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ModelError(
                f"parameter {path_name(path)} is {jnp.result_type(leaf)}: only floating-point parameters have "
                "gradients; close over it in the loss instead of passing it in params"
            )
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
    if len(sizes) != 1 or sizes == {()}:
        raise ModelError(f"every array of the batch needs the same leading batch dimension; got {sorted(sizes)}")
    (size,) = sizes.pop()
    if mask is not None and (mask.shape, mask.dtype) != ((size,), jnp.bool_):
        raise ModelError(f"mask must be boolean, of the shape ({size},) of the batch; got {mask.dtype}{mask.shape}")
    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x)[1:], jnp.result_type(x)), batch)
    try:
        jaxpr, out = jax.make_jaxpr(fn.loss_fn, return_shape=True)(params, example)
    except (TypeError, ValueError, IndexError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"the loss fails on ONE example, without a batch dimension, which is what it gets: {reason:.200}"
        ) from error
    if not hasattr(out, "shape") or out.shape != () or not jnp.issubdtype(out.dtype, jnp.floating):
        raise ModelError(
            f"the loss of one example must be a floating-point scalar; got {out}. "
            "It is called with one example, without a batch dimension"
        )
    every, effects, hidden = list(equations(jaxpr.jaxpr)), set(jaxpr.effects), False
    custom = {name for eqn in every for name in ("custom_vjp", "custom_jvp") if eqn.primitive.name.startswith(name)}
    if custom:  # whose derivatives are not in the jaxpr
        backward = jax.make_jaxpr(jax.grad(fn.loss_fn))(params, example)
        every, effects = [*every, *equations(backward.jaxpr)], effects | backward.effects
        hidden = "custom_vjp" in custom and has_convolutions(backward.jaxpr)
    if any(eqn.primitive.name == "custom_vmap_call" for eqn in every):
        raise ModelError(
            "the loss has a batching rule of its own (custom_vmap), which sees all examples at once and may mix them: then "
            "clipping would bound nothing. Replace it by plain functions, jax.vmap or jax.lax.map"
        )
    local = {"InternalMutableArrayEffect"}  # of arrays that live and die inside the loss
    outward = {type(effect).__name__ for effect in effects} - local
    called = {eqn.primitive.name for eqn in every if "callback" in eqn.primitive.name}
    if outward or called:
        found = ", ".join(sorted(called or {eqn.primitive.name for eqn in every if eqn.effects}))
        raise ModelError(
            f"the loss has side effects or calls Python ({found}): what leaves it so is private and unaccounted. Remove it "
            "(jax.debug.print, io_callback, pure_callback and the like)"
        )
    evaluate = jaxpr_as_fun(jaxpr)
    fn = dataclasses.replace(fn, loss_fn=lambda params, example: evaluate(*jax.tree.leaves((params, example)))[0])
    entangled = hidden or has_convolutions(jaxpr.jaxpr)
    several = jax.device_count() > 1  # the batch may be spread over them
    if several and (hidden or mixed_up(jaxpr.jaxpr, written_out=fn.method == "vmap")):
        return fn, size, min(1, size), entangled
    if fn.micro_batch is not None:
        return fn, size, min(fn.micro_batch, size), entangled
    if several:  # groups would mix what lies on different devices
        return fn, size, size, entangled
    return fn, size, in_equal_groups(size, examples_in_cache(jaxpr.jaxpr, params)), entangled
