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
        x = jnp.tanh(PatchConv(16, kernel_size=8, stride=2, padding=3)(x))
        x = max_pool_2x2(x)
        x = jnp.tanh(PatchConv(32, kernel_size=4, stride=2)(x))
        x = max_pool_2x2(x)
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
            x = nn.relu(PatchConv(features, size, stride, padding=size // 2)(x))
        x = nn.relu(nn.Dense(128)(flatten(x, 3)))
        return nn.Dense(self.num_classes)(x)


class PatchConv(nn.Module):
    """A two-dimensional convolution as strided slices and one matrix product.

    The same function and parameters as `nn.Conv` with these arguments. XLA's CPU backend runs the per-example gradient
    of a native convolution several times slower inside a loop, where updates run, than outside; this form is as
    fast in both (`python -m benchmarks.primitives`).

    Attributes:
      features: output channels.
      kernel_size: height and width of the kernel.
      stride: in both directions.
      padding: zeros added on every side.
    """

    features: int
    kernel_size: int
    stride: int = 1
    padding: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., height, width, channels) → (..., height', width', features)."""
        k, s, p = self.kernel_size, self.stride, self.padding
        shape = (k, k, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [(p, p), (p, p), (0, 0)])
        rows, columns = ((size - k) // s + 1 for size in x.shape[-3:-1])
        if rows < 1 or columns < 1:
            raise ModelError(
                f"images of {x.shape[-3] - 2 * p}x{x.shape[-2] - 2 * p} are too small for a {k}x{k} kernel at this depth; "
                "use --model=mlp or --model=logistic"
            )
        # Rows first, then columns: 2k slices instead of k², which compiles in half the time and runs faster.
        x = jnp.concatenate([x[..., i : i + (rows - 1) * s + 1 : s, :, :] for i in range(k)], axis=-1)
        x = jnp.concatenate([x[..., j : j + (columns - 1) * s + 1 : s, :] for j in range(k)], axis=-1)
        return x @ kernel.swapaxes(0, 1).reshape(-1, self.features) + bias


def max_pool_2x2(x: jax.Array) -> jax.Array:
    """Maximum over 2x2 windows with stride 1, by slices: (..., h, w, c) → (..., h − 1, w − 1, c)."""
    x = jnp.maximum(x[..., :-1, :, :], x[..., 1:, :, :])
    return jnp.maximum(x[..., :-1, :], x[..., 1:, :])


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
