"""Random architectures as data: a small tree of blocks that builds a module, and prints as the code that makes it.

An :class:`Architecture` is what a failing property test shows. Its ``repr`` is valid Python, so that it can be pasted
into a regression test as it stands::

    from shearfx.testing import *

    assert_sound(*Architecture("tokens", 4, (Residual((Linear(3), Act("relu"))),)).example())
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

BATCH, TIME, SIDE, TOKENS = 2, 3, 4, 11
"""Sizes of the example inputs: samples, tokens a sequence, pixels a side, vocabulary."""


@dataclass(frozen=True)
class Shape:
    """What flows between blocks: ``tokens [b, t, width]``, ``flat [b, width]``, ``signal [b, width, l]`` or
    ``image [b, width, h, w]``.
    """  # fmt: skip

    kind: str
    width: int
    side: int = SIDE
    """Pixels a side, of signals and images."""

    @property
    def axis(self) -> int:
        """Where the features are."""
        return 1 if self.kind in ("signal", "image") else -1

    @property
    def space(self) -> int:
        """How many axes come after the features."""
        return {"signal": 1, "image": 2}.get(self.kind, 0)

    def wide(self, width: int) -> Shape:
        """The same with another width."""
        return Shape(self.kind, width, self.side)

    def column(self, vector: torch.Tensor) -> torch.Tensor:
        """A vector over the features, shaped so that it broadcasts against the tensor."""
        return vector.reshape(-1, *(1,) * self.space)


class Block:
    """One piece of an architecture. Subclasses are frozen dataclasses of numbers, strings and other blocks."""

    def build(self, shape: Shape) -> tuple[nn.Module, Shape]:
        """A module that takes tensors of this shape, and the shape of what it returns."""
        return self._build(shape)

    def _build(self, shape: Shape) -> tuple[nn.Module, Shape]:
        raise NotImplementedError


class Apply(nn.Module):
    """A function of itself and a tensor, with modules, parameters and numbers as attributes."""

    def __init__(self, function: Callable[[Any, torch.Tensor], torch.Tensor], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The function's result."""
        return self.function(self, x)


def parameter(*shape: int) -> nn.Parameter:
    """A parameter, to be filled by :func:`initialise`."""
    return nn.Parameter(torch.zeros(shape))


def mix(shape: Shape, out: int, bias: bool = True) -> nn.Module:
    """The linear layer over features that fits a kind of shape."""
    if shape.kind == "signal":
        return nn.Conv1d(shape.width, out, 1, bias=bias)
    if shape.kind == "image":
        return nn.Conv2d(shape.width, out, 1, bias=bias)
    return nn.Linear(shape.width, out, bias=bias)


def chain(blocks: tuple[Block, ...], shape: Shape) -> tuple[nn.Module, Shape]:
    """Blocks one after the other."""
    modules = []
    for block in blocks:
        module, shape = block.build(shape)
        modules.append(module)
    return nn.Sequential(*modules), shape


@dataclass(frozen=True)
class Architecture:
    """A model: an input, blocks, and a linear head (tied to the embedding if the input is ``words``)."""

    input: str
    """``words`` (token ids, embedded), ``tokens``, ``flat``, ``signal`` or ``image``."""
    width: int
    blocks: tuple[Block, ...]
    head: str = "linear"
    """``linear``, ``tied`` (to the embedding of ``words``), ``sum`` or ``mean`` (over features, with no weights that a
    mask could zero), ``none`` (features leave as they are)."""
    seed: int = 0

    def build(self) -> nn.Module:
        """The module, in float64 and evaluation mode, parameters and statistics random and far from degenerate."""
        model = _Model(self)
        initialise(model, self.seed)
        return model.eval()

    def inputs(self, batch: int = BATCH, time: int = TIME) -> tuple[torch.Tensor, ...]:
        """Example arguments of another batch size (and number of words), if asked."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        if self.input == "words":
            return (torch.randint(0, TOKENS, (batch, time), generator=generator),)
        space = {"tokens": (TIME,), "signal": (SIDE,), "image": (SIDE, SIDE)}.get(self.input, ())
        shape = (batch, *space, self.width) if self.input == "tokens" else (batch, self.width, *space)
        return (torch.randn(shape, generator=generator, dtype=torch.float64),)

    def example(self) -> tuple[Any, ...]:
        """``(module, *inputs)``, as :func:`shearfx.testing.assert_sound` takes them."""
        return (self.build(), *self.inputs())


class _Model(nn.Module):
    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        kind = "tokens" if architecture.input == "words" else architecture.input
        shape = Shape(kind, architecture.width)
        self.embedding = nn.Embedding(TOKENS, shape.width) if architecture.input == "words" else None
        self.body, after = chain(architecture.blocks, shape)
        self.head: nn.Module = nn.Identity()
        if architecture.head in ("sum", "mean"):
            self.head = Apply(lambda m, x: getattr(x, architecture.head)(after.axis))
        if architecture.head == "linear":
            self.head = mix(after, 3)
        if architecture.head == "tied" and self.embedding is not None and after.kind in ("tokens", "flat"):
            self.head = nn.Sequential(mix(after, shape.width), nn.Linear(shape.width, TOKENS, bias=False))
            self.head[1].weight = self.embedding.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.embedding is not None:
            x = self.embedding(x)
        result: torch.Tensor = self.head(self.body(x))
        return result


def initialise(model: nn.Module, seed: int) -> None:
    """Fill every parameter and statistic with random numbers, none near zero or one by habit.

    Matrices keep the scale of their input, vectors named ``weight`` are 1 within 0.3, biases differ, variances lie in
    0.5 .. 1.5.
    """
    generator = torch.Generator().manual_seed(seed)
    model.double()
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            leaf = name.rpartition(".")[2]
            if not value.is_floating_point():
                continue
            if leaf == "running_var":
                value.copy_(torch.rand(value.shape, generator=generator, dtype=torch.float64) + 0.5)
            elif isinstance(value, nn.Parameter) or leaf == "running_mean":
                noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
                fan = math.prod(value.shape[1:]) if value.dim() > 1 else 1
                if value.dim() == 1 and leaf == "weight":
                    value.copy_(1 + 0.3 * (2 * torch.rand(value.shape, generator=generator) - 1))
                else:
                    value.copy_(noise * (1.2 / math.sqrt(fan) if value.dim() > 1 else 0.5))
