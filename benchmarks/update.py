"""Time of one update: DP-SGD against the same loop without clipping and noise. `python -m benchmarks.update`.

Both run as the trainer runs them: Poisson sampling, gathering and the optimizer included, many updates a dispatch, on
random data. Rounds alternate; medians with the spread of the rounds.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from marauder_dp import DpSgd, non_private_plan, plan_dpsgd, preflight, secrets
from marauder_dp.dpsgd import choose_micro_batch
from marauder_dp.models import cross_entropy, make_model
from marauder_dp.training import compile_program

WORK = [("logistic", (104,), 2, 32_561, 1024), ("mlp", (28, 28, 1), 10, 60_000, 256), ("cnn", (28, 28, 1), 10, 60_000, 256)]
ROUNDS = 5


def main() -> None:
    """Prints the table."""
    print(f"jax {jax.__version__} on {jax.default_backend()}\n")
    print("| model | parameters | expected batch | non-private, ms | DP-SGD, ms | ratio | compile, s | memory, MiB |")
    print("|---|---|---|---|---|---|---|---|")
    for name, shape, classes, n, batch in WORK:
        model = make_model(name, shape, classes)
        params = preflight.initialise(model, shape, 0)
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        rng = np.random.default_rng(0)
        data = (jnp.asarray(rng.random((n, *shape), np.float32)), jnp.asarray(rng.integers(0, classes, n), jnp.int32))
        plain = non_private_plan(num_examples=n, batch_size=batch, steps=100)
        private = plan_dpsgd(num_examples=n, batch_size=batch, steps=100, clip_norm=1.0, epsilon=3.0)
        keys, programs = secrets.fresh_keys(), []
        for plan in (plain, private):
            micro_batch = choose_micro_batch(batch, n)
            sgd = DpSgd(plan, cross_entropy(model), optax.sgd(0.01, momentum=0.9), micro_batch)
            programs.append((sgd.init(params), compile_program(sgd, sgd.init(params), keys, data)))
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(ROUNDS):
            for (state, program), seen in zip(programs, times, strict=True):
                updates = max(1, min(program.chunk, 300))
                copy = jax.tree.map(jnp.copy, state)
                start = time.perf_counter()
                jax.block_until_ready(program.run(copy, keys, data, jnp.int32(updates)))
                seen.append((time.perf_counter() - start) / updates * 1e3)
        floor, ours = (f"{statistics.median(seen):.3g} ({min(seen):.3g} to {max(seen):.3g})" for seen in times)
        ratio = statistics.median(b / a for a, b in zip(*times, strict=True))
        compiling = " / ".join(f"{program.compile_seconds:.1f}" for _, program in programs)
        memory = " / ".join(f"{(program.memory_bytes or 0) / 2**20:.0f}" for _, program in programs)
        print(f"| {name} | {size:,} | {batch:,} | {floor} | {ours} | {ratio:.2f} | {compiling} | {memory} |", flush=True)


if __name__ == "__main__":
    main()
