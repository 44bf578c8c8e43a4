"""Groups that lose all of their structures: what is left computes what the masked model does, or is refused."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GPT2Config, GPT2LMHeadModel

import shearfx
from shearfx.attributes import settle
from shearfx.bundles import bundles
from shearfx.comparison import TOLERANCE
from shearfx.depth import find_branches
from shearfx.errors import PlanError
from shearfx.graph import Graph
from shearfx.on_disk import apply_to_folder
from shearfx.pruning_plan import PruningPlan, of_cuts
from shearfx.selection import Selection, select
from shearfx.shallow import representative
from shearfx.testing import Architecture, architectures, random_cuts
from shearfx.testing.plans import plan_of
from tests import zoo
from tests.tiny_runs import tiny_llama

LONG = int(os.environ.get("SHEARFX_EXAMPLES", "300"))
IDS = torch.tensor([[5, 9, 200, 31, 7, 2]])
KINDS = ("heads", "ffn")
HEADS = "model.layers.{}.self_attn.k_proj.weight:0.0"
FFN = "model.layers.{}.mlp.down_proj.weight:1"


def check(architecture: Architecture, data: st.DataObject) -> str:
    """Some exact groups are emptied, others cut as they come."""
    module, inputs = architecture.build(), architecture.inputs()
    with torch.no_grad():
        assume(bool(torch.isfinite(module(*inputs)).all()))
    graph = shearfx.trace(module, *inputs)
    exact = [group.name for group in graph.groups if group.certificate == "exact"]
    assume(exact)
    emptied = data.draw(st.sets(st.sampled_from(exact), min_size=1, max_size=2), label="emptied")
    others = random_cuts(graph, random.Random(data.draw(st.integers(0, 99)))) if data.draw(st.booleans()) else {}
    plan = plan_of(graph, {**others, **dict.fromkeys(emptied, ())})
    assert PruningPlan.from_json(plan.to_json()) == plan
    try:
        report = shearfx.verify(module, plan, *inputs, graph=graph)
    except PlanError as refusal:
        assert "does not take what is left" in str(refusal)
        return "refused"
    assert report.max_relative_error <= TOLERANCE
    if not graph.traced.specialised:
        shearfx.verify(module, plan, *architecture.inputs(batch=3, time=5), graph=graph)
    return "sound"


@settings(max_examples=15)
@given(st.data())
def test_emptying_is_zeroing_or_refused(data: st.DataObject) -> None:
    check(data.draw(architectures(max_blocks=3)), data)


@pytest.mark.slow
@pytest.mark.timeout(0)
@settings(max_examples=LONG)
@given(st.data())
def test_emptying_is_zeroing_or_refused_long(data: st.DataObject) -> None:
    check(data.draw(architectures(max_blocks=4)), data)


ENTRIES = [
    pytest.param(entry, id=entry.name, marks=() if entry.name in ("llama", "moe_dense") else pytest.mark.slow)
    for entry in zoo.entries()
    if entry.exports
]


@pytest.mark.parametrize("entry", ENTRIES)
def test_real_architectures_can_lose_groups_or_say_why_not(entry: Any) -> None:
    """Each kind of group once, in both forms."""
    model = entry.build()
    graph = shearfx.trace(model.module, *model.args, **model.kwargs)
    kinds = {(group.kind, group.size): group for group in graph.groups if group.certificate == "exact"}
    held = {g.name for one in bundles(graph, model.module) if one.expressible and len(one.groups) == 1
            for g in one.groups}  # fmt: skip
    for group in kinds.values():
        plans = [plan_of(graph, {group.name: ()})]
        try:
            if group.name in held:
                plans.append(settle(model.module, graph, of_cuts(graph, {group.name: ()})))
            for plan in plans:
                report = shearfx.verify(model.module, plan, *model.args, graph=graph, **model.kwargs)
                assert report.max_relative_error <= TOLERANCE
        except PlanError:
            continue


def traced(model: nn.Module) -> Graph:
    return shearfx.trace(model, input_ids=IDS)


def test_only_exact_groups_can_lose_all() -> None:
    graph = traced(tiny_llama())
    (hidden,) = (group.name for group in graph.groups if group.kind == "hidden")
    with pytest.raises(PlanError, match="only exact groups can lose all"):
        of_cuts(graph, {hidden: ()})


@pytest.fixture(scope="module")
def deep() -> tuple[Any, Graph]:
    model = tiny_llama(num_hidden_layers=5)
    return model, traced(model)


def test_a_llama_without_some_branches_generates_saves_and_loads(deep: tuple[Any, Graph], tmp_path: Path) -> None:
    model, graph = deep
    kept: dict[str, Any] = {HEADS.format(2): (), HEADS.format(3): (1,), FFN.format(4): (), FFN.format(1): range(30)}
    plan = settle(model, graph, of_cuts(graph, kept))
    assert shearfx.verify(model, plan, input_ids=IDS, graph=graph).max_relative_error <= TOLERANCE
    small: Any = shearfx.construct(model, plan)
    assert small.model.layers[2].self_attn.q_proj.weight.shape == (0, 32)
    masked: Any = shearfx.mask(model, plan)
    for implementation in ("eager", "sdpa"):
        for cache in ("dynamic", "static"):
            said = []
            for one in (small, masked):
                one.set_attn_implementation(implementation)
                said.append(one.generate(IDS, max_new_tokens=6, do_sample=False, cache_implementation=cache).tolist())
            assert said[0] == said[1]
    shearfx.save(small, plan, tmp_path / "small")
    again: Any = shearfx.load(tmp_path / "small")
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, small(IDS).logits)
    model.save_pretrained(tmp_path / "full")
    apply_to_folder(tmp_path / "full", plan, tmp_path / "cut")
    with torch.no_grad():
        assert torch.equal(shearfx.load(tmp_path / "cut")(IDS).logits, small(IDS).logits)


def test_the_layer_that_the_cache_counts_by_keeps_its_heads(deep: tuple[Any, Graph]) -> None:
    """A cache's length is that of the first layer's keys: without any, positions would start anew at every token."""
    model, graph = deep
    tied, _ = select(graph, model, Selection(kinds=KINDS))
    found = find_branches(graph, model, tied)
    names = {group.name for group in found.groups}
    assert names == {HEADS.format(i) for i in range(1, 5)} | {FFN.format(i) for i in range(5)}
    assert "cache" in found.refused[HEADS.format(0)]
    settle(
        model, graph, of_cuts(graph, {HEADS.format(1): (), HEADS.format(4): (0,)})
    )  # what is remembered of others ...
    with pytest.raises(PlanError, match="decoding with a cache"):
        settle(model, graph, of_cuts(graph, {HEADS.format(0): ()}))  # ... says nothing of this one


def test_a_layer_that_masks_are_measured_by_keeps_its_heads() -> None:
    """The first with full attention, among those that look through a window, however deep it is."""
    torch.manual_seed(0)
    windowed = ["sliding_attention"] * 3
    config = Gemma3TextConfig(
        vocab_size=264, hidden_size=32, intermediate_size=48, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, sliding_window=8, initializer_range=0.2,
        layer_types=[*windowed, "full_attention", "sliding_attention", "full_attention"],
    )  # fmt: skip
    model: Any = Gemma3ForCausalLM(config).eval()
    graph = shearfx.trace(model, input_ids=IDS)
    with pytest.raises(PlanError, match="decoding with a cache"):
        settle(model, graph, of_cuts(graph, {HEADS.format(3): ()}))
    plan = settle(model, graph, of_cuts(graph, {HEADS.format(5): ()}))
    both: list[Any] = [shearfx.construct(model, plan), shearfx.mask(model, plan)]
    said = [one.generate(IDS, max_new_tokens=10, do_sample=False).tolist() for one in both]
    assert said[0] == said[1]


def test_the_shallow_model_loses_what_the_deep_one_does(deep: tuple[Any, Graph]) -> None:
    """In its last layer, unless the plan names the first."""
    graph, shallow = deep[1], traced(tiny_llama(num_hidden_layers=2))

    def seen(kept: dict[str, Any]) -> dict[str, int]:
        return {cut.name: len(cut.kept) for cut in representative(of_cuts(graph, kept), shallow).cuts}

    assert seen({HEADS.format(3): ()}) == {HEADS.format(1): 0}
    assert seen({HEADS.format(0): ()}) == {HEADS.format(0): 0}
    assert seen({HEADS.format(1): (), HEADS.format(4): (0,)}) == {HEADS.format(0): 1, HEADS.format(1): 0}
    assert seen({HEADS.format(3): (), HEADS.format(4): (0,)}) == {HEADS.format(0): 1, HEADS.format(1): 0}


def test_a_plan_empties_what_it_is_told_to_and_cuts_the_rest(deep: tuple[Any, Graph]) -> None:
    model, graph = deep
    names = [HEADS.format(2), FFN.format(4)]
    plan = shearfx.plan(graph, 0.3, "magnitude", model, kinds=KINDS, emptied=names, floor={"ffn": 0.5, "heads": 2})
    assert {cut.name for cut in plan.cuts if not cut.kept} == set(names) == set(plan.options["emptied"])
    assert plan.achieved == pytest.approx(0.3, abs=0.01)
    assert all(cut.kind == "ffn" and len(cut.kept) >= cut.size / 2 for cut in plan.cuts if cut.kept)
    assert shearfx.verify(model, plan, input_ids=IDS, graph=graph).max_relative_error <= TOLERANCE


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"emptied": ["nothing"]}, "no group that may be cut"),
        ({"emptied": [FFN.format(1)], "kinds": ("heads",)}, "not among the kinds asked for"),
        ({"emptied": [FFN.format(1)], "scope": "uniform"}, "cut together with others"),
        ({"emptied": [FFN.format(1), FFN.format(2)], "ratio": 0.1}, "what is to be emptied makes"),
        ({"emptied": [HEADS.format(0)]}, "decoding with a cache"),
    ],
)
def test_what_cannot_be_emptied_is_refused(deep: tuple[Any, Graph], asked: dict[str, Any], match: str) -> None:
    model, graph = deep
    with pytest.raises(PlanError, match=match):
        wanted: dict[str, Any] = {"kinds": KINDS, "ratio": 0.3} | asked
        shearfx.plan(graph, model=model, **wanted)


def test_a_class_that_does_not_take_what_is_empty_says_so() -> None:
    """GPT-2 lays its activations out by ``view(-1, width)``, which nothing of no width can be."""
    config = GPT2Config(vocab_size=264, n_positions=32, n_embd=32, n_layer=3, n_head=4)
    model = GPT2LMHeadModel(config).eval()
    graph = traced(model)
    tied, _ = select(graph, model, Selection(kinds=KINDS))
    found = find_branches(graph, model, tied)
    assert not found.groups and all("unspecified dimension" in reason for reason in found.refused.values())
