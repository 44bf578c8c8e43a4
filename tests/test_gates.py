"""Gates on a live model: shut, it computes what the masked model does; open or taken off, it is what it was."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

import shearfx
from shearfx.gating.gates import Gates
from shearfx.precision import double_precision
from shearfx.testing import prunable, random_cuts
from shearfx.testing.plans import plan_of
from tests import zoo
from tests.zoo import Entry, float_outputs

QUICK = {
    "llama", "gpt2", "bert", "mamba", "resnet_hf", "unet", "moe_dense", "mixtral", "shared_twice", "vit", "t5",
    "lstm", "gru_bidirectional", "tied_autoencoder", "squeeze_excite",  # once gated at some of their readers only
}  # fmt: skip
ENTRIES = [
    pytest.param(entry, id=entry.name, marks=() if entry.name in QUICK else pytest.mark.slow)
    for entry in zoo.entries()
    if entry.exports
]


def outputs(model: nn.Module, call: zoo.Call) -> list[torch.Tensor]:
    with torch.no_grad():
        return [t.clone() for t in float_outputs(model(*call[0], **call[1]))]


def furthest(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    pairs = zip(found, wanted, strict=True)
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-300)) for a, b in pairs)


@pytest.mark.parametrize("entry", ENTRIES)
def test_shut_is_masked_and_taken_off_is_untouched(entry: Entry) -> None:
    built = entry.build()
    graph = shearfx.trace(built.module, *built.args, **built.kwargs)
    if not prunable(graph):
        pytest.skip("nothing is prunable")
    model = built.to(torch.float64)
    before = {name: t.clone() for name, t in model.module.state_dict().items()}
    with double_precision():
        whole = outputs(model.module, model.calls()[0])
        gates = Gates(graph, model.module)
        for seed in range(2):
            plan = plan_of(graph, random_cuts(graph, random.Random(seed)))
            masked = outputs(shearfx.mask(model.module, plan), model.calls()[0])
            with gates:
                gates.close(plan)
                assert furthest(outputs(model.module, model.calls()[0]), masked) <= 1e-10
                with gates.opened():
                    assert furthest(outputs(model.module, model.calls()[0]), whole) == 0
                assert furthest(outputs(model.module, model.calls()[0]), masked) <= 1e-10
            assert furthest(outputs(model.module, model.calls()[0]), whole) == 0
    for name, tensor in model.module.state_dict().items():
        assert torch.equal(tensor, before[name]), name
