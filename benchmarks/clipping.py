"""Time and memory of one clipped sum against plain training's gradient. `python -m benchmarks.clipping [--vmap] [NAME ...]`.

Rounds alternate between the methods; medians of the rounds' ratios to the plain step, by CPU and by wall time, with their
spread. Memory is what XLA reports as temporary. All work is random data of the shape that is named.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

from benchmarks.clipping_work import WORK, Work
from marauder_dp import clipped_grad

ROUNDS = 7
_SECONDS = 0.5  # at least, for each method in each round


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="rows to measure, by part of their name; all by default")
    parser.add_argument("--vmap", action="store_true", help="measure vmap(grad) as well, where its memory fits")
    options = parser.parse_args()
    print(f"jax {jax.__version__} on {jax.default_backend()}, {ROUNDS} rounds\n")
    print(
        "| work | plain, ms | method | CPU time / plain | wall / plain | temporary memory, MiB (plain) | compile, s (plain) |"
    )
    print("|---|---|---|---|---|---|---|")
    for work in WORK:
        if not options.names or any(name.lower() in work.name.lower() for name in options.names):
            measure(work, ["cuts", "vmap"] if options.vmap else ["cuts"])


def measure(work: Work, methods: list[str]) -> None:
    """Prints the rows of one model."""
    params, data = work.params(), work.data()
    names = ["none", *methods]
    programs = {name: compiled(work, name, params, data) for name in names}
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for _ in range(ROUNDS):
        for name in names:
            seen[name].append(timed(programs[name][0], params, data))
    floor = seen["none"]
    for name in methods:
        cpu, wall = ([mine[i] / plain[i] for mine, plain in zip(seen[name], floor, strict=True)] for i in (0, 1))
        milliseconds = statistics.median(wall for _, wall in floor) * 1e3
        (_, memory, compiling), (_, plain_memory, plain_compiling) = programs[name], programs["none"]
        print(
            f"| {work.name} ({work.batch_size}) | {milliseconds:.3g} | {name} | {spread(cpu)} | {spread(wall)} "
            f"| {memory:.0f} ({plain_memory:.0f}) | {compiling:.1f} ({plain_compiling:.1f}) |",
            flush=True,
        )


def compiled(work: Work, method: str, params: Any, data: Any) -> tuple[Callable[..., Any], float, float]:
    """The program, its temporary memory in MiB, and seconds to trace and compile."""
    fn = clipped_grad(work.loss(), clip_norm=1.0, method=method)
    start = time.perf_counter()
    program = jax.jit(lambda p, b: fn(p, b)[:2]).lower(params, data).compile()
    seconds = time.perf_counter() - start
    return program, program.memory_analysis().temp_size_in_bytes / 2**20, seconds


def timed(program: Callable[..., Any], params: Any, data: Any) -> tuple[float, float]:
    """Seconds of CPU and wall for one call."""
    count, cpu, wall = 0, time.process_time(), time.perf_counter()
    while count == 0 or time.perf_counter() - wall < _SECONDS:
        jax.block_until_ready(program(params, data))
        count += 1
    return (time.process_time() - cpu) / count, (time.perf_counter() - wall) / count


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
