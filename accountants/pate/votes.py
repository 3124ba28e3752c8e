"""Recorded votes of an ensemble of teachers, checked once and for all.

**Neighbouring relation.** Teachers are trained on disjoint parts of the data, so adding, removing or replacing one training
example changes one teacher, and of each histogram at most one vote moves from one class to another. Every bound of this package
is meant for that relation, `one_vote_moves`, and holds for all three relations on examples.

A query with several binary questions (multi-label) is several rows, one for each question, of two columns. If a teacher may
answer "yes" to all of them, one example moves one vote in each row, which is what composition over rows charges for.
"""

import dataclasses
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accountants.domains import positive, whole
from accountants.errors import InvalidEventError, VotesError

IntArray = NDArray[np.int64]

LEAST_NOISE, MOST_NOISE = 1e-6, 1e9
"""In votes."""

MAX_TEACHERS = 10_000_000
"""Sums and gaps of counts are exact far beyond it; work on smooth sensitivity grows with it."""


@dataclasses.dataclass(frozen=True, init=False, eq=False)
class Votes:
    """N histograms of the votes of K teachers for m classes.

    All costs but the name of the winner are symmetric in the classes, so equal histograms up to the order of classes cost the
    same and are computed once.

    Attributes:
      counts: (N, m) int64, read-only, each row sums to K.
      teachers: K.
      distinct: (U, m) int64, read-only: the distinct rows of `counts`, each sorted from most to fewest votes.
      inverse: (N,) int64: query i has histogram `distinct[inverse[i]]`.
      multiplicity: (U,) int64: how many queries have each.
    """

    counts: IntArray
    teachers: int
    distinct: IntArray
    inverse: IntArray
    multiplicity: IntArray

    def __init__(self, counts: Any, teachers: int | None = None):
        """Checks and copies `counts`.

        Args:
          counts: (N, m), anything that NumPy takes for an array of whole numbers; floats are taken if they are whole.
          teachers: K, if known; by default what the first row sums to.

        Raises:
          VotesError: not a rectangular array of whole numbers ≥ 0 with N ≥ 1, m ≥ 2 and all rows summing to K ≥ 1.
        """
        checked = _checked(counts)
        sums = checked.sum(axis=1)
        expected = int(sums[0]) if teachers is None else whole(teachers, "teachers", at_least=1, at_most=MAX_TEACHERS)
        if (sums != expected).any():
            row = int(np.argmax(sums != expected))
            raise VotesError(f"votes of query {row} sum to {sums[row]:,}, not to the number of teachers, {expected:,}")
        if not 1 <= expected <= MAX_TEACHERS:
            raise VotesError(f"the number of teachers must be from 1 to {MAX_TEACHERS:,}; got {expected:,}")
        descending = -np.sort(-checked, axis=1)
        distinct, inverse, multiplicity = np.unique(descending, axis=0, return_inverse=True, return_counts=True)
        values = {"counts": checked, "distinct": distinct, "inverse": inverse.reshape(-1), "multiplicity": multiplicity}
        for name, value in values.items():
            frozen = np.ascontiguousarray(value, np.int64)
            frozen.setflags(write=False)
            object.__setattr__(self, name, frozen)
        object.__setattr__(self, "teachers", expected)

    def __len__(self) -> int:
        """N, the number of queries."""
        return len(self.counts)

    @property
    def classes(self) -> int:
        """m."""
        return int(self.counts.shape[1])

    def first(self, queries: int) -> "Votes":
        """The first `queries` of them.

        Raises:
          InvalidEventError: that is not a whole number from 1 to N.
        """
        return Votes(self.counts[: whole(queries, "queries", at_least=1, at_most=len(self))], self.teachers)


def noise_in_votes(value: Any, name: str) -> float:
    """`value` as the scale of noise on counts: from a millionth of a vote to a billion, between which all bounds are finite.

    Raises:
      InvalidEventError: it isn't.
    """
    number = positive(value, name)
    if not LEAST_NOISE <= number <= MOST_NOISE:
        raise InvalidEventError(f"{name}, noise in votes, must lie between {LEAST_NOISE:g} and {MOST_NOISE:g}; got {number:g}")
    return number


def read_votes(path: str | os.PathLike[str], teachers: int | None = None) -> Votes:
    """The votes in a `.npy` file of shape (N, m). Nothing in the file is executed.

    Raises:
      VotesError: the file can't be read, is damaged or holds something else, or its content is not votes.
    """
    return Votes(read_npy(path), teachers)


def read_npy(path: str | os.PathLike[str]) -> NDArray[Any]:
    """The array in a `.npy` file, without unpickling.

    Raises:
      VotesError: it can't be read, is damaged, or holds something else than one array.
    """
    try:
        with open(path, "rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
            rest = file.read(1)
    except OSError as error:
        raise VotesError(f"can't read {os.fspath(path)}: {error.strerror or error}") from None
    except Exception as error:  # a damaged header makes NumPy raise almost anything, MemoryError and SyntaxError included
        raise VotesError(f"{os.fspath(path)} is not a NumPy .npy file, or damaged: {error!s:.120}".replace("\n", " ")) from None
    if rest:
        raise VotesError(f"{os.fspath(path)} holds more than one array")
    return array


def _checked(counts: Any) -> IntArray:
    """`counts` as an int64 array of its own, whose every entry is in range."""
    try:
        array = np.array(counts)
    except (TypeError, ValueError, OverflowError):
        raise VotesError("votes must be a rectangular array of whole numbers, one row a query") from None
    if array.dtype.kind not in "iuf":
        raise VotesError(f"votes must be whole numbers; got an array of {array.dtype}")
    if array.dtype.kind == "f":
        array = array.astype(np.float64)  # comparisons below would overflow in half precision
    if array.ndim != 2:
        raise VotesError(f"votes must have two dimensions, queries and classes; got shape {array.shape}")
    if array.shape[0] == 0:
        raise VotesError("votes must hold at least one query")
    if array.shape[1] < 2:
        raise VotesError(f"votes must have at least two classes; got shape {array.shape}")
    if not np.isfinite(array).all():
        raise VotesError(f"votes of query {_row(~np.isfinite(array))} are not finite")
    if (array < 0).any():
        raise VotesError(f"votes of query {_row(array < 0)} are negative")
    if (array > MAX_TEACHERS).any():
        raise VotesError(f"votes of query {_row(array > MAX_TEACHERS)} exceed {MAX_TEACHERS:,}")
    if (array != np.floor(array)).any():
        raise VotesError(f"votes of query {_row(array != np.floor(array))} are not whole numbers")
    return array.astype(np.int64)


def _row(wrong: NDArray[np.bool_]) -> int:
    return int(np.argmax(wrong.any(axis=1)))
