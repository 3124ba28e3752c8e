"""UCI Adult (census income): is an income above 50,000 dollars? From the original text files.

Categories and bounds come from the public code book (`adult.names`) and from what the quantities mean,
never from the rows: a vocabulary or a mean taken from private data would be a release of its own.
"""

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from marauder_dp.datasets.base import Dataset, find_file, read_bytes
from marauder_dp.errors import DatasetError

_UNKNOWN = "?"


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Column: categories in the order of the code book, or (low, high, logarithmic scale), or None to leave it out.
_COLUMNS: dict[str, tuple[str, ...] | tuple[float, float, bool] | None] = {
    "age": (0, 100, False),
    "workclass": _words("Private Self-emp-not-inc Self-emp-inc Federal-gov Local-gov State-gov Without-pay Never-worked"),
    "fnlwgt": None,  # how many people the row stands for, not a property of the person
    "education": _words(
        "Bachelors Some-college 11th HS-grad Prof-school Assoc-acdm Assoc-voc 9th 7th-8th 12th Masters "
        "1st-4th 10th Doctorate 5th-6th Preschool"
    ),
    "education-num": (1, 16, False),
    "marital-status": _words(
        "Married-civ-spouse Divorced Never-married Separated Widowed Married-spouse-absent Married-AF-spouse"
    ),
    "occupation": _words(
        "Tech-support Craft-repair Other-service Sales Exec-managerial Prof-specialty Handlers-cleaners "
        "Machine-op-inspct Adm-clerical Farming-fishing Transport-moving Priv-house-serv Protective-serv "
        "Armed-Forces"
    ),
    "relationship": _words("Wife Own-child Husband Not-in-family Other-relative Unmarried"),
    "race": _words("White Asian-Pac-Islander Amer-Indian-Eskimo Other Black"),
    "sex": _words("Female Male"),
    "capital-gain": (0, 99999, True),
    "capital-loss": (0, 99999, True),
    "hours-per-week": (0, 100, False),
    "native-country": _words(
        "United-States Cambodia England Puerto-Rico Canada Germany Outlying-US(Guam-USVI-etc) India Japan "
        "Greece South China Cuba Iran Honduras Philippines Italy Poland Jamaica Vietnam Mexico Portugal "
        "Ireland France Dominican-Republic Laos Ecuador Taiwan Haiti Columbia Hungary Guatemala Nicaragua "
        "Scotland Thailand Yugoslavia El-Salvador Trinadad&Tobago Peru Hong Holand-Netherlands"
    ),
}
_LABELS = {"<=50K": 0, ">50K": 1}


def adult(data_dir: str | None) -> Dataset:
    """Adult: 32,561 + 16,281 people, one-hot categories and scaled numbers in [0, 1]; label 1 for > 50K."""
    folders = ("adult", "Adult")
    train = _load(find_file("adult.data", folders, data_dir))
    test = _load(find_file("adult.test", folders, data_dir))
    return Dataset(
        name="adult",
        train_x=train[0],
        train_y=train[1],
        test_x=test[0],
        test_y=test[1],
        num_classes=2,
        note="Categories are one-hot by the public code book ('?' is all zeros); numbers are scaled by public bounds "
        "and clipped to them, capital gain and loss on a logarithmic scale; fnlwgt is left out.",
    )


def parse_rows(text: str, source: str) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Rows of comma-separated text → features (n, d) float32 and labels (n,) int32.

    Blank lines and lines that start with '|' (a comment in adult.test) are skipped.

    Raises:
      DatasetError: a row has the wrong number of fields, an unknown category or label, or no number where
        one belongs; names the line and the column.
    """
    numbered = [
        (number, [field.strip() for field in line.split(",")])
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip() and not line.startswith("|")
    ]
    if not numbered:
        raise DatasetError(f"{source} holds no rows")
    for number, fields in numbered:
        if len(fields) != len(_COLUMNS) + 1:
            raise DatasetError(f"{source}, line {number}: {len(fields)} fields instead of {len(_COLUMNS) + 1}")
    lines = [number for number, _ in numbered]
    columns = list(zip(*(fields for _, fields in numbered), strict=True))
    blocks = [
        _encode(columns[i], rule, f"{name} of {source}", lines)
        for i, (name, rule) in enumerate(_COLUMNS.items())
        if rule is not None
    ]
    labels = _indices([label.removesuffix(".") for label in columns[-1]], _LABELS, f"label of {source}", lines)
    return np.concatenate(blocks, axis=1), labels.astype(np.int32)


def _load(path: Path) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    try:
        text = read_bytes(path).decode("ascii")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not the ASCII text of UCI Adult: byte {error.start} is out of range") from error
    return parse_rows(text, str(path))


def _encode(
    values: tuple[str, ...], rule: tuple[str, ...] | tuple[float, float, bool], where: str, lines: list[int]
) -> NDArray[np.float32]:
    if isinstance(rule[0], str):
        indices = _indices(values, {str(category): i for i, category in enumerate(rule)} | {_UNKNOWN: -1}, where, lines)
        return (indices[:, None] == np.arange(len(rule))).astype(np.float32)
    low, high, logarithmic = float(rule[0]), float(rule[1]), bool(rule[2])
    try:
        numbers = np.array(values, dtype=np.float64)
    except ValueError:
        bad = next(i for i, value in enumerate(values) if not _is_number(value))
        raise DatasetError(f"{where}, line {lines[bad]}: {values[bad]!r} is not a number") from None
    if not np.isfinite(numbers).all():
        bad = int(np.argmin(np.isfinite(numbers)))
        raise DatasetError(f"{where}, line {lines[bad]}: {values[bad]!r} is not finite")
    numbers = np.clip(numbers, low, high) - low
    scaled = np.log1p(numbers) / math.log1p(high - low) if logarithmic else numbers / (high - low)
    return scaled.astype(np.float32)[:, None]


def _indices(values: tuple[str, ...] | list[str], known: dict[str, int], where: str, lines: list[int]) -> NDArray[np.int64]:
    try:
        return np.array([known[value] for value in values])
    except KeyError as error:
        bad = list(values).index(error.args[0])
        raise DatasetError(f"{where}, line {lines[bad]}: {values[bad]!r} is not in the code book") from None


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True
