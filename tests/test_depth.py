"""Whole layers: which can go, what is left, and how far each turns the stream."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import shearfx
import shearfx.fewer_layers
from shearfx.architectures import shapes
from shearfx.comparison import TOLERANCE
from shearfx.depth import Layer, angular_distances, drop_layers, find_layers
from shearfx.errors import PlanError, SoundnessError
from shearfx.graph import Graph
from shearfx.pruning_plan import fingerprint
from tests import zoo

WIDTH = 8


class Branch(nn.Module):
    def __init__(self, number: int, kind: str, scaled: bool) -> None:
        super().__init__()
        self.number, self.kind, self.scaled = number, kind, scaled
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.down(torch.relu(self.up(self.norm(x)))) * (1 + self.number * self.scaled)
        flat = (x.flatten(0, 1) + branch.flatten(0, 1)).view(x.shape)
        found: Tensor = {
            "sum": x + branch, "sums": branch + (x + torch.tanh(branch)), "viewed": flat,
            "norm": self.norm(x + branch), "half": x / 2 + branch, "twice": x + x, "alone": branch,
        }[self.kind]  # fmt: skip
        return found


class Tower(nn.Module):
    """Layers of several kinds, each of which knows its number; ``scaled``: its branch goes by it."""

    def __init__(self, kinds: tuple[str, ...], scaled: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(5, WIDTH)
        self.layers = nn.ModuleList([Branch(i, kind, scaled) for i, kind in enumerate(kinds)])
        self.last = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        found: Tensor = self.last(x)
        return found


GOOD, BAD = ("sum", "sums", "viewed"), ("norm", "half", "twice", "alone")


@functools.cache
def traced(kinds: tuple[str, ...], scaled: bool = False) -> tuple[Tower, Graph]:
    model = Tower(kinds, scaled).eval()
    return model, shearfx.trace(model, torch.randn(2, 4, 5))


@settings(max_examples=8)
@given(kinds=st.lists(st.sampled_from([*GOOD, *BAD]), min_size=2, max_size=4), data=st.data())
def test_without_layers_a_model_computes_what_it_does_with_their_branches_zeroed(
    kinds: list[str], data: st.DataObject
) -> None:
    model, graph = traced(tuple(kinds))
    found = find_layers(graph)
    assert {layer.path for layer in found.layers} == {f"layers.{i}" for i, kind in enumerate(kinds) if kind in GOOD}
    assert set(found.refused) == {f"layers.{i}" for i, kind in enumerate(kinds) if kind in BAD}
    good = [layer.path for layer in found.layers]
    if not good:
        return
    chosen = data.draw(st.lists(st.sampled_from(good), unique=True, min_size=1, max_size=len(kinds) - 1))
    if len(chosen) == len(kinds):
        return
    small = drop_layers(model, graph, chosen)
    zeroed = copy.deepcopy(model)
    for path in chosen:
        layer = zeroed.get_submodule(path)
        for parameter in layer.down.parameters():  # type: ignore[union-attr]
            nn.init.zeros_(parameter)
    x = torch.randn(3, 6, 5)
    torch.testing.assert_close(small(x), zeroed(x))
    assert [layer.number for layer in small.layers] == list(range(len(kinds) - len(chosen)))  # type: ignore[union-attr]


@settings(max_examples=4)
@given(st.lists(st.sampled_from(GOOD), min_size=2, max_size=4), st.data())
def test_layers_and_cuts_are_one_plan(kinds: list[str], data: st.DataObject) -> None:
    """A plan whose layers go first fits the full model and the one without them, and makes the same of both."""
    model, graph = traced(tuple(kinds))
    paths = [layer.path for layer in find_layers(graph).layers]
    chosen = data.draw(st.lists(st.sampled_from(paths), unique=True, min_size=1, max_size=len(paths) - 1))
    small = drop_layers(model, graph, chosen)
    x = torch.randn(2, 4, 5)
    cuts = shearfx.plan(shearfx.trace(small, x), 0.1, "random", small, kinds=["ffn"], floor=0.0)
    plan = dataclasses.replace(cuts, layers=tuple(chosen), full=fingerprint(shapes(model)))
    plan = shearfx.PruningPlan.from_json(plan.to_json())
    for one in (model, small):
        for form in ("module", "fx"):
            found = shearfx.construct(one, plan, form=form)
            expected = shearfx.construct(small, cuts, form=form)
            assert {k: v.shape for k, v in found.state_dict().items()} == {
                k: v.shape for k, v in expected.state_dict().items()
            }
        torch.testing.assert_close(shearfx.construct(one, plan)(x), shearfx.construct(small, cuts)(x))
    report = shearfx.verify(model, plan, x)
    assert report.layers_error is not None and report.max_relative_error <= TOLERANCE < report.moved
    assert shearfx.verify(small, plan, x).layers_error is None
    other, _ = traced((*kinds, "sum"))
    with pytest.raises(PlanError, match="none of the layers"):
        shearfx.construct(other, plan)


def test_layers_that_follow_each_other_go_together() -> None:
    """Found by the property: the second one's stream is what leaves the first, which goes too."""
    model, graph = traced(("sum", "sum", "sum"))
    assert len(drop_layers(model, graph, ["layers.0", "layers.1"]).layers) == 1  # type: ignore[arg-type]


def test_attributes_that_number_layers_but_change_the_function_are_caught() -> None:
    """Here the number scales the branch, so that numbering anew is another function: refused, not wrong."""
    model, graph = traced(("sum", "sum", "sum"), scaled=True)
    drop_layers(model, graph, ["layers.2"])  # the numbers before it stay
    with pytest.raises(SoundnessError, match="computes something else"):
        drop_layers(model, graph, ["layers.0"])


@functools.cache
def analysed(name: str) -> tuple[zoo.Model, Graph]:
    entry = zoo.get(name).build()
    return entry, shearfx.trace(entry.module, *entry.args, **entry.kwargs)


@pytest.mark.zoo
@pytest.mark.parametrize(
    "name",
    ["gpt2", "gemma3", "whisper", "opt",
     *(pytest.param(name, marks=pytest.mark.slow) for name in ("llama", "mixtral", "mamba", "t5", "vit"))],
)  # fmt: skip
def test_real_architectures_lose_a_layer_and_stay_of_their_class(name: str) -> None:
    entry, graph = analysed(name)
    found = find_layers(graph)
    assert found.layers
    before = {k: v.clone() for k, v in entry.module.state_dict().items()}
    for layers in found.lists().values():
        small = drop_layers(entry.module, graph, [layers[0].path])
        assert type(small) is type(entry.module)
        lost = sum(p.numel() for p in entry.module.parameters()) - sum(p.numel() for p in small.parameters())
        assert lost == layers[0].params > 0
        again = type(small)(small.config)
        assert {k: v.shape for k, v in again.state_dict().items()} == {
            k: v.shape for k, v in small.state_dict().items()
        }
    assert all(torch.equal(v, before[k]) for k, v in entry.module.state_dict().items())


def test_a_shorter_llama_decodes_with_its_cache_as_without() -> None:
    entry, graph = analysed("llama")
    small: Any = drop_layers(entry.module, graph, ["model.layers.0"])
    ids = torch.tensor([[3, 5, 7, 2]])
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(small.generate(ids, use_cache=True, **options), small.generate(ids, use_cache=False, **options))


@pytest.mark.zoo
def test_layers_that_change_the_stream_itself_stay_in() -> None:
    _, graph = analysed("bert")
    found = find_layers(graph)
    assert not found.layers
    assert "layer_norm" in found.refused["bert.encoder.layer.0"]
    with pytest.raises(PlanError, match="layer_norm"):
        found.only(["bert.encoder.layer.0"])


class Stages(nn.Module):
    """Lists of blocks in a list of stages, of which some widen the stream behind their blocks."""

    def __init__(self, widening: tuple[bool, ...]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stages = nn.ModuleList(Stage(widens) for widens in widening)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return x


class Stage(nn.Module):
    def __init__(self, widens: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Branch(i, "sum", False) for i in range(2)])
        self.behind = nn.Sequential(nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)) if widens else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        found: Tensor = self.behind(x)
        return found


def test_where_stages_cannot_go_their_blocks_can() -> None:
    x = torch.randn(2, 4, WIDTH)
    whole = shearfx.trace(Stages((False, False)).eval(), x)
    assert [layer.path for layer in find_layers(whole).layers] == ["stages.0", "stages.1"]
    model = Stages((True, False)).eval()
    graph = shearfx.trace(model, x)
    found = find_layers(graph)
    assert [layer.path for layer in found.layers] == [f"stages.{i}.blocks.{j}" for i in (0, 1) for j in (0, 1)]
    assert {layer.params for layer in found.layers} == {sum(p.numel() for p in Branch(0, "sum", False).parameters())}
    with pytest.raises(PlanError, match=r"one by one \(stages.1.blocks.0"):
        found.only(["stages.1"])
    small = drop_layers(model, graph, ["stages.1.blocks.0"])
    zeroed = copy.deepcopy(model)
    for parameter in zeroed.get_submodule("stages.1.blocks.0.down").parameters():
        nn.init.zeros_(parameter)
    torch.testing.assert_close(small(x), zeroed(x))
    with pytest.raises(PlanError, match="all layers"):
        found.only(["stages.0.blocks.0", "stages.0.blocks.1"])


@pytest.mark.slow
@pytest.mark.zoo
@pytest.mark.parametrize("name", ["swin", "convnext"])
def test_blocks_within_stages_go_and_the_class_states_it(name: str) -> None:
    entry, graph = analysed(name)
    lists = {path: of for path, of in find_layers(graph).lists().items() if path.count(".") >= 3}
    assert lists
    for of in lists.values():
        if len(of) > 1:  # the last: Swin's blocks shift their windows by whether their number is odd
            small = drop_layers(entry.module, graph, [of[-1].path])
            assert type(small) is type(entry.module)
            assert small.config.depths == [1, 1] != entry.module.config.depths  # type: ignore[union-attr]


def test_layers_that_cannot_be_asked_for() -> None:
    _, graph = traced(("sum", "norm"))
    found = find_layers(graph)
    for paths, said in (([], "no layer"), (["layers.0"] * 2, "twice"), (["first"], "no item of a list")):
        with pytest.raises(PlanError, match=said):
            found.only(paths)
    with pytest.raises(PlanError, match="all layers"):
        find_layers(traced(("sum", "sum"))[1]).only(["layers.0", "layers.1"])


def test_configurations_that_cannot_state_it_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    entry, graph = analysed("llama")
    monkeypatch.setattr(shearfx.fewer_layers, "_configs", lambda *_: iter(()))
    with pytest.raises(PlanError, match="no configuration states"):
        drop_layers(entry.module, graph, ["model.layers.0"])


class Turning(nn.Module):
    """Layers that turn a stream of two dims by given angles."""

    def __init__(self, angles: tuple[float, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Turn(angle) for angle in angles])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Turn(nn.Module):
    def __init__(self, angle: float) -> None:
        super().__init__()
        c, s = math.cos(angle), math.sin(angle)
        self.turned = nn.Linear(2, 2, bias=False)
        self.turned.weight = nn.Parameter(torch.tensor([[c - 1, -s], [s, c - 1]]))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.turned(x)
        return found


def test_distances_by_hand() -> None:
    """Turns of 0.3, 0.1, 0.2 and -0.25: a run turns by their sum, whatever comes in."""
    angles = (0.3, 0.1, 0.2, -0.25)
    model = Turning(angles)
    graph = shearfx.trace(model, torch.randn(3, 4, 2))
    layers = sorted(find_layers(graph).layers, key=lambda layer: layer.index)
    assert len(layers) == 4
    told: list[tuple[int, int]] = []
    batches = [torch.randn(3, 4, 2), torch.randn(5, 2, 2)]
    found = angular_distances(
        model, layers, batches, lambda m, x: m(x), progress=lambda done, of: told.append((done, of))
    )
    for n in range(1, 5):
        expected = [abs(sum(angles[i : i + n])) / math.pi for i in range(5 - n)]
        assert found.distances[n] == pytest.approx(expected, abs=1e-4)
    assert found.samples == 8
    assert told == [(1, 2), (2, 2)]
    assert found.best(1) == ["layers.1"]
    assert found.best(2) == ["layers.2", "layers.3"]
    assert found.deepest(2) == ["layers.1", "layers.2"]
    for count in (0, 4):
        with pytest.raises(PlanError, match="cannot go in a run"):
            found.best(count)


def test_distances_need_layers_and_data() -> None:
    model, graph = traced(("sum", "sum", "sum"))
    layers = sorted(find_layers(graph).layers, key=lambda layer: layer.index)

    def run(module: nn.Module, x: Tensor) -> Any:
        return module(x)

    with pytest.raises(PlanError, match="no batches"):
        angular_distances(model, layers, [], run)
    gap: list[Layer] = [layers[0], layers[2]]
    for wrong in ([], gap):
        with pytest.raises(PlanError, match="one after the other"):
            angular_distances(model, wrong, [torch.randn(1, 2, 5)], run)
