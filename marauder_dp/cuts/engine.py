"""Norms and clipped sums of per-example gradients from one forward and one backward pass.

1. The loss of one example is traced and cut (`walker`).
2. One vmapped vector-Jacobian product with respect to the cuts gives every site's cotangents; with the recorded operands they
   hold all per-example gradients in factored form (`factors`).
3. Sites are grouped by the parameters they share. A parameter whose sites only move and cast its entries is never written out
   if its rules have forms that need not be, and that fit together (`tied`); `routes` chooses how. Otherwise the
   per-example gradients of the group are written out, added over its sites, and carried back to the parameters. A site of one
   number that parameters alone determine (a penalty) adds a direction that all examples share (`shared`).
4. The clipped sum is Σ c_i G_i from the same factors: no second backward pass (book-keeping: Bu et al. 2023).

Clipping uses an upper bound of the norm that covers the rounding of forms in which terms cancel.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from marauder_dp.cuts import routes
from marauder_dp.cuts.factors import HIGHEST, Factored, Outer, Size, combined, factored, scaled, wide_type, written_out
from marauder_dp.cuts.shared import Shared, beside
from marauder_dp.cuts.tied import Part, joined, together
from marauder_dp.cuts.values import Data, Param
from marauder_dp.cuts.walker import Site, UncuttableError, Walk

Array = jax.Array
PyTree = Any


@dataclasses.dataclass(frozen=True)
class Group:
    """Parameters that share sites, directly or through others.

    Attributes:
      leaves: numbers of the parameters.
      sites: numbers of the sites.
      moved: whether each site's w only moves and casts the entries of one parameter.
      once: whether, besides, no site has an entry of the parameter in it more than once.
    """

    leaves: tuple[int, ...]
    sites: tuple[int, ...]
    moved: bool
    once: bool


@dataclasses.dataclass(frozen=True)
class Cut:
    """A loss of one example, cut: all that depends on shapes alone.

    Attributes:
      leaves: the parameters.
      sites: where they meet data.
      groups: of parameters; those that meet no data are in none.
      shared: sites where what parameters alone determine comes down to one number; in no group.
      jaxpr: of (parameters, example).
    """

    leaves: list[Array]
    sites: list[Site]
    groups: list[Group]
    shared: list[int]
    jaxpr: Any

    def weights(self, leaves: Sequence[Array], wanted: Sequence[int]) -> list[Array]:
        """What the sites `wanted` use, from the parameters."""
        walk = Walk()
        _walked(walk, self.jaxpr, leaves, None)
        return [walk.sites[i].param.value for i in wanted]

    def weights_of(self, chosen: Sequence[int], wanted: Sequence[int]) -> Callable[[Sequence[Array]], list[Array]]:
        """`weights` as a function of the `chosen` parameters alone."""

        def weights(some: Sequence[Array]) -> list[Array]:
            every = list(self.leaves)
            for i, leaf in zip(chosen, some, strict=True):
                every[i] = leaf
            return self.weights(every, wanted)

        return weights

    def loss(self, example: Sequence[Array], cuts: Sequence[Array]) -> tuple[Array, list[tuple[Any, ...]]]:
        """The loss of one example with `cuts` added at the sites; and the sites' operands."""
        walk = Walk(cuts)
        return _walked(walk, self.jaxpr, self.leaves, example), walk.operands


def cut(loss_fn: Callable[[PyTree, PyTree], Array], params: PyTree, example: PyTree) -> Cut:
    """Traces and cuts a loss; `example` may be shapes.

    Raises:
      UncuttableError: it can't be cut.
    """
    treedef: Any
    leaves, treedef = jax.tree.flatten(params)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    data_def: Any
    data, data_def = jax.tree.flatten(example)
    flat = lambda ls, xs: loss_fn(treedef.unflatten(ls), data_def.unflatten(xs))  # noqa: E731
    jaxpr = jax.make_jaxpr(flat)(leaves, data)
    if jaxpr.effects:
        raise UncuttableError("the loss writes into arrays of its own (jax.new_ref)")
    walk = Walk()
    _walked(walk, jaxpr, leaves, None)
    shared = _shared(walk.sites)
    return Cut(leaves, walk.sites, _grouped(walk.sites, shared), shared, jaxpr)


def _walked(walk: Walk, jaxpr: Any, leaves: Sequence[Array], example: Sequence[Array] | None) -> Array:
    params = [Param(leaf, frozenset([i]), lambda x: x) for i, leaf in enumerate(leaves)]
    rest = len(jaxpr.jaxpr.invars) - len(leaves)
    data = [Data() for _ in range(rest)] if example is None else [Data(x) for x in example]
    (loss,) = walk.run(jaxpr.jaxpr, jaxpr.consts, [*params, *data])
    if isinstance(loss, Param) and loss.leaves:
        loss = walk.identity(loss)
    return loss.value if isinstance(loss, Data | Param) else loss


def _shared(sites: Sequence[Site]) -> list[int]:
    """See `Cut.shared`; but for those that have a parameter in common, which would have cross terms."""
    found = [i for i, site in enumerate(sites) if site.w.size == 1 and site.param.moved is None]
    owners = collections.Counter(leaf for i in found for leaf in sites[i].param.leaves)
    return [i for i in found if all(owners[leaf] == 1 for leaf in sites[i].param.leaves)]


def _grouped(sites: Sequence[Site], shared: Sequence[int]) -> list[Group]:
    found: list[tuple[frozenset[int], list[int]]] = []
    for number, site in enumerate(sites):
        if number in shared:
            continue
        touching = [group for group in found if group[0] & site.param.leaves]
        found = [group for group in found if group not in touching]
        merged = frozenset().union(site.param.leaves, *(group[0] for group in touching))
        found.append((merged, sorted([number, *(i for group in touching for i in group[1])])))
    groups = []
    for leaves, numbers in found:
        moved = all(sites[i].param.moved is not None for i in numbers)
        once = moved and all(sites[i].param.once for i in numbers)
        groups.append(Group(tuple(sorted(leaves)), tuple(numbers), moved, once))
    return groups


class Gradients:
    """Per-example gradients of a batch, factored where possible: their norms, and weighted sums of them.

    Attributes:
      cut: the loss, cut.
      losses: (batch,).
      parts: factored gradients, by their first site.
      shared: what is added to them, by parameter.
      routes: how products are treated, by their first site.
    """

    def __init__(self, loss_fn: Callable[[PyTree, PyTree], Array], params: PyTree, batch: PyTree, *, keep: int | None = None):
        """One forward and one backward pass.

        Args:
          loss_fn: of one example.
          params: pytree of floating-point arrays.
          batch: pytree of arrays (batch, ...).
          keep: bytes of written-out gradients that may be held between norms and sums, besides what can't be avoided;
            by default as much as the cotangents take, which the backward pass holds anyhow.
        """
        example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x)[1:], jnp.result_type(x)), batch)
        self._treedef: Any = jax.tree.structure(params)
        self.cut = found = cut(loss_fn, params, example)
        data = jax.tree.leaves(batch)
        self._size = jnp.shape(data[0])[0]
        zeros = [jnp.zeros((self._size, *site.y.shape), site.y.dtype) for site in found.sites]
        self.losses, pull, self._operands = jax.vjp(lambda cuts: jax.vmap(found.loss)(data, cuts), zeros, has_aux=True)
        (self._cotangents,) = pull(jnp.ones_like(self.losses))
        self._prepare(keep)

    def _prepare(self, keep: int | None) -> None:
        found = self.cut
        self.parts: dict[int, Part] = {}
        self._full: dict[int, Array] = {}  # by parameter: (batch, *shape), wide
        self._kept: dict[int, Array] = {}  # by site: products written out
        for group in found.groups:
            parts = self._factored(group) if group.once else None
            if parts is not None:
                self.parts |= {i: part.condensed() for i, part in parts.items()}
            elif group.moved:
                self._add_moved(group)
        rest = [group for group in found.groups if not group.moved]
        if rest:
            self._carry_back(rest)
        self.shared: dict[int, Shared] = {}
        if found.shared:
            self._share()
        products = {i: part.form for i, part in self.parts.items() if isinstance(part.form, Outer)}
        works = [form.product for form in products.values()]
        if keep is None:
            keep = sum(form.g.nbytes for form in products.values())
        self.routes = dict(zip(products, routes.choose(works, keep), strict=True))
        for i, route in self.routes.items():
            if route.how == "kept":
                self._kept[i] = products[i].written_out()

    def _share(self) -> None:
        """What sites of one number add; no two have a parameter in common, so one derivative gives every direction."""
        found = self.cut
        sites = [found.sites[i] for i in found.shared]
        leaves = sorted(leaf for site in sites for leaf in site.param.leaves)
        weights, pull = jax.vjp(found.weights_of(leaves, found.shared), [found.leaves[i] for i in leaves])
        (directions,) = pull([jnp.ones_like(w) for w in weights])
        direction_of = dict(zip(leaves, directions, strict=True))
        for number, site in zip(found.shared, sites, strict=True):
            factor = written_out(site, self._operands[number], self._cotangents[number]).reshape(self._size)
            for leaf in sorted(site.param.leaves):
                dtype = wide_type(direction_of[leaf])
                shared = Shared(factor.astype(dtype), direction_of[leaf].astype(dtype))
                if leaf in self._full:
                    self._full[leaf] += shared.written_out()
                else:
                    self.shared[leaf] = shared

    def parts_of(self, group: Group) -> dict[int, Part]:
        """Those of its sites; none where the gradients are written out."""
        return {i: self.parts[i] for i in group.sites if i in self.parts}

    def _factored(self, group: Group) -> dict[int, Part] | None:
        """The gradient of a parameter, in parts; None where there is no shorter form."""
        (leaf,) = group.leaves
        forms = {}
        for i in group.sites:
            site = self.cut.sites[i]
            form = factored(site, self._operands[i], self._cotangents[i])
            if form is None:
                return None
            forms[i] = _in_own_shape(form, _back(site, self.cut.leaves[leaf]), wide_type(self.cut.leaves[leaf]))
        return joined(forms)

    def _add_moved(self, group: Group) -> None:
        (leaf,) = group.leaves
        like = self.cut.leaves[leaf]
        total = jnp.zeros((self._size, *like.shape), wide_type(like))
        for i in group.sites:
            each = written_out(self.cut.sites[i], self._operands[i], self._cotangents[i])
            total += jax.vmap(_back(self.cut.sites[i], like))(each.astype(total.dtype))
        self._full[leaf] = total

    def _carry_back(self, groups: Sequence[Group]) -> None:
        """Gradients of groups whose w is computed: through the derivative of that computation, for each example."""
        found = self.cut
        sites = [i for group in groups for i in group.sites]
        leaves = [i for group in groups for i in group.leaves]

        _, pull = jax.vjp(found.weights_of(leaves, sites), [found.leaves[i] for i in leaves])
        full = [written_out(found.sites[i], self._operands[i], self._cotangents[i]) for i in sites]
        each = [g.astype(found.sites[i].w.dtype) for i, g in zip(sites, full, strict=True)]
        (gradients,) = jax.vmap(pull)(each)
        for i, gradient in zip(leaves, gradients, strict=True):
            self._full[i] = gradient.astype(wide_type(gradient))

    def norms(self, parts: Sequence[int] | None = None) -> tuple[Array, Array]:
        """‖g_i‖ and an upper bound of it that rounding can't pass, each (number of parts, batch).

        Args:
          parts: to which part of the gradient each parameter belongs, 0, 1, …; by default all to one.
        """
        parts = [0] * len(self.cut.leaves) if parts is None else parts
        sizes: list[list[Size]] = [[] for _ in range(max(parts, default=0) + 1)]
        for group in self.cut.groups:
            factored, first = self.parts_of(group), group.leaves[0]
            found = [self._size_of(i) for i in factored]
            if found and first in self.shared:
                forms = [(size, *self._form(i)) for size, i in zip(found, factored, strict=True)]
                found = [beside(self.shared[first], forms)]
            sizes[parts[first]] += found
            if not factored:
                for leaf in group.leaves:
                    sizes[parts[leaf]].append(Size.written_out(self._full[leaf]))
        for leaf in self.shared.keys() - {leaf for group in self.cut.groups for leaf in group.leaves}:
            sizes[parts[leaf]].append(self.shared[leaf].size())
        return combined(sizes, self._size)

    def _form(self, site: int) -> tuple[Part, Array | None]:
        return self.parts[site], self._kept.get(site)

    def _size_of(self, site: int) -> Size:
        form, beside, _ = self.parts[site]
        if not isinstance(form, Outer):
            return form.size()
        kept = site in self._kept
        size = Size.written_out(self._kept[site]) if kept else form.size(gram=self.routes[site].how == "gram")
        return size if beside is None else together(size, form, beside)

    def weighted_sum(self, factors: Array, parts: Sequence[int] | None = None) -> PyTree:
        """Σ_i factors_i g_i, a pytree like the parameters; examples with factor 0 count nothing, whatever they hold.

        Args:
          factors: (number of parts, batch).
          parts: as for `norms`.
        """
        parts = [0] * len(self.cut.leaves) if parts is None else parts
        sums = [jnp.zeros(leaf.shape, wide_type(leaf)) for leaf in self.cut.leaves]
        for group in self.cut.groups:
            factored = self.parts_of(group)
            for leaf in group.leaves:
                weights = factors[parts[leaf]].astype(sums[leaf].dtype)  # beside parameters in float64 all are
                if factored:
                    terms = [self._sum_of(i, weights).astype(weights.dtype) for i in factored]
                    sums[leaf] = sum(terms, sums[leaf])
                else:
                    sums[leaf] = _weighted(weights, self._full[leaf])
        for leaf, shared in self.shared.items():
            sums[leaf] += shared.weighted_sum(factors[parts[leaf]].astype(sums[leaf].dtype))
        return self._treedef.unflatten(sums)

    def _sum_of(self, site: int, factors: Array) -> Array:
        form, beside, _ = self.parts[site]
        kept = self._kept.get(site)
        total = form.weighted_sum(factors) if kept is None else form.arrange(_weighted(factors, kept))
        return total if beside is None else total + beside.weighted_sum(factors)


def _weighted(factors: Array, each: Array) -> Array:
    # Scaled before it is summed, as factored forms are: a bias shares the array with the kernel before it.
    return jnp.tensordot(jnp.ones_like(factors), scaled(each, factors), 1, precision=HIGHEST)


def _in_own_shape(form: Factored, back: Callable[[Array], Array], dtype: Any) -> Factored:
    """The form, arranged as the parameter instead of as w."""
    return dataclasses.replace(form, arrange=lambda product: back(form.arrange(product).astype(dtype)))


def _back(site: Site, leaf: Array) -> Callable[[Array], Array]:
    """From a gradient of w to that of the parameter, whose entries w only moves."""
    moved = site.param.moved
    assert moved is not None
    like = jax.ShapeDtypeStruct(leaf.shape, wide_type(leaf))
    return lambda g: jax.linear_transpose(moved, like)(g)[0]
