"""What a report is made from: a ledger, or another library's history, and what lies beside it in a run's folder."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accountants.breakdown import Breakdown, aggregated
from accountants.chain import LedgerContents, read_ledger
from accountants.errors import LedgerError
from accountants.histories import read_history
from accountants.report import breakdown_of, document_of

LEDGER, DOCUMENT, METRICS = "ledger.jsonl", "privacy.json", "metrics.jsonl"
"""Names in a run's folder."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """One line of metrics.jsonl. `private`: computed from private data without noise."""

    step: float
    split: str
    name: str
    value: float
    private: bool


@dataclasses.dataclass(frozen=True)
class Run:
    """One run, as far as a report shows it.

    Attributes:
      name: for people.
      contents: of the ledger.
      spent: the same with equal charges put together, in order of first appearance: all that figures need.
      breakdown: of the spend.
      document: as `report.privacy_document` makes it: figures, events and facts.
      pate: data-dependent and -independent figures of PATE's queries (`pate.replay.figures`); partly private.
      metrics: of the run, in order; partly private.
      is_ledger: whether it has one, so that there is a head to check; else it was another library's history.
    """

    name: str
    contents: LedgerContents
    spent: LedgerContents
    breakdown: Breakdown
    document: Mapping[str, Any]
    pate: Mapping[str, Any] | None = None
    metrics: tuple[Metric, ...] = ()
    is_ledger: bool = True

    def public(self) -> "Run":
        """The same without anything that was computed from private data without noise."""
        document = {key: value for key, value in self.document.items() if key != "pate"}
        return dataclasses.replace(
            self, document=document, pate=None, metrics=tuple(metric for metric in self.metrics if not metric.private)
        )


def run_of(
    contents: LedgerContents,
    name: str,
    delta: float | None = None,
    accountant: str = "auto",
    facts: Mapping[str, Any] | None = None,
) -> Run:
    """A run of which only the events are known, such as `histories.contents_of` makes.

    Args:
      contents: the events.
      name: for people.
      delta: in (0, 1); by default the one that `contents` declares.
      accountant: "auto", "pld" or "rdp".
      facts: for the statement.

    Raises:
      LedgerError: no δ is known.
      InvalidEventError, UnsupportedEventError: as the accountant.
    """
    spent = _spent(contents)
    breakdown = breakdown_of(spent, delta, accountant)
    return Run(name, contents, spent, breakdown, document_of(breakdown, spent, facts), is_ledger=False)


def _spent(contents: LedgerContents) -> LedgerContents:
    return dataclasses.replace(contents, charges=tuple(aggregated(contents.charges)))


def read_run(path: str | Path, delta: float | None = None, accountant: str = "auto") -> Run:
    """Reads a run.

    Args:
      path: of its folder, its ledger, or another library's history as JSON (see `histories.read_history`).
      delta: in (0, 1); by default the one the ledger declares.
      accountant: "auto", "pld" or "rdp".

    Raises:
      LedgerError: unreadable or damaged, or no δ is known.
      InvalidEventError, UnsupportedEventError: as the accountant.
    """
    path = Path(path)
    if path.suffix == ".json":
        return run_of(read_history(path), path.stem, delta, accountant)
    if path.is_dir():
        path = path / LEDGER
    contents = read_ledger(path)
    folder = path.absolute().parent
    name = folder.name if path.name == LEDGER and folder.name else path.stem
    written = _written(folder / DOCUMENT, contents.head) if path.name == LEDGER else {}
    spent = _spent(contents)
    breakdown = breakdown_of(spent, delta, accountant)
    document = document_of(breakdown, spent, written.get("facts"))
    pate = written.get("pate")
    return Run(
        name=name,
        contents=contents,
        spent=spent,
        breakdown=breakdown,
        document=document if pate is None else document | {"pate": pate},
        pate=pate if isinstance(pate, Mapping) else None,
        metrics=read_metrics(folder / METRICS) if path.name == LEDGER else (),
    )


def _written(path: Path, head: str) -> dict[str, Any]:
    """The privacy.json beside a ledger, for its facts; empty if there is none or it belongs to another state of the ledger."""
    try:
        document = json.loads(path.read_bytes())
        belongs = document["ledger"]["head"] == head and isinstance(document["facts"], dict)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise LedgerError(f"{path} is damaged ({type(error).__name__}); move it away to report on the ledger alone") from None
    return dict(document) if belongs else {}


def read_metrics(path: Path) -> tuple[Metric, ...]:
    """Whatever of a metrics.jsonl can be read and is a finite number. What isn't marked public counts as private."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return ()
    metrics = []
    for line in lines:
        try:
            row = json.loads(line)
            step, value = float(row["step"]), float(row["value"])
            if math.isfinite(step) and math.isfinite(value):
                metrics.append(Metric(step, str(row["split"]), str(row["name"]), value, row.get("private") is not False))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return tuple(metrics)
