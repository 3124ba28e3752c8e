"""Changes to public examples that leave their class as it is: slight ones, and strong ones, for `student`.

Images are shifted, or turned, scaled, sheared and shifted, with a part blotted out; other examples lose some features.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from marauder_dp.augmentation import usual

Distortion = Callable[[jax.Array, jax.Array], jax.Array]
"""(key, (n, *shape)) → (n, *shape)."""


def slight(shape: tuple[int, ...]) -> Distortion:
    """A shift of images by up to an eighth; other examples are left as they are."""
    if len(shape) == 3:
        return _each(usual(shape))
    return lambda key, x: x


def strong(shape: tuple[int, ...]) -> Distortion:
    """A random affine map and a blot for images; other examples lose a quarter of their features."""
    if len(shape) == 3:
        return _each(lambda key, image: _blot(jax.random.fold_in(key, 1), affine(key, image)))
    return lambda key, x: jnp.where(jax.random.bernoulli(key, 0.75, x.shape), x, 0)


def affine(key: jax.Array, image: jax.Array, *, turn: float = 0.4, scale: float = 0.2, shear: float = 0.3) -> jax.Array:
    """Turns (by up to `turn` radians), scales, shears and shifts (by up to an eighth) an image (height, width, channels)."""
    height, width, _ = image.shape
    draw = jax.random.uniform(key, (6,), minval=-1.0, maxval=1.0)
    angle, grown = turn * draw[0], 1 + scale * draw[1:3]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    matrix = jnp.array([[cos, -sin], [sin, cos]]) @ jnp.eye(2).at[0, 1].set(shear * draw[3]) / grown
    centre = jnp.array([(height - 1) / 2, (width - 1) / 2])
    moved = jnp.array([height, width]) / 8 * draw[4:]
    grid = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")).reshape(2, -1)
    source = matrix @ (grid - centre[:, None] - moved[:, None]) + centre[:, None]
    channels = [map_coordinates(image[..., c], list(source), order=1) for c in range(image.shape[2])]
    return jnp.stack(channels, axis=-1).reshape(image.shape)


def _blot(key: jax.Array, image: jax.Array) -> jax.Array:
    """Sets a square of a third of the side, somewhere, to zero."""
    height, width, _ = image.shape
    side = max(1, math.ceil(min(height, width) / 3))
    top, left = jax.random.randint(key, (2,), -side // 2, jnp.array([height, width]) - side // 2)
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    inside = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
    return jnp.where(inside[..., None], 0, image)


def _each(distort: Callable[[jax.Array, jax.Array], jax.Array]) -> Distortion:
    return lambda key, x: jax.vmap(distort)(jax.random.split(key, len(x)), x)
