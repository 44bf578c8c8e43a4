"""What tests of the rivals share: nets small enough to work out on paper, and structures in another order."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import shearfx
from shearfx.graph import Graph, Group
from tests.tiny_models import fresh, inputs_of, traced


class Two(nn.Module):
    """``down relu(up x)`` with given weights, without biases unless there is one."""

    def __init__(self, up: Sequence[Sequence[float]], down: Sequence[Sequence[float]], bias: bool = False) -> None:
        super().__init__()
        first, second = torch.tensor(up).double(), torch.tensor(down).double()
        self.up = nn.Linear(first.shape[1], first.shape[0], bias=False, dtype=torch.float64)
        self.down = nn.Linear(second.shape[1], second.shape[0], bias=bias, dtype=torch.float64)
        with torch.no_grad():
            self.up.weight.copy_(first)
            self.down.weight.copy_(second)
            if bias:
                self.down.bias.zero_()
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.down(torch.relu(self.up(x)))
        return found


def analysed(model: nn.Module, x: Tensor) -> tuple[Graph, Group]:
    """The analysis of a net with one group, and the group."""
    graph = shearfx.trace(model, x)
    (group,) = graph.groups
    return graph, group


def total(model: nn.Module, batch: Any) -> Tensor:
    """The mean over rows of the sum of outputs."""
    found: Tensor = model(batch).sum(-1).mean()
    return found


SEEN = {"llama": ("ffn", "heads", "query_group", "value_dim"), "gpt2": ("ffn", "heads", "value_dim"),
        "convolutions": ("channels",), "perceptron": ("ffn",)}  # fmt: skip
"""Kinds of groups of the tiny models that something reads by a weight."""


def seen_groups(name: str) -> list[Group]:
    return [g for g in traced(name)[1].groups if g.kind in SEEN[name]]


def case(name: str, dtype: torch.dtype = torch.float64, batches: int = 2) -> tuple[nn.Module, Graph, list[Any]]:
    """A tiny model, its analysis and batches of three."""
    data = [inputs_of(name, seed) for seed in range(batches)]
    return fresh(name, dtype=dtype), traced(name)[1], [d if isinstance(d, dict) else d.to(dtype) for d in data]


def loss_for(name: str) -> Any:
    """None where the model brings its own."""
    return None if name in ("llama", "gpt2") else lambda model, batch: model(batch).square().mean()


def reordered(model: nn.Module, groups: Sequence[Group], seed: int = 0) -> tuple[nn.Module, dict[str, Tensor]]:
    """A copy with the structures of some groups in another order, which computes the same; and the orders.

    ``orders[group][i]`` is which structure of the original stands at ``i`` in the copy.
    """
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    orders = {g.name: torch.randperm(g.size, generator=generator) for g in groups}
    tensors = dict(other.named_parameters())
    with torch.no_grad():
        for group in groups:
            for m in group.members:
                if m.name in tensors:
                    at = torch.arange(tensors[m.name].shape[m.dim])
                    at[m.indices.flatten()] = m.indices[orders[group.name]].flatten()
                    tensors[m.name].copy_(tensors[m.name].index_select(m.dim, at))
    return other, orders
