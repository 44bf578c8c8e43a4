"""Biases at the cut: the mean output stays, exactly; layers that had none keep theirs on disk; and a run with them."""

from __future__ import annotations

import copy
import dataclasses
import functools
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import shearfx
from shearfx.attributes import settle
from shearfx.bias_compensation import compensate_bias, shifted
from shearfx.errors import CheckpointError, PlanError
from shearfx.gradients import call
from shearfx.graph import Graph, Group
from shearfx.on_disk import apply_to_folder
from shearfx.pruning_plan import PruningPlan, of_cuts
from shearfx.refitting import Refitting
from tests.rivals import Two, analysed, case
from tests.test_saliency import state_of
from tests.tiny_models import fresh, learn_something, traced
from tests.tiny_runs import Runs, write_model, write_text


def test_a_case_worked_out_on_paper() -> None:
    """Of ``h = (1, 2, 0), (3, 4, 4)`` the last two go: means 3 and 2, ``D[:, 1:] = [[1, -1], [0, 5]]``, so 1 and 10."""
    for bias in (False, True):
        model = Two(torch.eye(3).tolist(), [[7, 1, -1], [9, 0, 5]], bias)
        if bias:
            nn.init.constant_(model.down.bias, 100.0)
        x = torch.tensor([[1.0, 2, 0], [3, 4, 4]]).double()
        graph, group = analysed(model, x)
        plan = of_cuts(graph, {group.name: [0]})
        small: Any = shearfx.construct(model, plan)
        assert compensate_bias(graph, model, small, plan, [x[:1], x[1:]], call) == 1
        assert small.down.bias.tolist() == [1.0 + 100 * bias, 10.0 + 100 * bias]
        assert small.down.bias.requires_grad and small.down.weight.tolist() == [[7.0], [9.0]]


@functools.cache
def analysis(bias: bool) -> tuple[Graph, Group]:
    return analysed(Two(torch.zeros(12, 5).tolist(), torch.zeros(4, 12).tolist(), bias), torch.zeros(3, 5).double())


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 50), keep=st.integers(1, 11), bias=st.booleans(), each=st.integers(7, 40))
def test_the_mean_output_over_the_calibration_data_is_what_it_was(seed: int, keep: int, bias: bool, each: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    up, down = (torch.randn(*s, generator=generator).tolist() for s in ((12, 5), (4, 12)))
    model = Two(up, down, bias)
    data = torch.randn(40, 5, dtype=torch.float64, generator=generator)
    graph, group = analysis(bias)
    kept = sorted(random.Random(seed).sample(range(12), keep))
    plan = of_cuts(graph, {group.name: kept}, options={"form": "module"})
    small = shearfx.construct(model, plan)
    wanted, plain = model(data).mean(0).detach(), small(data).mean(0)
    assert float((plain.detach() - wanted).abs().max()) > 1e-6
    compensate_bias(graph, model, small, plan, data.split(each), call)
    torch.testing.assert_close(small(data).mean(0), wanted, rtol=1e-10, atol=1e-10)


def means(name: str, model: nn.Module, paths: list[str], data: Any) -> dict[str, Tensor]:
    """The mean output of some layers."""
    found: dict[str, list[Tensor]] = {path: [] for path in paths}
    hooks = [
        model.get_submodule(path).register_forward_hook(
            lambda *a, p=path: found[p].append(a[2].detach().flatten(0, -2))
        )
        for path in paths
    ]
    with torch.no_grad():
        for batch in data:
            call(model, batch)
    for hook in hooks:
        hook.remove()
    return {path: torch.cat(rows).mean(0) for path, rows in found.items()}


@pytest.mark.parametrize(("name", "kind"), [("llama", "ffn"), ("llama", "heads"), ("gpt2", "ffn")])
def test_layers_of_language_models_keep_their_mean_output(name: str, kind: str) -> None:
    model, graph, data = case(name)
    group = next(g for g in graph.groups if g.kind == kind)
    plan = of_cuts(graph, {group.name: range(group.size // 2)}, options={"form": "fx"})
    masked = shearfx.mask(model, plan)  # stands for the cut model, whatever its class can hold
    (path,) = found = shifted(graph, model, plan, data, call)
    layer: Any = masked.get_submodule(path)
    layer.bias = nn.Parameter(found[path])
    wanted = means(name, model, [path], data)[path]
    torch.testing.assert_close(means(name, masked, [path], data)[path], wanted, rtol=1e-9, atol=1e-12)


def test_what_an_adapter_reads_is_shifted_too() -> None:
    wrapped = learn_something(fresh("llama", {}, torch.float64))
    graph, data = traced("llama")[1], case("llama")[2]
    group = next(g for g in graph.groups if g.kind == "ffn")
    plan = of_cuts(graph, {group.name: range(10)}, options={"form": "fx"})
    ((_, bias),) = shifted(graph, wrapped, plan, data, call).items()
    merged: Any = wrapped.merge_and_unload()  # type: ignore[operator]
    ((_, expected),) = shifted(graph, merged, plan, data, call).items()
    torch.testing.assert_close(bias, expected, rtol=1e-9, atol=1e-12)


def test_in_several_cuts_each_shifts_what_it_removes_and_the_model_is_restored() -> None:
    model, graph, data = case("llama")
    groups = [g for g in graph.groups if g.kind == "ffn"]
    plans = [of_cuts(graph, {g.name: range(stay) for g in groups}) for stay in (20, 12)]
    before = list(state_of(model))
    names = list(model.state_dict())
    with pytest.raises(KeyboardInterrupt), Refitting(graph, model, groups) as refitting:
        for plan in plans:
            refitting.shift(plan, data, call)
        fitted = [call(model, batch).logits.detach() for batch in data]
        biases = refitting.biases(plans[-1])
        raise KeyboardInterrupt
    assert list(state_of(model)) == before and list(model.state_dict()) == names
    masked: Any = shearfx.mask(model, plans[-1])  # the rows of these biases are not cut
    for path, bias in biases.items():
        masked.get_submodule(path).bias = nn.Parameter(bias)
    for batch, expected in zip(data, fitted, strict=True):
        torch.testing.assert_close(call(masked, batch).logits, expected, rtol=1e-9, atol=1e-9)
    once = shifted(graph, model, plans[-1], data, call)
    first, second = sorted(biases)
    torch.testing.assert_close(biases[first], once[first], rtol=1e-9, atol=1e-12)  # what reads first sees no change
    assert float((biases[second] - once[second]).abs().max()) > 1e-6


# -- on disk -----------------------------------------------------------------------------------------------


@functools.cache
def planned(name: str) -> PruningPlan:
    graph = traced(name)[1]
    cuts = {g.name: range(g.size // 2) for g in graph.groups if g.kind == "ffn"}
    return settle(fresh(name), graph, of_cuts(graph, cuts))


def compensated(name: str) -> tuple[Any, PruningPlan, Any]:
    model, data, plan = fresh(name), case(name, torch.float32)[2], copy.deepcopy(planned(name))
    small = shearfx.construct(model, plan)
    assert compensate_bias(traced(name)[1], model, small, plan, data, call) > 0
    return small, plan, data


def test_added_biases_survive_saving_and_loading(tmp_path: Path) -> None:
    small, plan, data = compensated("llama")
    shearfx.save(small, plan, tmp_path / "small")
    assert not (tmp_path / "small" / "config.json").exists(), "no configuration states these biases"
    assert "got a bias" in (tmp_path / "small" / "README.md").read_text()
    again = shearfx.load(tmp_path / "small")
    assert again.state_dict().keys() == small.state_dict().keys()
    assert any(name.endswith("down_proj.bias") for name in again.state_dict())
    for batch in data:
        with torch.no_grad():
            assert torch.equal(call(again, batch).logits, call(small, batch).logits)
    told = PruningPlan.from_json((tmp_path / "small" / "shearfx_plan.json").read_text())
    assert told.options["biases"] == [f"model.layers.{i}.mlp.down_proj" for i in range(2)]
    shearfx.save(again, told, tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "small" / "model.safetensors"
    ).read_bytes()
    # of a model that is cut by the same plan, but not compensated, the folder says nothing of biases
    full: Any = fresh("llama")
    full.save_pretrained(tmp_path / "full")
    apply_to_folder(tmp_path / "full", told, tmp_path / "on_disk")
    assert shearfx.load(tmp_path / "on_disk").state_dict().keys() == full.state_dict().keys()


def test_a_model_that_has_biases_stays_a_plain_one(tmp_path: Path) -> None:
    small, plan, data = compensated("gpt2")
    shearfx.save(small, plan, tmp_path / "small")
    assert (tmp_path / "small" / "config.json").exists()
    with torch.no_grad():
        loaded = call(shearfx.load(tmp_path / "small"), data[0]).logits
        assert torch.equal(loaded, call(small, data[0]).logits)


def test_a_plan_that_names_the_wrong_layers_is_refused(tmp_path: Path) -> None:
    small, plan, _ = compensated("llama")
    folder = shearfx.save(small, plan, tmp_path / "small")
    told = PruningPlan.from_json((folder / "shearfx_plan.json").read_text())
    for wrong in (["model.layers.7.mlp.down_proj"], ["model.norm"], "model.norm", [3]):
        other = dataclasses.replace(told, options=told.options | {"biases": wrong})
        (folder / "shearfx_plan.json").write_text(other.to_json())
        with pytest.raises(CheckpointError, match="got a bias"):
            shearfx.load(folder)


def test_a_bias_anywhere_else_is_still_refused(tmp_path: Path) -> None:
    small, plan, _ = compensated("llama")
    small.lm_head.bias = nn.Parameter(torch.zeros(small.lm_head.out_features))
    with pytest.raises(PlanError, match=r"lm_head\.bias, of which the plan knows nothing"):
        shearfx.save(small, plan, tmp_path / "small")


def test_what_cannot_have_a_bias_says_so() -> None:
    model, graph, data = case("llama")
    group = next(g for g in graph.groups if g.kind == "ffn")
    plan = of_cuts(graph, {group.name: range(10)})
    small = shearfx.construct(model, plan, form="fx", graph=graph)
    with pytest.raises(PlanError, match="adds none"):
        compensate_bias(graph, model, small, plan, data, call)
    model, graph, data = case("convolutions")
    plan = of_cuts(graph, {next(g for g in graph.groups if g.size == 8).name: range(4)})
    with pytest.raises(PlanError, match="no linear layer reads"):
        compensate_bias(graph, model, model, plan, data, call)


# -- a run -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_with_flap_and_biases_from_end_to_end(tmp_path: Path) -> None:
    runs = Runs(write_model(tmp_path / "model"), write_text(tmp_path / "text.txt"))
    sheared = runs(tmp_path / "run", saliency="flap", compensation="bias", cuts=2, ratio=0.15, tokens=0)
    assert sheared.plan.achieved == pytest.approx(0.15, abs=0.01)
    loaded = shearfx.load(tmp_path / "run" / "model")
    ids = torch.arange(48).reshape(3, 16) % 200
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, sheared.model(input_ids=ids).logits)
    assert sum(name.endswith("down_proj.bias") for name in loaded.state_dict()) == 2
    cut = shearfx.load(tmp_path / "run" / "cut")
    assert all(bool(p.any()) for n, p in cut.named_parameters() if n.endswith("down_proj.bias"))
