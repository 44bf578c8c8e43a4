"""LHSPG on fused experts that have adapters: what a period leaves is what its gates, or its weights, gave."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig, PeftModel

import shearfx
from shearfx.adapter_cuts import adapter_cuts
from shearfx.errors import CheckpointError
from shearfx.optim import LHSPG
from shearfx.precision import double_precision
from shearfx.pruning_plan import PruningPlan
from shearfx.selection import Tied
from tests import zoo
from tests.test_live_adapters import learnt

BATCH = {"input_ids": torch.arange(20).reshape(4, 5) % 7}


def test_an_adapters_files_that_do_not_say_what_they_adapt_are_refused() -> None:
    plan = SimpleNamespace(shapes={"mlp.experts.down_proj": (2, 4, 3)}, kept={})
    config = LoraConfig(r=2, target_parameters=["experts.down_proj"])
    with pytest.raises(CheckpointError, match=r"of a parameter of no layer(.|\n)*construct\('keep'\)"):
        adapter_cuts(cast(PruningPlan, plan), {"mlp.experts.lora_A.weight": (4, 3)}, config)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    with double_precision():
        found: torch.Tensor = model(**BATCH).logits
    return found


# of [experts, out, in] and of [experts, in, out] with biases
@pytest.mark.parametrize("name", ["mixtral", pytest.param("gpt_oss", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("carrier", "merge"), [("gates", "never"), ("weights", "period")])
def test_the_model_of_each_period_computes_what_the_live_one_does(name: str, carrier: Any, merge: Any) -> None:
    built = zoo.get(name).build()
    graph = shearfx.trace(built.module, *built.args, **built.kwargs)
    model = learnt(built.to(torch.float64).module)
    groups = [g for g in graph.groups if g.kind == "ffn"]
    smaller: list[tuple[int, Any, torch.Tensor]] = []

    def keep(optimizer: LHSPG, period: int) -> None:
        gone = sum(map(len, optimizer.redundant.values()))
        for how in ("merge", "keep"):
            smaller.append((gone, optimizer.construct(how), logits(model)))

    optimizer = LHSPG(
        graph, model, tied=[Tied((g,), (1,)) for g in groups], target=2 * sum(g.size // 3 for g in groups) // 2,
        unit="structures", saliency="loraprune", carrier=carrier, merge=merge, warmup=1, periods=2, period_length=2,
        on_period=keep, lr=1e-2, form="module",
    )  # fmt: skip
    for _ in range(optimizer.schedule.steps):
        optimizer.zero_grad()
        with double_precision():
            model(**BATCH, labels=BATCH["input_ids"]).loss.backward()
        optimizer.step()
    assert [gone for gone, _, _ in smaller] == sorted(gone for gone, _, _ in smaller) and smaller[-1][0] > smaller[0][0]
    for number, (_, small, live) in enumerate(smaller):
        assert isinstance(small, PeftModel) == bool(number % 2)
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
        assert (logits(small) - live).abs().max() <= 1e-10 * live.abs().max()
    # frozen experts are what they were, or without what fell
    fell = optimizer.redundant
    for group in groups:
        (member,) = [m for m in group.members if m.name.endswith("down_proj")]
        weight = built.module.get_parameter(member.name.replace("experts.", "experts.base_layer.base_layer."))
        of = weight.index_select(member.dim, torch.tensor(fell.get(group.name, [])).long())
        assert of.any() if carrier == "gates" else not of.any()
