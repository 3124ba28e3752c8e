"""Parameters that are trained, and those that stay as they are: two trees of one structure, each with None for the other's."""

from collections.abc import Callable
from typing import Any

import jax

from marauder_dp.errors import ModelError

PyTree = Any
Filter = Callable[[str], bool]
"""Path of a parameter, such as "encoder/attention/lora_a" → whether it is trained."""


def path_name(path: tuple[Any, ...]) -> str:
    """A pytree path as 'a/b/kernel'."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def split(params: PyTree, trainable: Filter | None) -> tuple[PyTree, PyTree]:
    """(trained, frozen) parts; everything is trained where there is no filter.

    Raises:
      ModelError: nothing is trained.
    """
    if trainable is None:
        return params, jax.tree.map(lambda leaf: None, params)
    chosen = jax.tree_util.tree_map_with_path(lambda path, leaf: leaf if trainable(path_name(path)) else None, params)
    if not jax.tree.leaves(chosen):
        names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        raise ModelError(f"the filter of trainable parameters chooses none of {names}")
    frozen = jax.tree.map(lambda leaf, kept: leaf if kept is None else None, params, chosen)
    return chosen, frozen


def join(trained: PyTree, frozen: PyTree) -> PyTree:
    """The whole tree again."""
    return jax.tree.map(lambda one, other: other if one is None else one, trained, frozen, is_leaf=lambda x: x is None)
