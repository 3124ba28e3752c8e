"""How fast the ledger and the shared budget are written, read and accounted.

  python -m benchmarks.ledger [--events=1000000] [--folder=DIR]

DIR should lie on the disk of interest: a memory file system makes fsync free.
"""

import argparse
import tempfile
import time
from pathlib import Path

from accountants import GaussianDpEvent, Ledger, PoissonSampledDpEvent, SharedBudget, break_down, parse_policy, read_ledger

_BATCH = 1000


def main() -> None:
    """Prints a table of what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--folder", help="where to write; default: a temporary folder")
    args = parser.parse_args()
    print("| what | by the clock | of processor time |\n|---|---|---|")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        _ledger(Path(folder) / "ledger.jsonl", args.events)
        _budget(Path(folder) / "budget.jsonl")


def _ledger(path: Path, events: int) -> None:
    steps = [PoissonSampledDpEvent(0.01, GaussianDpEvent(sigma)) for sigma in (1.1, 1.3, 2.0)]
    paths = ["train/gradients", "data/mean", "student/labels"]
    batch = [(paths[i % 3], steps[i % 3], 1) for i in range(_BATCH)]
    with Ledger(path, public={"delta": 1e-5}) as ledger:
        clock = _Clock()
        for _ in range(events // _BATCH):
            ledger.charge_all(batch)
        clock.row(f"appending {events:,} events, {_BATCH:,} an fsync", events)
        clock, n = _Clock(), 0
        while clock.seconds < 2:
            ledger.charge("train/gradients", steps[0])
            n += 1
        clock.row("appending events, an fsync each", n)
    clock = _Clock()
    contents = read_ledger(path)
    size = f"{len(contents.hashes):,} lines ({path.stat().st_size / 2**20:,.0f} MiB)"
    clock.row(f"reading and verifying {size}")
    clock = _Clock()
    breakdown = break_down(contents.charges, 1e-5)
    clock.row(f"ε of the whole ({breakdown.epsilon:.4g}) and breakdown into {len(breakdown.components)}")


def _budget(path: Path) -> None:
    event = PoissonSampledDpEvent(0.001, GaussianDpEvent(4.0))
    with SharedBudget.create(path, parse_policy(_POLICY)) as budget:
        clock, n = _Clock(), 0
        while clock.seconds < 4:
            budget.reserve([("a", event, 1)], release="model", draw=True)
            n += 1
        clock.row("reservations checked against the ceiling, an fsync each", n)
        name = budget.reserve([("a", event, 100_000)], release="model").id
        clock, n = _Clock(), 0
        while clock.seconds < 2:
            budget.draw(name, "a", 1)
            n += 1
        clock.row("draws, an fsync each", n)


_POLICY = b"""
[data]
name = "nothing"
description = "for timing"
neighbouring_relation = "add_or_remove_one"
unit = "example"
public = []
[ceiling]
epsilon = 8.0
delta = 1e-6
[release]
model = "nobody"
"""


class _Clock:
    """Time since it was made, by the clock and of the processor."""

    def __init__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start[0]

    def row(self, what: str, count: int | None = None) -> None:
        """Prints seconds, or how many of `count` things a second."""
        both = self.seconds, time.process_time() - self._start[1]
        by_clock, cpu = (f"{s:.1f} s" if count is None else f"{count / max(s, 1e-9):,.0f} a second" for s in both)
        print(f"| {what} | {by_clock} | {cpu} |", flush=True)


if __name__ == "__main__":
    main()
