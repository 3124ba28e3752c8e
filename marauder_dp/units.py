"""A unit of privacy that holds several examples, such as all of one person.

`group_by_unit` gives each unit one row of at most `limit` examples, and `loss_of_unit` makes the loss of such a row from the
loss of an example. To clipping, sampling, noise and accounting a row is what an example was: the gradient of the whole unit is
clipped once, a unit takes part in a step or does not, and num_examples counts units.
"""

import hashlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from accountants.errors import VotesError
from accountants.pate.votes import read_npy
from marauder_dp.clipping import LossFn
from marauder_dp.errors import DatasetError, PlanError
from marauder_dp.memory import memory_limit
from marauder_dp.trainable import path_name

PyTree = Any


class Units(NamedTuple):
    """Examples by unit.

    Attributes:
      examples: pytree of arrays (units, limit, ...).
      present: (units, limit) bool; elsewhere an example of the same unit is repeated.
    """

    examples: PyTree
    present: np.ndarray


def group_by_unit(data: PyTree, unit_ids: Any, *, limit: int, seed: int = 0) -> Units:
    """Bounds what a unit contributes: at most `limit` of its examples, in one row.

    Where a unit has more, which of them are kept depends on its id, on `seed` and on its own examples' order alone. So adding
    or removing a unit changes no other row. Rows are in order of first appearance.

    Args:
      data: pytree of arrays (num_examples, ...).
      unit_ids: (num_examples,) integers or strings: whose each example is.
      limit: ≥ 1.
      seed: public.

    Raises:
      PlanError: the limit is not a whole number ≥ 1, or rows of so many don't fit into memory.
      DatasetError: ids and data have different lengths, there are none, or ids aren't integers or strings.
    """
    if not isinstance(limit, int) or limit < 1:
        raise PlanError(f"the most examples of a unit must be a whole number of at least 1; got {limit!r}")
    ids = np.asarray(unit_ids)
    if ids.ndim != 1 or ids.dtype.kind not in "iuUS" or not len(ids):
        raise DatasetError(f"unit_ids must be one integer or string for each example; got {ids.dtype} of shape {ids.shape}")
    for path, leaf in jax.tree_util.tree_leaves_with_path(data):
        if np.shape(leaf)[:1] != ids.shape:
            where = path_name(path) or "itself"
            raise DatasetError(f"data array {where} has the shape {np.shape(leaf)}, but there are {len(ids):,} unit ids")
    names, first, which = np.unique(ids, return_index=True, return_inverse=True)
    order = np.argsort(which, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(which))[:-1])
    # All rows have the width that was asked for, even if no unit has so many: one unit more must not change what others draw.
    each = 9 + sum(np.asarray(leaf).nbytes // len(ids) for leaf in jax.tree.leaves(data))
    if (needed := len(names) * limit * each) > memory_limit():
        raise PlanError(
            f"{len(names):,} units of up to {limit:,} examples take {needed / 2**30:,.1f} GiB, more than there is "
            "memory for: allow fewer examples of a unit"
        )
    chosen = np.empty((len(names), limit), np.int64)
    present = np.zeros((len(names), limit), bool)
    for row, unit in enumerate(np.argsort(first)):
        own = members[unit]
        if len(own) > limit:
            own = np.sort(_generator(seed, names[unit]).permutation(own)[:limit])
        chosen[row] = own[np.arange(limit) % len(own)]
        present[row, : len(own)] = True
    return Units(jax.tree.map(lambda leaf: np.asarray(leaf)[chosen], data), present)


def loss_of_unit(loss_fn: LossFn, *, keyed: bool = False) -> LossFn:
    """The mean loss of a unit's examples, as a loss of one row of `Units`.

    Args:
      loss_fn: (params, one example) → scalar.
      keyed: whether `loss_fn` takes (one example, key) instead, and the result (one row, key), as `DpSgd` gives it.
    """

    def loss(params: PyTree, unit: Any) -> jax.Array:
        if keyed:
            (examples, present), key = unit
            examples = examples, jax.random.split(key, len(present))
        else:
            examples, present = unit
        losses = jax.vmap(loss_fn, (None, 0))(params, examples)
        return jnp.sum(jnp.where(present, losses, 0)) / jnp.maximum(jnp.sum(present), 1).astype(losses.dtype)

    return loss


def read_ids(path: str) -> np.ndarray:
    """Unit ids from a .npy file.

    Raises:
      DatasetError: it can't be read as one.
    """
    try:
        return read_npy(path)
    except VotesError as error:
        raise DatasetError(f"no .npy file with a unit id for each training example: {error}") from error


def _generator(seed: int, unit: Any) -> np.random.Generator:
    digest = hashlib.blake2b(f"{seed}:{unit}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))
