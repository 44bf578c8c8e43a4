"""Saliencies: equal to sums over what masking zeroes, in any precision, and nothing of the model is different after."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import shearfx
from shearfx.errors import PlanError
from shearfx.graph import Graph, Group
from shearfx.pruning_plan import of_cuts
from shearfx.saliency import REGISTRY, Evidence, Magnitude, Random, Saliency, Taylor, find, register
from shearfx.tracing import by_name
from tests import zoo

ENTRIES = ("llama", "gptj", "cnn_resnet", "squeeze_excite", "llama_lora", "tied_autoencoder")


@functools.cache
def traced(name: str) -> tuple[zoo.Model, Graph]:
    model = zoo.get(name).build().to(torch.float64)
    return model, shearfx.trace(model.module, *model.args, **model.kwargs)


def removed(model: nn.Module, graph: Graph, group: Group, index: int) -> dict[str, Tensor]:
    """For each parameter: the weights that masking one structure zeroes, all others zero. Plans know no saliency."""
    kept = [i for i in range(group.size) if i != index]
    masked = dict(shearfx.mask(model, of_cuts(graph, {group.name: kept})).named_parameters())
    return {name: p.detach() - masked[name].detach() for name, p in model.named_parameters()}


def few(group: Group) -> list[int]:
    return sorted({0, 1, group.size // 2, group.size - 1})


# -- against brute force ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENTRIES)
def test_magnitude_is_the_sum_of_squares_of_what_is_zeroed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shearfx.low_rank.CHUNK", 100)  # weights are looked at in parts, a few rows each
    model, graph = traced(name)
    scores = Magnitude().score(graph, model.module)
    assert scores.keys() == {g.name for g in graph.groups}
    for group in graph.groups:
        assert scores[group.name].shape == (group.size,)
        if group.size > 1:
            for i in few(group):
                expected = sum(float(w.square().sum()) for w in removed(model.module, graph, group, i).values())
                assert float(scores[group.name][i]) == pytest.approx(expected, rel=1e-10)


class Square(nn.Module):
    """The hidden width on both sides of one weight: a structure is a row and a column, their crossing counts once."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.mix, self.out = nn.Linear(3, 6), nn.Linear(6, 6, bias=False), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        return torch.relu(self.out(x + self.mix(x)))


def test_a_weight_in_two_slices_of_a_structure_counts_once() -> None:
    module = Square().double().eval()
    graph = shearfx.trace(module, torch.randn(2, 3, dtype=torch.float64))
    (group,) = graph.groups
    assert sum(m.name == "mix.weight" for m in group.members) == 2
    scores = Magnitude().score(graph, module)[group.name]
    for i in range(group.size):
        expected = sum(float(w.square().sum()) for w in removed(module, graph, group, i).values())
        assert float(scores[i]) == pytest.approx(expected, rel=1e-12)


def loss_of(module: nn.Module, batch: Any) -> Tensor:
    outputs = zoo.float_outputs(module(**batch))
    return torch.stack([o.sin().mean() for o in outputs]).sum()


def batches(model: zoo.Model) -> list[Any]:
    return [by_name(model.module, args, kwargs) for args, kwargs in model.calls()[:2]]


@pytest.mark.parametrize("name", ENTRIES)
def test_taylor_is_weight_times_gradient_over_what_is_zeroed(name: str) -> None:
    model, graph = traced(name)
    scores = Taylor().score(graph, model.module, data=batches(model), loss=loss_of)
    gradients = []
    reference = zoo.get(name).build().to(torch.float64).module.requires_grad_(True)
    for batch in batches(model):
        reference.zero_grad()
        loss_of(reference, batch).backward()
        gradients.append({n: p.grad.clone() for n, p in reference.named_parameters() if p.grad is not None})
    moved = 0.0
    for group in graph.groups:
        for i in few(group) if group.size > 1 else ():
            gone = removed(model.module, graph, group, i)
            signed = [sum(float((gone[n] * g).sum()) for n, g in one.items()) for one in gradients]
            expected = sum(map(abs, signed)) / len(signed)
            assert float(scores[group.name][i]) == pytest.approx(expected, rel=1e-8, abs=1e-14)
            moved = max(moved, expected)
    assert moved > 1e-6


def test_taylor_estimates_the_change_of_the_loss() -> None:
    """For slices that are small, the first order is all there is."""
    module = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double().eval()
    with torch.no_grad():
        for weight in module[0].parameters():
            weight[4:] *= 1e-6
    x = torch.randn(5, 3, dtype=torch.float64)
    graph = shearfx.trace(module, x)
    (group,) = graph.groups

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        result: Tensor = model(batch).square().mean()
        return result

    scores = Taylor().score(graph, module, data=[x], loss=loss)[group.name]
    for i in range(4, 8):
        # both weights of the path are counted, so the path's own derivative is counted twice
        masked = shearfx.mask(module, of_cuts(graph, {group.name: [j for j in range(8) if j != i]}))
        change = float((loss(module, x) - loss(masked, x)).detach())
        assert float(scores[i]) == pytest.approx(2 * abs(change), rel=1e-3)


@pytest.mark.parametrize("saliency", [Magnitude(), Taylor()], ids=lambda s: s.name)
def test_sixteen_bits_are_summed_in_more(saliency: Saliency) -> None:
    exact, graph = traced("llama")
    model = zoo.get("llama").build().to(torch.bfloat16)
    scores = saliency.score(graph, model.module, data=batches(model), loss=loss_of)
    reference = saliency.score(graph, exact.module, data=batches(exact), loss=loss_of)
    for group in graph.groups:
        if group.params:
            assert scores[group.name].dtype == torch.float64
            together = torch.stack([scores[group.name], reference[group.name]])
            if group.size > 4:
                assert float(torch.corrcoef(together)[0, 1]) > 0.98
            if saliency.name == "magnitude":  # 8 bits of mantissa, averaged over many weights
                assert torch.allclose(together[0], together[1], rtol=5e-3)


# -- the model is left as it was -------------------------------------------------------------------------


def state_of(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        yield module.training
    for parameter in model.parameters():
        yield parameter.requires_grad, None if parameter.grad is None else (id(parameter.grad), parameter.grad.tolist())
        yield parameter.tolist(), parameter._post_accumulate_grad_hooks or None


def failing(module: nn.Module, batch: Any) -> Tensor:
    loss_of(module, batch).backward()
    raise RuntimeError("out of data")


@pytest.mark.parametrize("loss", [loss_of, failing])
@pytest.mark.parametrize("name", ["llama", "llama_lora"])
def test_taylor_leaves_modes_gradients_and_flags(name: str, loss: Callable[[nn.Module, Any], Tensor]) -> None:
    model = zoo.get(name).build()
    module = model.module
    _, graph = traced(name)
    parameters = list(module.parameters())
    module.train()
    next(iter(module.children())).eval()
    parameters[0].requires_grad_(False)
    for parameter in parameters[3:6]:
        parameter.requires_grad_(True)
        parameter.grad = torch.ones_like(parameter)
    before = list(state_of(module))
    with torch.no_grad():
        if loss is failing:
            with pytest.raises(RuntimeError, match="out of data"):
                Taylor().score(graph, module, data=batches(model), loss=loss)
        else:
            Taylor().score(graph, module, data=batches(model), loss=loss)
        assert not torch.is_grad_enabled()
    assert list(state_of(module)) == before


def test_a_frozen_base_under_adapters_is_scored() -> None:
    model, graph = traced("llama_lora")
    frozen = [p for n, p in model.module.named_parameters() if "lora_" not in n]
    assert not any(p.requires_grad for p in frozen)
    scores = Taylor().score(graph, model.module, data=batches(model), loss=loss_of)
    for group in graph.groups:
        if group.kind == "ffn":
            assert bool((scores[group.name] > 0).all())


# -- data and loss ------------------------------------------------------------------------------------------


def test_language_models_bring_their_own_loss() -> None:
    model, graph = traced("llama")
    ids = model.kwargs["input_ids"]
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    labels = ids.masked_fill(mask == 0, -100)
    plain = Taylor().score(graph, model.module, data=[ids])
    explicit = Taylor().score(graph, model.module, data=[{"input_ids": ids, "labels": ids}])
    padded = Taylor().score(graph, model.module, data=[{"input_ids": ids, "attention_mask": mask}])
    told = Taylor().score(graph, model.module, data=[{"input_ids": ids, "attention_mask": mask, "labels": labels}])
    for name, score in plain.items():
        assert torch.equal(score, explicit[name])
        assert torch.equal(padded[name], told[name])
    assert any(not torch.allclose(plain[name], padded[name]) for name in plain)


def test_batches_are_streamed_once() -> None:
    model, graph = traced("llama")
    seen: list[int] = []

    def stream() -> Iterator[Any]:
        for i, batch in enumerate(batches(model)):
            seen.append(i)
            yield batch

    calls: list[tuple[int, int]] = []
    Taylor().score(graph, model.module, data=stream(), loss=loss_of, progress=lambda *c: calls.append(c))
    assert seen == [0, 1]
    assert calls == [(1, 0), (2, 0)]


@pytest.mark.parametrize(
    ("data", "loss", "said"),
    [
        (None, None, "looks at data"),
        ([], loss_of, "no batches"),
        ({"input_ids": torch.ones(1, 2)}, None, "not batches"),
        ([{"nonsense": torch.ones(1, 2)}], None, "does not take"),
        ([torch.ones(2, 5, dtype=torch.long)], lambda m, b: torch.zeros(2), "no scalar"),
        ([torch.ones(2, 5, dtype=torch.long)], lambda m, b: m(b).logits.sum() * float("nan"), "nan"),
    ],
)
def test_what_taylor_cannot_use_is_said(data: Any, loss: Any, said: str) -> None:
    model, graph = traced("llama")
    with pytest.raises(PlanError, match=said):
        Taylor().score(graph, model.module, data=data, loss=loss)


def test_models_without_a_loss_of_their_own_need_one() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    graph = shearfx.trace(module, torch.randn(2, 3))
    with pytest.raises(PlanError, match="loss="):
        Taylor().score(graph, module, data=[{"input": torch.randn(2, 3)}])


@pytest.mark.parametrize("saliency", ["magnitude", "taylor"])
def test_weights_on_meta_cannot_be_looked_at(saliency: str) -> None:
    model, graph = traced("llama")
    on_meta = zoo.get("llama").build().module.to("meta")
    with pytest.raises(PlanError, match="load the weights"):
        shearfx.plan(graph, 0.2, saliency, on_meta, form="fx", data=batches(model), loss=loss_of)


# -- the registry -------------------------------------------------------------------------------------------


def test_random_is_reproducible_and_does_not_follow_from_what_is_asked() -> None:
    _, graph = traced("llama")
    scores = Random().score(graph, None, seed=1)
    some = Random().score(graph, None, groups=graph.groups[2:4], seed=1)
    other = Random().score(graph, None, seed=2)
    assert list(some) == [g.name for g in graph.groups[2:4]]
    assert all(torch.equal(some[name], scores[name]) for name in some)
    assert not any(torch.equal(other[name], scores[name]) for name in scores)


def test_a_registered_saliency_is_found_by_name() -> None:
    class Last(Saliency):
        """Later structures are worth more."""

        name, unit = "test-last", "relative"

        def scores(self, given: Evidence) -> dict[str, Tensor]:
            return {g.name: torch.arange(g.size) for g in given.groups}

    register(Last)
    try:
        model, graph = traced("llama")
        plan = shearfx.plan(graph, 0.2, "test-last", model.module, form="fx")
        assert all(cut.kept == tuple(range(cut.size - len(cut.kept), cut.size)) for cut in plan.cuts)
        assert plan.options["saliency"] == "test-last"
    finally:
        del REGISTRY["test-last"]
    with pytest.raises(PlanError, match=r"magnitude, random, .*taylor"):
        find("test-last")


def test_a_saliency_says_what_its_unit_is() -> None:
    class Unclear(Random):
        name, unit = "test-unclear", "furlongs"  # type: ignore[assignment]

    with pytest.raises(ValueError, match="furlongs"):
        register(Unclear)
    assert "test-unclear" not in REGISTRY


def test_scores_of_the_wrong_shape_are_refused() -> None:
    class Short(Random):
        def scores(self, given: Evidence) -> dict[str, Tensor]:
            return {name: score[1:] for name, score in super().scores(given).items()}

    model, graph = traced("llama")
    with pytest.raises(PlanError, match="scores"):
        shearfx.plan(graph, 0.2, Short(), model.module, form="fx")
