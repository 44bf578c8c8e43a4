"""Wanda-sp and FLAP: numbers worked out on paper, the definitions written out, and the order that budgets go by."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import shearfx
from shearfx.budget import parameter_budget
from shearfx.gating.moments import FeatureMoments
from shearfx.graph import Group, coordinates
from shearfx.saliency import find
from shearfx.selection import Tied
from shearfx.spending import Spender
from shearfx.units import units_of
from tests.rivals import Two, analysed, case, seen_groups

# h = relu(U x), y = D h with U = 1 of size 3, D = [[1, -2, 0], [2, 0, -1]]
# x = (3, 1, 0), (4, 1, 0), (0, 1, 2): h is x
#   norms: 5, sqrt 3, 2; |D| by column: 3, 2, 1
#   means: 7/3, 1, 2/3; sums of squared differences: 25 - 49/3 = 26/3, 0, 4 - 4/3 = 8/3
#   variances (two degrees of freedom): 13/3, 0, 4/3; ||D[:, j]||^2: 5, 4, 1
#   products: 65/3, 0, 4/3; mean 23/3, differences 14, -23/3, -19/3; variance (196 + 529/9 + 361/9) / 2 = 1327/9
WORKED_OUT = {
    "wanda_sp": (15.0, 2 * 3**0.5, 2.0),
    "flap": tuple(d / (1327 / 9) ** 0.5 for d in (14.0, -23 / 3, -19 / 3)),
}


@pytest.mark.parametrize("name", WORKED_OUT)
def test_a_case_worked_out_on_paper(name: str) -> None:
    model = Two(torch.eye(3).tolist(), [[1, -2, 0], [2, 0, -1]])
    x = torch.tensor([[3.0, 1, 0], [4, 1, 0], [0, 1, 2]]).double()
    graph, group = analysed(model, x)
    scores = find(name).score(graph, model, data=[x[:1], x[1:]])
    assert scores[group.name].tolist() == pytest.approx(WORKED_OUT[name], rel=1e-12)


def columns(module: nn.Module) -> Tensor:
    """``[inputs, all else]``."""
    weight: Tensor = module.weight.detach()  # type: ignore[operator]
    return weight if isinstance(module, Conv1D) else weight.transpose(0, 1).flatten(1)


def wanda(x: Tensor, w: Tensor, where: Tensor, size: int) -> Tensor:
    product = w.abs() * x.norm(dim=0)[:, None]
    return torch.stack([product[where == i].sum() for i in range(size)])


def flap(x: Tensor, w: Tensor, where: Tensor, size: int) -> Tensor:
    metric = x.var(dim=0) * w.square().sum(1)
    own = metric[where >= 0]
    return torch.stack([((metric[where == i] - own.mean()) / own.std()).mean() for i in range(size)])


@pytest.mark.parametrize(("rival", "by_hand"), [("wanda_sp", wanda), ("flap", flap)])
@pytest.mark.parametrize("name", ["llama", "gpt2", "convolutions"])
def test_it_is_what_the_paper_says_with_all_inputs_at_hand(
    name: str, rival: str, by_hand: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shearfx.low_rank.CHUNK", 100)
    model, graph, data = case(name)
    groups = seen_groups(name)
    scores = find(rival).score(graph, model, groups=groups, data=iter(data))

    def expected(group: Group) -> Tensor:
        (member,) = [m for m in group.members if _read(model, m.name, m.dim)]
        module, inputs = model.get_submodule(member.name.rpartition(".")[0]), []
        hook = module.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        for batch in data:
            model(**batch) if isinstance(batch, dict) else model(batch)
        hook.remove()
        rows = torch.cat([x.movedim(1, -1) if x.dim() == 4 else x for x in inputs]).flatten(0, -2)
        return by_hand(rows.detach(), columns(module), coordinates(member.term, member.atom), group.size)

    for group in groups:
        torch.testing.assert_close(scores[group.name], expected(group), rtol=1e-9, atol=1e-12)


def _read(model: nn.Module, name: str, dim: int) -> bool:
    module = model.get_submodule(name.rpartition(".")[0])
    return name.endswith("weight") and dim == (0 if isinstance(module, Conv1D) else 1)


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 12), max_size=4), offset=st.sampled_from([0.0, 1e4]))
def test_moments_do_not_follow_from_how_rows_are_cut(cuts: list[int], offset: float) -> None:
    rows = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + offset
    zero = torch.zeros(3, dtype=torch.float64)
    seen, bounds = FeatureMoments(0, zero, zero), [0, *sorted(cuts), 12]
    for start, stop in itertools.pairwise(bounds):
        seen.add(rows[start:stop])
    assert seen.count == 12
    torch.testing.assert_close(seen.mean, rows.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(seen.variance, rows.var(0), rtol=1e-7, atol=0)
    torch.testing.assert_close(seen.squares, rows.square().sum(0), rtol=1e-12, atol=0)


class Mixed(nn.Module):
    """``a`` is read by a linear layer of its own and, beside ``b``, by a second one; ``c`` by a transposed
    convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(5, 4), nn.Conv1d(5, 3, 1)
        self.own, self.both, self.up = nn.Linear(6, 2), nn.Linear(10, 2), nn.ConvTranspose1d(3, 2, 2)

    def forward(self, x: Tensor) -> Any:
        a, b, c = torch.tanh(self.a(x)), torch.tanh(self.b(x)), torch.tanh(self.c(x[..., None]))
        return self.own(a), self.both(torch.cat([a, b], -1)), self.up(c)


@pytest.mark.parametrize(("rival", "by_hand"), [("wanda_sp", wanda), ("flap", flap)])
def test_several_layers_that_read_parts_of_inputs_and_transposed_convolutions(
    rival: str, by_hand: Callable[..., Tensor]
) -> None:
    torch.manual_seed(0)
    model, x = Mixed().double().eval(), torch.randn(8, 5, dtype=torch.float64)
    graph = shearfx.trace(model, x)
    scores = {g.size: find(rival).score(graph, model, data=[(x,)])[g.name] for g in graph.groups}
    a, b = torch.tanh(model.a(x)).detach(), torch.tanh(model.b(x)).detach()
    c = torch.tanh(model.c(x[..., None])).detach()[..., 0]
    both, ab = columns(model.both), torch.cat([a, b], -1)
    first, last = torch.tensor([*range(6), *[-1] * 4]), torch.tensor([*[-1] * 6, *range(4)])
    of_a = by_hand(a, columns(model.own), torch.arange(6), 6) + by_hand(ab, both, first, 6)
    torch.testing.assert_close(scores[6], of_a / 2 if rival == "flap" else of_a, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(scores[4], by_hand(ab, both, last, 4), rtol=1e-9, atol=1e-12)
    of_c = by_hand(c, model.up.weight.detach().flatten(1), torch.arange(3), 3)
    torch.testing.assert_close(scores[3], of_c, rtol=1e-9, atol=1e-12)


class Branches(nn.Module):
    """Two widths side by side; one of them costs four times as much."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 20), nn.Linear(4, 20)
        self.wide, self.thin = nn.Linear(20, 24), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Any:
        return self.wide(torch.relu(self.a(x))), self.thin(torch.relu(self.b(x)))


@pytest.mark.parametrize("leaping", [True, False])
@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.6])
def test_standardised_scores_are_ranked_as_they_are_whatever_a_structure_costs(
    ratio: float, leaping: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not leaping:
        monkeypatch.setattr("shearfx.spending.leap", lambda *_: None)
    torch.manual_seed(0)
    model, x = Branches().eval(), torch.randn(2, 4)
    graph = shearfx.trace(model, x)
    scores = {g.name: torch.randn(g.size, dtype=torch.float64) for g in graph.groups}

    class Fixed(type(find("flap"))):  # type: ignore[misc]
        def scores(self, _: Any) -> dict[str, Tensor]:
            return scores

    plan = shearfx.plan(graph, ratio, Fixed(), model, form="fx", floor=0)
    kept = {cut.name: torch.tensor(cut.kept) for cut in plan.cuts}
    left, gone = [], []
    for name, score in scores.items():
        stays = torch.ones(len(score), dtype=torch.bool)
        if name in kept:
            stays = torch.zeros(len(score), dtype=torch.bool)
            stays[kept[name]] = True
        left += score[stays].tolist()
        gone += score[~stays].tolist()
    # to spend a budget exactly, the very last steps may be out of order
    gone.sort()
    assert len(gone) > 3 and max(gone[:-3]) < min(left)
    assert plan.achieved == pytest.approx(ratio, abs=0.02)


def test_uniform_cuts_by_standardised_scores_take_the_mean_of_what_is_tied() -> None:
    model, graph, data = case("llama")
    plan = shearfx.plan(graph, 0.1, "flap", model, scope="uniform", form="fx", kinds=("ffn",), data=data)
    assert len(plan.cuts) == 2 and len({len(cut.kept) for cut in plan.cuts}) == 1
    scores = find("flap").score(graph, model, groups=[g for g in graph.groups if g.kind == "ffn"], data=data)
    for cut in plan.cuts:
        order = scores[cut.name].argsort(descending=True)[: len(cut.kept)]
        assert sorted(order.tolist()) == list(cut.kept)


def test_the_key_of_tied_groups_is_the_mean_of_what_goes() -> None:
    _, graph, _ = case("llama")
    one, two = (g for g in graph.groups if g.kind == "ffn")
    scores = {g.name: torch.arange(24, dtype=torch.float64) + i for i, g in enumerate((one, two))}
    budget = parameter_budget(graph)
    (unit,) = units_of(graph, [Tied((one, two), (1, 1))], scores, 0.1, 1.0, budget)
    spender = Spender(budget, [unit], "standardised")
    assert spender.key(unit, 1) == 0.5 and spender.key(unit, 3) == 1.5  # 0, 1, 2 and 1, 2, 3
