"""Adapters on fused experts and routers: what they add is what is merged, on whatever architecture."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from shearfx.adapters import base_name
from shearfx.config import ShearConfig
from shearfx.live_adapters import adapters_of, experts_of
from shearfx.pipeline.adapting import adapting
from shearfx.training.merging import merge_into
from tests import zoo

MIXTURES = ["mixtral", "qwen2_moe", "olmoe", "granitemoe", "gpt_oss"]


def learnt(model: nn.Module, **more: Any) -> Any:
    """The model with adapters on all experts, which have learnt something."""
    names = sorted({".".join(name.split(".")[-2:]) for name in experts_of(model)})
    settings = LoraConfig(r=3, lora_alpha=5, target_modules="all-linear", target_parameters=names or None, **more)
    wrapped: Any = get_peft_model(model, settings).eval()
    torch.manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    return wrapped


@pytest.mark.parametrize("name", MIXTURES)
@torch.no_grad()
def test_merged_is_adapted(name: str) -> None:
    model = zoo.get(name).build().to(torch.float64)
    target, before = copy.deepcopy(model.module), model.module(*model.args, **model.kwargs).logits
    wrapped = learnt(model.module)
    assert {base_name(one.name) for one in adapters_of(wrapped).values()} >= set(experts_of(target)) != set()
    adapted = wrapped(*model.args, **model.kwargs).logits
    merge_into(target, adapters_of(wrapped))
    merged = target(*model.args, **model.kwargs).logits
    assert (merged - adapted).abs().max() <= 1e-10 * adapted.abs().max()
    assert (adapted - before).abs().max() > 1e-3 * before.abs().max()


def test_a_router_that_gives_more_than_what_comes_out_is_left_alone() -> None:
    model = zoo.get("phimoe").build()
    with adapting(ShearConfig(pretrain=("a.txt",), rank=2), model.module) as wrapped:
        assert wrapped(*model.args, **model.kwargs).logits.isfinite().all()
        adapted = {name for name, _ in wrapped.named_parameters() if "lora_A" in name}
    assert any("experts" in name for name in adapted)
    assert not any("router" in name for name in adapted)
