"""What every rival keeps to: structures in another order get the same scores, and nothing of the model is different."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shearfx.errors import PlanError
from shearfx.precision import double_precision
from shearfx.saliency import find
from tests.rivals import case, loss_for, reordered, seen_groups
from tests.test_saliency import state_of
from tests.tiny_models import fresh, learn_something

READING = ["wanda_sp", "flap", "sparsegpt"]
RIVALS = ["llm_pruner_element1", "llm_pruner_element2", "llm_pruner_vector1", "llm_pruner_vector2", *READING]
SPLIT = ["llm_pruner_element1", "llm_pruner_vector1", *READING]
"""What is defined by the mean over data, however it is cut into batches of equal size."""


def scored(rival: str, name: str, model: nn.Module, graph: Any, data: Any) -> dict[str, Tensor]:
    return find(rival).score(graph, model, groups=seen_groups(name), data=data, loss=loss_for(name))


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "convolutions", "perceptron"])
def test_structures_in_another_order_have_the_same_scores(name: str, rival: str) -> None:
    model, graph, data = case(name)
    groups = [g for g in seen_groups(name) if g.kind in ("ffn", "channels")]
    before = scored(rival, name, model, graph, data)
    other, orders = reordered(model, groups)
    after = scored(rival, name, other, graph, data)
    for group in groups:
        assert bool((before[group.name].diff() != 0).any()), "scores tell structures apart"
        # sparsegpt sums its moments up in float32
        rtol = 1e-4 if rival == "sparsegpt" else 1e-9
        expected = before[group.name][orders[group.name]]
        torch.testing.assert_close(after[group.name], expected, rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("rival", SPLIT)
@pytest.mark.parametrize("name", ["llama", "convolutions"])
def test_batches_may_be_split(name: str, rival: str) -> None:
    model, graph, data = case(name)
    parts = [{k: v[i : i + 1] for k, v in d.items()} if isinstance(d, dict) else d[i : i + 1]
             for d in data for i in range(3)]  # fmt: skip
    with double_precision():  # the model's own norms cast to float32
        whole, split = (scored(rival, name, model, graph, iter(d)) for d in (data, parts))
    for group, score in whole.items():
        # sparsegpt sums its moments up in float32
        rtol = 1e-4 if rival == "sparsegpt" else 1e-9
        torch.testing.assert_close(split[group], score, rtol=rtol, atol=1e-9)


class OutOfDataError(RuntimeError):
    pass


@pytest.mark.parametrize("stops", [False, True])
@pytest.mark.parametrize("rival", RIVALS)
def test_the_model_is_left_as_it_was(rival: str, stops: bool) -> None:
    model, graph, data = case("perceptron", torch.float32)
    model.train()
    first = next(iter(model.children()))
    first.eval().requires_grad_(False)
    for parameter in list(model.parameters())[3:5]:
        parameter.grad = torch.ones_like(parameter)
    before = list(state_of(model))
    hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]

    def stream() -> Any:
        yield from data
        if stops:
            raise OutOfDataError

    if stops:
        with pytest.raises(OutOfDataError):
            scored(rival, "perceptron", model, graph, stream())
    else:
        scored(rival, "perceptron", model, graph, stream())
    assert list(state_of(model)) == before
    assert [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()] == hooks
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("rival", RIVALS)
def test_what_is_missing_is_said(rival: str) -> None:
    model, graph, _ = case("perceptron")
    loss: Any = loss_for("perceptron")
    for given, said in (
        ({"data": None}, "looks at data"), ({"data": []}, "no batches"), ({"data": torch.ones(2, 6)}, "not batches"),
    ):  # fmt: skip
        with pytest.raises(PlanError, match=said):
            find(rival).score(graph, model, loss=loss, **given)
    with pytest.raises(PlanError, match="pass model="):
        find(rival).score(graph, None, data=[torch.ones(2, 6)], loss=loss)


@pytest.mark.parametrize("rival", READING)
def test_groups_that_no_weight_reads_are_named(rival: str) -> None:
    model, graph, data = case("llama")
    said = rf"{rival}.* does not see 1 groups of kind head_dim: (?s:.*)kinds=\['ffn', 'heads', 'hidden', "
    with pytest.raises(PlanError, match=said):
        find(rival).score(graph, model, data=data)
    with pytest.raises(PlanError, match="load the weights"):
        find(rival).score(graph, model.to("meta"), groups=seen_groups("llama"), data=data)


@pytest.mark.parametrize("rival", READING)
@pytest.mark.parametrize("name", ["llama", "gpt2", "convolutions"])
def test_an_adapter_counts_as_if_it_were_merged(name: str, rival: str) -> None:
    lora: dict[str, Any] = {"target_modules": ["first", "second", "head"]} if name == "convolutions" else {}
    model, (_, graph, data) = learn_something(fresh(name, lora, torch.float64)), case(name)
    if (name, rival) == ("convolutions", "sparsegpt"):  # what a convolution reads is looked at on the graph
        with pytest.raises(PlanError, match=r"an adapter changes second\.weight(?s:.*)merge it first"):
            scored(rival, name, model, graph, data)
        return
    scores = scored(rival, name, model, graph, data)
    merged = scored(rival, name, model.merge_and_unload(), graph, data)  # type: ignore[operator]
    for group, score in scores.items():
        torch.testing.assert_close(score, merged[group], rtol=1e-4 if rival == "sparsegpt" else 1e-9, atol=1e-12)
