"""Which way to take for each parameter: the cheapest exact one that memory allows, from operations and bytes moved.

For a product at n · T places with sizes p and d, and a batch of B:

| route | norm | sum | holds until the sum |
|---|---|---|---|
| factors (T = 1) | B n (p + d) | 2 B n p d | nothing |
| gram | 2 B n T² (p + d) | 2 B n T p d | nothing |
| direct | 2 B n T p d, written out for a moment | 2 B n T p d | nothing |
| kept | 2 B n T p d | 2 B n p d | B n p d numbers, but not the factors, B n T (p + d) |
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

How = Literal["factors", "gram", "direct", "kept", "rows", "summed rows", "written out"]

_FLOPS_PER_BYTE = 3.0  # what memory traffic costs beside arithmetic
_NUMBER = 4
_SORTED, _SCATTERED = 12_000.0, 28.0  # operations for each position to be sorted, and for each number to be added to a row


@dataclasses.dataclass(frozen=True)
class Product:
    """Sizes of `factors.Outer`."""

    batch: int
    n: int
    positions: int
    p: int
    d: int

    @property
    def entries(self) -> int:
        """Of all per-example gradients together."""
        return self.batch * self.n * self.p * self.d


@dataclasses.dataclass(frozen=True)
class Route:
    """The way for one product.

    Attributes:
      how: its name.
      flops: operations of norm and sum beyond what plain training does.
      written: bytes of gradients that are written out.
      kept: bytes held from the norm to the sum, beyond what the factors would take.
    """

    how: How
    flops: float
    written: int = 0
    kept: int = 0

    @property
    def cost(self) -> float:
        """In operations."""
        return self.flops + _FLOPS_PER_BYTE * (3 if self.how == "kept" else 2) * self.written


def ways(work: Product) -> list[Route]:
    """All exact ways for a product, the cheapest first; the sum itself, 2BnTpd, is what plain training does as well."""
    b, n, t, p, d = work.batch, work.n, work.positions, work.p, work.d
    if t == 1:
        return [Route("factors", 2.0 * b * n * (p + d))]
    written, plain = _NUMBER * work.entries, 2.0 * work.entries * t
    gram = Route("gram", 2.0 * b * n * t * t * (p + d), 2 * _NUMBER * b * n * t * t)
    direct = Route("direct", plain + 2.0 * work.entries, written)
    kept = Route("kept", 4.0 * work.entries, written, max(written - _NUMBER * b * n * t * (p + d), 0))
    return sorted([gram, direct, kept], key=lambda route: route.cost)


def lookup(batch: int, positions: int, d: int, rows: int) -> Route:
    """The way for lookups of rows of d numbers: by all pairs of positions, or by adding up what each row receives."""
    pairs, entries = batch * positions**2, batch * min(positions, rows) * d
    by_pairs = Route("rows", 2.0 * pairs * d, 2 * _NUMBER * pairs)
    number = _SORTED if rows > positions else 0.0  # a small table is one row after the other
    by_row = Route("summed rows", batch * positions * (number + _SCATTERED * d) + 2.0 * entries, _NUMBER * entries)
    return min(by_pairs, by_row, key=lambda route: route.cost)


def choose(works: Sequence[Product], keep: int) -> list[Route]:
    """A route for each product; `keep` bytes may be held from norms to sums.

    Kept gradients go first to the products that gain most for each byte.
    """
    options = [ways(work) for work in works]
    routes = [next(route for route in way if route.how != "kept") for way in options]
    gains = []
    for i, way in enumerate(options):
        held = next((route for route in way if route.how == "kept"), None)
        if held is not None and held.cost < routes[i].cost:
            gains.append(((routes[i].cost - held.cost) / max(held.kept, 1), i, held))
    for _, i, held in sorted(gains, key=lambda gain: -gain[0]):
        if held.kept <= keep:
            keep -= held.kept
            routes[i] = held
    return routes
