"""Models that write into their buffers as they run: no graph of one call does that."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import shearfx
from shearfx.attributes import settle
from shearfx.errors import PlanError
from shearfx.pruning_plan import of_cuts


class Remembering(nn.Module):
    """Adds a running mean of its hidden features, kept from call to call."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 3)
        self.register_buffer("mean", torch.zeros(12))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x)
        self.mean.mul_(0.5).add_(hidden.mean(0).detach() * 0.5)
        out: Tensor = self.down(hidden + self.mean)
        return out


class Counting(nn.Module):
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.down(torch.relu(self.up(x)) * self.calls)
        return out


def test_the_dims_of_a_buffer_that_the_call_writes_into_are_pinned() -> None:
    graph = shearfx.trace(Remembering(), torch.randn(3, 6))
    assert graph.traced.changed == ("mean",)
    assert not graph.groups and any("the call writes into mean" in pin.reason for pin in graph.pins)


def test_a_graph_that_would_not_keep_the_state_is_refused_and_the_class_is_right_call_after_call() -> None:
    torch.manual_seed(0)
    model, x = Counting().double().eval(), torch.randn(3, 6, dtype=torch.float64)
    graph = shearfx.trace(model, x)
    (group,) = graph.groups
    with pytest.raises(PlanError, match=r"(?s)would not change calls as the model does.*form=\"module\""):
        shearfx.construct(model, of_cuts(graph, {group.name: range(9)}), form="fx", graph=graph)
    plan = settle(model, graph, of_cuts(graph, {group.name: range(9)}))
    small, masked = shearfx.construct(model, plan), shearfx.mask(model, plan)
    for _ in range(3):
        torch.testing.assert_close(small(x), masked(x), rtol=1e-10, atol=1e-12)
    report = shearfx.verify(model, plan, x, graph=graph)
    assert report.module_error is not None and report.fx_error is None and report.moved > 1e-3


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_writes_nothing_in_evaluation_mode(training: bool) -> None:
    model = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3)).train(training)
    x = torch.randn(5, 6)
    graph = shearfx.trace(model, x)
    (group,) = graph.groups
    assert graph.traced.changed == ()
    report = shearfx.verify(model, of_cuts(graph, {group.name: range(9)}, options={"form": "fx"}), x, graph=graph)
    assert report.fx_error is not None and report.moved > 1e-3
