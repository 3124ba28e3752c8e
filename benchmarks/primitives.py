"""Time of the parts: noise, sampling, convolutions. `python -m benchmarks.primitives`. Medians, milliseconds."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from marauder_dp import PoissonSampler, clipped_grad, standard_normal
from marauder_dp.convolutions import as_products
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


class Convolutions(nn.Module):
    """Two convolutions with the shapes of the MNIST CNN."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.tanh(nn.Conv(16, (8, 8), (2, 2), 3)(x))
        return jnp.sum(nn.Conv(32, (4, 4), (2, 2), "VALID")(x) ** 2)


def in_loop(gradient: Callable[..., Any]) -> Callable[..., Any]:
    """As an update runs it: inside a loop, where it can't be hoisted out."""

    def run(params: Any, x: jax.Array) -> Any:
        def step(_: Any, p: Any) -> Any:
            return jax.tree.map(lambda a, b: a - 1e-9 * b, p, gradient(p, x))

        return jax.lax.fori_loop(0, 1, step, params)

    return run


def main() -> None:
    """Prints the table."""
    key = jax.random.key(0)
    sampler = PoissonSampler(EXAMPLES, 256 / EXAMPLES)
    mask = lambda: sampler.mask(key, jnp.int32(3))  # noqa: E731
    x = jax.random.uniform(key, (BATCH, 28, 28, 1))
    params = Convolutions().init(key, x[0])
    loss = Convolutions().apply
    sums = {
        "as they are": lambda p, x: jax.grad(lambda p: jnp.sum(jax.vmap(loss, (None, 0))(p, x)))(p),
        "as products": lambda p, x: jax.grad(lambda p: jnp.sum(jax.vmap(as_products(loss), (None, 0))(p, x)))(p),
        "clipped": lambda p, x: clipped_grad(loss, clip_norm=1.0)(p, x).sum,
    }
    rows = {
        "10^6 draws, jax.random.normal": milliseconds(lambda k: jax.random.normal(k, (DRAWS,)), key),
        "10^6 draws, standard_normal": milliseconds(lambda k: standard_normal(k, (DRAWS,)), key),
        "sample 60,000, ids by binary search": milliseconds(
            lambda: micro_batch_ids(jnp.cumsum(mask(), dtype=jnp.int32), 0, BATCH)
        ),
        "sample 60,000, ids by jnp.nonzero": milliseconds(lambda: jnp.nonzero(mask(), size=BATCH, fill_value=0)),
    }
    for name, gradient in sums.items():
        rows[f"gradient of two convolutions, {BATCH} examples, {name}"] = milliseconds(gradient, params, x)
        rows[f"the same in a loop, {name}"] = milliseconds(in_loop(gradient), params, x, calls=3)
    print(f"jax {jax.__version__} on {jax.default_backend()}\n\n| part | ms |\n|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value:.3g} |")


if __name__ == "__main__":
    main()
