"""How fast the ledger and the shared budget are written, read and accounted.

  python -m benchmarks.ledger [--events=1000000] [--folder=DIR]

DIR should lie on the disk of interest: a memory file system makes fsync free.
"""

import argparse
import tempfile
import time
from pathlib import Path

from accountants import GaussianDpEvent, Ledger, PoissonSampledDpEvent, break_down, read_ledger

_BATCH = 1000


def main() -> None:
    """Prints a table of what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--folder", help="where to write; default: a temporary folder")
    args = parser.parse_args()
    print("| what | figure |\n|---|---|")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        _ledger(Path(folder) / "ledger.jsonl", args.events)


def _ledger(path: Path, events: int) -> None:
    steps = [PoissonSampledDpEvent(0.01, GaussianDpEvent(sigma)) for sigma in (1.1, 1.3, 2.0)]
    paths = ["train/gradients", "data/mean", "student/labels"]
    batch = [(paths[i % 3], steps[i % 3], 1) for i in range(_BATCH)]
    with Ledger(path, public={"delta": 1e-5}) as ledger:
        start = time.perf_counter()
        for _ in range(events // _BATCH):
            ledger.charge_all(batch)
        _row(f"appending {events:,} events, {_BATCH:,} an fsync", f"{events / (time.perf_counter() - start):,.0f} a second")
        start, n = time.perf_counter(), 0
        while (seconds := time.perf_counter() - start) < 2:
            ledger.charge("train/gradients", steps[0])
            n += 1
        _row("appending events, an fsync each", f"{n / seconds:,.0f} a second")
    start = time.perf_counter()
    contents = read_ledger(path)
    read = time.perf_counter()
    breakdown = break_down(contents.charges, 1e-5)
    end = time.perf_counter()
    size = f"{len(contents.hashes):,} lines ({path.stat().st_size / 2**20:,.0f} MiB)"
    _row(f"reading and verifying {size}", f"{read - start:.1f} s")
    _row(f"ε of the whole ({breakdown.epsilon:.4g}) and breakdown into {len(breakdown.components)}", f"{end - read:.1f} s")


def _row(what: str, figure: str) -> None:
    print(f"| {what} | {figure} |", flush=True)


if __name__ == "__main__":
    main()
