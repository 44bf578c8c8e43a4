"""Registering modules of our own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from tests.zoo.entry import Entry, Model, register
from tests.zoo.huggingface import BATCH, LENGTH, OTHER_BATCH, OTHER_LENGTH, normal, token_ids

Shape = tuple[int, ...]
#: Token sequences: (batch, length), the default shapes of `tokens=True`.
TOKENS: tuple[Shape, Shape] = ((BATCH, LENGTH), (OTHER_BATCH, OTHER_LENGTH))


def images(size: int, other: int, channels: int = 3) -> tuple[Shape, Shape]:
    """Shapes of the two image batches of a model: square, of `size` and `other` pixels."""
    return (2, channels, size, size), (OTHER_BATCH, channels, other, other)


def sequences(width: int) -> tuple[Shape, Shape]:
    """Shapes of the two batches of (batch, length, width) of a model."""
    return (BATCH, LENGTH, width), (OTHER_BATCH, OTHER_LENGTH, width)


def custom(
    name: str,
    make: Callable[[], nn.Module],
    structures: set[str],
    shapes: tuple[Shape, Shape],
    *,
    tokens: bool = False,
    causal: bool = False,
    exports: bool = True,
    attention: bool = False,
    trap: bool = False,
) -> Entry:
    """Register `make()`, called with one positional tensor: normal values, or token ids if `tokens`."""

    def call(shape: Shape, seed: int) -> tuple[torch.Tensor]:
        return (token_ids(shape[0], shape[1], seed) if tokens else normal(*shape, seed=seed),)

    def build() -> Model:
        torch.manual_seed(0)
        return Model(make().eval(), call(shapes[0], 0), {}, [(call(shapes[1], 1), {})])

    return register(Entry(name, "custom", build, frozenset(structures), causal, exports, attention, trap))
