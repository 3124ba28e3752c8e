"""The DP-SGD update: sample, clip, sum, add noise once, divide by the expected size, step the optimizer.

`train_steps` compiles it into one program that runs any number of updates in one dispatch. The program is a pure
function of (state, keys, data): no secret is baked into it, so it may be cached on disk.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from marauder_dp import adaptive
from marauder_dp.clipping import ClippedGrad, ClippedGradFn, LossFn, clipped_grad, explain, per_layer
from marauder_dp.convolutions import for_device
from marauder_dp.cuts.explain import Explanation
from marauder_dp.cuts.factors import wide_type
from marauder_dp.errors import PlanError
from marauder_dp.memory import examples_in_cache, in_equal_groups
from marauder_dp.noise import gaussian_noise
from marauder_dp.plan import DpSgdPlan
from marauder_dp.sampling import micro_batch_ids, take
from marauder_dp.trainable import Filter, join, path_name, split

PyTree = Any


class Keys(NamedTuple):
    """The secrets of a run, typed PRNG keys, each for one use."""

    sampling: jax.Array
    noise: jax.Array


class TrainState(NamedTuple):
    """All that an update changes; everything in it has been paid for and may be published.

    Attributes:
      step: () int32, updates done.
      params: pytree of the model.
      opt_state: of the optimizer.
      clip_norm: () float32, C of the next update; changes only where the plan's clipping is adaptive.
    """

    step: jax.Array
    params: PyTree
    opt_state: PyTree
    clip_norm: jax.Array


class PrivateMetrics(NamedTuple):
    """Sums over the updates of one dispatch, without noise: for the operator's eyes, never for publication.

    Attributes, all () float32:
      examples: how many were drawn.
      loss: sum of their losses.
      clipped: how many had a gradient norm above the clip norm C.
      non_finite: how many had a NaN or infinite gradient (and contributed nothing).
      signal_to_noise: sum over updates of the clipped sum's norm over the noise's expected norm, σ√d; 0 without noise.
    """

    examples: jax.Array
    loss: jax.Array
    clipped: jax.Array
    non_finite: jax.Array
    signal_to_noise: jax.Array

    @classmethod
    def zero(cls) -> "PrivateMetrics":
        """Of no updates."""
        return cls(*[jnp.zeros(()) for _ in cls._fields])


@dataclasses.dataclass(frozen=True)
class DpSgd:
    """A plan made runnable.

    Attributes:
      plan: what is promised.
      loss_fn: (params, example) → scalar.
      optimizer: any optax transformation; it sees noisy mean gradients only.
      micro_batch: examples processed at a time, at most. Has no influence on the result beyond rounding, nor on privacy.
      keyed: whether the loss draws random numbers (augmentation, dropout): it is then (params, (example, key)) → scalar, with a
        typed PRNG key that is new in every step for every example.
      trainable: path of a parameter → whether it is trained; default: all are. The others stay as they are, bit for bit.
    """

    plan: DpSgdPlan
    loss_fn: LossFn
    optimizer: optax.GradientTransformation
    micro_batch: int
    keyed: bool = False
    trainable: Filter | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.micro_batch, int) or self.micro_batch < 1:
            raise PlanError(f"micro_batch must be a whole number of at least 1; got {self.micro_batch!r}")

    def init(self, params: PyTree) -> TrainState:
        """The state before the first update. `params` must not depend on private data."""
        clip_norm = jnp.asarray(self.plan.clip_norm, jnp.float32)
        return TrainState(jnp.zeros((), jnp.int32), params, self.optimizer.init(split(params, self.trainable)[0]), clip_norm)

    def explain(self, params: PyTree, data: PyTree) -> Explanation:
        """How clipping treats each parameter in one micro-batch; nothing is computed. Arguments may be shapes."""
        return explain(self._loss, params, self._shapes(data), trainable=self.trainable, micro_batch=self.micro_batch)

    def in_groups(self, groups: int) -> "DpSgd":
        """The same with so many micro-batches in place of one."""
        return dataclasses.replace(self, micro_batch=math.ceil(self.micro_batch / groups))

    def in_cache(self, params: PyTree, data: PyTree) -> "DpSgd":
        """The same with micro-batches as small as is fastest. Arguments may be shapes."""
        example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), self._shapes(data))
        most = examples_in_cache(jax.make_jaxpr(for_device(self._loss))(params, example).jaxpr, params)
        return dataclasses.replace(self, micro_batch=in_equal_groups(self.micro_batch, most))

    def _shapes(self, data: PyTree) -> PyTree:
        """Of one micro-batch."""
        slots = jax.ShapeDtypeStruct((self.micro_batch,), jnp.int32)
        return jax.eval_shape(lambda data, ids: self._examples(data, ids, jnp.zeros(2, jnp.uint32)), data, slots)

    def train_steps(self) -> jax.stages.Wrapped:
        """A jitted f(state, keys, data, n) that performs n updates.

        `data` is a pytree of arrays (num_examples, ...); `n` is () int32, not a compile-time constant. The
        caller must have charged n × `plan.event` before it calls. Never runs past the plan's last update.

        Raises:
          PlanError: when traced with data of another length than the plan's.
        """

        def run(state: TrainState, keys: Keys, data: PyTree, n: jax.Array) -> tuple[TrainState, PrivateMetrics]:
            _check_length(data, self.plan.num_examples)
            n = jnp.minimum(n, self.plan.steps - state.step)

            def body(_: jax.Array, carry: tuple[TrainState, PrivateMetrics]) -> tuple[TrainState, PrivateMetrics]:
                state, metrics = carry
                state, more = self._update(state, keys, data)
                return state, jax.tree.map(jnp.add, metrics, more)

            return jax.lax.fori_loop(0, n, body, (state, PrivateMetrics.zero()))

        return jax.jit(run, donate_argnums=0)

    def _update(self, state: TrainState, keys: Keys, data: PyTree) -> tuple[TrainState, PrivateMetrics]:
        """One update."""
        plan = self.plan
        mask = plan.sampler.mask(keys.sampling, state.step)
        seed = jax.random.key_data(_other_key(keys.sampling, state.step))
        clipped_sum, count, metrics = self._clipped_sum(state, data, mask, seed)
        noise = gaussian_noise(plan.noise_stddev)
        noisy, _ = noise.update(clipped_sum, noise.init(clipped_sum), noise_key=jax.random.fold_in(keys.noise, state.step))
        scale, clip_norm = jnp.asarray(1 / plan.batch_size), state.clip_norm
        if plan.adaptive:
            scale *= state.clip_norm
            clip_norm = adaptive.next_clip_norm(clip_norm, count, _other_key(keys.noise, state.step), plan.batch_size)
        if plan.noise_stddev > 0:
            metrics = metrics._replace(signal_to_noise=_signal_to_noise(clipped_sum, plan.noise_stddev))
        mean = jax.tree.map(lambda g: g * scale, noisy)
        trained, frozen = split(state.params, self.trainable)
        updates, opt_state = self.optimizer.update(mean, state.opt_state, trained)
        params = join(optax.apply_updates(trained, updates), frozen)
        return TrainState(state.step + 1, params, opt_state, clip_norm), metrics

    def _clipped_sum(
        self, state: TrainState, data: PyTree, mask: jax.Array, seed: jax.Array
    ) -> tuple[PyTree, jax.Array, PrivateMetrics]:
        """Over all included examples, in as many micro-batches as the draw needs: Σ clipped gradients, count of norms, metrics.

        Where C adapts the sum is over C: gradients of loss/C, clipped to 1.
        """
        plan, params = self.plan, state.params
        unit = state.clip_norm if plan.adaptive else 1.0
        gradient = self._gradient(params, unit)
        cumulative = jnp.cumsum(mask, dtype=jnp.int32)
        Carry = tuple[jax.Array, PyTree, jax.Array, PrivateMetrics]

        def more(carry: Carry) -> jax.Array:
            return carry[0] * self.micro_batch < cumulative[-1]

        def add(carry: Carry) -> Carry:
            index, total, count, metrics = carry
            ids, used = micro_batch_ids(cumulative, index, self.micro_batch)
            part = gradient(params, self._examples(data, ids, seed), used)
            if plan.adaptive:
                part = part._replace(norms=part.norms * unit, losses=part.losses * unit)
                count += adaptive.centred_count(part.norms, state.clip_norm, used)
            seen = _metrics(part, used, state.clip_norm)
            return index + 1, jax.tree.map(jnp.add, total, part.sum), count, jax.tree.map(jnp.add, metrics, seen)

        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, wide_type(p)), split(params, self.trainable)[0])
        start = (jnp.zeros((), jnp.int32), zeros, jnp.zeros(()), PrivateMetrics.zero())
        _, total, count, metrics = jax.lax.while_loop(more, add, start)
        return total, count, metrics

    def _gradient(self, params: PyTree, unit: jax.Array | float) -> ClippedGradFn:
        """The clipping that the plan asks for, of the loss over `unit`."""
        plan = self.plan
        options: Any = {"trainable": self.trainable, "micro_batch": self.micro_batch}
        if not plan.private:
            return clipped_grad(self._loss, clip_norm=math.inf, method="none", **options)
        if plan.adaptive:
            scaled = lambda params, x: self._loss(params, x).astype(jnp.float32) / unit  # noqa: E731
            return clipped_grad(scaled, clip_norm=1.0, **options)
        trained = split(params, self.trainable)[0]
        norms = per_layer(trained, plan.clip_norm) if plan.clipping == "per_layer" else plan.clip_norm
        rule = plan.clipping if plan.clipping in ("auto_s", "auto_v") else "clip"
        return clipped_grad(self._loss, clip_norm=norms, rule=rule, **options)

    def _examples(self, data: PyTree, ids: jax.Array, seed: jax.Array) -> PyTree:
        """Rows `ids`, and if the loss draws random numbers a key for each: of this step and its id alone."""
        rows = take(data, ids)
        if not self.keyed:
            return rows
        key = jax.random.wrap_key_data(seed)
        return rows, jax.vmap(lambda i: jax.random.key_data(jax.random.fold_in(key, i)))(ids)

    def _loss(self, params: PyTree, example: PyTree) -> jax.Array:
        if not self.keyed:
            return self.loss_fn(params, example)
        row, seed = example
        return self.loss_fn(params, (row, jax.random.wrap_key_data(seed)))


def _other_key(key: jax.Array, step: jax.Array) -> jax.Array:
    """A key for a second use in this step: steps themselves stay below 2³¹."""
    return jax.random.fold_in(jax.random.fold_in(key, 2**32 - 1), step)


def _check_length(data: PyTree, num_examples: int) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(data):
        if leaf.shape[:1] != (num_examples,):
            raise PlanError(
                f"data array {path_name(path) or 'itself'} has the shape {leaf.shape}, but the plan is for {num_examples:,} "
                "examples, one a row of every array"
            )


def choose_micro_batch(batch_size: int, num_examples: int) -> int:
    """How many examples to process at a time: two deviations above the expected draw, so that one group usually does."""
    spread = 2 * math.sqrt(batch_size * (1 - batch_size / num_examples))
    return min(num_examples, batch_size + math.ceil(spread))


def _metrics(part: ClippedGrad, used: jax.Array, clip_norm: jax.Array) -> PrivateMetrics:
    finite = jnp.isfinite(jnp.where(jnp.isfinite(clip_norm), part.norms, part.losses))
    count = lambda flags: jnp.sum(flags, dtype=jnp.float32)  # noqa: E731
    return PrivateMetrics(
        examples=count(used),
        loss=jnp.sum(jnp.where(used & jnp.isfinite(part.losses), part.losses, 0)),
        clipped=count(used & finite & (part.norms > clip_norm)),
        non_finite=count(used & ~finite),
        signal_to_noise=jnp.zeros(()),
    )


def _signal_to_noise(clipped_sum: PyTree, noise_stddev: float) -> jax.Array:
    leaves = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(clipped_sum)]
    size = sum(leaf.size for leaf in leaves)
    return jnp.sqrt(sum(jnp.sum(leaf * leaf) for leaf in leaves)) / (noise_stddev * math.sqrt(size))
