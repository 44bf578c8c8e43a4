"""Numbers that a class keeps beside its parameters: changed where the cut needs it, never because they look alike."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from shearfx.analysis import trace
from shearfx.attributes import settle
from shearfx.construction import construct
from shearfx.masking import mask
from shearfx.pruning_plan import of_cuts


class Windowed(nn.Module):
    """Looks at the last positions only, as many as it has features."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.window = nn.Parameter(torch.randn(12, 6)), 12

    def forward(self, x: Tensor) -> Tensor:
        return linear(x[:, -self.window :], self.weight).relu()


class Viewed(nn.Module):
    """Needs the number of its features where it falls apart into heads."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.width, self.unread = nn.Parameter(torch.randn(12, 6)), 12, 12

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight).relu().view(x.shape[0], -1, self.width)


class Between(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.out = block, nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.out(self.block(x)).mean(1)
        return result


def cut(block: nn.Module) -> tuple[nn.Module, nn.Module]:
    """A model with nine of the block's twelve features, in its class, and the masked original."""
    torch.manual_seed(0)
    model = Between(block).double().eval()
    graph = trace(model, torch.randn(3, 4, 6, dtype=torch.float64))
    (group,) = [g for g in graph.groups if g.size == 12]
    plan = settle(model, graph, of_cuts(graph, {group.name: range(9)}))
    return construct(model, plan, form="module"), mask(model, plan)


def test_a_number_that_only_equals_a_size_stays() -> None:
    small, masked = cut(Windowed())
    assert small.get_submodule("block").window == 12
    for length in (4, 11, 20):
        x = torch.randn(2, length, 6, dtype=torch.float64)
        torch.testing.assert_close(small(x), masked(x), rtol=1e-10, atol=1e-12)


def test_a_number_that_the_code_needs_is_found() -> None:
    small, masked = cut(Viewed())
    block = small.get_submodule("block")
    assert isinstance(block, Viewed) and (block.width, block.unread) == (9, 12)
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    torch.testing.assert_close(small(x), masked(x), rtol=1e-10, atol=1e-12)
