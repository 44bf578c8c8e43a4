"""The picture as data: nothing of the graph is lost, folding and unfolding are two views of the same, names survive."""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import shearfx
from shearfx.errors import PlanError
from shearfx.graph import Graph
from shearfx.pruning_plan import of_cuts
from shearfx.testing import architectures, plans
from shearfx.viz.build import scene_of
from shearfx.viz.card import card_of
from shearfx.viz.palette import COLORS, text_on
from shearfx.viz.scene import Box, Fold, Item, Scene, operators
from shearfx.viz.view import Cluster, Leaf, folded
from tests import zoo
from tests.tiny_models import traced

ZOO = ("llama", "llama_lora", "mixtral", "t5", "resnet_hf", "densenet", "multihead_attention", "shared_twice")


@functools.cache
def of_zoo(name: str) -> Graph:
    model = zoo.get(name).build()
    return shearfx.trace(model.module, *model.args, **model.kwargs)


def folds_of(item: Item) -> list[Fold]:
    if isinstance(item, Fold):
        return [item, *(f for copy in item.copies for one in copy for f in folds_of(one))]
    return [f for child in item.children for f in folds_of(child)] if isinstance(item, Box) else []


def check_faithful(graph: Graph, scene: Scene) -> None:
    """All that must hold of the scene of any graph."""
    ops = {op.name: op for op in operators(scene.root)}
    drawn = [n.name for n, r in graph.records.items()
             if n.op == "output" or (r.dims is not None and n not in graph.traced.tensors)]  # fmt: skip
    assert [op.name for op in operators(scene.root)] == drawn  # each once, in the order of execution
    names = {g.atom: g.name for g in graph.groups}
    for group in graph.node_groups:
        if group.atom not in names:
            continue
        for node in group.nodes:
            tensor = graph.traced.tensors.get(node)
            readers = [ops[u.name] for u in node.users if u.name in ops] if tensor else [ops[node.name]]
            assert readers or not node.users
            for op in readers:
                assert names[group.atom] in op.groups, (names[group.atom], op.name)
                assert tensor is None or tensor.name in op.tensors
    for g in graph.groups:
        assert [(m.name, m.dim) for m in g.members] == [m[:2] for m in scene.groups[g.name].members]
        assert scene.groups[g.name].size == g.size
    for op in ops.values():
        here = [scene.groups[g].label for g in op.groups]
        assert len(set(here)) == len(here), "two groups of one name meet"
        assert "{" not in op.dims


def check_folding(scene: Scene) -> None:
    """What is seen stands for every operator once; copies are alike, place by place."""
    view = folded(scene)
    counted = Counter(op.name for leaf in view.leaves for copy in leaf.copies for op in copy)
    assert counted == Counter(op.name for op in operators(scene.root))
    for fold in folds_of(scene.root):
        assert len(fold.copies) > 1
        first, *others = [[op for one in copy for op in operators(one)] for copy in fold.copies]
        for other in others:
            assert [op.title for op in other] == [op.title for op in first]
            for a, b in zip(first, other, strict=True):
                sizes = [[(scene.groups[g].kind, scene.groups[g].size, scene.groups[g].certificate) for g in op.groups]
                         for op in (a, b)]  # fmt: skip
                assert sizes[0] == sizes[1]
    ids = [leaf.id for leaf in view.leaves]
    assert len(set(ids)) == len(ids)
    producers = {op.name: leaf.id for leaf in view.leaves for op in leaf.shown}
    shown = {(e.source, e.target) for e in view.edges}
    for leaf in view.leaves:
        for op in leaf.shown:
            for name in op.inputs:
                if name in producers and producers[name] != leaf.id:
                    assert (producers[name], leaf.id) in shown


@pytest.mark.zoo
@pytest.mark.parametrize("name", ZOO)
def test_scenes_of_known_models_are_faithful(name: str) -> None:
    scene = scene_of(of_zoo(name))
    check_faithful(of_zoo(name), scene)
    check_folding(scene)


@given(architecture=architectures(), data=st.data())
@settings(max_examples=15)
def test_scenes_of_random_models_are_faithful(architecture: Any, data: st.DataObject) -> None:
    graph = shearfx.trace(architecture.build(), *architecture.inputs())
    scene = scene_of(graph)
    check_faithful(graph, scene)
    check_folding(scene)
    if graph.groups:
        plan = data.draw(plans(graph))
        check_overlay(graph, plan, scene_of(graph, plan))


def check_overlay(graph: Graph, plan: Any, scene: Scene) -> None:
    kept = {cut.name: len(cut.kept) for cut in plan.cuts}
    after = plan.shapes_after()
    for name, group in scene.groups.items():
        assert group.kept == kept.get(name, group.size)
    for tensor in scene.tensors.values():
        assert tensor.after == after.get(tensor.name, tensor.shape)
    cut_leaves = {leaf.id for leaf in folded(scene).leaves if card_of(scene, leaf).kept is not None}
    touched = {t for t in plan.terms if graph.tensors[t].kind == "parameter"}
    for leaf in folded(scene).leaves:
        if touched & {t for copy in leaf.copies for op in copy for t in op.tensors}:
            assert leaf.id in cut_leaves


# -- folding -----------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.down(torch.relu(self.up(x)))
        return found


def stack(*inner: int) -> Graph:
    return shearfx.trace(nn.Sequential(*(Block(6, n) for n in inner)), torch.randn(2, 6))


@given(st.integers(2, 7))
@settings(max_examples=4)
def test_layers_alike_fold_into_one(count: int) -> None:
    (fold,) = folds_of(scene_of(stack(*[5] * count)).root)
    assert len(fold.copies) == count
    cluster = folded(scene_of(stack(*[5] * count))).root.children[1]
    assert isinstance(cluster, Cluster)
    assert cluster.repeat == count


@given(st.lists(st.integers(2, 3), min_size=1, max_size=8))
@settings(max_examples=12)
def test_layers_of_other_sizes_do_not_fold_together(inner: list[int]) -> None:
    for fold in folds_of(scene_of(stack(*inner)).root):
        sizes = [[op.dims for one in copy for op in operators(one)] for copy in fold.copies]
        assert all(copy == sizes[0] for copy in sizes)
    scene = scene_of(stack(*inner))
    check_folding(scene)
    widths = [scene.groups[f"{i}.down.weight:1"].size for i in range(len(inner))]
    assert widths == inner


def test_patterns_of_several_layers_fold() -> None:
    (fold,) = folds_of(scene_of(stack(2, 3, 2, 3, 2, 3)).root)
    assert [len(copy) for copy in fold.copies] == [2, 2, 2]


def test_blocks_that_read_all_before_them_do_not_fold() -> None:
    assert not [f for f in folds_of(scene_of(of_zoo("densenet")).root) if len(list(operators(f))) > 12]


# -- what is written ---------------------------------------------------------------------------------------


def test_dims_are_terms_of_short_names() -> None:
    scene = scene_of(of_zoo("llama"))
    dims = {op.dims for op in operators(scene.root)}
    assert "B, S, kv*group*(d+d)" in dims
    assert "B, S, kv*group*v" in dims
    assert "B, S, ffn" in dims
    assert {g.label for g in scene.groups.values()} == {"hidden", "ffn", "kv", "group", "v", "d"}


def test_lora_is_one_node_with_the_groups_of_its_base() -> None:
    scene = scene_of(of_zoo("llama_lora"))
    leaves = [leaf for leaf in folded(scene).leaves if leaf.item.title == "up_proj"]
    (leaf,) = leaves
    card = card_of(scene, leaf)
    assert isinstance(leaf.item, Box)
    assert leaf.item.kind == "composed"
    assert len(leaf.shown) > 3
    assert {chip.label for chip in card.chips} == {"ffn", "hidden"}
    assert any("lora_B" in line for line in card.lines)


def test_what_may_not_be_cut_says_why() -> None:
    scene = scene_of(of_zoo("llama"))
    view = folded(scene)
    cards = {leaf.item.title: card_of(scene, leaf) for leaf in view.leaves}
    assert cards["input_ids"].pinned
    assert "follows the batch or sequence" in cards["input_ids"].tooltip
    assert cards["output"].pinned
    assert "a dim of the model's output" in cards["output"].tooltip
    assert not cards["up_proj"].pinned
    assert "looked up by data" in cards["embed_tokens"].tooltip


def test_a_skip_connection_starts_before_the_norm() -> None:
    """A cast that changes nothing is no dependency: tracing lets the residual read the norm's own one."""
    view = folded(scene_of(of_zoo("llama")))
    title = {leaf.id: leaf.item.title for leaf in view.leaves}
    ends = {(title[e.source], title[e.target]) for e in view.edges}
    assert ("embed_tokens", "add") in ends
    assert ("input_layernorm", "add") not in ends


def test_labels_under_a_plan_say_how_much_stays() -> None:
    graph = of_zoo("llama")
    ffn = [g for g in graph.groups if g.kind == "ffn"]
    plan = of_cuts(graph, {ffn[0].name: range(60), ffn[1].name: range(70)})
    scene = scene_of(graph, plan)
    (leaf,) = [leaf for leaf in folded(scene).leaves if leaf.item.title == "down_proj"]
    card = card_of(scene, leaf)
    assert "ffn 88→60–70" in [chip.text for chip in card.chips]
    assert card.kept == pytest.approx(130 / 176)


def test_a_plan_of_another_model_is_refused() -> None:
    plan = of_cuts(of_zoo("llama"), {g.name: [0] for g in of_zoo("llama").groups if g.kind == "ffn"})
    with pytest.raises(PlanError, match="was made for"):
        scene_of(traced("gpt2")[1], plan)


# -- colours -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("color", COLORS)
def test_texts_on_colours_can_be_read(color: str) -> None:
    def luminance(text: str) -> float:
        parts = [int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        return sum(w * (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4)
                   for w, c in zip((0.2126, 0.7152, 0.0722), parts, strict=True))  # fmt: skip

    low, high = sorted((luminance(color), luminance(text_on(color))))
    assert (high + 0.05) / (low + 0.05) >= 4.5  # what WCAG 2 asks of text


@pytest.mark.zoo
@pytest.mark.parametrize("name", ZOO)
def test_groups_that_meet_differ_in_colour(name: str) -> None:
    scene = scene_of(of_zoo(name))
    for op in operators(scene.root):
        labels = {scene.groups[g].label: scene.groups[g].color for g in op.groups}
        if len(labels) <= len(COLORS):
            assert len(set(labels.values())) == len(labels)


def test_leaves_are_what_the_type_says() -> None:
    view = folded(scene_of(traced("convolutions")[1]))
    assert all(isinstance(leaf, Leaf) for leaf in view.leaves)
    assert [leaf.item.title for leaf in view.leaves][:3] == ["x", "first", "norm"]
