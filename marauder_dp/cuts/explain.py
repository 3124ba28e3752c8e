"""What clipping does with each parameter of a loss, as a table."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from marauder_dp.cuts.engine import Gradients, Group
from marauder_dp.cuts.factors import Factored, Outer, Rows
from marauder_dp.cuts.tied import Part
from marauder_dp.cuts.walker import UncuttableError

PyTree = Any

_WHY = {
    "factors": "one position: the norm is a product of two norms",
    "gram": "few positions: the norm comes from their inner products",
    "direct": "many positions: each example's gradient is written out for its norm, then dropped",
    "kept": "many positions: each example's gradient is written out once and reused for the sum",
    "rows": "rows of a table: the norm comes from the positions that share a row",
    "summed rows": "rows of a table, many: what each receives is added up for the norm",
}

_SHARED = "a term of parameters alone: all examples share its direction"


@dataclasses.dataclass(frozen=True)
class Row:
    """What happens to parameters that share sites.

    Attributes:
      parameters: their paths.
      rule: primitives by which they meet data, and how often each.
      route: how norm and sum are computed.
      why: in words.
      bytes: held from the norm to the sum.
      flops: beyond plain training.
    """

    parameters: tuple[str, ...]
    rule: str
    route: str
    why: str
    bytes: int
    flops: float


@dataclasses.dataclass(frozen=True)
class Explanation:
    """A row for each parameter, or for those that are handled together. `str` is a table.

    Attributes:
      rows: of the table.
      batch_size: examples at a time.
      note: what goes for the whole loss.
    """

    rows: tuple[Row, ...]
    batch_size: int
    note: str = ""

    def __str__(self) -> str:
        header = ("parameter", "rule", "route", f"memory, MiB ({self.batch_size} at a time)", "MFLOP", "why")
        table = [header]
        for row in self.rows:
            name = row.parameters[0] + (f" and {len(row.parameters) - 1} more" if len(row.parameters) > 1 else "")
            table.append((name, row.rule, row.route, f"{row.bytes / 2**20:.2f}", f"{row.flops / 1e6:.3g}", row.why))
        widths = [max(len(line[i]) for line in table) for i in range(len(header))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
        return "\n".join([*lines, self.note] if self.note else lines)


def explain(loss_fn: Callable[[PyTree, PyTree], jax.Array], params: PyTree, batch: PyTree, names: Sequence[str]) -> Explanation:
    """How `Gradients` treats a batch of this shape; nothing is computed.

    Args:
      loss_fn: of one example.
      params: pytree of floating-point arrays or their shapes.
      batch: pytree of arrays (batch, ...) or their shapes.
      names: of the parameters, one a leaf.
    """
    size = jax.tree.leaves(batch)[0].shape[0]
    rows: list[Row] = []

    def trace(params: PyTree, batch: PyTree) -> jax.Array:
        found = Gradients(loss_fn, params, batch)
        rows.extend(_row(found, group, names, size) for group in found.cut.groups)
        used = {leaf for group in found.cut.groups for leaf in group.leaves}
        unused = [name for i, name in enumerate(names) if i not in used and i not in found.shared]
        alone = [Row((names[i],), "", "shared", _SHARED, 0, 0.0) for i in sorted(found.shared.keys() - used)]
        rows.extend(alone)
        rows.extend(Row((name,), "", "none", "never meets data: its gradient is zero", 0, 0.0) for name in unused)
        return jnp.zeros(())

    try:
        jax.eval_shape(trace, params, batch)
    except UncuttableError as error:
        entries = size * sum(leaf.size for leaf in jax.tree.leaves(params))
        rows = [Row(tuple(names), "", "written out", str(error), 4 * entries, 4.0 * entries)]
    return Explanation(tuple(rows), size)


def _row(found: Gradients, group: Group, paths: Sequence[str], batch: int) -> Row:
    names = tuple(paths[i] for i in group.leaves)
    counted = Counter(found.cut.sites[i].primitive for i in group.sites)
    rule = ", ".join(name if count == 1 else f"{count} × {name}" for name, count in counted.items())
    if parts := found.parts_of(group):
        chosen = [found.routes[i] for i in parts if i in found.routes]
        ways: dict[str, str] = {}
        for i, part in parts.items():
            how = found.routes[i].how if i in found.routes else _lookup(part.form)
            ways.setdefault(how, _WHY[how] + _detail(part))
        why = "; ".join(ways.values()) + (f"; {len(parts)} parts without a common entry" if len(parts) > 1 else "")
        why += f"; {_SHARED}" if group.leaves[0] in found.shared else ""
        return Row(names, rule, ", ".join(ways), why, sum(r.kept for r in chosen), sum((r.flops for r in chosen), 0.0))
    entries = batch * sum(found.cut.leaves[i].size for i in group.leaves)
    if not group.moved:
        why = "computed from parameters before use: each example's gradient is carried back through that"
    elif len(group.sites) > 1:
        why = f"used in {len(group.sites)} places: each example's gradients are added up"
    else:
        why = "as large as what it meets, or no shorter form is known"
    return Row(names, rule, "written out", why, 4 * entries, 4.0 * entries)


def _lookup(form: Factored) -> str:
    return "summed rows" if isinstance(form, Rows) and form.distinct else "rows"


def _detail(part: Part) -> str:
    text = ""
    if isinstance(part.form, Outer):
        work = part.form.product
        text = f" ({work.n} × {work.positions} positions, {work.p} × {work.d})"
    return text if part.uses == 1 else f"{text}; {part.uses} uses together, cross terms included"
