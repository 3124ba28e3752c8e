"""Loaders: right on real files, and one clear line on damaged ones."""

import gzip
import re
import struct
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marauder_dp import Dataset, DatasetError, load_dataset
from marauder_dp.datasets.adult import parse_rows
from marauder_dp.datasets.idx import parse_idx


def idx(array, magic=None):
    header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim if magic is None else magic, *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def mnist_files(tmp_path):
    """A tiny data set in MNIST's format, gzipped in a folder of its own."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for prefix, n in (("train", 12), ("t10k", 5)):
        images, labels = rng.integers(0, 256, (n, 28, 28)), rng.integers(0, 10, n)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path


def test_digits_need_nothing():
    data = load_dataset("digits")
    assert data.train_x.shape == (1437, 8, 8, 1)
    assert data.test_x.shape == (360, 8, 8, 1)
    assert (data.train_x.min(), data.train_x.max()) == (0, 1)
    assert set(data.train_y) == set(range(10))
    together = np.concatenate([data.train_x, data.test_x]).reshape(1797, -1)
    from sklearn.datasets import load_digits

    assert sorted(map(tuple, together * 16)) == sorted(map(tuple, load_digits().data.astype(np.float32)))


def test_real_mnist(data_dir):
    data = load_dataset("mnist", data_dir)
    assert data.train_x.shape == (60_000, 28, 28, 1)
    assert data.train_y[:5].tolist() == [5, 0, 4, 1, 9]
    assert data.train_x.mean() == pytest.approx(0.1307, abs=1e-4)
    assert data.test_y[:3].tolist() == [7, 2, 1]


def test_real_fashion_mnist(data_dir):
    data = load_dataset("fashion_mnist", data_dir)
    assert data.test_x.shape == (10_000, 28, 28, 1)
    assert np.bincount(data.train_y).tolist() == [6000] * 10


def test_real_adult(data_dir):
    data = load_dataset("adult", data_dir)
    assert (data.train_x.shape, data.test_x.shape) == ((32_561, 104), (16_281, 104))
    assert (int(data.train_y.sum()), int(data.test_y.sum())) == (7_841, 3_846)
    assert (data.train_x.min(), data.train_x.max()) == (0, 1)


@pytest.mark.parametrize("inside", [True, False])
def test_files_are_found_in_the_folder_or_in_one_of_the_data_set(mnist_files, inside, monkeypatch):
    folder = mnist_files if inside else mnist_files / "mnist"
    assert load_dataset("mnist", str(folder)).num_examples == 12
    monkeypatch.setenv("MARAUDER_DATA_DIR", str(folder))
    assert load_dataset("mnist").num_examples == 12


def test_missing_files_say_where_was_looked(tmp_path, monkeypatch):
    with pytest.raises(DatasetError, match=re.escape(str(tmp_path / "mnist_idx"))):
        load_dataset("mnist", str(tmp_path))
    monkeypatch.delenv("MARAUDER_DATA_DIR", raising=False)
    with pytest.raises(DatasetError, match="--data_dir"):
        load_dataset("adult")


def test_unknown_name_lists_the_known(monkeypatch):
    with pytest.raises(DatasetError, match="digits, mnist, fashion_mnist, adult"):
        load_dataset("no_such_data_set")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(DatasetError, match="pip install"):
        load_dataset("no_such_data_set")


LABELS = "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cut short"),
        (b"\x00\x00\x08", "cut short"),
        (idx(np.zeros(12))[:-1], "fetch it again"),
        (idx(np.zeros(12)) + b"x", "fetch it again"),
        (idx(np.zeros(12), magic=0x0803), "magic"),
        (b"<html>not found</html>", "magic"),
        (idx(np.zeros(11)), "11 labels"),
        (idx(np.full(12, 10)), "label 10, outside 0 to 9"),
        (idx(np.zeros(0)), "0 labels"),
    ],
)
def test_damaged_idx_files_are_named(mnist_files, content, message):
    (mnist_files / "mnist" / LABELS).write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        load_dataset("mnist", str(mnist_files))


def test_damaged_gzip_is_named(mnist_files):
    path = mnist_files / "mnist" / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DatasetError, match="damaged or cut short"):
        load_dataset("mnist", str(mnist_files))
    path.write_bytes(b"not gzip")
    with pytest.raises(DatasetError, match="damaged or cut short"):
        load_dataset("mnist", str(mnist_files))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=64), st.integers(1, 3))
def test_parsing_any_bytes_raises_named_errors_only(raw, rank):
    try:
        array = parse_idx(raw, rank, "fuzz")
    except DatasetError:
        return
    assert array.ndim == rank
    assert array.nbytes == len(raw) - 4 - 4 * rank


ROW = (
    "39, State-gov, 77516, Bachelors, 13, Never-married, Adm-clerical, Not-in-family, White, Male, "
    "2174, 0, 40, United-States, <=50K"
)


def test_adult_rows():
    x, y = parse_rows(f"|1x3 Cross validator\n{ROW}\n\n{ROW.replace('<=50K', '>50K.').replace('State-gov', '?')}\n", "test")
    assert y.tolist() == [0, 1]
    assert x[0, 0] == pytest.approx(0.39)
    assert x[0].sum() - x[1].sum() == pytest.approx(1)  # '?' is all zeros


def test_adult_numbers_are_clipped_to_public_bounds():
    x, _ = parse_rows(ROW.replace("39,", "500,").replace("2174", "9999999"), "test")
    assert x.max() == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("White, ", "", "line 1: 14 fields instead of 15"),
        ("White", "Purple", "race of test, line 1: 'Purple' is not in the code book"),
        ("39", "forty", "age of test, line 1: 'forty' is not a number"),
        ("2174", "nan", "capital-gain of test, line 1: 'nan' is not finite"),
        ("<=50K", "rich", "label of test, line 1"),
        (ROW, "", "no rows"),
    ],
)
def test_damaged_adult_rows_are_named(old, new, message):
    with pytest.raises(DatasetError, match=re.escape(message)):
        parse_rows(ROW.replace(old, new), "test")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_parsing_any_text_raises_named_errors_only(text):
    with pytest.raises(DatasetError):
        parse_rows(text, "fuzz")


def test_non_ascii_adult_is_named(tmp_path):
    for name in ("adult.data", "adult.test"):
        (tmp_path / name).write_bytes(b"\xff" + ROW.encode())
    with pytest.raises(DatasetError, match="ASCII"):
        load_dataset("adult", str(tmp_path))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_features_are_refused(bad):
    x, y = np.zeros((3, 2), np.float32), np.zeros(3, np.int32)
    broken = x.copy()
    broken[1, 0] = bad
    with pytest.raises(DatasetError, match="train example 1 has a NaN or infinite feature"):
        Dataset("test", broken, y, x, y, 2, "")
