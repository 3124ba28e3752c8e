"""The models that `benchmarks.clipping` measures, each with the loss of one example."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from marauder_dp.models import TanhCnn


@dataclasses.dataclass(frozen=True)
class Work:
    """One row of the table.

    Attributes:
      name: of the model.
      batch_size: examples.
      model: a linen module.
      shape: of one input; integers below `classes` if it is one-dimensional and `tokens`.
      classes: outputs.
      tokens: whether inputs are tokens, each with a label.
      penalty: λ of λ Σ w² in the loss; torch has no such row.
    """

    name: str
    batch_size: int
    model: nn.Module
    shape: tuple[int, ...]
    classes: int
    tokens: bool = False
    penalty: float = 0.0

    def data(self) -> tuple[jax.Array, jax.Array]:
        """A batch of random inputs and labels."""
        rng = np.random.default_rng(0)
        if self.tokens:
            ids = rng.integers(0, self.classes, (2, self.batch_size, *self.shape))
            return jnp.asarray(ids[0], jnp.int32), jnp.asarray(ids[1], jnp.int32)
        x = jnp.asarray(rng.normal(size=(self.batch_size, *self.shape)), jnp.float32)
        return x, jnp.asarray(rng.integers(0, self.classes, self.batch_size), jnp.int32)

    def params(self) -> Any:
        """Initial parameters."""
        return jax.jit(self.model.init)(jax.random.key(0), self.data()[0][0])["params"]

    def loss(self) -> Callable[[Any, Any], jax.Array]:
        """(params, one example) → cross-entropy, and the penalty."""

        def loss(params: Any, example: Any) -> jax.Array:
            x, y = example
            logits = self.model.apply({"params": params}, x)
            loss = jnp.mean(jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, y[..., None], -1)[..., 0])
            return loss + self.penalty * sum(jnp.sum(w**2) for w in jax.tree.leaves(params)) if self.penalty else loss

        return loss


class Cnn(nn.Module):
    """The MNIST network of the DP literature: two convolutions, two dense layers."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.max_pool(nn.relu(nn.Conv(16, (8, 8), (2, 2))(x)), (2, 2), (1, 1))
        x = nn.max_pool(nn.relu(nn.Conv(32, (4, 4), (2, 2), padding="VALID")(x)), (2, 2), (1, 1))
        return nn.Dense(10)(nn.relu(nn.Dense(32)(x.reshape(-1))))


class CifarCnn(nn.Module):
    """Eight layers: six convolutions in pairs, two dense layers (Papernot et al. 2020, tanh)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in (32, 64, 128):
            x = nn.tanh(nn.Conv(width, (3, 3))(x))
            x = nn.max_pool(nn.tanh(nn.Conv(width, (3, 3))(x)), (2, 2), (2, 2))
        return nn.Dense(10)(nn.tanh(nn.Dense(128)(x.reshape(-1))))


class WideResNet(nn.Module):
    """WRN-16-4 with GroupNorm and weight standardisation (De et al. 2022)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = _StandardisedConv(16)(x)
        for width, stride in ((64, 1), (128, 2), (256, 2)):
            for block in range(2):
                step = stride if block == 0 else 1
                y = nn.relu(nn.GroupNorm(16)(x))
                shortcut = _StandardisedConv(width, 1, step)(y) if block == 0 else x
                y = _StandardisedConv(width, 3, step)(y)
                x = shortcut + _StandardisedConv(width)(nn.relu(nn.GroupNorm(16)(y)))
        return nn.Dense(10)(nn.relu(nn.GroupNorm(16)(x)).mean((0, 1)))


class _StandardisedConv(nn.Module):
    width: int
    size: int = 3
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1], self.width)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        gain = self.param("gain", nn.initializers.ones, (self.width,))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        fan_in = self.size * self.size * x.shape[-1]
        kernel = gain * (kernel - kernel.mean((0, 1, 2))) * jax.lax.rsqrt(jnp.maximum(kernel.var((0, 1, 2)) * fan_in, 1e-4))
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x[None], kernel, (self.stride,) * 2, "SAME", dimension_numbers=numbers)[0] + bias


class Transformer(nn.Module):
    """Four pre-norm layers, d = 256, four heads, causal, without dropout."""

    vocabulary: int = 256

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        x = nn.Embed(self.vocabulary, 256)(ids) + self.param("position", nn.initializers.normal(0.02), (len(ids), 256))
        mask = nn.make_causal_mask(ids)
        for _ in range(4):
            x = x + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x), mask=mask)
            x = x + nn.Dense(256)(nn.gelu(nn.Dense(1024)(nn.LayerNorm()(x))))
        return nn.Dense(self.vocabulary)(nn.LayerNorm()(x))


WORK = [
    Work("logistic", 1024, nn.Dense(2), (104,), 2),
    Work("MLP 784-1024-10", 256, nn.Sequential([nn.Dense(1024), nn.relu, nn.Dense(10)]), (784,), 10),
    Work("MLP 784-1024-10", 2048, nn.Sequential([nn.Dense(1024), nn.relu, nn.Dense(10)]), (784,), 10),
    Work("MLP with an L2 penalty", 64, nn.Sequential([nn.Dense(512), nn.relu, nn.Dense(10)]), (784,), 10, penalty=1e-4),
    Work("MNIST CNN", 256, Cnn(), (28, 28, 1), 10),
    Work("MNIST CNN as trained here", 256, TanhCnn(10, 3), (28, 28, 1), 10),
    Work("MNIST CNN", 1024, Cnn(), (28, 28, 1), 10),
    Work("CIFAR CNN", 256, CifarCnn(), (32, 32, 3), 10),
    Work("WRN-16-4", 64, WideResNet(), (32, 32, 3), 10),
    Work("transformer", 32, Transformer(), (128,), 256, tokens=True),
]
