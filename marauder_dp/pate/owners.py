"""Training examples that separate owners hold: a folder for each, one teacher for each."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from accountants.errors import VotesError
from accountants.pate.votes import read_npy
from marauder_dp.datasets.base import Dataset
from marauder_dp.errors import DatasetError


class Owner(NamedTuple):
    """What one of them holds.

    Attributes:
      name: of the folder.
      x: (n, *shape) float32.
      y: (n,) int32.
      ids: (n,) integers or strings, or None.
    """

    name: str
    x: NDArray[np.float32]
    y: NDArray[np.int32]
    ids: NDArray[Any] | None


def read_owners(folder: str | Path, like: Dataset) -> list[Owner]:
    """Reads `x.npy`, `y.npy` and, if there is one, `ids.npy` from each folder in `folder`, in order of name.

    Args:
      folder: of the owners' folders. Its files, and folders that begin with a dot, are left alone.
      like: a data set whose examples theirs must resemble: the shape, the number of classes.

    Raises:
      DatasetError: a file is missing, damaged or of the wrong shape or kind; one owner has ids and another has none.
    """
    folder = Path(folder).expanduser()
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise DatasetError(f"can't read the folder of owners {folder}: {error.strerror}") from error
    if not names:
        raise DatasetError(f"{folder} has no folder of an owner; each is to hold x.npy, y.npy and perhaps ids.npy")
    owners = [_read(folder / name, like) for name in names]
    without = [owner.name for owner in owners if owner.ids is None]
    if 0 < len(without) < len(owners):
        raise DatasetError(f"owner {without[0]} has no ids.npy, but others have: give ids for all or for none")
    return owners


def _read(folder: Path, like: Dataset) -> Owner:
    shape = like.train_x.shape[1:]
    x, y = _array(folder / "x.npy"), _array(folder / "y.npy")
    if x.dtype.kind not in "fiu" or x.shape[1:] != shape:
        raise DatasetError(
            f"{folder}/x.npy must hold numbers of shape (n, {', '.join(map(str, shape))}); got {x.dtype} {x.shape}"
        )
    if y.dtype.kind not in "iu" or y.shape != (len(x),) or not len(x):
        raise DatasetError(f"{folder}/y.npy must hold a class for each of {len(x)} examples; got {y.dtype} {y.shape}")
    with np.errstate(over="ignore"):
        x = x.astype(np.float32)
    if not np.isfinite(x).all():
        raise DatasetError(f"{folder}/x.npy has a value that isn't finite; clean the file")
    if y.min() < 0 or y.max() >= like.num_classes:
        raise DatasetError(f"{folder}/y.npy has classes outside 0 to {like.num_classes - 1}")
    ids = None
    if (folder / "ids.npy").exists():
        ids = _array(folder / "ids.npy")
        if ids.dtype.kind not in "iuUS" or ids.shape != (len(x),):
            raise DatasetError(f"{folder}/ids.npy must hold an id for each of {len(x)} examples; got {ids.dtype} {ids.shape}")
    return Owner(folder.name, x, y.astype(np.int32), ids)


def _array(path: Path) -> NDArray[Any]:
    try:
        return read_npy(path)
    except VotesError as error:
        raise DatasetError(str(error)) from error
