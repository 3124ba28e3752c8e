"""From a name to a data set."""

from marauder_dp.datasets.adult import adult
from marauder_dp.datasets.base import Dataset
from marauder_dp.datasets.digits import digits
from marauder_dp.datasets.idx import fashion_mnist, mnist
from marauder_dp.datasets.tfds import from_tfds

BUILT_IN = {"digits": digits, "mnist": mnist, "fashion_mnist": fashion_mnist, "adult": adult}


def load_dataset(name: str, data_dir: str | None = None) -> Dataset:
    """Loads a built-in data set, or any other one through tensorflow-datasets.

    Args:
      name: digits, mnist, fashion_mnist, adult, or a name tensorflow-datasets knows.
      data_dir: folder of the files, or of one folder a data set; default: $MARAUDER_DATA_DIR.

    Raises:
      DatasetError: unknown, missing or damaged.
    """
    loader = BUILT_IN.get(name)
    return loader(data_dir) if loader else from_tfds(name, data_dir)
