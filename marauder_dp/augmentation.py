"""Several augmented copies of one example, averaged before the clipping (De et al. 2022, "augmentation multiplicity").

The gradient of the mean over copies is clipped once, so the copies cost no privacy: what an example contributes is bounded as
before, whatever is done to it alone.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from marauder_dp.clipping import LossFn

PyTree = Any
Augment = Callable[[jax.Array, jax.Array], jax.Array]
"""(key, image (height, width, channels)) → an image of the same shape."""


def loss_of_augmented(loss_fn: LossFn, augment: Augment, copies: int) -> LossFn:
    """The mean loss of `copies` augmented copies, as (params, ((image, label), key)) → scalar.

    Args:
      loss_fn: (params, (image, label)) → scalar.
      augment: for one copy.
      copies: at least 1.
    """

    def loss(params: PyTree, example: tuple[tuple[jax.Array, jax.Array], jax.Array]) -> jax.Array:
        (image, label), key = example
        images = jax.vmap(augment, (0, None))(jax.random.split(key, copies), image)
        return jnp.mean(jax.vmap(lambda image: loss_fn(params, (image, label)))(images))

    return loss


def shift(key: jax.Array, image: jax.Array) -> jax.Array:
    """Moves an image by up to an eighth of its size in both directions; zeros come in."""
    by = [size // 8 for size in image.shape[:2]]
    padded = jnp.pad(image, [(by[0], by[0]), (by[1], by[1]), (0, 0)])
    keys = jax.random.split(key, 2)
    start = [jax.random.randint(k, (), 0, 2 * d + 1) for k, d in zip(keys, by, strict=True)]
    return jax.lax.dynamic_slice(padded, (*start, 0), image.shape)


def flip_and_shift(key: jax.Array, image: jax.Array) -> jax.Array:
    """Mirrors every second image, and moves it as `shift`."""
    flip, move = jax.random.split(key)
    return shift(move, jnp.where(jax.random.bernoulli(flip), image[:, ::-1], image))


def usual(image_shape: tuple[int, ...]) -> Augment:
    """What suits most images of that shape: photographs (three channels) may be mirrored, digits and letters not."""
    return flip_and_shift if image_shape[-1] == 3 else shift
