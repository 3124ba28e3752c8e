"""Any data set by name through tensorflow-datasets, without TensorFlow."""

import subprocess
import sys

import pytest

pytest.importorskip("tensorflow_datasets")

BUILDER = """
import numpy as np
import tensorflow_datasets as tfds


class TinyImages(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        image = tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8)
        features = tfds.features.FeaturesDict({"image": image, "label": tfds.features.ClassLabel(num_classes=3)})
        return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=("image", "label"))

    def _split_generators(self, _):
        return {"train": self._generate_examples(30), "test": self._generate_examples(9)}

    def _generate_examples(self, n):
        for i in range(n):
            yield i, {"image": np.full((8, 8, 1), i, np.uint8), "label": i % 3}
"""

PROGRAM = """
import sys
import tiny.builder
tiny.builder.TinyImages(data_dir=sys.argv[1]).download_and_prepare(file_format="array_record")
from marauder_dp import load_dataset
data = load_dataset("tiny_images", sys.argv[1])
assert data.train_x.shape == (30, 8, 8, 1) and data.test_x.shape == (9, 8, 8, 1) and data.num_classes == 3
assert sorted(data.train_x[:, 0, 0, 0] * 255) == list(range(30))
assert ((data.train_x[:, 0, 0, 0] * 255).round() % 3 == data.train_y).all()
assert "tensorflow" not in sys.modules
"""


def test_a_prepared_data_set_is_read_without_tensorflow(tmp_path):
    package = tmp_path / "tiny"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "builder.py").write_text(BUILDER)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "data")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_tensorflow_datasets_is_imported_only_when_asked_for():
    program = (
        "import sys, marauder_dp; marauder_dp.load_dataset('digits'); "
        "assert not {'tensorflow', 'tensorflow_datasets'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
