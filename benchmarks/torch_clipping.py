"""PyTorch and Opacus on the work of `benchmarks.clipping_work`, for `benchmarks.clipping --torch`. Needs torch and opacus.

The same layers and batches; where Opacus has no rule for a bare parameter it is an embedding or a module of its own.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import Tensor, nn

from benchmarks.clipping_work import Work


def torch_functions(work: Work) -> dict[str, Callable[[], Any]]:
    """One step each: plain gradients, per-example gradients by hooks, two passes by ghost norms; weights stay as they are."""
    x, y = (torch.from_numpy(np.array(part)) for part in work.data())
    y = y.long()
    x = x.long() if work.tokens else x.movedim(-1, 1) if x.ndim == 4 else x
    build = _MODELS[work.name]

    plain = build()
    criterion = _PerExample()

    def plain_step() -> None:
        plain.zero_grad()
        criterion(plain(x), y).mean().backward()

    hooked = GradSampleModule(build())
    hooks = DPOptimizer(_sgd(hooked), noise_multiplier=0.0, max_grad_norm=1.0, expected_batch_size=work.batch_size)

    def hooks_step() -> None:
        hooks.zero_grad()
        criterion(hooked(x), y).mean().backward()
        hooks.clip_and_accumulate()

    ghostly = GradSampleModuleFastGradientClipping(build(), max_grad_norm=1.0, use_ghost_clipping=True)
    ghost = DPOptimizerFastGradientClipping(
        _sgd(ghostly), noise_multiplier=0.0, max_grad_norm=1.0, expected_batch_size=work.batch_size
    )
    two_passes = DPLossFastGradientClipping(ghostly, ghost, criterion, loss_reduction="mean")

    def ghost_step() -> None:
        ghost.zero_grad()
        ghostly.enable_hooks()
        two_passes(ghostly(x), y).backward()

    return {"PyTorch": plain_step, "Opacus hooks": hooks_step, "Opacus ghost": ghost_step}


def _sgd(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.0)


class _PerExample(nn.Module):
    """Cross-entropy of each example, the mean over its tokens; ghost norms set `reduction` and want it so."""

    reduction = "mean"

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        each = F.cross_entropy(logits.movedim(-1, 1), y, reduction="none")
        return each.mean(dim=1) if each.ndim > 1 else each


def _cnn(activation: type[nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.ZeroPad2d(3), nn.Conv2d(1, 16, 8, 2), activation(), nn.MaxPool2d(2, 1),
        nn.Conv2d(16, 32, 4, 2), activation(), nn.MaxPool2d(2, 1),
        nn.Flatten(), nn.Linear(512, 32), activation(), nn.Linear(32, 10),
    )  # fmt: skip


def _cifar_cnn() -> nn.Module:
    layers: list[nn.Module] = []
    for before, width in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.Tanh(), nn.Conv2d(width, width, 3, padding=1), nn.Tanh()]
        layers += [nn.MaxPool2d(2, 2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2048, 128), nn.Tanh(), nn.Linear(128, 10))


class _StandardisedConv(nn.Module):
    def __init__(self, before: int, width: int, size: int = 3, stride: int = 1):
        super().__init__()
        self.weight = nn.Parameter(nn.init.kaiming_normal_(torch.empty(width, before, size, size)))
        self.gain, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.stride, self.padding = stride, size // 2

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), correction=0, keepdim=True)
        scale = self.gain[:, None, None, None] * (variance * self.weight[0].numel()).clamp_min(1e-4).rsqrt()
        return F.conv2d(x, scale * (self.weight - mean), self.bias, self.stride, self.padding)


class _Block(nn.Module):
    def __init__(self, before: int, width: int, stride: int, first: bool):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(16, before), nn.GroupNorm(16, width)
        self.shortcut = _StandardisedConv(before, width, 1, stride) if first else None
        self.conv1, self.conv2 = _StandardisedConv(before, width, 3, stride), _StandardisedConv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        return shortcut + self.conv2(F.relu(self.norm2(self.conv1(y))))


def _wide_resnet() -> nn.Module:
    layers: list[nn.Module] = [_StandardisedConv(3, 16)]
    before = 16
    for width, stride in ((64, 1), (128, 2), (256, 2)):
        layers += [_Block(before, width, stride, True), _Block(width, width, 1, False)]
        before = width
    return nn.Sequential(*layers, nn.GroupNorm(16, 256), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10))


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(256), nn.LayerNorm(256)
        self.query, self.key, self.value, self.out = (nn.Linear(256, 256) for _ in range(4))
        self.wide, self.narrow = nn.Linear(256, 1024), nn.Linear(1024, 256)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        heads = [layer(y).unflatten(-1, (4, 64)).transpose(1, 2) for layer in (self.query, self.key, self.value)]
        attended = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.narrow(F.gelu(self.wide(self.norm2(x)), approximate="tanh"))


class _Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(256, 256), nn.Embedding(128, 256)
        self.layers = nn.ModuleList(_Layer() for _ in range(4))
        self.norm, self.head = nn.LayerNorm(256), nn.Linear(256, 256)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.position(torch.arange(ids.shape[1]).expand(ids.shape).contiguous())
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


_MODELS: dict[str, Callable[[], nn.Module]] = {
    "logistic": lambda: nn.Linear(104, 2),
    "MLP 784-1024-10": lambda: nn.Sequential(nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 10)),
    "MNIST CNN": lambda: _cnn(nn.ReLU),
    "MNIST CNN as trained here": lambda: _cnn(nn.Tanh),
    "CIFAR CNN": _cifar_cnn,
    "WRN-16-4": _wide_resnet,
    "transformer": _Transformer,
}
