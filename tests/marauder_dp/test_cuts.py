"""Norms and clipped sums from cuts equal those from per-example gradients, whatever the loss is made of."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marauder_dp import clipped_grad
from tests.marauder_dp.zoo import ZOO


def reference(loss, params, batch, clip_norm):
    """Norms and the clipped sum, from written-out gradients in float64 arithmetic."""
    gradients = jax.vmap(jax.grad(loss), (None, 0))(params, batch)
    gradients = jax.tree.map(lambda g: np.asarray(g, np.float64), gradients)
    rows = [g.reshape(len(g), -1) for g in jax.tree.leaves(gradients)]
    norms = np.linalg.norm(np.concatenate(rows, axis=1), axis=1)
    factors = np.minimum(1, clip_norm / np.maximum(norms, 1e-30))
    return norms, jax.tree.map(lambda g: np.tensordot(factors, g, 1), gradients)


def agree(loss, params, batch, clip_norm, rtol):
    norms, total = reference(loss, params, batch, clip_norm)
    ours = jax.jit(clipped_grad(loss, clip_norm=clip_norm, method="cuts"))(params, batch)
    np.testing.assert_allclose(ours.norms, norms, rtol=rtol, atol=rtol * norms.max() * 1e-2)
    largest = max(float(np.abs(t).max(initial=0)) for t in jax.tree.leaves(total))
    for a, b in zip(jax.tree.leaves(ours.sum), jax.tree.leaves(total), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * largest)


@pytest.mark.parametrize("name", ZOO)
def test_equals_per_example_gradients(name):
    loss, params, batch = ZOO[name]()
    norms, _ = reference(loss, params, batch, math.inf)
    agree(loss, params, batch, float(np.median(norms)), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_equals_per_example_gradients_in_float64(name):
    """Without clipping, which leaves a margin of 1e-6 on purpose."""
    with jax.enable_x64(True):
        loss, params, batch = ZOO[name]()
        agree(loss, jax.tree.map(lambda p: p.astype(jnp.float64), params), batch, math.inf, 1e-12)
