"""Any other data set by name, through tensorflow-datasets: imported only when asked for, and without TensorFlow."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from marauder_dp.datasets.base import Dataset
from marauder_dp.errors import DatasetError


def from_tfds(name: str, data_dir: str | None) -> Dataset:
    """An image (or feature vector) and label data set with splits 'train' and 'test'.

    Read through `tfds.data_source`, which needs data prepared as array_record and no TensorFlow. Unsigned
    bytes are divided by 255; other numbers are taken as they are.

    Raises:
      DatasetError: tensorflow-datasets is missing, or can't provide such a data set; says why.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DatasetError(
            f"unknown data set {name!r}: built in are digits, mnist, fashion_mnist, adult; any other name needs "
            f"tensorflow-datasets (pip install tensorflow-datasets importlib-resources; {error})"
        ) from error
    try:
        builder = tfds.builder(name, data_dir=data_dir)
        if not all(builder.info.splits.get(split) for split in ("train", "test")):
            builder.download_and_prepare(file_format="array_record")
        splits = {split: builder.as_data_source(split=split) for split in ("train", "test")}
        keys = builder.info.supervised_keys
        num_classes = builder.info.features[keys[1]].num_classes
        arrays = {split: _stack(source, keys) for split, source in splits.items()}
    except Exception as error:  # tfds raises anything from ValueError to its own types, and ImportError for TensorFlow
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        raise DatasetError(
            f"{name!r} is not built in (digits, mnist, fashion_mnist, adult) and tensorflow-datasets can't provide it: "
            f"{type(error).__name__}: {reason:.300}"
        ) from error
    return Dataset(
        name=name,
        train_x=arrays["train"][0],
        train_y=arrays["train"][1],
        test_x=arrays["test"][0],
        test_y=arrays["test"][1],
        num_classes=num_classes,
        note="Read through tensorflow-datasets; unsigned bytes are divided by 255, a public bound.",
    )


def _stack(source: Any, keys: tuple[str, str]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    records = [source[i] for i in range(len(source))]
    x = np.stack([record[keys[0]] for record in records])
    scale = np.float32(255 if x.dtype == np.uint8 else 1)
    y = np.array([record[keys[1]] for record in records], dtype=np.int32)
    return x.astype(np.float32) / scale, y
