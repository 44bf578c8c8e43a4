"""Saliencies of what adapters learnt, and Fisher: equal to what they are defined as, written out in float64."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import shearfx
from shearfx.errors import PlanError
from shearfx.gating.gates import Gates
from shearfx.graph import Graph, Group, coordinates
from shearfx.precision import double_precision
from shearfx.saliency import find
from shearfx.saliency.combined import Combined
from shearfx.saliency.fisher import Fisher, collecting
from tests import zoo
from tests.tiny_models import fresh, inputs_of, learn_something, loss_of, traced
from tests.zoo import float_outputs

PROXIES: dict[str, Callable[[Tensor, Tensor], float]] = {
    "lora_magnitude": lambda x, d: float((x + d).square().sum()),
    "lora_average_magnitude": lambda x, d: float((x + d).square().mean()),
    "lora_cosine": lambda x, d: abs(float(x @ d)) / float(x.norm() * d.norm()),
    "lora_taylor": lambda x, d: abs(float(x @ d)),
    "lora_taylor2": lambda x, d: abs(float(x @ d) - 0.5 * float(x @ d) ** 2),
}
LORA: dict[str, dict[str, Any]] = {
    "llama": {"target_modules": ["q_proj", "v_proj", "up_proj", "down_proj", "embed_tokens"], "r": 3},
    "gpt2": {"r": 3},
    "convolutions": {"target_modules": ["first", "second", "head"]},
}


def written_out(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and what they have learnt, by the base's own names."""
    layers: dict[str, Any] = dict(model.named_modules())
    found, deltas = {}, {}
    for name, p in model.named_parameters():
        if "lora_" not in name:
            short = name.removeprefix("base_model.model.").replace(".base_layer", "")
            found[short] = p.detach()
            if ".base_layer.weight" in name:
                deltas[short] = layers[name.removesuffix(".base_layer.weight")].get_delta_weight("default").detach()
    return found, deltas


def slices(group: Group, i: int, tensors: dict[str, Tensor], like: dict[str, Tensor]) -> Tensor:
    """All that belongs to a structure, one after the other; zero where there is nothing."""
    parts = []
    for m in group.members:
        if m.name in like and like[m.name].is_floating_point():
            tensor = tensors.get(m.name, torch.zeros_like(like[m.name]))
            parts.append(tensor.movedim(m.dim, 0)[m.indices[i]].flatten())
    return torch.cat(parts)


@pytest.mark.parametrize("proxy", PROXIES)
@pytest.mark.parametrize("name", LORA)
@pytest.mark.filterwarnings("ignore:.*have adapters on less than half")
def test_proxies_are_what_they_say_with_the_product_written_out(name: str, proxy: str) -> None:
    model, graph = learn_something(fresh(name, LORA[name], torch.float64)), traced(name)[1]
    groups = [g for g in graph.groups if g.certificate == "exact" and g.kind != "head_dim"]
    scores = find(proxy).score(graph, model, groups=groups)
    weights, deltas = written_out(model)
    assert scores.keys() == {g.name for g in groups}
    for group in groups:
        for i in range(group.size):
            x, d = slices(group, i, weights, weights), slices(group, i, deltas, weights)
            if d.any():
                assert float(scores[group.name][i]) == pytest.approx(PROXIES[proxy](x, d), rel=1e-9), (group, i)


@pytest.mark.parametrize("proxy", PROXIES)
def test_without_adapters_the_gradient_stands_where_they_would(proxy: str) -> None:
    name = "convolutions"
    model, graph = fresh(name, dtype=torch.float64), traced(name)[1]
    loss_of(name, model).backward()
    scores = find(proxy).score(graph, model)
    weights = {n: p.detach() for n, p in model.named_parameters()}
    steps = {n: -p.grad for n, p in model.named_parameters() if p.grad is not None}
    for group in graph.groups:
        if group.certificate == "exact":
            for i in range(group.size):
                x, d = slices(group, i, weights, weights), slices(group, i, steps, weights)
                assert float(scores[group.name][i]) == pytest.approx(PROXIES[proxy](x, d), rel=1e-9)


def test_the_combination_is_the_weighted_mean_of_parts_over_their_means() -> None:
    model, graph = learn_something(fresh("llama", {}, torch.float64)), traced("llama")[1]
    groups = [g for g in graph.groups if g.kind == "ffn"]
    weights = {"lora_cosine": 0.5, "lora_taylor": 2.0, "magnitude": 1.0, "fisher": 0.25}
    data = [inputs_of("llama", seed) for seed in range(2)]
    scores = Combined(weights).score(graph, model, groups=groups, data=iter(data))
    parts = {name: find(name).score(graph, model, groups=groups, data=data) for name in weights}
    for g in groups:
        expected = sum(w * parts[n][g.name] / parts[n][g.name].mean() for n, w in weights.items())
        assert isinstance(expected, Tensor)
        assert torch.allclose(scores[g.name], expected, rtol=1e-12)
    assert sum(Combined().weights.values()) == pytest.approx(1) and len(Combined().weights) == 5
    for wrong in ({}, {"magnitude": 0.0}, {"magnitude": math.nan}):
        with pytest.raises(PlanError, match="no mixture"):
            Combined(wrong).score(graph, model, groups=groups)


def test_adapters_that_have_learnt_nothing_say_so() -> None:
    model, graph = fresh("llama", {}), traced("llama")[1]
    for name in ("lora_cosine", "lora_taylor", "lora_taylor2"):
        with pytest.raises(PlanError, match="zero everywhere"):
            find(name).score(graph, model)
    find("lora_magnitude").score(graph, model)  # the size of the weights is there
    few = learn_something(fresh("llama", {"target_modules": ["q_proj"]}))
    with pytest.warns(UserWarning, match="less than half"):
        find("lora_taylor").score(graph, few)


# -- Fisher -----------------------------------------------------------------------------------------------------


def readers(graph: Graph, group: Group, model: nn.Module) -> dict[str, Tensor]:
    """Modules whose input axis the group is, with the structure of each index."""
    modules, found = dict(model.named_modules()), dict[str, Tensor]()
    for m in group.members:
        module = modules.get(m.name.removesuffix(".weight"))
        kinds: tuple[tuple[type, int], ...] = ((nn.Linear, 1), (Conv1D, 0), (nn.Conv2d, 1))
        if any(isinstance(module, kind) and m.dim == dim for kind, dim in kinds):
            found[m.name.removesuffix(".weight")] = coordinates(m.term, m.atom)
    return found


def by_autograd(graph: Graph, group: Group, model: nn.Module, loss: Callable[[], Tensor], batch: int) -> Tensor:
    """The derivative of the loss by a gate for each sequence and structure, ``[batch, size]``, by parameters put in."""
    gate = torch.ones(batch, group.size + 1, dtype=torch.float64, requires_grad=True)
    handles, where_of = [], readers(graph, group, model)
    assert where_of
    modules = dict(model.named_modules())
    for path, where in where_of.items():
        image = isinstance(modules[path], nn.Conv2d)

        def hook(module: nn.Module, args: Any, where: Tensor = where, image: bool = image) -> Any:
            x = args[0]
            factor = gate[:, where]
            if len(x) != batch:  # the tokens of all sequences one after the other
                return (x * factor.repeat_interleave(len(x) // batch, 0), *args[1:])
            shape = (batch, -1, *[1] * (x.dim() - 2)) if image else (batch, *[1] * (x.dim() - 2), -1)
            return (x * factor.reshape(shape).to(x), *args[1:])

        handles.append(modules[path].register_forward_pre_hook(hook))
    try:
        (found,) = torch.autograd.grad(loss(), gate)
    finally:
        for handle in handles:
            handle.remove()
    return found[:, :-1]


def zoo_loss(name: str) -> tuple[nn.Module, Graph, Callable[[], Tensor], int]:
    built = zoo.get(name).build()
    graph = shearfx.trace(built.module, *built.args, **built.kwargs)
    built = built.to(torch.float64)

    def loss() -> Tensor:
        return float_outputs(built.module(*built.args, **built.kwargs))[0].sin().sum()

    tensor = [*built.args, *built.kwargs.values()][0]
    return built.module, graph, loss, tensor.shape[0]


@pytest.mark.parametrize("name", ["llama", "gpt2", "convolutions", "moe_dense", "mixtral"])
def test_fisher_squares_the_derivative_of_each_sequence_by_gates(name: str) -> None:
    if name in ("moe_dense", "mixtral"):
        model, graph, loss, batch = zoo_loss(name)
    else:
        model, graph, batch = fresh(name, dtype=torch.float64), traced(name)[1], 3
        loss = functools.partial(loss_of, name, model)
    model.requires_grad_(False)  # gates need no gradient of any weight
    exact = [g for g in graph.groups if g.certificate == "exact" and g.size > 1]
    seen = Gates(graph, model, exact).places
    scaled = {w.group for w in seen.weights}
    groups = [g for g in exact if g.name in seen.inputs_only - scaled and readers(graph, g, model)]
    assert groups
    with double_precision():
        with Gates(graph, model, groups) as gates, collecting(gates, model) as collector:
            loss().backward()
            collector.flush()
        assert collector.sequences == batch
        for group in groups:
            rows = by_autograd(graph, group, model, loss, batch)
            assert torch.allclose(collector.square[group.name], rows.square().sum(0), rtol=1e-9, atol=1e-14), group
            assert torch.allclose(collector.absolute[group.name], rows.sum(0).abs(), rtol=1e-9, atol=1e-12), group
            assert rows.abs().max() > 1e-8


def test_fisher_is_the_mean_over_all_sequences_of_all_batches() -> None:
    model, graph = fresh("llama", dtype=torch.float64), traced("llama")[1]
    groups = [g for g in graph.groups if g.kind == "ffn"]
    batches = [inputs_of("llama", seed, batch) for seed, batch in ((0, 3), (1, 2))]
    scores = Fisher().score(graph, model, groups=groups, data=batches)
    for group in groups:
        rows = [by_autograd(graph, group, model, functools.partial(loss_of, "llama", model, seed, batch), batch)
                for seed, batch in ((0, 3), (1, 2))]  # fmt: skip
        assert torch.allclose(scores[group.name], torch.cat(rows).square().sum(0) / 5, rtol=1e-6)


def collected(model: nn.Module, train: Callable[[nn.Module], None]) -> dict[str, Tensor]:
    graph = traced("llama")[1]
    groups = [g for g in graph.groups if g.kind in ("ffn", "heads")]
    with Gates(graph, model, groups) as gates, collecting(gates, model) as collector:
        train(model)
        collector.flush()
    assert collector.sequences in (0, 6)
    return collector.square


def accumulated(model: nn.Module) -> None:
    for seed in range(2):
        loss_of("llama", model, seed).backward()


def at_once(model: nn.Module) -> None:
    losses = [loss_of("llama", model, seed) for seed in range(2)]
    torch.stack(losses).sum().backward()


def overflown_between(model: nn.Module) -> None:
    loss_of("llama", model, 0).backward()
    (loss_of("llama", model, 5) * float("inf")).backward()
    loss_of("llama", model, 1).backward()


@pytest.mark.parametrize("how", [at_once, overflown_between])
def test_batches_are_not_mixed_up_and_overflows_not_counted(how: Callable[[nn.Module], None]) -> None:
    plain, other = (collected(fresh("llama", {}), one) for one in (accumulated, how))
    for name, value in plain.items():
        assert value.any() and torch.allclose(other[name], value, rtol=1e-5)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_activations_gives_the_same_sums(reentrant: bool) -> None:
    model: Any = fresh("llama", {}).train()
    plain = collected(model, accumulated)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for name, value in collected(model, accumulated).items():
        assert value.any() and torch.allclose(plain[name], value, rtol=1e-5), name
