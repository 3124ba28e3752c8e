"""A small problem, and strict JAX for the privacy-critical core: nothing there is broadcast by accident."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@pytest.fixture
def strict_rank():
    """For tests of the core: array ranks must match."""
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="module")
def quick_compilation():
    """Programs compiled with few optimisations, in half the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def problem():
    """A small two-layer model: (loss of one example, params, (x, y))."""
    rng = np.random.default_rng(0)
    params = {
        "a": jnp.asarray(rng.normal(size=(5, 4)), jnp.float32),
        "b": {"w": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32), "bias": jnp.zeros(3)},
    }

    def loss(params, example):
        x, y = example
        logits = jnp.tanh(x @ params["a"]) @ params["b"]["w"] + params["b"]["bias"]
        return jax.nn.logsumexp(logits) - logits[y]

    batch = (jnp.asarray(rng.normal(size=(16, 5)) * 3, jnp.float32), jnp.asarray(rng.integers(0, 3, 16), jnp.int32))
    return loss, params, batch


def float64():
    """A context in which JAX computes in float64 where it is told to."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64  # JAX up to 0.7

    return enable_x64(True)


def tree_norm(tree) -> float:
    """L2 norm over all leaves, in float64."""
    return float(np.sqrt(sum(np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in jax.tree.leaves(tree))))
