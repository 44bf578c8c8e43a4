"""LLM-Pruner's importances: numbers worked out on paper, and the original's definition written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from shearfx.graph import Group
from shearfx.saliency import LlmPrunerElement1, LlmPrunerElement2, find
from tests.rivals import Two, analysed, case, loss_for, total
from tests.test_learnt_saliency import slices

# loss = d . relu(U x) with U = [[1, 2], [3, -1]], d = [2, -1]
#   x = (1, 1): U x = (3, 2), so dL/dU = d x' = [[2, 2], [-1, -1]], dL/dd = (3, 2)
#   x = (1, 0): U x = (1, 3), so dL/dU = [[2, 0], [-1, 0]],         dL/dd = (1, 3)
# means g: [[2, 1], [-1, -1/2]] and (2, 5/2); of squares F: [[4, 2], [1, 1/2]] and (5, 13/2)
WORKED_OUT = {
    # |1*2| + |2*1| + |2*2|;  |3*-1| + |-1*-1/2| + |-1*5/2|
    "llm_pruner_element1": (8.0, 6.0),
    # |2 - 4/2| + |2 - 4*2/2| + |4 - 4*5/2|;  |-3 - 9/2| + |1/2 - 1/4| + |-5/2 - 13/4|
    "llm_pruner_element2": (8.0, 13.5),
    # |1*2 + 2*1| + |4|;  |-3 + 1/2| + |-5/2|
    "llm_pruner_vector1": (8.0, 5.0),
    # w.g by batch, in U: 6, 2 and -2, -3; in d: 6, 2 and -2, -3: twice |4 - 20/2|;  twice |-5/2 - 13/4|
    "llm_pruner_vector2": (12.0, 11.5),
}


@pytest.mark.parametrize("name", WORKED_OUT)
def test_a_case_worked_out_on_paper(name: str) -> None:
    model = Two([[1, 2], [3, -1]], [[2, -1]])
    data = [torch.tensor([[1.0, 1.0]]).double(), torch.tensor([[1.0, 0.0]]).double()]
    graph, group = analysed(model, data[0])
    scores = find(name).score(graph, model, data=data, loss=total)
    assert scores[group.name].tolist() == pytest.approx(WORKED_OUT[name], rel=1e-12)


def by_definition(name: str, group: Group, i: int, w: dict[str, Tensor], gradients: list[dict[str, Tensor]]) -> float:
    """A structure's slices of each layer, and all gradients of them."""
    found = 0.0
    for layer in dict.fromkeys(m.name for m in group.members if m.name in w):
        only = {layer: w[layer]}
        x = slices(group, i, only, only)
        g = torch.stack([slices(group, i, {layer: one[layer]}, only) for one in gradients])
        if "vector" in name:
            found += float((x @ g.mean(0) - ((g @ x).square().mean() / 2 if "2" in name else 0)).abs())
        else:
            found += float((x * g.mean(0) - (x.square() * g.square().mean(0) / 2 if "2" in name else 0)).abs().sum())
    return found


@pytest.mark.parametrize("rival", WORKED_OUT)
@pytest.mark.parametrize("name", ["llama", "gpt2", "convolutions"])
def test_it_is_what_the_paper_says_with_all_gradients_at_hand(
    name: str, rival: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shearfx.low_rank.CHUNK", 100)  # weights are looked at in parts, a few rows each
    model, graph, data = case(name)
    groups = [g for g in graph.groups if g.kind not in ("hidden", "head_dim")]
    scores = find(rival).score(graph, model, groups=groups, data=data, loss=loss_for(name))
    gradients: list[dict[str, Tensor]] = []
    for batch in data:
        model.zero_grad()
        loss: Any = loss_for(name) or (lambda m, b: m(**b, labels=b["input_ids"]).loss)
        loss(model, batch).backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    weights = {n: p.detach() for n, p in model.named_parameters()}
    assert scores.keys() == {g.name for g in groups}
    for group in groups:
        for i in range(group.size):
            expected = by_definition(rival, group, i, weights, gradients)
            assert float(scores[group.name][i]) == pytest.approx(expected, rel=1e-9, abs=1e-14), (group, i)


@pytest.mark.parametrize("kind", [LlmPrunerElement1, LlmPrunerElement2])
def test_part_by_part_within_a_memory_gives_the_same(kind: Any) -> None:
    model, graph, data = case("llama")
    groups = [g for g in graph.groups if g.kind in ("ffn", "heads")]
    whole = kind(memory=None).score(graph, model, groups=groups, data=iter(data))
    calls: list[tuple[int, int]] = []
    told = lambda *c: calls.append(c)  # noqa: E731
    parts = kind(memory=8 * 16 * 24 * 2).score(graph, model, groups=groups, data=iter(data), progress=told)
    for name, score in parts.items():  # sums are made in another order
        torch.testing.assert_close(score, whole[name], rtol=1e-9, atol=0)
    assert len(calls) > 4 and calls[-1] == (len(calls), len(calls)) and calls[0] == (1, len(calls))


def test_only_one_part_of_the_gradients_is_ever_held() -> None:
    model, graph, data = case("llama")
    held: list[int] = []

    class Watched(LlmPrunerElement2):
        def _part(self, sums: Any, model: Any, part: Any, passes: Any) -> None:
            def count() -> Any:
                for i in passes:
                    held.append(sum(p.numel() for p in model.parameters() if p.requires_grad))
                    assert all(p.grad is None for p in model.parameters())
                    yield i

            super()._part(sums, model, part, count())

    most = 8 * 2 * 16 * 24
    Watched(memory=most).score(graph, model, groups=[g for g in graph.groups if g.kind == "ffn"], data=data)
    assert len(held) == 2 * 6 and max(held) * 8 * 2 <= most
