"""Calls of other sizes than those of the trace: right, or refused with the size and what to do."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import shearfx
from shearfx.errors import TraceError
from shearfx.graph import Graph
from shearfx.pruning_plan import PruningPlan, of_cuts


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(torch.relu(self.up(x)))
        return out


class Branching(Plain):
    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        out: Tensor = self.down(y.sin() if x.shape[0] <= 4 else y * y)
        return out


class OddBatches(Plain):
    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        out: Tensor = self.down(y.sin() if x.shape[0] % 2 else y * y)
        return out


class LongText(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 6)

    def forward(self, ids: Tensor) -> Tensor:
        y = torch.relu(self.up(self.embed(ids)))
        out: Tensor = self.down(y / y.shape[-1] if ids.shape[1] > 8 else y)
        return out


class Average(Plain):
    """The number of positions is a number in the graph of floating inputs."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(torch.relu(self.up(x)).sum(1) / x.shape[1])
        return out


class Together(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        out: Tensor = self.down(torch.relu(self.up(x) + shift))
        return out


def plan_of(graph: Graph, form: str = "fx") -> PruningPlan:
    (group,) = [g for g in graph.groups if g.size == 12]
    return of_cuts(graph, {group.name: range(1, 10)}, options={"form": form})


def cut(model: nn.Module, *example: Tensor) -> tuple[nn.Module, nn.Module]:
    """The fx form and the masked original."""
    graph = shearfx.trace(model.double().eval(), *example)
    plan = plan_of(graph)
    return shearfx.construct(model, plan, form="fx", graph=graph), shearfx.mask(model, plan)


def x(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def test_sizes_on_the_same_side_of_a_branch_are_right_and_others_refused() -> None:
    small, masked = cut(Branching(), x(3, 6))
    for batch in (1, 2, 3, 4):
        given = x(batch, 6)
        torch.testing.assert_close(small(given), masked(given), rtol=1e-10, atol=1e-12)
    with pytest.raises(TraceError, match=r"(?s)not x.shape\[0\] <= 4 with x.shape\[0\] = 5.*trace the model with"):
        small(x(5, 6))


def test_what_is_asked_of_a_size_need_not_be_a_range() -> None:
    small, masked = cut(OddBatches(), x(3, 6))
    given = x(7, 6)
    torch.testing.assert_close(small(given), masked(given), rtol=1e-10, atol=1e-12)
    with pytest.raises(TraceError, match=r"x.shape\[0\] % 2"):
        small(x(4, 6))


def test_copies_of_the_graph_refuse_too() -> None:
    small, _ = cut(Branching(), x(3, 6))
    with pytest.raises(TraceError, match="other sizes"):
        copy.deepcopy(small)(x(5, 6))


def test_fixed_sizes_of_floating_inputs_are_refused_where_they_differ() -> None:
    small, masked = cut(Average(), x(2, 4, 6))
    given = x(5, 4, 6)
    torch.testing.assert_close(small(given), masked(given), rtol=1e-10, atol=1e-12)
    with pytest.raises(TraceError, match=r"x.shape\[1\] is 9, not 4"):
        small(x(2, 9, 6))
    with pytest.raises(TraceError, match="x has 2 dims, not 3"):
        small(x(4, 6))


def test_sizes_that_were_one_and_the_same_in_the_trace_have_to_be() -> None:
    small, _ = cut(Together(), x(3, 6), x(3, 1))
    with pytest.raises(TraceError, match=r"shift.shape\[0\] is 1, not 5"):
        small(x(5, 6), x(1, 1))


@pytest.mark.parametrize(("length", "other"), [(5, 12), (12, 5)])
def test_a_saved_graph_comes_back_for_the_sizes_that_it_was_traced_for(tmp_path: Path, length: int, other: int) -> None:
    torch.manual_seed(0)
    model, ids = LongText().eval(), torch.randint(0, 20, (2, length))
    graph = shearfx.trace(model, ids)
    plan = plan_of(graph)
    small = shearfx.construct(model, plan, form="fx", graph=graph)
    shearfx.save(small, plan, tmp_path / "small")
    again = shearfx.load(tmp_path / "small", model=LongText().eval())
    torch.testing.assert_close(again(ids), small(ids))
    for one in (small, again):
        with pytest.raises(TraceError, match=r"ids.shape\[1\]"):
            one(torch.randint(0, 20, (2, other)))


def test_the_analysis_says_which_sizes_it_holds_for() -> None:
    assert shearfx.trace(Branching(), torch.randn(3, 6)).traced.specialised == ["only where x.shape[0] <= 4"]
    assert shearfx.trace(Plain(), torch.randn(3, 6)).traced.specialised == []


@pytest.mark.parametrize("length", [5, 12])
def test_the_class_is_settled_and_verified_on_the_side_of_the_example(length: int) -> None:
    torch.manual_seed(0)
    model, ids = LongText().eval(), torch.randint(0, 20, (2, length))
    graph = shearfx.trace(model, ids)
    if length == 5:
        report = shearfx.verify(model, shearfx.plan(graph, ratio=0.3, saliency="magnitude", model=model), ids)
        assert report.module_error is not None and report.fx_error is not None and report.moved > 1e-3
    else:
        report = shearfx.verify(model, plan_of(graph), ids, graph=graph)
        assert report.fx_error is not None and report.moved > 1e-3


def test_calls_on_the_other_side_of_a_branch_are_verified_by_a_trace_of_their_own() -> None:
    model = Branching().eval()
    graph = shearfx.trace(model, torch.randn(3, 6))
    report = shearfx.verify(model, plan_of(graph), torch.randn(6, 6), graph=graph)
    assert report.fx_error is not None and report.moved > 1e-3
