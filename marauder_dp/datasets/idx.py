"""MNIST and Fashion-MNIST from the canonical idx files (http://yann.lecun.com/exdb/mnist/, "file formats")."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from marauder_dp.datasets.base import Dataset, find_file, read_bytes
from marauder_dp.errors import DatasetError

_UBYTE = 0x08
_SPLITS = {"train": "train", "test": "t10k"}


def parse_idx(raw: bytes, rank: int, source: str) -> NDArray[np.uint8]:
    """An idx file of unsigned bytes.

    Args:
      raw: the whole (decompressed) file.
      rank: dimensions it must have.
      source: for error messages.

    Returns:
      uint8 array with `rank` dimensions.

    Raises:
      DatasetError: wrong magic number, or not exactly as many bytes as the header promises.
    """
    header = 4 + 4 * rank
    if len(raw) < header:
        raise DatasetError(f"{source} is cut short: {len(raw)} bytes, less than its {header}-byte header")
    magic, *shape = struct.unpack(f">{1 + rank}I", raw[:header])
    if magic != (_UBYTE << 8) + rank:
        raise DatasetError(
            f"{source} has the wrong magic number {magic:#010x}: not an idx file of {rank}-dimensional unsigned bytes"
        )
    expected = int(np.prod(shape, dtype=object))
    if len(raw) - header != expected:
        raise DatasetError(
            f"{source} should hold {'x'.join(map(str, shape))} = {expected} bytes after its header but holds "
            f"{len(raw) - header}; fetch it again"
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def load_idx(name: str, folders: tuple[str, ...], data_dir: str | None) -> Dataset:
    """A data set of 28x28 grey images in ten classes, in the four files that MNIST uses."""
    arrays: dict[str, Any] = {}
    for split, prefix in _SPLITS.items():
        images_path = find_file(f"{prefix}-images-idx3-ubyte", folders, data_dir)
        labels_path = find_file(f"{prefix}-labels-idx1-ubyte", folders, data_dir)
        images, labels = _parse_file(images_path, 3), _parse_file(labels_path, 1)
        if len(images) != len(labels):
            raise DatasetError(f"{images_path} has {len(images)} images but {labels_path} {len(labels)} labels")
        arrays[f"{split}_x"] = images[..., None].astype(np.float32) / np.float32(255)
        arrays[f"{split}_y"] = labels.astype(np.int32)
    return Dataset(name=name, num_classes=10, note="Pixels are divided by 255, a public bound.", **arrays)


def mnist(data_dir: str | None) -> Dataset:
    """MNIST: 60,000 + 10,000 handwritten digits, (28, 28, 1) in [0, 1]."""
    return load_idx("mnist", ("mnist", "mnist_idx", "MNIST", "MNIST/raw"), data_dir)


def fashion_mnist(data_dir: str | None) -> Dataset:
    """Fashion-MNIST: 60,000 + 10,000 pictures of clothing, (28, 28, 1) in [0, 1]."""
    folders = ("fashion_mnist", "fashion_mnist_idx", "fashion-mnist", "FashionMNIST", "FashionMNIST/raw")
    return load_idx("fashion_mnist", folders, data_dir)


def _parse_file(path: Path, rank: int) -> NDArray[np.uint8]:
    return parse_idx(read_bytes(path), rank, str(path))
