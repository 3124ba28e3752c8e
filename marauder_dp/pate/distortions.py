"""Changes to public examples that leave their class as it is: slight ones, and strong ones, for `student`.

Images are shifted, or turned, scaled, sheared and shifted; other examples lose some features. (FixMatch also blots out a part
of each image: with labels as noisy as votes are, that made students worse.)
"""

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
    """A random affine map for images; other examples lose a quarter of their features."""
    if len(shape) == 3:
        return _each(affine)
    return lambda key, x: jnp.where(jax.random.bernoulli(key, 0.75, x.shape), x, 0)


def affine(
    key: jax.Array, image: jax.Array, *, turn: float = 0.25, scale: float = 0.15, shear: float = 0.2, shift: float = 0.125
) -> jax.Array:
    """Turns (by up to `turn` radians), scales, shears and shifts (by up to a part of it) an image (height, width, channels)."""
    height, width, _ = image.shape
    draw = jax.random.uniform(key, (6,), minval=-1.0, maxval=1.0)
    angle, grown = turn * draw[0], 1 + scale * draw[1:3]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    matrix = jnp.array([[cos, -sin], [sin, cos]]) @ jnp.eye(2).at[0, 1].set(shear * draw[3]) / grown
    centre = jnp.array([(height - 1) / 2, (width - 1) / 2])
    moved = jnp.array([height, width]) * shift * draw[4:]
    grid = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")).reshape(2, -1)
    source = matrix @ (grid - centre[:, None] - moved[:, None]) + centre[:, None]
    channels = [map_coordinates(image[..., c], list(source), order=1) for c in range(image.shape[2])]
    return jnp.stack(channels, axis=-1).reshape(image.shape)


def _each(distort: Callable[[jax.Array, jax.Array], jax.Array]) -> Distortion:
    return lambda key, x: jax.vmap(distort)(jax.random.split(key, len(x)), x)
