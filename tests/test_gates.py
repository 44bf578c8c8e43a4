"""Gates on a live model: shut, it computes what the masked model does; open or taken off, it is what it was."""

from __future__ import annotations

import os
import random

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import nn

import shearfx
from shearfx.comparison import TOLERANCE, relative_error
from shearfx.gating.gates import Gates
from shearfx.graph import Group
from shearfx.precision import double_precision
from shearfx.saliency.fisher import Fisher, collecting
from shearfx.testing import Architecture, architectures, prunable, random_cuts
from shearfx.testing.blocks import Act, Linear, Residual
from shearfx.testing.plans import plan_of
from tests import zoo
from tests.zoo import Entry, float_outputs

QUICK = {
    "llama", "gpt2", "bert", "mamba", "resnet_hf", "unet", "moe_dense", "mixtral", "shared_twice", "vit", "t5",
    "lstm", "gru_bidirectional", "tied_autoencoder", "squeeze_excite",  # once gated at some of their readers only
}  # fmt: skip
STEP = 2.0**-12
"""Gates are kept in float32: this and twice this are exact."""
LONG = int(os.environ.get("SHEARFX_EXAMPLES", "1000"))
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


def check_gates(architecture: Architecture, seed: int) -> None:
    """All that must hold of gates on one random architecture, for one choice of what is shut."""
    module, inputs = architecture.build(), architecture.inputs()
    with torch.no_grad():
        whole: torch.Tensor = module(*inputs)
    assume(bool(torch.isfinite(whole).all()))
    graph = shearfx.trace(module, *inputs)
    cuts = random_cuts(graph, random.Random(seed))
    assume(cuts)
    plan = plan_of(graph, cuts)
    gates = Gates(graph, module)
    with torch.no_grad():
        masked = shearfx.mask(module, plan)(*inputs)
        with gates:
            gates.close(plan)
            assert relative_error([masked], [module(*inputs)]) <= TOLERANCE
        assert torch.equal(module(*inputs), whole)


SQUARE = Architecture(
    "tokens", 4, (Linear(out=4, bias=False), Residual(body=(Act(name="abs"),), how="add")), "linear", 0
)  # fmt: skip
"""What a layer reads and what it gives are one group: it was gated where it gives, by its bias."""


@settings(max_examples=25)
@given(architectures(max_blocks=3), st.integers(0, 99))
@example(SQUARE, 0)
def test_shut_is_masked_whatever_the_architecture(architecture: Architecture, seed: int) -> None:
    check_gates(architecture, seed)


@pytest.mark.slow
@settings(max_examples=LONG)
@given(architectures(max_blocks=4), st.integers(0, 99))
@pytest.mark.timeout(0)
def test_shut_is_masked_whatever_the_architecture_long(architecture: Architecture, seed: int) -> None:
    check_gates(architecture, seed)


@settings(max_examples=25)
@given(architectures(max_blocks=3))
@example(SQUARE)
def test_derivatives_are_those_of_fading_whatever_the_architecture(architecture: Architecture) -> None:
    """What is collected of a gate in a backward pass is what the loss does when the gate shuts a little."""
    module, inputs = architecture.build().requires_grad_(False), architecture.inputs()

    def loss() -> torch.Tensor:
        found: torch.Tensor = module(*inputs).sin().sum()
        return found

    with torch.no_grad():
        whole = loss()
    assume(bool(torch.isfinite(whole)))
    graph = shearfx.trace(module, *inputs)
    exact = [g for g in graph.groups if g.certificate == "exact"]
    places = Gates(graph, module, exact).places
    in_weights = {weight.group for weight in places.weights}
    read = [g for g in exact if g.name in places.inputs_only]
    assume(read)
    groups, weighed = [g for g in read if g.name not in in_weights], [g for g in read if g.name in in_weights]
    found: dict[str, torch.Tensor] = {}
    if weighed:  # each batch counts as one sequence
        scores = Fisher().score(graph, module, groups=weighed, data=[inputs], loss=lambda *_: loss())
        sequences = next((len(x) for x in inputs if x.dim()), 1)
        found |= {name: (score * sequences).sqrt() for name, score in scores.items()}
    with Gates(graph, module, read) as gates:
        with collecting(gates, module) as collector:
            moved = loss()
            if moved.requires_grad:  # else nothing of what comes out depends on what can be cut
                moved.backward()
            collector.flush()
        found |= {g.name: collector.absolute[g.name] for g in groups}

        @torch.no_grad()
        def faded(group: Group, structure: int, by: float) -> float:
            values = torch.ones(group.size)
            values[structure] -= by
            gates.set({group.name: values})
            found = float(loss())
            gates.set({group.name: torch.ones(group.size)})
            return found

        for group in read:
            for structure in range(min(group.size, 3)):
                near, far = faded(group, structure, STEP), faded(group, structure, 2 * STEP)
                slope, coarse = (3 * float(whole) - 4 * near + far) / (2 * STEP), (float(whole) - near) / STEP
                if abs(slope - coarse) < 0.05 * abs(slope) + 1e-6:  # no kink in between, and no jump
                    assert float(found[group.name][structure]) == pytest.approx(abs(slope), rel=1e-2, abs=1e-5)
