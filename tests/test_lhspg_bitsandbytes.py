"""LHSPG on bases that bitsandbytes quantised, on the CPU: the layers themselves, not likenesses of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import shearfx
from shearfx.errors import PlanError
from shearfx.low_rank import plain_weight
from shearfx.optim import LHSPG
from tests.tiny_runs import tiny_llama

IDS = torch.arange(32).reshape(2, 16) * 7 % 264
SIZES = {"hidden_size": 64, "intermediate_size": 128}
"""Blocks of bitsandbytes' four bits are 64 numbers long."""


@pytest.fixture(scope="module", autouse=True)
def bnb() -> Any:
    return pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")


def packed(model: nn.Module, bnb: Any) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Weights as stored, and as they are read."""
    return {
        name: (cast(torch.Tensor, module.weight).clone(), plain_weight(module))
        for name, module in model.named_modules() if isinstance(module, (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt))
    }  # fmt: skip


@pytest.mark.parametrize("epsilon", [float("-inf"), 0.6], ids=["no half-space", "half-space"])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_base_fades_by_gates_and_stays(bits: int, epsilon: float, bnb: Any, tmp_path: Path) -> None:
    full = tiny_llama(**SIZES)
    full.save_pretrained(tmp_path)
    graph = shearfx.trace(full, input_ids=IDS, use_cache=False)
    config = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    base = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config, device_map="cpu")
    before = packed(base, bnb)
    assert len(before) == 14
    torch.manual_seed(0)
    model: Any = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear")).train()
    options: dict[str, Any] = {"target": 9, "unit": "structures", "warmup": 1, "periods": 2, "period_length": 3,
                               "form": "fx", "kinds": ("ffn",), "lr": 1e-2, "half_space_eps": epsilon}  # fmt: skip
    with pytest.raises(PlanError, match="quantised base"):
        LHSPG(graph, model, merge="end", **options)
    optimizer = LHSPG(graph, model, merge="never", **options)
    losses = []
    for _ in range(7):
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] and sum(map(len, optimizer.zeros.values())) == 9
    assert sum(cut.size - len(cut.kept) for cut in optimizer.plan().cuts) == 9
    optimizer.detach()
    after = packed(base, bnb)
    assert before.keys() == {name.replace(".base_layer", "") for name in after}
    for name, (stored, says) in after.items():
        old_stored, old_says = before[name.replace(".base_layer", "")]
        assert torch.equal(stored, old_stored) and torch.equal(says, old_says), name


def test_a_weight_packed_for_inference_is_not_misread(tmp_path: Path) -> None:
    tiny_llama(**SIZES).save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_4bit=True)
    base = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config, device_map="cpu").eval()
    layer = base.model.layers[0].mlp.down_proj
    before = plain_weight(layer)
    with torch.no_grad():
        base(input_ids=IDS)
    if getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
        with pytest.raises(PlanError, match=r"call model\.train\(\) before the model runs"):
            plain_weight(layer)
    else:  # a processor without bfloat16
        assert torch.equal(plain_weight(layer), before)
