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

from marauder_dp.clipping import ClippedGrad, LossFn, clipped_grad, path_name
from marauder_dp.cuts.factors import wide_type
from marauder_dp.errors import PlanError
from marauder_dp.noise import gaussian_noise
from marauder_dp.plan import DpSgdPlan
from marauder_dp.sampling import micro_batch_ids, take

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
    """

    step: jax.Array
    params: PyTree
    opt_state: PyTree


class PrivateMetrics(NamedTuple):
    """Sums over the updates of one dispatch, without noise: for the operator's eyes, never for publication.

    Attributes, all () float32:
      examples: how many were drawn.
      loss: sum of their losses.
      clipped: how many had a gradient norm above the clip norm.
      non_finite: how many had a NaN or infinite gradient (and contributed nothing).
    """

    examples: jax.Array
    loss: jax.Array
    clipped: jax.Array
    non_finite: jax.Array


@dataclasses.dataclass(frozen=True)
class DpSgd:
    """A plan made runnable.

    Attributes:
      plan: what is promised.
      loss_fn: (params, example) → scalar.
      optimizer: any optax transformation; it sees noisy mean gradients only.
      micro_batch: examples processed at a time. Has no influence on the result beyond rounding, nor on privacy.
    """

    plan: DpSgdPlan
    loss_fn: LossFn
    optimizer: optax.GradientTransformation
    micro_batch: int

    def __post_init__(self) -> None:
        if not isinstance(self.micro_batch, int) or self.micro_batch < 1:
            raise PlanError(f"micro_batch must be a whole number of at least 1; got {self.micro_batch!r}")

    @property
    def transformation(self) -> optax.GradientTransformationExtraArgs:
        """From the sum of clipped gradients to parameter updates; the noise is added here and nowhere else."""
        return optax.chain(gaussian_noise(self.plan.noise_stddev), optax.scale(1 / self.plan.batch_size), self.optimizer)

    def init(self, params: PyTree) -> TrainState:
        """The state before the first update. `params` must not depend on private data."""
        return TrainState(jnp.zeros((), jnp.int32), params, self.transformation.init(params))

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

            zero = PrivateMetrics(*[jnp.zeros(())] * 4)
            return jax.lax.fori_loop(0, n, body, (state, zero))

        return jax.jit(run, donate_argnums=0)

    def _update(self, state: TrainState, keys: Keys, data: PyTree) -> tuple[TrainState, PrivateMetrics]:
        """One update."""
        mask = self.plan.sampler.mask(keys.sampling, state.step)
        clipped_sum, metrics = self._clipped_sum(state.params, data, mask)
        updates, opt_state = self.transformation.update(
            clipped_sum, state.opt_state, state.params, noise_key=jax.random.fold_in(keys.noise, state.step)
        )
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), metrics

    def _clipped_sum(self, params: PyTree, data: PyTree, mask: jax.Array) -> tuple[PyTree, PrivateMetrics]:
        """Σ clipped gradients over all included examples, in as many micro-batches as the draw needs."""
        method = "auto" if self.plan.private else "none"
        gradient = clipped_grad(self.loss_fn, clip_norm=self.plan.clip_norm, method=method)
        cumulative = jnp.cumsum(mask, dtype=jnp.int32)

        def more(carry: tuple[jax.Array, PyTree, PrivateMetrics]) -> jax.Array:
            return carry[0] * self.micro_batch < cumulative[-1]

        def add(carry: tuple[jax.Array, PyTree, PrivateMetrics]) -> tuple[jax.Array, PyTree, PrivateMetrics]:
            index, total, metrics = carry
            ids, used = micro_batch_ids(cumulative, index, self.micro_batch)
            part = gradient(params, take(data, ids), used)
            seen = _metrics(part, used, self.plan.clip_norm)
            return index + 1, jax.tree.map(jnp.add, total, part.sum), jax.tree.map(jnp.add, metrics, seen)

        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, wide_type(p)), params)
        start = (jnp.zeros((), jnp.int32), zeros, PrivateMetrics(*[jnp.zeros(())] * 4))
        _, total, metrics = jax.lax.while_loop(more, add, start)
        return total, metrics


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


def _metrics(part: ClippedGrad, used: jax.Array, clip_norm: float) -> PrivateMetrics:
    finite = jnp.isfinite(part.norms) if not math.isinf(clip_norm) else jnp.isfinite(part.losses)
    count = lambda flags: jnp.sum(flags, dtype=jnp.float32)  # noqa: E731
    return PrivateMetrics(
        examples=count(used),
        loss=jnp.sum(jnp.where(used & jnp.isfinite(part.losses), part.losses, 0)),
        clipped=count(used & finite & (part.norms > clip_norm)),
        non_finite=count(used & ~finite),
    )
