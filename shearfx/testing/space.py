"""Blocks over space (convolutions, U-Nets, patches) and the ways from one kind of shape to another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from shearfx.testing.spec import Apply, Block, Shape, chain


@dataclass(frozen=True)
class Conv(Block):
    """A convolution that keeps the size: dense, grouped (``groups`` of ``out`` channels each) or transposed."""

    out: int
    groups: int = 1
    kernel: int = 3
    transposed: bool = False
    bias: bool = True

    def _build(self, shape: Shape) -> tuple[nn.Module, Shape]:
        groups = self.groups if shape.width % self.groups == 0 else 1
        names = {
            (1, False): nn.Conv1d,
            (1, True): nn.ConvTranspose1d,
            (2, False): nn.Conv2d,
            (2, True): nn.ConvTranspose2d,
        }
        make: Any = names[shape.space, self.transposed]
        width = self.out * groups
        module = make(shape.width, width, self.kernel, padding=self.kernel // 2, groups=groups, bias=self.bias)
        return module, shape.wide(width)


@dataclass(frozen=True)
class Depthwise(Block):
    """A convolution channel by channel, each making ``multiplier`` channels."""

    multiplier: int = 1
    transposed: bool = False
    bias: bool = True

    def _build(self, shape: Shape) -> tuple[nn.Module, Shape]:
        return Conv(self.multiplier, shape.width, 3, self.transposed, self.bias).build(shape)


@dataclass(frozen=True)
class UNet(Block):
    """Down, ``body``, up, and a skip around it: concatenated or added."""

    body: tuple[Block, ...]
    concat: bool = True
    pool: str = "max"

    def _build(self, shape: Shape) -> tuple[nn.Module, Shape]:
        inner = Shape(shape.kind, shape.width, shape.side // 2)
        body, after = chain(self.body, inner)
        make: Any = nn.ConvTranspose1d if shape.space == 1 else nn.ConvTranspose2d
        up = make(after.width, shape.width, 2, stride=2)
        pool: Any = getattr(F, f"{self.pool}_pool{shape.space}d")

        def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = m.up(m.body(pool(x, 2)))
            return torch.cat((x, y), 1) if self.concat else x + y

        return Apply(forward, body=body, up=up), shape.wide(shape.width * (2 if self.concat else 1))


@dataclass(frozen=True)
class Shuffle(Block):
    """Channels of ``groups`` groups shuffled, as ShuffleNet does."""

    groups: int = 2

    def _build(self, shape: Shape) -> tuple[nn.Module, Shape]:
        groups = self.groups if shape.width % self.groups == 0 else 1

        def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)
            return result

        return Apply(forward), shape


@dataclass(frozen=True)
class ToTokens(Block):
    """Positions become tokens."""

    def _build(self, shape: Shape) -> tuple[nn.Module, Shape]:
        return Apply(lambda m, x: x.flatten(2).transpose(1, 2)), Shape("tokens", shape.width)


@dataclass(frozen=True)
class ToFlat(Block):
    """Positions go: pooled, flattened into the features, or the first taken."""

    how: str = "mean"
    """``mean``, ``sum``, ``max``, ``flatten``, ``first``, ``adaptive``, ``logsumexp``."""

    def _build(self, shape: Shape) -> tuple[nn.Module, Shape]:
        over = {"tokens": (1,), "signal": (2,), "image": (2, 3)}[shape.kind]
        if self.how == "flatten" and shape.kind != "tokens":
            return nn.Flatten(), Shape("flat", shape.width * shape.side**shape.space)
        if self.how == "adaptive" and shape.kind == "image":
            pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
            return pool, Shape("flat", shape.width)

        def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
            if self.how == "sum":
                return x.sum(over)
            if self.how == "max":
                return x.amax(over)
            if self.how == "logsumexp":
                return x.logsumexp(over)
            if self.how == "first":
                return x[:, 0] if shape.kind == "tokens" else x.flatten(2)[..., 0]
            return x.mean(over)

        return Apply(forward), Shape("flat", shape.width)
