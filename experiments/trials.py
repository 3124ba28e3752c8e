"""Trials of a sweep: which settings, run as processes of their own, and what came of them."""

import csv
import io
import itertools
import json
import random
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

Choice = tuple[tuple[str, str], ...]
"""Flags and their values."""


@dataclass(frozen=True)
class Trial:
    """One run of the experiment.

    Attributes:
      number: from 0.
      choice: what it differs by from the others.
      folder: its --workdir.
    """

    number: int
    choice: Choice
    folder: Path


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Attributes:
      trial: that ran.
      code: of its exit: 0 done, 3 the budget would have been exceeded, …
      score: the last test metric that is marked public; None where there is none.
      epsilon: as its own privacy.json has it; None where there is none.
    """

    trial: Trial
    code: int
    score: float | None
    epsilon: float | None


def grid(texts: Sequence[str]) -> list[Choice]:
    """All combinations of texts such as "learning_rate=0.1,0.3".

    Raises:
      ValueError: a text has another form, or a flag stands twice.
    """
    axes = []
    for text in texts:
        name, equals, values = text.partition("=")
        if not (name.isidentifier() and equals and all(values.split(","))):
            raise ValueError(f"--grid looks like learning_rate=0.1,0.3; got {text!r:.80}")
        axes.append([(name, value) for value in dict.fromkeys(values.split(","))])
    if len({axis[0][0] for axis in axes}) < len(axes):
        raise ValueError("--grid has a flag twice; give all its values at once")
    return list(itertools.product(*axes))


def drawn(choices: Sequence[Choice], number: int | None, seed: int) -> list[Choice]:
    """All choices, or so many of them at random, without repetition as far as they go."""
    if number is None or number >= len(choices):
        return list(choices)
    return random.Random(seed).sample(choices, number)


def run(experiment: str, trials: Iterable[Trial], flags: Sequence[str], *, jobs: int, metric: str) -> list[Outcome]:
    """Runs all trials, `jobs` at a time; each writes what it prints to a file beside its folder.

    The same folders again resume what was interrupted and only report what was done.
    """

    def one(trial: Trial) -> Outcome:
        command = [sys.executable, "-m", f"experiments.{experiment}", f"--workdir={trial.folder}", *flags]
        command += [f"--{name}={value}" for name, value in trial.choice]
        trial.folder.parent.mkdir(parents=True, exist_ok=True)
        with open(f"{trial.folder}.log", "a", encoding="utf-8") as log:
            print("$", shlex.join(command), file=log, flush=True)
            code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False).returncode
        return Outcome(trial, code, _score(trial.folder, metric), _epsilon(trial.folder))

    with ThreadPoolExecutor(max_workers=jobs) as pool:
        return list(pool.map(one, trials))


def best(outcomes: Sequence[Outcome]) -> Outcome | None:
    """The completed trial with the highest score; of equal ones the first."""
    done = [outcome for outcome in outcomes if outcome.code == 0 and outcome.score is not None]
    return max(done, key=lambda outcome: outcome.score or 0.0, default=None)


def rows(outcomes: Sequence[Outcome], metric: str) -> list[dict[str, str]]:
    """A table, best first."""
    ordered = sorted(outcomes, key=lambda o: (o.code != 0, -(o.score if o.score is not None else float("-inf"))))
    return [
        {
            "trial": f"{outcome.trial.number:03d}",
            **dict(outcome.trial.choice),
            metric: "" if outcome.score is None else f"{outcome.score:.6g}",
            "epsilon_alone": "" if outcome.epsilon is None else f"{outcome.epsilon:.6g}",
            "exit_code": str(outcome.code),
        }
        for outcome in ordered
    ]


def as_csv(table: Sequence[Mapping[str, str]]) -> str:
    """The table for programs."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return stream.getvalue()


def as_text(table: Sequence[Mapping[str, str]]) -> str:
    """The table for people."""
    cells = [list(table[0]), *(list(row.values()) for row in table)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in cells)


def _score(folder: Path, metric: str) -> float | None:
    score = None
    try:
        for line in (folder / "metrics.jsonl").read_text().splitlines():
            row = json.loads(line)
            if (row["split"], row["name"]) == ("test", metric) and row.get("private") is False:  # no mark is private, too
                score = float(row["value"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return score


def _epsilon(folder: Path) -> float | None:
    try:
        return float(json.loads((folder / "privacy.json").read_bytes())["epsilon"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
