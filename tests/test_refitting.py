"""A cut in several steps, each fitted on what the one before left: what is fitted is what is constructed."""

from __future__ import annotations

import functools
import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import shearfx
from shearfx.compensation import compensate_cut, put
from shearfx.graph import Graph, Group
from shearfx.precision import double_precision
from shearfx.pruning_plan import PruningPlan, of_cuts
from shearfx.refitting import Refitting
from tests import zoo

IDS = [torch.arange(40).reshape(4, 10) % 17, torch.arange(40).reshape(4, 10) % 13]


@functools.cache
def setting(name: str) -> tuple[nn.Module, Graph, list[Group]]:
    model = zoo.get(name).build().to(torch.float64)
    graph = shearfx.trace(model.module, *model.args, **model.kwargs)
    return model.module, graph, [g for g in graph.groups if g.kind in ("ffn", "heads") and g.size > 1]


def logits(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad(), double_precision():
        found: Tensor = model(input_ids=ids).logits
    return found


def call(model: nn.Module, ids: Any) -> Any:
    return logits(model, ids)


def plans(graph: Graph, groups: list[Group], seed: int, cuts: int) -> list[PruningPlan]:
    """Each removes a structure of every group more than the one before, while there are two."""
    draw = random.Random(seed)
    kept = {g.name: list(range(g.size)) for g in groups}
    found = []
    for _ in range(cuts):
        for stay in kept.values():
            if len(stay) > 1:
                stay.remove(draw.choice(stay))
        found.append(of_cuts(graph, {name: list(stay) for name, stay in kept.items()}))
    return found


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 100), cuts=st.integers(1, 3))
def test_what_is_fitted_is_what_is_constructed(name: str, seed: int, cuts: int) -> None:
    assert_constructed(name, seed, cuts)


@pytest.mark.parametrize("name", ["mixtral", pytest.param("gpt_oss", marks=pytest.mark.slow)])
def test_fused_experts_are_fitted_and_constructed_too(name: str) -> None:
    fits = assert_constructed(name, 0, 2)
    assert sum(weight.dim() == 3 for weight in fits.values()) == 2, "of each layer"


def assert_constructed(name: str, seed: int, cuts: int) -> dict[str, Tensor]:
    model, graph, groups = setting(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    memories = [p.data_ptr() for p in model.parameters()]
    steps = plans(graph, groups, seed, cuts)
    with Refitting(graph, model, groups) as refitting:
        for plan in steps:
            refitting.apply(plan, IDS, call)
        fitted = [logits(model, ids) for ids in IDS]
        fits = refitting.fits(steps[-1])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [p.data_ptr() for p in model.parameters()] == memories
    small = shearfx.construct(model, steps[-1], form="fx")
    with torch.no_grad():
        for name, weight in fits.items():
            assert small.get_parameter(name).shape == weight.shape
            small.get_parameter(name).copy_(weight)
    for ids, expected in zip(IDS, fitted, strict=True):
        with torch.no_grad(), double_precision():
            found = small(input_ids=ids)
        got = found.logits if hasattr(found, "logits") else found["logits"]
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))
    return fits


def test_one_cut_is_the_compensation_of_a_cut() -> None:
    model, graph, groups = setting("llama")
    (plan,) = plans(graph, [g for g in groups if g.kind == "ffn"], 0, 1)
    direct, by_fits = (shearfx.construct(model, plan) for _ in range(2))
    compensate_cut(graph, model, direct, plan, IDS, call)
    with Refitting(graph, model, groups) as refitting:
        refitting.apply(plan, IDS, call)
        put(by_fits, refitting.fits(plan))
    for (name, a), b in zip(direct.named_parameters(), by_fits.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_the_model_is_restored_when_something_goes_wrong() -> None:
    model, graph, groups = setting("gpt2")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    first, second = plans(graph, groups, 1, 2)
    masked = logits(shearfx.mask(model, first), IDS[0])
    with pytest.raises(KeyboardInterrupt), Refitting(graph, model, groups) as refitting:
        refitting.apply(first, IDS, call)
        assert float((logits(model, IDS[0]) - masked).abs().max()) > 1e-3
        refitting.apply(second, None, call)
        raise KeyboardInterrupt
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_weights_of_which_a_cut_before_zeroed_rows_are_restored() -> None:
    """Gates keep in a weight what they zero there: it goes back to where it was, not into the fit."""
    model, graph, _ = setting("mixtral")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    hidden, ffn = ([g for g in graph.groups if g.kind == kind] for kind in ("hidden", "ffn"))
    first = of_cuts(graph, {g.name: range(1, g.size) for g in hidden})
    second = of_cuts(graph, {g.name: range(1, g.size) for g in (*hidden, *ffn)})
    with Refitting(graph, model, [*hidden, *ffn]) as refitting:
        refitting.apply(first, None, call)
        refitting.apply(second, IDS[:1], call)
        state = refitting.state_dict()
        fitted = logits(model, IDS[0])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with Refitting(graph, model, [*hidden, *ffn]) as resumed:
        resumed.load_state_dict(state, second)
        assert float((logits(model, IDS[0]) - fitted).abs().max()) <= 1e-10 * float(fitted.abs().max())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
