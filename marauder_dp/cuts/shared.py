r"""What parameters alone determine, where it comes down to one number: a penalty Σ w² in the loss, a scale softplus(s).

Such a number r(w) meets data at a site like any other, with a cotangent c that is a number too. So the gradient of example i
has the term c_i D, D = ∇r, a direction that all examples share, and beside a factored form with gradient G_i

    ‖G_i + c_i D‖² = ‖G_i‖² + 2 c_i ⟨G_i, D⟩ + c_i² ‖D‖²,   ⟨Σ_t a_tᵀ g_t, D⟩ = Σ_t ⟨a_t D, g_t⟩,

about a forward pass of the product; for rows of a table Σ_t ⟨g_t, D[id_t]⟩.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from marauder_dp.cuts.factors import HIGHEST, Outer, Rows, Size, vanishing
from marauder_dp.cuts.sums import sum_of_squares
from marauder_dp.cuts.tied import Part

Array = jax.Array


class Shared(NamedTuple):
    """factor[i] · direction for each example i; (batch,), and the parameter's shape."""

    factor: Array
    direction: Array

    def size(self) -> Size:
        """Of each."""
        (squared,), unsure = sum_of_squares(self.direction[None])
        factor = jnp.abs(self.factor)
        lost = vanishing(factor.dtype) * (factor * math.sqrt(self.direction.size) + jnp.sqrt(squared))
        square = factor * factor * squared
        return Size(square, jnp.zeros_like(square), lost, unsure + float(jnp.finfo(square.dtype).eps))

    def written_out(self) -> Array:
        """(batch, *shape)."""
        return self.factor.reshape(-1, *[1] * self.direction.ndim) * self.direction

    def weighted_sum(self, factors: Array) -> Array:
        """Σ_i factors_i of them; examples with factor 0 count nothing, whatever they hold."""
        return jnp.sum(jnp.where(factors != 0, factors * self.factor, 0)) * self.direction


def beside(shared: Shared, parts: Sequence[tuple[Size, Part, Array | None]]) -> Size:
    """Of the sum of a shared direction and the parts of the same parameter, which have no entry in common.

    Args:
      shared: the direction.
      parts: size, form, and per-example gradients (batch, n, p, d) where they are kept and summed as they stand.
    """
    own = shared.size()
    sizes = [size for size, _, _ in parts]
    found = [_inner(shared.direction, part, kept) for _, part, kept in parts]
    cross = shared.factor * sum((inner for inner, _ in found), jnp.zeros_like(shared.factor))
    # What terms of each square, and of the cross term, are made of: they may cancel.
    lengths, length = jnp.sqrt(sum(jnp.maximum(size.scale, size.square) for size in sizes)), jnp.sqrt(own.square)
    lost = sum((size.lost + size.unsure * jnp.sqrt(size.square) for size in [*sizes, own]), jnp.zeros_like(length))
    square = sum((size.square for size in sizes), own.square)
    # The cross term may be off by what `biased` says of its terms.
    scale = (lengths + length) ** 2 + max(terms for _, terms in found) / 8 * lengths * length
    return Size(jnp.maximum(square + 2 * cross, 0), scale, lost)


def _inner(direction: Array, part: Part, kept: Array | None) -> tuple[Array, int]:
    """⟨G_i, D⟩, (batch,), and how many terms are added one after the other."""
    form = part.form
    if isinstance(form, Rows):
        return _inner_of_rows(direction, form)
    shape = form.a.shape[1], form.a.shape[3], form.g.shape[3]
    own = _arranged(direction, form, shape)
    if kept is not None:
        inner = jnp.einsum("bnpd,npd->bnp", kept, own, precision=HIGHEST)
    else:
        inner = jnp.einsum(
            "bntd,bntd->bnt", jnp.einsum("bntp,npd->bntd", form.a, own, precision=HIGHEST), form.g, precision=HIGHEST
        )
    total, terms = jnp.sum(inner, (1, 2)), sum(shape) + form.a.shape[2]
    if part.beside is None:
        return total, terms
    more, rows = _inner_of_rows(direction, part.beside, form)
    return total + more, terms + rows


def _inner_of_rows(direction: Array, rows: Rows, product: Outer | None = None) -> tuple[Array, int]:
    """`product`: in whose layout the rows are, if not their own."""
    table = (
        _arranged(direction, rows, (rows.rows, rows.g.shape[-1]))
        if product is None
        else _arranged(direction, product, (1, rows.rows, rows.g.shape[-1]))[0]
    )
    inside = (rows.ids >= 0) & (rows.ids < rows.rows)
    at = table[jnp.where(inside, rows.ids, 0)]
    inner = jnp.einsum("btd,btd->bt", at, rows.g, precision=HIGHEST)
    return jnp.sum(jnp.where(inside, inner, 0), 1), sum(rows.g.shape[1:])


def _arranged(direction: Array, form: Outer | Rows, shape: tuple[int, ...]) -> Array:
    """The direction's entries in the layout of a form's own gradient."""
    (own,) = jax.linear_transpose(form.arrange, jax.ShapeDtypeStruct(shape, direction.dtype))(direction)
    return jnp.asarray(own)
