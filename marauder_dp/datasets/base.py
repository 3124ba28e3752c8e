"""What a data set is, and how its files are found."""

import dataclasses
import gzip
import hashlib
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marauder_dp.errors import DatasetError

DATA_DIR_VARIABLE = "MARAUDER_DATA_DIR"


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A labelled data set, split into private training examples and held-out test examples.

    Nothing here is computed from private values: features are scaled with public bounds only.

    Attributes:
      name: such as "mnist".
      train_x: (n, *shape) float32, finite. Private.
      train_y: (n,) int32 in [0, num_classes). Private.
      test_x: (m, *shape) float32.
      test_y: (m,) int32.
      num_classes: public.
      note: one sentence for reports, such as how features were scaled or that images are lossy.
    """

    name: str
    train_x: NDArray[np.float32]
    train_y: NDArray[np.int32]
    test_x: NDArray[np.float32]
    test_y: NDArray[np.int32]
    num_classes: int
    note: str

    def __post_init__(self) -> None:
        for split in ("train", "test"):
            x, y = getattr(self, f"{split}_x"), getattr(self, f"{split}_y")
            if len(x) != len(y) or x.ndim < 2:
                raise DatasetError(f"{self.name}: {split} has {len(x)} examples but {len(y)} labels")
            if len(x) == 0:
                raise DatasetError(f"{self.name}: {split} is empty")
            finite = np.isfinite(x).reshape(len(x), -1).all(axis=1)
            if not finite.all():
                bad = int(np.argmin(finite))
                raise DatasetError(f"{self.name}: {split} example {bad} has a NaN or infinite feature; clean the file")
            if y.min() < 0 or y.max() >= self.num_classes:
                bad = int(np.argmax((y < 0) | (y >= self.num_classes)))
                raise DatasetError(
                    f"{self.name}: {split} example {bad} has label {int(y[bad])}, outside 0 to {self.num_classes - 1}"
                )

    @property
    def num_examples(self) -> int:
        """n, the number of training examples."""
        return len(self.train_x)

    def fingerprint(self) -> str:
        """ "sha256:…" of the training examples. Private: it confirms a guess of them."""
        return f"sha256:{digest_of_arrays(self.train_x, self.train_y)}"

    def rows(self, chosen: NDArray[np.int64]) -> "Dataset":
        """With those training examples alone."""
        return dataclasses.replace(self, train_x=self.train_x[chosen], train_y=self.train_y[chosen])


def digest_of_arrays(*arrays: NDArray[Any]) -> str:
    """SHA-256 of the types, shapes and contents of arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def find_file(name: str, folders: Sequence[str], data_dir: str | None) -> Path:
    """The file `name` (or `name`.gz) in `data_dir` itself or in one of `folders` inside it.

    Args:
      name: of the uncompressed file.
      folders: names a folder of this data set usually has.
      data_dir: where the user keeps data; default: the environment variable MARAUDER_DATA_DIR.

    Raises:
      DatasetError: it is nowhere; says where it was looked for.
    """
    base = data_dir or os.environ.get(DATA_DIR_VARIABLE)
    if not base:
        raise DatasetError(f"{name} is needed: give its folder with --data_dir (or ${DATA_DIR_VARIABLE})")
    root = Path(base).expanduser()
    places = [root, *(root / folder for folder in folders)]
    for place in places:
        for candidate in (place / name, place / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    looked = ", ".join(map(str, places))
    raise DatasetError(f"{name} (or {name}.gz) was not found; looked in {looked}. Put it there or set --data_dir")


def read_bytes(path: Path) -> bytes:
    """The content of a file, decompressed if its name ends in .gz.

    Raises:
      DatasetError: unreadable, or the compressed stream is damaged or cut short.
    """
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as stream:
                return stream.read()
        return path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DatasetError(f"{path} is damaged or cut short ({error}); fetch it again") from error
    except OSError as error:
        raise DatasetError(f"can't read {path}: {error.strerror or error}") from error
