r"""One factored form of a parameter's gradient where the parameter is used at several places.

The gradient is the sum over the places, and the norm of a sum has cross terms:

* Products Σ_t a_tᵀ g_t of one layout are one product with more positions. A use of wᵀ is one of w with a and g exchanged.
* Lookups of rows are one lookup with more positions.
* A product beside a lookup (an embedding that is the last layer too): row id_t of the lookup receives h_t, so the cross term is
  ⟨Σ_s a_sᵀ g_s, Σ_t e_{id_t}ᵀ h_t⟩ = Σ_{s,t} a_s[id_t] ⟨g_s, h_t⟩. No one-hot vectors, and nothing of the table's size.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from marauder_dp.cuts.factors import HIGHEST, Factored, Outer, Rows, Size, biased
from marauder_dp.cuts.sums import sum_of_squares

Array = jax.Array
_DIGIT = 2**20  # whole numbers up to here are exact in float32


def joined(forms: Sequence[Factored]) -> tuple[Factored, Rows | None] | None:
    """One form for all uses of a parameter, and perhaps rows beside it; None where they don't fit together.

    Args:
      forms: of each use; `arrange` leads to the parameter's own shape.
    """
    products = [form for form in forms if isinstance(form, Outer)]
    lookups = [form for form in forms if isinstance(form, Rows)]
    product = _one_product(products) if products else None
    if (products and product is None) or len({form.rows for form in lookups}) > 1:
        return None
    if not lookups:
        return None if product is None else (product, None)
    ids, g = (jnp.concatenate([getattr(form, name) for form in lookups], 1) for name in ("ids", "g"))
    rows = dataclasses.replace(lookups[0], ids=ids, g=g)
    table = _layout(rows, (rows.rows, g.shape[-1]))
    if any((_layout(form, (rows.rows, g.shape[-1])) != table).any() for form in lookups[1:]):
        return None
    if product is None:
        return rows, None
    for turned in (product, _transposed(product)):
        if _shape(turned) == (1, rows.rows, g.shape[-1]) and (_layout(turned, _shape(turned)) == table).all():
            return turned, rows
    return None


def together(size: Size, product: Outer, rows: Rows) -> Size:
    """Of the sum of a product, which has `size`, and of rows in its layout."""
    own = rows.size()
    inside = ((rows.ids >= 0) & (rows.ids < rows.rows))[:, None, :]
    at = jnp.take_along_axis(product.a[:, 0], jnp.where(inside, rows.ids[:, None, :], 0).astype(jnp.int32), 2)
    inner = jnp.einsum("bsd,btd->bst", product.g[:, 0], rows.g, precision=HIGHEST)
    cross = jnp.sum(jnp.where(inside, at * inner, 0), (1, 2))
    # What terms of the cross term, and of both squares, are made of: they may cancel.
    lengths_a, lengths_g = (jnp.sqrt(sum_of_squares(x, 3)[0]) for x in (product.a, product.g))
    lengths = jnp.sum(lengths_a * lengths_g, (1, 2)) + jnp.sqrt(own.scale)
    lost = size.lost + own.lost + biased(lengths, product.a.shape[2] + sum(rows.g.shape[1:]))
    return Size(jnp.maximum(size.square + own.square + 2 * cross, 0), lengths**2, lost)


def _one_product(products: Sequence[Outer]) -> Outer | None:
    """All of them as one, in the layout of the first."""
    first, *others = products
    wanted = _layout(first, _shape(first))
    same = [first]
    for other in others:
        fitting = [form for form in (other, _transposed(other)) if _shape(form) == _shape(first)]
        form = next((form for form in fitting if (_layout(form, _shape(form)) == wanted).all()), None)
        if form is None:
            return None
        same.append(form)
    a, g = (jnp.concatenate([getattr(form, name) for form in same], 2) for name in ("a", "g"))
    return dataclasses.replace(first, a=a, g=g)


def _shape(form: Outer) -> tuple[int, int, int]:
    return form.a.shape[1], form.a.shape[3], form.g.shape[3]


def _transposed(form: Outer) -> Outer:
    return Outer(form.g, form.a, lambda product: form.arrange(jnp.swapaxes(product, 1, 2)))


def _layout(form: Factored, shape: tuple[int, ...]) -> np.ndarray:
    """Where each entry of the parameter lies in a gradient of `shape`."""
    place = np.arange(int(np.prod(shape))).reshape(shape)
    with jax.ensure_compile_time_eval():
        high, low = (np.asarray(form.arrange(jnp.asarray(part, jnp.float32))) for part in divmod(place, _DIGIT))
    return high.astype(np.int64) * _DIGIT + low.astype(np.int64)
