"""SparseGPT in structured form: worked out on paper, the least there is, and at one with the compensation's refit."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import shearfx
from shearfx.compensation import LinearReaders, compensate_cut, least_squares
from shearfx.gating.moments import second_moments
from shearfx.graph import Group
from shearfx.pruning_plan import PruningPlan, of_cuts
from shearfx.saliency import SparseGpt
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
        readers = LinearReaders(graph, model, plan)
        with second_moments(readers.sites) as moments, torch.no_grad():
            for batch in data:
                model(**batch)
        ((path, h),) = moments.items()
        layer: Any = model.get_submodule(path)
        full, kept = layer.weight.T if isinstance(layer, Conv1D) else layer.weight, readers.kept[path]
        damping = 0.1 * h.double().diagonal().mean()
        ridge = float(damping / h.double().diagonal()[kept].mean())
        change = -full.detach().clone()
        change[:, kept] += least_squares(h, full.detach(), kept, ridge)
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


LAYERS: dict[str, tuple[nn.Module, nn.Module]] = {
    "strided": (nn.Conv1d(3, 4, 1), nn.Conv1d(4, 3, 3, stride=2, padding=1)),
    "dilated, padded by name": (nn.Conv1d(3, 4, 1), nn.Conv1d(4, 3, 3, padding="same", dilation=2)),
    "in groups": (nn.Conv1d(3, 4, 1), nn.Conv1d(4, 4, 3, groups=2)),
    "transposed": (nn.Conv1d(3, 4, 1), nn.ConvTranspose1d(4, 2, 3, stride=2, padding=1, output_padding=1)),
    "transposed in groups": (nn.Conv1d(3, 4, 1), nn.ConvTranspose1d(4, 4, 3, stride=2, groups=2, dilation=2)),
    "in two dims": (nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, (2, 3), stride=(1, 2), padding=(0, 1))),
    "transposed in two dims": (nn.Conv2d(3, 3, 1), nn.ConvTranspose2d(3, 2, (2, 3), stride=(1, 2), padding=(0, 1))),
}


@pytest.mark.parametrize("name", LAYERS)
def test_of_a_convolution_it_is_what_the_best_other_kernel_loses(name: str) -> None:
    """The best kernel by least squares over one output for each of its numbers."""
    first, second = (cast(Any, copy.deepcopy(layer).double()) for layer in LAYERS[name])
    torch.manual_seed(0)
    x = torch.randn(6, 3, 5, 7, dtype=torch.float64)[(...,) if isinstance(first, nn.Conv2d) else (..., 0, slice(None))]
    model = nn.Sequential(first, nn.Tanh(), second).eval().requires_grad_(False)
    graph = shearfx.trace(model, x)
    second.bias = None
    weight: Tensor = second.weight
    wanted, kernel = second(torch.tanh(first(x))).flatten(), weight.clone()
    for group in graph.groups:
        weight.copy_(kernel)
        scores = SparseGpt(ridge=0.0).score(graph, model, groups=[group], data=[x])[group.name]
        (rows,) = (m.indices for m in group.members if m.name == "0.bias")
        for gone in (0, group.size - 1):
            left = torch.tanh(first(x)).index_fill(1, rows[gone], 0)
            outputs = [second(left).flatten() for _ in each_alone(weight)]
            seen = torch.stack([one for one in outputs if bool(one.any())], 1)
            best = torch.linalg.lstsq(seen, wanted).solution
            # moments are summed up in float32
            assert float(scores[gone]) == pytest.approx(float((seen @ best - wanted).square().sum()), rel=1e-3)


def each_alone(weight: Tensor) -> Iterator[None]:
    """For the while of each, one number of a weight is one and all others are zero."""
    for i in range(weight.numel()):
        weight.zero_().view(-1)[i] = 1
        yield
