"""Wanda-sp, FLAP and SparseGPT where no module reads: experts fused into one weight, parameters multiplied as they are;
and a stream behind norms. Each score against the definition, what is read recorded by a forward pass of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

import shearfx
from shearfx.comparison import relative_error
from shearfx.errors import PlanError
from shearfx.gating.gates import Gates
from shearfx.graph import Graph, Group
from shearfx.precision import double_precision
from shearfx.pruning_plan import of_cuts
from shearfx.saliency import SparseGpt, find
from shearfx.tracing import Traced, by_name, trace_call
from tests import zoo
from tests.rivals import case
from tests.test_saliency import state_of
from tests.tiny_models import learn_something

Definition = Callable[[list[tuple[Tensor, Tensor]]], Tensor]
"""From what each weight reads, ``[rows, features]``, and the weight, ``[features, outputs]``, to a score for each."""


def wanda(read: list[tuple[Tensor, Tensor]]) -> Tensor:
    return torch.stack([w.abs().sum(1) * x.norm(dim=0) for x, w in read]).sum(0)


def flap(read: list[tuple[Tensor, Tensor]]) -> Tensor:
    metric = torch.stack([x.var(dim=0) * w.square().sum(1) for x, w in read])
    return ((metric - metric.mean()) / metric.std()).mean(0)


def sparsegpt(read: list[tuple[Tensor, Tensor]]) -> Tensor:
    total = torch.zeros(len(read[0][1]), dtype=torch.float64)
    for x, w in read:
        h = (x.T @ x).double()
        inverse = torch.linalg.inv(h + 1e-2 * h.diagonal().mean() * torch.eye(len(h)))
        total += w.square().sum(1) / inverse.diagonal()
    return total


DEFINITIONS = {"wanda_sp": wanda, "flap": flap, "sparsegpt": sparsegpt}
rivals = pytest.mark.parametrize("rival", DEFINITIONS)


def assert_is(rival: str, score: Tensor, read: list[tuple[Tensor, Tensor]]) -> None:
    # sparsegpt sums its moments up in float32
    rtol = 1e-4 if rival == "sparsegpt" else 1e-9
    torch.testing.assert_close(score, DEFINITIONS[rival](read), rtol=rtol, atol=1e-12)


# -- experts fused into one weight -----------------------------------------------------------------------


class Routed(nn.Module):
    """Mixtral's experts, as transformers 5 has them, between two linear layers."""

    def __init__(self, way: str) -> None:
        super().__init__()
        config = MixtralConfig(hidden_size=8, intermediate_size=16, num_local_experts=4, num_experts_per_tok=2)
        config._experts_implementation = way
        self.inp, self.moe, self.out = nn.Linear(5, 8), MixtralSparseMoeBlock(config), nn.Linear(8, 3)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(self.moe(torch.tanh(self.inp(x))))
        return found


def routed(way: str) -> tuple[Routed, Graph, list[Tensor]]:
    torch.manual_seed(0)
    model = Routed(way).double().eval().requires_grad_(False)
    x = torch.randn(5, 11, 5, dtype=torch.float64)
    with double_precision():
        return model, shearfx.trace(model, x[:2]), [x[:2], x[2:]]


@rivals
@pytest.mark.parametrize("way", ["grouped_mm", "batched_mm"])
def test_each_expert_counts_by_the_tokens_that_come_to_it(way: str, rival: str) -> None:
    model, graph, data = routed(way)
    with double_precision():
        scores = find(rival).score(graph, model, data=data)
        x = torch.tanh(model.inp(torch.cat([d.flatten(0, 1) for d in data])))
        _, _, chosen = model.moe.gate(x)
    experts: Any = model.moe.experts
    into = {e: x[(chosen == e).any(1)] for e in range(4)}
    within = {}
    for e, rows in into.items():
        gate, up = (rows @ experts.gate_up_proj[e].T).chunk(2, -1)
        within[e] = silu(gate) * up
    assert len({len(rows) for rows in into.values()}) > 1, "experts get different numbers of tokens"
    (ffn,) = (g for g in graph.groups if g.size == 16)
    assert_is(rival, scores[ffn.name], [(within[e], experts.down_proj[e].T) for e in range(4)])
    (stream,) = (g for g in graph.groups if any(m.name == "inp.bias" for m in g.members))
    of_experts = [(into[e], experts.gate_up_proj[e].T) for e in range(4)]
    gate = [(x, model.moe.gate.weight.T)]
    wanted = DEFINITIONS[rival](of_experts) + DEFINITIONS[rival](gate)
    if rival == "flap":
        wanted = wanted / 2
    torch.testing.assert_close(scores[stream.name], wanted, rtol=1e-4 if rival == "sparsegpt" else 1e-9, atol=1e-12)


def test_an_expert_that_no_token_comes_to_counts_for_nothing() -> None:
    model, graph, data = routed("grouped_mm")
    token = data[0][:1, :1]
    with double_precision():
        scores = find("wanda_sp").score(graph, model, data=[token])
        x = torch.tanh(model.inp(token[0]))
        _, _, chosen = model.moe.gate(x)
    experts: Any = model.moe.experts
    read = []
    for e in chosen[0].tolist():
        gate, up = (x @ experts.gate_up_proj[e].T).chunk(2, -1)
        read.append((silu(gate) * up, experts.down_proj[e].T))
    (ffn,) = (g for g in graph.groups if g.size == 16)
    assert_is("wanda_sp", scores[ffn.name], read)


# -- parameters that are multiplied as they are ----------------------------------------------------------


class Raw(nn.Module):
    """Matrix products of activations with parameters in many ways; each hidden width is read by one of them."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.up = nn.Parameter(torch.randn(5, 6))
        self.down = nn.Parameter(torch.randn(6, 4))
        self.heads = nn.Parameter(torch.randn(3, 6, 2))
        self.linear = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(x @ self.up)
        if self.way == "matmul":
            return h @ self.down
        if self.way == "einsum":
            return torch.einsum("nti,hio->nhto", h, self.heads)
        if self.way == "turned and scaled":
            return torch.nn.functional.linear(h, 2 * self.down.T.contiguous())
        if self.way == "stretched":
            return torch.bmm(h, self.down[None].expand(len(h), -1, -1))
        if self.way == "a matrix for each head":
            return torch.matmul(h[:, None], self.heads)
        if self.way == "joined":
            return h @ torch.cat([self.down, self.heads[0]], 1)
        return torch.nn.functional.linear(h, self.linear.weight)  # "of a module that is not called"

    def read(self) -> Tensor:
        """What ``h`` is multiplied with, ``[6, outputs]``."""
        if self.way in ("einsum", "a matrix for each head"):
            return self.heads.permute(1, 0, 2).flatten(1)
        if self.way == "of a module":
            return self.linear.weight.T
        down = 2 * self.down if self.way == "turned and scaled" else self.down
        return torch.cat([down, self.heads[0]], 1) if self.way == "joined" else down


WAYS = ["matmul", "einsum", "turned and scaled", "stretched", "a matrix for each head", "joined", "of a module"]


def raw(way: str, dtype: torch.dtype = torch.float64) -> tuple[Raw, Graph, Group, list[Tensor]]:
    torch.manual_seed(0)
    model, x = Raw(way).to(dtype).eval(), torch.randn(5, 7, 5, dtype=dtype)
    graph = shearfx.trace(model, x[:2])
    (group,) = (g for g in graph.groups if any(m.name == "up" for m in g.members))
    return model, graph, group, [x[:2], x[2:]]


@rivals
@pytest.mark.parametrize("way", WAYS)
def test_a_parameter_multiplied_as_it_is_reads_like_a_layer(way: str, rival: str) -> None:
    model, graph, group, data = raw(way)
    scores = find(rival).score(graph, model, groups=[group], data=iter(data))
    rows = torch.tanh(torch.cat(data).flatten(0, 1) @ model.up).detach()
    assert_is(rival, scores[group.name], [(rows, model.read().detach())])


class PerHead(nn.Module):
    """Each head of an activation has a matrix of its own: heads stay apart, what is summed over is within one."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.heads = nn.Linear(5, 12), nn.Parameter(torch.randn(3, 4, 2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nhi,hio->nho", torch.tanh(self.up(x)).unflatten(-1, (3, 4)), self.heads)


@rivals
def test_matrices_of_a_batch_each_read_their_own(rival: str) -> None:
    torch.manual_seed(0)
    model, x = PerHead().double().eval(), torch.randn(9, 5, dtype=torch.float64)
    graph = shearfx.trace(model, x)
    (group,) = (g for g in graph.groups if g.size == 4)
    scores = find(rival).score(graph, model, groups=[group], data=[x])
    h = torch.tanh(model.up(x)).unflatten(-1, (3, 4)).detach()
    assert_is(rival, scores[group.name], [(h[:, i], model.heads[i].detach()) for i in range(3)])


# -- a stream behind norms -------------------------------------------------------------------------------


@rivals
def test_a_stream_is_read_as_the_norms_leave_it(rival: str) -> None:
    model, graph, data = case("llama")
    (stream,) = (g for g in graph.groups if g.kind == "hidden")
    scores = find(rival).score(graph, model, groups=[stream], data=data)
    layers = [m for name, m in model.named_modules()
              if name.endswith(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head"))]  # fmt: skip
    inputs: dict[nn.Module, list[Tensor]] = {layer: [] for layer in layers}
    hooks = [layer.register_forward_pre_hook(lambda m, args: inputs[m].append(args[0])) for layer in layers]
    with torch.no_grad():
        for batch in data:
            model(**batch)
    for hook in hooks:
        hook.remove()
    found = torch.stack([
        DEFINITIONS[rival]([(torch.cat(inputs[layer]).flatten(0, 1), cast(Tensor, layer.weight).detach().T)])
        for layer in layers
    ])  # fmt: skip
    wanted = found.mean(0) if rival == "flap" else found.sum(0)
    torch.testing.assert_close(scores[stream.name], wanted, rtol=1e-4 if rival == "sparsegpt" else 1e-9, atol=1e-12)


# -- going through a call on the graph -------------------------------------------------------------------


class TwoWays(nn.Module):
    """Can be called with a second argument, which the traced call may lack."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, 6), nn.Parameter(torch.randn(6, 4))

    def forward(self, x: Tensor, scale: Tensor | None = None, twice: bool = False) -> Tensor:
        h = torch.tanh(self.up(x))
        h = h if scale is None else h * scale
        return (2 * h if twice else h) @ self.down


@rivals
def test_calls_of_another_kind_than_the_traced_one_are_traced(rival: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = TwoWays().double().eval(), torch.randn(4, 5, dtype=torch.float64)
    scale = torch.rand(4, 1, dtype=torch.float64) + 0.5
    graph = shearfx.trace(model, x)
    (group,) = graph.groups
    traced: list[dict[str, Any]] = []

    def trace(model: nn.Module, args: Any, kwargs: dict[str, Any]) -> Traced:
        traced.append(kwargs)
        return trace_call(model, args, kwargs)

    monkeypatch.setattr("shearfx.contractions.replaying.trace_call", trace)
    data = [{"x": x[:2]}, {"x": x[2:], "scale": scale[2:]}, {"x": x, "scale": scale}, {"x": x, "twice": True}]
    scores = find(rival).score(graph, model, data=data)
    assert len(traced) == 2, "a kind of call is traced once, the traced one not at all"
    h = torch.tanh(model.up(x)).detach()
    rows = torch.cat([h[:2], h[2:] * scale[2:], h * scale, 2 * h])
    assert_is(rival, scores[group.name], [(rows, model.down.detach())])


def test_a_graph_of_another_dtype_is_not_gone_through() -> None:
    model, graph, group, data = raw("matmul", torch.float32)
    wide = copy.deepcopy(model).double()
    score = find("wanda_sp").score(graph, wide, groups=[group], data=[d.double() for d in data])[group.name]
    rows = torch.tanh(torch.cat(data).double().flatten(0, 1) @ wide.up).detach()
    torch.testing.assert_close(score, wanda([(rows, wide.down.detach())]), rtol=1e-9, atol=0)


@rivals
def test_the_model_is_left_as_it_was(rival: str) -> None:
    model, graph, group, data = raw("einsum", torch.float32)
    model.train()
    model.down.grad = torch.ones_like(model.down)
    before, hooks = list(state_of(model)), len(model._forward_pre_hooks)
    find(rival).score(graph, model, groups=[group], data=data)
    assert list(state_of(model)) == before and len(model._forward_pre_hooks) == hooks


@rivals
def test_what_stands_in_the_way_is_said(rival: str) -> None:
    model, graph, group, data = raw("matmul")

    def score(model: nn.Module, **more: Any) -> None:
        find(rival).score(graph, model, groups=[group], data=data, **more)

    with pytest.raises(PlanError, match="never calls the model"):
        score(model, loss=lambda model, batch: (batch @ model.up).sum())
    with pytest.raises(PlanError, match="down is on the meta device"):
        score(copy.deepcopy(model).to("meta"))
    with pytest.raises(PlanError, match=r"calls the model by x(?s:.*)trace it by such a call"):
        score(Undecided().double())


class Undecided(Raw):
    """Decides on numbers, so that it cannot be traced."""

    def __init__(self) -> None:
        super().__init__("matmul")
        self.more = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if bool(x.sum() > 0) else -x)


def test_a_weight_of_another_weight_is_none_that_reads() -> None:
    """A low-rank weight that is multiplied out first: its rank is read by no activation."""

    class LowRank(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(3, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x @ (self.b @ self.a).T

    model, x = LowRank().eval(), torch.randn(2, 6)
    graph = shearfx.trace(model, x)
    assert [g.size for g in graph.groups] == [4]
    with pytest.raises(PlanError, match=r"does not see 1 groups(?s:.*)exclude="):
        find("wanda_sp").score(graph, model, data=[x])


def test_part_by_part_within_a_memory_gives_the_same() -> None:
    model, graph, data = routed("grouped_mm")
    with double_precision():
        whole = SparseGpt(memory=None).score(graph, model, data=data)
        parts = SparseGpt(memory=1).score(graph, model, data=iter(data))
    assert all(torch.equal(whole[name], score) for name, score in parts.items())


@rivals
def test_a_model_with_adapters_is_gone_through_with_them_by_the_graph_of_its_base(rival: str) -> None:
    torch.manual_seed(0)
    base, x = TwoWays().double().eval(), torch.randn(9, 5, dtype=torch.float64)
    graph = shearfx.trace(base, x)
    (group,) = graph.groups
    config = LoraConfig(r=2, target_modules=["up"])
    model = learn_something(get_peft_model(cast(Any, copy.deepcopy(base)), config, autocast_adapter_dtype=False))
    scores = find(rival).score(graph, model, data=[{"x": x[:4]}, {"x": x[4:]}])
    merged: Any = copy.deepcopy(model).merge_and_unload()  # type: ignore[operator]
    assert not torch.equal(merged.up.weight, base.up.weight)
    assert_is(rival, scores[group.name], [(torch.tanh(merged.up(x)).detach(), base.down.detach())])


@pytest.mark.parametrize("saliency", ["wanda_sp", "flap", "sparsegpt"])
@pytest.mark.parametrize("name", ["mixtral", pytest.param("granitemoe", marks=pytest.mark.slow)])
def test_what_a_cut_before_shut_is_shut_on_the_graph_too(name: str, saliency: str) -> None:
    """A second cut is scored on what the first one left: hooks on modules shut heads, and experts read what comes of
    them (once, the graph was gone through as if nothing were shut)."""
    built = zoo.get(name).build().to(torch.float64)
    call = by_name(built.module, built.args, built.kwargs)
    graph = shearfx.trace(built.module, **call)
    groups = [g for g in graph.groups if g.certificate == "exact" and g.kind in ("ffn", "heads")]
    groups = [g for g in groups if g.name in Gates(graph, built.module, groups).places.inputs_only]
    plan = of_cuts(graph, {g.name: range(1, g.size) for g in groups})
    wanted = find(saliency).score(graph, shearfx.mask(built.module, plan), groups=groups, data=[call])
    with Gates(graph, built.module, groups) as gates:
        gates.close(plan)
        found = find(saliency).score(graph, built.module, groups=groups, data=[call])
    for group in groups:
        assert relative_error([found[group.name][1:]], [wanted[group.name][1:]]) <= 1e-10
