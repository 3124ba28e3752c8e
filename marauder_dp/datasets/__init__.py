"""Data sets by name."""

from marauder_dp.datasets.adult import adult
from marauder_dp.datasets.base import Dataset
from marauder_dp.datasets.digits import digits
from marauder_dp.datasets.idx import fashion_mnist, mnist
from marauder_dp.datasets.registry import load_dataset
from marauder_dp.datasets.tfds import from_tfds

__all__ = ["Dataset", "adult", "digits", "fashion_mnist", "from_tfds", "load_dataset", "mnist"]
