"""How long a report of many events takes, and how large its page is.

python -m benchmarks.report_page [--events=1000000]
"""

import argparse
import tempfile
import time
from pathlib import Path

from accountants import GaussianDpEvent, Ledger, dpsgd_event, read_ledger
from accountants.html.page import page
from accountants.report import text_table
from accountants.runs import read_run

_BATCH = 1000


def main() -> None:
    """Prints a table of what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    args = parser.parse_args()
    print("| what | wall | processor | size |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.jsonl"
        _write(path, args.events)
        clock = _Clock()
        read_ledger(path)
        clock.row("reading and verifying every line", f"{path.stat().st_size / 2**20:,.0f} MiB")
        run = read_run(path)
        clock.row("that, ε, breakdown and privacy.json's figures", f"{len(text_table(run.breakdown)):,} characters")
        text = page([run])
        clock.row("the page", f"{len(text.encode()) / 1024:,.0f} KiB")


def _write(path: Path, events: int) -> None:
    """A line an event: nine updates of DP-SGD and one measurement, again and again."""
    many = [("train/gradients", dpsgd_event(4.0, 0.004, 1), 1)] * 9 + [("eval/accuracy", GaussianDpEvent(9000.0), 1)]
    with Ledger(path, public={"delta": 1e-6, "num_examples": 60_000}) as ledger:
        for start in range(0, events, _BATCH):
            ledger.charge_all((many * (_BATCH // 10))[: min(_BATCH, events - start)])


class _Clock:
    def __init__(self) -> None:
        self._wall, self._processor = time.perf_counter(), time.process_time()

    def row(self, what: str, size: str) -> None:
        """What happened since the last row."""
        wall, processor = time.perf_counter(), time.process_time()
        print(f"| {what} | {wall - self._wall:.1f} s | {processor - self._processor:.1f} s | {size} |", flush=True)
        self._wall, self._processor = wall, processor


if __name__ == "__main__":
    main()
