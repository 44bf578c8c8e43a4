"""Plans: the budget is met to a step, in parameters or operations, and whoever asks for the impossible is told why."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import shearfx
import shearfx.spending
from shearfx.budget import operation_budget, parameter_budget
from shearfx.construction import construct_graph
from shearfx.errors import PlanError
from shearfx.pruning_plan import PruningPlan, of_cuts
from shearfx.saliency import Evidence
from tests.planned_models import (
    Loss,
    admitted,
    all_kinds,
    branches,
    cheapest_step,
    floors,
    kept_of,
    names,
    numel,
    params_after,
    planned,
    ratios,
    saliencies,
    seeds,
    traced,
)

# -- the budget --------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(names, ratios, all_kinds, floors, seeds, saliencies)
def test_the_budget_is_met_to_the_cheapest_step_or_an_error_says_how_far_it_goes(
    name: str, ratio: float, kinds: Any, floor: float, seed: int, saliency: Any
) -> None:
    _, graph = traced(name)
    groups = admitted(graph, kinds)
    floor_of = {g.name: range(max(1, math.ceil(floor * g.size - 1e-9))) for g in groups}
    total = numel(t.shape for t in graph.parameters())
    largest = 1 - params_after(graph, floor_of) / total
    try:
        plan = planned(name, ratio=ratio, kinds=kinds, floor=floor, seed=seed, saliency=saliency)
    except PlanError as error:
        said = re.search(r"at most ([\d.]+) of the parameters", str(error))
        if said:
            assert ratio > largest
            assert abs(float(said[1]) - largest) < 1e-4
        else:
            smallest = min(total - params_after(graph, {g.name: range(1, g.size)}) for g in groups if g.params)
            assert "smallest step" in str(error)
            assert ratio * total <= smallest / 2 + 1e-6
        return
    assert plan.achieved == 1 - params_after(graph, kept_of(plan)) / graph.total_params
    assert total == graph.total_params
    assert abs(plan.achieved - ratio) * total <= cheapest_step(graph, plan, groups, floor) + 1e-6
    assert all(len(cut.kept) >= len(floor_of[cut.name]) for cut in plan.cuts)
    assert PruningPlan.from_json(plan.to_json()) == plan


@settings(max_examples=20)
@given(names, st.lists(ratios, min_size=2, max_size=4), saliencies, seeds)
def test_more_is_saved_where_more_is_asked(name: str, asked: list[float], saliency: Any, seed: int) -> None:
    _, graph = traced(name)
    largest_step = max(g.params for g in graph.groups) / graph.total_params
    achieved = []
    for ratio in sorted(asked):
        try:
            achieved.append((ratio, planned(name, ratio=ratio, saliency=saliency, seed=seed).achieved))
        except PlanError:
            continue
    for (r1, a1), (r2, a2) in itertools.pairwise(achieved):
        assert a1 <= a2 or r2 - r1 < largest_step


@settings(max_examples=30)
@given(names, ratios, all_kinds, seeds)
@example("squeeze_excite", 0.215, None, 4)  # a residual stream: what a step saves is not proportional
def test_leaps_land_where_single_steps_do(name: str, ratio: float, kinds: Any, seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        try:
            leaping = planned(name, ratio=ratio, kinds=kinds, seed=seed)
            patch.setattr(shearfx.spending, "leap", lambda *_: None)
            stepping = planned(name, ratio=ratio, kinds=kinds, seed=seed)
        except PlanError:
            return
    assert leaping == stepping


@settings(max_examples=20)
@given(st.floats(0.05, 0.8), seeds)
def test_scores_in_units_of_loss_go_least_loss_per_parameter_first(ratio: float, seed: int) -> None:
    module, graph = branches()
    scores = Loss().score(graph, module, groups=graph.groups, seed=seed)
    plan = shearfx.plan(graph, ratio, Loss(), module, form="fx", seed=seed, floor=1)
    kept = kept_of(plan)
    per_parameter = {g.name: scores[g.name] / g.params for g in graph.groups}
    gone = {n: [i for i in range(len(s)) if i not in kept.get(n, range(len(s)))] for n, s in scores.items()}
    dearest_gone = sorted(float(per_parameter[n][i]) for n, rows in gone.items() for i in rows)
    cheapest_kept = min(float(per_parameter[n][i]) for n in scores for i in kept.get(n, range(len(scores[n]))))
    # the last steps fit in what is left and need not be in order
    assert sum(d > cheapest_kept for d in dearest_gone) <= 3


def test_relative_scores_take_equal_shares_of_groups_that_do_not_meet() -> None:
    module, graph = branches()
    plan = shearfx.plan(graph, 0.5, "magnitude", module, form="fx")
    shares = [len(cut.kept) / cut.size for cut in plan.cuts]
    assert len(shares) == 3
    assert max(shares) - min(shares) <= 1 / 20 + 1e-9


@settings(max_examples=30)
@given(names, st.data())
def test_costs_are_the_sizes_of_what_is_left(name: str, data: st.DataObject) -> None:
    _, graph = traced(name)
    budget = parameter_budget(graph)
    assert budget.total == graph.total_params
    counts = {g: data.draw(st.integers(1, g.size)) for g in graph.groups}
    everything = range(len(budget.products))
    expected = params_after(graph, {g.name: range(n) for g, n in counts.items()})
    assert budget.cost(everything, {g.atom: n for g, n in counts.items()}) == expected
    assert budget.cost(everything) == budget.total


# -- operations --------------------------------------------------------------------------------------


def counted(module: nn.Module, *args: Any, **kwargs: Any) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*args, **kwargs)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("name", ["llama", "gpt2", "cnn_resnet", "cnn_grouped", "upsampler", "squeeze_excite", "bert"])
def test_operations_are_those_that_torch_counts(name: str) -> None:
    model, graph = traced(name)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # the counter knows its parts
        expected = counted(model.module, *model.args, **model.kwargs)
    assert operation_budget(graph).total == expected


@pytest.mark.parametrize("name", ["cnn_resnet", "cnn_separable", "squeeze_excite", "moe_dense"])
def test_operations_saved_are_those_that_torch_no_longer_counts(name: str) -> None:
    model, graph = traced(name)
    plan = planned(name, ratio=0.3, unit="flops")
    small = construct_graph(model.module, plan, graph)
    (argument,) = graph.traced.inputs
    before = counted(model.module, *model.args, **model.kwargs)
    after = counted(small, **{argument: model.args[0]})
    assert plan.achieved == pytest.approx(1 - after / before, rel=1e-9)
    assert plan.achieved == pytest.approx(0.3, abs=0.1)
    assert plan.options["achieved_params"] == pytest.approx(of_cuts(graph, kept_of(plan)).achieved)
    assert PruningPlan.from_json(plan.to_json()) == plan


def test_the_sizes_that_operations_were_counted_at_are_stated() -> None:
    model, _ = traced("llama")
    plan = planned("llama", unit="flops")
    assert sorted(plan.options["flops_sizes"].values()) == sorted(model.kwargs["input_ids"].shape)


# -- what cannot be ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0, 1, -0.1, 1.5, float("nan"), float("inf"), True, "0.2"])
def test_a_ratio_lies_between_0_and_1(ratio: Any) -> None:
    with pytest.raises(PlanError, match="ratio"):
        planned("llama", ratio=ratio)


@pytest.mark.parametrize(
    "options",
    [
        {"scope": "layers"}, {"form": "onnx"}, {"unit": "bytes"}, {"round_to": 0}, {"round_to": 8.0}, {"round_to": "8"},
        {"floor": 1.5}, {"floor": -1}, {"floor": {"ffn": 2.0}}, {"most": 0.0}, {"saliency": "astrology"},
        {"kinds": ("fnn",)},
        {"allow": ("wrong",)}, {"include": ("model.layer.*",)}, {"exclude": ("model.layers.7",)},
        {"form": "module", "model": None, "saliency": "random"}, {"saliency": "magnitude", "model": None},
        {"model": nn.Linear(2, 2)},
    ],
    ids=str,
)  # fmt: skip
def test_requests_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="do:"):
        planned("llama", **options)


class Pinned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.linear(x))


def test_nothing_to_prune_is_an_error_that_lists_the_pins() -> None:
    module = Pinned().eval()
    graph = shearfx.trace(module, torch.randn(2, 6))
    with pytest.raises(PlanError, match="nothing can be cut") as caught:
        shearfx.plan(graph, 0.2, "random", module, form="fx")
    assert "output" in str(caught.value)


def test_beyond_reach_says_how_far_and_what_is_in_the_way() -> None:
    with pytest.raises(PlanError, match=r"at most 0\.\d+ of the parameters") as caught:
        planned("llama", ratio=0.95)
    for word in ("hidden", "kinds=", "floor=", "pinned"):
        assert word in str(caught.value)
    reach = float(re.search(r"ask for at most ([\d.]+)", str(caught.value))[1])  # type: ignore[index]
    assert planned("llama", ratio=reach).achieved == pytest.approx(reach, abs=1e-3)


def test_a_ratio_below_the_smallest_step_is_an_error() -> None:
    with pytest.raises(PlanError, match="smallest step"):
        planned("llama", ratio=1e-6)


def test_a_saliency_that_is_not_finite_is_refused() -> None:
    class Broken(Loss):
        def scores(self, given: Evidence) -> dict[str, Tensor]:
            return {name: score / 0 for name, score in super().scores(given).items()}

    with pytest.raises(PlanError, match="not finite"):
        planned("llama", saliency=Broken())
