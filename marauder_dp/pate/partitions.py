"""Which teacher sees which private example: disjoint by construction.

A teacher's number is a keyed hash of the example's id, or of the unit of privacy it belongs to, modulo the number of
teachers. It depends on nothing else, so adding or removing a unit changes the data of one teacher and of no other: one
vote. (Dealing examples out evenly would not do: one more would move all those after it.) Sizes therefore differ a little,
and teachers train on rows that are padded to the largest.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from marauder_dp.errors import DatasetError, PlanError

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Partitions:
    """Rows of the data, by teacher. Private where ids or their number are.

    Attributes:
      rows: (teachers, longest) int32 positions in the data; after a teacher's own, its first one again and again.
      counts: (teachers,) int32, how many are its own; at least 1.
    """

    rows: NDArray[np.int32]
    counts: NDArray[np.int32]

    @property
    def teachers(self) -> int:
        """How many there are."""
        return len(self.counts)

    def own(self, teacher: int) -> NDArray[np.int32]:
        """The rows of one teacher."""
        return self.rows[teacher, : self.counts[teacher]]

    def digests(self, data: PyTree, salt: bytes) -> list[str]:
        """A salted SHA-256 of each teacher's examples: whoever has salt and data can check that this is how they were split.

        Args:
          data: pytree of arrays (num_examples, ...).
          salt: secret, at least 16 random bytes; without it a digest confirms guesses of a whole partition.
        """
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(data)]
        result = []
        for teacher in range(self.teachers):
            digest = hashlib.sha256(salt)
            for leaf in leaves:
                own = np.ascontiguousarray(leaf[self.own(teacher)])
                digest.update(f"{own.dtype.str}{own.shape}".encode())
                digest.update(own.data)
            result.append(digest.hexdigest())
        return result


def partition(ids: Any, teachers: int, *, seed: int = 0) -> Partitions:
    """Splits examples among teachers by a hash of their ids.

    Args:
      ids: (num_examples,) integers or strings. Examples of one id, such as all of one person, go to one teacher.
      teachers: at least 1.
      seed: public key of the hash.

    Raises:
      PlanError: more teachers than ids, or one of them would have no example.
      DatasetError: ids are of another type or shape.
    """
    if not isinstance(teachers, int) or teachers < 1:
        raise PlanError(f"teachers must be a whole number of at least 1; got {teachers!r}")
    ids = np.asarray(ids)
    if ids.ndim != 1 or ids.dtype.kind not in "iuUS" or not len(ids):
        raise DatasetError(f"ids must be one integer or string for each example; got {ids.dtype} of shape {ids.shape}")
    names, which = np.unique(ids, return_inverse=True)
    if teachers > len(names):
        raise PlanError(f"{teachers} teachers are more than there are ids ({len(names)}): use fewer --teachers")
    key = f"{seed}".encode()
    hashed = [int.from_bytes(hashlib.blake2b(f"{name}".encode(), digest_size=8, key=key).digest(), "big") for name in names]
    return _gathered(np.array([value % teachers for value in hashed])[which], teachers)


def separately_held(owners: Sequence[PyTree], ids: Sequence[Any] | None = None) -> tuple[PyTree, Partitions]:
    """One teacher for each data owner.

    Args:
      owners: pytrees of arrays (examples of that owner, ...), alike but for their length.
      ids: for each owner, ids of its examples, if there are any.

    Returns:
      All examples together, and which are whose.

    Raises:
      DatasetError: an owner has none, ids don't go with the examples, or two owners hold the same example, by id or by
        content: then one example would move two votes, and no figure would hold.
    """
    sizes = [len(jax.tree.leaves(owner)[0]) for owner in owners]
    if not sizes or 0 in sizes:
        raise DatasetError(f"owner {sizes.index(0)} has no examples" if sizes else "there are no owners")
    data = jax.tree.map(lambda *parts: np.concatenate([np.asarray(part) for part in parts]), *owners)
    owner_of = np.repeat(np.arange(len(sizes)), sizes)
    if ids is not None:
        if len(ids) != len(sizes):
            raise DatasetError(f"there are ids for {len(ids)} of {len(sizes)} owners")
        for owner, (some, size) in enumerate(zip(ids, sizes, strict=True)):
            if len(some) != size:
                raise DatasetError(f"owner {owner} has {len(some)} ids for {size} examples")
        _refuse_shared(np.concatenate([np.asarray(some) for some in ids]), owner_of, "id")
    # Adding 0 makes −0 the 0 that it equals.
    leaves = [(leaf + 0 if leaf.dtype.kind == "f" else leaf).reshape(len(leaf), -1) for leaf in jax.tree.leaves(data)]
    content = [hashlib.sha256(b"|".join(leaf[i].tobytes() for leaf in leaves)).hexdigest() for i in range(len(owner_of))]
    _refuse_shared(np.array(content), owner_of, "content")
    return data, _gathered(owner_of, len(sizes))


def _refuse_shared(keys: Any, owner_of: Any, what: str) -> None:
    order = np.argsort(keys, kind="stable")
    same = (keys[order][1:] == keys[order][:-1]) & (owner_of[order][1:] != owner_of[order][:-1])
    if same.any():
        first, second = order[:-1][same][0], order[1:][same][0]
        raise DatasetError(
            f"owners {owner_of[first]} and {owner_of[second]} hold an example with the same {what} (rows {first} and {second} "
            "of all together): one example would move two votes. Remove it from one of them"
        )


def _gathered(teacher_of: Any, teachers: int) -> Partitions:
    counts = np.bincount(teacher_of, minlength=teachers)
    if (counts == 0).any():
        raise PlanError(
            f"teacher {int(np.argmin(counts))} of {teachers} would have no example: use fewer --teachers, or another --seed"
        )
    order = np.argsort(teacher_of, kind="stable").astype(np.int32)
    starts = np.cumsum(counts) - counts
    offset = np.arange(counts.max())
    rows = order[starts[:, None] + np.where(offset < counts[:, None], offset, 0)]
    return Partitions(rows, counts.astype(np.int32))
