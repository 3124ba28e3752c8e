"""Gaussian noise, as an optax transformation that is given its key anew for every update; and the draws it is made of.

The key is an argument of `update`, not part of the state or a constant of the program: optimizer states are saved
in checkpoints and compiled programs in caches, and the noise seed belongs in neither.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.special import ndtri

from marauder_dp.threefry import words

PyTree = Any

_LARGE = 2**20  # entries of an array that is drawn in its own shape


def gaussian_noise(stddev: float) -> optax.GradientTransformationExtraArgs:
    """Adds independent N(0, stddev²) to every entry, in float32. Stateless.

    Chain it before the optimizer, on the *sum* of clipped gradients: `stddev` is noise_multiplier · clip_norm.
    `update` takes the keyword `noise_key`, a typed PRNG key that must never be used twice.

    Args:
      stddev: ≥ 0; zero adds nothing.
    """

    def init(params: PyTree) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(
        updates: PyTree, state: optax.EmptyState, params: PyTree = None, *, noise_key: jax.Array, **extra: Any
    ) -> tuple[PyTree, optax.EmptyState]:
        del params, extra
        if stddev == 0:
            return updates, state
        leaves, treedef = jax.tree.flatten(updates)
        draws = _draws(noise_key, [leaf.shape for leaf in leaves])
        noisy = [leaf.astype(jnp.float32) + stddev * draw for leaf, draw in zip(leaves, draws, strict=True)]
        return jax.tree.unflatten(treedef, noisy), state

    return optax.GradientTransformationExtraArgs(init, update)


def _draws(key: jax.Array, shapes: list[tuple[int, ...]]) -> list[jax.Array]:
    """Independent standard normal draws of these shapes, by few calls, as each takes long to compile.

    Small ones are parts of one call. Large ones, which may be spread over devices, keep their shape; those of equal shape
    are parts of one call.
    """
    calls: dict[tuple[int, ...], list[int]] = {}
    for i, shape in enumerate(shapes):
        calls.setdefault(shape if math.prod(shape) >= _LARGE else (), []).append(i)
    draws: dict[int, jax.Array] = {}
    for call_key, (shape, members) in zip(jax.random.split(key, max(1, len(calls))), calls.items(), strict=False):
        if shape:
            draws |= zip(members, _rows(call_key, len(members), shape), strict=True)
        else:
            *inner, end = np.cumsum([math.prod(shapes[i]) for i in members]).tolist()
            parts = jnp.split(_rows(call_key, 2, (math.ceil(end / 2),)).reshape(-1)[:end], inner)
            draws |= {i: part.reshape(shapes[i]) for i, part in zip(members, parts, strict=True)}
    return [draws[i] for i in range(len(shapes))]


def _rows(key: jax.Array, count: int, shape: tuple[int, ...]) -> jax.Array:
    """(count, *shape) standard normal draws, of which parts are used: by a loop, or XLA would draw anew for each part."""
    return jax.lax.map(lambda row_key: standard_normal(row_key, shape), jax.random.split(key, count))


def standard_normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """float32 draws from N(0, 1) whose tails reach 9.1 standard deviations.

    `jax.random.normal` inverts 23 random bits: it lies in [−5.42, 5.22], and is coarse well before its ends. An
    outcome that one neighbour can produce and the other can't is a δ that no accountant has charged: up to
    Φ(−4.22) = 1.2e-5 a release at σ = 1, in the worst direction and before sampling. Here 63 random bits give the
    distance u from the nearer tail, at full float32 precision however small it is, and one more the sign:
    |z| = −Φ⁻¹(u/2), cut off where the probability is 2⁻⁶³.
    """
    half_u, sign = _half_uniform(key, shape)
    return sign * -ndtri(half_u)


def standard_laplace(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """float32 draws from the Laplace distribution of scale 1, whose tails reach 43: |z| = −log u with 63 random bits of u."""
    half_u, sign = _half_uniform(key, shape)
    return sign * -jnp.log(2 * half_u)


def _half_uniform(key: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """u/2 in (0, 1/2] of 63 random bits, and a random sign."""
    first, second = words(key, shape)
    high = (first >> 1).astype(jnp.float32)
    # 31 bits, then 32 more, then half a unit so that it is never zero.
    half_u = (high + (second.astype(jnp.float32) + 0.5) * 2.0**-32) * 2.0**-32
    return jnp.minimum(half_u, 0.5), jnp.where(first & 1, 1.0, -1.0)
