"""Time of the parts: noise, sampling, convolutions. `python -m benchmarks.primitives`. Medians, milliseconds."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from marauder_dp import PoissonSampler, clipped_grad, standard_normal
from marauder_dp.models import PatchConv
from marauder_dp.sampling import micro_batch_ids

DRAWS, EXAMPLES, BATCH = 10**6, 60_000, 288


def milliseconds(function: Callable[..., Any], *arguments: Any, calls: int = 20) -> float:
    """Median time of a jitted call."""
    compiled = jax.jit(function)
    jax.block_until_ready(compiled(*arguments))
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def conv_loss(first: nn.Module, second: nn.Module) -> Callable[..., jax.Array]:
    """Two convolutions with the shapes of the MNIST CNN."""
    return lambda params, x: jnp.sum(second.apply(params[1], jnp.tanh(first.apply(params[0], x))) ** 2)


def in_loop(loss: Callable[..., jax.Array]) -> Callable[..., Any]:
    """The clipped gradient as an update runs it: inside a loop, where it can't be hoisted out."""
    gradient = clipped_grad(loss, clip_norm=1.0)

    def run(params: Any, x: jax.Array) -> Any:
        def step(_: Any, p: Any) -> Any:
            return jax.tree.map(lambda a, b: a - 1e-9 * b, p, gradient(p, x).sum)

        return jax.lax.fori_loop(0, 1, step, params)

    return run


def main() -> None:
    """Prints the table."""
    key = jax.random.key(0)
    sampler = PoissonSampler(EXAMPLES, 256 / EXAMPLES)
    mask = lambda: sampler.mask(key, jnp.int32(3))  # noqa: E731
    ours = (PatchConv(16, 8, 2, 3), PatchConv(32, 4, 2))
    native = (nn.Conv(16, (8, 8), (2, 2), padding=((3, 3), (3, 3))), nn.Conv(32, (4, 4), (2, 2), padding="VALID"))
    x = jax.random.uniform(key, (BATCH, 28, 28, 1))
    params = (ours[0].init(key, x[0]), ours[1].init(key, jnp.zeros((14, 14, 16))))
    rows = {
        "10^6 draws, jax.random.normal": milliseconds(lambda k: jax.random.normal(k, (DRAWS,)), key),
        "10^6 draws, standard_normal": milliseconds(lambda k: standard_normal(k, (DRAWS,)), key),
        "sample 60,000, ids by binary search": milliseconds(
            lambda: micro_batch_ids(jnp.cumsum(mask(), dtype=jnp.int32), 0, BATCH)
        ),
        "sample 60,000, ids by jnp.nonzero": milliseconds(lambda: jnp.nonzero(mask(), size=BATCH, fill_value=0)),
        "clipped gradient of 288, PatchConv": milliseconds(clipped_grad(conv_loss(*ours), clip_norm=1.0), params, x),
        "clipped gradient of 288, nn.Conv": milliseconds(clipped_grad(conv_loss(*native), clip_norm=1.0), params, x),
        "the same in a loop, PatchConv": milliseconds(in_loop(conv_loss(*ours)), params, x),
        "the same in a loop, nn.Conv": milliseconds(in_loop(conv_loss(*native)), params, x, calls=3),
    }
    print(f"jax {jax.__version__} on {jax.default_backend()}\n\n| part | ms |\n|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value:.3g} |")


if __name__ == "__main__":
    main()
