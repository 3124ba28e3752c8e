"""Kills real training runs at random, again and again, and checks after each what ledger and budget say of it.

  python -m benchmarks.kills [--kills=200] [--seed=0] [--folder=DIR]

Runs of experiments.dpsgd on digits, all under one policy, are killed from outside at a random moment, in the middle of a write
of a line, right after one, or meet a full disk in the middle of one; then they are resumed, until the kills are used up. After
each, the ledger holds at least the updates that really ran, the budget at least what the ledger holds, and that at most one
chunk more than what ran. In the end every run completes, and both hold exactly what ran.

Processes are forked from this one, which imports JAX and never starts it.
"""

import argparse
import collections
import dataclasses
import importlib
import os
import random
import re
import signal
import tempfile
import time
import traceback
from pathlib import Path

from accountants import SharedBudget, read_ledger, read_policy
from accountants.errors import LedgerError
from benchmarks import killed_run
from marauder_dp.datasets import load_dataset
from marauder_dp.plan import GRADIENTS

MODES = ("outside", "outside", "kill", "synced", "full")
STEPS = 600
CHUNK = STEPS // 20  # at most: a chunk ends where the model is evaluated
_FLAGS = (f"--steps={STEPS}", "--batch_size=32", "--noise_multiplier=30", "--checkpoint_seconds=0.05")
POLICY = """\
[data]
name = "digits"
fingerprint = "{fingerprint}"
neighbouring_relation = "add_or_remove_one"
unit = "example"
public = ["num_examples"]
[ceiling]
epsilon = 3.0
delta = 1e-5
[release]
model = "anyone"
"""


@dataclasses.dataclass
class Figures:
    """What was seen.

    Attributes:
      kills: by mode.
      runs: that completed.
      ledger_over: most updates that a ledger held beyond those that ran.
      budget_over: likewise the budget.
      resumed: from a state with torn lines, half-drawn chunks or none, all the same.
    """

    kills: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    runs: int = 0
    ledger_over: int = 0
    budget_over: int = 0
    resumed: int = 0


def harness(folder: Path, kills: int, seed: int = 0) -> Figures:
    """Kills and resumes `kills` times; raises AssertionError where a promise is broken."""
    for slow in ("marauder_dp.session", "marauder_dp.policy", "orbax.checkpoint", "sklearn.datasets"):
        importlib.import_module(slow)  # once, before forking
    rng, figures = random.Random(seed), Figures()
    (folder / "policy.toml").write_text(POLICY.format(fingerprint=load_dataset("digits").fingerprint()))
    SharedBudget.create(folder / "budget.jsonl", read_policy(folder / "policy.toml")).close()
    while sum(figures.kills.values()) < kills:
        run = folder / f"run{figures.runs}"
        for _ in range(rng.randint(1, 6)):
            if sum(figures.kills.values()) < kills:
                mode = rng.choice(MODES)
                if _killed(folder, run, mode, rng):
                    figures.kills[mode] += 1
                    _check(folder, run, figures)
        process = _Process(folder, run, "none", 0)
        assert process.wait() == 0, process.output
        figures.resumed += "resuming after" in process.output
        figures.runs += 1
        _check(folder, run, figures, complete=True)
    return figures


class _Process:
    """A run in a process of its own."""

    def __init__(self, folder: Path, run: Path, mode: str, at: int):
        flags = (f"--policy={folder}", f"--workdir={run}", f"--compilation_cache={folder}/cache", *_FLAGS)
        self._output = folder / "output"
        self._output.write_text("")
        self._pid = os.fork()
        if self._pid == 0:
            fd = os.open(self._output, os.O_WRONLY | os.O_APPEND)
            os.dup2(fd, 1)
            os.dup2(fd, 2)
            try:
                killed_run.main(mode, at, str(folder / f"{run.name}.releases"), flags)
            except SystemExit as stop:
                os._exit(int(stop.code or 0))
            except BaseException:
                traceback.print_exc()
            os._exit(99)

    @property
    def output(self) -> str:
        return self._output.read_text()

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)

    def wait(self) -> int:
        """Its exit code, or minus the signal that ended it."""
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])


def _killed(folder: Path, run: Path, mode: str, rng: random.Random) -> bool:
    """Whether it died as planned; it may have completed before."""
    process = _Process(folder, run, mode if mode != "outside" else "none", rng.randint(1, 60))
    if mode == "outside":
        end = time.monotonic() + 300
        while "Plan:" not in process.output and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 2.0))
        process.kill()
    code = process.wait()
    if mode == "full":
        assert code in (0, 2), process.output  # one line that names it, no traceback
        assert "Traceback" not in process.output
        return code == 2
    assert code in (0, -signal.SIGKILL), process.output
    return code == -signal.SIGKILL


def _check(folder: Path, run: Path, figures: Figures, complete: bool = False) -> None:
    """The promises."""
    releases = folder / f"{run.name}.releases"
    rows = releases.read_text().splitlines() if releases.exists() else []
    ran = max((int(row.split()[1]) for row in rows), default=0)
    try:
        ledger = read_ledger(run / "ledger.jsonl")
        charged, name = ledger.count(GRADIENTS), ledger.public["budget"]["run"]
    except LedgerError as error:  # killed before its header was written
        if not re.search("holds no whole line|can't read", str(error)):
            raise
        charged, name = 0, ""
    with SharedBudget(folder / "budget.jsonl", read_only=True) as budget:
        reservation = budget.state.reservations.get(name)
        assert sum(r.run == str(run) for r in budget.state.reservations.values()) <= 1
    drawn = reservation.drawn[GRADIENTS] if reservation is not None else 0
    assert ran <= charged <= drawn, (ran, charged, drawn)
    assert drawn - ran <= CHUNK, (ran, charged, drawn)
    figures.ledger_over = max(figures.ledger_over, charged - ran)
    figures.budget_over = max(figures.budget_over, drawn - ran)
    if complete:
        assert ran == charged == drawn == STEPS
        assert reservation is not None
        assert reservation.committed


def main() -> None:
    """Prints what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="where to write; default: a temporary folder")
    args = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        figures = harness(Path(folder), args.kills, args.seed)
    kinds = ", ".join(f"{count} {mode}" for mode, count in sorted(figures.kills.items()))
    print(f"kills: {sum(figures.kills.values())} ({kinds}), {time.monotonic() - start:.0f} s")
    print(f"runs completed: {figures.runs}, of {STEPS} updates each; {figures.resumed} of them from a checkpoint")
    over = f"{figures.ledger_over} in a ledger, {figures.budget_over} in the budget"
    print(f"updates charged beyond those that ran, at most: {over}; a chunk is at most {CHUNK}")


if __name__ == "__main__":
    main()
