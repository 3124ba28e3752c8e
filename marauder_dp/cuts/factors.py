r"""Per-example gradients at a site, in factored form: one rule for each primitive.

With operands a and cotangent g of y = L(a, w), the gradient with respect to w is G = Lᵀ(a, ·) g. For products it is a sum of T
outer products, written once for all as

    G[n] = a[n]ᵀ g[n],    a: (n, T, p), g: (n, T, d), G: (n, p, d),

with n independent products (heads, groups, stacked layers) and T positions at which w is used (tokens, pixels, steps).
`Outer` holds this for a batch. ‖G‖² is Σ_n ⟨a aᵀ, g gᵀ⟩, the Gram form, T²(p + d) operations, or that of G written out, Tpd.

* *dot_general*: batch dimensions are n; free dimensions of a are T; contracted ones p; free dimensions of w d.
* *conv_general_dilated*: w meets the patch of a at each output position. Output positions are T, groups n, a patch p, output
  channels d. Patches are gathered, not convolved for: vmapped, that would be a grouped convolution, ten times slower on CPU.
* *gather*, *dynamic_slice* of rows (embeddings): row id_t receives g_t, so ‖G‖² = Σ_{s,t} [id_s = id_t] ⟨g_s, g_t⟩, or that
  of the sums of what each row receives (`Rows`).
* anything else: G written out by transposing L.

In scans, w is either the same at each step (steps are more positions) or its own slice (steps are more products).

Everything here is in float32, or float64 where that is the parameters' type, at full precision: the norm and the sum have to be
of the same numbers.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from marauder_dp.cuts.routes import Product, Route, lookup
from marauder_dp.cuts.sums import sum_of_squares
from marauder_dp.cuts.walker import Site, Values

Array = jax.Array

HIGHEST = jax.lax.Precision.HIGHEST

_ROUNDING = 2.0  # units in the last place of `Size.scale` by which a square may be off


class Size(NamedTuple):
    """How large each per-example gradient is, each (batch,).

    Attributes:
      square: ‖G‖² as computed.
      scale: (Σ_t ‖a_t‖ ‖g_t‖)², of which the rounding error of `square` is a few units in the last place. Where terms cancel
        it may be far more than ‖G‖²; 0 where nothing can cancel, or the norm is that of the very numbers that are summed.
      lost: at most so much of ‖G‖ was lost to underflow, or to a sum's roundings all in one direction.
      unsure: by at most this part of it √square is below the root of the sum of squares; a plain number.
    """

    square: Array
    scale: Array
    lost: Array
    unsure: float = 0.0

    @classmethod
    def written_out(cls, each: Array) -> "Size":
        """Of gradients (batch, ...) that are summed as they stand."""
        square, unsure = sum_of_squares(each)
        return cls(square, jnp.zeros_like(square), jnp.zeros_like(square), unsure)


def combined(parts: Sequence[Sequence[Size]], batch: int) -> tuple[Array, Array]:
    """Norms of gradients from the sizes of what they are made of, and upper bounds of them, each (number of parts, batch)."""
    norms, bounds = zip(*(_combined(sizes, batch) for sizes in parts), strict=True)
    return jnp.stack(norms), jnp.stack(bounds)


def _combined(sizes: Sequence[Size], batch: int) -> tuple[Array, Array]:
    zero = jnp.zeros(batch, jnp.float32)
    square = sum((size.square for size in sizes), zero)
    # The norm as computed may be off by the rounding of `square`, what is summed by that of the sum, in each form's type.
    units = [_ROUNDING * float(jnp.finfo(size.square.dtype).eps) / 2 for size in sizes]
    spread = sum((unit * size.scale for unit, size in zip(units, sizes, strict=True)), zero)
    lost = sum((unit * jnp.sqrt(size.scale) + size.lost for unit, size in zip(units, sizes, strict=True)), zero)
    added = len(sizes) * float(jnp.finfo(square.dtype).eps) / 2
    unsure = max((size.unsure for size in sizes), default=0.0)
    return jnp.sqrt(square), jnp.sqrt(square + spread) * ((1 + added) * (1 + unsure)) + lost


@dataclasses.dataclass(frozen=True)
class Outer:
    """G[i, n] = a[i, n]ᵀ g[i, n] for each example i.

    Attributes:
      a: (batch, n, T, p).
      g: (batch, n, T, d).
      arrange: (n, p, d) → the shape of w.
    """

    a: Array
    g: Array
    arrange: Callable[[Array], Array]

    @property
    def product(self) -> Product:
        """Its sizes."""
        batch, n, positions, p = self.a.shape
        return Product(batch, n, positions, p, self.g.shape[-1])

    def written_out(self) -> Array:
        """(batch, n, p, d)."""
        return jnp.einsum("bntp,bntd->bnpd", self.a, self.g, precision=HIGHEST)

    def size(self, *, gram: bool) -> Size:
        """Of each G_i, by the Gram form or written out."""
        (sizes_a, unsure_a), (sizes_g, unsure_g) = sum_of_squares(self.a, 3), sum_of_squares(self.g, 3)
        lost = _norm(sizes_a) * math.sqrt(math.prod(self.g.shape[1:]))
        lost = vanishing(lost.dtype) * (lost + _norm(sizes_g) * math.sqrt(math.prod(self.a.shape[1:])))
        if self.a.shape[2] == 1:
            square = jnp.sum(sizes_a * sizes_g, (1, 2))
            unsure = unsure_a + unsure_g + self.a.shape[1] * float(jnp.finfo(square.dtype).eps) / 2
            return Size(square, jnp.zeros_like(lost), lost, unsure)
        lengths = jnp.sum(jnp.sqrt(sizes_a) * jnp.sqrt(sizes_g), 2)
        lost += biased(_norm(lengths**2), sum(self.a.shape[2:] + self.g.shape[3:]))
        if not gram:
            square, unsure = sum_of_squares(self.written_out())
            return Size(square, jnp.sum(lengths**2, 1), lost, unsure)
        aa = jnp.einsum("bntp,bnsp->bnts", self.a, self.a, precision=HIGHEST)
        gg = jnp.einsum("bntd,bnsd->bnts", self.g, self.g, precision=HIGHEST)
        return Size(jnp.maximum(jnp.sum(aa * gg, (1, 2, 3)), 0), jnp.sum(lengths**2, 1), lost)

    def weighted_sum(self, factors: Array) -> Array:
        """Σ_i factors_i G_i in the shape of w; examples with factor 0 count nothing, whatever they hold."""
        a, g = jnp.where((factors != 0)[:, None, None, None], self.a, 0), scaled(self.g, factors)
        if g.shape[3] < a.shape[3]:  # a CPU copies the transpose of what comes first
            return self.arrange(jnp.swapaxes(jnp.einsum("bntd,bntp->ndp", g, a, precision=HIGHEST), 1, 2))
        return self.arrange(jnp.einsum("bntp,bntd->npd", a, g, precision=HIGHEST))


@dataclasses.dataclass(frozen=True)
class Rows:
    """Row ids[i, t] of G_i receives g[i, t].

    Attributes:
      ids: (batch, T); those outside of the table receive nothing.
      g: (batch, T, d).
      arrange: (rows, d) → the shape of w.
      rows: of the table.
      distinct: whether no row has two positions in one example.
    """

    ids: Array
    g: Array
    arrange: Callable[[Array], Array]
    rows: int
    distinct: bool = False

    @property
    def route(self) -> Route:
        """How `condensed` and `size` go about it."""
        batch, positions, d = self.g.shape
        return lookup(batch, positions, d, self.rows)

    @property
    def lengths(self) -> Array:
        """Σ_t ‖g_t‖ over those inside, (batch,)."""
        return jnp.sum(jnp.where(self._inside, jnp.sqrt(sum_of_squares(self.g, 2)[0]), 0), 1)

    @property
    def _inside(self) -> Array:
        return (self.ids >= 0) & (self.ids < self.rows)

    def size(self) -> Size:
        """Of each G_i."""
        if self.distinct:
            return Size.written_out(jnp.where(self._inside[:, :, None], self.g, 0))
        same = (self.ids[:, :, None] == self.ids[:, None, :]) & self._inside[:, :, None]
        gram = jnp.einsum("btd,bsd->bts", self.g, self.g, precision=HIGHEST)
        square = jnp.maximum(jnp.sum(jnp.where(same, gram, 0), (1, 2)), 0)
        return Size(square, self.lengths**2, biased(self.lengths, sum(self.g.shape[1:])))

    def condensed(self) -> "Rows":
        """The same, but with what each row receives added up where that is less work than comparing all positions."""
        if self.route.how == "rows":
            return self
        batch, positions, d = self.g.shape
        length, every = min(positions, self.rows), jnp.arange(batch)[:, None]
        if self.rows <= positions:
            number, ids = self.ids, jnp.broadcast_to(jnp.arange(self.rows), (batch, self.rows))
        else:
            # The rows that receive something, numbered in their order.
            order = jnp.argsort(self.ids, 1)
            ascending = jnp.take_along_axis(self.ids, order, 1)
            first = jnp.pad(ascending[:, 1:] != ascending[:, :-1], ((0, 0), (1, 0)))
            numbered = jnp.cumsum(first, 1, dtype=jnp.int32)
            number = jnp.zeros((batch, positions), jnp.int32).at[every, order].set(numbered)
            ids = jnp.full((batch, length), self.rows, self.ids.dtype).at[every, number].set(self.ids)
        number = jnp.where(self._inside, number, length)
        g = jnp.zeros((batch, length, d), self.g.dtype).at[every, number].add(self.g, mode="drop")
        return dataclasses.replace(self, ids=ids, g=g, distinct=True)

    def weighted_sum(self, factors: Array) -> Array:
        """Σ_i factors_i G_i in the shape of w."""
        g = scaled(self.g, factors)
        ids = jnp.where(self.ids >= 0, self.ids, self.rows)
        table = jnp.zeros((self.rows, self.g.shape[-1]), g.dtype)
        return self.arrange(table.at[ids].add(g, mode="drop"))


Factored = Outer | Rows


def factored(site: Site, a: Values, g: Array) -> Factored | None:
    """The factored form of a site's per-example gradients; None where only writing them out is known.

    Args:
      site: of k nested scans.
      a: operands, each (batch, k dimensions of steps, ...).
      g: cotangent of y, (batch, *y).
    """
    rule = _RULES.get(site.primitive)
    return None if rule is None else rule(site, a, g)


def written_out(site: Site, a: Values, g: Array) -> Array:
    """Per-example gradients of w, (batch, *w)."""
    if (form := factored(site, a, g)) is not None and isinstance(form, Outer):
        return jax.vmap(form.arrange)(form.written_out())

    def one(a: Values, g: Array) -> Array:
        return jax.linear_transpose(lambda w: site.apply(a, w), site.w)(g.astype(site.y.dtype))[0]

    return _wide(jax.vmap(one)(a, g))


def scaled(each: Array, factors: Array) -> Array:
    """factors_i each_i, (batch, ...). 0 · NaN is NaN: rows that don't count are replaced."""
    rows = each.reshape(len(each), math.prod(each.shape[1:]))
    return jnp.where((factors != 0)[:, None], rows * factors[:, None], 0).reshape(each.shape)


def biased(lengths: Array, terms: int) -> Array:
    """What sums of so many equal terms may be off by, all in the same direction.

    Measured, with room: up to 1/20 of a unit in the last place for each term, in the dot products of a CPU that adds one after
    the other. A proof would need 1/2 for each, and for each pair of positions.
    """
    return lengths * (terms / 8 * float(jnp.finfo(lengths.dtype).eps) / 2)


def vanishing(dtype: Any) -> float:
    """An entry below it has a square that vanishes, so of a vector of n entries at most √n times this is missed."""
    return 1.01 * math.sqrt(float(jnp.finfo(dtype).tiny))


def _norm(sizes: Array) -> Array:
    """(batch,) from squares (batch, ...)."""
    return jnp.sqrt(jnp.sum(sizes, range(1, sizes.ndim)))


def wide_type(x: Array) -> Any:
    """The type in which gradients of `x` are summed: its own, but float32 at least."""
    dtype = jnp.result_type(x)
    narrow = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32  # 8 bits are promoted to nothing
    return jnp.float32 if narrow else jnp.promote_types(dtype, jnp.float32)


def _wide(x: Array) -> Array:
    return x.astype(wide_type(x))


def _dot_general(site: Site, a: Values, g: Array) -> Outer | None:
    (left, right), (left_batch, right_batch) = site.eqn.params["dimension_numbers"]
    if site.operand == 1:
        contracted, batched, w_contracted, w_batched = left, left_batch, right, right_batch
    else:
        contracted, batched, w_contracted, w_batched = right, right_batch, left, left_batch
    lead = 1 + len(site.scans)
    x = _wide(a[0])
    free = [i for i in range(x.ndim - lead) if i not in contracted and i not in batched]
    x = jnp.transpose(x, [*range(lead), *(i + lead for i in (*batched, *free, *contracted))])
    shape = x.shape[lead:]
    n, positions = math.prod(shape[: len(batched)]), math.prod(shape[len(batched) : len(batched) + len(free)])
    x = x.reshape(*x.shape[:lead], n, positions, math.prod(shape[len(batched) + len(free) :]))
    w_shape = site.w.shape[sum(site.scans) :]
    w_free = [i for i in range(len(w_shape)) if i not in w_contracted and i not in w_batched]
    d = math.prod(w_shape[i] for i in w_free)
    g = _wide(g)
    # The free dimensions of the left operand come first in y.
    g = (
        g.reshape(*g.shape[:lead], n, positions, d)
        if site.operand == 1
        else jnp.swapaxes(g.reshape(*g.shape[:lead], n, d, positions), -1, -2)
    )
    order = [*w_batched, *w_contracted, *w_free]

    def arrange(product: Array) -> Array:
        return jnp.transpose(product.reshape([w_shape[i] for i in order]), [order.index(i) for i in range(len(order))])

    return _steps_joined(site, x, g, arrange)


def _steps_joined(site: Site, a: Array, g: Array, arrange: Callable[[Array], Array]) -> Outer:
    """Joins the steps of scans with the products (own slices of w) or with the positions (the same w at each).

    Args:
      site: of k scans.
      a, g: (batch, k dimensions of steps, n, T, p or d).
      arrange: (n, p, d) → w of one step.
    """
    last = 1 + len(site.scans)
    own, same = ([i + 1 for i, sliced in enumerate(site.scans) if sliced is kind] for kind in (True, False))
    stacked, steps = ([a.shape[i] for i in some] for some in (own, same))

    def join(x: Array) -> Array:
        batch, n, positions, width = x.shape[0], *x.shape[last:]
        x = jnp.transpose(x, [0, *own, last, *same, last + 1, last + 2])
        return x.reshape(batch, math.prod(stacked) * n, math.prod(steps) * positions, width)

    def each(product: Array) -> Array:
        product = product.reshape(math.prod(stacked), a.shape[last], *product.shape[1:])
        return jax.vmap(arrange)(product).reshape(site.w.shape)

    return Outer(join(a), join(g), each if own else arrange)


def has_patches(convolution: Any) -> bool:
    """Whether an equation's kernel meets patches of its input, and so has a factored gradient."""
    params = convolution.params
    return params["batch_group_count"] == 1 and all(d == 1 for d in params["lhs_dilation"])


def _convolution(site: Site, a: Values, g: Array) -> Outer | None:
    params = site.eqn.params
    layout, groups = params["dimension_numbers"], params["feature_group_count"]
    if not has_patches(site.eqn):
        return None
    lead, w_shape = g.shape[: 1 + len(site.scans)], site.w.shape[sum(site.scans) :]
    x, g = (_wide(x).reshape(math.prod(lead), *x.shape[len(lead) :]) for x in (a[0], g))
    x, g = _channels_last(x, layout.lhs_spec), _channels_last(g, layout.out_spec)
    batch, images, channels = x.shape[0], x.shape[1], x.shape[-1]
    kernel = [w_shape[i] for i in layout.rhs_spec[2:]]
    outputs, out_channels = g.shape[2:-1], g.shape[-1]
    padding = [(0, 0, 0), (0, 0, 0), *((low, high, 0) for low, high in params["padding"]), (0, 0, 0)]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), padding)
    # x[:, :, rows of the patch, columns of the patch, …]: a gather; strided slices and convolutions take twice as long on CPU.
    space, index = len(kernel), []
    for axis, (n, k) in enumerate(zip(outputs, kernel, strict=True)):
        starts, within = params["window_strides"][axis] * np.arange(n), params["rhs_dilation"][axis] * np.arange(k)
        shape = [1] * (2 * space)
        shape[axis], shape[space + axis] = n, k
        index.append((starts[:, None] + within).reshape(shape))
    x = x[(slice(None), slice(None), *index)]
    positions = images * math.prod(outputs)
    x = x.reshape(batch, positions, math.prod(kernel), groups, channels // groups)
    x = jnp.moveaxis(x, 3, 1).reshape(batch, groups, positions, math.prod(kernel) * (channels // groups))
    g = jnp.moveaxis(g.reshape(batch, positions, groups, out_channels // groups), 2, 1)

    def arrange(product: Array) -> Array:
        product = product.reshape(groups, *kernel, channels // groups, out_channels // groups)
        product = jnp.moveaxis(product, 0, -2).reshape(*kernel, channels // groups, out_channels)
        order = [*layout.rhs_spec[2:], layout.rhs_spec[1], layout.rhs_spec[0]]
        return jnp.transpose(product, [order.index(i) for i in range(len(order))])

    x, g = (x.reshape(*lead, *x.shape[1:]) for x in (x, g))
    return _steps_joined(site, x, g, arrange)


def _channels_last(x: Array, spec: tuple[int, ...]) -> Array:
    """(batch, images, space, channels) from a batch of arrays laid out as `spec` (images, channels, space) says."""
    return jnp.transpose(x, [0, *(i + 1 for i in (spec[0], *spec[2:], spec[1]))])


def _gather(site: Site, a: Values, g: Array) -> Rows | None:
    numbers, table = site.eqn.params["dimension_numbers"], site.w.shape
    clips = "CLIP" in str(site.eqn.params["mode"]).upper()
    collapsed, starts = tuple(numbers.collapsed_slice_dims), tuple(numbers.start_index_map)
    last = len(site.y.shape) - len(site.scans)
    rows_only = (
        tuple(site.eqn.params["slice_sizes"]) == (1, *table[1:])
        # Starts in other dimensions are clipped to 0, or may point outside.
        and (starts == (0,) or (clips and 0 in starts))
        and collapsed in ((), (0,))
        and not getattr(numbers, "operand_batching_dims", ())
        # The dimensions of a row come last in y.
        and tuple(numbers.offset_dims) == tuple(range(last - len(table) + len(collapsed), last))
    )
    if any(site.scans) or not rows_only or len(a) != 1:
        return None
    ids = _as_ids(a[0][..., starts.index(0)])
    return _rows(site, jnp.clip(ids, 0, table[0] - 1) if clips else ids, g)


def _dynamic_slice(site: Site, a: Values, g: Array) -> Rows | None:
    """Whole rows from one on: a lookup of each of them."""
    sizes, table = site.eqn.params["slice_sizes"], site.w.shape
    if any(site.scans) or not table or tuple(sizes[1:]) != table[1:] or 1 not in site.data:
        return None
    first = jnp.clip(_as_ids(a[site.data.index(1)]), 0, table[0] - sizes[0])
    return _rows(site, first[..., None] + jnp.arange(sizes[0]).reshape(*[1] * first.ndim, sizes[0]), g)


def _as_ids(index: Array) -> Array:
    """Integers that the number of rows fits in."""
    return index.astype(jnp.int32) if index.dtype.itemsize < 4 else index


def _rows(site: Site, ids: Array, g: Array) -> Rows:
    table = site.w.shape
    ids = ids.reshape(len(ids), math.prod(ids.shape[1:]))
    return Rows(ids, _wide(g).reshape(*ids.shape, math.prod(table[1:])), lambda rows: rows.reshape(table), table[0])


_RULES: dict[str, Callable[[Site, Values, Array], Factored | None]] = {
    "dot_general": _dot_general,
    "conv_general_dilated": _convolution,
    "gather": _gather,
    "dynamic_slice": _dynamic_slice,
}
