"""Routed experts as transformers runs them by default: one product over rows sorted by expert."""

from __future__ import annotations

import copy
import functools
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

import shearfx
from shearfx.comparison import compare, outputs_of
from shearfx.depth import drop_layers, find_layers
from shearfx.gating.gates import Gates
from shearfx.graph import Graph
from shearfx.precision import double_precision, doubled
from shearfx.routed_products import KERNEL_MULTIPLE, PRODUCT, PlainProducts
from shearfx.testing import random_cuts
from shearfx.testing.plans import plan_of

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.2, "use_cache": False, "num_experts_per_tok": 2,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "Mixtral": {"num_local_experts": 4},
    "Qwen2Moe": {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 16},
    "GptOss": {"num_local_experts": 4, "head_dim": 8},
}
IDS = torch.arange(12)[None] * 5 % 64
each = pytest.mark.parametrize("name", MODELS)
in_dtypes = pytest.mark.parametrize(
    ("name", "dtype"),
    [("Mixtral", torch.bfloat16), ("GptOss", torch.float32)]
    + [
        pytest.param(*some, marks=pytest.mark.slow)
        for some in (
            ("Mixtral", torch.float32),
            ("Qwen2Moe", torch.float32),
            ("Qwen2Moe", torch.bfloat16),
            ("GptOss", torch.bfloat16),
        )
    ],
)


@functools.cache
def build(name: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Graph]:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES, **MODELS[name])
    model = getattr(transformers, f"{name}ForCausalLM")._from_config(config, dtype=dtype).eval()
    assert model.config._experts_implementation == "grouped_mm", "transformers changed its default"
    return model, shearfx.trace(model, input_ids=IDS)


@in_dtypes
def test_experts_are_cut_and_the_model_runs_as_it_is_loaded(name: str, dtype: torch.dtype, tmp_path: Any) -> None:
    """In the dtype that it is in, on the kernel, which refuses rows of most lengths."""
    model, graph = build(name, dtype)
    plan = shearfx.plan(graph, ratio=0.3, saliency="random", model=model, kinds=("ffn",), scope="uniform")
    widths = {cut.name: len(cut.kept) for cut in plan.cuts if ".experts." in cut.name}
    assert widths and all(width % KERNEL_MULTIPLE == 0 for width in widths.values())
    assert shearfx.verify(model, plan, input_ids=IDS, graph=graph).max_relative_error < 1e-10
    assert shearfx.verify(model, plan, input_ids=IDS[:, :10].reshape(2, 5)).max_relative_error < 1e-10
    shearfx.save(shearfx.construct(model, plan), plan, tmp_path / "small")
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small", dtype="auto")
    assert plain.dtype == dtype and plain.config._experts_implementation == "grouped_mm"
    masked = shearfx.mask(model, plan)
    with torch.no_grad():
        found, wanted = plain(input_ids=IDS).logits, masked(input_ids=IDS).logits
    assert float((found - wanted).abs().max() / wanted.abs().max()) < (1e-5 if dtype == torch.float32 else 0.03)


@each
def test_groups_are_those_of_other_ways_to_run_experts(name: str) -> None:
    def seen(graph: Graph) -> dict[str, Any]:
        return {g.name: (g.kind, g.size, g.certificate, g.params) for g in graph.groups}

    model, graph = build(name)
    other = copy.deepcopy(model)
    other.set_experts_implementation("batched_mm")
    assert seen(graph) == seen(shearfx.trace(other, input_ids=IDS))
    assert any(node.target is PRODUCT for node in graph.records)


@each
@pytest.mark.parametrize("seed", range(2))
def test_gates_shut_what_masks_zero(name: str, seed: int) -> None:
    model, graph = build(name)
    model = copy.deepcopy(model).double()
    plan = plan_of(graph, random_cuts(graph, random.Random(seed)))
    assert plan.cuts
    masked = outputs_of(shearfx.mask(model, plan), {"input_ids": IDS}, True)
    with Gates(graph, model) as gates, double_precision():
        gates.close(plan)
        assert compare(masked, outputs_of(model, {"input_ids": IDS}, True), "gated") <= 1e-10


@in_dtypes
def test_layers_can_go(name: str, dtype: torch.dtype) -> None:
    model, graph = build(name, dtype)
    small: nn.Module = drop_layers(model, graph, [find_layers(graph).layers[1].path])
    with torch.no_grad():
        assert small(input_ids=IDS).logits.isfinite().all()


def test_a_model_turned_into_another_dtype_loses_layers_too() -> None:
    """``model.to`` turns rotary frequencies too, which a class works out anew in float32."""
    sizes = {name: value for name, value in SIZES.items() if name != "num_experts_per_tok"}
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval().to(torch.bfloat16)
    small: Any = drop_layers(llama, shearfx.trace(llama, input_ids=IDS), ["model.layers.1"])
    assert small.model.rotary_emb.inv_freq.dtype == torch.bfloat16 == llama.model.rotary_emb.inv_freq.dtype


def test_the_product_is_what_the_kernel_computes() -> None:
    rows, experts, offsets = torch.randn(6, 8), torch.randn(3, 8, 16), torch.tensor([2, 2, 6], dtype=torch.int32)
    wanted = F.grouped_mm(rows, experts, offs=offsets)
    with PlainProducts():
        torch.testing.assert_close(F.grouped_mm(rows, experts, offs=offsets), wanted)
        odd = F.grouped_mm(rows[:, :7].double(), experts[:, :7, :5].double(), offs=offsets)
    torch.testing.assert_close(odd[:2], rows[:2, :7].double() @ experts[0, :7, :5].double())
    torch.testing.assert_close(odd[2:], rows[2:, :7].double() @ experts[2, :7, :5].double())


def test_what_is_no_product_of_rows_is_left_to_the_kernel() -> None:
    """Two stacks of matrices, and sums over groups of rows."""
    with PlainProducts():
        left, right = torch.randn(3, 8, 8), torch.randn(3, 8, 8)
        torch.testing.assert_close(F.grouped_mm(left, right), left @ right)


class Rows(nn.Module):
    """Routed rows that are parameters: how many go to which expert is data."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.experts = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(3, 8, 16))

    def forward(self, offsets: Tensor) -> Tensor:
        return F.grouped_mm(self.rows, self.experts, offs=offsets).sum()


def test_rows_and_experts_stay() -> None:
    model = Rows()
    graph = shearfx.trace(model, torch.tensor([2, 2, 6], dtype=torch.int32))
    assert {group.size for group in graph.groups} == {8, 16}
    assert doubled(model) is not model
