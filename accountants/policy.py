"""What is allowed on one data set: `policy.toml`, read strictly.

  [data]
  name = "patients"
  fingerprint = "sha256:…"               # or description = "…", in public words
  neighbouring_relation = "add_or_remove_one"
  unit = "example"
  public = ["num_examples", "the schema"]

  [ceiling]                              # for everything that is ever released from these data
  epsilon = 3.0
  delta = 1e-5

  [release]                              # what may be released, and to whom; nothing else may
  model = "anyone"

  [cohort.donors]                        # optional: disjoint parts of the data with ceilings of their own
  rows = [[0, 1000], [5000, 6000]]       # from, to (exclusive); or a .npy file of row numbers beside the policy
  epsilon = 3.0
  delta = 1e-5

  [purpose.research]                     # optional: parts of the ceiling for what it is spent on
  release = ["model"]
  epsilon = 1.0
  delta = 1e-6

Whatever is not known, missing or of the wrong kind is refused with its line.
"""

import dataclasses
import hashlib
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from accountants.errors import AccountingError, PolicyError
from accountants.events import NeighbouringRelation, as_relation
from accountants.toml_table import MAX_BYTES, TomlTable, parse_toml

FILE = "policy.toml"
"""Usual name, in the folder of the data."""

ALL = "all"
"""Instead of a cohort: all data."""

NUM_EXAMPLES = "num_examples"
"""Listed in `Policy.public` where the number of units is public. DP-SGD needs it to be."""

_FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}")
Ranges = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Ceiling:
    """(ε, δ) that may be reached and not passed."""

    epsilon: float
    delta: float


@dataclasses.dataclass(frozen=True)
class Cohort:
    """A part of the data with a ceiling of its own, disjoint from all others.

    Attributes:
      ceiling: for what is released from these rows, alone or with all data.
      rows: sorted, disjoint ranges (from, to), `to` exclusive, of row numbers.
    """

    ceiling: Ceiling
    rows: Ranges

    @property
    def size(self) -> int:
        """Number of rows."""
        return sum(end - start for start, end in self.rows)


@dataclasses.dataclass(frozen=True)
class Purpose:
    """A part of the budget set aside for a purpose.

    Attributes:
      ceiling: for what is released for this purpose.
      release: kinds, of those that the policy allows, that may be released for it.
    """

    ceiling: Ceiling
    release: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Policy:
    """What is allowed on one data set.

    Attributes:
      name: of the data set.
      fingerprint: "sha256:…" of the data, or "". Whoever knows all but one unit can tell by it which one is there: private.
      description: in public words; "" where there is a fingerprint.
      neighbouring_relation: under which every ceiling is meant.
      unit: of privacy, such as "example".
      public: what counts as public, in words; `NUM_EXAMPLES` among them has a meaning for programs.
      ceiling: for everything.
      release: kind → to whom.
      cohorts, purposes: by name.
    """

    name: str
    fingerprint: str
    description: str
    neighbouring_relation: NeighbouringRelation
    unit: str
    public: tuple[str, ...]
    ceiling: Ceiling
    release: Mapping[str, str]
    cohorts: Mapping[str, Cohort]
    purposes: Mapping[str, Purpose]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, for the header of the budget; rows are replaced by their number and digest."""
        result = dataclasses.asdict(self)
        result |= {"neighbouring_relation": str(self.neighbouring_relation), "public": list(self.public)}
        for name, cohort in self.cohorts.items():
            digest = hashlib.sha256(repr(cohort.rows).encode()).hexdigest()
            result["cohorts"][name]["rows"] = {"number": cohort.size, "sha256": digest}
        for name, purpose in self.purposes.items():
            result["purposes"][name]["release"] = list(purpose.release)
        return result


def read_policy(path: str | os.PathLike[str]) -> Policy:
    """Reads a policy.

    Raises:
      PolicyError: it can't be read, or anything in it is not as it has to be; names the line.
    """
    path = Path(path)
    try:
        with open(path, "rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise PolicyError(f"can't read the policy {path}: {error.strerror or error}") from error
    try:
        return parse_policy(raw, folder=path.parent)
    except PolicyError as error:
        raise PolicyError(f"{path}: {error}", error.line) from None


def parse_policy(raw: bytes, *, folder: Path = Path()) -> Policy:
    """The policy that `raw` holds.

    Args:
      raw: content of the file.
      folder: of files that it names.

    Raises:
      PolicyError: names the line.
    """
    return _policy(parse_toml(raw), folder)


def _policy(root: TomlTable, folder: Path) -> Policy:
    data = root.table("data", "a table that names the data")
    name = data.text("name", "the name of the data set")
    if data.has("fingerprint") == data.has("description"):
        data.refuse("give either fingerprint (python -m experiments.fingerprint prints it) or description")
    fingerprint = description = ""
    if data.has("fingerprint"):
        fingerprint = data.text("fingerprint")
        if not _FINGERPRINT.fullmatch(fingerprint):
            data.refuse("must be sha256: and 64 hexadecimal digits", "fingerprint")
    else:
        description = data.text("description")
    relation = data.text("neighbouring_relation", f"one of {', '.join(NeighbouringRelation)}")
    try:
        neighbouring_relation = as_relation(relation)
    except AccountingError as error:
        data.refuse(str(error), "neighbouring_relation")
    unit = data.text("unit", 'the unit of privacy, such as "example"')
    public = data.texts("public", "what counts as public, possibly nothing")
    data.end("name, fingerprint or description, neighbouring_relation, unit, public")

    whole = root.table("ceiling", "a table with the ceiling for everything: epsilon and delta")
    ceiling = _ceiling(whole)
    whole.end("epsilon, delta")

    allowed = root.table("release", "a table of what may be released, each with a text that says to whom")
    release = {kind: allowed.text(kind, "a text that says to whom") for kind in allowed.names()}
    if not release:
        allowed.refuse('says nothing that may be released, so nothing could run; for example: model = "anyone"')

    cohorts = {}
    if root.has("cohort"):
        tables = root.table("cohort", "tables [cohort.NAME]")
        for cohort in tables.names():
            if cohort == ALL:
                tables.refuse(f"a cohort can't be called {ALL}: that means all data", cohort)
            reader = tables.table(cohort, "a table")
            rows = _rows(reader, folder)
            cohorts[cohort] = Cohort(_ceiling(reader, within=ceiling), rows)
            reader.end("rows, epsilon, delta")
        _check_disjoint(tables, cohorts)
    purposes = {}
    if root.has("purpose"):
        tables = root.table("purpose", "tables [purpose.NAME]")
        for purpose in tables.names():
            reader = tables.table(purpose, "a table")
            kinds = reader.texts("release", "what may be released for it")
            for kind in kinds:
                if kind not in release:
                    reader.refuse(f"{kind!r:.60} is not in [release], which has {', '.join(release)}", "release")
            purposes[purpose] = Purpose(_ceiling(reader, within=ceiling), kinds)
            reader.end("release, epsilon, delta")
    root.end("[data], [ceiling], [release], [cohort.NAME], [purpose.NAME]")
    return Policy(name, fingerprint, description, neighbouring_relation, unit, public, ceiling, release, cohorts, purposes)


def _ceiling(table: TomlTable, within: Ceiling | None = None) -> Ceiling:
    epsilon, delta = table.positive("epsilon"), table.positive("delta", below=1.0)
    for key, value in (("epsilon", epsilon), ("delta", delta)):
        if within is not None and value > getattr(within, key):
            table.refuse(f"{value:g} is above the ceiling of the whole, {getattr(within, key):g}: it could never be used", key)
    return Ceiling(epsilon, delta)


def _rows(reader: TomlTable, folder: Path) -> Ranges:
    what = "a list of ranges [from, to], or the name of a .npy file of row numbers"
    value = reader.take("rows", (list, str), what)
    if isinstance(value, str):
        try:
            ids = np.load(folder / value, allow_pickle=False)
        except (OSError, ValueError, EOFError, MemoryError) as error:
            reader.refuse(f"can't read {value!r:.80}: {error!s:.120}", "rows")
        if (
            not isinstance(ids, np.ndarray)
            or ids.ndim != 1
            or ids.dtype.kind not in "iu"
            or len(ids) == 0
            or not 0 <= int(ids.min()) <= int(ids.max()) < 2**62
        ):
            reader.refuse(f"{value!r:.80} must hold one row of whole numbers ≥ 0", "rows")
        ids = np.unique(ids).astype(np.int64)
        breaks = np.flatnonzero(np.diff(ids) > 1)
        starts, ends = ids[np.append(0, breaks + 1)], ids[np.append(breaks, len(ids) - 1)] + 1
        return tuple(zip(starts.tolist(), ends.tolist(), strict=True))
    ranges = []
    for item in value:
        if not (isinstance(item, list) and len(item) == 2 and all(type(end) is int for end in item)):
            reader.refuse(f"must be {what}; got {item!r:.60}", "rows")
        if not 0 <= item[0] < item[1] < 2**63:
            reader.refuse(f"a range [from, to] has 0 ≤ from < to; got {item!r:.60}", "rows")
        ranges.append((item[0], item[1]))
    if not ranges:
        reader.refuse("has no rows", "rows")
    ranges.sort()
    for (_, end), (start, _) in itertools.pairwise(ranges):
        if start < end:
            reader.refuse(f"row {start} is in two ranges", "rows")
    return tuple(ranges)


def _check_disjoint(tables: TomlTable, cohorts: Mapping[str, Cohort]) -> None:
    """Parallel composition needs it."""
    ranges: Sequence[tuple[int, int, str]] = sorted((*pair, name) for name, cohort in cohorts.items() for pair in cohort.rows)
    for (_, end, one), (start, _, other) in itertools.pairwise(ranges):
        if start < end:
            tables.refuse(f"overlaps with cohort {one}: both have row {start}", other)
