"""Gates in weights that adapters are added to whenever their module runs: fused experts, routers."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from torch import nn

import shearfx
from shearfx.errors import PlanError
from shearfx.gating.gates import Gates
from shearfx.graph import Graph
from shearfx.live_adapters import adapters_of
from shearfx.precision import double_precision
from shearfx.pruning_plan import of_cuts
from shearfx.saliency.fisher import Fisher, collecting
from shearfx.training.merging import merge_into
from tests import zoo
from tests.test_live_adapters import learnt

# of torch's grouped product and of picked matrices; [experts, out, in] and [experts, in, out]
MIXTURES = ["mixtral", "gpt_oss", *(pytest.param(n, marks=pytest.mark.slow) for n in ("qwen2_moe", "granitemoe"))]
each = pytest.mark.parametrize("name", MIXTURES)


def setting(name: str) -> tuple[nn.Module, Any, Graph, dict[str, torch.Tensor]]:
    """The model merged and as PEFT wraps it, its analysis and a batch."""
    built = zoo.get(name).build()
    graph = shearfx.trace(built.module, *built.args, **built.kwargs)
    merged = copy.deepcopy(built.to(torch.float64).module)
    wrapped = learnt(built.module)
    merge_into(merged, adapters_of(wrapped))
    return merged.eval(), wrapped, graph, {"input_ids": torch.arange(20).reshape(4, 5) % 7}


@torch.no_grad()
def logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with double_precision():
        found: torch.Tensor = model(**batch).logits
    return found


@each
def test_shut_is_what_masking_the_merged_model_is(name: str) -> None:
    merged, wrapped, graph, batch = setting(name)
    whole, base = logits(wrapped, batch), copy.deepcopy(wrapped).unload()
    groups = [g for g in graph.groups if g.kind == "ffn"]
    draw = random.Random(0)
    plan = of_cuts(graph, {g.name: sorted(draw.sample(range(g.size), g.size // 2)) for g in groups})
    gates = Gates(graph, wrapped, groups)
    assert any(place.formed for place in gates.places.weights)
    expected = logits(shearfx.mask(merged, plan), batch)
    with gates:
        gates.close(plan)
        found = logits(wrapped, batch)
        with wrapped.disable_adapter():
            without = logits(wrapped, batch)
        with gates.opened():
            assert torch.equal(logits(wrapped, batch), whole)
    assert (found - expected).abs().max() <= 1e-10 * expected.abs().max()
    masked = logits(shearfx.mask(base, plan), batch)
    assert (without - masked).abs().max() <= 1e-10 * masked.abs().max()
    assert (found - whole).abs().max() > 1e-3 * whole.abs().max()
    assert torch.equal(logits(wrapped, batch), whole)


def test_an_error_inside_a_module_leaves_nothing_on_it() -> None:
    _, wrapped, graph, batch = setting("mixtral")
    whole = logits(wrapped, batch)
    inner = wrapped.get_submodule("base_model.model.model.layers.1.mlp.experts").get_base_layer()

    def stop(*_: Any) -> None:
        raise RuntimeError("stopped")

    with Gates(graph, wrapped, [g for g in graph.groups if g.kind == "ffn"]):
        hook = inner.act_fn.register_forward_hook(stop)
        with pytest.raises(RuntimeError, match="stopped"):
            wrapped(**batch)
        hook.remove()
        assert torch.equal(logits(wrapped, batch), whole)
    assert not hasattr(inner, "parametrizations")


@each
def test_derivatives_are_those_of_the_merged_model(name: str) -> None:
    merged, wrapped, graph, batch = setting(name)
    groups = [g for g in graph.groups if g.kind == "ffn"]
    with double_precision():
        expected = Fisher().score(graph, merged, groups=groups, data=[batch])
        scores = Fisher().score(graph, wrapped, groups=groups, data=[batch])
    # and as training brings them, with nothing but adapters to train
    with Gates(graph, wrapped, groups) as gates, collecting(gates, wrapped) as collector, double_precision():
        wrapped(**batch, labels=batch["input_ids"]).loss.backward()
        collector.flush()
    assert any(parameter.grad is not None for name, parameter in wrapped.named_parameters() if "experts" in name)
    for group, score in expected.items():
        assert float(score.abs().max()) > 0
        torch.testing.assert_close(scores[group], score, rtol=1e-9, atol=0)
        torch.testing.assert_close(collector.square[group] / collector.sequences, score, rtol=1e-9, atol=0)


def test_a_weight_that_is_read_elsewhere_is_refused() -> None:
    class Elsewhere(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.inner = nn.Linear(6, 8), nn.Module()
            self.inner.down = nn.Parameter(torch.randn(8, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            down: Any = self.inner.down
            found: torch.Tensor = torch.relu(self.up(x)) @ down
            return found

    from peft import LoraConfig, get_peft_model

    model, x = Elsewhere().eval(), torch.randn(2, 6)
    graph = shearfx.trace(model, x)
    wrapped: Any = get_peft_model(model, LoraConfig(r=2, target_modules=[], target_parameters=["inner.down"]))
    with pytest.raises(PlanError, match="elsewhere"):
        Gates(graph, wrapped, [g for g in graph.groups if g.size == 8])
