"""Time and memory of one clipped sum over plain training's: `python -m benchmarks.clipping [--peers] [--torch] [NAME ...]`.

Rounds alternate between the methods; medians of the rounds' ratios to the plain step on the whole batch, by CPU and by wall
time, with their spread. Where ours takes fewer examples at a time, so does a second plain step. Memory is what XLA reports as
temporary. All work is random data of the shape that is named.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.clipping_work import WORK, Work
from marauder_dp import clipped_grad, explain

ROUNDS = 7
PLAIN = "plain"
_SECONDS = 0.5  # at least, for each method in each round
_SLOW = 10.0  # seconds; what takes longer is measured once


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="rows to measure, by part of their name; all by default")
    parser.add_argument("--peers", action="store_true", help="vmap(grad) and jax-privacy as well, where their memory fits")
    parser.add_argument("--torch", action="store_true", help="PyTorch and Opacus as well")
    options = parser.parse_args()
    print(f"jax {jax.__version__} on {jax.default_backend()}, {ROUNDS} rounds\n")
    print(
        "| work | plain, ms | method | CPU time / plain | wall / plain | temporary memory, MiB (plain) | compile, s (plain) |"
    )
    print("|---|---|---|---|---|---|---|")
    for work in WORK:
        if not options.names or any(name.lower() in work.name.lower() for name in options.names):
            measure(work, options.peers, options.torch)


def measure(work: Work, peers: bool, torch: bool) -> None:
    """Prints the rows of one model."""
    params, data = work.params(), work.data()
    at_a_time = explain(work.loss(), params, data).batch_size
    sums = {
        "ours": clipped_grad(work.loss(), clip_norm=1.0),
        f"plain in our form, {at_a_time} at a time": clipped_grad(work.loss(), clip_norm=1.0, method="none"),
    }
    functions: dict[str, Callable[..., Any]] = {PLAIN: plain(work.loss())}
    functions |= {name: (lambda p, b, fn=fn: fn(p, b)[:2]) for name, fn in sums.items()}
    if peers:
        functions |= peer_functions(work, params)
    programs = {name: compiled(fn, params, data) for name, fn in functions.items()}
    run = lambda program: jax.block_until_ready(program(params, data))  # noqa: E731
    calls: dict[str, Callable[[], Any]] = {name: functools.partial(run, program) for name, (program, *_) in programs.items()}
    if torch and not work.penalty:
        from benchmarks.torch_clipping import torch_functions

        calls |= torch_functions(work)
        for name in calls.keys() - programs.keys():
            calls[name]()
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, times in seen.items():
            if not times or times[0][1] < _SLOW:
                times.append(timed(calls[name]))
    floor = seen.pop(PLAIN)
    for name, times in seen.items():
        cpu, wall = ([mine[i] / plain[i] for mine, plain in zip(times, floor, strict=False)] for i in (0, 1))
        milliseconds = statistics.median(wall for _, wall in floor) * 1e3
        costs = "| | |"
        if name in programs:
            (_, memory, compiling), (_, plain_memory, plain_compiling) = programs[name], programs[PLAIN]
            costs = f"| {memory:.0f} ({plain_memory:.0f}) | {compiling:.1f} ({plain_compiling:.1f}) |"
        row = f"| {work.name} ({work.batch_size}) | {milliseconds:.3g} | {name} | {spread(cpu)} | {spread(wall)} {costs}"
        print(row, flush=True)


def plain(loss: Callable[..., jax.Array]) -> Callable[..., Any]:
    """Non-private training's gradient as anyone would write it: of the batch's summed loss."""
    return jax.value_and_grad(lambda params, batch: jnp.sum(jax.vmap(loss, (None, 0))(params, batch)))


def peer_functions(work: Work, params: Any) -> dict[str, Callable[..., Any]]:
    """Written-out gradients, and jax-privacy's, of the whole batch where they take less than 4 GiB, and in micro-batches."""
    from jax_privacy.clipping import clipped_grad as jax_privacy_clipped_grad

    each = 4 * sum(leaf.size for leaf in jax.tree.leaves(params))
    sizes = [size for size in (work.batch_size, 16, 4) if size * each < 4 * 2**30]
    functions: dict[str, Callable[..., Any]] = {"vmap(grad)": written_out(work.loss())} if work.batch_size in sizes else {}
    for size in sizes:
        options = {"microbatch_size": size if size < work.batch_size else None, "keep_batch_dim": False}
        functions[f"jax-privacy ({size} at a time)"] = jax_privacy_clipped_grad(
            work.loss(), l2_clip_norm=1.0, return_grad_norms=True, **options
        )
    return functions


def written_out(loss: Callable[..., jax.Array]) -> Callable[..., Any]:
    """Clipping as anyone would write it."""

    def clipped_sum(params: Any, batch: Any) -> Any:
        grads = jax.vmap(jax.grad(loss), (None, 0))(params, batch)
        norms = jnp.sqrt(sum(jnp.sum(g.reshape(len(g), -1) ** 2, 1) for g in jax.tree.leaves(grads)))
        return jax.tree.map(lambda g: jnp.tensordot(1 / jnp.maximum(norms, 1), g, 1), grads), norms

    return clipped_sum


def compiled(fn: Callable[..., Any], params: Any, data: Any) -> tuple[Callable[..., Any], float, float]:
    """The program, its temporary memory in MiB, and seconds to trace and compile."""
    start = time.perf_counter()
    program = jax.jit(fn).lower(params, data).compile()
    seconds = time.perf_counter() - start
    return program, program.memory_analysis().temp_size_in_bytes / 2**20, seconds


def timed(call: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of CPU and wall for one call."""
    count, cpu, wall = 0, time.process_time(), time.perf_counter()
    while count == 0 or time.perf_counter() - wall < _SECONDS:
        call()
        count += 1
    return (time.process_time() - cpu) / count, (time.perf_counter() - wall) / count


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
