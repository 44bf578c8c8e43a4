"""What a structure is worth once the others take over: against least squares and against refitted weights."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import shearfx
from shearfx.compensation import compensate_cut
from shearfx.gating.residuals import ResidualCollector, inverse, projection
from shearfx.gating.sites import GateSite
from shearfx.graph import Graph
from shearfx.pruning_plan import of_cuts
from shearfx.saliency import CompensatedFisher, Fisher
from tests import zoo

RIDGE = 1e-2


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), where=st.lists(st.integers(-1, 3), min_size=2, max_size=9))
def test_a_projection_leaves_what_least_squares_cannot_explain(seed: int, where: list[int]) -> None:
    index = torch.tensor(where)
    x = drawn(seed, 60, len(where)) @ drawn(seed + 1, len(where), len(where))
    found = x @ projection(inverse(x.T @ x, ridge=0.0), index).double()
    scale = float(x.abs().max())
    for structure in sorted(set(where) - {-1}):
        others = x[:, index != structure]
        block = x[:, index == structure]
        explained = others @ torch.linalg.lstsq(others, block).solution if others.shape[1] else 0
        torch.testing.assert_close(found[:, index == structure], block - explained, rtol=1e-3, atol=1e-4 * scale)
    assert bool((found[:, index == -1] == 0).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_residuals_are_small_differences_worked_out_in_wide_numbers(dtype: torch.dtype) -> None:
    """Channels that others nearly explain: what is left is a thousandth of what cancels."""
    common = drawn(3, 200, 1)
    x = (common + 3e-2 * drawn(4, 200, 6)).to(dtype)
    index = torch.arange(6)
    matrix = projection(inverse((x.T.double() @ x.double()), ridge=0.0), index)
    layer = nn.Linear(6, 2)
    site = GateSite("layer", layer, "in", -1, 6, (("group", index),))
    ((_, found),) = ResidualCollector({"group": 6}, {("layer", "group"): matrix}).along(site, x)
    torch.testing.assert_close(found.double(), x.double() @ matrix.double(), rtol=0, atol=1e-4)


class Net(nn.Module):
    """A hidden width, of which one channel repeats another, and the layer that reads it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(6, 10), nn.Linear(10, 3)
        with torch.no_grad():
            self.up.weight[7] = self.up.weight[2]
            self.up.bias[7] = self.up.bias[2]

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.down(torch.tanh(self.up(x)))
        return result


def loss(model: nn.Module, batch: Any) -> Tensor:
    result: Tensor = (model(batch) - 1).pow(4).sum()
    return result


@functools.cache
def setting() -> tuple[Net, Graph, list[Tensor]]:
    model = Net().double()
    return model, shearfx.trace(model, drawn(5, 8, 5, 6)), list(drawn(6, 24, 5, 6).split(8))


def test_scores_are_derivatives_along_what_refitting_changes() -> None:
    """Brute force: for every structure the refitted weights, and the loss of every sequence differentiated there."""
    model, graph, batches = setting()
    (group,) = [g for g in graph.groups if g.size == 10]
    scores = CompensatedFisher(RIDGE).score(graph, model, groups=[group], data=batches, loss=loss)[group.name]
    for i in range(10):
        kept = [j for j in range(10) if j != i]
        plan = of_cuts(graph, {group.name: kept})
        small = shearfx.construct(model, plan)
        compensate_cut(graph, model, small, plan, batches, lambda m, b: m(b), ridge=RIDGE)
        new = torch.zeros(3, 10, dtype=torch.float64)
        new[:, kept] = small.get_parameter("down.weight").detach()
        change = model.down.weight.detach() - new
        expected = 0.0
        for one in torch.cat(batches):
            step = torch.zeros((), dtype=torch.float64, requires_grad=True)
            weight = model.down.weight.detach() + step * change
            hidden = torch.tanh(model.up(one)).detach()
            out = hidden @ weight.T + model.down.bias.detach()
            (out - 1).pow(4).sum().backward()
            expected += float(step.grad) ** 2  # type: ignore[arg-type]
        # The ridge is on all inputs there and on those that stay here, and moments are summed up in float32.
        assert float(scores[i]) == pytest.approx(expected / 24, rel=0.05, abs=1e-6 * float(scores.max()))


def test_what_another_channel_repeats_is_worth_next_to_nothing() -> None:
    model, graph, batches = setting()
    (group,) = [g for g in graph.groups if g.size == 10]
    plain = Fisher().score(graph, model, groups=[group], data=batches, loss=loss)[group.name]
    found = CompensatedFisher(1e-6).score(graph, model, groups=[group], data=batches, loss=loss)[group.name]
    twins = torch.tensor([2, 7])
    assert bool((found[twins] < 1e-6 * plain[twins]).all())
    others = torch.tensor([i for i in range(10) if i not in (2, 7)])
    assert bool((found[others] > 1e-6 * plain[others]).all())


def test_moments_come_from_batches_of_their_own() -> None:
    model, graph, batches = setting()
    (group,) = [g for g in graph.groups if g.size == 10]

    def scores(fitting: list[Tensor] | None) -> Tensor:
        proxy = CompensatedFisher(RIDGE)
        proxy.fitting = fitting
        return proxy.score(graph, model, groups=[group], data=batches, loss=loss)[group.name]

    assert torch.equal(scores(None), scores(batches))
    others = [3 * drawn(7, 8, 5, 6)]
    assert not torch.allclose(scores(None), scores(others), rtol=1e-3)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_part_by_part_is_the_same_as_at_once(name: str) -> None:
    """Also: heads of several dims, groups of queries, the layout of Conv1D; and the model is kept."""
    model = zoo.get(name).build().to(torch.float64)
    graph = shearfx.trace(model.module, *model.args, **model.kwargs)
    groups = [g for g in graph.groups if g.kind in ("ffn", "heads") and g.size > 1]
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    data = [{"input_ids": torch.arange(24).reshape(3, 8) % 19}]
    whole = CompensatedFisher().score(graph, model.module, groups=groups, data=data)
    told: list[tuple[int, int]] = []
    parts = CompensatedFisher(memory=1).score(
        graph, model.module, groups=groups, data=data, progress=lambda done, of: told.append((done, of))
    )
    assert whole.keys() == parts.keys() == {g.name for g in groups}
    for group in groups:
        torch.testing.assert_close(whole[group.name], parts[group.name], rtol=1e-6, atol=1e-12)
        assert float(whole[group.name].max()) > 0
    assert told[-1] == (len(groups), len(groups))
    assert all(torch.equal(v, before[k]) for k, v in model.module.state_dict().items())
