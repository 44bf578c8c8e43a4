"""The original class with sliced parameters: every cut that it accepts is exact, every other one is refused."""

from __future__ import annotations

import copy
import pickle  # noqa: TID251 - only to show that users who do pickle models still can
import random
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import shearfx.attributes
from shearfx.analysis import trace
from shearfx.attributes import settle, solve
from shearfx.bundles import Bundle, bundles
from shearfx.construction import construct
from shearfx.errors import PlanError
from shearfx.graph import Graph
from shearfx.masking import mask
from shearfx.module_form import construct_module
from shearfx.overlay import Overlay
from shearfx.pruning_plan import PruningPlan, of_cuts
from shearfx.testing import assert_sound, random_tied_cuts
from shearfx.verification import verify
from tests import zoo

_TRACED: dict[str, tuple[Any, Graph]] = {}


def traced(name: str) -> tuple[Any, Graph]:
    """A zoo model in float64 and its analysis, made once."""
    if name not in _TRACED:
        model = zoo.get(name).build()
        _TRACED[name] = model, trace(model.module, *model.args, **model.kwargs)
    return _TRACED[name]


def sound(bundle: Bundle) -> bool:
    return bundle.expressible and all(g.certificate in ("exact", "compensated") for g in bundle.groups)


def random_cut(graph: Graph, model: nn.Module, seed: int) -> PruningPlan:
    """Some structures of every bundle that the class can express, chosen at random."""
    return settle(model, graph, of_cuts(graph, random_tied_cuts(bundles(graph, model), random.Random(seed))))


def expressed(graph: Graph, model: nn.Module) -> set[str]:
    """Kinds of groups in bundles that the class can hold, with weights where several are tied."""
    return {
        "+".join(sorted({f"{g.kind}*{w}" for g, w in zip(b.groups, b.weights, strict=True)}))
        for b in bundles(graph, model) if sound(b)
    }  # fmt: skip


HEADS = {"heads*1", "ffn*1"}
EXPECTED = {
    "llama": HEADS | {"query_group*1", "hidden*1", "head_dim*2+value_dim*1"},
    "gpt2": HEADS | {"head_dim*1+value_dim*1"},
    "bert": HEADS | {"head_dim*1+value_dim*1"},
    "vit": HEADS | {"head_dim*1+value_dim*1"},
    "cnn": {"channels*1"},
    "resnet_hf": {"channels*1"},
}


@pytest.mark.parametrize("name", EXPECTED)
def test_what_the_class_can_express_is_found_and_exact(name: str) -> None:
    model, graph = traced(name)
    assert EXPECTED[name] <= expressed(graph, model.module)
    for seed in range(2):
        plan = random_cut(graph, model.module, seed)
        for args, kwargs in ((model.args, model.kwargs), *model.alternatives):
            report = verify(model.module, plan, *args, graph=graph, **kwargs)
            assert report.module_error is not None and report.module_error <= 1e-10
            assert report.moved > 1e-3


def test_assert_sound_cuts_what_the_class_can_express() -> None:
    model, _ = traced("bert")
    found = assert_sound(model.module, *model.args, **model.kwargs, plans=3, form="module")
    assert found.plans > 0 and found.max_relative_error <= 1e-10 and found.moved > 1e-3


class OnlyApproximate(nn.Module):
    """Exact groups between sizes that stand in the code, and an approximate one that the class can express."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)
        self.wide, self.norm, self.narrow = nn.Linear(6, 12), nn.LayerNorm(12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        split = torch.relu(self.up(x)).reshape(-1, 2, 4).flatten(1)
        result: torch.Tensor = self.narrow(self.norm(self.wide(self.down(split).softmax(-1))))
        return result


def test_assert_sound_has_nothing_to_verify_where_the_class_expresses_only_approximate_cuts() -> None:
    torch.manual_seed(0)
    model, x = OnlyApproximate().eval(), torch.randn(5, 6)
    graph = trace(model, x)
    found = bundles(graph, model)
    assert {"approximate"} == {g.certificate for b in found if b.expressible for g in b.groups}
    assert {"exact"} <= {g.certificate for b in found if not b.expressible for g in b.groups}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert assert_sound(model, x, plans=2).moved > 0
        with pytest.raises(PlanError, match=r"no exact cut in its own class, only .* approximate") as caught:
            assert_sound(model, x, plans=2, form="module")
    assert "reshape(-1, 2, 4)" in str(caught.value)


def test_heads_equal_to_head_dim_are_not_confused() -> None:
    """In this model several attributes and terms have equal values; a wrong choice would pass on shapes."""
    model, graph = traced("gpt2_square")
    for kind in ("heads", "ffn"):
        plan = of_cuts(graph, {g.name: range(g.size - 1) for g in graph.groups if g.kind == kind})
        plan = settle(model.module, graph, plan)
        error = verify(model.module, plan, *model.args, graph=graph, **model.kwargs).module_error
        assert error is not None and error <= 1e-10


def test_a_cut_that_the_class_cannot_hold_is_refused_with_the_line() -> None:
    model, graph = traced("llama")
    plan = of_cuts(graph, {g.name: range(g.size - 1) for g in graph.groups if g.kind == "value_dim"})
    solution = solve(model.module, graph, plan)
    assert not solution.ok
    with pytest.raises(PlanError, match=r"modeling_llama\.py:\d+") as caught:
        settle(model.module, graph, plan)
    assert 'form="fx"' in str(caught.value)
    with pytest.raises(PlanError):
        construct(model.module, plan)  # a plan made by hand is settled first, so it cannot slip through


def test_a_stale_group_count_fails_the_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The count of query heads per key head is read only where keys are repeated; sdpa may never look."""
    model, graph = traced("llama")
    plan = of_cuts(graph, {g.name: range(g.size - 1) for g in graph.groups if g.kind == "query_group"})
    attributes = solve(model.module, graph, plan).attributes
    assert {name for changes in attributes.values() for name in changes} == {"num_key_value_groups"}
    monkeypatch.setattr(shearfx.attributes, "variables", lambda *_: [])
    assert not solve(model.module, graph, plan).ok


def test_attributes_mirror_parameters() -> None:
    model, graph = traced("resnet_hf")
    small = construct_module(model.module, random_cut(graph, model.module, 3))
    for module in small.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
        if isinstance(module, nn.BatchNorm2d):
            assert module.num_features == module.weight.shape[0]
        if isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_the_original_stays_and_everything_else_is_kept(name: str) -> None:
    model, graph = traced(name)
    module = copy.deepcopy(model.module)
    first = next(iter(dict(module.named_parameters())))
    module.get_parameter(first).requires_grad_(False)
    module.train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    plan = random_cut(graph, module, 1)
    small = construct_module(module, plan)
    assert type(small) is type(module) and small.training
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())
    shapes = plan.shapes_after()
    kept = {id(p) for p in module.parameters()} | {p.data_ptr() for p in module.parameters()}
    for key, parameter in small.named_parameters():
        assert tuple(parameter.shape) == shapes[key]
        assert parameter.requires_grad == (key != first)
        assert parameter.data_ptr() not in kept, "the smaller model shares memory with the full one"
    aliases = list(plan.aliases.values())
    for names in aliases:
        assert len({id(small.get_parameter(n)) for n in names}) == 1


def test_consuming_gives_the_same_and_frees_the_full_tensors() -> None:
    model, graph = traced("llama")
    plan = random_cut(graph, model.module, 1)
    kept = construct_module(model.module, plan)
    used = copy.deepcopy(model.module)
    parameters = list(used.parameters())
    small = construct_module(used, plan, consume=True)
    assert small is used
    assert all(a is b for a, b in zip(parameters, small.parameters(), strict=True))
    assert kept.state_dict().keys() == small.state_dict().keys()
    assert all(torch.equal(kept.state_dict()[k], v) for k, v in small.state_dict().items())
    sizes = {p.untyped_storage().nbytes() == p.numel() * p.element_size() for p in small.parameters()}
    assert sizes == {True}, "a cut tensor still holds the memory of the full one"


def test_construct_commutes_with_loading_a_state() -> None:
    model, graph = traced("bert")
    plan = random_cut(graph, model.module, 2)
    other = copy.deepcopy(model.module)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.copy_(torch.randn_like(parameter))
    small = construct_module(model.module, plan)
    small.load_state_dict(construct_module(other, plan).state_dict())
    again = construct_module(other, plan)
    assert all(torch.equal(again.state_dict()[k], v) for k, v in small.state_dict().items())


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_generation_gives_the_tokens_of_the_masked_model(name: str) -> None:
    model, graph = traced(name)
    module = copy.deepcopy(model.module).double()
    rnd = random.Random(5)
    cut = [g for g in graph.groups if g.kind in ("heads", "query_group", "ffn") and g.size > 1]
    plan = settle(module, graph, of_cuts(graph, {g.name: rnd.sample(range(g.size), g.size - 1) for g in cut}))
    small, masked = construct(module, plan, graph=graph), mask(module, plan)
    ids = torch.randint(3, 90, (3, 6), generator=torch.Generator().manual_seed(0))
    padding = torch.ones_like(ids)
    padding[1, :3] = 0
    seen = set()
    for cached in (True, False):
        for attention_mask in (torch.ones_like(ids), padding):
            common: dict[str, Any] = {
                "attention_mask": attention_mask, "use_cache": cached, "max_new_tokens": 8, "do_sample": False,
                "pad_token_id": 0, "suppress_tokens": [0, 1, 2],
            }  # fmt: skip
            one, two = masked.generate(ids, **common), small.generate(ids, **common)  # type: ignore[operator]
            assert torch.equal(one, two)
            seen.add(tuple(one.flatten().tolist()))
    assert len(seen) > 1, "the mask changed nothing, so the test shows little"


def test_plans_that_name_what_is_not_there_change_nothing() -> None:
    model, graph = traced("llama")
    plan = random_cut(graph, model.module, 1)
    for path, attribute in (("model.layers.0.self_attn", "forward"), ("no.such.module", "head_dim"), ("", "__class__")):
        bad = PruningPlan(**{**vars_of(plan), "attributes": {path: {attribute: 3}}})
        with pytest.raises(PlanError):
            construct_module(model.module, bad)


def vars_of(plan: PruningPlan) -> dict[str, Any]:
    return {name: getattr(plan, name) for name in plan.__dataclass_fields__}


class _Config:
    def __init__(self) -> None:
        self.heads, self.attention = 4, "sdpa"

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


class _Reader(nn.Module):
    """Reads the number of heads from a configuration that it shares."""

    def __init__(self, config: _Config) -> None:
        super().__init__()
        self.config = config
        self.qkv, self.out = nn.Linear(10, 3 * 12), nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.config.heads, -1).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(q, k, v, scale=0.5)
        out: torch.Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return out


class _TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = _Config()
        self.layers = nn.ModuleList(_Reader(self.config) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


def test_a_shared_config_is_overlaid_for_one_module_and_stays_live() -> None:
    torch.manual_seed(0)
    model = _TwoReaders().double().eval()
    x = torch.randn(3, 7, 10, dtype=torch.float64)
    graph = trace(model, x)
    heads = next(g for g in graph.groups if g.kind == "heads" and "layers.1" in g.name)
    plan = settle(model, graph, of_cuts(graph, {heads.name: [0, 2, 3]}))
    assert plan.attributes == {"layers.1": {"config.heads": 3}}
    small: Any = construct_module(model, plan)
    torch.testing.assert_close(small(x), mask(model, plan)(x), rtol=1e-10, atol=1e-12)
    assert (model.config.heads, small.config.heads, small.layers[0].config.heads, small.layers[1].config.heads) == (
        4,
        4,
        4,
        3,
    )
    small.config.attention = "eager"
    assert small.layers[1].config.attention == "eager" and model.config.attention == "sdpa"
    for again in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert again.layers[1].config.heads == 3
        again.config.attention = "other"
        assert again.layers[1].config.attention == "other" and small.layers[1].config.attention == "eager"
    assert isinstance(small.layers[1].config, _Config) and issubclass(type(small.layers[1].config), Overlay)


class _TableReader(nn.Module):
    """Weighs the hidden features by a table that it makes from their number."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 8
        self.up, self.down = nn.Linear(5, 8, bias=False), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down(self.up(x) * torch.arange(1, self.width + 1, dtype=x.dtype))
        return out


class FillsInPlace(nn.Module):
    """Writes into slices and rows of an empty tensor, as rotary embeddings and tables of positions are made."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.up(x))
        both = h.new_empty((h.shape[0], 3, h.shape[1]))
        both[:, 1:][:, 1] = h * h
        both[:, :2] = torch.stack([h, -h], 1)
        both[:, 0] += both[:, 2]
        out: torch.Tensor = self.down(both[:, 0] - both[:, 1])
        return out


def test_code_that_writes_in_place_is_followed() -> None:
    model, x = FillsInPlace(), torch.randn(4, 6)
    graph = trace(model, x)
    plan = settle(model, graph, of_cuts(graph, {g.name: range(5) for g in graph.groups if g.kind == "ffn"}))
    report = verify(model, plan, x, graph=graph)
    assert plan.achieved > 0.3 and report.module_error is not None and report.module_error <= 1e-10


def test_a_table_made_from_a_size_is_refused() -> None:
    """Equal shapes are not acceptance: with width 7 everything runs, on the wrong entries of the table."""
    torch.manual_seed(0)
    model = _TableReader().double()
    x = torch.randn(3, 5, dtype=torch.float64)
    graph = trace(model, x)
    group = next(g for g in graph.groups if g.size == 8)
    plan = of_cuts(graph, {group.name: [0, 1, 2, 4, 5, 6, 7]})
    solution = solve(model, graph, plan)
    assert not solution.ok and "arange" in solution.reason
    assert not any(b.expressible for b in bundles(graph, model))


def test_meta_models_are_solved_without_weights() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(hidden_size=60, intermediate_size=88, num_hidden_layers=6, num_attention_heads=6,
                         num_key_value_heads=3, head_dim=10, vocab_size=97)  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    graph = trace(model, input_ids=torch.ones((2, 9), dtype=torch.long))
    kept = {g.name: range(1) for g in graph.groups if g.kind == "query_group" and ".0." not in g.name}
    kept |= {g.name: range(3 + i) for i, g in enumerate(graph.groups) if g.kind == "ffn"}
    plan = settle(model, graph, of_cuts(graph, kept))
    cut = {c.name: len(c.kept) for c in plan.cuts if c.kind == "query_group"}
    assert len(plan.attributes) == len(cut) > 0
    assert all(changes == {"num_key_value_groups": 1} for changes in plan.attributes.values())
    small = construct_module(model, plan)
    assert all(p.is_meta for p in small.parameters())
