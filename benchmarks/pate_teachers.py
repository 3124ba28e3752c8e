"""Speed of training an ensemble. `python -m benchmarks.pate_teachers [NAME ...]`; `--memory` for memory by number of teachers.

Beside ours runs what one would write first: a loop over teachers with one jitted update, compiled once, each batch a slice of
the teacher's shuffled examples; and the same with the update jitted anew for each teacher, of which a few are timed and scaled
up. The same updates on the same synthetic examples; compiling is timed by itself. CPU seconds count all threads.
"""

import argparse
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

ROUNDS = 3
_JITTED_ANEW = 3  # teachers that are timed


class Work(NamedTuple):
    """An ensemble to train: model and optimizer by name, hidden units of an MLP, `examples` of `shape` for each teacher."""

    model: str
    optimizer: str
    hidden: int
    shape: tuple[int, ...]
    teachers: int
    examples: int
    batch_size: int
    epochs: int

    @property
    def updates(self) -> int:
        """Of each teacher."""
        return self.epochs * math.ceil(self.examples / self.batch_size)


WORK = {
    "tabular MLP 14-32-2, Adam": Work("mlp", "adam", 32, (14,), 250, 130, 32, 10),
    "MLP 784-128-10, SGD with momentum": Work("mlp", "sgd", 128, (784,), 250, 240, 32, 2),
    "MLP 784-128-10, Adam": Work("mlp", "adam", 128, (784,), 250, 240, 32, 2),
    "CNN 28x28, 26,010 parameters, Adam": Work("cnn", "adam", 0, (28, 28, 1), 50, 240, 32, 2),
}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="rows to measure, by part of their name; all by default")
    parser.add_argument("--memory", action="store_true", help="peak memory by number of teachers instead")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    chosen = [name for name in WORK if not options.names or any(part.lower() in name.lower() for part in options.names)]
    if options.peak:
        print(peak(WORK[chosen[0]]._replace(teachers=options.peak)))
    elif options.memory:
        memory(chosen)
    else:
        speed(chosen)


def speed(names: list[str]) -> None:
    """Prints CPU and wall seconds of every way."""
    import os

    import jax

    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    print(f"jax {jax.__version__} on {len(jax.devices())} x {jax.devices()[0].device_kind}, {ROUNDS} rounds\n")
    print("| ensemble | way | CPU seconds | wall seconds | CPU / ours | wall / ours | compiling, s |")
    print("|---|---|---|---|---|---|---|")
    for name in names:
        work, ways = WORK[name], {"ours": ours, "loop, one jit": loop, "loop, a jit each": jit_each}
        seen: dict[str, list[tuple[float, float, float]]] = {way: [] for way in ways}
        for _ in range(ROUNDS):
            for way, train in ways.items():
                seen[way].append(train(work))
        mine = [statistics.median(times) for times in zip(*seen["ours"], strict=True)]
        for way, rounds in seen.items():
            cpu, wall, compiling = (statistics.median(times) for times in zip(*rounds, strict=True))
            title = f"{name}, {work.teachers} teachers, {work.epochs} epochs of {work.examples}"
            spread = f"{min(r[0] for r in rounds):.3g} to {max(r[0] for r in rounds):.3g}"
            print(
                f"| {title} | {way} | {cpu:.3g} ({spread}) | {wall:.3g} | {cpu / mine[0]:.3g} | {wall / mine[1]:.3g} "
                f"| {compiling:.2g} |",
                flush=True,
            )


def _setup(work: Work) -> tuple[Any, Any, Any, Any]:
    """Model, data, partitions and the training."""
    import jax.numpy as jnp
    import optax

    from marauder_dp.models import Mlp, cross_entropy, make_model
    from marauder_dp.pate.partitions import partition
    from marauder_dp.pate.teachers import TeacherTraining

    rng = np.random.default_rng(0)
    n = work.teachers * work.examples
    classes = 2 if len(work.shape) == 1 and work.shape[0] < 100 else 10
    data = rng.normal(size=(n, *work.shape)).astype(np.float32), rng.integers(classes, size=n).astype(np.int32)
    if work.model == "mlp":
        model: Any = Mlp(num_classes=classes, example_rank=len(work.shape), hidden=(work.hidden,))
    else:
        model = make_model(work.model, work.shape, classes)
    training = TeacherTraining(
        init=lambda key: model.init(key, jnp.zeros(work.shape))["params"],
        loss_fn=cross_entropy(model),
        optimizer=optax.adam(1e-3) if work.optimizer == "adam" else optax.sgd(1e-1, momentum=0.9),
        updates=work.updates,
        batch_size=work.batch_size,
    )
    return model, data, partition(np.arange(n), work.teachers), training


def ours(work: Work) -> tuple[float, float, float]:
    """CPU seconds, wall seconds, seconds of compiling."""
    from marauder_dp.pate.teachers import compile_ensemble

    _, data, partitions, training = _setup(work)
    ensemble = compile_ensemble(training, partitions, data)
    return *_timed(lambda: list(ensemble.train(data))), ensemble.compile_seconds


def _update(training: Any) -> Callable[..., Any]:
    import jax
    import jax.numpy as jnp
    import optax

    def update(params: Any, state: Any, x: Any, y: Any) -> Any:
        def loss(params: Any) -> Any:
            return jnp.mean(jax.vmap(training.loss_fn, (None, 0))(params, (x, y)))

        changes, state = training.optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, changes), state

    return jax.jit(update)


def _init(training: Any) -> Callable[..., Any]:
    import jax

    def init(key: Any) -> Any:
        params = training.init(key)
        return params, training.optimizer.init(params)

    return jax.jit(init)


def _train_one(update: Callable[..., Any], training: Any, start: Any, data: Any, own: Any, rng: Any) -> Any:
    import jax

    x, y = (leaf[own] for leaf in data)
    params, state = start
    size, order = training.batch_size, np.empty(0, np.int64)
    for _ in range(training.updates):
        if len(order) < size:
            order = np.concatenate([order, rng.permutation(len(own))])
        which, order = order[:size], order[size:]
        params, state = update(params, state, x[which], y[which])
    return jax.block_until_ready(params)


def loop(work: Work) -> tuple[float, float, float]:
    """One teacher after the other; one update, compiled once."""
    import jax

    _, data, partitions, training = _setup(work)
    init, update, rng = _init(training), _update(training), np.random.default_rng(0)
    size = work.batch_size
    begun = time.perf_counter()
    jax.block_until_ready(update(*init(jax.random.key(0)), data[0][:size], data[1][:size]))
    compiling = time.perf_counter() - begun

    def every() -> None:
        for i in range(work.teachers):
            _train_one(update, training, init(jax.random.key(i)), data, partitions.own(i), rng)

    return *_timed(every), compiling


def jit_each(work: Work) -> tuple[float, float, float]:
    """The same, with an update jitted for each teacher; a few are timed, and stand for all."""
    import jax

    _, data, partitions, training = _setup(work)
    rng = np.random.default_rng(0)

    def few() -> None:
        for i in range(_JITTED_ANEW):
            start = _init(training)(jax.random.key(i))
            _train_one(_update(training), training, start, data, partitions.own(i), rng)

    cpu, wall = _timed(few)
    return cpu * work.teachers / _JITTED_ANEW, wall * work.teachers / _JITTED_ANEW, 0.0


def _timed(work: Callable[[], Any]) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def memory(names: list[str]) -> None:
    """Prints peak memory of whole processes by number of teachers, above data, and parameters of all teachers."""
    print("| ensemble | teachers | peak above data and parameters, MiB | parameters of all, MiB | of one wave's program, MiB |")
    print("|---|---|---|---|---|")
    for name in names:
        for teachers in (50, 250, 1000):
            command = [sys.executable, "-m", "benchmarks.pate_teachers", name, "--peak", str(teachers)]
            values = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            print(f"| {name} | {teachers:,} | {' | '.join(values)} |", flush=True)


def peak(work: Work) -> str:
    """Trains all teachers wave by wave, as a run does, and reports memory in MiB."""
    import jax

    from marauder_dp.pate.teachers import compile_ensemble

    _, data, partitions, training = _setup(work._replace(epochs=1))
    params = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(training.init, jax.random.key(0))))
    ensemble = compile_ensemble(training, partitions, data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    for _ in ensemble.train(data):
        pass
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10 - before
    # The data on the device, a second time.
    grown -= sum(leaf.nbytes for leaf in data) / 2**20
    program = ensemble.program.memory_analysis().temp_size_in_bytes / 2**20
    return f"{max(grown, 0):.0f} {4 * params * work.teachers / 2**20:.0f} {program:.1f}"


if __name__ == "__main__":
    main()
