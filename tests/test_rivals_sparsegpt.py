"""SparseGPT in structured form: worked out on paper, the least there is, and at one with the compensation's refit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import shearfx
from shearfx.compensation import Moments, compensate_cut
from shearfx.errors import PlanError
from shearfx.graph import Group
from shearfx.pruning_plan import PruningPlan, of_cuts
from shearfx.saliency import SparseGpt, find
from tests.rivals import Two, analysed, case


def test_a_case_worked_out_on_paper() -> None:
    """``H = [[2, 1], [1, 1]]`` of ``x = (1, 1), (1, 0)``, so ``H^-1 = [[1, -1], [-1, 2]]``; by columns
    ``||D[:, j]||^2 = 1 + 9, 4 + 0``, hence ``10 / 1`` and ``4 / 2``."""
    model = Two([[1, 0], [0, 1]], [[1, 2], [3, 0]])
    x = torch.tensor([[1.0, 1], [1, 0]]).double()
    graph, group = analysed(model, x)
    scores = SparseGpt(ridge=0.0).score(graph, model, data=[x[:1], x[1:]])
    assert scores[group.name].tolist() == pytest.approx([10.0, 2.0], rel=1e-6)  # moments are summed up in float32


class Pairs(nn.Module):
    """Six structures of two features each: a linear layer, pooled in pairs by nothing, read by another."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.up, self.down = nn.Linear(5, 6), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.up(x))
        found: Tensor = self.down(torch.stack([h, h.square()], -1).flatten(-2))
        return found


def call(model: nn.Module, batch: Any) -> Any:
    return model(batch)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 50), gone=st.integers(0, 5))
def test_it_is_what_is_lost_after_the_best_refit_which_is_the_compensation(seed: int, gone: int) -> None:
    model = Pairs(seed).double()
    data = torch.randn(200, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    graph, group = analysed(model, data)
    scores = SparseGpt(ridge=0.0).score(graph, model, data=data.split(60))[group.name]
    plan = of_cuts(graph, {group.name: [i for i in range(6) if i != gone]})
    small = shearfx.construct(model, plan, form="fx", graph=graph)
    h = torch.tanh(model.up(data))
    features = torch.stack([h, h.square()], -1).flatten(1).detach()
    stays = [i for i in range(12) if i // 2 != gone]
    wanted = features @ model.down.weight.detach().T
    best = torch.linalg.lstsq(features[:, stays], wanted).solution
    least = float((features[:, stays] @ best - wanted).square().sum())
    assert float(scores[gone]) == pytest.approx(least, rel=1e-4)  # moments are summed up in float32
    assert compensate_cut(graph, model, small, plan, data.split(60), call, ridge=0.0) == 1
    lost = float((small(x=data) - model(data)).square().sum().detach())
    assert lost == pytest.approx(float(scores[gone]), rel=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_damped_it_is_the_objective_of_the_compensation_at_its_optimum(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``||dW X||^2 + e ||dW||^2`` of the compensated weight, ``e`` being the same for both."""
    monkeypatch.setattr("shearfx.low_rank.CHUNK", 100)  # weights are looked at in parts, a few rows each
    model, graph, data = case(name)
    groups = [g for g in graph.groups if g.kind in ("ffn", "heads")]
    scores = SparseGpt(ridge=0.1).score(graph, model, groups=groups, data=data)

    def objective(group: Group, gone: int) -> float:
        plan: PruningPlan = of_cuts(graph, {group.name: [i for i in range(group.size) if i != gone]})
        moments = Moments(graph, model, plan)
        with moments.watching(), torch.no_grad():
            for batch in data:
                model(**batch)
        ((path, h),) = moments.sums.items()
        layer: Any = model.get_submodule(path)
        full, kept = layer.weight.T if isinstance(layer, Conv1D) else layer.weight, moments.kept[path]
        damping = 0.1 * h.double().diagonal().mean()
        ridge = float(damping / h.double().diagonal()[kept].mean())
        change = -full.detach().clone()
        change[:, kept] += moments.solve(path, full.detach(), ridge)
        damped = h.double() + damping * torch.eye(len(h))
        # the damping of what goes is a constant, which leaves the optimum where it is
        return float((change @ damped * change).sum())

    for group in groups:
        for gone in (0, group.size - 1):
            assert float(scores[group.name][gone]) == pytest.approx(objective(group, gone), rel=1e-4), group


def test_part_by_part_within_a_memory_gives_the_same() -> None:
    model, graph, data = case("llama")
    groups = [g for g in graph.groups if g.kind in ("ffn", "heads")]
    calls: list[tuple[int, int]] = []
    told = lambda *c: calls.append(c)  # noqa: E731
    whole = SparseGpt(memory=None).score(graph, model, groups=groups, data=iter(data))
    parts = SparseGpt(memory=1).score(graph, model, groups=groups, data=iter(data), progress=told)
    assert all(torch.equal(whole[name], score) for name, score in parts.items())
    assert calls == [(i + 1, 8) for i in range(8)], "four layers, each over two batches"


def test_convolutions_that_read_are_named() -> None:
    model, graph, data = case("convolutions")
    with pytest.raises(PlanError, match=r"sparsegpt.* does not see 1 groups of kind channels: first\.bias:0"):
        find("sparsegpt").score(graph, model, data=data)
    read_by_linear = [g for g in graph.groups if g.size == 10]
    assert find("sparsegpt").score(graph, model, groups=read_by_linear, data=data)
