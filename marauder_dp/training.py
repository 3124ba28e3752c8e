"""The training loop: charge, run, repeat. It can't run an update that the ledger has not recorded.

Updates run in chunks of about a second, each chunk one dispatch. Before a chunk starts, all its updates are
charged and on disk; so a crash over-states the spend by at most one chunk. After a crash the run resumes from its
last checkpoint with the same keys and repeats the same releases bit for bit: they are already paid for, and
the loop charges only beyond what the ledger holds.

The size of a chunk shows in the ledger, which is public, so it is chosen from a timing on zeros, not on private data.
"""

import dataclasses
import enum
import hashlib
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from accountants.budget import Budget
from marauder_dp.dpsgd import DpSgd, Keys, PrivateMetrics, TrainState
from marauder_dp.errors import IntegrityError, PlanError

PyTree = Any

_CHUNK_SECONDS = 1.0
_MAX_CHUNK = 10_000


class Outcome(enum.Enum):
    """Why training ended."""

    COMPLETE = "complete"
    CEILING = "ceiling"
    INTERRUPTED = "interrupted"


@dataclasses.dataclass(frozen=True)
class ChunkReport:
    """What one dispatch did. `metrics` is private.

    Attributes:
      step: updates done so far.
      updates: in this chunk.
      seconds: that they took.
      metrics: summed over the chunk.
      epsilon: charged so far, an upper bound.
    """

    step: int
    updates: int
    seconds: float
    metrics: PrivateMetrics
    epsilon: float


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled `DpSgd.train_steps`.

    Attributes:
      sgd: what was compiled.
      run: (state, keys, data, n) → (state, private metrics); gives up the buffers of `state`.
      compile_seconds: that compiling took.
      update_seconds: that one update takes, on zeros of the data's shapes.
      memory_bytes: arguments, results and temporaries by XLA's own count; None where the backend does not say.
      digest: SHA-256 of the program's text, the JAX version and the backend. Equal digests compute the same.
    """

    sgd: DpSgd
    run: Callable[..., tuple[TrainState, PrivateMetrics]]
    compile_seconds: float
    update_seconds: float
    memory_bytes: int | None
    digest: str

    @property
    def chunk(self) -> int:
        """Updates of about a second together."""
        return max(1, min(int(_CHUNK_SECONDS / self.update_seconds), _MAX_CHUNK))


def compile_program(sgd: DpSgd, state: TrainState, keys: Keys, data: PyTree, memory_limit: int | None = None) -> Program:
    """Compiles ahead of the first update, so that time and memory are known before private data is touched.

    Args:
      sgd: what to compile; its micro-batch becomes smaller where that is faster.
      state: of the right shapes; left as it is.
      keys: any, not the run's.
      data: arrays or their shapes and types.
      memory_limit: bytes; if it takes more, the micro-batch is made smaller until it does not. None for any.

    Raises:
      PlanError: even one example at a time takes more than the limit.
    """
    start, whole = time.perf_counter(), sgd
    sgd = whole.in_cache(state.params, data)
    groups = math.ceil(whole.micro_batch / sgd.micro_batch)
    while True:
        lowered = sgd.train_steps().lower(state, keys, data, jnp.zeros((), jnp.int32))
        compiled = lowered.compile()
        memory = _memory(compiled)
        if memory is None or memory_limit is None or memory <= memory_limit:
            break
        if sgd.micro_batch == 1:
            raise PlanError(
                f"one example at a time takes {memory / 2**20:,.2f} MiB, data and optimizer included, and the limit is "
                f"{memory_limit / 2**20:,.2f} MiB; raise it (--memory_limit) or take a smaller model"
            )
        # Part of it does not shrink, so this is a first guess.
        groups = max(groups + 1, math.ceil(groups * memory / memory_limit))
        sgd = whole.in_groups(groups)
    compile_seconds = time.perf_counter() - start
    text = f"{jax.__version__} {jax.default_backend()}\n{lowered.as_text()}"
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Program(sgd, compiled, compile_seconds, _update_seconds(compiled, state, keys, data), memory, digest)


def _update_seconds(compiled: jax.stages.Compiled, state: TrainState, keys: Keys, data: PyTree) -> float:
    """Of one update, on zeros."""
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), data)
    seconds, n = float("inf"), 1
    for _ in range(3):
        copy = jax.tree.map(jnp.copy, state)
        start = time.perf_counter()
        jax.block_until_ready(compiled(copy, keys, zeros, jnp.asarray(n, jnp.int32)))
        seconds = min(seconds, (time.perf_counter() - start) / n)
        n = max(1, min(int(0.2 / seconds), 100))
    return seconds


def _memory(compiled: jax.stages.Compiled) -> int | None:
    """Bytes of arguments, results and temporaries, where the backend tells."""
    try:
        usage = compiled.memory_analysis()
    except (NotImplementedError, jax.errors.JaxRuntimeError):
        return None
    if usage is None:
        return None
    total = usage.argument_size_in_bytes + usage.output_size_in_bytes + usage.temp_size_in_bytes
    return int(total - usage.alias_size_in_bytes)


def train(
    sgd: DpSgd,
    program: Program,
    state: TrainState,
    keys: Keys,
    data: PyTree,
    *,
    budget: Budget,
    charged: int,
    until: Callable[[int], int],
    after_chunk: Callable[[ChunkReport, TrainState], None],
    should_stop: Callable[[], bool],
) -> tuple[TrainState, Outcome]:
    """Runs the plan's remaining updates.

    Args:
      sgd: what runs.
      program: `sgd`, compiled.
      state: where to start; its buffers are given up.
      keys: the run's secrets.
      data: pytree of arrays (num_examples, ...).
      budget: charged before each chunk; says how much of it is affordable.
      charged: updates of this run that the ledger already holds.
      until: step → the next step at which the caller wants control.
      after_chunk: called after each chunk with what it did and the new state.
      should_stop: asked before each chunk.

    Returns:
      The last state and why training ended. On `CEILING` no update beyond the ceiling was run.

    Raises:
      IntegrityError: updates done and updates charged disagree at the end.
      LedgerError: a charge could not be recorded; its updates were not run.
    """
    event, steps = sgd.plan.event, sgd.plan.steps
    step, outcome = int(state.step), Outcome.COMPLETE
    # Decided once: a numerical bound for fewer updates may exceed the one for all by its last digits.
    payable = charged + budget.affordable(event, max(steps - charged, 0), sgd.plan.path)
    while step < steps:
        if should_stop():
            outcome = Outcome.INTERRUPTED
            break
        n = min(program.chunk, steps - step, max(1, until(step) - step))
        if charged > step:
            n = min(n, charged - step)  # a repeat of what was charged before a crash
        else:
            n = min(n, payable - charged)
            if n <= 0:
                outcome = Outcome.CEILING
                break
            budget.charge(sgd.plan.path, event, n)
            charged += n
        start = time.perf_counter()
        state, metrics = jax.block_until_ready(program.run(state, keys, data, jnp.asarray(n, jnp.int32)))
        seconds = time.perf_counter() - start
        step += n
        after_chunk(ChunkReport(step, n, seconds, metrics, budget.epsilon), state)
    if int(state.step) != step or charged < step or (outcome is not Outcome.INTERRUPTED and charged != step):
        raise IntegrityError(f"{charged} updates are charged but {int(state.step)} were done; do not publish this run")
    return state, outcome
