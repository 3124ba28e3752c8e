r"""Per-example gradient clipping: the sum of clipped gradients of one batch, and how far one example can move it.

**Formal guarantee.** For every batch, mask, parameters and loss, each example contributes to `sum` a vector of L2
norm at most C = `clip_norm`, over all parameters together. So `sum` moves by at most C when one example is added,
removed or zeroed out, and by at most 2C when one is replaced (`ClippedGradFn.sensitivity`). That is all that the
noise and the accountant rest on. It does not depend on the model or on the loss behaving well:

| case | contribution |
|---|---|
| ‖g‖ < C(1 − 1e-6) | g |
| otherwise | g · C(1 − 1e-6)/‖g‖: rounding of the norm can't push it above C |
| masked out | 0, whatever the padding holds |
| NaN or infinity anywhere in g, or ‖g‖² overflows float32 | 0; `norms` is NaN or infinite there |
| g = 0 | 0, no division by zero |

Norms, factors and sums are float32 whatever the type of the parameters (float64 if that is their type), and at full
precision where an accelerator's default for products is less.

`loss_fn` sees one example at a time, so a loss that mixes examples can't be written.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from accountants.events import NeighbouringRelation, as_relation
from marauder_dp.cuts.engine import Gradients
from marauder_dp.cuts.explain import Explanation
from marauder_dp.cuts.explain import explain as explained
from marauder_dp.cuts.factors import wide_type
from marauder_dp.cuts.walker import UncuttableError, equations
from marauder_dp.errors import ModelError, PlanError

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
      sum: pytree like the parameters, float32 (float64 for such parameters): Σ_i mask_i · min(1, C/‖g_i‖) · g_i, up to the
        margin of 1e-6.
      norms: (batch,) float32, ‖g_i‖ before clipping; 0 where masked out, not finite where g_i isn't.
      losses: (batch,) float32; 0 where masked out.
    """

    sum: PyTree
    norms: jax.Array
    losses: jax.Array


@dataclasses.dataclass(frozen=True)
class ClippedGradFn:
    """f(params, batch, mask=None) → ClippedGrad; made by `clipped_grad`."""

    loss_fn: LossFn
    clip_norm: float
    method: str

    def __call__(self, params: PyTree, batch: PyTree, mask: jax.Array | None = None) -> ClippedGrad:
        """Clips and sums.

        Args:
          params: pytree of floating-point arrays.
          batch: pytree of arrays (batch, ...), one row an example.
          mask: (batch,) bool, True for real examples; default all True.

        Raises:
          ModelError: parameters aren't floating-point, the loss isn't a scalar, or the mask's length is wrong.
        """
        size = _check(self.loss_fn, params, batch, mask)
        if mask is None:
            mask = jnp.ones(size, bool)
        return _METHODS[self.method](self, params, batch, mask)

    def sensitivity(self, neighbouring_relation: str | NeighbouringRelation) -> float:
        """The largest L2 distance between the `sum`s of two neighbouring batches; infinite without clipping."""
        if self.method == "none":
            return math.inf
        return self.clip_norm * (2 if as_relation(neighbouring_relation) is NeighbouringRelation.REPLACE_ONE else 1)


def clipped_grad(loss_fn: LossFn, *, clip_norm: float, method: str = "auto") -> ClippedGradFn:
    """Turns the loss of one example into the sum of clipped per-example gradients of a batch.

    Args:
      loss_fn: (params, example) → scalar; any JAX function. `example` is one row of the batch.
      clip_norm: C, at least 1e-8; `math.inf` clips nothing (but still drops non-finite gradients).
      method: how to compute it; the result is the same up to rounding. "cuts": per-example gradients stay factored
        (`explain` says how), at about the price of plain training. "vmap": they are written out, batch × parameters × 4
        bytes. "none": no clipping at all, for the non-private baseline (`norms` are NaN, the sensitivity infinite).
        "auto": the best that is private, "cuts".

    Raises:
      PlanError: a clip norm or method that does not exist.
    """
    if not (isinstance(clip_norm, int | float) and clip_norm >= MIN_CLIP_NORM):
        raise PlanError(f"clip_norm must be a number of at least {MIN_CLIP_NORM:g}; got {clip_norm!r}")
    if method not in ("auto", *_METHODS):
        raise PlanError(f"clipping method must be one of auto, {', '.join(_METHODS)}; got {method!r}")
    return ClippedGradFn(loss_fn, float(clip_norm), "cuts" if method == "auto" else method)


def explain(loss_fn: LossFn, params: PyTree, batch: PyTree) -> Explanation:
    """How `clipped_grad` treats each parameter for a batch of this shape: print it. Nothing is computed.

    Args:
      loss_fn: (params, example) → scalar.
      params, batch: as for a `ClippedGradFn`; shapes (`jax.ShapeDtypeStruct`) do as well.

    Raises:
      ModelError: as a `ClippedGradFn`.
    """
    _check(loss_fn, params, batch, None)
    names = [path_name(path) or "the parameter" for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    return explained(loss_fn, params, batch, names)


def _vmap(fn: ClippedGradFn, params: PyTree, batch: PyTree, mask: jax.Array) -> ClippedGrad:
    """Writes every per-example gradient out."""
    losses, grads = jax.vmap(jax.value_and_grad(fn.loss_fn), (None, 0))(params, batch)
    grads = jax.tree.map(lambda g: g.astype(wide_type(g)), grads)
    squares = [jnp.sum(jnp.square(g), axis=range(1, g.ndim)) for g in jax.tree.leaves(grads)]
    norms = jnp.sqrt(sum(squares, jnp.zeros_like(mask, jnp.float32)))
    use = mask & jnp.isfinite(norms)
    factors = jnp.where(use, _clip_factors(norms, fn.clip_norm), 0)

    def weighted_sum(g: jax.Array) -> jax.Array:
        # 0 · NaN is NaN: rows that don't count are replaced, not scaled.
        kept = jnp.where(use.reshape(-1, *[1] * (g.ndim - 1)), g, 0)
        # The default precision of accelerators (TF32, bfloat16) would round by more than the margin below C.
        return jnp.tensordot(factors, kept, axes=1, precision=jax.lax.Precision.HIGHEST)

    return ClippedGrad(
        sum=jax.tree.map(weighted_sum, grads),
        norms=jnp.where(mask, norms, 0),
        losses=jnp.where(mask, losses.astype(jnp.float32), 0),
    )


def _cuts(fn: ClippedGradFn, params: PyTree, batch: PyTree, mask: jax.Array) -> ClippedGrad:
    """Keeps per-example gradients in factored form: see `cuts.engine`."""
    try:
        gradients = Gradients(fn.loss_fn, params, batch)
    except UncuttableError:
        return _vmap(fn, params, batch, mask)
    norms, bound = gradients.norms()
    use = mask & jnp.isfinite(bound)
    factors = jnp.where(use, _clip_factors(bound, fn.clip_norm), 0)
    return ClippedGrad(
        sum=gradients.weighted_sum(factors),
        norms=jnp.where(mask, norms, 0),
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


def _clip_factors(norms: jax.Array, clip_norm: float) -> jax.Array:
    """min(1, C(1 − margin)/‖g‖), without division by zero."""
    if math.isinf(clip_norm):
        return jnp.ones_like(norms)
    target = clip_norm * (1 - _ROUNDING_MARGIN)
    return target / jnp.maximum(norms, target)


def _check(loss_fn: LossFn, params: PyTree, batch: PyTree, mask: jax.Array | None) -> int:
    """Refuses what can't be clipped rightly, at trace time; returns the batch size."""
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
    if mask is not None and jnp.shape(mask) != (size,):
        raise ModelError(f"mask must have the shape ({size},) of the batch; got {jnp.shape(mask)}")
    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x)[1:], jnp.result_type(x)), batch)
    try:
        jaxpr, out = jax.make_jaxpr(loss_fn, return_shape=True)(params, example)
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
    local = {"InternalMutableArrayEffect"}  # of arrays that live and die inside the loss
    effects = {type(effect).__name__ for effect in jaxpr.effects} - local
    called = {eqn.primitive.name for eqn in equations(jaxpr.jaxpr) if "callback" in eqn.primitive.name}
    if effects or called:
        found = ", ".join(sorted(called or {eqn.primitive.name for eqn in equations(jaxpr.jaxpr) if eqn.effects}))
        raise ModelError(
            f"the loss has side effects or calls Python ({found}): what leaves it so is private and unaccounted. Remove it "
            "(jax.debug.print, io_callback, pure_callback and the like)"
        )
    return int(size)


def path_name(path: tuple[Any, ...]) -> str:
    """A pytree path as 'a/b/kernel'."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
