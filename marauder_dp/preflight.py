"""Checks of a model before it sees data: everything here runs on synthetic inputs, so nothing is released.

Each refusal names the module or parameter and the fix.
"""

from collections.abc import Callable
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp

from marauder_dp.clipping import LossFn, clipped_grad
from marauder_dp.errors import ModelError
from marauder_dp.trainable import path_name

PyTree = Any

_SYNTHETIC_EXAMPLES = 8


def initialise(model: nn.Module, example_shape: tuple[int, ...], seed: int) -> PyTree:
    """Parameters of `model` from the public `seed`, if per-example gradients of it make sense.

    Args:
      model: takes one example, or a batch of them.
      example_shape: of one example, without a batch dimension; float32.
      seed: public; has nothing to do with sampling or noise.

    Returns:
      The model's "params" collection: call `model.apply({"params": params}, x)`.

    Raises:
      ModelError: the model draws random numbers, keeps batch statistics or other state, or mixes the examples of a batch.
    """
    variables = jax.jit(model.init)(jax.random.key(seed), jnp.zeros(example_shape, jnp.float32))
    stateful = {
        collection: [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
        for collection, tree in variables.items()
        if collection != "params"
    }
    if "batch_stats" in stateful:
        modules = sorted({name.rpartition("/")[0] or name for name in stateful["batch_stats"]})
        raise ModelError(
            f"{', '.join(modules)} keeps batch statistics, which mix examples, so no example's gradient can be clipped "
            "on its own; replace BatchNorm by nn.GroupNorm or nn.LayerNorm"
        )
    if stateful:
        names = ", ".join(f"{collection}/{name}" for collection, leaves in stateful.items() for name in leaves)
        raise ModelError(f"{names} is state that private examples would change unaccounted; remove it from the model")
    params = variables["params"]
    try:
        _check_examples_apart(jax.jit(lambda x: model.apply({"params": params}, x)), example_shape)
    except flax.errors.InvalidRngError as error:
        raise ModelError(f"the model draws random numbers (dropout?), which is not supported; remove it: {error}") from error
    return params


def synthetic_examples(example_shape: tuple[int, ...], num_classes: int) -> tuple[jax.Array, jax.Array]:
    """Eight made-up (x, label) examples for `check_loss`: x uniform in [0, 1), float32; labels int32."""
    x = jax.random.uniform(jax.random.key(0), (_SYNTHETIC_EXAMPLES, *example_shape))
    return x, jnp.arange(_SYNTHETIC_EXAMPLES, dtype=jnp.int32) % num_classes


def check_loss(loss_fn: LossFn, params: PyTree, examples: PyTree) -> None:
    """Refuses a loss under which some parameter never gets a gradient.

    Such a parameter would receive noise and nothing else. The check uses random parameters, so that a layer that
    merely starts at zero passes.

    Args:
      loss_fn: (params, example) → scalar.
      params: pytree of floating-point arrays.
      examples: made-up ones, a pytree of arrays with a leading batch dimension; no private data.

    Raises:
      ModelError: names the parameters by path; or whatever `clipped_grad` refuses.
    """
    key_p = jax.random.key(1)
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(key_p, max(len(leaves), 1))
    noisy = [leaf + 0.1 * jax.random.normal(key, leaf.shape, leaf.dtype) for leaf, key in zip(leaves, keys, strict=False)]
    random_params = jax.tree.unflatten(treedef, noisy)
    try:
        jax.eval_shape(clipped_grad(loss_fn, clip_norm=1.0), random_params, examples)  # its own refusals come first
    except NameError as error:
        raise ModelError(f"the model communicates across examples ({error}); remove the collective operation") from error
    grads = jax.jit(jax.vmap(jax.grad(loss_fn), (None, 0)))(random_params, examples)
    silent = [path_name(path) for path, g in jax.tree_util.tree_leaves_with_path(grads) if not jnp.any(g)]
    if silent:
        raise ModelError(
            f"no gradient reaches {', '.join(silent)}: it would receive noise and nothing else. Remove it, or close over "
            "it in the loss instead of passing it in params"
        )


def _check_examples_apart(apply: Callable[[jax.Array], jax.Array], example_shape: tuple[int, ...]) -> None:
    """Refuses a model whose output for one example changes with the others of the batch."""
    a, b, c = jax.random.uniform(jax.random.key(1), (3, *example_shape))
    beside_b, beside_c = apply(jnp.stack([a, b]))[0], apply(jnp.stack([a, c]))[0]
    if not jnp.allclose(beside_b, beside_c, rtol=1e-4, atol=1e-5):
        raise ModelError(
            "the model mixes examples: its output for one changes with the others of the batch. Remove the layer that "
            "works across the batch (normalise within each example instead)"
        )
