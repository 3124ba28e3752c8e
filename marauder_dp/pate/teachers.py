"""Training of all teachers by one compiled program.

A teacher is a function of its number, its own rows and public settings: the same whatever the others are, however many
train together, and on however many devices. The program trains one *wave* of teachers from beginning to end: sharded over
the devices, and on each device `chunk` at a time, vectorised. So memory grows with the chunk and not with the ensemble,
nothing is compiled twice, and an interrupted run goes on with the next wave.

Every teacher makes the same public number of updates, each on a full batch of its own examples, over and over in random order.
Padding of its rows is never drawn, and what is drawn does not depend on how long it is. So one example more or less changes one
teacher, and the others not in a bit, even where the padding grows with it.
"""

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from marauder_dp.clipping import LossFn
from marauder_dp.convolutions import as_products
from marauder_dp.cuts.jaxprs import equations
from marauder_dp.errors import ModelError, PlanError
from marauder_dp.pate.partitions import Partitions
from marauder_dp.sampling import take

Array = jax.Array
PyTree = Any

_CACHE_BYTES = 2 * 2**20  # of parameters, moments and activations that are worked on together, on a CPU
_ACCELERATOR_BYTES = 2**30
_ORDERS = 64  # of its examples, that a teacher goes through before they repeat


@dataclasses.dataclass(frozen=True)
class TeacherTraining:
    """How each teacher is trained. All of it is public.

    Attributes:
      init: typed PRNG key → parameters.
      loss_fn: (params, example) → scalar.
      optimizer: any optax transformation.
      updates: of every teacher; a public number.
      batch_size: examples an update. A teacher with fewer sees some twice in it.
      seed: of initial parameters, the order of examples, and the keys.
      keyed: `loss_fn` takes (params, (example, key)), with a key for each example of each update, to augment by, say.
    """

    init: Callable[[Array], PyTree]
    loss_fn: LossFn
    optimizer: optax.GradientTransformation
    updates: int
    batch_size: int
    seed: int = 0
    keyed: bool = False

    def __post_init__(self) -> None:
        for name in ("updates", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise PlanError(f"{name} of teachers must be a whole number of at least 1; got {value!r}")

    def one(self, teacher: Array, count: Array, own: PyTree) -> PyTree:
        """The parameters of one teacher.

        Args:
          teacher: () int32, its number.
          count: () int32, how many examples it has.
          own: pytree of arrays (length, ...): its examples, and padding.
        """
        key = jax.random.fold_in(jax.random.key(self.seed), teacher)
        start, order, keys = jax.random.split(key, 3)
        length = len(jax.tree.leaves(own)[0])
        # Draws of one line at a time: the first ones are the same however long it is.
        # A teacher of four batches or more sees no order twice before the last of them; sorting is dear.
        lines = jax.random.split(order, min(_ORDERS, 1 + self.updates // 4))
        draws = jax.vmap(lambda key: jax.random.uniform(key, (length,)))(lines)
        # Each line is a random order of the teacher's own examples, and the padding after them.
        orders = jnp.argsort(jnp.where(jnp.arange(length) < count, draws, 2.0), axis=1)

        def update(number: Array, carry: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            slots = number * self.batch_size + jnp.arange(self.batch_size)
            batch = take(own, orders[slots // count % len(orders), slots % count])
            if self.keyed:
                batch = batch, jax.random.split(jax.random.fold_in(keys, number), self.batch_size)
            return self._update(batch, *carry)

        params = self.init(start)
        return jax.lax.fori_loop(0, self.updates, update, (params, self.optimizer.init(params)))[0]

    def _update(self, batch: PyTree, params: PyTree, opt_state: PyTree) -> tuple[PyTree, PyTree]:
        def mean_loss(params: PyTree) -> Array:
            return jnp.mean(jax.vmap(as_products(self.loss_fn), (None, 0))(params, batch))

        updates, opt_state = self.optimizer.update(jax.grad(mean_loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """A training, compiled for an ensemble.

    Attributes:
      training: of each teacher.
      partitions: who sees what.
      chunk: teachers that are trained together on a device.
      wave: teachers of one call of the program; a multiple of the number of devices and of the chunk.
      mesh: the devices.
      program: (teacher numbers, counts, their examples) → parameters with a leading dimension of `wave`.
      digest: SHA-256 of the program's text, the JAX version and the backend. Equal digests train the same teachers.
      compile_seconds: that compiling took.
    """

    training: TeacherTraining
    partitions: Partitions
    chunk: int
    wave: int
    mesh: Mesh
    program: jax.stages.Compiled
    digest: str
    compile_seconds: float

    @property
    def waves(self) -> int:
        """How many calls train all teachers."""
        return math.ceil(self.partitions.teachers / self.wave)

    def teachers_of(self, wave: int) -> range:
        """The numbers of a wave's teachers."""
        return range(wave * self.wave, min((wave + 1) * self.wave, self.partitions.teachers))

    def train(self, data: PyTree, *, start: int = 0) -> Iterator[tuple[range, PyTree]]:
        """Trains wave after wave.

        Args:
          data: pytree of arrays (num_examples, ...).
          start: the first wave that has not been trained yet.

        Yields:
          Numbers of a wave's teachers and their parameters, numpy arrays with a leading dimension of that length.

        Raises:
          ModelError: a teacher's parameters aren't finite; none of that wave are returned.
        """
        rows = _padded(self.partitions)
        data = jax.tree.map(np.asarray, data)
        for number in range(start, self.waves):
            teachers = self.teachers_of(number)
            # The last wave is filled up with teachers that were trained before.
            which = np.arange(number * self.wave, (number + 1) * self.wave, dtype=np.int32) % self.partitions.teachers
            own = jax.tree.map(lambda leaf, which=which: leaf[rows[which]], data)
            given = jax.device_put(
                (which, self.partitions.counts[which], own), NamedSharding(self.mesh, PartitionSpec("teachers"))
            )
            params = _first(len(teachers), self.program(*given))
            _check_finite(teachers, params)
            yield teachers, params


def compile_ensemble(
    training: TeacherTraining,
    partitions: Partitions,
    data: PyTree,
    *,
    chunk: int | None = None,
    waves: int = 10,
    devices: list[Any] | None = None,
) -> Ensemble:
    """Compiles the program that trains all teachers. Nothing is trained yet.

    Args:
      training: of each teacher.
      partitions: who sees what.
      data: pytree of arrays (num_examples, ...) or their shapes.
      chunk: teachers that are trained together on a device; by default what fits the cache, or an accelerator's memory.
      waves: in how many calls about; an interruption loses at most one.
      devices: by default all.

    Raises:
      PlanError: the chunk is not a whole number of at least 1.
    """
    devices = jax.devices() if devices is None else devices
    devices = devices[: partitions.teachers]
    each = math.ceil(partitions.teachers / len(devices))
    if chunk is None:
        example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), data)
        chunk = choose_chunk(training, example, each)
    if not isinstance(chunk, int) or chunk < 1:
        raise PlanError(f"chunk, the number of teachers trained together, must be a whole number of at least 1; got {chunk!r}")
    chunk = min(chunk, each)
    on_device = chunk * max(1, round(each / waves / chunk))
    mesh = Mesh(np.array(devices), ("teachers",))
    split = PartitionSpec("teachers")

    def some(teachers: Array, counts: Array, own: PyTree) -> PyTree:
        each = lambda x: training.one(*x)  # noqa: E731
        return jax.lax.map(each, (teachers, counts, own), batch_size=chunk if chunk > 1 else None)

    program = jax.jit(_sharded(some, mesh=mesh, in_specs=split, out_specs=split))
    wave = on_device * len(devices)
    length = _padded(partitions).shape[1]
    numbers = jax.ShapeDtypeStruct((wave,), np.int32)
    own = jax.tree.map(lambda x: jax.ShapeDtypeStruct((wave, length, *x.shape[1:]), x.dtype), data)
    sharding = NamedSharding(mesh, split)
    given = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), (numbers, numbers, own))
    begun = time.perf_counter()
    lowered = program.lower(*given)
    compiled = lowered.compile()
    text = f"{jax.__version__} {jax.default_backend()}\n{lowered.as_text()}"
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Ensemble(training, partitions, chunk, wave, mesh, compiled, digest, time.perf_counter() - begun)


def choose_chunk(training: TeacherTraining, example: PyTree, at_most: int) -> int:
    """How many teachers to train together: on a CPU as many as a cache holds, elsewhere as many as fill the device.

    Args:
      training: of each.
      example: pytree of arrays or shapes, without a batch dimension.
      at_most: teachers of one device.
    """
    params = jax.eval_shape(training.init, jax.random.key(0))
    state = jax.eval_shape(training.optimizer.init, params)
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves((params, params, state)))
    example = (example, jax.eval_shape(lambda: jax.random.key(0))) if training.keyed else example
    loss = jax.make_jaxpr(as_products(training.loss_fn))(params, example)
    values = [out.aval for eqn in equations(loss.jaxpr) for out in eqn.outvars if hasattr(out.aval, "shape")]
    size += training.batch_size * sum(4 * math.prod(value.shape) for value in values)
    room = _CACHE_BYTES if jax.default_backend() == "cpu" else _ACCELERATOR_BYTES
    return max(1, min(at_most, room // max(size, 1)))


def _padded(partitions: Partitions) -> Any:
    """Rows up to a length that, but for a chance of 1e-9 or so, follows from the number of examples and of teachers."""
    mean = int(partitions.counts.sum()) / partitions.teachers
    length = max(math.ceil(mean + 6 * math.sqrt(mean) + 6), partitions.rows.shape[1])
    return np.pad(partitions.rows, [(0, 0), (0, length - partitions.rows.shape[1])], mode="edge")


def _first(number: int, tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: np.asarray(x)[:number], tree)


def _check_finite(teachers: range, params: PyTree) -> None:
    finite = np.ones(len(teachers), bool)
    for leaf in jax.tree.leaves(params):
        finite &= np.isfinite(leaf.reshape(len(teachers), -1)).all(axis=1)
    if not finite.all():
        raise ModelError(
            f"teacher {teachers[int(np.argmin(finite))]} has parameters that aren't finite: its training diverged; lower the "
            "learning rate of teachers"
        )


def _sharded(f: Callable[..., Any], **how: Any) -> Callable[..., Any]:
    """`shard_map` without its check of replication, which takes constants in a loop's first state for a mistake."""
    if hasattr(jax, "shard_map"):
        return jax.shard_map(f, check_vma=False, **how)
    from jax.experimental.shard_map import shard_map  # JAX up to 0.7

    return shard_map(f, check_rep=False, **how)
