"""Plans: what is asked beside the ratio holds: multiples, floors, scopes, kinds, the original class."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import shearfx
import shearfx.spending
from shearfx.errors import PlanError
from shearfx.graph import Group
from shearfx.multiples import aligned
from shearfx.selection import OPTIONAL_KINDS, Tied, alike, place
from tests import zoo
from tests.planned_models import (
    Loss,
    all_kinds,
    branches,
    kept_of,
    names,
    planned,
    saliencies,
    seeds,
    traced,
)

# -- what is asked beside the ratio --------------------------------------------------------------------


@settings(max_examples=30)
@given(names, st.floats(0.05, 0.6), st.sampled_from([2, 4, 8, 16]), all_kinds, saliencies, seeds)
def test_dims_that_change_become_multiples(
    name: str, ratio: float, round_to: int, kinds: Any, saliency: Any, seed: int
) -> None:
    _, graph = traced(name)
    try:
        plan = planned(name, ratio=ratio, round_to=round_to, kinds=kinds, saliency=saliency, seed=seed)
    except PlanError as error:
        assert "round_to" in str(error)
        return
    after = plan.shapes_after()
    for tensor in graph.parameters():
        for old, new in zip(tensor.shape, after[tensor.name], strict=True):
            assert new == old or new % round_to == 0, tensor.name


@settings(max_examples=30)
@given(names, st.floats(0.05, 0.6), all_kinds, saliencies, seeds)
def test_multiples_that_suit_each_dim_bar_hardly_any_ratio(
    name: str, ratio: float, kinds: Any, saliency: Any, seed: int
) -> None:
    """Models of small dims are cut as without rounding."""
    asked = {"ratio": ratio, "kinds": kinds, "saliency": saliency, "seed": seed}
    try:
        freely = planned(name, **asked)
    except PlanError:
        with pytest.raises(PlanError):
            planned(name, round_to="auto", **asked)
        return
    _, graph = traced(name)
    try:
        plan = planned(name, round_to="auto", **asked)
    except PlanError as error:  # floors are multiples too
        assert "round_to" in str(error)
        assert planned(name, round_to="auto", **asked | {"ratio": ratio - 0.05}).achieved > 0
        return
    if max(size for tensor in graph.parameters() for size in tensor.shape) < 64:
        assert plan.cuts == freely.cuts
    assert abs(plan.achieved - ratio) <= abs(freely.achieved - ratio) + 0.05


def test_wide_dims_become_multiples_of_what_suits_them() -> None:
    wide = nn.Sequential(nn.Linear(8, 1536), nn.ReLU(), nn.Linear(1536, 100), nn.ReLU(), nn.Linear(100, 4))
    plan = shearfx.plan(shearfx.trace(wide, torch.randn(2, 8)), 0.3, saliency="random", form="fx", round_to="auto")
    shapes = plan.shapes_after()
    assert shapes["0.weight"][0] < 1536 and shapes["0.weight"][0] % 32 == 0
    assert shapes["2.weight"][0] == 100 or shapes["2.weight"][0] % 2 == 0
    assert [aligned(width) for width in (1, 63, 64, 172, 1536, 11008)] == [1, 1, 2, 4, 32, 64]


def test_heads_of_any_size_can_go_one_by_one() -> None:
    """32 heads of 100 and of 80: a multiple that only half of the heads make would leave them all."""
    for size in (100, 80, 64, 128):
        assert size % aligned(32 * size, size) == 0


def test_heads_that_fit_already_need_no_rounding() -> None:
    """Three key heads of eight with two queries each: any number of them is a multiple of eight."""
    plan = planned("llama", ratio=0.15, round_to=8, kinds=("heads",))
    assert plan.cuts
    assert all(len(cut.kept) % 8 for cut in plan.cuts)


@settings(max_examples=30)
@given(names, st.floats(0.05, 0.7), all_kinds, saliencies, seeds)
def test_uniform_leaves_layers_alike(name: str, ratio: float, kinds: Any, saliency: Any, seed: int) -> None:
    _, graph = traced(name)
    try:
        plan = planned(name, ratio=ratio, scope="uniform", kinds=kinds, saliency=saliency, seed=seed)
    except PlanError:
        assume(False)
    left = {cut.name: len(cut.kept) for cut in plan.cuts}
    counts: dict[Any, set[int]] = {}
    for group in graph.groups:
        counts.setdefault((place(group), group.kind, group.size), set()).add(left.get(group.name, group.size))
    assert all(len(found) == 1 for found in counts.values())


def test_where_a_configuration_describes_the_result_places_do_not_count() -> None:
    """T5 has one width and one number of heads for encoder and decoder."""
    _, graph = traced("t5")
    tied = [Tied((g,), (1,)) for g in graph.groups if g.kind in ("ffn", "heads")]
    assert len(alike(tied)) == 5  # heads: encoder, decoder, both cross; widths: encoder, decoder
    assert {one.groups[0].kind for one in alike(tied, place_counts=False)} == {"ffn", "heads"}
    assert sorted(len(one.groups) for one in alike(tied, place_counts=False)) == [3, 4]


def test_uniform_chooses_in_each_layer_by_its_own_scores() -> None:
    plan = planned("llama", ratio=0.2, scope="uniform", kinds=("ffn",))
    first, second = plan.cuts
    assert len(first.kept) == len(second.kept)
    assert first.kept != second.kept


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.11.mlp.up.weight:0", "model.layers.*.mlp.up.weight:0"),
        ("h.0.experts.3.w1.weight:1.1", "h.*.experts.*.w1.weight:1.1"),
        ("0.1.weight:0", "*.*.weight:0"),
        ("layer1.conv2.weight:0", "layer1.conv2.weight:0"),
    ],
)
def test_the_place_of_a_group_leaves_layers_open(name: str, expected: str) -> None:
    group = Group(name, "ffn", 4, "exact", (), 0, None)  # type: ignore[arg-type]
    assert place(group) == expected


@settings(max_examples=20)
@given(names, st.floats(0.1, 0.5), seeds, st.sampled_from(["global", "uniform"]))
def test_a_seed_gives_the_same_plan_again(name: str, ratio: float, seed: int, scope: str) -> None:
    try:
        once = planned(name, ratio=ratio, seed=seed, scope=scope)
    except PlanError:
        assume(False)
    assert planned(name, ratio=ratio, seed=seed, scope=scope) == once
    assert kept_of(planned(name, ratio=ratio, seed=seed + 1, scope=scope)) != kept_of(once)


@settings(max_examples=20)
@given(st.floats(0.04, 0.2), seeds)
def test_tied_groups_keep_equal_totals(ratio: float, seed: int) -> None:
    """A rotary pair counts twice: five of them are as wide as ten values."""
    _, graph = traced("llama")
    pairs = next(g for g in graph.groups if g.kind == "head_dim")
    values = [g for g in graph.groups if g.kind == "value_dim"]
    assert {2 * pairs.size, *(g.size for g in values)} == {2 * pairs.size}
    bundles = [(Tied((pairs, *values), (2, *(1 for _ in values))), "")]
    bundles += [(Tied((g,), (1,)), "") for g in graph.groups if g.kind in ("ffn", "heads")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shearfx.selection._admissible", lambda *_: bundles)
        plan = planned("llama", ratio=ratio, kinds=("head_dim", "value_dim"), seed=seed, floor=0.0)
        with pytest.raises(PlanError, match="tied to groups"):
            planned("llama", ratio=ratio, kinds=("value_dim",))
    left = {cut.kind: len(cut.kept) for cut in plan.cuts}
    assert len(plan.cuts) == 1 + len(values)
    assert 2 * left["head_dim"] == left["value_dim"]
    assert {len(c.kept) for c in plan.cuts if c.kind == "value_dim"} == {left["value_dim"]}


@settings(max_examples=10)
@given(st.floats(0.05, 0.5), seeds)
def test_tied_groups_of_different_sizes_lose_equal_counts(ratio: float, seed: int) -> None:
    module, graph = branches()
    wide, narrow, widest = graph.groups
    bundles = [(Tied((wide, narrow), (1, 2)), ""), (Tied((widest,), (1,)), "")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shearfx.selection._admissible", lambda *_: bundles)
        plan = shearfx.plan(graph, ratio, "random", module, form="fx", seed=seed)
    gone = {cut.name: cut.size - len(cut.kept) for cut in plan.cuts}
    assert gone[wide.name] == 2 * gone[narrow.name] > 0


def test_excluded_modules_stay_whole() -> None:
    plan = planned("llama", ratio=0.2, exclude=("model.layers.0", "*.self_attn"), kinds=("ffn", "heads"))
    assert plan.kept
    assert all(name.startswith("model.layers.1.mlp.") for name in plan.kept)


def test_only_included_modules_are_cut() -> None:
    plan = planned("llama", ratio=0.05, include=("model.layers.1.self_attn.*",))
    assert {name.rsplit(".", 2)[0] for name in plan.kept} == {"model.layers.1.self_attn"}


def test_kinds_choose_what_is_cut() -> None:
    assert {cut.kind for cut in planned("llama", kinds=("hidden",)).cuts} == {"hidden"}
    assert {cut.kind for cut in planned("llama", exclude_kinds=("ffn",)).cuts} & {"ffn"} == set()
    assert {cut.kind for cut in planned("llama", ratio=0.5).cuts} & set(OPTIONAL_KINDS) == set()


def test_approximate_groups_are_cut_only_when_allowed() -> None:
    with pytest.raises(PlanError, match="approximate"):
        planned("gpt2", kinds=("hidden",))
    plan = planned("gpt2", kinds=("hidden",), allow=("approximate",))
    assert {cut.certificate for cut in plan.cuts} == {"approximate"}


@pytest.mark.parametrize("floor", [20, {"ffn": 20}, {"ffn": 0.25, "heads": 3}])
def test_floors_are_counts_or_shares_of_all_or_by_kind(floor: Any) -> None:
    with pytest.raises(PlanError, match="out of reach"):
        planned("llama", ratio=0.8, floor=floor)
    plan = planned("llama", ratio=0.35, floor=floor)
    smallest = min(len(cut.kept) for cut in plan.cuts if cut.kind == "ffn")
    assert smallest >= (22 if isinstance(floor, dict) and floor["ffn"] == 0.25 else 20)
    if isinstance(floor, dict) and "heads" in floor:
        assert "heads" not in {cut.kind for cut in plan.cuts}


def test_no_group_loses_more_than_most() -> None:
    plan = planned("llama", ratio=0.25, most=0.4, kinds=("ffn", "heads"), saliency=Loss())
    assert all(len(cut.kept) >= 0.6 * cut.size for cut in plan.cuts)
    with pytest.raises(PlanError, match="most="):
        planned("llama", ratio=0.6, most=0.4)


def test_options_record_the_request() -> None:
    plan = planned("llama", ratio=0.2, seed=3, round_to=2, exclude="lm_head", floor=0.25)
    wanted = {"ratio": 0.2, "saliency": "random", "scope": "global", "form": "fx", "round_to": 2, "unit": "params",
              "exclude": ["lm_head"], "include": [], "allow": [], "floor": 0.25, "seed": 3, "kinds": None}  # fmt: skip
    assert wanted.items() <= plan.options.items()
    assert plan.asked == 0.2


def test_planning_on_meta_needs_no_weights() -> None:
    model, _ = traced("llama")
    on_meta = zoo.get("llama").build().module.to("meta")
    graph = shearfx.trace(on_meta, **{**model.kwargs, "input_ids": model.kwargs["input_ids"].to("meta")})
    plan = shearfx.plan(graph, 0.2, "random", on_meta, form="fx")
    assert kept_of(plan) == kept_of(planned("llama"))


# -- the original class --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt2", "cnn_resnet"])
@pytest.mark.parametrize("scope", ["global", "uniform"])
def test_plans_for_the_original_class_come_with_its_attributes(name: str, scope: str) -> None:
    model, _ = traced(name)
    plan = planned(name, ratio=0.3, form="module", scope=scope)
    assert plan.achieved == pytest.approx(0.3, abs=0.05)
    small = shearfx.construct(model.module, plan)
    assert type(small) is type(model.module)
    after = plan.shapes_after()
    assert all(tuple(p.shape) == after[n] for n, p in small.named_parameters())
    with torch.no_grad():
        for args, kwargs in model.calls()[:2]:
            outputs = zoo.float_outputs(small(*args, **kwargs))
            expected = zoo.float_outputs(shearfx.mask(model.module, plan)(*args, **kwargs))
            for a, b in zip(outputs, expected, strict=True):
                assert torch.allclose(a, b, atol=1e-4 * float(b.abs().max()))  # float32; verify() is exact


def test_what_the_class_cannot_hold_is_refused_with_its_reason() -> None:
    """A value dim of its own: attention reshapes to heads times head_dim, so alone it cannot be cut."""
    with pytest.raises(PlanError, match=r"cannot express|tied to groups"):
        planned("llama", form="module", kinds=("value_dim",))


def test_what_a_saliency_does_not_see_stays_whole_unless_its_kind_was_asked_for() -> None:
    """Latents of DeepSeek's attention are normalised: nothing tells what they are worth by a gate."""
    built = zoo.get("deepseek_v3").build()
    graph = shearfx.trace(built.module, *built.args, **built.kwargs)
    ids = [{"input_ids": torch.arange(14).reshape(2, 7)}]
    with pytest.warns(UserWarning, match="left whole: .*_layernorm.* fisher does not tell what it is worth"):
        found = shearfx.plan(graph, 0.1, "fisher", built.module, kinds=("ffn", "heads"), data=ids)
    assert len(found.options["left_whole"]) == 1
    assert {cut.kind for cut in found.cuts} <= {"ffn", "heads"}
    assert not any("layernorm" in cut.name for cut in found.cuts)
    hidden = pytest.raises(PlanError, match="'fisher' does not see 1 groups of kind hidden")
    with pytest.warns(UserWarning, match="left whole"), hidden:
        shearfx.plan(graph, 0.1, "fisher", built.module, kinds=("ffn", "hidden"), data=ids)
