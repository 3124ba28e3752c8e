"""A real run of experiments.dpsgd that fails on purpose: what `kills` starts.

`mode` is `none`; `kill`, at the Nth write of a ledger or budget line: half of it is written, then SIGKILL; `synced`: SIGKILL
after the Nth line is on disk; or `full`: at the Nth write half of it is written, then the disk is full. `releases` is a file to
which each dispatch of updates is appended before it runs, as "first last": what really happened.
"""

import dataclasses
import errno
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from accountants import chained
from experiments import dpsgd, launch
from marauder_dp import training


def main(mode: str, at: int, releases: str, arguments: Sequence[str]) -> None:
    """Patches what fails, then runs the experiment and exits."""
    sys.argv = ["dpsgd", *arguments]
    training._CHUNK_SECONDS = 0.02  # many lines in a short run
    _fail(mode, at)
    _record(releases)
    launch.run(dpsgd.main)


def _fail(mode: str, at: int) -> None:
    calls = {"write": 0, "fsync": 0}

    class Os:
        """The os module, but for two functions."""

        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def write(self, fd: int, data: Any) -> int:
            calls["write"] += 1
            if mode in ("kill", "full") and calls["write"] == at:
                written = os.write(fd, bytes(data)[: len(data) // 2])
                if mode == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                return written
            if mode == "full" and calls["write"] > at:
                raise OSError(errno.ENOSPC, "No space left on device")
            return os.write(fd, data)

        def fsync(self, fd: int) -> None:
            os.fsync(fd)
            calls["fsync"] += 1
            if mode == "synced" and calls["fsync"] == at:
                os.kill(os.getpid(), signal.SIGKILL)

    chained.os = Os()  # type: ignore[attr-defined]


def _record(releases: str) -> None:
    prepare, fd = dpsgd.prepare, os.open(releases, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def recorded(settings: Any) -> Any:
        job = prepare(settings)
        run = job.program.run

        def noted(state: Any, keys: Any, data: Any, n: Any) -> Any:
            os.write(fd, f"{int(state.step)} {int(state.step) + int(n)}\n".encode())
            return run(state, keys, data, n)

        return dataclasses.replace(job, program=dataclasses.replace(job.program, run=noted))

    dpsgd.prepare = recorded
