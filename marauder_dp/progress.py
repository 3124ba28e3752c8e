"""One line of progress: rewritten in place on a terminal, printed now and then elsewhere."""

import math
import sys
import time
from typing import TextIO

from marauder_dp.plan import DpSgdPlan
from marauder_dp.training import ChunkReport


class ProgressLine:
    """Shows step, private loss, ε so far against its target, speed and time left."""

    def __init__(self, plan: DpSgdPlan, epsilon_target: float, *, every_seconds: float = 10.0, stream: TextIO | None = None):
        """`epsilon_target` may be infinite; `every_seconds` counts only where the stream is not a terminal."""
        self._plan = plan
        self._target = epsilon_target
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._every = 0.2 if self._terminal else every_seconds
        self._last = -float("inf")
        self._width = 0

    def update(self, report: ChunkReport) -> None:
        """Shows `report`, unless the last one is too recent and training goes on."""
        now = time.monotonic()
        if now - self._last < self._every and report.step < self._plan.steps:
            return
        self._last = now
        self._show(format_progress(report, self._plan, self._target))

    def finish(self) -> None:
        """Ends the line."""
        if self._terminal and self._width:
            self._stream.write("\n")
            self._stream.flush()
            self._width = 0

    def _show(self, line: str) -> None:
        if self._terminal:
            self._stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self._stream.write(line + "\n")
        self._stream.flush()


def format_progress(report: ChunkReport, plan: DpSgdPlan, epsilon_target: float) -> str:
    """The line itself. Speed is in *expected* examples: how many were drawn is private."""
    steps = plan.steps
    seen = max(float(report.metrics.examples), 1.0)
    left = (steps - report.step) * report.seconds / report.updates
    line = (
        f"step {report.step:,}/{steps:,} ({report.step / steps:.0%})  "
        f"loss {float(report.metrics.loss) / seen:.3f} (private)  "
        f"{_spent(report.epsilon, epsilon_target)}  "
        f"{plan.batch_size * report.updates / report.seconds:,.0f} examples/s  {_clock(left)} left"
    )
    broken = float(report.metrics.non_finite)
    if broken:
        line += f"  WARNING: {broken:,.0f} non-finite gradients (private) count as zero; lower the learning rate"
    return line


def _spent(epsilon: float, target: float) -> str:
    return "NOT private" if math.isinf(epsilon) else f"ε {epsilon:.3f} / {target:.3f}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
