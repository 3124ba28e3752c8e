"""The embedded default: real handwritten digits that come with scikit-learn (UCI optical recognition, test part)."""

import numpy as np

from marauder_dp.datasets.base import Dataset

_TEST_EXAMPLES = 360


def digits(data_dir: str | None) -> Dataset:
    """1,437 + 360 handwritten digits, (8, 8, 1) in [0, 1]. Needs no files; the split is fixed and public."""
    del data_dir
    from sklearn.datasets import load_digits  # takes most of a second, and only this data set needs it

    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    x = (bunch.images[order, ..., None] / 16).astype(np.float32)
    y = bunch.target[order].astype(np.int32)
    return Dataset(
        name="digits",
        train_x=x[_TEST_EXAMPLES:],
        train_y=y[_TEST_EXAMPLES:],
        test_x=x[:_TEST_EXAMPLES],
        test_y=y[:_TEST_EXAMPLES],
        num_classes=10,
        note="Pixels are divided by 16, a public bound.",
    )
