"""Models in flax. Each takes one example, or any leading batch dimensions, and returns logits.

They use no layer that mixes examples (batch normalisation does), because then a per-example gradient would not
be a function of one example.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from marauder_dp.errors import ModelError


class LogisticRegression(nn.Module):
    """One affine map of the flattened features; starts at zero."""

    num_classes: int
    example_rank: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = flatten(x, self.example_rank)
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros)(x)


class Mlp(nn.Module):
    """Fully connected layers with tanh between them (tanh bounds activations: Papernot et al. 2021)."""

    num_classes: int
    example_rank: int
    hidden: tuple[int, ...] = (128,)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = flatten(x, self.example_rank)
        for width in self.hidden:
            x = jnp.tanh(nn.Dense(width)(x))
        return nn.Dense(self.num_classes)(x)


class TanhCnn(nn.Module):
    """The small CNN of Papernot et al. 2021 ("Tempered sigmoid activations", Table 1): 26,010 parameters on MNIST."""

    num_classes: int
    example_rank: int = 3

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.tanh(convolution(x, 16, size=8, stride=2, padding=3))
        x = nn.max_pool(x, (2, 2))
        x = jnp.tanh(convolution(x, 32, size=4, stride=2))
        x = nn.max_pool(x, (2, 2))
        x = flatten(x, 3)
        x = jnp.tanh(nn.Dense(32)(x))
        return nn.Dense(self.num_classes)(x)


class ReluCnn(nn.Module):
    """Three convolutions, two of them strided, and a hidden layer, with ReLU: learns much from few labels, without clipping."""

    num_classes: int
    example_rank: int = 3

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for features, size, stride in ((32, 5, 2), (64, 5, 2), (64, 3, 1)):
            x = nn.relu(convolution(x, features, size, stride, padding=size // 2))
        x = nn.relu(nn.Dense(128)(flatten(x, 3)))
        return nn.Dense(self.num_classes)(x)


def convolution(x: jax.Array, features: int, size: int, stride: int = 1, padding: int = 0) -> jax.Array:
    """`nn.Conv` with a square kernel, inside a module: (..., height, width, channels) → (..., height', width', features).

    Raises:
      ModelError: the kernel is larger than the padded image.
    """
    if min(x.shape[-3:-1]) + 2 * padding < size:
        raise ModelError(
            f"images of {x.shape[-3]}x{x.shape[-2]} are too small for a {size}x{size} kernel at this depth; "
            "use --model=mlp or --model=logistic"
        )
    return nn.Conv(features, (size, size), (stride, stride), padding)(x)


def flatten(x: jax.Array, example_rank: int) -> jax.Array:
    """Joins the last `example_rank` dimensions."""
    return x.reshape(*x.shape[: x.ndim - example_rank], -1)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "logistic": LogisticRegression,
    "mlp": Mlp,
    "cnn": TanhCnn,
    "relu_cnn": ReluCnn,
}


def make_model(name: str, example_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """A model by name for examples of `example_shape`.

    Raises:
      ModelError: no such model, or it can't take examples of that shape.
    """
    if name not in MODELS:
        raise ModelError(f"model must be one of {', '.join(MODELS)}; got {name!r}")
    if name in ("cnn", "relu_cnn") and len(example_shape) != 3:
        raise ModelError(
            f"model {name} needs images (height, width, channels), but an example has shape {example_shape}; "
            "use --model=mlp or --model=logistic"
        )
    return MODELS[name](num_classes=num_classes, example_rank=len(example_shape))


def cross_entropy(model: nn.Module) -> Callable[[Any, tuple[jax.Array, jax.Array]], jax.Array]:
    """The loss of one example: (params, (x, label)) → −log softmax(model(x))[label]."""

    def loss(params: Any, example: tuple[jax.Array, jax.Array]) -> jax.Array:
        x, label = example
        logits = model.apply({"params": params}, x).astype(jnp.float32)
        return jax.nn.logsumexp(logits) - logits[label]

    return loss


@functools.partial(jax.jit, static_argnums=0)
def _correct(model: nn.Module, params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.sum(jnp.argmax(model.apply({"params": params}, x), axis=-1) == y)


def accuracy(model: nn.Module, params: Any, x: Any, y: Any, batch_size: int = 1000) -> float:
    """Fraction of (x, y) that `model` labels rightly."""
    starts = range(0, len(x), batch_size)
    correct = sum(int(_correct(model, params, x[i : i + batch_size], y[i : i + batch_size])) for i in starts)
    return correct / len(x) if len(x) else math.nan
