r"""Factored forms of a parameter's gradient where the parameter is used at several places.

The gradient is the sum over the places, and the norm of a sum has cross terms:

* Places that use different entries (layers stacked in one array, queries beside keys) have none: each has a form of its own.
* Products Σ_t a_tᵀ g_t of one layout are one product with more positions. A use of wᵀ is one of w with a and g exchanged.
* Lookups of rows are one lookup with more positions.
* A product beside a lookup (an embedding that is the last layer too): row id_t of the lookup receives h_t, so the cross term is
  ⟨Σ_s a_sᵀ g_s, Σ_t e_{id_t}ᵀ h_t⟩ = Σ_{s,t} a_s[id_t] ⟨g_s, h_t⟩. No one-hot vectors, and nothing of the table's size.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from marauder_dp.cuts.factors import HIGHEST, Factored, Outer, Rows, Size, biased
from marauder_dp.cuts.sums import sum_of_squares

Array = jax.Array
_DIGIT = 24  # bits of whole numbers that are exact in float32


class Part(NamedTuple):
    """One form for all uses of some of a parameter's entries.

    Attributes:
      form: arranged as the whole parameter.
      beside: rows of the same entries, added to it.
      uses: how many.
    """

    form: Factored
    beside: Rows | None = None
    uses: int = 1

    def condensed(self) -> "Part":
        """With lookups `Rows.condensed`."""
        form = self.form.condensed() if isinstance(self.form, Rows) else self.form
        return self._replace(form=form, beside=self.beside and self.beside.condensed())


class _Use(NamedTuple):
    form: Factored
    places: np.ndarray  # where in the parameter each entry of the form's gradient belongs


def joined(forms: Mapping[int, Factored]) -> dict[int, Part] | None:
    """The parts of a parameter's gradient, by their first use; no two share an entry. None where uses don't fit together.

    Args:
      forms: of each use, with no entry of the parameter twice; `arrange` leads to the parameter's own shape.
    """
    if len(forms) == 1:
        return {i: Part(form) for i, form in forms.items()}
    uses = {i: _Use(form, _places(form)) for i, form in forms.items()}
    owner = np.full(1 + max(use.places.max(initial=0) for use in uses.values()), -1, np.int32)
    sharing: dict[int, list[_Use]] = {}
    for i, use in uses.items():
        owners = owner[use.places]
        if owners.size and owners.min() != owners.max():
            return None
        first = i if owners.size == 0 or owners.flat[0] < 0 else int(owners.flat[0])
        owner[use.places] = first
        sharing.setdefault(first, []).append(use)
    parts = {i: _one(same) for i, same in sharing.items()}
    found = {i: part for i, part in parts.items() if part is not None}
    return found if len(found) == len(parts) else None


def _one(uses: Sequence[_Use]) -> Part | None:
    """One form for uses of the same entries, or of some of them; None where they don't fit together."""
    products = [use for use in uses if isinstance(use.form, Outer)]
    lookups = [use for use in uses if isinstance(use.form, Rows)]
    product = _one_product(products) if products else None
    if (products and product is None) or not all(_alike(use, lookups[0]) for use in lookups):
        return None
    if not lookups:
        return None if product is None else Part(product.form, None, len(uses))
    ids, g = (jnp.concatenate([getattr(use.form, name) for use in lookups], 1) for name in ("ids", "g"))
    assert isinstance(lookups[0].form, Rows)
    rows = dataclasses.replace(lookups[0].form, ids=ids, g=g)
    if product is None:
        return Part(rows, None, len(uses))
    table = _Use(rows, lookups[0].places[None])
    form = next((turned.form for turned in (product, _transposed(product)) if _alike(turned, table)), None)
    return None if form is None else Part(form, rows, len(uses))


def together(size: Size, product: Outer, rows: Rows) -> Size:
    """Of the sum of a product, which has `size`, and of rows in its layout."""
    own = rows.size()
    inside = ((rows.ids >= 0) & (rows.ids < rows.rows))[:, None, :]
    at = jnp.take_along_axis(product.a[:, 0], jnp.where(inside, rows.ids[:, None, :], 0).astype(jnp.int32), 2)
    inner = jnp.einsum("bsd,btd->bst", product.g[:, 0], rows.g, precision=HIGHEST)
    cross = jnp.sum(jnp.where(inside, at * inner, 0), (1, 2))
    # What terms of the cross term, and of both squares, are made of: they may cancel.
    lengths_a, lengths_g = (jnp.sqrt(sum_of_squares(x, 3)[0]) for x in (product.a, product.g))
    lengths = jnp.sum(lengths_a * lengths_g, (1, 2)) + rows.lengths
    # Each by itself, as the cross term may be negative.
    unsure = size.unsure * jnp.sqrt(size.square) + own.unsure * jnp.sqrt(own.square)
    lost = size.lost + unsure + own.lost + biased(lengths, product.a.shape[2] + sum(rows.g.shape[1:]))
    return Size(jnp.maximum(size.square + own.square + 2 * cross, 0), lengths**2, lost)


def _one_product(products: Sequence[_Use]) -> _Use | None:
    """All of them as one, in the layout of the first."""
    first, *others = products
    same = [first.form]
    for other in others:
        form = next((turned.form for turned in (other, _transposed(other)) if _alike(turned, first)), None)
        if form is None:
            return None
        same.append(form)
    a, g = (jnp.concatenate([getattr(form, name) for form in same], 2) for name in ("a", "g"))
    return _Use(Outer(a, g, first.form.arrange), first.places)


def _alike(one: _Use, other: _Use) -> bool:
    """Whether their gradients have the same entries at the same places."""
    return np.array_equal(one.places, other.places)


def _transposed(use: _Use) -> _Use:
    """A product with a and g exchanged."""
    form = use.form
    assert isinstance(form, Outer)
    turned = Outer(form.g, form.a, lambda product: form.arrange(jnp.swapaxes(product, 1, 2)))
    return _Use(turned, np.swapaxes(use.places, 1, 2))


def _places(form: Factored) -> np.ndarray:
    """Where in the parameter each entry of a gradient belongs, in the shape that `form.arrange` takes."""
    if isinstance(form, Outer):
        shape: tuple[int, ...] = (form.a.shape[1], form.a.shape[3], form.g.shape[3])
    else:
        shape = (form.rows, form.g.shape[-1])
    product = jax.ShapeDtypeStruct(shape, jnp.float32)
    whole = jax.eval_shape(form.arrange, product)
    back = jax.linear_transpose(form.arrange, product)
    count = np.int32 if whole.size < 2**31 else np.int64

    def moved(digits: np.ndarray) -> np.ndarray:
        return np.asarray(back(jnp.asarray(digits.reshape(whole.shape), whole.dtype))[0]).astype(count)

    with jax.ensure_compile_time_eval():
        every = np.arange(whole.size, dtype=count)
        places = moved(every & ((1 << _DIGIT) - 1))
        if whole.size >> _DIGIT:
            places |= moved(every >> _DIGIT) << _DIGIT
    return places
