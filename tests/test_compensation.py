"""Least-squares compensation: the closed form is the best there is, and leaves alone what it cannot help."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import shearfx
from shearfx.compensation import LinearReaders, compensate_cut, least_squares
from shearfx.errors import PlanError
from shearfx.gating.moments import second_moments
from shearfx.pruning_plan import of_cuts
from tests import zoo


class Mlp(nn.Module):
    def __init__(self, seed: int, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.up, self.down = nn.Linear(5, 12, bias=bias), nn.Linear(12, 4, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.down(torch.tanh(self.up(x)))
        return result


def call(model: nn.Module, batch: Any) -> Any:
    return model(batch)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 50), keep=st.integers(3, 11))
def test_no_other_weights_come_closer_on_the_calibration_data(seed: int, keep: int) -> None:
    model = Mlp(seed).double()
    data = torch.randn(200, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    graph = shearfx.trace(model, data)
    (group,) = [g for g in graph.groups if g.size == 12]
    kept = sorted(random.Random(seed).sample(range(12), keep))
    plan = of_cuts(graph, {group.name: kept})
    small = shearfx.construct(model, plan)

    def error(candidate: nn.Module) -> float:
        return float((candidate(data) - model(data)).square().sum().detach())

    plain = error(small)
    assert compensate_cut(graph, model, small, plan, data.split(50), call, ridge=0.0) == 1
    best = error(small)
    assert best <= plain * (1 + 1e-9)
    hidden = torch.tanh(model.up(data))
    wanted = hidden @ model.down.weight.T
    direct = torch.linalg.lstsq(hidden[:, kept], wanted).solution
    least = float((hidden[:, kept] @ direct - wanted).square().sum())
    assert best == pytest.approx(least, rel=1e-4, abs=1e-9)  # moments are summed up in float32


def test_what_the_removed_structures_did_alone_is_not_made_up() -> None:
    """With a ridge, inputs that the data never shows keep the weights they had."""
    model = Mlp(0, bias=False)
    data = torch.zeros(8, 5)
    graph = shearfx.trace(model, data)
    (group,) = [g for g in graph.groups if g.size == 12]
    plan = of_cuts(graph, {group.name: range(6)})
    small = shearfx.construct(model, plan)
    before = small.down.weight.detach().clone()  # type: ignore[union-attr, operator]
    compensate_cut(graph, model, small, plan, [data], call)
    assert torch.equal(small.down.weight, before)  # type: ignore[arg-type, union-attr]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_heads_and_ffn_of_language_models_come_closer_to_the_full_model(name: str) -> None:
    built = zoo.get(name).build()
    model = built.module
    graph = shearfx.trace(model, *built.args, **built.kwargs)
    cut = {g.name: range(g.size * 2 // 3) for g in graph.groups if g.kind in ("ffn", "heads") and g.size > 2}
    plan = of_cuts(graph, cut, options={"form": "fx"})
    # the class cannot hold unequal heads in all entries, so the masked model stands for the cut one
    masked = shearfx.mask(model, plan)
    readers = LinearReaders(graph, model, plan)
    torch.manual_seed(0)
    batches = [torch.randint(0, 97, (4, 12)) for _ in range(20)]

    def run(candidate: nn.Module, ids: torch.Tensor) -> torch.Tensor:
        return candidate(input_ids=ids, use_cache=False).logits  # type: ignore[no-any-return]

    with second_moments(readers.sites) as moments, torch.no_grad():
        for ids in batches:
            run(model, ids)
    assert len(moments) == len(cut)

    def distance(candidate: nn.Module) -> float:
        with torch.no_grad():
            return float(sum((run(candidate, i) - run(model, i)).square().mean() for i in batches[:5]))

    before = distance(masked)
    with torch.no_grad():
        for path, found in moments.items():
            full, own = (m.get_submodule(path).weight for m in (model, masked))
            if name == "gpt2":
                own[readers.kept[path]] = least_squares(found, full.T, readers.kept[path]).T  # type: ignore[operator, arg-type]
            else:
                own[:, readers.kept[path]] = least_squares(found, full, readers.kept[path])  # type: ignore[operator, arg-type]
    assert distance(masked) < before


def test_where_no_linear_layer_reads_the_cut_it_says_so() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    graph = shearfx.trace(model, torch.randn(2, 3, 9, 9))
    (group,) = [g for g in graph.groups if g.size == 8]
    plan = of_cuts(graph, {group.name: range(4)})
    small = shearfx.construct(model, plan)
    with pytest.raises(PlanError, match="reads what the plan cuts"):
        compensate_cut(graph, model, small, plan, [torch.randn(2, 3, 9, 9)], call)
